package main

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"slices"

	content "github.com/containerd/containerd/api/services/content/v1"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
)

const (
	contentService = "/containerd.services.content.v1.Content/"

	// piece is what containerd's client sends in one message when it copies.
	piece = 1 << 20
)

// random is the blob of a seed.
func random(seed uint64, size int) []byte {
	source := rand.NewChaCha8(sha256.Sum256(binary.BigEndian.AppendUint64(nil, seed)))
	bytes := make([]byte, size)
	source.Read(bytes)
	return bytes
}

// put writes a blob as containerd's client does, each message answered before the next; one that is there is well.
func put(ctx context.Context, c *grpc.ClientConn, reference string, blob []byte, expected digest.Digest) (made string, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, contentService+"Write")
	if err != nil {
		return "", err
	}
	say := func(request *content.WriteContentRequest) (*content.WriteContentResponse, error) {
		var answer content.WriteContentResponse
		if err := stream.SendMsg(request); err != nil {
			return nil, stream.RecvMsg(&answer)
		}
		return &answer, stream.RecvMsg(&answer)
	}
	total := int64(len(blob))
	open := &content.WriteContentRequest{
		Action: content.WriteAction_STAT, Ref: reference, Total: total, Expected: expected.String(),
	}
	if _, err := say(open); status.Code(err) == codes.AlreadyExists {
		return expected.String(), nil
	} else if err != nil {
		return "", err
	}
	for offset := 0; offset < len(blob); offset += piece {
		data := blob[offset:min(offset+piece, len(blob))]
		answer, err := say(&content.WriteContentRequest{Action: content.WriteAction_WRITE, Offset: int64(offset), Data: data})
		if err != nil {
			return "", err
		}
		if answer.Offset != int64(offset+len(data)) {
			return "", fmt.Errorf("wrote %d bytes at %d, and the daemon says %d", len(data), offset, answer.Offset)
		}
	}
	commit := &content.WriteContentRequest{
		Action: content.WriteAction_COMMIT, Total: total, Offset: total, Expected: expected.String(),
	}
	if expected != "" {
		// One that is asked for by its name is wanted again; no collection takes it.
		commit.Labels = map[string]string{"containerd.io/gc.root": "load"}
	}
	answer, err := say(commit)
	if err == nil && expected != "" && answer.Digest != expected.String() {
		err = fmt.Errorf("the daemon calls %s what is %s", answer.Digest, expected)
	}
	return answer.GetDigest(), err
}

// blob makes sure that the daemon has the blob of a seed.
func (l *load) blob(ctx context.Context, seed uint64, size int) (digest.Digest, error) {
	bytes := random(seed, size)
	name := digest.FromBytes(bytes)
	_, err := put(ctx, l.connections[0], fmt.Sprintf("blob-%d-%d", seed, size), bytes, name)
	return name, err
}

// warm has a blob that was read once before: where its bytes are then is the kernel's choice, not that of who wrote them.
func (l *load) warm(ctx context.Context) (digest.Digest, error) {
	name, err := l.blob(ctx, 0, l.size<<20)
	if err == nil {
		_, _, err = receive(ctx, l.connections[0], contentService+"Read", &content.ReadContentRequest{Digest: name.String()})
	}
	// The copy that was sent, and what making it left behind, are not collected while the clock runs.
	debug.FreeOSMemory()
	return name, err
}

// read gets the blob whole, again and again.
func read(ctx context.Context, l *load) (result, error) {
	name, err := l.warm(ctx)
	if err != nil {
		return result{}, err
	}
	return l.calls(func(c *grpc.ClientConn, _, _ int) (int64, error) {
		_, bytes, err := receive(ctx, c, contentService+"Read", &content.ReadContentRequest{Digest: name.String()})
		if err == nil && bytes < int64(l.size)<<20 {
			err = fmt.Errorf("%d bytes instead of %d MiB", bytes, l.size)
		}
		return bytes, err
	})
}

// write enters blobs that are new each time, and takes them away afterwards.
func write(ctx context.Context, l *load) (result, error) {
	return l.writes(ctx, func(blobs [][]byte, made [][]string) (result, error) {
		return l.calls(func(c *grpc.ClientConn, worker, call int) (int64, error) {
			binary.BigEndian.PutUint64(blobs[worker], rand.Uint64())
			name, err := put(ctx, c, l.fresh(worker, call), blobs[worker], "")
			made[worker] = append(made[worker], name)
			return int64(len(blobs[worker])), err
		})
	})
}

// writes has work enter blobs, of each worker one, which is another each time, and takes away what it has made.
func (l *load) writes(ctx context.Context, work func(blobs [][]byte, made [][]string) (result, error)) (result, error) {
	blobs, made := make([][]byte, l.workers), make([][]string, l.workers)
	for worker := range blobs {
		blobs[worker] = random(rand.Uint64(), l.size<<20)
	}
	r, err := work(blobs, made)
	if err != nil {
		return r, err
	}
	for _, name := range slices.Concat(made...) {
		err := l.connections[0].Invoke(ctx, contentService+"Delete", &content.DeleteContentRequest{Digest: name}, &sink{})
		// A collection may have been there before.
		if err != nil && status.Code(err) != codes.NotFound {
			return r, err
		}
	}
	return r, nil
}

// labelContent changes a label of a blob, each worker of its own.
func labelContent(ctx context.Context, l *load) (result, error) {
	names := make([]string, l.workers)
	for worker := range names {
		name, err := l.blob(ctx, uint64(worker)+1, 1<<10)
		if err != nil {
			return result{}, err
		}
		names[worker] = name.String()
	}
	mask := &fieldmaskpb.FieldMask{Paths: []string{"labels.touched"}}
	return unary(ctx, l, contentService+"Update", func(worker, call int) any {
		info := &content.Info{Digest: names[worker], Labels: map[string]string{"touched": fmt.Sprint(call)}}
		return &content.UpdateRequest{Info: info, UpdateMask: mask}
	})
}
