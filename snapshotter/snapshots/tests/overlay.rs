//! What is the overlay snapshotter's own: the form of its mounts, recovery, labels, id maps, faults.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::future::Future;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;
use std::time::Instant;

use gantry_snapshots::suite::{labels, layer, with};
use gantry_snapshots::{Kind, Native, Overlay, OverlayConfig, Snapshotter, UPPERDIR_LABEL};
use gantry_types::{ErrorKind, Filter, HasKind, Labels, Mount};
use tempfile::TempDir;

fn open(dir: &TempDir) -> Overlay {
    Overlay::open(&dir.path().join("root"), OverlayConfig::default()).unwrap()
}

fn block<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

fn directories(dir: &TempDir, name: &str) -> Vec<String> {
    let entries = fs::read_dir(dir.path().join("root").join(name)).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn mount(kind: &str, source: String, options: &[String]) -> Mount {
    Mount { kind: kind.into(), source, target: String::new(), options: options.to_vec() }
}

#[tokio::test]
async fn mounts_have_the_form_that_clients_of_containerd_parse() {
    let dir = tempfile::tempdir().unwrap();
    let s = open(&dir);
    let root = s.root().unwrap().display().to_string();
    let fs = |id: u64| format!("{root}/snapshots/{id}/fs");
    let words = |words: &[&str]| words.iter().map(|word| word.to_string()).collect::<Vec<_>>();
    let mounts = s.prepare("a", None, Labels::new()).await.unwrap();
    assert_eq!(mounts, [mount("bind", fs(1), &words(&["rw", "rbind"]))]);
    s.commit("one", "a", None, Labels::new()).await.unwrap();
    let mounts = s.view("v", Some("one"), Labels::new()).await.unwrap();
    assert_eq!(mounts, [mount("bind", fs(1), &words(&["ro", "rbind"]))]);
    let mounts = s.view("e", None, Labels::new()).await.unwrap();
    assert_eq!(mounts, [mount("bind", fs(3), &words(&["ro", "rbind"]))]);
    let mounts = s.prepare("b", Some("one"), Labels::new()).await.unwrap();
    let options = [
        format!("workdir={root}/snapshots/4/work"),
        format!("upperdir={}", fs(4)),
        format!("lowerdir={}", fs(1)),
        "index=off".to_owned(),
    ];
    assert_eq!(mounts, [mount("overlay", "overlay".into(), &options)]);
    s.commit("two", "b", None, Labels::new()).await.unwrap();
    let mounts = s.view("w", Some("two"), Labels::new()).await.unwrap();
    let options = [format!("lowerdir={}:{}", fs(4), fs(1)), "index=off".to_owned()];
    assert_eq!(mounts, [mount("overlay", "overlay".into(), &options)]);
    assert_eq!(directories(&dir, "snapshots"), ["1", "3", "4"], "a view of a parent has no directory");
}

#[test]
fn what_a_crash_left_half_done_is_undone_at_open() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    block(async {
        let s = open(&dir);
        layer(&s, "one", None, |root| fs::write(root.join("file"), "x").unwrap()).await;
        layer(&s, "two", Some("one"), |_| ()).await;
        layer(&s, "other", None, |_| ()).await;
        s.prepare("active", Some("two"), Labels::new()).await.unwrap();
        s.view("view", Some("one"), Labels::new()).await.unwrap();
    });
    // Killed in prepare: a directory without a record. In a removal: a record gone, or a directory in the trash.
    fs::create_dir_all(root.join("snapshots/77/fs")).unwrap();
    fs::create_dir_all(root.join("trash/5/deep/er")).unwrap();
    fs::write(root.join("records/78.tmp"), "half").unwrap();
    // A lost directory costs the snapshot and all above it.
    fs::remove_dir_all(root.join("snapshots/2")).unwrap();
    block(async {
        let s = open(&dir);
        let names: Vec<_> = s.walk(&Filter::default()).await.unwrap().into_iter().map(|info| info.name).collect();
        assert_eq!(names, ["one", "other", "view"]);
        s.cleanup().await.unwrap();
        assert_eq!(directories(&dir, "snapshots"), ["1", "3"]);
        assert_eq!(directories(&dir, "records"), ["1", "3", "5"]);
        assert!(directories(&dir, "trash").is_empty());
        s.prepare("new", Some("one"), Labels::new()).await.unwrap();
        assert!(directories(&dir, "snapshots").contains(&"78".into()), "numbers are not used again");
        with(&s.mounts("new").await.unwrap(), |root| assert!(root.join("file").exists()));
    });
}

