//! Creating a container: intent on disk, cgroup, plan, process, hooks, state; undone when any of it fails.

use std::io::ErrorKind;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::cgroups::Cgroup;
use crate::container::{Container, CreateOptions, FIFO, Gate, Status, Stdio, clear};
use crate::error::{Error, Result};
use crate::namespaces::{self, Namespaces, Spawned};
use crate::plan::{Ask, Message, Op, c_string};
use crate::process::{self, Settings};
use crate::rdt::Group;
use crate::rootfs;
use crate::seccomp::{self, Program};
use crate::spec::{Process, Resources, Seccomp, Spec, State};
use crate::state::{self, Record};
use crate::sys::{self, Fd};
use crate::{hooks, netdev, rlimits};

/// User and group of a process that holds namespaces, unless it is told.
const NOBODY: u32 = 65_535;

/// See [`Container::create`].
pub(crate) fn create(options: CreateOptions<'_>) -> Result<Container> {
    options.spec.validate()?;
    let process = options.spec.process.as_ref().ok_or_else(|| Error::invalid("process", "is missing"))?;
    create_by(options, process, Kind::Program)
}

/// See [`Container::hold`].
pub(crate) fn hold(options: CreateOptions<'_>) -> Result<Container> {
    let none = Process::default();
    create_by(options, options.spec.process.as_ref().unwrap_or(&none), Kind::Holder)
}

/// What the first process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// The configuration's program, in its root.
    Program,
    /// One that holds the namespaces.
    Holder,
}

fn create_by(options: CreateOptions<'_>, process: &Process, kind: Kind) -> Result<Container> {
    let (directory, record) = begin(&options)?;
    let mut making = Making { options, process, kind, directory, record, spawned: None };
    match making.make() {
        Ok(container) => Ok(container),
        Err(error) => {
            making.undo();
            Err(error)
        }
    }
}

/// Takes the id: a directory of its own, and what will be written there.
pub(crate) fn begin(options: &CreateOptions<'_>) -> Result<(PathBuf, Record)> {
    state::check_id(options.id)?;
    let cgroup = Cgroup::locate(options.cgroup_driver, &options.spec.linux.cgroups_path, options.id)?;
    let rdt = options.spec.linux.intel_rdt.as_ref().map(|wanted| Group::locate(wanted, options.id)).transpose()?;
    let directory = make_directory(options.state_dir, options.id)?;
    let record = Record {
        id: options.id.to_owned(),
        oci_version: options.spec.oci_version.clone(),
        bundle: options.bundle.to_owned(),
        pid: 0,
        start_time: 0,
        created: Record::now(),
        no_new_keyring: options.no_new_keyring,
        cgroup,
        rdt,
        annotations: options.spec.annotations.clone(),
        descriptors: descriptors(options.stdio),
        restored: false,
    };
    Ok((directory, record))
}

/// What a process's streams are, in the kernel's names.
fn descriptors(stdio: Stdio<'_>) -> Vec<String> {
    let null = || "/dev/null".to_owned();
    match stdio {
        Stdio::Null => vec![null(); 3],
        // They are made in the container.
        Stdio::Console(_) => vec!["/dev/pts/0".to_owned(); 3],
        Stdio::Fds(fds) => {
            let name = |fd: BorrowedFd<'_>| std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
            let text = |fd| name(fd).map_or_else(|_| null(), |path| path.to_string_lossy().into_owned());
            fds.map(|fd| fd.map_or_else(null, text)).to_vec()
        }
    }
}

fn make_directory(state_dir: &Path, id: &str) -> Result<PathBuf> {
    let directory = state_dir.join(id);
    let made = match std::fs::create_dir(&directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            std::fs::create_dir_all(state_dir).and_then(|()| std::fs::create_dir(&directory))
        }
        other => other,
    };
    match made {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(Error::Exists { id: id.to_owned() }),
        Err(source) => Err(Error::file("make", directory, source)),
        Ok(()) => Ok(directory),
    }
}

/// A container being made.
struct Making<'a> {
    options: CreateOptions<'a>,
    process: &'a Process,
    kind: Kind,
    directory: PathBuf,
    record: Record,
    spawned: Option<Spawned>,
}

