//! What nothing keeps alive: pure rules over objects and their edges.
//!
//! Roots are containers, leases and images that have not expired, ingests whose time is not over, what a sandbox's labels name,
//! and what says so itself (`gc.root`). From there edges are followed; a flat lease keeps only what it names, and the parents of snapshots.
//!
//! [`mark`] judges a whole graph at once. [`Marker`] is the same, step by step: what is written while a collection runs is added
//! to what was marked before, and only what that reaches anew is followed. It also knows by which path something was reached.

use std::collections::{BTreeMap, HashMap};
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
            Reason::Unreferenced => "no root reaches it",
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

/// What goes at the second `now` since 1970, sorted. `held` names nodes that stay for reasons of the caller's.
pub fn mark(graph: &Graph, held: &[Node], now: i64) -> Vec<Removal> {
    let mut marker = Marker::new(now);
    graph.iter().for_each(|(node, edges)| marker.add(node.clone(), edges.clone()));
    held.iter().for_each(|node| marker.keep(node));
    let mut removals = marker.removals();
    removals.sort_by(|a, b| a.node.cmp(&b.node));
    removals
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

/// How something was first reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reached {
    Not,
    /// A root, or held by the caller.
    Root,
    /// By this visit.
    From(Visit),
}

/// An entry as it is reached: a flat visit passes on less.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Visit {
    entry: usize,
    flat: bool,
}

/// What is known of an object, or of one that is only spoken of.
struct Entry {
    node: Arc<Node>,
    edges: Vec<Edge>,
    exists: bool,
    /// By a visit that is not flat, by one that is.
    reached: [Reached; 2],
    /// How many of the edges such a visit has passed on; none before the first one.
    passed: [Option<usize>; 2],
    /// Whether it is a lease that passes on less.
    is_flat: bool,
    /// Who says that it lives as long as this does.
    back: Vec<usize>,
}

/// Objects, and what of them is reached. Everything asked of it is answered as of what was added so far.
pub struct Marker {
    now: i64,
    entries: Vec<Entry>,
    index: HashMap<Arc<Node>, usize>,
    todo: Vec<Visit>,
}

impl Marker {
    /// Without objects, at the second `now` since 1970.
    pub fn new(now: i64) -> Marker {
        Marker { now, entries: Vec::new(), index: HashMap::new(), todo: Vec::new() }
    }

    /// Adds an object with its edges. One that is there gets more edges; what its old ones reached stays reached.
    pub fn add(&mut self, node: Node, edges: Vec<Edge>) {
        let is_root = is_root(&node.target, &edges, self.now);
        let at = self.entry(&node);
        if takes_back_references(&node.target) {
            self.add_back_references(at, &node, &edges);
        }
        let entry = &mut self.entries[at];
        entry.exists = true;
        entry.is_flat |= matches!(node.target, Target::Lease(_)) && edges.contains(&Edge::Flat);
        entry.edges.extend(edges);
        entry.follow_again(at, &mut self.todo);
        if is_root {
            self.reach(at, false, Reached::Root);
        }
    }

    fn add_back_references(&mut self, at: usize, node: &Node, edges: &[Edge]) {
        for edge in edges {
            let Edge::BackRefers(target) = edge else { continue };
            let keeper = self.entry(&Node { namespace: node.namespace.clone(), target: target.clone() });
            self.entries[keeper].back.push(at);
            if self.entries[keeper].reached[0] != Reached::Not {
                self.reach(at, false, Reached::From(Visit { entry: keeper, flat: false }));
            }
        }
    }

    /// Adds one more thing that a node keeps.
    pub fn refer(&mut self, node: &Node, target: Target) {
        let at = self.entry(node);
        let entry = &mut self.entries[at];
        entry.edges.push(Edge::Refers(target));
        entry.follow_again(at, &mut self.todo);
    }

    /// Lets a node stay for a reason of the caller's.
    pub fn keep(&mut self, node: &Node) {
        let at = self.entry(node);
        self.reach(at, false, Reached::Root);
    }

    /// What goes: the objects that no root reaches, images and leases first, no snapshot before one of its children.
    pub fn removals(&mut self) -> Vec<Removal> {
        self.follow_all();
        let lost = self.entries.iter().enumerate();
        let lost = lost.filter(|(_, e)| e.exists && is_collectible(&e.node.target) && !e.is_reached());
        let mut lost: Vec<usize> = lost.map(|(at, _)| at).collect();
        let depths = self.depths(&lost);
        let key = |at: &usize| (rank(&self.entries[*at].node.target), std::cmp::Reverse(depths.get(at).copied()));
        lost.sort_by(|a, b| key(a).cmp(&key(b)).then_with(|| self.entries[*a].node.cmp(&self.entries[*b].node)));
        let removal = |at: usize| {
            let entry = &self.entries[at];
            Removal { node: Node::clone(&entry.node), reason: reason(&entry.edges, self.now) }
        };
        lost.into_iter().map(removal).collect()
    }

