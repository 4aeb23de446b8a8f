//! The list of files that unpacking leaves beside a layer: what each was when it was made, with a CRC-32 of its content.
//! With it a directory can be compared with what was unpacked there, without the layer and at the speed of the disk.
//!
//! ```text
//! header │ record … record │ end: number of records, CRC-32 of all before
//! ```
//!
//! Records come in the order of the work: a later one of the same path counts, and anything but a directory drops what
//! was below its path. Numbers are little-endian. It finds what disks and power cuts do, not what an attacker does.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::Path;

use rustix::fs::Stat;

use crate::apply::remove_below;

mod compare;

pub use compare::{CheckError, Checked, Difference, check};

const HEADER: &[u8] = b"gantry sums 1\n";

/// Owner, mode and time of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Meta {
    /// Permission bits, with set-id and sticky ones.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Of the last modification, in seconds.
    pub(crate) mtime: i64,
}

impl Meta {
    pub(crate) fn of(stat: &Stat) -> Meta {
        Meta { mode: stat.st_mode & 0o7777, uid: stat.st_uid, gid: stat.st_gid, mtime: stat.st_mtime }
    }
}

/// What was done at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Note {
    /// A regular file; a sparse one has no sum.
    File {
        meta: Meta,
        size: u64,
        crc: Option<u32>,
    },
    /// A directory that an entry describes.
    Directory(Meta),
    /// A directory that only what is in it needs.
    Made,
    /// An overlay's directory that hides what is below it.
    Opaque,
    Symlink {
        meta: Meta,
        target: Box<[u8]>,
    },
    /// A device, fifo or an overlay's whiteout: type bits of the mode, and device number.
    Node {
        meta: Option<Meta>,
        kind: u32,
        device: u64,
    },
    /// One more name of what is at `target`, which has this metadata from now on.
    Link {
        meta: Meta,
        target: Box<[u8]>,
    },
    /// Nothing is there any more.
    Gone,
}

const END: u8 = 0;

impl Note {
    fn tag(&self) -> u8 {
        match self {
            Note::File { .. } => 1,
            Note::Directory(_) => 2,
            Note::Made => 3,
            Note::Opaque => 4,
            Note::Symlink { .. } => 5,
            Note::Node { .. } => 6,
            Note::Link { .. } => 7,
            Note::Gone => 8,
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Note::File { meta, size, crc } => {
                write_meta(meta, out);
                out.extend(size.to_le_bytes());
                out.push(u8::from(crc.is_some()));
                out.extend(crc.unwrap_or_default().to_le_bytes());
            }
            Note::Directory(meta) => write_meta(meta, out),
            Note::Symlink { meta, target } | Note::Link { meta, target } => {
                write_meta(meta, out);
                write_bytes(target, out);
            }
            Note::Node { meta, kind, device } => {
                out.push(u8::from(meta.is_some()));
                write_meta(&meta.unwrap_or_default(), out);
                out.extend(kind.to_le_bytes());
                out.extend(device.to_le_bytes());
            }
            Note::Made | Note::Opaque | Note::Gone => {}
        }
    }

    fn read(tag: u8, from: &mut Parse<'_>) -> Option<Note> {
        Some(match tag {
            1 => {
                let (meta, size) = (from.meta()?, u64::from_le_bytes(from.array()?));
                let (known, crc) = (from.array::<1>()? == [1], u32::from_le_bytes(from.array()?));
                Note::File { meta, size, crc: known.then_some(crc) }
            }
            2 => Note::Directory(from.meta()?),
            3 => Note::Made,
            4 => Note::Opaque,
            5 => Note::Symlink { meta: from.meta()?, target: from.bytes()?.into() },
            6 => {
                let (known, meta) = (from.array::<1>()? == [1], from.meta()?);
                let (kind, device) = (u32::from_le_bytes(from.array()?), u64::from_le_bytes(from.array()?));
                Note::Node { meta: known.then_some(meta), kind, device }
            }
            7 => Note::Link { meta: from.meta()?, target: from.bytes()?.into() },
            8 => Note::Gone,
            _ => return None,
        })
    }
}

fn write_meta(meta: &Meta, out: &mut Vec<u8>) {
    for word in [meta.mode, meta.uid, meta.gid] {
        out.extend(word.to_le_bytes());
    }
    out.extend(meta.mtime.to_le_bytes());
}

fn write_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    // Paths and link targets are far shorter (limits of the reader).
    out.extend(u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
    out.extend(bytes);
}

/// A list that is being written.
pub(crate) struct Sums {
    out: BufWriter<File>,
    crc: crc32fast::Hasher,
    count: u64,
    record: Vec<u8>,
}

impl Sums {
    /// Begins the list at `path`, over what is there.
    pub(crate) fn create(path: &Path) -> io::Result<Sums> {
        let mut sums = Sums {
            out: BufWriter::with_capacity(64 << 10, File::create(path)?),
            crc: crc32fast::Hasher::new(),
            count: 0,
            record: HEADER.to_vec(),
        };
        sums.put()?;
        Ok(sums)
    }

