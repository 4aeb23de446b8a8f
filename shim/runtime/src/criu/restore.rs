//! A container from images: everything around it is made as for a new one, the processes are CRIU's.

use std::ffi::CString;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::rpc::{ExternalMount, InheritFd, JoinNamespace, Kind, Options, Request};
use super::swrk::{FIRST, Notice, Setup, Swrk};
use super::{CriuOptions, Directories, dump, guard};
use crate::container::{Container, CreateOptions, Stdio, clear};
use crate::create::{self, own};
use crate::error::{Error, Result};
use crate::plan::{Target, c_path};
use crate::spec::{Namespace, NamespaceKind, Process, Resources, Spec};
use crate::state::{self, Record};
use crate::sys::{self, Fd};
use crate::{hooks, init, rootfs, seccomp};

const LOG: &str = "restore.log";
/// Where the root is mounted for CRIU, below the state directory.
const ROOT: &str = "criu-root";

/// See [`Container::restore`].
pub(crate) fn restore(options: CreateOptions<'_>, criu: &CriuOptions) -> Result<Container> {
    options.spec.validate()?;
    let process = options.spec.process.as_ref().ok_or_else(|| Error::invalid("process", "is missing"))?;
    if !options.spec.linux.net_devices.is_empty() {
        return Err(Error::Unsupported { what: "linux.netDevices of a container that is restored".to_owned() });
    }
    guard::images(&criu.images)?;
    criu.check_program()?;
    let pipes = guard::pipes(&criu.images)?;
    let directories = Directories::open(criu)?;
    let (directory, mut record) = create::begin(&options)?;
    record.restored = true;
    let mut making = Restoring { options, process, criu, pipes, directories, directory, record, console: None };
    match making.make() {
        Ok(container) => Ok(container),
        Err(error) => {
            making.undo();
            Err(making.directories.explain(error, LOG))
        }
    }
}

/// A container being restored.
struct Restoring<'a> {
    options: CreateOptions<'a>,
    process: &'a Process,
    criu: &'a CriuOptions,
    /// The streams that were pipes.
    pipes: Vec<(i32, String)>,
    directories: Directories,
    directory: PathBuf,
    record: Record,
    console: Option<Fd>,
}

