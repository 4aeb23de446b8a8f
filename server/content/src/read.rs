//! Reading a blob's file.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use tokio::task::spawn_blocking;

use crate::mapped::{is_resident, map};
use crate::{Error, ReaderAt};

/// A blob of the local store, opened.
#[derive(Debug)]
pub(crate) struct LocalReader {
    file: Arc<File>,
    path: PathBuf,
    size: u64,
    spare: Arc<Spare>,
    /// All of the file, once it was asked for; none where it cannot be mapped.
    whole: OnceLock<Option<Bytes>>,
}

/// Buffers of one reader that can be used again: memory that the kernel has to give anew costs as much as the read.
/// They go with the reader.
#[derive(Debug, Default)]
struct Spare(Mutex<Vec<Vec<u8>>>);

/// Fewer bytes are copied before they are mapped.
const WORTH_MAPPING: usize = 64 << 10;

/// Buffers kept, at most: as many as a stream has under way.
const KEEP: usize = 3;

/// Bytes of a blob, the first of a buffer, which is used again when the last of them is dropped.
struct Lent {
    buffer: Vec<u8>,
    len: usize,
    spare: Arc<Spare>,
}

impl Spare {
    /// A buffer of at least `len` bytes; what is in it does not matter.
    fn take(&self, len: usize) -> Vec<u8> {
        let spare = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        spare.filter(|buffer| buffer.len() >= len).unwrap_or_else(|| vec![0; len])
    }
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[..self.len]
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut spare = self.spare.0.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < KEEP {
            spare.push(std::mem::take(&mut self.buffer));
        }
    }
}

impl LocalReader {
    pub(crate) fn new(file: File, path: PathBuf, size: u64) -> LocalReader {
        LocalReader { file: Arc::new(file), path, size, spare: Arc::default(), whole: OnceLock::new() }
    }

    fn map(&self) -> Option<Bytes> {
        let mapped = usize::try_from(self.size).map_err(io::Error::other).and_then(|size| map(&self.file, size));
        let unmapped = |error| tracing::debug!(path = %self.path.display(), %error, "a blob's bytes are copied");
        mapped.map_err(unmapped).ok()
    }
}

#[async_trait]
impl ReaderAt for LocalReader {
    fn size(&self) -> u64 {
        self.size
    }

    async fn read_at(&self, offset: u64, len: usize) -> Result<Bytes, Error> {
        let left = usize::try_from(self.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let len = len.min(left);
        if len == 0 {
            return Ok(Bytes::new());
        }
        let mut lent = Lent { buffer: self.spare.take(len), len: 0, spare: self.spare.clone() };
        lent.len = cached(&self.file, offset, &mut lent.buffer[..len]);
        if lent.len < len {
            let file = self.file.clone();
            let read = move || read_on(&file, offset, lent, len);
            lent = spawn_blocking(read).await.map_err(|e| Error::task(&e))?.map_err(Error::io("read", &self.path))?;
        }
        Ok(Bytes::from_owner(lent))
    }

    fn mapped(&self, offset: u64, len: usize) -> Option<Bytes> {
        if len < WORTH_MAPPING {
            return None;
        }
        let start = usize::try_from(offset).ok()?;
        let end = start.checked_add(len).filter(|&end| end as u64 <= self.size)?;
        let part = self.whole.get_or_init(|| self.map()).as_ref()?.slice(start..end);
        is_resident(&part).then_some(part)
    }
}

/// Reads what the kernel has in memory, which takes microseconds: less than to wake another thread for it. Gives the
/// bytes read; whoever waits for the disk is told the reason if there is trouble.
fn cached(file: &File, offset: u64, buffer: &mut [u8]) -> usize {
    let mut read = 0;
    while read < buffer.len() {
        let rest = &mut [IoSliceMut::new(&mut buffer[read..])];
        match preadv2(file, rest, offset + read as u64, ReadWriteFlags::NOWAIT) {
            Ok(0) => break,
            Ok(more) => read += more,
            Err(Errno::INTR) => {}
            Err(_) => break,
        }
    }
    read
}

/// Reads what is missing up to `len` bytes; blocks on the disk.
fn read_on(file: &File, offset: u64, mut lent: Lent, len: usize) -> io::Result<Lent> {
    while lent.len < len {
        match file.read_at(&mut lent.buffer[lent.len..len], offset + lent.len as u64) {
            Ok(0) => break,
            Ok(read) => lent.len += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(lent)
}
