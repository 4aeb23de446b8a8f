//! What HTTP/2 writes to a connection in one go leaves in one piece: an acknowledged ping and the answer beside it, or
//! the sixteen frames that a chunk of content is cut into. Each write that the kernel is spared is a wake-up that the
//! client is spared, too. What comes in is read in large pieces while there is much of it. What is a file's, mapped, the
//! kernel sends from its own memory, to those who take large frames.

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt as _;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use gantry_engine::content::{Origin, origin};
use nix::sys::sendfile::sendfile;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::UnixStream;

use crate::greeting::Greeting;
use crate::listen::Io;

/// Bytes that wait at most: eight frames of the size that clients take who ask for no other, 16 KiB.
const MOST: usize = 136 << 10;

/// A write of this many bytes goes straight through: to copy it would cost more than it saves.
const STRAIGHT: usize = 32 << 10;

/// Bytes that are read in one go from a client that has much to say: HTTP/2 asks for 8 KiB at a time, and a frame of
/// 16 KiB would be two calls of the kernel.
const INBOX: usize = 128 << 10;

/// A read of fewer bytes means that the client has not that much to say any more.
const MUCH: usize = 8 << 10;

/// Fewer bytes HTTP/2 copies itself, so that they are nobody's any more.
const CHAINED: usize = 256;

/// A connection whose small writes wait for [`Line::poll_send`], which whoever polls the connection calls after that.
/// Clones share it.
pub(crate) struct Line<T>(Arc<Mutex<Wire<T>>>);

impl<T> Clone for Line<T> {
    fn clone(&self) -> Line<T> {
        Line(Arc::clone(&self.0))
    }
}

/// Whether the kernel sends files to a client: small frames it would cut out of them one by one.
#[derive(Clone, Debug, Default)]
pub(crate) struct TakesFiles(Arc<AtomicBool>);

impl TakesFiles {
    /// False until the client has said what it takes, which it does before its first call.
    pub(crate) fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

struct Wire<T> {
    stream: T,
    /// Until the client has said what it takes.
    greeting: Option<Greeting>,
    takes_files: TakesFiles,
    inbox: Inbox,
    /// What waits, from `sent` to `held`; behind that is only room.
    out: Vec<u8>,
    sent: usize,
    held: usize,
}

/// What a client that has much to say has said, and HTTP/2 has not taken yet.
#[derive(Default)]
struct Inbox {
    /// Memory since the client had much to say, until it has little; none else.
    bytes: Box<[u8]>,
    taken: usize,
    held: usize,
}

impl Inbox {
    fn poll_read(&mut self, from: &mut impl Io, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.taken == self.held {
            if self.bytes.is_empty() {
                return self.poll_read_past(from, cx, to);
            }
            let mut bytes = ReadBuf::new(&mut self.bytes);
            ready!(Pin::new(from).poll_read(cx, &mut bytes))?;
            (self.taken, self.held) = (0, bytes.filled().len());
        }
        let rest = &self.bytes[self.taken..self.held];
        let (now, _) = rest.split_at(rest.len().min(to.remaining()));
        to.put_slice(now);
        self.taken += now.len();
        if self.taken == self.held && self.held < MUCH {
            *self = Inbox::default();
        }
        Poll::Ready(Ok(()))
    }

