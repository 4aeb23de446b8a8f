//! What can go wrong with a pod's network.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gantry_types::{ErrorKind, HasKind};

/// The result of a network operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure of a pod's network.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no CNI configuration and no built-in network.
    #[error("cni plugin not initialized: no network config found in {}", dir.display())]
    NotInitialized {
        /// Where configurations are looked for.
        dir: PathBuf,
    },
    /// A CNI configuration that cannot be used.
    #[error("cni config load failed: {}: {reason}", path.display())]
    BadConfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A request that makes no sense.
    #[error("{field}: {reason}")]
    Invalid {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// No attachment of this name.
    #[error("network of pod {id:?}: not found")]
    NotFound {
        /// Its name.
        id: String,
    },
    /// Another pod's attachment of this name.
    #[error("network of pod {id:?}: exists, with other settings")]
    Exists {
        /// Its name.
        id: String,
    },
    /// A plug-in failed, and said why.
    #[error("plugin type={plugin:?} failed ({verb}): {reason}")]
    Plugin {
        /// The plug-in.
        plugin: String,
        /// What it was called for, in small letters.
        verb: &'static str,
        /// Its own code of the failure; 0 where it gave none.
        code: u32,
        /// What it said, or how it ended.
        reason: String,
    },
    /// A plug-in did not end in time and was killed.
    #[error("plugin type={plugin:?} failed ({verb}): killed, it did not end within {limit:?}")]
    Timeout {
        /// The plug-in.
        plugin: String,
        /// What it was called for.
        verb: &'static str,
        /// The deadline.
        limit: Duration,
    },
    /// A plug-in that is nowhere.
    #[error("failed to find plugin {plugin:?} in path {dirs:?}")]
    NoPlugin {
        /// The plug-in.
        plugin: String,
        /// Where it was looked for.
        dirs: Vec<PathBuf>,
    },
    /// An answer that makes no sense.
    #[error("network {network:?}: {reason}")]
    BadResult {
        /// The network.
        network: String,
        /// What is wrong with the answer.
        reason: String,
    },
    /// All addresses of a range are taken.
    #[error("no free address in {subnet}: {capacity} are held by pods")]
    Exhausted {
        /// The range.
        subnet: String,
        /// How many there are.
        capacity: u64,
    },
    /// A host port that another pod has.
    #[error("host port {port} is taken by pod {by:?}")]
    PortTaken {
        /// Port, with transport and address.
        port: String,
        /// The pod.
        by: String,
    },
    /// The range of the built-in network is in use on the host.
    #[error(
        "built-in network: {subnet} overlaps {other} of interface {interface:?}: choose another range, or install a CNI configuration"
    )]
    Overlap {
        /// The range.
        subnet: String,
        /// What it overlaps.
        other: String,
        /// Interface that has it.
        interface: String,
    },
    /// The kernel refused a change.
    #[error("{what}: {source}")]
    Kernel {
        /// The change.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file.
    #[error("{what} {}: {source}", path.display())]
    Io {
        /// What was done.
        what: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Undoing after a failure failed too; the attachment stays recorded.
    #[error("{first}; undoing it failed too: {second}")]
    Undo {
        /// The failure.
        first: Box<Error>,
        /// The second one.
        second: Box<Error>,
    },
    /// The task that did it died.
    #[error("network of pod {id:?}: the operation broke off")]
    BrokeOff {
        /// The pod.
        id: String,
    },
}

impl Error {
    /// For `map_err` on file operations.
    pub(crate) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::Io { what, path: path.to_owned(), source }
    }

    /// For `map_err` on requests to the kernel.
    pub(crate) fn kernel<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Error {
        move |source| Error::Kernel { what: what.into(), source: source.into() }
    }
}

impl HasKind for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Error::NotInitialized { .. } | Error::BadConfig { .. } => ErrorKind::Unavailable,
            Error::Invalid { .. } => ErrorKind::InvalidArgument,
            Error::NotFound { .. } => ErrorKind::NotFound,
            Error::Exists { .. } => ErrorKind::AlreadyExists,
            Error::Timeout { .. } => ErrorKind::DeadlineExceeded,
            Error::Exhausted { .. } => ErrorKind::ResourceExhausted,
            Error::PortTaken { .. } | Error::Overlap { .. } => ErrorKind::FailedPrecondition,
            Error::Plugin { .. } | Error::NoPlugin { .. } | Error::BadResult { .. } | Error::BrokeOff { .. } => {
                ErrorKind::Unknown
            }
            Error::Kernel { source, .. } | Error::Io { source, .. } => ErrorKind::of_io(source),
            Error::Undo { first, .. } => first.kind(),
        }
    }
}
