//! Writing an ingest: a pipeline of one job on the blocking pool at a time.
//!
//! The bytes a caller hands over wait until there are enough of them for a job that writes them. They are hashed at once,
//! while they are near: at the same time as the job writes them, where none is under way already.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use gantry_types::{Algorithm, Digest};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, spawn_blocking};

use crate::durable::rename_new;
use crate::ingest::{Hash, Ingest, Record};
use crate::local::Shared;
use crate::store::CHUNK;
use crate::{Commit, Error, Info, Status, Writer};

/// Bytes that one job writes, where more come: each job wakes two threads. Jobs end at multiples of it, as the kernel keeps
/// such pieces whole. A page that two jobs write stays in its cache where all around it is dropped, and whoever reads the
/// blob later has the rest in single pages then, which takes half as long again.
const JOB: usize = 2 * CHUNK;

/// A writer of the local store.
pub(crate) struct LocalWriter {
    shared: Arc<Shared>,
    record: Record,
    slot: Slot,
    /// The digest of all bytes received. None where the ingest has bytes that must be read again for it: then the jobs
    /// hash.
    hash: Option<Hash>,
    /// Bytes that no job has taken yet.
    pending: Vec<Bytes>,
    pending_len: usize,
    /// Bytes received.
    offset: u64,
    updated: SystemTime,
}

/// Where the ingest is at the moment.
enum Slot {
    Idle(Box<Ingest>),
    Busy(JoinHandle<Done>),
    /// A job panicked.
    Lost,
}

type Done = (Box<Ingest>, Result<(), Error>);

impl LocalWriter {
    /// A writer of an ingest that was just opened.
    pub(crate) fn new(shared: Arc<Shared>, record: Record, ingest: Ingest, updated: SystemTime) -> LocalWriter {
        let offset = ingest.written;
        let hash = ingest.hash_of_all();
        let slot = Slot::Idle(Box::new(ingest));
        let writer = LocalWriter { shared, record, slot, hash, pending: Vec::new(), pending_len: 0, offset, updated };
        writer.report();
        writer
    }

    fn report(&self) {
        self.shared.locks.report(&self.record.reference, self.offset, self.updated);
    }

    /// Waits for the running job, and tells how it ended. A caller that stops waiting loses nothing.
    async fn settle(&mut self) -> Result<(), Error> {
        let Slot::Busy(job) = &mut self.slot else { return Ok(()) };
        match job.await {
            Ok((ingest, result)) => {
                if result.is_err() {
                    self.fall_back(&ingest);
                }
                self.slot = Slot::Idle(ingest);
                result
            }
            Err(error) => {
                self.slot = Slot::Lost;
                Err(Error::task(&error))
            }
        }
    }

    /// After a failed write: what comes next must begin where the file ends.
    fn fall_back(&mut self, ingest: &Ingest) {
        self.pending.clear();
        self.pending_len = 0;
        self.offset = ingest.written;
        self.hash = ingest.hash_of_all();
        self.report();
    }

    /// Whether the next job need not wait.
    fn is_free(&self) -> bool {
        match &self.slot {
            Slot::Busy(job) => job.is_finished(),
            Slot::Idle(_) | Slot::Lost => true,
        }
    }

    /// Starts to append what is pending, but the last `keep` bytes.
    fn start(&mut self, keep: usize) -> Result<(), Error> {
        let (ingest, mut pending) = self.idle()?;
        (self.pending, self.pending_len) = (split_off(&mut pending, keep), keep);
        let write: fn(Box<Ingest>, &[Bytes]) -> Done = if self.hash.is_none() { appended } else { written };
        self.slot = Slot::Busy(spawn_blocking(move || write(ingest, &pending)));
        Ok(())
    }

