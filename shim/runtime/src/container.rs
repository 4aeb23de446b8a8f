//! A container: created from a bundle, started, executed in, signalled, frozen, limited, measured, deleted.

use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::cgroups::{self, OomSource};
use crate::create;
use crate::criu::{self, CriuOptions};
use crate::error::{Error, Result};
use crate::exec::{self, Entrance};
use crate::hooks;
use crate::namespaces;
use crate::process::executable_error;
use crate::rdt::{Group, RdtFigures};
use crate::seccomp::Program;
use crate::spec::{ConsoleSize, IntelRdt, Process, Resources, Spec, State};
use crate::state::{self, Record};
use crate::stats::Stats;
use crate::sys::{self, Fd};

/// Who makes cgroups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CgroupDriver {
    /// Directories in the cgroup file system.
    #[default]
    Cgroupfs,
    /// Scopes, asked of systemd over D-Bus; `cgroupsPath` is `slice:prefix:name`.
    Systemd,
}

/// The standard streams of a new process. The descriptors stay the caller's.
#[derive(Clone, Copy, Debug)]
pub enum Stdio<'a> {
    /// `/dev/null` of the container, three times.
    Null,
    /// These descriptors: stdin, stdout, stderr. `None` is the container's `/dev/null`.
    Fds([Option<BorrowedFd<'a>>; 3]),
    /// A new terminal from the container's devpts; its master comes back from `take_console` or in [`Child`].
    Console(Option<ConsoleSize>),
}

/// What holds the container's init back between create and start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gate {
    /// A socket to the creating process: the init dies with it, and `start` reports a failing `execve`.
    #[default]
    Socket,
    /// A fifo in the state directory, so that another process can start it.
    Fifo,
}

/// How to create a container.
#[derive(Clone, Copy, Debug)]
pub struct CreateOptions<'a> {
    /// Its id: letters, digits and `_ + - .`.
    pub id: &'a str,
    /// The bundle's directory, absolute.
    pub bundle: &'a Path,
    /// Directory under which `ID/state.json` is kept.
    pub state_dir: &'a Path,
    /// The configuration.
    pub spec: &'a Spec,
    /// Mounts that make the root file system, performed in the container's mount namespace only. Empty: the
    /// directory `spec.root.path` is the root as it stands.
    pub rootfs_mounts: &'a [gantry_types::Mount],
    /// Standard streams of the init.
    pub stdio: Stdio<'a>,
    /// Who makes the cgroup.
    pub cgroup_driver: CgroupDriver,
    /// Replace the root by a move and chroot(2) instead of pivot_root(2), for a root on an initial ramfs.
    pub no_pivot: bool,
    /// Keep the caller's session keyring.
    pub no_new_keyring: bool,
    /// Descriptors 3 … 3+n that stay open in the init.
    pub preserve_fds: u32,
    /// What holds the init back until start.
    pub gate: Gate,
}

/// How to execute a further process.
#[derive(Clone, Copy, Debug)]
pub struct ExecOptions<'a> {
    /// The process. Absent capabilities, AppArmor and SELinux labels are the init's.
    pub process: &'a Process,
    /// Its standard streams.
    pub stdio: Stdio<'a>,
    /// Descriptors 3 … 3+n that stay open.
    pub preserve_fds: u32,
}

/// Where below the container's own cgroup an executed process lives, and whether a frozen container may have it.
#[derive(Clone, Copy, Debug, Default)]
pub struct ExecPlace<'a> {
    /// A cgroup of its own of this name (letters, digits and `_ + - .`), so that [`Container::kill_exec`] ends all that
    /// it started. With v1 in one hierarchy only; limits stay those of the container.
    pub own: Option<&'a str>,
    /// Existing cgroups below the container's: controllers (all of them if empty) and path.
    pub existing: &'a [(String, String)],
    /// Execute in a frozen container: the process waits for the thaw.
    pub ignore_paused: bool,
}

/// An executed process. It is a child of the caller, who reaps it.
#[derive(Debug)]
pub struct Child {
    /// Process id on the host.
    pub pid: i32,
    /// Readable when it has ended.
    pub pidfd: OwnedFd,
    /// Master of its terminal, when it has one.
    pub console: Option<OwnedFd>,
}

/// Where a container is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// State was written, the init is being made.
    Creating,
    /// The init waits for start.
    Created,
    /// The program runs.
    Running,
    /// Frozen.
    Paused,
    /// The init has ended.
    Stopped,
}

impl Status {
    /// The specification's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Creating => "creating",
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Stopped => "stopped",
        }
    }
}

