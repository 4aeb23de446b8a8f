//! Start-up after an unclean stop: what is half done is undone, what is damaged is named, and the start succeeds.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail at any line")]

mod common;

use std::path::Path;
use std::time::Duration;

use common::{Host, registry};
use gantry_content::{Commit, LocalStore, Store, WriterOptions};
use gantry_engine::{Engine, ErrorKind, HasKind, OpenReport, Scope};
use gantry_registry::image::Builder;
use gantry_snapshots::{Overlay, OverlayConfig, Snapshotter};
use gantry_types::Digest;

/// Closes the engine; gives its directory and scope.
async fn close(host: Host) -> (tempfile::TempDir, Scope) {
    let Host { engine, scope, dir } = host;
    engine.close().await;
    drop(engine);
    (dir, scope)
}

async fn open(dir: &Path) -> (Engine, OpenReport) {
    for _ in 0..100 {
        match Engine::open(common::config(dir)).await {
            Ok(opened) => return opened,
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
    panic!("the former engine does not let go");
}

fn repaired(report: &OpenReport, what: &str) -> bool {
    report.repairs.iter().any(|repair| repair.object.contains(what) && repair.action.starts_with("removed"))
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_and_snapshots_that_no_record_names_are_removed() {
    let (dir, scope) = close(Host::new().await).await;
    let orphan = Digest::of(b"orphan");
    {
        let store = LocalStore::open(dir.path().join("root/content")).unwrap();
        let mut writer = store.writer(WriterOptions::new("default/9/o")).await.unwrap();
        writer.write(0, b"orphan".as_slice().into()).await.unwrap();
        writer.commit(Commit::default()).await.unwrap();
        let mut half = store.writer(WriterOptions::new("default/9/half")).await.unwrap();
        half.write(0, b"half".as_slice().into()).await.unwrap();
        half.close().await.unwrap();
        let overlay = Overlay::open(&dir.path().join("root/snapshots/overlayfs"), OverlayConfig::default()).unwrap();
        overlay.prepare("default/9/below", None, Default::default()).await.unwrap();
        overlay.commit("default/9/parent", "default/9/below", None, Default::default()).await.unwrap();
        overlay.prepare("default/9/child", Some("default/9/parent"), Default::default()).await.unwrap();
    }
    let (engine, report) = open(dir.path()).await;
    for what in [orphan.as_str(), "ingest default/9/half", "default/9/child", "default/9/parent"] {
        assert!(repaired(&report, what), "{what} in {:?}", report.repairs);
    }
    Host { engine, scope, dir }.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_whose_bytes_are_gone_goes_too_and_a_pull_brings_them_back() {
    let host = Host::new().await;
    let fake = registry().await;
    let image = Builder::new().file("a", "b", 0o644).build();
    let reference = fake.put_image("test/image", "1", &image);
    host.pull(&reference).await.unwrap();
    let (dir, scope) = close(host).await;
    let lost = image.blobs()[0].0.digest.clone();
    std::fs::remove_file(dir.path().join("root/content/blobs/sha256").join(lost.hex())).unwrap();
    let (engine, report) = open(dir.path()).await;
    assert!(repaired(&report, lost.as_str()), "{:?}", report.repairs);
    assert_eq!(engine.content.info(&scope, &lost).await.unwrap_err().kind(), ErrorKind::NotFound);
    let host = Host { engine, scope, dir };
    host.pull(&reference).await.unwrap();
    assert_eq!(host.engine.content.info(&host.scope, &lost).await.unwrap().size, image.blobs()[0].0.size);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clean_stop_leaves_nothing_to_repair() {
    let host = Host::new().await;
    let fake = registry().await;
    let reference = fake.put_image("test/image", "1", &Builder::new().file("a", "b", 0o644).build());
    host.pull(&reference).await.unwrap();
    let (dir, scope) = close(host).await;
    let (engine, report) = open(dir.path()).await;
    assert!(report.repairs.is_empty(), "{:?}", report.repairs);
    assert_eq!(Host { engine, scope, dir }.images().await, [reference.to_string()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_engine_on_the_same_directories_is_refused() {
    let host = Host::new().await;
    let second = Engine::open(common::config(host.dir.path())).await;
    assert!(second.is_err());
    assert!(host.images().await.is_empty(), "the first one works on");
}
