//! Garbage collection of records, and what to remove elsewhere afterwards.
//!
//! Marking looks at all records and takes its time, beside the committer and without any lock. What is written meanwhile
//! is watched, and each slice of removals looks first at what that changed: so no writer waits for longer than a slice
//! takes, however many records there are.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::SystemTime;

use gantry_types::Digest;

use crate::codec;
use crate::committer::COMMIT;
use crate::db::number;
use crate::edges::{Edge, Target, seconds};
use crate::gc::{Marker, Node, Removal};
use crate::keys::{self, Key, Kind};
use crate::memory::{Snapshot as State, Watch};
use crate::records::Records;
use crate::table::Record;
use crate::tx::Tx;
use crate::{Db, Error, Ingest, Resource, Snapshot, leases, snapshots};

/// When, and what stays besides.
#[derive(Clone, Debug)]
pub struct CollectOptions {
    /// The time to judge expiry by.
    pub now: SystemTime,
    /// What stays for reasons that are no record: the engine's work in progress.
    pub held: Vec<Node>,
}

impl CollectOptions {
    /// Collection as of now, with nothing held.
    pub fn now() -> CollectOptions {
        CollectOptions { now: SystemTime::now(), held: Vec::new() }
    }
}

/// What a collection removed, and what has no owner because of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// The records that are gone, and why.
    pub removed: Vec<Removal>,
    /// Blobs that no namespace sees any more.
    pub digests: Vec<Digest>,
    /// Snapshotters and internal keys of snapshots that no namespace sees any more, children before their parents.
    pub snapshots: Vec<(String, String)>,
    /// Names in the content store of ingests that no namespace sees any more.
    pub ingests: Vec<String>,
}

/// What is to go, as of the moment it was made, and what has changed since.
pub struct Plan {
    marker: Marker,
    watch: Arc<Watch>,
    /// In the order of their removal, last first.
    left: Vec<Removal>,
}

impl Plan {
    /// What is to go, in the order of its removal.
    pub fn removals(&self) -> impl ExactSizeIterator<Item = &Removal> {
        self.left.iter().rev()
    }

    /// Leaves in the plan only what `goes` says.
    pub fn retain(&mut self, goes: impl Fn(&Removal) -> bool) {
        self.left.retain(|removal| goes(removal));
    }

    /// Whether nothing is to go.
    pub fn is_empty(&self) -> bool {
        self.left.is_empty()
    }

    /// What stays, each with the path from a root to itself, both included.
    pub fn kept(&mut self) -> Vec<Vec<Node>> {
        self.marker.kept()
    }

    /// What was written since the plan was made stays, and what that refers to.
    fn take_in(&mut self, tx: &Tx<'_>) {
        let mut keys = self.watch.take();
        keys.extend(tx.unpublished().cloned());
        for key in keys {
            let Some(value) = tx.get(key.kind, &key.namespace, &key.name) else { continue };
            self.take_in_record(&key, &value);
        }
    }

    fn take_in_record(&mut self, key: &Key, value: &[u8]) {
        let node = |target| Node { namespace: key.namespace.clone(), target };
        match (key.kind, named(key.kind, &key.name)) {
            (Kind::Resource, _) => {
                if let Some((_, resource)) = leases::parse(&key.name) {
                    self.marker.keep(&node(target(resource)));
                }
            }
            (_, Some(target)) => {
                let node = node(target);
                self.marker.add(node.clone(), edges_of(value));
                self.marker.keep(&node);
            }
            _ => {}
        }
    }
}

impl Db {
    /// What nothing keeps. Reads only, and all of it: work for a thread that may block.
    pub fn plan(&self, options: &CollectOptions) -> Plan {
        let (state, watch) = self.memory().watched();
        let mut marker = marker(&state, seconds(options.now));
        // Not held any longer than needed: writers copy what readers hold.
        drop(state);
        options.held.iter().for_each(|node| marker.keep(node));
        let mut left = marker.removals();
        left.reverse();
        Plan { marker, watch, left }
    }

    /// What [`Db::collect`] would remove, and why, in the order of its removal. Reads only.
    pub fn plan_collection(&self, options: &CollectOptions) -> Vec<Removal> {
        self.plan(options).removals().cloned().collect()
    }

