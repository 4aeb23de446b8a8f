//! Between async and blocking halves: bytes of a blob on their way to a thread that unpacks them, and bytes of a layer
//! on their way from the thread that makes it.

use std::io::{self, Read, Write};
use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use gantry_content::ReaderAt;
use tokio::sync::mpsc;

/// Pieces on the way; with pieces of 256 KiB that is 1 MiB.
const WAITING: usize = 4;
/// Size of a piece that is read or written.
const PIECE: usize = gantry_content::CHUNK;

/// The async end: pieces go in.
#[derive(Clone)]
pub(crate) struct Feed(mpsc::Sender<io::Result<Bytes>>);

/// The blocking end: a stream comes out.
pub(crate) struct Drain {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    current: Bytes,
    ended: bool,
}

/// A pipe of pieces.
pub(crate) fn pipe() -> (Feed, Drain) {
    let (sender, pieces) = mpsc::channel(WAITING);
    (Feed(sender), Drain { pieces, current: Bytes::new(), ended: false })
}

impl Feed {
    /// Hands a piece over, waiting while too many are on the way. False where nobody reads any more.
    pub(crate) async fn send(&self, piece: Bytes) -> bool {
        // An empty piece is the mark of the end.
        piece.is_empty() || self.0.send(Ok(piece)).await.is_ok()
    }

    /// Says that all pieces have been sent. Without it, the reader takes the stream for broken.
    pub(crate) async fn finish(self) {
        // A reader that went away needs no end.
        let _ = self.0.send(Ok(Bytes::new())).await;
    }

    /// Hands a whole blob over.
    pub(crate) async fn blob(self, reader: Arc<dyn ReaderAt>) {
        let mut offset = 0;
        while offset < reader.size() {
            match reader.read_at(offset, PIECE).await {
                Ok(piece) if !piece.is_empty() => {
                    offset += piece.len() as u64;
                    if !self.send(piece).await {
                        return;
                    }
                }
                Ok(_) => break,
                Err(error) => {
                    let _ = self.0.send(Err(io::Error::other(error))).await;
                    return;
                }
            }
        }
        self.finish().await;
    }
}

impl Read for Drain {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() && !self.ended {
            match self.pieces.blocking_recv() {
                Some(piece) => {
                    self.current = piece?;
                    self.ended = self.current.is_empty();
                }
                None => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the layer stopped coming")),
            }
        }
        let length = buffer.len().min(self.current.len());
        self.current.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}

/// The blocking end of a pipe in the other direction.
pub(crate) struct Spout {
    pieces: mpsc::Sender<Bytes>,
    gathered: BytesMut,
}

/// A pipe from a thread that writes.
pub(crate) fn spout() -> (Spout, mpsc::Receiver<Bytes>) {
    let (pieces, receiver) = mpsc::channel(WAITING);
    (Spout { pieces, gathered: BytesMut::new() }, receiver)
}

impl Spout {
    fn hand_over(&mut self) -> io::Result<()> {
        let piece = self.gathered.split().freeze();
        let gone = |_| io::Error::new(io::ErrorKind::BrokenPipe, "nobody takes the bytes any more");
        if piece.is_empty() { Ok(()) } else { self.pieces.blocking_send(piece).map_err(gone) }
    }
}

impl Write for Spout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.gathered.extend_from_slice(bytes);
        if self.gathered.len() >= PIECE {
            self.hand_over()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.hand_over()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stream_without_its_end_is_broken() {
        for finish in [true, false] {
            let (feed, mut drain) = pipe();
            let reading = tokio::task::spawn_blocking(move || {
                let mut all = Vec::new();
                drain.read_to_end(&mut all).map(|_| all)
            });
            assert!(feed.send(Bytes::from_static(b"abc")).await);
            if finish {
                feed.finish().await;
                assert_eq!(reading.await.unwrap().unwrap(), b"abc");
            } else {
                drop(feed);
                assert_eq!(reading.await.unwrap().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
            }
        }
    }
}
