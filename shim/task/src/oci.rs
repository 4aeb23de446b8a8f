//! An OCI runtime as a program with runc's command line: runc, crun, youki.
//!
//! It runs to its end while the loop waits, with a deadline; the container's processes become the shim's children, for
//! it is a sub-reaper. The root file system is mounted on the bundle's `rootfs`, since such runtimes do not mount it.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use gantry_mount::{Unmount, mount_all, unmount_all};
use gantry_runtime::{CriuOptions, Spec};
use gantry_ttrpc::pb::containerd::runc::v1::CheckpointOptions;
use gantry_types::ErrorKind;
use serde::Deserialize;

use crate::bundle::{self, Bundle};
use crate::console::ConsoleSocket;
use crate::runtime::{Executed, ProcessIo, Wanted};
use crate::stale::Identity;
use crate::{Error, cgroup, sys};

/// How long one invocation may take: hooks run within create and start.
const DEADLINE: Duration = Duration::from_secs(120);
/// How often to look whether it has ended.
const POLL: Duration = Duration::from_millis(1);
/// How long a killed invocation may take to end.
const END: Duration = Duration::from_secs(2);
/// Most of its log that is read for an error text.
const MAX_LOG: usize = 64 << 10;

/// A container that an OCI runtime's program holds.
#[derive(Debug)]
pub struct CommandLine {
    command: bundle::Command,
    id: String,
    bundle: Bundle,
}

/// Where the streams of an invocation lead.
enum Streams<'a> {
    /// Nowhere.
    Null,
    /// The new process inherits them.
    Inherited(ProcessIo<'a>),
}

impl CommandLine {
    /// Takes up a container that exists, or may exist.
    pub fn adopt(command: bundle::Command, id: &str, bundle: &Bundle) -> CommandLine {
        CommandLine { command, id: id.to_owned(), bundle: bundle.clone() }
    }

    /// `create`: the container, its first process, and the terminal's master.
    ///
    /// # Errors
    /// [`Error::Mount`], [`Error::Program`], [`Error::Late`]; what was mounted is unmounted.
    pub fn create(command: bundle::Command, wanted: Wanted<'_>) -> Result<(CommandLine, i32, Option<OwnedFd>), Error> {
        let line = CommandLine::adopt(command, wanted.id, wanted.bundle);
        line.mount(wanted.mounts)?;
        let made = line.run_create(&wanted);
        if made.is_err() {
            // The first error is the one to report.
            let _ = line.unmount();
        }
        let (pid, console) = made?;
        Ok((line, pid, console))
    }

    /// `restore`: the container, which runs at once.
    ///
    /// # Errors
    /// As [`CommandLine::create`].
    pub fn restore(
        command: bundle::Command,
        wanted: Wanted<'_>,
        images: &Path,
        work: &Path,
    ) -> Result<(CommandLine, i32, Option<OwnedFd>), Error> {
        let line = CommandLine::adopt(command, wanted.id, wanted.bundle);
        line.mount(wanted.mounts)?;
        let mut args = vec!["restore".into(), "--detach".into(), "--bundle".into(), wanted.bundle.dir().to_owned()];
        args.extend(["--image-path".into(), images.to_owned(), "--work-path".into(), work.to_owned()]);
        if wanted.options.no_pivot_root {
            args.push("--no-pivot".into());
        }
        let made = line.make_process("restore", args, "init", wanted.io, &[]);
        if made.is_err() {
            // The first error is the one to report.
            let _ = line.unmount();
        }
        let made = made?;
        Ok((line, made.pid, made.console))
    }

