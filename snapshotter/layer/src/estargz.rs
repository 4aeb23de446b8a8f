//! Writing eSTARGZ: a gzip of a tar whose files can be read one by one (stargz-snapshotter, docs/estargz.md).
//!
//! Each piece of a file's content begins a gzip member. A table of contents (`stargz.index.json`, the last entry) says where
//! which piece is and what digest it has; a footer of 51 bytes says where the table is. For all who do not know of this it
//! is a gzip like others. The output depends on nothing but the input.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use gantry_types::{Algorithm, Digest, Hasher};
use serde::Serialize;

use crate::apply::components;
use crate::archive::{Entry, EntryType, Header, Reader, Writer};
use crate::compress::Steady;
use crate::{Control, Reason};

/// Name of the table.
const TABLE: &str = "stargz.index.json";
/// Files that tell a snapshotter what to fetch first; those of a former conversion are dropped.
const LANDMARKS: [&str; 2] = [".prefetch.landmark", ".no.prefetch.landmark"];
/// Size of a piece of a file.
const CHUNK: u64 = 4 << 20;
/// Bytes of extended headers that one entry may have.
const EXTENDED: usize = 1 << 20;
const LEVEL: flate2::Compression = flate2::Compression::new(6);

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Estargz {
    /// Digest of the table of contents: the annotation `containerd.io/snapshot/stargz/toc.digest`.
    pub table: Digest,
    /// Digest of the tar inside.
    pub diff_id: Digest,
    /// Bytes of the tar inside.
    pub size: u64,
}

/// Why it could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EstargzError {
    /// The tar.
    #[error("{0}")]
    Tar(Reason),
    /// Sparse files have no place in the format.
    #[error("{path}: a sparse file, which eSTARGZ cannot hold", path = .0.escape_ascii())]
    Sparse(Vec<u8>),
    /// The output.
    #[error("write: {0}")]
    Write(#[from] io::Error),
}

impl From<Reason> for EstargzError {
    fn from(reason: Reason) -> EstargzError {
        EstargzError::Tar(reason)
    }
}

/// An entry of the table. Names and forms are the format's.
#[derive(Default, Serialize)]
struct Item {
    name: String,
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "is_zero")]
    size: u64,
    #[serde(rename = "modtime", skip_serializing_if = "String::is_empty")]
    modified: String,
    #[serde(rename = "linkName", skip_serializing_if = "String::is_empty")]
    link: String,
    #[serde(skip_serializing_if = "is_zero_32")]
    mode: u32,
    #[serde(skip_serializing_if = "is_zero_32")]
    uid: u32,
    #[serde(skip_serializing_if = "is_zero_32")]
    gid: u32,
    #[serde(skip_serializing_if = "is_zero")]
    offset: u64,
    #[serde(rename = "devMajor", skip_serializing_if = "is_zero_32")]
    major: u32,
    #[serde(rename = "devMinor", skip_serializing_if = "is_zero_32")]
    minor: u32,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    xattrs: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    digest: String,
    #[serde(rename = "chunkOffset", skip_serializing_if = "is_zero")]
    chunk_offset: u64,
    #[serde(rename = "chunkSize", skip_serializing_if = "is_zero")]
    chunk_size: u64,
    #[serde(rename = "chunkDigest", skip_serializing_if = "String::is_empty")]
    chunk_digest: String,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero_32(number: &u32) -> bool {
    *number == 0
}

#[derive(Serialize)]
struct Table {
    version: u32,
    entries: Vec<Item>,
}

