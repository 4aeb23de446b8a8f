// Command stargz serves the stargz snapshotter, which mounts layers of images in the eSTARGZ form before they are there, on a
// socket, as a proxy plug-in of a daemon. It writes down what it is asked.
package main

import (
	"context"
	"flag"
	"log"
	"net"
	"os"
	"os/signal"
	"syscall"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/stargz-snapshotter/service"
	"github.com/pelletier/go-toml/v2"
	"google.golang.org/grpc"
)

func main() {
	socket := flag.String("socket", "", "unix socket to serve on")
	root := flag.String("root", "", "directory for snapshots and caches")
	config := flag.String("config", "", "configuration of the snapshotter")
	flag.Parse()
	if err := serve(*socket, *root, *config); err != nil {
		log.Fatal(err)
	}
}

func serve(socket, root, file string) error {
	var config service.Config
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if err := toml.Unmarshal(text, &config); err != nil {
		return err
	}
	snapshotter, err := service.NewStargzSnapshotterService(context.Background(), root, &config)
	if err != nil {
		return err
	}
	server := grpc.NewServer(grpc.UnaryInterceptor(note))
	snapshotsapi.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(snapshotter))
	_ = os.Remove(socket)
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	told := make(chan os.Signal, 1)
	signal.Notify(told, syscall.SIGTERM)
	go func() {
		<-told
		server.Stop()
	}()
	if err := server.Serve(listener); err != nil {
		return err
	}
	// Takes its mounts away.
	return snapshotter.Close()
}

// note writes down each call that changes something, with its labels and how it ended.
func note(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	answer, err := handler(ctx, request)
	log.Print("call ", info.FullMethod, " ", err)
	if prepare, ok := request.(*snapshotsapi.PrepareSnapshotRequest); ok {
		for key, value := range prepare.Labels {
			log.Printf("label %s=%s", key, value)
		}
	}
	return answer, err
}
