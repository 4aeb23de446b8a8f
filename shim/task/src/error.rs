//! What can go wrong in a shim, beside what its runtime reports.

use std::io;
use std::path::{Path, PathBuf};

use gantry_ttrpc::Status;
use gantry_types::{ErrorKind, HasKind};

/// A failure of the shim.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command line is wrong.
    #[error("{0}")]
    Usage(String),
    /// What came on stdin is no bootstrap message.
    #[error("the bootstrap message on stdin is undecodable: {0}")]
    Bootstrap(String),
    /// The request makes no sense.
    #[error("{what} {value:?}: {reason}")]
    Invalid {
        /// Which member.
        what: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Not offered.
    #[error("{0}")]
    Unimplemented(&'static str),
    /// A file operation failed.
    #[error("{action} {}: {source}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A system call failed.
    #[error("{action}: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A program that was run failed.
    #[error("{program} {verb}: {reason}")]
    Program {
        /// Its name.
        program: String,
        /// What it was asked to do.
        verb: &'static str,
        /// What it said, or how it ended.
        reason: String,
    },
    /// A program did not finish in time.
    #[error("{program} {verb} did not finish within {seconds} s")]
    Late {
        /// Its name.
        program: String,
        /// What it was asked to do.
        verb: &'static str,
        /// How long it was given.
        seconds: u64,
    },
    /// The built-in runtime failed.
    #[error("OCI runtime {action} failed: {source}")]
    Runtime {
        /// `create`, `start`, `exec`, …
        action: &'static str,
        /// Why.
        source: gantry_runtime::Error,
    },
    /// Mounting the root file system failed.
    #[error("mounting the root file system: {0}")]
    Mount(#[from] gantry_mount::Error),
    /// The state machine refuses.
    #[error("{text}")]
    Refused {
        /// What programs act on.
        kind: ErrorKind,
        /// Why.
        text: String,
    },
}

impl Error {
    pub(crate) fn usage(text: impl Into<String>) -> Error {
        Error::Usage(text.into())
    }

    pub(crate) fn file(action: &'static str, path: impl AsRef<Path>, source: impl Into<io::Error>) -> Error {
        Error::File { action, path: path.as_ref().to_owned(), source: source.into() }
    }

    pub(crate) fn system(action: &'static str, source: impl Into<io::Error>) -> Error {
        Error::System { action, source: source.into() }
    }

    pub(crate) fn refused(kind: ErrorKind, text: impl Into<String>) -> Error {
        Error::Refused { kind, text: text.into() }
    }

    /// Wraps the built-in runtime's error with what was being done.
    pub(crate) fn runtime(action: &'static str) -> impl FnOnce(gantry_runtime::Error) -> Error {
        move |source| Error::Runtime { action, source }
    }
}

impl HasKind for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Error::Usage(_) | Error::Bootstrap(_) | Error::Invalid { .. } => ErrorKind::InvalidArgument,
            Error::Unimplemented(_) => ErrorKind::Unimplemented,
            Error::File { source, .. } | Error::System { source, .. } => ErrorKind::of_io(source),
            Error::Program { .. } => ErrorKind::Unknown,
            Error::Late { .. } => ErrorKind::DeadlineExceeded,
            // NotFound here would read as "no such task": what is missing is a program or a file of the container.
            Error::Runtime { action: "create" | "start" | "exec", source } if source.kind() == ErrorKind::NotFound => {
                ErrorKind::Unknown
            }
            Error::Runtime { source, .. } => source.kind(),
            Error::Mount(error) => error.kind(),
            Error::Refused { kind, .. } => *kind,
        }
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Status {
        Status::new(error.kind(), error.to_string())
    }
}
