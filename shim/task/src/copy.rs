//! Moves bytes from one descriptor to another without ever blocking: spliced within the kernel where it can be.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{SpliceFFlags, splice};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{read, write};

use crate::log;
use crate::poll::{Interest, Poller, Token};

/// Most that one copier moves before others have their turn.
const BUDGET: usize = 256 << 10;
/// Bytes asked of the kernel at a time.
const CHUNK: usize = 64 << 10;
/// Size of the buffer for what cannot be spliced.
const SCRATCH: usize = 8 << 10;

/// How often to look whether a reader came to a fifo whose writer has ended.
const LOOK: Duration = Duration::from_millis(20);

/// What becomes of bytes the sink refuses for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sink {
    /// A process's stdin: nobody reads it any more, so the source is closed.
    Input,
    /// A process's output: it is read on and dropped, for the process must not feel it.
    Output,
}

/// Where a copier stands after a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    WaitSource,
    WaitSink,
    Done,
}

#[derive(Debug)]
struct Copier {
    source: OwnedFd,
    /// None once it failed, or to throw the bytes away.
    sink: Option<OwnedFd>,
    kind: Sink,
    spliced: bool,
    pending: Vec<u8>,
    waits_for: Turn,
    /// End as soon as the source has nothing to give.
    closing: bool,
}

/// All copiers of the shim.
#[derive(Debug)]
pub struct Copiers {
    poller: Rc<Poller>,
    by_number: BTreeMap<u32, Copier>,
    /// Fifos whose writer has ended before anybody read: closing them now would lose the bytes, and let a reader wait
    /// for ever for a writer.
    unread: BTreeMap<u32, OwnedFd>,
    look_at: Option<Instant>,
    next: u32,
}

impl Copiers {
    /// None yet.
    pub fn new(poller: Rc<Poller>) -> Copiers {
        Copiers { poller, by_number: BTreeMap::new(), unread: BTreeMap::new(), look_at: None, next: 0 }
    }

    /// Starts copying; both descriptors must not block. No sink throws the bytes away.
    pub fn add(&mut self, source: OwnedFd, sink: Option<OwnedFd>, kind: Sink) -> u32 {
        let number = self.next;
        self.next = self.next.wrapping_add(1);
        if let Err(error) = self.poller.add(&source, Token::CopySource(number), Interest::READ) {
            log::warning("a stream cannot be waited for", &error);
            return number;
        }
        let waits_for = Turn::WaitSource;
        let pending = Vec::new();
        let copier = Copier { source, sink, kind, spliced: true, pending, waits_for, closing: false };
        self.by_number.insert(number, copier);
        number
    }

    /// Whether a copier is still at work.
    pub fn is_open(&self, number: u32) -> bool {
        self.by_number.contains_key(&number)
    }

    /// Lets a copier work on, when one of its descriptors is ready. An ended one is ignored.
    pub fn turn(&mut self, number: u32) {
        let Some(copier) = self.by_number.get_mut(&number) else { return };
        let turn = copier.turn();
        if turn == copier.waits_for {
            return;
        }
        match turn {
            Turn::Done => self.ended(number),
            wanted => self.wait_for(number, wanted),
        }
    }

    /// Ends a copier once its source is empty, without waiting for its writers to close it.
    pub fn close_when_empty(&mut self, number: u32) {
        let Some(copier) = self.by_number.get_mut(&number) else { return };
        copier.closing = true;
        self.turn(number);
    }

    /// Takes what is there, without waiting, and ends the copier.
    pub fn finish(&mut self, number: u32) {
        while let Some(copier) = self.by_number.get_mut(&number) {
            copier.closing = true;
            // While it waits for its source there may be more than one turn's budget left; a full sink is given up.
            let turn = copier.turn();
            if turn == Turn::Done || turn == Turn::WaitSink || !copier.has_more() {
                self.drop(number);
            }
        }
    }

    /// Ends a copier at once.
    pub fn drop(&mut self, number: u32) {
        self.unread.remove(&number);
        self.take(number);
    }

    /// When to call [`Copiers::tick`].
    pub fn deadline(&self) -> Option<Instant> {
        self.look_at
    }

    /// Closes the fifos that have found a reader.
    pub fn tick(&mut self, now: Instant) {
        if self.look_at.is_some_and(|at| at <= now) {
            self.unread.retain(|_, fifo| !has_reader(fifo));
            self.look_at = (!self.unread.is_empty()).then(|| now + LOOK);
        }
    }

    /// The source is at its end.
    fn ended(&mut self, number: u32) {
        let Some(sink) = self.take(number).and_then(|copier| copier.sink) else { return };
        if let Some(fifo) = writing_end(sink).filter(|fifo| !has_reader(fifo)) {
            self.unread.insert(number, fifo);
            self.look_at.get_or_insert_with(|| Instant::now() + LOOK);
        }
    }

