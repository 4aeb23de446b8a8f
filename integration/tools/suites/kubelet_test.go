package suites

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/client-go/util/exec"
	internalapi "k8s.io/cri-api/pkg/apis"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	criclient "k8s.io/cri-client/pkg"
	kexec "k8s.io/utils/exec"
)

// node is a kubelet's view of a node: its own client modules, and a pod with a container.
type node struct {
	*kubelet
	runtime   internalapi.RuntimeService
	images    internalapi.ImageManagerService
	pod       string
	container string
}

func remote(t *testing.T, streaming bool) *node {
	t.Helper()
	k := kube(t)
	endpoint := "unix://" + os.Getenv("GANTRY_SOCKET")
	runtime, err := criclient.NewRemoteRuntimeService(k.ctx, endpoint, time.Minute, nil, streaming)
	must(t, runtime, err)
	images, err := criclient.NewRemoteImageService(k.ctx, endpoint, time.Minute, nil, streaming)
	must(t, images, err)
	t.Cleanup(func() { runtime.Close(k.ctx); images.Close(k.ctx) })
	return &node{kubelet: k, runtime: runtime, images: images}
}

// Every method and every form of streams, with the modules of a kubelet; once with lists as a whole, once as streams.
func TestKubelet(t *testing.T) {
	for _, streaming := range []bool{false, true} {
		t.Run(fmt.Sprintf("streaming=%v", streaming), func(t *testing.T) {
			n := remote(t, streaming)
			n.describes()
			n.pulls()
			events := n.events()
			n.runs()
			n.lists()
			n.measures()
			n.updates()
			n.execsSync()
			for _, transport := range transports {
				n.streams(transport)
			}
			n.forwards()
			n.rotates()
			n.checkpoints()
			n.removes()
			n.saw(events)
		})
	}
}

func (n *node) describes() {
	n.Helper()
	version, err := n.runtime.Version(n.ctx, "")
	if got := must(n, version, err); got.RuntimeName != "gantry" || got.RuntimeApiVersion != "v1" {
		n.Errorf("%v", got)
	}
	status, err := n.runtime.Status(n.ctx, true)
	for _, condition := range must(n, status, err).Status.Conditions {
		if !condition.Status {
			n.Errorf("%v", condition)
		}
	}
	if status.Info["cniconfig"] == "" || len(status.RuntimeHandlers) == 0 {
		n.Errorf("%v", status)
	}
	config, err := n.runtime.RuntimeConfig(n.ctx)
	if must(n, config, err).Linux == nil {
		n.Errorf("%v", config)
	}
	network := &cri.RuntimeConfig{NetworkConfig: &cri.NetworkConfig{PodCidr: "10.9.0.0/24,fd09::/64"}}
	must(n, 0, n.runtime.UpdateRuntimeConfig(n.ctx, network))
	network.NetworkConfig.PodCidr = "everywhere"
	n.code(n.runtime.UpdateRuntimeConfig(n.ctx, network), codes.InvalidArgument, "pod_cidr")
}

func (n *node) pulls() {
	n.Helper()
	spec := &cri.ImageSpec{Image: n.image}
	id, err := n.images.PullImage(n.ctx, spec, nil, n.kubelet.pod())
	must(n, id, err)
	found, err := n.images.ImageStatus(n.ctx, spec, true)
	if image := must(n, found, err).Image; image == nil || image.Id != id {
		n.Fatalf("%v", found)
	}
	none, err := n.images.ImageStatus(n.ctx, &cri.ImageSpec{Image: "localhost/none:1"}, false)
	if must(n, none, err).Image != nil {
		n.Errorf("%v", none)
	}
	all, err := n.images.ListImages(n.ctx, &cri.ImageFilter{Image: spec})
	if got := must(n, all, err); len(got) != 1 || got[0].Id != id {
		n.Errorf("%v", got)
	}
	usage, err := n.images.ImageFsInfo(n.ctx)
	if must(n, usage, err).ImageFilesystems[0].UsedBytes.Value == 0 {
		n.Errorf("%v", usage)
	}
}

// events collects what happens from now on.
func (n *node) events() chan *cri.ContainerEventResponse {
	all, ready := make(chan *cri.ContainerEventResponse, 100), make(chan struct{})
	ctx, cancel := context.WithCancel(n.ctx)
	n.Cleanup(cancel)
	connected := func(cri.RuntimeService_GetContainerEventsClient) { close(ready) }
	go func() {
		err := n.runtime.GetContainerEvents(ctx, all, connected)
		if ctx.Err() == nil {
			n.Errorf("events ended: %v", err)
		}
	}()
	<-ready
	// The call is made; it counts once the daemon has it.
	time.Sleep(200 * time.Millisecond)
	return all
}