    /// `checkpoint`.
    ///
    /// # Errors
    /// [`Error::Program`], [`Error::Late`].
    pub fn checkpoint(&self, criu: &CriuOptions, options: &CheckpointOptions) -> Result<(), Error> {
        let mut args = vec!["checkpoint".into(), "--image-path".into(), criu.images.clone()];
        if let Some(work) = &criu.work {
            args.extend(["--work-path".into(), work.clone()]);
        }
        let switches = [
            ("--leave-running", criu.leave_running),
            ("--tcp-established", criu.tcp_established),
            ("--ext-unix-sk", criu.ext_unix_sk),
            ("--shell-job", criu.shell_job),
            ("--file-locks", criu.file_locks),
        ];
        args.extend(switches.iter().filter(|(_, on)| *on).map(|(name, _)| PathBuf::from(name)));
        if !options.cgroups_mode.is_empty() {
            args.extend(["--manage-cgroups-mode".into(), options.cgroups_mode.clone().into()]);
        }
        for name in &options.empty_namespaces {
            args.extend(["--empty-ns".into(), name.into()]);
        }
        self.invoke("checkpoint", &args, &[], Streams::Null)
    }

    fn run_create(&self, wanted: &Wanted<'_>) -> Result<(i32, Option<OwnedFd>), Error> {
        let mut args = vec!["create".into(), "--bundle".into(), self.bundle.dir().to_owned()];
        if wanted.options.no_pivot_root {
            args.push("--no-pivot".into());
        }
        if wanted.options.no_new_keyring {
            args.push("--no-new-keyring".into());
        }
        let made = self.make_process("create", args, "init", wanted.io, &[])?;
        Ok((made.pid, made.console))
    }

    /// `start`.
    ///
    /// # Errors
    /// [`Error::Program`], [`Error::Late`].
    pub fn start(&self) -> Result<(), Error> {
        self.run("start", &[])
    }

    /// `exec`.
    ///
    /// # Errors
    /// [`Error::Program`], [`Error::Late`].
    pub fn exec(&self, exec: &str, process: &[u8], io: ProcessIo<'_>) -> Result<Executed, Error> {
        let document = self.bundle.dir().join(format!(".{exec}.process.json"));
        fs::write(&document, process).map_err(|error| Error::file("write", &document, error))?;
        let args = vec!["exec".into(), "--process".into(), document.clone(), "--detach".into()];
        let made = self.make_process("exec", args, exec, io, &[]);
        let _ = fs::remove_file(&document);
        made
    }

    /// `kill`.
    ///
    /// # Errors
    /// `NotFound` when it has ended; [`Error::Program`], [`Error::Late`].
    pub fn kill(&self, signal: i32, all: bool) -> Result<(), Error> {
        let signal = PathBuf::from(signal.to_string());
        let flags: &[&str] = if all { &["--all"] } else { &[] };
        match self.run_with("kill", flags, &[signal]) {
            Err(Error::Program { reason, .. }) if ended(&reason) => {
                Err(Error::refused(ErrorKind::NotFound, "process already finished"))
            }
            other => other,
        }
    }

    /// `ps`.
    ///
    /// # Errors
    /// [`Error::Program`], [`Error::Late`].
    pub fn pids(&self) -> Result<Vec<i32>, Error> {
        let mut command = self.command("ps");
        command.args(["ps", "--format", "json", &self.id]).stdout(Stdio::piped()).stderr(Stdio::null());
        let output = command.output().map_err(|error| self.failed("ps", error.to_string()))?;
        if !output.status.success() {
            return Err(self.failed("ps", self.reason(output.status)));
        }
        // null stands for none.
        let pids: Option<Vec<i32>> =
            serde_json::from_slice(&output.stdout).map_err(|error| self.failed("ps", error.to_string()))?;
        Ok(pids.unwrap_or_default())
    }

    /// `pause`.
    ///
    /// # Errors
    /// [`Error::Program`], [`Error::Late`].
    pub fn pause(&self) -> Result<(), Error> {
        self.run("pause", &[])
    }

    /// `resume`.
    ///
    /// # Errors
    /// [`Error::Program`], [`Error::Late`].
    pub fn resume(&self) -> Result<(), Error> {
        self.run("resume", &[])
    }

