//! Where in the image things go: data, inodes, directories.

use std::fs::File;
use std::os::unix::fs::FileExt;

use gantry_types::{Algorithm, Hasher};

use super::format::{self, Attributes, BLOCK, INODE, Inode, Layout, ROOT, SLOT};
use crate::apply::{Limit, Reason};

/// Number of an inode of an [`Image`].
pub(super) type InodeId = usize;

/// An image being written.
pub(super) struct Image<'a> {
    file: &'a File,
    /// The first block that is not given away.
    end: u64,
    /// Blocks of inodes with room left: number, and bytes used.
    open: Vec<(u64, u64)>,
    inodes: Vec<Placed>,
    /// Of all metadata, for a name that depends on nothing else.
    hasher: Hasher,
}

struct Placed {
    inode: Inode,
    at: u64,
    /// Changed since it was written.
    changed: bool,
}

/// A regular file on its way.
pub(super) struct Body {
    inode: Inode,
    xattrs: Vec<u8>,
    at: u64,
    /// Bytes in blocks of their own, and where.
    full: u64,
    data: u64,
    tail: Vec<u8>,
}

/// How many blocks of inodes are looked through for room.
const OPEN: usize = 8;
/// What the root may take of the first block.
const ROOT_ROOM: u64 = 512;

impl Body {
    /// What names are to say of it, in [`SLOT`]s.
    pub(super) fn slot(&self) -> u64 {
        self.at / SLOT
    }
}

