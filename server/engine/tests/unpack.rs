//! Layers that are unpacked at once, and committed in their order.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail at any line")]

mod common;

use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use common::{Host, pull, registry};
use gantry_engine::snapshots::SnapshotKind;
use gantry_engine::transfer::{ProgressSink, Unpack};
use gantry_engine::{Filter, Labels, Platform};
use gantry_registry::fake::{Fake, Fault, Rule};
use gantry_registry::image::{Builder, Image};
use gantry_types::media_type::Compression;
use gantry_types::{Digest, Reference};

async fn serve(image: &Image) -> (Fake, Reference) {
    let fake = registry().await;
    let reference = fake.put_image("library/test", "latest", image);
    (fake, reference)
}

fn layers(image: &Image) -> Vec<Digest> {
    let layer = |d: &gantry_types::Descriptor| gantry_types::media_type::layer_compression(&d.media_type).is_some();
    image.blobs().iter().filter(|(d, _)| layer(d)).map(|(d, _)| d.digest.clone()).collect()
}

/// Six layers, each of which takes something away or changes it.
fn six_layers() -> Image {
    let builder = Builder::new().directory("d", 0o755).file("d/0", "0", 0o644).file("all", "0", 0o644);
    let builder = (1..5).fold(builder, |builder, n: u32| {
        let builder = builder.layer().directory("d", 0o755).file(&format!("d/{n}"), n.to_string(), 0o644);
        builder.file(&format!("d/.wh.{}", n - 1), "", 0o644).file("all", n.to_string(), 0o644)
    });
    builder.layer().directory("d", 0o755).file("d/.wh..wh..opq", "", 0o644).file("d/last", "5", 0o644).build()
}

/// Names in a directory of the image, in the top snapshot of a snapshotter.
async fn names(host: &Host, snapshotter: &str, top: &str, directory: &str) -> Vec<String> {
    look(host, snapshotter, top, |root| {
        let entries = std::fs::read_dir(root.join(directory)).unwrap();
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    })
    .await
}

async fn look<T>(host: &Host, snapshotter: &str, top: &str, look: impl FnOnce(&std::path::Path) -> T) -> T {
    // So that no collection takes it.
    let lease = host.engine.leases.create(&host.scope, None, Labels::new()).await.unwrap();
    let scope = gantry_engine::Scope { lease: Some(lease.id.clone()), ..host.scope.clone() };
    let mounts = host.engine.snapshots.view(&scope, snapshotter, "look", top, Labels::new()).await.unwrap();
    let seen = look(&gantry_mount::Tree::new(&mounts).unwrap().path());
    host.engine.snapshots.remove(&scope, snapshotter, "look").await.unwrap();
    host.engine.leases.delete(&host.scope, &lease.id, false).await.unwrap();
    seen
}

async fn pull_by(host: &Host, reference: &Reference, snapshotter: &str) -> gantry_engine::Result<()> {
    let unpack = Unpack::new(Platform::host(), snapshotter);
    let pull = gantry_engine::transfer::Pull { unpacks: vec![unpack], ..pull(reference) };
    host.engine.transfer.pull(&host.scope, pull, ProgressSink::default()).await.map(drop)
}

