//! The graph against a naive model: a list that is searched from front to back.

use proptest::prelude::*;

use super::*;
use gantry_types::{ErrorKind, HasKind};

#[derive(Clone, Debug)]
struct Line {
    name: &'static str,
    kind: Kind,
    parent: Option<&'static str>,
}

/// Few names, so that they meet.
const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

#[derive(Clone, Debug)]
enum Op {
    Create(Kind, &'static str, Option<&'static str>),
    Commit(&'static str, &'static str, Option<&'static str>),
    Remove(&'static str),
    Update(&'static str),
    /// Begins and takes back.
    Abort(Box<Op>),
}

fn name() -> impl Strategy<Value = &'static str> {
    proptest::sample::select(&NAMES[..])
}

fn op() -> impl Strategy<Value = Op> {
    let kind = prop_oneof![Just(Kind::Active), Just(Kind::Active), Just(Kind::View)];
    let plain = prop_oneof![
        4 => (kind, name(), proptest::option::of(name())).prop_map(|(k, n, p)| Op::Create(k, n, p)),
        4 => (name(), name(), proptest::option::weighted(0.3, name())).prop_map(|(n, k, p)| Op::Commit(n, k, p)),
        2 => name().prop_map(Op::Remove),
        1 => name().prop_map(Op::Update),
    ];
    (plain, proptest::bool::weighted(0.2)).prop_map(|(op, abort)| if abort { Op::Abort(Box::new(op)) } else { op })
}

fn find<'a>(lines: &'a [Line], name: &str) -> Option<&'a Line> {
    lines.iter().find(|line| line.name == name)
}

/// What the contract says of `op`, in the order it says it.
fn model(lines: &mut Vec<Line>, op: &Op) -> Result<(), ErrorKind> {
    match op {
        Op::Create(kind, name, parent) => {
            if let Some(parent) = parent {
                match find(lines, parent) {
                    None => return Err(ErrorKind::NotFound),
                    Some(line) if line.kind != Kind::Committed => return Err(ErrorKind::InvalidArgument),
                    Some(_) => {}
                }
            }
            if find(lines, name).is_some() {
                return Err(ErrorKind::AlreadyExists);
            }
            lines.push(Line { name, kind: *kind, parent: *parent });
        }
        Op::Commit(name, key, parent) => {
            let own = match find(lines, key) {
                None => return Err(ErrorKind::NotFound),
                Some(_) if find(lines, name).is_some() => return Err(ErrorKind::AlreadyExists),
                Some(line) if line.kind != Kind::Active => return Err(ErrorKind::FailedPrecondition),
                Some(line) => line.parent,
            };
            if let Some(parent) = parent {
                match find(lines, parent) {
                    _ if own.is_some_and(|own| own != *parent) => return Err(ErrorKind::InvalidArgument),
                    None => return Err(ErrorKind::NotFound),
                    Some(line) if line.kind != Kind::Committed => return Err(ErrorKind::FailedPrecondition),
                    Some(_) => {}
                }
            }
            lines.retain(|line| line.name != *key);
            lines.push(Line { name, kind: Kind::Committed, parent: parent.or(own) });
        }
        Op::Remove(key) => {
            find(lines, key).ok_or(ErrorKind::NotFound)?;
            if lines.iter().any(|line| line.parent == Some(*key)) {
                return Err(ErrorKind::FailedPrecondition);
            }
            lines.retain(|line| line.name != *key);
        }
        Op::Update(key) => {
            find(lines, key).ok_or(ErrorKind::NotFound)?;
        }
        Op::Abort(op) => return model(&mut lines.clone(), op),
    }
    Ok(())
}

fn begin(graph: &mut Graph, op: &Op) -> Result<Change, Error> {
    let now = SystemTime::now();
    match op {
        Op::Create(kind, key, parent) => graph.begin_create(*kind, key, *parent, Labels::new(), now),
        Op::Commit(name, key, parent) => graph.begin_commit(name, key, *parent, Labels::new(), now),
        Op::Remove(key) => graph.begin_remove(key),
        Op::Update(key) => {
            let mut info = graph.stat(key)?;
            info.labels.insert("touched".into(), "yes".into());
            graph.begin_update(&info, &[], now)
        }
        Op::Abort(op) => begin(graph, op),
    }
}

