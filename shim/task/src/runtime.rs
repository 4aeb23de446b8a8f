//! What holds a container: the built-in runtime, or an OCI runtime's command line. One face for both.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use gantry_runtime::spec::ConsoleSize;
use gantry_runtime::{
    CgroupDriver, Container, CreateOptions, CriuOptions, ExecOptions, ExecPlace, Gate, OomWatch, Process, Resources,
    Spec, Stats, Stdio,
};
use gantry_ttrpc::pb::containerd::runc::v1::{CheckpointOptions, Options};
use gantry_types::{ErrorKind, Mount};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::bundle::{Bundle, Record};
use crate::oci::CommandLine;
use crate::{Error, bundle, log};

/// A container and how it is driven.
#[derive(Debug)]
pub enum Runtime {
    /// By the library in this process.
    Builtin(Box<Container>),
    /// By a program with runc's command line.
    Command(Box<CommandLine>),
    /// Not yet: it is restored when it is started.
    Planned,
}

/// The standard streams of a new process.
#[derive(Clone, Copy, Debug)]
pub enum ProcessIo<'a> {
    /// These; none is the null device.
    Fds([Option<BorrowedFd<'a>>; 3]),
    /// A terminal.
    Terminal,
}

/// What an execution runs: an OCI process.
#[derive(Debug)]
pub enum Document {
    /// As it came, for a program that reads it itself.
    Bytes(Vec<u8>),
    /// For the built-in runtime.
    Read(Box<Process>),
}

impl Default for Document {
    fn default() -> Document {
        Document::Bytes(Vec::new())
    }
}

/// A container that was just made.
#[derive(Debug)]
pub struct Created {
    /// How it is driven.
    pub runtime: Runtime,
    /// Its first process.
    pub pid: i32,
    /// The master of its terminal.
    pub console: Option<OwnedFd>,
}

/// A further process that was just made.
#[derive(Debug)]
pub struct Executed {
    /// Its id on the host.
    pub pid: i32,
    /// The master of its terminal.
    pub console: Option<OwnedFd>,
}

/// What to make a container of.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Its id.
    pub id: &'a str,
    /// Its namespace.
    pub namespace: &'a str,
    /// Its bundle.
    pub bundle: &'a Bundle,
    /// Its configuration.
    pub spec: &'a Spec,
    /// Mounts that make its root file system.
    pub mounts: &'a [Mount],
    /// Its first process's streams.
    pub io: ProcessIo<'a>,
    /// The client's options.
    pub options: &'a Options,
}

impl Runtime {
    /// Makes a container whose first process waits for [`Runtime::start`]. How is stored in the bundle before.
    ///
    /// # Errors
    /// The runtime's; nothing is left behind.
    pub fn create(wanted: Wanted<'_>) -> Result<Created, Error> {
        let command = command(wanted.options, wanted.namespace);
        wanted.bundle.write_record(&Record { id: wanted.id.to_owned(), command: command.clone() })?;
        match command {
            None => builtin(wanted, "create", Container::create),
            Some(command) => {
                let (line, pid, console) = CommandLine::create(command, wanted)?;
                Ok(Created { runtime: Runtime::Command(Box::new(line)), pid, console })
            }
        }
    }

    /// Makes the namespaces of a pod, held by a process without a program, which waits for [`Runtime::start`] all the
    /// same. Always by the built-in runtime: no other can do without a program.
    ///
    /// # Errors
    /// The runtime's; nothing is left behind.
    pub fn hold(wanted: Wanted<'_>) -> Result<Created, Error> {
        wanted.bundle.write_record(&Record { id: wanted.id.to_owned(), command: None })?;
        builtin(wanted, "create", Container::hold)
    }

    /// Makes a container from a checkpoint's images; it runs at once.
    ///
    /// # Errors
    /// The runtime's; nothing is left behind.
    pub fn restore(wanted: Wanted<'_>, images: &Path) -> Result<Created, Error> {
        let command = command(wanted.options, wanted.namespace);
        wanted.bundle.write_record(&Record { id: wanted.id.to_owned(), command: command.clone() })?;
        let work = work_directory(wanted.options, wanted.bundle);
        match command {
            None => {
                let criu = CriuOptions { work: Some(work), ..CriuOptions::new(images) };
                builtin(wanted, "restore", |options| Container::restore(options, &criu))
            }
            Some(command) => {
                let (line, pid, console) = CommandLine::restore(command, wanted, images, &work)?;
                Ok(Created { runtime: Runtime::Command(Box::new(line)), pid, console })
            }
        }
    }

