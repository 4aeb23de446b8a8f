//! Owner, mode, attributes and times of files just made, in as few calls as what the process does by itself allows.

use std::os::fd::AsRawFd;

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{
    AtFlags, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat, fchmod, fchown, fsetxattr,
    futimens, lsetxattr, utimensat,
};
use rustix::io::Errno;

use super::error::{Limit, Reason, call};
use crate::archive::{Entry, EntryType};
use crate::dirs;

/// What files get from this process when it makes them.
#[derive(Clone, Copy)]
pub(crate) struct Process {
    uid: u32,
    gid: u32,
    umask: u32,
    /// Whether files get the owner that the archive says.
    same_owner: bool,
}

impl Process {
    /// To be asked before a thread is confined, which cannot look.
    pub(crate) fn current(unprivileged: bool) -> Process {
        Process {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            umask: umask(),
            same_owner: !unprivileged,
        }
    }

    fn chown_needed(&self, entry: &Entry, made: Made) -> bool {
        self.same_owner && (made != Made::Plainly || (entry.uid, entry.gid) != (self.uid, self.gid))
    }

    /// Whether the mode given on creation did not become the file's; a new owner clears set-id bits anyway.
    fn chmod_needed(&self, mode: u32, made: Made) -> bool {
        made != Made::Plainly || mode & self.umask != 0 || mode > 0o777
    }
}

/// How a file came to be where it is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Made {
    /// Made by us: owner and mode are what the process and its umask give.
    Plainly,
    /// Owner or mode may be anything: it was there before, or its directory passes on group or mode.
    Otherwise,
}

/// The umask, without changing it as umask(2) would.
fn umask() -> u32 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    line.and_then(|octal| u32::from_str_radix(octal.trim(), 8).ok()).unwrap_or(0o777)
}

/// Times as containerd sets them: nothing before the epoch, and the access time no older than the modification time.
pub(super) fn times(entry: &Entry) -> Timestamps {
    let mtime = mtime(entry);
    let atime = entry.atime.unwrap_or(mtime).max(mtime);
    Timestamps { last_access: timespec(atime), last_modification: timespec(mtime) }
}

/// The modification time as containerd sets it.
pub(crate) fn mtime(entry: &Entry) -> (i64, u32) {
    if entry.mtime.0 < 0 { (0, 0) } else { entry.mtime }
}

fn timespec((seconds, nanoseconds): (i64, u32)) -> Timespec {
    Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() }
}

/// Sets everything but the times of the open regular file `file`. The content must be there: writing drops capabilities.
pub(super) fn finish_file(process: &Process, file: &OwnedFd, entry: &Entry, made: Made) -> Result<(), Reason> {
    if process.chown_needed(entry, made) {
        let (uid, gid) = owner(entry);
        call("fchown", fchown(file, uid, gid))?;
    }
    for (name, value) in &entry.xattrs {
        set(process, entry, name, || fsetxattr(file, name.as_slice(), value, XattrFlags::empty()))?;
    }
    if process.chmod_needed(entry.mode, made) {
        call("fchmod", fchmod(file, Mode::from_raw_mode(entry.mode)))?;
    }
    call("futimens", futimens(file, &times(entry)))
}

/// Sets everything but the times of the directory `name`.
pub(super) fn finish_directory(
    process: &Process,
    dir: BorrowedFd<'_>,
    name: &[u8],
    entry: &Entry,
    made: Made,
) -> Result<(), Reason> {
    if !entry.xattrs.is_empty() || process.chown_needed(entry, made) || process.chmod_needed(entry.mode, made) {
        let directory = call("open", dirs::child(dir, name, OFlags::RDONLY | OFlags::DIRECTORY))?;
        if process.chown_needed(entry, made) {
            let (uid, gid) = owner(entry);
            call("fchown", fchown(&directory, uid, gid))?;
        }
        for (name, value) in &entry.xattrs {
            set(process, entry, name, || fsetxattr(&directory, name.as_slice(), value, XattrFlags::empty()))?;
        }
        if process.chmod_needed(entry.mode, made) || process.chown_needed(entry, made) {
            call("fchmod", fchmod(&directory, Mode::from_raw_mode(entry.mode)))?;
        }
    }
    Ok(())
}

