// Command example pulls an image, runs a container from it, executes a second process in it and removes everything
// again, by containerd's own client library and without a line that knows which daemon answers.
//
//	example SOCKET IMAGE ID
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	_ "github.com/containerd/containerd/api/events" // makes the payloads of events known by name
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/transfer"
	"github.com/containerd/containerd/v2/core/transfer/image"
	"github.com/containerd/containerd/v2/core/transfer/registry"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
)

const (
	namespace   = "example"
	snapshotter = "overlayfs"

	// The first process runs until it is told to end; the second waits until the first is ready for that.
	first  = "trap 'echo stopped; exit 7' TERM; echo running; touch /tmp/ready; while :; do sleep 0.05; done"
	second = "until [ -e /tmp/ready ]; do sleep 0.02; done; echo executed; exit 3"
)

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: example SOCKET IMAGE ID")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(ctx, namespace), 2*time.Minute)
	defer cancel()
	if err := example(ctx, os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, "example:", err)
		os.Exit(1)
	}
}

func example(ctx context.Context, socket, reference, id string) (err error) {
	client, err := containerd.New(socket, containerd.WithTimeout(10*time.Second))
	if err != nil {
		return fmt.Errorf("connect to %s: %w", socket, err)
	}
	defer client.Close()

	// What is made below belongs to a lease: nothing of it is collected before a record refers to it.
	manager := client.LeasesService()
	lease, err := manager.Create(ctx, leases.WithRandomID(), leases.WithExpiration(time.Hour))
	if err != nil {
		return fmt.Errorf("lease: %w", err)
	}
	ctx = leases.WithLease(ctx, lease.ID)
	defer undo(ctx, &err, "delete lease", func(ctx context.Context) error {
		return manager.Delete(ctx, lease, leases.SynchronousDelete)
	})
	watching, end := context.WithCancel(ctx)
	defer end()
	deleted := watch(watching, client, id)

	if err := pull(ctx, client, reference); err != nil {
		return fmt.Errorf("pull %s: %w", reference, err)
	}
	defer undo(ctx, &err, "delete image", func(ctx context.Context) error {
		return client.ImageService().Delete(ctx, reference)
	})
	img, err := client.GetImage(ctx, reference)
	if err != nil {
		return err
	}

	container, err := client.NewContainer(ctx, id,
		containerd.WithSnapshotter(snapshotter),
		containerd.WithNewSnapshot(id, img),
		containerd.WithNewSpec(oci.WithImageConfig(img), oci.WithProcessArgs("/bin/sh", "-c", first)))
	if err != nil {
		return fmt.Errorf("create container: %w", err)
	}
	defer undo(ctx, &err, "delete container", func(ctx context.Context) error {
		return container.Delete(ctx, containerd.WithSnapshotCleanup)
	})
	if err := run(ctx, container); err != nil {
		return err
	}
	select {
	case err := <-deleted:
		return err
	case <-time.After(10 * time.Second):
		return errors.New("no event told of the task's end")
	}
}

// pull fetches and unpacks an image in the daemon, printing what it tells of its progress.
func pull(ctx context.Context, client *containerd.Client, reference string) error {
	source, err := registry.NewOCIRegistry(ctx, reference)
	if err != nil {
		return err
	}
	platform := platforms.DefaultSpec()
	destination := image.NewStore(reference, image.WithPlatforms(platform), image.WithUnpack(platform, snapshotter))
	return client.Transfer(ctx, source, destination, transfer.WithProgress(func(p transfer.Progress) {
		fmt.Printf("pull %s %s %d/%d\n", p.Event, p.Name, p.Progress, p.Total)
	}))
}

// run starts the container's task and a second process in it, and waits for both.
func run(ctx context.Context, container containerd.Container) (err error) {
	task, err := container.NewTask(ctx, cio.NewCreator(cio.WithStreams(nil, os.Stdout, os.Stderr)))
	if err != nil {
		return fmt.Errorf("create task: %w", err)
	}
	defer undo(ctx, &err, "delete task", func(ctx context.Context) error {
		_, err := task.Delete(ctx, containerd.WithProcessKill)
		return err
	})
	exited, err := task.Wait(ctx)
	if err != nil {
		return fmt.Errorf("wait: %w", err)
	}
	if err := task.Start(ctx); err != nil {
		return fmt.Errorf("start: %w", err)
	}
	if err := execute(ctx, container, task); err != nil {
		return err
	}
	if err := task.Kill(ctx, syscall.SIGTERM); err != nil {
		return fmt.Errorf("kill: %w", err)
	}
	return expect("container", <-exited, 7)
}

// execute runs a second process in the container: the first one's settings, another command.
func execute(ctx context.Context, container containerd.Container, task containerd.Task) (err error) {
	spec, err := container.Spec(ctx)
	if err != nil {
		return err
	}
	settings := *spec.Process
	settings.Args = []string{"/bin/sh", "-c", second}
	process, err := task.Exec(ctx, "second", &settings, cio.NewCreator(cio.WithStreams(nil, os.Stdout, os.Stderr)))
	if err != nil {
		return fmt.Errorf("exec: %w", err)
	}
	defer undo(ctx, &err, "delete exec", func(ctx context.Context) error {
		_, err := process.Delete(ctx, containerd.WithProcessKill)
		return err
	})
	exited, err := process.Wait(ctx)
	if err != nil {
		return fmt.Errorf("wait for exec: %w", err)
	}
	if err := process.Start(ctx); err != nil {
		return fmt.Errorf("start exec: %w", err)
	}
	return expect("exec", <-exited, 3)
}

func expect(what string, status containerd.ExitStatus, code uint32) error {
	got, _, err := status.Result()
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	fmt.Printf("exit %s %d\n", what, got)
	if got != code {
		return fmt.Errorf("%s: exit code %d, expected %d", what, got, code)
	}
	return nil
}

// watch prints the container's events; the channel delivers once its task has been deleted, or with what went wrong.
func watch(ctx context.Context, client *containerd.Client, id string) <-chan error {
	stream, failures := client.EventService().Subscribe(ctx, `topic~="^/tasks/"`)
	deleted := make(chan error, 1)
	go func() {
		for {
			select {
			case event := <-stream:
				if !concerns(event, id) {
					continue
				}
				fmt.Println("event", event.Topic)
				if event.Topic == "/tasks/delete" {
					deleted <- nil
					return
				}
			case err := <-failures:
				deleted <- fmt.Errorf("events: %w", errors.Join(err, ctx.Err()))
				return
			}
		}
	}()
	return deleted
}

func concerns(event *events.Envelope, id string) bool {
	about, ok := event.Field([]string{"event", "container_id"})
	return ok && about == id
}

// undo runs a step of the cleanup, also when ctx has ended; its failure counts where nothing failed before.
func undo(ctx context.Context, err *error, what string, step func(context.Context) error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if failed := step(ctx); failed != nil && !errdefs.IsNotFound(failed) && *err == nil {
		*err = fmt.Errorf("%s: %w", what, failed)
	}
}
