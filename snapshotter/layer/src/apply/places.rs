//! Where entries go: directories below the root, found or made, and kept open for the next entry.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, Mode, OFlags, XattrFlags, fsetxattr, fstat, mkdirat, readlinkat, unlinkat};
use rustix::io::Errno;

use super::error::{Reason, call, shown};
use super::lower::Lowers;
use super::path::components;
use super::{Options, Whiteouts};
use crate::dirs::{self, Root, joined};
use crate::sums::{Note, Sums};

/// An open directory.
pub(super) struct Place {
    fd: OwnedFd,
    /// Its path from the root, without symlinks.
    pub(super) path: Box<[u8]>,
    /// Whether files made here get the directory's group (its set-group-ID bit).
    pub(super) passes_group: bool,
}

impl Place {
    fn new(fd: OwnedFd, path: &[u8]) -> Result<Place, Reason> {
        let stat = call("fstat", fstat(&fd))?;
        Ok(Place { fd, path: path.into(), passes_group: stat.st_mode & 0o2000 != 0 })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The directories below the root.
pub(super) struct Places {
    pub(super) root: Root,
    pub(super) lowers: Lowers,
    whiteouts: Whiteouts,
    open: HashMap<Box<[u8]>, Rc<Place>>,
    /// Directories that hide what lower layers have there.
    opaque: HashSet<Box<[u8]>>,
    /// Directories that no entry has described.
    undescribed: HashSet<Box<[u8]>>,
    /// The list of files, where one is wanted.
    sums: Option<Sums>,
}

/// How many directories stay open.
const OPEN: usize = 64;
/// How many symlinks a path may lead through, as in the kernel (path_resolution(7)).
const SYMLINKS: usize = 40;

impl Places {
    pub(super) fn new(root: &Path, options: &Options) -> Result<Places, Reason> {
        let io = |source| Reason::Io { call: "open", source };
        Ok(Places {
            root: Root::open(root).map_err(io)?,
            lowers: Lowers::open(&options.parents).map_err(io)?,
            whiteouts: options.whiteouts,
            open: HashMap::new(),
            opaque: HashSet::new(),
            undescribed: HashSet::new(),
            sums: options
                .sums
                .as_deref()
                .filter(|_| !options.unprivileged)
                .map(Sums::create)
                .transpose()
                .map_err(listing)?,
        })
    }

    pub(super) fn has_sums(&self) -> bool {
        self.sums.is_some()
    }

    /// Puts something into the list of files.
    pub(super) fn note(&mut self, path: &[u8], note: &Note) -> Result<(), Reason> {
        self.sums.as_mut().map_or(Ok(()), |sums| sums.note(path, note)).map_err(listing)
    }

    /// Ends the list of files.
    pub(super) fn finish(self) -> Result<(), Reason> {
        self.sums.map_or(Ok(()), Sums::finish).map_err(listing)
    }

    /// The directory at the clean `path`; made, with those above it, where it is missing and `make` is said.
    pub(super) fn place(&mut self, path: &[u8], make: bool) -> Result<Rc<Place>, Reason> {
        if let Some(place) = self.open.get(path) {
            return Ok(Rc::clone(place));
        }
        let place = match self.root.handle(path) {
            Ok(fd) => Place::new(fd, path)?,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => self.walk(path, make)?,
            Err(error) => return call("openat2", Err(error)),
        };
        if self.open.len() >= OPEN {
            self.open.clear();
        }
        let place = Rc::new(place);
        self.open.insert(path.into(), Rc::clone(&place));
        Ok(place)
    }

    /// Forgets open directories: a name on the way to one may mean something else now.
    pub(super) fn forget(&mut self) {
        self.open.clear();
    }

    /// Goes to `path` step by step: through symlinks, and making what is missing.
    fn walk(&mut self, path: &[u8], make: bool) -> Result<Place, Reason> {
        let mut steps: VecDeque<Box<[u8]>> = components(path).map(Box::from).collect();
        let mut here: Box<[u8]> = Box::default();
        let mut fd = call("openat2", self.root.handle(&here))?;
        let mut symlinks = 0;
        while let Some(step) = steps.pop_front() {
            if &*step == b".." {
                here = above(&here).ok_or_else(|| Reason::Escapes { path: shown(path) })?;
                fd = call("openat2", self.root.handle(&here))?;
                continue;
            }
            match dirs::child(&fd, &step, OFlags::PATH | OFlags::DIRECTORY) {
                Ok(next) => (fd, here) = (next, joined(&here, &step)),
                Err(Errno::NOENT) if make => (fd, here) = self.make(&fd, &here, &step)?,
                Err(Errno::NOTDIR | Errno::LOOP) => match readlinkat(&fd, &*step, Vec::new()) {
                    Ok(target) => {
                        symlinks += 1;
                        if symlinks > SYMLINKS {
                            return Err(Reason::Name("too many symlinks on the way"));
                        }
                        if target.as_bytes().starts_with(b"/") {
                            here = Box::default();
                            fd = call("openat2", self.root.handle(&here))?;
                        }
                        prepend(&mut steps, target.as_bytes());
                    }
                    Err(_) => (fd, here) = self.make_over_whiteout(&fd, &here, &step)?,
                },
                Err(error) => return call("openat2", Err(error)),
            }
        }
        Place::new(fd, &here)
    }

    /// Makes the directory `name`, which the archive does not describe: like that of a lower layer, or 0755.
    fn make(&mut self, dir: &OwnedFd, path: &[u8], name: &[u8]) -> Result<(OwnedFd, Box<[u8]>), Reason> {
        call("mkdirat", mkdirat(dir, name, Mode::from_raw_mode(0o755)))?;
        let path = joined(path, name);
        let made = call("openat2", dirs::child(dir, name, OFlags::RDONLY | OFlags::DIRECTORY))?;
        self.lowers.dress(&made, &path)?;
        self.undescribed.insert(path.clone());
        self.note(&path, &Note::Made)?;
        Ok((made, path))
    }

    fn make_over_whiteout(&mut self, dir: &OwnedFd, path: &[u8], name: &[u8]) -> Result<(OwnedFd, Box<[u8]>), Reason> {
        let stat = call("fstatat", dirs::state(dir, name))?;
        if self.whiteouts != Whiteouts::Overlay || !stat.is_some_and(|stat| dirs::is_whiteout(&stat)) {
            return Err(Reason::NotADirectory { path: shown(&joined(path, name)) });
        }
        call("unlinkat", unlinkat(dir, name, AtFlags::empty()))?;
        self.note(&joined(path, name), &Note::Gone)?;
        let (made, path) = self.make(dir, path, name)?;
        self.set_opaque(&path)?;
        Ok((made, path))
    }

    /// An entry describes the directory at `path`.
    pub(super) fn describe(&mut self, path: &[u8]) {
        self.undescribed.remove(path);
    }

    /// The directories that no entry has described and that still are there, those above first.
    pub(super) fn undescribed(&self) -> Vec<PathBuf> {
        let there = self.undescribed.iter().filter(|path| self.root.handle(path).is_ok());
        let mut all: Vec<PathBuf> = there.map(|path| OsStr::from_bytes(path).into()).collect();
        all.sort_unstable();
        all
    }

    /// Makes the overlay's upper directory at `path` hide what lower layers have there.
    pub(super) fn set_opaque(&mut self, path: &[u8]) -> Result<(), Reason> {
        let directory = call("openat2", self.root.directory(path))?;
        call("fsetxattr", fsetxattr(&directory, "trusted.overlay.opaque", b"y", XattrFlags::empty()))?;
        self.opaque.insert(path.into());
        // The root's own attributes are its snapshotter's business.
        if path.is_empty() { Ok(()) } else { self.note(path, &Note::Opaque) }
    }

    /// Whether a directory above `path` hides what lower layers have there.
    pub(super) fn is_hidden(&self, path: &[u8]) -> bool {
        let mut path: Box<[u8]> = path.into();
        while let Some(dir) = above(&path) {
            if self.opaque.contains(&dir) {
                return true;
            }
            path = dir;
        }
        false
    }
}

fn listing(source: std::io::Error) -> Reason {
    Reason::Io { call: "write the list of files", source }
}

/// The path of the directory above `path`; none above the root.
fn above(path: &[u8]) -> Option<Box<[u8]>> {
    (!path.is_empty()).then(|| dirs::split(path).0.into())
}

fn prepend(steps: &mut VecDeque<Box<[u8]>>, target: &[u8]) {
    let components: Vec<&[u8]> = components(target).collect();
    for component in components.into_iter().rev() {
        steps.push_front(component.into());
    }
}
