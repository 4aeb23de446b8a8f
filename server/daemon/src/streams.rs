//! Streams that clients open first (`Streaming.Stream`) and other calls then refer to by id: they carry progress,
//! questions for credentials, and the bytes of archives.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use futures::stream::BoxStream;
use futures::{Stream, StreamExt as _, stream};
use gantry_api::pb::containerd::types::transfer::{Data, WindowUpdate};
use gantry_types::Namespace;
use prost::Name;
use prost_types::Any;
use tokio::io::{AsyncRead, AsyncReadExt as _, DuplexStream};
use tokio::sync::mpsc;
use tokio_util::io::StreamReader;
use tonic::Status;

/// Messages that wait to be sent on one stream.
const QUEUE: usize = 16;

/// How many bytes the other side may send ahead of us.
const WINDOW: i32 = 1 << 20;

/// Most bytes in one message of ours: half of the window that containerd's clients grant, and grant again once it is no
/// longer whole. With larger ones each would wait until the one before has been taken.
const PIECE: usize = 32 << 10;

/// The streams nobody has taken yet. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct Streams(Arc<Mutex<Waiting>>);

#[derive(Default)]
struct Waiting {
    last: u64,
    by_name: HashMap<(Namespace, String), (u64, Peer)>,
}

impl Streams {
    /// Enters a client's stream; what is returned carries our messages to it.
    ///
    /// # Errors
    /// `AlreadyExists` while another stream of that id waits.
    pub(crate) fn register(
        &self,
        namespace: &Namespace,
        id: &str,
        incoming: BoxStream<'static, Result<Any, Status>>,
    ) -> Result<Outgoing, Status> {
        let name = (namespace.clone(), id.to_owned());
        let (sender, receiver) = mpsc::channel(QUEUE);
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.by_name.contains_key(&name) {
            return Err(Status::already_exists(format!("stream {id:?}: already exists")));
        }
        waiting.last += 1;
        let number = waiting.last;
        waiting.by_name.insert(name.clone(), (number, Peer { incoming, outgoing: sender }));
        Ok(Outgoing { receiver, _entry: Entry { streams: self.clone(), name, number } })
    }

    /// Takes a stream; it is the caller's from now on, and ends when dropped.
    ///
    /// # Errors
    /// `NotFound`.
    pub(crate) fn take(&self, namespace: &Namespace, id: &str) -> Result<Peer, Status> {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = waiting.by_name.remove(&(namespace.clone(), id.to_owned()));
        found.map(|(_, peer)| peer).ok_or_else(|| Status::not_found(format!("stream {id:?}: not found")))
    }
}

/// Our messages to a client. Dropped when the client goes away: then the stream is no longer to be had.
pub(crate) struct Outgoing {
    receiver: mpsc::Receiver<Any>,
    _entry: Entry,
}

impl Stream for Outgoing {
    type Item = Result<Any, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.receiver.poll_recv(context).map(|message| message.map(Ok))
    }
}

struct Entry {
    streams: Streams,
    name: (Namespace, String),
    number: u64,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut waiting = self.streams.0.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.by_name.get(&self.name).is_some_and(|(number, _)| *number == self.number) {
            waiting.by_name.remove(&self.name);
        }
    }
}

/// The client at the other end of a stream.
pub(crate) struct Peer {
    incoming: BoxStream<'static, Result<Any, Status>>,
    outgoing: mpsc::Sender<Any>,
}

/// The client closed its stream, or went away.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the client closed the stream")]
pub(crate) struct Gone;

impl Peer {
    /// Sends a message.
    ///
    /// # Errors
    /// [`Gone`].
    pub(crate) async fn send<M: Name>(&mut self, message: &M) -> Result<(), Gone> {
        let any = Any { type_url: M::full_name(), value: message.encode_to_vec() };
        self.outgoing.send(any).await.map_err(|_| Gone)
    }

