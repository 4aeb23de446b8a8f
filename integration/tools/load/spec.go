package main

import (
	"context"
	"encoding/json"
	"sync"

	containers "github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// template is the specification that containerd's client generates for an image without settings.
var template = sync.OnceValue(func() *specs.Spec {
	ctx := namespaces.WithNamespace(context.Background(), "load")
	spec, err := oci.GenerateSpec(ctx, nil, &containers.Container{ID: "load"},
		oci.WithDefaultPathEnv, oci.WithProcessArgs("/bin/sh", "-c", "sleep 1000"))
	if err != nil {
		panic(err)
	}
	return spec
})

// specification is that of one container.
func specification(id string) []byte {
	spec := *template()
	linux := *spec.Linux
	spec.Hostname, linux.CgroupsPath, spec.Linux = id, "/load/"+id, &linux
	spec.Annotations = map[string]string{"io.kubernetes.cri.container-name": id}
	bytes, err := json.Marshal(&spec)
	if err != nil {
		panic(err)
	}
	return bytes
}