impl Making<'_> {
    fn make(&mut self) -> Result<Container> {
        let spec = self.options.spec;
        let filter = spec.linux.seccomp.as_ref().filter(|_| self.kind == Kind::Program);
        let seccomp = filter.map(seccomp::compile).transpose()?;
        let namespaces = Namespaces::open(spec)?;
        for limit in &self.process.rlimits {
            rlimits::parse(limit)?;
        }
        self.record.write(&self.directory)?;
        let none = Resources::default();
        let _holder = self.record.cgroup.create_unified(spec.linux.resources.as_ref().unwrap_or(&none))?;
        let early = namespaces.has_user();
        if early {
            self.create_cgroups()?;
        }
        let proc = namespaces::host_proc()?;
        let mut ops = self.plan(&namespaces, seccomp.clone())?;
        let cgroup = self.record.cgroup.unified_directory()?;
        // Devices are handed over to a network namespace that must be there then.
        let apart = spec.linux.net_devices.is_empty();
        let spawned = namespaces::spawn(namespaces, cgroup.as_ref(), &mut ops, &proc, apart)?;
        self.record.pid = spawned.pid;
        let pid = spawned.pid;
        self.spawned = Some(spawned);
        if !early {
            self.create_cgroups()?;
        }
        netdev::hand_over(&spec.linux.net_devices, pid)?;
        if let (Some(group), Some(wanted)) = (&self.record.rdt, &spec.linux.intel_rdt) {
            group.make(wanted, pid)?;
        }
        if let Some(score) = self.process.oom_score_adj {
            set_oom_score(pid, score)?;
        }
        rlimits::set(pid, &self.process.rlimits)?;
        self.record.start_time = state::start_time(pid).map_or(0, |(ticks, _)| ticks);
        self.record.write_init(&self.directory)?;
        let console = self.attend(&ops)?;
        self.finish(seccomp, console)
    }

    fn create_cgroups(&self) -> Result<()> {
        let none = Resources::default();
        self.record.cgroup.create(self.options.spec.linux.resources.as_ref().unwrap_or(&none))
    }

    fn finish(&mut self, seccomp: Option<Program>, console: Option<OwnedFd>) -> Result<Container> {
        let Some(spawned) = self.spawned.take() else { return Err(Error::Died { stage: "it was being set up" }) };
        Ok(Container {
            directory: self.directory.clone(),
            record: self.record.clone(),
            spec: keep(self.options.spec),
            seccomp,
            pidfd: Some(own(spawned.pidfd)),
            socket: (self.options.gate == Gate::Socket).then_some(spawned.socket),
            console,
            fifo: self.options.gate == Gate::Fifo,
            entrance: OnceLock::new(),
        })
    }

    /// Everything the init does until its program.
    fn plan(&self, namespaces: &Namespaces, seccomp: Option<Program>) -> Result<Vec<Op>> {
        let spec = self.options.spec;
        let mut ops = vec![Op::Session];
        if !self.options.no_new_keyring {
            ops.push(Op::Keyring(c_string(&format!("_ses.{}", self.options.id))?));
        }
        // A process that is root of nothing but its user namespace could not open their files. Else they are made while
        // it makes its mounts.
        let early = namespaces.has_user();
        let new_cgroup = spec.has_new(crate::spec::NamespaceKind::Cgroup).then_some(Op::Unshare(libc::CLONE_NEWCGROUP));
        if early {
            ops.push(Op::JoinCgroups(self.record.cgroup.join_files()?.into()));
        }
        if namespaces.new & libc::CLONE_NEWUSER != 0 {
            ops.push(Op::Ask(Ask::Maps));
        }
        if namespaces.has_user() {
            ops.push(Op::BecomeRoot);
        }
        let mut late = Vec::new();
        if early {
            ops.extend(new_cgroup);
        } else {
            late.push(Op::Ask(Ask::Cgroups));
            late.push(Op::OpenAndJoinCgroups(self.record.cgroup.join_paths()?));
            late.extend(new_cgroup);
        }
        if namespaces.new & libc::CLONE_NEWNET != 0 {
            ops.push(Op::Loopback);
        }
        ops.push(Op::Propagation(libc::MS_SLAVE | libc::MS_REC));
        if self.kind == Kind::Holder {
            self.plan_holder(namespaces, late, &mut ops)?;
            return Ok(ops);
        }
        let context = rootfs::Context { spec, bundle: self.options.bundle, cgroup: &self.record.cgroup };
        self.plan_rootfs(&context, late, &mut ops)?;
        names_and_sysctls(spec, &mut ops)?;
        // The home directory is read from the root before it is attached.
        ops.extend(process::operations(Settings {
            process: self.process,
            stdio: self.options.stdio,
            preserve_fds: self.options.preserve_fds,
            seccomp,
            gate: Some(self.gate()?),
            null: process::null()?,
            home: home(self.process, &ops),
        })?);
        Ok(ops)
    }

    /// `late`: joining the cgroups, before they are mounted, else before the host's tree goes.
    fn plan_rootfs(&self, context: &rootfs::Context<'_>, late: Vec<Op>, ops: &mut Vec<Op>) -> Result<()> {
        let spec = context.spec;
        let (tree, at) = rootfs::root_tree(context, self.options.rootfs_mounts)?;
        let mounts = rootfs::operations(context, &tree, late)?;
        ops.push(Op::AttachRoot { tree, at });
        ops.extend(mounts);
        ops.extend(ask_for_hooks(spec));
        ops.push(if self.options.no_pivot { Op::MoveRoot } else { Op::Pivot });
        ops.extend(rootfs::propagation(&spec.linux.rootfs_propagation)?.map(Op::Propagation));
        Ok(())
    }

    /// An empty root, names, nobody's rights, and then nothing but waiting.
    fn plan_holder(&self, namespaces: &Namespaces, late: Vec<Op>, ops: &mut Vec<Op>) -> Result<()> {
        ops.push(rootfs::empty_root()?);
        ops.extend(late);
        ops.extend(ask_for_hooks(self.options.spec));
        ops.push(Op::Pivot);
        names_and_sysctls(self.options.spec, ops)?;
        let named = self.options.spec.process.as_ref().map(|process| (process.user.uid, process.user.gid));
        let (uid, gid) = named.unwrap_or(if namespaces.has_user() { (0, 0) } else { (NOBODY, NOBODY) });
        ops.push(Op::NoNewPrivileges);
        ops.push(Op::Bounding { drop: crate::capabilities::held().1 });
        ops.push(Op::User { uid, gid, groups: Vec::new(), umask: None, set_groups: true });
        ops.push(Op::Capabilities(crate::capabilities::Sets::default()));
        ops.push(Op::Gate { fifo: self.gate()? });
        ops.push(Op::Hold { title: sys::title() });
        Ok(())
    }

    fn gate(&self) -> Result<Option<Fd>> {
        if self.options.gate == Gate::Socket {
            return Ok(None);
        }
        let path = self.directory.join(FIFO);
        let failed = |errno| Error::file("make", &path, std::io::Error::from_raw_os_error(errno));
        let name = crate::plan::c_path(&path)?;
        sys::raw!(libc::SYS_mknodat, libc::AT_FDCWD, name.as_ptr(), libc::S_IFIFO | 0o600, 0).map_err(failed)?;
        // Read and write: the init is a reader that never sees the end of the stream.
        sys::openat(libc::AT_FDCWD, &name, libc::O_RDWR).map(Some).map_err(failed)
    }

    /// Serves the init until it is ready.
    fn attend(&self, ops: &[Op]) -> Result<Option<OwnedFd>> {
        let Some(spawned) = &self.spawned else { return Ok(None) };
        let mut console = None;
        loop {
            let (message, fd) = namespaces::receive(&spawned.socket)?;
            match Ask::from_number(message.kind) {
                None => return Err(failure(ops, &message)),
                Some(Ask::Ready) => return Ok(console),
                Some(Ask::Maps) => {
                    let linux = &self.options.spec.linux;
                    namespaces::write_maps(spawned.pid, &linux.uid_mappings, &linux.gid_mappings)?;
                }
                Some(Ask::Hooks) => self.run_hooks(spawned)?,
                Some(Ask::Console) => console = fd.map(own),
                Some(Ask::Listener) => {
                    let state = self.state(spawned.pid);
                    send_listener(self.options.spec.linux.seccomp.as_ref(), &state, fd)?;
                }
                // They were made before we came to listen.
                Some(Ask::Cgroups | Ask::Born) => {}
            }
            namespaces::reply(&spawned.socket)?;
        }
    }

    fn run_hooks(&self, spawned: &Spawned) -> Result<()> {
        let state = self.state(spawned.pid);
        let all = &self.options.spec.hooks;
        hooks::run("prestart", &all.prestart, &state, None)?;
        hooks::run("createRuntime", &all.create_runtime, &state, None)?;
        hooks::run("createContainer", &all.create_container, &state, Some(&spawned.pidfd))
    }

    fn state(&self, pid: i32) -> State {
        state_of(&self.record, pid)
    }

    /// Takes everything back. What cannot be is left to a later purge, which finds it by the record.
    fn undo(&mut self) {
        if let Some(spawned) = self.spawned.take() {
            sys::kill_child(spawned.pid, spawned.pidfd.0);
        }
        let _ = clear(&self.directory, &self.record);
        if !self.options.spec.hooks.poststop.is_empty() && self.record.pid != 0 {
            let mut state = self.state(0);
            state.status = Status::Stopped.as_str().to_owned();
            let _ = hooks::run_all("poststop", &self.options.spec.hooks.poststop, &state);
        }
    }
}

