//! What can go wrong in the engine: the errors of its parts, and a few of its own.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use gantry_types::{Digest, ErrorKind, HasKind};

/// The result of an engine operation.
pub type Result<T> = std::result::Result<T, Error>;

/// A failure of the engine.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Content store.
    #[error(transparent)]
    Content(#[from] gantry_content::Error),
    /// Records.
    #[error(transparent)]
    Metadata(#[from] gantry_metadata::Error),
    /// Registry.
    #[error(transparent)]
    Registry(#[from] gantry_registry::Error),
    /// Snapshotter.
    #[error(transparent)]
    Snapshots(#[from] gantry_snapshots::Error),
    /// Mounting.
    #[error(transparent)]
    Mount(#[from] gantry_mount::Error),
    /// Mounts by name.
    #[error(transparent)]
    Mounts(#[from] crate::mounts::Error),
    /// Shim.
    #[error(transparent)]
    Shim(#[from] gantry_shims::Error),
    /// Making a layer.
    #[error(transparent)]
    Diff(#[from] gantry_layer::DiffError),
    /// Topic of an event.
    #[error(transparent)]
    Topic(#[from] crate::events::InvalidTopic),
    /// Identifier.
    #[error(transparent)]
    Id(#[from] gantry_types::InvalidId),
    /// Reference.
    #[error(transparent)]
    Reference(#[from] gantry_types::InvalidReference),
    /// Filter.
    #[error(transparent)]
    Filter(#[from] gantry_types::InvalidFilter),
    /// A layer that cannot be unpacked.
    #[error("layer {digest}: {source}")]
    Layer {
        /// The layer's blob.
        digest: Digest,
        /// What is wrong with it.
        source: gantry_layer::ApplyError,
    },
    /// A layer that holds something else than its image says.
    #[error("layer {digest}: holds {actual}, but the image's configuration says {expected}")]
    DiffId {
        /// The layer's blob.
        digest: Digest,
        /// Digest of the bytes inside according to the configuration.
        expected: Digest,
        /// Digest of the bytes inside.
        actual: Digest,
    },
    /// A manifest, index or configuration that makes no sense.
    #[error("{what} {digest}: {reason}")]
    BadBlob {
        /// What it should be.
        what: &'static str,
        /// The blob.
        digest: Digest,
        /// What is wrong with it.
        reason: String,
    },
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
    /// An object in a state in which this cannot be done.
    #[error("{what} {name:?}: {reason}")]
    Precondition {
        /// Kind of object.
        what: &'static str,
        /// Its name.
        name: String,
        /// What stands in the way.
        reason: String,
    },
    /// A media type that cannot be unpacked or made.
    #[error("media type {media_type:?}: cannot be {wanted}")]
    MediaType {
        /// The media type.
        media_type: String,
        /// What was wanted: `unpacked`, `made`.
        wanted: &'static str,
    },
    /// A part of ours that answered what makes no sense.
    #[error("unexpected answer of the {what}: {reason}")]
    Unexpected {
        /// Which part.
        what: &'static str,
        /// What it said.
        reason: String,
    },
    /// A program that layers pass through.
    #[error("{name}: {reason}")]
    Processor {
        /// Its name and path.
        name: String,
        /// What went wrong.
        reason: String,
    },
    /// A part that another process serves.
    #[error(transparent)]
    Plugin(#[from] gantry_plugins::Failure),
    /// Not offered.
    #[error("{0} is not offered")]
    Unimplemented(&'static str),
    /// The caller's deadline passed.
    #[error("{what}: not done before the caller's deadline")]
    Deadline {
        /// What was under way.
        what: &'static str,
    },
    /// The engine is closing, or the work was stopped.
    #[error("{what}: stopped")]
    Stopped {
        /// What was under way.
        what: &'static str,
    },
    /// A file or directory of ours could not be dealt with.
    #[error("{operation} {path}: {source}", path = .path.display())]
    Io {
        /// What was being done.
        operation: &'static str,
        /// To what.
        path: PathBuf,
        /// How it failed.
        source: std::io::Error,
    },
    /// Bytes that were there when their writer was opened, and were collected before its commit. Writing again helps.
    #[error("content {digest}: was collected meanwhile; try again")]
    Collected {
        /// The blob.
        digest: Digest,
    },
    /// The operator's policy keeps an image out.
    #[error(transparent)]
    Policy(Box<crate::policy::Refused>),
    /// A program of the operator does not let an image in.
    #[error("image verifier {program} blocks the pull of {image}: {reason}")]
    Verifier {
        /// The program's name.
        program: String,
        /// The image's name.
        image: String,
        /// What it says, or why it could not be asked.
        reason: String,
    },
    /// A pull that failed for a reason that does not name the registry itself.
    #[error("{reference}: {source}")]
    Pull {
        /// What was pulled; begins with the registry's host.
        reference: String,
        /// What failed.
        source: Box<Error>,
    },
    /// Work that this call joined has failed.
    #[error(transparent)]
    Joined(Arc<Error>),
}

impl Error {
    /// For `map_err` on file operations.
    pub(crate) fn io<'a>(operation: &'static str, path: &'a Path) -> impl FnOnce(std::io::Error) -> Error + 'a {
        move |source| Error::Io { operation, path: path.to_owned(), source }
    }

    pub(crate) fn not_found(what: &'static str, name: impl Into<String>) -> Error {
        Error::NotFound { what, name: name.into() }
    }

    pub(crate) fn invalid(what: &'static str, reason: impl Into<String>) -> Error {
        Error::Invalid { what, reason: reason.into() }
    }

    /// A task of ours that did not come to its end.
    pub(crate) fn task(what: &'static str) -> impl FnOnce(tokio::task::JoinError) -> Error {
        move |_| Error::Stopped { what }
    }
}

impl From<crate::policy::Refused> for Error {
    fn from(refused: crate::policy::Refused) -> Error {
        Error::Policy(Box::new(refused))
    }
}

impl HasKind for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Error::Content(e) => e.kind(),
            Error::Metadata(e) => e.kind(),
            Error::Registry(e) => e.kind(),
            Error::Snapshots(e) => e.kind(),
            Error::Mount(e) => e.kind(),
            Error::Mounts(e) => e.kind(),
            Error::Shim(e) => e.kind(),
            Error::Diff(e) => e.kind(),
            Error::Layer { source, .. } => source.kind(),
            Error::Topic(e) => e.kind(),
            Error::Id(e) => e.kind(),
            Error::Reference(e) => e.kind(),
            Error::Filter(e) => e.kind(),
            Error::Policy(e) => e.kind(),
            Error::NotFound { .. } => ErrorKind::NotFound,
            Error::AlreadyExists { .. } => ErrorKind::AlreadyExists,
            Error::Invalid { .. } | Error::BadBlob { .. } => ErrorKind::InvalidArgument,
            Error::Precondition { .. } | Error::DiffId { .. } => ErrorKind::FailedPrecondition,
            Error::MediaType { wanted: "made", .. } => ErrorKind::Unimplemented,
            // Clients look for this code to try another way.
            Error::MediaType { .. } => ErrorKind::Unknown,
            Error::Verifier { .. } | Error::Processor { .. } | Error::Unexpected { .. } => ErrorKind::Unknown,
            Error::Plugin(e) => e.kind(),
            Error::Unimplemented(_) => ErrorKind::Unimplemented,
            Error::Deadline { .. } => ErrorKind::DeadlineExceeded,
            Error::Stopped { .. } => ErrorKind::Cancelled,
            Error::Io { source, .. } => match ErrorKind::of_io(source) {
                ErrorKind::NotFound | ErrorKind::AlreadyExists => ErrorKind::Internal,
                kind => kind,
            },
            Error::Collected { .. } => ErrorKind::Unavailable,
            Error::Pull { source, .. } => source.kind(),
            Error::Joined(e) => e.kind(),
        }
    }
}
