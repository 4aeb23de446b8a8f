//! SPDY/3.1, the server's side: streams that the client opens over one connection.

mod frame;
mod headers;
mod stream;

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, BufWriter};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::inbox::{self, PIECE, inbox};
use frame::{Control, Head};
use headers::Headers;
pub(super) use stream::{Closer, Stream};
use stream::{INITIAL_WINDOW, Out, Window};

/// Streams that a client may have open at once.
const MAX_STREAMS: usize = 1024;
/// Pieces of all streams that may wait to be sent.
const OUT: usize = 16;
const BUFFER: usize = 64 << 10;
/// `REFUSED_STREAM`.
const REFUSED: u32 = 3;
/// `STREAM_IN_USE`, for an id that was used before.
const IN_USE: u32 = 8;

/// A connection's streams as they come.
#[derive(Debug)]
pub(super) struct Connection {
    incoming: mpsc::Receiver<Stream>,
    out: mpsc::Sender<Out>,
    streams: Streams,
    /// Cancelled when the client is gone.
    pub(super) gone: CancellationToken,
}

type Streams = Arc<Mutex<HashMap<u32, Open>>>;

/// What is known of an open stream.
#[derive(Debug)]
struct Open {
    /// None once the client has closed its side.
    inbox: Option<inbox::Sender>,
    window: Arc<Window>,
}

impl Connection {
    /// Speaks SPDY over an upgraded connection. It is served by tasks of its own until one side goes away or `gone` is
    /// cancelled.
    pub(super) fn serve<T: AsyncRead + AsyncWrite + Send + 'static>(io: T, gone: CancellationToken) -> Connection {
        let (read, write) = tokio::io::split(io);
        let (out, outgoing) = mpsc::channel(OUT);
        let (announce, incoming) = mpsc::channel(MAX_STREAMS);
        let streams = Streams::default();
        let reader = Incoming {
            io: BufReader::with_capacity(BUFFER, read),
            headers: headers::Reader::new(),
            streams: streams.clone(),
            announce,
            out: out.clone(),
            honoured: Arc::default(),
            initial: AtomicI64::new(INITIAL_WINDOW),
            last: 0,
        };
        let stop = gone.clone();
        tokio::spawn(async move { reader.run(stop).await });
        let stop = gone.clone();
        tokio::spawn(async move {
            if let Err(error) = send(write, outgoing).await {
                tracing::debug!(%error, "SPDY connection cannot be written to");
                stop.cancel();
            }
        });
        Connection { incoming, out, streams, gone }
    }

    /// The next stream that the client opens; none when it is gone.
    pub(super) async fn next(&mut self) -> Option<Stream> {
        self.incoming.recv().await
    }

    /// Forgets a stream: what still comes for it is dropped.
    pub(super) fn forget(&self, id: u32) {
        lock(&self.streams).remove(&id);
    }

    /// Writes out all that was sent, ends our side, and lets the client end its own: what it still sends is dropped, for
    /// a connection closed with bytes unread takes those with it that the client has not read yet.
    pub(super) async fn finish(mut self) {
        let (done, wait) = oneshot::channel();
        if self.out.send(Out::End { done }).await.is_ok() {
            // The client may be gone; then nobody tells.
            let _ = tokio::select! {
                written = wait => written.is_ok(),
                () = self.gone.cancelled() => false,
            };
        }
        lock(&self.streams).clear();
        self.incoming.close();
        let _ = tokio::time::timeout(super::LINGER, self.gone.cancelled()).await;
        self.gone.cancel();
    }
}

fn lock(streams: &Streams) -> MutexGuard<'_, HashMap<u32, Open>> {
    streams.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What comes from the client.
struct Incoming<R> {
    io: BufReader<R>,
    headers: headers::Reader,
    streams: Streams,
    announce: mpsc::Sender<Stream>,
    out: mpsc::Sender<Out>,
    honoured: Arc<AtomicBool>,
    /// Room of streams to come.
    initial: AtomicI64,
    /// Ids only grow.
    last: u32,
}

