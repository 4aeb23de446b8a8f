//! Comparing a directory with the list of files that unpacking left.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use rustix::fd::OwnedFd;
use rustix::fs::{FileType, OFlags, Stat, fgetxattr, readlinkat};
use rustix::io::Errno;

use super::{Expected, Meta, Node, read};
use crate::Control;
use crate::dirs::{self, Root, joined};

/// Differences that are told of one directory; there may be more.
const MOST: usize = 16;
/// How much is read at once.
const PIECE: usize = 1 << 20;

/// What a comparison found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Files, directories and links looked at.
    pub entries: u64,
    /// Bytes of content read.
    pub bytes: u64,
    /// What is not as it was unpacked: the first few.
    pub differences: Vec<Difference>,
}

/// A path at which something is not as it was unpacked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// From the directory on.
    pub path: Box<[u8]>,
    /// What is wrong there.
    pub what: &'static str,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.escape_ascii(), self.what)
    }
}

/// Why a directory cannot be compared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckError {
    /// There is no list.
    #[error("its list of files is missing")]
    NoList,
    /// The list is not what was written.
    #[error("its list of files is damaged")]
    BadList,
    /// The caller does not want to know any more.
    #[error("stopped")]
    Cancelled,
    /// A file could not be read.
    #[error("{path}: {source}", path = .path.escape_ascii())]
    Io {
        /// Which.
        path: Box<[u8]>,
        /// Why.
        source: io::Error,
    },
}

/// Compares the directory `root` with the list at `sums`, which unpacking there wrote
/// ([`Options::sums`](crate::Options::sums)): types, sizes, contents (by CRC-32), owners, modes, times in seconds, links,
/// devices, and whether directories hide what is below. Other extended attributes are not looked at. With `whole`, what
/// the list does not name is a difference too. A file that cannot be read for the disk's sake is a difference.
///
/// # Errors
/// [`CheckError`].
pub fn check(root: &Path, sums: &Path, whole: bool, control: &Control) -> Result<Checked, CheckError> {
    let at = |path: &[u8]| {
        let path = path.into();
        move |source| CheckError::Io { path, source }
    };
    let expected = match read(sums) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(CheckError::NoList),
        read => read.map_err(at(b"list of files"))?.ok_or(CheckError::BadList)?,
    };
    let root = match Root::open(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(missing_root()),
        root => root.map_err(at(b"."))?,
    };
    let mut compare = Compare { root, expected: &expected, control, found: Checked::default(), buffer: vec![0; PIECE] };
    compare.listed()?;
    if whole {
        compare.unlisted(b"")?;
    }
    Ok(compare.found)
}

fn missing_root() -> Checked {
    let differences = vec![Difference { path: Box::default(), what: "the directory is missing" }];
    Checked { differences, ..Checked::default() }
}

struct Compare<'a> {
    root: Root,
    expected: &'a Expected,
    control: &'a Control,
    found: Checked,
    buffer: Vec<u8>,
}

