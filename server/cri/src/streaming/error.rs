//! What can go wrong with the streaming server itself.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use gantry_types::{ErrorKind, HasKind};

/// The result of an operation of the streaming server.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure of the streaming server.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A request that makes no sense.
    #[error("{field}: {reason}")]
    Invalid {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Too many requests whose clients have not come.
    #[error("{limit} streaming requests wait for their clients: try again later")]
    TooMany {
        /// How many may.
        limit: usize,
    },
    /// The address cannot be listened on.
    #[error("streaming server cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// Certificate or key.
    #[error("streaming server: certificate {}: {reason}", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// No randomness for tokens.
    #[error("streaming server: no random bytes: {0}")]
    Random(io::Error),
}

impl HasKind for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Error::Invalid { .. } => ErrorKind::InvalidArgument,
            Error::TooMany { .. } => ErrorKind::ResourceExhausted,
            Error::Listen { .. } | Error::Certificate { .. } => ErrorKind::FailedPrecondition,
            Error::Random(_) => ErrorKind::Internal,
        }
    }
}
