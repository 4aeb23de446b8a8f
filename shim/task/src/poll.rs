//! The one wait of the shim: epoll, with tokens that say what became ready.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::Error;

/// How many descriptors are reported at once.
const BATCH: usize = 32;

/// What a descriptor belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    /// The listening socket.
    Listener,
    /// Signals.
    Signals,
    /// The connection to the daemon.
    Publisher,
    /// A connection of a client.
    Connection(u32),
    /// The source of a copier.
    CopySource(u32),
    /// The sink of a copier.
    CopySink(u32),
    /// A watch for out-of-memory kills.
    Oom(u32),
    /// The source of a logged stream.
    Tee(u32),
    /// A pipe of somebody attached.
    Attacher(u32),
}

impl Token {
    fn to_u64(self) -> u64 {
        let (kind, number) = match self {
            Token::Listener => (0, 0),
            Token::Signals => (1, 0),
            Token::Publisher => (2, 0),
            Token::Connection(n) => (3, n),
            Token::CopySource(n) => (4, n),
            Token::CopySink(n) => (5, n),
            Token::Oom(n) => (6, n),
            Token::Tee(n) => (7, n),
            Token::Attacher(n) => (8, n),
        };
        kind << 32 | u64::from(number)
    }

    fn of_u64(bits: u64) -> Option<Token> {
        let number = u32::try_from(bits & u64::from(u32::MAX)).ok()?;
        Some(match bits >> 32 {
            0 => Token::Listener,
            1 => Token::Signals,
            2 => Token::Publisher,
            3 => Token::Connection(number),
            4 => Token::CopySource(number),
            5 => Token::CopySink(number),
            6 => Token::Oom(number),
            7 => Token::Tee(number),
            8 => Token::Attacher(number),
            _ => return None,
        })
    }
}

/// A descriptor that became ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    /// Which.
    pub token: Token,
    /// It can be read, or the peer is gone.
    pub readable: bool,
    /// It can be written, or the peer is gone.
    pub writable: bool,
}

/// What to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interest {
    /// Until it can be read.
    pub read: bool,
    /// Until it can be written.
    pub write: bool,
}

impl Interest {
    /// Until it can be read.
    pub const READ: Interest = Interest { read: true, write: false };
    /// Until it can be written.
    pub const WRITE: Interest = Interest { read: false, write: true };

    fn flags(self) -> EpollFlags {
        let mut flags = EpollFlags::empty();
        flags.set(EpollFlags::EPOLLIN, self.read);
        flags.set(EpollFlags::EPOLLOUT, self.write);
        flags
    }
}

/// An epoll instance, level triggered.
#[derive(Debug)]
pub struct Poller {
    epoll: Epoll,
}

impl Poller {
    /// Makes one.
    ///
    /// # Errors
    /// [`Error::System`].
    pub fn new() -> Result<Poller, Error> {
        let epoll =
            Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(|error| Error::system("epoll_create", error))?;
        Ok(Poller { epoll })
    }

    /// Starts waiting for a descriptor.
    ///
    /// # Errors
    /// [`Error::System`]; `EPERM` for a regular file, which is always ready.
    pub fn add(&self, fd: impl AsFd, token: Token, interest: Interest) -> Result<(), Error> {
        self.epoll
            .add(fd, EpollEvent::new(interest.flags(), token.to_u64()))
            .map_err(|error| Error::system("epoll_ctl", error))
    }

    /// Changes what is waited for.
    ///
    /// # Errors
    /// [`Error::System`].
    pub fn modify(&self, fd: impl AsFd, token: Token, interest: Interest) -> Result<(), Error> {
        let mut event = EpollEvent::new(interest.flags(), token.to_u64());
        self.epoll.modify(fd, &mut event).map_err(|error| Error::system("epoll_ctl", error))
    }

    /// Stops waiting for a descriptor; one that was not waited for is fine.
    pub fn remove(&self, fd: BorrowedFd<'_>) {
        let _ = self.epoll.delete(fd);
    }

    /// Stops waiting for a descriptor and closes it. Closing alone is not enough where another process holds it too.
    pub fn close(&self, fd: Option<OwnedFd>) {
        if let Some(fd) = fd {
            self.remove(fd.as_fd());
        }
    }

    /// Waits until something is ready or `deadline` has passed, and appends what is to `ready`.
    ///
    /// # Errors
    /// [`Error::System`].
    pub fn wait(&self, deadline: Option<Instant>, ready: &mut Vec<Ready>) -> Result<(), Error> {
        let mut events = [EpollEvent::empty(); BATCH];
        let count = match self.epoll.wait(&mut events, timeout(deadline)) {
            Ok(count) => count,
            Err(nix::errno::Errno::EINTR) => 0,
            Err(error) => return Err(Error::system("epoll_wait", error)),
        };
        ready.extend(events[..count].iter().filter_map(|event| {
            let gone = event.events().intersects(EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR);
            let readable = gone || event.events().contains(EpollFlags::EPOLLIN);
            let writable = gone || event.events().contains(EpollFlags::EPOLLOUT);
            Some(Ready { token: Token::of_u64(event.data())?, readable, writable })
        }));
        Ok(())
    }
}

/// Rounded up, so that the deadline has passed when the wait ends by it.
fn timeout(deadline: Option<Instant>) -> EpollTimeout {
    let Some(deadline) = deadline else { return EpollTimeout::NONE };
    let left = deadline.saturating_duration_since(Instant::now()).as_micros().div_ceil(1000);
    EpollTimeout::try_from(i32::try_from(left).unwrap_or(i32::MAX)).unwrap_or(EpollTimeout::NONE)
}
