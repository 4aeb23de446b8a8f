//! The files of one ingest: `data`, and `ingest.json` that says whose they are.

use std::fs::{self, File};
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use gantry_types::{Algorithm, Digest, Hasher};
use rustix::io::{Errno, ReadWriteFlags, pwritev2};
use serde::{Deserialize, Serialize};

use crate::lock::Guard;
use crate::{Error, Status, WriterOptions};

/// Bytes read at a time when an ingest is hashed again.
const REREAD: usize = 1 << 20;

/// Directory of an ingest.
#[derive(Clone, Debug)]
pub(crate) struct Home(PathBuf);

/// What is kept about an ingest beside its bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) reference: String,
    pub(crate) total: Option<u64>,
    pub(crate) expected: Option<Digest>,
    /// Since 1970.
    started: Duration,
}

impl Home {
    /// The directory of the ingest of that name. The name is any text, so the directory is called by its hash.
    pub(crate) fn of(ingests: &Path, reference: &str) -> Home {
        Home(ingests.join(Digest::of(reference.as_bytes()).hex()))
    }

    pub(crate) fn at(directory: PathBuf) -> Home {
        Home(directory)
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.0.join("data")
    }

    fn json(&self) -> PathBuf {
        self.0.join("ingest.json")
    }

    /// Whether a writer can go on here: both files are there and make sense.
    pub(crate) fn is_whole(&self) -> bool {
        self.data().is_file() && self.record().is_ok()
    }

    pub(crate) fn record(&self) -> io::Result<Record> {
        Ok(serde_json::from_slice(&fs::read(self.json())?)?)
    }

    /// How far the ingest is by its files.
    pub(crate) fn status(&self) -> io::Result<Status> {
        let record = self.record()?;
        let data = fs::metadata(self.data())?;
        Ok(record.status(data.len(), data.modified()?))
    }

    /// Forgets the ingest.
    pub(crate) fn remove(&self) -> io::Result<()> {
        fs::remove_dir_all(&self.0)
    }

    /// Goes on with the ingest that is here, or begins one.
    pub(crate) fn open(&self, options: &WriterOptions) -> Result<(Record, File), Error> {
        if let Ok(record) = self.record() {
            let record = self.agree(record, options)?;
            let data = File::options().read(true).write(true).open(self.data());
            return Ok((record, data.map_err(Error::io("open", &self.data()))?));
        }
        // What a crash may have left here was no ingest yet.
        let _ = fs::remove_dir_all(&self.0);
        fs::create_dir(&self.0).map_err(Error::io("make", &self.0))?;
        let data = File::options().read(true).write(true).create(true).truncate(true).open(self.data());
        let data = data.map_err(Error::io("make", &self.data()))?;
        touch(&data).map_err(Error::io("touch", &self.data()))?;
        let record = Record::new(options);
        self.write(&record)?;
        Ok((record, data))
    }

    /// Joins what is known already with what a new writer says.
    fn agree(&self, record: Record, options: &WriterOptions) -> Result<Record, Error> {
        if let (Some(earlier), Some(given)) = (record.total, options.total)
            && earlier != given
        {
            return Err(Error::TotalChanged { reference: record.reference, earlier, given });
        }
        let expected = options.expected.clone().or_else(|| record.expected.clone());
        let joined = Record { total: record.total.or(options.total), expected, ..record.clone() };
        if joined != record {
            self.write(&joined)?;
        }
        Ok(joined)
    }

    fn write(&self, record: &Record) -> Result<(), Error> {
        let fresh = self.0.join("ingest.json.new");
        let json = serde_json::to_vec(record).map_err(|e| Error::io("write", &fresh)(e.into()))?;
        fs::write(&fresh, json).map_err(Error::io("write", &fresh))?;
        fs::rename(&fresh, self.json()).map_err(Error::io("rename", &fresh))
    }
}

impl Record {
    fn new(options: &WriterOptions) -> Record {
        let started = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let WriterOptions { reference, total, expected } = options.clone();
        Record { reference, total, expected, started }
    }

    pub(crate) fn status(&self, offset: u64, updated: SystemTime) -> Status {
        Status {
            reference: self.reference.clone(),
            offset,
            total: self.total,
            expected: self.expected.clone(),
            started: SystemTime::UNIX_EPOCH.checked_add(self.started).unwrap_or(SystemTime::UNIX_EPOCH),
            updated,
        }
    }
}

/// Blobs of this many bytes or more leave the kernel's cache once they are on the disk: whoever pulls unpacks while the
/// bytes come in, and gibibytes that nobody reads again would push out what containers use.
const LARGE: u64 = 32 << 20;

/// `RWF_DONTCACHE` (Linux 6.14; pwritev2(2)): written back at once, and not kept in the kernel's cache after that.
const DROP_BEHIND: ReadWriteFlags = ReadWriteFlags::from_bits_retain(0x80);

/// Most buffers of one write: `IOV_MAX`.
const VECTOR: usize = 1024;

/// An ingest that is being written. All of it blocks on the disk.
pub(crate) struct Ingest {
    pub(crate) home: Home,
    pub(crate) file: File,
    /// Bytes in the file.
    pub(crate) written: u64,
    /// The digest so far.
    hash: Hash,
    /// Whether what is written shall leave the kernel's cache.
    large: bool,
    /// Whether kernel and file system know how.
    drops: bool,
    /// Goes with the ingest, so that the name is held until its last job is done.
    _guard: Guard,
}

