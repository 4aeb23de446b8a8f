//! A program on a read-only mount of its own that is nowhere attached: whoever gets at it by `/proc/PID/exe` of a process
//! that runs it from there cannot write it (CVE-2019-5736). Its pages stay shared.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use crate::sys;

/// The file at a path, sealed so. To be executed as `/proc/self/fd/N`.
///
/// # Errors
/// When there is no such file, or the caller may make no mounts.
pub fn sealed(path: &CStr) -> io::Result<OwnedFd> {
    let tree = sys::open_tree(sys::CWD, path, sys::OPEN_TREE_CLONE)?;
    let flags = sys::MOUNT_ATTR_RDONLY | sys::MOUNT_ATTR_NOSUID;
    sys::mount_setattr(tree.as_raw_fd(), c"", libc::AT_EMPTY_PATH as u32, flags, 0, libc::MS_PRIVATE, None)?;
    Ok(tree)
}
