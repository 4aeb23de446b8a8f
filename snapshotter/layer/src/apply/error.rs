//! Why a layer was not applied.

use std::io;

use gantry_types::{ErrorKind, HasKind};

/// A layer could not be applied; names the entry at fault.
#[derive(Debug, thiserror::Error)]
#[error("layer entry {entry:?}: {reason}")]
pub struct ApplyError {
    /// Path of the entry as the archive has it (lossy and shortened), empty outside any entry.
    pub entry: String,
    /// What was wrong.
    #[source]
    pub reason: Reason,
}

/// What was wrong with an entry, or with the place where it had to go.
#[derive(Debug, thiserror::Error)]
pub enum Reason {
    /// The archive is not a well-formed tar.
    #[error("malformed archive: {0}")]
    Malformed(&'static str),
    /// The stream ended inside the archive.
    #[error("the archive is cut short")]
    Truncated,
    /// Reading or decompressing the stream failed.
    #[error("reading the layer: {0}")]
    Read(#[source] io::Error),
    /// A name that no file may have.
    #[error("invalid name: {0}")]
    Name(&'static str),
    /// The path, a symlink on its way or a link's target climbs above the root.
    #[error("the path {path:?} leaves the root")]
    Escapes {
        /// The path, target or symlink content that climbs.
        path: String,
    },
    /// Something on the way to the entry is not a directory.
    #[error("{path:?} is not a directory")]
    NotADirectory {
        /// The component at fault, counted from the root.
        path: String,
    },
    /// The target of a hard link is neither in this layer nor in a lower one.
    #[error("the hard link's target {target:?} does not exist")]
    LinkTarget {
        /// The target as the archive has it.
        target: String,
    },
    /// An entry of a type that layers do not have.
    #[error("unsupported entry type {0:#04x}")]
    Type(u8),
    /// The layer asks for more than it may.
    #[error("more than {max} {limit}")]
    Limit {
        /// What there is too much of.
        limit: Limit,
        /// How much is allowed.
        max: u64,
    },
    /// A directory that no entry describes, or a hard link's target, is to come from the layers below
    /// ([`Options::standalone`](super::Options::standalone)).
    #[error("the layers below it are needed")]
    NeedsLower,
    /// The file system refused.
    #[error("{call}: {source}")]
    Io {
        /// The call that failed.
        call: &'static str,
        /// Its error.
        source: io::Error,
    },
    /// [`Control::cancel`](super::Control::cancel) was called.
    #[error("cancelled")]
    Cancelled,
}

/// What a limit counts ([`Limits`](super::Limits)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum Limit {
    #[error("bytes of files")]
    Bytes,
    #[error("entries")]
    Entries,
    #[error("bytes out of each compressed byte")]
    Ratio,
    #[error("bytes in a path")]
    Path,
    #[error("components in a path")]
    Depth,
    #[error("bytes of extended header")]
    ExtendedHeader,
    #[error("bytes in an extended attribute")]
    Xattr,
}

impl HasKind for ApplyError {
    fn kind(&self) -> ErrorKind {
        match &self.reason {
            Reason::Malformed(_) | Reason::Name(_) | Reason::Escapes { .. } | Reason::NotADirectory { .. } => {
                ErrorKind::InvalidArgument
            }
            Reason::LinkTarget { .. } | Reason::Type(_) => ErrorKind::InvalidArgument,
            Reason::NeedsLower => ErrorKind::FailedPrecondition,
            Reason::Truncated => ErrorKind::DataLoss,
            Reason::Limit { .. } => ErrorKind::ResourceExhausted,
            Reason::Read(source) => match source.kind() {
                io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => {
                    ErrorKind::DataLoss
                }
                _ => ErrorKind::of_io(source),
            },
            Reason::Io { source, .. } => ErrorKind::of_io(source),
            Reason::Cancelled => ErrorKind::Cancelled,
        }
    }
}

impl Reason {
    /// Carries the reason through a stream; [`Reason::read`] takes it out again.
    pub(crate) fn into_io(self) -> io::Error {
        match self {
            Reason::Read(error) => error,
            reason => io::Error::other(reason),
        }
    }

    /// Why reading a stream failed.
    pub(crate) fn read(error: io::Error) -> Reason {
        match error.downcast::<Reason>() {
            Ok(reason) => reason,
            Err(error) => Reason::Read(error),
        }
    }
}

/// What was wrong while an entry was applied, and where that was not with this entry, with which.
#[derive(Debug)]
pub(crate) struct Fault {
    path: Option<Box<[u8]>>,
    reason: Reason,
}

impl From<Reason> for Fault {
    fn from(reason: Reason) -> Fault {
        Fault { path: None, reason }
    }
}

impl Fault {
    /// With the entry `path`.
    pub(crate) fn of(path: &[u8], reason: Reason) -> Fault {
        Fault { path: Some(path.into()), reason }
    }

    /// The error, while the entry `path` was applied.
    pub(crate) fn during(self, path: &[u8]) -> ApplyError {
        ApplyError::at(self.path.as_deref().unwrap_or(path), self.reason)
    }
}

impl ApplyError {
    /// An error at the entry `path`.
    pub(crate) fn at(path: &[u8], reason: Reason) -> ApplyError {
        ApplyError { entry: shown(path), reason }
    }

    /// An error in the archive behind the entry `path`.
    pub(crate) fn after(path: &[u8], reason: Reason) -> ApplyError {
        let entry = if path.is_empty() { "the first".to_owned() } else { format!("behind {}", shown(path)) };
        ApplyError { entry, reason }
    }
}

/// `path` for an error message: lossy, and at most 256 bytes of it.
pub(crate) fn shown(path: &[u8]) -> String {
    let end = path.len().min(256);
    String::from_utf8_lossy(&path[..end]).into_owned()
}

/// Names the system call that failed.
pub(crate) fn call<T>(call: &'static str, result: Result<T, rustix::io::Errno>) -> Result<T, Reason> {
    result.map_err(|error| Reason::Io { call, source: error.into() })
}
