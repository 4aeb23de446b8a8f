//! sled, used so that an acknowledged write is durable, and so that its failures are errors.
//!
//! sled's own flush syncs ranges without the file's metadata, so a sync of the file follows. Each value carries a checksum over
//! key and value; values over 60 KiB are split, because sled keeps larger ones in files it does not sync.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use gantry_types::ErrorKind;

use crate::Error;
use crate::keys::Key;
use crate::memory::{Changes, Memory, Value};

/// Largest piece of a value, in bytes.
const PART: usize = 60 * 1024;

/// First byte of the keys of parts: behind all kinds of records.
const PARTS: u8 = 0xff;

const WHOLE: u8 = 0;
const SPLIT: u8 = 1;

/// How long another handle of this process may take to let go of the files.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// sled in a directory; closed after a failed write until the next one opens it again.
pub(crate) struct Store {
    directory: PathBuf,
    cache: u64,
    open: Option<Open>,
    /// Keeps other processes out.
    lock: Option<File>,
}

struct Open {
    sled: sled::Db,
    /// Our own descriptor of sled's file, to sync it.
    file: File,
}

/// A record that cannot be read.
#[derive(Debug)]
pub(crate) struct Unread {
    pub(crate) key: Vec<u8>,
    pub(crate) reason: String,
}

/// What is in the store.
#[derive(Default)]
pub(crate) struct Contents {
    pub(crate) records: Changes,
    pub(crate) unread: Vec<Unread>,
    /// Why reading stopped before the end, if it did.
    pub(crate) stopped: Option<String>,
}

impl Store {
    /// Opens or makes the store in `directory`. The reason for a failure is text, because whatever it is, the answer is the same.
    pub(crate) fn open(directory: &Path, cache: u64) -> Result<Store, String> {
        let open = Open::new(directory, cache)?;
        Ok(Store { directory: directory.to_owned(), cache, open: Some(open), lock: None })
    }

    /// Keeps the locked file until the store is dropped.
    pub(crate) fn hold(&mut self, lock: File) {
        self.lock = Some(lock);
    }

    /// All that can be read.
    pub(crate) fn contents(&self) -> Contents {
        let Some(open) = &self.open else { return Contents::default() };
        let mut contents = Contents::default();
        let read = guarded(|| open.read(&mut contents));
        contents.stopped = read.err();
        contents
    }

    /// Writes changes durably. `memory` is what was written before. After a failure nothing of it counts: the next call
    /// opens the files anew and first undoes what got there.
    pub(crate) fn apply(&mut self, changes: &Changes, memory: &Memory) -> Result<(), Error> {
        self.try_apply(changes, memory).map_err(|reason| {
            tracing::error!(directory = %self.directory.display(), reason, "metadata not written");
            self.close();
            Error::NotWritten { kind: kind_of(&reason), reason }
        })
    }

    fn try_apply(&mut self, changes: &Changes, memory: &Memory) -> Result<(), String> {
        let open = match &self.open {
            Some(open) => open,
            None => {
                let open = Open::new(&self.directory, self.cache)?;
                undo(&open, memory)?;
                self.open.insert(open)
            }
        };
        guarded(|| open.apply(changes, memory))
    }

    fn close(&mut self) {
        let open = self.open.take();
        // sled may panic when it is dropped after a failure.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(open)));
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.close();
    }
}

impl Open {
    fn new(directory: &Path, cache: u64) -> Result<Open, String> {
        let sled = guarded(|| open_sled(directory, cache))?;
        let file = File::open(directory.join("db")).map_err(|e| e.to_string())?;
        let sync = |path: &Path| File::open(path).and_then(|directory| directory.sync_all());
        file.sync_all().and_then(|()| sync(directory)).map_err(|e| e.to_string())?;
        directory.parent().map_or(Ok(()), sync).map_err(|e| e.to_string())?;
        Ok(Open { sled, file })
    }

    fn read(&self, contents: &mut Contents) -> Result<(), String> {
        for entry in self.sled.iter() {
            let (key, stored) = entry.map_err(|e| e.to_string())?;
            if key.first() == Some(&PARTS) {
                break;
            }
            let decoded = Key::decode(&key).ok_or_else(|| "not a key".to_owned());
            match decoded.and_then(|decoded| Ok((decoded, self.value(&key, &stored)?))) {
                Ok((key, value)) => drop(contents.records.insert(key, Some(value))),
                Err(reason) => contents.unread.push(Unread { key: key.to_vec(), reason }),
            }
        }
        Ok(())
    }

