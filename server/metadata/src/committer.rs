//! The one thread that writes: applies a batch of transactions, makes it durable, shows it to readers, acknowledges.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc as sync_mpsc;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use crate::Error;
use crate::db::{Config, number};
use crate::export;
use crate::journal::Journal;
use crate::keys::{Key, Kind};
use crate::memory::{Changes, Memory};
use crate::store::Store;
use crate::tx::Tx;

/// Transactions that share one flush at most.
const MAX_BATCH: usize = 1024;

/// A batch of so many says that there are many writers.
const MANY: usize = 8;

/// How often a batch waits for writers that are expected, and how long each time.
const NAPS: u32 = 4;
const NAP: Duration = Duration::from_micros(50);

/// Changes after which an export is written, however little time has passed; as many as there were records, where
/// those are more: so that a change costs no more in a large store than in a small one.
const EXPORT_CHANGES: u64 = 50_000;

/// The counter of commits: tells which of two states is the newer one.
pub(crate) const COMMIT: &[u8] = b"commit";

/// Told the fate of the batch, tells the caller the fate of its transaction.
pub(crate) type Acknowledge = Box<dyn FnOnce(&Result<(), Error>) + Send>;

type Transaction = Box<dyn FnOnce(&mut Batch<'_>) -> Acknowledge + Send>;

/// What the committer is asked for.
pub(crate) enum Request {
    Transact(Transaction),
    Export(oneshot::Sender<Result<(), Error>>),
}

/// Transactions that share one flush.
pub(crate) struct Batch<'m> {
    memory: &'m Memory,
    changes: Changes,
}

impl Batch<'_> {
    /// Runs one transaction on top of the earlier ones; it counts only where it succeeds.
    pub(crate) fn run<T>(&mut self, change: impl FnOnce(&mut Tx<'_>) -> Result<T, Error>) -> Result<T, Error> {
        let mut tx = Tx::new(self.memory, &self.changes);
        let result = change(&mut tx)?;
        let changes = tx.into_changes();
        self.changes.extend(changes);
        Ok(result)
    }
}

/// Starts the thread. It ends when all senders are gone, after a last export.
pub(crate) fn start(
    config: Config,
    store: Store,
    memory: Arc<Memory>,
    requests: mpsc::Receiver<Request>,
) -> std::io::Result<JoinHandle<()>> {
    let (nudge, nudges) = sync_mpsc::sync_channel(1);
    let journal = Journal::new(&config.directory);
    let exported = Arc::new(Exported::default());
    let exporter = Exporter { config, memory: memory.clone(), nudges, exported: exported.clone() };
    let exporter = Builder::new().name("metadata-export".into()).spawn(move || exporter.run())?;
    let runtime = Handle::try_current().ok();
    let committer = Committer { store, memory, requests, journal, exported, nudge, unexported: 0, runtime, last: 0 };
    Builder::new().name("metadata".into()).spawn(move || {
        committer.run();
        if exporter.join().is_err() {
            tracing::error!("the export of the metadata store panicked");
        }
    })
}

struct Committer {
    store: Store,
    memory: Arc<Memory>,
    requests: mpsc::Receiver<Request>,
    journal: Journal,
    exported: Arc<Exported>,
    nudge: sync_mpsc::SyncSender<Nudge>,
    unexported: u64,
    /// Transactions in the last batch.
    last: usize,
    /// The callers', where the store was opened in one.
    runtime: Option<Handle>,
}

/// What the last export holds.
#[derive(Default)]
struct Exported {
    commit: AtomicU64,
    records: AtomicU64,
}

/// Asks for an export; carries who waits for it.
type Nudge = Option<oneshot::Sender<Result<(), Error>>>;

