//! Memory, start-up and collection with many containers: `cargo run --release -p gantry-metadata --example containers [COUNT]`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::time::{Instant, SystemTime};

use gantry_metadata::{CollectOptions, Config, Container, Db, Runtime, Snapshot, SnapshotKind};
use gantry_types::{Any, Id, Labels};

const SPEC: &str = include_str!("../src/spec.v1.dict");

fn container(n: usize) -> Container {
    let id = format!("{n:064x}");
    let spec = SPEC.replace("HOSTNAME=", &format!("HOSTNAME={id}")).replace("/default/", &format!("/default/{id}"));
    Container {
        labels: Labels::from([("io.kubernetes.pod.name".into(), format!("pod-{n}"))]),
        image: "docker.io/library/busybox:latest".into(),
        runtime: Runtime { name: "io.containerd.runc.v2".into(), options: None },
        spec: Some(Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/Spec".into(),
            value: spec.into(),
        }),
        snapshotter: "overlayfs".into(),
        snapshot_key: id.clone(),
        sandbox_id: String::new(),
        extensions: BTreeMap::new(),
        created: SystemTime::UNIX_EPOCH,
        updated: SystemTime::UNIX_EPOCH,
        id: id.parse().unwrap(),
    }
}

fn snapshot(n: usize) -> Snapshot {
    Snapshot {
        snapshotter: String::new(),
        key: format!("{n:064x}"),
        internal: format!("k8s.io/{n}/{n:064x}"),
        kind: SnapshotKind::Active,
        parent: None,
        labels: Labels::new(),
        created: SystemTime::UNIX_EPOCH,
        updated: SystemTime::UNIX_EPOCH,
    }
}

fn pss() -> String {
    let smaps = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    smaps.lines().find(|line| line.starts_with("Pss:")).unwrap_or_default().to_owned()
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let count = std::env::args().nth(1).map_or(10_000, |text| text.parse().unwrap());
    let temporary = tempfile::tempdir().unwrap();
    let ns: Id = "k8s.io".parse().unwrap();
    println!("empty process: {}", pss());
    let (db, _) = Db::open(Config::new(temporary.path())).unwrap();
    println!("empty store: {}", pss());
    let tasks: Vec<_> = (0..32)
        .map(|writer| {
            let (db, ns) = (db.clone(), ns.clone());
            tokio::spawn(async move {
                for n in (writer..count).step_by(32) {
                    db.containers(&ns).create(container(n)).await.unwrap();
                    db.snapshots(&ns, "overlayfs").create(snapshot(n), None).await.unwrap();
                }
            })
        })
        .collect();
    let start = Instant::now();
    for task in tasks {
        task.await.unwrap();
    }
    println!("{count} containers and snapshots written in {:?}: {}", start.elapsed(), pss());
    let start = Instant::now();
    let listed = db.containers(&ns).scan().filter(Result::is_ok).count();
    println!("{listed} listed in {:?}", start.elapsed());
    let start = Instant::now();
    for n in 0..10_000 {
        db.containers(&ns).get(&format!("{:064x}", n * 7 % count)).unwrap();
    }
    println!("get: {:?} each", start.elapsed() / 10_000);
    let start = Instant::now();
    let plan = db.plan_collection(&CollectOptions::now()).len();
    println!("mark: {:?}, {plan} to remove", start.elapsed());
    drop(db);
    let start = Instant::now();
    let (_db, report) = Db::open(Config::new(temporary.path())).unwrap();
    println!("opened again in {:?}, {} records: {}", start.elapsed(), report.records, pss());
}
