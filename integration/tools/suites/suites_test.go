// Package suites runs containerd's own reusable test suites, and a container's life by the official client, against
// the daemon whose socket GANTRY_SOCKET names.
package suites

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	contentsuite "github.com/containerd/containerd/v2/core/content/testsuite"
	"github.com/containerd/containerd/v2/core/snapshots"
	snapshotsuite "github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
)

func dial(t *testing.T) *containerd.Client {
	t.Helper()
	client, err := open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return client
}

func open() (*containerd.Client, error) {
	socket := os.Getenv("GANTRY_SOCKET")
	if socket == "" {
		return nil, fmt.Errorf("GANTRY_SOCKET names no daemon")
	}
	return containerd.New(socket, containerd.WithTimeout(10*time.Second))
}

// The suite wants each test to see a store of its own: a namespace each does that.
func TestContent(t *testing.T) {
	contentsuite.ContentSuite(t, "content", func(ctx context.Context, _ string) (context.Context, content.Store, func() error, error) {
		client, err := open()
		if err != nil {
			return nil, nil, nil, err
		}
		store, name := client.ContentStore(), contentsuite.Name(ctx)
		var count atomic.Int32
		ctx = contentsuite.SetContextWrapper(ctx, func(ctx context.Context, _ bool) (context.Context, func(context.Context) error, error) {
			own := namespaces.WithNamespace(ctx, fmt.Sprintf("%s-%d", name, count.Add(1)))
			return client.WithLease(own)
		})
		tidy := func() error {
			defer client.Close()
			for n := int32(1); n <= count.Load(); n++ {
				if err := empty(namespaces.WithNamespace(ctx, fmt.Sprintf("%s-%d", name, n)), store); err != nil {
					return err
				}
			}
			return nil
		}
		return ctx, store, tidy, nil
	})
}

func empty(ctx context.Context, store content.Store) error {
	active, err := store.ListStatuses(ctx)
	if err != nil {
		return err
	}
	for _, status := range active {
		if err := store.Abort(ctx, status.Ref); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
	}
	return store.Walk(ctx, func(info content.Info) error {
		if err := store.Delete(ctx, info.Digest); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
		return nil
	})
}

func snapshotter(name string) func(*testing.T) {
	return func(t *testing.T) {
		snapshotsuite.SnapshotterSuite(t, name, func(context.Context, string) (snapshots.Snapshotter, func() error, error) {
			client, err := open()
			if err != nil {
				return nil, nil, err
			}
			return client.SnapshotService(name), client.Close, nil
		})
	}
}

func TestOverlay(t *testing.T) { snapshotter("overlayfs")(t) }

func TestNative(t *testing.T) { snapshotter("native")(t) }

func TestErofs(t *testing.T) { snapshotter("erofs")(t) }

// The snapshotter that GANTRY_SNAPSHOTTER names.
func TestNamed(t *testing.T) { snapshotter(os.Getenv("GANTRY_SNAPSHOTTER"))(t) }

