//! What can go wrong in the engine: the errors of its parts, and a few of its own.

use gantry_types::{ErrorKind, HasKind};

/// The result of an engine operation.
pub type Result<T> = std::result::Result<T, Error>;

/// A failure of the engine.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Content store.
    #[error(transparent)]
    Content(#[from] gantry_content::Error),
    /// Registry.
    #[error(transparent)]
    Registry(#[from] gantry_registry::Error),
    /// An object that is not there.
    #[error("{what} {name:?}: not found")]
    NotFound {
        /// Kind of object.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// An object that is there already.
    #[error("{what} {name:?}: already exists")]
    AlreadyExists {
        /// Kind of object.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// A request that can never succeed.
    #[error("{what}: {reason}")]
    Invalid {
        /// The part of the request.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

impl HasKind for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Error::Content(e) => e.kind(),
            Error::Registry(e) => e.kind(),
            Error::NotFound { .. } => ErrorKind::NotFound,
            Error::AlreadyExists { .. } => ErrorKind::AlreadyExists,
            Error::Invalid { .. } => ErrorKind::InvalidArgument,
        }
    }
}
