package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	api "github.com/containerd/containerd/api/services/sandbox/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// sandboxes is a controller whose sandbox is one sleeping process, which outlives this one.
type sandboxes struct {
	api.UnimplementedControllerServer
	dir string
}

func (s *sandboxes) path(id string) string { return filepath.Join(s.dir, filepath.Base(id)) }

// pid is that of a sandbox's process; 0 before its start.
func (s *sandboxes) pid(id string) (int, error) {
	text, err := os.ReadFile(s.path(id))
	if err != nil {
		return 0, status.Errorf(codes.NotFound, "sandbox %s is not with this controller", id)
	}
	pid, _ := strconv.Atoi(string(text))
	return pid, nil
}

func (s *sandboxes) Create(_ context.Context, r *api.ControllerCreateRequest) (*api.ControllerCreateResponse, error) {
	if _, err := s.pid(r.SandboxID); err == nil {
		return nil, status.Errorf(codes.AlreadyExists, "sandbox %s is there", r.SandboxID)
	}
	return &api.ControllerCreateResponse{SandboxID: r.SandboxID}, os.WriteFile(s.path(r.SandboxID), nil, 0o600)
}

func (s *sandboxes) Start(_ context.Context, r *api.ControllerStartRequest) (*api.ControllerStartResponse, error) {
	if _, err := s.pid(r.SandboxID); err != nil {
		return nil, err
	}
	command := exec.Command("sleep", "1000")
	command.Dir = s.dir
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := command.Start(); err != nil {
		return nil, err
	}
	go func() { _ = command.Wait() }()
	pid := command.Process.Pid
	if err := os.WriteFile(s.path(r.SandboxID), []byte(strconv.Itoa(pid)), 0o600); err != nil {
		return nil, err
	}
	return &api.ControllerStartResponse{SandboxID: r.SandboxID, Pid: uint32(pid), CreatedAt: timestamppb.Now()}, nil
}

func (s *sandboxes) Status(_ context.Context, r *api.ControllerStatusRequest) (*api.ControllerStatusResponse, error) {
	pid, err := s.pid(r.SandboxID)
	if err != nil {
		return nil, err
	}
	state := "SANDBOX_NOTREADY"
	if pid > 0 && syscall.Kill(pid, 0) == nil {
		state = "SANDBOX_READY"
	}
	return &api.ControllerStatusResponse{SandboxID: r.SandboxID, Pid: uint32(pid), State: state}, nil
}

func (s *sandboxes) Wait(ctx context.Context, r *api.ControllerWaitRequest) (*api.ControllerWaitResponse, error) {
	pid, err := s.pid(r.SandboxID)
	if err != nil {
		return nil, err
	}
	for pid > 0 && syscall.Kill(pid, 0) == nil && ctx.Err() == nil {
		time.Sleep(20 * time.Millisecond)
	}
	return &api.ControllerWaitResponse{ExitStatus: 137, ExitedAt: timestamppb.Now()}, ctx.Err()
}

func (s *sandboxes) Stop(_ context.Context, r *api.ControllerStopRequest) (*api.ControllerStopResponse, error) {
	pid, err := s.pid(r.SandboxID)
	if err == nil && pid > 0 {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	return &api.ControllerStopResponse{}, err
}

func (s *sandboxes) Shutdown(ctx context.Context, r *api.ControllerShutdownRequest) (*api.ControllerShutdownResponse, error) {
	if _, err := s.Stop(ctx, &api.ControllerStopRequest{SandboxID: r.SandboxID}); err != nil {
		return nil, err
	}
	return &api.ControllerShutdownResponse{}, os.Remove(s.path(r.SandboxID))
}
