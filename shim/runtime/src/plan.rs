//! What a new process does between `clone3` and `execve`, as a list of prepared operations.
//!
//! The parent makes the list with every string, table and descriptor in it; [`crate::init`] walks it in the child
//! without allocating; a failure comes back as the operation's index, which [`Op::describe`] turns into words.

use std::ffi::{CStr, CString};
use std::path::Path;
use std::sync::Arc;

use crate::capabilities::Sets;
use crate::error::{Error, Result};
use crate::seccomp::Program;
use crate::sys::Fd;

/// One operation.
pub(crate) enum Op {
    /// setsid(2).
    Session,
    /// Join a new session keyring of this name.
    Keyring(CString),
    /// setns(2).
    Setns { fd: Arc<Fd>, flags: i32, what: String },
    /// unshare(2).
    Unshare(i32),
    /// Write `0` into these cgroup files: the process joins. Faster than the parent writing its number, which takes
    /// a lock over all processes.
    JoinCgroups(Arc<[Fd]>),
    /// The same, opening the files first: they did not exist when the process was made.
    OpenAndJoinCgroups(Vec<CString>),
    /// Ask the parent to do something, and wait until it has.
    Ask(Ask),
    /// Become root of the user namespace.
    BecomeRoot,
    /// Bring up the loopback interface.
    Loopback,
    /// sethostname(2).
    Hostname(CString),
    /// setdomainname(2).
    Domainname(CString),
    /// Write a value to a file below `/proc/sys`.
    Sysctl { path: CString, value: CString },
    /// Set the propagation of `/` (with `MS_REC` of everything).
    Propagation(u64),
    /// Attach the root file system at a path of the host's tree; from here on paths are resolved below it.
    AttachRoot { tree: Fd, at: CString },
    /// Mount a new file system.
    Filesystem(Box<Filesystem>),
    /// Attach a prepared tree.
    Attach { tree: Fd, target: Target, file: bool },
    /// Attach a directory of the host's, without what is mounted below it, at a place; private, with these attributes.
    AttachHosts { path: CString, set: u64, clear: u64, target: Target },
    /// mount_setattr(2) on what is mounted at a path.
    Attributes { target: Target, set: u64, recursive: bool },
    /// mknod(2).
    Device { target: Target, mode: u32, device: u64, uid: u32, gid: u32 },
    /// symlink(2), unless there is something.
    Symlink { target: Target, content: CString },
    /// Hide a file or directory, if it is there.
    Mask(Target),
    /// Make a path read-only, if it is there.
    ReadonlyPath(Target),
    /// Make a directory, if it is missing.
    Directory(Target),
    /// Make the root file system `/`, by pivot_root(2).
    Pivot,
    /// Make the root file system `/`, by moving it.
    MoveRoot,
    /// Allocate the terminal, send its master to the parent, make its slave stdin, stdout and stderr.
    Console { size: Option<(u16, u16)>, bind: bool, owner: u32 },
    /// Put these descriptors in place as stdin, stdout and stderr; −1 is the container's `/dev/null`, or `null`, the
    /// host's, where it has none.
    Stdio { fds: [i32; 3], owner: u32, null: Arc<Fd> },
    /// Write a label or profile for the coming exec below `/proc/self/attr`.
    Label { file: &'static CStr, value: CString },
    /// sched_setattr(2).
    Scheduler(Box<SchedAttr>),
    /// ioprio_set(2).
    IoPriority(i32),
    /// sched_setaffinity(2).
    Affinity(Box<[u64; 16]>),
    /// personality(2).
    Personality(u64),
    /// set_mempolicy(2).
    MemoryPolicy { mode: i32, nodes: Box<[u64; 16]> },
    /// `PR_SET_NO_NEW_PRIVS`.
    NoNewPrivileges,
    /// seccomp(2).
    Seccomp(Program),
    /// Change the working directory; `late` is the second try, as the user itself, which must succeed.
    WorkingDirectory { path: CString, late: bool },
    /// Take these capabilities out of the bounding set.
    Bounding { drop: u64 },
    /// Become the user, keeping capabilities for the moment.
    User { uid: u32, gid: u32, groups: Vec<u32>, umask: Option<u32>, set_groups: bool },
    /// Take on the capability sets.
    Capabilities(Sets),
    /// Find the program among the candidates of [`Op::Exec`].
    Find,
    /// Tell the parent that all is ready and wait to be let go.
    Gate { fifo: Option<Fd> },
    /// Close every descriptor from this one on at exec.
    CloseFrom(u32),
    /// execve(2).
    Exec(Exec),
    /// Close everything, reap orphans, wait to be killed. `title`: where the command line's text begins and ends.
    Hold { title: (usize, usize) },
}

/// What the child asks of its parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Ask {
    /// Write the id maps.
    Maps = 1,
    /// Run the hooks between mounts and pivot.
    Hooks = 2,
    /// Take the terminal's master.
    Console = 3,
    /// Take the seccomp listener.
    Listener = 4,
    /// Everything is ready.
    Ready = 5,
    /// The intermediate process has made the real one.
    Born = 6,
    /// Have the cgroups ready.
    Cgroups = 7,
}

