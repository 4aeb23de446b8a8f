//! The contract of a content store.

use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use gantry_types::Digest;

use crate::Error;

/// Bytes in one piece of a stream: the size of a frame on the socket.
pub const CHUNK: usize = 256 * 1024;

/// What a store knows about a blob by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// Digest of the bytes.
    pub digest: Digest,
    /// Size in bytes.
    pub size: u64,
    /// When the blob was committed.
    pub created: SystemTime,
    /// When the blob was last touched; the same as `created` for a store that never touches blobs.
    pub updated: SystemTime,
}

/// How far an ingest is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The name the ingest was started under.
    pub reference: String,
    /// Bytes received.
    pub offset: u64,
    /// Bytes expected in the end, where known.
    pub total: Option<u64>,
    /// Digest expected in the end, where known.
    pub expected: Option<Digest>,
    /// When the first writer was opened.
    pub started: SystemTime,
    /// When bytes last came.
    pub updated: SystemTime,
}

/// What is known when a writer is opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WriterOptions {
    /// Name of the ingest: any non-empty text of at most 4 KiB. Bytes of an earlier writer of the same name are kept.
    pub reference: String,
    /// Bytes expected in the end, where known.
    pub total: Option<u64>,
    /// Digest expected in the end, where known.
    pub expected: Option<Digest>,
}

impl WriterOptions {
    /// Options with a name and nothing else.
    pub fn new(reference: impl Into<String>) -> WriterOptions {
        WriterOptions { reference: reference.into(), ..WriterOptions::default() }
    }
}

/// What a commit demands of the bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Commit {
    /// Exact number of bytes, where demanded.
    pub size: Option<u64>,
    /// Exact digest, where demanded; it also chooses the algorithm (else that of the writer's expected digest, else SHA-256).
    pub digest: Option<Digest>,
}

/// Blobs by digest, and the ingests that become blobs.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// What is known about a blob.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    async fn info(&self, digest: &Digest) -> Result<Info, Error>;

    /// All blobs, in no particular order.
    ///
    /// # Errors
    /// [`Error::Io`].
    async fn walk(&self) -> Result<Vec<Info>, Error>;

    /// Removes a blob. Readers that are open keep reading.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    async fn delete(&self, digest: &Digest) -> Result<(), Error>;

    /// Opens a blob for reading.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    async fn reader(&self, digest: &Digest) -> Result<Arc<dyn ReaderAt>, Error>;

    /// Opens, or opens again, the ingest of that name. The name stays locked until the writer is dropped or committed.
    ///
    /// # Errors
    /// [`Error::Locked`] while another writer is open, [`Error::AlreadyExists`] where the expected digest is in the store,
    /// [`Error::TotalChanged`] where an earlier writer expected another total, [`Error::InvalidReference`].
    async fn writer(&self, options: WriterOptions) -> Result<Box<dyn Writer>, Error>;

    /// How far the ingest of that name is.
    ///
    /// # Errors
    /// [`Error::IngestNotFound`].
    async fn status(&self, reference: &str) -> Result<Status, Error>;

    /// All ingests, in no particular order.
    ///
    /// # Errors
    /// [`Error::Io`].
    async fn statuses(&self) -> Result<Vec<Status>, Error>;

    /// Forgets the ingest of that name and its bytes. A writer that is still open fails at its next call that needs them.
    ///
    /// # Errors
    /// [`Error::IngestNotFound`].
    async fn abort(&self, reference: &str) -> Result<(), Error>;
}

/// A blob opened for reading; independent of later deletion.
#[async_trait]
pub trait ReaderAt: Send + Sync + 'static {
    /// Size of the blob in bytes.
    fn size(&self) -> u64;

    /// At most `len` bytes from `offset`, fewer only at the end of the blob; empty at or behind its end.
    ///
    /// # Errors
    /// [`Error::Io`].
    async fn read_at(&self, offset: u64, len: usize) -> Result<Bytes, Error>;

    /// The `len` bytes from `offset` for one who gives them to the kernel as they are ([`origin`](crate::origin)); none
    /// where they are not in memory, or to copy them costs less: then [`ReaderAt::read_at`] has them. Does not block.
    fn mapped(&self, _offset: u64, _len: usize) -> Option<Bytes> {
        None
    }
}

/// An ingest opened for writing. Dropping it keeps the bytes for a later writer and unlocks the name.
///
/// Writes are pipelined: [`Writer::write`] may return before its bytes are on the way to the disk, and a failure to put
/// them there is told by the next call.
#[async_trait]
pub trait Writer: Send {
    /// How far the ingest is, bytes in the pipeline included.
    fn status(&self) -> Status;

    /// Appends `data` at `offset`, which must be the current one. Returns the new offset.
    ///
    /// # Errors
    /// [`Error::Offset`] where `offset` is not the current one; [`Error::Io`] of this or an earlier write.
    async fn write(&mut self, offset: u64, data: Bytes) -> Result<u64, Error>;

    /// Digest of what was written so far.
    ///
    /// # Errors
    /// [`Error::Io`] of an earlier write.
    async fn digest(&mut self) -> Result<Digest, Error>;

    /// Drops the bytes behind `size`.
    ///
    /// # Errors
    /// [`Error::Offset`] where `size` is beyond the current offset.
    async fn truncate(&mut self, size: u64) -> Result<(), Error>;

    /// Verifies the bytes and makes them a blob, durably: after this returns, the blob survives a power cut.
    /// The ingest is gone after success and after [`Error::AlreadyExists`]; after any other failure it stays.
    ///
    /// # Errors
    /// [`Error::Size`], [`Error::Digest`], [`Error::AlreadyExists`], [`Error::IngestNotFound`] (aborted meanwhile), [`Error::Io`].
    async fn commit(self: Box<Self>, commit: Commit) -> Result<Info, Error>;

    /// Waits until what was written is with the kernel, then unlocks the name.
    ///
    /// # Errors
    /// [`Error::Io`] of an earlier write.
    async fn close(self: Box<Self>) -> Result<(), Error>;
}
