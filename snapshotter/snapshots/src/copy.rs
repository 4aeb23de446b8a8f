//! Copies a tree with everything a layer can hold: data (shared or sparse where the file system can), hard links, owners,
//! modes, times, extended attributes, devices.

use std::collections::HashMap;
use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, SeekFrom, Stat, Timespec, Timestamps, Uid, XattrFlags};

use crate::tree::{self, Visitor};

/// The kernel's limit for a value, and for the list of names (xattr(7)).
const MAX_XATTR: usize = 64 << 10;

/// Copies all below the directory `from`, and its attributes, into the empty directory `to`.
pub(crate) fn tree(from: &Path, to: &Path) -> io::Result<()> {
    let root = open_dir(CWD, to)?;
    let mut copier = Copier { dir: root.try_clone()?, root, path: PathBuf::new(), linked: HashMap::new() };
    tree::walk(from, &mut copier)?;
    attributes(from, to)
}

/// Gives the file or directory `to` the owner, mode, extended attributes and times of `from`. The marks that an overlay
/// leaves on its layers are not copied.
pub(crate) fn attributes(from: &Path, to: &Path) -> io::Result<()> {
    let stat = rustix::fs::lstat(from)?;
    extended(from, to)?;
    basic(CWD, to, &stat)
}

struct Copier {
    root: OwnedFd,
    dir: OwnedFd,
    /// Of `dir`, relative to `root`.
    path: PathBuf,
    /// First copy of each file with several names.
    linked: HashMap<(u64, u64), PathBuf>,
}

impl Visitor for Copier {
    fn enter(&mut self, from: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> io::Result<()> {
        let place = self.path.join(OsStr::from_bytes(name.to_bytes()));
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Directory {
            rustix::fs::mkdirat(&self.dir, name, Mode::RWXU)?;
            self.dir = open_dir(self.dir.as_fd(), name)?;
            self.path = place;
            return Ok(());
        }
        if stat.st_nlink > 1 {
            if let Some(first) = self.linked.get(&(stat.st_dev, stat.st_ino)) {
                return Ok(rustix::fs::linkat(&self.root, first, &self.dir, name, AtFlags::empty())?);
            }
            self.linked.insert((stat.st_dev, stat.st_ino), place);
        }
        self.entry(from, name, stat, kind)?;
        extended(&below(from, name), &below(self.dir.as_fd(), name))?;
        basic(self.dir.as_fd(), name, stat)
    }

    fn leave(&mut self, from: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
        self.dir = open_dir(self.dir.as_fd(), c"..")?;
        self.path.pop();
        extended(&below(from, name), &below(self.dir.as_fd(), name))?;
        let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        basic(self.dir.as_fd(), name, &stat)
    }
}

impl Copier {
    fn entry(&self, from: BorrowedFd<'_>, name: &CStr, stat: &Stat, kind: FileType) -> io::Result<()> {
        match kind {
            FileType::RegularFile => {
                let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let source = File::from(rustix::fs::openat(from, name, read, Mode::empty())?);
                let write = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let copy = File::from(rustix::fs::openat(&self.dir, name, write, Mode::RUSR | Mode::WUSR)?);
                data(&source, &copy, u64::try_from(stat.st_size).unwrap_or(0))
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(from, name, Vec::new())?;
                Ok(rustix::fs::symlinkat(target.as_c_str(), &self.dir, name)?)
            }
            kind => Ok(rustix::fs::mknodat(&self.dir, name, kind, Mode::RUSR | Mode::WUSR, stat.st_rdev)?),
        }
    }
}

/// Shares the blocks, or copies what is not a hole.
fn data(source: &File, copy: &File, size: u64) -> io::Result<()> {
    if rustix::fs::ioctl_ficlone(copy, source).is_ok() {
        return Ok(());
    }
    copy.set_len(size)?;
    let mut at = 0;
    while at < size {
        let start = match rustix::fs::seek(source, SeekFrom::Data(at)) {
            Err(rustix::io::Errno::NXIO) => break,
            result => result?,
        };
        let end = rustix::fs::seek(source, SeekFrom::Hole(start))?;
        extent(source, copy, start, end)?;
        at = end;
    }
    Ok(())
}

fn extent(source: &File, copy: &File, start: u64, end: u64) -> io::Result<()> {
    let (mut from, mut to) = (start, start);
    while from < end {
        let length = usize::try_from(end - from).unwrap_or(usize::MAX).min(1 << 30);
        match rustix::fs::copy_file_range(source, Some(&mut from), copy, Some(&mut to), length) {
            Ok(0) => break,
            Ok(_) => {}
            Err(_) => return by_hand(source, copy, from, end),
        }
    }
    Ok(())
}

fn by_hand(mut source: &File, mut copy: &File, start: u64, end: u64) -> io::Result<()> {
    use std::io::Seek;
    source.seek(io::SeekFrom::Start(start))?;
    copy.seek(io::SeekFrom::Start(start))?;
    io::copy(&mut source.take(end - start), &mut copy).map(|_| ())
}

fn open_dir(dir: BorrowedFd<'_>, name: impl rustix::path::Arg) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(dir, name, flags, Mode::empty())?)
}

/// A path for the calls that take no descriptor; the last component is never followed by those used here.
fn below(dir: BorrowedFd<'_>, name: &CStr) -> PathBuf {
    Path::new(&format!("/proc/self/fd/{}", dir.as_raw_fd())).join(OsStr::from_bytes(name.to_bytes()))
}

/// Owner, mode and times, in the order in which one does not undo another.
fn basic(dir: BorrowedFd<'_>, name: impl rustix::path::Arg + Copy, stat: &Stat) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    rustix::fs::chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        rustix::fs::chmodat(dir, name, Mode::from_raw_mode(stat.st_mode & 0o7777), AtFlags::empty())?;
    }
    let time =
        |seconds: i64, nanoseconds: u64| Timespec { tv_sec: seconds, tv_nsec: nanoseconds.try_into().unwrap_or(0) };
    let times = Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    };
    Ok(rustix::fs::utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

fn extended(from: &Path, to: &Path) -> io::Result<()> {
    let mut names = vec![0u8; 1024];
    let length = match rustix::fs::llistxattr(from, &mut names[..]) {
        Err(rustix::io::Errno::OPNOTSUPP) => return Ok(()),
        Err(rustix::io::Errno::RANGE) => {
            names.resize(MAX_XATTR, 0);
            rustix::fs::llistxattr(from, &mut names[..])?
        }
        result => result?,
    };
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty() && is_content(name)) {
        let mut value = vec![0u8; MAX_XATTR];
        let length = rustix::fs::lgetxattr(from, name, &mut value[..])?;
        rustix::fs::lsetxattr(to, name, &value[..length], XattrFlags::empty())?;
    }
    Ok(())
}

