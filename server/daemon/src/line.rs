//! What HTTP/2 writes to a connection in one go leaves in one piece: an acknowledged ping and the answer beside it, or
//! the sixteen frames that a chunk of content is cut into. Each write that the kernel is spared is a wake-up that the
//! client is spared, too.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that wait at most.
const MOST: usize = 64 << 10;

/// A write of this many bytes goes straight through: to copy it would cost more than it saves.
const STRAIGHT: usize = 32 << 10;

/// A connection whose small writes wait for [`Line::poll_send`], which whoever polls the connection calls after that.
/// Clones share it.
pub(crate) struct Line<T>(Arc<Mutex<Wire<T>>>);

impl<T> Clone for Line<T> {
    fn clone(&self) -> Line<T> {
        Line(Arc::clone(&self.0))
    }
}

struct Wire<T> {
    stream: T,
    /// What waits, from `sent` on.
    out: Vec<u8>,
    sent: usize,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Line<T> {
    pub(crate) fn new(stream: T) -> Line<T> {
        Line(Arc::new(Mutex::new(Wire { stream, out: Vec::new(), sent: 0 })))
    }

    /// Sends what waits. Pending where the client does not take it yet.
    pub(crate) fn poll_send(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.wire().poll_send(cx)
    }

    /// Only the task of the connection ever takes it.
    fn wire(&self) -> MutexGuard<'_, Wire<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: AsyncWrite + Unpin> Wire<T> {
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.out.is_empty() {
            return Poll::Ready(Ok(()));
        }
        while self.sent < self.out.len() {
            match ready!(Pin::new(&mut self.stream).poll_write(cx, &self.out[self.sent..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                sent => self.sent += sent,
            }
        }
        self.out.clear();
        self.sent = 0;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let len: usize = slices.iter().map(|slice| slice.len()).sum();
        if self.out.len() + len > MOST || len >= STRAIGHT {
            ready!(self.poll_send(cx))?;
        }
        if len >= STRAIGHT {
            return Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        }
        slices.iter().for_each(|slice| self.out.extend_from_slice(slice));
        Poll::Ready(Ok(len))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Line<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut wire = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Pin::new(&mut wire.stream).poll_read(cx, buf)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Line<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.wire().poll_write(cx, &[IoSlice::new(buf)])
    }

    /// Nothing yet: HTTP/2 flushes after each frame.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut wire = self.wire();
        ready!(wire.poll_send(cx))?;
        Pin::new(&mut wire.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.wire().poll_write(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn small_writes_wait_and_leave_in_one_piece() {
        let (near, mut far) = tokio::io::duplex(MOST);
        let mut line = Line::new(near);
        line.write_all(b"one ").await.unwrap();
        line.flush().await.unwrap();
        line.write_all(b"two").await.unwrap();
        let mut got = [0; 16];
        let early = tokio::time::timeout(std::time::Duration::from_millis(20), far.read(&mut got)).await;
        assert!(early.is_err(), "something left before its time");
        assert!(line.poll_send(&mut Context::from_waker(Waker::noop())).is_ready());
        let len = far.read(&mut got).await.unwrap();
        assert_eq!(&got[..len], b"one two");
    }

    #[tokio::test]
    async fn everything_arrives_in_order_whatever_its_size_and_however_slow_the_reader() {
        let (near, mut far) = tokio::io::duplex(1000);
        let mut line = Line::new(near);
        let sizes = [1, STRAIGHT - 1, 5, STRAIGHT, MOST, 17, 2 * MOST, 3];
        let sent: Vec<u8> = (0..sizes.iter().sum::<usize>()).map(|n| (n * 31 / 7) as u8).collect();
        let expected = sent.clone();
        let reading = tokio::spawn(async move {
            let mut got = Vec::new();
            far.read_to_end(&mut got).await.unwrap();
            got
        });
        let mut rest = &sent[..];
        for size in sizes {
            let (piece, behind) = rest.split_at(size);
            line.write_all(piece).await.unwrap();
            rest = behind;
        }
        line.shutdown().await.unwrap();
        drop(line);
        assert!(reading.await.unwrap() == expected);
    }
}
