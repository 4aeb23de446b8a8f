//! One run of `criu swrk`: started with its descriptors in place, spoken to over a socket, and its log read when it
//! fails.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use gantry_mount::sys as mount;
use prost::Message;

use super::rpc::{Kind, Request, Response};
use crate::error::{Error, Result};
use crate::sys::{self, Fd, Sys, bare, raw};

/// Number of the socket in the new process, as its command line says.
const SOCKET: i32 = 3;
/// Number of the first further descriptor there.
pub(crate) const FIRST: i32 = 4;
/// How long one step of CRIU may take: writing a container's memory is the longest.
const STEP: i32 = 600_000;
/// How long it may take to end when all is said.
const END: Duration = Duration::from_secs(20);
/// The largest answer.
const ANSWER: usize = 64 << 10;
/// How much of the end of a log is searched for errors.
const LOG: u64 = 256 << 10;

/// How to start it.
pub(crate) struct Setup<'a> {
    /// The program.
    pub(crate) program: &'a Path,
    /// Its streams, which a restored process inherits.
    pub(crate) stdio: [Option<BorrowedFd<'a>>; 3],
    /// Further descriptors, from [`FIRST`] on.
    pub(crate) descriptors: &'a [Fd],
    /// A mount namespace of its own with this tree at that place. Nothing of it is ever in the caller's.
    pub(crate) root: Option<(&'a Fd, CString)>,
}

/// A notice on the way: its name, the process it is about, a descriptor that came along.
pub(crate) struct Notice<'a> {
    pub(crate) script: &'a str,
    pub(crate) pid: i32,
    pub(crate) fd: Option<Fd>,
}

/// The running program. Dropping it ends it.
pub(crate) struct Swrk {
    child: Child,
    socket: Option<Fd>,
}

impl Swrk {
    /// Starts it.
    pub(crate) fn spawn(setup: Setup<'_>) -> Result<Swrk> {
        let failed = |errno| Error::system("start criu", std::io::Error::from_raw_os_error(errno));
        let (ours, theirs) = sys::socket_pair().map_err(failed)?;
        let mut descriptors = vec![above(theirs.0).map_err(failed)?];
        for fd in setup.descriptors {
            descriptors.push(above(fd.0).map_err(failed)?);
        }
        let mut command = Command::new(setup.program);
        command.args(["swrk", "3"]);
        let [stdin, stdout, stderr] = setup.stdio;
        command.stdin(stream(stdin)?).stdout(stream(stdout)?).stderr(stream(stderr)?);
        let root = setup.root.map(|(tree, at)| Ok::<_, Error>((above(tree.0).map_err(failed)?, at))).transpose()?;
        // SAFETY: the closure makes only system calls on memory that was prepared before the fork.
        unsafe {
            command.pre_exec(move || {
                prepare(&descriptors, root.as_ref().map(|(tree, at)| (tree, at)))
                    .map_err(std::io::Error::from_raw_os_error)
            });
        }
        let child = command.spawn().map_err(|error| not_started(setup.program, error))?;
        Ok(Swrk { child, socket: Some(ours) })
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Asks, answers its notices on the way, and returns the final answer. A failing notice makes CRIU take everything
    /// back; its error is the call's.
    pub(crate) fn call(
        &mut self,
        request: &Request,
        notice: &mut dyn FnMut(Notice<'_>) -> Result<()>,
    ) -> Result<Response> {
        let kind = Kind::try_from(request.kind).unwrap_or(Kind::Empty);
        self.send(request, kind)?;
        let mut refused = None;
        loop {
            let (answer, fd) = self.receive(kind).map_err(|error| refused.take().unwrap_or(error))?;
            if answer.kind != Kind::Notify as i32 {
                let success = answer.success && refused.is_none();
                return if success { Ok(answer) } else { Err(refused.unwrap_or_else(|| failure(kind, &answer))) };
            }
            let told = answer.notify.unwrap_or_default();
            let script = told.script.as_deref().unwrap_or_default();
            let result = notice(Notice { script, pid: told.pid.unwrap_or(0), fd });
            let success = result.is_ok();
            refused = refused.or(result.err());
            let reply = Request { kind: Kind::Notify as i32, notify_success: Some(success), ..Request::default() };
            // What was refused may have been killed with it, before it could hear so.
            self.send(&reply, kind).map_err(|error| refused.take().unwrap_or(error))?;
        }
    }

    /// Waits for its end after the last answer.
    pub(crate) fn finish(mut self, kind: Kind) -> Result<()> {
        self.socket = None;
        match self.wait(END) {
            // A pre-dump is the first of several for CRIU: it takes the closed socket for a failure.
            Some(status) if status.success() || kind == Kind::PreDump => Ok(()),
            Some(status) => Err(Error::Criu { command: kind.word(), reason: status.to_string() }),
            None => Err(Error::Timeout { what: "criu to end" }),
        }
    }

    fn wait(&mut self, limit: Duration) -> Option<std::process::ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return Some(status),
                Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(1)),
                _ => return None,
            }
        }
    }

    fn send(&self, request: &Request, kind: Kind) -> Result<()> {
        let bytes = request.encode_to_vec();
        let socket = self.socket.as_ref().map_or(-1, |socket| socket.0);
        raw!(libc::SYS_sendto, socket, bytes.as_ptr(), bytes.len(), libc::MSG_NOSIGNAL, 0usize, 0usize)
            .map(drop)
            .map_err(|errno| gone(kind, errno))
    }

    fn receive(&self, kind: Kind) -> Result<(Response, Option<Fd>)> {
        let socket = self.socket.as_ref().map_or(-1, |socket| socket.0);
        if !sys::readable(socket, STEP).map_err(|errno| gone(kind, errno))? {
            return Err(Error::Timeout { what: "criu's answer" });
        }
        let mut bytes = vec![0; ANSWER];
        let (length, fd) = sys::recv_fd(socket, &mut bytes, 0).map_err(|errno| gone(kind, errno))?;
        if length == 0 {
            return Err(Error::Criu { command: kind.word(), reason: "it ended without an answer".to_owned() });
        }
        let answer = Response::decode(&bytes[..length]);
        let bad = |error: prost::DecodeError| Error::Criu { command: kind.word(), reason: error.to_string() };
        Ok((answer.map_err(bad)?, fd))
    }
}

