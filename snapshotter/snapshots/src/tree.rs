//! Walks a directory tree of any depth with two descriptors open, following no link: to count it, and to delete it.

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, openat, statat, unlinkat};

use crate::contract::Usage;

/// What a walk calls. Names are relative to the open directory `dir`.
pub(crate) trait Visitor {
    /// An entry. For a directory, its content follows, then [`Visitor::leave`].
    fn enter(&mut self, dir: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> io::Result<()>;

    /// All of the directory `name` has been visited.
    fn leave(&mut self, _dir: BorrowedFd<'_>, _name: &CStr) -> io::Result<()> {
        Ok(())
    }
}

struct Level {
    name: CString,
    /// Of the directory above, to know it again.
    above: (u64, u64),
    rest: Vec<CString>,
}

/// Visits everything below `root`, but not `root` itself. Entries that vanish meanwhile are left out.
pub(crate) fn walk(root: &Path, visitor: &mut impl Visitor) -> io::Result<()> {
    let mut dir = open_dir(rustix::fs::CWD, root)?;
    let mut levels: Vec<Level> = Vec::new();
    let mut rest = names(&dir)?;
    loop {
        if let Some(name) = rest.pop() {
            let Some(stat) = present(statat(&dir, &name, AtFlags::SYMLINK_NOFOLLOW))? else { continue };
            visitor.enter(dir.as_fd(), &name, &stat)?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                continue;
            }
            let Some(below) = present(open_dir(dir.as_fd(), name.as_c_str()))? else { continue };
            let below_rest = names(&below)?;
            levels.push(Level { name, above: identity(&dir)?, rest: std::mem::replace(&mut rest, below_rest) });
            dir = below;
        } else {
            let Some(level) = levels.pop() else { return Ok(()) };
            dir = above(&dir, level.above)?;
            visitor.leave(dir.as_fd(), &level.name)?;
            rest = level.rest;
        }
    }
}

fn open_dir(dir: BorrowedFd<'_>, name: impl rustix::path::Arg) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(dir, name, flags, Mode::empty())
}

/// The parent directory; an error if the tree was moved about meanwhile.
fn above(dir: &OwnedFd, expected: (u64, u64)) -> io::Result<OwnedFd> {
    let above = open_dir(dir.as_fd(), c"..")?;
    match identity(&above)? == expected {
        true => Ok(above),
        false => Err(io::Error::other("a directory was moved while its tree was walked")),
    }
}

fn identity(dir: &OwnedFd) -> io::Result<(u64, u64)> {
    let stat = rustix::fs::fstat(dir)?;
    Ok((stat.st_dev, stat.st_ino))
}

fn names(dir: &OwnedFd) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    Ok(names)
}

fn present<T>(result: rustix::io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(rustix::io::Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Blocks and inodes of `root` and all below; what has several names is counted once.
pub(crate) fn usage(root: &Path) -> io::Result<Usage> {
    let mut counter = Counter::default();
    counter.count(&rustix::fs::lstat(root)?);
    walk(root, &mut counter)?;
    Ok(counter.usage)
}

/// What one file takes up.
pub(crate) fn usage_of_file(path: &Path) -> io::Result<Usage> {
    let mut counter = Counter::default();
    counter.count(&rustix::fs::stat(path)?);
    Ok(counter.usage)
}

/// Sums up files; what has several names is counted once.
#[derive(Default)]
pub(crate) struct Counter {
    usage: Usage,
    linked: HashSet<(u64, u64)>,
}

impl Counter {
    pub(crate) fn usage(&self) -> Usage {
        self.usage
    }

    pub(crate) fn count(&mut self, stat: &Stat) {
        let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if is_dir || stat.st_nlink < 2 || self.linked.insert((stat.st_dev, stat.st_ino)) {
            // st_blocks counts 512 bytes whatever the file system's block is (stat(3type)).
            self.usage += Usage { inodes: 1, size: 512 * u64::try_from(stat.st_blocks).unwrap_or(0) };
        }
    }
}

impl Visitor for Counter {
    fn enter(&mut self, _dir: BorrowedFd<'_>, _name: &CStr, stat: &Stat) -> io::Result<()> {
        self.count(stat);
        Ok(())
    }
}

/// Deletes `root` and all below, whatever it is; nothing there is no error. `go_on` is asked at each entry.
pub(crate) fn delete(root: &Path, go_on: &dyn Fn() -> bool) -> io::Result<()> {
    match present(rustix::fs::lstat(root))? {
        None => Ok(()),
        Some(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::Directory => std::fs::remove_file(root),
        Some(_) => walk(root, &mut Deleter { go_on }).and_then(|()| std::fs::remove_dir(root)),
    }
}

/// Takes the flag away that keeps a file from being removed (chattr(1), `i`).
fn make_mutable(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = openat(dir, name, flags, Mode::empty())?;
    let kept = rustix::fs::ioctl_getflags(&file)? - rustix::fs::IFlags::IMMUTABLE;
    Ok(rustix::fs::ioctl_setflags(&file, kept)?)
}

struct Deleter<'a> {
    go_on: &'a dyn Fn() -> bool,
}

impl Visitor for Deleter<'_> {
    fn enter(&mut self, dir: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> io::Result<()> {
        if !(self.go_on)() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Ok(()),
            _ => match present(unlinkat(dir, name, AtFlags::empty())) {
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::PERM.raw_os_error()) => {
                    make_mutable(dir, name)?;
                    present(unlinkat(dir, name, AtFlags::empty())).map(|_| ())
                }
                gone => gone.map(|_| ()),
            },
        }
    }

    fn leave(&mut self, dir: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
        present(unlinkat(dir, name, AtFlags::REMOVEDIR)).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn deep(root: &Path, levels: usize) {
        let mut dir = open_dir(rustix::fs::CWD, root).unwrap();
        for _ in 0..levels {
            rustix::fs::mkdirat(&dir, "a-directory-name", Mode::from_raw_mode(0o700)).unwrap();
            dir = open_dir(dir.as_fd(), c"a-directory-name").unwrap();
        }
    }

    #[test]
    fn a_tree_deeper_than_any_path_is_counted_and_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir(&root).unwrap();
        deep(&root, 3000);
        assert_eq!(usage(&root).unwrap().inodes, 3001);
        delete(&root, &|| true).unwrap();
        assert!(!root.exists());
    }

    #[test]
    fn hard_links_are_counted_once_and_holes_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let empty = usage(dir.path()).unwrap();
        fs::write(dir.path().join("one"), vec![1; 8192]).unwrap();
        fs::hard_link(dir.path().join("one"), dir.path().join("two")).unwrap();
        fs::File::create(dir.path().join("hole")).unwrap().set_len(1 << 30).unwrap();
        let full = usage(dir.path()).unwrap();
        assert_eq!(full.inodes, empty.inodes + 2);
        assert!((8192..16384).contains(&(full.size - empty.size)), "{full:?}");
    }

    #[test]
    fn deleting_follows_no_link_and_stops_when_told() {
        let dir = tempfile::tempdir().unwrap();
        let (root, other) = (dir.path().join("root"), dir.path().join("other"));
        fs::create_dir_all(root.join("sub")).unwrap();
        fs::create_dir(&other).unwrap();
        fs::write(other.join("kept"), "").unwrap();
        std::os::unix::fs::symlink(&other, root.join("sub/link")).unwrap();
        assert_eq!(delete(&root, &|| false).unwrap_err().kind(), io::ErrorKind::Interrupted);
        delete(&root, &|| true).unwrap();
        delete(&root, &|| true).unwrap();
        assert!(!root.exists() && other.join("kept").exists());
    }
}
