package suites

import (
	"context"
	"reflect"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// harmless are the methods whose requests have no field that can be wrong: filters select, and may select nothing.
var harmless = []string{
	"Version", "Status", "RuntimeConfig", "ListMetricDescriptors", "ListPodSandboxMetrics", "GetContainerEvents", "ImageFsInfo",
	"ListPodSandbox", "ListContainers", "ListContainerStats", "ListPodSandboxStats", "ListImages",
	"StreamPodSandboxes", "StreamContainers", "StreamContainerStats", "StreamPodSandboxStats", "StreamPodSandboxMetrics", "StreamImages",
}

// bad is a request that a method must refuse by the name of the field.
type bad struct {
	method, field string
	request       proto.Message
}

// Every method that can be asked something bad refuses it by the name of the field, and nothing comes of it.
func TestBadFields(t *testing.T) {
	k := kube(t)
	k.pull()
	ran, err := k.RunPodSandbox(k.ctx, &cri.RunPodSandboxRequest{Config: k.pod()})
	pod := must(t, ran, err).PodSandboxId
	main := k.container(pod, "main", "sleep", "1000")
	k.start(main)
	all := slicesOf(k.badPods(), k.badContainers(pod), badCalls(pod, main, k.image))
	tried := map[string]bool{}
	for _, method := range harmless {
		tried[method] = true
	}
	for _, bad := range all {
		tried[bad.method] = true
		k.code(k.invoke(bad), codes.InvalidArgument, bad.field)
	}
	for _, service := range []reflect.Type{reflect.TypeFor[cri.RuntimeServiceClient](), reflect.TypeFor[cri.ImageServiceClient]()} {
		for at := range service.NumMethod() {
			if name := service.Method(at).Name; !tried[name] {
				t.Errorf("%s: no bad request is tried", name)
			}
		}
	}
	pods, err := k.ListPodSandbox(k.ctx, &cri.ListPodSandboxRequest{})
	containers, also := k.ListContainers(k.ctx, &cri.ListContainersRequest{})
	if len(must(t, pods, err).Items) != 1 || len(must(t, containers, also).Containers) != 1 {
		t.Errorf("something was made: %v %v", pods, containers)
	}
	k.remove(pod)
	k.unpull()
}

func slicesOf(lists ...[]bad) (all []bad) {
	for _, list := range lists {
		all = append(all, list...)
	}
	return all
}

// invoke calls the method of that name.
func (k *kubelet) invoke(bad bad) error {
	method := reflect.ValueOf(k.RuntimeServiceClient).MethodByName(bad.method)
	if !method.IsValid() {
		method = reflect.ValueOf(k.images).MethodByName(bad.method)
	}
	out := method.Call([]reflect.Value{reflect.ValueOf(context.Context(k.ctx)), reflect.ValueOf(bad.request)})
	err, _ := out[1].Interface().(error)
	return err
}

func (k *kubelet) badPods() (all []bad) {
	add := func(field string, change func(*cri.PodSandboxConfig)) {
		config := k.pod()
		config.Metadata.Name = "bad"
		change(config)
		all = append(all, bad{"RunPodSandbox", field, &cri.RunPodSandboxRequest{Config: config}})
	}
	security := func(field string, change func(*cri.LinuxSandboxSecurityContext)) {
		add("config.linux.security_context."+field, func(c *cri.PodSandboxConfig) {
			c.Linux.SecurityContext = &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{}}
			change(c.Linux.SecurityContext)
		})
	}
	all = append(all, bad{"RunPodSandbox", "config", &cri.RunPodSandboxRequest{}})
	add("config.metadata", func(c *cri.PodSandboxConfig) { c.Metadata = nil })
	add("config.metadata.name", func(c *cri.PodSandboxConfig) { c.Metadata.Name = "" })
	add("config.metadata.namespace", func(c *cri.PodSandboxConfig) { c.Metadata.Namespace = "" })
	add("config.hostname", func(c *cri.PodSandboxConfig) { c.Hostname = strings.Repeat("x", 65) })
	add("config.log_directory", func(c *cri.PodSandboxConfig) { c.LogDirectory = "/a\x00b" })
	add("config.dns_config.searches[0]", func(c *cri.PodSandboxConfig) { c.DnsConfig.Searches = []string{"a b"} })
	add("config.dns_config.options[0]", func(c *cri.PodSandboxConfig) { c.DnsConfig.Options = []string{"a\nnameserver 1"} })
	port := func(field string, mapping *cri.PortMapping) {
		add("config.port_mappings[0]."+field, func(c *cri.PodSandboxConfig) { c.PortMappings = []*cri.PortMapping{mapping} })
	}
	port("container_port", &cri.PortMapping{HostPort: 80, ContainerPort: -1})
	port("protocol", &cri.PortMapping{HostPort: 80, ContainerPort: 80, Protocol: 9})
	port("host_ip", &cri.PortMapping{HostPort: 80, ContainerPort: 80, HostIp: "here"})
	add("config.linux.cgroup_parent", func(c *cri.PodSandboxConfig) { c.Linux.CgroupParent = "/a/../../b" })
	add("config.linux.sysctls", func(c *cri.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{"../../etc/passwd": "1"} })
	add("config.linux.resources.cpu_shares", func(c *cri.PodSandboxConfig) {
		c.Linux.Resources = &cri.LinuxContainerResources{CpuShares: -5}
	})
	add("config.annotations", func(c *cri.PodSandboxConfig) {
		c.Annotations = map[string]string{"kubernetes.io/ingress-bandwidth": "much"}
	})
	security("namespace_options.network", func(s *cri.LinuxSandboxSecurityContext) { s.NamespaceOptions.Network = 9 })
	security("namespace_options.pid", func(s *cri.LinuxSandboxSecurityContext) { s.NamespaceOptions.Pid = cri.NamespaceMode_TARGET })
	security("namespace_options.ipc", func(s *cri.LinuxSandboxSecurityContext) { s.NamespaceOptions.Ipc = -1 })
	security("namespace_options.userns_options.mode", func(s *cri.LinuxSandboxSecurityContext) {
		s.NamespaceOptions.UsernsOptions = &cri.UserNamespace{Mode: 9}
	})
	security("namespace_options.userns_options.gids", func(s *cri.LinuxSandboxSecurityContext) {
		range1 := []*cri.IDMapping{{HostId: 65536, Length: 65536}}
		s.NamespaceOptions.UsernsOptions = &cri.UserNamespace{Uids: range1, Gids: []*cri.IDMapping{{HostId: 1, Length: 65536}}}
	})
	security("seccomp.localhost_ref", func(s *cri.LinuxSandboxSecurityContext) {
		s.Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: "/no/such"}
	})
	return all
}

