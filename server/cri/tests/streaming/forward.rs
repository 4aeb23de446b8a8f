//! Port-forward.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Child, Stdio};
use std::time::Duration;

use gantry_cri::streaming::{Config, PortForward};

use crate::lab::{Lab, TRANSPORTS, client, pattern};

/// A client that forwards, and its local ports.
struct Forward {
    child: Child,
    ports: Vec<u16>,
}

impl Forward {
    fn start(lab: &Lab, transport: &str, ports: &[u16]) -> Forward {
        let url = lab.server.port_forward(PortForward { pod: "p".into(), ports: ports.to_vec() }).unwrap();
        let mut command = client();
        command.args(["forward", transport, &url]).args(ports.iter().map(|port| format!("0:{port}")));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let local = ports.iter().map(|_| lines.next().unwrap().unwrap().parse().unwrap()).collect();
        Forward { child, ports: local }
    }

    fn connect(&self, index: usize) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.ports[index])).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    }

    /// What the client has said when it was made to stop.
    fn stop(mut self) -> String {
        drop(self.child.stdin.take());
        let mut said = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        self.child.wait().unwrap();
        said
    }
}

/// Sends all that it gets back, and half-closes when its input ends.
fn echo_server(at: &str) -> u16 {
    let listener = TcpListener::bind(at).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let (mut from, mut to) = (stream.try_clone().unwrap(), stream);
                let _ = std::io::copy(&mut from, &mut to);
                let _ = to.shutdown(Shutdown::Write);
            });
        }
    });
    port
}

fn round_trip(mut stream: TcpStream, bytes: &[u8]) -> Vec<u8> {
    let mut sender = stream.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            sender.write_all(bytes).unwrap();
            sender.shutdown(Shutdown::Write).unwrap();
        });
        let mut back = Vec::new();
        stream.read_to_end(&mut back).unwrap();
        back
    })
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_carried_byte_for_byte_with_their_half_close() {
    for transport in TRANSPORTS {
        let lab = Lab::new(Config::default()).await;
        blocking(move || {
            let (four, six) = (echo_server("127.0.0.1:0"), echo_server("[::1]:0"));
            let forward = Forward::start(&lab, transport, &[four, six]);
            let bytes = pattern(0, 20 << 20);
            assert!(round_trip(forward.connect(0), &bytes) == bytes, "{transport}");
            assert!(round_trip(forward.connect(1), b"six") == b"six", "{transport}");
            // Many at once, and one that is reset does not disturb the others.
            let stays = forward.connect(0);
            drop(forward.connect(0));
            std::thread::scope(|scope| {
                for i in 0..20u64 {
                    let forward = &forward;
                    scope.spawn(move || {
                        let bytes = pattern(i * 1000, 300_000);
                        assert!(round_trip(forward.connect(0), &bytes) == bytes);
                    });
                }
            });
            assert_eq!(round_trip(stays, b"still here"), b"still here");
            forward.stop();
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_on_which_nothing_listens_is_reported_with_both_addresses() {
    for transport in TRANSPORTS {
        let lab = Lab::new(Config::default()).await;
        let said = blocking(move || {
            let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let forward = Forward::start(&lab, transport, &[closed]);
            let mut stream = forward.connect(0);
            let mut back = Vec::new();
            let _ = stream.read_to_end(&mut back);
            assert!(back.is_empty());
            forward.stop()
        })
        .await;
        assert!(said.contains("failed to connect to port") && said.contains("[::1]"), "{transport}: {said}");
    }
}
