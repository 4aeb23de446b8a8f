//! What can go wrong in a content store.

use std::path::{Path, PathBuf};
use std::time::Duration;

use gantry_types::{Digest, ErrorKind, HasKind};

/// A failure of a content store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such blob.
    #[error("content {digest}: not found")]
    NotFound {
        /// The blob asked for.
        digest: Digest,
    },
    /// The blob is in the store already.
    #[error("content {digest}: already exists")]
    AlreadyExists {
        /// The blob in question.
        digest: Digest,
    },
    /// No ingest of that name.
    #[error("ingest {reference:?}: not found")]
    IngestNotFound {
        /// The name asked for.
        reference: String,
    },
    /// Another writer holds the name; clients try again.
    #[error("ref {reference} locked for {}", human(*.held))]
    Locked {
        /// The name.
        reference: String,
        /// How long the other writer has been open.
        held: Duration,
    },
    /// Not a name for an ingest.
    #[error("invalid ref {reference:?}: {reason}")]
    InvalidReference {
        /// The beginning of the name.
        reference: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The total differs from that of an earlier writer of the same ingest.
    #[error("ingest {reference:?}: total {given} differs from the earlier {earlier}")]
    TotalChanged {
        /// Name of the ingest.
        reference: String,
        /// What an earlier writer said.
        earlier: u64,
        /// What this one says.
        given: u64,
    },
    /// A write or truncate at another place than the end of what is there.
    #[error("ingest {reference:?}: write at {given} must occur at the current offset {current}")]
    Offset {
        /// Name of the ingest.
        reference: String,
        /// Bytes that are there.
        current: u64,
        /// The offset asked for.
        given: u64,
    },
    /// A commit of another number of bytes than demanded.
    #[error("ingest {reference:?}: unexpected commit size {actual}, expected {expected}")]
    Size {
        /// Name of the ingest.
        reference: String,
        /// Bytes demanded.
        expected: u64,
        /// Bytes received.
        actual: u64,
    },
    /// A commit of other bytes than demanded.
    #[error("ingest {reference:?}: unexpected commit digest {actual}, expected {expected}")]
    Digest {
        /// Name of the ingest.
        reference: String,
        /// Digest demanded.
        expected: Digest,
        /// Digest of the bytes received.
        actual: Digest,
    },
    /// A blob larger than the reader was ready to take.
    #[error("content {digest}: {size} bytes, more than the {limit} allowed here")]
    TooLarge {
        /// The blob.
        digest: Digest,
        /// Its size in bytes.
        size: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// The disk or the kernel failed.
    #[error("{operation} {}: {source}", .path.display())]
    Io {
        /// What was being done.
        operation: &'static str,
        /// To which file.
        path: PathBuf,
        /// How it failed.
        source: std::io::Error,
    },
    /// A remote store failed, or a task of ours did.
    #[error("{message}")]
    Other {
        /// What kind of failure it was.
        kind: ErrorKind,
        /// What it said.
        message: String,
    },
}

impl Error {
    /// For `map_err` on file operations.
    pub(crate) fn io<'a>(operation: &'static str, path: &'a Path) -> impl FnOnce(std::io::Error) -> Error + 'a {
        move |source| Error::Io { operation, path: path.to_owned(), source }
    }

    /// A task on the blocking pool that did not come to its end.
    pub(crate) fn task(error: &tokio::task::JoinError) -> Error {
        Error::Other { kind: ErrorKind::Internal, message: format!("content task failed: {error}") }
    }
}

impl HasKind for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Error::NotFound { .. } | Error::IngestNotFound { .. } => ErrorKind::NotFound,
            Error::AlreadyExists { .. } => ErrorKind::AlreadyExists,
            Error::Locked { .. } => ErrorKind::Unavailable,
            Error::InvalidReference { .. } => ErrorKind::InvalidArgument,
            Error::TotalChanged { .. } | Error::Size { .. } | Error::Digest { .. } => ErrorKind::FailedPrecondition,
            Error::Offset { .. } => ErrorKind::OutOfRange,
            Error::TooLarge { .. } => ErrorKind::ResourceExhausted,
            Error::Io { source, .. } => match ErrorKind::of_io(source) {
                // A file of ours that is missing is our failure, not a blob nobody has.
                ErrorKind::NotFound | ErrorKind::AlreadyExists => ErrorKind::Internal,
                kind => kind,
            },
            Error::Other { kind, .. } => *kind,
        }
    }
}

fn human(held: Duration) -> String {
    format!("{:.3}s", held.as_secs_f64())
}