    fn take(&mut self, number: u32) -> Option<Copier> {
        let copier = self.by_number.remove(&number)?;
        // Closing is not enough: another process may hold the same open file.
        self.poller.remove(copier.source.as_fd());
        if let Some(sink) = &copier.sink {
            self.poller.remove(sink.as_fd());
        }
        Some(copier)
    }

    /// Level-triggered descriptors that nobody waits for must not stay registered: a closed peer would wake us for ever.
    fn wait_for(&mut self, number: u32, wanted: Turn) {
        let Some(copier) = self.by_number.get_mut(&number) else { return };
        copier.waits_for = wanted;
        let added = match (wanted, &copier.sink) {
            (Turn::WaitSink, Some(sink)) => {
                self.poller.remove(copier.source.as_fd());
                self.poller.add(sink, Token::CopySink(number), Interest::WRITE)
            }
            (_, sink) => {
                if let Some(sink) = sink {
                    self.poller.remove(sink.as_fd());
                }
                self.poller.add(&copier.source, Token::CopySource(number), Interest::READ)
            }
        };
        if let Err(error) = added {
            log::warning("a stream cannot be waited for and is closed", &error);
            self.drop(number);
        }
    }
}

impl Copier {
    fn turn(&mut self) -> Turn {
        let mut moved = 0;
        while moved < BUDGET {
            if let Some(turn) = self.flush() {
                return turn;
            }
            match self.step() {
                Ok(0) => return Turn::Done,
                Ok(n) => moved += n,
                Err(turn) => return turn,
            }
        }
        Turn::WaitSource
    }

    /// Writes what an earlier turn could not.
    fn flush(&mut self) -> Option<Turn> {
        while !self.pending.is_empty() {
            let Some(sink) = &self.sink else {
                self.pending.clear();
                break;
            };
            match write(sink, &self.pending) {
                Ok(n) => drop(self.pending.drain(..n)),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Some(Turn::WaitSink),
                Err(error) => return self.refused(error),
            }
        }
        self.pending.shrink_to(0);
        None
    }

    /// Moves some bytes: how many (0 at the end), or what to wait for.
    fn step(&mut self) -> Result<usize, Turn> {
        match (&self.sink, self.spliced) {
            (Some(sink), true) => {
                let flags = SpliceFFlags::SPLICE_F_NONBLOCK | SpliceFFlags::SPLICE_F_MOVE;
                match splice(&self.source, None, sink, None, CHUNK, flags) {
                    Ok(n) => Ok(n),
                    Err(Errno::EINTR) => Err(Turn::WaitSource),
                    Err(Errno::EAGAIN) if self.has_more() => Err(Turn::WaitSink),
                    Err(Errno::EAGAIN) => Err(self.empty()),
                    // Terminals, files opened for appending, a sink that is gone: reading and writing tells which.
                    Err(_) => {
                        self.spliced = false;
                        self.step()
                    }
                }
            }
            _ => self.read_some(),
        }
    }

    fn read_some(&mut self) -> Result<usize, Turn> {
        let mut scratch = [0; SCRATCH];
        match read(&self.source, &mut scratch) {
            Ok(n) => {
                self.pending.extend_from_slice(&scratch[..n]);
                match self.flush() {
                    Some(turn) if n > 0 => Err(turn),
                    _ => Ok(n),
                }
            }
            Err(Errno::EINTR) => Err(Turn::WaitSource),
            Err(Errno::EAGAIN) => Err(self.empty()),
            // A terminal whose last user has gone answers EIO.
            Err(_) => Ok(0),
        }
    }

    fn empty(&self) -> Turn {
        if self.closing { Turn::Done } else { Turn::WaitSource }
    }

    fn refused(&mut self, error: Errno) -> Option<Turn> {
        if self.kind == Sink::Input {
            return Some(Turn::Done);
        }
        log::warning("output cannot be written", &error);
        self.pending.clear();
        if error != Errno::ENOSPC {
            self.sink = None;
        }
        None
    }

    /// Whether the source has bytes, or its end, to give now.
    fn has_more(&self) -> bool {
        let mut fds = [PollFd::new(self.source.as_fd(), PollFlags::POLLIN)];
        let ready = poll(&mut fds, PollTimeout::ZERO).is_ok_and(|count| count > 0);
        ready && fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLIN))
    }
}

/// Gives up the reading half of a fifo held by both ends; none for anything else.
fn writing_end(sink: OwnedFd) -> Option<OwnedFd> {
    let path = format!("/proc/self/fd/{}", sink.as_raw_fd());
    if !std::fs::metadata(&path).ok()?.file_type().is_fifo() {
        return None;
    }
    let fifo = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(path).ok()?;
    Some(fifo.into())
}

/// A fifo's writing end is in error while nobody holds the other one.
fn has_reader(fifo: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(fifo.as_fd(), PollFlags::empty())];
    let _ = poll(&mut fds, PollTimeout::ZERO);
    !fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLERR))
}
