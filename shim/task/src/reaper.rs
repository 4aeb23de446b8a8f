//! Children and signals: a signalfd for the loop, and the harvest of whatever has ended.
//!
//! The shim is a sub-reaper: besides the processes it made, orphans of the container end up here.

use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;

use crate::Error;

/// Signals as a descriptor.
#[derive(Debug)]
pub struct Signals {
    fd: SignalFd,
}

/// What the signals said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Noted {
    /// Some child may have ended.
    pub child: bool,
    /// The shim is asked to go.
    pub terminate: bool,
}

impl Signals {
    /// Blocks SIGCHLD, SIGTERM and SIGINT and makes them readable; adopts orphans from now on.
    ///
    /// # Errors
    /// [`Error::System`].
    pub fn new() -> Result<Signals, Error> {
        nix::sys::prctl::set_child_subreaper(true).map_err(|error| Error::system("prctl", error))?;
        let mut set = SigSet::empty();
        for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT] {
            set.add(signal);
        }
        set.thread_block().map_err(|error| Error::system("sigprocmask", error))?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let fd = SignalFd::with_flags(&set, flags).map_err(|error| Error::system("signalfd", error))?;
        Ok(Signals { fd })
    }

    /// Takes one that is pending; for a further one the descriptor stays readable. Several deaths may share one signal:
    /// reap until none is left.
    pub fn take(&self) -> Noted {
        let mut noted = Noted::default();
        if let Ok(Some(signal)) = self.fd.read_signal() {
            match i32::try_from(signal.ssi_signo) {
                Ok(libc::SIGCHLD) => noted.child = true,
                Ok(_) => noted.terminate = true,
                Err(_) => {}
            }
        }
        noted
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A child that ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dead {
    /// Its process id; free for reuse from now on.
    pub pid: i32,
    /// Its exit status, or 128 + the signal that ended it.
    pub status: u32,
}

/// Takes one child that has ended, of whatever origin.
pub fn reap() -> Option<Dead> {
    loop {
        match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
            Ok(status) => match dead(status) {
                Some(dead) => return Some(dead),
                None if status == WaitStatus::StillAlive => return None,
                None => {}
            },
            Err(Errno::EINTR) => {}
            Err(_) => return None,
        }
    }
}

/// Whether a child has ended but was not reaped yet.
pub fn has_ended(pid: i32) -> bool {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    !matches!(waitid(Id::Pid(Pid::from_raw(pid)), flags), Ok(WaitStatus::StillAlive))
}

fn dead(status: WaitStatus) -> Option<Dead> {
    match status {
        WaitStatus::Exited(pid, code) => Some(Dead { pid: pid.as_raw(), status: u32::try_from(code).unwrap_or(255) }),
        WaitStatus::Signaled(pid, signal, _) => {
            Some(Dead { pid: pid.as_raw(), status: 128 + u32::try_from(signal as i32).unwrap_or(0) })
        }
        _ => None,
    }
}
