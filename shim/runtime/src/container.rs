//! A container: created from a bundle, started, executed in, signalled, frozen, limited, measured, deleted.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use crate::error::Result;
use crate::spec::{ConsoleSize, Process, Resources, Spec, State};
use crate::stats::Stats;

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
        todo!()
    }
}

/// A container.
#[derive(Debug)]
pub struct Container {}

impl Container {
    /// Makes the container and leaves its init waiting for [`Container::start`]. On error nothing is left behind.
    /// The init is a child of the caller, who reaps it.
    pub fn create(options: CreateOptions<'_>) -> Result<Container> {
        let _ = options;
        todo!()
    }

    /// Takes up a container from its persisted state, after the death of whoever created it.
    pub fn load(state_dir: &Path, id: &str) -> Result<Container> {
        let _ = (state_dir, id);
        todo!()
    }

    /// Its id.
    pub fn id(&self) -> &str {
        todo!()
    }

    /// The init's process id on the host.
    pub fn pid(&self) -> i32 {
        todo!()
    }

    /// Readable when the init has ended. `None` for a container loaded after its init's end.
    pub fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        todo!()
    }

    /// Master of the init's terminal, once.
    pub fn take_console(&mut self) -> Option<OwnedFd> {
        todo!()
    }

    /// Lets the init execute its program; returns when it has, or why it could not. Runs startContainer and
    /// poststart hooks.
    pub fn start(&mut self) -> Result<()> {
        todo!()
    }

    /// Executes a further process in the container's namespaces and cgroup.
    pub fn exec(&self, options: ExecOptions<'_>) -> Result<Child> {
        let _ = options;
        todo!()
    }

    /// Signals the init, or with `all` every process of the container's cgroup. A gone init is [`crate::Error::Gone`].
    pub fn kill(&self, signal: i32, all: bool) -> Result<()> {
        let _ = (signal, all);
        todo!()
    }

    /// Every process of the container's cgroup, by host process id.
    pub fn pids(&self) -> Result<Vec<i32>> {
        todo!()
    }

    /// Freezes every process; returns when frozen.
    pub fn pause(&mut self) -> Result<()> {
        todo!()
    }

    /// Thaws every process.
    pub fn resume(&mut self) -> Result<()> {
        todo!()
    }

    /// Changes limits; absent members stay as they are.
    pub fn update(&mut self, resources: &Resources) -> Result<()> {
        let _ = resources;
        todo!()
    }

    /// What the container has used.
    pub fn stats(&self) -> Result<Stats> {
        todo!()
    }

    /// Watches for kills for lack of memory.
    pub fn oom_watch(&self) -> Result<OomWatch> {
        todo!()
    }

    /// Where it is in its life, seen now.
    pub fn status(&self) -> Status {
        todo!()
    }

    /// The specification's state document.
    pub fn state(&self) -> State {
        todo!()
    }

    /// Clears away cgroups and state and runs poststop hooks. Refused while the init lives, unless `force`, which
    /// kills every process first. Repeating it after a failure is safe.
    pub fn delete(&mut self, force: bool) -> Result<()> {
        let _ = force;
        todo!()
    }

    /// Clears away what a container left whose creator died at any point, known only by its state directory: kills
    /// what is in its cgroups. No state is success.
    pub fn purge(state_dir: &Path, id: &str) -> Result<()> {
        let _ = (state_dir, id);
        todo!()
    }
}