impl Drop for Swrk {
    fn drop(&mut self) {
        // The end of the stream makes it take back what it did; killing it would leave processes stopped.
        self.socket = None;
        if self.wait(END).is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn gone(kind: Kind, errno: i32) -> Error {
    Error::Criu { command: kind.word(), reason: std::io::Error::from_raw_os_error(errno).to_string() }
}

fn failure(kind: Kind, answer: &Response) -> Error {
    let errno = answer.errno.unwrap_or(0);
    let reason = match answer.message.as_deref().map(str::trim).filter(|text| !text.is_empty()) {
        Some(text) => text.to_owned(),
        None if errno > 0 => std::io::Error::from_raw_os_error(errno).to_string(),
        None => "no reason was given".to_owned(),
    };
    Error::Criu { command: kind.word(), reason }
}

fn not_started(program: &Path, error: std::io::Error) -> Error {
    if error.kind() == ErrorKind::NotFound {
        let what = format!("checkpoint and restore: CRIU is not installed ({} is not found)", program.display());
        return Error::Unsupported { what };
    }
    Error::file("start", program, error)
}

/// A copy out of the way of the numbers that are given out in the new process; closed at exec.
fn above(fd: i32) -> Sys<Fd> {
    raw!(libc::SYS_fcntl, fd, libc::F_DUPFD_CLOEXEC, 64).map(|fd| Fd(fd as i32))
}

fn stream(fd: Option<BorrowedFd<'_>>) -> Result<Stdio> {
    match fd {
        None => Ok(Stdio::null()),
        Some(fd) => fd.try_clone_to_owned().map(Stdio::from).map_err(|error| Error::system("dup", error)),
    }
}

/// In the new process: descriptors to their numbers, the root in a mount namespace of its own.
fn prepare(descriptors: &[Fd], root: Option<(&Fd, &CString)>) -> Sys<()> {
    // Criu must not outlive who would take back what it did.
    sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64, 0)?;
    for (at, fd) in descriptors.iter().enumerate() {
        raw!(libc::SYS_dup3, fd.0, SOCKET + at as i32, 0)?;
    }
    let Some((tree, at)) = root else { return Ok(()) };
    raw!(libc::SYS_unshare, libc::CLONE_NEWNS)?;
    let none = c"".as_ptr();
    raw!(libc::SYS_mount, none, c"/".as_ptr(), none, libc::MS_SLAVE | libc::MS_REC, 0usize)?;
    bare(mount::move_mount(tree.0, c"", mount::CWD, at, mount::MOVE_MOUNT_F_EMPTY_PATH))
}

/// The version, `30_000` for 3.0: asked by itself, so that a program that is missing or does not work on this kernel
/// is found out before anything is done.
pub(crate) fn version(program: &Path) -> Result<i32> {
    let (mut reader, writer) = std::io::pipe().map_err(|error| Error::system("pipe", error))?;
    let stdio = [None, Some(writer.as_fd()), Some(writer.as_fd())];
    let mut swrk = Swrk::spawn(Setup { program, stdio, descriptors: &[], root: None })?;
    let answer = swrk.call(&Request { kind: Kind::Version as i32, ..Request::default() }, &mut |_| Ok(()));
    drop(swrk);
    drop(writer);
    match answer {
        Ok(answer) => {
            let version = answer.version.unwrap_or_default();
            Ok(version.major * 10_000 + version.minor * 100 + version.sublevel.unwrap_or(0))
        }
        Err(error) => {
            let mut words = String::new();
            let _ = std::io::Read::by_ref(&mut reader).take(4096).read_to_string(&mut words);
            let last = words.lines().last().unwrap_or_default();
            let what = format!("checkpoint and restore: CRIU does not work on this system: {error} ({last})");
            Err(Error::Unsupported { what })
        }
    }
}

/// The errors in the log of a failed run, at most the last three.
pub(crate) fn errors_in_log(directory: &OwnedFd, name: &str) -> String {
    use std::io::Seek;
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}/{name}", directory.as_raw_fd());
    let Ok(mut log) = std::fs::File::options().read(true).custom_flags(libc::O_NOFOLLOW).open(path) else {
        return String::new();
    };
    let length = log.metadata().map_or(0, |metadata| metadata.len());
    let _ = log.seek(std::io::SeekFrom::Start(length.saturating_sub(LOG)));
    let mut bytes = Vec::new();
    let _ = log.take(LOG).read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes);
    let errors = text.lines().filter(|line| line.contains("Error")).collect::<Vec<_>>();
    errors[errors.len().saturating_sub(3)..].join("; ")
}
