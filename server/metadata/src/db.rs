//! The open store: handles for each kind of record, and the way into the committer.

use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use gantry_types::{ErrorKind, Id};
use tokio::sync::{mpsc, oneshot};

use crate::committer::{self, Acknowledge, Batch, Request};
use crate::keys::Kind;
use crate::memory::Memory;
use crate::recover::{self, Report};
use crate::tx::Tx;
use crate::{Blobs, Containers, Documents, Error, Images, Ingests, Leases, Namespaces, Sandboxes, Snapshots};

/// Requests that may wait for the committer before writers wait to hand theirs over.
const QUEUE: usize = 1024;

/// Sequence numbers that one durable write reserves.
const SEQUENCE_BLOCK: u64 = 4096;

/// The counter of reserved sequence numbers.
const SEQUENCE: &[u8] = b"sequence";

/// Where the store is and how it behaves.
#[derive(Clone, Debug)]
pub struct Config {
    /// Directory of the store; made where it is missing.
    pub directory: PathBuf,
    /// Memory sled may use for its pages, in bytes. Readers are served from elsewhere, so a small cache does.
    pub cache: u64,
    /// Longest time a change stays out of the export from which a damaged store is rebuilt.
    pub export_every: Duration,
}

impl Config {
    /// Usual settings.
    pub fn new(directory: impl Into<PathBuf>) -> Config {
        Config { directory: directory.into(), cache: 16 << 20, export_every: Duration::from_secs(60) }
    }
}

/// The open store. Cheap to clone; the last clone that is dropped closes it, waiting for what was handed over.
#[derive(Clone)]
pub struct Db(Arc<Inner>);

struct Inner {
    directory: PathBuf,
    memory: Arc<Memory>,
    requests: Option<mpsc::Sender<Request>>,
    committer: Mutex<Option<JoinHandle<()>>>,
    sequence: tokio::sync::Mutex<Range<u64>>,
}

impl Db {
    /// Opens, or makes, the store. Blocks on the disk.
    ///
    /// Never fails because of damage: what cannot be read is taken from the last export where it is there, and the
    /// report names what was restored and what was lost.
    ///
    /// # Errors
    /// [`Error::InUse`] while another process has it open, [`Error::Io`] where the disk or its permissions fail.
    pub fn open(config: Config) -> Result<(Db, Report), Error> {
        let directory = config.directory.clone();
        let memory = Arc::new(Memory::default());
        let (store, report) = recover::open(&config, &memory)?;
        let (requests, receiver) = mpsc::channel(QUEUE);
        let committer = committer::start(config, store, memory.clone(), receiver)
            .map_err(Error::io("start the committer of", &directory))?;
        let inner = Inner {
            directory,
            memory,
            requests: Some(requests),
            committer: Mutex::new(Some(committer)),
            sequence: tokio::sync::Mutex::new(0..0),
        };
        Ok((Db(Arc::new(inner)), report))
    }

    /// Where the store is.
    pub fn directory(&self) -> &Path {
        &self.0.directory
    }

    /// The namespaces themselves.
    pub fn namespaces(&self) -> Namespaces<'_> {
        Namespaces(self)
    }

    /// Images of a namespace.
    pub fn images(&self, namespace: &Id) -> Images<'_> {
        Images { db: self, namespace: namespace.clone() }
    }

    /// Containers of a namespace.
    pub fn containers(&self, namespace: &Id) -> Containers<'_> {
        Containers { db: self, namespace: namespace.clone() }
    }

    /// Sandboxes of a namespace.
    pub fn sandboxes(&self, namespace: &Id) -> Sandboxes<'_> {
        Sandboxes { db: self, namespace: namespace.clone() }
    }

    /// Leases of a namespace.
    pub fn leases(&self, namespace: &Id) -> Leases<'_> {
        Leases { db: self, namespace: namespace.clone() }
    }

    /// Blobs that a namespace sees.
    pub fn blobs(&self, namespace: &Id) -> Blobs<'_> {
        Blobs { db: self, namespace: namespace.clone() }
    }

    /// Ingests that a namespace sees.
    pub fn ingests(&self, namespace: &Id) -> Ingests<'_> {
        Ingests { db: self, namespace: namespace.clone() }
    }

    /// Snapshots of a namespace on one snapshotter.
    pub fn snapshots(&self, namespace: &Id, snapshotter: &str) -> Snapshots<'_> {
        Snapshots { db: self, namespace: namespace.clone(), snapshotter: snapshotter.to_owned() }
    }

    /// Documents of one collection, in a namespace or the daemon's own.
    pub fn documents(&self, namespace: Option<&Id>, collection: &'static str) -> Documents<'_> {
        Documents { db: self, namespace: namespace.cloned(), collection }
    }

    /// A number that was never given before in the life of this store.
    ///
    /// # Errors
    /// [`Error::NotWritten`] when a new block of numbers cannot be reserved.
    pub async fn next_sequence(&self) -> Result<u64, Error> {
        let mut block = self.0.sequence.lock().await;
        if let Some(number) = block.next() {
            return Ok(number);
        }
        let mut fresh = self.transact(reserve).await?;
        let number = fresh.start;
        fresh.start += 1;
        *block = fresh;
        Ok(number)
    }

    /// Writes the export now. For tests and before risky maintenance; it happens by itself from time to time.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Closed`].
    pub async fn export(&self) -> Result<(), Error> {
        let (done, wait) = oneshot::channel();
        self.send(Request::Export(done)).await?;
        wait.await.map_err(|_| Error::Closed)?
    }

    pub(crate) fn memory(&self) -> &Memory {
        &self.0.memory
    }

    /// Runs `change` against the current state, after all that were handed over before, and returns when its effect is durable. Where it
    /// fails, it has no effect.
    pub(crate) async fn transact<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut Tx<'_>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (sender, receiver) = oneshot::channel();
        let run = move |batch: &mut Batch<'_>| -> Acknowledge {
            let result = std::panic::catch_unwind(AssertUnwindSafe(|| batch.run(change))).unwrap_or_else(|_| {
                Err(Error::NotWritten { reason: "the change panicked".into(), kind: ErrorKind::Internal })
            });
            Box::new(move |durable| {
                // A caller that went away does not need the answer.
                let _ = sender.send(durable.clone().and(result));
            })
        };
        self.send(Request::Transact(Box::new(run))).await?;
        receiver.await.map_err(|_| Error::Closed)?
    }

    async fn send(&self, request: Request) -> Result<(), Error> {
        let requests = self.0.requests.as_ref().ok_or(Error::Closed)?;
        requests.send(request).await.map_err(|_| Error::Closed)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.requests = None;
        let committer = self.committer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if committer.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!(directory = %self.directory.display(), "the committer of the metadata store panicked");
        }
    }
}

fn reserve(tx: &mut Tx<'_>) -> Result<Range<u64>, Error> {
    let start = tx.get(Kind::Meta, "", SEQUENCE).map_or(1, |value| number(&value));
    let end = start.saturating_add(SEQUENCE_BLOCK);
    tx.put(Kind::Meta, "", SEQUENCE, end.to_le_bytes());
    Ok(start..end)
}

/// A stored counter; a damaged one counts from where no earlier number can be.
pub(crate) fn number(value: &[u8]) -> u64 {
    value.try_into().map_or(1 << 62, u64::from_le_bytes)
}