impl<R: AsyncRead + Unpin> Incoming<R> {
    async fn run(mut self, gone: CancellationToken) {
        let ended = tokio::select! {
            () = gone.cancelled() => Ok(()),
            ended = self.read_all() => ended,
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "SPDY connection ended");
        }
        // Streams that are open still see that the client went away.
        for (_, open) in lock(&self.streams).drain() {
            open.window.break_off();
        }
        gone.cancel();
    }

    async fn read_all(&mut self) -> io::Result<()> {
        loop {
            let mut start = [0; frame::HEADER];
            self.io.read_exact(&mut start).await?;
            match frame::head(start).map_err(io::Error::other)? {
                Head::Data { stream, fin, length } => self.data(stream, fin, length).await?,
                Head::Control { kind, flags, length } => {
                    let mut body = vec![0; length];
                    self.io.read_exact(&mut body).await?;
                    let control = frame::control(kind, flags, &body).map_err(io::Error::other)?;
                    self.control(control).await?;
                }
            }
        }
    }

    /// Hands data on piece by piece, waiting for the stream's reader where it must.
    async fn data(&mut self, stream: u32, fin: bool, mut length: usize) -> io::Result<()> {
        let inbox = lock(&self.streams).get(&stream).and_then(|open| open.inbox.clone());
        let mut buffer = BytesMut::new();
        while length > 0 {
            let piece = length.min(PIECE);
            buffer.reserve(piece);
            buffer.resize(piece, 0);
            self.io.read_exact(&mut buffer).await?;
            length -= piece;
            let bytes = buffer.split().freeze();
            if let Some(inbox) = &inbox {
                inbox.send(bytes).await;
            }
        }
        if fin && let Some(open) = lock(&self.streams).get_mut(&stream) {
            open.inbox.take().into_iter().chain(inbox).for_each(inbox::Sender::end);
        }
        Ok(())
    }

    async fn control(&mut self, control: Control) -> io::Result<()> {
        match control {
            Control::Open { stream, fin, headers } => self.open(stream, fin, &headers).await?,
            Control::Headers { headers } => {
                self.headers.read(&headers).map_err(io::Error::other)?;
            }
            Control::Reset { stream } => {
                if let Some(open) = lock(&self.streams).remove(&stream) {
                    open.window.break_off();
                }
            }
            // Those with even numbers are answers to pings of ours.
            Control::Ping { id } if !id.is_multiple_of(2) => say(&self.out, Out::Ping { id }).await?,
            Control::Window { stream, bytes } => {
                self.honoured.store(true, Ordering::Release);
                if let Some(open) = lock(&self.streams).get(&stream) {
                    open.window.add(i64::from(bytes));
                }
            }
            Control::InitialWindow { bytes } => {
                self.honoured.store(true, Ordering::Release);
                let change = i64::from(bytes) - self.initial.swap(i64::from(bytes), Ordering::AcqRel);
                lock(&self.streams).values().for_each(|open| open.window.add(change));
            }
            Control::Ping { .. } | Control::GoAway | Control::Other => {}
        }
        Ok(())
    }

    async fn open(&mut self, stream: u32, fin: bool, block: &[u8]) -> io::Result<()> {
        let headers: Headers = self.headers.read(block).map_err(io::Error::other)?;
        if stream <= self.last || stream.is_multiple_of(2) {
            return say(&self.out, Out::Reset { stream, status: IN_USE }).await;
        }
        self.last = stream;
        if lock(&self.streams).len() >= MAX_STREAMS {
            return say(&self.out, Out::Reset { stream, status: REFUSED }).await;
        }
        let (sender, inbox) = inbox();
        let window = Arc::new(Window::new(self.initial.load(Ordering::Acquire), self.honoured.clone()));
        let sender = if fin {
            sender.end();
            None
        } else {
            Some(sender)
        };
        lock(&self.streams).insert(stream, Open { inbox: sender, window: window.clone() });
        say(&self.out, Out::Reply { stream }).await?;
        let made = Stream::new(stream, headers, inbox, self.out.clone(), window);
        self.announce.send(made).await.map_err(|_| io::Error::other("no more streams are taken"))
    }
}

async fn say(out: &mpsc::Sender<Out>, what: Out) -> io::Result<()> {
    out.send(what).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
}

/// Writes what the streams send, in the order of the queue, until no stream is left.
async fn send<W: AsyncWrite + Unpin>(io: W, mut outgoing: mpsc::Receiver<Out>) -> io::Result<()> {
    let mut io = BufWriter::with_capacity(BUFFER, io);
    let mut headers = headers::Writer::new().map_err(io::Error::other)?;
    let mut head = Vec::new();
    while let Some(out) = outgoing.recv().await {
        head.clear();
        let mut data = None;
        match out {
            Out::Reply { stream } => {
                let block = headers.write(&Headers::new()).map_err(io::Error::other)?;
                frame::put_reply(&mut head, stream, &block);
            }
            Out::Data { stream, bytes, fin } => {
                frame::put_data(&mut head, stream, fin, bytes.len());
                data = Some(bytes);
            }
            Out::Reset { stream, status } => frame::put_reset(&mut head, stream, status),
            Out::Window { stream, bytes } => frame::put_window(&mut head, stream, bytes),
            Out::Ping { id } => frame::put_ping(&mut head, id),
            Out::End { done } => {
                io.shutdown().await?;
                let _ = done.send(());
                break;
            }
        }
        io.write_all(&head).await?;
        if let Some(bytes) = data {
            io.write_all(&bytes).await?;
        }
        if outgoing.is_empty() {
            io.flush().await?;
        }
    }
    while outgoing.recv().await.is_some() {}
    io.shutdown().await
}