    /// `update`, with the document in a file.
    ///
    /// # Errors
    /// [`Error::Program`], [`Error::Late`].
    pub fn update(&self, resources: &[u8]) -> Result<(), Error> {
        let document = self.bundle.dir().join(".resources.json");
        fs::write(&document, resources).map_err(|error| Error::file("write", &document, error))?;
        let done = self.run("update", &[&format!("--resources={}", document.display())]);
        let _ = fs::remove_file(&document);
        done
    }

    /// `delete`, and the mounts. A container the program does not know is deleted already.
    ///
    /// # Errors
    /// [`Error::Program`], [`Error::Late`], [`Error::Mount`]; may be repeated.
    pub fn delete(&self, force: bool) -> Result<(), Error> {
        let flags: &[&str] = if force { &["--force"] } else { &[] };
        match self.run("delete", flags) {
            Err(Error::Program { reason, .. }) if reason.contains("does not exist") => {}
            other => other?,
        }
        self.unmount()
    }

    /// Clears away a container whose shim is gone, however far the program had come: it notes what it made only later.
    ///
    /// # Errors
    /// As [`CommandLine::delete`]; may be repeated.
    pub fn purge(&self) -> Result<(), Error> {
        self.end_invocations();
        let deleted = self.delete(true);
        if let Ok(spec) = Spec::load(self.bundle.dir())
            && !self.command.systemd_cgroup
        {
            cgroup::sweep(&spec.linux.cgroups_path);
        }
        deleted
    }

    /// Kills what still runs of the program for this bundle, and waits for its end: it knows its log by argument.
    fn end_invocations(&self) {
        let log = self.log();
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let ours = pids.filter(|pid| has_argument(*pid, &log)).filter_map(Identity::of);
        for process in ours.collect::<Vec<_>>() {
            process.end(END);
        }
    }

    fn mount(&self, mounts: &[gantry_types::Mount]) -> Result<(), Error> {
        if mounts.is_empty() {
            return Ok(());
        }
        let rootfs = self.bundle.rootfs();
        fs::create_dir_all(&rootfs).map_err(|error| Error::file("create", &rootfs, error))?;
        Ok(mount_all(mounts, &rootfs)?)
    }

    fn unmount(&self) -> Result<(), Error> {
        let rootfs = self.bundle.rootfs();
        if rootfs.exists() {
            unmount_all(&rootfs, Unmount::default())?;
        }
        Ok(())
    }

    /// Runs `create` or `exec`, and reads back which process it made.
    fn make_process(
        &self,
        verb: &'static str,
        mut args: Vec<PathBuf>,
        name: &str,
        io: ProcessIo<'_>,
        last: &[&str],
    ) -> Result<Executed, Error> {
        let pid_file = self.bundle.dir().join(format!(".{name}.pid"));
        args.extend(["--pid-file".into(), pid_file.clone()]);
        let socket_path = std::env::temp_dir().join(format!("gantry-console-{}-{name}", std::process::id()));
        let socket = match io {
            ProcessIo::Fds(_) => None,
            ProcessIo::Terminal => {
                args.extend(["--console-socket".into(), socket_path.clone()]);
                Some(ConsoleSocket::listen(&socket_path)?)
            }
        };
        let done = self.invoke(verb, &args, last, Streams::Inherited(io));
        let console = done.and_then(|()| socket.as_ref().map(ConsoleSocket::receive).transpose());
        if socket.is_some() {
            let _ = fs::remove_file(&socket_path);
        }
        let console = console?;
        let text = fs::read_to_string(&pid_file).map_err(|error| Error::file("read", &pid_file, error))?;
        let _ = fs::remove_file(&pid_file);
        let pid = text.trim().parse().map_err(|_| self.failed(verb, format!("its pid file says {text:?}")))?;
        Ok(Executed { pid, console })
    }

    fn run(&self, verb: &'static str, flags: &[&str]) -> Result<(), Error> {
        self.run_with(verb, flags, &[])
    }

