//! How many durable writes a second: `cargo run --release -p gantry-metadata --example writers [WRITERS [SECONDS [DIRECTORY]]]`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::{Duration, Instant, SystemTime};

use gantry_metadata::{Config, Db, Image};
use gantry_types::{Descriptor, Digest, Id, Labels};

fn image(name: String) -> Image {
    Image {
        target: Descriptor::new("application/vnd.oci.image.manifest.v1+json", Digest::of(name.as_bytes()), 1234),
        name,
        labels: Labels::from([("io.example/label".into(), "value".into())]),
        created: SystemTime::UNIX_EPOCH,
        updated: SystemTime::UNIX_EPOCH,
    }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let argument = |n, default: u64| std::env::args().nth(n).map_or(default, |text| text.parse().unwrap());
    let (writers, seconds) = (argument(1, 32), argument(2, 3));
    let temporary = tempfile::tempdir().unwrap();
    let directory = std::env::args().nth(3).map_or(temporary.path().join("db"), Into::into);
    let (db, _) = Db::open(Config::new(directory)).unwrap();
    let ns: Id = "bench".parse().unwrap();
    let (start, limit) = (Instant::now(), Duration::from_secs(seconds));
    let tasks: Vec<_> = (0..writers)
        .map(|writer| {
            let (db, ns) = (db.clone(), ns.clone());
            tokio::spawn(async move {
                let mut count = 0u64;
                while start.elapsed() < limit {
                    db.images(&ns).create(image(format!("registry.example/{writer}/{count}")), None).await.unwrap();
                    count += 1;
                }
                count
            })
        })
        .collect();
    let mut total = 0;
    for task in tasks {
        total += task.await.unwrap();
    }
    println!("{writers} writers: {:.0} durable writes/s", total as f64 / start.elapsed().as_secs_f64());
    let start = Instant::now();
    let listed = db.images(&ns).scan().filter(Result::is_ok).count();
    println!("list: {:.0} records/s", listed as f64 / start.elapsed().as_secs_f64());
}
