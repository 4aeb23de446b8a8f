//! This program as containers may reach it: by `/proc/PID/exe` of a process that is about to become theirs, or by a
//! script whose interpreter is `/proc/self/exe` (CVE-2019-5736). Run from a read-only mount that is nowhere attached, it
//! cannot be written through there; its pages stay shared.

use std::ffi::OsString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::create;
use crate::sys::Fd;

const OWN: &str = "/proc/self/exe";

/// This program on a read-only mount of its own, to be executed as `/proc/self/fd/N`. `None` where it is read-only
/// already, or the caller may make no mounts: then it may hardly write the host's programs either.
pub fn program() -> Option<OwnedFd> {
    let status = nix::sys::statvfs::statvfs(OWN).ok()?;
    if status.flags().contains(nix::sys::statvfs::FsFlags::ST_RDONLY) {
        return None;
    }
    let tree = gantry_mount::sealed(c"/proc/self/exe").ok()?;
    // Out of the way of the numbers that a new process may be given.
    let above = nix::fcntl::fcntl(&tree, nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(64)).ok()?;
    Some(create::own(Fd(above)))
}

/// Becomes the same program with the same arguments, from a read-only mount. Returns where it is that already, or
/// cannot be.
pub fn restart() {
    let Some(program) = program() else { return };
    let mut words = std::env::args_os();
    let name = words.next().unwrap_or_else(|| OsString::from("gantry-runtime"));
    // Only a failure returns: the program goes on as it is.
    let _ = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd())).arg0(name).args(words).exec();
}