fn apply(graph: &mut Graph, op: &Op) -> Result<(), ErrorKind> {
    let change = begin(graph, op).map_err(|error| error.kind())?;
    match op {
        Op::Abort(_) => graph.abort(&change),
        _ => graph.finish(&change),
    }
    Ok(())
}

fn seen(graph: &Graph) -> Vec<(String, Kind, Option<String>)> {
    graph.walk(&Filter::default()).into_iter().map(|(_, info)| (info.name, info.kind, info.parent)).collect()
}

fn expected(lines: &[Line]) -> Vec<(String, Kind, Option<String>)> {
    let mut all: Vec<_> =
        lines.iter().map(|line| (line.name.to_owned(), line.kind, line.parent.map(str::to_owned))).collect();
    all.sort();
    all
}

fn nodes(graph: &Graph) -> BTreeMap<Id, Node> {
    graph.slots.iter().map(|(id, slot)| (*id, slot.node.clone())).collect()
}

proptest! {
    #[test]
    fn the_graph_answers_as_the_list_does(ops in proptest::collection::vec(op(), 0..60)) {
        let (mut graph, mut lines) = (Graph::default(), Vec::new());
        for op in &ops {
            prop_assert_eq!(apply(&mut graph, op), model(&mut lines, op), "{:?}", op);
            prop_assert_eq!(seen(&graph), expected(&lines));
        }
        let (loaded, refused) = Graph::load(nodes(&graph));
        prop_assert!(refused.is_empty());
        prop_assert_eq!(seen(&loaded), expected(&lines));
    }

    #[test]
    fn whatever_records_are_lost_the_rest_loads_and_is_sound(
        ops in proptest::collection::vec(op(), 0..60),
        lost in proptest::collection::hash_set(1u64..20, 0..5),
    ) {
        let mut graph = Graph::default();
        for op in &ops {
            let _ = apply(&mut graph, op);
        }
        let mut kept = nodes(&graph);
        kept.retain(|id, _| !lost.contains(id));
        let before = kept.len();
        let (loaded, refused) = Graph::load(kept);
        prop_assert_eq!(loaded.slots.len() + refused.len(), before);
        for (_, info) in loaded.walk(&Filter::default()) {
            if let Some(parent) = info.parent {
                prop_assert_eq!(loaded.stat(&parent).unwrap().kind, Kind::Committed);
            }
        }
    }
}

fn active(graph: &mut Graph, key: &str, parent: Option<&str>) -> Change {
    let change = graph.begin_create(Kind::Active, key, parent, Labels::new(), SystemTime::now()).unwrap();
    graph.finish(&change);
    change
}

fn commit(graph: &mut Graph, name: &str, key: &str) -> Change {
    graph.begin_commit(name, key, None, Labels::new(), SystemTime::now()).unwrap()
}