/// The state of a container that is being made.
pub(crate) fn state_of(record: &Record, pid: i32) -> State {
    State {
        oci_version: record.oci_version.clone(),
        id: record.id.clone(),
        status: Status::Creating.as_str().to_owned(),
        pid,
        bundle: record.bundle.clone(),
        annotations: record.annotations.clone(),
    }
}

fn ask_for_hooks(spec: &Spec) -> Option<Op> {
    let hooks = &spec.hooks;
    let none = hooks.prestart.is_empty() && hooks.create_runtime.is_empty() && hooks.create_container.is_empty();
    (!none).then_some(Op::Ask(Ask::Hooks))
}

/// What later calls need of the configuration.
pub(crate) fn keep(spec: &Spec) -> Spec {
    let mut kept = Spec {
        oci_version: spec.oci_version.clone(),
        process: spec.process.clone(),
        hooks: spec.hooks.clone(),
        root: spec.root.clone(),
        ..Spec::default()
    };
    kept.linux.namespaces.clone_from(&spec.linux.namespaces);
    kept.linux.cgroups_path.clone_from(&spec.linux.cgroups_path);
    kept.linux.personality.clone_from(&spec.linux.personality);
    if let Some(seccomp) = &spec.linux.seccomp {
        kept.linux.seccomp = Some(Seccomp {
            listener_path: seccomp.listener_path.clone(),
            listener_metadata: seccomp.listener_metadata.clone(),
            ..Seccomp::default()
        });
    }
    kept
}

