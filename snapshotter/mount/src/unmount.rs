//! Takes mounts away.

use std::path::Path;

use crate::error::Error;

/// How to unmount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unmount {
    /// `MNT_DETACH`: out of sight now, gone when its last user is.
    pub lazy: bool,
    /// `MNT_FORCE`: fail outstanding requests of network file systems.
    pub force: bool,
}

/// Unmounts what is on top at `target`; symbolic links are not followed. Nothing mounted there is not an error.
/// `EBUSY` is retried for up to 50 ms, because scanners hold mounts for moments.
///
/// # Errors
/// [`Error::Call`] with step `Unmount`.
pub fn unmount(_target: &Path, _how: Unmount) -> Result<(), Error> {
    todo!()
}

/// Unmounts all that is stacked at `target`.
///
/// # Errors
/// As [`unmount`].
pub fn unmount_all(_target: &Path, _how: Unmount) -> Result<(), Error> {
    todo!()
}

/// Unmounts everything at and below `target`, deepest first. One that fails is remembered, and the rest goes on.
///
/// # Errors
/// The first failure.
pub fn unmount_recursive(_target: &Path, _how: Unmount) -> Result<(), Error> {
    todo!()
}
