//! How long others wait while a collection goes through many records: `cargo run --release -p gantry-metadata --example
//! collection [RECORDS]`. Half of the records are garbage; one writer goes on writing meanwhile.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use gantry_metadata::{CollectOptions, Config, Db};
use gantry_types::{Digest, Id, Labels};

const SLICE: usize = 256;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let records: usize = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(100_000);
    let folder = tempfile::tempdir().unwrap();
    let (db, _) = Db::open(Config::new(folder.path().join("db"))).unwrap();
    let namespace: Id = "default".parse().unwrap();
    fill(&db, &namespace, records).await;
    println!("{records} records, half of them garbage");
    println!("a writer alone        {}", waits(&db, &namespace, || tokio::time::sleep(Duration::from_secs(1))).await);
    let start = Instant::now();
    let collected = waits(&db, &namespace, || collect(&db)).await;
    println!("and while collecting  {collected}   (the collection: {:?})", start.elapsed());
}

async fn fill(db: &Db, namespace: &Id, records: usize) {
    let blobs = (0..records).map(|number| {
        let (db, namespace) = (db.clone(), namespace.clone());
        tokio::spawn(async move {
            let labels =
                if number % 2 == 0 { vec![("containerd.io/gc.root".to_owned(), "x".to_owned())] } else { vec![] };
            let labels: Labels = labels.into_iter().collect();
            db.blobs(&namespace).create(Digest::of(&number.to_le_bytes()), 1, labels, None, None).await.unwrap();
        })
    });
    for blob in blobs.collect::<Vec<_>>() {
        blob.await.unwrap();
    }
}

async fn collect(db: &Db) {
    let planner = db.clone();
    let marking = Instant::now();
    let mut plan = tokio::task::spawn_blocking(move || planner.plan(&CollectOptions::now())).await.unwrap();
    println!("marking, beside all others: {:?}", marking.elapsed());
    let mut longest = Duration::ZERO;
    while !plan.is_empty() {
        let start = Instant::now();
        plan = db.remove_next(plan, SLICE).await.unwrap().0;
        longest = longest.max(start.elapsed());
    }
    println!("longest slice of {SLICE}: {longest:?}");
}

/// How long one write after the other takes until `work` has ended.
async fn waits<F: Future<Output = ()>>(db: &Db, namespace: &Id, work: impl FnOnce() -> F) -> String {
    let stop = Arc::new(AtomicBool::new(false));
    let (own, namespace, stopped) = (db.clone(), namespace.clone(), Arc::clone(&stop));
    let writer = tokio::spawn(async move {
        let mut times = Vec::new();
        while !stopped.load(Ordering::SeqCst) {
            let start = Instant::now();
            let id = format!("lease-{:?}", start);
            own.leases(&namespace).create(&id, Labels::new()).await.unwrap();
            times.push(start.elapsed());
        }
        times
    });
    work().await;
    stop.store(true, Ordering::SeqCst);
    let mut times = writer.await.unwrap();
    times.sort();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
    format!("{:>6} writes: p50 {:?}, p99 {:?}, longest {:?}", times.len(), at(0.5), at(0.99), at(1.0))
}
