//! Connections into a pod.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::{TcpSocket, TcpStream};

use super::{Duplex, Failure};
use crate::network::{self, in_namespace};

/// How long a port of a pod may take to accept.
const PATIENCE: Duration = Duration::from_secs(30);
const BUFFER: usize = 32 << 10;

/// Connects a stream to a port on the loopback addresses of a network namespace, IPv4 first, until both directions have
/// ended. Without a namespace it is the host's own.
///
/// # Errors
/// Nothing listens there, or bytes were lost.
pub async fn forward(netns: Option<&Path>, port: u16, mut stream: Duplex) -> Result<(), Failure> {
    let mut inside = dial(netns, port).await?;
    // Small messages of interactive protocols must not wait.
    let _ = inside.set_nodelay(true);
    let copied = copy_bidirectional_with_sizes(&mut stream, &mut inside, BUFFER, BUFFER).await;
    copied.map(drop).map_err(|error| Failure::from(format!("connection to port {port} broke off: {error}")))
}

async fn dial(netns: Option<&Path>, port: u16) -> Result<TcpStream, Failure> {
    let mut reasons = Vec::new();
    for address in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
        let to = SocketAddr::new(address, port);
        let socket = socket(netns, to).await.map_err(|e| Failure::from(e.to_string()))?;
        match tokio::time::timeout(PATIENCE, socket.connect(to)).await {
            Ok(Ok(connected)) => return Ok(connected),
            Ok(Err(error)) => reasons.push(format!("{to}: {error}")),
            Err(_) => reasons.push(format!("{to}: no answer within {PATIENCE:?}")),
        }
    }
    Err(Failure::from(format!("failed to connect to port {port} inside the pod: {}", reasons.join(", "))))
}

/// A socket stays in the namespace that it was made in.
async fn socket(netns: Option<&Path>, to: SocketAddr) -> network::Result<TcpSocket> {
    let make =
        move || -> io::Result<TcpSocket> { if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() } };
    let made = match netns {
        None => make(),
        Some(netns) => in_namespace(netns, make).await?,
    };
    made.map_err(|source| network::Error::Kernel { what: "make a socket".into(), source })
}
