//! Writing a tar stream: `ustar` headers, preceded by PAX records for what they cannot hold.

use std::io::{self, Write};

use super::pax::append;
use super::{BLOCK, padding};

/// What a header says.
#[derive(Clone, Debug, Default)]
pub(crate) struct Header<'a> {
    /// Type flag: `0` file, `1` hard link, `2` symlink, `3` and `4` devices, `5` directory, `6` fifo.
    pub(crate) flag: u8,
    /// Path; that of a directory ends in `/`.
    pub(crate) path: &'a [u8],
    /// Target of a link.
    pub(crate) link: &'a [u8],
    /// Permission bits with set-id and sticky bits.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Bytes of content that follow.
    pub(crate) size: u64,
    /// Seconds and nanoseconds since the epoch.
    pub(crate) mtime: (i64, u32),
    /// Major and minor number.
    pub(crate) device: (u32, u32),
    /// Extended attributes, sorted.
    pub(crate) xattrs: &'a [(Vec<u8>, Vec<u8>)],
}

/// Writes headers and contents, and counts.
pub(crate) struct Writer<W> {
    out: W,
    written: u64,
    padding: u64,
}

impl<W: Write> Writer<W> {
    pub(crate) fn new(out: W) -> Writer<W> {
        Writer { out, written: 0, padding: 0 }
    }

    /// Bytes written until now.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    /// Writes `header`. Exactly `header.size` bytes of content must follow.
    pub(crate) fn header(&mut self, header: &Header<'_>) -> io::Result<()> {
        self.pad()?;
        let mut names = (&[][..], header.path.to_vec());
        if header.path.len() > 100
            && let Some((prefix, name)) = split(header.path)
        {
            names = (prefix, name.to_vec());
        }
        let records = records(header);
        if !records.is_empty() {
            names = (&[], ascii(header.path));
            self.records(header.path, &records)?;
        }
        self.content(&block(header, (names.0, &names.1)))?;
        self.padding = padding(header.size);
        Ok(())
    }

