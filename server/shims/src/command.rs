//! Running a shim's binary for one of its verbs: bounded in time and output, in a process group of its own.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use std::os::unix::process::{CommandExt, ExitStatusExt};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};

use crate::{Config, Error, Result, stay};

/// Most that is kept of what a binary prints.
const MAX_OUTPUT: usize = 1 << 20;
/// Most of it that goes into an error.
const MAX_SHOWN: usize = 4096;

/// One run of a binary.
#[derive(Debug)]
pub(crate) struct Run<'a> {
    pub(crate) binary: &'a Path,
    pub(crate) verb: &'static str,
    pub(crate) args: Vec<String>,
    pub(crate) directory: Option<&'a Path>,
    pub(crate) stdin: Vec<u8>,
    pub(crate) limit: Duration,
}

impl Run<'_> {
    /// The argv that every verb begins with. Our own shim needs no `-publish-binary`; where it stays, this is its command
    /// line for good, and who looks for daemons by theirs shall not find it.
    pub(crate) fn common_args(config: &Config, namespace: &str, id: &str, verb: &str) -> Vec<String> {
        let executable = config.executable.to_string_lossy();
        let mut args = vec!["-namespace", namespace, "-address", &config.address];
        if verb != stay::VERB {
            args.extend(["-publish-binary", &*executable]);
        }
        args.extend(["-id", id]);
        if config.debug {
            args.push("-debug");
        }
        args.into_iter().map(str::to_owned).collect()
    }

    /// Runs with stdout and stderr together, as `start` wants it; what a daemonised child keeps open is not waited for.
    pub(crate) async fn combined(self, config: &Config, namespace: &str) -> Result<Vec<u8>> {
        let spawn = Error::io("run", self.binary);
        let (read, write) = std::io::pipe().map_err(Error::io("pipe for", self.binary))?;
        let both = write.try_clone().map_err(Error::io("pipe for", self.binary))?;
        let mut command = self.command(config, namespace);
        let child = command.stdout(write).stderr(both).spawn().map_err(spawn)?;
        drop(command);
        let mut output = pipe::Receiver::from_owned_fd(read.into()).map_err(Error::io("pipe for", self.binary))?;
        let mut printed = Vec::new();
        let status = self.supervise(child, read_combined(&mut output, &mut printed), Duration::ZERO).await?;
        drain(&output, &mut printed);
        self.judge(status, printed.clone(), &printed)
    }

    /// Runs with stdout as the answer; stderr is for errors and warnings.
    pub(crate) async fn separate(self, config: &Config, namespace: &str) -> Result<Vec<u8>> {
        let mut command = self.command(config, namespace);
        let spawned = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = spawned.map_err(Error::io("run", self.binary))?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let (mut answer, mut said) = (Vec::new(), Vec::new());
        let reading = async {
            tokio::join!(read_all(stdout, &mut answer), read_all(stderr, &mut said));
        };
        let status = self.supervise(child, reading, Duration::from_secs(1)).await?;
        if status.success() && !said.is_empty() {
            tracing::warn!(shim = %self.binary.display(), verb = self.verb, "{}", shown(&said));
        }
        self.judge(status, answer, &said)
    }

    fn command(&self, config: &Config, namespace: &str) -> Command {
        let mut command = Command::from(self.plain(self.binary, config, namespace));
        command.stdin(Stdio::piped()).process_group(0).kill_on_drop(true);
        command
    }

    /// The command with its arguments and environment; `program` is how the binary is reached.
    pub(crate) fn plain(&self, program: &Path, config: &Config, namespace: &str) -> std::process::Command {
        let mut command = std::process::Command::new(program);
        command.arg0(self.binary).args(&self.args);
        command.env("GOMAXPROCS", "2").env("MAX_SHIM_VERSION", "2").env("NAMESPACE", namespace);
        command.env("TTRPC_ADDRESS", &config.ttrpc_address).env("GRPC_ADDRESS", &config.address);
        command.envs(config.environment.iter().map(|(k, v)| (k, v)));
        if let Some(directory) = self.directory {
            command.current_dir(directory);
        }
        command
    }

    /// Feeds stdin and waits for the end, then at most `grace` for the end of its output; past the limit the whole
    /// process group is killed.
    async fn supervise(
        &self,
        mut child: Child,
        reading: impl Future<Output = ()>,
        grace: Duration,
    ) -> Result<ExitStatus> {
        let group = child.id();
        let stdin = child.stdin.take();
        let work = async {
            let fed = async {
                if let Some(mut stdin) = stdin {
                    // A binary that does not read its stdin is in its right.
                    let _ = stdin.write_all(&self.stdin).await;
                }
            };
            tokio::pin!(reading);
            let mut read = false;
            let ended = async { tokio::join!(child.wait(), fed).0 };
            tokio::pin!(ended);
            let status = loop {
                tokio::select! {
                    status = &mut ended => break status,
                    () = &mut reading, if !read => read = true,
                }
            };
            if !read {
                // What the binary wrote is in the pipe; a longer wait would be for whoever inherited it.
                let _ = tokio::time::timeout(grace, reading).await;
            }
            status
        };
        match tokio::time::timeout(self.limit, work).await {
            Ok(status) => status.map_err(Error::io("wait for", self.binary)),
            Err(_) => {
                kill_group(group);
                Err(self.too_long())
            }
        }
    }

    pub(crate) fn too_long(&self) -> Error {
        Error::VerbTimeout { binary: self.binary.to_owned(), verb: self.verb, limit: self.limit }
    }

    pub(crate) fn judge(&self, status: ExitStatus, answer: Vec<u8>, said: &[u8]) -> Result<Vec<u8>> {
        if status.success() {
            return Ok(answer);
        }
        let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
        Err(Error::Verb { binary: PathBuf::from(self.binary), verb: self.verb, code, output: shown(said) })
    }
}

fn kill_group(leader: Option<u32>) {
    if let Some(pid) = leader.and_then(|pid| i32::try_from(pid).ok()) {
        // It may have ended just now.
        let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

pub(crate) async fn read_combined(output: &mut pipe::Receiver, printed: &mut Vec<u8>) {
    let mut chunk = [0; 4096];
    while let Ok(n @ 1..) = output.read(&mut chunk).await {
        keep(&chunk[..n], printed);
    }
}

/// Takes what is in the pipe without waiting for its end.
fn drain(output: &pipe::Receiver, printed: &mut Vec<u8>) {
    let mut chunk = [0; 4096];
    while let Ok(n @ 1..) = output.try_read(&mut chunk) {
        keep(&chunk[..n], printed);
    }
}

async fn read_all(stream: Option<impl AsyncRead + Unpin>, into: &mut Vec<u8>) {
    let Some(mut stream) = stream else { return };
    let mut chunk = [0; 4096];
    while let Ok(n @ 1..) = stream.read(&mut chunk).await {
        keep(&chunk[..n], into);
    }
}

fn keep(bytes: &[u8], into: &mut Vec<u8>) {
    let room = MAX_OUTPUT - into.len().min(MAX_OUTPUT);
    into.extend_from_slice(&bytes[..bytes.len().min(room)]);
}

fn shown(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    text.trim().chars().take(MAX_SHOWN).collect()
}
