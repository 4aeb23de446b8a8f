// Command plugin serves containerd's own snapshotter, content store and differ, and a small sandbox controller, on a
// socket, as proxy plug-ins of a daemon. The tests run it beside the daemon, kill it, and start it again.
package main

import (
	"context"
	"flag"
	"log"
	"net"
	"os"
	"os/exec"
	"path/filepath"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	sandboxapi "github.com/containerd/containerd/api/services/sandbox/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/diffservice"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/core/diff/apply"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/diff/walking"
	"github.com/containerd/containerd/v2/plugins/services/content/contentserver"
	"github.com/containerd/containerd/v2/plugins/snapshots/native"
	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
)

func main() {
	socket := flag.String("socket", "", "unix socket to serve on")
	root := flag.String("root", "", "directory for snapshots and blobs")
	daemon := flag.String("daemon", "", "socket of the daemon whose blobs the differ reads and writes")
	layers := flag.String("layers", "", "directory of layers, by chain id, that need not be fetched")
	flag.Parse()
	if err := serve(*socket, *root, *daemon, *layers); err != nil {
		log.Fatal(err)
	}
}

func serve(socket, root, daemon, layers string) error {
	server := grpc.NewServer(grpc.UnaryInterceptor(passOn), grpc.MaxRecvMsgSize(16<<20), grpc.MaxSendMsgSize(16<<20))
	sn, err := native.NewSnapshotter(filepath.Join(root, "snapshots"))
	if err != nil {
		return err
	}
	snapshotsapi.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(&present{sn, layers}))
	blobs, err := local.NewStore(filepath.Join(root, "content"))
	if err != nil {
		return err
	}
	pods := &sandboxes{dir: filepath.Join(root, "sandboxes")}
	if err := os.MkdirAll(pods.dir, 0o700); err != nil {
		return err
	}
	sandboxapi.RegisterControllerServer(server, pods)
	contentapi.RegisterContentServer(server, contentserver.New(blobs))
	if daemon != "" {
		conn, err := grpc.NewClient("unix://"+daemon, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return err
		}
		register(server, proxy.NewContentStore(conn))
	} else {
		register(server, blobs)
	}
	_ = os.Remove(socket)
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	return server.Serve(listener)
}

func register(server *grpc.Server, store content.Store) {
	differ := diffservice.FromApplierAndComparer(apply.NewFileSystemApplier(store), walking.NewWalkingDiff(store))
	diffapi.RegisterDiffServer(server, differ)
}

// passOn writes a call down, and gives its namespace and lease to the calls that are made for it.
func passOn(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	log.Print("call ", info.FullMethod)
	if headers, ok := metadata.FromIncomingContext(ctx); ok {
		kept := metadata.MD{}
		for _, name := range []string{"containerd-namespace", "containerd-lease"} {
			kept.Append(name, headers.Get(name)...)
		}
		ctx = metadata.NewOutgoingContext(ctx, kept)
	}
	return handler(ctx, req)
}

// present is a snapshotter that has some layers without anybody unpacking them, as lazily pulling ones do: preparing
// the snapshot that would become such a layer is answered by "already exists", and the layer is there.
type present struct {
	snapshots.Snapshotter
	layers string
}

func (p *present) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	var info snapshots.Info
	for _, opt := range opts {
		if err := opt(&info); err != nil {
			return nil, err
		}
	}
	p.note(info.Labels)
	target := info.Labels[snapshots.LabelSnapshotRef]
	layer := filepath.Join(p.layers, target)
	if p.layers == "" || target == "" {
		return p.Snapshotter.Prepare(ctx, key, parent, opts...)
	}
	if _, err := os.Stat(layer); err != nil {
		return p.Snapshotter.Prepare(ctx, key, parent, opts...)
	}
	mounts, err := p.Snapshotter.Prepare(ctx, key, parent, opts...)
	if err != nil {
		return nil, err
	}
	if out, err := exec.Command("cp", "-a", layer+"/.", mounts[0].Source).CombinedOutput(); err != nil {
		return nil, errdefs.ErrInternal.WithMessage(string(out))
	}
	if err := p.Snapshotter.Commit(ctx, target, key, snapshots.WithLabels(info.Labels)); err != nil && !errdefs.IsAlreadyExists(err) {
		return nil, err
	}
	return nil, errdefs.ErrAlreadyExists.WithMessage("target " + target)
}

// note writes down which labels came, for the tests to look at.
func (p *present) note(labels map[string]string) {
	for key, value := range labels {
		log.Printf("label %s=%s", key, value)
	}
}
