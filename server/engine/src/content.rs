//! Blobs as a namespace sees them: bytes from the store, labels and leases from the records, in the safe order
//! (bytes first, then the record that names them).

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use gantry_content::{Commit, Error as StoreError, WriterOptions};
use gantry_metadata::{Error as DbError, Resource};
use gantry_ttrpc::pb::containerd::events::{ContentCreate, ContentDelete};
use gantry_types::{Digest, Fields, Filter, Labels, Scope};

use crate::core::{Core, lease, select};
use crate::leases::unique;
use crate::{Error, Result};

pub use gantry_content::{CHUNK, Origin, ReaderAt, Status, origin};
pub use gantry_metadata::Blob;

/// The content of all namespaces.
#[derive(Clone)]
pub struct Content {
    pub(crate) core: Arc<Core>,
}

impl Content {
    /// What is known about a blob.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn info(&self, scope: &Scope, digest: &Digest) -> Result<Blob> {
        Ok(self.core.db.blobs(&scope.namespace).get(digest)?)
    }

    /// Changes a blob's labels: those named in `fields` (`labels`, `labels.KEY`), all where there are none.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` for another field or a bad label.
    pub async fn update(&self, scope: &Scope, digest: &Digest, labels: Labels, fields: &[String]) -> Result<Blob> {
        Ok(self.core.db.blobs(&scope.namespace).update(digest, labels, fields.to_vec()).await?)
    }

    /// The blobs that `filter` selects (`digest`, `size`, `labels`), by digest.
    ///
    /// # Errors
    /// None at present: damaged records are passed over.
    pub async fn list(&self, scope: &Scope, filter: &Filter) -> Result<Vec<Blob>> {
        Ok(select(self.core.db.blobs(&scope.namespace).scan(), filter))
    }

    /// Takes a blob out of the namespace; its bytes go when no namespace has it.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn delete(&self, scope: &Scope, digest: &Digest) -> Result<()> {
        self.core.db.blobs(&scope.namespace).delete(digest, lease(scope)).await?;
        self.core.emit(&scope.namespace, "/content/delete", &ContentDelete { digest: digest.to_string() });
        self.core.garbage.leave_blob(digest);
        Ok(())
    }

    /// Opens a blob; read by [`ReaderAt::read_at`] in pieces of [`CHUNK`].
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn reader(&self, scope: &Scope, digest: &Digest) -> Result<Arc<dyn ReaderAt>> {
        self.core.db.blobs(&scope.namespace).get(digest)?;
        Ok(self.core.store.reader(digest).await?)
    }

    /// A whole small blob.
    ///
    /// # Errors
    /// `NotFound`; `ResourceExhausted` where it has more than `limit` bytes.
    pub async fn read_all(&self, scope: &Scope, digest: &Digest, limit: u64) -> Result<Bytes> {
        self.core.db.blobs(&scope.namespace).get(digest)?;
        Ok(gantry_content::read_all(&*self.core.store, digest, limit).await?)
    }

    /// Opens, or opens again, an ingest of this namespace. Where another namespace shares the expected blob, nothing
    /// needs to be written: the status says that all is there.
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
        if let Some(digest) = expected {
            self.refuse_present(scope, digest).await?;
        }
        let expires = SystemTime::now() + self.core.config.ingest_expiry;
        let (core, of, name, expected) =
            (Arc::clone(&self.core), scope.clone(), reference.to_owned(), expected.cloned());
        // Runs to its end when the caller goes away: a directory that comes after its record has gone would be nobody's.
        let opening = tokio::spawn(async move {
            let ingests = core.db.ingests(&of.namespace);
            loop {
                let internal = ingests.open(&name, expected.clone(), expires, lease(&of)).await?.internal;
                let options = WriterOptions { reference: internal.clone(), total, expected: expected.clone() };
                let opened = core.store.writer(options).await;
                if opened.is_err() || ingests.get(&name).is_ok_and(|now| now.internal == internal) {
                    return Ok::<_, Error>(opened);
                }
                // Ended by another call since its record was looked up, and the directory is nobody's: once more.
                drop(opened);
                match core.store.abort(&internal).await {
                    Err(StoreError::IngestNotFound { .. }) | Ok(()) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        });
        let inner = match opening.await.map_err(Error::task("open an ingest"))?? {
            Ok(writer) => Inner::Open(writer),
            Err(StoreError::AlreadyExists { digest }) => {
                Inner::Shared(shared_status(&self.core, reference, &digest).await?)
            }
            Err(error) => return Err(error.into()),
        };
        let names = (scope.clone(), reference.to_owned());
        Ok(Writer {
            core: Arc::clone(&self.core),
            scope: names.0,
            reference: names.1,
            media_type: String::new(),
            inner,
        })
    }

    /// Stores `data` as a blob of this namespace; one that is there already is success and keeps its labels.
    ///
    /// # Errors
    /// `FailedPrecondition` where the bytes are not those of `digest`.
    pub async fn write_all(&self, scope: &Scope, digest: &Digest, data: Bytes, labels: Labels) -> Result<()> {
        loop {
            match self.try_write_all(scope, digest, data.clone(), labels.clone()).await {
                // Each time somebody else has deleted it: that ends.
                Err(Error::Collected { .. }) => {}
                written => return written,
            }
        }
    }

    async fn try_write_all(&self, scope: &Scope, digest: &Digest, data: Bytes, labels: Labels) -> Result<()> {
        let (reference, size) = (passing(&format!("blob-{digest}")), data.len() as u64);
        let written = async {
            let mut writer = self.writer(scope, &reference, Some(size), Some(digest)).await?;
            if writer.status().offset < size {
                writer.write(0, data).await?;
            }
            writer.commit(Some(size), Some(digest), labels).await
        };
        match written.await {
            Ok(_) => Ok(()),
            Err(error) if is_present(&error) => Ok(()),
            Err(error) => {
                // What stays expires.
                let _ = self.abort(scope, &reference).await;
                Err(error)
            }
        }
    }

    /// How far an ingest of this namespace is. The reference is as the client gave it.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn status(&self, scope: &Scope, reference: &str) -> Result<Status> {
        let ingest = self.core.db.ingests(&scope.namespace).get(reference)?;
        let status = self.core.store.status(&ingest.internal).await?;
        Ok(Status { reference: reference.to_owned(), ..status })
    }

    /// The ingests of this namespace that `filter` selects (`ref`).
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn statuses(&self, scope: &Scope, filter: &Filter) -> Result<Vec<Status>> {
        let mut statuses = Vec::new();
        for ingest in self.core.db.ingests(&scope.namespace).scan().filter_map(std::result::Result::ok) {
            if filter.matches(&IngestFields(&ingest.reference)) {
                // One that ended just now is none.
                if let Ok(status) = self.core.store.status(&ingest.internal).await {
                    statuses.push(Status { reference: ingest.reference, ..status });
                }
            }
        }
        Ok(statuses)
    }

    /// Drops an ingest.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn abort(&self, scope: &Scope, reference: &str) -> Result<()> {
        let (core, scope, reference) = (Arc::clone(&self.core), scope.clone(), reference.to_owned());
        // Runs to its end when the caller goes away: bytes without a record would be nobody's.
        let aborting = tokio::spawn(async move {
            let ingest = core.db.ingests(&scope.namespace).delete(&reference, lease(&scope)).await?;
            match core.store.abort(&ingest.internal).await {
                Err(StoreError::IngestNotFound { .. }) | Ok(()) => Ok(()),
                Err(error) => Err(Error::from(error)),
            }
        });
        aborting.await.map_err(Error::task("abort"))?
    }

    /// What a caller wants to write and has already, its lease keeps from now on.
    async fn refuse_present(&self, scope: &Scope, digest: &Digest) -> Result<()> {
        let blobs = self.core.db.blobs(&scope.namespace);
        if blobs.get(digest).is_err() {
            return Ok(());
        }
        if let Some(lease) = lease(scope) {
            let resource = Resource::Content(digest.clone());
            self.core.db.leases(&scope.namespace).add_resource(lease, resource).await?;
        }
        // It may have been collected before the lease had it.
        match blobs.get(digest) {
            Ok(_) => Err(StoreError::AlreadyExists { digest: digest.clone() }.into()),
            Err(_) => Ok(()),
        }
    }
}