    /// The next message of type `M`; others are passed over. None when the client has no more.
    ///
    /// # Errors
    /// When the connection breaks, or a message of the type does not decode.
    pub(crate) async fn receive<M: Name + Default>(&mut self) -> Result<Option<M>, Status> {
        while let Some(message) = self.incoming.next().await {
            let message = message?;
            if message.type_url.rsplit('/').next() != Some(M::full_name().as_str()) {
                tracing::debug!(got = message.type_url, "a message of another type on a stream");
                continue;
            }
            let decoded = M::decode(Bytes::from(message.value));
            return decoded.map(Some).map_err(|error| Status::invalid_argument(format!("{}: {error}", M::NAME)));
        }
        Ok(None)
    }

    /// Waits until everything sent has been handed to the connection.
    pub(crate) async fn flush(&mut self) {
        // All places of the queue are free then; where the client is gone there is nothing to wait for.
        let _ = self.outgoing.reserve_many(QUEUE).await;
    }

    /// The bytes the client sends, as it may by the windows we grant.
    pub(crate) fn reader(self) -> impl AsyncRead + Send + Unpin {
        let receiver = Receiver { peer: self, granted: 0 };
        let pieces = stream::try_unfold(receiver, |mut receiver| async {
            let piece = receiver.piece().await?;
            Ok::<_, io::Error>(piece.map(|piece| (piece, receiver)))
        });
        StreamReader::new(pieces.boxed())
    }

    /// A pipe to the client: what is written to the first goes out while the second is awaited, which ends after the
    /// pipe was shut and all is sent.
    pub(crate) fn writer(self) -> (DuplexStream, impl Future<Output = Result<(), Gone>> + Send) {
        let (near, far) = tokio::io::duplex(8 * PIECE);
        let sender = Sender { peer: self, pipe: far, credit: 0, listening: true };
        (near, sender.run())
    }
}

/// Bytes coming in.
struct Receiver {
    peer: Peer,
    granted: i32,
}

impl Receiver {
    async fn piece(&mut self) -> io::Result<Option<Bytes>> {
        if self.granted < WINDOW {
            // A client that has sent everything may be gone already; what it sent is still to be read.
            let _ = self.peer.send(&WindowUpdate { update: WINDOW }).await;
            self.granted += WINDOW;
        }
        let data: Option<Data> = self.peer.receive().await.map_err(io::Error::other)?;
        Ok(data.map(|data| {
            self.granted = self.granted.saturating_sub(i32::try_from(data.data.len()).unwrap_or(i32::MAX));
            data.data
        }))
    }
}

/// Bytes going out.
struct Sender {
    peer: Peer,
    pipe: DuplexStream,
    credit: usize,
    listening: bool,
}

impl Sender {
    async fn run(mut self) -> Result<(), Gone> {
        let mut buffer = BytesMut::with_capacity(PIECE);
        loop {
            tokio::select! {
                update = self.peer.receive::<WindowUpdate>(), if self.listening => self.grant(update),
                read = read_piece(&mut self.pipe, &mut buffer, self.credit), if self.credit > 0 => {
                    if read == 0 {
                        break;
                    }
                    self.credit -= read;
                    self.peer.send(&Data { data: buffer.split().freeze() }).await?;
                }
                else => return Err(Gone),
            }
        }
        self.peer.flush().await;
        Ok(())
    }

    fn grant(&mut self, update: Result<Option<WindowUpdate>, Status>) {
        match update {
            Ok(Some(update)) => self.credit += usize::try_from(update.update).unwrap_or(0),
            Ok(None) | Err(_) => self.listening = false,
        }
    }
}

