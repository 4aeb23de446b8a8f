package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"strconv"

	containers "github.com/containerd/containerd/api/services/containers/v1"
	content "github.com/containerd/containerd/api/services/content/v1"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// wire is a connection whose client does next to nothing, so that what is measured is the daemon: it grants windows
// that never fill, takes frames as large as the daemon makes them, counts messages, and drops them unread. One call at a
// time.
type wire struct {
	conn      net.Conn
	framer    *http2.Framer
	namespace string
	fields    bytes.Buffer
	encoder   *hpack.Encoder
	stream    uint32
	// What the daemon takes: bytes of a frame, of a stream at its start, and now of this stream and the connection.
	frame           int
	initial         int64
	onStream, onAll int64
	// Bytes that came since the connection's window was last opened again, and those of this stream since its was.
	taken, here int64
	// Of the message that is coming: how much of its prefix is there, and how many bytes are to come.
	prefix []byte
	left   int64
	// messages and bytes of the current answer.
	messages, bytes int64
	over            bool
	message         []byte
	keep            bool
}

const (
	preface = http2.ClientPreface

	// grant is the largest window of HTTP/2; it is opened again when half of it is used.
	grant = math.MaxInt32
)

func dialWire(address, namespace string) (*wire, error) {
	conn, err := net.Dial("unix", address)
	if err != nil {
		return nil, err
	}
	w := &wire{conn: conn, namespace: namespace, frame: 16 << 10, initial: 65535, onAll: 65535}
	// Heads of frames come through the buffer; what is larger than it goes where the framer wants it.
	w.framer = http2.NewFramer(conn, bufio.NewReaderSize(conn, 4<<10))
	w.framer.SetReuseFrames()
	w.framer.SetMaxReadFrameSize(1 << 20)
	w.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	w.encoder = hpack.NewEncoder(&w.fields)
	if _, err := conn.Write([]byte(preface)); err != nil {
		return nil, err
	}
	err = w.framer.WriteSettings(
		http2.Setting{ID: http2.SettingInitialWindowSize, Val: grant},
		http2.Setting{ID: http2.SettingMaxFrameSize, Val: 1 << 20})
	if err != nil {
		return nil, err
	}
	return w, w.framer.WriteWindowUpdate(0, grant-65535)
}

// call begins a call.
func (w *wire) call(method string) error {
	if w.stream == 0 {
		w.stream = 1
	} else {
		w.stream += 2
	}
	w.fields.Reset()
	for _, field := range [][2]string{
		{":method", "POST"}, {":scheme", "http"}, {":path", method}, {":authority", "localhost"},
		{"content-type", "application/grpc"}, {"te", "trailers"}, {"containerd-namespace", w.namespace},
	} {
		if err := w.encoder.WriteField(hpack.HeaderField{Name: field[0], Value: field[1]}); err != nil {
			return err
		}
	}
	w.messages, w.bytes, w.over, w.left, w.prefix, w.onStream, w.here = 0, 0, false, 0, w.prefix[:0], w.initial, 0
	return w.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: w.stream, BlockFragment: w.fields.Bytes(), EndHeaders: true})
}

// say sends a message: its fields, and data that follows them. end: there will be no other.
func (w *wire) say(fields, data []byte, end bool) error {
	head := binary.BigEndian.AppendUint32([]byte{0}, uint32(len(fields)+len(data)))
	if err := w.send(append(head, fields...), end && len(data) == 0); err != nil || len(data) == 0 {
		return err
	}
	return w.send(data, end)
}

func (w *wire) send(data []byte, end bool) error {
	for len(data) > 0 {
		room := min(w.onStream, w.onAll, int64(w.frame), int64(len(data)))
		if room <= 0 {
			if err := w.take(); err != nil {
				return err
			}
			continue
		}
		piece := data[:room]
		data = data[room:]
		w.onStream -= room
		w.onAll -= room
		if err := w.frameData(piece, end && len(data) == 0); err != nil {
			return err
		}
	}
	return nil
}

