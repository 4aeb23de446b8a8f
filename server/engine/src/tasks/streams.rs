//! Streams of processes for callers in this process: pipes to and from a shim, attached to what runs or given to an
//! execution; and where a container's log is written.

use std::path::PathBuf;
use std::time::Duration;

use gantry_types::{Any, Scope};
use tokio::net::unix::pipe;

use super::Tasks;
use crate::{Error, Result};

/// Longest line of a log before it is split, unless set otherwise: what a kubelet expects.
pub const MAX_LOG_LINE: usize = 16 << 10;

/// Where a container's output shall go.
#[derive(Clone, Debug, Default)]
pub struct LogTo {
    /// File in Kubernetes' format, appended to, made if missing; none to keep nothing (attaching works all the same).
    pub path: Option<PathBuf>,
    /// Longest line, bytes; longer ones are split. 0: [`MAX_LOG_LINE`].
    pub max_line: usize,
    /// Whether the process has a standard input, for those who attach.
    pub stdin: bool,
    /// Whether it has a terminal.
    pub terminal: bool,
}

/// The streams of [`Create`](super::Create) that make a shim log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogIo {
    /// For `Create::stdin`.
    pub stdin: String,
    /// For `Create::stdout`.
    pub stdout: String,
    /// For `Create::stderr`.
    pub stderr: String,
}

/// Which streams of a process are wanted.
#[derive(Clone, Debug, Default)]
pub struct Attach {
    /// The container.
    pub container_id: String,
    /// Empty for its own process.
    pub exec_id: String,
    /// Whether the caller writes.
    pub stdin: bool,
    /// Whether it reads standard output; a terminal's output comes here.
    pub stdout: bool,
    /// Whether it reads standard error.
    pub stderr: bool,
    /// The caller's end of input is the process' for good.
    pub stdin_once: bool,
}

/// A process' streams in the caller's hands. Dropping one closes it.
#[derive(Debug, Default)]
pub struct Streams {
    /// To its standard input.
    pub stdin: Option<pipe::Sender>,
    /// From its standard output.
    pub stdout: Option<pipe::Receiver>,
    /// From its standard error.
    pub stderr: Option<pipe::Receiver>,
}

/// How attaching ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachEnd {
    /// The process has ended, and all its output is in the pipes.
    Exited,
    /// The caller closed its pipes.
    Closed,
    /// The caller read too slowly and was cut off: there is output it has not seen.
    Lagged,
}

/// Attached streams, and their end.
#[derive(Debug)]
pub struct Attached {
    /// The streams.
    pub streams: Streams,
    /// Gives the end, once it has come. Dropping it does not detach; dropping the streams does.
    pub end: tokio::task::JoinHandle<Result<AttachEnd>>,
}

/// An execution whose streams the caller takes.
#[derive(Clone, Debug, Default)]
pub struct RunExec {
    /// The container.
    pub container_id: String,
    /// The new process' id.
    pub exec_id: String,
    /// The process, an OCI `Process` in JSON.
    pub process: Option<Any>,
    /// A terminal instead of pipes; its output comes as standard output.
    pub terminal: bool,
    /// Whether it has a standard input.
    pub stdin: bool,
    /// How long it may run; then all that it started is killed, and its exit status is 137.
    pub timeout: Option<Duration>,
}

/// A running execution.
#[derive(Debug)]
pub struct RunningExec {
    /// Its process id on the host.
    pub pid: u32,
    /// Its streams.
    pub streams: Streams,
}

impl Tasks {
    /// The streams with which a container of that runtime logs by its shim, independent of this process: our own shim
    /// writes by itself; for others a program of ours is named as their logger.
    ///
    /// # Errors
    /// `NotFound` for a runtime without a binary, `InvalidArgument` for a path that is not absolute.
    pub async fn log_io(&self, runtime: &str, options: Option<&Any>, to: &LogTo) -> Result<LogIo> {
        let _ = (runtime, options, to);
        Err(Error::Unimplemented("a log by the shim"))
    }

    /// Opens a container's log anew, after its file was renamed: every line is whole in the old or in the new file.
    ///
    /// # Errors
    /// `NotFound`, `Unimplemented` for a container that does not log by its shim.
    pub async fn reopen_log(&self, scope: &Scope, container_id: &str) -> Result<()> {
        let _ = (scope, container_id);
        Err(Error::Unimplemented("a log by the shim"))
    }

    /// Copies the streams of a running process from now on. Who reads slowly never holds up the process or its log, but
    /// is cut off after some hundred KiB.
    ///
    /// # Errors
    /// `NotFound`; `Unimplemented` by a shim that is not ours.
    pub async fn attach(&self, scope: &Scope, attach: Attach) -> Result<Attached> {
        let _ = (scope, attach);
        Err(Error::Unimplemented("attaching to a process"))
    }

    /// Adds a process and starts it, with its streams in the caller's hands: its output waits for the caller, as that
    /// of a command in a pipe does. The caller waits for it ([`Tasks::wait`]) and deletes it ([`Tasks::delete_process`]).
    ///
    /// # Errors
    /// As [`Tasks::exec`] and [`Tasks::start`]; nothing is left of it then.
    pub async fn run_exec(&self, scope: &Scope, exec: RunExec) -> Result<RunningExec> {
        let _ = (scope, exec);
        Err(Error::Unimplemented("an execution with streams"))
    }
}