    /// Whether a root reaches it.
    pub fn is_reached(&mut self, node: &Node) -> bool {
        self.follow_all();
        self.index.get(node).is_some_and(|at| self.entries[*at].is_reached())
    }

    /// What stays, each with the path from a root to itself (both included).
    pub fn kept(&mut self) -> Vec<Vec<Node>> {
        self.follow_all();
        let reached = self.entries.iter().filter(|entry| entry.exists && entry.is_reached());
        reached.map(|entry| self.path(entry)).collect()
    }

    fn path(&self, entry: &Entry) -> Vec<Node> {
        let mut path = vec![Node::clone(&entry.node)];
        let mut reached = entry.reached[0];
        if reached == Reached::Not {
            reached = entry.reached[1];
        }
        // Each was reached by one that had been reached before: no circle.
        while let Reached::From(Visit { entry, flat }) = reached {
            path.push(Node::clone(&self.entries[entry].node));
            reached = self.entries[entry].reached[usize::from(flat)];
        }
        path.reverse();
        path
    }

    fn entry(&mut self, node: &Node) -> usize {
        if let Some(at) = self.index.get(node) {
            return *at;
        }
        let node = Arc::new(node.clone());
        let at = self.entries.len();
        self.index.insert(Arc::clone(&node), at);
        self.entries.push(Entry {
            node,
            edges: Vec::new(),
            exists: false,
            reached: [Reached::Not; 2],
            passed: [None; 2],
            is_flat: false,
            back: Vec::new(),
        });
        at
    }

    fn reach(&mut self, at: usize, flat: bool, how: Reached) {
        let reached = &mut self.entries[at].reached[usize::from(flat)];
        if *reached == Reached::Not {
            *reached = how;
            self.todo.push(Visit { entry: at, flat });
        }
    }

    fn follow_all(&mut self) {
        while let Some(visit) = self.todo.pop() {
            self.follow(visit);
        }
    }

    /// Passes on what was not before: a lease with many resources is visited for each of them.
    fn follow(&mut self, visit: Visit) {
        let by = Reached::From(visit);
        let entry = &mut self.entries[visit.entry];
        let before = entry.passed[usize::from(visit.flat)].replace(entry.edges.len());
        if before.is_none() && !visit.flat {
            for back in entry.back.clone() {
                self.reach(back, false, by);
            }
        }
        let Entry { node, edges, is_flat, .. } = &self.entries[visit.entry];
        let flat = visit.flat || *is_flat;
        let fresh = &edges[before.unwrap_or(0)..];
        let passed = fresh.iter().filter_map(|edge| passes(&node.target, visit.flat, edge));
        let passed: Vec<Node> = passed.map(|target| Node { namespace: node.namespace.clone(), target }).collect();
        for node in passed {
            let at = self.entry(&node);
            self.reach(at, flat, by);
        }
    }

    /// How many of the `lost` lie under each snapshot among them.
    fn depths(&self, lost: &[usize]) -> HashMap<usize, usize> {
        let mut depths: HashMap<usize, usize> = HashMap::new();
        let lost: std::collections::HashSet<usize> = lost.iter().copied().collect();
        for start in &lost {
            let mut chain = Vec::new();
            let mut next = Some(*start);
            // Bounded, so that a damaged circle ends.
            while let Some(at) = next.filter(|at| !depths.contains_key(at) && chain.len() <= lost.len()) {
                chain.push(at);
                next = self.parent(at).filter(|at| lost.contains(at));
            }
            let below = next.and_then(|at| depths.get(&at)).map_or(0, |depth| depth + 1);
            for (height, at) in chain.into_iter().rev().enumerate() {
                depths.insert(at, below + height);
            }
        }
        depths
    }

    fn parent(&self, at: usize) -> Option<usize> {
        let Entry { node, edges, .. } = &self.entries[at];
        let Target::Snapshot { snapshotter, .. } = &node.target else { return None };
        let key = edges.iter().find_map(|edge| if let Edge::Parent(key) = edge { Some(key) } else { None })?;
        let target = Target::Snapshot { snapshotter: snapshotter.clone(), key: key.clone() };
        self.index.get(&Node { namespace: node.namespace.clone(), target }).copied()
    }
}

