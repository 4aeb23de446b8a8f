//! Reading a blob's file.

use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use rustix::buffer::spare_capacity;
use tokio::task::spawn_blocking;

use crate::{Error, ReaderAt};

/// A blob of the local store, opened.
#[derive(Debug)]
pub(crate) struct LocalReader {
    file: Arc<File>,
    path: PathBuf,
    size: u64,
    spare: Arc<Spare>,
}

/// Buffers of one reader that can be used again: memory that the kernel has to give anew costs as much as the read.
/// They go with the reader.
#[derive(Debug, Default)]
struct Spare(Mutex<Vec<Vec<u8>>>);

/// Buffers kept, at most: as many as a stream has under way.
const KEEP: usize = 3;

/// Bytes of a blob; their buffer is used again when the last of them is dropped.
struct Lent {
    buffer: Vec<u8>,
    spare: Arc<Spare>,
}

impl Spare {
    fn take(&self) -> Vec<u8> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        let mut spare = self.spare.0.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < KEEP {
            spare.push(buffer);
        }
    }
}

impl LocalReader {
    pub(crate) fn new(file: File, path: PathBuf, size: u64) -> LocalReader {
        LocalReader { file: Arc::new(file), path, size, spare: Arc::default() }
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
        let (file, spare) = (self.file.clone(), self.spare.clone());
        let read = move || {
            let buffer = read(&file, offset, len, spare.take())?;
            Ok(Bytes::from_owner(Lent { buffer, spare }))
        };
        spawn_blocking(read).await.map_err(|e| Error::task(&e))?.map_err(Error::io("read", &self.path))
    }
}

/// Up to `len` bytes, into memory that is not cleared before.
fn read(file: &File, mut offset: u64, len: usize, mut buffer: Vec<u8>) -> std::io::Result<Vec<u8>> {
    buffer.reserve_exact(len);
    while buffer.len() < len {
        match rustix::io::pread(file, spare_capacity(&mut buffer), offset) {
            Ok(0) => break,
            Ok(read) => offset += read as u64,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    // The allocator may have given more than was asked for.
    buffer.truncate(len);
    Ok(buffer)
}