    /// Writes the container into images.
    ///
    /// # Errors
    /// The runtime's; the container goes on then.
    pub fn checkpoint(&self, criu: &CriuOptions, options: &CheckpointOptions) -> Result<(), Error> {
        match self {
            Runtime::Builtin(container) => container.checkpoint(criu).map_err(Error::runtime("checkpoint")),
            Runtime::Command(line) => line.checkpoint(criu, options),
            Runtime::Planned => Err(not_made()),
        }
    }

    /// Lets the first process run its program.
    ///
    /// # Errors
    /// The runtime's.
    pub fn start(&mut self) -> Result<(), Error> {
        match self {
            Runtime::Builtin(container) => container.start().map_err(Error::runtime("start")),
            Runtime::Command(line) => line.start(),
            Runtime::Planned => Err(not_made()),
        }
    }

    /// Reads a process document, in the form that [`Runtime::exec`] wants it in.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn document(&self, bytes: Vec<u8>) -> Result<Document, Error> {
        let process = Process::parse(&bytes).map_err(Error::runtime("exec"))?;
        Ok(match self {
            Runtime::Builtin(_) => Document::Read(Box::new(process)),
            Runtime::Command(_) | Runtime::Planned => Document::Bytes(bytes),
        })
    }

    /// Executes a further process; with `own` in a cgroup of that name below the container's, where the runtime can.
    ///
    /// # Errors
    /// The runtime's.
    pub fn exec(
        &self,
        exec: &str,
        document: &Document,
        io: ProcessIo<'_>,
        own: Option<&str>,
    ) -> Result<Executed, Error> {
        match (self, document) {
            (Runtime::Builtin(container), Document::Read(process)) => builtin_exec(container, process, io, own),
            // It was planned when the document came.
            (Runtime::Builtin(container), Document::Bytes(bytes)) => {
                let process = Process::parse(bytes).map_err(Error::runtime("exec"))?;
                builtin_exec(container, &process, io, own)
            }
            (Runtime::Command(line), Document::Bytes(bytes)) => line.exec(exec, bytes, io),
            (Runtime::Command(_), Document::Read(_)) | (Runtime::Planned, _) => Err(not_made()),
        }
    }

    /// Kills all that an execution started, by its own cgroup's name; the process alone where it has none.
    ///
    /// # Errors
    /// The runtime's. That it has ended is success.
    pub fn kill_exec(&self, own: &str, pid: i32) -> Result<(), Error> {
        match self {
            Runtime::Builtin(container) => container.kill_exec(own).map_err(Error::runtime("kill")),
            Runtime::Command(_) if pid > 0 => {
                // Only this thread reaps, so the id cannot have become another's.
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                Ok(())
            }
            Runtime::Command(_) | Runtime::Planned => Ok(()),
        }
    }

    /// Removes an execution's own cgroup, unless something is left in it: that goes with the container.
    pub fn leave_exec(&self, own: &str) {
        if let Runtime::Builtin(container) = self
            && let Err(error) = container.leave_exec(own)
        {
            log::warning("the cgroup of an execution stays until its container goes", &error);
        }
    }

    /// Signals the first process, or all of them.
    ///
    /// # Errors
    /// The runtime's; `NotFound` when it has ended.
    pub fn kill(&self, signal: i32, all: bool) -> Result<(), Error> {
        match self {
            Runtime::Builtin(container) => container.kill(signal, all).map_err(Error::runtime("kill")),
            Runtime::Command(line) => line.kill(signal, all),
            Runtime::Planned => Err(not_made()),
        }
    }

    /// All its processes.
    ///
    /// # Errors
    /// The runtime's.
    pub fn pids(&self) -> Result<Vec<i32>, Error> {
        match self {
            Runtime::Builtin(container) => container.pids().map_err(Error::runtime("ps")),
            Runtime::Command(line) => line.pids(),
            Runtime::Planned => Err(not_made()),
        }
    }

    /// Freezes it.
    ///
    /// # Errors
    /// The runtime's.
    pub fn pause(&mut self) -> Result<(), Error> {
        match self {
            Runtime::Builtin(container) => container.pause().map_err(Error::runtime("pause")),
            Runtime::Command(line) => line.pause(),
            Runtime::Planned => Err(not_made()),
        }
    }

    /// Thaws it.
    ///
    /// # Errors
    /// The runtime's.
    pub fn resume(&mut self) -> Result<(), Error> {
        match self {
            Runtime::Builtin(container) => container.resume().map_err(Error::runtime("resume")),
            Runtime::Command(line) => line.resume(),
            Runtime::Planned => Err(not_made()),
        }
    }

    /// Changes limits, by the bytes of a resources document.
    ///
    /// # Errors
    /// The runtime's.
    pub fn update(&mut self, resources: &[u8]) -> Result<(), Error> {
        match self {
            Runtime::Builtin(container) => {
                let resources = Resources::parse(resources).map_err(Error::runtime("update"))?;
                container.update(&resources).map_err(Error::runtime("update"))
            }
            Runtime::Command(line) => line.update(resources),
            Runtime::Planned => Err(not_made()),
        }
    }

    /// What it has used; `pid` is its first process.
    ///
    /// # Errors
    /// The runtime's.
    pub fn stats(&self, pid: i32) -> Result<Stats, Error> {
        let stats = match self {
            Runtime::Builtin(container) => container.stats(),
            Runtime::Command(_) => gantry_runtime::stats::of_process(pid),
            Runtime::Planned => return Err(not_made()),
        };
        stats.map_err(Error::runtime("stats"))
    }

    /// A watch for out-of-memory kills, where there can be one.
    pub fn oom_watch(&self) -> Option<OomWatch> {
        match self {
            Runtime::Builtin(container) => container.oom_watch().ok(),
            Runtime::Command(_) | Runtime::Planned => None,
        }
    }

    /// Clears away what is left of a container. With `force` its processes are killed first.
    ///
    /// # Errors
    /// The runtime's; may be repeated.
    pub fn delete(&mut self, force: bool) -> Result<(), Error> {
        match self {
            Runtime::Builtin(container) => container.delete(force).map_err(Error::runtime("delete")),
            Runtime::Command(line) => line.delete(force),
            Runtime::Planned => Ok(()),
        }
    }
}

