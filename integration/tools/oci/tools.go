//go:build tools

// Package tools pins what validates OCI runtimes; it needs older modules than the other tools.
package tools

import (
	_ "github.com/opencontainers/runtime-tools/cmd/runtimetest"
	_ "github.com/opencontainers/runtime-tools/validation/default"
)
