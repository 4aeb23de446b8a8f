//! The tokio client: many calls at once over one connection, none of which outlives its deadline or its connection.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gantry_types::ErrorKind;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::frame::{self, Decoded, Decoder, Kind, MAX_PAYLOAD};
use crate::status::answer_of;
use crate::wire::{KeyValue, Request};
use crate::{Address, Status};

/// Calls that may wait for the socket at once; further ones wait in line, within their own deadline.
const WRITE_QUEUE: usize = 64;
/// Bytes asked of the socket at a time.
const READ_CHUNK: usize = 16 << 10;

/// A connection to a ttrpc server. Clones share it; it closes when the last one is dropped or [`Client::close`] is called.
#[derive(Clone, Debug)]
pub struct Client {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    frames: mpsc::Sender<Outgoing>,
    calls: Arc<Calls>,
    closed: watch::Receiver<bool>,
    close: mpsc::Sender<()>,
}

/// Calls in flight, by stream.
#[derive(Debug, Default)]
struct Calls {
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    closed: bool,
    by_stream: HashMap<u32, oneshot::Sender<Result<Vec<u8>, Status>>>,
}

/// A request on its way to the writer, which numbers the streams so that they leave in rising order.
#[derive(Debug)]
struct Outgoing {
    payload: Vec<u8>,
    answer: oneshot::Sender<Result<Vec<u8>, Status>>,
    stream: oneshot::Sender<u32>,
}

impl Client {
    /// Connects before `deadline`.
    ///
    /// # Errors
    /// `Unavailable` when nobody listens there, `DeadlineExceeded` when the listener does not accept in time.
    pub async fn connect(address: &Address, deadline: Instant) -> Result<Client, Status> {
        let refused = |error| Status::new(ErrorKind::Unavailable, format!("connecting to {address}: {error}"));
        let late = |_| Status::new(ErrorKind::DeadlineExceeded, format!("connecting to {address} took too long"));
        let stream = tokio::time::timeout_at(deadline, dial(address)).await.map_err(late)?.map_err(refused)?;
        Ok(Client::from_stream(stream))
    }

    /// Speaks over a connection that is there already. Must be called within a tokio runtime.
    pub fn from_stream(stream: UnixStream) -> Client {
        let (read, write) = stream.into_split();
        let calls = Arc::new(Calls::default());
        let (frames, queue) = mpsc::channel(WRITE_QUEUE);
        let (close, closing) = mpsc::channel(1);
        let (lost, closed) = watch::channel(false);
        tokio::spawn(run(read, write, queue, closing, Arc::clone(&calls), lost));
        Client { shared: Arc::new(Shared { frames, calls, closed, close }) }
    }

    /// Calls a method and waits for its answer, at most `timeout` (none: until the connection ends).
    /// Dropping the future abandons the call; its late answer is ignored.
    ///
    /// # Errors
    /// The peer's status, `DeadlineExceeded`, or `Unavailable` once the connection is gone.
    pub async fn call<Req, Resp>(
        &self,
        service: &str,
        method: &str,
        request: &Req,
        timeout: impl Into<Option<Duration>>,
    ) -> Result<Resp, Status>
    where
        Req: Message,
        Resp: Message + Default,
    {
        let answer = self.call_raw(service, method, request.encode_to_vec(), &[], timeout.into()).await?;
        Resp::decode(answer.as_slice()).map_err(|error| {
            Status::new(ErrorKind::Internal, format!("undecodable answer of {service}/{method}: {error}"))
        })
    }

    /// As [`Client::call`], with encoded messages and headers.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn call_raw(
        &self,
        service: &str,
        method: &str,
        payload: Vec<u8>,
        metadata: &[(&str, &str)],
        timeout: Option<Duration>,
    ) -> Result<Vec<u8>, Status> {
        let request = Request {
            service: service.to_owned(),
            method: method.to_owned(),
            payload,
            timeout_nano: timeout.map_or(0, |t| i64::try_from(t.as_nanos()).unwrap_or(i64::MAX)),
            metadata: metadata.iter().map(|&(k, v)| KeyValue { key: k.to_owned(), value: v.to_owned() }).collect(),
        };
        let call = self.exchange(request.encode_to_vec());
        let Some(timeout) = timeout else { return call.await };
        let late = |_| {
            let text = format!("no answer of {service}/{method} within {timeout:?}");
            Status::new(ErrorKind::DeadlineExceeded, text)
        };
        tokio::time::timeout(timeout, call).await.map_err(late)?
    }

    /// Whether the connection is gone. Never becomes false again.
    pub fn is_closed(&self) -> bool {
        *self.shared.closed.borrow()
    }

    /// Waits until the connection is gone.
    pub async fn closed(&self) {
        let mut closed = self.shared.closed.clone();
        // An error means that the connection's task has ended, which is the same.
        let _ = closed.wait_for(|closed| *closed).await;
    }

    /// Ends the connection; calls in flight fail with `Unavailable`.
    pub fn close(&self) {
        // A full queue already holds such a message.
        let _ = self.shared.close.try_send(());
    }

    async fn exchange(&self, payload: Vec<u8>) -> Result<Vec<u8>, Status> {
        if payload.len() > MAX_PAYLOAD {
            return Err(too_large(payload.len()));
        }
        let (answer, answered) = oneshot::channel();
        let (stream, numbered) = oneshot::channel();
        self.shared.frames.send(Outgoing { payload, answer, stream }).await.map_err(|_| Status::closed())?;
        let stream = numbered.await.map_err(|_| Status::closed())?;
        let _forget = Forget { calls: &self.shared.calls, stream };
        answered.await.unwrap_or_else(|_| Err(Status::closed()))
    }
}

