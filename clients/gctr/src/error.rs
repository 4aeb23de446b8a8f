//! What a failed command says, and its exit code.

use std::process::ExitCode;

use gantry_client::types::{ErrorKind, HasKind};

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A call to the daemon.
    #[error(transparent)]
    Client(#[from] gantry_client::Error),
    /// What was typed.
    #[error("{0}")]
    Usage(String),
    /// This side's terminal or files.
    #[error("{what}: {source}")]
    Io {
        /// What was done.
        what: &'static str,
        /// Why.
        source: std::io::Error,
    },
}

impl Error {
    /// An error of this side's terminal or files.
    pub fn io(what: &'static str) -> impl FnOnce(std::io::Error) -> Error {
        move |source| Error::Io { what, source }
    }
}

impl From<tonic::Status> for Error {
    fn from(status: tonic::Status) -> Error {
        Error::Client(gantry_client::Error::Call { what: "the daemon says".into(), status: Box::new(status) })
    }
}

/// Prints the error and chooses the exit code: 2 for what was typed, 125 where the daemon or the machine failed (as
/// other container tools do, so that it differs from the container's own), 1 for the rest.
pub fn report(error: &Error) -> ExitCode {
    eprintln!("gctr: {error}");
    let kind = match error {
        Error::Client(error) => error.kind(),
        Error::Usage(_) => return ExitCode::from(2),
        Error::Io { source, .. } => ErrorKind::of_io(source),
    };
    match kind {
        ErrorKind::Unavailable | ErrorKind::Internal | ErrorKind::DataLoss => ExitCode::from(125),
        _ => ExitCode::FAILURE,
    }
}
