// Command pods drives the Container Runtime Interface as a kubelet does, and tells how long it took: one JSON object of
// lists of milliseconds by name.
//
//	pods -socket PATH -image NAME -id ID cycle COUNT     pods one after the other: pod, container, remove
//	pods … burst COUNT                                   all at once: each
//	pods … fill COUNT [CONTAINERS]                       pods with a container each, or so many, that stay
//	pods … ask COUNT                                     lists, and the status of every container: list, status
//	pods … exec COUNT                                    commands in the first container: exec
//	pods … stats COUNT                                   figures of all containers: stats
//	pods … clear                                         removes all there is
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

type client struct {
	cri.RuntimeServiceClient
	ctx       context.Context
	image, id string
	sync.Mutex
	took map[string][]float64
}

// time measures what does not fail.
func (c *client) time(name string, do func() error) {
	began := time.Now()
	if err := do(); err != nil {
		log.Fatalf("%s: %v", name, err)
	}
	c.Lock()
	defer c.Unlock()
	c.took[name] = append(c.took[name], float64(time.Since(began).Microseconds())/1000)
}

func main() {
	socket := flag.String("socket", "", "the daemon's socket")
	image := flag.String("image", "", "image of the containers")
	id := flag.String("id", "bench", "begins the names of pods, and is their cgroup")
	flag.Parse()
	conn, err := grpc.NewClient("unix://"+*socket, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
	if err != nil {
		log.Fatal(err)
	}
	c := &client{RuntimeServiceClient: cri.NewRuntimeServiceClient(conn), ctx: context.Background(), image: *image, id: *id, took: map[string][]float64{}}
	count, _ := strconv.Atoi(flag.Arg(1))
	each, _ := strconv.Atoi(flag.Arg(2))
	fill := func(count int) { c.fill(count, max(each, 1)) }
	verbs := map[string]func(int){"cycle": c.cycle, "burst": c.burst, "fill": fill, "ask": c.ask, "exec": c.exec, "stats": c.stats, "clear": c.clear}
	verb, known := verbs[flag.Arg(0)]
	if !known {
		log.Fatalf("unknown verb %q", flag.Arg(0))
	}
	verb(count)
	_ = json.NewEncoder(os.Stdout).Encode(c.took)
}

func (c *client) config(number int) *cri.PodSandboxConfig {
	name := fmt.Sprintf("%s-%d-%d", c.id, os.Getpid(), number)
	return &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: name, Uid: name, Namespace: "bench"},
		Hostname:     "bench",
		LogDirectory: filepath.Join(os.TempDir(), "bench-logs", name),
		Linux:        &cri.LinuxPodSandboxConfig{CgroupParent: "/" + c.id},
	}
}

func (c *client) run(number int) (string, *cri.PodSandboxConfig, error) {
	config := c.config(number)
	ran, err := c.RunPodSandbox(c.ctx, &cri.RunPodSandboxRequest{Config: config})
	return ran.GetPodSandboxId(), config, err
}

func (c *client) start(pod string, config *cri.PodSandboxConfig, name string) error {
	made, err := c.CreateContainer(c.ctx, &cri.CreateContainerRequest{PodSandboxId: pod, SandboxConfig: config, Config: &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: name}, Image: &cri.ImageSpec{Image: c.image},
		Command: []string{"sleep", "100000"}, LogPath: name + ".log", Linux: &cri.LinuxContainerConfig{},
	}})
	if err != nil {
		return err
	}
	_, err = c.StartContainer(c.ctx, &cri.StartContainerRequest{ContainerId: made.ContainerId})
	return err
}

func (c *client) remove(pod string) error {
	if _, err := c.StopPodSandbox(c.ctx, &cri.StopPodSandboxRequest{PodSandboxId: pod}); err != nil {
		return err
	}
	_, err := c.RemovePodSandbox(c.ctx, &cri.RemovePodSandboxRequest{PodSandboxId: pod})
	return err
}

func (c *client) cycle(count int) {
	for number := range count {
		var pod string
		var config *cri.PodSandboxConfig
		c.time("pod", func() (err error) { pod, config, err = c.run(number); return err })
		c.time("container", func() error { return c.start(pod, config, "main") })
		c.time("remove", func() error { return c.remove(pod) })
	}
}

func (c *client) burst(count int) {
	var all sync.WaitGroup
	pods := make([]string, count)
	c.time("all", func() error {
		for number := range count {
			all.Go(func() {
				c.time("each", func() error {
					pod, config, err := c.run(number)
					if pods[number] = pod; err != nil {
						return err
					}
					return c.start(pod, config, "main")
				})
			})
		}
		all.Wait()
		return nil
	})
	for _, pod := range pods {
		if err := c.remove(pod); err != nil {
			log.Fatal(err)
		}
	}
}

func (c *client) fill(count, each int) {
	var all sync.WaitGroup
	numbers := make(chan int, count)
	for number := range count {
		numbers <- number
	}
	close(numbers)
	// Some at a time, as a kubelet does.
	for range 4 {
		all.Go(func() {
			for number := range numbers {
				pod, config, err := c.run(number)
				for at := 0; at < each && err == nil; at++ {
					err = c.start(pod, config, fmt.Sprintf("main%d", at))
				}
				if err != nil {
					log.Fatal(err)
				}
			}
		})
	}
	all.Wait()
}

func (c *client) containers() []*cri.Container {
	list, err := c.ListContainers(c.ctx, &cri.ListContainersRequest{})
	if err != nil {
		log.Fatal(err)
	}
	return list.Containers
}

func (c *client) ask(count int) {
	all := c.containers()
	for range count {
		c.time("list", func() error { c.containers(); return nil })
		c.time("list", func() error { _, err := c.ListPodSandbox(c.ctx, &cri.ListPodSandboxRequest{}); return err })
	}
	for _, one := range all {
		c.time("status", func() error {
			_, err := c.ContainerStatus(c.ctx, &cri.ContainerStatusRequest{ContainerId: one.Id})
			return err
		})
	}
}

func (c *client) exec(count int) {
	id := c.containers()[0].Id
	for range count {
		c.time("exec", func() error {
			_, err := c.ExecSync(c.ctx, &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}})
			return err
		})
	}
}

func (c *client) stats(count int) {
	for range count {
		c.time("stats", func() error {
			_, err := c.ListContainerStats(c.ctx, &cri.ListContainerStatsRequest{})
			return err
		})
	}
}

func (c *client) clear(int) {
	list, err := c.ListPodSandbox(c.ctx, &cri.ListPodSandboxRequest{})
	for _, pod := range list.GetItems() {
		if err == nil {
			err = c.remove(pod.Id)
		}
	}
	if err != nil {
		log.Fatal(err)
	}
}