    /// The value behind what is stored under a key, checked.
    fn value(&self, key: &[u8], stored: &[u8]) -> Result<Value, String> {
        let (sum, rest) = stored.split_first_chunk::<4>().ok_or("too short")?;
        let value: Value = match rest.split_first() {
            Some((&WHOLE, value)) => value.into(),
            Some((&SPLIT, count)) => {
                self.joined(key, u16::from_le_bytes(count.try_into().map_err(|_| "no number of parts")?))?.into()
            }
            _ => return Err("neither whole nor split".into()),
        };
        match checksum(key, &value) == *sum {
            true => Ok(value),
            false => Err("the checksum is wrong".into()),
        }
    }

    fn joined(&self, key: &[u8], count: u16) -> Result<Vec<u8>, String> {
        let mut value = Vec::new();
        for number in 0..count {
            let part = self.sled.get(part_key(key, number)).map_err(|e| e.to_string())?;
            value.extend_from_slice(&part.ok_or("a part is missing")?);
        }
        Ok(value)
    }

    fn apply(&self, changes: &Changes, memory: &Memory) -> Result<(), String> {
        let mut batch = sled::Batch::default();
        for (key, value) in changes {
            let old = memory.get(key.kind, &key.namespace, &key.name);
            stage(&mut batch, &key.encode(), old.as_deref(), value.as_deref());
        }
        fail::fail_point!("metadata::before-apply", |_| Err("fail point".into()));
        self.sled.apply_batch(batch).map_err(|e| e.to_string())?;
        fail::fail_point!("metadata::before-flush", |_| Err("fail point".into()));
        self.sled.flush().map_err(|e| e.to_string())?;
        fail::fail_point!("metadata::before-sync", |_| Err("fail point".into()));
        self.file.sync_data().map_err(|e| e.to_string())
    }
}

/// Puts one change into sled's batch.
fn stage(batch: &mut sled::Batch, key: &[u8], old: Option<&[u8]>, new: Option<&[u8]>) {
    let parts = |value: &[u8]| if value.len() > PART { value.len().div_ceil(PART) } else { 0 };
    let count = new.map_or(0, parts);
    for number in count..old.map_or(0, parts) {
        batch.remove(part_key(key, number as u16));
    }
    let Some(value) = new else { return batch.remove(key) };
    let mut stored = checksum(key, value).to_vec();
    if count == 0 {
        stored.push(WHOLE);
        stored.extend_from_slice(value);
    } else {
        stored.push(SPLIT);
        stored.extend_from_slice(&(count as u16).to_le_bytes());
        for (number, part) in value.chunks(PART).enumerate() {
            batch.insert(part_key(key, number as u16), part);
        }
    }
    batch.insert(key, stored);
}

/// Brings the files back to what was acknowledged, after a write that failed half way.
fn undo(open: &Open, memory: &Memory) -> Result<(), String> {
    let mut contents = Contents::default();
    guarded(|| open.read(&mut contents))?;
    let mut wrong = Changes::new();
    let mut there = contents.records;
    for (namespace, space) in memory.snapshot() {
        for (kind, records) in crate::keys::Kind::ALL.into_iter().zip(space) {
            for (name, value) in records.iter() {
                let key = Key { kind, namespace: namespace.clone(), name: name.clone() };
                if there.remove(&key).flatten().as_ref() != Some(value) {
                    wrong.insert(key, Some(value.clone()));
                }
            }
        }
    }
    wrong.extend(there.into_keys().map(|key| (key, None)));
    guarded(|| open.apply(&wrong, memory))
}

fn open_sled(directory: &Path, cache: u64) -> Result<sled::Db, String> {
    let config =
        sled::Config::default().path(directory).cache_capacity(cache).flush_every_ms(None).print_profile_on_drop(false);
    let patient_until = Instant::now() + LOCK_PATIENCE;
    loop {
        match config.open() {
            Ok(sled) => return Ok(sled),
            Err(error) if error.to_string().contains("acquire lock") && Instant::now() < patient_until => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(error) => return Err(error.to_string()),
        }
    }
}

/// Runs what sled may panic in.
fn guarded<T>(run: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(format!("the store panicked: {}", text.unwrap_or_default()))
    })
}

fn part_key(key: &[u8], number: u16) -> Vec<u8> {
    [&[PARTS], key, &number.to_be_bytes()].concat()
}

fn checksum(key: &[u8], value: &[u8]) -> [u8; 4] {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&(key.len() as u64).to_le_bytes());
    hasher.update(key);
    hasher.update(value);
    hasher.finalize().to_le_bytes()
}

fn kind_of(reason: &str) -> ErrorKind {
    let full = ["StorageFull", "No space left", "QuotaExceeded"];
    match full.iter().any(|word| reason.contains(word)) {
        true => ErrorKind::ResourceExhausted,
        false => ErrorKind::Internal,
    }
}