// frameData sends a DATA frame without copying it, as the framer would (RFC 9113, sections 4.1 and 6.1).
func (w *wire) frameData(data []byte, end bool) error {
	head := binary.BigEndian.AppendUint32(nil, uint32(len(data))<<8|uint32(http2.FrameData))
	var flags http2.Flags
	if end {
		flags = http2.FlagDataEndStream
	}
	head = binary.BigEndian.AppendUint32(append(head, byte(flags)), w.stream)
	frame := net.Buffers{head, data}
	_, err := frame.WriteTo(w.conn)
	return err
}

// drain reads the answer to its end.
func (w *wire) drain() (messages, bytes int64, err error) {
	for !w.over {
		if err := w.take(); err != nil {
			return w.messages, w.bytes, err
		}
	}
	return w.messages, w.bytes, nil
}

// answer reads one message into m.
func (w *wire) answer(m proto.Message) error {
	seen := w.messages
	w.keep, w.message = true, w.message[:0]
	defer func() { w.keep = false }()
	for w.messages == seen || w.left > 0 {
		if w.over {
			return errors.New("the answer ended early")
		}
		if err := w.take(); err != nil {
			return err
		}
	}
	return proto.Unmarshal(w.message, m)
}

// take reads a frame and does what it asks.
func (w *wire) take() error {
	frame, err := w.framer.ReadFrame()
	if err != nil {
		return err
	}
	switch f := frame.(type) {
	case *http2.DataFrame:
		w.count(f.Data())
		w.over = w.over || f.StreamEnded()
		return w.open(int64(f.Length))
	case *http2.MetaHeadersFrame:
		w.over = w.over || f.StreamEnded()
		for _, field := range f.Fields {
			if field.Name == "grpc-status" && field.Value != "0" {
				code, _ := strconv.Atoi(field.Value)
				return fmt.Errorf("status %d: %v", code, f.Fields)
			}
		}
	case *http2.SettingsFrame:
		if f.IsAck() {
			return nil
		}
		if size, ok := f.Value(http2.SettingMaxFrameSize); ok {
			w.frame = int(size)
		}
		if window, ok := f.Value(http2.SettingInitialWindowSize); ok {
			w.onStream += int64(window) - w.initial
			w.initial = int64(window)
		}
		return w.framer.WriteSettingsAck()
	case *http2.PingFrame:
		if !f.IsAck() {
			return w.framer.WritePing(true, f.Data)
		}
	case *http2.WindowUpdateFrame:
		switch f.StreamID {
		case 0:
			w.onAll += int64(f.Increment)
		case w.stream:
			w.onStream += int64(f.Increment)
		}
	case *http2.RSTStreamFrame:
		// Of the call before, whose answer was over while this side could still have spoken.
		if f.StreamID != w.stream || w.over {
			return nil
		}
		return fmt.Errorf("the daemon reset the call: %v", f.ErrCode)
	case *http2.GoAwayFrame:
		return fmt.Errorf("the daemon goes away: %v", f.ErrCode)
	}
	return nil
}

// open opens the windows again.
func (w *wire) open(came int64) error {
	w.taken += came
	w.here += came
	if w.here >= grant/2 && !w.over {
		if err := w.framer.WriteWindowUpdate(w.stream, uint32(w.here)); err != nil {
			return err
		}
		w.here = 0
	}
	if w.taken < grant/2 {
		return nil
	}
	came, w.taken = w.taken, 0
	return w.framer.WriteWindowUpdate(0, uint32(came))
}

// count follows where messages begin and end.
func (w *wire) count(data []byte) {
	for len(data) > 0 {
		if w.left == 0 {
			n := min(5-len(w.prefix), len(data))
			w.prefix = append(w.prefix, data[:n]...)
			data = data[n:]
			if len(w.prefix) == 5 {
				w.left = int64(binary.BigEndian.Uint32(w.prefix[1:]))
				w.bytes += w.left
				w.messages++
				w.prefix = w.prefix[:0]
			}
			continue
		}
		n := min(w.left, int64(len(data)))
		if w.keep {
			w.message = append(w.message, data[:n]...)
		}
		w.left -= n
		data = data[n:]
	}
}

