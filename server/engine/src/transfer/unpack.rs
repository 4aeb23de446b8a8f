//! Unpacking an image's layers into snapshots, one for each chain id, committed in their order. Whoever asks for a
//! chain id that is being unpacked waits for that one.
//!
//! Where the snapshotter can put a snapshot upon another when it is committed (`rebase`), all layers are unpacked at
//! once, each into a snapshot that stands on nothing:
//!
//! ```text
//! layer 0   fetch ─▶ unpack ─▶ commit
//! layer 1   fetch ─▶ unpack ──────▶ ┴─▶ commit upon 0
//! layer 2   fetch ─▶ unpack ───────────▶ ┴─▶ commit upon 1
//! ```
//!
//! What a layer needs of those below it waits for them: a directory that only its files name gets its owner and mode
//! before the commit; a layer with a hard link to a lower file, and an image of such a directory, is unpacked again.
//! Other snapshotters get one layer after the other.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use futures::future::join_all;
use gantry_types::{Any, Descriptor, Digest, Labels, Scope, labels};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::Transfer;
use super::ahead::Ahead;
use super::extract::One;
use super::report::Report;
use crate::stream::Feed;
use crate::{Error, Result};

/// A layer to unpack, and how its bytes come.
pub(super) struct Layer {
    pub(super) descriptor: Descriptor,
    pub(super) diff_id: Digest,
    pub(super) source: Source,
    /// What a snapshotter of another process is told of it.
    pub(super) told: Labels,
    /// What stream processors are told of it, by their names.
    pub(super) payloads: BTreeMap<String, Any>,
}

impl Layer {
    /// The labels of its snapshot: what snapshotters are told, and what containerd's clients look for.
    pub(super) fn labels(&self, chain_id: &Digest, parent: &str) -> Labels {
        let mut all = self.told.clone();
        all.insert(labels::SNAPSHOT_REF.to_owned(), chain_id.to_string());
        all.insert("containerd.io/snapshot/diff-id".to_owned(), self.diff_id.to_string());
        if !parent.is_empty() {
            all.insert("containerd.io/snapshot/parent-chain-id".to_owned(), parent.to_owned());
        }
        all
    }
}

/// How the bytes of a layer come.
pub(super) enum Source {
    /// They are in content.
    Stored,
    /// They will be in content once this says so.
    Fetched(watch::Receiver<bool>),
    /// They may be had while they are being fetched, too: the fetch asks before it begins, and waits for the answer.
    /// None: they are not wanted, or later from content.
    Coming(oneshot::Receiver<Asked>, watch::Receiver<bool>),
}

/// Takes the answer of an unpacker: whether it wants the bytes now, and where to.
pub(super) type Asked = oneshot::Sender<Option<Feed>>;

/// A stack of layers for one snapshotter.
pub(super) struct Stack {
    pub(super) snapshotter: String,
    /// Differs that may unpack it, in the order they are tried.
    pub(super) differs: Vec<String>,
    pub(super) layers: Vec<Layer>,
}

impl Stack {
    /// The chain ids of its layers.
    pub(super) fn chain(&self) -> Vec<Digest> {
        let diff_ids: Vec<Digest> = self.layers.iter().map(|layer| layer.diff_id.clone()).collect();
        super::manifest::chain_ids(&diff_ids)
    }
}

/// Snapshotters with commits whose files may not be durable yet: an unpacking that fails leaves what it has committed
/// without a sync, and the next one may find nothing to do.
#[derive(Clone, Default)]
pub(super) struct Unsynced(Arc<Mutex<HashMap<String, u64>>>);

impl Unsynced {
    fn commits(&self) -> std::sync::MutexGuard<'_, HashMap<String, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn committed(&self, snapshotter: &str) {
        *self.commits().entry(snapshotter.to_owned()).or_default() += 1;
    }

    /// How many commits a sync that begins now makes durable.
    fn seen(&self, snapshotter: &str) -> Option<u64> {
        self.commits().get(snapshotter).copied()
    }

    fn synced(&self, snapshotter: &str, seen: Option<u64>) {
        let mut commits = self.commits();
        if commits.get(snapshotter).copied() == seen {
            commits.remove(snapshotter);
        }
    }
}

/// What the layers of a stack share while they are unpacked.
pub(super) struct Together {
    /// One of them has failed: the others need not go on.
    pub(super) failed: CancellationToken,
    /// Removals of what was half done.
    pub(super) removals: Arc<Mutex<Vec<JoinHandle<()>>>>,
    /// Brings their files to the disk meanwhile.
    pub(super) ahead: Ahead,
}

