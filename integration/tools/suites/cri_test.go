package suites

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// kubelet is a client of the interface, and the names that this test may use.
type kubelet struct {
	*testing.T
	cri.RuntimeServiceClient
	images cri.ImageServiceClient
	ctx    context.Context
	name   string
	image  string
}

func kube(t *testing.T) *kubelet {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+os.Getenv("GANTRY_SOCKET"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(func() { cancel(); conn.Close() })
	return &kubelet{t, cri.NewRuntimeServiceClient(conn), cri.NewImageServiceClient(conn), ctx, os.Getenv("GANTRY_ID"), os.Getenv("GANTRY_IMAGE")}
}

// must gives the answer, or ends the test.
func must[T any](t testing.TB, answer T, err error) T {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

func (k *kubelet) pod() *cri.PodSandboxConfig {
	return &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: "pod", Namespace: "lab", Uid: k.name, Attempt: 1},
		Hostname:     "inside",
		LogDirectory: filepath.Join(os.Getenv("TMPDIR"), "logs"),
		Labels:       map[string]string{"app": "one"},
		DnsConfig:    &cri.DNSConfig{Servers: []string{"10.1.2.3"}, Searches: []string{"lab.local"}},
		Linux:        &cri.LinuxPodSandboxConfig{CgroupParent: "/" + k.name + "-pod"},
	}
}

func (k *kubelet) container(pod, name string, command ...string) string {
	k.Helper()
	config := &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: name},
		Image:    &cri.ImageSpec{Image: k.image},
		Command:  command,
		LogPath:  name + ".log",
	}
	request := &cri.CreateContainerRequest{PodSandboxId: pod, Config: config, SandboxConfig: k.pod()}
	made, err := k.CreateContainer(k.ctx, request)
	return must(k, made, err).ContainerId
}

func (k *kubelet) start(id string) {
	k.Helper()
	_, err := k.StartContainer(k.ctx, &cri.StartContainerRequest{ContainerId: id})
	must(k, id, err)
}

func (k *kubelet) status(id string) *cri.ContainerStatus {
	k.Helper()
	answer, err := k.ContainerStatus(k.ctx, &cri.ContainerStatusRequest{ContainerId: id})
	return must(k, answer, err).Status
}

func (k *kubelet) until(id string, state cri.ContainerState) *cri.ContainerStatus {
	k.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if now := k.status(id); now.State == state {
			return now
		}
	}
	k.Fatalf("%s did not become %v", id, state)
	return nil
}

func (k *kubelet) log(name, part string) {
	k.Helper()
	path := filepath.Join(k.pod().LogDirectory, name+".log")
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		text, _ := os.ReadFile(path)
		if strings.Contains(string(text), part) {
			return
		}
		if time.Now().After(end) {
			k.Fatalf("%q is not in the log:\n%s", part, text)
		}
	}
}

func (k *kubelet) code(err error, code codes.Code, field string) {
	k.Helper()
	if status.Code(err) != code || !strings.Contains(status.Convert(err).Message(), field) {
		k.Errorf("want %v with %q, got %v", code, field, err)
	}
}

// A pod with two containers from pull to removal.
func TestPodsLife(t *testing.T) {
	k := kube(t)
	k.pull()
	ran, err := k.RunPodSandbox(k.ctx, &cri.RunPodSandboxRequest{Config: k.pod()})
	pod := must(t, ran, err).PodSandboxId
	_, err = k.RunPodSandbox(k.ctx, &cri.RunPodSandboxRequest{Config: k.pod()})
	k.code(err, codes.FailedPrecondition, pod)

	ends := k.container(pod, "ends", "sh", "-c", "echo to out; echo to err >&2; exit 3")
	stays := k.container(pod, "stays", "sh", "-c", "trap 'exit 7' TERM; echo ready; while :; do sleep 0.1; done")
	k.start(ends)
	k.start(stays)
	if over := k.until(ends, cri.ContainerState_CONTAINER_EXITED); over.ExitCode != 3 || over.Reason != "Error" {
		t.Errorf("%v", over)
	}
	k.log("ends", "stdout F to out\n")
	k.log("ends", "stderr F to err\n")
	k.log("stays", "stdout F ready\n")
	k.execs(pod, stays)
	k.seenByContainerd(pod, stays)

	_, err = k.StopContainer(k.ctx, &cri.StopContainerRequest{ContainerId: stays, Timeout: 10})
	must(t, stays, err)
	if over := k.status(stays); over.ExitCode != 7 || over.State != cri.ContainerState_CONTAINER_EXITED {
		t.Errorf("%v", over)
	}
	k.remove(pod)
	_, err = k.ContainerStatus(k.ctx, &cri.ContainerStatusRequest{ContainerId: stays})
	k.code(err, codes.NotFound, stays)
	k.unpull()
}

