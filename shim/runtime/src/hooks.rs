//! Hooks: programs of the operator, run at points of a container's life with its state on stdin.
#![allow(unsafe_code)]

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::spec::{Hook, State};
use crate::sys::{self, Fd};

/// How much of a failing hook's stderr is kept.
const MAX_WORDS: u64 = 4096;

/// Runs hooks in order until one fails. `inside`: a process (pidfd) whose namespaces they run in, but for the pid one.
pub(crate) fn run(stage: &'static str, hooks: &[Hook], state: &State, inside: Option<&Fd>) -> Result<()> {
    if hooks.is_empty() {
        return Ok(());
    }
    let state = serde_json::to_vec(state).map_err(|error| Error::invalid("state", error.to_string()))?;
    hooks.iter().try_for_each(|hook| run_one(stage, hook, &state, inside))
}

/// Runs all hooks even if some fail (poststart and poststop: failures do not undo what has happened); the first
/// failure is returned.
pub(crate) fn run_all(stage: &'static str, hooks: &[Hook], state: &State) -> Result<()> {
    let mut result = Ok(());
    for hook in hooks {
        let one = run(stage, std::slice::from_ref(hook), state, None);
        result = result.and(one);
    }
    result
}

fn run_one(stage: &'static str, hook: &Hook, state: &[u8], inside: Option<&Fd>) -> Result<()> {
    let failed = |reason: String| Error::Hook { stage, path: hook.path.clone(), reason };
    if !hook.path.is_absolute() {
        return Err(failed("the path is not absolute".to_owned()));
    }
    let mut child = command(hook, inside).spawn().map_err(|error| failed(error.to_string()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A hook need not read its stdin; the state fits the pipe.
        let _ = stdin.write_all(state);
    }
    let status = wait(&mut child, hook.timeout).map_err(&failed)?;
    if status.success() {
        return Ok(());
    }
    let mut words = String::new();
    if let Some(stderr) = child.stderr.take() {
        let _ = stderr.take(MAX_WORDS).read_to_string(&mut words);
    }
    Err(failed(format!("{status}, stderr: {}", words.trim())))
}

fn command(hook: &Hook, inside: Option<&Fd>) -> Command {
    let mut command = Command::new(&hook.path);
    if let Some(name) = hook.args.first() {
        command.arg0(name);
    }
    command.args(hook.args.iter().skip(1)).env_clear();
    command.envs(hook.env.iter().filter_map(|variable| variable.split_once('=')));
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    if let Some(pidfd) = inside {
        let pidfd = pidfd.0;
        const INSIDE: i32 = libc::CLONE_NEWNS | libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
        // SAFETY: setns is a bare system call; nothing is allocated on success.
        unsafe { command.pre_exec(move || sys::setns(pidfd, INSIDE).map_err(std::io::Error::from_raw_os_error)) };
    }
    command
}

fn wait(child: &mut Child, timeout: Option<u32>) -> Result<std::process::ExitStatus, String> {
    let Some(seconds) = timeout.filter(|seconds| *seconds > 0) else {
        return child.wait().map_err(|error| error.to_string());
    };
    let limit = Duration::from_secs(u64::from(seconds));
    let pidfd =
        sys::pidfd_open(child.id() as i32).map_err(|errno| std::io::Error::from_raw_os_error(errno).to_string())?;
    let milliseconds = i32::try_from(limit.as_millis()).unwrap_or(i32::MAX);
    if sys::readable(pidfd.0, milliseconds) == Ok(true) {
        return child.wait().map_err(|error| error.to_string());
    }
    let _ = child.kill();
    let _ = child.wait();
    Err(format!("timed out after {seconds} s and was killed"))
}

/// A pipe that holds the state, to be a process's stdin.
pub(crate) fn state_pipe(state: &State) -> Result<std::os::fd::OwnedFd> {
    let bytes = serde_json::to_vec(state).map_err(|error| Error::invalid("state", error.to_string()))?;
    let (reader, mut writer) = std::io::pipe().map_err(|source| Error::system("pipe", source))?;
    // Larger states than the pipe would block us: give it room first.
    let _ = sys::raw!(libc::SYS_fcntl, writer.as_raw_fd(), libc::F_SETPIPE_SZ, (bytes.len() as i32).max(65536));
    writer.write_all(&bytes).map_err(|source| Error::system("write the state to a hook", source))?;
    Ok(reader.into())
}
