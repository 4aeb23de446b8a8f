package suites

import (
	"context"
	"os"
	"runtime"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/transfer/image"
	"github.com/containerd/containerd/v2/core/transfer/registry"
	"github.com/containerd/platforms"
)

// Pulls GANTRY_IMAGE by the transfer service, as ctr does.
func pullByTransfer(ctx context.Context, client *containerd.Client) error {
	name := os.Getenv("GANTRY_IMAGE")
	source, err := registry.NewOCIRegistry(ctx, name, registry.WithDefaultScheme("http"))
	if err != nil {
		return err
	}
	platform := platforms.DefaultSpec()
	platform.Architecture = runtime.GOARCH
	return client.Transfer(ctx, source, image.NewStore(name, image.WithUnpack(platform, "overlayfs")))
}