fn is_content(name: &[u8]) -> bool {
    ![&b"trusted.overlay."[..], b"user.overlay.", b"security.selinux"].iter().any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, lchown};

    #[test]
    fn a_copy_has_holes_links_owners_modes_times_and_attributes() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir_all(from.join("sub")).unwrap();
        fs::create_dir(&to).unwrap();
        let sparse = File::create(from.join("sub/sparse")).unwrap();
        sparse.set_len(64 << 20).unwrap();
        sparse.write_all_at(b"middle", 32 << 20).unwrap();
        fs::hard_link(from.join("sub/sparse"), from.join("linked")).unwrap();
        lchown(from.join("linked"), Some(3), Some(4)).unwrap();
        fs::set_permissions(from.join("linked"), fs::Permissions::from_mode(0o6755)).unwrap();
        for path in [from.join("sub"), from.join("linked"), from.clone()] {
            rustix::fs::setxattr(path, "user.test", b"value", XattrFlags::empty()).unwrap();
        }
        fs::set_permissions(&from, fs::Permissions::from_mode(0o1700)).unwrap();
        tree(&from, &to).unwrap();
        let (old, new) = (fs::metadata(from.join("linked")).unwrap(), fs::metadata(to.join("sub/sparse")).unwrap());
        assert_eq!(new.ino(), fs::metadata(to.join("linked")).unwrap().ino());
        assert_eq!((new.uid(), new.gid(), new.mode(), new.len()), (3, 4, 0o106755, 64 << 20));
        assert_eq!((new.mtime(), new.mtime_nsec()), (old.mtime(), old.mtime_nsec()));
        assert!(new.blocks() * 512 < 1 << 20, "the holes were filled");
        assert_eq!(fs::metadata(&to).unwrap().mode() & 0o7777, 0o1700);
        for path in [to.join("sub"), to.join("linked"), to.clone()] {
            let mut value = [0; 16];
            assert_eq!(rustix::fs::getxattr(path, "user.test", &mut value[..]).unwrap(), 5);
        }
        assert_eq!(fs::read(from.join("linked")).unwrap(), fs::read(to.join("linked")).unwrap());
    }
}