/// Writes the plain `tar` to `out` as eSTARGZ. Reads `tar` to its end. The table is held in memory.
///
/// # Errors
/// [`EstargzError`].
pub fn estargz(tar: impl Read, out: impl Write, control: Arc<Control>) -> Result<Estargz, EstargzError> {
    let mut reader = Reader::new(BufReader::with_capacity(256 << 10, tar), EXTENDED, control);
    let mut writer = Writer::new(Members::new(out));
    let mut items = Vec::new();
    landmark(&mut writer, &mut items)?;
    while let Some(entry) = reader.next()? {
        let name = name_of(&entry);
        if entry.segments.is_some() {
            return Err(EstargzError::Sparse(entry.path));
        }
        if name != TABLE && !LANDMARKS.contains(&name.as_str()) && !name.is_empty() {
            one(&mut writer, &mut reader, &entry, name, &mut items)?;
        }
    }
    reader.drain()?;
    finish(writer, items)
}

/// The path from the root, that of a directory with a slash at its end.
fn name_of(entry: &Entry) -> String {
    let parts: Vec<_> = components(&entry.path).map(String::from_utf8_lossy).collect();
    let mut name = parts.join("/");
    if entry.kind == EntryType::Directory && !name.is_empty() {
        name.push('/');
    }
    name
}

fn one<R: BufRead, W: Write>(
    writer: &mut Writer<Members<W>>,
    reader: &mut Reader<R>,
    entry: &Entry,
    name: String,
    items: &mut Vec<Item>,
) -> Result<(), EstargzError> {
    let (flag, kind) = match entry.kind {
        EntryType::Regular => (b'0', "reg"),
        EntryType::HardLink => (b'1', "hardlink"),
        EntryType::Symlink => (b'2', "symlink"),
        EntryType::CharDevice => (b'3', "char"),
        EntryType::BlockDevice => (b'4', "block"),
        EntryType::Directory => (b'5', "dir"),
        EntryType::Fifo => (b'6', "fifo"),
    };
    let size = if entry.kind == EntryType::Regular { entry.size } else { 0 };
    let Entry { mode, uid, gid, mtime, device, .. } = *entry;
    let header = Header {
        flag,
        path: name.as_bytes(),
        link: &entry.link,
        mode,
        uid,
        gid,
        size,
        mtime,
        device,
        xattrs: &entry.xattrs,
    };
    writer.header(&header)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let link = if entry.kind == EntryType::HardLink { clean(&entry.link) } else { text(&entry.link) };
    let xattrs = entry.xattrs.iter().map(|(key, value)| (text(key), STANDARD.encode(value))).collect();
    let (modified, (major, minor)) = (rfc3339(mtime.0), device);
    let item = Item { name, kind, size, modified, link, mode, uid, gid, major, minor, xattrs, ..Item::default() };
    content(writer, reader, item, items)
}

/// A hard link's target as the table names files.
fn clean(path: &[u8]) -> String {
    components(path).map(String::from_utf8_lossy).collect::<Vec<_>>().join("/")
}

/// Writes a file's content piece by piece, each with an item of its own.
fn content<R: BufRead, W: Write>(
    writer: &mut Writer<Members<W>>,
    reader: &mut Reader<R>,
    mut item: Item,
    items: &mut Vec<Item>,
) -> Result<(), EstargzError> {
    let (first, size, name) = (items.len(), item.size, item.name.clone());
    let (mut done, mut whole) = (0, Hasher::new(Algorithm::Sha256));
    while done < size {
        let length = CHUNK.min(size - done);
        item.offset = writer.out().cut()?;
        item.chunk_offset = done;
        // The last piece ends where the file does.
        item.chunk_size = if done + length < size { length } else { 0 };
        item.chunk_digest = piece(writer, reader, length, &mut whole)?.to_string();
        items.push(std::mem::replace(&mut item, Item { name: name.clone(), kind: "chunk", ..Item::default() }));
        done += length;
    }
    match items.get_mut(first) {
        Some(first) => first.digest = whole.finish().to_string(),
        None => items.push(item),
    }
    Ok(())
}