/// What the references of ingests begin with that only this run of the daemon can end.
pub(crate) const PASSING: &str = "passing/";

/// A new reference of that kind: nobody knows it, so nobody goes on with what a killed daemon leaves of it.
pub(crate) fn passing(what: &str) -> String {
    format!("{PASSING}{what}-{}", unique())
}

/// Whether an error says that the blob to write is there.
pub(crate) fn is_present(error: &Error) -> bool {
    use gantry_types::{ErrorKind, HasKind};
    error.kind() == ErrorKind::AlreadyExists
}

struct IngestFields<'a>(&'a str);

impl Fields for IngestFields<'_> {
    fn field(&self, path: &[&str]) -> Option<std::borrow::Cow<'_, str>> {
        (path == ["ref"]).then_some(self.0.into())
    }
}

/// An open ingest. Dropping it keeps what was written and unlocks the reference.
pub struct Writer {
    core: Arc<Core>,
    scope: Scope,
    reference: String,
    media_type: String,
    inner: Inner,
}

enum Inner {
    Open(Box<dyn gantry_content::Writer>),
    /// The store has the bytes; the namespace has only to be told.
    Shared(Status),
}

impl Writer {
    /// Says what the bytes are, for the event.
    pub(crate) fn describe(&mut self, media_type: &str) {
        media_type.clone_into(&mut self.media_type);
    }

