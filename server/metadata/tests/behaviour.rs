//! What each kind of record does, as clients see it.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use gantry_metadata::{
    CollectOptions, Committed, Config, Container, Db, Error, Image, Resource, Runtime, Sandbox, Sharing, Snapshot,
    SnapshotKind,
};
use gantry_types::{Any, Descriptor, Digest, ErrorKind, Filter, HasKind, Id, Labels, Platform};

const EXPIRE: &str = "containerd.io/gc.expire";
const PAST: &str = "2001-01-01T00:00:00Z";

struct Store {
    db: Db,
    ns: Id,
    _directory: tempfile::TempDir,
}

fn store() -> Store {
    let directory = tempfile::tempdir().unwrap();
    let (db, report) = Db::open(Config::new(directory.path())).unwrap();
    assert!(report.is_clean(), "{report:?}");
    Store { db, ns: id("default"), _directory: directory }
}

fn id(text: &str) -> Id {
    text.parse().unwrap()
}

fn labels<const N: usize>(pairs: [(&str, &str); N]) -> Labels {
    pairs.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

fn mask(paths: &[&str]) -> Vec<String> {
    paths.iter().map(|path| (*path).to_owned()).collect()
}

fn kind<T>(result: Result<T, Error>) -> ErrorKind {
    result.err().expect("a failure").kind()
}

fn image(name: &str) -> Image {
    Image {
        name: name.into(),
        target: Descriptor::new("application/vnd.oci.image.manifest.v1+json", Digest::of(name.as_bytes()), 10),
        labels: Labels::new(),
        created: SystemTime::UNIX_EPOCH,
        updated: SystemTime::UNIX_EPOCH,
    }
}

fn container(name: &str) -> Container {
    Container {
        id: id(name),
        labels: labels([("a.b/c", "1")]),
        image: "i".into(),
        runtime: Runtime { name: "io.containerd.runc.v2".into(), options: Some(any("options")) },
        spec: Some(Any { type_url: "spec".into(), value: vec![b'{'; 5000] }),
        snapshotter: "overlayfs".into(),
        snapshot_key: name.into(),
        sandbox_id: String::new(),
        extensions: BTreeMap::from([("x".to_owned(), any("y"))]),
        created: SystemTime::UNIX_EPOCH,
        updated: SystemTime::UNIX_EPOCH,
    }
}

fn any(text: &str) -> Any {
    Any { type_url: text.into(), value: text.into() }
}

fn snapshot(key: &str, parent: Option<&str>, kind: SnapshotKind) -> Snapshot {
    Snapshot {
        snapshotter: String::new(),
        key: key.into(),
        internal: format!("default/1/{key}"),
        kind,
        parent: parent.map(Into::into),
        labels: Labels::new(),
        created: SystemTime::UNIX_EPOCH,
        updated: SystemTime::UNIX_EPOCH,
    }
}

#[tokio::test]
async fn images_come_back_as_they_were_stored() {
    let s = store();
    let images = s.db.images(&s.ns);
    let mut full = image("docker.io/library/busybox:latest");
    full.target.platform =
        Some(Platform { os: "linux".into(), architecture: "arm64".into(), variant: "v8".into(), ..Default::default() });
    full.target.annotations = labels([("k", "v")]);
    full.target.urls = vec!["u".into()];
    full.target.artifact_type = Some("t".into());
    full.labels = labels([("l", "1"), ("empty", "")]);
    let created = images.create(full.clone(), None).await.unwrap();
    assert_eq!(created.labels, labels([("l", "1")]), "a label without a value is not set");
    assert_eq!((&created.target, &created.name), (&full.target, &full.name));
    assert_eq!(images.get(&full.name).unwrap(), created);
    assert_eq!(kind(images.create(full.clone(), None).await), ErrorKind::AlreadyExists);
    assert_eq!(images.delete(&full.name, None).await.unwrap(), created);
    assert_eq!(kind(images.get(&full.name)), ErrorKind::NotFound);
    assert_eq!(kind(images.delete(&full.name, None).await), ErrorKind::NotFound);
}

#[tokio::test]
async fn bad_images_are_refused() {
    let s = store();
    let images = s.db.images(&s.ns);
    let mut bad = [image(""), image("size"), image("type"), image("nul\0"), image("label"), image(&"x".repeat(5000))];
    bad[1].target.size = 0;
    bad[2].target.media_type.clear();
    bad[4].labels = labels([("k", &"x".repeat(5000))]);
    for image in bad {
        assert_eq!(kind(images.create(image.clone(), None).await), ErrorKind::InvalidArgument, "{}", image.name);
    }
    assert_eq!(images.scan().count(), 0);
    assert_eq!(kind(s.db.namespaces().get("default")), ErrorKind::NotFound, "a failed create makes no namespace");
}

#[tokio::test]
async fn an_image_is_deleted_only_with_the_target_that_was_named() {
    let s = store();
    let images = s.db.images(&s.ns);
    let stored = images.create(image("a"), None).await.unwrap();
    assert_eq!(kind(images.delete("a", Some(Digest::of(b"other"))).await), ErrorKind::NotFound);
    images.delete("a", Some(stored.target.digest)).await.unwrap();
}

#[tokio::test]
async fn everything_behind_labels_dot_is_one_key() {
    let s = store();
    let images = s.db.images(&s.ns);
    let created =
        images.create(Image { labels: labels([("keep", "1"), ("drop", "1")]), ..image("a") }, None).await.unwrap();
    let source = "containerd.io/distribution.source.ghcr.io";
    let change = Image { labels: labels([(source, "lib/a"), ("other", "x")]), ..image("a") };
    let path = format!("labels.{source}");
    let updated = images.update(change, mask(&[&path, "labels.drop"]), None).await.unwrap();
    assert_eq!(updated.labels, labels([("keep", "1"), (source, "lib/a")]));
    assert_eq!(updated.created, created.created);
    assert!(updated.updated > created.updated);
    assert_eq!(kind(images.update(image("a"), mask(&["name"]), None).await), ErrorKind::InvalidArgument);
    assert_eq!(kind(images.update(image("b"), mask(&["labels"]), None).await), ErrorKind::NotFound);
    let replaced = images.update(Image { labels: labels([("n", "1")]), ..image("a") }, vec![], None).await.unwrap();
    assert_eq!((replaced.labels, replaced.created), (labels([("n", "1")]), created.created));
}

#[tokio::test]
async fn containers_and_sandboxes_come_back_as_they_were_stored() {
    let s = store();
    let stored = s.db.containers(&s.ns).create(container("c1")).await.unwrap();
    assert_eq!(s.db.containers(&s.ns).get("c1").unwrap(), stored);
    let expected = Container { created: stored.created, updated: stored.updated, ..container("c1") };
    assert_eq!(stored, expected);
    let without = Container { spec: None, ..container("c2") };
    assert_eq!(s.db.containers(&s.ns).create(without).await.unwrap().spec, None);
    let sandbox = Sandbox {
        id: id("p"),
        labels: Labels::new(),
        runtime: Runtime::default(),
        spec: Some(any("spec")),
        sandboxer: "shim".into(),
        extensions: BTreeMap::new(),
        created: SystemTime::UNIX_EPOCH,
        updated: SystemTime::UNIX_EPOCH,
    };
    let stored = s.db.sandboxes(&s.ns).create(sandbox).await.unwrap();
    assert_eq!(s.db.sandboxes(&s.ns).get("p").unwrap(), stored);
}

#[tokio::test]
async fn what_a_container_is_run_by_cannot_change() {
    let s = store();
    let containers = s.db.containers(&s.ns);
    containers.create(container("c")).await.unwrap();
    let other = Container { snapshotter: "native".into(), ..container("c") };
    assert_eq!(kind(containers.update(other.clone(), vec![]).await), ErrorKind::InvalidArgument);
    let mut runtime = container("c");
    runtime.runtime.name = "other".into();
    assert_eq!(kind(containers.update(runtime, vec![]).await), ErrorKind::InvalidArgument);
    assert_eq!(kind(containers.update(other.clone(), mask(&["snapshotter"])).await), ErrorKind::InvalidArgument);
    let change = Container { image: "new".into(), extensions: BTreeMap::from([("z".into(), any("z"))]), ..other };
    let updated = containers.update(change, mask(&["image", "extensions.z", "extensions.x"])).await.unwrap();
    assert_eq!((updated.image.as_str(), updated.snapshotter.as_str()), ("new", "overlayfs"));
    assert_eq!(updated.extensions.keys().collect::<Vec<_>>(), ["z"]);
    let bad = Container { snapshotter: String::new(), ..container("bad") };
    assert_eq!(kind(containers.create(bad).await), ErrorKind::InvalidArgument);
}

#[tokio::test]
async fn filters_select_by_fields_and_labels() {
    let s = store();
    s.db.containers(&s.ns).create(container("c1")).await.unwrap();
    s.db.containers(&s.ns).create(Container { labels: Labels::new(), ..container("c2") }).await.unwrap();
    let count = |filter: &str| {
        let filter = Filter::parse(&[filter]).unwrap();
        s.db.containers(&s.ns).scan().filter(|c| filter.matches(c.as_ref().unwrap())).count()
    };
    assert_eq!(count("id==c1"), 1);
    assert_eq!(count("labels.\"a.b/c\"==1"), 1);
    assert_eq!(count("runtime.name==io.containerd.runc.v2"), 2);
}

#[tokio::test]
async fn a_namespace_is_made_with_the_first_thing_in_it_and_goes_only_when_empty() {
    let s = store();
    let namespaces = s.db.namespaces();
    s.db.images(&s.ns).create(image("a"), None).await.unwrap();
    assert_eq!(namespaces.get("default").unwrap().labels, Labels::new());
    assert_eq!(kind(namespaces.create(s.ns.clone(), Labels::new()).await), ErrorKind::AlreadyExists);
    s.db.snapshots(&s.ns, "overlayfs").create(snapshot("k", None, SnapshotKind::Active), None).await.unwrap();
    let error = namespaces.delete(s.ns.clone()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
    let expected =
        "namespace \"default\" must be empty, but it still has images, snapshots on \"overlayfs\" snapshotter";
    assert_eq!(error.to_string(), expected);
    s.db.images(&s.ns).delete("a", None).await.unwrap();
    s.db.snapshots(&s.ns, "overlayfs").remove("k", None).await.unwrap();
    s.db.leases(&s.ns).create("l", Labels::new()).await.unwrap();
    namespaces.delete(s.ns.clone()).await.unwrap();
    assert_eq!(kind(namespaces.delete(s.ns.clone()).await), ErrorKind::NotFound);
    assert_eq!(s.db.leases(&s.ns).scan().count(), 0);
}

#[tokio::test]
async fn updating_a_namespace_that_is_missing_creates_it() {
    let s = store();
    let namespaces = s.db.namespaces();
    namespaces.update(id("new"), labels([("a", "1"), ("b", "1")]), vec![]).await.unwrap();
    namespaces.update(id("new"), labels([("a", "2")]), mask(&["labels.a", "labels.b"])).await.unwrap();
    assert_eq!(namespaces.get("new").unwrap().labels, labels([("a", "2")]));
    assert_eq!(kind(namespaces.update(id("new"), Labels::new(), mask(&["labels"])).await), ErrorKind::InvalidArgument);
}

#[tokio::test]
async fn a_lease_keeps_what_does_not_exist_yet() {
    let s = store();
    let leases = s.db.leases(&s.ns);
    assert_eq!(kind(leases.create("", Labels::new()).await), ErrorKind::InvalidArgument);
    leases.create("moby/sha256:1", Labels::new()).await.unwrap();
    assert_eq!(kind(leases.create("moby/sha256:1", Labels::new()).await), ErrorKind::AlreadyExists);
    let digest = Digest::of(b"later");
    let resources = [
        Resource::Content(digest.clone()),
        Resource::Image("i".into()),
        Resource::Ingest("r/1".into()),
        Resource::Snapshot { snapshotter: "overlayfs".into(), key: "a/b c".into() },
    ];
    for resource in &resources {
        leases.add_resource("moby/sha256:1", resource.clone()).await.unwrap();
        assert_eq!(Resource::parse(&resource.type_name(), resource.id()).unwrap(), *resource);
    }
    assert_eq!(leases.resources("moby/sha256:1").unwrap(), resources);
    assert_eq!(leases.resources("moby/sha256:").err().unwrap().kind(), ErrorKind::NotFound);
    s.db.blobs(&s.ns).create(digest.clone(), 5, Labels::new(), None, None).await.unwrap();
    assert_eq!(s.db.collect(CollectOptions::now()).await.unwrap().removed, []);
    leases.delete_resource("moby/sha256:1", resources[0].clone()).await.unwrap();
    assert_eq!(s.db.collect(CollectOptions::now()).await.unwrap().digests, [digest]);
    leases.delete("moby/sha256:1").await.unwrap();
    assert_eq!(kind(leases.delete("moby/sha256:1").await), ErrorKind::NotFound);
    assert_eq!(kind(leases.add_resource("moby/sha256:1", resources[1].clone()).await), ErrorKind::NotFound);
    for (type_name, expected) in [
        ("content", ErrorKind::InvalidArgument),
        ("snapshots/", ErrorKind::InvalidArgument),
        ("snapshots/a/b", ErrorKind::InvalidArgument),
        ("tasks", ErrorKind::Unimplemented),
    ] {
        assert_eq!(kind(Resource::parse(type_name, "x")), expected, "{type_name}");
    }
}

#[tokio::test]
async fn a_write_under_a_lease_that_is_gone_fails_and_writes_nothing() {
    let s = store();
    let result = s.db.blobs(&s.ns).create(Digest::of(b"x"), 1, Labels::new(), Some("gone"), None).await;
    assert_eq!(kind(result), ErrorKind::NotFound);
    assert_eq!(s.db.blobs(&s.ns).scan().count(), 0);
}

#[tokio::test]
async fn a_second_commit_of_a_blob_is_told_so_and_leased_all_the_same() {
    let s = store();
    let (blobs, leases) = (s.db.blobs(&s.ns), s.db.leases(&s.ns));
    leases.create("l", Labels::new()).await.unwrap();
    let digest = Digest::of(b"x");
    blobs.create(digest.clone(), 1, labels([("a", "1")]), None, None).await.unwrap();
    let ingest = s.db.ingests(&s.ns).open("r", None, SystemTime::now(), Some("l")).await.unwrap();
    assert!(ingest.internal.starts_with("default/") && ingest.internal.ends_with("/r"));
    assert_eq!(
        kind(blobs.create(digest.clone(), 1, Labels::new(), Some("l"), Some("r")).await),
        ErrorKind::AlreadyExists
    );
    assert_eq!(leases.resources("l").unwrap(), [Resource::Content(digest.clone())]);
    assert_eq!(kind(s.db.ingests(&s.ns).get("r")), ErrorKind::NotFound);
    assert_eq!(blobs.get(&digest).unwrap().labels, labels([("a", "1")]));
    let updated = blobs.update(&digest, labels([("b", "2")]), mask(&["labels.b"])).await.unwrap();
    assert_eq!(updated.labels, labels([("a", "1"), ("b", "2")]));
    assert_eq!(kind(blobs.update(&digest, Labels::new(), mask(&["size"])).await), ErrorKind::InvalidArgument);
}

#[tokio::test]
async fn blobs_are_shared_by_policy() {
    let s = store();
    let digest = Digest::of(b"x");
    let other = id("other");
    s.db.blobs(&other).create(digest.clone(), 7, Labels::new(), None, None).await.unwrap();
    let here = s.db.blobs(&s.ns);
    assert_eq!(here.shared(&digest, Sharing::Shared).unwrap().size, 7);
    assert_eq!(here.shared(&digest, Sharing::Isolated), None);
    assert_eq!(s.db.blobs(&other).shared(&digest, Sharing::Shared), None, "one does not share with oneself");
    s.db.namespaces().update(other, labels([("containerd.io/namespace.shareable", "true")]), vec![]).await.unwrap();
    assert!(here.shared(&digest, Sharing::Isolated).is_some());
}

#[tokio::test]
async fn snapshots_know_their_parents_and_children() {
    let s = store();
    let snapshots = s.db.snapshots(&s.ns, "overlayfs");
    s.db.leases(&s.ns).create("l", Labels::new()).await.unwrap();
    assert_eq!(
        kind(snapshots.create(snapshot("top", Some("base"), SnapshotKind::Active), None).await),
        ErrorKind::NotFound
    );
    snapshots.create(snapshot("work", None, SnapshotKind::Active), Some("l")).await.unwrap();
    assert_eq!(
        kind(snapshots.create(snapshot("work", None, SnapshotKind::View), None).await),
        ErrorKind::AlreadyExists
    );
    assert_eq!(
        kind(snapshots.create(snapshot("x", Some("work"), SnapshotKind::Active), None).await),
        ErrorKind::FailedPrecondition
    );
    let internal = snapshots.internal("base").await.unwrap();
    let committed = Committed { internal: internal.clone(), parent: None, labels: labels([("a", "1")]) };
    let base = snapshots.commit("work", "base", committed, Some("l")).await.unwrap();
    assert_eq!((base.kind, &base.internal, base.parent), (SnapshotKind::Committed, &internal, None));
    let leased = s.db.leases(&s.ns).resources("l").unwrap();
    assert_eq!(leased, [Resource::Snapshot { snapshotter: "overlayfs".into(), key: "base".into() }]);
    assert_eq!(kind(snapshots.get("work")), ErrorKind::NotFound);
    snapshots.create(snapshot("loose", None, SnapshotKind::Active), None).await.unwrap();
    let upon = |parent: &str| Committed { internal: "l".into(), parent: Some(parent.into()), ..Committed::default() };
    assert_eq!(kind(snapshots.commit("loose", "upon", upon("missing"), None).await), ErrorKind::NotFound);
    let put = snapshots.commit("loose", "upon", upon("base"), None).await.unwrap();
    assert_eq!(put.parent.as_deref(), Some("base"));
    assert_eq!(kind(snapshots.remove("base", None).await), ErrorKind::FailedPrecondition);
    snapshots.remove("upon", None).await.unwrap();
    snapshots.create(snapshot("top", Some("base"), SnapshotKind::View), None).await.unwrap();
    assert_eq!(
        kind(snapshots.commit("top", "t", Committed { internal, ..Committed::default() }, None).await),
        ErrorKind::FailedPrecondition
    );
    assert_eq!(kind(snapshots.remove("base", None).await), ErrorKind::FailedPrecondition);
    assert_eq!(s.db.snapshots(&s.ns, "native").scan().count(), 0);
    assert_eq!(snapshots.scan().count(), 2);
    snapshots.remove("top", None).await.unwrap();
    snapshots.remove("base", None).await.unwrap();
}

#[tokio::test]
async fn a_collection_removes_records_and_names_what_they_leave_behind() {
    let s = store();
    let (blobs, snapshots) = (s.db.blobs(&s.ns), s.db.snapshots(&s.ns, "overlayfs"));
    let kept = s.db.images(&s.ns).create(image("kept"), None).await.unwrap().target.digest;
    let layer = Digest::of(b"layer");
    let refers = labels([("containerd.io/gc.ref.content.l.0", layer.as_str())]);
    blobs.create(kept.clone(), 1, refers, None, None).await.unwrap();
    blobs.create(layer.clone(), 1, Labels::new(), None, None).await.unwrap();
    let (loose, shared) = (Digest::of(b"loose"), Digest::of(b"shared"));
    for digest in [&loose, &shared] {
        blobs.create(digest.clone(), 1, Labels::new(), None, None).await.unwrap();
    }
    let root = labels([("containerd.io/gc.root", "1")]);
    s.db.blobs(&id("other")).create(shared.clone(), 1, root, None, None).await.unwrap();
    snapshots.create(snapshot("base", None, SnapshotKind::Committed), None).await.unwrap();
    snapshots.create(snapshot("mid", Some("base"), SnapshotKind::Committed), None).await.unwrap();
    snapshots.create(snapshot("top", Some("mid"), SnapshotKind::Active), None).await.unwrap();
    s.db.leases(&s.ns).create("over", labels([(EXPIRE, PAST)])).await.unwrap();
    s.db.leases(&s.ns).add_resource("over", Resource::Content(loose.clone())).await.unwrap();
    let ingest = s.db.ingests(&s.ns).open("r", None, SystemTime::UNIX_EPOCH, None).await.unwrap();

    let plan = s.db.plan_collection(&CollectOptions::now());
    assert_eq!(plan.len(), 7, "{plan:?}");
    let collected = s.db.collect(CollectOptions::now()).await.unwrap();
    assert_eq!(collected.removed, plan);
    assert_eq!(collected.digests, [loose]);
    let keys: Vec<&str> = collected.snapshots.iter().map(|(_, internal)| internal.as_str()).collect();
    assert_eq!(keys, ["default/1/top", "default/1/mid", "default/1/base"]);
    assert_eq!(collected.ingests, [ingest.internal]);
    assert_eq!(s.db.collect(CollectOptions::now()).await.unwrap(), Default::default());
    assert_eq!(s.db.known_digests().into_iter().collect::<Vec<_>>().len(), 3);
    assert!(s.db.known_snapshots("overlayfs").is_empty() && s.db.known_ingests().is_empty());
    snapshots.create(snapshot("base", None, SnapshotKind::Active), None).await.unwrap();
    assert!(s.db.known_snapshots("overlayfs").contains("default/1/base"));
}

#[tokio::test]
async fn the_next_expiry_is_known_for_a_timer() {
    let s = store();
    let now = SystemTime::now();
    assert_eq!(s.db.next_expiry(now), None);
    s.db.leases(&s.ns).create("never", Labels::new()).await.unwrap();
    s.db.leases(&s.ns).create("past", labels([(EXPIRE, PAST)])).await.unwrap();
    s.db.ingests(&s.ns).open("r", None, now + Duration::from_secs(3600), None).await.unwrap();
    let wait = s.db.next_expiry(now).unwrap().duration_since(now).unwrap();
    assert!((3599..=3601).contains(&wait.as_secs()), "{wait:?}");
}

#[tokio::test]
async fn sequence_numbers_are_never_given_twice() {
    let directory = tempfile::tempdir().unwrap();
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..3 {
        let (db, _) = Db::open(Config::new(directory.path())).unwrap();
        for _ in 0..5000 {
            assert!(seen.insert(db.next_sequence().await.unwrap()));
        }
    }
}

#[tokio::test]
async fn documents_are_kept_by_collection_and_namespace() {
    let s = store();
    let (global, local) = (s.db.documents(None, "intents"), s.db.documents(Some(&s.ns), "intents"));
    global.put("a/b", b"1".to_vec()).await.unwrap();
    local.put("a/b", b"2".to_vec()).await.unwrap();
    s.db.documents(None, "other").put("c", vec![]).await.unwrap();
    assert_eq!(global.all(), [("a/b".to_owned(), b"1".to_vec())]);
    assert_eq!(local.get("a/b").unwrap(), b"2");
    global.delete("a/b").await.unwrap();
    assert_eq!(global.get("a/b"), None);
    assert_eq!(kind(global.put("", vec![]).await), ErrorKind::InvalidArgument);
}

#[tokio::test]
async fn a_second_process_is_kept_out() {
    let s = store();
    let error = Db::open(Config::new(s.db.directory())).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "{error}");
}

#[tokio::test]
async fn records_larger_than_a_page_of_the_engine_are_kept_whole() {
    let directory = tempfile::tempdir().unwrap();
    let noise = |len: u32| (0..len).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect::<Vec<u8>>();
    let big = |len| Container { spec: Some(Any { type_url: "t".into(), value: noise(len) }), ..container("big") };
    for len in [3_000_000, 70_000, 100, 1_000_000] {
        let (db, report) = Db::open(Config::new(directory.path())).unwrap();
        assert!(report.is_clean(), "{report:?}");
        let containers = db.containers(&id("n"));
        let _ = containers.create(big(1)).await;
        containers.update(big(len), mask(&["spec"])).await.unwrap();
        drop(db);
        let (db, report) = Db::open(Config::new(directory.path())).unwrap();
        assert!(report.is_clean(), "{report:?}");
        assert_eq!(db.containers(&id("n")).get("big").unwrap().spec, big(len).spec);
    }
    let (db, _) = Db::open(Config::new(directory.path())).unwrap();
    let huge = Container { id: id("huge"), ..big(17 << 20) };
    assert_eq!(kind(db.containers(&id("n")).create(huge).await), ErrorKind::ResourceExhausted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_that_create_the_same_name_one_wins_and_readers_see_whole_states() {
    let s = store();
    let tasks: Vec<_> = (0..200)
        .map(|n| {
            let (db, ns) = (s.db.clone(), s.ns.clone());
            tokio::spawn(async move {
                let created = db.containers(&ns).create(container(&format!("c{}", n % 20))).await.is_ok();
                let seen = db.containers(&ns).scan().inspect(|c| assert!(c.is_ok())).count();
                assert!((1..=20).contains(&seen));
                created
            })
        })
        .collect();
    let mut won = 0;
    for task in tasks {
        won += usize::from(task.await.unwrap());
    }
    assert_eq!((won, s.db.containers(&s.ns).scan().count()), (20, 20));
}

#[tokio::test]
async fn a_scan_is_not_disturbed_by_writes_behind_it() {
    let s = store();
    for n in 0..10 {
        s.db.images(&s.ns).create(image(&format!("i{n}")), None).await.unwrap();
    }
    let mut scan = s.db.images(&s.ns).scan();
    assert_eq!(scan.next().unwrap().unwrap().name, "i0");
    for n in 1..10 {
        s.db.images(&s.ns).delete(&format!("i{n}"), None).await.unwrap();
    }
    assert_eq!(scan.count(), 9);
    assert_eq!(s.db.images(&s.ns).scan().count(), 1);
}

#[tokio::test]
async fn what_is_written_while_a_collection_goes_on_stays_and_what_it_refers_to() {
    let s = store();
    let (blobs, leases) = (s.db.blobs(&s.ns), s.db.leases(&s.ns));
    let digests: Vec<Digest> = (0..40_u8).map(|number| Digest::of(&[number])).collect();
    for (number, digest) in digests.iter().enumerate() {
        let refers = match digests.get(number + 1).filter(|_| number % 2 == 0) {
            Some(next) => labels([("containerd.io/gc.ref.content.0", next.as_str())]),
            None => Labels::new(),
        };
        blobs.create(digest.clone(), 1, refers, None, None).await.unwrap();
    }
    let mut plan = s.db.plan(&CollectOptions::now());
    assert_eq!(plan.removals().len(), 40);
    let last = plan.removals().last().unwrap().node.clone();
    // One is taken into a lease by the record itself, one by the reference of another.
    let rescued = digests.iter().position(|digest| *last.target.name() == *digest.as_str()).unwrap() & !1;
    leases.create("l", Labels::new()).await.unwrap();
    leases.add_resource("l", Resource::Content(digests[rescued].clone())).await.unwrap();
    let mut slices = 0;
    while !plan.is_empty() {
        let (rest, collected) = s.db.remove_next(plan, 7).await.unwrap();
        assert!(collected.removed.len() <= 7);
        plan = rest;
        slices += 1;
    }
    assert!(slices >= 6);
    let left: Vec<Digest> = blobs.scan().map(|blob| blob.unwrap().digest).collect();
    let mut expected = vec![digests[rescued].clone(), digests[rescued + 1].clone()];
    expected.sort();
    assert_eq!(left, expected);
    assert_eq!(s.db.collect(CollectOptions::now()).await.unwrap(), Default::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_have_their_turn_between_the_slices_of_a_collection() {
    let s = store();
    for number in 0..3000_u32 {
        let digest = Digest::of(&number.to_le_bytes());
        let blobs = s.db.blobs(&s.ns);
        if number % 100 == 99 {
            drop(blobs.create(digest, 1, Labels::new(), None, None).await.unwrap())
        } else {
            let (db, ns) = (s.db.clone(), s.ns.clone());
            tokio::spawn(async move { db.blobs(&ns).create(digest, 1, Labels::new(), None, None).await });
        }
    }
    while s.db.blobs(&s.ns).scan().count() < 3000 {
        tokio::task::yield_now().await;
    }
    let (db, ns) = (s.db.clone(), s.ns.clone());
    let collecting = tokio::spawn(async move {
        let mut plan = db.plan(&CollectOptions::now());
        while !plan.is_empty() {
            plan = db.remove_next(plan, 64).await.unwrap().0;
        }
    });
    let mut written = 0;
    while !collecting.is_finished() {
        s.db.leases(&ns).create(&format!("l{written}"), Labels::new()).await.unwrap();
        written += 1;
    }
    collecting.await.unwrap();
    // 47 slices: each writer that came meanwhile waited for one or two of them.
    assert!(written >= 10, "only {written} writes during a whole collection");
}