impl Entry {
    /// What was reached before passes on what it says only now.
    fn follow_again(&self, at: usize, todo: &mut Vec<Visit>) {
        let reached = [false, true].into_iter().filter(|flat| self.reached[usize::from(*flat)] != Reached::Not);
        todo.extend(reached.map(|flat| Visit { entry: at, flat }));
    }

    fn is_reached(&self) -> bool {
        self.reached != [Reached::Not; 2]
    }
}

/// Names go before what they name, so that no name stands for what is gone.
fn rank(target: &Target) -> u8 {
    match target {
        Target::Lease(_) => 0,
        Target::Image(_) => 1,
        Target::Content(_) => 2,
        Target::Snapshot { .. } => 3,
        _ => 4,
    }
}

fn is_root(target: &Target, edges: &[Edge], now: i64) -> bool {
    match target {
        Target::Container(_) | Target::Sandbox(_) => true,
        Target::Image(_) | Target::Lease(_) => !is_expired(edges, now),
        Target::Ingest(_) => edges.iter().any(|edge| matches!(edge, Edge::Expires(at) if now <= *at)),
        Target::Content(_) | Target::Snapshot { .. } | Target::Mount(_) => edges.contains(&Edge::Root),
    }
}

/// What an edge of a visited object keeps. A flat visit passes on parents of snapshots and contents of images only.
fn passes(from: &Target, flat: bool, edge: &Edge) -> Option<Target> {
    match (from, edge) {
        (Target::Snapshot { snapshotter, .. }, Edge::Parent(key)) => {
            Some(Target::Snapshot { snapshotter: snapshotter.clone(), key: key.clone() })
        }
        (Target::Image(_), Edge::Refers(target)) if flat => {
            matches!(target, Target::Content(_)).then(|| target.clone())
        }
        (_, Edge::Refers(target)) if !flat => Some(target.clone()),
        _ => None,
    }
}

/// Labels of leases, sandboxes and ingests make no back references.
fn takes_back_references(target: &Target) -> bool {
    !matches!(target, Target::Lease(_) | Target::Sandbox(_) | Target::Ingest(_))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

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
        fn marking_step_by_step_keeps_all_that_marking_at_once_keeps(
            before in graph(),
            written in graph(),
        ) {
            let mut marker = Marker::new(NOW);
            before.iter().for_each(|(node, edges)| marker.add(node.clone(), edges.clone()));
            marker.removals();
            for (node, edges) in &written {
                marker.add(node.clone(), edges.clone());
                marker.keep(node);
            }
            let stepwise: Vec<Node> = marker.removals().into_iter().map(|removal| removal.node).collect();
            // At once: both edges of what was written over count, and what was written stays.
            let mut both = before.clone();
            written.iter().for_each(|(node, edges)| both.entry(node.clone()).or_default().extend(edges.clone()));
            let held: Vec<Node> = written.keys().cloned().collect();
            let at_once: HashSet<Node> = mark(&both, &held, NOW).into_iter().map(|removal| removal.node).collect();
            for node in &stepwise {
                prop_assert!(at_once.contains(node), "{node:?} goes though it is kept");
            }
        }

        #[test]
        fn every_object_either_goes_or_has_a_path_from_a_root(graph in graph()) {
            let mut marker = Marker::new(NOW);
            graph.iter().for_each(|(node, edges)| marker.add(node.clone(), edges.clone()));
            let gone: HashSet<Node> = marker.removals().into_iter().map(|removal| removal.node).collect();
            let paths = marker.kept();
            let ends: HashSet<&Node> = paths.iter().filter_map(|path| path.last()).collect();
            for node in graph.keys() {
                prop_assert!(gone.contains(node) != ends.contains(node) , "{node:?}");
            }
            for path in &paths {
                let root = path.first().expect("a path has ends");
                let edges = graph.get(root).expect("a root exists");
                prop_assert!(is_root(&root.target, edges, NOW), "{path:?}");
            }
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

    /// Looked at anew for each of them, these would be five thousand million.
    #[test]
    fn each_resource_of_a_lease_is_looked_at_once() {
        let lease = at(Target::Lease("l".into()));
        let mut marker = Marker::new(NOW);
        marker.add(lease.clone(), vec![]);
        for number in 0..100_000 {
            marker.add(at(content(&format!("{number}"))), vec![]);
            marker.refer(&lease, content(&format!("{number}")));
        }
        marker.add(at(content("loose")), vec![]);
        assert_eq!(marker.removals(), [Removal { node: at(content("loose")), reason: Reason::Unreferenced }]);
        marker.refer(&lease, content("loose"));
        assert!(marker.is_reached(&at(content("loose"))));
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
