//! Random operations and restarts, compared with maps in memory.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use gantry_metadata::{Committed, Config, Db, Image, Resource, Snapshot, SnapshotKind};
use gantry_types::{Descriptor, Digest, Id, Labels};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Op {
    CreateImage(u8, u8),
    DeleteImage(u8),
    LabelImage(u8, u8),
    CreateLease(u8),
    DeleteLease(u8),
    AddResource(u8, u8),
    Prepare(u8, Option<u8>),
    Commit(u8, u8),
    RemoveSnapshot(u8),
    DeleteNamespace,
    Export,
    Reopen,
    ReopenDamaged,
}

fn op() -> impl Strategy<Value = Op> {
    let n = 0u8..5;
    prop_oneof![
        4 => (n.clone(), 0u8..9).prop_map(|(a, b)| Op::CreateImage(a, b)),
        2 => n.clone().prop_map(Op::DeleteImage),
        3 => (n.clone(), 0u8..9).prop_map(|(a, b)| Op::LabelImage(a, b)),
        2 => n.clone().prop_map(Op::CreateLease),
        1 => n.clone().prop_map(Op::DeleteLease),
        3 => (n.clone(), n.clone()).prop_map(|(a, b)| Op::AddResource(a, b)),
        4 => (n.clone(), proptest::option::of(n.clone())).prop_map(|(a, b)| Op::Prepare(a, b)),
        3 => (n.clone(), n.clone()).prop_map(|(a, b)| Op::Commit(a, b)),
        2 => n.prop_map(Op::RemoveSnapshot),
        1 => Just(Op::DeleteNamespace),
        1 => Just(Op::Export),
        1 => Just(Op::Reopen),
        1 => Just(Op::ReopenDamaged),
    ]
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    exists: bool,
    images: BTreeMap<String, (u8, Labels)>,
    leases: BTreeMap<String, BTreeSet<String>>,
    snapshots: BTreeMap<String, (bool, Option<String>)>,
}

impl Model {
    fn of(db: &Db, ns: &Id) -> Model {
        let images =
            db.images(ns).scan().map(Result::unwrap).map(|i| (i.name, (i.target.size as u8, i.labels))).collect();
        let resources = |id: &str| db.leases(ns).resources(id).unwrap().iter().map(|r| r.id().to_owned()).collect();
        let leases = db.leases(ns).scan().map(Result::unwrap).map(|l| (l.id.clone(), resources(&l.id))).collect();
        let snapshots = db.snapshots(ns, "s").scan().map(Result::unwrap);
        let snapshots = snapshots.map(|s| (s.key, (s.kind == SnapshotKind::Committed, s.parent))).collect();
        Model { exists: db.namespaces().get(ns).is_ok(), images, leases, snapshots }
    }

    /// Does the operation if it is allowed, and says whether it was.
    fn apply(&mut self, op: &Op) -> bool {
        let name = |n: &u8| n.to_string();
        let done = match op {
            Op::CreateImage(n, size) => {
                let free = !self.images.contains_key(&name(n));
                if free {
                    self.images.insert(name(n), (size + 1, Labels::new()));
                }
                free
            }
            Op::DeleteImage(n) => return self.images.remove(&name(n)).is_some(),
            Op::LabelImage(n, value) => match self.images.get_mut(&name(n)) {
                Some((_, labels)) => {
                    labels.insert("a.b/c".into(), value.to_string());
                    true
                }
                None => false,
            },
            Op::CreateLease(n) => {
                let free = !self.leases.contains_key(&name(n));
                self.leases.entry(name(n)).or_default();
                free
            }
            Op::DeleteLease(n) => return self.leases.remove(&name(n)).is_some(),
            Op::AddResource(n, image) => match self.leases.get_mut(&name(n)) {
                Some(resources) => {
                    resources.insert(name(image));
                    true
                }
                None => false,
            },
            Op::Prepare(n, parent) => {
                let parent = parent.as_ref().map(name);
                let fits =
                    parent.as_ref().is_none_or(|p| self.snapshots.get(p).is_some_and(|(committed, _)| *committed));
                let free = fits && !self.snapshots.contains_key(&name(n));
                if free {
                    self.snapshots.insert(name(n), (false, parent));
                }
                free
            }
            Op::Commit(n, to) => {
                let free = *n == *to || !self.snapshots.contains_key(&name(to));
                match self.snapshots.get(&name(n)).cloned() {
                    Some((false, parent)) if free => {
                        self.snapshots.remove(&name(n));
                        self.snapshots.insert(name(to), (true, parent));
                        true
                    }
                    _ => false,
                }
            }
            Op::RemoveSnapshot(n) => {
                let childless = !self.snapshots.values().any(|(_, parent)| *parent == Some(name(n)));
                return childless && self.snapshots.remove(&name(n)).is_some();
            }
            Op::DeleteNamespace => {
                let goes = self.exists && self.images.is_empty() && self.snapshots.is_empty();
                if goes {
                    *self = Model::default();
                }
                return goes;
            }
            Op::Export | Op::Reopen | Op::ReopenDamaged => return true,
        };
        self.exists |= done;
        done
    }
}

