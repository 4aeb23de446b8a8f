package suites

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// watcher is a plug-in on the official stub: it remembers what it is told, and can be given wishes.
type watcher struct {
	sync.Mutex
	stub.Stub
	told   []string
	synced []string
	closed chan struct{}
	// Wishes; none where they are nil.
	adjust func(*api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error)
	update func(*api.Container, *api.LinuxResources) []*api.ContainerUpdate
	start  func(context.Context) error
}

func (w *watcher) tell(event, id string) {
	w.Lock()
	defer w.Unlock()
	w.told = append(w.told, event+" "+id)
}

// of gives the events of a pod or container, in their order.
func (w *watcher) of(id string) string {
	w.Lock()
	defer w.Unlock()
	var events []string
	for _, told := range w.told {
		if event, of, _ := strings.Cut(told, " "); of == id {
			events = append(events, event)
		}
	}
	return strings.Join(events, " ")
}

func (w *watcher) Synchronize(_ context.Context, pods []*api.PodSandbox, containers []*api.Container) ([]*api.ContainerUpdate, error) {
	w.Lock()
	defer w.Unlock()
	for _, pod := range pods {
		w.synced = append(w.synced, pod.Id)
	}
	for _, container := range containers {
		w.synced = append(w.synced, container.Id)
	}
	return nil, nil
}

func (w *watcher) RunPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	if pod.Name == "refused" {
		return errors.New("no such pods here")
	}
	w.tell("Run", pod.Id)
	return nil
}

func (w *watcher) UpdatePodSandbox(_ context.Context, pod *api.PodSandbox, _, limits *api.LinuxResources) error {
	w.tell(fmt.Sprintf("Update(%d)", limits.GetMemory().GetLimit().GetValue()), pod.Id)
	return nil
}

func (w *watcher) PostUpdatePodSandbox(_ context.Context, pod *api.PodSandbox) error {
	w.tell("PostUpdate", pod.Id)
	return nil
}

func (w *watcher) StopPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	w.tell("Stop", pod.Id)
	return nil
}

func (w *watcher) RemovePodSandbox(_ context.Context, pod *api.PodSandbox) error {
	w.tell("Remove", pod.Id)
	return nil
}

func (w *watcher) CreateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	w.tell("Create", c.Id)
	if w.adjust == nil {
		return nil, nil, nil
	}
	return w.adjust(c)
}

func (w *watcher) PostCreateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	w.tell("PostCreate", c.Id)
	return nil
}

func (w *watcher) StartContainer(ctx context.Context, _ *api.PodSandbox, c *api.Container) error {
	w.tell("Start", c.Id)
	if w.start != nil {
		return w.start(ctx)
	}
	return nil
}

func (w *watcher) PostStartContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	w.tell("PostStart", c.Id)
	return nil
}

func (w *watcher) UpdateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container, limits *api.LinuxResources) ([]*api.ContainerUpdate, error) {
	w.tell("Update", c.Id)
	if w.update == nil {
		return nil, nil
	}
	return w.update(c, limits), nil
}

func (w *watcher) PostUpdateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	w.tell("PostUpdate", c.Id)
	return nil
}

func (w *watcher) StopContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) ([]*api.ContainerUpdate, error) {
	w.tell("Stop", c.Id)
	return nil, nil
}

func (w *watcher) RemoveContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	w.tell("Remove", c.Id)
	return nil
}

// judge is a plug-in that only validates.
type judge struct {
	seen *api.ValidateContainerAdjustmentRequest
}

func (j *judge) ValidateContainerAdjustment(_ context.Context, request *api.ValidateContainerAdjustmentRequest) error {
	j.seen = request
	for _, pair := range request.Adjust.GetEnv() {
		if pair.Key == "FORBIDDEN" {
			return errors.New("FORBIDDEN is forbidden")
		}
	}
	return nil
}

func (k *kubelet) plug(index, name string, plugin any) stub.Stub {
	k.Helper()
	closed := func() {}
	if w, ok := plugin.(*watcher); ok {
		w.closed = make(chan struct{})
		closed = sync.OnceFunc(func() { close(w.closed) })
	}
	made, err := stub.New(plugin, stub.WithPluginIdx(index), stub.WithPluginName(name),
		stub.WithSocketPath(os.Getenv("GANTRY_NRI")), stub.WithOnClose(closed))
	must(k, made, err)
	must(k, 0, made.Start(k.ctx))
	k.Cleanup(made.Stop)
	return made
}

func (k *kubelet) until2(what string, is func() bool) {
	k.Helper()
	for end := time.Now().Add(10 * time.Second); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			k.Fatalf("waited in vain: %s", what)
		}
	}
}