impl Compare<'_> {
    /// Looks at all that the list names.
    fn listed(&mut self) -> Result<(), CheckError> {
        let mut open: (Box<[u8]>, Option<OwnedFd>) = (Box::default(), None);
        let mut inodes: HashMap<&[u8], u64> = HashMap::new();
        for (path, node) in self.expected {
            self.go_on()?;
            let (dir, name) = dirs::split(path);
            if open.1.is_none() || *open.0 != *dir {
                open = (dir.into(), self.root.handle(dir).ok());
            }
            let state = open.1.as_ref().map_or(Ok(None), |dir| dirs::state(dir, name));
            match (&open.1, state) {
                (Some(dir), Ok(Some(stat))) => {
                    self.found.entries += 1;
                    inodes.insert(path, stat.st_ino);
                    self.one(dir, name, path, node, &stat);
                }
                // A removal of this layer may have taken one that nothing describes.
                (_, Ok(_)) if matches!(node, Node::Directory { meta: None, opaque: false }) => {}
                (_, Ok(_)) => self.differs(path, "is missing"),
                (_, Err(_)) => self.differs(path, "cannot be read"),
            }
        }
        self.links(&inodes);
        Ok(())
    }

    fn one(&mut self, dir: &OwnedFd, name: &[u8], path: &[u8], node: &Node, stat: &Stat) {
        let wrong = match (node, dirs::file_type(stat)) {
            (Node::File { meta, size, crc }, FileType::RegularFile) => {
                if u64::try_from(stat.st_size) != Ok(*size) {
                    Some("has another size")
                } else {
                    differs(meta, stat).or_else(|| self.content(dir, name, *crc))
                }
            }
            (Node::Directory { meta, opaque }, FileType::Directory) => {
                let other = meta.and_then(|meta| differs(&meta, stat));
                other
                    .or_else(|| (*opaque && !is_opaque(dir, name)).then_some("does not hide what is below it any more"))
            }
            (Node::Symlink { meta, target }, FileType::Symlink) => {
                let read = readlinkat(dir, name, Vec::new());
                let same = read.is_ok_and(|read| read.as_bytes() == &**target);
                let meta = Meta { mode: stat.st_mode & 0o7777, ..*meta };
                if same { differs(&meta, stat) } else { Some("leads elsewhere") }
            }
            (Node::Other { meta, kind, device }, found) if found.as_raw_mode() == *kind => {
                let other = meta.and_then(|meta| differs(&meta, stat));
                if stat.st_rdev == *device { other } else { Some("is another device") }
            }
            (Node::Link { .. }, _) => None,
            _ => Some("is of another type"),
        };
        if let Some(what) = wrong {
            self.differs(path, what);
        }
    }

    /// Reads a file; says what is wrong with it.
    fn content(&mut self, dir: &OwnedFd, name: &[u8], crc: Option<u32>) -> Option<&'static str> {
        let crc = crc?;
        let Ok(file) = dirs::child(dir, name, OFlags::RDONLY) else { return Some("cannot be opened") };
        let mut file = File::from(file);
        let mut hasher = crc32fast::Hasher::new();
        loop {
            match file.read(&mut self.buffer) {
                Ok(0) => break,
                Ok(length) => {
                    hasher.update(&self.buffer[..length]);
                    self.found.bytes += length as u64;
                    if self.control.is_cancelled() {
                        return None;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Some("cannot be read"),
            }
        }
        (hasher.finalize() != crc).then_some("has other content")
    }

    /// Names of the same file lead to the same file.
    fn links(&mut self, inodes: &HashMap<&[u8], u64>) {
        for (path, node) in self.expected {
            let Node::Link { target } = node else { continue };
            let (Some(own), other) = (inodes.get(&**path), inodes.get(&**target)) else { continue };
            // What the list does not have as a file was there before.
            if self.expected.contains_key(target) && Some(own) != other {
                self.differs(path, "is no link to the same file any more");
            }
        }
    }

    /// Looks for what the list does not name.
    fn unlisted(&mut self, path: &[u8]) -> Result<(), CheckError> {
        let mut open: Vec<Box<[u8]>> = vec![path.into()];
        while let Some(path) = open.pop() {
            self.go_on()?;
            let Ok(directory) = self.root.directory(&path) else {
                self.differs(&path, "cannot be listed");
                continue;
            };
            let Ok(names) = dirs::names(&directory) else {
                self.differs(&path, "cannot be listed");
                continue;
            };
            for name in names {
                let inner = joined(&path, &name);
                match self.expected.get(&inner) {
                    Some(Node::Directory { .. }) => open.push(inner),
                    Some(_) => {}
                    None => self.differs(&inner, "was not unpacked here"),
                }
            }
        }
        Ok(())
    }

    fn differs(&mut self, path: &[u8], what: &'static str) {
        if self.found.differences.len() < MOST {
            self.found.differences.push(Difference { path: path.into(), what });
        }
    }

    fn go_on(&self) -> Result<(), CheckError> {
        if self.control.is_cancelled() { Err(CheckError::Cancelled) } else { Ok(()) }
    }
}

fn differs(meta: &Meta, stat: &Stat) -> Option<&'static str> {
    let found = Meta::of(stat);
    match () {
        () if (found.uid, found.gid) != (meta.uid, meta.gid) => Some("has another owner"),
        () if found.mode != meta.mode => Some("has another mode"),
        // Some file systems end in 2038.
        () if found.mtime != meta.mtime && i32::try_from(meta.mtime).is_ok() => Some("has another time"),
        () => None,
    }
}

fn is_opaque(dir: &OwnedFd, name: &[u8]) -> bool {
    let mut value = [0; 8];
    let directory = dirs::child(dir, name, OFlags::RDONLY | OFlags::DIRECTORY);
    let length: Result<usize, Errno> =
        directory.and_then(|directory| fgetxattr(&directory, "trusted.overlay.opaque", &mut value[..]));
    length.is_ok_and(|length| value[..length] == *b"y")
}
