//! What can go wrong with a shim.

use std::path::{Path, PathBuf};
use std::time::Duration;

use gantry_ttrpc::Status;
use gantry_types::{ErrorKind, HasKind};

/// The result of dealing with a shim.
pub type Result<T> = std::result::Result<T, Error>;

/// A failure of a shim, its binary or its bundle.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not the name of a runtime.
    #[error("invalid runtime name {name:?}: {reason}")]
    RuntimeName {
        /// The name.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// No binary for a runtime.
    #[error("runtime {name:?}: no shim {binary:?} in {searched}")]
    NoBinary {
        /// The runtime's name.
        name: String,
        /// The file that was looked for.
        binary: String,
        /// Where.
        searched: String,
    },
    /// A bundle of that name is there.
    #[error("bundle {path}: already exists", path = .path.display())]
    BundleExists {
        /// Its directory.
        path: PathBuf,
    },
    /// A file or directory could not be dealt with.
    #[error("{operation} {path}: {source}", path = .path.display())]
    Io {
        /// What was being done.
        operation: &'static str,
        /// To what.
        path: PathBuf,
        /// How it failed.
        source: std::io::Error,
    },
    /// Something is still mounted in a bundle.
    #[error(transparent)]
    Mount(#[from] gantry_mount::Error),
    /// The binary said no.
    #[error("shim {binary} {verb} (exit {code}): {output}", binary = .binary.display())]
    Verb {
        /// The binary.
        binary: PathBuf,
        /// `start`, `delete`, `-info`.
        verb: &'static str,
        /// Its exit code, or 128 + signal.
        code: i32,
        /// What it printed, shortened.
        output: String,
    },
    /// The binary did not end in time and was killed.
    #[error("shim {binary} {verb}: not done within {limit:?}", binary = .binary.display())]
    VerbTimeout {
        /// The binary.
        binary: PathBuf,
        /// `start`, `delete`, `-info`.
        verb: &'static str,
        /// How long it had.
        limit: Duration,
    },
    /// The answer to `start` cannot be used.
    #[error("shim {binary}: answer to start: {reason}", binary = .binary.display())]
    Answer {
        /// The binary.
        binary: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A call on the shim's socket failed.
    #[error("{}{status}", lead(.id, .method, .status))]
    Call {
        /// The task.
        id: String,
        /// The method.
        method: &'static str,
        /// What the shim, or the connection, said.
        status: Status,
    },
}

impl Error {
    /// For `map_err` on file operations.
    pub(crate) fn io<'a>(operation: &'static str, path: &'a Path) -> impl FnOnce(std::io::Error) -> Error + 'a {
        move |source| Error::Io { operation, path: path.to_owned(), source }
    }

    /// Whether the shim cannot be reached any more (it is not that it said no).
    pub fn is_lost(&self) -> bool {
        matches!(self, Error::Call { status, .. } if *status == Status::closed())
    }
}

/// What stands before a shim's words: as little as clients are used to, more where they are not the shim's own.
fn lead(id: &str, method: &str, status: &Status) -> String {
    match method {
        _ if *status == Status::closed() => format!("shim of {id}: {method}: "),
        "Create" => "failed to create shim task: ".into(),
        _ => String::new(),
    }
}

impl HasKind for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Error::RuntimeName { .. } => ErrorKind::InvalidArgument,
            Error::NoBinary { .. } => ErrorKind::NotFound,
            Error::BundleExists { .. } => ErrorKind::AlreadyExists,
            Error::Io { source, .. } => match ErrorKind::of_io(source) {
                ErrorKind::NotFound | ErrorKind::AlreadyExists => ErrorKind::Internal,
                kind => kind,
            },
            Error::Mount(e) => e.kind(),
            Error::Verb { .. } | Error::Answer { .. } => ErrorKind::Unknown,
            Error::VerbTimeout { .. } => ErrorKind::DeadlineExceeded,
            Error::Call { status, .. } => status.kind,
        }
    }
}
