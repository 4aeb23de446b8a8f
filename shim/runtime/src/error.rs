//! What can go wrong, with what it concerned: one enum for the whole runtime.

use std::io;
use std::path::{Path, PathBuf};

use gantry_types::{ErrorKind, HasKind};

/// The runtime's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failed operation of the runtime.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A document is not what it should be.
    #[error("{what} {}: {reason}", path.display())]
    Json {
        /// Which document.
        what: &'static str,
        /// Where it is.
        path: PathBuf,
        /// What the parser says, with line and column.
        reason: String,
    },
    /// The configuration asks for something impossible.
    #[error("invalid configuration: {field} {reason}")]
    Invalid {
        /// Member of the configuration.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A file operation of the runtime itself failed.
    #[error("{action} {}: {source}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A system call of the runtime itself failed.
    #[error("{action}: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A stage of the container's own process failed, before its program ran.
    #[error("{what}: {source}")]
    Init {
        /// The stage and its object, in words: `mount proc on /proc`.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The program cannot be executed; worded as Go's `os/exec` does, which clients match on.
    #[error("exec: {program:?}: {reason}")]
    Executable {
        /// The program as named in `args[0]`.
        program: String,
        /// `executable file not found in $PATH`, `permission denied`, `stat …: no such file or directory`.
        reason: String,
        /// What the kernel said.
        errno: i32,
    },
    /// A cgroup file refused a value.
    #[error("cgroup: write {value:?} to {}: {source}", path.display())]
    Cgroup {
        /// The control file.
        path: PathBuf,
        /// What was written.
        value: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A limit was asked of a controller that this system does not have.
    #[error("cgroup: cannot set {controller} limit: the controller is not available")]
    NoController {
        /// The controller.
        controller: &'static str,
    },
    /// systemd did not do what was asked of a unit.
    #[error("systemd: {action} unit {unit}: {reason}")]
    Systemd {
        /// What was asked.
        action: &'static str,
        /// The unit.
        unit: String,
        /// What systemd or the bus says.
        reason: String,
    },
    /// A hook failed.
    #[error("{stage} hook {}: {reason}", path.display())]
    Hook {
        /// `createRuntime`, …
        stage: &'static str,
        /// The program.
        path: PathBuf,
        /// Its end and what it said, or that it took too long.
        reason: String,
    },
    /// There is no such container.
    #[error("container {id:?} does not exist")]
    NotFound {
        /// The container.
        id: String,
    },
    /// A container of that id exists.
    #[error("container with id {id:?} exists already")]
    Exists {
        /// The container.
        id: String,
    },
    /// The id is not one.
    #[error("invalid container id {id:?}")]
    InvalidId {
        /// What was given.
        id: String,
    },
    /// The container is in a state in which this cannot be done.
    #[error("cannot {action} container {id:?}: it is {status}")]
    State {
        /// What was asked.
        action: &'static str,
        /// The container.
        id: String,
        /// Its status.
        status: &'static str,
    },
    /// The process has gone already.
    #[error("process of container {id:?} already finished")]
    Gone {
        /// The container.
        id: String,
    },
    /// The container's process ended during set-up without saying why (killed, out of memory).
    #[error("the container's process died while {stage}")]
    Died {
        /// What it was last asked to do.
        stage: &'static str,
    },
    /// This kernel or build cannot do it.
    #[error("not supported: {what}")]
    Unsupported {
        /// What was asked.
        what: String,
    },
    /// CRIU, or what it was to restore, failed.
    #[error("criu {command}: {reason}")]
    Criu {
        /// `dump`, `restore`, …
        command: &'static str,
        /// What it says, and the errors of its log.
        reason: String,
    },
    /// A wait passed its deadline.
    #[error("timed out waiting for {what}")]
    Timeout {
        /// What was waited for.
        what: &'static str,
    },
}

impl Error {
    pub(crate) fn invalid(field: &'static str, reason: impl Into<String>) -> Error {
        Error::Invalid { field, reason: reason.into() }
    }

    pub(crate) fn file(action: &'static str, path: impl AsRef<Path>, source: impl Into<io::Error>) -> Error {
        Error::File { action, path: path.as_ref().to_owned(), source: source.into() }
    }

    pub(crate) fn system(action: &'static str, source: impl Into<io::Error>) -> Error {
        Error::System { action, source: source.into() }
    }
}

impl HasKind for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Error::Json { .. } | Error::Invalid { .. } | Error::InvalidId { .. } => ErrorKind::InvalidArgument,
            Error::NotFound { .. } | Error::Gone { .. } => ErrorKind::NotFound,
            Error::Exists { .. } => ErrorKind::AlreadyExists,
            Error::State { .. } => ErrorKind::FailedPrecondition,
            Error::Unsupported { .. } | Error::NoController { .. } => ErrorKind::Unimplemented,
            Error::Timeout { .. } => ErrorKind::DeadlineExceeded,
            Error::File { source, .. } | Error::System { source, .. } => ErrorKind::of_io(source),
            Error::Systemd { .. }
            | Error::Criu { .. }
            | Error::Init { .. }
            | Error::Executable { .. }
            | Error::Hook { .. }
            | Error::Died { .. } => ErrorKind::Unknown,
            Error::Cgroup { source, .. } => match source.raw_os_error() {
                Some(libc::EINVAL | libc::ERANGE) => ErrorKind::InvalidArgument,
                _ => ErrorKind::of_io(source),
            },
        }
    }
}
