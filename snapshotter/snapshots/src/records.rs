//! Records on disk: one small file a snapshot, replaced by rename. A line with the digest of the rest, then JSON.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use gantry_types::Digest;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::graph::{Id, Node};

/// A record larger than this is damage.
const MAX_RECORD: u64 = 16 << 20;

const TEMPORARY: &str = ".tmp";

/// What a record file holds.
#[derive(Serialize, Deserialize)]
struct Record {
    version: u32,
    id: Id,
    #[serde(flatten)]
    node: Node,
}

/// The directory of records.
#[derive(Debug)]
pub(crate) struct Records {
    dir: PathBuf,
}

impl Records {
    /// Makes the directory where there is none.
    pub(crate) fn open(dir: PathBuf) -> Result<Records, Error> {
        fs::create_dir_all(&dir).map_err(Error::io("make", &dir))?;
        Ok(Records { dir })
    }

    /// Reads all. What cannot be read as a record is named in the log and deleted, as are temporary files.
    pub(crate) fn load(&self) -> Result<BTreeMap<Id, Node>, Error> {
        let mut nodes = BTreeMap::new();
        for entry in fs::read_dir(&self.dir).map_err(Error::io("list", &self.dir))? {
            let path = entry.map_err(Error::io("list", &self.dir))?.path();
            let temporary = path.to_string_lossy().ends_with(TEMPORARY);
            match if temporary { None } else { Some(read(&path)) } {
                Some(Ok(record)) => {
                    nodes.insert(record.id, record.node);
                    continue;
                }
                Some(Err(reason)) => tracing::error!(?path, %reason, "a snapshot's record is damaged; it is lost"),
                None => {}
            }
            fs::remove_file(&path).map_err(Error::io("remove", &path))?;
        }
        Ok(nodes)
    }

    /// Writes the record of `id`; when `durable`, it survives a power cut once this returns.
    pub(crate) fn write(&self, id: Id, node: &Node, durable: bool) -> Result<(), Error> {
        let path = self.path(id);
        self.replace(id, node, durable).map_err(Error::io("write", &path))
    }

    fn replace(&self, id: Id, node: &Node, durable: bool) -> io::Result<()> {
        let path = self.path(id);
        let temporary = path.with_file_name(format!("{id}{TEMPORARY}"));
        let mut file = File::create(&temporary)?;
        file.write_all(&encode(id, node)?)?;
        if durable {
            file.sync_all()?;
        }
        fs::rename(&temporary, &path)?;
        if durable { self.sync() } else { Ok(()) }
    }

    /// Deletes the record of `id`.
    pub(crate) fn remove(&self, id: Id) -> Result<(), Error> {
        let path = self.path(id);
        match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result.map_err(Error::io("remove", &path)),
        }
    }

    /// Returns when all deletions so far survive a power cut.
    pub(crate) fn sync(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }

    fn path(&self, id: Id) -> PathBuf {
        self.dir.join(id.to_string())
    }
}

fn encode(id: Id, node: &Node) -> io::Result<Vec<u8>> {
    let json = serde_json::to_vec(&Record { version: 1, id, node: node.clone() })?;
    let mut bytes = format!("{}\n", Digest::of(&json)).into_bytes();
    bytes.extend(json);
    Ok(bytes)
}

fn read(path: &Path) -> Result<Record, String> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|error| error.to_string())?;
    file.take(MAX_RECORD).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    let record = decode(&bytes)?;
    match path.file_name().and_then(|name| name.to_str()) {
        Some(name) if name == record.id.to_string() => Ok(record),
        _ => Err("it is the record of another snapshot".into()),
    }
}

fn decode(bytes: &[u8]) -> Result<Record, String> {
    let end = bytes.iter().position(|byte| *byte == b'\n').ok_or("it has no first line")?;
    let (digest, json) = (&bytes[..end], &bytes[end + 1..]);
    if digest != Digest::of(json).as_str().as_bytes() {
        return Err("its digest does not match".into());
    }
    let record: Record = serde_json::from_slice(json).map_err(|error| error.to_string())?;
    match record.version {
        1 => Ok(record),
        version => Err(format!("it is of version {version}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::{Kind, Usage};
    use proptest::prelude::*;
    use std::time::SystemTime;

    fn node(name: String) -> Node {
        let labels = [("k".to_owned(), name.clone())].into();
        let usage = Some(Usage { inodes: 3, size: 4096 });
        let now = SystemTime::now();
        Node { name, kind: Kind::Committed, parent: Some(7), labels, created: now, updated: now, usage }
    }

    proptest! {
        #[test]
        fn a_record_is_read_as_written_and_any_changed_byte_is_noticed(
            name in "\\PC{1,40}", position in any::<prop::sample::Index>(), flip in 1u8..,
        ) {
            let node = node(name);
            let mut bytes = encode(9, &node).unwrap();
            let record = decode(&bytes).unwrap();
            prop_assert_eq!((record.id, record.node), (9, node));
            let at = position.index(bytes.len());
            bytes[at] ^= flip;
            prop_assert!(decode(&bytes).is_err());
        }
    }

    #[test]
    fn damaged_and_temporary_files_cost_only_themselves() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path().join("records")).unwrap();
        records.write(1, &node("one".into()), true).unwrap();
        records.write(2, &node("two".into()), false).unwrap();
        fs::copy(records.path(1), records.path(3)).unwrap();
        fs::write(records.path(4), "").unwrap();
        fs::write(records.dir.join("5.tmp"), "half").unwrap();
        assert_eq!(records.load().unwrap().into_keys().collect::<Vec<_>>(), [1, 2]);
        records.remove(1).unwrap();
        records.remove(1).unwrap();
        assert_eq!(fs::read_dir(&records.dir).unwrap().count(), 1);
    }
}
