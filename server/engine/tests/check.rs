//! What is damaged while nobody looks is found and mended, after a stop that was not clean by itself.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail at any line")]

mod common;

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{Host, files_below};
use gantry_engine::check::{Object, Outcome, Range};
use gantry_engine::transfer::{ProgressSink, Pull, Unpack};
use gantry_engine::{Engine, ErrorKind, HasKind, Scope};
use gantry_registry::fake::{Fake, Fault, Options, Rule};
use gantry_registry::image::{Builder, Image};
use gantry_types::{Digest, Platform, Reference};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// A registry that outlives the engines, which live in runtimes of their own.
struct Outside {
    runtime: Runtime,
    fake: Fake,
    image: Image,
    reference: Reference,
}

impl Outside {
    fn new() -> Outside {
        let runtime = Runtime::new().unwrap();
        let fake = runtime.block_on(Fake::start(Options::default())).unwrap();
        let image = Builder::new()
            .file("etc/hello", "from below", 0o644)
            .file("etc/gone", "", 0o644)
            .layer()
            .file("bin/program", vec![7; 300_000], 0o755)
            .file("etc/.wh.gone", "", 0o644)
            .build();
        let reference = fake.put_image("library/test", "latest", &image);
        Outside { runtime, fake, image, reference }
    }

    /// A directory into which the image was pulled by an engine that ended without any farewell.
    fn pulled(&self, clean: bool) -> TempDir {
        let engines = Runtime::new().unwrap();
        let dir = engines.block_on(async {
            let host = Host::new().await;
            host.pull(&self.reference).await.unwrap();
            if clean {
                host.engine.close().await;
            }
            host.dir
        });
        engines.shutdown_timeout(Duration::from_secs(10));
        dir
    }
}

async fn opened(dir: TempDir) -> Host {
    let engine = open(dir.path()).await;
    Host { engine, scope: Scope::new("default".parse().unwrap()), dir }
}

async fn open(dir: &Path) -> Engine {
    for _ in 0..100 {
        match Engine::open(common::config(dir)).await {
            Ok(opened) => return opened.0,
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
    panic!("the former engine does not let go");
}

async fn checked(host: &Host) {
    for _ in 0..600 {
        if !host.running().iter().any(|operation| operation.what == "check") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("still checking: {:?}", host.running());
}

fn blob(dir: &Path, digest: &Digest) -> PathBuf {
    dir.join("root/content/blobs/sha256").join(digest.hex())
}

/// A file of some snapshot.
fn unpacked(dir: &Path, name: &str) -> PathBuf {
    let all = files_below(&dir.join("root/snapshots/overlayfs/snapshots"));
    all.into_iter().find(|path| path.ends_with(name)).unwrap()
}

fn flip(path: &Path) {
    let modified = std::fs::metadata(path).unwrap().modified().unwrap();
    let mut permissions = std::fs::metadata(path).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o644);
    let mode = std::fs::metadata(path).unwrap().permissions();
    std::fs::set_permissions(path, permissions).unwrap();
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 5).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], 5).unwrap();
    file.set_modified(modified).unwrap();
    std::fs::set_permissions(path, mode).unwrap();
}

fn layers(image: &Image) -> Vec<Digest> {
    let is_layer = |d: &gantry_types::Descriptor| gantry_types::media_type::layer_compression(&d.media_type).is_some();
    image.blobs().iter().filter(|(d, _)| is_layer(d)).map(|(d, _)| d.digest.clone()).collect()
}

fn config(image: &Image) -> Digest {
    let is_config = |d: &gantry_types::Descriptor| gantry_types::media_type::is_config(&d.media_type);
    image.blobs().iter().find(|(d, _)| is_config(d)).unwrap().0.digest.clone()
}

/// The files of the image as its snapshots show them.
async fn assert_whole(host: &Host, image: &Image) {
    for (descriptor, _) in image.blobs() {
        let bytes = host.engine.content.read_all(&host.scope, &descriptor.digest, 8 << 20).await.unwrap();
        assert_eq!(Digest::of(&bytes), descriptor.digest, "{}", descriptor.media_type);
    }
    let labels = host.engine.content.info(&host.scope, &config(image)).await.unwrap().labels;
    let top = &labels["containerd.io/gc.ref.snapshot.overlayfs"];
    assert_eq!(host.file(top, "etc/hello").await.as_deref(), Some(&b"from below"[..]));
    assert_eq!(host.file(top, "bin/program").await, Some(vec![7; 300_000]));
    assert_eq!(host.file(top, "etc/gone").await, None);
}

