//! Garbage collection of records, and what to remove elsewhere afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use gantry_types::Digest;

use crate::codec;
use crate::edges::{Edge, Target, seconds};
use crate::gc::{self, Graph, Node, Removal};
use crate::keys::{self, Kind};
use crate::memory::{Records, Snapshot as State};
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

impl Db {
    /// What [`Db::collect`] would remove, and why. Reads only.
    pub fn plan_collection(&self, options: &CollectOptions) -> Vec<Removal> {
        gc::mark(&graph(&self.memory().snapshot()), &options.held, seconds(options.now))
    }

    /// Removes the records that nothing keeps, in one transaction, and says what the caller shall remove elsewhere: bytes,
    /// snapshots, ingests. A crash before that is done is healed by comparing with [`Db::known_digests`] and its siblings.
    ///
    /// # Errors
    /// [`Error::NotWritten`].
    pub async fn collect(&self, options: CollectOptions) -> Result<Collected, Error> {
        // Marking takes time, and most collections find nothing: the first mark is made beside the committer.
        let planned = self.plan_collection(&options);
        if planned.is_empty() {
            return Ok(Collected::default());
        }
        self.transact(move |tx| {
            let state = tx.state();
            let removed = gc::mark(&graph(&state), &options.held, seconds(options.now));
            let mut collected = Collected::default();
            let mut doomed = Vec::new();
            for removal in &removed {
                remove(tx, &removal.node, &mut collected, &mut doomed)?;
            }
            let seen = digests(&tx.state());
            collected.digests.retain(|digest| !seen.contains(digest));
            collected.digests.sort();
            collected.digests.dedup();
            collected.snapshots = children_first(doomed);
            collected.removed = removed;
            Ok(collected)
        })
        .await
    }

    /// The blobs that some namespace sees: other bytes in the content store have no owner.
    pub fn known_digests(&self) -> BTreeSet<Digest> {
        digests(&self.memory().snapshot())
    }

    /// The internal keys that some namespace sees on a snapshotter: other snapshots there have no owner.
    pub fn known_snapshots(&self, snapshotter: &str) -> BTreeSet<String> {
        let state = self.memory().snapshot();
        let prefix = keys::prefix(&[snapshotter]);
        let spaces = state.values().map(|space| &space[Kind::Snapshot.index()]);
        let records = spaces.flat_map(|records| crate::memory::range(records, &prefix));
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
        let graph = graph(&self.memory().snapshot());
        let times = graph.values().flatten().filter_map(|edge| match edge {
            Edge::Expires(at) if *at >= after => Some(*at),
            _ => None,
        });
        // Something expires when the second is over.
        times.min().map(|at| codec::system_time((at.saturating_add(1), 0)))
    }
}

/// Removes one record, and notes what stands behind it.
fn remove(tx: &mut Tx<'_>, node: &Node, collected: &mut Collected, doomed: &mut Vec<Snapshot>) -> Result<(), Error> {
    let namespace = &*node.namespace;
    match &node.target {
        Target::Content(digest) => {
            tx.delete(Kind::Blob, namespace, digest.as_bytes());
            collected.digests.extend(digest.parse::<Digest>().ok());
        }
        Target::Image(name) => tx.delete(Kind::Image, namespace, name.as_bytes()),
        Target::Lease(id) => {
            leases::release_all(tx, namespace, id);
            tx.delete(Kind::Lease, namespace, id.as_bytes());
        }
        Target::Ingest(reference) => {
            if let Some(value) = tx.get(Kind::Ingest, namespace, reference.as_bytes()) {
                collected
                    .ingests
                    .extend(Ingest::decode(reference.as_bytes(), &value).ok().map(|ingest| ingest.internal));
            }
            tx.delete(Kind::Ingest, namespace, reference.as_bytes());
        }
        Target::Snapshot { snapshotter, key } => {
            let name = keys::join(&[snapshotter, key]);
            match tx.get(Kind::Snapshot, namespace, &name).and_then(|value| Snapshot::decode(&name, &value).ok()) {
                Some(snapshot) => {
                    snapshots::remove(tx, namespace, &snapshot)?;
                    doomed.push(snapshot);
                }
                None => tx.delete(Kind::Snapshot, namespace, &name),
            }
        }
        Target::Container(_) | Target::Sandbox(_) => {}
    }
    Ok(())
}

/// Sorts so that no snapshot stands before one of its children.
fn children_first(doomed: Vec<Snapshot>) -> Vec<(String, String)> {
    // Keys are unique within a namespace; internal keys begin with it.
    let place = |s: &Snapshot, key: &str| {
        let namespace = s.internal.split('/').next().unwrap_or_default();
        (namespace.to_owned(), s.snapshotter.clone(), key.to_owned())
    };
    let parents: BTreeMap<_, _> = doomed.iter().map(|s| (place(s, &s.key), s)).collect();
    let depth = |snapshot: &Snapshot| {
        let parent = |s: &&Snapshot| s.parent.as_ref().and_then(|key| parents.get(&place(s, key))).copied();
        // Bounded, so that a damaged circle ends.
        std::iter::successors(Some(snapshot), parent).take(parents.len() + 1).count()
    };
    let mut sorted: Vec<_> = doomed.iter().map(|s| (std::cmp::Reverse(depth(s)), s)).collect();
    sorted.sort_by_key(|(depth, _)| *depth);
    sorted.into_iter().map(|(_, s)| (s.snapshotter.clone(), s.internal.clone())).collect()
}

fn digests(state: &State) -> BTreeSet<Digest> {
    let names = state.values().flat_map(|space| space[Kind::Blob.index()].keys());
    names.filter_map(|name| std::str::from_utf8(name).ok()?.parse().ok()).collect()
}

/// The objects of all namespaces and their edges, as they were parsed when written.
fn graph(state: &State) -> Graph {
    let mut graph = Graph::new();
    for (namespace, space) in state {
        for kind in [Kind::Image, Kind::Container, Kind::Sandbox, Kind::Lease, Kind::Blob, Kind::Snapshot, Kind::Ingest]
        {
            add(&mut graph, namespace, kind, &space[kind.index()]);
        }
        for (lease, resource) in space[Kind::Resource.index()].keys().filter_map(|name| leases::parse(name)) {
            let lease = Node { namespace: namespace.clone(), target: Target::Lease(lease.to_owned()) };
            if let Some(edges) = graph.get_mut(&lease) {
                edges.push(Edge::Refers(target(resource)));
            }
        }
    }
    graph
}

fn add(graph: &mut Graph, namespace: &Arc<str>, kind: Kind, records: &Records) {
    for (name, value) in records {
        let Some(target) = named(kind, name) else { continue };
        // A damaged record stays until somebody has looked at it, and keeps nothing.
        let edges = codec::edges(value).unwrap_or_else(|_| vec![Edge::Root, Edge::Expires(i64::MAX)]);
        graph.insert(Node { namespace: namespace.clone(), target }, edges);
    }
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