impl Restoring<'_> {
    fn make(&mut self) -> Result<Container> {
        let spec = self.options.spec;
        let seccomp = spec.linux.seccomp.as_ref().map(seccomp::compile).transpose()?;
        self.record.write(&self.directory)?;
        let none = Resources::default();
        let resources = spec.linux.resources.as_ref().unwrap_or(&none);
        let _holder = self.record.cgroup.create_unified(resources)?;
        self.record.cgroup.create(resources)?;
        let (tree, at) = self.root()?;
        let namespaces = self.handed()?;
        let mut asked = self.asked(&tree)?;
        asked.root = Some(at.to_string_lossy().into_owned());
        asked.join_namespaces = self.opened()?;
        asked.inherit_fds.extend(
            namespaces.iter().zip(FIRST..).map(|((kind, _), fd)| InheritFd { key: external_key(*kind).to_owned(), fd }),
        );
        let descriptors = namespaces.into_iter().map(|(_, fd)| fd).collect::<Vec<_>>();
        let pid = self.run(&descriptors, (&tree, at), asked)?;
        if self.record.pid != pid {
            self.note(pid)?;
        }
        if let (Some(group), Some(wanted)) = (&self.record.rdt, &spec.linux.intel_rdt) {
            group.make(wanted, pid)?;
        }
        let pidfd = sys::pidfd_open(pid).map_err(|_| Error::Died { stage: "it was being restored" })?;
        if spec.has_new(NamespaceKind::Network) {
            loopback(&pidfd)?;
        }
        // Only CRIU's own namespace ever had something there.
        let _ = std::fs::remove_dir(self.directory.join(ROOT));
        Ok(Container {
            directory: self.directory.clone(),
            record: self.record.clone(),
            spec: create::keep(spec),
            seccomp,
            pidfd: Some(own(pidfd)),
            socket: None,
            console: self.console.take().map(own),
            fifo: false,
            entrance: OnceLock::new(),
        })
    }

    /// The root's tree with the places of all mounts, and where CRIU shall have it.
    fn root(&self) -> Result<(Fd, CString)> {
        let spec = self.options.spec;
        let context = rootfs::Context { spec, bundle: self.options.bundle, cgroup: &self.record.cgroup };
        let (tree, _) = rootfs::root_tree(&context, self.options.rootfs_mounts)?;
        for (index, mount) in spec.mounts.iter().enumerate() {
            // On another file system the place is that one's, which CRIU restores, or the bound one's own.
            let target = Target::new(&mount.destination)?;
            let covered = spec.mounts[..index].iter().any(|other| is_below(&target.display(), &other.destination));
            if covered || matches!(mount.kind.as_str(), "cgroup" | "cgroup2") {
                continue;
            }
            let source = self.options.bundle.join(&mount.source);
            let file = dump::is_bind(mount) && !source.is_dir();
            init::make_place(tree.0, &target, file).map_err(|errno| Error::Init {
                what: format!("open mount target {}", target.display()),
                source: std::io::Error::from_raw_os_error(errno),
            })?;
        }
        let place = self.directory.join(ROOT);
        std::fs::create_dir(&place).map_err(|source| Error::file("make", &place, source))?;
        let place = place.canonicalize().map_err(|source| Error::file("resolve", &place, source))?;
        Ok((tree, c_path(&place)?))
    }

    /// Namespaces joined by path that are handed over as descriptors.
    fn handed(&self) -> Result<Vec<(NamespaceKind, Fd)>> {
        let mut handed = Vec::new();
        for entry in joined(self.options.spec) {
            if let Some(kind @ (NamespaceKind::Network | NamespaceKind::Pid)) = NamespaceKind::parse(&entry.kind) {
                let failed =
                    |errno| Error::file("open namespace", &entry.path, std::io::Error::from_raw_os_error(errno));
                let fd = sys::openat(libc::AT_FDCWD, &c_path(&entry.path)?, libc::O_RDONLY).map_err(failed)?;
                handed.push((kind, fd));
            }
        }
        Ok(handed)
    }

    /// Those that CRIU opens.
    fn opened(&self) -> Result<Vec<JoinNamespace>> {
        let mut opened = Vec::new();
        for entry in joined(self.options.spec) {
            match NamespaceKind::parse(&entry.kind) {
                None | Some(NamespaceKind::Network | NamespaceKind::Pid) => {}
                Some(NamespaceKind::Cgroup | NamespaceKind::Mount) => {
                    let what = format!("restore into the {} namespace {}", entry.kind, entry.path.display());
                    return Err(Error::Unsupported { what });
                }
                Some(_) => {
                    opened.push(JoinNamespace { kind: entry.kind.clone(), file: entry.path.display().to_string() });
                }
            }
        }
        Ok(opened)
    }

    fn asked(&self, root: &Fd) -> Result<Options> {
        let spec = self.options.spec;
        let mut asked = self.criu.common(&self.directories, LOG, spec);
        asked.evasive_devices = Some(true);
        asked.rst_sibling = Some(true);
        asked.lsm_profile = self.criu.lsm_profile.clone();
        asked.lsm_mount_context = self.criu.lsm_mount_context.clone();
        asked.inherit_fds = self.pipes.iter().map(|(fd, key)| InheritFd { key: key.clone(), fd: *fd }).collect();
        let mut mount = |place: &str, source: &Path| -> Result<()> {
            // By the name in the mount table of the time, and by the configuration's.
            let mut names = vec![dump::inside(root.0, place)?, Target::new(place)?.display()];
            names.dedup();
            let value = source.display().to_string();
            asked.external_mounts.extend(names.into_iter().map(|key| ExternalMount { key, value: value.clone() }));
            Ok(())
        };
        for entry in spec.mounts.iter().filter(|entry| dump::is_bind(entry)) {
            mount(&entry.destination, &self.options.bundle.join(&entry.source))?;
        }
        for (place, source) in dump::cgroup_binds(spec, &self.record.cgroup) {
            mount(&place, &source)?;
        }
        for path in bound_devices(spec) {
            mount(&path, Path::new(&path))?;
        }
        if !spec.linux.masked_paths.is_empty() {
            mount("/dev/null", Path::new("/dev/null"))?;
        }
        Ok(asked)
    }

    /// Runs CRIU in the container's cgroup; the first process.
    fn run(&mut self, descriptors: &[Fd], (tree, at): (&Fd, CString), mut asked: Options) -> Result<i32> {
        let stdio = match self.options.stdio {
            Stdio::Fds(fds) => fds,
            Stdio::Null | Stdio::Console(_) => [None; 3],
        };
        let setup = Setup { program: &self.criu.program, stdio, descriptors, root: Some((tree, at)) };
        let mut swrk = Swrk::spawn(setup)?;
        let runner = swrk.pid();
        self.record.cgroup.add(runner)?;
        asked.cgroup_roots = cgroup_roots(runner)?;
        let directories = self.directories.as_seen_by(runner)?;
        asked.images_dir_fd = directories.images.as_raw_fd();
        asked.work_dir_fd = directories.work.as_ref().map(AsRawFd::as_raw_fd);
        let request = Request { kind: Kind::Restore as i32, options: Some(Box::new(asked)), ..Request::default() };
        let answer = swrk.call(&request, &mut |notice| self.notice(notice, runner))?;
        swrk.finish(Kind::Restore)?;
        match answer.restored.map(|restored| restored.pid) {
            Some(pid) if pid > 0 => Ok(pid),
            _ => Err(Error::Criu { command: "restore", reason: "no process was named".to_owned() }),
        }
    }

    fn notice(&mut self, notice: Notice<'_>, runner: i32) -> Result<()> {
        match notice.script {
            "setup-namespaces" => self.hooks(notice.pid),
            "post-restore" => {
                guard::place(notice.pid, runner, self.options.spec)?;
                self.note(notice.pid)
            }
            "pre-resume" => {
                let filtered = self.options.spec.linux.seccomp.is_some();
                let checked = guard::place(self.record.pid, runner, self.options.spec)
                    .and_then(|()| guard::rights(self.record.pid, self.process, filtered));
                if checked.is_err() {
                    // CRIU goes on whatever is answered here: nothing may be left to go on.
                    self.record.cgroup.signal(libc::SIGKILL)?;
                    let pidfd = sys::pidfd_open(self.record.pid);
                    let _ = pidfd.and_then(|pidfd| sys::pidfd_send_signal(pidfd.0, libc::SIGKILL));
                }
                checked
            }
            "orphan-pts-master" => {
                self.console = notice.fd;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn hooks(&self, pid: i32) -> Result<()> {
        let state = create::state_of(&self.record, pid);
        let all = &self.options.spec.hooks;
        hooks::run("prestart", &all.prestart, &state, None)?;
        hooks::run("createRuntime", &all.create_runtime, &state, None)
    }

    /// The first process is known, on disk too.
    fn note(&mut self, pid: i32) -> Result<()> {
        self.record.pid = pid;
        self.record.start_time = state::start_time(pid).map_or(0, |(ticks, _)| ticks);
        self.record.write_init(&self.directory)
    }

    fn undo(&mut self) {
        let _ = clear(&self.directory, &self.record);
        if self.record.pid > 0
            && let Ok(pidfd) = sys::pidfd_open(self.record.pid)
        {
            sys::kill_child(self.record.pid, pidfd.0);
        }
    }
}

/// The name under which a namespace of the outside goes by in images.
pub(super) fn external_key(kind: NamespaceKind) -> &'static str {
    if kind == NamespaceKind::Pid { "extRootPidNS" } else { "extRootNetNS" }
}

/// Device nodes that are bound in, since a user namespace may make none.
pub(super) fn bound_devices(spec: &Spec) -> Vec<String> {
    if spec.namespace(NamespaceKind::User).is_none() {
        return Vec::new();
    }
    let defaults = rootfs::default_devices().map(str::to_owned);
    defaults.chain(spec.linux.devices.iter().map(|device| device.path.clone())).collect()
}

fn joined(spec: &Spec) -> impl Iterator<Item = &Namespace> {
    spec.linux.namespaces.iter().filter(|entry| !entry.path.as_os_str().is_empty())
}

fn is_below(path: &str, whole: &str) -> bool {
    path.strip_prefix(whole.trim_end_matches('/')).is_some_and(|rest| rest.len() > 1 && rest.starts_with('/'))
}

/// Where the process is in each hierarchy: what the images name is put there instead.
fn cgroup_roots(pid: i32) -> Result<Vec<super::rpc::CgroupRoot>> {
    let path = format!("/proc/{pid}/cgroup");
    let text = std::fs::read_to_string(&path).map_err(|source| Error::file("read", &path, source))?;
    let lines = text.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
    let roots = lines.flat_map(|(controllers, path)| {
        controllers
            .split(',')
            .map(|name| super::rpc::CgroupRoot { controller: Some(name.to_owned()), path: path.to_owned() })
    });
    Ok(roots.collect())
}

/// Brings up the loopback interface of the container's new network namespace, which CRIU leaves as the kernel makes it.
fn loopback(pidfd: &Fd) -> Result<()> {
    let failed = |errno| Error::Init {
        what: "bring up the loopback interface".into(),
        source: std::io::Error::from_raw_os_error(errno),
    };
    let args = sys::CloneArgs { exit_signal: libc::SIGCHLD as u64, ..sys::CloneArgs::default() };
    let child = sys::clone3(&args).map_err(failed)?;
    if child == 0 {
        let done = sys::setns(pidfd.0, libc::CLONE_NEWNET).and_then(|()| init::loopback());
        sys::exit(done.map_or_else(|errno| errno, |()| 0));
    }
    match sys::wait_pid(child).map_err(failed)? {
        0 => Ok(()),
        status => Err(failed(status >> 8 & 0xff)),
    }
}
