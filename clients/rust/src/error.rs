//! Why a call did not succeed.

use std::path::PathBuf;

use gantry_types::{ErrorKind, HasKind};

/// Why a call did not succeed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nothing answers at the socket.
    #[error("cannot reach the daemon at {address}: {source}; is it running?")]
    Connect {
        /// The socket.
        address: PathBuf,
        /// Why.
        source: tonic::transport::Error,
    },
    /// The daemon refused or failed.
    #[error("{what}: {}", status.message())]
    Call {
        /// What was asked.
        what: String,
        /// The answer.
        status: Box<tonic::Status>,
    },
    /// The daemon's answer, or the image, is not what it must be.
    #[error("{what}: {reason}")]
    Malformed {
        /// What was looked at.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The configuration asked for cannot be made.
    #[error(transparent)]
    Spec(#[from] gantry_spec::SpecError),
    /// A file or pipe of this side.
    #[error("{what}: {source}")]
    Io {
        /// What was done.
        what: String,
        /// Why.
        source: std::io::Error,
    },
}

impl Error {
    pub(crate) fn malformed(what: impl Into<String>, reason: impl ToString) -> Error {
        Error::Malformed { what: what.into(), reason: reason.to_string() }
    }

    pub(crate) fn io(what: impl Into<String>, source: impl Into<std::io::Error>) -> Error {
        Error::Io { what: what.into(), source: source.into() }
    }
}

/// Names what was asked in the error of a call.
pub(crate) trait Asked<T> {
    fn asked(self, what: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T> Asked<T> for Result<tonic::Response<T>, tonic::Status> {
    fn asked(self, what: impl FnOnce() -> String) -> Result<T, Error> {
        self.map(tonic::Response::into_inner).map_err(|status| Error::Call { what: what(), status: Box::new(status) })
    }
}

impl HasKind for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Error::Connect { .. } => ErrorKind::Unavailable,
            Error::Malformed { .. } => ErrorKind::DataLoss,
            Error::Spec(error) => error.kind(),
            Error::Io { source, .. } => ErrorKind::of_io(source),
            Error::Call { status, .. } => gantry_api::convert::kind_of(status.code()),
        }
    }
}
