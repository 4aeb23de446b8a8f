//! One call of one plug-in: a program with the request in its environment and on its standard input, the answer on
//! its standard output. Bounded in time and output, in a process group of its own, which is killed at the deadline.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::{AccessFlags, Pid, access};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use crate::network::{Error, Result};

/// Most that is taken as an answer.
const MAX_ANSWER: usize = 1 << 20;
/// Most of what a plug-in prints that goes into an error.
const MAX_SHOWN: usize = 1024;
/// How long output is waited for after the plug-in has ended: a process it left behind may keep it open.
const LINGER: Duration = Duration::from_millis(200);

/// What a plug-in is called for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Add,
    Delete,
    Check,
    Status,
    Collect,
}

impl Verb {
    fn name(self) -> &'static str {
        match self {
            Verb::Add => "ADD",
            Verb::Delete => "DEL",
            Verb::Check => "CHECK",
            Verb::Status => "STATUS",
            Verb::Collect => "GC",
        }
    }

    fn word(self) -> &'static str {
        match self {
            Verb::Add => "add",
            Verb::Delete => "delete",
            Verb::Check => "check",
            Verb::Status => "status",
            Verb::Collect => "gc",
        }
    }
}

/// One call.
#[derive(Debug)]
pub(super) struct Call<'a> {
    pub(super) plugin: &'a str,
    pub(super) verb: Verb,
    pub(super) bin_dirs: &'a [PathBuf],
    /// Variables besides `CNI_COMMAND` and `CNI_PATH`.
    pub(super) environment: Vec<(&'static str, OsString)>,
    pub(super) input: Vec<u8>,
    pub(super) limit: Duration,
}

/// What a plug-in prints when it fails: section 5 of the CNI specification, "Error".
#[derive(Debug, Deserialize)]
struct Failure {
    #[serde(default)]
    code: u32,
    #[serde(default)]
    msg: String,
    #[serde(default)]
    details: String,
}

impl Call<'_> {
    /// Calls it; what it printed on its standard output.
    pub(super) async fn run(self) -> Result<Vec<u8>> {
        let program = find(self.plugin, self.bin_dirs)?;
        let path = std::env::join_paths(self.bin_dirs).unwrap_or_default();
        let mut command = Command::new(&program);
        command.env("CNI_COMMAND", self.verb.name()).env("CNI_PATH", path);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let child =
            command.spawn().map_err(|error| self.failed(0, format!("cannot run {}: {error}", program.display())))?;
        let group = child.id();
        let outcome = tokio::time::timeout(self.limit, exchange(child, &self.input)).await;
        if let Some(group) = group.and_then(|id| i32::try_from(id).ok()) {
            // Also what a plug-in left running: nothing of it may work on after the answer.
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
        match outcome {
            Err(_) => Err(Error::Timeout { plugin: self.plugin.into(), verb: self.verb.word(), limit: self.limit }),
            Ok(Err(error)) => Err(self.failed(0, error.to_string())),
            Ok(Ok(output)) => self.judge(output),
        }
    }

    fn judge(&self, output: Output) -> Result<Vec<u8>> {
        if output.answer.len() > MAX_ANSWER {
            return Err(self.failed(0, format!("its answer is longer than {MAX_ANSWER} bytes")));
        }
        if output.status.success() {
            return Ok(output.answer);
        }
        if let Ok(failure) = serde_json::from_slice::<Failure>(&output.answer)
            && !failure.msg.is_empty()
        {
            let details = if failure.details.is_empty() { String::new() } else { format!("; {}", failure.details) };
            return Err(self.failed(failure.code, shown(format!("{}{details}", failure.msg).as_bytes())));
        }
        let said = if output.complaint.is_empty() { &output.answer } else { &output.complaint };
        Err(self.failed(0, format!("{}, no error message; it printed {:?}", output.status, shown(said))))
    }

    fn failed(&self, code: u32, reason: String) -> Error {
        Error::Plugin { plugin: self.plugin.into(), verb: self.verb.word(), code, reason }
    }
}

/// The first program of this name.
fn find(plugin: &str, dirs: &[PathBuf]) -> Result<PathBuf> {
    let usable = |path: &PathBuf| path.is_file() && access(path.as_path() as &Path, AccessFlags::X_OK).is_ok();
    let found = dirs.iter().map(|dir| dir.join(plugin)).find(usable);
    found.ok_or_else(|| Error::NoPlugin { plugin: plugin.into(), dirs: dirs.to_vec() })
}

struct Output {
    status: ExitStatus,
    answer: Vec<u8>,
    complaint: Vec<u8>,
}

/// Feeds the plug-in and takes what it prints until it has ended.
async fn exchange(mut child: Child, input: &[u8]) -> std::io::Result<Output> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let feed = async {
        if let Some(mut stdin) = stdin {
            // A plug-in need not read its input to the end, nor at all.
            let _ = stdin.write_all(input).await;
        }
    };
    let (mut answer, mut complaint) = (Vec::new(), Vec::new());
    let status = {
        let output = async { tokio::join!(feed, collect(stdout, &mut answer), collect(stderr, &mut complaint)) };
        tokio::pin!(output);
        tokio::select! {
            status = child.wait() => {
                let _ = tokio::time::timeout(LINGER, output).await;
                status?
            }
            _ = &mut output => child.wait().await?,
        }
    };
    Ok(Output { status, answer, complaint })
}

/// Keeps what fits, one byte more to show that it did not, and drops the rest.
async fn collect(from: Option<impl AsyncRead + Unpin>, to: &mut Vec<u8>) {
    let Some(mut from) = from else { return };
    let mut buffer = vec![0; 16 << 10];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        let room = (MAX_ANSWER + 1).saturating_sub(to.len());
        to.extend(&buffer[..length.min(room)]);
    }
}

fn shown(text: &[u8]) -> String {
    let text = text.trim_ascii();
    let cut = &text[..text.len().min(MAX_SHOWN)];
    let mut shown = String::from_utf8_lossy(cut).into_owned();
    if cut.len() < text.len() {
        shown.push('…');
    }
    shown
}
