//! The local store: the contract, what its files look like, restarts and faults.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use bytes::Bytes;
use gantry_content::{Commit, Error, LocalStore, Store, WriterOptions, read_all, suite, write_all};
use gantry_types::{Digest, ErrorKind, HasKind};
use proptest::prelude::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_local_store_keeps_the_contract() {
    let root = tempfile::tempdir().unwrap();
    let count = std::sync::atomic::AtomicU32::new(0);
    let next = || root.path().join(count.fetch_add(1, std::sync::atomic::Ordering::Relaxed).to_string());
    suite::run(async || Arc::new(LocalStore::open(next()).unwrap()) as Arc<dyn Store>).await;
}

#[tokio::test]
async fn blobs_are_read_only_files_by_digest() {
    let root = tempfile::tempdir().unwrap();
    let store = LocalStore::open(root.path()).unwrap();
    let digest = write_all(&store, "r", "hello".into(), Commit::default()).await.unwrap().digest;
    let path = root.path().join("blobs/sha256").join(digest.hex());
    assert_eq!(fs::read(&path).unwrap(), b"hello");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o444);
    assert_eq!(fs::read_dir(root.path().join("ingest")).unwrap().count(), 0);
}

#[tokio::test]
async fn an_ingest_goes_on_after_a_restart() {
    let root = tempfile::tempdir().unwrap();
    let data = Bytes::from(vec![7; 1_000_000]);
    let options =
        WriterOptions { total: Some(1_000_000), expected: Some(Digest::of(&data)), ..WriterOptions::new("r") };
    let started = {
        let store = LocalStore::open(root.path()).unwrap();
        let mut writer = store.writer(options.clone()).await.unwrap();
        writer.write(0, data.slice(..600_000)).await.unwrap();
        let started = writer.status().started;
        writer.close().await.unwrap();
        started
    };
    let store = LocalStore::open(root.path()).unwrap();
    let status = store.status("r").await.unwrap();
    assert_eq!((status.offset, status.started, status.expected), (600_000, started, options.expected.clone()));
    let mut writer = store.writer(options).await.unwrap();
    writer.write(600_000, data.slice(600_000..)).await.unwrap();
    assert_eq!(writer.commit(Commit::default()).await.unwrap().digest, Digest::of(&data));
}

