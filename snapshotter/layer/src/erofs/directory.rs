//! A directory as it is, whiteouts and all, as an image: what an overlay's upper directory becomes when it is committed.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fd::OwnedFd;
use rustix::fs::{FileType, OFlags, SeekFrom as Part, Stat, readlinkat};
use rustix::io::Errno;

use super::format::{Attributes, device};
use super::image::{Image, InodeId};
use super::names::{DirId, Item, Names, ROOT};
use crate::apply::{ApplyError, Control, Reason, all_xattrs_at, call, through_descriptor};
use crate::dirs::{self, Root, joined};

/// Writes all below `directory`, and its own attributes, as an image into the empty file `image`, open for reading and
/// writing. Marks of an overlay that mean something only where they were made (`trusted.overlay.*`, but for opaque
/// directories) are left out. Nothing is synced.
///
/// # Errors
/// What the file systems say, naming the file; [`Reason::Cancelled`].
pub fn image_of_directory(directory: &Path, image: &File, control: &Control) -> Result<(), ApplyError> {
    let outside = |reason| ApplyError::at(b"", reason);
    let io = |source| outside(Reason::Io { call: "open", source });
    let root = Root::open(directory).map_err(io)?.directory(b"").map_err(|error| io(error.into()))?;
    let attributes = root_attributes(directory, &root).map_err(outside)?;
    let mut copy = Copy { image: Image::new(image), names: Names::new(attributes), linked: HashMap::new(), control };
    copy.directory(&root, ROOT, b"")?;
    let Copy { mut image, names, .. } = copy;
    names.write(&mut image).and_then(|()| image.finish()).map_err(outside)
}

fn root_attributes(path: &Path, root: &OwnedFd) -> Result<Attributes, Reason> {
    let stat = call("fstat", rustix::fs::fstat(root))?;
    let path = path.as_os_str().as_bytes();
    Ok(attributes(&stat, call("getxattr", all_xattrs_at(path))?))
}

struct Copy<'a> {
    image: Image<'a>,
    names: Names,
    /// Files with several names.
    linked: HashMap<(u64, u64), InodeId>,
    control: &'a Control,
}

impl Copy<'_> {
    /// Copies what is in the open directory at `path`. Depth is bounded by what paths can be made.
    fn directory(&mut self, from: &OwnedFd, to: DirId, path: &[u8]) -> Result<(), ApplyError> {
        let at = |path: &[u8]| ApplyError::at(path, Reason::Cancelled);
        let names = call("getdents", dirs::names(from)).map_err(|reason| ApplyError::at(path, reason))?;
        for name in names {
            if self.control.is_cancelled() {
                return Err(at(path));
            }
            let place = joined(path, &name);
            let below = self.item(from, &name, to).map_err(|reason| ApplyError::at(&place, reason))?;
            if let Some((directory, id)) = below {
                self.directory(&directory, id, &place)?;
            }
        }
        Ok(())
    }

    /// Copies one file; gives a directory to go on in.
    fn item(&mut self, from: &OwnedFd, name: &[u8], to: DirId) -> Result<Option<(OwnedFd, DirId)>, Reason> {
        let Some(stat) = call("fstatat", dirs::state(from, name))? else { return Ok(None) };
        let xattrs = call("getxattr", all_xattrs_at(&through_descriptor(from, name)))?;
        let attributes = attributes(&stat, xattrs);
        let kind = dirs::file_type(&stat);
        if kind == FileType::Directory {
            let directory = call("openat2", dirs::child(from, name, OFlags::RDONLY | OFlags::DIRECTORY))?;
            return Ok(Some((directory, self.names.make(to, name, attributes, true))));
        }
        let identity = (stat.st_dev, stat.st_ino);
        let inode = match self.linked.get(&identity).filter(|_| stat.st_nlink > 1) {
            Some(inode) => {
                self.image.change(*inode).links += 1;
                *inode
            }
            None => self.copy(from, name, &stat, &attributes)?,
        };
        self.linked.insert(identity, inode);
        self.names.put(to, name, Item::File(inode));
        Ok(None)
    }

    fn copy(&mut self, from: &OwnedFd, name: &[u8], stat: &Stat, attributes: &Attributes) -> Result<InodeId, Reason> {
        match dirs::file_type(stat) {
            FileType::RegularFile => {
                let file = call("openat2", dirs::child(from, name, OFlags::RDONLY))?;
                self.content(File::from(file), stat.st_size as u64, attributes)
            }
            FileType::Symlink => {
                let target = call("readlinkat", readlinkat(from, name, Vec::new()))?;
                self.image.symlink(attributes, target.as_bytes())
            }
            _ => {
                let number = device(rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
                self.image.special(attributes, number)
            }
        }
    }

    fn content(&mut self, mut file: File, size: u64, attributes: &Attributes) -> Result<InodeId, Reason> {
        let failed = |source| Reason::Io { call: "read", source };
        let mut body = self.image.begin(attributes, size)?;
        let mut buffer = vec![0; usize::try_from(size).unwrap_or(usize::MAX).min(256 << 10)];
        let mut at = 0;
        while at < size {
            at = match rustix::fs::seek(&file, Part::Data(at)) {
                Ok(start) => start,
                Err(Errno::NXIO) => break,
                Err(error) => return Err(failed(error.into())),
            };
            file.seek(SeekFrom::Start(at)).map_err(failed)?;
            let hole = call("lseek", rustix::fs::seek(&file, Part::Hole(at)))?.min(size);
            file.seek(SeekFrom::Start(at)).map_err(failed)?;
            while at < hole {
                let want = usize::try_from(hole - at).unwrap_or(usize::MAX).min(buffer.len());
                let length = file.read(&mut buffer[..want]).map_err(failed)?;
                if length == 0 {
                    return Err(failed(io::Error::from(io::ErrorKind::UnexpectedEof)));
                }
                self.image.put(&mut body, at, &buffer[..length])?;
                at += length as u64;
            }
        }
        self.image.end(body)
    }
}

fn attributes(stat: &Stat, mut xattrs: Vec<(Vec<u8>, Vec<u8>)>) -> Attributes {
    let opaque = |name: &[u8]| name == b"trusted.overlay.opaque";
    xattrs.retain(|(name, _)| opaque(name) || !name.starts_with(b"trusted.overlay."));
    let mtime = (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0));
    Attributes { mode: stat.st_mode, uid: stat.st_uid, gid: stat.st_gid, mtime, xattrs }
}