func (k *kubelet) badContainers(pod string) (all []bad) {
	add := func(field string, change func(*cri.ContainerConfig)) {
		config := &cri.ContainerConfig{
			Metadata: &cri.ContainerMetadata{Name: "bad"}, Image: &cri.ImageSpec{Image: k.image}, Command: []string{"true"},
			Linux: &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{}},
		}
		change(config)
		request := &cri.CreateContainerRequest{PodSandboxId: pod, Config: config, SandboxConfig: k.pod()}
		all = append(all, bad{"CreateContainer", field, request})
	}
	security := func(field string, change func(*cri.LinuxContainerSecurityContext)) {
		add("config.linux.security_context."+field, func(c *cri.ContainerConfig) { change(c.Linux.SecurityContext) })
	}
	mount := func(field string, mount *cri.Mount) {
		add("config.mounts[0]."+field, func(c *cri.ContainerConfig) { c.Mounts = []*cri.Mount{mount} })
	}
	limit := func(field string, limits *cri.LinuxContainerResources) {
		add("config.linux.resources."+field, func(c *cri.ContainerConfig) { c.Linux.Resources = limits })
	}
	all = append(all, bad{"CreateContainer", "pod_sandbox_id", &cri.CreateContainerRequest{}})
	all = append(all, bad{"CreateContainer", "config", &cri.CreateContainerRequest{PodSandboxId: pod}})
	add("config.metadata", func(c *cri.ContainerConfig) { c.Metadata = nil })
	add("config.metadata.name", func(c *cri.ContainerConfig) { c.Metadata.Name = "" })
	add("config.image", func(c *cri.ContainerConfig) { c.Image = nil })
	add("config.log_path", func(c *cri.ContainerConfig) { c.LogPath = "../../../etc/passwd" })
	add("config.working_dir", func(c *cri.ContainerConfig) { c.WorkingDir = "here" })
	add("config.envs[1].key", func(c *cri.ContainerConfig) { c.Envs = []*cri.KeyValue{{Key: "A"}, {Key: "A=B"}} })
	add("config.stdin_once", func(c *cri.ContainerConfig) { c.StdinOnce = true })
	add("config.stop_signal", func(c *cri.ContainerConfig) { c.StopSignal = 999 })
	add("config.devices[0].", func(c *cri.ContainerConfig) {
		c.Devices = []*cri.Device{{ContainerPath: "/dev/x", HostPath: "/no/such", Permissions: "rwm"}}
	})
	add("config.devices[0].permissions", func(c *cri.ContainerConfig) {
		c.Devices = []*cri.Device{{ContainerPath: "/dev/null", HostPath: "/dev/null", Permissions: "all"}}
	})
	add("config.CDI_devices[0].name", func(c *cri.ContainerConfig) { c.CDIDevices = []*cri.CDIDevice{{Name: "none"}} })
	mount("container_path", &cri.Mount{HostPath: "/tmp"})
	mount("host_path", &cri.Mount{HostPath: "relative", ContainerPath: "/x"})
	mount("propagation", &cri.Mount{HostPath: "/tmp", ContainerPath: "/x", Propagation: 9})
	mount("recursive_read_only", &cri.Mount{HostPath: "/tmp", ContainerPath: "/x", RecursiveReadOnly: true})
	mount("image", &cri.Mount{ContainerPath: "/x", Readonly: true, Image: &cri.ImageSpec{Image: "no/such:1"}})
	limit("cpu_period", &cri.LinuxContainerResources{CpuPeriod: -1})
	limit("cpu_quota", &cri.LinuxContainerResources{CpuQuota: -2})
	limit("memory_limit_in_bytes", &cri.LinuxContainerResources{MemoryLimitInBytes: -9})
	limit("memory_swap_limit_in_bytes", &cri.LinuxContainerResources{MemoryLimitInBytes: 1 << 30, MemorySwapLimitInBytes: 1})
	limit("cpuset_cpus", &cri.LinuxContainerResources{CpusetCpus: "all"})
	limit("unified", &cri.LinuxContainerResources{Unified: map[string]string{"../cgroup.procs": "1"}})
	security("run_as_user", func(s *cri.LinuxContainerSecurityContext) { s.RunAsUser = &cri.Int64Value{Value: -1} })
	security("run_as_group", func(s *cri.LinuxContainerSecurityContext) { s.RunAsGroup = &cri.Int64Value{Value: 7} })
	security("supplemental_groups", func(s *cri.LinuxContainerSecurityContext) { s.SupplementalGroups = []int64{1 << 40} })
	security("capabilities.add_capabilities[0]", func(s *cri.LinuxContainerSecurityContext) {
		s.Capabilities = &cri.Capability{AddCapabilities: []string{"EVERYTHING"}}
	})
	security("namespace_options.target_id", func(s *cri.LinuxContainerSecurityContext) {
		s.NamespaceOptions = &cri.NamespaceOption{Pid: cri.NamespaceMode_TARGET, TargetId: "absent"}
	})
	security("namespace_options.pid", func(s *cri.LinuxContainerSecurityContext) {
		s.NamespaceOptions = &cri.NamespaceOption{Pid: 9}
	})
	security("seccomp.localhost_ref", func(s *cri.LinuxContainerSecurityContext) {
		s.Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: "relative"}
	})
	return all
}

