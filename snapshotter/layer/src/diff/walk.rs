//! Comparing two directories, name by name.

use std::cmp::Ordering;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use rustix::fd::OwnedFd;
use rustix::fs::{FileType, OFlags, Stat, readlinkat};

use super::changes::Changes;
use super::{DiffError, DiffOptions, Times};
use crate::apply::{through_descriptor, xattrs_at};
use crate::dirs::{self, Root, joined};

/// What turns `lower` into `upper`.
pub(super) fn between(lower: Option<&Path>, upper: &Path, options: &DiffOptions) -> Result<Changes, DiffError> {
    let open = |path: &Path| {
        let opened = Root::open(path).and_then(|root| Ok(root.directory(b"")?));
        opened.map_err(|source| DiffError::Io { path: path.to_owned(), call: "open", source })
    };
    let lower = lower.map(open).transpose()?;
    let mut walk = Walk { options, changes: Changes::default() };
    walk.directory(lower.as_ref(), &open(upper)?, b"", None)?;
    Ok(walk.changes)
}

struct Walk<'a> {
    options: &'a DiffOptions,
    changes: Changes,
}

/// A name that both directories have.
struct Pair<'a> {
    lower: (&'a OwnedFd, Stat),
    upper: (&'a OwnedFd, Stat),
    name: &'a [u8],
    path: &'a [u8],
}

impl Walk<'_> {
    fn directory(
        &mut self,
        lower: Option<&OwnedFd>,
        upper: &OwnedFd,
        path: &[u8],
        parent: Option<usize>,
    ) -> Result<(), DiffError> {
        if self.options.control.is_cancelled() {
            return Err(DiffError::Cancelled);
        }
        let names = |dir: &OwnedFd| dirs::names(dir).map_err(|error| DiffError::io(path, "getdents64", error));
        let old = lower.map(names).transpose()?.unwrap_or_default();
        let new = names(upper)?;
        let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
        loop {
            let order = match (old.peek(), new.peek()) {
                (None, None) => return Ok(()),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(old), Some(new)) => old.cmp(new),
            };
            let gone = if order == Ordering::Greater { None } else { old.next() };
            match if order == Ordering::Less { None } else { new.next() } {
                Some(name) => self.name(lower.filter(|_| gone.is_some()), upper, name, path, parent)?,
                None => self.changes.removed(parent, joined(path, gone.map_or(&[], |name| name))),
            }
        }
    }

    /// A name in `upper`, and in `lower` if that is given.
    fn name(
        &mut self,
        lower: Option<&OwnedFd>,
        upper: &OwnedFd,
        name: &[u8],
        dir: &[u8],
        parent: Option<usize>,
    ) -> Result<(), DiffError> {
        let path = joined(dir, name);
        let failed = |error| DiffError::io(&path, "fstatat", error);
        let before = lower.map(|lower| dirs::state(lower, name)).transpose().map_err(failed)?.flatten();
        // A name that is gone again was never there.
        let Some(stat) = dirs::state(upper, name).map_err(failed)? else { return Ok(()) };
        let kind = dirs::file_type(&stat);
        if kind == FileType::Socket {
            if before.is_some() {
                self.changes.removed(parent, path);
            }
            return Ok(());
        }
        let lower = lower.zip(before);
        let differs = match lower {
            None => true,
            Some(lower) => self.differs(&Pair { lower, upper: (upper, stat), name, path: &path })?,
        };
        if kind == FileType::Directory {
            let index = self.changes.present(parent, path.clone(), stat, differs)?;
            let lower = lower.filter(|(_, stat)| dirs::file_type(stat) == FileType::Directory);
            let lower = lower.map(|(dir, _)| open(dir, name, &path)).transpose()?;
            return self.directory(lower.as_ref(), &open(upper, name, &path)?, &path, Some(index));
        }
        if differs || stat.st_nlink > 1 {
            self.changes.present(parent, path, stat, differs)?;
        }
        Ok(())
    }

    fn differs(&self, pair: &Pair<'_>) -> Result<bool, DiffError> {
        let (old, new) = (&pair.lower.1, &pair.upper.1);
        if (old.st_dev, old.st_ino) == (new.st_dev, new.st_ino) {
            return Ok(false);
        }
        if (old.st_mode, old.st_uid, old.st_gid) != (new.st_mode, new.st_uid, new.st_gid)
            || old.st_mtime != new.st_mtime
        {
            return Ok(true);
        }
        let (old_ns, new_ns) = (old.st_mtime_nsec, new.st_mtime_nsec);
        let differs = match dirs::file_type(new) {
            // Unpacking may have cut off the nanoseconds.
            FileType::RegularFile if old.st_size == new.st_size && (old_ns == 0 || new_ns == 0) => {
                !pair.same_content()?
            }
            FileType::RegularFile => old.st_size != new.st_size || old_ns != new_ns,
            _ if self.options.times == Times::Nanoseconds && old_ns != new_ns => true,
            FileType::Directory => false,
            FileType::Symlink => !pair.same_target()?,
            _ => old.st_rdev != new.st_rdev,
        };
        Ok(differs || !pair.same_xattrs()?)
    }
}

impl Pair<'_> {
    fn same_target(&self) -> Result<bool, DiffError> {
        let target = |dir: &OwnedFd| {
            readlinkat(dir, self.name, Vec::new()).map_err(|error| DiffError::io(self.path, "readlinkat", error))
        };
        Ok(target(self.lower.0)? == target(self.upper.0)?)
    }

    fn same_xattrs(&self) -> Result<bool, DiffError> {
        let xattrs = |dir: &OwnedFd| {
            let path = through_descriptor(dir, self.name);
            xattrs_at(&path).map_err(|error| DiffError::io(self.path, "getxattr", error))
        };
        Ok(xattrs(self.lower.0)? == xattrs(self.upper.0)?)
    }

    fn same_content(&self) -> Result<bool, DiffError> {
        let open = |dir| {
            let flags = OFlags::RDONLY | OFlags::NONBLOCK;
            let file = dirs::child(dir, self.name, flags).map_err(|error| DiffError::io(self.path, "open", error))?;
            Ok(File::from(file))
        };
        let failed = |error| DiffError::io(self.path, "read", error);
        same_bytes(open(self.lower.0)?, open(self.upper.0)?).map_err(failed)
    }
}

fn same_bytes(left: File, right: File) -> std::io::Result<bool> {
    const PIECE: u64 = 128 << 10;
    let (mut one, mut other) = (Vec::new(), Vec::new());
    loop {
        one.clear();
        other.clear();
        (&left).take(PIECE).read_to_end(&mut one)?;
        (&right).take(PIECE).read_to_end(&mut other)?;
        if one != other {
            return Ok(false);
        }
        if one.is_empty() {
            return Ok(true);
        }
    }
}

/// The directory `name`, opened for reading.
pub(super) fn open(dir: &OwnedFd, name: &[u8], path: &[u8]) -> Result<OwnedFd, DiffError> {
    dirs::child(dir, name, OFlags::RDONLY | OFlags::DIRECTORY).map_err(|error| DiffError::io(path, "open", error))
}