impl Ingest {
    pub(crate) fn new(
        home: Home,
        file: File,
        total: Option<u64>,
        algorithm: Algorithm,
        guard: Guard,
    ) -> Result<Ingest, Error> {
        let written = file.metadata().map_err(Error::io("stat", &home.data()))?.len();
        let large = total.is_some_and(|total| total >= LARGE);
        Ok(Ingest { home, file, written, hash: Hash::new(algorithm), large, drops: true, _guard: guard })
    }

    /// Whether the digest so far is that of all that is in the file.
    fn is_hashed(&self) -> bool {
        self.hash.hashed == self.written
    }

    /// The digest so far, where it is that of all that is in the file.
    pub(crate) fn hash_of_all(&self) -> Option<Hash> {
        self.is_hashed().then(|| self.hash.clone())
    }

    /// Appends, and hashes where the digest behind the pieces is not `known`. After a failure the file is as long as before.
    pub(crate) fn append(&mut self, pieces: &[Bytes], known: Option<Hash>) -> Result<(), Error> {
        if let Some(hash) = known {
            self.write(pieces)?;
            self.hash = hash;
        } else {
            self.catch_up()?;
            self.write(pieces)?;
            self.hash.add(pieces);
        }
        Ok(())
    }

    /// Appends; the digest is where it was. After a failure the file is as long as before.
    pub(crate) fn write(&mut self, pieces: &[Bytes]) -> Result<(), Error> {
        let len: usize = pieces.iter().map(Bytes::len).sum();
        if len == 0 {
            return Ok(());
        }
        if let Err(error) = self.write_pieces(pieces) {
            // Should this fail, too, the bytes behind `written` are written over.
            let _ = self.file.set_len(self.written);
            return Err(Error::io("write", &self.home.data())(error));
        }
        self.written += len as u64;
        touch(&self.file).map_err(Error::io("touch", &self.home.data()))
    }

    fn write_pieces(&mut self, pieces: &[Bytes]) -> io::Result<()> {
        fail::fail_point!("content::write", |_| Err(io::ErrorKind::StorageFull.into()));
        let mut slices: Vec<IoSlice<'_>> = pieces.iter().filter(|p| !p.is_empty()).map(|p| IoSlice::new(p)).collect();
        let (mut left, mut offset) = (&mut slices[..], self.written);
        while !left.is_empty() {
            let drops = self.drops && (self.large || offset >= LARGE);
            let flags = if drops { DROP_BEHIND } else { ReadWriteFlags::empty() };
            match pwritev2(&self.file, &left[..left.len().min(VECTOR)], offset, flags) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    offset += written as u64;
                    IoSlice::advance_slices(&mut left, written);
                }
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) if drops => self.drops = false,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Drops the bytes behind `size`.
    pub(crate) fn truncate(&mut self, size: u64) -> Result<(), Error> {
        self.file.set_len(size).map_err(Error::io("truncate", &self.home.data()))?;
        self.written = size;
        self.hash = Hash::new(self.hash.algorithm);
        touch(&self.file).map_err(Error::io("touch", &self.home.data()))
    }

    /// Digest of what is in the file.
    pub(crate) fn digest(&mut self, algorithm: Algorithm) -> Result<Digest, Error> {
        if algorithm != self.hash.algorithm {
            self.hash = Hash::new(algorithm);
        }
        self.catch_up()?;
        Ok(self.hash.hasher.clone().finish())
    }

    /// Hashes what is in the file and not in the hash.
    fn catch_up(&mut self) -> Result<(), Error> {
        if self.is_hashed() {
            return Ok(());
        }
        let mut buffer = vec![0; REREAD];
        while self.hash.hashed < self.written {
            let want = usize::try_from(self.written - self.hash.hashed).unwrap_or(REREAD).min(REREAD);
            let piece = &mut buffer[..want];
            self.file.read_exact_at(piece, self.hash.hashed).map_err(Error::io("read", &self.home.data()))?;
            self.hash.update(piece);
        }
        Ok(())
    }
}

/// The digest of the first bytes of an ingest.
#[derive(Clone)]
pub(crate) struct Hash {
    hasher: Hasher,
    algorithm: Algorithm,
    /// Bytes in it: fewer than are in the file until an ingest that was opened again is read again.
    hashed: u64,
}

impl Hash {
    fn new(algorithm: Algorithm) -> Hash {
        Hash { hasher: Hasher::new(algorithm), algorithm, hashed: 0 }
    }

    /// Adds the next bytes.
    pub(crate) fn add(&mut self, pieces: &[Bytes]) {
        pieces.iter().for_each(|piece| self.update(piece));
    }

    /// What it is now, where it is of that algorithm.
    pub(crate) fn digest(&self, algorithm: Algorithm) -> Option<Digest> {
        (self.algorithm == algorithm).then(|| self.hasher.clone().finish())
    }

    fn update(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.hashed += bytes.len() as u64;
    }
}

/// Sets the time of the last change exactly: the kernel's own may lie some milliseconds back, before the call that a
/// client measures by.
fn touch(file: &File) -> io::Result<()> {
    file.set_modified(SystemTime::now())
}
