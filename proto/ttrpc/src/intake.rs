//! The tokio server: unary calls from trusted peers, a bounded number at once.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use gantry_types::ErrorKind;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use crate::frame::{Decoded, Decoder, Frame};
use crate::status::encode_response;
use crate::wire::{KeyValue, Request};
use crate::{Status, StreamRule};

/// Bytes asked of the socket at a time.
const READ_CHUNK: usize = 16 << 10;
/// Pause after `accept` failed, for example because descriptors ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What answers the calls.
pub trait Handler: Send + Sync + 'static {
    /// Answers one call with an encoded message.
    fn call(&self, call: Call) -> impl Future<Output = Result<Vec<u8>, Status>> + Send;
}

/// A call that arrived.
#[derive(Clone, Debug)]
pub struct Call {
    /// Full service name.
    pub service: String,
    /// Method name.
    pub method: String,
    /// The encoded request.
    pub payload: Vec<u8>,
    /// Its headers.
    pub metadata: Vec<KeyValue>,
    /// Process id of the peer, as the kernel knows it.
    pub peer_pid: Option<i32>,
}

/// How much is served at once, and to whom.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections; further ones wait to be accepted.
    pub connections: usize,
    /// Calls in progress on one connection. With 1, calls are handled strictly in the order they came.
    pub calls_per_connection: usize,
    /// The user whose processes may connect (SO_PEERCRED); others are cut off.
    pub uid: u32,
    /// Longest a call may take, whatever its caller allows.
    pub call_timeout: Duration,
}

impl Limits {
    fn timeout(&self, nanos: i64) -> Duration {
        match u64::try_from(nanos) {
            Ok(nanos) if nanos > 0 => Duration::from_nanos(nanos).min(self.call_timeout),
            _ => self.call_timeout,
        }
    }
}

/// Serves until `shutdown` completes; then connections are dropped.
///
/// # Errors
/// Never at present; a failing `accept` is retried.
pub async fn serve<H: Handler>(
    listener: UnixListener,
    handler: Arc<H>,
    limits: Limits,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let mut connections = JoinSet::new();
    let slots = Arc::new(Semaphore::new(limits.connections.max(1)));
    tokio::pin!(shutdown);
    loop {
        let stream = tokio::select! {
            () = &mut shutdown => return Ok(()),
            stream = next(&listener, &slots) => stream,
            Some(_) = connections.join_next() => continue,
        };
        let Some((stream, slot)) = stream else { continue };
        let (handler, limits) = (Arc::clone(&handler), limits.clone());
        connections.spawn(async move {
            // A connection that breaks is its peer's affair.
            let _ = connection(stream, handler, limits).await;
            drop(slot);
        });
    }
}

