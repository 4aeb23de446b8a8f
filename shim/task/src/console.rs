//! Terminals: their size, and receiving one from a runtime's `--console-socket`.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use nix::cmsg_space;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use crate::{Error, sys};

/// How long a runtime may take to send the terminal after it said that it is done.
const WAIT: Duration = Duration::from_secs(5);

/// Sets a terminal's size in characters; sizes beyond what a terminal can hold are clamped.
///
/// # Errors
/// [`Error::System`].
pub fn resize(terminal: &OwnedFd, width: u32, height: u32) -> Result<(), Error> {
    let clamp = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
    sys::set_window(terminal.as_fd(), clamp(height), clamp(width)).map_err(|error| Error::system("TIOCSWINSZ", error))
}

/// A socket on which a runtime hands over the master of a new terminal (SCM_RIGHTS).
#[derive(Debug)]
pub struct ConsoleSocket {
    listener: UnixListener,
}

impl ConsoleSocket {
    /// Listens at `path`, which must not exist.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn listen(path: &Path) -> Result<ConsoleSocket, Error> {
        let listener = UnixListener::bind(path).map_err(|error| Error::file("listen", path, error))?;
        Ok(ConsoleSocket { listener })
    }

    /// Takes the terminal that was sent.
    ///
    /// # Errors
    /// [`Error::System`] when none comes in time.
    pub fn receive(&self) -> Result<OwnedFd, Error> {
        let failed = |error: io::Error| Error::system("receive the terminal", error);
        readable(&self.listener).map_err(failed)?;
        let (stream, _) = self.listener.accept().map_err(failed)?;
        readable(&stream).map_err(failed)?;
        let mut text = [0; 256];
        let mut slices = [IoSliceMut::new(&mut text)];
        let mut space = cmsg_space!([RawFd; 1]);
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message =
            recvmsg::<()>(stream.as_raw_fd(), &mut slices, Some(&mut space), flags).map_err(|e| failed(e.into()))?;
        let fd = message.cmsgs().map_err(|e| failed(e.into()))?.find_map(|control| match control {
            ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
            _ => None,
        });
        let fd = fd.ok_or_else(|| failed(io::Error::other("no descriptor came with the message")))?;
        sys::inherited(fd).map_err(failed)
    }
}

fn readable(fd: &impl AsFd) -> io::Result<()> {
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(WAIT).unwrap_or(PollTimeout::MAX);
    match poll(&mut fds, timeout)? {
        0 => Err(io::ErrorKind::TimedOut.into()),
        _ => Ok(()),
    }
}
