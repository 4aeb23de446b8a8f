//! Exec and attach.

use std::fs;
use std::io::Write;
use std::process::Stdio;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use gantry_cri::streaming::{Attach, Config, Exec, PortForward, Tls};
use gantry_types::{ErrorKind, HasKind};

use crate::lab::{Lab, TRANSPORTS, client, pattern, run, run_silent, words};

/// Bytes sent each way; `STREAM_BYTES` asks for more.
pub fn amount() -> u64 {
    std::env::var("STREAM_BYTES").ok().and_then(|text| text.parse().ok()).unwrap_or(64 << 20)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_version_brings_output_errors_and_exit_codes() {
    let lab = Lab::new(Config::default()).await;
    let all: [(&str, &str); 5] = [
        ("spdy", ""),
        ("websocket", ""),
        ("websocket", "v4.channel.k8s.io"),
        ("websocket", "v5.channel.k8s.io,v4.channel.k8s.io"),
        ("websocket", "v3.channel.k8s.io,v2.channel.k8s.io,channel.k8s.io"),
    ];
    for (transport, protocols) in all {
        let url = lab.url(false, &["both"]);
        let ended =
            run(words(&["exec", "-stdin", "-stderr", "-protocols", protocols, transport, &url]), None, None).await;
        let (out, err) = (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
        assert_eq!(out, "out", "{transport} {protocols}: {err}");
        assert!(err.starts_with("err"), "{transport} {protocols}: {err}");
        // Before version 4 there is a sentence instead of a code.
        let code = if protocols.starts_with("v3") { 125 } else { 3 };
        assert_eq!(ended.status.code(), Some(code), "{transport} {protocols}: {err}");
    }
    for transport in TRANSPORTS {
        for (command, code) in [(["exit", "0"], 0), (["exit", "137"], 137), (["nothing", ""], 125)] {
            let url = lab.url(false, &command);
            let ended = run(words(&["exec", "-stdin", "-stderr", transport, &url]), None, None).await;
            assert_eq!(ended.status.code(), Some(code), "{transport} {command:?}: {ended:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_comes_back_byte_for_byte_and_the_end_of_input_is_passed_on() {
    let lab = Lab::new(Config::default()).await;
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("input"), dir.path().join("output"));
    let mut file = fs::File::create(&input).unwrap();
    let total = amount();
    for at in (0..total).step_by(1 << 20) {
        file.write_all(&pattern(at, (total - at).min(1 << 20) as usize)).unwrap();
    }
    for transport in TRANSPORTS {
        let started = Instant::now();
        let url = lab.url(false, &["cat"]);
        let args = words(&["exec", "-stdin", "-stderr", transport, &url]);
        let ended = run(args, Some(input.clone()), Some(output.clone())).await;
        assert!(ended.status.success(), "{transport}: {ended:?}");
        same(&input, &output);
        eprintln!("{transport}: {} MiB there and back in {:?}", total >> 20, started.elapsed());
        let url = lab.url(false, &["fill", &total.to_string()]);
        // The other forms have only one end of input: that of the connection.
        let ended = run(words(&["exec", "-stdin", "-stderr", transport, &url]), None, Some(output.clone())).await;
        assert!(ended.status.success(), "{transport}: {ended:?}");
        same(&input, &output);
    }
}

fn same(one: &std::path::Path, other: &std::path::Path) {
    let equal = std::process::Command::new("cmp").args([one, other]).output().unwrap();
    assert!(
        equal.status.success(),
        "{}{}",
        String::from_utf8_lossy(&equal.stdout),
        String::from_utf8_lossy(&equal.stderr)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn attach_joins_the_streams() {
    let lab = Lab::new(Config::default()).await;
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("input");
    fs::write(&input, "hello").unwrap();
    for transport in TRANSPORTS {
        let attach = Attach { container: "c".into(), tty: false, stdin: true, stdout: true, stderr: true };
        let url = lab.server.attach(attach).unwrap();
        let ended = run(words(&["exec", "-stdin", "-stderr", transport, &url]), Some(input.clone()), None).await;
        assert!(ended.status.success() && ended.stdout == b"hello", "{transport}: {ended:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminals_sizes_arrive_in_order() {
    let lab = Lab::new(Config::default()).await;
    for transport in TRANSPORTS {
        let url = lab.url(true, &["sizes", "3"]);
        let args = words(&["exec", "-stdin", "-tty", "-sizes", "80x24,132x43,1x1", transport, &url]);
        // Sizes wait behind input that nobody reads: neither transport has flow control between its streams.
        let ended = run_silent(args).await;
        assert_eq!(String::from_utf8_lossy(&ended.stdout), "80x24\n132x43\n1x1\n", "{transport}: {ended:?}");
        assert!(ended.status.success(), "{transport}: {ended:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_carries_all_of_it() {
    let lab = Lab::new(Config { tls: Some(Tls::SelfSigned), ..Config::default() }).await;
    for transport in TRANSPORTS {
        let url = lab.url(false, &["fill", "3000000"]);
        assert!(url.starts_with("https://127.0.0.1:"), "{url}");
        let ended = run(words(&["exec", "-stdin", "-stderr", transport, &url]), None, None).await;
        assert!(ended.status.success() && ended.stdout == pattern(0, 3_000_000), "{transport}: {:?}", ended.status);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_learns_that_its_client_has_gone() {
    let lab = Lab::new(Config::default()).await;
    for transport in TRANSPORTS {
        let before = lab.commands.left.load(Ordering::Relaxed);
        let url = lab.url(false, &["stay"]);
        let mut child =
            client().args(["exec", "-stdin", "-stderr", transport, &url]).stdin(Stdio::piped()).spawn().unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
        child.kill().unwrap();
        child.wait().unwrap();
        let until = Instant::now() + Duration::from_secs(10);
        while lab.commands.left.load(Ordering::Relaxed) == before {
            assert!(Instant::now() < until, "{transport}: the command never heard of it");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_connection_is_closed_and_its_client_fails() {
    let lab = Lab::new(Config { idle_timeout: Duration::from_millis(700), ..Config::default() }).await;
    for transport in TRANSPORTS {
        let url = lab.url(false, &["stay"]);
        let mut command = client();
        command.args(["exec", "-stdin", "-stderr", transport, &url]).stdin(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let input = child.stdin.take();
        let ended = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await.unwrap();
        drop(input);
        assert_eq!(ended.status.code(), Some(125), "{transport}: {ended:?}");
        assert!(String::from_utf8_lossy(&ended.stderr).contains("idle for too long"), "{transport}: {ended:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_make_no_sense_are_refused_with_the_field() {
    let lab = Lab::new(Config::default()).await;
    let good = Exec { container: "c".into(), command: vec!["x".into()], stdout: true, ..Exec::default() };
    for (bad, field) in [
        (Exec { container: String::new(), ..good.clone() }, "container_id"),
        (Exec { command: vec![], ..good.clone() }, "cmd"),
        (Exec { tty: true, stderr: true, ..good.clone() }, "tty and stderr"),
        (Exec { stdout: false, ..good.clone() }, "one of them"),
    ] {
        let error = lab.server.exec(bad).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.to_string().contains(field), "{error}");
    }
    assert!(lab.server.port_forward(PortForward::default()).is_err());
    assert!(lab.server.attach(Attach::default()).is_err());
}