    /// Removes the next `at_most` records of a plan in one transaction, except what has been given a reason to stay since, and
    /// says what the caller shall remove elsewhere: bytes, snapshots, ingests. A crash before that is done is healed by
    /// comparing with [`Db::known_digests`] and its siblings.
    ///
    /// # Errors
    /// [`Error::NotWritten`].
    pub async fn remove_next(&self, mut plan: Plan, at_most: usize) -> Result<(Plan, Collected), Error> {
        self.transact(move |tx| {
            plan.take_in(tx);
            let mut collected = Collected::default();
            while collected.removed.len() < at_most
                && let Some(removal) = plan.left.pop()
            {
                if !plan.marker.is_reached(&removal.node) && remove(tx, &removal.node, &mut collected)? {
                    collected.removed.push(removal);
                }
            }
            collected.digests.retain(|digest| !tx.is_anywhere(Kind::Blob, digest.as_str().as_bytes()));
            collected.digests.sort();
            collected.digests.dedup();
            Ok((plan, collected))
        })
        .await
    }

    /// Plans and removes all of it, in one transaction.
    ///
    /// # Errors
    /// [`Error::NotWritten`].
    pub async fn collect(&self, options: CollectOptions) -> Result<Collected, Error> {
        let plan = self.plan(&options);
        if plan.is_empty() {
            return Ok(Collected::default());
        }
        Ok(self.remove_next(plan, usize::MAX).await?.1)
    }

    /// The blobs that some namespace sees: other bytes in the content store have no owner.
    pub fn known_digests(&self) -> BTreeSet<Digest> {
        digests(&self.memory().snapshot())
    }

    /// How many namespaces see a blob.
    pub fn sharers(&self, digest: &Digest) -> usize {
        let name = digest.as_str().as_bytes();
        let memory = self.memory();
        memory.namespaces().iter().filter(|namespace| memory.get(Kind::Blob, namespace, name).is_some()).count()
    }

    /// How many commits there were in the life of this store.
    pub fn commits(&self) -> u64 {
        self.memory().get(Kind::Meta, "", COMMIT).map_or(0, |value| number(&value))
    }

    /// The internal keys that some namespace sees on a snapshotter: other snapshots there have no owner.
    pub fn known_snapshots(&self, snapshotter: &str) -> BTreeSet<String> {
        let state = self.memory().snapshot();
        let prefix = keys::prefix(&[snapshotter]);
        let spaces = state.values().map(|space| &space[Kind::Snapshot.index()]);
        let records = spaces.flat_map(|records| records.starting(&prefix));
        records
            .filter_map(|(name, value)| Snapshot::decode(name, value).ok())
            .map(|snapshot| snapshot.internal)
            .collect()
    }

    /// The names in the content store of ingests that some namespace sees: other ingests there have no owner.
    pub fn known_ingests(&self) -> BTreeSet<String> {
        let state = self.memory().snapshot();
        let records = state.values().flat_map(|space| space[Kind::Ingest.index()].iter());
        records.filter_map(|(name, value)| Ingest::decode(name, value).ok()).map(|ingest| ingest.internal).collect()
    }

    /// When the next lease, image or ingest expires, for a timer; none where nothing will.
    pub fn next_expiry(&self, after: SystemTime) -> Option<SystemTime> {
        let after = seconds(after);
        let state = self.memory().snapshot();
        let kinds = [Kind::Image, Kind::Lease, Kind::Ingest];
        let records = state.values().flat_map(|space| kinds.map(|kind| &space[kind.index()]));
        let edges =
            records.flat_map(|records| records.iter()).flat_map(|(_, value)| codec::edges(value).unwrap_or_default());
        let times = edges.filter_map(|edge| match edge {
            Edge::Expires(at) if at >= after => Some(at),
            _ => None,
        });
        // Something expires when the second is over.
        times.min().map(|at| codec::system_time((at.saturating_add(1), 0)))
    }
}

