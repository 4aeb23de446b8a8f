//! Garbage collection: what nothing keeps goes, first from the records, then from the disk.
//!
//! What goes is found beside all other work, without a lock; it then goes in slices, between which everybody else has
//! their turn. A dry run finds it by the same function and goes no further.

mod schedule;
mod sweep;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use gantry_metadata::{CollectOptions, Plan};
use gantry_types::{Digest, Namespace};
use tokio::sync::Mutex;

use crate::core::Core;
use crate::mounts::Records;
use crate::{Error, Result};

pub use gantry_metadata::Target;
pub use gantry_metadata::gc::{Node, Reason, Removal};
pub(crate) use schedule::Garbage;

/// Records removed at once: no writer waits longer than such a transaction takes.
const SLICE: usize = 256;

/// How long others may be kept waiting for what can only be done while no mount is made.
const PATIENCE: Duration = Duration::from_millis(200);

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

/// Something that goes, why, and what that frees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doomed {
    /// What, and why.
    pub removal: Removal,
    /// Bytes that go with it; none where another namespace shares them.
    pub bytes: u64,
}

/// What a collection would do.
#[derive(Clone, Debug, Default)]
pub struct Preview {
    /// What would go, in that order.
    pub doomed: Vec<Doomed>,
    /// What would stay, each with the path from a root to itself, both included.
    pub kept: Vec<Vec<Node>>,
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

    /// Asks for a collection soon, whatever the thresholds are; gives at once.
    pub fn schedule(&self) {
        self.core.garbage.ask();
    }

    /// Collects now; gives when what nothing keeps is gone. Joins a run that has not begun.
    ///
    /// # Errors
    /// When the records cannot be written. What cannot be deleted now is tried again by the next collection.
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

    /// Collects in these namespaces (in all where there are none), and says what went.
    ///
    /// # Errors
    /// As [`Gc::collect`].
    pub async fn collect_in(&self, namespaces: &[Namespace]) -> Result<Vec<Doomed>> {
        let _one = self.runs.ended.lock().await;
        let mut plan = self.plan().await?;
        plan.retain(|removal| is_in(&removal.node, namespaces));
        let mut bytes: BTreeMap<Node, u64> =
            self.weigh(&plan).await.into_iter().map(|doomed| (doomed.removal.node, doomed.bytes)).collect();
        let mut gone = Vec::new();
        self.sweep(plan, namespaces, &mut |removal| {
            let bytes = bytes.remove(&removal.node).unwrap_or_default();
            gone.push(Doomed { removal: removal.clone(), bytes });
        })
        .await?;
        Ok(gone)
    }

    /// What [`Gc::collect_in`] would remove, and (`kept`) what stays and why. Changes nothing.
    ///
    /// # Errors
    /// `Internal`.
    pub async fn preview(&self, namespaces: &[Namespace], kept: bool) -> Result<Preview> {
        let mut plan = self.plan().await?;
        plan.retain(|removal| is_in(&removal.node, namespaces));
        let mut doomed = self.weigh(&plan).await;
        let mut paths = if kept { plan.kept() } else { Vec::new() };
        self.add_mounts(&mut doomed, &mut paths, namespaces, kept);
        paths.retain(|path| path.last().is_some_and(|node| is_in(node, namespaces)));
        paths.sort_by(|a, b| a.last().cmp(&b.last()));
        Ok(Preview { doomed, kept: paths })
    }

    /// Adds the mounts that are active, which no record of the store is about: what would go lets them go, too.
    fn add_mounts(&self, doomed: &mut Vec<Doomed>, paths: &mut Vec<Vec<Node>>, namespaces: &[Namespace], kept: bool) {
        let going: BTreeSet<Node> = doomed.iter().map(|doomed| doomed.removal.node.clone()).collect();
        let by_end: BTreeMap<Node, usize> =
            paths.iter().enumerate().filter_map(|(at, path)| Some((path.last()?.clone(), at))).collect();
        // What is under way is judged when it is there.
        let records = Records::of(&self.core).all().into_iter().filter(|(.., record)| record.done.is_some());
        for (namespace, name, record) in records {
            let node = |target| Node { namespace: namespace.as_str().into(), target };
            let keeper = record.keeper(&self.core, &namespace, |target| !going.contains(&node(target.clone())));
            match keeper.map(node) {
                None if namespaces.is_empty() || namespaces.contains(&namespace) => {
                    doomed.push(Doomed { removal: mounts_removal(&namespace, name), bytes: 0 });
                }
                Some(keeper) if kept => {
                    let way = by_end.get(&keeper).map_or_else(|| vec![keeper], |at| paths[*at].clone());
                    paths.push(way.into_iter().chain([node(Target::Mount(name))]).collect());
                }
                _ => {}
            }
        }
    }

    /// After a deletion: soon, or (`sync`) before this returns.
    pub(crate) async fn after_deletion(&self, sync: bool) -> Result<()> {
        if sync {
            return self.collect().await.map(drop);
        }
        self.core.garbage.deleted();
        Ok(())
    }

    async fn plan(&self) -> Result<Plan> {
        let operation = self.core.ops.begin("gc", "", None, None);
        operation.stage("marking");
        let db = self.core.db.clone();
        let planned = tokio::task::spawn_blocking(move || db.plan(&CollectOptions::now())).await;
        planned.map_err(Error::task("marking"))
    }

    async fn run(&self) -> Result<Collected> {
        let plan = self.plan().await?;
        self.sweep(plan, &[], &mut |_| {}).await
    }

    /// What each of a plan's removals would free.
    async fn weigh(&self, plan: &Plan) -> Vec<Doomed> {
        let mut sharers = BTreeMap::new();
        let mut doomed = Vec::new();
        for removal in plan.removals() {
            let bytes = self.bytes(&removal.node, &mut sharers).await.unwrap_or_default();
            doomed.push(Doomed { removal: removal.clone(), bytes });
        }
        doomed
    }

    /// The last namespace that gives up a blob frees its bytes; `sharers` counts how many still have it.
    async fn bytes(&self, node: &Node, sharers: &mut BTreeMap<Digest, usize>) -> Option<u64> {
        let core = &self.core;
        let namespace: Namespace = node.namespace.parse().ok()?;
        match &node.target {
            Target::Content(digest) => {
                let digest: Digest = digest.parse().ok()?;
                let left = sharers.entry(digest.clone()).or_insert_with(|| core.db.sharers(&digest));
                *left = left.saturating_sub(1);
                if *left > 0 {
                    return None;
                }
                Some(core.store.info(&digest).await.ok()?.size)
            }
            Target::Snapshot { snapshotter, key } => {
                let record = core.db.snapshots(&namespace, snapshotter).get(key).ok()?;
                Some(core.snapshotters.get(snapshotter)?.usage(&record.internal).await.ok()?.size)
            }
            Target::Ingest(reference) => {
                let record = core.db.ingests(&namespace).get(reference).ok()?;
                Some(core.store.status(&record.internal).await.ok()?.offset)
            }
            _ => None,
        }
    }
}

/// The end of mounts that nothing keeps.
fn mounts_removal(namespace: &Namespace, name: String) -> Removal {
    let node = Node { namespace: namespace.as_str().into(), target: Target::Mount(name) };
    Removal { node, reason: Reason::Unreferenced }
}

/// Whether a node is in one of the namespaces; where there are none, all are meant.
fn is_in(node: &Node, namespaces: &[Namespace]) -> bool {
    namespaces.is_empty() || namespaces.iter().any(|namespace| namespace.as_str() == &*node.namespace)
}