    /// Writes a piece of content.
    pub(crate) fn content(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// What is written to; nothing of the tar may be written there.
    pub(crate) fn out(&mut self) -> &mut W {
        &mut self.out
    }

    /// Writes the end marker; gives what was written to, and how many bytes were.
    pub(crate) fn end(mut self) -> io::Result<(W, u64)> {
        self.pad()?;
        self.content(&[0; 2 * BLOCK])?;
        Ok((self.out, self.written))
    }

    /// Writes the end marker.
    pub(crate) fn finish(mut self) -> io::Result<u64> {
        self.pad()?;
        self.content(&[0; 2 * BLOCK])?;
        self.out.flush()?;
        Ok(self.written)
    }

    /// Ends the content of the last entry.
    pub(crate) fn pad(&mut self) -> io::Result<()> {
        let length = usize::try_from(std::mem::take(&mut self.padding)).unwrap_or(0);
        self.content(&[0; BLOCK][..length])
    }

    /// Writes the extended header of the entry `path`, named as pax(1) and Go name it.
    fn records(&mut self, path: &[u8], records: &[u8]) -> io::Result<()> {
        let size = records.len() as u64;
        let (dir, name) = crate::dirs::split(path);
        let mut path = crate::dirs::joined(dir, b"PaxHeaders.0");
        if !name.is_empty() {
            path = crate::dirs::joined(&path, name);
        }
        let path = ascii(&path);
        let header = Header { flag: b'x', path: trimmed(&path), size, ..Header::default() };
        self.content(&block(&header, (&[], header.path)))?;
        self.content(records)?;
        self.padding = padding(size);
        self.pad()
    }
}

/// The PAX records that `header` needs, sorted by key; none if `ustar` can hold all.
fn records(header: &Header<'_>) -> Vec<u8> {
    let mut records = Vec::new();
    for (name, value) in header.xattrs {
        append(&mut records, &[b"SCHILY.xattr.", name.as_slice()].concat(), value);
    }
    if header.gid > OCTAL_7 {
        append(&mut records, b"gid", header.gid.to_string().as_bytes());
    }
    if header.link.len() > 100 || !header.link.is_ascii() {
        append(&mut records, b"linkpath", header.link);
    }
    if header.mtime.1 != 0 || !(0..=OCTAL_11).contains(&header.mtime.0) {
        append(&mut records, b"mtime", decimal_time(header.mtime).as_bytes());
    }
    let unsplittable = split(header.path).is_none() || !header.path.is_ascii();
    let others = header.size > OCTAL_11 as u64 || header.uid > OCTAL_7 || !records.is_empty();
    if unsplittable || (header.path.len() > 100 && others) {
        append(&mut records, b"path", header.path);
    }
    if header.size > OCTAL_11 as u64 {
        append(&mut records, b"size", header.size.to_string().as_bytes());
    }
    if header.uid > OCTAL_7 {
        append(&mut records, b"uid", header.uid.to_string().as_bytes());
    }
    records
}

/// The largest numbers that fields of seven and eleven octal digits hold.
const OCTAL_7: u32 = 0o7_777_777;
const OCTAL_11: i64 = 0o77_777_777_777;

fn decimal_time((seconds, nanoseconds): (i64, u32)) -> String {
    let (sign, seconds, nanoseconds) = match (seconds < 0, nanoseconds) {
        (true, 1..) => ("-", -(seconds + 1), 1_000_000_000 - nanoseconds),
        (true, 0) => ("-", -seconds, 0),
        (false, _) => ("", seconds, nanoseconds),
    };
    let text = format!("{sign}{seconds}.{nanoseconds:09}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Prefix and name of a path that `ustar` can hold, parted at the last slash that will do.
fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.len() <= 100 {
        return Some((&[], path));
    }
    let end = path.len().min(157) - 1;
    let cut = path[..end].iter().rposition(|&byte| byte == b'/')?;
    (cut > 0 && path.len() - cut - 1 <= 100).then(|| (&path[..cut], &path[cut + 1..]))
}

/// The bytes of a name that any reader understands; the whole name is in a PAX record then.
fn ascii(name: &[u8]) -> Vec<u8> {
    name.iter().copied().filter(|byte| byte.is_ascii() && *byte != 0).collect()
}

fn truncated(name: &[u8]) -> &[u8] {
    &name[..name.len().min(100)]
}

/// A truncated name without a slash at its end, which readers might take for the mark of a directory.
fn trimmed(name: &[u8]) -> &[u8] {
    let mut cut = truncated(name);
    while cut.len() < name.len() && cut.ends_with(b"/") {
        cut = &cut[..cut.len() - 1];
    }
    cut
}

fn block(header: &Header<'_>, (prefix, name): (&[u8], &[u8])) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    put(&mut block, 0, trimmed(name));
    octal(&mut block[100..108], u64::from(header.mode));
    octal(&mut block[108..116], u64::from(if header.uid > OCTAL_7 { 0 } else { header.uid }));
    octal(&mut block[116..124], u64::from(if header.gid > OCTAL_7 { 0 } else { header.gid }));
    octal(&mut block[124..136], if header.size > OCTAL_11 as u64 { 0 } else { header.size });
    octal(
        &mut block[136..148],
        if (0..=OCTAL_11).contains(&header.mtime.0) { header.mtime.0.unsigned_abs() } else { 0 },
    );
    block[156] = header.flag;
    put(&mut block, 157, trimmed(&ascii(header.link)));
    put(&mut block, 257, b"ustar\x0000");
    if header.flag != b'x' {
        octal(&mut block[329..337], u64::from(header.device.0));
        octal(&mut block[337..345], u64::from(header.device.1));
    }
    put(&mut block, 345, prefix);
    block[148..156].fill(b' ');
    let sum = block.iter().map(|&byte| u64::from(byte)).sum();
    octal(&mut block[148..155], sum);
    block
}

fn put(block: &mut [u8; BLOCK], at: usize, bytes: &[u8]) {
    block[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Fills a field with octal digits and a final NUL.
fn octal(field: &mut [u8], mut value: u64) {
    let digits = field.len() - 1;
    for digit in field[..digits].iter_mut().rev() {
        *digit = b'0' + (value & 7) as u8;
        value >>= 3;
    }
    field[digits] = 0;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Reader;
    use super::*;

    proptest! {
        #[test]
        fn what_is_written_reads_back(
            path in "[a-zé]{1,80}(/[a-z]{1,60}){0,4}",
            link in "[a-z/]{1,150}",
            numbers in (0_u32..0o10000, 0..u32::MAX, 0..u32::MAX, -5_000_000_000_i64..90_000_000_000, 0_u32..1_000_000_000),
            xattrs in proptest::collection::vec(("user\\.[a-z]{1,20}", proptest::collection::vec(any::<u8>(), 0..300)), 0..3),
        ) {
            let (mode, uid, gid, seconds, nanoseconds) = numbers;
            let xattrs: Vec<_> = xattrs.into_iter().map(|(name, value)| (name.into_bytes(), value)).collect();
            let (path, link) = (path.into_bytes(), link.into_bytes());
            let header = Header {
                flag: b'2', path: &path, link: &link, mode, uid, gid, size: 0,
                mtime: (seconds, nanoseconds), device: (0, 0), xattrs: &xattrs,
            };
            let mut bytes = Vec::new();
            let mut writer = Writer::new(&mut bytes);
            writer.header(&header).unwrap();
            writer.finish().unwrap();
            let entry = Reader::new(&bytes[..], 1 << 20, Default::default()).next().unwrap().unwrap();
            prop_assert_eq!((entry.path, entry.link, entry.mode), (path, link, mode));
            prop_assert_eq!((entry.uid, entry.gid, entry.mtime, entry.xattrs), (uid, gid, (seconds, nanoseconds), xattrs));
        }
    }
}