func (k *kubelet) in(id string, command string) string {
	k.Helper()
	answer, err := k.ExecSync(k.ctx, &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", command}})
	return strings.TrimSpace(string(must(k, answer, err).Stdout))
}

func (k *kubelet) tries(pod, name string) (string, error) {
	answer, err := k.CreateContainer(k.ctx, &cri.CreateContainerRequest{PodSandboxId: pod, SandboxConfig: k.pod(), Config: &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: name}, Image: &cri.ImageSpec{Image: k.image}, Command: []string{"sleep", "1000"},
	}})
	return answer.GetContainerId(), err
}

// Plug-ins on the official stub see all that happens, change what they may, and contradict each other by name.
func TestPlugins(t *testing.T) {
	k := kube(t)
	k.pull()
	first := &watcher{}
	first.Stub = k.plug("10", "first", first)
	ran, err := k.RunPodSandbox(k.ctx, &cri.RunPodSandboxRequest{Config: k.pod()})
	pod := must(t, ran, err).PodSandboxId
	refused := k.pod()
	refused.Metadata.Name = "refused"
	_, err = k.RunPodSandbox(k.ctx, &cri.RunPodSandboxRequest{Config: refused})
	k.code(err, codes.Unknown, "no such pods here")

	changed := k.adjusts(pod, first)
	second := &watcher{}
	second.Stub = k.plug("20", "second", second)
	k.until2("the second plug-in knows what there is", func() bool {
		second.Lock()
		defer second.Unlock()
		return slices.Contains(second.synced, pod) && slices.Contains(second.synced, changed)
	})
	k.contradicts(pod, first, second)
	k.limits(pod, changed, first)
	k.hangs(pod, second)

	k.remove(pod)
	k.until2("the pod's removal is told", func() bool { return strings.HasSuffix(first.of(pod), "Remove") })
	if got := first.of(pod); got != "Run Update(134217728) PostUpdate Stop Remove" {
		t.Errorf("pod: %s", got)
	}
	want := "Create PostCreate Start PostStart Update PostUpdate Stop Remove"
	if got := first.of(changed); got != want {
		t.Errorf("container: %s", got)
	}
}

// adjusts makes a container that the plug-in changes in many ways.
func (k *kubelet) adjusts(pod string, plugin *watcher) string {
	k.Helper()
	plugin.adjust = func(c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
		if c.Name != "changed" {
			return nil, nil, nil
		}
		a := &api.ContainerAdjustment{}
		a.AddEnv("ADDED", "by a plug-in")
		a.RemoveEnv("PATH")
		a.AddEnv("PATH", "/bin")
		a.AddMount(&api.Mount{Destination: "/added", Type: "tmpfs", Source: "tmpfs", Options: []string{"size=1m"}})
		a.AddDevice(&api.LinuxDevice{Path: "/dev/added", Type: "c", Major: 1, Minor: 3, FileMode: api.FileMode(0o666)})
		a.AddRlimit("RLIMIT_NOFILE", 77, 77)
		a.AddAnnotation("added.test/a", "b")
		a.SetLinuxMemoryLimit(32 << 20)
		a.SetLinuxPidLimits(99)
		a.AddHooks(&api.Hooks{CreateRuntime: []*api.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "cat >/dev/null; touch " + k.pod().LogDirectory + "/hooked"}}}})
		return a, nil, nil
	}
	must(k, 0, os.MkdirAll(k.pod().LogDirectory, 0o755))
	id, err := k.tries(pod, "changed")
	must(k, id, err)
	k.start(id)
	for command, want := range map[string]string{
		"echo $ADDED $PATH":                    "by a plug-in /bin",
		"grep -c ' /added tmpfs' /proc/mounts": "1",
		"echo x >/dev/added && echo taken":     "taken",
		"ulimit -n":                            "77",
	} {
		if got := k.in(id, command); got != want {
			k.Errorf("%s: %q", command, got)
		}
	}
	if _, err := os.Stat(k.pod().LogDirectory + "/hooked"); err != nil {
		k.Errorf("the hook did not run: %v", err)
	}
	n := &node{kubelet: k}
	if got := n.limit(id); got != fmt.Sprint(32<<20) {
		k.Errorf("limit of memory: %q", got)
	}
	return id
}

