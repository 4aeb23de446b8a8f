//! What nothing keeps alive: a pure function over objects and their edges.
//!
//! Roots are containers, leases and images that have not expired, ingests whose time is not over, what a sandbox's labels name,
//! and what says so itself (`gc.root`). From there edges are followed; a flat lease keeps only what it names, and the parents of snapshots.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use crate::edges::{Edge, Target};

/// An object of a namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Node {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// What it is.
    pub target: Target,
}

/// All objects and their edges. A lease's resources are edges of the lease.
pub type Graph = BTreeMap<Node, Vec<Edge>>;

/// Why something goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Nothing keeps it.
    Unreferenced,
    /// Its time is over, and nothing else keeps it.
    Expired,
}

impl Reason {
    /// For people.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Unreferenced => "nothing refers to it",
            Reason::Expired => "it has expired",
        }
    }
}

/// Something that goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removal {
    /// What.
    pub node: Node,
    /// Why.
    pub reason: Reason,
}

/// A node as it is reached: a flat one passes on less.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Visit<'g> {
    namespace: &'g str,
    target: Target,
    flat: bool,
}

/// What goes at the second `now` since 1970, sorted. `held` names nodes that stay for reasons of the caller's.
pub fn mark(graph: &Graph, held: &[Node], now: i64) -> Vec<Removal> {
    let reached = Walk::new(graph, now).run(held);
    let lost = graph.iter().filter(|(node, _)| is_collectible(&node.target) && !reached.contains(*node));
    lost.map(|(node, edges)| Removal { node: node.clone(), reason: reason(edges, now) }).collect()
}

/// Containers and sandboxes go only when a client says so.
fn is_collectible(target: &Target) -> bool {
    !matches!(target, Target::Container(_) | Target::Sandbox(_))
}

fn reason(edges: &[Edge], now: i64) -> Reason {
    match is_expired(edges, now) {
        true => Reason::Expired,
        false => Reason::Unreferenced,
    }
}

fn is_expired(edges: &[Edge], now: i64) -> bool {
    edges.iter().any(|edge| matches!(edge, Edge::Expires(at) if now > *at))
}

struct Walk<'g> {
    graph: &'g Graph,
    now: i64,
    /// Who says that it lives as long as the key does.
    back: HashMap<Node, Vec<&'g Node>>,
    seen: HashSet<Visit<'g>>,
    todo: Vec<Visit<'g>>,
}

impl<'g> Walk<'g> {
    fn new(graph: &'g Graph, now: i64) -> Walk<'g> {
        let mut back: HashMap<Node, Vec<&Node>> = HashMap::new();
        for (node, edges) in graph {
            for edge in edges {
                if let (Edge::BackRefers(target), true) = (edge, takes_back_references(&node.target)) {
                    let to = Node { namespace: node.namespace.clone(), target: target.clone() };
                    back.entry(to).or_default().push(node);
                }
            }
        }
        Walk { graph, now, back, seen: HashSet::new(), todo: Vec::new() }
    }

    fn run(mut self, held: &'g [Node]) -> HashSet<Node> {
        for node in held {
            self.push(&node.namespace, node.target.clone(), false);
        }
        for (node, edges) in self.graph {
            self.push_root(node, edges);
        }
        while let Some(visit) = self.todo.pop() {
            self.follow(&visit);
        }
        let node = |visit: Visit<'_>| Node { namespace: visit.namespace.into(), target: visit.target };
        self.seen.into_iter().map(node).collect()
    }

    fn push(&mut self, namespace: &'g str, target: Target, flat: bool) {
        let visit = Visit { namespace, target, flat };
        if self.seen.insert(visit.clone()) {
            self.todo.push(visit);
        }
    }

    fn push_root(&mut self, node: &'g Node, edges: &'g [Edge]) {
        let by_label = || edges.contains(&Edge::Root);
        let is_root = match node.target {
            Target::Container(_) | Target::Sandbox(_) => true,
            Target::Image(_) | Target::Lease(_) => !is_expired(edges, self.now),
            Target::Ingest(_) => edges.iter().any(|edge| matches!(edge, Edge::Expires(at) if self.now <= *at)),
            Target::Content(_) | Target::Snapshot { .. } => by_label(),
        };
        if is_root {
            self.push(&node.namespace, node.target.clone(), false);
        }
    }

    fn follow(&mut self, visit: &Visit<'g>) {
        let node = Node { namespace: visit.namespace.into(), target: visit.target.clone() };
        if !visit.flat {
            for back in self.back.get(&node).cloned().unwrap_or_default() {
                self.push(&back.namespace, back.target.clone(), false);
            }
        }
        let Some(edges) = self.graph.get(&node) else { return };
        let flat = visit.flat || edges.contains(&Edge::Flat) && matches!(visit.target, Target::Lease(_));
        for edge in edges {
            if let Some(target) = passes(visit, edge) {
                self.push(visit.namespace, target, flat);
            }
        }
    }
}

/// What an edge of a visited node keeps. A flat visit passes on parents of snapshots and contents of images only.
fn passes(visit: &Visit<'_>, edge: &Edge) -> Option<Target> {
    match (&visit.target, edge) {
        (Target::Snapshot { snapshotter, .. }, Edge::Parent(key)) => {
            Some(Target::Snapshot { snapshotter: snapshotter.clone(), key: key.clone() })
        }
        (Target::Image(_), Edge::Refers(target)) if visit.flat => {
            matches!(target, Target::Content(_)).then(|| target.clone())
        }
        (_, Edge::Refers(target)) if !visit.flat => Some(target.clone()),
        _ => None,
    }
}

/// Labels of leases, sandboxes and ingests make no back references.
fn takes_back_references(target: &Target) -> bool {
    !matches!(target, Target::Lease(_) | Target::Sandbox(_) | Target::Ingest(_))
}
