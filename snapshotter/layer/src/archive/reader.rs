//! Entry after entry of a tar stream: extended headers are gathered, contents handed out from the read buffer.

use std::io::{self, BufRead};
use std::sync::Arc;

use super::header::{Flavour, HeaderBlock};
use super::pax::{Records, decimal, time};
use super::sparse::{Segment, checked, comma_segments, gnu_segments, pairs};
use super::{BLOCK, padding};
use crate::apply::{Control, Limit, Reason};

/// What kind of file an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EntryType {
    Regular,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
}

/// One entry. Its content is still in the [`Reader`].
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) kind: EntryType,
    /// Path as the archive has it.
    pub(crate) path: Vec<u8>,
    /// Target of a symlink or hard link as the archive has it.
    pub(crate) link: Vec<u8>,
    /// Permission bits with set-id and sticky bits.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Size of the file, holes included.
    pub(crate) size: u64,
    /// Bytes of content in the archive.
    pub(crate) stored: u64,
    /// Where the content belongs, if the file is sparse.
    pub(crate) segments: Option<Vec<Segment>>,
    /// Modification time: seconds and nanoseconds since the epoch.
    pub(crate) mtime: (i64, u32),
    /// Access time, if given.
    pub(crate) atime: Option<(i64, u32)>,
    /// Major and minor number.
    pub(crate) device: (u32, u32),
    /// Extended attributes.
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What extended headers said about the next entry.
#[derive(Default)]
struct Extended {
    path: Option<Vec<u8>>,
    long_path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
    atime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: PaxSparse,
    bytes: usize,
}

#[derive(Default)]
struct PaxSparse {
    major_minor: (Option<u64>, Option<u64>),
    name: Option<Vec<u8>>,
    size: Option<u64>,
    map: Option<Vec<u8>>,
    numbers: Vec<u64>,
}

const UNEXPECTED: &str = "malformed PAX value";

impl Extended {
    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        match key {
            b"path" => self.path = given(value),
            b"linkpath" => self.link = given(value),
            b"size" => self.size = parsed(value, decimal)?,
            b"uid" => self.uid = parsed(value, decimal)?,
            b"gid" => self.gid = parsed(value, decimal)?,
            b"mtime" => self.mtime = parsed(value, time)?,
            b"atime" => self.atime = parsed(value, time)?,
            _ if key.starts_with(b"GNU.sparse.") => self.sparse.record(&key[11..], value)?,
            _ if key.starts_with(b"SCHILY.xattr.") => self.xattrs.push((key[13..].to_vec(), value.to_vec())),
            _ => {}
        }
        Ok(())
    }
}

impl PaxSparse {
    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        match key {
            b"major" => self.major_minor.0 = parsed(value, decimal)?,
            b"minor" => self.major_minor.1 = parsed(value, decimal)?,
            b"name" => self.name = given(value),
            b"size" | b"realsize" => self.size = parsed(value, decimal)?,
            b"map" => self.map = given(value),
            b"offset" | b"numbytes" => self.numbers.push(decimal(value).ok_or(UNEXPECTED)?),
            _ => {}
        }
        Ok(())
    }

    /// Format 1.0 keeps its map in front of the content.
    fn map_in_content(&self) -> bool {
        self.major_minor == (Some(1), Some(0))
    }

    fn is_present(&self) -> bool {
        self.map_in_content() || self.map.is_some() || self.size.is_some()
    }
}

/// An empty value takes a record back.
fn given(value: &[u8]) -> Option<Vec<u8>> {
    (!value.is_empty()).then(|| value.to_vec())
}

fn parsed<T>(value: &[u8], parse: impl Fn(&[u8]) -> Option<T>) -> Result<Option<T>, &'static str> {
    if value.is_empty() {
        return Ok(None);
    }
    parse(value).map(Some).ok_or(UNEXPECTED)
}

/// Reads a tar stream out of a buffer.
pub(crate) struct Reader<R> {
    stream: R,
    /// Content and padding of the current entry that were not read.
    content: u64,
    padding: u64,
    position: u64,
    extended_header: usize,
    control: Arc<Control>,
}

impl<R: BufRead> Reader<R> {
    /// Reads `stream`, allowing each entry `extended_header` bytes of extended headers; `control` watches and stops.
    pub(crate) fn new(stream: R, extended_header: usize, control: Arc<Control>) -> Reader<R> {
        Reader { stream, content: 0, padding: 0, position: 0, extended_header, control }
    }