    /// The ingest, and what is pending, for the next job.
    fn idle(&mut self) -> Result<(Box<Ingest>, Vec<Bytes>), Error> {
        let Slot::Idle(ingest) = std::mem::replace(&mut self.slot, Slot::Lost) else {
            return Err(Error::Other {
                kind: gantry_types::ErrorKind::Internal,
                message: format!("ingest {:?}: an earlier job was lost", self.record.reference),
            });
        };
        self.pending_len = 0;
        Ok((ingest, std::mem::take(&mut self.pending)))
    }

    /// Appends what is pending, does `work`, and waits for its result.
    async fn run<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Ingest) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (sender, mut receiver) = oneshot::channel();
        self.settle().await?;
        let (mut ingest, pending) = self.idle()?;
        let hash = self.hash.take();
        self.slot = Slot::Busy(spawn_blocking(move || {
            let done = ingest.append(&pending, hash).and_then(|()| work(&mut ingest));
            // Whoever does not wait any more does not need it.
            let result = done.map(|result| drop(sender.send(result)));
            (ingest, result)
        }));
        self.settle().await?;
        if let Slot::Idle(ingest) = &self.slot {
            self.hash = ingest.hash_of_all();
        }
        receiver.try_recv().map_err(|_| Error::Other {
            kind: gantry_types::ErrorKind::Internal,
            message: "a job of the content store gave no result".into(),
        })
    }

    fn algorithm(&self) -> Algorithm {
        self.record.expected.as_ref().map_or(Algorithm::Sha256, Digest::algorithm)
    }

    fn offset_error(&self, given: u64) -> Error {
        Error::Offset { reference: self.record.reference.clone(), current: self.offset, given }
    }
}

#[async_trait]
impl Writer for LocalWriter {
    fn status(&self) -> Status {
        self.record.status(self.offset, self.updated)
    }

    async fn write(&mut self, offset: u64, data: Bytes) -> Result<u64, Error> {
        if offset != self.offset {
            return Err(self.offset_error(offset));
        }
        let keep = ((offset + data.len() as u64) % JOB as u64) as usize;
        let starts = self.pending_len + data.len() > keep;
        let overlaps = starts && self.is_free();
        if overlaps {
            self.settle().await?;
        }
        // From here to the hash nothing waits: a caller that gives up leaves no bytes without it.
        self.offset += data.len() as u64;
        self.pending_len += data.len();
        self.pending.push(data.clone());
        self.updated = SystemTime::now();
        let started = if overlaps { self.start(keep) } else { Ok(()) };
        if let Some(hash) = &mut self.hash {
            hash.add(&[data]);
        }
        started?;
        if starts && !overlaps {
            self.settle().await?;
            self.start(keep)?;
        }
        self.report();
        Ok(self.offset)
    }

    async fn digest(&mut self) -> Result<Digest, Error> {
        let algorithm = self.algorithm();
        self.settle().await?;
        if !self.pending.is_empty() {
            self.start(0)?;
            self.settle().await?;
        }
        if let Some(digest) = self.hash.as_ref().and_then(|hash| hash.digest(algorithm)) {
            return Ok(digest);
        }
        self.run(move |ingest| ingest.digest(algorithm)).await
    }

    async fn truncate(&mut self, size: u64) -> Result<(), Error> {
        if size > self.offset {
            return Err(self.offset_error(size));
        }
        self.run(move |ingest| ingest.truncate(size)).await?;
        self.offset = size;
        self.updated = SystemTime::now();
        self.report();
        Ok(())
    }

    async fn commit(mut self: Box<Self>, commit: Commit) -> Result<Info, Error> {
        let (shared, reference, algorithm) = (self.shared.clone(), self.record.reference.clone(), self.algorithm());
        self.run(move |ingest| finish(&shared, ingest, reference, algorithm, &commit)).await
    }

    async fn close(mut self: Box<Self>) -> Result<(), Error> {
        self.run(|_| Ok(())).await
    }
}

