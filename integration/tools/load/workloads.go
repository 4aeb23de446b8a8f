package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	containers "github.com/containerd/containerd/api/services/containers/v1"
	images "github.com/containerd/containerd/api/services/images/v1"
	leases "github.com/containerd/containerd/api/services/leases/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
)

type workload = func(context.Context, *load) (result, error)

var workloads = map[string]workload{
	"fill":            fill,
	"version":         version,
	"get":             get,
	"list":            list,
	"list-stream":     listStream,
	"images-list":     listImages,
	"create":          create,
	"update":          update,
	"images-create":   createImages,
	"images-expiring": createExpiringImages,
	"leases-create":   createLeases,
	"resources-add":   addResources,
	"content-labels":  labelContent,
	"content-read":    read,
	"content-write":   write,
	"events":          fanOut,
	"task-life":       taskLife,
	"task-start":      taskStart,
	"task-end":        taskEnd,
	"task-exec":       taskExec,
	// The same by a client that costs next to nothing.
	"wire-list":          listOnWire,
	"wire-list-stream":   listStreamOnWire,
	"wire-content-read":  readOnWire,
	"wire-content-write": writeOnWire,
}

const (
	containersService = "/containerd.services.containers.v1.Containers/"
	imagesService     = "/containerd.services.images.v1.Images/"
	leasesService     = "/containerd.services.leases.v1.Leases/"
)

// container is one as `ctr run` enters it: the specification is the one that containerd's client generates.
func container(id string, n int) *containers.Container {
	return &containers.Container{
		ID:          id,
		Image:       fmt.Sprintf("docker.io/library/image-%d:latest", n%1000),
		Labels:      map[string]string{"group": fmt.Sprint(n % 10), "io.containerd.image.config.stop-signal": "SIGTERM"},
		Runtime:     &containers.Container_Runtime{Name: "io.containerd.runc.v2"},
		Spec:        &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/Spec", Value: specification(id)},
		Snapshotter: "overlayfs",
		SnapshotKey: id,
	}
}

func image(name string, n int) *images.Image {
	return &images.Image{
		Name:   name,
		Labels: map[string]string{"group": fmt.Sprint(n % 10), "io.cri-containerd.image": "managed"},
		Target: &types.Descriptor{
			MediaType: "application/vnd.oci.image.index.v1+json", Digest: digest.FromString(name).String(), Size: 1234,
		},
	}
}

func stored(n int) string { return fmt.Sprintf("container-%05d", n) }

// fill enters the containers of the flag and a tenth as many images.
func fill(ctx context.Context, l *load) (result, error) {
	l.count = l.containers / l.workers
	return l.calls(func(c *grpc.ClientConn, worker, call int) (int64, error) {
		n := worker*l.count + call
		made := &containers.CreateContainerRequest{Container: container(stored(n), n)}
		if err := c.Invoke(ctx, containersService+"Create", made, &sink{}); err != nil || n%10 > 0 {
			return 0, err
		}
		name := fmt.Sprintf("docker.io/library/image-%d:latest", n/10)
		return 0, c.Invoke(ctx, imagesService+"Create", &images.CreateImageRequest{Image: image(name, n)}, &sink{})
	})
}

// unary calls a method again and again.
func unary(ctx context.Context, l *load, method string, request func(worker, call int) any) (result, error) {
	return l.calls(func(c *grpc.ClientConn, worker, call int) (int64, error) {
		var answer sink
		err := c.Invoke(ctx, method, request(worker, call), &answer)
		return answer.length, err
	})
}

func version(ctx context.Context, l *load) (result, error) {
	return unary(ctx, l, "/containerd.services.version.v1.Version/Version", func(int, int) any { return &emptypb.Empty{} })
}

func get(ctx context.Context, l *load) (result, error) {
	return unary(ctx, l, containersService+"Get", func(int, int) any {
		return &containers.GetContainerRequest{ID: stored(rand.IntN(l.containers))}
	})
}

func (l *load) filters() []string {
	if l.filter == "" {
		return nil
	}
	return []string{l.filter}
}