    /// Bytes read until now.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// Skips what is left of the current entry and reads the next; none at the end of the archive.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, Reason> {
        let mut extended = Extended::default();
        loop {
            self.skip()?;
            self.control.set_bytes(self.position);
            let Some(block) = self.header_block()? else { return Ok(None) };
            let header = HeaderBlock::new(&block).map_err(Reason::Malformed)?;
            if self.extends(&header, &mut extended)? {
                continue;
            }
            return self.entry(&header, extended).map(Some);
        }
    }

    /// The next piece of the current entry's content, straight from the buffer; empty at its end.
    pub(crate) fn content(&mut self) -> Result<&[u8], Reason> {
        if self.content == 0 {
            return Ok(&[]);
        }
        let buffer = filled(&mut self.stream, &self.control)?;
        if buffer.is_empty() {
            return Err(Reason::Truncated);
        }
        let length = usize::try_from(self.content).unwrap_or(usize::MAX).min(buffer.len());
        Ok(&buffer[..length])
    }

    /// Counts `length` bytes of the last [`Reader::content`] as read.
    pub(crate) fn consume(&mut self, length: usize) {
        self.stream.consume(length);
        self.content -= length as u64;
        self.position += length as u64;
    }

    /// Reads the stream to its end: what follows an archive's end marker belongs to its digest.
    pub(crate) fn drain(&mut self) -> Result<(), Reason> {
        loop {
            let length = filled(&mut self.stream, &self.control)?.len();
            if length == 0 {
                return Ok(());
            }
            self.stream.consume(length);
            self.position += length as u64;
        }
    }

    fn skip(&mut self) -> Result<(), Reason> {
        self.content += std::mem::take(&mut self.padding);
        loop {
            let length = self.content()?.len();
            if length == 0 {
                return Ok(());
            }
            self.consume(length);
        }
    }

    /// A header block; none at the end marker or where the stream ends between entries.
    fn header_block(&mut self) -> Result<Option<[u8; BLOCK]>, Reason> {
        let Some(block) = self.block()? else { return Ok(None) };
        if block != [0; BLOCK] {
            return Ok(Some(block));
        }
        match self.block()? {
            Some(second) if second != [0; BLOCK] => Err(Reason::Malformed("a lone empty block amid the archive")),
            _ => Ok(None),
        }
    }

    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, Reason> {
        let mut block = [0; BLOCK];
        let mut read = 0;
        while read < BLOCK {
            let buffer = filled(&mut self.stream, &self.control)?;
            if buffer.is_empty() {
                return if read == 0 { Ok(None) } else { Err(Reason::Truncated) };
            }
            let length = buffer.len().min(BLOCK - read);
            block[read..read + length].copy_from_slice(&buffer[..length]);
            self.stream.consume(length);
            self.position += length as u64;
            read += length;
        }
        Ok(Some(block))
    }

    /// Whether `header` only extends the next entry, and if so, what it says.
    fn extends(&mut self, header: &HeaderBlock<'_>, extended: &mut Extended) -> Result<bool, Reason> {
        let flag = header.type_flag();
        if !matches!(flag, b'x' | b'g' | b'X' | b'L' | b'K') {
            return Ok(false);
        }
        let bytes = self.extension(header, extended)?;
        match flag {
            // What a global header says about all entries is nothing that layers use.
            b'g' => {}
            b'L' => extended.long_path = given(until_nul(&bytes)),
            b'K' => extended.link = given(until_nul(&bytes)),
            _ => {
                for record in Records(&bytes) {
                    let (key, value) = record.map_err(Reason::Malformed)?;
                    extended.record(key, value).map_err(Reason::Malformed)?;
                }
            }
        }
        Ok(true)
    }

    fn extension(&mut self, header: &HeaderBlock<'_>, extended: &mut Extended) -> Result<Vec<u8>, Reason> {
        let size = natural(header.size())?;
        self.start_content(size);
        extended.bytes += self.within_extended(size, extended.bytes)?;
        let mut bytes = Vec::new();
        loop {
            let piece = self.content()?;
            if piece.is_empty() {
                return Ok(bytes);
            }
            bytes.extend_from_slice(piece);
            let length = piece.len();
            self.consume(length);
        }
    }

    /// `size` as a length, if an entry that used `used` bytes of extended header may have so many more.
    fn within_extended(&self, size: u64, used: usize) -> Result<usize, Reason> {
        let exceeded = Reason::Limit { limit: Limit::ExtendedHeader, max: self.extended_header as u64 };
        match usize::try_from(size) {
            // Each header counts for a block, so that endless empty ones come to an end too.
            Ok(size) if size.saturating_add(used) <= self.extended_header => Ok(size.max(BLOCK)),
            _ => Err(exceeded),
        }
    }

    fn start_content(&mut self, size: u64) {
        self.content = size;
        self.padding = padding(size);
    }

    fn entry(&mut self, header: &HeaderBlock<'_>, mut extended: Extended) -> Result<Entry, Reason> {
        let mut entry = plain_entry(header, &mut extended)?;
        self.start_content(entry.stored);
        if header.type_flag() == b'S' {
            self.gnu_sparse(header, &mut entry)?;
        } else if entry.kind == EntryType::Regular && extended.sparse.is_present() {
            self.pax_sparse(extended.sparse, &mut entry)?;
        }
        Ok(entry)
    }

    fn gnu_sparse(&mut self, header: &HeaderBlock<'_>, entry: &mut Entry) -> Result<(), Reason> {
        if header.flavour() != Flavour::Gnu {
            return Err(Reason::Malformed("a sparse file in a header that has no sparse map"));
        }
        let mut segments = Vec::new();
        gnu_segments(header.sparse_map(), &mut segments).map_err(Reason::Malformed)?;
        let mut continues = header.sparse_continues();
        let mut used = 0;
        while continues {
            used += self.within_extended(BLOCK as u64, used)?;
            let block = self.block()?.ok_or(Reason::Truncated)?;
            gnu_segments(&block[..504], &mut segments).map_err(Reason::Malformed)?;
            continues = block[504] != 0;
        }
        entry.size = natural(header.sparse_size())?;
        entry.segments = Some(checked(segments, entry.size, entry.stored).map_err(Reason::Malformed)?);
        Ok(())
    }

    fn pax_sparse(&mut self, sparse: PaxSparse, entry: &mut Entry) -> Result<(), Reason> {
        let segments = if sparse.map_in_content() {
            self.map_from_content(entry)
        } else {
            let map = sparse.map.as_deref();
            map.map_or_else(|| pairs(&sparse.numbers), comma_segments).map_err(Reason::Malformed)
        }?;
        entry.size = sparse.size.ok_or(Reason::Malformed("a sparse file without its size"))?;
        entry.segments = Some(checked(segments, entry.size, entry.stored).map_err(Reason::Malformed)?);
        if let Some(name) = sparse.name {
            entry.path = name;
        }
        Ok(())
    }

    /// PAX format 1.0: lines of numbers in front of the content, padded to whole blocks.
    fn map_from_content(&mut self, entry: &mut Entry) -> Result<Vec<Segment>, Reason> {
        let before = self.content;
        let count = self.number_line(before)?;
        let mut numbers = Vec::new();
        for _ in 0..count.saturating_mul(2) {
            numbers.push(self.number_line(before)?);
        }
        let rest = usize::try_from(padding(before - self.content)).unwrap_or(0);
        for _ in 0..rest {
            self.content_byte()?;
        }
        entry.stored = self.content;
        pairs(&numbers).map_err(Reason::Malformed)
    }

    fn number_line(&mut self, before: u64) -> Result<u64, Reason> {
        let mut digits = Vec::new();
        loop {
            self.within_extended(before - self.content, 0)?;
            match self.content_byte()? {
                b'\n' => return decimal(&digits).ok_or(Reason::Malformed("malformed sparse map")),
                digit if digits.len() < 20 => digits.push(digit),
                _ => return Err(Reason::Malformed("malformed sparse map")),
            }
        }
    }

    fn content_byte(&mut self) -> Result<u8, Reason> {
        let byte = *self.content()?.first().ok_or(Reason::Malformed("the sparse map is cut short"))?;
        self.consume(1);
        Ok(byte)
    }
}

