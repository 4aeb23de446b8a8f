//! New processes in namespaces: made by `clone3`, joined by path, or joined through a process.
//!
//! Where a user namespace meets joined ones, or clocks have offsets, an intermediate process joins first, with the
//! caller's privileges, and makes the real one as the caller's child.

use std::ffi::CString;
use std::os::fd::RawFd;
use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::init;
use crate::plan::{Ask, Message, Op, c_path, c_string};
use crate::spec::{IdMapping, NamespaceKind, Spec};
use crate::sys::{self, CloneArgs, Fd, Sys};

const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
const PROC_MAGIC: i64 = 0x9fa0;
/// `CLONE_NEWTIME`.
const NEW_TIME: i32 = 0x80;

/// The namespaces of a container, opened and sorted.
#[derive(Default)]
pub(crate) struct Namespaces {
    /// `CLONE_NEW*` of those made with the process. The cgroup namespace is not among them: it is made when the
    /// process is in its cgroup.
    pub(crate) new: i32,
    /// Joined by path, in the order of joining; the user namespace last.
    pub(crate) joined: Vec<(NamespaceKind, Fd, String)>,
    /// `/proc/PID/timens_offsets` of a new time namespace.
    pub(crate) offsets: Option<CString>,
}

impl Namespaces {
    /// Opens what the configuration joins.
    pub(crate) fn open(spec: &Spec) -> Result<Namespaces> {
        let mut all = Namespaces::default();
        for entry in &spec.linux.namespaces {
            let Some(kind) = NamespaceKind::parse(&entry.kind) else { continue };
            if entry.path.as_os_str().is_empty() {
                if kind != NamespaceKind::Cgroup {
                    all.new |= kind.flag();
                }
                continue;
            }
            let what = format!("{} namespace {}", entry.kind, entry.path.display());
            all.joined.push((kind, open_namespace(&entry.path, kind)?, what));
        }
        all.joined.sort_by_key(|(kind, ..)| *kind as u32);
        if !spec.linux.time_offsets.is_empty() {
            let line = |(clock, offset): (&String, &crate::spec::TimeOffset)| match clock.as_str() {
                "monotonic" | "boottime" => Ok(format!("{clock} {} {}\n", offset.secs, offset.nanosecs)),
                other => Err(Error::invalid("linux.timeOffsets", format!("{other:?} is no clock"))),
            };
            let lines = spec.linux.time_offsets.iter().map(line).collect::<Result<String>>()?;
            all.offsets = Some(c_string(&lines)?);
        }
        Ok(all)
    }

    /// Whether the container has its own user namespace, new or joined.
    pub(crate) fn has_user(&self) -> bool {
        self.new & libc::CLONE_NEWUSER != 0 || self.joined.iter().any(|(kind, ..)| *kind == NamespaceKind::User)
    }

    fn needs_intermediate(&self) -> bool {
        self.offsets.is_some() || (self.has_user() && !self.joined.is_empty())
    }

    /// Operations of a directly made process that join the rest.
    fn take_join_operations(&mut self) -> Vec<Op> {
        let joins = std::mem::take(&mut self.joined);
        let others = joins.into_iter().filter(|(kind, ..)| *kind != NamespaceKind::Pid);
        others.map(|(kind, fd, what)| Op::Setns { fd: Arc::new(fd), flags: kind.flag(), what }).collect()
    }
}

/// Opens a namespace's file and checks that it is one of the kind.
fn open_namespace(path: &Path, kind: NamespaceKind) -> Result<Fd> {
    const NS_GET_NSTYPE: u64 = 0xb703;
    let name = c_path(path)?;
    let io = std::io::Error::from_raw_os_error;
    let fd = sys::openat(libc::AT_FDCWD, &name, libc::O_RDONLY)
        .map_err(|errno| Error::file("open namespace", path, io(errno)))?;
    let found = sys::raw!(libc::SYS_ioctl, fd.0, NS_GET_NSTYPE)
        .map_err(|_| Error::invalid("linux.namespaces", format!("{} is not a namespace", path.display())))?;
    if found != i64::from(kind.flag()) {
        return Err(Error::invalid("linux.namespaces", format!("{} is not a {kind:?} namespace", path.display())));
    }
    Ok(fd)
}

/// A new process that walks its operations.
pub(crate) struct Spawned {
    pub(crate) pid: i32,
    pub(crate) pidfd: Fd,
    /// Its messages arrive here.
    pub(crate) socket: Fd,
}

/// The host's procfs, checked to be one.
pub(crate) fn host_proc() -> Result<Fd> {
    let io = std::io::Error::from_raw_os_error;
    let proc = sys::openat(libc::AT_FDCWD, c"/proc", libc::O_PATH | libc::O_DIRECTORY)
        .map_err(|errno| Error::file("open", "/proc", io(errno)))?;
    match sys::fs_type(proc.0) {
        Ok(PROC_MAGIC) => Ok(proc),
        _ => Err(Error::Unsupported { what: "/proc is not procfs".to_owned() }),
    }
}