func list(ctx context.Context, l *load) (result, error) {
	request := &containers.ListContainersRequest{Filters: l.filters()}
	return unary(ctx, l, containersService+"List", func(int, int) any { return request })
}

func listImages(ctx context.Context, l *load) (result, error) {
	request := &images.ListImagesRequest{Filters: l.filters()}
	return unary(ctx, l, imagesService+"List", func(int, int) any { return request })
}

// listStream counts the containers that came as operations.
func listStream(ctx context.Context, l *load) (result, error) {
	records := int64(0)
	r, err := l.calls(func(c *grpc.ClientConn, _, _ int) (int64, error) {
		n, bytes, err := receive(ctx, c, containersService+"ListStream", &containers.ListContainersRequest{Filters: l.filters()})
		records += n
		return bytes, err
	})
	r.Operations = records
	return r, err
}

// receive sends a request and counts what comes until the end.
func receive(ctx context.Context, c *grpc.ClientConn, method string, request any) (messages, bytes int64, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, method)
	if err != nil {
		return 0, 0, err
	}
	if err := stream.SendMsg(request); err != nil {
		return 0, 0, err
	}
	if err := stream.CloseSend(); err != nil {
		return 0, 0, err
	}
	for {
		var answer sink
		if err := stream.RecvMsg(&answer); err == io.EOF {
			return messages, bytes, nil
		} else if err != nil {
			return messages, bytes, err
		}
		messages++
		bytes += answer.length
	}
}

// fresh is a name that no other call has.
func (l *load) fresh(worker, call int) string { return fmt.Sprintf("%s-%d-%d", l.prefix, worker, call) }

func create(ctx context.Context, l *load) (result, error) {
	return unary(ctx, l, containersService+"Create", func(worker, call int) any {
		return &containers.CreateContainerRequest{Container: container(l.fresh(worker, call), call)}
	})
}

// update changes one label of a stored container, each worker of its own ones.
func update(ctx context.Context, l *load) (result, error) {
	mask := &fieldmaskpb.FieldMask{Paths: []string{"labels.touched"}}
	return unary(ctx, l, containersService+"Update", func(worker, call int) any {
		id := stored((worker + call*l.workers) % l.containers)
		labels := map[string]string{"touched": fmt.Sprint(call)}
		return &containers.UpdateContainerRequest{Container: &containers.Container{ID: id, Labels: labels}, UpdateMask: mask}
	})
}

func createImages(ctx context.Context, l *load) (result, error) {
	return unary(ctx, l, imagesService+"Create", func(worker, call int) any {
		return &images.CreateImageRequest{Image: image("example.test/"+l.fresh(worker, call)+":latest", call)}
	})
}

// createExpiringImages makes what is garbage after a while.
func createExpiringImages(ctx context.Context, l *load) (result, error) {
	when := time.Now().Add(l.expires).Format(time.RFC3339)
	return unary(ctx, l, imagesService+"Create", func(worker, call int) any {
		image := image("example.test/"+l.fresh(worker, call)+":latest", call)
		image.Labels["containerd.io/gc.expire"] = when
		return &images.CreateImageRequest{Image: image}
	})
}

func createLeases(ctx context.Context, l *load) (result, error) {
	return unary(ctx, l, leasesService+"Create", func(worker, call int) any {
		return &leases.CreateRequest{ID: l.fresh(worker, call), Labels: map[string]string{"group": fmt.Sprint(call % 10)}}
	})
}

// addResources adds images to one lease a worker.
func addResources(ctx context.Context, l *load) (result, error) {
	for worker := range l.workers {
		lease := &leases.CreateRequest{ID: l.fresh(worker, -1)}
		if err := l.connections[0].Invoke(ctx, leasesService+"Create", lease, &sink{}); err != nil {
			return result{}, err
		}
	}
	return unary(ctx, l, leasesService+"AddResource", func(worker, call int) any {
		resource := &leases.Resource{ID: digest.FromString(l.fresh(worker, call)).String(), Type: "content"}
		return &leases.AddResourceRequest{ID: l.fresh(worker, -1), Resource: resource}
	})
}