impl Drop for LocalWriter {
    /// Bytes that wait are still written, so that a later writer finds them; the name is held until then.
    fn drop(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        if pending.is_empty() {
            return;
        }
        match (std::mem::replace(&mut self.slot, Slot::Lost), Handle::try_current()) {
            (Slot::Idle(ingest), Ok(_)) => drop(spawn_blocking(move || written(ingest, &pending))),
            (Slot::Idle(ingest), Err(_)) => drop(written(ingest, &pending)),
            (Slot::Busy(job), Ok(runtime)) => drop(runtime.spawn(async move {
                if let Ok((ingest, Ok(()))) = job.await {
                    let _ = spawn_blocking(move || written(ingest, &pending)).await;
                }
            })),
            _ => {}
        }
    }
}

/// Takes the last `len` bytes of all away.
fn split_off(pieces: &mut Vec<Bytes>, mut len: usize) -> Vec<Bytes> {
    let mut end = Vec::new();
    while len > 0
        && let Some(mut piece) = pieces.pop()
    {
        let begin = piece.len().saturating_sub(len);
        len -= piece.len() - begin;
        end.push(piece.split_off(begin));
        if !piece.is_empty() {
            pieces.push(piece);
        }
    }
    end.reverse();
    end
}

/// The digest of what is in the file comes along.
fn appended(mut ingest: Box<Ingest>, pieces: &[Bytes]) -> Done {
    let result = ingest.append(pieces, None);
    (ingest, result)
}

/// The digest of what is in the file lags behind, then.
fn written(mut ingest: Box<Ingest>, pieces: &[Bytes]) -> Done {
    let result = ingest.write(pieces);
    (ingest, result)
}

/// Verifies the bytes and makes them a blob.
fn finish(
    shared: &Shared,
    ingest: &mut Ingest,
    reference: String,
    algorithm: Algorithm,
    commit: &Commit,
) -> Result<Info, Error> {
    let size = ingest.written;
    if let Some(expected) = commit.size.filter(|expected| *expected != size) {
        return Err(Error::Size { reference, expected, actual: size });
    }
    let digest = ingest.digest(commit.digest.as_ref().map_or(algorithm, Digest::algorithm))?;
    if let Some(expected) = commit.digest.clone().filter(|expected| *expected != digest) {
        return Err(Error::Digest { reference, expected, actual: digest });
    }
    let target = shared.blob(&digest);
    if target.exists() {
        return Err(already(shared, ingest, &digest)?);
    }
    let data = ingest.home.data();
    settle_file(ingest, &data)?;
    fail::fail_point!("content::before-rename");
    match rename_new(&data, &target) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            return Err(already(shared, ingest, &digest)?);
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(Error::IngestNotFound { reference }),
        Err(error) => return Err(Error::io("rename", &data)(error)),
    }
    fail::fail_point!("content::before-directory-sync");
    shared.sync_blobs(digest.algorithm())?;
    fail::fail_point!("content::before-cleanup");
    clear(ingest);
    let modified = ingest.file.metadata().and_then(|m| m.modified()).map_err(Error::io("stat", &target))?;
    Ok(Info { digest, size, created: modified, updated: modified })
}

/// Read-only, and on the disk.
fn settle_file(ingest: &Ingest, data: &Path) -> Result<(), Error> {
    ingest.file.set_permissions(Permissions::from_mode(0o444)).map_err(Error::io("chmod", data))?;
    fail::fail_point!("content::before-sync");
    ingest.file.sync_all().map_err(Error::io("sync", data))
}

/// The blob is there; it may be so by a commit that is not durable yet.
fn already(shared: &Shared, ingest: &Ingest, digest: &Digest) -> Result<Error, Error> {
    shared.sync_blobs(digest.algorithm())?;
    clear(ingest);
    Ok(Error::AlreadyExists { digest: digest.clone() })
}

/// Forgets an ingest that has done its work. What stays is cleaned away at the next start.
fn clear(ingest: &Ingest) {
    if let Err(error) = ingest.home.remove() {
        tracing::warn!(ingest = %ingest.home.data().display(), %error, "cannot remove a finished ingest");
    }
}