/// Tells of the kernel killing for lack of memory in the container.
#[derive(Debug)]
pub struct OomWatch {
    fd: OwnedFd,
    source: OomSource,
    seen: u64,
}

impl AsFd for OomWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl OomWatch {
    /// After the descriptor became readable: takes the notice and returns how many kills are new. 0 means that the
    /// cgroup is gone or nothing happened. Never blocks.
    pub fn take(&mut self) -> Result<u64> {
        cgroups::take_oom(&self.fd, &self.source, &mut self.seen)
    }

    pub(crate) fn new(fd: OwnedFd, source: OomSource) -> OomWatch {
        OomWatch { fd, source, seen: 0 }
    }
}

/// A container.
#[derive(Debug)]
pub struct Container {
    /// `STATE_DIR/ID`.
    pub(crate) directory: PathBuf,
    pub(crate) record: Record,
    /// The configuration, without what only its making needed.
    pub(crate) spec: Spec,
    /// The compiled filter, for executed processes.
    pub(crate) seccomp: Option<Program>,
    pub(crate) pidfd: Option<OwnedFd>,
    /// To the waiting init.
    pub(crate) socket: Option<Fd>,
    pub(crate) console: Option<OwnedFd>,
    /// Whether its init may wait at [`FIFO`].
    pub(crate) fifo: bool,
    /// What further processes enter by, from the first one on.
    pub(crate) entrance: OnceLock<Entrance>,
}

/// The fifo that holds the init back ([`Gate::Fifo`]).
pub(crate) const FIFO: &str = "exec.fifo";

impl Container {
    /// Makes the container and leaves its init waiting for [`Container::start`]. On error nothing is left behind.
    /// The init is a child of the caller, who reaps it.
    pub fn create(options: CreateOptions<'_>) -> Result<Container> {
        create::create(options)
    }

    /// Makes the namespaces and cgroup that the configuration asks for, held by a process that runs no program: from
    /// [`Container::start`] on it reaps its orphans and waits to be killed. Its root is empty; mounts, capabilities,
    /// streams and filters of the configuration do not concern it.
    pub fn hold(options: CreateOptions<'_>) -> Result<Container> {
        create::hold(options)
    }

    /// Takes up a container from its persisted state, after the death of whoever created it.
    pub fn load(state_dir: &Path, id: &str) -> Result<Container> {
        let record = Record::read(state_dir, id)?;
        let pidfd = open_init(&record);
        // A bundle that is gone must not keep a container from being deleted.
        let spec = Spec::load(&record.bundle).unwrap_or_default();
        let seccomp = spec.linux.seccomp.as_ref().map(crate::seccomp::compile).transpose().unwrap_or_default();
        let directory = state_dir.join(id);
        let entrance = OnceLock::new();
        Ok(Container { directory, record, spec, seccomp, pidfd, socket: None, console: None, fifo: true, entrance })
    }

    /// Makes a running container from a checkpoint. Everything around its processes is made as the configuration says,
    /// which also bounds what those of the images may be and do. The first process is a child of the caller.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where CRIU is missing or does not work, before anything is done; [`Error::Criu`] with the
    /// errors of its log. Nothing is left behind.
    pub fn restore(options: CreateOptions<'_>, criu: &CriuOptions) -> Result<Container> {
        criu::restore(options, criu)
    }

    /// Writes the container's processes into images. They are gone afterwards, unless they are left running.
    ///
    /// # Errors
    /// [`Error::State`] for a container that does not run, and those of [`Container::restore`]; then it goes on running.
    pub fn checkpoint(&self, options: &CriuOptions) -> Result<()> {
        criu::checkpoint(self, options)
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.record.id
    }

    /// The bundle's directory.
    pub fn bundle(&self) -> &Path {
        &self.record.bundle
    }

    /// The init's process id on the host.
    pub fn pid(&self) -> i32 {
        self.record.pid
    }

    /// When it was created, seconds since 1970.
    pub fn created(&self) -> u64 {
        self.record.created
    }