/// Clears away a container whose shim is gone, by what its bundle says.
///
/// # Errors
/// The runtime's; may be repeated.
pub fn purge(bundle: &Bundle) -> Result<(), Error> {
    let Some(record) = bundle.record()? else { return Ok(()) };
    match record.command {
        None => Container::purge(&bundle.state(), &record.id).map_err(Error::runtime("delete")),
        Some(command) => CommandLine::adopt(command, &record.id, bundle).purge(),
    }
}

fn builtin_exec(
    container: &Container,
    process: &Process,
    io: ProcessIo<'_>,
    own: Option<&str>,
) -> Result<Executed, Error> {
    let options = ExecOptions { process, stdio: stdio(io, process.console_size), preserve_fds: 0 };
    let place = ExecPlace { own, ..ExecPlace::default() };
    let child = container.exec_in(options, place).map_err(Error::runtime("exec"))?;
    Ok(Executed { pid: child.pid, console: child.console })
}

fn not_made() -> Error {
    Error::refused(ErrorKind::FailedPrecondition, "the container is restored when it is started")
}

/// Where CRIU writes its logs: the client's directory, else one in the bundle.
pub(crate) fn work_directory(options: &Options, bundle: &Bundle) -> PathBuf {
    match options.criu_work_path.as_str() {
        "" => bundle.dir().join("criu-work"),
        path => PathBuf::from(path),
    }
}

fn builtin(
    wanted: Wanted<'_>,
    action: &'static str,
    make: impl FnOnce(CreateOptions<'_>) -> gantry_runtime::Result<Container>,
) -> Result<Created, Error> {
    let size = wanted.spec.process.as_ref().and_then(|process| process.console_size);
    let state_dir = wanted.bundle.state();
    let mut container = make(CreateOptions {
        id: wanted.id,
        bundle: wanted.bundle.dir(),
        state_dir: &state_dir,
        spec: wanted.spec,
        rootfs_mounts: wanted.mounts,
        stdio: stdio(wanted.io, size),
        cgroup_driver: if wanted.options.systemd_cgroup { CgroupDriver::Systemd } else { CgroupDriver::Cgroupfs },
        no_pivot: wanted.options.no_pivot_root,
        no_new_keyring: wanted.options.no_new_keyring,
        preserve_fds: 0,
        gate: Gate::Socket,
    })
    .map_err(Error::runtime(action))?;
    let (pid, console) = (container.pid(), container.take_console());
    Ok(Created { runtime: Runtime::Builtin(Box::new(container)), pid, console })
}

fn stdio(io: ProcessIo<'_>, size: Option<ConsoleSize>) -> Stdio<'_> {
    match io {
        ProcessIo::Fds(fds) => Stdio::Fds(fds),
        ProcessIo::Terminal => Stdio::Console(size),
    }
}

/// The command line that the options ask for; none for the built-in runtime.
fn command(options: &Options, namespace: &str) -> Option<bundle::Command> {
    if options.binary_name.is_empty() {
        return None;
    }
    let root = if options.root.is_empty() { "/run/containerd/runc" } else { options.root.as_str() };
    Some(bundle::Command {
        program: options.binary_name.clone(),
        root: Path::new(root).join(namespace),
        systemd_cgroup: options.systemd_cgroup,
    })
}