// contradicts lets two plug-ins want the same, and a third one judge.
func (k *kubelet) contradicts(pod string, first, second *watcher) {
	k.Helper()
	set := func(key, value string) func(*api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
		return func(*api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
			a := &api.ContainerAdjustment{}
			a.AddEnv(key, value)
			return a, nil, nil
		}
	}
	first.adjust, second.adjust = set("SAME", "1"), set("SAME", "2")
	_, err := k.tries(pod, "torn")
	k.code(err, codes.FailedPrecondition, `"10-first" and "20-second" both tried to set Env "SAME"`)
	judge := &judge{}
	judging := k.plug("30", "judge", judge)
	first.adjust, second.adjust = set("FORBIDDEN", "1"), set("OTHER", "2")
	_, err = k.tries(pod, "torn")
	k.code(err, codes.FailedPrecondition, "FORBIDDEN is forbidden")
	if owner := judge.seen.GetOwners().GetOwners(); len(owner) != 1 || len(judge.seen.GetPlugins()) != 2 {
		k.Errorf("%v", judge.seen)
	}
	judging.Stop()
	first.adjust, second.adjust = nil, nil
	k.until2("a container is made once the judge has gone", func() bool {
		_, err = k.tries(pod, "torn")
		return err == nil
	})
}

// limits changes limits by request, with a plug-in's word, and by the plug-in's own wish.
func (k *kubelet) limits(pod, id string, plugin *watcher) {
	k.Helper()
	n := &node{kubelet: k}
	plugin.update = func(c *api.Container, limits *api.LinuxResources) []*api.ContainerUpdate {
		u := &api.ContainerUpdate{}
		u.SetContainerId(c.Id)
		u.SetLinuxMemoryLimit(limits.GetMemory().GetLimit().GetValue() + 4096)
		return []*api.ContainerUpdate{u}
	}
	more := &cri.UpdateContainerResourcesRequest{ContainerId: id, Linux: &cri.LinuxContainerResources{MemoryLimitInBytes: 48 << 20}}
	_, err := k.UpdateContainerResources(k.ctx, more)
	must(k, id, err)
	if got := n.limit(id); got != fmt.Sprint(48<<20+4096) {
		k.Errorf("limit of memory: %q", got)
	}
	own := &api.ContainerUpdate{}
	own.SetContainerId(id)
	own.SetLinuxMemoryLimit(64 << 20)
	none := &api.ContainerUpdate{}
	none.SetContainerId("absent")
	none.SetLinuxMemoryLimit(64 << 20)
	failed, err := plugin.UpdateContainers([]*api.ContainerUpdate{own, none})
	if must(k, failed, err); len(failed) != 1 || failed[0].ContainerId != "absent" || n.limit(id) != fmt.Sprint(64<<20) {
		k.Errorf("%v %q", failed, n.limit(id))
	}
	update := &cri.UpdatePodSandboxResourcesRequest{PodSandboxId: pod, Resources: &cri.LinuxContainerResources{MemoryLimitInBytes: 128 << 20}}
	_, err = k.UpdatePodSandboxResources(k.ctx, update)
	must(k, pod, err)
}

// hangs lets a plug-in not answer: the request goes on, and the plug-in is cut off.
func (k *kubelet) hangs(pod string, plugin *watcher) {
	k.Helper()
	id, err := k.tries(pod, "waits")
	must(k, id, err)
	plugin.start = func(ctx context.Context) error {
		<-ctx.Done()
		time.Sleep(10 * time.Second)
		return nil
	}
	k.start(id)
	select {
	case <-plugin.closed:
	case <-time.After(10 * time.Second):
		k.Errorf("a plug-in that does not answer stays connected")
	}
}

// TestMain makes this program a pre-installed plug-in where it is started as one: it writes what it is told to the file
// that its configuration names.
func TestMain(m *testing.M) {
	if os.Getenv(api.PluginSocketEnvVar) == "" {
		os.Exit(m.Run())
	}
	made, err := stub.New(&installed{})
	if err == nil {
		err = made.Run(context.Background())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

type installed struct{ path string }

func (i *installed) Configure(_ context.Context, config, runtime, _ string) (api.EventMask, error) {
	i.path = strings.TrimSpace(config)
	i.say("configured by " + runtime)
	return 0, nil
}

func (i *installed) RunPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	i.say("run " + pod.Id)
	return nil
}

func (i *installed) say(line string) {
	file, err := os.OpenFile(i.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err == nil {
		fmt.Fprintln(file, line)
		file.Close()
	}
}

// A pre-installed plug-in has its configuration and is told.
func TestPluginInstalled(t *testing.T) {
	k := kube(t)
	ran, err := k.RunPodSandbox(k.ctx, &cri.RunPodSandboxRequest{Config: k.pod()})
	pod := must(t, ran, err).PodSandboxId
	text, err := os.ReadFile(os.Getenv("GANTRY_NRI"))
	if got := string(must(t, text, err)); got != "configured by gantry\nrun "+pod+"\n" {
		t.Errorf("%q", got)
	}
	k.remove(pod)
}
