//! The lower directories of an overlay whose upper directory a layer is applied to.

use std::io;
use std::path::PathBuf;

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{
    FileType, Mode, OFlags, Stat, Timespec, Timestamps, XattrFlags, fchmod, fchown, fgetxattr, flistxattr, fsetxattr,
    fstat, lgetxattr, llistxattr, lsetxattr, readlinkat,
};
use rustix::fs::{Gid, Uid};
use rustix::io::Errno;

use super::error::{Reason, call};
use super::metadata::through_descriptor;
use super::path::components;
use crate::dirs::{self, Root};

/// The lower directories, topmost first.
pub(crate) struct Lowers(Vec<Root>);

/// A file of a lower directory.
pub(crate) struct LowerFile {
    dir: OwnedFd,
    name: Box<[u8]>,
    pub(super) stat: Stat,
}

/// What one layer knows of a path.
enum Seen {
    File(LowerFile),
    /// Nothing, and layers below may know more.
    Nothing,
    /// Nothing, and layers below do not count.
    Hidden,
}

impl Lowers {
    pub(crate) fn open(paths: &[PathBuf]) -> io::Result<Lowers> {
        paths.iter().map(|path| Root::open(path)).collect::<io::Result<_>>().map(Lowers)
    }

    /// Gives `directory`, at `path` in the upper directory, owner, mode and attributes of the topmost lower directory
    /// there, if there is one.
    pub(super) fn dress(&self, directory: &OwnedFd, path: &[u8]) -> Result<(), Reason> {
        for lower in &self.0 {
            match lower.resolved_directory(path) {
                Ok(model) => return dress(directory, &model),
                Err(Errno::NOENT) => {}
                // Something else hides what is below.
                Err(_) => return Ok(()),
            }
        }
        Ok(())
    }

    /// The file that the merged lower directories have at `path`.
    pub(crate) fn find(&self, path: &[u8]) -> Result<Option<LowerFile>, Reason> {
        for lower in &self.0 {
            match call("lower layer", see(lower, path))? {
                Seen::File(file) => return Ok(Some(file)),
                Seen::Nothing => {}
                Seen::Hidden => return Ok(None),
            }
        }
        Ok(None)
    }
}

fn dress(directory: &OwnedFd, model: &OwnedFd) -> Result<(), Reason> {
    let stat = call("fstat", fstat(model))?;
    call("fchown", fchown(directory, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid))))?;
    call("fchmod", fchmod(directory, Mode::from_raw_mode(stat.st_mode & 0o7777)))?;
    for (name, value) in call("getxattr", xattrs_of(model))? {
        call("fsetxattr", fsetxattr(directory, name.as_slice(), &value, XattrFlags::empty()))?;
    }
    Ok(())
}

fn see(lower: &Root, path: &[u8]) -> Result<Seen, Errno> {
    let mut dir = lower.directory(b"")?;
    let mut opaque = false;
    let mut steps = components(path).peekable();
    while let Some(step) = steps.next() {
        let unseen = if opaque { Seen::Hidden } else { Seen::Nothing };
        let Some(stat) = dirs::state(&dir, step)? else { return Ok(unseen) };
        if dirs::is_whiteout(&stat) {
            return Ok(Seen::Hidden);
        }
        if steps.peek().is_none() {
            return Ok(Seen::File(LowerFile { dir, name: step.into(), stat }));
        }
        if dirs::file_type(&stat) != FileType::Directory {
            return Ok(Seen::Hidden);
        }
        dir = dirs::child(&dir, step, OFlags::RDONLY | OFlags::DIRECTORY)?;
        opaque |= is_opaque(&dir)?;
    }
    Ok(Seen::Nothing)
}

/// Whether an overlay directory is marked as hiding what is below it.
pub(crate) fn is_opaque(directory: &OwnedFd) -> Result<bool, Errno> {
    let mut value = [0; 2];
    match fgetxattr(directory, "trusted.overlay.opaque", &mut value[..]) {
        Ok(length) => Ok(value[..length] == *b"y"),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(false),
        Err(Errno::RANGE) => Ok(false),
        Err(error) => Err(error),
    }
}