func (k *kubelet) pull() {
	k.Helper()
	pulled, err := k.images.PullImage(k.ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: k.image}})
	id := must(k, pulled, err).ImageRef
	answer, err := k.images.ImageStatus(k.ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: id}})
	image := must(k, answer, err).Image
	if image == nil || image.Id != id || len(image.RepoTags) != 1 || image.RepoTags[0] != k.image || image.Size == 0 {
		k.Fatalf("%v", image)
	}
	info, err := k.images.ImageFsInfo(k.ctx, &cri.ImageFsInfoRequest{})
	if used := must(k, info, err).ImageFilesystems[0].UsedBytes.Value; used < image.Size {
		k.Errorf("%d bytes used by an image of %d", used, image.Size)
	}
}

func (k *kubelet) unpull() {
	k.Helper()
	_, err := k.images.RemoveImage(k.ctx, &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: k.image}})
	must(k, k.image, err)
	list, err := k.images.ListImages(k.ctx, &cri.ListImagesRequest{})
	for _, left := range must(k, list, err).Images {
		if slices.Contains(left.RepoTags, k.image) {
			k.Errorf("%v", left)
		}
	}
}

func (k *kubelet) execs(pod, id string) {
	k.Helper()
	ask := "hostname; cat /etc/resolv.conf; exit 4"
	answer, err := k.ExecSync(k.ctx, &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", ask}})
	got := must(k, answer, err)
	if want := "inside\nsearch lab.local\nnameserver 10.1.2.3\n"; string(got.Stdout) != want || got.ExitCode != 4 {
		k.Errorf("%q %d", got.Stdout, got.ExitCode)
	}
	// What it started dies with it.
	began := time.Now()
	slow := &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", "sleep 4321 & sleep 4321"}, Timeout: 1}
	_, err = k.ExecSync(k.ctx, slow)
	k.code(err, codes.DeadlineExceeded, "")
	if time.Since(began) > 30*time.Second {
		k.Errorf("took %v", time.Since(began))
	}
	list := &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"}}
	answer, err = k.ExecSync(k.ctx, list)
	if strings.Contains(string(must(k, answer, err).Stdout), "sleep 4321") {
		k.Errorf("left: %s", answer.Stdout)
	}
	_, err = k.ExecSync(k.ctx, &cri.ExecSyncRequest{ContainerId: id})
	k.code(err, codes.InvalidArgument, "cmd")
	now, err := k.PodSandboxStatus(k.ctx, &cri.PodSandboxStatusRequest{PodSandboxId: pod})
	if must(k, now, err).Status.Network.Ip == "" {
		k.Errorf("no address: %v", now)
	}
}

// What other clients of containerd's own interface find.
func (k *kubelet) seenByContainerd(pod, id string) {
	k.Helper()
	client, err := containerd.New(os.Getenv("GANTRY_SOCKET"))
	defer must(k, client, err).Close()
	ctx := namespaces.WithNamespace(k.ctx, "k8s.io")
	for object, kind := range map[string]string{pod: "sandbox", id: "container"} {
		found, err := client.LoadContainer(ctx, object)
		labels, err2 := must(k, found, err).Labels(ctx)
		if must(k, labels, err2)["io.cri-containerd.kind"] != kind {
			k.Errorf("%v", labels)
		}
		task, err := found.Task(ctx, nil)
		if must(k, task, err).Pid() == 0 {
			k.Errorf("%s has no process", kind)
		}
	}
}

func (k *kubelet) remove(pod string) {
	k.Helper()
	for range 2 {
		_, err := k.StopPodSandbox(k.ctx, &cri.StopPodSandboxRequest{PodSandboxId: pod})
		must(k, pod, err)
	}
	list, err := k.ListPodSandbox(k.ctx, &cri.ListPodSandboxRequest{Filter: &cri.PodSandboxFilter{Id: pod}})
	if items := must(k, list, err).Items; len(items) != 1 || items[0].State != cri.PodSandboxState_SANDBOX_NOTREADY {
		k.Errorf("%v", items)
	}
	for range 2 {
		_, err = k.RemovePodSandbox(k.ctx, &cri.RemovePodSandboxRequest{PodSandboxId: pod})
		must(k, pod, err)
	}
	k.removeParent()
}

// The pods' parent is a kubelet's to remove; only an empty one can be.
func (k *kubelet) removeParent() {
	for _, hierarchy := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		parents, _ := filepath.Glob(hierarchy + k.pod().Linux.CgroupParent)
		for _, parent := range parents {
			os.Remove(parent)
		}
	}
}