    /// Its configuration, without mounts and seccomp. After [`Container::load`] as the bundle has it now.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Readable when the init has ended. `None` for a container loaded after its init's end.
    pub fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.pidfd.as_ref().map(AsFd::as_fd)
    }

    /// Master of the init's terminal, once.
    pub fn take_console(&mut self) -> Option<OwnedFd> {
        self.console.take()
    }

    /// Lets the init execute its program; returns when it has, or why it could not. Runs startContainer and
    /// poststart hooks.
    pub fn start(&mut self) -> Result<()> {
        match self.status() {
            Status::Created => {}
            other => return Err(self.refuse("start", other)),
        }
        exec::start_hooks(self)?;
        match self.socket.take() {
            Some(socket) => self.release(&socket)?,
            None => self.release_fifo()?,
        }
        if self.spec.hooks.poststart.is_empty() {
            return Ok(());
        }
        // The program runs: a failing poststart hook does not change that (runtime-spec, lifecycle step 9).
        let _ = hooks::run_all("poststart", &self.spec.hooks.poststart, &self.state());
        Ok(())
    }

    fn release(&self, socket: &Fd) -> Result<()> {
        namespaces::reply(socket)?;
        match namespaces::try_receive(socket, 60_000)? {
            // execve closed the socket.
            None => Ok(()),
            Some((message, _)) => {
                let program = self.spec.process.as_ref().and_then(|process| process.args.first());
                let program = program.map_or("", String::as_str);
                Err(executable_error(program, false, message.errno))
            }
        }
    }

    fn release_fifo(&self) -> Result<()> {
        let path = self.directory.join(FIFO);
        let name = crate::plan::c_path(&path)?;
        let failed = |errno| Error::file("open", &path, std::io::Error::from_raw_os_error(errno));
        // Non-blocking: without the waiting init there is no reader, which is an error and not a wait.
        let fifo = sys::openat(libc::AT_FDCWD, &name, libc::O_WRONLY | libc::O_NONBLOCK).map_err(failed)?;
        sys::write_once(fifo.0, b"+").map_err(failed)?;
        std::fs::remove_file(&path).map_err(|source| Error::file("remove", &path, source))
    }

    /// Executes a further process in the container's namespaces and cgroup.
    pub fn exec(&self, options: ExecOptions<'_>) -> Result<Child> {
        self.exec_in(options, ExecPlace::default())
    }

    /// Executes a further process at a place of its own in the container's cgroup.
    pub fn exec_in(&self, options: ExecOptions<'_>, place: ExecPlace<'_>) -> Result<Child> {
        match self.status() {
            Status::Running | Status::Created => exec::exec(self, options, place),
            // Its set-up would wait for the thaw, and we for it: it is frozen again once its program runs.
            Status::Paused if place.ignore_paused => {
                self.record.cgroup.freeze(false)?;
                let child = exec::exec(self, options, place);
                self.record.cgroup.freeze(true)?;
                child
            }
            other => Err(self.refuse("exec in", other)),
        }
    }

    /// Kills every process in the cgroup that [`ExecPlace::own`] named, and removes it. That it is gone is success.
    pub fn kill_exec(&self, name: &str) -> Result<()> {
        state::check_id(name)?;
        self.record.cgroup.own_child(name)?.destroy()
    }

    /// Removes the cgroup that [`ExecPlace::own`] named, unless processes are left in it: those go with the container.
    pub fn leave_exec(&self, name: &str) -> Result<()> {
        state::check_id(name)?;
        self.record.cgroup.own_child(name)?.remove_if_empty()
    }

    /// Signals the init, or with `all` every process of the container's cgroup. A gone init is [`Error::Gone`].
    pub fn kill(&self, signal: i32, all: bool) -> Result<()> {
        if all {
            return self.record.cgroup.signal(signal);
        }
        let gone = || Error::Gone { id: self.record.id.clone() };
        let pidfd = self.pidfd.as_ref().ok_or_else(gone)?;
        if self.has_ended() {
            return Err(gone());
        }
        match sys::pidfd_send_signal(pidfd.as_raw_fd(), signal) {
            Err(libc::ESRCH) => Err(gone()),
            other => other.map_err(|errno| Error::system("signal the init", std::io::Error::from_raw_os_error(errno))),
        }?;
        // A frozen v1 cgroup does not let even SIGKILL through.
        if signal == libc::SIGKILL && self.record.cgroup.is_frozen() {
            self.record.cgroup.freeze(false)?;
        }
        Ok(())
    }

    /// Every process of the container's cgroup, by host process id.
    pub fn pids(&self) -> Result<Vec<i32>> {
        self.record.cgroup.pids()
    }

    /// Freezes every process; returns when frozen.
    pub fn pause(&mut self) -> Result<()> {
        match self.status() {
            Status::Running | Status::Created => self.record.cgroup.freeze(true),
            other => Err(self.refuse("pause", other)),
        }
    }

    /// Thaws every process.
    pub fn resume(&mut self) -> Result<()> {
        match self.status() {
            Status::Paused => self.record.cgroup.freeze(false),
            other => Err(self.refuse("resume", other)),
        }
    }

    /// Changes limits; absent members stay as they are.
    pub fn update(&mut self, resources: &Resources) -> Result<()> {
        self.record.cgroup.update(resources)
    }

    /// Changes the schemata of its group in resctrl; empty members stay as they are.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a container without a group.
    pub fn update_rdt(&mut self, wanted: &IntelRdt) -> Result<()> {
        let none = || Error::Unsupported { what: "the container has no group of Intel RDT".to_owned() };
        self.record.rdt.as_ref().ok_or_else(none)?.set(wanted)
    }

    /// What the container has used.
    pub fn stats(&self) -> Result<Stats> {
        self.record.cgroup.stats()
    }

    /// What its group in resctrl has and was seen to use; none without Intel RDT.
    ///
    /// # Errors
    /// [`Error::File`] where resctrl does not answer.
    pub fn rdt(&self) -> Result<Option<RdtFigures>> {
        self.record.rdt.as_ref().map(Group::figures).transpose()
    }

    /// Watches for kills for lack of memory.
    pub fn oom_watch(&self) -> Result<OomWatch> {
        self.record.cgroup.oom_watch()
    }

    fn has_ended(&self) -> bool {
        match &self.pidfd {
            None => true,
            Some(pidfd) => sys::readable(pidfd.as_raw_fd(), 0) != Ok(false),
        }
    }

    /// Where it is in its life, seen now.
    pub fn status(&self) -> Status {
        if self.record.pid == 0 {
            return Status::Creating;
        }
        if self.has_ended() {
            return Status::Stopped;
        }
        if self.socket.is_some() || (self.fifo && self.directory.join(FIFO).exists()) {
            return Status::Created;
        }
        let seen = self.entrance.get().and_then(Entrance::is_frozen);
        if seen.unwrap_or_else(|| self.record.cgroup.is_frozen()) { Status::Paused } else { Status::Running }
    }

    /// The specification's state document.
    pub fn state(&self) -> State {
        let status = self.status();
        let pid = if matches!(status, Status::Stopped | Status::Creating) { 0 } else { self.record.pid };
        self.state_as(status, pid)
    }

    pub(crate) fn state_as(&self, status: Status, pid: i32) -> State {
        State {
            oci_version: self.record.oci_version.clone(),
            id: self.record.id.clone(),
            status: status.as_str().to_owned(),
            pid,
            bundle: self.record.bundle.clone(),
            annotations: self.record.annotations.clone(),
        }
    }

    /// Clears away cgroups and state and runs poststop hooks. Refused while the init lives, unless `force`, which
    /// kills every process first. Repeating it after a failure is safe.
    pub fn delete(&mut self, force: bool) -> Result<()> {
        let status = self.status();
        if !force && !matches!(status, Status::Stopped | Status::Creating) {
            return Err(self.refuse("delete", status));
        }
        self.socket = None;
        if force && !self.has_ended() {
            let _ = self.kill(libc::SIGKILL, false);
        }
        clear(&self.directory, &self.record)?;
        if self.spec.hooks.poststop.is_empty() {
            return Ok(());
        }
        let _ = hooks::run_all("poststop", &self.spec.hooks.poststop, &self.state_as(Status::Stopped, 0));
        Ok(())
    }

    /// Clears away what a container left whose creator died at any point, known only by its state directory: kills
    /// what is in its cgroups. No state is success.
    pub fn purge(state_dir: &Path, id: &str) -> Result<()> {
        match Container::load(state_dir, id) {
            Ok(mut container) => container.delete(true),
            Err(Error::NotFound { .. }) => remove_directory(&state_dir.join(id)),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn refuse(&self, action: &'static str, status: Status) -> Error {
        Error::State { action, id: self.record.id.clone(), status: status.as_str() }
    }
}

/// Removes a container's processes, cgroups and state, in this order: the state says where the others are.
pub(crate) fn clear(directory: &Path, record: &Record) -> Result<()> {
    record.cgroup.destroy()?;
    record.rdt.as_ref().map_or(Ok(()), Group::remove)?;
    remove_directory(directory)
}

fn remove_directory(directory: &Path) -> Result<()> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other.map_err(|source| Error::file("remove", directory, source)),
    }
}

/// The init's pidfd, if the process of that number is still the one that was recorded.
fn open_init(record: &Record) -> Option<OwnedFd> {
    if record.pid <= 0 {
        return None;
    }
    let pidfd = sys::pidfd_open(record.pid).ok()?;
    match state::start_time(record.pid) {
        Some((start, _)) if start == record.start_time => Some(create::own(pidfd)),
        _ => None,
    }
}
