//! One stream of a connection.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio_util::sync::PollSender;

use super::headers::Headers;
use crate::streaming::inbox::{Inbox, PIECE};

/// What the connection is to send.
#[derive(Debug)]
pub(super) enum Out {
    Reply {
        stream: u32,
    },
    Data {
        stream: u32,
        bytes: Bytes,
        fin: bool,
    },
    Reset {
        stream: u32,
        status: u32,
    },
    Window {
        stream: u32,
        bytes: u32,
    },
    Ping {
        id: u32,
    },
    /// Nothing more comes. When the sender hears of it, all before has been written.
    End {
        done: tokio::sync::oneshot::Sender<()>,
    },
}

/// Bytes that a stream may send before it is told of more room, unless the peer says otherwise.
pub(super) const INITIAL_WINDOW: i64 = 64 << 10;
/// How much is read before the peer is told of room.
const REPORT: u32 = 32 << 10;

/// How much a stream may send. The clients that matter do not know flow control at all, so it counts only once the
/// peer has shown that it does.
#[derive(Debug)]
pub(super) struct Window {
    state: Mutex<(i64, Option<Waker>)>,
    /// The connection's: the peer does flow control.
    honoured: Arc<AtomicBool>,
    /// The peer ended the stream by force, or is gone.
    pub(super) broken: AtomicBool,
    /// Our last frame was sent.
    finished: AtomicBool,
}

impl Window {
    pub(super) fn new(initial: i64, honoured: Arc<AtomicBool>) -> Window {
        let (broken, finished) = (AtomicBool::new(false), AtomicBool::new(false));
        Window { state: Mutex::new((initial, None)), honoured, broken, finished }
    }

    /// More room, or less.
    pub(super) fn add(&self, bytes: i64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // An honest peer never passes 2^31.
        state.0 = state.0.saturating_add(bytes).min(i64::from(u32::MAX));
        if let Some(waker) = state.1.take() {
            waker.wake();
        }
    }

    /// Ends the stream by force.
    pub(super) fn break_off(&self) {
        self.broken.store(true, Ordering::Release);
        self.add(0);
    }

    fn room(&self, wanted: usize, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if self.broken.load(Ordering::Acquire) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if !self.honoured.load(Ordering::Acquire) {
            return Poll::Ready(Ok(wanted));
        }
        match usize::try_from(state.0) {
            Ok(room @ 1..) => Poll::Ready(Ok(wanted.min(room))),
            _ => {
                state.1 = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

/// A stream, both directions.
#[derive(Debug)]
pub(in crate::streaming) struct Stream {
    pub(super) id: u32,
    pub(in crate::streaming) headers: Headers,
    inbox: Inbox,
    out: PollSender<Out>,
    window: Arc<Window>,
    unreported: u32,
}

impl Stream {
    pub(super) fn new(id: u32, headers: Headers, inbox: Inbox, out: mpsc::Sender<Out>, window: Arc<Window>) -> Stream {
        Stream { id, headers, inbox, out: PollSender::new(out), window, unreported: 0 }
    }

    pub(in crate::streaming) fn id(&self) -> u32 {
        self.id
    }

    /// What ends our direction when the stream itself is in other hands.
    pub(in crate::streaming) fn closer(&self) -> Option<Closer> {
        Some(Closer { id: self.id, out: self.out.get_ref()?.clone(), window: self.window.clone() })
    }

    fn report(&mut self, read: usize) {
        self.unreported = self.unreported.saturating_add(read as u32);
        if self.unreported >= REPORT
            && let Some(out) = self.out.get_ref()
            // Where there is no room now, it is said with the next piece.
            && out.try_send(Out::Window { stream: self.id, bytes: self.unreported }).is_ok()
        {
            self.unreported = 0;
        }
    }
}

/// Ends our direction of a stream.
#[derive(Debug)]
pub(in crate::streaming) struct Closer {
    id: u32,
    out: mpsc::Sender<Out>,
    window: Arc<Window>,
}

impl Closer {
    /// Says that nothing more comes, after all that was written.
    pub(in crate::streaming) async fn close(self) {
        if !self.window.finished.swap(true, Ordering::AcqRel) {
            // A connection that is gone needs no end.
            let _ = self.out.send(Out::Data { stream: self.id, bytes: Bytes::new(), fin: true }).await;
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = to.filled().len();
        ready!(Pin::new(&mut self.inbox).poll_read(context, to))?;
        let read = to.filled().len() - before;
        self.report(read);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let length = ready!(self.window.room(bytes.len().min(PIECE), context))?;
        ready!(self.out.poll_reserve(context)).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        if self.window.finished.load(Ordering::Acquire) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let piece = Out::Data { stream: self.id, bytes: Bytes::copy_from_slice(&bytes[..length]), fin: false };
        self.out.send_item(piece).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        self.window.add(-(length as i64));
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.window.finished.load(Ordering::Acquire) {
            return Poll::Ready(Ok(()));
        }
        if ready!(self.out.poll_reserve(context)).is_err() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        self.window.finished.store(true, Ordering::Release);
        let end = Out::Data { stream: self.id, bytes: Bytes::new(), fin: true };
        Poll::Ready(self.out.send_item(end).map_err(|_| io::ErrorKind::BrokenPipe.into()))
    }
}