// Bad requests are refused by the name of the field.
func TestPodsBadRequests(t *testing.T) {
	k := kube(t)
	for field, change := range map[string]func(*cri.PodSandboxConfig){
		"config.metadata":                   func(c *cri.PodSandboxConfig) { c.Metadata = nil },
		"config.metadata.uid":               func(c *cri.PodSandboxConfig) { c.Metadata.Uid = "" },
		"config.hostname":                   func(c *cri.PodSandboxConfig) { c.Hostname = "a b" },
		"config.log_directory":              func(c *cri.PodSandboxConfig) { c.LogDirectory = "relative" },
		"config.dns_config.servers[0]":      func(c *cri.PodSandboxConfig) { c.DnsConfig.Servers = []string{"a\nb"} },
		"config.port_mappings[0].host_port": func(c *cri.PodSandboxConfig) { c.PortMappings = []*cri.PortMapping{{HostPort: 70000}} },
	} {
		config := k.pod()
		change(config)
		_, err := k.RunPodSandbox(k.ctx, &cri.RunPodSandboxRequest{Config: config})
		k.code(err, codes.InvalidArgument, field)
	}
	_, err := k.RunPodSandbox(k.ctx, &cri.RunPodSandboxRequest{})
	k.code(err, codes.InvalidArgument, "config")
	_, err = k.RunPodSandbox(k.ctx, &cri.RunPodSandboxRequest{Config: k.pod(), RuntimeHandler: "none"})
	k.code(err, codes.Unknown, "none")
	_, err = k.PodSandboxStatus(k.ctx, &cri.PodSandboxStatusRequest{PodSandboxId: "absent"})
	k.code(err, codes.NotFound, "absent")
	_, err = k.images.PullImage(k.ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: "no such/name"}})
	k.code(err, codes.InvalidArgument, "image.image")
}

// A pod for the daemon that comes after this one.
func TestPodsLeave(t *testing.T) {
	k := kube(t)
	k.pull()
	ran, err := k.RunPodSandbox(k.ctx, &cri.RunPodSandboxRequest{Config: k.pod()})
	pod := must(t, ran, err).PodSandboxId
	stays := k.container(pod, "stays", "sh", "-c", "while :; do echo alive; sleep 0.1; done")
	k.start(stays)
	ends := k.container(pod, "ends", "sh", "-c", "sleep 0.5; exit 5")
	k.start(ends)
	k.container(pod, "waits", "true")
}

// What the daemon before this one left is there; what ended meanwhile has its exit.
func TestPodsFind(t *testing.T) {
	k := kube(t)
	list, err := k.ListPodSandbox(k.ctx, &cri.ListPodSandboxRequest{})
	pods := must(t, list, err).Items
	if len(pods) != 1 || pods[0].State != cri.PodSandboxState_SANDBOX_READY {
		t.Fatalf("%v", pods)
	}
	all, err := k.ListContainers(k.ctx, &cri.ListContainersRequest{})
	states := map[string]string{}
	for _, one := range must(t, all, err).Containers {
		states[one.Metadata.Name] = one.Id
	}
	if over := k.until(states["ends"], cri.ContainerState_CONTAINER_EXITED); over.ExitCode != 5 {
		t.Errorf("%v", over)
	}
	if now := k.status(states["stays"]); now.State != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("%v", now)
	}
	answer, err := k.ExecSync(k.ctx, &cri.ExecSyncRequest{ContainerId: states["stays"], Cmd: []string{"echo", "here"}})
	if out := must(t, answer, err).Stdout; string(out) != "here\n" {
		t.Errorf("%q", out)
	}
	k.start(states["waits"])
	k.until(states["waits"], cri.ContainerState_CONTAINER_EXITED)
	_, err = k.RunPodSandbox(k.ctx, &cri.RunPodSandboxRequest{Config: k.pod()})
	k.code(err, codes.FailedPrecondition, fmt.Sprint(pods[0].Id))
	k.remove(pods[0].Id)
	k.unpull()
}

// Many pods at once; the daemon may die amid them.
func TestPodsStorm(t *testing.T) {
	k := kube(t)
	var all sync.WaitGroup
	for attempt := range uint32(8) {
		all.Go(func() {
			config := k.pod()
			config.Metadata.Attempt = attempt
			ran, err := k.RunPodSandbox(k.ctx, &cri.RunPodSandboxRequest{Config: config})
			t.Log(attempt, ran, err)
		})
	}
	all.Wait()
}

// Whatever pods there are can be removed, and their names are free.
func TestPodsClear(t *testing.T) {
	k := kube(t)
	list, err := k.ListPodSandbox(k.ctx, &cri.ListPodSandboxRequest{})
	for _, pod := range must(t, list, err).Items {
		k.remove(pod.Id)
	}
	ran, err := k.RunPodSandbox(k.ctx, &cri.RunPodSandboxRequest{Config: k.pod()})
	k.remove(must(t, ran, err).PodSandboxId)
}
