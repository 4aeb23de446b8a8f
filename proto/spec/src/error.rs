//! Why a configuration cannot be made.

use std::path::PathBuf;

use gantry_types::{ErrorKind, HasKind};

/// Why a configuration cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpecError {
    /// Neither the image nor the caller names a program to run.
    #[error("no command: the image has neither Entrypoint nor Cmd, and no arguments were given")]
    NoCommand,
    /// A mount's destination is relative.
    #[error("mount destination {destination:?} is not an absolute path")]
    Destination {
        /// What was asked.
        destination: PathBuf,
    },
    /// A part cannot be described.
    #[error("cannot describe the {what}")]
    Build {
        /// Which part.
        what: &'static str,
        /// Why.
        source: oci_spec::OciSpecError,
    },
    /// The built-in defaults do not parse.
    #[error("the built-in defaults are broken")]
    Defaults {
        /// Why.
        source: serde_json::Error,
    },
}

impl HasKind for SpecError {
    fn kind(&self) -> ErrorKind {
        match self {
            SpecError::NoCommand | SpecError::Destination { .. } | SpecError::Build { .. } => {
                ErrorKind::InvalidArgument
            }
            SpecError::Defaults { .. } => ErrorKind::Internal,
        }
    }
}