impl<'a> Image<'a> {
    pub(super) fn new(file: &'a File) -> Image<'a> {
        let open = vec![(0, ROOT + ROOT_ROOM)];
        Image { file, end: 1, open, inodes: Vec::new(), hasher: Hasher::new(Algorithm::Sha256) }
    }

    /// Starts a regular file of `size` bytes.
    pub(super) fn begin(&mut self, attributes: &Attributes, size: u64) -> Result<Body, Reason> {
        let xattrs = encoded(attributes)?;
        let head = (INODE + xattrs.len()) as u64;
        let rest = size % BLOCK;
        let inline = rest > 0 && head + rest <= BLOCK;
        let (full, tail) = if inline { (size - rest, rest) } else { (size, 0) };
        let start = self.blocks(full.div_ceil(BLOCK))?;
        let layout = if inline { Layout::Inline(start) } else { Layout::Plain(start) };
        let at = self.room(head + tail)?;
        let inode = self.inode(attributes, size, layout, xattrs.len());
        Ok(Body { inode, xattrs, at, full, data: u64::from(start) * BLOCK, tail: vec![0; tail as usize] })
    }

    /// Puts bytes into a file; what is never put is zero.
    pub(super) fn put(&mut self, body: &mut Body, offset: u64, bytes: &[u8]) -> Result<(), Reason> {
        let in_blocks = body.full.saturating_sub(offset).min(bytes.len() as u64) as usize;
        let (blocks, tail) = bytes.split_at(in_blocks);
        if !blocks.is_empty() {
            self.write(body.data + offset, blocks)?;
        }
        if !tail.is_empty() {
            let at = (offset + in_blocks as u64 - body.full) as usize;
            let room = body.tail.get_mut(at..at + tail.len());
            room.ok_or(Reason::Malformed("more content than the file has"))?.copy_from_slice(tail);
        }
        Ok(())
    }

    /// Writes the inode of a file whose bytes are all there.
    pub(super) fn end(&mut self, body: Body) -> Result<InodeId, Reason> {
        self.keep(body.at, body.inode, &body.xattrs, &body.tail)
    }

    /// A symlink.
    pub(super) fn symlink(&mut self, attributes: &Attributes, target: &[u8]) -> Result<InodeId, Reason> {
        let mut body = self.begin(attributes, target.len() as u64)?;
        self.put(&mut body, 0, target)?;
        self.end(body)
    }

    /// A device, pipe or socket.
    pub(super) fn special(&mut self, attributes: &Attributes, device: u32) -> Result<InodeId, Reason> {
        let xattrs = encoded(attributes)?;
        let at = self.room((INODE + xattrs.len()) as u64)?;
        let inode = self.inode(attributes, 0, Layout::Device(device), xattrs.len());
        self.keep(at, inode, &xattrs, &[])
    }

    /// Gives a directory of `size` bytes its place, so that others can name it; [`Image::directory`] fills it.
    pub(super) fn reserve(&mut self, attributes: &Attributes, size: u64, root: bool) -> Result<Body, Reason> {
        if !root {
            return self.begin(attributes, size);
        }
        let xattrs = encoded(attributes)?;
        if (INODE + xattrs.len()) as u64 > ROOT_ROOM {
            return Err(Reason::Malformed("the root has too many extended attributes"));
        }
        let start = self.blocks(size.div_ceil(BLOCK))?;
        let inode = self.inode(attributes, size, Layout::Plain(start), xattrs.len());
        Ok(Body { inode, xattrs, at: ROOT, full: size, data: u64::from(start) * BLOCK, tail: Vec::new() })
    }

    /// Writes a directory.
    pub(super) fn directory(
        &mut self,
        mut body: Body,
        entries: &[format::Dirent<'_>],
        links: u32,
    ) -> Result<(), Reason> {
        let bytes = format::directory(entries);
        self.hasher.update(&bytes);
        self.put(&mut body, 0, &bytes)?;
        body.inode.links = links;
        self.end(body).map(drop)
    }

    /// The inode, to be changed.
    pub(super) fn change(&mut self, inode: InodeId) -> &mut Inode {
        let placed = &mut self.inodes[inode];
        placed.changed = true;
        &mut placed.inode
    }

    pub(super) fn look(&self, inode: InodeId) -> &Inode {
        &self.inodes[inode].inode
    }

    /// What names say of an inode, in [`SLOT`]s.
    pub(super) fn slot(&self, inode: InodeId) -> u64 {
        self.inodes[inode].at / SLOT
    }

    /// Writes what is left, the superblock last: until then this is no image.
    pub(super) fn finish(mut self) -> Result<(), Reason> {
        let count = self.inodes.len() as u64;
        for placed in std::mem::take(&mut self.inodes).iter().filter(|placed| placed.changed) {
            let bytes = placed.inode.encode();
            self.hasher.update(&bytes);
            self.write(placed.at, &bytes)?;
        }
        let failed = |call| move |source| Reason::Io { call, source };
        self.file.set_len(self.end * BLOCK).map_err(failed("ftruncate"))?;
        let mut first = vec![0; BLOCK as usize];
        self.file.read_exact_at(&mut first, 0).map_err(failed("pread"))?;
        let blocks = u32::try_from(self.end).map_err(|_| too_large())?;
        format::seal(&mut first, count, blocks, uuid(&self.hasher.finish()));
        self.file.write_all_at(&first, 0).map_err(failed("pwrite"))
    }

    fn inode(&self, attributes: &Attributes, size: u64, layout: Layout, xattrs: usize) -> Inode {
        let Attributes { mode, uid, gid, mtime, .. } = *attributes;
        Inode { mode, uid, gid, mtime, size, links: 1, layout, xattrs, number: 0 }
    }

    fn keep(&mut self, at: u64, mut inode: Inode, xattrs: &[u8], tail: &[u8]) -> Result<InodeId, Reason> {
        inode.number = u32::try_from(at / SLOT).unwrap_or(u32::MAX);
        let bytes = [&inode.encode(), xattrs, tail].concat();
        self.hasher.update(&bytes);
        self.write(at, &bytes)?;
        self.inodes.push(Placed { inode, at, changed: false });
        Ok(self.inodes.len() - 1)
    }

    /// The first of so many blocks.
    fn blocks(&mut self, count: u64) -> Result<u32, Reason> {
        let start = u32::try_from(self.end).map_err(|_| too_large())?;
        self.end = self.end.checked_add(count).filter(|end| *end <= u64::from(u32::MAX)).ok_or_else(too_large)?;
        Ok(start)
    }

    /// A place for an inode and what is behind it: within one block if it is no larger than that.
    fn room(&mut self, size: u64) -> Result<u64, Reason> {
        if size > BLOCK {
            return Ok(u64::from(self.blocks(size.div_ceil(BLOCK))?) * BLOCK);
        }
        let fits = |used: &u64| used + size <= BLOCK;
        if let Some((block, used)) = self.open.iter_mut().find(|(_, used)| fits(used)) {
            let at = *block * BLOCK + *used;
            *used = (*used + size).next_multiple_of(SLOT);
            return Ok(at);
        }
        if self.open.len() >= OPEN {
            let fullest = self.open.iter().enumerate().max_by_key(|(_, (_, used))| *used).map(|(index, _)| index);
            fullest.map(|index| self.open.swap_remove(index));
        }
        let block = u64::from(self.blocks(1)?);
        self.open.push((block, size.next_multiple_of(SLOT)));
        Ok(block * BLOCK)
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<(), Reason> {
        self.file.write_all_at(bytes, at).map_err(|source| Reason::Io { call: "pwrite", source })
    }
}

fn encoded(attributes: &Attributes) -> Result<Vec<u8>, Reason> {
    let max = u64::from(u16::MAX);
    format::xattrs(&attributes.xattrs).ok_or(Reason::Limit { limit: Limit::Xattr, max })
}

fn too_large() -> Reason {
    Reason::Limit { limit: Limit::Bytes, max: u64::from(u32::MAX) * BLOCK }
}

/// A UUID (RFC 9562, version 8) of what is in the image.
fn uuid(digest: &gantry_types::Digest) -> [u8; 16] {
    let hex = digest.hex().as_bytes();
    let mut uuid = [0; 16];
    for (byte, pair) in uuid.iter_mut().zip(hex.chunks_exact(2)) {
        *byte = pair.iter().fold(0, |value, digit| value << 4 | (*digit as char).to_digit(16).unwrap_or(0) as u8);
    }
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}
