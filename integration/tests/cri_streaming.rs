//! Exec, attach and port-forward into real containers, by the libraries that kubectl uses.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use gantry_integration::Lab;
use gantry_integration::lab::peer_binary;
use gantry_integration::registry::DockerRegistry;
use serde_json::{Value, json};

use crate::cri_node::Node;

const TRANSPORTS: [&str; 2] = ["spdy", "websocket"];

struct Ended {
    code: Option<i32>,
    stdout: Vec<u8>,
    stderr: String,
}

/// Runs the client with this input.
fn client(args: &[&str], input: &[u8]) -> Ended {
    let mut command = Command::new(peer_binary("streams"));
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("start the client: run integration/tools/install");
    let mut stdin = child.stdin.take().expect("a pipe");
    let output = std::thread::scope(|scope| {
        // A command need not read its input.
        scope.spawn(move || stdin.write_all(input));
        child.wait_with_output().expect("the client ends")
    });
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    Ended { code: output.status.code(), stdout: output.stdout, stderr }
}

fn url(node: &Node, method: &str, request: &Value) -> String {
    node.ask(method, request)["url"].as_str().expect("a URL").to_owned()
}

fn exec(node: &Node, container: &str, tty: bool, command: &[&str]) -> String {
    let request =
        json!({"container_id": container, "cmd": command, "tty": tty, "stdin": true, "stdout": true, "stderr": !tty});
    url(node, "Exec", &request)
}

#[test]
fn commands_in_containers_have_their_streams_their_terminal_and_their_exit_code() {
    let lab = Lab::new();
    let registry = DockerRegistry::start(&lab);
    let node = Node::start(&lab);
    let image = node.busybox(&registry);
    let pod = node.run_pod("one", &json!({}));
    let spec = json!({"image": {"image": image}, "command": ["/bin/sleep", "1000"]});
    let container = node.run_container(&pod, "sleeper", &spec);
    let bytes: Vec<u8> = (0..8u32 << 20).map(|i| (i ^ (i >> 8) ^ (i >> 16)) as u8).collect();
    for transport in TRANSPORTS {
        let args = |url: &str| ["exec", "-stdin", "-stderr", transport, url].map(str::to_owned);
        let run = |command: &[&str], input: &[u8]| {
            let args = args(&exec(&node, &container, false, command));
            client(&args.each_ref().map(String::as_str), input)
        };
        let ended = run(&["/bin/sh", "-c", "echo out; echo err >&2; exit 7"], b"");
        assert_eq!((ended.code, ended.stdout.as_slice()), (Some(7), &b"out\n"[..]), "{transport}: {}", ended.stderr);
        assert!(ended.stderr.starts_with("err\n"), "{transport}: {}", ended.stderr);
        let ended = run(&["/bin/cat"], &bytes);
        assert_eq!(ended.code, Some(0), "{transport}: {}", ended.stderr);
        assert!(ended.stdout == bytes, "{transport}: {} bytes came back", ended.stdout.len());
        let ended = run(&["/no/such/program"], b"");
        assert_eq!(ended.code, Some(125), "{transport}: {}", ended.stderr);
        let target = exec(&node, &container, true, &["/bin/sh", "-c", "sleep 1; stty size; tty"]);
        let ended = client(&["exec", "-stdin", "-tty", "-sizes", "132x43", transport, &target], b"");
        let said = String::from_utf8_lossy(&ended.stdout);
        assert!(said.contains("43 132") && said.contains("/dev/pts/"), "{transport}: {said:?} {}", ended.stderr);
    }
    node.remove_pod(&pod);
    node.finish();
}

#[test]
fn attaching_joins_the_main_process() {
    let lab = Lab::new();
    let registry = DockerRegistry::start(&lab);
    let node = Node::start(&lab);
    let image = node.busybox(&registry);
    let pod = node.run_pod("one", &json!({}));
    for transport in TRANSPORTS {
        let spec = json!({"image": {"image": image}, "command": ["/bin/cat"], "stdin": true, "stdin_once": true});
        let container = node.run_container(&pod, &format!("cat-{transport}"), &spec);
        let request = json!({"container_id": container, "stdin": true, "stdout": true, "stderr": true});
        let target = url(&node, "Attach", &request);
        let ended = client(&["exec", "-stdin", "-stderr", transport, &target], b"hello\n");
        assert_eq!((ended.code, ended.stdout.as_slice()), (Some(0), &b"hello\n"[..]), "{transport}: {}", ended.stderr);
    }
    node.remove_pod(&pod);
    node.finish();
}

#[test]
fn ports_of_pods_are_forwarded_into_their_network() {
    let lab = Lab::new();
    let node = Node::start(&lab);
    let pod = node.run_pod("one", &json!({}));
    let listener = node.within(&pod, || TcpListener::bind("127.0.0.1:0").expect("listen in the pod"));
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (mut from, mut to) = (stream.try_clone().expect("a descriptor"), stream);
            let _ = std::io::copy(&mut from, &mut to);
        }
    });
    for transport in TRANSPORTS {
        let target = url(&node, "PortForward", &json!({"pod_sandbox_id": pod, "port": [port]}));
        let mut command = Command::new(peer_binary("streams"));
        command
            .args(["forward", transport, &target, &format!("0:{port}")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut forward = command.spawn().expect("start the client");
        let mut line = String::new();
        BufReader::new(forward.stdout.take().expect("a pipe")).read_line(&mut line).expect("the local port");
        let mut stream = TcpStream::connect(("127.0.0.1", line.trim().parse().expect("a port"))).expect("connect");
        stream.write_all(b"through").expect("send");
        stream.shutdown(std::net::Shutdown::Write).expect("close our side");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("set a deadline");
        let mut back = String::new();
        stream.read_to_string(&mut back).expect("receive");
        assert_eq!(back, "through", "{transport}");
        drop(forward.stdin.take());
        forward.wait().expect("the client ends");
    }
    node.remove_pod(&pod);
    node.finish();
}