/// Takes a call out of the table when its caller stops waiting.
struct Forget<'a> {
    calls: &'a Calls,
    stream: u32,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.calls.take(self.stream);
    }
}

impl Calls {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, stream: u32) -> Option<oneshot::Sender<Result<Vec<u8>, Status>>> {
        self.lock().by_stream.remove(&stream)
    }

    fn finish(&self, stream: u32, answer: Result<Vec<u8>, Status>) {
        if let Some(waiting) = self.take(stream) {
            // A caller that has gone needs no answer.
            let _ = waiting.send(answer);
        }
    }

    /// Registers a call, unless the connection has ended meanwhile.
    fn register(&self, stream: u32, answer: oneshot::Sender<Result<Vec<u8>, Status>>) -> bool {
        let mut waiting = self.lock();
        if waiting.closed {
            return false;
        }
        waiting.by_stream.insert(stream, answer);
        true
    }

    fn close(&self) {
        let mut waiting = self.lock();
        waiting.closed = true;
        for (_, answer) in waiting.by_stream.drain() {
            let _ = answer.send(Err(Status::closed()));
        }
    }
}

async fn dial(address: &Address) -> std::io::Result<UnixStream> {
    match address {
        Address::Path(path) => UnixStream::connect(path).await,
        Address::Abstract(name) => UnixStream::connect(OsStr::from_bytes(&[b"\0", name.as_slice()].concat())).await,
    }
}

/// Owns the socket: ends when the peer hangs up, when asked to, or when every client is dropped.
async fn run(
    read: OwnedReadHalf,
    write: OwnedWriteHalf,
    queue: mpsc::Receiver<Outgoing>,
    mut closing: mpsc::Receiver<()>,
    calls: Arc<Calls>,
    lost: watch::Sender<bool>,
) {
    tokio::select! {
        _ = read_answers(read, &calls) => {}
        _ = write_requests(write, queue, &calls) => {}
        _ = closing.recv() => {}
    }
    calls.close();
    lost.send_replace(true);
}

async fn read_answers(mut read: OwnedReadHalf, calls: &Calls) -> std::io::Result<()> {
    let mut decoder = Decoder::new();
    let mut chunk = vec![0; READ_CHUNK];
    loop {
        let n = read.read(&mut chunk).await?;
        if n == 0 {
            return Ok(());
        }
        let mut input = &chunk[..n];
        while let Some(decoded) = decoder.feed(&mut input) {
            accept(decoded, calls);
        }
    }
}

fn accept(decoded: Decoded, calls: &Calls) {
    match decoded {
        Decoded::Frame(frame) if frame.kind == Kind::Response => calls.finish(frame.stream, answer_of(&frame.payload)),
        Decoded::Frame(frame) if frame.kind == Kind::Data => {
            calls.finish(frame.stream, Err(Status::new(ErrorKind::Internal, "stream data in answer to a unary call")));
        }
        Decoded::Frame(_) => {}
        Decoded::Oversized(header) => calls.finish(header.stream, Err(too_large(header.length as usize))),
    }
}

async fn write_requests(
    mut write: OwnedWriteHalf,
    mut queue: mpsc::Receiver<Outgoing>,
    calls: &Calls,
) -> std::io::Result<()> {
    let mut next: u32 = 1;
    let mut bytes = Vec::new();
    while let Some(Outgoing { payload, answer, stream }) = queue.recv().await {
        // The caller may have given up while it stood in line: then nothing is sent.
        if answer.is_closed() || stream.is_closed() {
            continue;
        }
        let number = next;
        next = next.checked_add(2).ok_or_else(|| std::io::Error::other("stream numbers are used up"))?;
        if !calls.register(number, answer) {
            return Ok(());
        }
        if stream.send(number).is_err() {
            calls.take(number);
            continue;
        }
        bytes.clear();
        if let Err(error) = frame::encode(number, Kind::Request, 0, &payload, &mut bytes) {
            calls.finish(number, Err(too_large(error.length)));
            continue;
        }
        write.write_all(&bytes).await?;
        bytes.shrink_to(READ_CHUNK);
    }
    Ok(())
}

fn too_large(length: usize) -> Status {
    Status::new(ErrorKind::ResourceExhausted, frame::TooLarge { length }.to_string())
}
