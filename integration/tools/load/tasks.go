package main

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	containers "github.com/containerd/containerd/api/services/containers/v1"
	tasks "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/anypb"
)

const (
	tasksService = "/containerd.services.tasks.v1.Tasks/"
	specType     = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
	sigkill      = 9
)

// runnable enters a container whose process is args. Its root is handed over with the task.
func (l *load) runnable(ctx context.Context, c *grpc.ClientConn, id string, args ...string) error {
	spec := *template()
	linux, process := *spec.Linux, *spec.Process
	process.Args = args
	linux.CgroupsPath = l.cgroup + "/" + id
	spec.Linux, spec.Process = &linux, &process
	value, err := json.Marshal(&spec)
	if err != nil {
		return err
	}
	made := &containers.CreateContainerRequest{Container: &containers.Container{
		ID:      id,
		Runtime: &containers.Container_Runtime{Name: "io.containerd.runc.v2"},
		Spec:    &anypb.Any{TypeUrl: specType, Value: value},
	}}
	return c.Invoke(ctx, containersService+"Create", made, &sink{})
}

func (l *load) remove(ctx context.Context, c *grpc.ClientConn, id string) error {
	return c.Invoke(ctx, containersService+"Delete", &containers.DeleteContainerRequest{ID: id}, &sink{})
}

// begin creates and starts a task. Two layers, so that the root is an overlay as an image's is.
func (l *load) begin(ctx context.Context, c *grpc.ClientConn, id string) error {
	create := &tasks.CreateTaskRequest{ContainerID: id, Rootfs: []*types.Mount{
		{Type: "overlay", Source: "overlay", Options: []string{"lowerdir=" + l.rootfs + ":" + l.rootfs + "-below"}},
	}}
	if err := c.Invoke(ctx, tasksService+"Create", create, &tasks.CreateTaskResponse{}); err != nil {
		return fmt.Errorf("create %s: %w", id, err)
	}
	return c.Invoke(ctx, tasksService+"Start", &tasks.StartRequest{ContainerID: id}, &tasks.StartResponse{})
}

// end waits for a task that must end well, and deletes it.
func (l *load) end(ctx context.Context, c *grpc.ClientConn, id string, status uint32) error {
	var answer tasks.WaitResponse
	if err := c.Invoke(ctx, tasksService+"Wait", &tasks.WaitRequest{ContainerID: id}, &answer); err != nil {
		return err
	}
	if answer.ExitStatus != status {
		return fmt.Errorf("%s ended with %d, not %d", id, answer.ExitStatus, status)
	}
	return c.Invoke(ctx, tasksService+"Delete", &tasks.DeleteTaskRequest{ContainerID: id}, &tasks.DeleteResponse{})
}

// prepared enters all containers before work is measured, and removes them afterwards.
func (l *load) prepared(ctx context.Context, args []string, work func() (result, error)) (result, error) {
	each := func(step func(context.Context, *grpc.ClientConn, string) error) error {
		for worker := range l.workers {
			for call := range l.count {
				if err := step(ctx, l.connections[0], l.fresh(worker, call)); err != nil {
					return err
				}
			}
		}
		return nil
	}
	enter := func(ctx context.Context, c *grpc.ClientConn, id string) error { return l.runnable(ctx, c, id, args...) }
	if err := each(enter); err != nil {
		return result{}, err
	}
	r, err := work()
	if err != nil || l.keep {
		return r, err
	}
	return r, each(l.remove)
}

// taskLife has tasks live from create to delete. The records of their containers are there before.
func taskLife(ctx context.Context, l *load) (result, error) {
	return l.prepared(ctx, []string{"/bin/true"}, func() (result, error) {
		return l.calls(func(c *grpc.ClientConn, worker, call int) (int64, error) {
			id := l.fresh(worker, call)
			if err := l.begin(ctx, c, id); err != nil {
				return 0, err
			}
			return 0, l.end(ctx, c, id, 0)
		})
	})
}

// taskStart starts tasks that stay; with -keep they are left to taskEnd.
func taskStart(ctx context.Context, l *load) (result, error) {
	return l.prepared(ctx, []string{"/bin/sleep", "100000"}, func() (result, error) {
		r, err := l.calls(func(c *grpc.ClientConn, worker, call int) (int64, error) {
			return 0, l.begin(ctx, c, l.fresh(worker, call))
		})
		if err != nil || l.keep {
			return r, err
		}
		_, err = l.calls(func(c *grpc.ClientConn, worker, call int) (int64, error) {
			return 0, l.kill(ctx, c, l.fresh(worker, call))
		})
		return r, err
	})
}

func (l *load) kill(ctx context.Context, c *grpc.ClientConn, id string) error {
	kill := &tasks.KillRequest{ContainerID: id, Signal: sigkill}
	if err := c.Invoke(ctx, tasksService+"Kill", kill, &sink{}); err != nil {
		return err
	}
	return l.end(ctx, c, id, 128+sigkill)
}

// taskEnd ends what taskStart left.
func taskEnd(ctx context.Context, l *load) (result, error) {
	return l.calls(func(c *grpc.ClientConn, worker, call int) (int64, error) {
		id := l.fresh(worker, call)
		if err := l.kill(ctx, c, id); err != nil {
			return 0, err
		}
		return 0, l.remove(ctx, c, id)
	})
}

// taskExec executes /bin/true again and again in the first task that taskStart left. What it tells of time is from Exec to
// the exit; the record goes afterwards, which counts as CPU.
func taskExec(ctx context.Context, l *load) (result, error) {
	process := *template().Process
	process.Args = []string{"/bin/true"}
	value, err := json.Marshal(&process)
	if err != nil {
		return result{}, err
	}
	spec := &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/Process", Value: value}
	id := l.fresh(0, 0)
	took := make([][]time.Duration, l.workers)
	r, err := l.calls(func(c *grpc.ClientConn, worker, call int) (int64, error) {
		exec, began := fmt.Sprintf("e%d-%d", worker, call), time.Now()
		added := &tasks.ExecProcessRequest{ContainerID: id, ExecID: exec, Spec: spec}
		if err := c.Invoke(ctx, tasksService+"Exec", added, &sink{}); err != nil {
			return 0, err
		}
		start := &tasks.StartRequest{ContainerID: id, ExecID: exec}
		if err := c.Invoke(ctx, tasksService+"Start", start, &tasks.StartResponse{}); err != nil {
			return 0, err
		}
		var ended tasks.WaitResponse
		wait := &tasks.WaitRequest{ContainerID: id, ExecID: exec}
		if err := c.Invoke(ctx, tasksService+"Wait", wait, &ended); err != nil {
			return 0, err
		}
		if ended.ExitStatus != 0 {
			return 0, fmt.Errorf("%s ended with %d", exec, ended.ExitStatus)
		}
		took[worker] = append(took[worker], time.Since(began))
		gone := &tasks.DeleteProcessRequest{ContainerID: id, ExecID: exec}
		return 0, c.Invoke(ctx, tasksService+"DeleteProcess", gone, &tasks.DeleteResponse{})
	})
	r.tell(took)
	return r, err
}