#[tokio::test]
async fn a_writer_that_is_dropped_keeps_its_bytes() {
    let root = tempfile::tempdir().unwrap();
    let store = LocalStore::open(root.path()).unwrap();
    let mut writer = store.writer(WriterOptions::new("r")).await.unwrap();
    writer.write(0, vec![1; 700_000].into()).await.unwrap();
    writer.write(700_000, vec![2; 10].into()).await.unwrap();
    drop(writer);
    let offset = loop {
        match store.writer(WriterOptions::new("r")).await {
            Ok(writer) => break writer.status().offset,
            Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable),
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(offset, 700_010);
}

/// How long the only ingest's file is once it is not `before` any more.
async fn length_after(root: &Path, before: u64) -> u64 {
    let ingest = fs::read_dir(root.join("ingest")).unwrap().next().unwrap().unwrap().path();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    loop {
        let len = fs::metadata(ingest.join("data")).unwrap().len();
        if len != before {
            return len;
        }
        assert!(std::time::Instant::now() < deadline, "nothing was written behind {before} bytes");
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn no_page_is_written_twice_while_bytes_come_in_odd_pieces() {
    const BLOCK: u64 = 512 << 10;
    let root = tempfile::tempdir().unwrap();
    let store = LocalStore::open(root.path()).unwrap();
    let mut writer = store.writer(WriterOptions::new("r")).await.unwrap();
    let (mut offset, mut written, mut model) = (0, 0, Vec::new());
    for len in [300_001, 250_000, 90_000, 1_300_000, 16_393] {
        let data: Vec<u8> = (0..len).map(|n| (n * 7 / 11) as u8).collect();
        offset = writer.write(offset, data.clone().into()).await.unwrap();
        model.extend(data);
        if offset / BLOCK > written / BLOCK {
            written = length_after(root.path(), written).await;
            assert_eq!(written, offset / BLOCK * BLOCK, "of {offset} bytes");
        }
    }
    // Who asks for the digest is told it once all is with the kernel.
    assert_eq!(writer.digest().await.unwrap(), Digest::of(&model));
    assert_eq!(length_after(root.path(), written).await, offset);
    let digest = writer.commit(Commit::default()).await.unwrap().digest;
    assert!(fs::read(root.path().join("blobs/sha256").join(digest.hex())).unwrap() == model);
}

#[tokio::test]
async fn a_large_sparse_ingest_is_resumed_by_reading_it_again() {
    let root = tempfile::tempdir().unwrap();
    let store = LocalStore::open(root.path()).unwrap();
    store.writer(WriterOptions::new("r")).await.unwrap().close().await.unwrap();
    let home = fs::read_dir(root.path().join("ingest")).unwrap().next().unwrap().unwrap().path();
    fs::File::options().write(true).open(home.join("data")).unwrap().set_len(200 << 20).unwrap();
    let mut writer = store.writer(WriterOptions::new("r")).await.unwrap();
    assert_eq!(writer.status().offset, 200 << 20);
    writer.truncate(64 << 20).await.unwrap();
    let zeros = vec![0; 64 << 20];
    assert_eq!(writer.commit(Commit::default()).await.unwrap().digest, Digest::of(&zeros));
}

#[tokio::test]
async fn leftovers_go_at_opening_and_ingests_stay() {
    let root = tempfile::tempdir().unwrap();
    let store = LocalStore::open(root.path()).unwrap();
    store.writer(WriterOptions::new("keep")).await.unwrap().close().await.unwrap();
    let ingests = root.path().join("ingest");
    fs::create_dir(ingests.join("empty")).unwrap();
    fs::create_dir(ingests.join("without data")).unwrap();
    fs::write(ingests.join("without data/ingest.json"), "{}").unwrap();
    fs::create_dir(ingests.join("garbage")).unwrap();
    fs::write(ingests.join("garbage/ingest.json"), [0xff; 100]).unwrap();
    fs::write(ingests.join("garbage/data"), "x").unwrap();
    fs::write(ingests.join("file"), "x").unwrap();
    fs::write(root.path().join("blobs/sha256/not a digest"), "x").unwrap();
    let store = LocalStore::open(root.path()).unwrap();
    assert_eq!(fs::read_dir(&ingests).unwrap().count(), 1);
    assert_eq!(store.statuses().await.unwrap().len(), 1);
    assert!(store.walk().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_blob_that_was_cut_on_the_disk_ends_in_an_error() {
    use futures::TryStreamExt;
    let root = tempfile::tempdir().unwrap();
    let store = LocalStore::open(root.path()).unwrap();
    let digest = write_all(&store, "r", vec![1; 3_000_000].into(), Commit::default()).await.unwrap().digest;
    let path = root.path().join("blobs/sha256").join(digest.hex());
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let reader = store.reader(&digest).await.unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_len(1_500_000).unwrap();
    let result: Result<Vec<Bytes>, Error> = gantry_content::stream(reader, 0..3_000_000).try_collect().await;
    assert_eq!(result.unwrap_err().kind(), ErrorKind::DataLoss);
}

#[derive(Clone, Debug)]
enum Step {
    Write(usize, u8),
    Truncate(usize),
    Digest,
    Reopen,
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0usize..600_000, any::<u8>()).prop_map(|(len, byte)| Step::Write(len, byte)),
        1 => (0usize..800_000).prop_map(Step::Truncate),
        1 => Just(Step::Digest),
        1 => Just(Step::Reopen),
        1 => Just(Step::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_ingest_is_the_bytes_that_were_written_whatever_happens_between(steps in proptest::collection::vec(step(), 1..15)) {
        tokio::runtime::Runtime::new().unwrap().block_on(async {
            let root = tempfile::tempdir().unwrap();
            let mut store = LocalStore::open(root.path()).unwrap();
            let mut writer = store.writer(WriterOptions::new("r")).await.unwrap();
            let mut model: Vec<u8> = Vec::new();
            for step in steps {
                match step {
                    Step::Write(len, byte) => {
                        let data: Vec<u8> = (0..len).map(|n| (n / 1000) as u8 ^ byte).collect();
                        let offset = writer.write(model.len() as u64, data.clone().into()).await.unwrap();
                        model.extend(data);
                        assert_eq!(offset, model.len() as u64);
                    }
                    Step::Truncate(size) => {
                        let result = writer.truncate(size as u64).await;
                        assert_eq!(result.is_ok(), size <= model.len());
                        model.truncate(size);
                    }
                    Step::Digest => assert_eq!(writer.digest().await.unwrap(), Digest::of(&model)),
                    Step::Reopen | Step::Restart => {
                        writer.close().await.unwrap();
                        if matches!(step, Step::Restart) {
                            store = LocalStore::open(root.path()).unwrap();
                        }
                        writer = store.writer(WriterOptions::new("r")).await.unwrap();
                    }
                }
                assert_eq!(writer.status().offset, model.len() as u64);
            }
            let digest = writer.commit(Commit::default()).await.unwrap().digest;
            assert_eq!(digest, Digest::of(&model));
            let stored = fs::read(root.path().join("blobs/sha256").join(digest.hex())).unwrap();
            assert!(stored == model, "other bytes than were hashed");
        });
    }
}

const CHILD: &str = "GANTRY_CONTENT_TEST_CHILD";

/// Runs one of the ignored tests below in a process of its own.
fn child(name: &str, root: &Path, failpoints: &str, wrapper: &[&str]) -> std::process::ExitStatus {
    let exe = std::env::current_exe().unwrap();
    let mut argv: Vec<&str> = wrapper.to_vec();
    argv.extend([exe.to_str().unwrap(), "--exact", name, "--ignored", "--nocapture"]);
    Command::new(argv[0])
        .args(&argv[1..])
        .env(CHILD, root)
        .env("FAILPOINTS", failpoints)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap()
}

fn child_root() -> Option<std::path::PathBuf> {
    std::env::var_os(CHILD).map(Into::into)
}

#[tokio::test]
#[ignore = "run by the test of kills, in a process of its own"]
async fn child_commits_until_killed() {
    let Some(root) = child_root() else { return };
    let scenario = fail::FailScenario::setup();
    for point in [
        "content::write",
        "content::before-sync",
        "content::before-rename",
        "content::before-directory-sync",
        "content::before-cleanup",
    ] {
        if std::env::var("FAILPOINTS").is_ok_and(|points| points.starts_with(point)) {
            fail::cfg_callback(point, || {
                let pid = rustix::process::getpid();
                rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
                std::thread::sleep(std::time::Duration::from_secs(60));
            })
            .unwrap();
        }
    }
    let store = LocalStore::open(root).unwrap();
    write_all(&store, "r", vec![3; 500_000].into(), Commit::default()).await.unwrap();
    scenario.teardown();
}

#[tokio::test]
async fn killed_at_any_point_of_a_commit_there_is_a_whole_blob_or_none_and_the_next_one_succeeds() {
    let data = Bytes::from(vec![3; 500_000]);
    for point in [
        "content::write",
        "content::before-sync",
        "content::before-rename",
        "content::before-directory-sync",
        "content::before-cleanup",
    ] {
        let root = tempfile::tempdir().unwrap();
        let status = child("child_commits_until_killed", root.path(), &format!("{point}=off"), &[]);
        assert!(!status.success(), "{point} was not reached");
        let store = LocalStore::open(root.path()).unwrap();
        for info in store.walk().await.unwrap() {
            assert_eq!(read_all(&store, &info.digest, 1 << 30).await.unwrap(), data, "{point}");
        }
        let info = write_all(&store, "r", data.clone(), Commit::default()).await.unwrap();
        assert_eq!(info.digest, Digest::of(&data), "{point}");
        assert_eq!(fs::read_dir(root.path().join("ingest")).unwrap().count(), 0, "{point}");
    }
}

#[tokio::test]
#[ignore = "run by the test of a full disk, in a mount namespace of its own"]
async fn child_fills_the_disk() {
    let Some(root) = child_root() else { return };
    let store = LocalStore::open(&root).unwrap();
    let small = write_all(&store, "small", vec![1; 1000].into(), Commit::default()).await.unwrap();
    let mut writer = store.writer(WriterOptions::new("big")).await.unwrap();
    let mut offset = 0;
    let error = loop {
        match writer.write(offset, vec![2; 300_000].into()).await {
            Ok(new) => offset = new,
            Err(error) => break error,
        }
        assert!(offset < 100 << 20, "the disk never fills");
    };
    assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{error}");
    let left = writer.status().offset;
    assert!(left < offset);
    writer.close().await.unwrap();
    assert_eq!(store.status("big").await.unwrap().offset, left);
    let error = write_all(&store, "another", vec![4; 600_000].into(), Commit::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{error}");
    store.abort("big").await.unwrap();
    write_all(&store, "another", vec![5; 600_000].into(), Commit::default()).await.unwrap();
    assert_eq!(read_all(&store, &small.digest, 1000).await.unwrap(), vec![1; 1000]);
    fs::write(root.join("done"), "").unwrap();
}

#[test]
fn a_full_disk_is_a_typed_error_and_room_made_is_used_again() {
    let root = tempfile::tempdir().unwrap();
    let script = "mount -t tmpfs -o size=2m none \"$GANTRY_CONTENT_TEST_CHILD\" && exec \"$@\"";
    let status = child("child_fills_the_disk", root.path(), "", &["unshare", "-m", "sh", "-c", script, "sh"]);
    assert!(status.success());
}
