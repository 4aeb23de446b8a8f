//! Which hosts serve a registry, by `hosts.toml`.

mod directory;
mod endpoint;
mod parse;

pub use directory::{check, load};
pub use endpoint::{ClientCertificate, Endpoint};
pub(crate) use endpoint::{is_loopback, split_port};
pub(crate) use parse::parse_duration;

use gantry_types::{ErrorKind, HasKind};

/// The hosts that serve one registry, in the order to ask them.
#[derive(Clone, Debug, PartialEq)]
pub struct Hosts {
    /// Mirrors in the order of the file, then the server itself.
    pub endpoints: Vec<Endpoint>,
}

/// A wrong host configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostsError {
    /// A file could not be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file or directory.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The file says something it cannot say.
    #[error("{path}:{line}: {what}")]
    Invalid {
        /// The file.
        path: String,
        /// Line, from 1.
        line: usize,
        /// What is wrong.
        what: String,
    },
    /// A certificate or key cannot be used.
    #[error("{path}: {what}")]
    Certificate {
        /// The file.
        path: String,
        /// What is wrong.
        what: String,
    },
    /// The name is not one of a host.
    #[error("{0:?} is not a registry host")]
    Host(String),
}

impl HasKind for HostsError {
    fn kind(&self) -> ErrorKind {
        match self {
            HostsError::Read { source, .. } => ErrorKind::of_io(source),
            _ => ErrorKind::InvalidArgument,
        }
    }
}
