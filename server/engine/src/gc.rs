//! Garbage collection: what nothing keeps goes, first from the records, then from the disk.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use gantry_metadata::gc::Node;
use gantry_metadata::{CollectOptions, Target};
use gantry_ttrpc::pb::containerd::events::{ContentDelete, SnapshotRemove};
use gantry_types::Namespace;
use tokio::sync::Mutex;

use crate::Result;
use crate::core::Core;
use crate::images::ImageDelete;

/// What a collection removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Records, of whatever kind.
    pub records: u64,
    /// Blobs.
    pub blobs: u64,
    /// Snapshots.
    pub snapshots: u64,
    /// Ingests.
    pub ingests: u64,
}

/// The collector.
#[derive(Clone)]
pub struct Gc {
    core: Arc<Core>,
    runs: Arc<Runs>,
}

/// Runs are numbered from 1, so that a request can tell whether one that began after it has ended.
#[derive(Default)]
struct Runs {
    begun: AtomicU64,
    ended: Mutex<(u64, Collected)>,
}

impl Gc {
    pub(crate) fn new(core: &Arc<Core>) -> Gc {
        Gc { core: Arc::clone(core), runs: Arc::default() }
    }

    /// Asks for a collection soon; gives at once.
    pub fn schedule(&self) {
        self.core.garbage.notify_one();
    }

    /// Collects now; gives when what nothing keeps is gone. Joins a run that has not begun.
    ///
    /// # Errors
    /// When the records cannot be written. What cannot be deleted now is deleted at the next start.
    pub async fn collect(&self) -> Result<Collected> {
        let asked_at = self.runs.begun.load(Ordering::SeqCst);
        let mut ended = self.runs.ended.lock().await;
        if ended.0 > asked_at {
            return Ok(ended.1);
        }
        let number = self.runs.begun.fetch_add(1, Ordering::SeqCst) + 1;
        let collected = self.run().await?;
        *ended = (number, collected);
        Ok(collected)
    }

    /// After a deletion: soon, or (`sync`) before this returns.
    pub(crate) async fn after_deletion(&self, sync: bool) -> Result<()> {
        if sync {
            return self.collect().await.map(drop);
        }
        self.schedule();
        Ok(())
    }

    /// Collects when asked to, and when something expires, until the engine closes.
    pub(crate) async fn serve(self) {
        let core = Arc::clone(&self.core);
        loop {
            tokio::select! {
                () = core.stop.cancelled() => return,
                () = core.garbage.notified() => tokio::time::sleep(core.config.gc.schedule_delay).await,
                () = tokio::time::sleep(self.until_expiry()) => {}
            }
            if let Err(error) = self.collect().await {
                tracing::warn!(%error, "garbage collection failed");
            }
        }
    }

    fn until_expiry(&self) -> std::time::Duration {
        let longest = self.core.config.gc.interval;
        let now = SystemTime::now();
        let next = self.core.db.next_expiry(now).and_then(|at| at.duration_since(now).ok());
        // The floor keeps a clock that stands still from making this a busy loop.
        next.unwrap_or(longest).clamp(std::time::Duration::from_millis(100), longest)
    }

    async fn run(&self) -> Result<Collected> {
        let core = &*self.core;
        let operation = core.ops.begin("gc", "", None, None);
        operation.stage("waiting for running commits");
        let _apart = core.joint.write().await;
        operation.stage("collecting records");
        let found = core.db.collect(CollectOptions::now()).await?;
        operation.stage("deleting bytes and snapshots");
        let mut collected = Collected { records: found.removed.len() as u64, ..Collected::default() };
        for digest in &found.digests {
            collected.blobs += u64::from(gone("blob", digest.as_str(), core.store.delete(digest).await));
        }
        for (snapshotter, internal) in &found.snapshots {
            if let Ok((_, snapshotter)) = core.snapshotter(snapshotter) {
                collected.snapshots += u64::from(gone("snapshot", internal, snapshotter.remove(internal).await));
            }
        }
        for internal in &found.ingests {
            collected.ingests += u64::from(gone("ingest", internal, core.store.abort(internal).await));
        }
        found.removed.iter().for_each(|removal| self.tell(&removal.node));
        if !found.removed.is_empty() {
            tracing::debug!(?collected, "garbage collected");
        }
        Ok(collected)
    }
}

impl Gc {
    /// What goes by itself is announced like what is deleted.
    fn tell(&self, node: &Node) {
        let Ok(namespace) = node.namespace.parse::<Namespace>() else { return };
        match &node.target {
            Target::Content(digest) => {
                self.core.emit(&namespace, "/content/delete", &ContentDelete { digest: digest.clone() });
            }
            Target::Snapshot { snapshotter, key } => {
                let event = SnapshotRemove { key: key.clone(), snapshotter: snapshotter.clone() };
                self.core.emit(&namespace, "/snapshot/remove", &event);
            }
            Target::Image(name) => {
                self.core.emit(&namespace, "/images/delete", &ImageDelete { name: name.clone() });
            }
            _ => {}
        }
    }
}

fn gone<E: std::error::Error>(what: &str, name: &str, outcome: std::result::Result<(), E>) -> bool {
    outcome.inspect_err(|error| tracing::debug!(what, name, %error, "not deleted")).is_ok()
}