fn piece<R: BufRead, W: Write>(
    writer: &mut Writer<Members<W>>,
    reader: &mut Reader<R>,
    mut length: u64,
    whole: &mut Hasher,
) -> Result<Digest, EstargzError> {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    while length > 0 {
        let bytes = reader.content()?;
        if bytes.is_empty() {
            return Err(Reason::Malformed("a file is shorter than its header says").into());
        }
        let end = usize::try_from(length).unwrap_or(usize::MAX).min(bytes.len());
        hasher.update(&bytes[..end]);
        whole.update(&bytes[..end]);
        writer.content(&bytes[..end])?;
        reader.consume(end);
        length -= end as u64;
    }
    Ok(hasher.finish())
}

/// Says that nothing needs to be fetched ahead.
fn landmark<W: Write>(writer: &mut Writer<Members<W>>, items: &mut Vec<Item>) -> io::Result<()> {
    const CONTENT: &[u8] = b"\x0f";
    let name = LANDMARKS[1];
    writer.header(&Header { flag: b'0', path: name.as_bytes(), mode: 0o644, size: 1, ..Header::default() })?;
    let offset = writer.out().cut()?;
    writer.content(CONTENT)?;
    let digest = Digest::of(CONTENT).to_string();
    let (modified, chunk_digest) = (rfc3339(0), digest.clone());
    let name = name.to_owned();
    items.push(Item {
        name,
        kind: "reg",
        size: 1,
        mode: 0o644,
        modified,
        offset,
        digest,
        chunk_digest,
        ..Item::default()
    });
    Ok(())
}

/// The table, the end of the tar, and the footer.
fn finish<W: Write>(mut writer: Writer<Members<W>>, entries: Vec<Item>) -> Result<Estargz, EstargzError> {
    let table = serde_json::to_vec(&Table { version: 1, entries }).map_err(io::Error::other)?;
    writer.pad()?;
    let at = writer.out().cut()?;
    let size = table.len() as u64;
    writer.header(&Header { flag: b'0', path: TABLE.as_bytes(), mode: 0o444, size, ..Header::default() })?;
    writer.content(&table)?;
    let (members, size) = writer.end()?;
    let diff_id = members.finish(at)?;
    Ok(Estargz { table: Digest::of(&table), diff_id, size })
}

/// Plain bytes in, gzip members out.
struct Members<W: Write> {
    gzip: Gzip<W>,
    hasher: Hasher,
}

enum Gzip<W: Write> {
    Between(Counted<W>),
    Within(Box<Steady<flate2::write::GzEncoder<Counted<W>>>>),
    /// After an error.
    Broken,
}

struct Counted<W> {
    out: W,
    count: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = self.out.write(bytes)?;
        self.count += length as u64;
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl<W: Write> Members<W> {
    fn new(out: W) -> Members<W> {
        Members { gzip: Gzip::Between(Counted { out, count: 0 }), hasher: Hasher::new(Algorithm::Sha256) }
    }

    /// Ends the member; gives the offset of the next one.
    fn cut(&mut self) -> io::Result<u64> {
        let out = match std::mem::replace(&mut self.gzip, Gzip::Broken) {
            Gzip::Between(out) => out,
            Gzip::Within(encoder) => encoder.end()?.finish()?,
            Gzip::Broken => return Err(io::Error::other("an earlier write has failed")),
        };
        let count = out.count;
        self.gzip = Gzip::Between(out);
        Ok(count)
    }

    /// Ends all with the footer; gives the digest of the plain bytes.
    fn finish(mut self, table: u64) -> io::Result<Digest> {
        self.cut()?;
        if let Gzip::Between(out) = &mut self.gzip {
            out.write_all(&footer(table))?;
            out.flush()?;
        }
        Ok(self.hasher.finish())
    }
}

impl<W: Write> Write for Members<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        if let Gzip::Between(_) = self.gzip
            && let Gzip::Between(out) = std::mem::replace(&mut self.gzip, Gzip::Broken)
        {
            self.gzip = Gzip::Within(Box::new(Steady::new(flate2::GzBuilder::new().write(out, LEVEL))));
        }
        let Gzip::Within(encoder) = &mut self.gzip else {
            return Err(io::Error::other("an earlier write has failed"));
        };
        let length = encoder.write(bytes)?;
        self.hasher.update(&bytes[..length]);
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An empty gzip member (RFC 1952) whose extra field `SG` holds the table's offset in hexadecimal and `STARGZ`.
fn footer(table: u64) -> Vec<u8> {
    let mut footer = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x1a\0SG\x16\0".to_vec();
    footer.extend(format!("{table:016x}STARGZ").bytes());
    // A stored block of nothing, the last one; CRC and length of nothing.
    footer.extend(b"\x01\0\0\xff\xff\0\0\0\0\0\0\0\0");
    footer
}

/// Seconds since the epoch as RFC 3339 has them, in UTC; what lies outside its years becomes the epoch.
fn rfc3339(seconds: i64) -> String {
    let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Days to a date of the civil calendar, in eras of 400 years that begin on 1 March.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    if !(0..=9999).contains(&year) {
        return rfc3339(0);
    }
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Compression, Decompressor};