/// Snapshots from the top down.
async fn chain(host: &Host, snapshotter: &str) -> Vec<gantry_engine::snapshots::Snapshot> {
    let all = host.engine.snapshots.list(&host.scope, snapshotter, &Filter::default()).await.unwrap();
    let is_parent = |key: &str| all.iter().any(|other| other.parent.as_deref() == Some(key));
    let mut next = all.iter().find(|snapshot| !is_parent(&snapshot.key)).cloned();
    let mut chain = Vec::new();
    while let Some(snapshot) = next {
        next = snapshot.parent.as_ref().and_then(|parent| all.iter().find(|other| other.key == *parent).cloned());
        chain.push(snapshot);
    }
    assert_eq!(chain.len(), all.len(), "one chain: {all:?}");
    chain
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_keeps_them_layers_unpacked_at_once_are_the_image() {
    let (host, image) = (Host::new().await, six_layers());
    let (_fake, reference) = serve(&image).await;
    for snapshotter in ["overlayfs", "erofs", "native"] {
        pull_by(&host, &reference, snapshotter).await.unwrap();
        let chain = chain(&host, snapshotter).await;
        assert_eq!(chain.len(), 6);
        assert!(chain.iter().all(|snapshot| snapshot.kind == SnapshotKind::Committed));
        assert!(chain.windows(2).all(|two| two[0].created >= two[1].created), "lower layers are committed first");
        assert_eq!(names(&host, snapshotter, &chain[0].key, "d").await, ["last"], "{snapshotter}");
        assert_eq!(names(&host, snapshotter, &chain[1].key, "d").await, ["4"], "{snapshotter}");
        let all = look(&host, snapshotter, &chain[0].key, |root| std::fs::read(root.join("all")).unwrap()).await;
        assert_eq!(all, b"4");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn upper_layers_are_unpacked_while_the_lowest_still_comes() {
    let builder = Builder::new().compression(Compression::None).file("slow", vec![1; 400_000], 0o644);
    let image = builder.layer().file("a", "a", 0o644).layer().file("b", "b", 0o644).build();
    let host = Host::new().await;
    let (fake, reference) = serve(&image).await;
    fake.fault(Rule::new(layers(&image)[0].as_str(), Fault::Trickle(16 << 10, Duration::from_millis(40))));
    let (engine, scope) = (host.engine.clone(), host.scope.clone());
    let pulling =
        tokio::spawn(async move { engine.transfer.pull(&scope, pull(&reference), ProgressSink::default()).await });
    let mut most = 0;
    while !pulling.is_finished() {
        let all = host.snapshots().await;
        assert!(all.iter().all(|snapshot| snapshot.kind == SnapshotKind::Active || all.len() > 2), "{all:?}");
        most = most.max(all.iter().filter(|snapshot| snapshot.kind == SnapshotKind::Active).count());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    pulling.await.unwrap().unwrap();
    assert_eq!(most, 3, "all layers were being unpacked at once");
    assert_eq!(chain(&host, "overlayfs").await.len(), 3);
}

/// A tar of one file, which says nothing of the directories above it.
fn lone_file(path: &str, content: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    header.set_cksum();
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_data(&mut header, path, content).unwrap();
    tar.into_inner().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_needs_those_below_gets_them() {
    // A directory that only its file names, and a link to a lower layer's file.
    let builder = Builder::new().directory("private", 0o700).file("private/old", "old", 0o640);
    let image = builder.tar(lone_file("private/new", b"new").into()).layer().hard_link("linked", "private/old").build();
    let host = Host::new().await;
    let (_fake, reference) = serve(&image).await;
    for snapshotter in ["overlayfs", "erofs", "native"] {
        pull_by(&host, &reference, snapshotter).await.unwrap();
        let top = chain(&host, snapshotter).await[0].key.clone();
        assert_eq!(names(&host, snapshotter, &top, "private").await, ["new", "old"], "{snapshotter}");
        look(&host, snapshotter, &top, |root| {
            assert_eq!(std::fs::metadata(root.join("private")).unwrap().mode() & 0o7777, 0o700, "{snapshotter}");
            assert_eq!(std::fs::read(root.join("linked")).unwrap(), b"old");
            assert_eq!(std::fs::metadata(root.join("linked")).unwrap().mode() & 0o7777, 0o644, "as its entry says");
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn directories_that_only_their_files_name_become_like_those_below_and_the_layer_is_unpacked_once() {
    let builder = Builder::new().directory("private", 0o700).directory("private/in", 0o2750);
    let alone = |path: &str| lone_file(path, b"x").into();
    let image = builder.tar(alone("private/in/one")).tar(alone("nobody/said/so")).tar(alone("private/in/two")).build();
    let host = Host::new().await;
    let (_fake, reference) = serve(&image).await;
    let mut prepared = host.engine.events.subscribe(Filter::parse(&["topic==\"/snapshot/prepare\""]).unwrap());
    host.pull(&reference).await.unwrap();
    let mut unpacked = 0;
    while let Ok(Ok(envelope)) = tokio::time::timeout(Duration::from_millis(50), prepared.next()).await {
        unpacked += usize::from(String::from_utf8_lossy(&envelope.event.value).contains("extract-"));
    }
    assert_eq!(unpacked, 4, "each layer once");
    let chain = chain(&host, "overlayfs").await;
    assert_eq!(names(&host, "overlayfs", &chain[0].key, "private/in").await, ["one", "two"]);
    // In the layer's own directory, too: the overlay shows that of the topmost.
    for (level, dir, mode) in
        [(0, "private", 0o700), (0, "private/in", 0o2750), (2, "private/in", 0o2750), (1, "nobody/said", 0o755)]
    {
        let found =
            look(&host, "overlayfs", &chain[level].key, |root| std::fs::metadata(root.join(dir)).unwrap().mode()).await;
        assert_eq!(found & 0o7777, mode, "{dir} in layer {level} from above");
    }
    assert_eq!(host.snapshots().await.len(), 4, "nothing else stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn when_a_middle_layer_fails_nothing_half_done_stays() {
    for snapshotter in ["overlayfs", "erofs"] {
        let image = Builder::new()
            .file("a", "a", 0o644)
            .layer()
            .file("b", "b", 0o644)
            .layer()
            .hard_link("c", "nowhere/at/all")
            .layer()
            .file("d", vec![1; 100_000], 0o644)
            .build();
        let host = Host::new().await;
        let (_fake, reference) = serve(&image).await;
        let error = pull_by(&host, &reference, snapshotter).await.unwrap_err();
        let text = format!("{error} {:?}", std::error::Error::source(&error));
        assert!(text.contains(layers(&image)[2].as_str()), "names the layer: {text}");
        let all = host.engine.snapshots.list(&host.scope, snapshotter, &Filter::default()).await.unwrap();
        assert!(all.iter().all(|snapshot| snapshot.kind == SnapshotKind::Committed), "{snapshotter}: {all:?}");
        host.assert_empty().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_is_given_up_leaves_nothing_half_done() {
    let image = six_layers();
    let host = Host::new().await;
    let (fake, reference) = serve(&image).await;
    for layer in layers(&image) {
        fake.fault(Rule::new(layer.as_str(), Fault::Trickle(2, Duration::from_millis(20))));
    }
    for pause in [10, 60, 150, 250] {
        let pulling = host.engine.transfer.pull(&host.scope, pull(&reference), ProgressSink::default());
        assert!(tokio::time::timeout(Duration::from_millis(pause), pulling).await.is_err());
    }
    fake.clear_faults();
    // Removals go on by themselves.
    for _ in 0..200 {
        if host.snapshots().await.iter().all(|snapshot| snapshot.kind == SnapshotKind::Committed) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    assert!(host.snapshots().await.iter().all(|snapshot| snapshot.kind == SnapshotKind::Committed));
    host.pull(&reference).await.unwrap();
    assert_eq!(chain(&host, "overlayfs").await.len(), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_one_unpacker_layers_come_one_after_the_other() {
    let host = Host::with(|config| config.concurrent_unpacks = 1).await;
    let image = six_layers();
    let (_fake, reference) = serve(&image).await;
    host.pull(&reference).await.unwrap();
    let chain = chain(&host, "overlayfs").await;
    assert_eq!(names(&host, "overlayfs", &chain[1].key, "d").await, ["4"]);
}