async fn next(
    listener: &UnixListener,
    slots: &Arc<Semaphore>,
) -> Option<(UnixStream, tokio::sync::OwnedSemaphorePermit)> {
    let slot = Arc::clone(slots).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => Some((stream, slot)),
        Err(_) => {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

/// Serves one connection until it ends.
///
/// # Errors
/// When it breaks.
pub async fn serve_one<H: Handler>(stream: UnixStream, handler: Arc<H>, limits: Limits) -> io::Result<()> {
    connection(stream, handler, limits).await
}

async fn connection<H: Handler>(stream: UnixStream, handler: Arc<H>, limits: Limits) -> io::Result<()> {
    let peer = stream.peer_cred()?;
    if peer.uid() != limits.uid {
        return Ok(());
    }
    let (read, write) = stream.into_split();
    let most = limits.calls_per_connection.max(1);
    if most == 1 {
        return one_by_one(read, write, &*handler, &limits, peer.pid()).await;
    }
    let (answers, queue) = mpsc::channel(most);
    let reader =
        Reader { handler, limits, answers, peer_pid: peer.pid(), calls: JoinSet::new(), rule: StreamRule::default() };
    // Once the reader has ended and its calls have answered, the queue closes and the writer ends too.
    let (read, written) = tokio::join!(reader.run(read), write_answers(write, queue));
    read.and(written)
}

/// Each call is answered before the next is looked at.
async fn one_by_one<H: Handler>(
    mut read: OwnedReadHalf,
    mut write: OwnedWriteHalf,
    handler: &H,
    limits: &Limits,
    peer_pid: Option<i32>,
) -> io::Result<()> {
    let (mut decoder, mut rule) = (Decoder::new(), StreamRule::default());
    let (mut chunk, mut answers) = (vec![0; READ_CHUNK], Vec::new());
    loop {
        let n = read.read(&mut chunk).await?;
        if n == 0 {
            return Ok(());
        }
        let mut input = &chunk[..n];
        while let Some(decoded) = decoder.feed(&mut input) {
            let (stream, answered) = match rule.admit(decoded) {
                Ok(Some(frame)) => (frame.stream, in_time(handler, &frame, limits, peer_pid).await),
                Ok(None) => continue,
                Err((stream, status)) => (stream, Err(status)),
            };
            encode_response(stream, answered, &mut answers);
        }
        write.write_all(&answers).await?;
        answers.clear();
    }
}

async fn in_time<H: Handler>(
    handler: &H,
    frame: &Frame,
    limits: &Limits,
    peer_pid: Option<i32>,
) -> Result<Vec<u8>, Status> {
    let request = decode(frame)?;
    let timeout = limits.timeout(request.timeout_nano);
    answer(handler, request, timeout, peer_pid).await
}

fn decode(frame: &Frame) -> Result<Request, Status> {
    let invalid = |error| Status::new(ErrorKind::InvalidArgument, format!("undecodable request: {error}"));
    Request::decode(frame.payload.as_slice()).map_err(invalid)
}

struct Reader<H> {
    handler: Arc<H>,
    limits: Limits,
    answers: mpsc::Sender<(u32, Result<Vec<u8>, Status>)>,
    peer_pid: Option<i32>,
    calls: JoinSet<()>,
    rule: StreamRule,
}

impl<H: Handler> Reader<H> {
    async fn run(mut self, mut read: OwnedReadHalf) -> io::Result<()> {
        let mut decoder = Decoder::new();
        let mut chunk = vec![0; READ_CHUNK];
        loop {
            let n = read.read(&mut chunk).await?;
            if n == 0 {
                break;
            }
            let mut input = &chunk[..n];
            while let Some(decoded) = decoder.feed(&mut input) {
                self.accept(decoded).await;
            }
        }
        while self.calls.join_next().await.is_some() {}
        Ok(())
    }

    async fn accept(&mut self, decoded: Decoded) {
        match self.rule.admit(decoded) {
            Ok(Some(frame)) => self.start(frame).await,
            Ok(None) => {}
            // The writer is gone only when the connection is.
            Err((stream, status)) => drop(self.answers.send((stream, Err(status))).await),
        }
    }

    async fn start(&mut self, frame: Frame) {
        let stream = frame.stream;
        let request = match decode(&frame) {
            Ok(request) => request,
            Err(status) => return drop(self.answers.send((stream, Err(status))).await),
        };
        while self.calls.len() >= self.limits.calls_per_connection {
            self.calls.join_next().await;
        }
        let (handler, answers) = (Arc::clone(&self.handler), self.answers.clone());
        let (timeout, peer_pid) = (self.limits.timeout(request.timeout_nano), self.peer_pid);
        self.calls.spawn(async move {
            let answer = answer(&*handler, request, timeout, peer_pid).await;
            drop(answers.send((stream, answer)).await);
        });
    }
}

async fn answer<H: Handler>(
    handler: &H,
    request: Request,
    timeout: Duration,
    peer_pid: Option<i32>,
) -> Result<Vec<u8>, Status> {
    let Request { service, method, payload, metadata, .. } = request;
    let late = format!("{service}/{method} took longer than {timeout:?}");
    let call = handler.call(Call { service, method, payload, metadata, peer_pid });
    match tokio::time::timeout(timeout, call).await {
        Ok(answer) => answer,
        Err(_) => Err(Status::new(ErrorKind::DeadlineExceeded, late)),
    }
}

async fn write_answers(
    mut write: OwnedWriteHalf,
    mut queue: mpsc::Receiver<(u32, Result<Vec<u8>, Status>)>,
) -> io::Result<()> {
    let mut bytes = Vec::new();
    while let Some((stream, answer)) = queue.recv().await {
        bytes.clear();
        encode_response(stream, answer, &mut bytes);
        write.write_all(&bytes).await?;
    }
    Ok(())
}
