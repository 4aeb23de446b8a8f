//! A process that does nothing: systemd makes a scope only around one, and ends the scope with its last.

use std::os::fd::RawFd;

use crate::error::{Error, Result};
use crate::sys::{self, CloneArgs, Fd};

/// The process. Dropping it kills and reaps it.
#[derive(Debug)]
pub(crate) struct Holder {
    pid: i32,
    pidfd: Fd,
}

impl Holder {
    /// Makes it. It dies with its maker.
    pub(crate) fn new() -> Result<Holder> {
        let failed = |errno| Error::system("clone3", std::io::Error::from_raw_os_error(errno));
        let mut pidfd: RawFd = -1;
        let pid = sys::clone3(&CloneArgs {
            flags: libc::CLONE_PIDFD as u64,
            pidfd: (&raw mut pidfd) as u64,
            exit_signal: libc::SIGCHLD as u64,
            ..CloneArgs::default()
        })
        .map_err(failed)?;
        if pid == 0 {
            idle();
        }
        Ok(Holder { pid, pidfd: Fd(pidfd) })
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }
}

fn idle() -> ! {
    let _ = sys::raw!(libc::SYS_prctl, libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
    loop {
        let _ = sys::raw!(libc::SYS_ppoll, 0, 0, 0, 0, 8);
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        sys::kill_child(self.pid, self.pidfd.0);
    }
}
