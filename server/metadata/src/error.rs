//! What can go wrong in the metadata store.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use gantry_types::{ErrorKind, HasKind, InvalidId, InvalidLabel};

/// A named thing, for messages: `image "docker.io/library/busybox:latest"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// What it is.
    pub kind: &'static str,
    /// Its name in the namespace.
    pub name: String,
}

impl Object {
    pub(crate) fn new(kind: &'static str, name: impl Into<String>) -> Object {
        Object { kind, name: name.into() }
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.kind, self.name)
    }
}

/// A failure of the metadata store.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// No such record.
    #[error("{0}: not found")]
    NotFound(Object),
    /// A record of that name exists.
    #[error("{0}: already exists")]
    AlreadyExists(Object),
    /// A field has a value that no record may have.
    #[error("{object}: {field}: {reason}")]
    Invalid {
        /// Which kind of record.
        object: &'static str,
        /// Which field of it.
        field: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A field that cannot change has changed.
    #[error("{object}: the field {field} is immutable")]
    Immutable {
        /// The record.
        object: Object,
        /// The field.
        field: &'static str,
    },
    /// A field mask names a field that cannot be updated.
    #[error("cannot update {field:?} field on {object}")]
    UnknownField {
        /// The record.
        object: Object,
        /// The path in the mask.
        field: String,
    },
    /// A lease was asked to keep something that cannot be leased.
    #[error("resource type {type_name:?} is not supported")]
    UnknownResource {
        /// The type asked for.
        type_name: String,
    },
    /// A namespace that is to go still holds something.
    #[error("namespace {namespace:?} must be empty, but it still has {}", .holds.join(", "))]
    NamespaceNotEmpty {
        /// The namespace.
        namespace: String,
        /// The kinds of things it holds.
        holds: Vec<String>,
    },
    /// A snapshot that is to go, still has children.
    #[error("cannot remove snapshot {key:?} of {snapshotter}: it is the parent of {child:?}")]
    HasChild {
        /// Which snapshotter.
        snapshotter: String,
        /// Key of the snapshot.
        key: String,
        /// Key of one child.
        child: String,
    },
    /// A snapshot is of the wrong kind for what is asked.
    #[error("snapshot {key:?} of {snapshotter} is not {expected}")]
    SnapshotKind {
        /// Which snapshotter.
        snapshotter: String,
        /// Key of the snapshot.
        key: String,
        /// What it would have to be.
        expected: &'static str,
    },
    /// The record changed since the caller looked.
    #[error("{0} changed meanwhile")]
    Changed(Object),
    /// A bad label.
    #[error(transparent)]
    Label(#[from] InvalidLabel),
    /// A bad identifier.
    #[error(transparent)]
    Id(#[from] InvalidId),
    /// A record larger than the store takes.
    #[error("{object}: {size} bytes, more than the {limit} a record may have")]
    TooLarge {
        /// The record.
        object: Object,
        /// Its encoded size in bytes.
        size: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// A record in the store cannot be read.
    #[error("{object}: the stored record is damaged: {reason}")]
    Damaged {
        /// The record.
        object: Object,
        /// What is wrong with it.
        reason: String,
    },
    /// Another process has the store open.
    #[error("the metadata store in {} is in use by another process", .path.display())]
    InUse {
        /// Directory of the store.
        path: PathBuf,
    },
    /// The disk or the kernel failed.
    #[error("{operation} {}: {source}", .path.display())]
    Io {
        /// What was being done.
        operation: &'static str,
        /// To which file.
        path: PathBuf,
        /// How it failed.
        source: Arc<std::io::Error>,
    },
    /// The write could not be made durable; it may be tried again.
    #[error("metadata not written: {reason}")]
    NotWritten {
        /// What failed.
        reason: String,
        /// What kind of failure it was.
        kind: ErrorKind,
    },
    /// The store is closed, or closing.
    #[error("the metadata store is closed")]
    Closed,
}

impl Error {
    pub(crate) fn invalid(object: &'static str, field: impl Into<String>, reason: &'static str) -> Error {
        Error::Invalid { object, field: field.into(), reason }
    }

    /// For `map_err` on file operations.
    pub(crate) fn io<'a>(
        operation: &'static str,
        path: &'a std::path::Path,
    ) -> impl FnOnce(std::io::Error) -> Error + 'a {
        move |source| Error::Io { operation, path: path.to_owned(), source: Arc::new(source) }
    }
}

impl HasKind for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Error::NotFound(_) => ErrorKind::NotFound,
            Error::AlreadyExists(_) => ErrorKind::AlreadyExists,
            Error::Invalid { .. } | Error::Immutable { .. } | Error::UnknownField { .. } => ErrorKind::InvalidArgument,
            Error::Label(_) | Error::Id(_) => ErrorKind::InvalidArgument,
            Error::UnknownResource { .. } => ErrorKind::Unimplemented,
            Error::NamespaceNotEmpty { .. } | Error::HasChild { .. } => ErrorKind::FailedPrecondition,
            Error::SnapshotKind { .. } | Error::InUse { .. } => ErrorKind::FailedPrecondition,
            Error::Changed(_) => ErrorKind::Aborted,
            Error::TooLarge { .. } => ErrorKind::ResourceExhausted,
            Error::Damaged { .. } => ErrorKind::DataLoss,
            Error::Io { source, .. } => match ErrorKind::of_io(source) {
                // A file of ours that is missing is our failure, not a record nobody has.
                ErrorKind::NotFound | ErrorKind::AlreadyExists => ErrorKind::Internal,
                kind => kind,
            },
            Error::NotWritten { kind, .. } => *kind,
            Error::Closed => ErrorKind::Unavailable,
        }
    }
}