#[test]
fn a_damaged_record_costs_that_snapshot_and_those_above_it() {
    let dir = tempfile::tempdir().unwrap();
    block(async {
        let s = open(&dir);
        layer(&s, "one", None, |_| ()).await;
        layer(&s, "two", Some("one"), |_| ()).await;
        layer(&s, "three", Some("two"), |_| ()).await;
        layer(&s, "beside", Some("one"), |_| ()).await;
    });
    let record = dir.path().join("root/records/2");
    let mut bytes = fs::read(&record).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&record, bytes).unwrap();
    block(async {
        let s = open(&dir);
        let names: Vec<_> = s.walk(&Filter::default()).await.unwrap().into_iter().map(|info| info.name).collect();
        assert_eq!(names, ["beside", "one"]);
    });
}

#[test]
fn one_process_at_a_time_has_a_directory_and_only_of_its_own_format() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(&dir);
    let second = Overlay::open(&dir.path().join("root"), OverlayConfig::default()).unwrap_err();
    assert_eq!(second.kind(), ErrorKind::FailedPrecondition, "{second}");
    drop(first);
    let native = Native::open(&dir.path().join("root")).unwrap_err();
    assert!(native.to_string().contains("format"), "{native}");
    let comma = Overlay::open(&dir.path().join("a,b"), OverlayConfig::default()).unwrap_err();
    assert_eq!(comma.kind(), ErrorKind::FailedPrecondition);
}

#[tokio::test]
async fn the_upperdir_label_tells_where_changes_are_and_is_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let config = OverlayConfig { upperdir_label: true, sync_commit: true, ..OverlayConfig::default() };
    let s = Overlay::open(&dir.path().join("root"), config).unwrap();
    layer(&s, "one", None, |root| fs::write(root.join("file"), "x").unwrap()).await;
    let mut info = s.stat("one").await.unwrap();
    assert!(Path::new(&info.labels[UPPERDIR_LABEL]).join("file").exists());
    info.labels.insert("k".into(), "v".into());
    assert_eq!(s.update(info.clone(), &[]).await.unwrap().labels, info.labels);
    assert_eq!(s.walk(&Filter::default()).await.unwrap()[0].labels, info.labels);
    drop(s);
    assert_eq!(open(&dir).stat("one").await.unwrap().labels, labels(&[("k", "v")]));
}

#[tokio::test]
async fn a_layer_made_alone_is_put_upon_a_parent_at_commit() {
    let dir = tempfile::tempdir().unwrap();
    let s = open(&dir);
    s.prepare("upper", None, Labels::new()).await.unwrap();
    with(&s.mounts("upper").await.unwrap(), |root| fs::write(root.join("upper"), "").unwrap());
    let early = s.commit("two", "upper", Some("one"), Labels::new()).await.unwrap_err();
    assert_eq!(early.kind(), ErrorKind::NotFound);
    layer(&s, "one", None, |root| fs::write(root.join("lower"), "").unwrap()).await;
    s.view("view", Some("one"), Labels::new()).await.unwrap();
    let upon_view = s.commit("two", "upper", Some("view"), Labels::new()).await.unwrap_err();
    assert_eq!(upon_view.kind(), ErrorKind::FailedPrecondition);
    s.commit("two", "upper", Some("one"), Labels::new()).await.unwrap();
    assert_eq!(s.stat("two").await.unwrap().parent.as_deref(), Some("one"));
    with(&s.view("v", Some("two"), Labels::new()).await.unwrap(), |root| {
        assert!(root.join("upper").exists() && root.join("lower").exists());
    });
    assert_eq!(s.remove("one").await.unwrap_err().kind(), ErrorKind::FailedPrecondition);
    assert!(s.capabilities().contains(&"rebase"));
}

