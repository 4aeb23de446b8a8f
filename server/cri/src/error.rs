//! What can go wrong for a caller of the Container Runtime Interface.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use gantry_types::{ErrorKind, HasKind};

/// The result of a call.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A field of the request that is missing, contradicts another, or cannot be met on any node.
    #[error("{field}: {reason}")]
    Invalid {
        /// The field, by its path in the request.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No such pod or container.
    #[error("an error occurred when try to find {what} {id:?}: not found")]
    NotFound {
        /// `sandbox`, `container`, `image`.
        what: &'static str,
        /// What was asked for.
        id: String,
    },
    /// A name that another pod or container has.
    #[error("failed to reserve {what} name {name:?}: name {name:?} is reserved for {id:?}")]
    Reserved {
        /// `sandbox` or `container`.
        what: &'static str,
        /// The name.
        name: String,
        /// Who has it.
        id: String,
    },
    /// The object's state does not allow it.
    #[error("{0}")]
    State(String),
    /// The object must be in another state first, which a caller can bring about.
    #[error("{0}")]
    Precondition(String),
    /// Something took longer than it may.
    #[error("{what}: timeout {limit:?} exceeded: context deadline exceeded")]
    Deadline {
        /// What was waited for.
        what: String,
        /// For how long.
        limit: Duration,
    },
    /// A stage of a creation that took longer than it may.
    #[error("{what}: {stage}: not done after {limit:?}: context deadline exceeded")]
    Overdue {
        /// What is being made.
        what: &'static str,
        /// The stage, and what it waits for.
        stage: String,
        /// How long it may take.
        limit: Duration,
    },
    /// Work that an earlier call began, and that cannot be ended.
    #[error("{what}: hangs since {since:?}, begun by an earlier call: its path does not answer")]
    Hangs {
        /// The work.
        what: String,
        /// For how long.
        since: Duration,
    },
    /// The engine.
    #[error(transparent)]
    Engine(#[from] gantry_engine::Error),
    /// Plug-ins of the Node Resource Interface.
    #[error(transparent)]
    Nri(#[from] gantry_nri::Error),
    /// Making the configuration of a container.
    #[error(transparent)]
    Spec(#[from] gantry_engine::spec::SpecError),
    /// A file of ours or of the node.
    #[error("{operation} {path}: {source}", path = .path.display())]
    Io {
        /// What was being done.
        operation: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A step of a longer work.
    #[error("{step}: {source}")]
    Step {
        /// Which step.
        step: String,
        /// Why it failed.
        source: Box<Error>,
    },
    /// The pod's network.
    #[error("{message}")]
    Network {
        /// What the network says.
        message: String,
        /// Which kind of failure that is.
        kind: ErrorKind,
    },
    /// Work that this call joined has failed.
    #[error(transparent)]
    Joined(Arc<Error>),
    /// The daemon stops, or broke off.
    #[error("{what}: stopped")]
    Stopped {
        /// What was under way.
        what: &'static str,
    },
}

impl Error {
    /// A bad field.
    pub(crate) fn invalid(field: impl Into<String>, reason: impl Into<String>) -> Error {
        Error::Invalid { field: field.into(), reason: reason.into() }
    }

    /// For `map_err` on file operations.
    pub(crate) fn io<'a>(operation: &'static str, path: &'a Path) -> impl FnOnce(std::io::Error) -> Error + 'a {
        move |source| Error::Io { operation, path: path.to_owned(), source }
    }

    /// For `map_err`: says at which step it failed.
    pub(crate) fn at<E: Into<Error>>(step: impl Into<String>) -> impl FnOnce(E) -> Error {
        move |source| Error::Step { step: step.into(), source: Box::new(source.into()) }
    }
}

impl HasKind for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Error::Invalid { .. } => ErrorKind::InvalidArgument,
            Error::NotFound { .. } => ErrorKind::NotFound,
            Error::Reserved { .. } | Error::Precondition(_) => ErrorKind::FailedPrecondition,
            Error::State(_) => ErrorKind::Unknown,
            Error::Deadline { .. } | Error::Overdue { .. } | Error::Hangs { .. } => ErrorKind::DeadlineExceeded,
            Error::Engine(error) => error.kind(),
            Error::Spec(error) => error.kind(),
            Error::Nri(error) => error.kind(),
            Error::Io { source, .. } => match ErrorKind::of_io(source) {
                ErrorKind::NotFound | ErrorKind::AlreadyExists => ErrorKind::Unknown,
                kind => kind,
            },
            Error::Step { source, .. } => source.kind(),
            Error::Network { kind, .. } => *kind,
            Error::Joined(error) => error.kind(),
            Error::Stopped { .. } => ErrorKind::Unavailable,
        }
    }
}