/// Reads at most `limit` bytes; 0 at the end. A pipe in memory cannot fail.
async fn read_piece(pipe: &mut DuplexStream, buffer: &mut BytesMut, limit: usize) -> usize {
    buffer.reserve(PIECE);
    pipe.take(limit.min(PIECE) as u64).read_buf(buffer).await.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    fn namespace() -> Namespace {
        "test".parse().unwrap()
    }

    /// A stream as a client sees it: where it sends, and what it receives.
    fn client(streams: &Streams, id: &str) -> (mpsc::UnboundedSender<Any>, Outgoing) {
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let incoming = stream::poll_fn(move |context| receiver.poll_recv(context)).map(Ok);
        let outgoing = streams.register(&namespace(), id, incoming.boxed()).unwrap();
        (sender, outgoing)
    }

    fn any<M: Name>(message: &M) -> Any {
        Any { type_url: M::full_name(), value: message.encode_to_vec() }
    }

    async fn next<M: Name + Default>(outgoing: &mut Outgoing) -> Option<M> {
        let any = outgoing.next().await?.unwrap();
        assert_eq!(any.type_url, M::full_name());
        Some(M::decode(any.value.as_slice()).unwrap())
    }

    #[tokio::test]
    async fn a_stream_can_be_taken_once_and_only_in_its_namespace() {
        let streams = Streams::default();
        let (_sender, _outgoing) = client(&streams, "a");
        let elsewhere = "other".parse().unwrap();
        assert_eq!(streams.take(&elsewhere, "a").err().unwrap().code(), tonic::Code::NotFound);
        assert!(streams.take(&namespace(), "a").is_ok());
        assert_eq!(streams.take(&namespace(), "a").err().unwrap().code(), tonic::Code::NotFound);
    }

    #[tokio::test]
    async fn an_id_is_free_again_once_its_client_is_gone() {
        let streams = Streams::default();
        let (sender, outgoing) = client(&streams, "a");
        let again = streams.register(&namespace(), "a", stream::empty().boxed());
        assert_eq!(again.err().unwrap().code(), tonic::Code::AlreadyExists);
        drop((sender, outgoing));
        assert!(streams.register(&namespace(), "a", stream::empty().boxed()).is_ok());
    }

    #[tokio::test]
    async fn bytes_come_in_under_windows() {
        let streams = Streams::default();
        let (sender, mut outgoing) = client(&streams, "a");
        let mut reader = streams.take(&namespace(), "a").unwrap().reader();
        let sent: Vec<u8> = (0..3 * WINDOW as usize).map(|i| i as u8).collect();
        let expected = sent.clone();
        let feed = tokio::spawn(async move {
            let mut credit = 0;
            for piece in sent.chunks(PIECE) {
                while credit < piece.len() as i32 {
                    credit += next::<WindowUpdate>(&mut outgoing).await.unwrap().update;
                }
                credit -= piece.len() as i32;
                sender.send(any(&Data { data: Bytes::copy_from_slice(piece) })).unwrap();
            }
            drop(sender);
            outgoing
        });
        let mut got = Vec::new();
        reader.read_to_end(&mut got).await.unwrap();
        assert!(got == expected, "{} bytes came in", got.len());
        feed.await.unwrap();
    }

    #[tokio::test]
    async fn bytes_go_out_no_faster_than_windows_allow() {
        let streams = Streams::default();
        let (sender, mut outgoing) = client(&streams, "a");
        let (mut pipe, run) = streams.take(&namespace(), "a").unwrap().writer();
        let pump = tokio::spawn(run);
        let sent: Vec<u8> = (0..200_000).map(|i| i as u8).collect();
        let expected = sent.clone();
        let write = tokio::spawn(async move {
            pipe.write_all(&sent).await.unwrap();
            pipe.shutdown().await.unwrap();
        });
        let mut got = Vec::new();
        for window in [1000_usize, 70_000, 200_000] {
            sender.send(any(&WindowUpdate { update: window as i32 })).unwrap();
            let until = (got.len() + window).min(expected.len());
            while got.len() < until {
                got.extend_from_slice(&next::<Data>(&mut outgoing).await.unwrap().data);
            }
            assert_eq!(got.len(), until);
        }
        write.await.unwrap();
        pump.await.unwrap().unwrap();
        assert!(next::<Data>(&mut outgoing).await.is_none());
        assert!(got == expected);
    }

    #[tokio::test]
    async fn a_client_that_leaves_ends_the_pipe() {
        let streams = Streams::default();
        let (sender, outgoing) = client(&streams, "a");
        let (mut pipe, run) = streams.take(&namespace(), "a").unwrap().writer();
        drop((sender, outgoing));
        assert_eq!(run.await, Err(Gone));
        assert!(pipe.write_all(&[0; 8 * PIECE + 1]).await.is_err());
    }
}