func (n *node) runs() {
	n.Helper()
	config := n.kubelet.pod()
	pod, err := n.runtime.RunPodSandbox(n.ctx, config, "")
	n.pod = must(n, pod, err)
	command := "trap 'exit 7' TERM; echo ready; while read line; do echo got $line; done; while :; do sleep 0.1; done"
	spec := &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: "main"}, Image: &cri.ImageSpec{Image: n.image}, LogPath: "main.log",
		Command: []string{"sh", "-c", command}, Stdin: true,
		Linux: &cri.LinuxContainerConfig{Resources: &cri.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, CpuShares: 512}},
	}
	container, err := n.runtime.CreateContainer(n.ctx, pod, spec, config)
	n.container = must(n, container, err)
	must(n, container, n.runtime.StartContainer(n.ctx, container))
	n.log("main", "stdout F ready\n")
	status, err := n.runtime.PodSandboxStatus(n.ctx, pod, true)
	got := must(n, status, err)
	if got.Status.State != cri.PodSandboxState_SANDBOX_READY || got.Status.Network.Ip == "" || got.Info["info"] == "" {
		n.Errorf("%v", got)
	}
	if want := os.Getenv("GANTRY_RANGE"); !strings.HasPrefix(got.Status.Network.Ip, want) {
		n.Errorf("want an address %s…, got %s", want, got.Status.Network.Ip)
	}
	now, err := n.runtime.ContainerStatus(n.ctx, container, true)
	if must(n, now, err).Status.State != cri.ContainerState_CONTAINER_RUNNING || now.Info["info"] == "" {
		n.Errorf("%v", now)
	}
}

func (n *node) lists() {
	n.Helper()
	ready := &cri.PodSandboxStateValue{State: cri.PodSandboxState_SANDBOX_READY}
	filter := &cri.PodSandboxFilter{State: ready, LabelSelector: map[string]string{"app": "one"}}
	pods, err := n.runtime.ListPodSandbox(n.ctx, filter)
	if got := must(n, pods, err); len(got) != 1 || got[0].Id != n.pod {
		n.Errorf("%v", got)
	}
	filter.LabelSelector["app"] = "two"
	pods, err = n.runtime.ListPodSandbox(n.ctx, filter)
	if got := must(n, pods, err); len(got) != 0 {
		n.Errorf("%v", got)
	}
	containers, err := n.runtime.ListContainers(n.ctx, &cri.ContainerFilter{PodSandboxId: n.pod})
	if got := must(n, containers, err); len(got) != 1 || got[0].Id != n.container {
		n.Errorf("%v", got)
	}
}

func (n *node) measures() {
	n.Helper()
	stats, err := n.runtime.ContainerStats(n.ctx, n.container)
	if got := must(n, stats, err); got.Memory == nil || got.Memory.UsageBytes.Value == 0 || got.Cpu.UsageCoreNanoSeconds.Value == 0 {
		n.Errorf("%v", got)
	}
	all, err := n.runtime.ListContainerStats(n.ctx, &cri.ContainerStatsFilter{PodSandboxId: n.pod})
	if got := must(n, all, err); len(got) != 1 || got[0].WritableLayer == nil {
		n.Errorf("%v", got)
	}
	pod, err := n.runtime.PodSandboxStats(n.ctx, n.pod)
	if got := must(n, pod, err); got.Linux.Network == nil || len(got.Linux.Containers) != 1 {
		n.Errorf("%v", got)
	}
	pods, err := n.runtime.ListPodSandboxStats(n.ctx, &cri.PodSandboxStatsFilter{Id: n.pod})
	if got := must(n, pods, err); len(got) != 1 {
		n.Errorf("%v", got)
	}
	described, err := n.runtime.ListMetricDescriptors(n.ctx)
	names := map[string]int{}
	for _, one := range must(n, described, err) {
		names[one.Name] = len(one.LabelKeys)
	}
	metrics, err := n.runtime.ListPodSandboxMetrics(n.ctx)
	got := must(n, metrics, err)
	if len(got) != 1 || len(got[0].ContainerMetrics) != 1 || len(got[0].ContainerMetrics[0].Metrics) < 20 {
		n.Fatalf("%v", got)
	}
	for _, metric := range got[0].ContainerMetrics[0].Metrics {
		if labels, known := names[metric.Name]; !known || labels != len(metric.LabelValues) {
			n.Errorf("not as described: %v", metric)
		}
	}
}

