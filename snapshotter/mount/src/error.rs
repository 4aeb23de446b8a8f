//! Why a mount failed: the step, the paths, what the kernel said.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use gantry_types::{ErrorKind, HasKind, Mount};

use crate::idmap::InvalidIdMap;
use crate::options::InvalidOption;

/// The kernel call, or the group of calls, that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// `fsopen(2)`: the file system type is unknown to the kernel.
    Open,
    /// `fsconfig(2)` with a parameter.
    Configure,
    /// `fsconfig(2)` creating the superblock.
    Create,
    /// `fsmount(2)`.
    Mount,
    /// `open_tree(2)`: the source of a bind mount.
    OpenTree,
    /// `mount_setattr(2)`: flags or propagation.
    Attributes,
    /// `mount_setattr(2)` with an id map.
    IdMap,
    /// Making the user namespace that holds an id map.
    UserNamespace,
    /// `move_mount(2)`: attaching at the target.
    Attach,
    /// `mount(2)`, on kernels too old for the calls above.
    Legacy,
    /// Putting a file behind a loop device.
    Loop,
    /// `umount2(2)`.
    Unmount,
    /// Finding a path below the target.
    Resolve,
    /// Reading `/proc/self/mountinfo`.
    Table,
}

/// A mount, an unmount or an id map failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An option that means nothing here.
    #[error(transparent)]
    Option(#[from] InvalidOption),
    /// An id map that is not one.
    #[error(transparent)]
    IdMap(#[from] InvalidIdMap),
    /// A string with a NUL byte, which no system call can take.
    #[error("{text:?} holds a NUL byte")]
    Nul {
        /// The string.
        text: String,
    },
    /// The list of mounts is empty.
    #[error("no mounts to perform")]
    Empty,
    /// This kernel cannot do what was asked.
    #[error("this kernel cannot {what} (needs Linux {since})")]
    Unsupported {
        /// What was asked.
        what: &'static str,
        /// First kernel release that can.
        since: &'static str,
    },
    /// A system call failed.
    #[error("{step:?} {kind} {source:?} at {target:?}: {error}{}{log}", if .log.is_empty() { "" } else { "; kernel: " },
        kind = .mount_kind, source = .from)]
    Call {
        /// Which one.
        step: Step,
        /// File system type, `bind`, or empty.
        mount_kind: String,
        /// The mount's source.
        from: String,
        /// Where it was to appear; empty while detached.
        target: PathBuf,
        /// What the file system context logged, lines joined by `; `.
        log: String,
        /// The error number.
        #[source]
        error: io::Error,
    },
}

impl Error {
    pub(crate) fn call(step: Step, error: io::Error) -> Error {
        Error::Call {
            step,
            mount_kind: String::new(),
            from: String::new(),
            target: PathBuf::new(),
            log: String::new(),
            error,
        }
    }

    /// Names the mount in an error raised below the place that knows it.
    pub(crate) fn of(self, mount: &Mount, at: &Path) -> Error {
        match self {
            Error::Call { step, log, error, .. } => Error::Call {
                step,
                mount_kind: mount.kind.clone(),
                from: mount.source.clone(),
                target: at.to_owned(),
                log,
                error,
            },
            other => other,
        }
    }

    pub(crate) fn at(self, path: &Path) -> Error {
        match self {
            Error::Call { step, mount_kind, from, log, error, .. } => {
                Error::Call { step, mount_kind, from, target: path.to_owned(), log, error }
            }
            other => other,
        }
    }

    pub(crate) fn with_log(self, messages: String) -> Error {
        match self {
            Error::Call { step, mount_kind, from, target, error, .. } => {
                Error::Call { step, mount_kind, from, target, log: messages, error }
            }
            other => other,
        }
    }

    /// The error number, where a system call failed.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Error::Call { error, .. } => error.raw_os_error(),
            _ => None,
        }
    }
}

impl HasKind for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Error::Option(_) | Error::IdMap(_) | Error::Nul { .. } | Error::Empty => ErrorKind::InvalidArgument,
            Error::Unsupported { .. } => ErrorKind::Unimplemented,
            Error::Call { error, .. } => match error.raw_os_error() {
                Some(libc::ENODEV | libc::ENOSYS | libc::EOPNOTSUPP) => ErrorKind::Unimplemented,
                Some(libc::EINVAL) => ErrorKind::InvalidArgument,
                Some(libc::EBUSY) => ErrorKind::FailedPrecondition,
                _ => ErrorKind::of_io(error),
            },
        }
    }
}

pub(crate) fn c_str(text: &str) -> Result<CString, Error> {
    CString::new(text).map_err(|_| Error::Nul { text: text.to_owned() })
}

pub(crate) fn c_path(path: &Path) -> Result<CString, Error> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| Error::Nul { text: path.to_string_lossy().into_owned() })
}
