//! What EROFS has on disk: superblock, inodes, extended attributes, directory blocks (Linux, fs/erofs/erofs_fs.h names
//! the fields). All numbers are little-endian.

/// Bytes of a block.
pub(super) const BLOCK: u64 = 4096;
/// Where the superblock is.
pub(super) const SUPERBLOCK: u64 = 1024;
/// Bytes of an extended inode.
pub(super) const INODE: usize = 64;
/// Inodes start at multiples of this, which their numbers count.
pub(super) const SLOT: u64 = 32;
/// Where the root's inode is: right behind the superblock, for its number has 16 bits only.
pub(super) const ROOT: u64 = SUPERBLOCK + 128;

const MAGIC: u32 = 0xE0F5_E1E2;
/// The checksum is there, and times are those of the last modification.
const COMPATIBLE: u32 = 1 | 2;

/// Owner, mode, time and attributes of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Attributes {
    /// With the type bits.
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Seconds and nanoseconds since the epoch.
    pub(super) mtime: (i64, u32),
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Where the bytes of a file are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// In blocks from this one on.
    Plain(u32),
    /// Full blocks from this one on, the rest behind the inode.
    Inline(u32),
    /// It has none: the number of a device.
    Device(u32),
}

/// An inode but for its extended attributes.
#[derive(Clone, Debug)]
pub(super) struct Inode {
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: (i64, u32),
    pub(super) size: u64,
    pub(super) links: u32,
    pub(super) layout: Layout,
    /// Bytes of extended attributes, as encoded.
    pub(super) xattrs: usize,
    /// A number for stat(2), unique in the image.
    pub(super) number: u32,
}

impl Inode {
    pub(super) fn encode(&self) -> [u8; INODE] {
        let (layout, data) = match self.layout {
            Layout::Plain(block) => (0_u16, block),
            Layout::Inline(block) => (2, block),
            Layout::Device(number) => (0, number),
        };
        let mut bytes = [0; INODE];
        // Bit 0: an extended inode.
        put(&mut bytes, 0, &(1 | layout << 1).to_le_bytes());
        put(&mut bytes, 2, &(xattr_count(self.xattrs) as u16).to_le_bytes());
        put(&mut bytes, 4, &(self.mode as u16).to_le_bytes());
        put(&mut bytes, 8, &self.size.to_le_bytes());
        put(&mut bytes, 16, &data.to_le_bytes());
        put(&mut bytes, 20, &self.number.to_le_bytes());
        put(&mut bytes, 24, &self.uid.to_le_bytes());
        put(&mut bytes, 28, &self.gid.to_le_bytes());
        put(&mut bytes, 32, &self.mtime.0.to_le_bytes());
        put(&mut bytes, 40, &self.mtime.1.to_le_bytes());
        put(&mut bytes, 44, &self.links.to_le_bytes());
        bytes
    }
}

/// A number of extended attributes as inodes count them: the header as one, then four bytes each.
fn xattr_count(bytes: usize) -> usize {
    if bytes == 0 { 0 } else { 1 + (bytes - XATTR_HEADER) / 4 }
}

const XATTR_HEADER: usize = 12;

