//! What came from the client for one stream and was not read yet: a bounded queue of pieces.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::mpsc;

/// Pieces that may wait.
const PIECES: usize = 32;
/// Largest piece: larger ones are cut.
pub(super) const PIECE: usize = 32 << 10;

/// A new queue.
pub(super) fn inbox() -> (Sender, Inbox) {
    let (send, receive) = mpsc::channel(PIECES);
    let ended = Arc::new(AtomicBool::new(false));
    (Sender { pieces: send, ended: ended.clone() }, Inbox { pieces: receive, ended, rest: Bytes::new() })
}

/// The end that is filled. Dropped without [`Sender::end`], it tells the reader that the client went away.
#[derive(Clone, Debug)]
pub(super) struct Sender {
    pieces: mpsc::Sender<Bytes>,
    ended: Arc<AtomicBool>,
}

impl Sender {
    /// Waits for room. What nobody wants to read any more is dropped.
    pub(super) async fn send(&self, mut bytes: Bytes) {
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(PIECE));
            if self.pieces.send(piece).await.is_err() {
                return;
            }
        }
    }

    /// Nothing more comes: the client closed its side.
    pub(super) fn end(self) {
        self.ended.store(true, Ordering::Release);
    }
}

/// The end that is read.
#[derive(Debug)]
pub(super) struct Inbox {
    pieces: mpsc::Receiver<Bytes>,
    ended: Arc<AtomicBool>,
    rest: Bytes,
}

impl Inbox {
    /// The next bytes, none at the end.
    pub(super) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        if !self.rest.is_empty() {
            return Poll::Ready(Ok(Some(std::mem::take(&mut self.rest))));
        }
        match ready!(self.pieces.poll_recv(context)) {
            Some(piece) => Poll::Ready(Ok(Some(piece))),
            None if self.ended.load(Ordering::Acquire) => Poll::Ready(Ok(None)),
            None => Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the client went away"))),
        }
    }
}

impl AsyncRead for Inbox {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Some(mut piece) = ready!(self.poll_next(context))? else { return Poll::Ready(Ok(())) };
        to.put_slice(&piece.split_to(piece.len().min(to.remaining())));
        self.rest = piece;
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test]
    async fn bytes_come_in_order_and_the_end_is_told_from_a_loss() {
        let (sender, mut inbox) = inbox();
        tokio::spawn(async move {
            sender.send(vec![1; 3 * PIECE + 1].into()).await;
            sender.end();
        });
        let mut all = Vec::new();
        inbox.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, vec![1; 3 * PIECE + 1]);
        let (sender, mut lost) = super::inbox();
        sender.send(b"x"[..].into()).await;
        drop(sender);
        assert_eq!(lost.read_to_end(&mut all).await.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
    }

    #[tokio::test]
    async fn a_reader_that_does_not_read_makes_the_sender_wait() {
        let (sender, inbox) = inbox();
        let sent = sender.send(vec![0; (PIECES + 1) * PIECE].into());
        assert!(tokio::time::timeout(std::time::Duration::from_millis(50), sent).await.is_err());
        drop(inbox);
        sender.send(vec![0; 10 * PIECE].into()).await;
    }
}
