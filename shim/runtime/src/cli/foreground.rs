//! A process in the foreground: signals passed on, its terminal relayed, its exit code ours.

use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use gantry_runtime::spec::ConsoleSize;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::sys::termios::{self, SetArg, Termios};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::Failure;

/// The size a new terminal starts with. A caller with a console socket sets it through the master.
pub(super) fn size() -> Option<ConsoleSize> {
    None
}

/// Sends a descriptor to whoever listens on a unix socket.
pub(super) fn send_fd(path: &str, fd: RawFd) -> Result<(), Failure> {
    let failed = |source: std::io::Error| Failure::io(format!("socket {path}"), source);
    let socket = UnixStream::connect(path).map_err(failed)?;
    let message = [std::io::IoSlice::new(b"/dev/ptmx")];
    let fds = [fd];
    sendmsg::<()>(socket.as_raw_fd(), &message, &[ControlMessage::ScmRights(&fds)], MsgFlags::empty(), None)
        .map_err(|errno| failed(errno.into()))?;
    Ok(())
}

/// Signals that arrive as reads instead of interruptions.
pub(super) struct Signals(SignalFd);

impl Signals {
    /// Blocks every signal that can be passed on. Done before the process is made, so that none is lost; the new
    /// process starts with none blocked.
    pub(super) fn block() -> Result<Signals, Failure> {
        let mut set = SigSet::all();
        for signal in [Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGILL, Signal::SIGFPE, Signal::SIGURG] {
            set.remove(signal);
        }
        let failed = |errno: nix::Error| Failure::io("signals", errno);
        set.thread_block().map_err(failed)?;
        SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map(Signals).map_err(failed)
    }
}

/// The caller's terminal in raw mode, put back at the end.
struct Raw(Option<Termios>);

impl Raw {
    fn enter() -> Raw {
        let stdin = std::io::stdin();
        let old = termios::tcgetattr(stdin.as_fd()).ok();
        if let Some(old) = &old {
            let mut raw = old.clone();
            termios::cfmakeraw(&mut raw);
            let _ = termios::tcsetattr(stdin.as_fd(), SetArg::TCSANOW, &raw);
        }
        Raw(old)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(old) = &self.0 {
            let _ = termios::tcsetattr(std::io::stdin().as_fd(), SetArg::TCSANOW, old);
        }
    }
}

/// Waits for a child's end while passing signals and terminal on; its exit code, 128 + signal if killed.
pub(super) fn attend(signals: Signals, pid: i32, console: Option<OwnedFd>) -> Result<u8, Failure> {
    let _raw = console.as_ref().map(|_| Raw::enter());
    let mut console = console.map(std::fs::File::from);
    let mut input = true;
    loop {
        if let Some(code) = ended(pid)? {
            if let Some(console) = &mut console {
                drain(console);
            }
            return Ok(code);
        }
        let stdin = std::io::stdin();
        let mut fds = vec![PollFd::new(signals.0.as_fd(), PollFlags::POLLIN)];
        if let Some(console) = &console {
            fds.push(PollFd::new(console.as_fd(), PollFlags::POLLIN));
            if input {
                fds.push(PollFd::new(stdin.as_fd(), PollFlags::POLLIN));
            }
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Err(nix::Error::EINTR) => continue,
            other => other.map_err(|errno| Failure::io("poll", errno))?,
        };
        let ready = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect::<Vec<_>>();
        if ready[0] {
            pass_signals(&signals, pid);
        }
        if ready.get(1) == Some(&true) && console.as_mut().is_some_and(|console| !relay(console)) {
            console = None;
        }
        if let (Some(true), Some(console)) = (ready.get(2), &mut console) {
            input = feed(console);
        }
    }
}

fn ended(pid: i32) -> Result<Option<u8>, Failure> {
    match waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG)) {
        Ok(WaitStatus::Exited(_, code)) => Ok(Some(code as u8)),
        Ok(WaitStatus::Signaled(_, signal, _)) => Ok(Some(128 + signal as u8)),
        Ok(_) => Ok(None),
        Err(errno) => Err(Failure::io("wait", errno)),
    }
}

fn pass_signals(signals: &Signals, pid: i32) {
    while let Ok(Some(info)) = signals.0.read_signal() {
        if let Ok(signal) = Signal::try_from(info.ssi_signo as i32)
            && signal != Signal::SIGCHLD
        {
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }
}

/// Copies what the terminal has to stdout; false at its end.
fn relay(console: &mut std::fs::File) -> bool {
    let mut buffer = [0u8; 4096];
    match console.read(&mut buffer) {
        Ok(0) | Err(_) => false,
        Ok(length) => {
            let mut stdout = std::io::stdout();
            stdout.write_all(&buffer[..length]).and_then(|()| stdout.flush()).is_ok()
        }
    }
}

fn drain(console: &mut std::fs::File) {
    loop {
        let mut fds = [PollFd::new(console.as_fd(), PollFlags::POLLIN)];
        let more = poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0);
        if !more || !relay(console) {
            return;
        }
    }
}

/// Copies input to the terminal; false at its end.
fn feed(console: &mut std::fs::File) -> bool {
    let mut buffer = [0u8; 4096];
    match std::io::stdin().read(&mut buffer) {
        Ok(0) | Err(_) => false,
        Ok(length) => console.write_all(&buffer[..length]).is_ok(),
    }
}
