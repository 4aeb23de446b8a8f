package suites

import (
	"context"
	"fmt"
	"io"
	"os"
	"testing"
	"time"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	contentapi "github.com/containerd/containerd/api/services/content/v1"
	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	eventsapi "github.com/containerd/containerd/api/services/events/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	streamingapi "github.com/containerd/containerd/api/services/streaming/v1"
	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"
)

// Moments at which a client gives up.
var moments = []time.Duration{0, 100 * time.Microsecond, time.Millisecond, 4 * time.Millisecond, 15 * time.Millisecond, 60 * time.Millisecond}

// A call that is given up at each moment, and by each way of giving up, leaves no lock, no permit and no operation.
func TestCancelled(t *testing.T) {
	client := dial(t)
	ctx := namespaces.WithNamespace(context.Background(), "cancelled")
	conn, ok := client.Conn().(*grpc.ClientConn)
	if !ok {
		t.Fatal("the client has no connection of its own")
	}
	image, err := client.Pull(ctx, os.Getenv("GANTRY_IMAGE"), containerd.WithPullUnpack)
	if err != nil {
		t.Fatal(err)
	}
	layer := layerOf(ctx, t, conn, image)
	for name, call := range calls(conn, layer) {
		t.Run(name, func(t *testing.T) {
			for _, moment := range moments {
				ctx, cancel := context.WithCancel(ctx)
				go func() {
					time.Sleep(moment)
					cancel()
				}()
				// Whether it was in time or not: it must end.
				ended := make(chan struct{})
				go func() { call(ctx); close(ended) }()
				select {
				case <-ended:
				case <-time.After(10 * time.Second):
					t.Fatalf("given up after %v, the call does not end", moment)
				}
				cancel()
			}
			idle(t, conn)
		})
	}
	t.Run("the writers are free again", func(t *testing.T) { writersAreFree(ctx, t, conn) })
	t.Run("pulls are not used up", func(t *testing.T) { pullsAreNotUsedUp(ctx, t, client, conn) })
}

func layerOf(ctx context.Context, t *testing.T, conn *grpc.ClientConn, image containerd.Image) *types.Descriptor {
	t.Helper()
	var found *types.Descriptor
	manifest, err := image.RootFS(ctx)
	if err != nil || len(manifest) == 0 {
		t.Fatalf("the image has no layers: %v", err)
	}
	list, err := contentapi.NewContentClient(conn).List(ctx, &contentapi.ListContentRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for {
		part, err := list.Recv()
		if err != nil {
			break
		}
		for _, info := range part.Info {
			if found == nil || info.Size > found.Size {
				found = &types.Descriptor{MediaType: "application/vnd.oci.image.layer.v1.tar+gzip", Digest: info.Digest, Size: info.Size}
			}
		}
	}
	if found == nil {
		t.Fatal("there is no blob")
	}
	return found
}

var count int

func calls(conn *grpc.ClientConn, layer *types.Descriptor) map[string]func(context.Context) {
	contents, snapshots := contentapi.NewContentClient(conn), snapshotsapi.NewSnapshotsClient(conn)
	return map[string]func(context.Context){
		"content write": func(ctx context.Context) {
			stream, err := contents.Write(ctx)
			if err != nil {
				return
			}
			data := make([]byte, 256<<10)
			for offset := int64(0); ; offset += int64(len(data)) {
				request := &contentapi.WriteContentRequest{Action: contentapi.WriteAction_WRITE, Ref: "cancelled", Offset: offset, Total: 1 << 40, Data: data}
				if offset == 0 {
					// An earlier one has left some.
					request.Action, request.Data, request.Offset = contentapi.WriteAction_STAT, nil, 0
				}
				if stream.Send(request) != nil {
					return
				}
				answer, err := stream.Recv()
				if err != nil {
					return
				}
				offset = answer.Offset - int64(len(request.Data))
				if offset < 0 {
					offset = 0
				}
			}
		},
		"content write, cut off by the client's half": func(ctx context.Context) {
			count++
			stream, err := contents.Write(ctx)
			if err != nil {
				return
			}
			_ = stream.Send(&contentapi.WriteContentRequest{Action: contentapi.WriteAction_WRITE, Ref: fmt.Sprintf("half-%d", count), Total: 100, Data: []byte("some")})
			_ = stream.CloseSend()
			drain(stream.Recv)
		},
		"content commit": func(ctx context.Context) {
			count++
			stream, err := contents.Write(ctx)
			if err != nil {
				return
			}
			data := []byte(fmt.Sprintf("blob %d", count))
			_ = stream.Send(&contentapi.WriteContentRequest{
				Action: contentapi.WriteAction_COMMIT, Ref: fmt.Sprintf("commit-%d", count), Total: int64(len(data)), Data: data,
				Expected: digest.FromBytes(data).String(),
			})
			drain(stream.Recv)
		},
		"content read": func(ctx context.Context) {
			if stream, err := contents.Read(ctx, &contentapi.ReadContentRequest{Digest: layer.Digest}); err == nil {
				drain(stream.Recv)
			}
		},
		"content list": func(ctx context.Context) {
			if stream, err := contents.List(ctx, &contentapi.ListContentRequest{}); err == nil {
				drain(stream.Recv)
			}
		},
		"containers list": func(ctx context.Context) {
			stream, err := containersapi.NewContainersClient(conn).ListStream(ctx, &containersapi.ListContainersRequest{})
			if err == nil {
				drain(stream.Recv)
			}
		},
		"snapshots list": func(ctx context.Context) {
			stream, err := snapshots.List(ctx, &snapshotsapi.ListSnapshotsRequest{Snapshotter: "overlayfs"})
			if err == nil {
				drain(stream.Recv)
			}
		},
		"events": func(ctx context.Context) {
			if stream, err := eventsapi.NewEventsClient(conn).Subscribe(ctx, &eventsapi.SubscribeRequest{}); err == nil {
				drain(stream.Recv)
			}
		},
		"a stream that nothing refers to": func(ctx context.Context) {
			count++
			stream, err := streamingapi.NewStreamingClient(conn).Stream(ctx)
			if err != nil {
				return
			}
			if init, err := typeurl.MarshalAnyToProto(&streamingapi.StreamInit{ID: fmt.Sprintf("stream-%d", count)}); err == nil {
				_ = stream.Send(init)
			}
			drain(stream.Recv)
		},
		"a snapshot with a layer applied": func(ctx context.Context) {
			count++
			key := fmt.Sprintf("apply-%d", count)
			prepared, err := snapshots.Prepare(ctx, &snapshotsapi.PrepareSnapshotRequest{Snapshotter: "overlayfs", Key: key})
			if err != nil {
				return
			}
			_, _ = diffapi.NewDiffClient(conn).Apply(ctx, &diffapi.ApplyRequest{Diff: layer, Mounts: prepared.Mounts})
		},
		"a layer made": func(ctx context.Context) {
			count++
			key := fmt.Sprintf("diff-%d", count)
			prepared, err := snapshots.Prepare(ctx, &snapshotsapi.PrepareSnapshotRequest{Snapshotter: "overlayfs", Key: key})
			if err != nil {
				return
			}
			_, _ = diffapi.NewDiffClient(conn).Diff(ctx, &diffapi.DiffRequest{Left: prepared.Mounts, Right: prepared.Mounts, Ref: key})
		},
		"a wait for what is not there": func(ctx context.Context) {
			_, _ = tasksapi.NewTasksClient(conn).Wait(ctx, &tasksapi.WaitRequest{ContainerID: "none"})
		},
	}
}

// Reads until the stream ends, however it ends.
func drain[T any](receive func() (T, error)) {
	for {
		if _, err := receive(); err != nil {
			return
		}
	}
}

// Nothing may be under way soon after the last call was given up.
func idle(t *testing.T, conn *grpc.ClientConn) {
	t.Helper()
	for start := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		// The answer of our own service has one field, the operations: no bytes, no operations.
		answer := &emptypb.Empty{}
		if err := conn.Invoke(context.Background(), "/gantry.admin.v1.Admin/ListOperations", &emptypb.Empty{}, answer); err != nil {
			t.Fatal(err)
		}
		left := answer.ProtoReflect().GetUnknown()
		if len(left) == 0 {
			return
		}
		if time.Since(start) > 5*time.Second {
			t.Fatalf("still under way: %q", left)
		}
	}
}

