//! Pushing blobs and manifests.
use crate::Error;
use crate::repository::Repository;
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use gantry_types::Descriptor;

/// Where the bytes of a blob to push come from. Asked again, with a higher offset, after a break.
#[async_trait]
pub trait BlobSource: Send + Sync {
    /// The bytes from `offset` to the end.
    ///
    /// # Errors
    /// When they cannot be read.
    async fn open(&self, offset: u64) -> std::io::Result<BoxStream<'static, std::io::Result<Bytes>>>;
}

#[async_trait]
impl BlobSource for Bytes {
    async fn open(&self, offset: u64) -> std::io::Result<BoxStream<'static, std::io::Result<Bytes>>> {
        let _ = offset;
        todo!()
    }
}

/// How a pushed object came to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// It was there before.
    Existed,
    /// The registry took it from another repository of its own.
    Mounted,
    /// Its bytes were sent.
    Sent,
}
pub(crate) async fn blob(_: &Repository, _: &Descriptor, _: &dyn BlobSource, _: &[String]) -> Result<Pushed, Error> {
    todo!()
}
pub(crate) async fn manifest(_: &Repository, _: &Descriptor, _: Bytes) -> Result<Pushed, Error> {
    todo!()
}