// limit reads a limit of memory of a cgroup below the pod's, on either version of cgroups.
func (n *node) limit(id string) string {
	for _, pattern := range []string{"/sys/fs/cgroup/memory%s/%s/memory.limit_in_bytes", "/sys/fs/cgroup%s/%s/memory.max"} {
		text, err := os.ReadFile(fmt.Sprintf(pattern, n.kubelet.pod().Linux.CgroupParent, id))
		if err == nil {
			return strings.TrimSpace(string(text))
		}
	}
	return ""
}

func (n *node) updates() {
	n.Helper()
	more := &cri.ContainerResources{Linux: &cri.LinuxContainerResources{MemoryLimitInBytes: 96 << 20}}
	must(n, 0, n.runtime.UpdateContainerResources(n.ctx, n.container, more))
	if got := n.limit(n.container); got != fmt.Sprint(96<<20) {
		n.Errorf("the container's limit is %q", got)
	}
	status := n.status(n.container)
	if status.Resources.Linux.MemoryLimitInBytes != 96<<20 || status.Resources.Linux.CpuShares != 512 {
		n.Errorf("%v", status.Resources)
	}
	pod := &cri.UpdatePodSandboxResourcesRequest{PodSandboxId: n.pod, Resources: &cri.LinuxContainerResources{MemoryLimitInBytes: 128 << 20}}
	_, err := n.runtime.UpdatePodSandboxResources(n.ctx, pod)
	must(n, 0, err)
	if got := n.limit(n.pod); got != fmt.Sprint(128<<20) {
		n.Errorf("the sandbox' limit is %q", got)
	}
	verbose, err := n.runtime.PodSandboxStatus(n.ctx, n.pod, true)
	if info := must(n, verbose, err).Info["info"]; !strings.Contains(info, fmt.Sprintf(`"io.kubernetes.cri.sandbox-memory":"%d"`, 128<<20)) {
		n.Errorf("%s", info)
	}
	pod.Resources.CpuPeriod = -1
	_, err = n.runtime.UpdatePodSandboxResources(n.ctx, pod)
	n.code(err, codes.InvalidArgument, "resources.cpu_period")
}

func (n *node) execsSync() {
	n.Helper()
	stdout, stderr, err := n.runtime.ExecSync(n.ctx, n.container, []string{"sh", "-c", "echo out; echo err >&2; exit 3"}, 0)
	var code kexec.CodeExitError
	if string(stdout) != "out\n" || string(stderr) != "err\n" || !errors.As(err, &code) || code.Code != 3 {
		n.Errorf("%q %q %v", stdout, stderr, err)
	}
	_, _, err = n.runtime.ExecSync(n.ctx, n.container, []string{"sleep", "100"}, time.Second)
	if !errors.Is(err, criclient.ErrCommandTimedOut) {
		n.Errorf("%v", err)
	}
}

// transport is one way to a command's streams: whether a failure has its exit code, and input an end of its own.
type transport struct {
	name, protocol string
	code, closes   bool
}

var transports = []transport{
	{"spdy", "v4.channel.k8s.io", true, true},
	{"spdy", "v3.channel.k8s.io", false, true},
	{"spdy", "v2.channel.k8s.io", false, true},
	{"spdy", "channel.k8s.io", false, false},
	{"websocket", "v5.channel.k8s.io", true, true},
	{"websocket", "v4.channel.k8s.io", true, false},
}

func (t transport) executor(n *node, target *url.URL) remotecommand.Executor {
	n.Helper()
	config := &rest.Config{Host: target.Scheme + "://" + target.Host}
	if t.name == "websocket" {
		executor, err := remotecommand.NewWebSocketExecutorForProtocols(config, http.MethodGet, target.String(), t.protocol)
		return must(n, executor, err)
	}
	wrapper, upgrader, err := spdy.RoundTripperFor(config)
	must(n, wrapper, err)
	executor, err := remotecommand.NewSPDYExecutorForProtocols(wrapper, upgrader, http.MethodPost, target, t.protocol)
	return must(n, executor, err)
}

// one gives one size of a terminal, and then none until the end.
type one struct {
	size *remotecommand.TerminalSize
	done <-chan struct{}
}

