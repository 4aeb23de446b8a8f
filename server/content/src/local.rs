//! The store in a directory: `blobs/ALGORITHM/HEX` and `ingest/HASH-OF-REF/`.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use gantry_types::Digest;

use crate::{Error, Info, ReaderAt, Status, Store, Writer, WriterOptions};

/// A content store in a directory of its own. Cheap to clone.
#[derive(Clone, Debug)]
pub struct LocalStore {}

impl LocalStore {
    /// Opens, or makes, the store in `root`. Ingests are kept, half-made ones are cleaned away. Blocks on the disk.
    ///
    /// # Errors
    /// [`Error::Io`] where directories cannot be made or read.
    pub fn open(_root: impl AsRef<Path>) -> Result<LocalStore, Error> {
        todo!()
    }
}

#[async_trait]
impl Store for LocalStore {
    async fn info(&self, _digest: &Digest) -> Result<Info, Error> {
        todo!()
    }
    async fn walk(&self) -> Result<Vec<Info>, Error> {
        todo!()
    }
    async fn delete(&self, _digest: &Digest) -> Result<(), Error> {
        todo!()
    }
    async fn reader(&self, _digest: &Digest) -> Result<Arc<dyn ReaderAt>, Error> {
        todo!()
    }
    async fn writer(&self, _options: WriterOptions) -> Result<Box<dyn Writer>, Error> {
        todo!()
    }
    async fn status(&self, _reference: &str) -> Result<Status, Error> {
        todo!()
    }
    async fn statuses(&self) -> Result<Vec<Status>, Error> {
        todo!()
    }
    async fn abort(&self, _reference: &str) -> Result<(), Error> {
        todo!()
    }
}