/// Namespaces that a process can make for itself. That takes longer than making the process (the network's most of
/// all), and its parent has other things to do meanwhile.
const MADE_APART: i32 = libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | libc::CLONE_NEWNS;

/// Makes the init of a container. `cgroup`: the v2 directory to make it in. `apart`: nobody looks at its namespaces
/// before it speaks.
pub(crate) fn spawn(
    mut namespaces: Namespaces,
    cgroup: Option<&Fd>,
    ops: &mut Vec<Op>,
    proc: &Fd,
    apart: bool,
) -> Result<Spawned> {
    if namespaces.needs_intermediate() {
        return spawn_through(&namespaces, cgroup, ops, proc);
    }
    let later = namespaces.new & MADE_APART;
    if apart && later != 0 && !namespaces.has_user() {
        namespaces.new &= !MADE_APART;
        ops.insert(0, Op::Unshare(later));
    }
    let pid_namespace = namespaces.joined.iter().position(|(kind, ..)| *kind == NamespaceKind::Pid);
    let pid_namespace = pid_namespace.map(|at| namespaces.joined.remove(at));
    let joins = namespaces.take_join_operations();
    ops.splice(0..0, joins);
    let new = namespaces.new as u64;
    match pid_namespace {
        None => clone_process(new, cgroup, ops, proc),
        Some((_, fd, what)) => in_pid_namespace(&fd, &own()?, &what, || clone_process(new, cgroup, ops, proc)),
    }
}

/// Makes a process in the namespaces of another (its operations begin with joining them); with `into`, that process
/// and this one, in its pid namespace.
pub(crate) fn spawn_beside(into: Option<(&Fd, &Fd)>, cgroup: Option<&Fd>, ops: &[Op], proc: &Fd) -> Result<Spawned> {
    let make = || clone_process(0, cgroup, ops, proc);
    match into {
        Some((init, own)) => in_pid_namespace(init, own, "the init's pid namespace", make),
        None => make(),
    }
}

/// A pidfd of this process.
pub(crate) fn own() -> Result<Fd> {
    let failed = |errno| Error::system("pidfd_open", std::io::Error::from_raw_os_error(errno));
    sys::pidfd_open(std::process::id() as i32).map_err(failed)
}

/// Runs `make` while children of this process (`own`) are born in another pid namespace.
fn in_pid_namespace<T>(target: &Fd, own: &Fd, what: &str, make: impl FnOnce() -> Result<T>) -> Result<T> {
    let failed = |errno| Error::Init { what: format!("join {what}"), source: std::io::Error::from_raw_os_error(errno) };
    sys::setns(target.0, libc::CLONE_NEWPID).map_err(failed)?;
    let made = make();
    sys::setns(own.0, libc::CLONE_NEWPID).map_err(failed)?;
    made
}