#[test]
fn what_was_damaged_after_a_kill_is_mended_by_itself() {
    let outside = Outside::new();
    let dir = outside.pulled(false);
    flip(&blob(dir.path(), &layers(&outside.image)[0]));
    flip(&blob(dir.path(), &outside.image.descriptor().digest));
    let short = std::fs::File::options().write(true).open(blob(dir.path(), &layers(&outside.image)[1])).unwrap();
    short.set_len(10).unwrap();
    flip(&unpacked(dir.path(), "etc/hello"));
    std::fs::remove_file(unpacked(dir.path(), "bin/program")).unwrap();
    Runtime::new().unwrap().block_on(async {
        let host = opened(dir).await;
        // Not after the check, but while it may still run: what is in doubt is waited for.
        let config = config(&outside.image);
        let labels = host.engine.content.info(&host.scope, &config).await.unwrap().labels;
        let top = labels["containerd.io/gc.ref.snapshot.overlayfs"].clone();
        assert_eq!(host.file(&top, "etc/hello").await.as_deref(), Some(&b"from below"[..]));
        checked(&host).await;
        assert_whole(&host, &outside.image).await;
        let report = host.engine.check.check(Range::All, false).await.unwrap();
        assert_eq!(report.findings, []);
        assert_eq!((report.snapshots, report.passed_over), (2, 0));
        assert!(report.bytes > 300_000, "{report:?}");
        host.engine.images.delete(&host.scope, &outside.reference.to_string(), None, true).await.unwrap();
        host.assert_empty().await;
    });
}

#[test]
fn after_a_clean_stop_nothing_is_looked_at_until_somebody_asks() {
    let outside = Outside::new();
    let dir = outside.pulled(true);
    let layer = layers(&outside.image)[0].clone();
    flip(&blob(dir.path(), &layer));
    std::fs::write(unpacked(dir.path(), "etc/hello"), "").unwrap();
    Runtime::new().unwrap().block_on(async {
        let host = opened(dir).await;
        checked(&host).await;
        let namespace = host.scope.namespace.clone();
        let images = Range::Images(namespace.clone(), vec![outside.reference.to_string()]);
        let report = host.engine.check.check(images.clone(), false).await.unwrap();
        assert_eq!(report.findings.len(), 2, "{report:?}");
        let blob = report.findings.iter().find(|finding| finding.object == Object::Blob(layer.clone())).unwrap();
        assert!(blob.problem.contains("other bytes") && blob.outcome == Outcome::Told, "{blob:?}");
        let files = report.findings.iter().find(|finding| finding.object != blob.object).unwrap();
        assert!(files.problem.contains("etc/hello: has another size"), "{files:?}");
        let report = host.engine.check.check(Range::All, true).await.unwrap();
        assert!(report.is_well() && report.findings.len() == 2, "{report:?}");
        assert_whole(&host, &outside.image).await;
        let none = Range::Images(namespace, vec!["none".into()]);
        assert_eq!(host.engine.check.check(none, false).await.unwrap_err().kind(), ErrorKind::NotFound);
    });
}

#[test]
fn layers_that_lie_elsewhere_than_in_plain_directories_are_compared_and_mended_too() {
    let outside = Outside::new();
    for (snapshotter, file) in [("erofs", "layer.erofs"), ("native", "bin/program")] {
        Runtime::new().unwrap().block_on(async {
            let host = Host::new().await;
            let unpack = Unpack::new(Platform::host(), snapshotter);
            let pull = Pull { unpacks: vec![unpack], ..common::pull(&outside.reference) };
            host.engine.transfer.pull(&host.scope, pull, ProgressSink::default()).await.unwrap();
            let check = async |mend| host.engine.check.check(Range::All, mend).await.unwrap();
            let report = check(false).await;
            assert_eq!((report.snapshots, report.passed_over, report.findings.len()), (2, 0, 0), "{report:?}");
            let all = files_below(&host.dir.path().join("root/snapshots").join(snapshotter).join("snapshots"));
            let broken =
                all.iter().filter(|path| path.ends_with(file)).max_by_key(|path| path.metadata().unwrap().len());
            flip(broken.unwrap());
            let report = check(false).await;
            assert!(matches!(&report.findings[..], [one] if one.problem.contains("has other content")), "{report:?}");
            let report = check(true).await;
            assert!(report.is_well() && report.findings.len() == 1, "{report:?}");
            assert_eq!(check(false).await.findings, []);
            std::fs::remove_file(broken.unwrap()).unwrap();
            assert!(check(true).await.is_well());
            assert_eq!(check(false).await.findings, []);
            host.engine.images.delete(&host.scope, &outside.reference.to_string(), None, true).await.unwrap();
            host.assert_empty().await;
        });
    }
}

#[test]
fn nothing_is_built_on_what_cannot_be_mended_and_a_pull_mends_it() {
    let outside = Outside::new();
    let dir = outside.pulled(false);
    let layer = layers(&outside.image)[1].clone();
    flip(&blob(dir.path(), &layer));
    std::fs::remove_file(unpacked(dir.path(), "bin/program")).unwrap();
    outside.fake.fault(Rule::new(layer.as_str(), Fault::Status(404, None)));
    Runtime::new().unwrap().block_on(async {
        let host = opened(dir).await;
        checked(&host).await;
        assert_eq!(host.engine.content.info(&host.scope, &layer).await.unwrap_err().kind(), ErrorKind::NotFound);
        let labels = host.engine.content.info(&host.scope, &config(&outside.image)).await.unwrap().labels;
        let top = labels["containerd.io/gc.ref.snapshot.overlayfs"].clone();
        let refused = host.engine.snapshots.prepare(&host.scope, "", "c", &top, Default::default()).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::FailedPrecondition);
        assert!(refused.to_string().contains("bin/program: is missing"), "{refused}");
        assert!(host.pull(&outside.reference).await.is_err());
        outside.fake.clear_faults();
        host.pull(&outside.reference).await.unwrap();
        assert_whole(&host, &outside.image).await;
    });
    drop(outside.runtime);
}
