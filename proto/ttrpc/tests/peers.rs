//! Client, intake and epoll server against each other, and against peers that misbehave.
#![allow(clippy::unwrap_used, clippy::expect_used)]
#![cfg(all(feature = "client", feature = "server"))]

use std::collections::HashMap;
use std::os::unix::net::UnixListener as StdListener;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gantry_ttrpc::intake::{Call, Handler, Limits, serve};
use gantry_ttrpc::outgoing::Outgoing;
use gantry_ttrpc::server::{Connection, Flow, Listener};
use gantry_ttrpc::wire::KeyValue;
use gantry_ttrpc::{Address, Client, Status, frame};
use gantry_types::ErrorKind;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::time::{Instant, sleep, timeout};

const SOON: Duration = Duration::from_secs(5);

fn me() -> u32 {
    nix::unistd::geteuid().as_raw()
}

fn limits(calls: usize) -> Limits {
    Limits { connections: 4, calls_per_connection: calls, uid: me(), call_timeout: SOON }
}

/// Says the key back; `slow…` takes a while, `big` is too long, `fail` fails.
#[derive(Default)]
struct Echo {
    seen: Mutex<Vec<String>>,
}

impl Handler for Echo {
    async fn call(&self, call: Call) -> Result<Vec<u8>, Status> {
        if call.service != "gantry.test.Echo" {
            return Err(Status::unknown_service(&call.service));
        }
        let text = String::from_utf8_lossy(&call.payload).into_owned();
        if text.contains("slow") {
            sleep(Duration::from_millis(100)).await;
        }
        self.seen.lock().unwrap().push(text.clone());
        match call.method.as_str() {
            "Fail" => Err(Status::new(ErrorKind::AlreadyExists, "x".repeat(100_000))),
            "Big" => Ok(vec![0; frame::MAX_PAYLOAD + 1]),
            "Pid" => Ok(call.peer_pid.unwrap().to_string().into_bytes()),
            _ => Ok(call.payload),
        }
    }
}

async fn intake(path: &Path, calls: usize) -> Arc<Echo> {
    let echo = Arc::new(Echo::default());
    let listener = UnixListener::bind(path).unwrap();
    tokio::spawn(serve(listener, Arc::clone(&echo), limits(calls), std::future::pending()));
    echo
}

async fn connected(path: &Path) -> Client {
    Client::connect(&Address::Path(path.into()), Instant::now() + SOON).await.unwrap()
}

async fn say(client: &Client, method: &str, text: &str) -> Result<Vec<u8>, Status> {
    client.call_raw("gantry.test.Echo", method, text.as_bytes().to_vec(), &[("k", "v")], Some(SOON)).await
}

#[tokio::test]
async fn many_calls_share_one_connection_and_none_waits_for_a_slow_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    intake(&path, 64).await;
    let client = connected(&path).await;
    let slow = tokio::spawn({
        let client = client.clone();
        async move { say(&client, "Say", "slow").await }
    });
    let start = Instant::now();
    let calls = (0..40).map(|n| {
        let client = client.clone();
        tokio::spawn(async move { (n, say(&client, "Say", &n.to_string()).await.unwrap()) })
    });
    for call in calls.collect::<Vec<_>>() {
        let (n, answer) = call.await.unwrap();
        assert_eq!(answer, n.to_string().into_bytes());
    }
    assert!(start.elapsed() < Duration::from_millis(90), "fast calls waited for the slow one");
    assert_eq!(slow.await.unwrap().unwrap(), b"slow");
}

#[tokio::test]
async fn with_one_call_at_a_time_the_order_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let echo = intake(&path, 1).await;
    let address = Address::Path(path);
    let mut out = Outgoing::connect(&address).unwrap();
    let words = ["slow 1", "2", "slow 3", "4"];
    for word in words {
        out.call("gantry.test.Echo", "Say", word.into(), SOON, &[]).unwrap();
    }
    let mut answers = Vec::new();
    while answers.len() < words.len() {
        sleep(Duration::from_millis(5)).await;
        assert_eq!(out.on_readable(&mut answers).unwrap(), Flow::Open);
    }
    assert_eq!(*echo.seen.lock().unwrap(), words);
    assert_eq!(answers.iter().map(|(stream, _)| *stream).collect::<Vec<_>>(), [1, 3, 5, 7]);
}

#[tokio::test]
async fn failures_arrive_with_their_kind_and_bounded_text() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    intake(&path, 4).await;
    let client = connected(&path).await;
    let failed = say(&client, "Fail", "").await.unwrap_err();
    assert_eq!((failed.kind, failed.message.len()), (ErrorKind::AlreadyExists, 16 << 10));
    assert_eq!(say(&client, "Big", "").await.unwrap_err().kind, ErrorKind::ResourceExhausted);
    let unknown = client.call_raw("no.Such", "X", Vec::new(), &[], None).await.unwrap_err();
    assert_eq!((unknown.kind, unknown.message.as_str()), (ErrorKind::Unimplemented, "service no.Such"));
    let long = client.call_raw("gantry.test.Echo", "Say", vec![0; frame::MAX_PAYLOAD + 1], &[], None).await;
    assert_eq!(long.unwrap_err().kind, ErrorKind::ResourceExhausted);
    assert_eq!(say(&client, "Pid", "").await.unwrap(), std::process::id().to_string().into_bytes());
}

