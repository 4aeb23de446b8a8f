// Command streams runs commands and forwards ports by the URLs of a streaming server, with the client libraries that
// kubectl and the kubelet use.
//
//	streams exec [-protocols LIST] [-tty] [-stdin] [-stderr] [-sizes 80x24,…] spdy|websocket URL
//	streams forward spdy|websocket URL LOCAL:REMOTE…
//
// exec ends with the command's exit code, or 125 with the reason on standard error. forward prints each local port and
// goes on until its standard input ends.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/client-go/util/exec"
)

func main() {
	if len(os.Args) < 2 {
		fail(errors.New("want exec or forward"))
	}
	switch os.Args[1] {
	case "exec":
		run(os.Args[2:])
	case "forward":
		forward(os.Args[2:])
	default:
		fail(fmt.Errorf("unknown verb %q", os.Args[1]))
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(125)
}

func config(target *url.URL) *rest.Config {
	return &rest.Config{
		Host:            target.Scheme + "://" + target.Host,
		TLSClientConfig: rest.TLSClientConfig{Insecure: target.Scheme == "https"},
	}
}

// sizes gives a terminal's sizes one after the other, and then none until the command has ended.
type sizes struct {
	left []remotecommand.TerminalSize
	done <-chan struct{}
}

func (s *sizes) Next() *remotecommand.TerminalSize {
	if len(s.left) == 0 {
		<-s.done
		return nil
	}
	next := s.left[0]
	s.left = s.left[1:]
	return &next
}

func run(args []string) {
	flags := flag.NewFlagSet("exec", flag.ExitOnError)
	protocols := flags.String("protocols", "", "WebSocket protocols to offer")
	tty := flags.Bool("tty", false, "ask for a terminal")
	stdin := flags.Bool("stdin", false, "send standard input")
	stderr := flags.Bool("stderr", false, "take error output")
	geometry := flags.String("sizes", "", "sizes of the terminal")
	_ = flags.Parse(args)
	target, err := url.Parse(flags.Arg(1))
	if err != nil {
		fail(err)
	}
	executor, err := executor(flags.Arg(0), target, *protocols)
	if err != nil {
		fail(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	options := remotecommand.StreamOptions{Stdout: os.Stdout, Tty: *tty}
	if *stdin {
		options.Stdin = os.Stdin
	}
	if *stderr {
		options.Stderr = os.Stderr
	}
	if *geometry != "" {
		queue := &sizes{done: ctx.Done()}
		for _, text := range strings.Split(*geometry, ",") {
			var size remotecommand.TerminalSize
			if _, err := fmt.Sscanf(text, "%dx%d", &size.Width, &size.Height); err != nil {
				fail(err)
			}
			queue.left = append(queue.left, size)
		}
		options.TerminalSizeQueue = queue
	}
	err = executor.StreamWithContext(ctx, options)
	cancel()
	var code exec.CodeExitError
	switch {
	case errors.As(err, &code):
		os.Exit(code.Code)
	case err != nil:
		fail(err)
	}
}

func executor(transport string, target *url.URL, protocols string) (remotecommand.Executor, error) {
	if transport == "spdy" {
		return remotecommand.NewSPDYExecutor(config(target), http.MethodPost, target)
	}
	if protocols == "" {
		return remotecommand.NewWebSocketExecutor(config(target), http.MethodGet, target.String())
	}
	return remotecommand.NewWebSocketExecutorForProtocols(config(target), http.MethodGet, target.String(), strings.Split(protocols, ",")...)
}

func forward(args []string) {
	target, err := url.Parse(args[1])
	if err != nil {
		fail(err)
	}
	dialer, err := dialer(args[0], target)
	if err != nil {
		fail(err)
	}
	stop, ready := make(chan struct{}), make(chan struct{})
	forwarder, err := portforward.NewOnAddresses(dialer, []string{"127.0.0.1"}, args[2:], stop, ready, io.Discard, os.Stderr)
	if err != nil {
		fail(err)
	}
	go func() {
		<-ready
		ports, err := forwarder.GetPorts()
		if err != nil {
			fail(err)
		}
		for _, port := range ports {
			fmt.Println(port.Local)
		}
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(stop)
		time.AfterFunc(5*time.Second, func() { os.Exit(0) })
	}()
	if err := forwarder.ForwardPorts(); err != nil {
		fail(err)
	}
}

func dialer(transport string, target *url.URL) (httpstream.Dialer, error) {
	if transport == "websocket" {
		return portforward.NewSPDYOverWebsocketDialer(target, config(target))
	}
	roundTripper, upgrader, err := spdy.RoundTripperFor(config(target))
	if err != nil {
		return nil, err
	}
	return spdy.NewDialer(upgrader, &http.Client{Transport: roundTripper}, http.MethodPost, target), nil
}