impl Ask {
    pub(crate) fn from_number(number: u32) -> Option<Ask> {
        [Ask::Maps, Ask::Hooks, Ask::Console, Ask::Listener, Ask::Ready, Ask::Born, Ask::Cgroups]
            .into_iter()
            .find(|ask| *ask as u32 == number)
    }
}

/// A path below the root file system, with what is needed to make it.
pub(crate) struct Target {
    /// Relative to the root; `.` is the root.
    pub(crate) path: CString,
    /// Its ancestors' paths, outermost first, then itself.
    pub(crate) prefixes: Vec<CString>,
    /// The last component of each of `prefixes`.
    pub(crate) names: Vec<CString>,
    /// Refuse symbolic links on the way (for proc and sysfs, which other rules rely on).
    pub(crate) no_symlinks: bool,
    /// What it may not be: inside procfs.
    pub(crate) outside_proc: bool,
}

impl Target {
    /// A path in the container; `.` and `..` are resolved against `/` first, as text.
    pub(crate) fn new(path: &str) -> Result<Target> {
        let mut parts: Vec<&str> = Vec::new();
        for part in path.split('/') {
            match part {
                "" | "." => {}
                ".." => {
                    parts.pop();
                }
                part => parts.push(part),
            }
        }
        let prefixes = (1..=parts.len()).map(|n| c_string(&parts[..n].join("/"))).collect::<Result<Vec<_>>>()?;
        let names = parts.iter().map(|part| c_string(part)).collect::<Result<Vec<_>>>()?;
        let path = prefixes.last().cloned().unwrap_or_else(|| c".".to_owned());
        Ok(Target { path, prefixes, names, no_symlinks: false, outside_proc: false })
    }

    /// Its text, absolute.
    pub(crate) fn display(&self) -> String {
        if self.names.is_empty() { "/".to_owned() } else { format!("/{}", self.path.to_string_lossy()) }
    }
}

/// A file system to be mounted in the child, which is in the namespaces that own it.
pub(crate) struct Filesystem {
    /// Its type.
    pub(crate) kind: CString,
    /// Its source.
    pub(crate) source: Option<CString>,
    /// Its parameters.
    pub(crate) data: Vec<(CString, Option<CString>)>,
    /// Set its root's mode to what it covers, where that was there before.
    pub(crate) inherit_mode: bool,
    /// `MOUNT_ATTR_*`.
    pub(crate) attributes: u64,
    /// Recursive or later attributes.
    pub(crate) propagation: u64,
    /// Where.
    pub(crate) target: Target,
}