// Every ingest can be opened by another at once.
func writersAreFree(ctx context.Context, t *testing.T, conn *grpc.ClientConn) {
	contents := contentapi.NewContentClient(conn)
	statuses, err := contents.ListStatuses(ctx, &contentapi.ListStatusesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if len(statuses.Statuses) == 0 {
		t.Fatal("no writer has left anything: none was given up in the middle")
	}
	for _, status := range statuses.Statuses {
		for start := time.Now(); ; time.Sleep(10 * time.Millisecond) {
			err := reopen(ctx, contents, status.Ref)
			if err == nil {
				break
			}
			if time.Since(start) > 5*time.Second {
				t.Fatalf("%s stays locked: %v", status.Ref, err)
			}
		}
		if _, err := contents.Abort(ctx, &contentapi.AbortRequest{Ref: status.Ref}); err != nil {
			t.Fatal(err)
		}
	}
}

func reopen(ctx context.Context, contents contentapi.ContentClient, ref string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := contents.Write(ctx)
	if err != nil {
		return err
	}
	if err := stream.Send(&contentapi.WriteContentRequest{Action: contentapi.WriteAction_STAT, Ref: ref}); err != nil && err != io.EOF {
		return err
	}
	_, err = stream.Recv()
	return err
}

// More pulls are given up than may run at once; then one goes through.
func pullsAreNotUsedUp(ctx context.Context, t *testing.T, client *containerd.Client, conn *grpc.ClientConn) {
	for round := range 24 {
		own := namespaces.WithNamespace(ctx, fmt.Sprintf("pull-%d", round))
		limited, cancel := context.WithTimeout(own, time.Duration(round)*2*time.Millisecond)
		_ = pullByTransfer(limited, client)
		cancel()
	}
	last, cancel := context.WithTimeout(namespaces.WithNamespace(ctx, "pull-last"), 30*time.Second)
	defer cancel()
	if err := pullByTransfer(last, client); err != nil {
		t.Fatal(err)
	}
	idle(t, conn)
}
