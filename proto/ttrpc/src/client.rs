//! The tokio client: many calls at once over one connection, none of which outlives its deadline or its connection.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gantry_types::ErrorKind;
use nix::sys::socket::{Shutdown, shutdown};
use prost::Message;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::frame::{self, Decoded, Decoder, Kind, MAX_PAYLOAD};
use crate::status::answer_of;
use crate::wire::{KeyValue, Request};
use crate::{Address, Status};

/// Bytes asked of the socket at a time.
const READ_CHUNK: usize = 16 << 10;

/// A connection to a ttrpc server. Clones share it; it closes when the last one is dropped or [`Client::close`] is called.
#[derive(Clone, Debug)]
pub struct Client {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    stream: Arc<UnixStream>,
    /// Who writes has it; others wait in line, within their own deadline.
    writer: tokio::sync::Mutex<Writer>,
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

/// Numbers the streams, so that they leave in rising order.
#[derive(Debug)]
struct Writer {
    next: u32,
    /// What is to be sent; the rest of what somebody who gave up had begun goes before anything else.
    bytes: Vec<u8>,
    sent: usize,
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
        let (stream, calls) = (Arc::new(stream), Arc::new(Calls::default()));
        let (close, closing) = mpsc::channel(1);
        let (lost, closed) = watch::channel(false);
        tokio::spawn(run(Arc::clone(&stream), closing, Arc::clone(&calls), lost));
        let writer = tokio::sync::Mutex::new(Writer { next: 1, bytes: Vec::new(), sent: 0 });
        Client { shared: Arc::new(Shared { stream, writer, calls, closed, close }) }
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
    pub fn closed(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut closed = self.shared.closed.clone();
        async move {
            // An error means that the connection's task has ended, which is the same.
            let _ = closed.wait_for(|closed| *closed).await;
        }
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
        let Shared { stream, writer, calls, .. } = &*self.shared;
        let mut writer = writer.lock().await;
        let number = writer.next;
        let Some(next) = number.checked_add(2).filter(|_| calls.register(number, answer)) else {
            self.close();
            return Err(Status::closed());
        };
        writer.next = next;
        let _forget = Forget { calls, stream: number };
        frame::encode(number, Kind::Request, 0, &payload, &mut writer.bytes)
            .map_err(|error| too_large(error.length))?;
        if writer.send(stream).await.is_err() {
            self.close();
        }
        drop(writer);
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

/// Takes the answers: ends when the peer hangs up, when asked to, or when every client is dropped. Nobody speaks over the
/// connection afterwards.
async fn run(stream: Arc<UnixStream>, mut closing: mpsc::Receiver<()>, calls: Arc<Calls>, lost: watch::Sender<bool>) {
    tokio::select! {
        _ = read_answers(&stream, &calls) => {}
        _ = closing.recv() => {}
    }
    // The peer learns of it, and so does who waits for the socket to take more.
    let _ = shutdown(stream.as_raw_fd(), Shutdown::Both);
    calls.close();
    lost.send_replace(true);
}

async fn read_answers(stream: &UnixStream, calls: &Calls) -> std::io::Result<()> {
    let mut decoder = Decoder::new();
    let mut chunk = vec![0; READ_CHUNK];
    loop {
        stream.readable().await?;
        let n = match stream.try_read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(n) => n,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        };
        let mut input = &chunk[..n];
        while let Some(decoded) = decoder.feed(&mut input) {
            accept(decoded, calls);
        }
    }
}

impl Writer {
    /// Sends all there is. Whoever gives up meanwhile leaves the rest to the next.
    async fn send(&mut self, stream: &UnixStream) -> std::io::Result<()> {
        while self.sent < self.bytes.len() {
            match stream.try_write(&self.bytes[self.sent..]) {
                Ok(n) => self.sent += n,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => stream.writable().await?,
                Err(error) => return Err(error),
            }
        }
        self.bytes.clear();
        self.bytes.shrink_to(READ_CHUNK);
        self.sent = 0;
        Ok(())
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

fn too_large(length: usize) -> Status {
    Status::new(ErrorKind::ResourceExhausted, frame::TooLarge { length }.to_string())
}
