//! Why a snapshotter refused or failed.

use std::io;
use std::path::{Path, PathBuf};

use gantry_types::{ErrorKind, HasKind};

use crate::contract::Kind;

/// A snapshotter refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No snapshot of that key.
    #[error("snapshot {key:?} does not exist")]
    NotFound {
        /// The key.
        key: String,
    },
    /// The parent does not exist.
    #[error("parent snapshot {parent:?} does not exist")]
    ParentNotFound {
        /// The parent.
        parent: String,
    },
    /// The key or name is in use.
    #[error("snapshot {key:?} already exists")]
    Exists {
        /// The key.
        key: String,
    },
    /// Empty, or longer than [`crate::MAX_KEY`].
    #[error("snapshot key of {length} bytes: from 1 to 1024 are allowed")]
    InvalidKey {
        /// Its length.
        length: usize,
    },
    /// A label or a field path that is not one.
    #[error("cannot update field {path:?} of snapshot {key:?}")]
    InvalidField {
        /// The key.
        key: String,
        /// The field path.
        path: String,
    },
    /// A label that breaks the rules.
    #[error(transparent)]
    Label(#[from] gantry_types::labels::InvalidLabel),
    /// A mapping label that is no id map.
    #[error("label {label:?} of snapshot {key:?}: {reason}")]
    InvalidMapping {
        /// The key.
        key: String,
        /// Which label.
        label: String,
        /// What is wrong.
        reason: String,
    },
    /// A new snapshot can only stand on a committed one.
    #[error("parent snapshot {parent:?} is {}, not committed", .kind.as_str())]
    ParentNotCommitted {
        /// The parent.
        parent: String,
        /// What it is.
        kind: Kind,
    },
    /// The operation is not for this kind of snapshot.
    #[error("cannot {operation} snapshot {key:?}: it is {}", .kind.as_str())]
    WrongKind {
        /// The key.
        key: String,
        /// What it is.
        kind: Kind,
        /// What was asked.
        operation: &'static str,
    },
    /// Commit with a parent other than the one it was prepared on.
    #[error("cannot change parent of snapshot {key:?} on commit")]
    ParentChange {
        /// The key.
        key: String,
    },
    /// Commit upon a parent that is not committed.
    #[error("cannot commit snapshot {key:?} upon {parent:?}: it is {}, not committed", .kind.as_str())]
    RebaseParent {
        /// The key.
        key: String,
        /// The parent.
        parent: String,
        /// What it is.
        kind: Kind,
    },
    /// Others stand on it.
    #[error("cannot remove snapshot {key:?}: it has {children} children")]
    HasChildren {
        /// The key.
        key: String,
        /// How many.
        children: usize,
    },
    /// Another change of it has not ended in time.
    #[error("snapshot {key:?} is still being changed after {} s", .waited.as_secs())]
    Busy {
        /// The key.
        key: String,
        /// How long this call has waited.
        waited: std::time::Duration,
    },
    /// This implementation cannot.
    #[error("{snapshotter} snapshotter cannot {operation}")]
    Unsupported {
        /// Which.
        snapshotter: &'static str,
        /// What was asked.
        operation: &'static str,
    },
    /// The directory cannot hold this kind of snapshots.
    #[error("{root:?} cannot hold snapshots: {reason}")]
    Unusable {
        /// The directory.
        root: PathBuf,
        /// Why.
        reason: String,
    },
    /// The disk or the kernel failed.
    #[error("{operation} {path:?}: {error}")]
    Io {
        /// What was done.
        operation: &'static str,
        /// To which file.
        path: PathBuf,
        /// The failure.
        #[source]
        error: io::Error,
    },
    /// A task of ours was cancelled or panicked.
    #[error("the snapshotter stopped during {operation}")]
    Stopped {
        /// What it was doing.
        operation: &'static str,
    },
    /// A snapshotter in another process failed.
    #[error("{message}")]
    Remote {
        /// What kind of failure it reported.
        kind: ErrorKind,
        /// Its words.
        message: String,
    },
}

impl Error {
    pub(crate) fn io(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_owned();
        move |error| Error::Io { operation, path, error }
    }
}

impl HasKind for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Error::NotFound { .. } | Error::ParentNotFound { .. } => ErrorKind::NotFound,
            Error::Exists { .. } => ErrorKind::AlreadyExists,
            Error::InvalidKey { .. }
            | Error::InvalidField { .. }
            | Error::InvalidMapping { .. }
            | Error::ParentNotCommitted { .. }
            | Error::ParentChange { .. } => ErrorKind::InvalidArgument,
            Error::Label(error) => error.kind(),
            Error::WrongKind { .. } | Error::RebaseParent { .. } | Error::HasChildren { .. } => {
                ErrorKind::FailedPrecondition
            }
            Error::Unsupported { .. } => ErrorKind::Unimplemented,
            Error::Unusable { .. } => ErrorKind::FailedPrecondition,
            Error::Io { error, .. } => match ErrorKind::of_io(error) {
                ErrorKind::ResourceExhausted => ErrorKind::ResourceExhausted,
                _ => ErrorKind::Internal,
            },
            Error::Busy { .. } => ErrorKind::Unavailable,
            Error::Stopped { .. } => ErrorKind::Cancelled,
            Error::Remote { kind, .. } => *kind,
        }
    }
}