#[tokio::test]
async fn a_peer_that_dies_fails_the_calls_in_flight_and_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let client = connected(&path).await;
    let (peer, _) = listener.accept().await.unwrap();
    let call = tokio::spawn({
        let client = client.clone();
        async move { client.call_raw("s", "m", Vec::new(), &[], None).await }
    });
    sleep(Duration::from_millis(20)).await;
    drop(peer);
    assert_eq!(timeout(SOON, call).await.unwrap().unwrap().unwrap_err().kind, ErrorKind::Unavailable);
    timeout(SOON, client.closed()).await.unwrap();
    assert!(client.is_closed());
    assert_eq!(say(&client, "Say", "x").await.unwrap_err().kind, ErrorKind::Unavailable);
}

#[tokio::test]
async fn a_silent_peer_costs_the_deadline_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let _listener = UnixListener::bind(&path).unwrap();
    let client = connected(&path).await;
    let late = client.call_raw("s", "m", vec![0; 1 << 20], &[], Some(Duration::from_millis(50)));
    let start = Instant::now();
    assert_eq!(late.await.unwrap_err().kind, ErrorKind::DeadlineExceeded);
    assert!(start.elapsed() < Duration::from_secs(1));
    client.close();
    timeout(SOON, client.closed()).await.unwrap();
}

#[tokio::test]
async fn rubbish_from_a_server_harms_only_itself() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let client = connected(&path).await;
    let (mut peer, _) = listener.accept().await.unwrap();
    let call = tokio::spawn({
        let client = client.clone();
        async move { client.call_raw("s", "m", Vec::new(), &[], Some(SOON)).await }
    });
    let mut request = [0; 10];
    peer.read_exact(&mut request).await.unwrap();
    // An answer to nobody, then a response that is no message to the one who asked.
    let mut bytes = Vec::new();
    frame::encode(99, frame::Kind::Response, 0, b"", &mut bytes).unwrap();
    frame::encode(1, frame::Kind::Response, 0, &[0xff; 30], &mut bytes).unwrap();
    peer.write_all(&bytes).await.unwrap();
    assert_eq!(call.await.unwrap().unwrap_err().kind, ErrorKind::Internal);
    assert!(!client.is_closed());
}

#[tokio::test]
async fn nobody_there_is_told_at_once() {
    let address = Address::of_shim("unix:///nowhere/at/all");
    assert_eq!(Client::connect(&address, Instant::now() + SOON).await.unwrap_err().kind, ErrorKind::Unavailable);
    let address = Address::of_shim("gantry-test-nobody");
    assert_eq!(Client::connect(&address, Instant::now() + SOON).await.unwrap_err().kind, ErrorKind::Unavailable);
    assert!(Outgoing::connect(&address).is_err());
}

/// A loop as simple as can be around the pieces of the epoll server; answers every request with its payload.
fn polling_server(path: &Path, uid: u32) -> std::thread::JoinHandle<()> {
    let listener = Listener::new(StdListener::bind(path).unwrap().into(), uid).unwrap();
    std::thread::spawn(move || {
        let mut connections: HashMap<usize, Connection> = HashMap::new();
        let mut next = 0;
        let end = std::time::Instant::now() + Duration::from_secs(3);
        while std::time::Instant::now() < end {
            while let Some(connection) = listener.accept().unwrap() {
                connections.insert(next, connection);
                next += 1;
            }
            connections.retain(|_, connection| {
                let mut requests = Vec::new();
                let flow = connection.on_readable(&mut requests);
                for incoming in requests {
                    let metadata: Vec<KeyValue> = incoming.request.metadata;
                    let answer = if metadata.is_empty() { Err(Status::closed()) } else { Ok(incoming.request.payload) };
                    if connection.reply(incoming.stream, answer).is_err() {
                        return false;
                    }
                }
                connection.on_writable().is_ok() && matches!(flow, Ok(Flow::Open))
            });
            std::thread::sleep(Duration::from_millis(1));
        }
    })
}

#[tokio::test]
async fn the_epoll_server_answers_big_and_small_and_survives_rubbish() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    polling_server(&path, me());
    let client = connected(&path).await;
    let big = vec![7u8; 3 << 20];
    let answer = client.call_raw("s", "m", big.clone(), &[("k", "v")], Some(SOON)).await.unwrap();
    assert!(answer == big);
    assert_eq!(
        client.call_raw("s", "m", b"x".to_vec(), &[], Some(SOON)).await.unwrap_err().kind,
        ErrorKind::Unavailable
    );
    let mut rubbish = tokio::net::UnixStream::connect(&path).await.unwrap();
    rubbish.write_all(&[0x00, 0x00, 0x00, 0x02, 0, 0, 0, 1, 1, 0, 0xff, 0xff]).await.unwrap();
    let mut header = [0; 10];
    timeout(SOON, rubbish.read_exact(&mut header)).await.unwrap().unwrap();
    assert_eq!(header[8], 2, "an undecodable request is answered");
    assert_eq!(say(&client, "m", "still there").await.unwrap(), b"still there");
}

#[tokio::test]
async fn peers_of_another_user_are_turned_away() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    polling_server(&path, me().wrapping_add(1));
    let client = connected(&path).await;
    assert_eq!(say(&client, "m", "x").await.unwrap_err().kind, ErrorKind::Unavailable);
    let path = dir.path().join("t");
    let listener = UnixListener::bind(&path).unwrap();
    let strangers = Limits { uid: me().wrapping_add(1), ..limits(1) };
    tokio::spawn(serve(listener, Arc::new(Echo::default()), strangers, std::future::pending()));
    let client = connected(&path).await;
    assert_eq!(say(&client, "Say", "x").await.unwrap_err().kind, ErrorKind::Unavailable);
}