fn names_and_sysctls(spec: &Spec, ops: &mut Vec<Op>) -> Result<()> {
    if !spec.hostname.is_empty() {
        ops.push(Op::Hostname(c_string(&spec.hostname)?));
    }
    if !spec.domainname.is_empty() {
        ops.push(Op::Domainname(c_string(&spec.domainname)?));
    }
    for (key, value) in &spec.linux.sysctl {
        // `net.ipv4.conf.eth0/1.x`: a slash stands for a dot inside a name, unless slashes separate throughout.
        let first = key.find(['.', '/']).and_then(|at| key.get(at..=at));
        let path = if first == Some("/") { key.clone() } else { swap_separators(key) };
        ops.push(Op::Sysctl { path: c_string(&format!("sys/{path}"))?, value: c_string(value)? });
    }
    ops.extend(personality(spec)?.map(Op::Personality));
    ops.extend(memory_policy(spec)?);
    Ok(())
}

fn swap_separators(key: &str) -> String {
    let swap = |c| match c {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    key.chars().map(swap).collect()
}

/// The execution domain, personality(2).
pub(crate) fn personality(spec: &Spec) -> Result<Option<u64>> {
    let Some(personality) = &spec.linux.personality else { return Ok(None) };
    match personality.domain.as_str() {
        "LINUX" => Ok(Some(0)),
        "LINUX32" => Ok(Some(8)),
        other => Err(Error::invalid("linux.personality", format!("{other:?} is no domain"))),
    }
}

fn memory_policy(spec: &Spec) -> Result<Option<Op>> {
    let Some(policy) = &spec.linux.memory_policy else { return Ok(None) };
    let field = "linux.memoryPolicy";
    let mut mode = match policy.mode.as_str() {
        "MPOL_DEFAULT" => 0,
        "MPOL_PREFERRED" => 1,
        "MPOL_BIND" => 2,
        "MPOL_INTERLEAVE" => 3,
        "MPOL_LOCAL" => 4,
        "MPOL_PREFERRED_MANY" => 5,
        "MPOL_WEIGHTED_INTERLEAVE" => 6,
        other => return Err(Error::invalid(field, format!("{other:?} is no mode"))),
    };
    for flag in &policy.flags {
        mode |= match flag.as_str() {
            "MPOL_F_NUMA_BALANCING" => 1 << 13,
            "MPOL_F_RELATIVE_NODES" => 1 << 14,
            "MPOL_F_STATIC_NODES" => 1 << 15,
            other => return Err(Error::invalid(field, format!("{other:?} is no flag"))),
        };
    }
    Ok(Some(Op::MemoryPolicy { mode, nodes: process::cpu_mask(field, &policy.nodes)? }))
}

/// The value of a missing `HOME`.
fn home(process: &Process, ops: &[Op]) -> Option<String> {
    if process.env.iter().any(|variable| variable.starts_with("HOME=")) {
        return None;
    }
    let root = ops.iter().find_map(|op| if let Op::AttachRoot { tree, .. } = op { Some(tree.0) } else { None })?;
    Some(rootfs::home(root, process.user.uid))
}

/// Sets the score; lowering it below the caller's own is clamped where the caller may not.
pub(crate) fn set_oom_score(pid: i32, score: i32) -> Result<()> {
    let path = format!("/proc/{pid}/oom_score_adj");
    match std::fs::write(&path, score.to_string()) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(()),
        other => other.map_err(|source| Error::file("write", path, source)),
    }
}