impl Committer {
    fn run(mut self) {
        while let Some(request) = self.requests.blocking_recv() {
            let memory = self.memory.clone();
            let mut batch = Batch { memory: &memory, changes: Changes::new() };
            let mut acknowledge = Vec::new();
            let (mut next, mut naps) = (Some(request), 0);
            while let Some(request) = next {
                match request {
                    Request::Transact(transaction) => acknowledge.push(transaction(&mut batch)),
                    Request::Export(done) => self.export_now(done),
                }
                next = self.next_of_batch(acknowledge.len(), &mut naps);
            }
            self.last = acknowledge.len();
            let durable = self.commit(batch.changes);
            let told = move || acknowledge.into_iter().for_each(|acknowledge| acknowledge(&durable));
            match &self.runtime {
                // One wake-up of the runtime for all of them, and the next batch waits for none.
                Some(runtime) => drop(runtime.spawn(async { told() })),
                None => told(),
            }
        }
    }

    /// What joins a batch of so many transactions; none where it is to be written.
    fn next_of_batch(&mut self, transactions: usize, naps: &mut u32) -> Option<Request> {
        if transactions >= MAX_BATCH {
            return None;
        }
        loop {
            if let Ok(request) = self.requests.try_recv() {
                return Some(request);
            }
            // Whoever was told of the last batch asks again in a moment. Written at once, the first few of them would have
            // a flush of their own, and the others wait for its end.
            let few = self.last >= MANY && transactions < self.last / 4 * 3;
            if !few || *naps == NAPS {
                return None;
            }
            *naps += 1;
            std::thread::sleep(NAP);
        }
    }

    /// Makes changes durable, then visible.
    fn commit(&mut self, mut changes: Changes) -> Result<(), Error> {
        if changes.is_empty() {
            return Ok(());
        }
        let commit = self.memory.get(Kind::Meta, "", COMMIT).map_or(0, |value| number(&value)) + 1;
        changes.insert(Key::new(Kind::Meta, "", COMMIT), Some(commit.to_le_bytes().into()));
        self.store.apply(&changes, &self.memory)?;
        fail::fail_point!("metadata::before-publish");
        let copied = self.journal.append(commit, &changes, self.exported.commit.load(Ordering::Relaxed));
        let many = self.exported.records.load(Ordering::Relaxed).max(EXPORT_CHANGES);
        // Without its journal the copy is whole again only after the next export.
        self.unexported += if copied { changes.len() as u64 } else { many };
        self.memory.publish(changes);
        fail::fail_point!("metadata::before-acknowledge");
        if self.unexported >= many && self.nudge.try_send(None).is_ok() {
            self.unexported = 0;
        }
        Ok(())
    }

    fn export_now(&mut self, done: oneshot::Sender<Result<(), Error>>) {
        if self.nudge.send(Some(done)).is_ok() {
            self.unexported = 0;
        }
    }
}

/// Writes exports from time to time, beside the committer.
struct Exporter {
    config: Config,
    memory: Arc<Memory>,
    nudges: sync_mpsc::Receiver<Nudge>,
    exported: Arc<Exported>,
}

impl Exporter {
    fn run(self) {
        loop {
            let nudge = self.nudges.recv_timeout(self.config.export_every);
            let closing = matches!(nudge, Err(sync_mpsc::RecvTimeoutError::Disconnected));
            let result = self.export();
            if let Err(error) = &result {
                tracing::warn!(%error, "cannot write the export of the metadata store");
            }
            if let Ok(Some(done)) = nudge {
                let _ = done.send(result);
            }
            if closing {
                return;
            }
        }
    }

    /// Writes the export where something changed since the last one.
    fn export(&self) -> Result<(), Error> {
        let snapshot = self.memory.snapshot();
        let commit = export::commit_of(&snapshot);
        if commit != self.exported.commit.load(Ordering::Relaxed) {
            let records = export::write(&self.config.directory, &snapshot)?;
            self.exported.records.store(records.into(), Ordering::Relaxed);
            self.exported.commit.store(commit, Ordering::Relaxed);
        }
        Ok(())
    }
}