// A container's whole life, as a Go program that uses the official client would do it. GANTRY_RUNTIME names another
// runtime than the daemon's own.
func TestTask(t *testing.T) {
	client, reference := dial(t), os.Getenv("GANTRY_IMAGE")
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(context.Background(), "go-client"), time.Minute)
	defer cancel()
	image, err := client.Pull(ctx, reference, containerd.WithPullUnpack, containerd.WithPlatform("linux/amd64"))
	if err != nil {
		t.Fatal("pull:", err)
	}
	events, failures := client.EventService().Subscribe(ctx, `topic~="^/tasks/"`)
	id := os.Getenv("GANTRY_ID")
	options := []containerd.NewContainerOpts{}
	if name := os.Getenv("GANTRY_RUNTIME"); name != "" {
		options = append(options, containerd.WithRuntime(name, nil))
	}
	container, err := client.NewContainer(ctx, id, append(options,
		containerd.WithNewSnapshot(id, image),
		containerd.WithNewSpec(oci.WithImageConfig(image), oci.WithProcessArgs("/bin/sh", "-c", "echo out; read line; echo got $line; trap 'exit 17' TERM; while :; do sleep 0.05; done")))...)
	if err != nil {
		t.Fatal("new container:", err)
	}
	stdin, feed, _ := os.Pipe()
	var stdout, stderr bytes.Buffer
	task, err := container.NewTask(ctx, cio.NewCreator(cio.WithStreams(stdin, &stdout, &stderr)))
	if err != nil {
		t.Fatal("new task:", err)
	}
	exited, err := task.Wait(ctx)
	if err != nil {
		t.Fatal("wait:", err)
	}
	if err := task.Start(ctx); err != nil {
		t.Fatal("start:", err)
	}
	fmt.Fprintln(feed, "a line")

	// Two buffers: they are filled by two goroutines.
	var execOut, execErr bytes.Buffer
	spec, err := container.Spec(ctx)
	if err != nil {
		t.Fatal("spec:", err)
	}
	process := *spec.Process
	process.Args = []string{"/bin/sh", "-c", "echo executed; exit 5"}
	exec, err := task.Exec(ctx, "e1", &process, cio.NewCreator(cio.WithStreams(nil, &execOut, &execErr)))
	if err != nil {
		t.Fatal("exec:", err)
	}
	execExited, err := exec.Wait(ctx)
	if err != nil {
		t.Fatal("wait for exec:", err)
	}
	if err := exec.Start(ctx); err != nil {
		t.Fatal("start exec:", err)
	}
	if status := <-execExited; status.ExitCode() != 5 {
		t.Fatalf("exec: exit code %d, %v", status.ExitCode(), status.Error())
	}
	if _, err := exec.Delete(ctx); err != nil {
		t.Fatal("delete exec:", err)
	}
	if execOut.String() != "executed\n" {
		t.Fatalf("exec printed %q", execOut.String())
	}

	if pids, err := task.Pids(ctx); err != nil || len(pids) == 0 {
		t.Fatal("pids:", pids, err)
	}
	if _, err := task.Metrics(ctx); err != nil {
		t.Fatal("metrics:", err)
	}
	if err := task.Pause(ctx); err != nil {
		t.Fatal("pause:", err)
	}
	if status, err := task.Status(ctx); err != nil || status.Status != containerd.Paused {
		t.Fatal("status of a paused task:", status, err)
	}
	if err := task.Resume(ctx); err != nil {
		t.Fatal("resume:", err)
	}
	if _, err := task.Delete(ctx); err == nil {
		t.Fatal("a running task was deleted")
	}
	if err := task.Kill(ctx, syscall.SIGTERM); err != nil {
		t.Fatal("kill:", err)
	}
	if status := <-exited; status.ExitCode() != 17 {
		t.Fatalf("exit code %d, %v", status.ExitCode(), status.Error())
	}
	if status, err := task.Delete(ctx); err != nil || status.ExitCode() != 17 {
		t.Fatal("delete:", status, err)
	}
	if stdout.String() != "out\ngot a line\n" {
		t.Fatalf("printed %q", stdout.String())
	}
	if err := container.Delete(ctx, containerd.WithSnapshotCleanup); err != nil {
		t.Fatal("delete container:", err)
	}
	wanted := []string{"/tasks/create", "/tasks/start", "/tasks/exec-added", "/tasks/exec-started", "/tasks/exit", "/tasks/paused", "/tasks/resumed", "/tasks/exit", "/tasks/delete"}
	for _, topic := range wanted {
		select {
		case event := <-events:
			if event.Topic != topic {
				t.Fatalf("event %s, expected %s", event.Topic, topic)
			}
		case err := <-failures:
			t.Fatal("events:", err)
		case <-time.After(5 * time.Second):
			t.Fatalf("no event %s", topic)
		}
	}
	if err := client.ImageService().Delete(ctx, reference); err != nil {
		t.Fatal("delete image:", err)
	}
}