/// Extended attributes behind an inode; none where they are too many or too large for one.
pub(super) fn xattrs(attributes: &[(Vec<u8>, Vec<u8>)]) -> Option<Vec<u8>> {
    let known: Vec<_> = attributes.iter().filter_map(|(name, value)| Some((prefix(name)?, value))).collect();
    if known.is_empty() {
        return Some(Vec::new());
    }
    let mut bytes = vec![0; XATTR_HEADER];
    for ((index, name), value) in known {
        bytes.extend([u8::try_from(name.len()).ok()?, index]);
        bytes.extend(u16::try_from(value.len()).ok()?.to_le_bytes());
        bytes.extend(name);
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    u16::try_from(xattr_count(bytes.len())).is_ok().then_some(bytes)
}

/// The number that stands for a prefix, and the rest of the name; none for attributes that EROFS does not have.
fn prefix(name: &[u8]) -> Option<(u8, &[u8])> {
    const PREFIXES: [(&[u8], u8); 3] = [(b"user.", 1), (b"trusted.", 4), (b"security.", 6)];
    match name {
        b"system.posix_acl_access" => Some((2, b"")),
        b"system.posix_acl_default" => Some((3, b"")),
        _ => PREFIXES.iter().find_map(|(prefix, index)| Some((*index, name.strip_prefix(*prefix)?))),
    }
}

/// A name in a directory, as encoded.
pub(super) struct Dirent<'a> {
    pub(super) name: &'a [u8],
    /// Where the inode is, in [`SLOT`]s.
    pub(super) inode: u64,
    /// The mode's type bits.
    pub(super) mode: u32,
}

const DIRENT: usize = 12;

/// How many bytes the names, sorted, take as a directory: whole blocks but for the last.
pub(super) fn directory_size<'a>(names: impl Iterator<Item = &'a [u8]>) -> u64 {
    let (mut blocks, mut used) = (0, 0);
    for name in names {
        let need = (DIRENT + name.len()) as u64;
        if used + need > BLOCK {
            (blocks, used) = (blocks + 1, 0);
        }
        used += need;
    }
    blocks * BLOCK + used
}

/// The directory with these entries, which are sorted by name.
pub(super) fn directory(entries: &[Dirent<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = entries;
    while !rest.is_empty() {
        let fits = rest.iter().scan(0, |used, entry| {
            *used += DIRENT + entry.name.len();
            (*used as u64 <= BLOCK).then_some(())
        });
        let (block, after) = rest.split_at(fits.count().max(1));
        directory_block(block, &mut bytes);
        if !after.is_empty() {
            bytes.resize(bytes.len().next_multiple_of(BLOCK as usize), 0);
        }
        rest = after;
    }
    bytes
}

fn directory_block(entries: &[Dirent<'_>], bytes: &mut Vec<u8>) {
    let mut name_at = DIRENT * entries.len();
    for entry in entries {
        bytes.extend(entry.inode.to_le_bytes());
        bytes.extend((name_at as u16).to_le_bytes());
        bytes.extend([file_type(entry.mode), 0]);
        name_at += entry.name.len();
    }
    entries.iter().for_each(|entry| bytes.extend(entry.name));
}

fn file_type(mode: u32) -> u8 {
    match mode & 0o170_000 {
        0o100_000 => 1,
        0o040_000 => 2,
        0o020_000 => 3,
        0o060_000 => 4,
        0o010_000 => 5,
        0o140_000 => 6,
        0o120_000 => 7,
        _ => 0,
    }
}

/// A device's number as the kernel encodes it (`new_encode_dev`).
pub(super) fn device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// Puts the superblock into block 0, the rest of which is as it will be.
pub(super) fn seal(block: &mut [u8], inodes: u64, blocks: u32, uuid: [u8; 16]) {
    let superblock = &mut block[SUPERBLOCK as usize..];
    put(superblock, 0, &MAGIC.to_le_bytes());
    put(superblock, 4, &[0; 4]);
    put(superblock, 8, &COMPATIBLE.to_le_bytes());
    put(superblock, 12, &[BLOCK.trailing_zeros() as u8]);
    put(superblock, 14, &((ROOT / SLOT) as u16).to_le_bytes());
    put(superblock, 16, &inodes.to_le_bytes());
    put(superblock, 36, &blocks.to_le_bytes());
    put(superblock, 48, &uuid);
    let checksum = crc32c(superblock);
    put(superblock, 4, &checksum.to_le_bytes());
}

/// CRC-32C without the final inversion, as the kernel's `crc32c(~0, …)`.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = !0_u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0x82F6_3B78 & (crc & 1).wrapping_neg());
        }
    }
    crc
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}