impl Together {
    fn new(layers: usize) -> Together {
        Together { failed: CancellationToken::new(), removals: Arc::default(), ahead: Ahead::new(layers) }
    }

    /// Returns when nothing half done is left.
    async fn tidy(&self) {
        let removals = std::mem::take(&mut *self.removals.lock().unwrap_or_else(PoisonError::into_inner));
        join_all(removals).await;
    }
}

impl Transfer {
    /// Unpacks what is not unpacked; gives the chain id of the top. Nothing but committed snapshots stays after a
    /// failure.
    pub(super) async fn unpack_stack(&self, scope: &Scope, stack: Stack, report: &Report) -> Result<Digest> {
        let chain = stack.chain();
        let top = chain.last().cloned().ok_or_else(|| Error::invalid("image", "has no layers to unpack"))?;
        let driver = self.snapshots.snapshotter(&stack.snapshotter)?;
        let may_rebase = driver.capabilities().contains(&"rebase") && self.core.config.concurrent_unpacks > 1;
        // A differ of another process does not say when it needs what is below.
        let elsewhere = stack.differs.first().is_some_and(|name| self.core.differs.contains_key(name));
        let at_once = may_rebase && !elsewhere;
        let together = Together::new(stack.layers.len());
        let unpacked = {
            let one = |number: usize| One {
                transfer: self,
                scope,
                snapshotter: &stack.snapshotter,
                differs: &stack.differs,
                chain_id: &chain[number],
                parent: if number == 0 { "" } else { chain[number - 1].as_str() },
                report,
                together: &together,
            };
            let layers = stack.layers.into_iter().enumerate().map(|(number, layer)| (one(number), layer)).collect();
            let unpacking =
                async { if at_once { all_at_once(layers, &together).await } else { one_by_one(layers).await } };
            tokio::select! {
                unpacked = unpacking => unpacked,
                never = together.ahead.run(&*driver) => match never {},
            }
        };
        together.tidy().await;
        let made = unpacked?;
        let seen = self.unsynced.seen(&stack.snapshotter);
        if made || seen.is_some() {
            // An image must not be named before its files would survive a power cut.
            self.snapshots.sync(scope, &stack.snapshotter, top.as_str()).await?;
            self.unsynced.synced(&stack.snapshotter, seen);
        }
        Ok(top)
    }
}

/// Whether there was something to unpack.
async fn one_by_one(layers: Vec<(One<'_>, Layer)>) -> Result<bool> {
    let mut made = false;
    // A fetch that asks a layer whose turn has not come goes to content.
    let later = |(one, layer)| match layer {
        Layer { source: Source::Coming(_, fetched), .. } => (one, Layer { source: Source::Fetched(fetched), ..layer }),
        layer => (one, layer),
    };
    let mut layers = layers.into_iter();
    let first = layers.next();
    let rest: Vec<_> = layers.map(later).collect();
    for (one, layer) in first.into_iter().chain(rest) {
        made |= one.unpack(layer, None).await?;
    }
    Ok(made)
}

/// As [`one_by_one`]. The error is that of the lowest layer that failed by itself.
async fn all_at_once(layers: Vec<(One<'_>, Layer)>, together: &Together) -> Result<bool> {
    let mut below: Option<watch::Receiver<bool>> = None;
    let mut running = Vec::with_capacity(layers.len());
    for (one, layer) in layers {
        let (done, is_done) = watch::channel(false);
        let below = below.replace(is_done);
        running.push(async move {
            let unpacked = tokio::select! {
                biased;
                unpacked = one.unpack(layer, below) => unpacked,
                () = together.failed.cancelled() => Err(STOPPED),
            };
            match &unpacked {
                Ok(_) => drop(done.send_replace(true)),
                Err(_) => together.failed.cancel(),
            }
            unpacked
        });
    }
    let all = join_all(running).await;
    let stopped = |result: &Result<bool>| matches!(result, Err(Error::Stopped { .. }));
    let (because, own): (Vec<_>, Vec<_>) = all.into_iter().partition(stopped);
    let results: Result<Vec<bool>> = own.into_iter().chain(because).collect();
    results.map(|made| made.contains(&true))
}

/// Another layer has failed.
pub(super) const STOPPED: Error = Error::Stopped { what: "unpack: another layer of the image has failed" };