fn clone_process(new: u64, cgroup: Option<&Fd>, ops: &[Op], proc: &Fd) -> Result<Spawned> {
    let failed = |errno| Error::Init { what: "clone3".into(), source: std::io::Error::from_raw_os_error(errno) };
    let (ours, theirs) = sys::socket_pair().map_err(failed)?;
    let mut pidfd: RawFd = -1;
    let args = CloneArgs {
        flags: new | sys::CLONE_CLEAR_SIGHAND | libc::CLONE_PIDFD as u64 | into_cgroup(cgroup),
        pidfd: (&raw mut pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        cgroup: cgroup.map_or(0, |fd| fd.0 as u64),
        ..CloneArgs::default()
    };
    let ignored = sys::ignored_signals();
    let pid = sys::clone3(&args).map_err(failed)?;
    if pid == 0 {
        // The caller's death must be seen as the end of the stream.
        let _ = sys::raw!(libc::SYS_close, ours.0);
        init::run(ops, theirs.0, proc.0, ignored);
    }
    drop(theirs);
    Ok(Spawned { pid, pidfd: Fd(pidfd), socket: ours })
}

fn into_cgroup(cgroup: Option<&Fd>) -> u64 {
    if cgroup.is_some() { CLONE_INTO_CGROUP } else { 0 }
}

fn spawn_through(namespaces: &Namespaces, cgroup: Option<&Fd>, ops: &[Op], proc: &Fd) -> Result<Spawned> {
    let failed = |errno| Error::Init { what: "clone3".into(), source: std::io::Error::from_raw_os_error(errno) };
    let (ours, theirs) = sys::socket_pair().map_err(failed)?;
    // A channel of its own: the real process may speak before the intermediate says that it is born.
    let (news, birth) = sys::socket_pair().map_err(failed)?;
    let args = CloneArgs { exit_signal: libc::SIGCHLD as u64, ..CloneArgs::default() };
    let ignored = sys::ignored_signals();
    let helper = sys::clone3(&args).map_err(failed)?;
    if helper == 0 {
        let _ = sys::raw!(libc::SYS_close, ours.0);
        let _ = sys::raw!(libc::SYS_close, news.0);
        intermediate(namespaces, cgroup, ops, [theirs.0, birth.0], proc.0, ignored);
    }
    drop((theirs, birth));
    let born = receive(&news);
    // One that has spoken has nothing to do any more but to end; another may be stuck.
    let stuck = born.as_ref().err().and_then(|_| sys::pidfd_open(helper).ok());
    match stuck {
        Some(pidfd) => sys::kill_child(helper, pidfd.0),
        None => drop(sys::wait_pid(helper)),
    }
    let message = born?.0;
    if message.kind != Ask::Born as u32 {
        let what =
            namespaces.joined.get(message.index as usize).map_or("make namespaces", |(_, _, what)| what.as_str());
        return Err(Error::Init {
            what: format!("join {what}"),
            source: std::io::Error::from_raw_os_error(message.errno),
        });
    }
    let pid = message.index as i32;
    let pidfd = sys::pidfd_open(pid).map_err(failed)?;
    Ok(Spawned { pid, pidfd, socket: ours })
}

/// The intermediate process: joins, sets clocks, makes the real process as a child of our parent, says on `birth` who
/// that is, ends.
fn intermediate(
    namespaces: &Namespaces,
    cgroup: Option<&Fd>,
    ops: &[Op],
    [socket, birth]: [RawFd; 2],
    proc: RawFd,
    ignored: u64,
) -> ! {
    let mut message = Message::EMPTY;
    match join_and_clone(namespaces, cgroup, proc, &mut message.index) {
        Ok(0) => {
            // The intermediate's death must be seen as the end of the stream.
            let _ = sys::raw!(libc::SYS_close, birth);
            init::run(ops, socket, proc, ignored)
        }
        Ok(pid) => {
            message.kind = Ask::Born as u32;
            message.index = pid as u32;
        }
        Err(errno) => message.errno = errno,
    }
    let _ = init::send(birth, &message);
    sys::exit(0)
}

fn join_and_clone(namespaces: &Namespaces, cgroup: Option<&Fd>, proc: RawFd, at: &mut u32) -> Sys<i32> {
    let mut new = namespaces.new;
    for (index, (kind, fd, _)) in namespaces.joined.iter().enumerate() {
        *at = index as u32;
        sys::setns(fd.0, kind.flag())?;
    }
    *at = u32::MAX;
    if let Some(offsets) = &namespaces.offsets {
        sys::raw!(libc::SYS_unshare, NEW_TIME)?;
        new &= !NEW_TIME;
        let file = sys::openat(proc, c"self/timens_offsets", libc::O_WRONLY)?;
        sys::write_once(file.0, offsets.to_bytes())?;
    }
    sys::clone3(&CloneArgs {
        flags: new as u64 | sys::CLONE_CLEAR_SIGHAND | libc::CLONE_PARENT as u64 | into_cgroup(cgroup),
        cgroup: cgroup.map_or(0, |fd| fd.0 as u64),
        ..CloneArgs::default()
    })
}

/// The next message of a new process. The end of the stream is [`Error::Died`].
pub(crate) fn receive(socket: &Fd) -> Result<(Message, Option<Fd>)> {
    match try_receive(socket, 300_000)? {
        Some(message) => Ok(message),
        None => Err(Error::Died { stage: "it was being set up" }),
    }
}

/// The next message, or `None` at the end of the stream.
#[allow(unsafe_code)]
pub(crate) fn try_receive(socket: &Fd, milliseconds: i32) -> Result<Option<(Message, Option<Fd>)>> {
    let failed = |errno| Error::system("receive from the new process", std::io::Error::from_raw_os_error(errno));
    if !sys::readable(socket.0, milliseconds).map_err(failed)? {
        return Err(Error::Timeout { what: "the new process to be set up" });
    }
    let mut message = Message::EMPTY;
    // SAFETY: Message is plain data, every bit pattern of it is valid; the slice covers exactly it.
    let bytes = unsafe { std::slice::from_raw_parts_mut((&raw mut message).cast::<u8>(), size_of::<Message>()) };
    match sys::recv_fd(socket.0, bytes, 0) {
        Ok((0, _)) | Err(libc::ECONNRESET) => Ok(None),
        Ok((length, fd)) if length == size_of::<Message>() => Ok(Some((message, fd))),
        Ok(_) => Err(failed(libc::EPROTO)),
        Err(errno) => Err(failed(errno)),
    }
}

/// Lets the process that asked go on.
pub(crate) fn reply(socket: &Fd) -> Result<()> {
    sys::raw!(libc::SYS_sendto, socket.0, c"+".as_ptr(), 1, libc::MSG_NOSIGNAL, 0usize, 0usize)
        .map(drop)
        .map_err(|_| Error::Died { stage: "it was being set up" })
}

/// Writes the id maps of a new user namespace.
pub(crate) fn write_maps(pid: i32, uids: &[IdMapping], gids: &[IdMapping]) -> Result<()> {
    for (name, maps) in [("uid_map", uids), ("gid_map", gids)] {
        let path = format!("/proc/{pid}/{name}");
        let lines = maps.iter().map(|map| format!("{} {} {}\n", map.container_id, map.host_id, map.size));
        std::fs::write(&path, lines.collect::<String>()).map_err(|source| Error::file("write", path, source))?;
    }
    Ok(())
}