    pub(crate) fn note(&mut self, path: &[u8], note: &Note) -> io::Result<()> {
        self.record.push(note.tag());
        write_bytes(path, &mut self.record);
        note.write(&mut self.record);
        self.count += 1;
        self.put()
    }

    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.record.push(END);
        self.record.extend(self.count.to_le_bytes());
        self.put()?;
        let crc = self.crc.finalize();
        self.out.write_all(&crc.to_le_bytes())?;
        self.out.flush()
    }

    fn put(&mut self) -> io::Result<()> {
        self.crc.update(&self.record);
        self.out.write_all(&self.record)?;
        self.record.clear();
        Ok(())
    }
}

/// Writes the list of a directory in which the one file `name` counts, durably: an image that holds a layer. Reads the
/// file to its end.
///
/// # Errors
/// When the file or the list cannot be read or written.
pub fn list_file(directory: &Path, name: &str, list: &Path) -> io::Result<()> {
    let mut file = File::open(directory.join(name))?;
    let stat = rustix::fs::fstat(&file)?;
    let (mut hasher, mut buffer, mut size) = (crc32fast::Hasher::new(), vec![0; 1 << 20], 0);
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => {
                hasher.update(&buffer[..length]);
                size += length as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let mut sums = Sums::create(list)?;
    sums.note(name.as_bytes(), &Note::File { meta: Meta::of(&stat), size, crc: Some(hasher.finalize()) })?;
    sums.finish()?;
    File::open(list)?.sync_all()
}

/// What is to be at each path.
pub(crate) type Expected = BTreeMap<Box<[u8]>, Node>;

/// What is to be at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Node {
    File { meta: Meta, size: u64, crc: Option<u32> },
    Directory { meta: Option<Meta>, opaque: bool },
    Symlink { meta: Meta, target: Box<[u8]> },
    Other { meta: Option<Meta>, kind: u32, device: u64 },
    Link { target: Box<[u8]> },
}

/// Reads a list; none where it is damaged.
///
/// # Errors
/// When the file cannot be read.
pub(crate) fn read(path: &Path) -> io::Result<Option<Expected>> {
    let mut bytes = Vec::new();
    File::open(path)?.read_to_end(&mut bytes)?;
    Ok(parse(&bytes))
}

fn parse(bytes: &[u8]) -> Option<Expected> {
    let (body, crc) = bytes.split_at_checked(bytes.len().checked_sub(4)?)?;
    if crc32fast::hash(body).to_le_bytes() != *crc {
        return None;
    }
    let mut from = Parse(body.strip_prefix(HEADER)?);
    let (mut expected, mut count) = (Expected::new(), 0_u64);
    loop {
        let [tag] = from.array()?;
        if tag == END {
            let is_whole = u64::from_le_bytes(from.array()?) == count && from.0.is_empty();
            return is_whole.then_some(expected);
        }
        let path = from.bytes()?;
        replay(&mut expected, path, Note::read(tag, &mut from)?);
        count += 1;
    }
}

/// Does on the list what was done on the disk.
fn replay(expected: &mut Expected, path: &[u8], note: Note) {
    let node = match note {
        Note::Directory(meta) => {
            let opaque = matches!(expected.get(path), Some(Node::Directory { opaque: true, .. }));
            expected.insert(path.into(), Node::Directory { meta: Some(meta), opaque });
            return;
        }
        Note::Made => {
            expected.insert(path.into(), Node::Directory { meta: None, opaque: false });
            return;
        }
        Note::Opaque => {
            let meta = match expected.get(path) {
                Some(Node::Directory { meta, .. }) => *meta,
                _ => None,
            };
            expected.insert(path.into(), Node::Directory { meta, opaque: true });
            return;
        }
        Note::File { meta, size, crc } => Some(Node::File { meta, size, crc }),
        Note::Symlink { meta, target } => Some(Node::Symlink { meta, target }),
        Note::Node { meta, kind, device } => Some(Node::Other { meta, kind, device }),
        Note::Link { meta, target } => link(expected, path, meta, target),
        Note::Gone => None,
    };
    remove_below(expected, path);
    if let Some(node) = node {
        expected.insert(path.into(), node);
    }
}

/// A link gives its file the metadata of its own entry.
fn link(expected: &mut Expected, path: &[u8], meta: Meta, target: Box<[u8]>) -> Option<Node> {
    let first = match expected.get(&target) {
        Some(Node::Link { target }) => target.clone(),
        _ => target,
    };
    let found = expected.get_mut(&first);
    if let Some(Node::File { meta: of, .. } | Node::Symlink { meta: of, .. } | Node::Other { meta: Some(of), .. }) =
        found
    {
        *of = meta;
    }
    (*first != *path).then_some(Node::Link { target: first }).or_else(|| expected.get(path).cloned())
}

/// The rest of a list.
struct Parse<'a>(&'a [u8]);

impl<'a> Parse<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = u32::from_le_bytes(self.array()?);
        self.take(usize::try_from(length).ok()?)
    }

    fn meta(&mut self) -> Option<Meta> {
        let mut word = || self.array().map(u32::from_le_bytes);
        let (mode, uid, gid) = (word()?, word()?, word()?);
        Some(Meta { mode, uid, gid, mtime: i64::from_le_bytes(self.array()?) })
    }
}