async fn run(db: &Db, ns: &Id, op: &Op) -> bool {
    let (images, leases, snapshots) = (db.images(ns), db.leases(ns), db.snapshots(ns, "s"));
    let now = SystemTime::UNIX_EPOCH;
    let image = |n: &u8, size: u8, labels| Image {
        name: n.to_string(),
        target: Descriptor::new("m", Digest::of(&[size]), size.into()),
        labels,
        created: now,
        updated: now,
    };
    match op {
        Op::CreateImage(n, size) => images.create(image(n, size + 1, Labels::new()), None).await.is_ok(),
        Op::DeleteImage(n) => images.delete(&n.to_string(), None).await.is_ok(),
        Op::LabelImage(n, value) => {
            let labels = Labels::from([("a.b/c".into(), value.to_string())]);
            images.update(image(n, 1, labels), vec!["labels.a.b/c".into()], None).await.is_ok()
        }
        Op::CreateLease(n) => leases.create(&n.to_string(), Labels::new()).await.is_ok(),
        Op::DeleteLease(n) => leases.delete(&n.to_string()).await.is_ok(),
        Op::AddResource(n, image) => {
            leases.add_resource(&n.to_string(), Resource::Image(image.to_string())).await.is_ok()
        }
        Op::Prepare(n, parent) => {
            let key = n.to_string();
            let internal = snapshots.internal(&key).await.unwrap();
            let parent = parent.map(|p| p.to_string());
            let (kind, labels) = (SnapshotKind::Active, Labels::new());
            let snapshot = Snapshot {
                snapshotter: String::new(),
                key,
                internal,
                kind,
                parent,
                labels,
                created: now,
                updated: now,
            };
            snapshots.create(snapshot, None).await.is_ok()
        }
        Op::Commit(n, to) => {
            let to = to.to_string();
            let internal = snapshots.internal(&to).await.unwrap();
            snapshots.commit(&n.to_string(), &to, Committed { internal, ..Committed::default() }, None).await.is_ok()
        }
        Op::RemoveSnapshot(n) => snapshots.remove(&n.to_string(), None).await.is_ok(),
        Op::DeleteNamespace => db.namespaces().delete(ns.clone()).await.is_ok(),
        Op::Export => db.export().await.is_ok(),
        Op::Reopen | Op::ReopenDamaged => true,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_store_does_what_maps_in_memory_do_across_restarts_and_damage(ops in proptest::collection::vec(op(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let directory = tempfile::tempdir().unwrap();
            let open = || Db::open(Config::new(directory.path())).unwrap();
            let ns: Id = "n".parse().unwrap();
            let (mut db, mut model) = (open().0, Model::default());
            for op in &ops {
                if matches!(op, Op::Reopen | Op::ReopenDamaged) {
                    drop(db);
                    let damage = matches!(op, Op::ReopenDamaged);
                    if damage {
                        // Closing exports, so that nothing is lost even then.
                        std::fs::write(directory.path().join("sled/db"), vec![0xa5; 600_000]).unwrap();
                    }
                    let (opened, report) = open();
                    assert_eq!(report.lost, Vec::<String>::new());
                    assert!(damage || report.is_clean(), "{report:?}");
                    db = opened;
                }
                assert_eq!(run(&db, &ns, op).await, model.apply(op), "{op:?}");
                assert_eq!(Model::of(&db, &ns), model, "after {op:?}");
            }
        });
    }
}
