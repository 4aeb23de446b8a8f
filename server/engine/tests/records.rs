//! Records, their events and their garbage.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail at any line")]

mod common;

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use common::Host;
use gantry_engine::containers::Container;
use gantry_engine::images::Image;
use gantry_engine::leases::Resource;
use gantry_engine::{Descriptor, Digest, ErrorKind, Filter, HasKind, Labels, Scope};

fn container(id: &str) -> Container {
    common::record(id, None)
}

fn image(name: &str, digest: &Digest, size: u64) -> Image {
    let target = Descriptor::new("application/x", digest.clone(), size);
    let epoch = SystemTime::UNIX_EPOCH;
    Image { name: name.into(), target, labels: Labels::new(), created: epoch, updated: epoch }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_change_is_announced_in_the_order_of_the_calls() {
    let host = Host::new().await;
    let engine = &host.engine;
    let lease = engine.leases.create(&host.scope, None, Labels::new()).await.unwrap();
    let scope = &Scope { lease: Some(lease.id), ..host.scope.clone() };
    let mut events = engine.events.subscribe(Filter::default());
    let digest = Digest::of(b"data");
    engine.content.write_all(scope, &digest, Bytes::from_static(b"data"), Labels::new()).await.unwrap();
    engine.images.create(scope, image("a", &digest, 4)).await.unwrap();
    engine.images.update(scope, image("a", &digest, 4), &["labels.x".into()]).await.unwrap();
    engine.snapshots.prepare(scope, "", "k", "", Labels::new()).await.unwrap();
    engine.snapshots.commit(scope, "", "n", "k", "", Labels::new()).await.unwrap();
    engine.snapshots.remove(scope, "", "n").await.unwrap();
    engine.containers.create(scope, container("c")).await.unwrap();
    engine.containers.delete(scope, "c").await.unwrap();
    engine.images.delete(scope, "a", None, false).await.unwrap();
    let mut topics = Vec::new();
    for _ in 0..9 {
        let envelope = tokio::time::timeout(Duration::from_secs(1), events.next()).await.unwrap().unwrap();
        topics.push(envelope.topic.clone());
    }
    let expected = [
        "/content/create",
        "/images/create",
        "/images/update",
        "/snapshot/prepare",
        "/snapshot/commit",
        "/snapshot/remove",
        "/containers/create",
        "/containers/delete",
        "/images/delete",
    ];
    assert_eq!(topics, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_lease_keeps_goes_with_it() {
    let host = Host::new().await;
    let (engine, scope) = (&host.engine, &host.scope);
    let lease = engine.leases.create(scope, Some("keeper"), Labels::new()).await.unwrap();
    let leased = Scope { lease: Some(lease.id.clone()), ..scope.clone() };
    let digest = Digest::of(b"kept");
    engine.content.write_all(&leased, &digest, Bytes::from_static(b"kept"), Labels::new()).await.unwrap();
    engine.snapshots.prepare(&leased, "", "k", "", Labels::new()).await.unwrap();
    engine.gc.collect().await.unwrap();
    assert_eq!(engine.content.info(scope, &digest).await.unwrap().size, 4);
    let kept = engine.leases.resources(scope, "keeper").await.unwrap();
    assert!(kept.contains(&Resource::Content(digest.clone())), "{kept:?}");
    let mut events = engine.events.subscribe(Filter::default());
    engine.leases.delete(scope, "keeper", true).await.unwrap();
    let mut told = [events.next().await.unwrap().topic.clone(), events.next().await.unwrap().topic.clone()];
    told.sort();
    assert_eq!(told, ["/content/delete", "/snapshot/remove"]);
    assert_eq!(engine.content.info(scope, &digest).await.unwrap_err().kind(), ErrorKind::NotFound);
    host.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_lease_goes_by_itself() {
    let host = Host::new().await;
    let soon = prost_types::Timestamp::from(SystemTime::now() + Duration::from_secs(1));
    let labels = Labels::from([("containerd.io/gc.expire".to_owned(), soon.to_string())]);
    host.engine.leases.create(&host.scope, None, labels).await.unwrap();
    host.engine.gc.schedule();
    for _ in 0..60 {
        if host.engine.leases.list(&host.scope, &Filter::default()).await.unwrap().is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("the lease is still there");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_another_namespace_has_needs_not_be_written_again() {
    let host = Host::new().await;
    let other = Scope::new("other".parse().unwrap());
    let digest = Digest::of(b"shared");
    for scope in [&host.scope, &other] {
        let lease = host.engine.leases.create(scope, Some("l"), Labels::new()).await.unwrap();
        let leased = Scope { lease: Some(lease.id.clone()), ..scope.clone() };
        let writer = host.engine.content.writer(&leased, "r", Some(6), Some(&digest)).await.unwrap();
        let mut writer = writer;
        if writer.status().offset == 0 {
            assert_eq!(scope, &host.scope);
            writer.write(0, Bytes::from_static(b"shared")).await.unwrap();
        }
        writer.commit(Some(6), Some(&digest), Labels::new()).await.unwrap();
        let again = host.engine.content.writer(&leased, "r", Some(6), Some(&digest)).await;
        assert_eq!(again.err().map(|e| e.kind()), Some(ErrorKind::AlreadyExists));
    }
    host.engine.content.delete(&host.scope, &digest).await.unwrap();
    host.engine.gc.collect().await.unwrap();
    let bytes = host.engine.content.read_all(&other, &digest, 100).await.unwrap();
    assert_eq!(bytes, Bytes::from_static(b"shared"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_writer_of_a_reference_is_told_to_try_again() {
    let host = Host::new().await;
    let first = host.engine.content.writer(&host.scope, "r", None, None).await.unwrap();
    let second = host.engine.content.writer(&host.scope, "r", None, None).await;
    assert_eq!(second.err().map(|e| e.kind()), Some(ErrorKind::Unavailable));
    first.close().await.unwrap();
    assert!(host.engine.content.writer(&host.scope, "r", None, None).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_that_holds_something_stays() {
    let host = Host::new().await;
    host.engine.namespaces.create(&host.scope.namespace, Labels::new()).await.unwrap();
    host.engine.containers.create(&host.scope, container("c")).await.unwrap();
    let refused = host.engine.namespaces.delete(&host.scope.namespace).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::FailedPrecondition);
    host.engine.containers.delete(&host.scope, "c").await.unwrap();
    host.engine.namespaces.delete(&host.scope.namespace).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_subscriber_is_told_of_the_gap() {
    let host = Host::with(|config| config.event_log = 4).await;
    let mut events = host.engine.events.subscribe(Filter::default());
    for n in 0..10 {
        host.engine.containers.create(&host.scope, container(&format!("c{n}"))).await.unwrap();
    }
    let gap = events.next().await.unwrap_err();
    assert_eq!((gap.missed, gap.next), (6, 7));
    assert_eq!(events.next().await.unwrap().sequence, 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_made_from_a_snapshot_applies_to_the_same_tree() {
    let host = Host::new().await;
    let engine = &host.engine;
    let lease = engine.leases.create(&host.scope, None, Labels::new()).await.unwrap();
    let scope = &Scope { lease: Some(lease.id.clone()), ..host.scope.clone() };
    let mounts = engine.snapshots.prepare(scope, "", "right", "", Labels::new()).await.unwrap();
    let tree = gantry_mount::Tree::new(&mounts).unwrap();
    std::fs::write(tree.path().join("file"), "content").unwrap();
    drop(tree);
    let empty = engine.snapshots.view(scope, "", "left", "", Labels::new()).await.unwrap();
    let layer = engine.diff.diff(scope, &empty, &mounts, Default::default()).await.unwrap();
    assert_eq!(layer.media_type, gantry_types::media_type::OCI_LAYER_GZIP);
    let target = engine.snapshots.prepare(scope, "", "target", "", Labels::new()).await.unwrap();
    let applied = engine.diff.apply(scope, &layer, &target, &Default::default(), true).await.unwrap();
    assert_eq!(applied.digest.to_string(), layer.annotations["containerd.io/uncompressed"]);
    let tree = gantry_mount::Tree::new(&target).unwrap();
    assert_eq!(std::fs::read_to_string(tree.path().join("file")).unwrap(), "content");
    let bad = Descriptor { media_type: "application/x".into(), ..layer };
    let refused = engine.diff.apply(scope, &bad, &target, &Default::default(), false).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unknown);
}