/// Steps of [`Op::Filesystem`], reported as detail.
pub(crate) mod step {
    pub(crate) const TARGET: u32 = 1;
    pub(crate) const OPEN: u32 = 2;
    pub(crate) const CREATE: u32 = 3;
    pub(crate) const MOUNT: u32 = 4;
    pub(crate) const ATTACH: u32 = 5;
    pub(crate) const FORBIDDEN: u32 = 6;
    pub(crate) const DATA: u32 = 16;
}

/// `struct sched_attr`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SchedAttr {
    pub(crate) size: u32,
    pub(crate) policy: u32,
    pub(crate) flags: u64,
    pub(crate) nice: i32,
    pub(crate) priority: u32,
    pub(crate) runtime: u64,
    pub(crate) deadline: u64,
    pub(crate) period: u64,
}

/// The program to execute. The pointer arrays point into the strings beside them.
pub(crate) struct Exec {
    /// `args[0]`, for messages.
    pub(crate) program: String,
    /// Paths to try, in order.
    pub(crate) candidates: Vec<CString>,
    /// Whether the candidates come from `PATH`.
    pub(crate) searched: bool,
    pub(crate) argv: CArray,
    pub(crate) envp: CArray,
    /// Device and inode of this very executable, which no container may run.
    pub(crate) own: (u64, u64),
}

/// A NULL-terminated array of strings for the kernel.
pub(crate) struct CArray {
    _strings: Vec<CString>,
    pointers: Vec<*const libc::c_char>,
}

impl CArray {
    pub(crate) fn new<S: AsRef<str>>(strings: &[S]) -> Result<CArray> {
        let strings = strings.iter().map(|s| c_string(s.as_ref())).collect::<Result<Vec<_>>>()?;
        let pointers = strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect();
        Ok(CArray { _strings: strings, pointers })
    }

    pub(crate) fn as_ptr(&self) -> *const *const libc::c_char {
        self.pointers.as_ptr()
    }
}

/// A string for the kernel.
pub(crate) fn c_string(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Error::invalid("configuration", format!("{text:?} contains NUL")))
}

/// A path for the kernel.
pub(crate) fn c_path(path: &Path) -> Result<CString> {
    use std::os::unix::ffi::OsStrExt;
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| Error::invalid("configuration", format!("{} contains NUL", path.display())))
}

/// What a child tells its parent, one datagram each.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Message {
    /// 0: a failure; else an [`Ask`].
    pub(crate) kind: u32,
    /// Index of the failed operation; for [`Ask::Born`] the process id.
    pub(crate) index: u32,
    /// Which part of it.
    pub(crate) detail: u32,
    /// The kernel's error number.
    pub(crate) errno: i32,
    /// Length of `text`.
    pub(crate) length: u32,
    /// What a file system said.
    pub(crate) text: [u8; 160],
}

impl Message {
    pub(crate) const EMPTY: Message = Message { kind: 0, index: 0, detail: 0, errno: 0, length: 0, text: [0; 160] };
}

