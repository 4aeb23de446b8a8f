//! Mounts made detached, then attached: nothing half made is ever visible.

use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use gantry_types::Mount;

use crate::error::Error;
use crate::options::{Attributes, Propagation};

/// Performs `mounts` as one detached tree: nothing appears in any mount table, and closing the descriptor unmounts
/// all. A mount with an empty `target` is the root (a later one covers an earlier one); the others lie below it.
///
/// The descriptor may be attached in another mount namespace ([`attach`]), or used in place through [`Tree::path`].
///
/// # Errors
/// [`Error`], which names the mount. Trees of more than one mount need Linux 6.15.
pub fn detached(_mounts: &[Mount]) -> Result<OwnedFd, Error> {
    todo!()
}

/// Performs `mounts` at `target` (each at `target` joined with its own `target`, resolved below it). When one fails,
/// those made before it are taken away again.
///
/// # Errors
/// [`Error`], which names the mount.
pub fn mount_all(_mounts: &[Mount], _target: &Path) -> Result<(), Error> {
    todo!()
}

/// Attaches a detached tree at `target` in the calling thread's mount namespace. The final component may not be a
/// symbolic link.
///
/// # Errors
/// [`Error::Call`] with step `Attach`.
pub fn attach(_tree: BorrowedFd<'_>, _target: &Path) -> Result<(), Error> {
    todo!()
}

/// Attaches a detached tree on the directory or file `target` itself (an `O_PATH` descriptor will do).
///
/// # Errors
/// [`Error::Call`] with step `Attach`.
pub fn attach_at(_tree: BorrowedFd<'_>, _target: BorrowedFd<'_>) -> Result<(), Error> {
    todo!()
}

/// A detached copy of what is mounted at `path` below `dir` ([`crate::sys::CWD`] for none): the bind mount.
///
/// # Errors
/// [`Error::Call`] with step `OpenTree`.
pub fn clone_tree(_dir: RawFd, _path: &Path, _recursive: bool) -> Result<OwnedFd, Error> {
    todo!()
}

/// Changes flags, propagation and id map of the mount `tree` stands for; with `recursive` of all below it too.
/// An id map can be set only while detached, and once.
///
/// # Errors
/// [`Error::Call`] with step `Attributes` or `IdMap`.
pub fn set_attributes(
    _tree: BorrowedFd<'_>,
    _attributes: Attributes,
    _propagation: Option<Propagation>,
    _user_namespace: Option<BorrowedFd<'_>>,
    _recursive: bool,
) -> Result<(), Error> {
    todo!()
}

/// A private mount for a moment's work: reachable only through [`Tree::path`] of this process, gone when dropped.
#[derive(Debug)]
pub struct Tree {
    root: OwnedFd,
}

impl Tree {
    /// Performs `mounts` detached.
    ///
    /// # Errors
    /// As [`detached`].
    pub fn new(mounts: &[Mount]) -> Result<Tree, Error> {
        Ok(Tree { root: detached(mounts)? })
    }

    /// A path at which this process sees the tree: `/proc/self/fd/N/`.
    pub fn path(&self) -> PathBuf {
        use std::os::fd::AsRawFd;
        PathBuf::from(format!("/proc/self/fd/{}/", self.root.as_raw_fd()))
    }

    /// The mount itself.
    pub fn into_fd(self) -> OwnedFd {
        self.root
    }
}

impl std::os::fd::AsFd for Tree {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }
}