#[tokio::test]
async fn a_snapshot_for_a_user_namespace_shows_mapped_ids() {
    let dir = tempfile::tempdir().unwrap();
    let s = open(&dir);
    if !s.features().id_maps {
        return;
    }
    layer(&s, "one", None, |root| fs::write(root.join("file"), "x").unwrap()).await;
    layer(&s, "two", Some("one"), |_| ()).await;
    let mapping = labels(&[
        ("containerd.io/snapshot/uidmapping", "0:100000:65536"),
        ("containerd.io/snapshot/gidmapping", "0:200000:65536"),
    ]);
    for (key, parent) in [("a", "one"), ("b", "two")] {
        let mounts = s.prepare(key, Some(parent), mapping.clone()).await.unwrap();
        with(&mounts, |root| {
            for path in [root.to_owned(), root.join("file")] {
                let meta = fs::metadata(&path).unwrap();
                assert_eq!((meta.uid(), meta.gid()), (100_000, 200_000), "{path:?}");
            }
        });
    }
    let view = s.view("v", Some("one"), mapping.clone()).await.unwrap();
    with(&view, |root| assert_eq!(fs::metadata(root.join("file")).unwrap().uid(), 100_000));
    let broken = labels(&[("containerd.io/snapshot/uidmapping", "0:100000:65536")]);
    assert_eq!(s.prepare("c", Some("one"), broken).await.unwrap_err().kind(), ErrorKind::InvalidArgument);
    assert_eq!(s.stat("c").await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn on_a_full_disk_calls_fail_whole_and_work_again_once_there_is_room() {
    let test = || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let private = Mount { options: vec!["rprivate".into()], ..Mount::default() };
        gantry_mount::mount_all(&[private], Path::new("/")).unwrap();
        let small = mount("tmpfs", "tmpfs".into(), &["size=1m".to_owned(), "nr_inodes=200".to_owned()]);
        gantry_mount::mount_all(&[small], dir.path()).unwrap();
        block(async {
            let s = open(&dir);
            layer(&s, "one", None, |_| ()).await;
            let mut made = 0;
            let error = loop {
                match s.prepare(&format!("key-{made}"), Some("one"), Labels::new()).await {
                    Ok(_) => made += 1,
                    Err(error) => break error,
                }
            };
            assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{error}");
            let infos = s.walk(&Filter::default()).await.unwrap();
            assert_eq!(infos.iter().filter(|info| info.kind == Kind::Active).count(), made);
            s.remove("key-0").await.unwrap();
            s.remove("key-1").await.unwrap();
            s.cleanup().await.unwrap();
            s.prepare("again", Some("one"), Labels::new()).await.unwrap();
        });
    };
    std::thread::spawn(test).join().unwrap();
}

/// Figures for a person: `cargo test --release -- --ignored --nocapture how_long`.
#[tokio::test]
#[ignore = "a measurement"]
async fn how_long_prepare_and_remove_take() {
    let dir = tempfile::tempdir().unwrap();
    let s = open(&dir);
    layer(&s, "one", None, |_| ()).await;
    let count = 2000u32;
    let started = Instant::now();
    for i in 0..count {
        s.prepare(&format!("k{i}"), Some("one"), Labels::new()).await.unwrap();
    }
    let prepared = started.elapsed();
    for i in 0..count {
        s.remove(&format!("k{i}")).await.unwrap();
    }
    let removed = started.elapsed() - prepared;
    s.cleanup().await.unwrap();
    let deleted = started.elapsed() - prepared - removed;
    eprintln!("prepare {:?}, remove {:?}, delete {:?} each", prepared / count, removed / count, deleted / count);
}

#[test]
fn a_root_that_others_can_read_is_not_opened_up_further() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    fs::DirBuilder::new().mode(0o711).create(&root).unwrap();
    let s = open(&dir);
    assert_eq!(fs::metadata(&root).unwrap().mode() & 0o777, 0o711);
    assert_eq!(fs::metadata(s.root().unwrap().join("snapshots")).unwrap().mode() & 0o777, 0o700);
}

#[tokio::test]
async fn what_was_counted_ahead_is_what_the_commit_takes_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let s = open(&dir);
    let fill = |mounts: &[Mount]| {
        with(mounts, |root| (0..20).for_each(|n| fs::write(root.join(n.to_string()), [1; 5000]).unwrap()));
    };
    fill(&s.prepare("counted", None, Labels::new()).await.unwrap());
    fill(&s.prepare("not", None, Labels::new()).await.unwrap());
    // Blocks of a file are known once they are on the disk.
    s.sync_ahead().await.unwrap();
    s.count_ahead("counted").await.unwrap();
    // The promise is the caller's: this file shows that nothing is counted again.
    fs::write(dir.path().join("root/snapshots/1/fs/late"), "").unwrap();
    s.commit("a", "counted", None, Labels::new()).await.unwrap();
    s.commit("b", "not", None, Labels::new()).await.unwrap();
    let (a, b) = (s.usage("a").await.unwrap(), s.usage("b").await.unwrap());
    assert_eq!((a, a.inodes), (b, 21));
    drop(s);
    let again = open(&dir);
    assert_eq!(again.usage("a").await.unwrap(), a);
}

#[tokio::test]
async fn only_an_active_snapshot_is_counted_ahead_and_nothing_is_known_of_a_removed_one() {
    let dir = tempfile::tempdir().unwrap();
    let s = open(&dir);
    s.prepare("key", None, Labels::new()).await.unwrap();
    s.count_ahead("key").await.unwrap();
    s.remove("key").await.unwrap();
    assert_eq!(s.count_ahead("key").await.unwrap_err().kind(), ErrorKind::NotFound);
    let mounts = s.prepare("key", None, Labels::new()).await.unwrap();
    with(&mounts, |root| fs::write(root.join("file"), "1").unwrap());
    s.commit("layer", "key", None, Labels::new()).await.unwrap();
    assert_eq!(s.usage("layer").await.unwrap().inodes, 2);
    assert_eq!(s.count_ahead("layer").await.unwrap_err().kind(), ErrorKind::FailedPrecondition);
    s.view("view", Some("layer"), Labels::new()).await.unwrap();
    assert_eq!(s.count_ahead("view").await.unwrap_err().kind(), ErrorKind::FailedPrecondition);
}
