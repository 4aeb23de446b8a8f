//! Bytes a second through the store: `cargo run --release -p gantry-content --example throughput [MIB [DIRECTORY]]`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Instant;

use bytes::Bytes;
use futures::TryStreamExt;
use gantry_content::{CHUNK, Commit, LocalStore, Store, WriterOptions, stream};

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let mib: usize = std::env::args().nth(1).map_or(512, |text| text.parse().unwrap());
    let temporary = tempfile::tempdir().unwrap();
    let directory = std::env::args().nth(2).map_or(temporary.path().join("content"), Into::into);
    let store = LocalStore::open(directory).unwrap();
    for piece_len in [16 * 1024, CHUNK] {
        let pieces = (mib << 20) / piece_len;
        let piece = Bytes::from((0..piece_len).map(|i| (i * 7) as u8).collect::<Vec<_>>());
        let start = Instant::now();
        let mut writer = store.writer(WriterOptions::new("bench")).await.unwrap();
        let mut offset = 0;
        for _ in 0..pieces {
            offset = writer.write(offset, piece.clone()).await.unwrap();
        }
        writer.close().await.unwrap();
        println!(
            "write and hash in pieces of {piece_len}: {:.0} MB/s",
            offset as f64 / 1e6 / start.elapsed().as_secs_f64()
        );
        let start = Instant::now();
        let info = store.writer(WriterOptions::new("bench")).await.unwrap().commit(Commit::default()).await.unwrap();
        println!("hash again, sync and commit: {:?}", start.elapsed());
        for round in ["first", "second"] {
            let start = Instant::now();
            let reader = store.reader(&info.digest).await.unwrap();
            let read =
                stream(reader, 0..info.size).try_fold(0, async |sum, piece| Ok(sum + piece.len())).await.unwrap();
            println!("read ({round}): {:.0} MB/s", read as f64 / 1e6 / start.elapsed().as_secs_f64());
        }
        store.delete(&info.digest).await.unwrap();
    }
}