// onWires has each worker call step with a connection of its own.
func (l *load) onWires(step func(w *wire, worker, call int) (int64, error)) (result, error) {
	wires := make([]*wire, l.workers)
	for worker := range wires {
		w, err := dialWire(l.address, l.namespace)
		if err != nil {
			return result{}, err
		}
		defer w.conn.Close()
		wires[worker] = w
	}
	return l.repeat(func(worker, call int) (int64, error) { return step(wires[worker], worker, call) })
}

// drained calls a method that streams its answer.
func (w *wire) drained(method string, request proto.Message) (messages, bytes int64, err error) {
	fields, err := proto.Marshal(request)
	if err != nil {
		return 0, 0, err
	}
	if err := w.call(method); err != nil {
		return 0, 0, err
	}
	if err := w.say(fields, nil, true); err != nil {
		return 0, 0, err
	}
	return w.drain()
}

func listStreamOnWire(_ context.Context, l *load) (result, error) {
	return l.countedOnWires(containersService+"ListStream", &containers.ListContainersRequest{Filters: l.filters()})
}

func listOnWire(_ context.Context, l *load) (result, error) {
	return l.countedOnWires(containersService+"List", &containers.ListContainersRequest{Filters: l.filters()})
}

// countedOnWires counts messages as operations.
func (l *load) countedOnWires(method string, request proto.Message) (result, error) {
	counts := make([]int64, l.workers)
	r, err := l.onWires(func(w *wire, worker, _ int) (int64, error) {
		messages, bytes, err := w.drained(method, request)
		counts[worker] += messages
		return bytes, err
	})
	r.Operations = 0
	for _, count := range counts {
		r.Operations += count
	}
	return r, err
}

func readOnWire(ctx context.Context, l *load) (result, error) {
	name, err := l.warm(ctx)
	if err != nil {
		return result{}, err
	}
	return l.onWires(func(w *wire, _, _ int) (int64, error) {
		_, bytes, err := w.drained(contentService+"Read", &content.ReadContentRequest{Digest: name.String()})
		if err == nil && bytes < int64(l.size)<<20 {
			err = fmt.Errorf("%d bytes instead of %d MiB", bytes, l.size)
		}
		return bytes, err
	})
}

// writeOnWire enters blobs as write does.
func writeOnWire(ctx context.Context, l *load) (result, error) {
	return l.writes(ctx, func(blobs [][]byte, made [][]string) (result, error) {
		return l.onWires(func(w *wire, worker, call int) (int64, error) {
			binary.BigEndian.PutUint64(blobs[worker], rand.Uint64())
			name, err := w.put(l.fresh(worker, call), blobs[worker])
			made[worker] = append(made[worker], name)
			return int64(len(blobs[worker])), err
		})
	})
}

// put writes a blob, each message answered before the next.
func (w *wire) put(reference string, blob []byte) (string, error) {
	if err := w.call(contentService + "Write"); err != nil {
		return "", err
	}
	var answer content.WriteContentResponse
	say := func(request *content.WriteContentRequest, data []byte) error {
		fields, err := proto.Marshal(request)
		if err != nil {
			return err
		}
		if len(data) > 0 {
			fields = protowire.AppendTag(fields, 6, protowire.BytesType)
			fields = protowire.AppendVarint(fields, uint64(len(data)))
		}
		if err := w.say(fields, data, false); err != nil {
			return err
		}
		return w.answer(&answer)
	}
	total := int64(len(blob))
	if err := say(&content.WriteContentRequest{Action: content.WriteAction_STAT, Ref: reference, Total: total}, nil); err != nil {
		return "", err
	}
	for offset := 0; offset < len(blob); offset += piece {
		data := blob[offset:min(offset+piece, len(blob))]
		request := &content.WriteContentRequest{Action: content.WriteAction_WRITE, Offset: int64(offset)}
		if err := say(request, data); err != nil {
			return "", err
		}
	}
	if err := say(&content.WriteContentRequest{Action: content.WriteAction_COMMIT, Total: total, Offset: total}, nil); err != nil {
		return "", err
	}
	if _, _, err := w.drain(); err != nil {
		return "", err
	}
	return answer.Digest, nil
}
