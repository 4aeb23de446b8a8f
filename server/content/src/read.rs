//! Reading a blob's file.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

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
}

impl LocalReader {
    pub(crate) fn new(file: File, path: PathBuf, size: u64) -> LocalReader {
        LocalReader { file: Arc::new(file), path, size }
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
        let file = self.file.clone();
        let read = spawn_blocking(move || read(&file, offset, len)).await.map_err(|e| Error::task(&e))?;
        read.map(Bytes::from).map_err(Error::io("read", &self.path))
    }
}

/// Up to `len` bytes, into memory that is not cleared before.
fn read(file: &File, mut offset: u64, len: usize) -> std::io::Result<Vec<u8>> {
    let mut buffer = Vec::with_capacity(len);
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
