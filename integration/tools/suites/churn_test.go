package suites

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// patience is how long a kubelet of this test tries one thing again and again.
const patience = 4 * time.Minute

// Many pods with a container each, made and removed, while somebody kills the daemon and stops shims: whatever fails is
// tried again as a kubelet does, until it succeeds.
func TestPodsChurn(t *testing.T) {
	count, _ := strconv.Atoi(os.Getenv("GANTRY_CHURN_PODS"))
	group, _ := strconv.Atoi(os.Getenv("GANTRY_CHURN_GROUP"))
	k := kube(t)
	k.ctx = context.Background()
	numbers := make(chan int)
	var workers sync.WaitGroup
	for range group {
		workers.Go(func() {
			for number := range numbers {
				began := time.Now()
				k.churn(number)
				t.Logf("pod %d: %v", number, time.Since(began))
			}
		})
	}
	for number := range count {
		numbers <- number
	}
	close(numbers)
	workers.Wait()
}

// insist does something until it succeeds.
func (k *kubelet) insist(what string, do func(ctx context.Context) error) {
	var err error
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(k.ctx, time.Minute)
		err = do(ctx)
		cancel()
		if err == nil {
			return
		}
		if code := status.Code(err); code != codes.Unavailable && code != codes.Canceled {
			k.Logf("%s: %v", what, err)
		}
	}
	k.Errorf("%s in vain: %v", what, err)
}

func (k *kubelet) churn(number int) {
	config := k.pod()
	config.Metadata.Name = fmt.Sprintf("pod%d", number)
	config.Metadata.Uid = fmt.Sprintf("%s-%d", k.name, number)
	config.Labels = map[string]string{"number": fmt.Sprint(number)}
	config.LogDirectory += fmt.Sprint("/", number)
	config.Linux = &cri.LinuxPodSandboxConfig{CgroupParent: "/" + k.name}
	var pod, container string
	// The shim of a sandbox may be stopped at any time: then the pod is made again, as a kubelet does.
	for lost := true; lost && !k.Failed(); {
		k.insist("run "+config.Metadata.Name, func(ctx context.Context) (err error) {
			pod, err = k.runOrFind(ctx, config)
			return err
		})
		k.insist("create in "+config.Metadata.Name, func(ctx context.Context) (err error) {
			container, err = k.createOrFind(ctx, pod, config)
			lost, err = k.isLost(ctx, pod, err)
			return err
		})
		if lost {
			continue
		}
		k.insist("start in "+config.Metadata.Name, func(ctx context.Context) error {
			now, err := k.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: container})
			if err == nil && now.Status.State != cri.ContainerState_CONTAINER_CREATED {
				return nil
			}
			_, err = k.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: container})
			lost, err = k.isLost(ctx, pod, err)
			return err
		})
	}
	k.insist("stop "+config.Metadata.Name, func(ctx context.Context) error {
		_, err := k.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: pod})
		return err
	})
	k.insist("remove "+config.Metadata.Name, func(ctx context.Context) error {
		_, err := k.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: pod})
		return err
	})
}

// isLost tells whether something failed because the pod's sandbox has ended; else it gives the failure back.
func (k *kubelet) isLost(ctx context.Context, pod string, failure error) (bool, error) {
	if failure == nil {
		return false, nil
	}
	now, err := k.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: pod})
	if err == nil && now.Status.State == cri.PodSandboxState_SANDBOX_NOTREADY {
		return true, nil
	}
	return false, failure
}

// runOrFind runs a pod, unless an earlier call that got no answer did.
func (k *kubelet) runOrFind(ctx context.Context, config *cri.PodSandboxConfig) (string, error) {
	list, err := k.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{Filter: &cri.PodSandboxFilter{LabelSelector: config.Labels}})
	if err != nil {
		return "", err
	}
	for _, found := range list.Items {
		if found.State == cri.PodSandboxState_SANDBOX_READY {
			return found.Id, nil
		}
		if _, err = k.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: found.Id}); err != nil {
			return "", err
		}
	}
	ran, err := k.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config})
	return ran.GetPodSandboxId(), err
}

func (k *kubelet) createOrFind(ctx context.Context, pod string, config *cri.PodSandboxConfig) (string, error) {
	list, err := k.ListContainers(ctx, &cri.ListContainersRequest{Filter: &cri.ContainerFilter{PodSandboxId: pod}})
	if err != nil {
		return "", err
	}
	if len(list.Containers) > 0 {
		return list.Containers[0].Id, nil
	}
	made, err := k.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: pod, SandboxConfig: config, Config: &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: "main"},
		Image:    &cri.ImageSpec{Image: k.image},
		Command:  []string{"sleep", "1000"},
		LogPath:  "main.log",
	}})
	return made.GetContainerId(), err
}
