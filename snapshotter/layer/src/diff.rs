//! The difference of two directories as a layer.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use gantry_types::{ErrorKind, HasKind};

use crate::Control;

mod changes;
mod overlay;
mod walk;
mod write;

/// How precise the times in a layer are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Times {
    /// Whole seconds, rounded down, as containerd writes them.
    #[default]
    Seconds,
    /// Nanoseconds, by PAX records where needed.
    Nanoseconds,
}

/// How to write a layer.
#[derive(Clone, Debug, Default)]
pub struct DiffOptions {
    /// Precision of modification times.
    pub times: Times,
    /// Modification times after this become this (`SOURCE_DATE_EPOCH`).
    pub newest: Option<SystemTime>,
    /// Progress (bytes of tar, entries) and cancellation.
    pub control: Arc<Control>,
}

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Number of entries, whiteouts included.
    pub entries: u64,
    /// Bytes of tar.
    pub tar_bytes: u64,
}

/// A layer could not be made; names the file at fault.
#[derive(Debug, thiserror::Error)]
pub enum DiffError {
    /// The file system refused.
    #[error("{path:?}: {call}: {source}")]
    Io {
        /// The file, counted from the upper or lower directory.
        path: PathBuf,
        /// The call that failed.
        call: &'static str,
        /// Its error.
        source: io::Error,
    },
    /// Writing the layer failed.
    #[error("writing the layer: {0}")]
    Write(#[source] io::Error),
    /// A file's name starts with `.wh.`, which a layer cannot express.
    #[error("{path:?}: names starting with .wh. are reserved")]
    ReservedName {
        /// The file.
        path: PathBuf,
    },
    /// A file shrank while it was read.
    #[error("{path:?} changed while it was read")]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// The upper directory uses an overlay feature (`redirect`, `metacopy`) that only a mounted overlay can resolve:
    /// use [`diff`] on mounts.
    #[error("{path:?}: overlay attribute {attribute} needs a mounted overlay")]
    OverlayFeature {
        /// The file.
        path: PathBuf,
        /// The attribute.
        attribute: &'static str,
    },
    /// [`Control::cancel`] was called.
    #[error("cancelled")]
    Cancelled,
}

impl DiffError {
    /// Names the file and the system call that failed.
    fn io(path: &[u8], call: &'static str, error: impl Into<io::Error>) -> DiffError {
        DiffError::Io { path: shown(path), call, source: error.into() }
    }
}

/// A path for an error.
fn shown(path: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(path))
}

impl HasKind for DiffError {
    fn kind(&self) -> ErrorKind {
        match self {
            DiffError::Io { source, .. } | DiffError::Write(source) => ErrorKind::of_io(source),
            DiffError::ReservedName { .. } => ErrorKind::FailedPrecondition,
            DiffError::Changed { .. } => ErrorKind::Aborted,
            DiffError::OverlayFeature { .. } => ErrorKind::FailedPrecondition,
            DiffError::Cancelled => ErrorKind::Cancelled,
        }
    }
}

/// Writes what turns the directory `lower` (nothing, if absent) into `upper` as an uncompressed layer tar.
///
/// The same directories always give the same bytes: entries are sorted by name, owners are numbers, access and change
/// times are left out. Files count as unchanged if type, mode, owner, size, modification time, link target, device and
/// attributes agree; where a time has no nanoseconds the content decides. Sockets are left out.
pub fn diff<W: Write>(lower: Option<&Path>, upper: &Path, out: W, options: &DiffOptions) -> Result<Written, DiffError> {
    let changes = walk::between(lower, upper, options)?;
    write::layer(upper, changes, out, options)
}

/// Writes the content of an overlay's `upperdir` as an uncompressed layer tar, without looking at unchanged files:
/// whiteouts and opaque directories become `.wh.` entries. `lowers` (topmost first) tell whether an opaque directory
/// hides anything; without them each is marked.
pub fn diff_overlay<W: Write>(
    upperdir: &Path,
    lowers: &[PathBuf],
    out: W,
    options: &DiffOptions,
) -> Result<Written, DiffError> {
    let changes = overlay::upper(upperdir, lowers, options)?;
    write::layer(upperdir, changes, out, options)
}