impl LowerFile {
    pub(crate) fn file_type(&self) -> FileType {
        dirs::file_type(&self.stat)
    }

    /// Opens it for reading; only for regular files.
    pub(super) fn open(&self) -> Result<OwnedFd, Reason> {
        call("open", dirs::child(&self.dir, &self.name, OFlags::RDONLY))
    }

    /// The content of a symlink.
    pub(super) fn target(&self) -> Result<Vec<u8>, Reason> {
        Ok(call("readlinkat", readlinkat(&self.dir, &*self.name, Vec::new()))?.into_bytes())
    }

    pub(super) fn times(&self) -> Timestamps {
        let spec = |seconds, nanoseconds| Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
        Timestamps {
            last_access: spec(self.stat.st_atime, self.stat.st_atime_nsec as i64),
            last_modification: spec(self.stat.st_mtime, self.stat.st_mtime_nsec as i64),
        }
    }

    /// Copies its attributes to `name` in `dir`.
    pub(super) fn copy_xattrs(&self, dir: impl AsFd, name: &[u8]) -> Result<(), Reason> {
        let from = through_descriptor(&self.dir, &self.name);
        let to = through_descriptor(dir, name);
        for (key, value) in call("getxattr", xattrs_at(&from))? {
            call("lsetxattr", lsetxattr(to.as_slice(), key.as_slice(), &value, XattrFlags::empty()))?;
        }
        Ok(())
    }
}

type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// The attributes of an open file, sorted by name, without the host's own (`trusted.*`).
pub(crate) fn xattrs_of(file: &OwnedFd) -> Result<Xattrs, Errno> {
    let list = read_all(|buffer| flistxattr(file, buffer));
    gather(list, |name| read_all(|buffer| fgetxattr(file, name, buffer)))
}

/// The attributes of the file at `path` itself, sorted by name, without the host's own (`trusted.*`).
pub(crate) fn xattrs_at(path: &[u8]) -> Result<Xattrs, Errno> {
    let list = read_all(|buffer| llistxattr(path, buffer));
    gather(list, |name| read_all(|buffer| lgetxattr(path, name, buffer)))
}

/// As [`xattrs_at`], with the host's own.
pub(crate) fn all_xattrs_at(path: &[u8]) -> Result<Xattrs, Errno> {
    let list = read_all(|buffer| llistxattr(path, buffer));
    gather_all(list, |name| read_all(|buffer| lgetxattr(path, name, buffer)))
}

fn gather(list: Result<Vec<u8>, Errno>, get: impl Fn(&[u8]) -> Result<Vec<u8>, Errno>) -> Result<Xattrs, Errno> {
    let mut xattrs = gather_all(list, get)?;
    xattrs.retain(|(name, _)| !name.starts_with(b"trusted."));
    Ok(xattrs)
}

fn gather_all(list: Result<Vec<u8>, Errno>, get: impl Fn(&[u8]) -> Result<Vec<u8>, Errno>) -> Result<Xattrs, Errno> {
    let list = match list {
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        list => list?,
    };
    let mut xattrs = Vec::new();
    for name in list.split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        match get(name) {
            Ok(value) => xattrs.push((name.to_vec(), value)),
            Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error),
        }
    }
    xattrs.sort_unstable();
    Ok(xattrs)
}

/// Reads a list or value into a buffer that fits the usual, and again into one that fits any.
fn read_all(read: impl Fn(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    let mut buffer = vec![0; 256];
    let length = match read(&mut buffer) {
        Err(Errno::RANGE) => {
            // XATTR_LIST_MAX and XATTR_SIZE_MAX (linux/limits.h).
            buffer.resize(64 << 10, 0);
            read(&mut buffer)?
        }
        length => length?,
    };
    buffer.truncate(length);
    Ok(buffer)
}
