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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: i64 = 100;

    fn target() -> impl Strategy<Value = Target> {
        (0..7, 0..4).prop_map(|(kind, n): (i32, i32)| match kind {
            0 => Target::Content(format!("d{n}")),
            1 => Target::Snapshot { snapshotter: "s".into(), key: format!("k{n}") },
            2 => Target::Image(format!("i{n}")),
            3 => Target::Container(format!("c{n}")),
            4 => Target::Sandbox(format!("p{n}")),
            5 => Target::Lease(format!("l{n}")),
            _ => Target::Ingest(format!("r{n}")),
        })
    }

    fn node() -> impl Strategy<Value = Node> {
        (0..2, target()).prop_map(|(n, target)| Node { namespace: format!("n{n}").into(), target })
    }

    fn edge() -> impl Strategy<Value = Edge> {
        prop_oneof![
            1 => Just(Edge::Root),
            6 => target().prop_map(Edge::Refers),
            3 => target().prop_map(Edge::BackRefers),
            3 => (0..4).prop_map(|n| Edge::Parent(format!("k{n}"))),
            2 => (NOW - 2..NOW + 3).prop_map(Edge::Expires),
            1 => Just(Edge::Flat),
        ]
    }

    fn graph() -> impl Strategy<Value = Graph> {
        proptest::collection::btree_map(node(), proptest::collection::vec(edge(), 0..4), 0..30)
    }

    /// The same rules, written as "is there any reason to stay?" and asked again until nothing changes.
    fn naive(graph: &Graph, held: &[Node]) -> Vec<Node> {
        let has = |edges: &[Edge], edge: &dyn Fn(&Edge) -> bool| edges.iter().any(edge);
        let expired = |edges: &[Edge]| has(edges, &|e| matches!(e, Edge::Expires(at) if *at < NOW));
        let root = |node: &Node, edges: &[Edge]| match &node.target {
            Target::Container(_) | Target::Sandbox(_) => true,
            Target::Image(_) | Target::Lease(_) => !expired(edges),
            Target::Ingest(_) => has(edges, &|e| matches!(e, Edge::Expires(at) if *at >= NOW)),
            _ => has(edges, &|e| *e == Edge::Root),
        };
        // Alive wholly, and alive flatly.
        let mut whole: HashSet<Node> = held.iter().cloned().collect();
        whole.extend(graph.iter().filter(|(n, e)| root(n, e)).map(|(n, _)| n.clone()));
        let mut flat: HashSet<Node> = HashSet::new();
        loop {
            let before = (whole.len(), flat.len());
            for (node, edges) in graph {
                let near = |target: Target| Node { namespace: node.namespace.clone(), target };
                let is_flat_lease = matches!(node.target, Target::Lease(_)) && edges.contains(&Edge::Flat);
                for edge in edges {
                    match (edge, &node.target) {
                        (
                            Edge::BackRefers(to),
                            Target::Content(_) | Target::Snapshot { .. } | Target::Image(_) | Target::Container(_),
                        ) if whole.contains(&near(to.clone())) => {
                            whole.insert(node.clone());
                        }
                        (Edge::Parent(key), Target::Snapshot { snapshotter, .. }) => {
                            let parent = near(Target::Snapshot { snapshotter: snapshotter.clone(), key: key.clone() });
                            if whole.contains(node) {
                                whole.insert(parent.clone());
                            }
                            if flat.contains(node) {
                                flat.insert(parent);
                            }
                        }
                        (Edge::Refers(to), from) => {
                            if whole.contains(node) && !is_flat_lease {
                                whole.insert(near(to.clone()));
                            }
                            if whole.contains(node) && is_flat_lease {
                                flat.insert(near(to.clone()));
                            }
                            let is_content = matches!(to, Target::Content(_));
                            if flat.contains(node) && matches!(from, Target::Image(_)) && is_content {
                                flat.insert(near(to.clone()));
                            }
                        }
                        _ => {}
                    }
                }
            }
            if before == (whole.len(), flat.len()) {
                let stays = |n: &Node| matches!(n.target, Target::Container(_) | Target::Sandbox(_));
                let dead = |n: &&Node| !stays(n) && !whole.contains(*n) && !flat.contains(*n);
                return graph.keys().filter(dead).cloned().collect();
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn marking_agrees_with_a_naive_model(
            mut graph in graph(),
            held in proptest::collection::vec(node(), 0..2),
        ) {
            // Flatly reached leases do not occur: nothing refers to a lease.
            for edges in graph.values_mut() {
                edges.retain(|e| !matches!(e, Edge::Refers(Target::Lease(_))));
            }
            let removed: Vec<Node> = mark(&graph, &held, NOW).into_iter().map(|removal| removal.node).collect();
            prop_assert_eq!(removed, naive(&graph, &held));
        }

        #[test]
        fn what_remains_after_a_collection_needs_no_second_one(graph in graph()) {
            let mut rest = graph.clone();
            for removal in mark(&graph, &[], NOW) {
                rest.remove(&removal.node);
            }
            prop_assert_eq!(mark(&rest, &[], NOW), Vec::new());
        }
    }

    fn at(target: Target) -> Node {
        Node { namespace: "n".into(), target }
    }

    fn content(digest: &str) -> Target {
        Target::Content(digest.into())
    }

    fn snapshot(key: &str) -> Target {
        Target::Snapshot { snapshotter: "overlayfs".into(), key: key.into() }
    }

    #[test]
    fn an_image_keeps_its_whole_tree_until_it_expires() {
        let mut graph = Graph::from([
            (at(Target::Image("i".into())), vec![Edge::Refers(content("manifest"))]),
            (at(content("manifest")), vec![Edge::Refers(content("layer")), Edge::Refers(content("absent"))]),
            (at(content("layer")), vec![Edge::Refers(snapshot("top"))]),
            (at(snapshot("top")), vec![Edge::Parent("base".into())]),
            (at(snapshot("base")), vec![]),
        ]);
        assert_eq!(mark(&graph, &[], NOW), []);
        graph.get_mut(&at(Target::Image("i".into()))).unwrap().push(Edge::Expires(NOW));
        assert_eq!(mark(&graph, &[], NOW), []);
        let removed = mark(&graph, &[], NOW + 1);
        assert_eq!(removed.len(), 5);
        assert_eq!(removed.iter().filter(|r| r.reason == Reason::Expired).count(), 1);
    }

    #[test]
    fn a_flat_lease_keeps_what_it_names_and_the_parents_of_snapshots_only() {
        let lease = at(Target::Lease("l".into()));
        let graph = Graph::from([
            (lease, vec![Edge::Flat, Edge::Refers(content("manifest")), Edge::Refers(snapshot("top"))]),
            (at(content("manifest")), vec![Edge::Refers(content("layer"))]),
            (at(content("layer")), vec![]),
            (at(snapshot("top")), vec![Edge::Parent("base".into()), Edge::Refers(content("layer"))]),
            (at(snapshot("base")), vec![]),
        ]);
        let removed: Vec<Node> = mark(&graph, &[], NOW).into_iter().map(|r| r.node).collect();
        assert_eq!(removed, [at(content("layer"))]);
    }

    #[test]
    fn edges_do_not_leave_their_namespace() {
        let other = Node { namespace: "other".into(), target: content("d") };
        let graph = Graph::from([
            (at(Target::Image("i".into())), vec![Edge::Refers(content("d"))]),
            (at(content("d")), vec![]),
            (other.clone(), vec![]),
        ]);
        assert_eq!(mark(&graph, &[], NOW), [Removal { node: other, reason: Reason::Unreferenced }]);
    }
}
