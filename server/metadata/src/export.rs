//! A copy of all records in one checksummed file, renamed into place: from it a damaged store is rebuilt.
//!
//! Form: a line of magic; then frames of length, CRC-32 (both little-endian, 4 bytes) and payload, where the payload is the length of the
//! key (4 bytes), key and value; at the end a frame of length zero whose checksum is the number of frames.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::Error;
use crate::committer::COMMIT;
use crate::db::number;
use crate::journal;
use crate::keys::{Key, Kind};
use crate::memory::{Changes, Snapshot};
use crate::stored::MAX_RECORD;

const MAGIC: &[u8] = b"gantry metadata export 1\n";

/// What an export holds.
#[derive(Default)]
pub(crate) struct Export {
    pub(crate) records: Changes,
    /// Why some of it could not be read, if so.
    pub(crate) damage: Vec<String>,
}

/// How many commits a state had.
pub(crate) fn commit(records: &Changes) -> u64 {
    records.get(&Key::new(Kind::Meta, "", COMMIT)).and_then(Option::as_ref).map_or(0, |value| number(value))
}

/// How many commits a state had.
pub(crate) fn commit_of(snapshot: &Snapshot) -> u64 {
    snapshot.get("").and_then(|space| space[Kind::Meta.index()].get(COMMIT)).map_or(0, |value| number(value))
}

fn path(directory: &Path) -> PathBuf {
    directory.join("export")
}

/// Writes the export durably; gives the number of its records.
pub(crate) fn write(directory: &Path, snapshot: &Snapshot) -> Result<u32, Error> {
    let fresh = directory.join("export.new");
    let records = write_file(&fresh, snapshot).map_err(Error::io("write", &fresh))?;
    std::fs::rename(&fresh, path(directory)).map_err(Error::io("rename", &fresh))?;
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(Error::io("sync", directory))?;
    Ok(records)
}

fn write_file(path: &Path, snapshot: &Snapshot) -> std::io::Result<u32> {
    let mut file = BufWriter::with_capacity(256 * 1024, File::create(path)?);
    file.write_all(MAGIC)?;
    let mut frames = 0u32;
    for (namespace, space) in snapshot {
        for (kind, records) in Kind::ALL.into_iter().zip(space) {
            for (name, value) in records.iter() {
                let key = Key { kind, namespace: namespace.clone(), name: name.clone() };
                write_frame(&mut file, &key.encode(), value)?;
                frames += 1;
            }
        }
    }
    file.write_all(&0u32.to_le_bytes())?;
    file.write_all(&frames.to_le_bytes())?;
    file.into_inner()?.sync_all()?;
    Ok(frames)
}

pub(crate) fn write_frame(file: &mut impl Write, key: &[u8], value: &[u8]) -> std::io::Result<()> {
    let key_len = (key.len() as u32).to_le_bytes();
    let mut hasher = crc32fast::Hasher::new();
    [&key_len, key, value].iter().for_each(|bytes| hasher.update(bytes));
    file.write_all(&((4 + key.len() + value.len()) as u32).to_le_bytes())?;
    file.write_all(&hasher.finalize().to_le_bytes())?;
    [&key_len, key, value].iter().try_for_each(|bytes| file.write_all(bytes))
}

/// Reads the export and, on top of it, the journal.
pub(crate) fn read_with_journal(directory: &Path) -> Export {
    let mut export = read(directory);
    let mut newest = commit(&export.records);
    for (commit, changes) in journal::read(directory, newest) {
        if commit != newest + 1 {
            export.damage.push(format!("the commits {} to {} are in no journal or export", newest + 1, commit - 1));
        }
        newest = commit;
        for (key, value) in changes {
            match value {
                Some(value) => drop(export.records.insert(key, Some(value))),
                None => drop(export.records.remove(&key)),
            }
        }
    }
    export
}

/// Reads what can be read; nothing, without damage, where no export was ever written.
fn read(directory: &Path) -> Export {
    match std::fs::read(path(directory)) {
        Ok(bytes) => parse(&bytes),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Export::default(),
        Err(error) => Export { damage: vec![format!("the export cannot be read: {error}")], ..Export::default() },
    }
}

fn parse(bytes: &[u8]) -> Export {
    let mut export = Export::default();
    let Some(mut rest) = bytes.strip_prefix(MAGIC) else {
        export.damage.push("the export does not begin like one".into());
        return export;
    };
    loop {
        match frame(rest) {
            Ok((Frame::Record(key, value), behind)) => {
                export.records.insert(key, Some(value.into()));
                rest = behind;
            }
            Ok((Frame::Damaged(reason), behind)) => {
                export.damage.push(reason);
                rest = behind;
            }
            Ok((Frame::End(frames), _)) => {
                let (read, frames) = (export.records.len() + export.damage.len(), frames as usize);
                if read < frames {
                    export.damage.push(format!("the export lacks {} records", frames - read));
                } else if read > frames {
                    // An end that is none: zeros, where a disk lost what was there.
                    export
                        .damage
                        .push(format!("the export ends behind {read} records and says that they are {frames}"));
                }
                return export;
            }
            Err(reason) => {
                export.damage.push(reason.into());
                return export;
            }
        }
    }
}

/// A piece of an export or journal.
pub(crate) enum Frame<'b> {
    Record(Key, &'b [u8]),
    Damaged(String),
    End(u32),
}

/// The first frame and what is behind it, or why nothing more can be read.
pub(crate) fn frame(bytes: &[u8]) -> Result<(Frame<'_>, &[u8]), &'static str> {
    const CUT: &str = "the export ends in the middle";
    let (length, rest) = bytes.split_first_chunk::<4>().ok_or(CUT)?;
    let (sum, rest) = rest.split_first_chunk::<4>().ok_or(CUT)?;
    let (length, sum) = (u32::from_le_bytes(*length) as usize, u32::from_le_bytes(*sum));
    if length == 0 {
        return Ok((Frame::End(sum), rest));
    }
    if length > MAX_RECORD + (64 << 10) {
        return Err("a frame of the export has an impossible length");
    }
    let (payload, behind) = rest.split_at_checked(length).ok_or(CUT)?;
    let key_and_value =
        payload.split_first_chunk::<4>().and_then(|(n, rest)| rest.split_at_checked(u32::from_le_bytes(*n) as usize));
    let frame = match key_and_value.and_then(|(key, value)| Some((Key::decode(key)?, value))) {
        Some((key, value)) if crc32fast::hash(payload) == sum => Frame::Record(key, value),
        Some((key, _)) => Frame::Damaged(format!("{key}: damaged in the export")),
        None => Frame::Damaged("a nameless record: damaged in the export".into()),
    };
    Ok((frame, behind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_that_tells_another_number_of_records_than_there_are_is_damage() {
        let mut bytes = MAGIC.to_vec();
        for name in ["a", "b"] {
            let key = Key::new(Kind::Image, "n", name.as_bytes());
            write_frame(&mut bytes, &key.encode(), b"value").unwrap();
        }
        let ended = |frames: u32| [&bytes[..], &0_u32.to_le_bytes(), &frames.to_le_bytes()].concat();
        assert!(parse(&ended(2)).damage.is_empty());
        assert_eq!(parse(&ended(3)).damage, ["the export lacks 1 records"]);
        // Zeros, where a disk lost what was there.
        let cut = parse(&ended(0));
        assert_eq!((cut.records.len(), cut.damage.len()), (2, 1));
    }
}