/// A failure of the child in words.
pub(crate) fn failure(ops: &[Op], message: &Message) -> Error {
    let source = std::io::Error::from_raw_os_error(message.errno);
    let Some(op) = ops.get(message.index as usize) else {
        return Error::Init { what: "set up the process".into(), source };
    };
    let exec = ops.iter().find_map(|op| if let Op::Exec(exec) = op { Some(exec) } else { None });
    if let (Op::Find | Op::Exec(_), Some(exec)) = (op, exec) {
        return process::executable_error(&exec.program, exec.searched, message.errno);
    }
    let mut what = op.describe(message.detail);
    let text = &message.text[..(message.length as usize).min(message.text.len())];
    if !text.is_empty() {
        what = format!("{what} ({})", String::from_utf8_lossy(text).trim());
    }
    Error::Init { what, source }
}

/// Hands the seccomp listener to the agent at `listenerPath`, beside the state of the container's process.
pub(crate) fn send_listener(config: Option<&Seccomp>, state: &State, listener: Option<Fd>) -> Result<()> {
    let (Some(config), Some(listener)) = (config, listener) else { return Ok(()) };
    if config.listener_path.is_empty() {
        return Err(Error::invalid("linux.seccomp.listenerPath", "is needed for SCMP_ACT_NOTIFY"));
    }
    let document = serde_json::json!({
        "ociVersion": state.oci_version,
        "fds": ["seccompFd"],
        "pid": state.pid,
        "metadata": config.listener_metadata,
        "state": state,
    });
    let failed = |source| Error::file("send the seccomp listener to", &config.listener_path, source);
    let socket = std::os::unix::net::UnixStream::connect(&config.listener_path).map_err(failed)?;
    sys::send_fd(socket.as_raw_fd(), document.to_string().as_bytes(), listener.0)
        .map_err(|errno| failed(std::io::Error::from_raw_os_error(errno)))
}

/// Makes a descriptor one that the standard library owns.
#[allow(unsafe_code)]
pub(crate) fn own(fd: Fd) -> OwnedFd {
    // SAFETY: the descriptor is open and ours; forgetting the other owner leaves exactly one.
    let owned = unsafe { OwnedFd::from_raw_fd(fd.0) };
    std::mem::forget(fd);
    owned
}