    fn run_with(&self, verb: &'static str, flags: &[&str], after: &[PathBuf]) -> Result<(), Error> {
        let args: Vec<PathBuf> = std::iter::once(verb).chain(flags.iter().copied()).map(PathBuf::from).collect();
        let after: Vec<&str> = after.iter().filter_map(|word| word.to_str()).collect();
        self.invoke(verb, &args, &after, Streams::Null)
    }

    /// Runs the program to its end: `PROGRAM GLOBALS ARGS ID LAST`.
    fn invoke(&self, verb: &'static str, args: &[PathBuf], last: &[&str], streams: Streams<'_>) -> Result<(), Error> {
        let _ = fs::remove_file(self.log());
        let mut command = self.command(verb);
        command.args(args).arg(&self.id).args(last);
        let [stdin, stdout, stderr] = match streams {
            Streams::Null | Streams::Inherited(ProcessIo::Terminal) => [None; 3],
            Streams::Inherited(ProcessIo::Fds(fds)) => fds,
        };
        let end = |fd: Option<std::os::fd::BorrowedFd<'_>>| match fd {
            Some(fd) => fd.try_clone_to_owned().map(Stdio::from).map_err(|error| Error::system("dup", error)),
            None => Ok(Stdio::null()),
        };
        command.stdin(end(stdin)?).stdout(end(stdout)?).stderr(end(stderr)?);
        let child = command.spawn().map_err(|error| self.failed(verb, not_started(&error)))?;
        let status = self.wait(verb, child)?;
        if status.success() { Ok(()) } else { Err(self.failed(verb, self.reason(status))) }
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(&self.command.program);
        command.arg("--root").arg(&self.command.root).arg("--log").arg(self.log()).args(["--log-format", "json"]);
        if self.command.systemd_cgroup && verb != "ps" {
            command.arg("--systemd-cgroup");
        }
        command.stdin(Stdio::null());
        // Without a shim nobody could tell how far it came.
        sys::die_with_parent(&mut command);
        command
    }

    fn wait(&self, verb: &'static str, mut child: Child) -> Result<ExitStatus, Error> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            match child.try_wait() {
                Ok(Some(status)) => return Ok(status),
                Ok(None) if Instant::now() < deadline => std::thread::sleep(POLL),
                Ok(None) => {
                    let _ = child.kill();
                    let _ = child.wait();
                    let (program, seconds) = (self.command.program.clone(), DEADLINE.as_secs());
                    return Err(Error::Late { program, verb, seconds });
                }
                Err(error) => return Err(self.failed(verb, error.to_string())),
            }
        }
    }

    fn log(&self) -> PathBuf {
        self.bundle.dir().join("log.json")
    }

    /// The last error of its log, or how it ended.
    fn reason(&self, status: ExitStatus) -> String {
        last_error(&self.log()).unwrap_or_else(|| status.to_string())
    }

    fn failed(&self, verb: &'static str, reason: String) -> Error {
        Error::Program { program: format!("OCI runtime {}", self.command.program), verb, reason }
    }
}

fn not_started(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => {
            let path = std::env::var("PATH").unwrap_or_default();
            format!("no such program (PATH is {path:?}): install it, or name none for the built-in runtime")
        }
        _ => error.to_string(),
    }
}

fn has_argument(pid: u32, wanted: &Path) -> bool {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split(|byte| *byte == 0).any(|word| word == wanted.as_os_str().as_bytes())
}

/// How runc and crun say that there is nothing to signal any more.
fn ended(reason: &str) -> bool {
    ["process already finished", "container not running", "does not exist", "No such process", "no such process"]
        .iter()
        .any(|words| reason.contains(words))
}

fn last_error(log: &Path) -> Option<String> {
    #[derive(Deserialize)]
    struct Line {
        level: String,
        msg: String,
    }
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(log).ok()?;
    let mut text = String::new();
    io::Read::read_to_string(&mut io::Read::take(file, MAX_LOG as u64), &mut text).ok()?;
    let lines = text.lines().rev().filter_map(|line| serde_json::from_str::<Line>(line).ok());
    lines.filter(|line| line.level == "error" || line.level == "fatal").map(|line| line.msg).next()
}