// badCalls are those about what is there already.
func badCalls(pod, main, image string) []bad {
	hostile := &cri.LinuxContainerResources{CpuPeriod: -1}
	var all []bad
	add := func(method, field string, request proto.Message) { all = append(all, bad{method, field, request}) }
	add("StopPodSandbox", "pod_sandbox_id", &cri.StopPodSandboxRequest{})
	add("RemovePodSandbox", "pod_sandbox_id", &cri.RemovePodSandboxRequest{})
	add("PodSandboxStatus", "pod_sandbox_id", &cri.PodSandboxStatusRequest{})
	add("PodSandboxStats", "pod_sandbox_id", &cri.PodSandboxStatsRequest{})
	add("UpdatePodSandboxResources", "pod_sandbox_id", &cri.UpdatePodSandboxResourcesRequest{})
	add("UpdatePodSandboxResources", "resources.cpu_period", &cri.UpdatePodSandboxResourcesRequest{PodSandboxId: pod, Resources: hostile})
	add("UpdatePodSandboxResources", "overhead.cpu_period", &cri.UpdatePodSandboxResourcesRequest{PodSandboxId: pod, Overhead: hostile})
	add("PortForward", "pod_sandbox_id", &cri.PortForwardRequest{})
	add("PortForward", "port[1]", &cri.PortForwardRequest{PodSandboxId: pod, Port: []int32{80, 70000}})
	add("StartContainer", "container_id", &cri.StartContainerRequest{})
	add("StopContainer", "container_id", &cri.StopContainerRequest{})
	add("StopContainer", "timeout", &cri.StopContainerRequest{ContainerId: main, Timeout: -1})
	add("RemoveContainer", "container_id", &cri.RemoveContainerRequest{})
	add("ContainerStatus", "container_id", &cri.ContainerStatusRequest{})
	add("ContainerStats", "container_id", &cri.ContainerStatsRequest{})
	add("ReopenContainerLog", "container_id", &cri.ReopenContainerLogRequest{})
	add("UpdateContainerResources", "container_id", &cri.UpdateContainerResourcesRequest{})
	add("UpdateContainerResources", "linux", &cri.UpdateContainerResourcesRequest{ContainerId: main})
	add("UpdateContainerResources", "linux.cpu_period", &cri.UpdateContainerResourcesRequest{ContainerId: main, Linux: hostile})
	add("ExecSync", "container_id", &cri.ExecSyncRequest{Cmd: []string{"true"}})
	add("ExecSync", "cmd", &cri.ExecSyncRequest{ContainerId: main})
	add("ExecSync", "timeout", &cri.ExecSyncRequest{ContainerId: main, Cmd: []string{"true"}, Timeout: -1})
	add("Exec", "container_id", &cri.ExecRequest{Cmd: []string{"true"}, Stdout: true})
	add("Exec", "cmd", &cri.ExecRequest{ContainerId: main, Stdout: true})
	add("Exec", "stdin", &cri.ExecRequest{ContainerId: main, Cmd: []string{"true"}})
	add("Exec", "stderr", &cri.ExecRequest{ContainerId: main, Cmd: []string{"true"}, Tty: true, Stderr: true})
	add("Attach", "container_id", &cri.AttachRequest{Stdout: true})
	add("Attach", "stdin", &cri.AttachRequest{ContainerId: main})
	add("Attach", "stderr", &cri.AttachRequest{ContainerId: main, Tty: true, Stderr: true})
	add("CheckpointContainer", "container_id", &cri.CheckpointContainerRequest{Location: "/tmp/c.tar"})
	add("CheckpointContainer", "location", &cri.CheckpointContainerRequest{ContainerId: main})
	add("CheckpointContainer", "timeout", &cri.CheckpointContainerRequest{ContainerId: main, Location: "/tmp/c.tar", Timeout: -1})
	add("CheckpointPod", "pod_sandbox_id", &cri.CheckpointPodRequest{})
	add("CheckpointPod", "output_path", &cri.CheckpointPodRequest{PodSandboxId: pod, OutputPath: "here", ContainerIds: []string{main}})
	add("CheckpointPod", "options[\"a\"]", &cri.CheckpointPodRequest{PodSandboxId: pod, Options: map[string]string{"a": "b"}})
	add("RestorePod", "config", &cri.RestorePodRequest{CheckpointPath: "/none"})
	metadata := &cri.PodSandboxMetadata{Name: "bad", Uid: "u", Namespace: "n"}
	add("RestorePod", "checkpoint_path", &cri.RestorePodRequest{CheckpointPath: "/none", Config: &cri.PodSandboxConfig{Metadata: metadata}})
	ranges := &cri.RuntimeConfig{NetworkConfig: &cri.NetworkConfig{PodCidr: "10.0.0.0/99"}}
	add("UpdateRuntimeConfig", "pod_cidr", &cri.UpdateRuntimeConfigRequest{RuntimeConfig: ranges})
	add("ImageStatus", "image", &cri.ImageStatusRequest{})
	add("PullImage", "image", &cri.PullImageRequest{})
	add("PullImage", "image.image", &cri.PullImageRequest{Image: &cri.ImageSpec{Image: "no such/name"}})
	add("PullImage", "auth.auth", &cri.PullImageRequest{Image: &cri.ImageSpec{Image: image}, Auth: &cri.AuthConfig{Auth: "!"}})
	add("RemoveImage", "image", &cri.RemoveImageRequest{})
	return all
}
