// Load puts load on a daemon that speaks containerd's API and tells, as one line of JSON, what it got through.
//
//	load [FLAGS] WORKLOAD
//
// It is the same program for every daemon, on the gRPC stack and the messages of containerd's own client. What a
// workload does not look into, it does not decode: the client's cost shall not hide the daemon's.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"os"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
)

// maxMessage is what containerd's client takes, and more: a whole listing.
const maxMessage = 256 << 20

// load is what the flags say.
type load struct {
	address     string
	namespace   string
	workers     int
	count       int
	duration    time.Duration
	size        int
	containers  int
	filter      string
	prefix      string
	daemon      int
	rootfs      string
	cgroup      string
	keep        bool
	expires     time.Duration
	connections []*grpc.ClientConn
}

// result is what is printed.
type result struct {
	Operations  int64   `json:"operations"`
	Bytes       int64   `json:"bytes"`
	Seconds     float64 `json:"seconds"`
	P50         float64 `json:"p50_us"`
	P99         float64 `json:"p99_us"`
	Longest     float64 `json:"longest_us"`
	ClientSpent float64 `json:"client_cpu_s"`
	DaemonSpent float64 `json:"daemon_cpu_s"`
}

func main() {
	var l load
	flag.StringVar(&l.address, "address", "", "the daemon's socket")
	connections := flag.Int("connections", 1, "connections that workers share")
	flag.StringVar(&l.namespace, "namespace", "load", "namespace")
	flag.IntVar(&l.workers, "workers", 1, "workers at once")
	flag.IntVar(&l.count, "count", 0, "operations of each worker; 0 for as many as fit in the duration")
	flag.DurationVar(&l.duration, "duration", 2*time.Second, "how long, where no count is given")
	flag.IntVar(&l.size, "size", 256, "MiB of the blob that is read or written")
	flag.IntVar(&l.containers, "containers", 10000, "containers that are in the store")
	flag.StringVar(&l.filter, "filter", "", "filter of a listing")
	flag.StringVar(&l.prefix, "prefix", "w", "what names of new objects begin with")
	flag.StringVar(&l.rootfs, "rootfs", "", "root file system of tasks; beside it an empty directory of that name and -below")
	flag.StringVar(&l.cgroup, "cgroup", "/load", "control group of tasks")
	flag.BoolVar(&l.keep, "keep", false, "leave the tasks that were started")
	flag.DurationVar(&l.expires, "expires", 0, "when images-expiring are garbage, counted from the start")
	flag.IntVar(&l.daemon, "pid", 0, "process of the daemon, to tell its CPU time")
	flag.Parse()
	if err := l.dial(*connections); err != nil {
		fail(err)
	}
	run, ok := workloads[flag.Arg(0)]
	if !ok {
		fail(fmt.Errorf("no workload %q", flag.Arg(0)))
	}
	ctx := metadata.AppendToOutgoingContext(context.Background(), "containerd-namespace", l.namespace)
	r, err := run(ctx, &l)
	if err != nil {
		fail(err)
	}
	if err := json.NewEncoder(os.Stdout).Encode(r); err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "load:", err)
	os.Exit(1)
}

func (l *load) dial(connections int) error {
	dialer := func(ctx context.Context, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", l.address)
	}
	for range connections {
		connection, err := grpc.NewClient("passthrough:///daemon",
			grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(dialer),
			grpc.WithDefaultCallOptions(grpc.ForceCodecV2(codec{}), grpc.MaxCallRecvMsgSize(maxMessage)))
		if err != nil {
			return err
		}
		l.connections = append(l.connections, connection)
	}
	return nil
}

// spent is the CPU time of this process in seconds.
func spent() float64 {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		return 0
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano()).Seconds()
}

// spentBy is the CPU time of a process in seconds: utime and stime of its threads (proc(5)), in hundredths.
func spentBy(pid int) float64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	return float64(user+system) / 100
}

// measured adds to the result of work how long it took, and what it cost.
func (l *load) measured(work func() (result, error)) (result, error) {
	start, client, daemon := time.Now(), spent(), spentBy(l.daemon)
	r, err := work()
	r.Seconds = time.Since(start).Seconds()
	r.ClientSpent, r.DaemonSpent = spent()-client, spentBy(l.daemon)-daemon
	return r, err
}

// calls has all workers call step, with a connection, their own number and that of the call, and adds up what it gives.
func (l *load) calls(step func(connection *grpc.ClientConn, worker, call int) (bytes int64, err error)) (result, error) {
	return l.repeat(func(worker, call int) (int64, error) {
		return step(l.connections[worker%len(l.connections)], worker, call)
	})
}

// repeat is calls without connections.
func (l *load) repeat(step func(worker, call int) (bytes int64, err error)) (result, error) {
	return l.measured(func() (result, error) { return l.repeated(step) })
}

func (l *load) repeated(step func(worker, call int) (int64, error)) (result, error) {
	var (
		group    sync.WaitGroup
		sum      atomic.Int64
		failure  atomic.Pointer[error]
		took     = make([][]time.Duration, l.workers)
		deadline = time.Now().Add(l.duration)
	)
	for worker := range l.workers {
		group.Go(func() {
			for call := 0; failure.Load() == nil; call++ {
				before := time.Now()
				if (l.count > 0 && call >= l.count) || (l.count == 0 && before.After(deadline)) {
					return
				}
				n, err := step(worker, call)
				if err != nil {
					failure.Store(&err)
					return
				}
				sum.Add(n)
				took[worker] = append(took[worker], time.Since(before))
			}
		})
	}
	group.Wait()
	if err := failure.Load(); err != nil {
		return result{}, *err
	}
	r := result{Bytes: sum.Load()}
	r.tell(took)
	return r, nil
}

// tell takes over how long each operation took, by worker.
func (r *result) tell(took [][]time.Duration) {
	all := slices.Concat(took...)
	sort.Slice(all, func(i, j int) bool { return all[i] < all[j] })
	r.Operations, r.P50, r.P99, r.Longest = int64(len(all)), at(all, 0.5), at(all, 0.99), at(all, 1)
}

// at is the value at this fraction of a sorted list, in microseconds.
func at(sorted []time.Duration, fraction float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	return float64(sorted[int(float64(len(sorted)-1)*fraction)].Nanoseconds()) / 1000
}
