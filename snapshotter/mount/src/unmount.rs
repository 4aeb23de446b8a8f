//! Takes mounts away.

use std::ffi::CStr;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::{Error, Step, c_path};
use crate::{mountinfo, sys};

/// How long a busy mount is tried again.
const BUSY: Duration = Duration::from_millis(50);

/// More mounts than this stacked on one directory are a mistake of ours.
const MAX_STACK: usize = 1000;

/// How to unmount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unmount {
    /// `MNT_DETACH`: out of sight now, gone when its last user is.
    pub lazy: bool,
    /// `MNT_FORCE`: fail outstanding requests of network file systems.
    pub force: bool,
}

impl Unmount {
    /// Out of sight now.
    pub const LAZY: Unmount = Unmount { lazy: true, force: false };

    fn flags(self) -> libc::c_int {
        let lazy = if self.lazy { libc::MNT_DETACH } else { 0 };
        let force = if self.force { libc::MNT_FORCE } else { 0 };
        libc::UMOUNT_NOFOLLOW | lazy | force
    }
}

/// Unmounts what is on top at `target`; a final symbolic link is not followed. Nothing mounted there, or nothing
/// there at all, is not an error. `EBUSY` is tried again for 50 ms, because scanners hold mounts for moments.
///
/// # Errors
/// [`Error::Call`] with step `Unmount`.
pub fn unmount(target: &Path, how: Unmount) -> Result<(), Error> {
    take(target, how).map(|_| ())
}

/// Unmounts all that is stacked at `target`.
///
/// # Errors
/// As [`unmount`].
pub fn unmount_all(target: &Path, how: Unmount) -> Result<(), Error> {
    for _ in 0..MAX_STACK {
        if !take(target, how)? {
            return Ok(());
        }
    }
    Err(Error::call(Step::Unmount, io::Error::from_raw_os_error(libc::ELOOP)).at(target))
}

/// Unmounts everything at and below `target`, deepest first. One that fails is remembered, and the rest goes on.
///
/// # Errors
/// The first failure of the last round.
pub fn unmount_recursive(target: &Path, how: Unmount) -> Result<(), Error> {
    let target = target.canonicalize().unwrap_or_else(|_| target.to_owned());
    let mut before = usize::MAX;
    loop {
        let mounts = below(&target)?;
        let failure = mounts.iter().filter_map(|mount| take(mount, how).err()).reduce(|first, _| first);
        let left = if mounts.is_empty() { 0 } else { below(&target)?.len() };
        // A mount may hide others, which are reached only once it is gone: go on while it helps.
        match failure {
            _ if left == 0 => return Ok(()),
            Some(error) if left >= before => return Err(error),
            None if left >= before => {
                return Err(Error::call(Step::Unmount, io::Error::from_raw_os_error(libc::EBUSY)).at(&target));
            }
            _ => before = left,
        }
    }
}

/// Mount points at and below `target`, deepest first, each as often as it is mounted on.
fn below(target: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = mountinfo::read()?.into_iter().map(|entry| entry.target);
    let mut mounts: Vec<PathBuf> = entries.filter(|path| path.starts_with(target)).collect();
    mounts.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
    Ok(mounts)
}

/// Whether there was something to take.
fn take(target: &Path, how: Unmount) -> Result<bool, Error> {
    let path = c_path(target)?;
    match patiently(&path, how.flags()) {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOENT | libc::ENOTDIR)) => Ok(false),
        Err(error) => Err(Error::call(Step::Unmount, error).at(target)),
    }
}

fn patiently(path: &CStr, flags: libc::c_int) -> io::Result<()> {
    let deadline = Instant::now() + BUSY;
    loop {
        match sys::umount(path, flags) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            result => return result,
        }
    }
}
