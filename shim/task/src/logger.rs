//! `binary://` and `binary-v2://` stdio: a program that takes a container's output over pipes.
//!
//! It finds stdout at descriptor 3, stderr at 4, and at 5 a pipe by which it says that it is ready: by closing it
//! (binary), or by one byte (binary-v2). Container and namespace are in its environment, the URI's query in its arguments.

use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, pipe2};

use crate::target::Program;
use crate::{Error, sys};

/// How long a logger may take to say that it is ready.
const READY: Duration = Duration::from_secs(10);

/// A running logger. It is a child of the shim, which reaps it.
#[derive(Debug)]
pub struct Logger {
    /// Its process id.
    pub pid: i32,
}

/// Whose output it takes.
#[derive(Clone, Copy, Debug)]
pub struct Owner<'a> {
    /// The container.
    pub id: &'a str,
    /// Its namespace.
    pub namespace: &'a str,
}

/// Starts a logger and waits until it is ready.
///
/// # Errors
/// [`Error::Program`] when it cannot be started or ends early, [`Error::Late`] when it does not become ready.
pub fn start(program: &Program, owner: Owner<'_>, stdout: &OwnedFd, stderr: &OwnedFd) -> Result<Logger, Error> {
    let failed = |reason: String| Error::Program { program: program.path.clone(), verb: "as logger", reason };
    let (ready, telling) = pipe2(OFlag::O_CLOEXEC).map_err(|error| Error::system("pipe", error))?;
    let mut command = Command::new(&program.path);
    command.args(&program.args).env("CONTAINER_ID", owner.id).env("CONTAINER_NAMESPACE", owner.namespace);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    sys::detach(&mut command, &[stdout.as_fd(), stderr.as_fd(), telling.as_fd()]);
    let child = command.spawn().map_err(|error| failed(error.to_string()))?;
    drop((command, telling));
    let logger = Logger { pid: child.id().cast_signed() };
    match wait_ready(ready, program.wants_byte) {
        Ok(()) => Ok(logger),
        Err(error) => {
            logger.signal(Signal::SIGKILL);
            Err(match error.kind() {
                io::ErrorKind::TimedOut => {
                    Error::Late { program: program.path.clone(), verb: "as logger", seconds: READY.as_secs() }
                }
                _ => failed(error.to_string()),
            })
        }
    }
}

impl Logger {
    /// Sends a signal; call it only until the logger was reaped.
    pub fn signal(&self, signal: Signal) {
        // It may have ended by itself: then there is nothing to do.
        let _ = kill(Pid::from_raw(self.pid), signal);
    }
}

fn wait_ready(pipe: OwnedFd, wants_byte: bool) -> io::Result<()> {
    let mut fds = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
    if poll(&mut fds, PollTimeout::try_from(READY).unwrap_or(PollTimeout::MAX))? == 0 {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let count = std::fs::File::from(pipe).read(&mut [0])?;
    match (wants_byte, count) {
        (true, 0) => Err(io::Error::other("ended before it was ready")),
        _ => Ok(()),
    }
}
