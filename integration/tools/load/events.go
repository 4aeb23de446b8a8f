package main

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	events "github.com/containerd/containerd/api/services/events/v1"
	"github.com/containerd/containerd/api/types"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/anypb"
)

const (
	eventsService = "/containerd.services.events.v1.Events/"

	// subscribers of a fan-out
	subscribers = 100

	// patience of a subscriber for the next event
	patience = 10 * time.Second
)

// fanOut publishes events to a hundred subscribers and insists that each gets each. Operations are deliveries.
func fanOut(ctx context.Context, l *load) (result, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if l.count == 0 {
		l.count = 2000
	}
	var (
		expected = l.count * l.workers
		group    sync.WaitGroup
		ready    sync.WaitGroup
		got      [subscribers]atomic.Int64
		failures = make(chan error, subscribers)
		topic    = "/load/" + l.prefix
	)
	ready.Add(subscribers)
	for n := range subscribers {
		stream, err := subscribe(ctx, l.connections[n%len(l.connections)], topic)
		if err != nil {
			return result{}, err
		}
		group.Go(func() {
			var warm sync.Once
			for {
				var envelope types.Envelope
				if err := stream.RecvMsg(&envelope); err != nil {
					failures <- fmt.Errorf("subscriber %d after %d of %d events: %w", n, got[n].Load(), expected, err)
					return
				}
				// What is published before all are there does not count.
				if envelope.Topic == topic+"/ready" {
					warm.Do(ready.Done)
				} else if got[n].Add(1) == int64(expected) {
					return
				}
			}
		})
	}
	if err := warmUp(ctx, l, topic, &ready); err != nil {
		return result{}, err
	}
	request := &events.PublishRequest{Topic: topic + "/event", Event: event()}
	r, err := l.measured(func() (result, error) {
		r, err := l.repeated(func(worker, _ int) (int64, error) {
			return 0, l.connections[worker%len(l.connections)].Invoke(ctx, eventsService+"Publish", request, &sink{})
		})
		if err != nil {
			return r, err
		}
		return r, settled(&group, failures, &got)
	})
	r.Operations = int64(expected * subscribers)
	return r, err
}

func event() *anypb.Any {
	event, err := anypb.New(&apievents.TaskExit{ContainerID: "container", ID: "container", Pid: 4711, ExitStatus: 1})
	if err != nil {
		panic(err)
	}
	return event
}

func subscribe(ctx context.Context, c *grpc.ClientConn, topic string) (grpc.ClientStream, error) {
	stream, err := c.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, eventsService+"Subscribe")
	if err != nil {
		return nil, err
	}
	filter := fmt.Sprintf("topic~=^%s/", topic)
	if err := stream.SendMsg(&events.SubscribeRequest{Filters: []string{filter}}); err != nil {
		return nil, err
	}
	return stream, stream.CloseSend()
}

// warmUp publishes until every subscriber has heard something.
func warmUp(ctx context.Context, l *load, topic string, ready *sync.WaitGroup) error {
	all := make(chan struct{})
	go func() { ready.Wait(); close(all) }()
	request := &events.PublishRequest{Topic: topic + "/ready", Event: event()}
	for range 200 {
		if err := l.connections[0].Invoke(ctx, eventsService+"Publish", request, &sink{}); err != nil {
			return err
		}
		select {
		case <-all:
			return nil
		case <-time.After(50 * time.Millisecond):
		}
	}
	return fmt.Errorf("not all subscribers hear anything")
}

// settled waits until all have got everything, as long as anything still comes.
func settled(group *sync.WaitGroup, failures <-chan error, got *[subscribers]atomic.Int64) error {
	all := make(chan struct{})
	go func() { group.Wait(); close(all) }()
	sum := func() (sum int64) {
		for n := range got {
			sum += got[n].Load()
		}
		return sum
	}
	for last := int64(-1); ; {
		select {
		case <-all:
			select {
			case err := <-failures:
				return err
			default:
				return nil
			}
		case err := <-failures:
			return err
		case <-time.After(patience):
		}
		if now := sum(); now == last {
			return fmt.Errorf("events were lost: %d came in all", now)
		} else {
			last = now
		}
	}
}