/// Removes one record, and notes what stands behind it. False where it is gone already.
fn remove(tx: &mut Tx<'_>, node: &Node, collected: &mut Collected) -> Result<bool, Error> {
    let namespace = &*node.namespace;
    let Some((kind, name)) = place(&node.target) else { return Ok(false) };
    let Some(value) = tx.get(kind, namespace, &name) else { return Ok(false) };
    match &node.target {
        Target::Content(digest) => collected.digests.extend(digest.parse::<Digest>().ok()),
        Target::Lease(id) => leases::release_all(tx, namespace, id),
        Target::Ingest(_) => {
            collected.ingests.extend(Ingest::decode(&name, &value).ok().map(|ingest| ingest.internal));
        }
        Target::Snapshot { .. } => {
            if let Ok(snapshot) = Snapshot::decode(&name, &value) {
                snapshots::remove(tx, namespace, &snapshot)?;
                collected.snapshots.push((snapshot.snapshotter, snapshot.internal));
            }
        }
        _ => {}
    }
    tx.delete(kind, namespace, &name);
    Ok(true)
}

/// Where the record of something collectible is.
fn place(target: &Target) -> Option<(Kind, Vec<u8>)> {
    Some(match target {
        Target::Content(digest) => (Kind::Blob, digest.as_bytes().to_vec()),
        Target::Image(name) => (Kind::Image, name.as_bytes().to_vec()),
        Target::Lease(id) => (Kind::Lease, id.as_bytes().to_vec()),
        Target::Ingest(reference) => (Kind::Ingest, reference.as_bytes().to_vec()),
        Target::Snapshot { snapshotter, key } => (Kind::Snapshot, keys::join(&[snapshotter, key])),
        Target::Container(_) | Target::Sandbox(_) | Target::Mount(_) => return None,
    })
}

fn digests(state: &State) -> BTreeSet<Digest> {
    let blobs = state.values().flat_map(|space| space[Kind::Blob.index()].iter());
    blobs.filter_map(|(name, _)| std::str::from_utf8(name).ok()?.parse().ok()).collect()
}

/// The objects of all namespaces with their edges, as they were parsed when written.
fn marker(state: &State, now: i64) -> Marker {
    let mut marker = Marker::new(now);
    for (namespace, space) in state {
        for kind in [Kind::Image, Kind::Container, Kind::Sandbox, Kind::Lease, Kind::Blob, Kind::Snapshot, Kind::Ingest]
        {
            add(&mut marker, namespace, kind, &space[kind.index()]);
        }
        let leases = &space[Kind::Lease.index()];
        for (lease, resource) in space[Kind::Resource.index()].iter().filter_map(|(name, _)| leases::parse(name)) {
            if leases.contains(lease.as_bytes()) {
                let lease = Node { namespace: namespace.clone(), target: Target::Lease(lease.to_owned()) };
                marker.refer(&lease, target(resource));
            }
        }
    }
    marker
}

fn add(marker: &mut Marker, namespace: &Arc<str>, kind: Kind, records: &Records) {
    for (name, value) in records.iter() {
        let Some(target) = named(kind, name) else { continue };
        marker.add(Node { namespace: namespace.clone(), target }, edges_of(value));
    }
}

/// A damaged record stays until somebody has looked at it, and keeps nothing.
fn edges_of(value: &[u8]) -> Vec<Edge> {
    codec::edges(value).unwrap_or_else(|_| vec![Edge::Root, Edge::Expires(i64::MAX)])
}

fn named(kind: Kind, name: &[u8]) -> Option<Target> {
    let text = || std::str::from_utf8(name).ok().map(str::to_owned);
    match kind {
        Kind::Image => text().map(Target::Image),
        Kind::Container => text().map(Target::Container),
        Kind::Sandbox => text().map(Target::Sandbox),
        Kind::Lease => text().map(Target::Lease),
        Kind::Blob => text().map(Target::Content),
        Kind::Ingest => text().map(Target::Ingest),
        Kind::Snapshot => keys::split::<2>(name)
            .map(|[snapshotter, key]| Target::Snapshot { snapshotter: snapshotter.to_owned(), key: key.to_owned() }),
        _ => None,
    }
}

fn target(resource: Resource) -> Target {
    match resource {
        Resource::Content(digest) => Target::Content(digest.into()),
        Resource::Image(name) => Target::Image(name),
        Resource::Ingest(reference) => Target::Ingest(reference),
        Resource::Snapshot { snapshotter, key } => Target::Snapshot { snapshotter, key },
    }
}