    /// Reads without it, and opens it where there was more than found room.
    fn poll_read_past(
        &mut self,
        from: &mut impl Io,
        cx: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let room = to.remaining();
        ready!(Pin::new(from).poll_read(cx, to))?;
        if to.remaining() == 0 && (MUCH..INBOX).contains(&room) {
            self.bytes = vec![0; INBOX].into();
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: Io> Line<T> {
    pub(crate) fn new(stream: T) -> Line<T> {
        let (greeting, takes_files) = (Some(Greeting::default()), TakesFiles::default());
        Line(Arc::new(Mutex::new(Wire {
            stream,
            greeting,
            takes_files,
            inbox: Inbox::default(),
            out: Vec::new(),
            sent: 0,
            held: 0,
        })))
    }

    /// Whether mapped bytes of a file are better than others.
    pub(crate) fn takes_files(&self) -> TakesFiles {
        self.wire().takes_files.clone()
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

impl<T: Io> Wire<T> {
    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(self.inbox.poll_read(&mut self.stream, cx, buf))?;
        if let Some(greeting) = &mut self.greeting
            && let Some(frame) = greeting.add(&buf.filled()[before..])
        {
            self.takes_files.0.store(self.stream.socket().is_some() && frame as usize >= STRAIGHT, Ordering::Relaxed);
            self.greeting = None;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.held == 0 {
            return Poll::Ready(Ok(()));
        }
        while self.sent < self.held {
            match ready!(Pin::new(&mut self.stream).poll_write(cx, &self.out[self.sent..self.held]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                sent => self.sent += sent,
            }
        }
        (self.sent, self.held) = (0, 0);
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let begin = slices.iter().take_while(|slice| slice.is_empty()).count();
        let slices = &slices[begin..];
        let from_file = slices.iter().position(|slice| slice.len() >= CHAINED && origin(slice).is_some());
        match from_file {
            None => self.poll_write_memory(cx, slices),
            Some(0) => self.poll_write_file(cx, &slices[0]),
            Some(ahead) => self.poll_write_memory(cx, &slices[..ahead]),
        }
    }

    fn poll_write_memory(&mut self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let len: usize = slices.iter().map(|slice| slice.len()).sum();
        ready!(self.poll_room(cx, len))?;
        if len >= STRAIGHT {
            return Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        }
        for slice in slices {
            self.place(slice.len()).copy_from_slice(slice);
            self.held += slice.len();
        }
        Poll::Ready(Ok(len))
    }

    /// Sends mapped bytes of a file without looking at them here.
    fn poll_write_file(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Some(Origin { file, offset }) = origin(bytes) else { return Poll::Ready(Ok(0)) };
        ready!(self.poll_room(cx, bytes.len()))?;
        if bytes.len() >= STRAIGHT
            && let Some(socket) = self.stream.socket()
        {
            return poll_send_file(socket, cx, &file, offset, bytes.len());
        }
        let len = bytes.len().min(MOST);
        file.read_exact_at(self.place(len), offset)?;
        self.held += len;
        Poll::Ready(Ok(len))
    }

    /// Room for `len` bytes behind what waits. It is kept: what was room before need not be made again.
    fn place(&mut self, len: usize) -> &mut [u8] {
        let end = self.held + len;
        if self.out.len() < end {
            self.out.resize(end, 0);
        }
        &mut self.out[self.held..end]
    }

    /// Sends what waits where `len` more bytes find no place beside it.
    fn poll_room(&mut self, cx: &mut Context<'_>, len: usize) -> Poll<io::Result<()>> {
        if self.held + len > MOST || len >= STRAIGHT { self.poll_send(cx) } else { Poll::Ready(Ok(())) }
    }
}

/// Has the kernel send up to `len` bytes of a file from `offset`.
fn poll_send_file(
    socket: &UnixStream,
    cx: &mut Context<'_>,
    file: &File,
    offset: u64,
    len: usize,
) -> Poll<io::Result<usize>> {
    let mut from = i64::try_from(offset).map_err(io::Error::other)?;
    loop {
        ready!(socket.poll_write_ready(cx))?;
        let sent = socket.try_io(Interest::WRITABLE, || Ok(sendfile(socket, file, Some(&mut from), len)?));
        match sent {
            Ok(0) => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            sent => return Poll::Ready(sent),
        }
    }
}

impl<T: Io> AsyncRead for Line<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.wire().poll_read(cx, buf)
    }
}

impl<T: Io> AsyncWrite for Line<T> {
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

    impl Io for tokio::io::DuplexStream {}

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

    #[tokio::test]
    async fn what_a_client_says_arrives_in_order_however_much_it_says_at_once() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let mut line = Line::new(near);
        let sizes = [1, MUCH, 100, 3 * INBOX, INBOX - 1, MUCH - 1, 5, MUCH, 40];
        let said: Vec<u8> = (0..sizes.iter().sum::<usize>()).map(|n| (n * 31 / 7) as u8).collect();
        let speaking = said.clone();
        let speaker = tokio::spawn(async move {
            let mut rest = &speaking[..];
            for size in sizes {
                let (piece, behind) = rest.split_at(size);
                far.write_all(piece).await.unwrap();
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
                rest = behind;
            }
        });
        // As HTTP/2 reads: 8 KiB, then what a frame lacks.
        let (mut got, mut piece, mut opened) = (Vec::<u8>::new(), [0; MUCH + 9], false);
        for room in (0..).map(|n| MUCH + n % 2 * 9) {
            let len = line.read(&mut piece[..room]).await.unwrap();
            got.extend(&piece[..len]);
            opened |= !line.wire().inbox.bytes.is_empty();
            if len == 0 {
                break;
            }
        }
        speaker.await.unwrap();
        assert!(got == said);
        assert!(opened, "all of it was read in small pieces");
        assert!(line.wire().inbox.bytes.is_empty(), "a client that has said all holds memory");
    }

    /// Whether one who begins with a setting for frames of that size is sent files.
    async fn takes_files(near: impl Io, mut far: impl AsyncWrite + Unpin, frame: u32) -> bool {
        let mut line = Line::new(near);
        assert!(!line.takes_files().get(), "nothing is known yet");
        far.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x06\x04\0\0\0\0\0\0\x05").await.unwrap();
        far.write_u32(frame).await.unwrap();
        line.read_exact(&mut [0; 24 + 9 + 6]).await.unwrap();
        line.takes_files().get()
    }

    #[tokio::test]
    async fn files_are_sent_to_clients_of_the_unix_socket_that_take_large_frames() {
        for (frame, takes) in [(16 << 10, false), (STRAIGHT as u32, true), (1 << 20, true)] {
            let (near, far) = UnixStream::pair().unwrap();
            assert_eq!(takes_files(near, far, frame).await, takes, "{frame}");
        }
        let (near, far) = tokio::io::duplex(1000);
        assert!(!takes_files(near, far, 1 << 20).await, "the kernel cannot");
    }

    /// A blob in a store, its reader, and its bytes.
    async fn blob(root: &std::path::Path, len: usize) -> (Arc<dyn gantry_engine::content::ReaderAt>, Vec<u8>) {
        let store = gantry_content::LocalStore::open(root).unwrap();
        let bytes: Vec<u8> = (0..len).map(|n| (n * 31 / 7) as u8).collect();
        let info = gantry_content::write_all(&store, "blob", bytes.clone().into(), gantry_content::Commit::default())
            .await
            .unwrap();
        (gantry_content::Store::reader(&store, &info.digest).await.unwrap(), bytes)
    }

    /// Sends the blob cut into frames as HTTP/2 does, each behind a header; what arrives must be the same.
    async fn frames_arrive(near: impl Io + 'static, mut far: impl AsyncRead + Unpin + Send + 'static) {
        let root = tempfile::tempdir().unwrap();
        let (reader, bytes) = blob(root.path(), 3 << 20).await;
        let mapped = reader.mapped(4097, 2 << 20).expect("it was just written");
        let reading = tokio::spawn(async move {
            let mut got = Vec::new();
            far.read_to_end(&mut got).await.unwrap();
            got
        });
        let (mut line, mut expected, mut from) = (Line::new(near), Vec::new(), 0);
        for len in [1, 255, 256, 16 << 10, 16 << 10, STRAIGHT - 1, STRAIGHT, MOST + 1, 256 << 10, 1 << 20, 77, 300] {
            let header = [len as u8; 9];
            let frame = &mapped[from..from + len];
            let mut slices = &mut [IoSlice::new(&header), IoSlice::new(frame)][..];
            while !slices.is_empty() {
                let sent = line.write_vectored(slices).await.unwrap();
                IoSlice::advance_slices(&mut slices, sent);
            }
            expected.extend(header);
            expected.extend(&bytes[4097 + from..4097 + from + len]);
            from += len;
        }
        line.shutdown().await.unwrap();
        drop(line);
        assert!(reading.await.unwrap() == expected);
    }

    #[tokio::test]
    async fn a_files_bytes_arrive_among_others_where_the_kernel_sends_them() {
        let (near, far) = UnixStream::pair().unwrap();
        frames_arrive(near, far).await;
    }

    #[tokio::test]
    async fn a_files_bytes_arrive_among_others_where_they_have_to_be_copied() {
        let (near, far) = tokio::io::duplex(1000);
        frames_arrive(near, far).await;
    }
}
