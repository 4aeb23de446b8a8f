//! Further processes in a running container: joined through its init's pidfd and made in its cgroup, by this very
//! process; no program of ours is executed in between.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use crate::cgroups::{self, Cgroup};
use crate::container::{Child, Container, ExecOptions, ExecPlace, Status, Stdio};
use crate::create::{failure, own, personality, send_listener, set_oom_score};
use crate::error::{Error, Result};
use crate::namespaces::{self, Spawned};
use crate::plan::{Ask, Op, c_string};
use crate::process::{self, Settings};
use crate::spec::{NamespaceKind, Process};
use crate::sys::{self, Fd};
use crate::{hooks, rlimits, rootfs, state};

/// See [`Container::exec`].
pub(crate) fn exec(container: &Container, options: ExecOptions<'_>, at: ExecPlace<'_>) -> Result<Child> {
    options.process.validate()?;
    let process = inherit(container, options.process);
    for limit in &process.rlimits {
        rlimits::parse(limit)?;
    }
    let entrance = Entrance::of(container)?;
    let elsewhere = place(container, at)?;
    let ops = plan(container, entrance, &process, options, elsewhere.as_ref())?;
    let unified = elsewhere.as_ref().map(Cgroup::unified_directory).transpose()?;
    let cgroup = unified.as_ref().unwrap_or(&entrance.unified).as_ref();
    let has_pids = container.spec.namespace(NamespaceKind::Pid).is_some();
    let into = has_pids.then_some((&*entrance.init, &entrance.own));
    let spawned = namespaces::spawn_beside(into, cgroup, &ops, &entrance.proc)?;
    match attend(container, &process, &ops, &spawned) {
        Ok(console) => Ok(Child { pid: spawned.pid, pidfd: own(spawned.pidfd), console: console.map(own) }),
        Err(error) => {
            sys::kill_child(spawned.pid, spawned.pidfd.0);
            Err(error)
        }
    }
}

/// A process without labels of its own has the init's.
fn inherit(container: &Container, process: &Process) -> Process {
    let mut process = process.clone();
    if let Some(init) = &container.spec.process {
        if process.capabilities.is_none() {
            process.capabilities.clone_from(&init.capabilities);
        }
        if process.apparmor_profile.is_empty() {
            process.apparmor_profile.clone_from(&init.apparmor_profile);
        }
        if process.selinux_label.is_empty() {
            process.selinux_label.clone_from(&init.selinux_label);
        }
    }
    process
}

/// What a further process enters by. Looked up at the first one, and held open: the next are made in half the calls.
#[derive(Debug)]
pub(crate) struct Entrance {
    /// The container's init.
    init: Arc<Fd>,
    /// This process.
    own: Fd,
    proc: Fd,
    null: Arc<Fd>,
    /// The `tasks` files of the container's own v1 cgroups.
    joined: Arc<[Fd]>,
    /// The directory of its v2 cgroup.
    unified: Option<Fd>,
    /// Says whether it is frozen.
    freezer: Option<(Fd, bool)>,
}

impl Entrance {
    fn of(container: &Container) -> Result<&Entrance> {
        if container.entrance.get().is_none() {
            // Whoever was quicker has the same.
            let _ = container.entrance.set(Entrance::open(container)?);
        }
        container.entrance.get().ok_or_else(|| Error::Gone { id: container.record.id.clone() })
    }

    fn open(container: &Container) -> Result<Entrance> {
        let cgroup = &container.record.cgroup;
        Ok(Entrance {
            init: Arc::new(init_pidfd(container)?),
            own: namespaces::own()?,
            proc: namespaces::host_proc()?,
            null: process::null()?,
            joined: cgroup.join_files()?.into(),
            unified: cgroup.unified_directory()?,
            freezer: cgroup.freezer_file().map(|file| (file, cgroup.is_v2())),
        })
    }

    /// Whether the container is frozen; none where that has to be looked up.
    pub(crate) fn is_frozen(&self) -> Option<bool> {
        let (file, v2) = self.freezer.as_ref()?;
        let mut state = [0; 32];
        let state = sys::read_again(file.0, &mut state).ok()?;
        Some(cgroups::says_frozen(state, *v2))
    }
}

fn init_pidfd(container: &Container) -> Result<Fd> {
    let gone = || Error::Gone { id: container.record.id.clone() };
    let pidfd = container.pidfd.as_ref().ok_or_else(gone)?;
    let copy = sys::raw!(libc::SYS_fcntl, pidfd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 3);
    copy.map(|fd| Fd(fd as i32)).map_err(|errno| Error::system("copy pidfd", std::io::Error::from_raw_os_error(errno)))
}

/// The cgroup of the process, where it is not simply the container's.
fn place(container: &Container, at: ExecPlace<'_>) -> Result<Option<Cgroup>> {
    let whole = &container.record.cgroup;
    if let Some(name) = at.own {
        state::check_id(name)?;
        return whole.make_child(name).map(Some);
    }
    if !at.existing.is_empty() {
        return whole.below(at.existing).map(Some);
    }
    // An init that manages cgroups itself has moved below the container's, which then takes no processes.
    whole.has_moved_on().then(|| Cgroup::of_process(container.record.pid)).transpose()
}

