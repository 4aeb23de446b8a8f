//! What can go wrong with plug-ins.

use std::io;
use std::path::PathBuf;

use gantry_types::{ErrorKind, HasKind};

/// The result of a call to plug-ins.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure of a plug-in, or among them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A plug-in refused, or failed.
    #[error("NRI plugin {plugin:?}: {method}: {message}")]
    Plugin {
        /// Index and name.
        plugin: String,
        /// What it was asked.
        method: &'static str,
        /// What it said.
        message: String,
        /// Its status.
        kind: ErrorKind,
    },
    /// Two plug-ins want different things of the same.
    #[error("NRI plugins {first:?} and {second:?} both tried to set {what}")]
    Conflict {
        /// Who was first.
        first: String,
        /// Who came after it.
        second: String,
        /// Of what.
        what: String,
    },
    /// A plug-in wants to update the very container that is being made.
    #[error("NRI plugin {plugin:?} asked for an update of container {id:?} while it is being created")]
    Itself {
        /// The plug-in.
        plugin: String,
        /// The container.
        id: String,
    },
    /// A plug-in that validates does not agree.
    #[error("NRI plugin {plugin:?} rejected the adjustments of a container: {reason}")]
    Rejected {
        /// The plug-in.
        plugin: String,
        /// Why.
        reason: String,
    },
    /// A plug-in that does not register as it should.
    #[error("NRI plugin {plugin:?}: {reason}")]
    Registration {
        /// The plug-in, as far as it is known.
        plugin: String,
        /// What is wrong.
        reason: String,
    },
    /// A file or socket.
    #[error("NRI: {what} {path}: {source}", path = .path.display())]
    Io {
        /// What was being done.
        what: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The socket is another's.
    #[error("NRI: {path} is served by another daemon", path = .path.display())]
    Taken {
        /// The socket.
        path: PathBuf,
    },
}

impl HasKind for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Error::Plugin { kind, .. } => *kind,
            Error::Conflict { .. } | Error::Itself { .. } | Error::Rejected { .. } => ErrorKind::FailedPrecondition,
            Error::Registration { .. } => ErrorKind::InvalidArgument,
            Error::Io { source, .. } => ErrorKind::of_io(source),
            Error::Taken { .. } => ErrorKind::AlreadyExists,
        }
    }
}
