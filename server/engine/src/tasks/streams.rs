//! Streams of processes for callers in this process: pipes to and from a shim, attached to what runs or given to an
//! execution; and where a container's log is written.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gantry_ttrpc::pb::containerd::task::v3::StateRequest;
use gantry_ttrpc::pb::gantry::shim::v1 as wire;
use gantry_types::{Any, ErrorKind, HasKind, Scope};
use tokio::net::unix::pipe;

use super::pipes::Pipes;
use super::{Exec, Tasks};
use crate::{Error, Result};

/// Longest line of a log before it is split, unless set otherwise: what a kubelet expects.
pub const MAX_LOG_LINE: usize = 16 << 10;

/// A stdin for those who attach.
const ATTACH: &str = "gantry-attach://";
/// The runtime whose shim is also a logging program.
const LOGGER: &str = "io.containerd.gantry.v1";
const SIGKILL: u32 = 9;

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
        let runtime = if runtime.is_empty() { &self.core.config.default_runtime } else { runtime };
        let path = to.path.as_deref().unwrap_or(Path::new(""));
        if to.path.is_some() && !path.is_absolute() {
            return Err(Error::invalid("log path", format!("{} is not absolute", path.display())));
        }
        let (path, max_line) = (escaped(path), if to.max_line == 0 { MAX_LOG_LINE } else { to.max_line });
        let ours = self.shims.is_ours(runtime, options).await?;
        let (stdin, stdout) = match (ours, path.is_empty()) {
            (true, _) => (if to.stdin { ATTACH } else { "" }, format!("gantry-log://{path}?max-line={max_line}")),
            (false, true) => ("", String::new()),
            (false, false) => {
                let logger = escaped(&self.shims.binary(LOGGER)?);
                ("", format!("binary://{logger}?log={path}&max-line={max_line}"))
            }
        };
        let stderr = if to.terminal { String::new() } else { stdout.clone() };
        Ok(LogIo { stdin: stdin.to_owned(), stdout, stderr })
    }

    /// Opens a container's log anew, after its file was renamed: every line is whole in the old or in the new file.
    ///
    /// # Errors
    /// `NotFound`, `Unimplemented` for a container that does not log by its shim.
    pub async fn reopen_log(&self, scope: &Scope, container_id: &str) -> Result<()> {
        let task = self.task(scope, container_id)?;
        match task.shim.calls().reopen_log().await {
            Err(error) if error.kind() == ErrorKind::Unimplemented => {}
            reopened => {
                let dropped = reopened?;
                if dropped > 0 {
                    tracing::warn!(container_id, dropped, "lines of a container's log could not be written");
                }
                return Ok(());
            }
        }
        // Our program as another shim's logger looks by itself.
        let streams = self.get(scope, container_id, "").await?;
        if streams.stdout.starts_with("binary://") { Ok(()) } else { Err(Error::Unimplemented("a log by this shim")) }
    }

    /// Copies the streams of a running process from now on. Who reads slowly never holds up the process or its log, but
    /// is cut off after some hundred KiB.
    ///
    /// # Errors
    /// `NotFound`; `Unimplemented` by a shim that is not ours.
    pub async fn attach(&self, scope: &Scope, attach: Attach) -> Result<Attached> {
        let task = self.task(scope, &attach.container_id)?;
        let pipes = Pipes::make(&self.core.config.state, [attach.stdin, attach.stdout, attach.stderr])?;
        let request = wire::AttachRequest {
            id: attach.container_id,
            exec_id: attach.exec_id,
            stdin: pipes.path(0),
            stdout: pipes.path(1),
            stderr: pipes.path(2),
            stdin_once: attach.stdin_once,
        };
        let (calls, id) = (task.shim.calls().clone(), request.id.clone());
        let state = StateRequest { id, exec_id: String::new() };
        let mut attaching = Box::pin({
            let calls = calls.clone();
            async move { calls.attach(request).await }
        });
        // The shim answers in order: with the answer to the second call, it has opened the pipes of the first.
        let early = tokio::select! {
            biased;
            ended = &mut attaching => Some(ended),
            _ = calls.state(state) => None,
        };
        let streams = pipes.opened();
        let end = match early {
            Some(ended) => {
                let end = ended.map(end_of)?;
                tokio::spawn(async move { Ok(end) })
            }
            None => tokio::spawn(async move { Ok(attaching.await.map(end_of)?) }),
        };
        Ok(Attached { streams, end })
    }

    /// Adds a process and starts it, with its streams in the caller's hands: its output waits for the caller, as that
    /// of a command in a pipe does. The caller waits for it ([`Tasks::wait`]) and deletes it ([`Tasks::delete_process`]).
    ///
    /// # Errors
    /// As [`Tasks::exec`] and [`Tasks::start`]; nothing is left of it then.
    pub async fn run_exec(&self, scope: &Scope, exec: RunExec) -> Result<RunningExec> {
        let pipes = Pipes::make(&self.core.config.state, [exec.stdin, true, !exec.terminal])?;
        let wanted = Exec {
            container_id: exec.container_id.clone(),
            exec_id: exec.exec_id.clone(),
            stdin: pipes.path(0),
            stdout: pipes.path(1),
            stderr: pipes.path(2),
            terminal: exec.terminal,
            spec: exec.process.clone(),
        };
        self.exec(scope, wanted).await?;
        let started = self.start_limited(scope, &exec).await;
        if started.is_err()
            && let Err(error) = self.delete_process(scope, &exec.container_id, &exec.exec_id).await
        {
            tracing::debug!(exec_id = exec.exec_id, %error, "an execution that did not start stays known");
        }
        Ok(RunningExec { pid: started?, streams: pipes.opened() })
    }

    async fn start_limited(&self, scope: &Scope, exec: &RunExec) -> Result<u32> {
        let Some(timeout) = exec.timeout else { return self.start(scope, &exec.container_id, &exec.exec_id).await };
        let task = self.task(scope, &exec.container_id)?;
        let limited = match task.shim.calls().limit_exec(&exec.exec_id, timeout).await {
            Err(error) if error.kind() == ErrorKind::Unimplemented => false,
            limited => limited.map(|()| true)?,
        };
        let pid = self.start(scope, &exec.container_id, &exec.exec_id).await?;
        if !limited {
            self.kill_after(scope, exec, timeout);
        }
        Ok(pid)
    }

    /// What can be done about an execution in a shim that knows no limits: its own process is killed.
    fn kill_after(&self, scope: &Scope, exec: &RunExec, timeout: Duration) {
        let (tasks, scope, exec) = (self.clone(), Scope::new(scope.namespace.clone()), exec.clone());
        tokio::spawn(async move {
            let waiting = tasks.wait(&scope, &exec.container_id, &exec.exec_id);
            if tokio::time::timeout(timeout, waiting).await.is_err() {
                let killed = tasks.kill(&scope, &exec.container_id, &exec.exec_id, SIGKILL, false).await;
                killed.unwrap_or_else(|error| tracing::debug!(%error, "an execution over its time not killed"));
            }
        });
    }
}

fn end_of(answer: wire::AttachResponse) -> AttachEnd {
    match answer.end() {
        wire::attach_response::End::Exited => AttachEnd::Exited,
        wire::attach_response::End::Closed => AttachEnd::Closed,
        wire::attach_response::End::Lagged => AttachEnd::Lagged,
    }
}

/// A path as an address has it.
fn escaped(path: &Path) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
    let mut text = String::new();
    for &byte in path.as_os_str().as_bytes() {
        if plain(byte) { text.push(char::from(byte)) } else { text.push_str(&format!("%{byte:02X}")) }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_in_addresses_keep_every_byte() {
        assert_eq!(escaped(Path::new("/var/log/pods/a b?&%.log")), "/var/log/pods/a%20b%3F%26%25.log");
    }
}
