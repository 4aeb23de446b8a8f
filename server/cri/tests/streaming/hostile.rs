//! Clients that do what no client should.

use std::time::Duration;

use gantry_cri::streaming::Config;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::lab::{Lab, run, words};

/// How long the server may take to answer, and to hang up.
const ANSWER: Duration = Duration::from_secs(20);

fn split(url: &str) -> (String, String) {
    let rest = url.strip_prefix("http://").unwrap();
    let (host, path) = rest.split_once('/').unwrap();
    (host.to_owned(), format!("/{path}"))
}

/// Sends a request with these headers and reads the answer's head.
async fn ask(url: &str, headers: &str) -> (TcpStream, String) {
    let (host, path) = split(url);
    let mut stream = TcpStream::connect(&host).await.unwrap();
    let request = format!("POST {path} HTTP/1.1\r\nHost: {host}\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    let reading = async {
        while !head.ends_with(b"\r\n\r\n") {
            let Ok(byte) = stream.read_u8().await else { break };
            head.push(byte);
        }
    };
    tokio::time::timeout(ANSWER, reading).await.expect("the server answers a request");
    (stream, String::from_utf8_lossy(&head).into_owned())
}

const SPDY: &str = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n";
const WEBSOCKET: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_url_is_good_once_and_for_its_own_verb_and_not_for_long() {
    let lab = Lab::new(Config { token_lifetime: Duration::from_millis(300), ..Config::default() }).await;
    let url = lab.url(false, &["exit", "0"]);
    assert!(ask(&url, SPDY).await.1.starts_with("HTTP/1.1 101"));
    assert!(ask(&url, SPDY).await.1.starts_with("HTTP/1.1 404"));
    let url = lab.url(false, &["exit", "0"]);
    assert!(ask(&url.replace("/exec/", "/attach/"), SPDY).await.1.starts_with("HTTP/1.1 404"));
    let url = lab.url(false, &["exit", "0"]);
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert!(ask(&url, SPDY).await.1.starts_with("HTTP/1.1 404"));
    let guess = format!("{}/exec/AAAAAAAAAAAAAAAAAAAAAA", lab.server.base_url());
    assert!(ask(&guess, SPDY).await.1.starts_with("HTTP/1.1 404"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_that_is_not_offered_is_refused_with_what_is() {
    let lab = Lab::new(Config::default()).await;
    let (_, head) = ask(&lab.url(false, &["exit"]), "").await;
    assert!(head.starts_with("HTTP/1.1 400"), "{head}");
    let old = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v9.channel.k8s.io\r\n";
    let (_, head) = ask(&lab.url(false, &["exit"]), old).await;
    assert!(head.starts_with("HTTP/1.1 403") && head.contains("v4.channel.k8s.io"), "{head}");
    let (_, head) = ask(&lab.url(false, &["exit"]), WEBSOCKET).await;
    // The example of RFC 6455, section 1.3.
    assert!(head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{head}");
    assert!(head.contains("v5.channel.k8s.io"), "{head}");
}

/// Waits until the server hangs up, which it must.
async fn hung_up(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(ANSWER, stream.read_to_end(&mut rest)).await;
    assert!(ended.is_ok(), "the connection stays open");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_opens_no_streams_is_dropped() {
    let lab = Lab::new(Config { creation_timeout: Duration::from_millis(300), ..Config::default() }).await;
    let (mut stream, head) = ask(&lab.url(false, &["exit"]), SPDY).await;
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    hung_up(&mut stream).await;
}

/// Whatever a client sends, the server goes on, and serves the next one.
#[test]
fn rubbish_costs_a_client_its_connection_and_nobody_else_anything() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let lab = runtime.block_on(Lab::new(Config { creation_timeout: Duration::from_millis(200), ..Config::default() }));
    let frame = prop_oneof![
        // Control frames of every kind, with lengths that are right or wrong.
        (0..12u16, any::<u8>(), proptest::collection::vec(any::<u8>(), 0..40), -3i32..4).prop_map(
            |(kind, flags, body, off)| {
                let length = (body.len() as i32 + off).max(0) as u32;
                let mut bytes = vec![0x80, 3];
                bytes.extend(kind.to_be_bytes());
                bytes.extend((u32::from(flags) << 24 | length).to_be_bytes());
                bytes.extend(body);
                bytes
            }
        ),
        // Data of streams that are not there.
        (any::<u32>(), proptest::collection::vec(any::<u8>(), 0..40)).prop_map(|(id, body)| {
            let mut bytes = (id & 0x7fff_ffff).to_be_bytes().to_vec();
            bytes.extend((body.len() as u32).to_be_bytes());
            bytes.extend(body);
            bytes
        }),
        proptest::collection::vec(any::<u8>(), 0..60),
    ];
    let frames = (any::<bool>(), proptest::collection::vec(frame, 0..12));
    let mut runner =
        TestRunner::new(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() });
    let outcome = runner.run(&frames, |(spdy, frames)| {
        runtime.block_on(async {
            let (mut stream, head) = ask(&lab.url(false, &["exit", "0"]), if spdy { SPDY } else { WEBSOCKET }).await;
            assert!(head.starts_with("HTTP/1.1 101"), "{head}");
            for frame in frames {
                if stream.write_all(&frame).await.is_err() {
                    break;
                }
            }
            let _ = stream.shutdown().await;
            hung_up(&mut stream).await;
        });
        Ok(())
    });
    outcome.unwrap();
    let ended =
        runtime.block_on(run(words(&["exec", "-stdin", "-stderr", "spdy", &lab.url(false, &["both"])]), None, None));
    assert_eq!(ended.stdout, b"out");
}

/// Bytes that this process holds.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[tokio::test(flavor = "multi_thread")]
async fn input_that_nobody_reads_stays_with_the_client() {
    let lab = Lab::new(Config::default()).await;
    let before = resident();
    for transport in crate::lab::TRANSPORTS {
        let url = lab.url(false, &["deaf"]);
        let mut child = crate::lab::client()
            .args(["exec", "-stdin", "-stderr", transport, &url])
            .stdin(std::fs::File::open("/dev/zero").unwrap())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        tokio::time::sleep(Duration::from_secs(2)).await;
        let grown = resident().saturating_sub(before);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(grown < 64 << 20, "{transport}: {grown} bytes more are held");
    }
}