    /// Commits under another lease than the one it was opened under.
    pub(crate) fn adopt(&mut self, scope: &Scope) {
        self.scope = scope.clone();
    }

    /// How far it is.
    pub fn status(&self) -> Status {
        match &self.inner {
            Inner::Open(writer) => Status { reference: self.reference.clone(), ..writer.status() },
            Inner::Shared(status) => status.clone(),
        }
    }

    /// Digest of what was written so far.
    ///
    /// # Errors
    /// When an earlier write failed.
    pub async fn digest(&mut self) -> Result<Digest> {
        match &mut self.inner {
            Inner::Open(writer) => Ok(writer.digest().await?),
            Inner::Shared(status) => status.expected.clone().ok_or(Error::Unimplemented("a digest of nothing")),
        }
    }

    /// Appends `data` at `offset`, which must be the current one; gives the new offset.
    ///
    /// # Errors
    /// `OutOfRange`.
    pub async fn write(&mut self, offset: u64, data: Bytes) -> Result<u64> {
        match &mut self.inner {
            Inner::Open(writer) => Ok(writer.write(offset, data).await?),
            Inner::Shared(status) => {
                let (reference, current) = (self.reference.clone(), status.offset);
                Err(StoreError::Offset { reference, current, given: offset }.into())
            }
        }
    }

    /// Drops the bytes behind `size`.
    ///
    /// # Errors
    /// `OutOfRange`.
    pub async fn truncate(&mut self, size: u64) -> Result<()> {
        match &mut self.inner {
            Inner::Open(writer) => Ok(writer.truncate(size).await?),
            Inner::Shared(status) if size == status.offset => Ok(()),
            Inner::Shared(status) => {
                let (reference, current) = (self.reference.clone(), status.offset);
                Err(StoreError::Offset { reference, current, given: size }.into())
            }
        }
    }

    /// Verifies, makes durable, and enters the blob in the namespace (and the scope's lease) with `labels`.
    ///
    /// # Errors
    /// `FailedPrecondition` for another size or digest than demanded, `AlreadyExists`.
    pub async fn commit(self, size: Option<u64>, expected: Option<&Digest>, labels: Labels) -> Result<Blob> {
        let expected = expected.cloned();
        // Runs to its end when the caller goes away: bytes without a record would be nobody's.
        let joining = tokio::spawn(async move { self.join(size, expected, labels).await });
        joining.await.map_err(Error::task("commit"))?
    }