fn plan(
    container: &Container,
    entrance: &Entrance,
    process: &Process,
    options: ExecOptions<'_>,
    elsewhere: Option<&Cgroup>,
) -> Result<Vec<Op>> {
    let affinity = process.exec_cpu_affinity.clone().unwrap_or_default();
    let mask = |list: &str| process::cpu_mask("process.execCPUAffinity", list);
    let mut ops = vec![Op::Session];
    if !container.record.no_new_keyring {
        ops.push(Op::Keyring(c_string(&format!("_ses.{}", container.record.id))?));
    }
    if !affinity.initial.is_empty() {
        ops.push(Op::Affinity(mask(&affinity.initial)?));
    }
    ops.push(Op::JoinCgroups(match elsewhere {
        Some(cgroup) => cgroup.join_files()?.into(),
        None => Arc::clone(&entrance.joined),
    }));
    if let Some(group) = &container.record.rdt {
        ops.push(Op::JoinCgroups(group.join_files()?.into()));
    }
    if !affinity.last.is_empty() {
        ops.push(Op::Affinity(mask(&affinity.last)?));
    }
    ops.push(Op::Setns {
        fd: Arc::clone(&entrance.init),
        flags: flags(container),
        what: "the container's namespaces".into(),
    });
    if container.spec.namespace(NamespaceKind::User).is_some() {
        ops.push(Op::BecomeRoot);
    }
    ops.extend(personality(&container.spec)?.map(Op::Personality));
    ops.extend(process::operations(Settings {
        process,
        stdio: options.stdio,
        preserve_fds: options.preserve_fds,
        seccomp: container.seccomp.clone(),
        gate: None,
        null: Arc::clone(&entrance.null),
        home: home(container, process),
    })?);
    Ok(ops)
}

/// The namespaces to join: those the container does not share with us. The pid namespace is entered by being born.
fn flags(container: &Container) -> i32 {
    let kinds = container.spec.linux.namespaces.iter().filter_map(|entry| NamespaceKind::parse(&entry.kind));
    let time = if container.record.restored { NamespaceKind::Time.flag() } else { 0 };
    kinds.filter(|kind| *kind != NamespaceKind::Pid).fold(time, |flags, kind| flags | kind.flag())
}

fn home(container: &Container, process: &Process) -> Option<String> {
    if process.env.iter().any(|variable| variable.starts_with("HOME=")) {
        return None;
    }
    let root = c_string(&format!("/proc/{}/root", container.record.pid)).ok()?;
    let root = sys::openat(libc::AT_FDCWD, &root, libc::O_PATH | libc::O_DIRECTORY).ok()?;
    Some(rootfs::home(root.0, process.user.uid))
}

/// Serves the process until its program runs, which closes the socket.
fn attend(container: &Container, process: &Process, ops: &[Op], spawned: &Spawned) -> Result<Option<Fd>> {
    if let Some(score) = process.oom_score_adj {
        set_oom_score(spawned.pid, score)?;
    }
    rlimits::set(spawned.pid, &process.rlimits)?;
    let mut console = None;
    while let Some((message, fd)) = namespaces::try_receive(&spawned.socket, 60_000)? {
        match Ask::from_number(message.kind) {
            None => return Err(failure(ops, &message)),
            Some(Ask::Console) => console = fd,
            Some(Ask::Listener) => {
                let state = container.state_as(Status::Running, spawned.pid);
                send_listener(container.spec.linux.seccomp.as_ref(), &state, fd)?;
            }
            Some(_) => {}
        }
        namespaces::reply(&spawned.socket)?;
    }
    Ok(console)
}

/// Runs startContainer hooks: programs of the image, in the container, with no more rights than its own process.
pub(crate) fn start_hooks(container: &Container) -> Result<()> {
    let Some(init) = &container.spec.process else { return Ok(()) };
    for hook in &container.spec.hooks.start_container {
        let failed = |reason: String| Error::Hook { stage: "startContainer", path: hook.path.clone(), reason };
        let mut args = hook.args.clone();
        let path = hook.path.to_string_lossy().into_owned();
        match args.first_mut() {
            Some(first) => *first = path,
            None => args.push(path),
        }
        let process = Process { args, env: hook.env.clone(), terminal: false, ..init.clone() };
        let stdin = hooks::state_pipe(&container.state_as(Status::Created, container.record.pid))?;
        let stdio = Stdio::Fds([Some(stdin.as_fd()), None, None]);
        let child = exec(container, ExecOptions { process: &process, stdio, preserve_fds: 0 }, ExecPlace::default())
            .map_err(|error| failed(error.to_string()))?;
        let wait =
            hook.timeout.filter(|seconds| *seconds > 0).map_or(-1, |seconds| (seconds as i32).saturating_mul(1000));
        if sys::readable(child.pidfd.as_raw_fd(), wait) != Ok(true) {
            sys::kill_child(child.pid, child.pidfd.as_raw_fd());
            return Err(failed("timed out and was killed".to_owned()));
        }
        match sys::wait_pid(child.pid).unwrap_or(-1) {
            0 => {}
            status => return Err(failed(format!("wait status {status:#x}"))),
        }
    }
    Ok(())
}