func (o *one) Next() *remotecommand.TerminalSize {
	if o.size == nil {
		<-o.done
	}
	size := o.size
	o.size = nil
	return size
}

func (n *node) exec(t transport, tty bool, in io.Reader, command ...string) (string, string, error) {
	n.Helper()
	request := &cri.ExecRequest{ContainerId: n.container, Cmd: command, Tty: tty, Stdin: in != nil, Stdout: true, Stderr: !tty}
	answer, err := n.runtime.Exec(n.ctx, request)
	target, err := url.Parse(must(n, answer, err).Url)
	must(n, target, err)
	var out, errors bytes.Buffer
	ctx, cancel := context.WithCancel(n.ctx)
	defer cancel()
	options := remotecommand.StreamOptions{Stdin: in, Stdout: &out, Tty: tty}
	if tty {
		options.TerminalSizeQueue = &one{&remotecommand.TerminalSize{Width: 132, Height: 43}, ctx.Done()}
	} else {
		options.Stderr = &errors
	}
	err = t.executor(n, target).StreamWithContext(ctx, options)
	return out.String(), errors.String(), err
}

func (n *node) streams(t transport) {
	n.Helper()
	name := t.name + " " + t.protocol
	out, text, err := n.exec(t, false, nil, "sh", "-c", "echo out; echo err >&2; exit 7")
	// A client of the first version goes as soon as it has all output, or has heard of a failure: one of both it may miss.
	var code exec.CodeExitError
	first := t.protocol == "channel.k8s.io"
	whole := out == "out\n" && text == "err\n"
	if first && err != nil {
		whole = strings.HasPrefix("out\n", out) && strings.HasPrefix("err\n", text)
	}
	if !whole || (err == nil && !first) || (t.code && (!errors.As(err, &code) || code.Code != 7)) {
		n.Errorf("%s: %q %q %v", name, out, text, err)
	}
	// Where input has no end a reader of it waits for ever.
	if t.closes {
		sent := strings.Repeat("0123456789abcdef", 1<<16)
		if out, _, err = n.exec(t, false, strings.NewReader(sent), "cat"); err != nil || out != sent {
			n.Errorf("%s: %d bytes of %d came back: %v", name, len(out), len(sent), err)
		}
	}
	if t.code {
		out, _, err = n.exec(t, true, nil, "sh", "-c", "sleep 0.5; stty size; tty")
		if err != nil || !strings.Contains(out, "43 132") || !strings.Contains(out, "/dev/pts/") {
			n.Errorf("%s: %q %v", name, out, err)
		}
		n.attaches(t)
	}
}

func (n *node) attaches(t transport) {
	n.Helper()
	answer, err := n.runtime.Attach(n.ctx, &cri.AttachRequest{ContainerId: n.container, Stdin: true, Stdout: true, Stderr: true})
	target, err := url.Parse(must(n, answer, err).Url)
	must(n, target, err)
	in, feed := io.Pipe()
	out, heard := io.Pipe()
	ctx, leave := context.WithCancel(n.ctx)
	defer leave()
	ended := make(chan error, 1)
	go func() {
		options := remotecommand.StreamOptions{Stdin: in, Stdout: heard, Stderr: io.Discard}
		ended <- t.executor(n, target).StreamWithContext(ctx, options)
	}()
	go fmt.Fprintln(feed, "a line by "+t.protocol)
	want := "got a line by " + t.protocol + "\n"
	got := make([]byte, len(want))
	_, err = io.ReadFull(out, got)
	if must(n, 0, err); string(got) != want {
		n.Errorf("%q", got)
	}
	go io.Copy(io.Discard, out)
	feed.Close()
	if !t.closes {
		// The client stays until it goes altogether.
		leave()
		<-ended
		return
	}
	if err := <-ended; err != nil {
		n.Errorf("attach by %s %s: %v", t.name, t.protocol, err)
	}
}

func (n *node) forwards() {
	n.Helper()
	server := "(while :; do nc -l -p 8099 -e sh -c 'read line; echo heard $line'; done) >/dev/null 2>&1 &"
	_, _, err := n.runtime.ExecSync(n.ctx, n.container, []string{"sh", "-c", server}, 10*time.Second)
	must(n, 0, err)
	for _, tunnel := range []bool{false, true} {
		var got string
		// Between two connections nobody listens for a moment, and a client that met that is of no more use.
		for range 10 {
			answer, err := n.runtime.PortForward(n.ctx, &cri.PortForwardRequest{PodSandboxId: n.pod, Port: []int32{8099}})
			target, err := url.Parse(must(n, answer, err).Url)
			must(n, target, err)
			if got = n.forward(target, tunnel); got != "" {
				break
			}
			time.Sleep(200 * time.Millisecond)
		}
		if got != "heard it\n" {
			n.Errorf("tunnel %v: %q", tunnel, got)
		}
	}
}

