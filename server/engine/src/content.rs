//! Blobs as a namespace sees them: bytes from the store, labels and leases from the records, in the safe order
//! (bytes first, then the record that names them).

use std::sync::Arc;

use bytes::Bytes;
use gantry_content::ReaderAt;
use gantry_types::{Digest, Filter, Labels, Scope};

use crate::Result;

pub use gantry_content::{CHUNK, Status};

pub use gantry_metadata::Blob;

/// The content of all namespaces.
#[derive(Clone)]
pub struct Content {}

impl Content {
    /// What is known about a blob.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn info(&self, scope: &Scope, digest: &Digest) -> Result<Blob> {
        todo!()
    }

    /// Changes a blob's labels: those named in `fields` (`labels`, `labels.KEY`), all where there are none.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` for another field or a bad label.
    pub async fn update(&self, scope: &Scope, digest: &Digest, labels: Labels, fields: &[String]) -> Result<Blob> {
        todo!()
    }

    /// The blobs that `filter` selects (`digest`, `size`, `labels`), by digest.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub async fn list(&self, scope: &Scope, filter: &Filter) -> Result<Vec<Blob>> {
        todo!()
    }

    /// Takes a blob out of the namespace; its bytes go when no namespace has it.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn delete(&self, scope: &Scope, digest: &Digest) -> Result<()> {
        todo!()
    }

    /// Opens a blob; read by [`ReaderAt::read_at`] in pieces of [`CHUNK`].
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn reader(&self, scope: &Scope, digest: &Digest) -> Result<Arc<dyn ReaderAt>> {
        todo!()
    }

    /// Opens, or opens again, an ingest of this namespace.
    ///
    /// # Errors
    /// `Unavailable` while another writer has it, `AlreadyExists` where the namespace has the expected blob.
    pub async fn writer(
        &self,
        scope: &Scope,
        reference: &str,
        total: Option<u64>,
        expected: Option<&Digest>,
    ) -> Result<Writer> {
        todo!()
    }

    /// How far an ingest of this namespace is. The reference is as the client gave it.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn status(&self, scope: &Scope, reference: &str) -> Result<Status> {
        todo!()
    }

    /// The ingests of this namespace that `filter` selects (`ref`).
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn statuses(&self, scope: &Scope, filter: &Filter) -> Result<Vec<Status>> {
        todo!()
    }

    /// Drops an ingest.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn abort(&self, scope: &Scope, reference: &str) -> Result<()> {
        todo!()
    }
}

/// An open ingest. Dropping it keeps what was written and unlocks the reference.
pub struct Writer {}

impl Writer {
    /// How far it is.
    pub fn status(&self) -> Status {
        todo!()
    }

    /// Digest of what was written so far.
    ///
    /// # Errors
    /// When an earlier write failed.
    pub async fn digest(&mut self) -> Result<Digest> {
        todo!()
    }

    /// Appends `data` at `offset`, which must be the current one; gives the new offset.
    ///
    /// # Errors
    /// `OutOfRange`.
    pub async fn write(&mut self, offset: u64, data: Bytes) -> Result<u64> {
        todo!()
    }

    /// Drops the bytes behind `size`.
    ///
    /// # Errors
    /// `OutOfRange`.
    pub async fn truncate(&mut self, size: u64) -> Result<()> {
        todo!()
    }

    /// Verifies, makes durable, and enters the blob in the namespace (and the scope's lease) with `labels`.
    ///
    /// # Errors
    /// `FailedPrecondition` for another size or digest than demanded, `AlreadyExists`.
    pub async fn commit(self, size: Option<u64>, expected: Option<&Digest>, labels: Labels) -> Result<Blob> {
        todo!()
    }

    /// Ends the writer orderly: everything written is with the kernel and the reference is free when this returns.
    ///
    /// # Errors
    /// When an earlier write failed.
    pub async fn close(self) -> Result<()> {
        todo!()
    }
}