    async fn join(mut self, size: Option<u64>, expected: Option<Digest>, labels: Labels) -> Result<Blob> {
        let core = Arc::clone(&self.core);
        let digest = match expected {
            Some(ref digest) => digest.clone(),
            None => self.digest().await?,
        };
        let _one = core.joining.lock(digest.as_str()).await;
        let (digest, size) = match self.inner {
            Inner::Open(writer) => bytes_of(&core, writer, size, expected.as_ref()).await?,
            Inner::Shared(status) => {
                let checked = checked(&self.reference, status, size, expected.as_ref())?;
                // A collection may have taken the bytes since the writer was opened.
                core.store.info(&checked.0).await.map_err(|_| Error::Collected { digest: checked.0.clone() })?;
                checked
            }
        };
        let blobs = core.db.blobs(&self.scope.namespace);
        let created = blobs.create(digest.clone(), size, labels, lease(&self.scope), Some(&self.reference)).await;
        let blob = match created {
            Ok(blob) => blob,
            Err(DbError::AlreadyExists(_)) => return Err(StoreError::AlreadyExists { digest }.into()),
            Err(error) => {
                forsake(&core, &digest).await;
                return Err(error.into());
            }
        };
        let size = i64::try_from(blob.size).unwrap_or(i64::MAX);
        let event = ContentCreate { digest: blob.digest.to_string(), size, media_type: self.media_type.clone() };
        core.emit(&self.scope.namespace, "/content/create", &event);
        Ok(blob)
    }

    /// Ends the writer orderly: everything written is with the kernel and the reference is free when this returns.
    ///
    /// # Errors
    /// When an earlier write failed.
    pub async fn close(self) -> Result<()> {
        match self.inner {
            Inner::Open(writer) => Ok(writer.close().await?),
            Inner::Shared(_) => Ok(()),
        }
    }
}

/// Removes the bytes of a blob that could not be entered anywhere. Only for who has the digest's turn to join.
async fn forsake(core: &Core, digest: &Digest) {
    if core.db.sharers(digest) > 0 {
        return;
    }
    if let Err(error) = core.store.delete(digest).await {
        tracing::debug!(%digest, %error, "bytes without a record stay until the next start");
    }
}

/// Makes the bytes a blob; those of a blob that is in the store are as good.
async fn bytes_of(
    core: &Core,
    writer: Box<dyn gantry_content::Writer>,
    size: Option<u64>,
    expected: Option<&Digest>,
) -> Result<(Digest, u64)> {
    match writer.commit(Commit { size, digest: expected.cloned() }).await {
        Ok(info) => Ok((info.digest, info.size)),
        Err(StoreError::AlreadyExists { digest }) => {
            let info = core.store.info(&digest).await?;
            Ok((info.digest, info.size))
        }
        Err(error) => Err(error.into()),
    }
}

fn checked(reference: &str, status: Status, size: Option<u64>, expected: Option<&Digest>) -> Result<(Digest, u64)> {
    let reference = reference.to_owned();
    let digest = status.expected.ok_or(Error::Unimplemented("a shared blob without a digest"))?;
    match (size, expected) {
        (Some(size), _) if size != status.offset => {
            Err(StoreError::Size { reference, expected: size, actual: status.offset }.into())
        }
        (_, Some(expected)) if *expected != digest => {
            Err(StoreError::Digest { reference, expected: expected.clone(), actual: digest }.into())
        }
        _ => Ok((digest, status.offset)),
    }
}

/// The status of a writer whose bytes are all there.
async fn shared_status(core: &Core, reference: &str, digest: &Digest) -> Result<Status> {
    let info = core.store.info(digest).await.map_err(|_| Error::Collected { digest: digest.clone() })?;
    Ok(Status {
        reference: reference.to_owned(),
        offset: info.size,
        total: Some(info.size),
        expected: Some(info.digest),
        started: info.created,
        updated: info.updated,
    })
}