func (n *node) dialer(target *url.URL, tunnel bool) httpstream.Dialer {
	n.Helper()
	config := &rest.Config{Host: target.Scheme + "://" + target.Host}
	if tunnel {
		dialer, err := portforward.NewSPDYOverWebsocketDialer(target, config)
		return must(n, dialer, err)
	}
	wrapper, upgrader, err := spdy.RoundTripperFor(config)
	must(n, wrapper, err)
	return spdy.NewDialer(upgrader, &http.Client{Transport: wrapper}, http.MethodPost, target)
}

func (n *node) forward(target *url.URL, tunnel bool) string {
	n.Helper()
	stop, ready := make(chan struct{}), make(chan struct{})
	defer close(stop)
	forwarder, err := portforward.NewOnAddresses(n.dialer(target, tunnel), []string{"127.0.0.1"}, []string{"0:8099"}, stop, ready, io.Discard, os.Stderr)
	must(n, forwarder, err)
	go forwarder.ForwardPorts()
	<-ready
	ports, err := forwarder.GetPorts()
	must(n, ports, err)
	return askLocal(fmt.Sprintf("127.0.0.1:%d", ports[0].Local), "it\n")
}

func (n *node) rotates() {
	n.Helper()
	path := filepath.Join(n.kubelet.pod().LogDirectory, "main.log")
	must(n, 0, os.Rename(path, path+".1"))
	must(n, 0, n.runtime.ReopenContainerLog(n.ctx, n.container))
	if _, err := os.Stat(path); err != nil {
		n.Errorf("%v", err)
	}
}

// A pod's checkpoint is there, or, without a CRIU that works here, there is nothing of it; its containers run on either way.
func (n *node) checkpoints() {
	n.Helper()
	into := n.TempDir()
	request := &cri.CheckpointPodRequest{PodSandboxId: n.pod, OutputPath: into, ContainerIds: []string{n.container}}
	err := n.runtime.CheckpointPod(n.ctx, request)
	made, reading := os.ReadDir(into)
	if must(n, made, reading); (err == nil) != (len(made) > 0) {
		n.Errorf("%v, and there is %v", err, made)
	}
	n.execsSync()
}

func (n *node) removes() {
	n.Helper()
	must(n, 0, n.runtime.StopContainer(n.ctx, n.container, 10))
	if over := n.status(n.container); over.ExitCode != 7 {
		n.Errorf("%v", over)
	}
	must(n, 0, n.runtime.RemoveContainer(n.ctx, n.container))
	must(n, 0, n.runtime.StopPodSandbox(n.ctx, n.pod))
	must(n, 0, n.runtime.RemovePodSandbox(n.ctx, n.pod))
	must(n, 0, n.images.RemoveImage(n.ctx, &cri.ImageSpec{Image: n.image}))
	n.removeParent()
}

// saw checks what was told: each change of pod and container once, in order.
func (n *node) saw(events chan *cri.ContainerEventResponse) {
	n.Helper()
	told := map[string][]string{}
	for end := time.After(5 * time.Second); len(told[n.pod]) < 4; {
		select {
		case event := <-events:
			kind := strings.TrimSuffix(strings.TrimPrefix(event.ContainerEventType.String(), "CONTAINER_"), "_EVENT")
			told[event.ContainerId] = append(told[event.ContainerId], kind)
			if event.PodSandboxStatus.GetId() != n.pod {
				n.Errorf("%v", event)
			}
		case <-end:
			n.Fatalf("%v", told)
		}
	}
	for _, id := range []string{n.pod, n.container} {
		if got := strings.Join(told[id], " "); got != "CREATED STARTED STOPPED DELETED" {
			n.Errorf("%s: %s", id, got)
		}
	}
}

// askLocal sends a line and gives what comes back; nothing where nobody answers.
func askLocal(address, line string) string {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return ""
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err = io.WriteString(conn, line); err != nil {
		return ""
	}
	answer, _ := io.ReadAll(conn)
	return string(answer)
}
