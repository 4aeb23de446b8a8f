package suites

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"syscall"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func pod(id string) *oci.Spec {
	kinds := []specs.LinuxNamespaceType{specs.NetworkNamespace, specs.IPCNamespace, specs.UTSNamespace, specs.PIDNamespace}
	spec := &oci.Spec{Version: specs.Version, Hostname: "pod", Linux: &specs.Linux{CgroupsPath: "/" + id}}
	for _, kind := range kinds {
		spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: kind})
	}
	return spec
}

func inode(t *testing.T, pid uint32, name string) uint64 {
	t.Helper()
	info, err := os.Stat(fmt.Sprintf("/proc/%d/ns/%s", pid, name))
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Ino
}

// A pod without an image, and a container in its namespaces, by the official client.
func TestSandbox(t *testing.T) {
	client := dial(t)
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(t.Context(), "default"), 60*time.Second)
	defer cancel()
	id, runtime := os.Getenv("GANTRY_ID"), os.Getenv("GANTRY_RUNTIME")
	topics, failures := client.Subscribe(ctx, `topic~=|^/sandboxes/|`)
	box, err := client.NewSandbox(ctx, id, containerd.WithSandboxRuntime(runtime, nil), containerd.WithSandboxSpec(pod(id)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.NewSandbox(ctx, id, containerd.WithSandboxRuntime(runtime, nil)); !errdefs.IsAlreadyExists(err) {
		t.Errorf("a second one of the name: %v", err)
	}
	if err := box.Start(ctx); err != nil {
		t.Fatal(err)
	}
	controller := client.SandboxController("shim")
	status, err := controller.Status(ctx, id, true)
	if err != nil || status.State != "SANDBOX_READY" || status.Pid == 0 || status.Info["info"] == "" {
		t.Fatalf("status: %+v, %v", status, err)
	}
	ended, err := box.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	runIn(ctx, t, client, box, status)
	if metric, err := controller.Metrics(ctx, id); err != nil || metric.Data == nil {
		t.Errorf("metrics: %v, %v", metric, err)
	}
	if err := box.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	if exit := <-ended; exit.ExitCode() != 137 || exit.Error() != nil {
		t.Errorf("exit: %+v", exit)
	}
	if err := box.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := client.LoadSandbox(ctx, id); !errdefs.IsNotFound(err) {
		t.Errorf("the record is there: %v", err)
	}
	if err := controller.Stop(ctx, id, sandbox.WithTimeout(time.Second)); err != nil {
		t.Errorf("stopping what is gone: %v", err)
	}
	if err := controller.Shutdown(ctx, id); !errdefs.IsNotFound(err) {
		t.Errorf("shutting down what is gone: %v", err)
	}
	for _, topic := range []string{"/sandboxes/create", "/sandboxes/start", "/sandboxes/exit"} {
		select {
		case event := <-topics:
			if event.Topic != topic {
				t.Errorf("event %s, not %s", event.Topic, topic)
			}
		case err := <-failures:
			t.Fatal(err)
		case <-time.After(5 * time.Second):
			t.Fatalf("no event %s", topic)
		}
	}
}

// Runs a container in a sandbox's namespaces.
func runIn(ctx context.Context, t *testing.T, client *containerd.Client, box containerd.Sandbox, status sandbox.ControllerStatus) {
	t.Helper()
	path := func(name string) string { return fmt.Sprintf("/proc/%d/ns/%s", status.Pid, name) }
	join := func(kind specs.LinuxNamespaceType, name string) oci.SpecOpts {
		return oci.WithLinuxNamespace(specs.LinuxNamespace{Type: kind, Path: path(name)})
	}
	id, runtime := box.ID()+"-c", os.Getenv("GANTRY_RUNTIME")
	container, err := box.NewContainer(ctx, id, containerd.WithRuntime(runtime, nil), containerd.WithNewSpec(
		oci.WithRootFSPath(os.Getenv("GANTRY_ROOTFS")), oci.WithProcessArgs("/bin/sh", "-c", "hostname; exec sleep 100"), oci.WithCgroup("/"+id),
		oci.WithHostname(""), join(specs.NetworkNamespace, "net"), join(specs.IPCNamespace, "ipc"), join(specs.UTSNamespace, "uts"), join(specs.PIDNamespace, "pid")))
	if err != nil {
		t.Fatal(err)
	}
	out, writer := io.Pipe()
	task, err := container.NewTask(ctx, cio.NewCreator(cio.WithStreams(nil, writer, nil)))
	if err != nil {
		t.Fatal(err)
	}
	exited, err := task.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := task.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "pod\n" {
		t.Errorf("output %q, %v", line, err)
	}
	for _, name := range []string{"net", "ipc", "uts", "pid"} {
		if inode(t, task.Pid(), name) != inode(t, status.Pid, name) {
			t.Errorf("%s namespace is another one", name)
		}
	}
	if err := task.Kill(ctx, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if exit := <-exited; exit.ExitCode() != 137 {
		t.Errorf("exit %d", exit.ExitCode())
	}
	if _, err := task.Delete(ctx); err != nil {
		t.Fatal(err)
	}
	if err := container.Delete(ctx); err != nil {
		t.Fatal(err)
	}
}
