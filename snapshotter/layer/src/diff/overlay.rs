//! Reading the upper directory of an overlay (Linux, Documentation/filesystems/overlayfs.rst).

use std::path::{Path, PathBuf};

use rustix::fd::OwnedFd;
use rustix::fs::{FileType, lgetxattr};
use rustix::io::Errno;

use super::changes::Changes;
use super::walk::open;
use super::{DiffError, DiffOptions, shown};
use crate::apply::{Lowers, is_opaque, through_descriptor};
use crate::dirs::{self, Root, joined};

/// What the upper directory `upperdir` changes.
pub(super) fn upper(upperdir: &Path, lowers: &[PathBuf], options: &DiffOptions) -> Result<Changes, DiffError> {
    let failed = |source| DiffError::Io { path: upperdir.to_owned(), call: "open", source };
    let root = Root::open(upperdir).and_then(|root| Ok(root.directory(b"")?)).map_err(failed)?;
    let lowers = if lowers.is_empty() { None } else { Some(Lowers::open(lowers).map_err(failed)?) };
    let mut upper = Upper { lowers, options, changes: Changes::default() };
    upper.directory(&root, b"", None)?;
    Ok(upper.changes)
}

struct Upper<'a> {
    lowers: Option<Lowers>,
    options: &'a DiffOptions,
    changes: Changes,
}

impl Upper<'_> {
    fn directory(&mut self, dir: &OwnedFd, path: &[u8], parent: Option<usize>) -> Result<(), DiffError> {
        if self.options.control.is_cancelled() {
            return Err(DiffError::Cancelled);
        }
        for name in dirs::names(dir).map_err(|error| DiffError::io(path, "getdents64", error))? {
            self.name(dir, &name, joined(path, &name), parent)?;
        }
        Ok(())
    }

    fn name(&mut self, dir: &OwnedFd, name: &[u8], path: Box<[u8]>, parent: Option<usize>) -> Result<(), DiffError> {
        let stat = dirs::state(dir, name).map_err(|error| DiffError::io(&path, "fstatat", error))?;
        let Some(stat) = stat else { return Ok(()) };
        match dirs::file_type(&stat) {
            _ if dirs::is_whiteout(&stat) => self.changes.removed(parent, path),
            FileType::Socket => {}
            FileType::Directory => {
                refuse(dir, name, &path, "trusted.overlay.redirect")?;
                let inner = open(dir, name, &path)?;
                let index = self.changes.present(parent, path.clone(), stat, true)?;
                if self.hides(&inner, &path)? {
                    self.changes.opaque(index);
                }
                self.directory(&inner, &path, Some(index))?;
            }
            kind => {
                if kind == FileType::RegularFile {
                    refuse(dir, name, &path, "trusted.overlay.metacopy")?;
                }
                self.changes.present(parent, path, stat, true)?;
            }
        }
        Ok(())
    }

    /// Whether the directory at `path` hides one of a lower layer. The kernel marks most new directories as opaque.
    fn hides(&self, directory: &OwnedFd, path: &[u8]) -> Result<bool, DiffError> {
        if !is_opaque(directory).map_err(|error| DiffError::io(path, "fgetxattr", error))? {
            return Ok(false);
        }
        let Some(lowers) = &self.lowers else { return Ok(true) };
        let found = lowers.find(path).map_err(|reason| DiffError::io(path, "lower layer", reason.into_io()))?;
        Ok(found.is_some_and(|file| file.file_type() == FileType::Directory))
    }
}

/// Refuses files whose meaning lies in an attribute that only a mounted overlay resolves.
fn refuse(dir: &OwnedFd, name: &[u8], path: &[u8], attribute: &'static str) -> Result<(), DiffError> {
    match lgetxattr(through_descriptor(dir, name).as_slice(), attribute, &mut [0_u8; 0][..]) {
        Ok(_) | Err(Errno::RANGE) => Err(DiffError::OverlayFeature { path: shown(path), attribute }),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
        Err(error) => Err(DiffError::io(path, "lgetxattr", error)),
    }
}