fn plain_entry(header: &HeaderBlock<'_>, extended: &mut Extended) -> Result<Entry, Reason> {
    let path = extended.long_path.take().or(extended.path.take()).unwrap_or_else(|| header.path());
    let kind = kind(header.type_flag(), &path)?;
    let size = match extended.size {
        Some(size) => size,
        None => natural(header.size())?,
    };
    if i64::try_from(size).is_err() {
        return Err(Reason::Malformed("a size is too large"));
    }
    // Only regular files have content, whatever their size field says.
    let stored = if kind == EntryType::Regular { size } else { 0 };
    Ok(Entry {
        kind,
        path,
        link: extended.link.take().unwrap_or_else(|| header.link()),
        mode: (header.mode().map_err(Reason::Malformed)? & 0o7777) as u32,
        uid: owner(extended.uid, header.uid())?,
        gid: owner(extended.gid, header.gid())?,
        size: stored,
        stored,
        segments: None,
        mtime: match extended.mtime {
            Some(time) => time,
            None => (header.mtime().map_err(Reason::Malformed)?, 0),
        },
        atime: extended.atime,
        device: device(kind, header)?,
        xattrs: std::mem::take(&mut extended.xattrs),
    })
}

fn kind(flag: u8, path: &[u8]) -> Result<EntryType, Reason> {
    Ok(match flag {
        // The oldest format marks directories by their name only.
        0 if path.ends_with(b"/") => EntryType::Directory,
        0 | b'0' | b'7' | b'S' => EntryType::Regular,
        b'1' => EntryType::HardLink,
        b'2' => EntryType::Symlink,
        b'3' => EntryType::CharDevice,
        b'4' => EntryType::BlockDevice,
        b'5' => EntryType::Directory,
        b'6' => EntryType::Fifo,
        other => return Err(Reason::Type(other)),
    })
}

