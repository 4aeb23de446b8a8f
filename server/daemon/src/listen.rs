//! Connections for the gRPC server: from the unix socket, and from the TCP port behind TLS.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures::Stream;
use nix::sys::socket::{setsockopt, sockopt};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::limits::Calls;
use crate::line::TakesFiles;

/// How long a client may take for the handshake of TLS.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Handshakes at once; further clients wait in the kernel's queue.
const HANDSHAKES: usize = 64;

/// Pause after the kernel refused a connection (out of descriptors), which the next would meet too.
const RELIEF: Duration = Duration::from_millis(100);

/// Bytes that the kernel keeps for a client that is slower than we are; it counts its own costs among twice as many
/// (socket(7), `SO_SNDBUFFORCE`). Without the right to that (`CAP_NET_ADMIN`) `net.core.wmem_max` is the limit. Half as
/// many cost a client of much content a fifth of its rate, twice as many give it nothing.
const SENDING: usize = 512 << 10;

/// What each call knows of the connection that it came by.
#[derive(Debug, Default)]
pub(crate) struct Caller {
    /// The calls that run on it.
    pub(crate) calls: Calls,
    pub(crate) takes_files: TakesFiles,
}

/// What a connection of either kind can do.
pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin {
    /// The socket that the kernel can send a file's bytes to as they are, where there is one.
    fn socket(&self) -> Option<&UnixStream> {
        None
    }
}

impl Io for UnixStream {
    fn socket(&self) -> Option<&UnixStream> {
        Some(self)
    }
}

impl Io for TcpStream {}

impl Io for TlsStream<TcpStream> {}

impl Io for Box<dyn Io> {}

/// The connections of the unix socket.
pub(crate) fn unix(listener: UnixListener) -> impl Stream<Item = io::Result<UnixStream>> {
    futures::stream::unfold(listener, |listener| async {
        let stream = loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    roomy(&stream);
                    break stream;
                }
                Err(error) => relieve(&error).await,
            }
        };
        Some((Ok(stream), listener))
    })
}

/// Lets more bytes wait for a client than the kernel lets by itself. Who writes is woken when three quarters of them are
/// gone, so that a client of much content has the last quarter to read meanwhile.
fn roomy(stream: &UnixStream) {
    let forced = setsockopt(stream, sockopt::SndBufForce, &SENDING);
    if let Err(error) = forced.or_else(|_| setsockopt(stream, sockopt::SndBuf, &SENDING)) {
        tracing::debug!(%error, "a connection has the kernel's usual room");
    }
}

async fn relieve(error: &io::Error) {
    tracing::warn!(%error, "a connection was not accepted");
    tokio::time::sleep(RELIEF).await;
}

/// The certificates of the TCP port, which can be exchanged while it is served; none for a port without TLS.
#[derive(Clone, Default)]
pub(crate) struct Certificates(Arc<RwLock<Option<Arc<ServerConfig>>>>);

impl Certificates {
    /// New connections meet these from now on.
    pub(crate) fn set(&self, config: Option<Arc<ServerConfig>>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = config;
    }

    fn get(&self) -> Option<Arc<ServerConfig>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The connections of the TCP port, once their handshake is done. A client that fails it is named in the log.
pub(crate) fn tcp(listener: TcpListener, certificates: Certificates) -> impl Stream<Item = io::Result<Box<dyn Io>>> {
    let (ready, connections) = mpsc::channel(HANDSHAKES);
    tokio::spawn(async move {
        let room = Arc::new(Semaphore::new(HANDSHAKES));
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = ready.closed() => return,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    relieve(&error).await;
                    continue;
                }
            };
            let Ok(place) = Arc::clone(&room).acquire_owned().await else { return };
            let (ready, certificates) = (ready.clone(), certificates.clone());
            tokio::spawn(async move {
                match greet(stream, certificates.get()).await {
                    // Nobody waits for it any more where the daemon stops.
                    Ok(stream) => drop(ready.send(Ok(stream)).await),
                    Err(error) => refused(peer, &error),
                }
                drop(place);
            });
        }
    });
    tokio_stream::wrappers::ReceiverStream::new(connections)
}

fn refused(peer: SocketAddr, error: &io::Error) {
    tracing::warn!(%peer, %error, "a client was not let in");
}

async fn greet(stream: TcpStream, certificates: Option<Arc<ServerConfig>>) -> io::Result<Box<dyn Io>> {
    stream.set_nodelay(true)?;
    let Some(certificates) = certificates else { return Ok(Box::new(stream)) };
    let handshake = TlsAcceptor::from(certificates).accept(stream);
    match tokio::time::timeout(HANDSHAKE, handshake).await {
        Ok(stream) => Ok(Box::new(stream?)),
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "no handshake of TLS in 10 s")),
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;
    use nix::sys::socket::getsockopt;

    use super::*;

    #[tokio::test]
    async fn more_waits_for_a_client_than_the_kernel_lets_by_itself() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let mut connections = Box::pin(unix(UnixListener::bind(&path).unwrap()));
        let client = UnixStream::connect(&path).await.unwrap();
        let connection = connections.next().await.unwrap().unwrap();
        let room = |stream| getsockopt(stream, sockopt::SndBuf).unwrap();
        assert!(room(&connection) > room(&client), "{} and {}", room(&connection), room(&client));
    }
}