    #[test]
    fn times_are_dates_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_827_696, "2000-02-29T12:34:56Z"),
            (4_102_444_799, "2099-12-31T23:59:59Z"),
            (-1, "1969-12-31T23:59:59Z"),
            (i64::MAX / 4, "1970-01-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(seconds), text);
        }
    }

    fn tar() -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let big: Vec<u8> = (0..9_000_000_u32).map(|n| (n / 7) as u8).collect();
        for (path, bytes) in [("./a/small", &b"small"[..]), ("big", &big), ("empty", b"")] {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o640);
            header.set_mtime(1_700_000_000);
            builder.append_data(&mut header, path, bytes).unwrap();
        }
        builder.into_inner().unwrap()
    }

    #[test]
    fn it_is_a_gzip_of_the_same_files_the_same_each_time_and_each_piece_is_where_the_table_says() {
        let mut first = Vec::new();
        let written = estargz(&*tar(), &mut first, Arc::default()).unwrap();
        let mut second = Vec::new();
        assert_eq!(estargz(&*tar(), &mut second, Arc::default()).unwrap(), written);
        assert_eq!(first, second);
        let mut plain = Vec::new();
        Decompressor::new(&*first, Compression::Gzip).unwrap().read_to_end(&mut plain).unwrap();
        assert_eq!((Digest::of(&plain), plain.len() as u64), (written.diff_id.clone(), written.size));
        let mut archive = tar::Archive::new(&*plain);
        let mut names = Vec::new();
        let mut table = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            names.push(entry.path().unwrap().display().to_string());
            if names.last().unwrap() == TABLE {
                entry.read_to_end(&mut table).unwrap();
            }
        }
        assert_eq!(names, [LANDMARKS[1], "a/small", "big", "empty", TABLE]);
        assert_eq!(Digest::of(&table), written.table);
        let table: serde_json::Value = serde_json::from_slice(&table).unwrap();
        let pieces: Vec<_> = table["entries"].as_array().unwrap().iter().filter(|item| item["name"] == "big").collect();
        assert_eq!(pieces.len(), 3);
        for piece in pieces {
            let offset = usize::try_from(piece["offset"].as_u64().unwrap()).unwrap();
            let mut bytes = Vec::new();
            let end = piece["chunkSize"].as_u64().unwrap_or(9_000_000 - 2 * CHUNK);
            flate2::read::GzDecoder::new(&first[offset..]).take(end).read_to_end(&mut bytes).unwrap();
            assert_eq!(Digest::of(&bytes).as_str(), piece["chunkDigest"]);
        }
        assert_eq!(
            first[first.len() - 51..],
            footer(
                u64::from_str_radix(std::str::from_utf8(&first[first.len() - 35..first.len() - 19]).unwrap(), 16)
                    .unwrap()
            )
        );
        // Converted again it stays what it is.
        let mut again = Vec::new();
        assert_eq!(estargz(&*plain, &mut again, Arc::default()).unwrap(), written);
    }
}