/// Sets everything of the symlink, device or fifo `name`, which cannot be opened.
pub(super) fn finish_special(
    process: &Process,
    dir: BorrowedFd<'_>,
    name: &[u8],
    entry: &Entry,
    made: Made,
) -> Result<(), Reason> {
    if process.chown_needed(entry, made) {
        let (uid, gid) = owner(entry);
        call("fchownat", chownat(dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW))?;
    }
    set_at(process, dir, name, entry)?;
    // A symlink has no mode, and chmodat would follow it.
    if entry.kind != EntryType::Symlink && process.chmod_needed(entry.mode, made) {
        call("fchmodat", chmodat(dir, name, Mode::from_raw_mode(entry.mode), AtFlags::empty()))?;
    }
    set_times(dir, name, &times(entry))
}

/// Gives the hard link `name`, and so its file, what its own entry says, where that differs.
pub(super) fn finish_link(process: &Process, dir: BorrowedFd<'_>, name: &[u8], entry: &Entry) -> Result<(), Reason> {
    let Some(stat) = call("fstatat", dirs::state(dir, name))? else { return Ok(()) };
    let times = times(entry);
    if process.same_owner && (stat.st_uid, stat.st_gid) != (entry.uid, entry.gid) {
        let (uid, gid) = owner(entry);
        call("fchownat", chownat(dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW))?;
        // A new owner drops capabilities, which the link's own entry may repeat.
        set_at(process, dir, name, entry)?;
    }
    if dirs::file_type(&stat) != rustix::fs::FileType::Symlink && stat.st_mode & 0o7777 != entry.mode {
        call("fchmodat", chmodat(dir, name, Mode::from_raw_mode(entry.mode), AtFlags::empty()))?;
    }
    if (stat.st_mtime, stat.st_mtime_nsec as i64) != (times.last_modification.tv_sec, times.last_modification.tv_nsec) {
        set_times(dir, name, &times)?;
    }
    Ok(())
}

/// Sets the times of `name` itself.
pub(super) fn set_times(dir: BorrowedFd<'_>, name: &[u8], times: &Timestamps) -> Result<(), Reason> {
    call("utimensat", utimensat(dir, name, times, AtFlags::SYMLINK_NOFOLLOW))
}

/// Refuses attributes that are too large, and forgets those that only the host may set.
pub(crate) fn admit_xattrs(entry: &mut Entry, max: usize) -> Result<(), Reason> {
    entry.xattrs.retain(|(name, _)| !name.starts_with(b"trusted."));
    if entry.xattrs.iter().any(|(_, value)| value.len() > max) {
        return Err(Reason::Limit { limit: Limit::Xattr, max: max as u64 });
    }
    Ok(())
}

fn owner(entry: &Entry) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))
}

/// Sets the attributes of `name` itself.
fn set_at(process: &Process, dir: BorrowedFd<'_>, name: &[u8], entry: &Entry) -> Result<(), Reason> {
    for (key, value) in &entry.xattrs {
        let path = through_descriptor(dir, name);
        set(process, entry, key, || lsetxattr(path.as_slice(), key.as_slice(), value, XattrFlags::empty()))?;
    }
    Ok(())
}

/// Sets one attribute; a file system or type of file that has no such attributes goes without.
fn set(process: &Process, entry: &Entry, name: &[u8], set: impl FnOnce() -> Result<(), Errno>) -> Result<(), Reason> {
    let plain = matches!(entry.kind, EntryType::Regular | EntryType::Directory);
    match set() {
        Err(Errno::OPNOTSUPP) => Ok(()),
        Err(Errno::PERM) if (name.starts_with(b"user.") && !plain) || !process.same_owner => Ok(()),
        result => call("setxattr", result),
    }
}

/// A path to `name` in `dir` for calls that know no directory descriptors. Only the magic link is followed.
pub(crate) fn through_descriptor(dir: impl AsFd, name: &[u8]) -> Vec<u8> {
    let mut path = format!("/proc/self/fd/{}/", dir.as_fd().as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    path
}