fn device(kind: EntryType, header: &HeaderBlock<'_>) -> Result<(u32, u32), Reason> {
    if !matches!(kind, EntryType::CharDevice | EntryType::BlockDevice) {
        return Ok((0, 0));
    }
    let (major, minor) = header.device().map_err(Reason::Malformed)?;
    // The kernel's device numbers have 12 and 20 bits (linux/kdev_t.h).
    match (u32::try_from(major), u32::try_from(minor)) {
        (Ok(major), Ok(minor)) if major < 1 << 12 && minor < 1 << 20 => Ok((major, minor)),
        _ => Err(Reason::Malformed("a device number is out of range")),
    }
}

/// A user or group number. The largest means "leave as is" to the kernel, so no file can have it.
fn owner(extended: Option<u64>, header: Result<i64, &'static str>) -> Result<u32, Reason> {
    let number = match extended {
        Some(number) => number,
        None => natural(header)?,
    };
    match u32::try_from(number) {
        Ok(number) if number != u32::MAX => Ok(number),
        _ => Err(Reason::Malformed("an owner is out of range")),
    }
}

fn natural(number: Result<i64, &'static str>) -> Result<u64, Reason> {
    u64::try_from(number.map_err(Reason::Malformed)?).map_err(|_| Reason::Malformed("a number is negative"))
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|&byte| byte == 0).next().unwrap_or(&[])
}

fn filled<'a, R: BufRead>(stream: &'a mut R, control: &Control) -> Result<&'a [u8], Reason> {
    if control.is_cancelled() {
        return Err(Reason::Cancelled);
    }
    // Two calls, because the borrow of a successful first one could not be returned from a loop.
    loop {
        match stream.fill_buf() {
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Reason::read(error)),
        }
    }
    stream.fill_buf().map_err(Reason::read)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read_all(bytes: &[u8]) -> Result<Vec<Entry>, Reason> {
        let mut reader = Reader::new(bytes, 1 << 16, Arc::default());
        let mut entries = Vec::new();
        while let Some(entry) = reader.next()? {
            entries.push(entry);
        }
        Ok(entries)
    }

    proptest! {
        #[test]
        fn noise_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
            let _ = read_all(&bytes);
        }

        #[test]
        fn a_header_with_any_bytes_changed_never_panics(
            flag in proptest::sample::select(&b"0123456SxgLK7\0D"[..]),
            changes in proptest::collection::vec((0..512_usize, any::<u8>()), 0..6),
            content in proptest::collection::vec(any::<u8>(), 0..1024),
        ) {
            let mut header = tar::Header::new_gnu();
            header.set_path("name").unwrap();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            header.as_mut_bytes()[156] = flag;
            for (index, byte) in changes {
                header.as_mut_bytes()[index] = byte;
            }
            header.set_cksum();
            let mut bytes = header.as_bytes().to_vec();
            bytes.extend_from_slice(&content);
            bytes.resize(bytes.len().next_multiple_of(512), 0);
            let _ = read_all(&bytes);
        }
    }

    #[test]
    fn an_archive_cut_inside_an_entry_is_an_error_and_between_entries_its_end() {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(1000);
        header.set_mode(0o644);
        builder.append_data(&mut header, "file", &[7; 1000][..]).unwrap();
        let bytes = builder.into_inner().unwrap();
        for end in (0..bytes.len()).step_by(100) {
            let result = read_all(&bytes[..end]);
            match end {
                0 => assert_eq!(result.unwrap().len(), 0),
                1536.. if end - 1536 < 512 && end != 1536 => assert!(matches!(result, Err(Reason::Truncated))),
                1..1536 => assert!(matches!(result, Err(Reason::Truncated)), "{end}"),
                _ => assert!(result.is_ok() || matches!(result, Err(Reason::Truncated))),
            }
        }
        assert_eq!(read_all(&bytes).unwrap().len(), 1);
    }
}
