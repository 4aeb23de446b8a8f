//! Directories reached by descriptor, never by a path that could leave the root.

use std::io;
use std::path::Path;

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, openat, openat2, statat, unlinkat};
use rustix::io::Errno;

/// No symlink, no `..` that climbs, no other mount on the way (openat2(2)).
const STRICT: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// The directory that everything happens below.
#[derive(Debug)]
pub(crate) struct Root(OwnedFd);

impl Root {
    pub(crate) fn open(path: &Path) -> io::Result<Root> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Root(openat(CWD, path, flags, Mode::empty())?))
    }

    /// A handle on the directory at `path`, which has no symlinks in it, good for calls that end in `at`.
    pub(crate) fn handle(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        child(&self.0, named(path), OFlags::PATH | OFlags::DIRECTORY)
    }

    /// The directory at `path`, which has no symlinks in it, opened for reading.
    pub(crate) fn directory(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        child(&self.0, named(path), OFlags::RDONLY | OFlags::DIRECTORY)
    }

    /// The directory that `path` means to a process whose root this is: symlinks are followed inside.
    pub(crate) fn resolved_directory(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat2(&self.0, named(path), flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
    }
}

fn named(path: &[u8]) -> &[u8] {
    if path.is_empty() { b"." } else { path }
}

/// Opens `path` below `dir`, following no symlink.
pub(crate) fn child(dir: impl AsFd, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    openat2(dir, path, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty(), STRICT)
}

/// The state of `name` in `dir`, not following a symlink; none if it does not exist.
pub(crate) fn state(dir: impl AsFd, name: &[u8]) -> Result<Option<Stat>, Errno> {
    match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The type of the file that `stat` is of.
pub(crate) fn file_type(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// Whether `stat` is of an overlay whiteout: a character device 0:0.
pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    file_type(stat) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// The names in `dir`, without `.` and `..`, sorted.
pub(crate) fn names(dir: impl AsFd) -> Result<Vec<Box<[u8]>>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.into());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Removes `name` in `dir` and all below it. It is no error if it does not exist.
pub(crate) fn remove_tree(dir: impl AsFd, name: &[u8]) -> Result<(), Errno> {
    match unlinkat(&dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error),
    }
    let inner = child(&dir, name, OFlags::RDONLY | OFlags::DIRECTORY)?;
    for name in names(&inner)? {
        remove_tree(&inner, &name)?;
    }
    unlinkat(&dir, name, AtFlags::REMOVEDIR)
}

/// The directory part and the last component of a clean path.
pub(crate) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&[], path),
    }
}

/// `name` in the directory `dir`, as a path from the root.
pub(crate) fn joined(dir: &[u8], name: &[u8]) -> Box<[u8]> {
    if dir.is_empty() { name.into() } else { [dir, b"/", name].concat().into() }
}