#[test]
fn what_is_being_made_is_not_seen_but_its_key_and_its_parent_are_taken() {
    let mut graph = Graph::default();
    active(&mut graph, "layer-key", None);
    let change = commit(&mut graph, "layer", "layer-key");
    graph.finish(&change);
    let making = graph.begin_create(Kind::Active, "key", Some("layer"), Labels::new(), SystemTime::now()).unwrap();
    assert_eq!(graph.stat("key").unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(apply(&mut graph, &Op::Create(Kind::View, "a", None)), Ok(()));
    let again = graph.begin_create(Kind::View, "key", None, Labels::new(), SystemTime::now());
    assert_eq!(again.unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert_eq!(graph.begin_remove("layer").unwrap_err().kind(), ErrorKind::FailedPrecondition);
    graph.abort(&making);
    assert!(graph.begin_remove("layer").is_ok());
}

#[test]
fn a_commit_under_way_shows_the_old_state_and_holds_both_names() {
    let mut graph = Graph::default();
    active(&mut graph, "key", None);
    let change = commit(&mut graph, "name", "key");
    assert!(graph.is_busy("key"));
    assert_eq!(graph.stat("key").unwrap().kind, Kind::Active);
    assert_eq!(graph.stat("name").unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(apply(&mut graph, &Op::Create(Kind::View, "a", Some("b"))), Err(ErrorKind::NotFound));
    let taken = graph.begin_create(Kind::Active, "name", None, Labels::new(), SystemTime::now());
    assert_eq!(taken.unwrap_err().kind(), ErrorKind::AlreadyExists);
    graph.finish(&change);
    assert_eq!(graph.stat("key").unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(graph.stat("name").unwrap().kind, Kind::Committed);
    assert!(!graph.is_busy("name"));
}

#[test]
fn the_chain_of_a_snapshot_is_its_parents_nearest_first() {
    let mut graph = Graph::default();
    let mut parent: Option<String> = None;
    for i in 0..200 {
        active(&mut graph, "key", parent.as_deref());
        let name = format!("layer-{i}");
        let change = commit(&mut graph, &name, "key");
        graph.finish(&change);
        parent = Some(name);
    }
    assert_eq!(graph.chain("layer-199").unwrap().parents, (1..200).rev().collect::<Vec<_>>());
}

#[test]
fn labels_are_changed_by_path_and_an_empty_value_removes_one() {
    let labels = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect::<Labels>();
    let mut graph = Graph::default();
    active(&mut graph, "key", None);
    let mut update = |with: &[(&str, &str)], paths: &[&str]| {
        let mut info = graph.stat("key").unwrap();
        info.labels = labels(with);
        info.kind = Kind::View;
        let paths: Vec<_> = paths.iter().map(|path| path.to_string()).collect();
        let change = graph.begin_update(&info, &paths, SystemTime::now())?;
        graph.finish(&change);
        graph.stat("key")
    };
    let all = update(&[("l1", "v1"), ("l2", "v2"), ("l3", "v3")], &[]).unwrap();
    assert_eq!(all.labels.len(), 3);
    assert_eq!(all.kind, Kind::Active);
    let two = update(&[("l1", "new"), ("l4", "v4")], &["labels.l1", "labels.l2"]).unwrap();
    assert_eq!(two.labels, labels(&[("l1", "new"), ("l3", "v3")]));
    assert_eq!(update(&[("x.y/z", "1")], &["labels"]).unwrap().labels, labels(&[("x.y/z", "1")]));
    assert_eq!(update(&[("a.b", "2")], &["labels.a.b"]).unwrap().labels.len(), 2);
    assert_eq!(update(&[], &["labels", "parent"]).unwrap_err().kind(), ErrorKind::InvalidArgument);
    assert_eq!(update(&[("k", &"v".repeat(5000))], &[]).unwrap_err().kind(), ErrorKind::InvalidArgument);
}

#[test]
fn keys_are_from_one_to_1024_bytes() {
    let mut graph = Graph::default();
    for key in ["", &"k".repeat(1025)] {
        let made = graph.begin_create(Kind::Active, key, None, Labels::new(), SystemTime::now());
        assert_eq!(made.unwrap_err().kind(), ErrorKind::InvalidArgument);
        assert_eq!(graph.stat(key).unwrap_err().kind(), ErrorKind::InvalidArgument);
    }
    active(&mut graph, &"k".repeat(1024), None);
    active(&mut graph, "../../..\0\n/", None);
}

#[test]
fn records_that_form_a_ring_are_left_out() {
    let mut graph = Graph::default();
    active(&mut graph, "key", None);
    let mut node = graph.chain("key").unwrap().node;
    node.kind = Kind::Committed;
    let ring = |parent, name: &str| Node { parent: Some(parent), name: name.into(), ..node.clone() };
    let (graph, refused) = Graph::load(BTreeMap::from([(1, ring(2, "a")), (2, ring(1, "b")), (3, ring(3, "c"))]));
    assert_eq!(refused.len(), 3);
    assert!(graph.walk(&Filter::default()).is_empty());
}
