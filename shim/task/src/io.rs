//! Standard streams of a process: from the strings of a request to descriptors and copiers.
//!
//! Between container and world stands a pipe of ours, so that the container never holds a fifo or log file itself: it
//! could reopen or truncate it. Bytes go on by splice.

mod attached;
mod prepared;
#[cfg(test)]
mod tests;

use std::os::fd::OwnedFd;

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::Error;
use crate::copy::Copiers;
use crate::tee::Tees;

pub use attached::Attached;
pub use prepared::Prepared;

/// The standard streams as a request names them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Streams {
    /// Empty for none.
    pub stdin: String,
    /// Empty for none.
    pub stdout: String,
    /// Empty for none; unused with a terminal.
    pub stderr: String,
    /// Whether the process gets a terminal.
    pub terminal: bool,
}

/// What moves bytes: straight from end to end, or into a log.
#[derive(Debug)]
pub struct Movers {
    /// From end to end.
    pub copiers: Copiers,
    /// Into logs.
    pub tees: Tees,
}

/// Who owns the pipes that a process gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PipeOwner {
    /// User id on the host.
    pub uid: u32,
    /// Group id on the host.
    pub gid: u32,
}

/// Makes a descriptor's reads and writes return at once.
pub(crate) fn no_block(fd: &OwnedFd) -> Result<(), Error> {
    let failed = |error| Error::system("fcntl", error);
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL).map_err(failed)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map_err(failed)?;
    Ok(())
}