impl Op {
    /// The operation in words, for an error that names what failed.
    pub(crate) fn describe(&self, detail: u32) -> String {
        match self {
            Op::Session => "setsid".into(),
            Op::Keyring(name) => format!("join session keyring {}", name.to_string_lossy()),
            Op::Setns { what, .. } => format!("join {what}"),
            Op::Unshare(flags) => format!("unshare namespaces {flags:#x}"),
            Op::JoinCgroups(_) | Op::OpenAndJoinCgroups(_) => "join cgroup".into(),
            Op::Ask(ask) => format!("talk to the runtime ({ask:?})"),
            Op::BecomeRoot => "become root of the user namespace".into(),
            Op::Loopback => "bring up the loopback interface".into(),
            Op::Hostname(name) => format!("sethostname {}", name.to_string_lossy()),
            Op::Domainname(name) => format!("setdomainname {}", name.to_string_lossy()),
            Op::Sysctl { path, value } => {
                format!("write sysctl {} = {}", path.to_string_lossy(), value.to_string_lossy())
            }
            Op::Propagation(_) => "set the propagation of /".into(),
            Op::AttachRoot { at, .. } => format!("mount the root file system on {}", at.to_string_lossy()),
            Op::Filesystem(fs) => fs.describe(detail),
            Op::Attach { target, .. } => describe_attach(target, detail),
            Op::AttachHosts { path, target, .. } if detail == step::OPEN => {
                format!("open {} to mount on {}", path.to_string_lossy(), target.display())
            }
            Op::AttachHosts { target, .. } => describe_attach(target, detail),
            Op::Attributes { target, .. } => format!("change mount flags of {}", target.display()),
            Op::Device { target, .. } => format!("make device {}", target.display()),
            Op::Symlink { target, .. } => format!("make symbolic link {}", target.display()),
            Op::Mask(target) => format!("mask path {}", target.display()),
            Op::ReadonlyPath(target) => format!("make path {} read-only", target.display()),
            Op::Directory(target) => format!("make directory {}", target.display()),
            Op::Pivot => "pivot_root".into(),
            Op::MoveRoot => "move the root file system to /".into(),
            Op::Console { .. } => "set up the terminal from /dev/pts/ptmx".into(),
            Op::Stdio { .. } => "set up stdin, stdout and stderr".into(),
            Op::Label { value, .. } => format!("set exec label {}", value.to_string_lossy()),
            Op::Scheduler(_) => "set the scheduling policy".into(),
            Op::IoPriority(_) => "set the I/O priority".into(),
            Op::Affinity(_) => "set the CPU affinity".into(),
            Op::Personality(_) => "set the personality".into(),
            Op::MemoryPolicy { .. } => "set the memory policy".into(),
            Op::NoNewPrivileges => "set no_new_privs".into(),
            Op::Seccomp(_) => "load the seccomp filter".into(),
            Op::WorkingDirectory { path, .. } => {
                format!("chdir to cwd ({:?}) set in config.json failed", path.to_string_lossy())
            }
            Op::Bounding { .. } => "drop capabilities from the bounding set".into(),
            Op::User { uid, gid, .. } => format!("become user {uid}:{gid}"),
            Op::Capabilities(_) => "set capabilities".into(),
            Op::Find => "find the program".into(),
            Op::Gate { .. } => "wait for start".into(),
            Op::CloseFrom(_) => "close descriptors".into(),
            Op::Exec(exec) => format!("exec {}", exec.program),
            Op::Hold { .. } => "hold the namespaces".into(),
        }
    }
}

fn describe_attach(target: &Target, detail: u32) -> String {
    match detail {
        step::FORBIDDEN => format!("mount on {}: it is inside /proc", target.display()),
        step::TARGET => format!("open mount target {}", target.display()),
        _ => format!("mount on {}", target.display()),
    }
}

impl Filesystem {
    fn describe(&self, detail: u32) -> String {
        let kind = self.kind.to_string_lossy();
        match detail {
            step::FORBIDDEN | step::TARGET => describe_attach(&self.target, detail),
            step::OPEN => format!("mount {kind} on {}: file system type", self.target.display()),
            step::DATA.. => match self.data.get((detail - step::DATA) as usize) {
                Some((key, _)) => {
                    format!("mount {kind} on {}: option {}", self.target.display(), key.to_string_lossy())
                }
                None => format!("mount {kind} on {}", self.target.display()),
            },
            _ => format!("mount {kind} on {}", self.target.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_cannot_climb_out_of_the_root() {
        let target = Target::new("/../../etc/./../x//y").unwrap();
        assert_eq!(target.path.to_str().unwrap(), "x/y");
        assert_eq!(target.prefixes.len(), 2);
        assert_eq!(Target::new("/..").unwrap().path.to_str().unwrap(), ".");
    }
}
