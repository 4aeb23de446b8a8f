//! Why mounts were not activated.

use std::path::PathBuf;

use gantry_types::{ErrorKind, HasKind};

/// A failure of the mount manager.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The caller can perform the mounts without us.
    #[error("these mounts need no mount manager")]
    NotNeeded,
    /// The name is taken.
    #[error("mount {name:?}")]
    Exists {
        /// The name.
        name: String,
    },
    /// Nothing is active under the name.
    #[error("mount {name:?}")]
    NotFound {
        /// The name.
        name: String,
    },
    /// A name or a list that cannot be.
    #[error("{what}: {reason}")]
    Invalid {
        /// What is wrong.
        what: &'static str,
        /// How.
        reason: String,
    },
    /// A template that cannot be filled in.
    #[error("template {text:?}: {reason}")]
    Template {
        /// The template.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An instruction among the options that cannot be followed.
    #[error("option {option:?}: {reason}")]
    Option {
        /// The option.
        option: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A path in which no directories or file systems are made.
    #[error("{path:?} lies in none of the directories {roots:?}")]
    Outside {
        /// The path.
        path: PathBuf,
        /// Where it might lie.
        roots: Vec<PathBuf>,
    },
    /// An instruction that is not offered.
    #[error("{what} is not offered")]
    Unsupported {
        /// What.
        what: &'static str,
    },
    /// A file system was not made.
    #[error("{program} of {path:?}: {reason}")]
    Mkfs {
        /// The program.
        program: String,
        /// The file.
        path: PathBuf,
        /// Its words, or how it ended.
        reason: String,
    },
    /// A mount was not performed or not taken away.
    #[error("mount {index}: {source}")]
    Mount {
        /// Its place in the list, from 0.
        index: usize,
        /// Why.
        source: gantry_mount::Error,
    },
    /// A file or directory could not be dealt with.
    #[error("{operation} {path:?}: {source}")]
    Io {
        /// What was being done.
        operation: &'static str,
        /// To what.
        path: PathBuf,
        /// How it failed.
        source: std::io::Error,
    },
}

impl HasKind for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            // Clients look for this code, and perform the mounts then.
            Error::NotNeeded | Error::Outside { .. } | Error::Unsupported { .. } => ErrorKind::Unimplemented,
            Error::Exists { .. } => ErrorKind::AlreadyExists,
            Error::NotFound { .. } => ErrorKind::NotFound,
            Error::Invalid { .. } | Error::Option { .. } => ErrorKind::InvalidArgument,
            // containerd's code for these.
            Error::Template { .. } | Error::Mkfs { .. } | Error::Mount { .. } => ErrorKind::Unknown,
            Error::Io { source, .. } => match ErrorKind::of_io(source) {
                ErrorKind::ResourceExhausted => ErrorKind::ResourceExhausted,
                _ => ErrorKind::Unknown,
            },
        }
    }
}

impl Error {
    /// For `map_err` on file operations.
    pub(crate) fn io(operation: &'static str, path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::Io { operation, path, source }
    }
}
