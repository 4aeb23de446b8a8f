//! The contract of [`Snapshotter`] as tests, for any implementation: [`contract_tests!`](crate::contract_tests).
//!
//! They perform the mounts they are given, detached, and so need root.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::collections::BTreeMap;
use std::fs;
use std::future::Future;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gantry_mount::Tree;
use gantry_types::{ErrorKind, Filter, HasKind, Labels, Mount};

use crate::{Error, Info, Kind, Snapshotter, Usage};

/// Makes (or opens again) a snapshotter in a directory.
pub type Open = fn(&Path) -> Arc<dyn Snapshotter>;

/// Declares one test function for each sentence of the contract; `$open` is an [`Open`].
#[macro_export]
macro_rules! contract_tests {
    ($open:expr) => {
        $crate::contract_tests!(@each $open;
            a_layer_is_built_upon_a_layer_and_shown_whole,
            a_key_is_used_once_and_a_parent_is_committed,
            only_active_snapshots_are_committed_and_only_to_free_names,
            labels_are_updated_by_field_path,
            walking_selects_by_filters,
            a_removed_key_can_be_used_again,
            a_parent_stays_while_children_stand_on_it,
            a_view_cannot_be_written,
            the_root_directory_starts_as_the_parents,
            usage_counts_what_was_written,
            mounts_are_told_again,
            updated_files_removed_directories_and_changed_owners_are_seen_above,
            a_chain_of_130_layers_is_shown_whole,
            keys_are_opaque,
            of_many_who_prepare_a_key_one_wins,
            many_at_once_leave_a_sound_state,
            files_are_put_in_the_place_of_broken_ones,
            all_is_there_after_opening_again
        );
    };
    (@each $open:expr; $($name:ident),*) => {
        $(
            #[test]
            fn $name() {
                $crate::suite::run($open, $crate::suite::$name);
            }
        )*
    };
}

/// What a test gets: the snapshotter and the way to open it again.
#[derive(Clone)]
pub struct Subject {
    pub snapshots: Arc<dyn Snapshotter>,
    open: Open,
    root: PathBuf,
}

/// Runs one test on a snapshotter in a new directory.
pub fn run<F: Future<Output = ()>>(open: Open, test: fn(Subject) -> F) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let subject = Subject { snapshots: open(&root), open, root };
    runtime.block_on(test(subject));
    let table = gantry_mount::mountinfo::read().unwrap();
    let left: Vec<_> = table.into_iter().filter(|entry| entry.target.starts_with(dir.path())).collect();
    assert!(left.is_empty(), "left in the mount table: {left:?}");
}

/// Shows `mounts` to `look`.
pub fn with<T>(mounts: &[Mount], look: impl FnOnce(&Path) -> T) -> T {
    let tree = Tree::new(mounts).unwrap();
    look(&tree.path())
}

pub fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
}

async fn names(snapshots: &dyn Snapshotter, filters: &[&str]) -> Vec<String> {
    let filter = Filter::parse(filters).unwrap();
    snapshots.walk(&filter).await.unwrap().into_iter().map(|info| info.name).collect()
}

fn kind<T: std::fmt::Debug>(result: Result<T, Error>) -> ErrorKind {
    result.unwrap_err().kind()
}

/// Prepares, changes and commits one layer.
pub async fn layer(snapshots: &dyn Snapshotter, name: &str, parent: Option<&str>, change: impl FnOnce(&Path)) {
    let key = format!("{name}-key");
    let mounts = snapshots.prepare(&key, parent, Labels::new()).await.unwrap();
    with(&mounts, change);
    snapshots.commit(name, &key, None, Labels::new()).await.unwrap();
}

/// A snapshotter that does not say where files lie (one of another process) refuses.
pub async fn files_are_put_in_the_place_of_broken_ones(subject: Subject) {
    let Subject { snapshots, open, root } = subject;
    layer(&*snapshots, "below", None, |root| fs::write(root.join("below"), "below").unwrap()).await;
    layer(&*snapshots, "broken", Some("below"), |root| fs::write(root.join("file"), "wrong").unwrap()).await;
    let mounts = snapshots.prepare("fresh", Some("below"), Labels::new()).await.unwrap();
    with(&mounts, |root| fs::write(root.join("file"), "right").unwrap());
    let Some(files) = snapshots.files("broken") else {
        assert_eq!(kind(snapshots.replace("broken", "fresh").await), ErrorKind::Unimplemented);
        return;
    };
    assert!(files.directory.is_dir());
    assert_eq!(kind(snapshots.replace("fresh", "broken").await), ErrorKind::FailedPrecondition);
    snapshots.replace("broken", "fresh").await.unwrap();
    snapshots.remove("fresh").await.unwrap();
    drop(snapshots);
    let snapshots = open(&root);
    let mounts = snapshots.view("look", Some("broken"), Labels::new()).await.unwrap();
    with(&mounts, |root| {
        assert_eq!(fs::read_to_string(root.join("file")).unwrap(), "right");
        assert_eq!(fs::read_to_string(root.join("below")).unwrap(), "below");
        assert!(fs::write(root.join("more"), "").is_err(), "what is committed stays as it is");
    });
    layer(&*snapshots, "above", Some("broken"), |root| fs::write(root.join("file"), "above").unwrap()).await;
}

/// A description of everything below `root` that two equal trees share.
pub fn describe(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut first_names: BTreeMap<(u64, u64), PathBuf> = BTreeMap::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(relative) = todo.pop() {
        let path = root.join(&relative);
        let meta = if relative.as_os_str().is_empty() { fs::metadata(&path) } else { fs::symlink_metadata(&path) };
        let meta = meta.unwrap();
        let kind = meta.file_type();
        let content = if kind.is_dir() {
            let mut entries: Vec<_> = fs::read_dir(&path).unwrap().map(|e| e.unwrap().file_name()).collect();
            entries.sort();
            entries.reverse();
            todo.extend(entries.iter().map(|name| relative.join(name)));
            "directory".to_owned()
        } else if kind.is_symlink() {
            format!("link to {:?}", fs::read_link(&path).unwrap())
        } else if kind.is_file() {
            format!("file {:?}", String::from_utf8_lossy(&fs::read(&path).unwrap()))
        } else {
            format!("special {} {}", kind.is_fifo(), meta.rdev())
        };
        let same = if kind.is_dir() { None } else { first_names.get(&(meta.dev(), meta.ino())).cloned() };
        if same.is_none() {
            first_names.insert((meta.dev(), meta.ino()), relative.clone());
        }
        // Only times that were set on purpose are the same in two trees.
        let time = if meta.mtime() < 1_000_000_000 { meta.mtime() } else { 0 };
        let attributes = attributes(&path, kind.is_symlink());
        let owner = (meta.uid(), meta.gid(), meta.mode() & 0o7777);
        found.insert(relative, format!("{content} {owner:?} {time} {attributes:?} {same:?}"));
    }
    found
}

fn attributes(path: &Path, is_link: bool) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let (mut names, mut value) = (vec![0u8; 4096], vec![0u8; 4096]);
    if is_link {
        return found;
    }
    let length = rustix::fs::listxattr(path, &mut names[..]).unwrap();
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let length = rustix::fs::getxattr(path, name, &mut value[..]).unwrap();
        found.insert(String::from_utf8_lossy(name).into_owned(), value[..length].to_vec());
    }
    found
}

pub async fn a_layer_is_built_upon_a_layer_and_shown_whole(subject: Subject) {
    let s = &*subject.snapshots;
    let mounts = s.prepare("preparing", None, labels(&[("l", "1")])).await.unwrap();
    with(&mounts, |root| {
        fs::write(root.join("foo"), "foo").unwrap();
        fs::create_dir_all(root.join("a/b/c")).unwrap();
    });
    s.commit("one", "preparing", None, labels(&[("k", "v")])).await.unwrap();
    let one = s.stat("one").await.unwrap();
    assert_eq!((one.kind, one.parent.as_deref(), one.name.as_str()), (Kind::Committed, None, "one"));
    assert_eq!(one.labels, labels(&[("k", "v")]), "labels are not inherited");
    assert_eq!(one.created, one.updated);
    assert_eq!(kind(s.stat("preparing").await), ErrorKind::NotFound);
    let mounts = s.prepare("next", Some("one"), Labels::new()).await.unwrap();
    with(&mounts, |root| {
        assert_eq!(fs::read(root.join("foo")).unwrap(), b"foo");
        fs::write(root.join("foo"), "changed").unwrap();
        fs::write(root.join("bar"), "bar").unwrap();
        fs::remove_dir_all(root.join("a/b")).unwrap();
    });
    let next = s.stat("next").await.unwrap();
    assert_eq!((next.kind, next.parent.as_deref()), (Kind::Active, Some("one")));
    s.commit("two", "next", None, Labels::new()).await.unwrap();
    let view = s.view("view", Some("two"), Labels::new()).await.unwrap();
    with(&view, |root| {
        assert_eq!(fs::read(root.join("foo")).unwrap(), b"changed");
        assert_eq!(fs::read(root.join("bar")).unwrap(), b"bar");
        assert!(root.join("a").is_dir() && !root.join("a/b").exists());
    });
    let below = s.view("below", Some("one"), Labels::new()).await.unwrap();
    with(&below, |root| assert_eq!(fs::read(root.join("foo")).unwrap(), b"foo"));
    for info in s.walk(&Filter::default()).await.unwrap() {
        assert_eq!(s.stat(&info.name).await.unwrap(), info);
    }
}

pub async fn a_key_is_used_once_and_a_parent_is_committed(subject: Subject) {
    let s = &*subject.snapshots;
    layer(s, "layer", None, |_| ()).await;
    s.prepare("active", Some("layer"), Labels::new()).await.unwrap();
    s.view("view", Some("layer"), Labels::new()).await.unwrap();
    for key in ["active", "view", "layer"] {
        assert_eq!(kind(s.prepare(key, Some("layer"), Labels::new()).await), ErrorKind::AlreadyExists);
        assert_eq!(kind(s.view(key, None, Labels::new()).await), ErrorKind::AlreadyExists);
    }
    for parent in ["active", "view"] {
        assert_eq!(kind(s.prepare("new", Some(parent), Labels::new()).await), ErrorKind::InvalidArgument);
    }
    assert_eq!(kind(s.prepare("new", Some("missing"), Labels::new()).await), ErrorKind::NotFound);
    for key in ["", &"k".repeat(1025)] {
        assert_eq!(kind(s.prepare(key, None, Labels::new()).await), ErrorKind::InvalidArgument);
        assert_eq!(kind(s.stat(key).await), ErrorKind::InvalidArgument);
    }
    let long = labels(&[("k", &"v".repeat(5000))]);
    assert_eq!(kind(s.prepare("new", None, long).await), ErrorKind::InvalidArgument);
    assert_eq!(kind(s.stat("new").await), ErrorKind::NotFound);
}

pub async fn only_active_snapshots_are_committed_and_only_to_free_names(subject: Subject) {
    let s = &*subject.snapshots;
    layer(s, "layer", None, |_| ()).await;
    s.view("view", Some("layer"), Labels::new()).await.unwrap();
    s.prepare("active", None, Labels::new()).await.unwrap();
    let commit = |name: &'static str, key: &'static str| s.commit(name, key, None, Labels::new());
    assert_eq!(kind(commit("new", "view").await), ErrorKind::FailedPrecondition);
    assert_eq!(kind(commit("new", "layer").await), ErrorKind::FailedPrecondition);
    assert_eq!(kind(commit("new", "missing").await), ErrorKind::NotFound);
    assert_eq!(kind(commit("layer", "active").await), ErrorKind::AlreadyExists);
    assert_eq!(kind(commit("active", "active").await), ErrorKind::AlreadyExists);
    assert_eq!(kind(commit("", "active").await), ErrorKind::InvalidArgument);
    assert_eq!(s.stat("active").await.unwrap().kind, Kind::Active);
    commit("new", "active").await.unwrap();
    layer(s, "other", None, |_| ()).await;
    s.prepare("upon", Some("layer"), Labels::new()).await.unwrap();
    assert_eq!(kind(s.commit("x", "upon", Some("other"), Labels::new()).await), ErrorKind::InvalidArgument);
    s.commit("x", "upon", Some("layer"), Labels::new()).await.unwrap();
}

pub async fn labels_are_updated_by_field_path(subject: Subject) {
    let s = &*subject.snapshots;
    layer(s, "c1", None, |_| ()).await;
    layer(s, "c2", Some("c1"), |_| ()).await;
    s.prepare("a1", Some("c2"), Labels::new()).await.unwrap();
    s.view("v1", Some("c2"), Labels::new()).await.unwrap();
    for name in ["c1", "c2", "a1", "v1"] {
        let old = s.stat(name).await.unwrap();
        let wanted = labels(&[("l1", "v1"), ("l2", "v2"), ("l3", "v3")]);
        let info = Info { parent: Some("nowhere".into()), labels: wanted.clone(), ..old.clone() };
        let new = s.update(info, &[]).await.unwrap();
        assert_eq!((&new.labels, &new.parent, new.kind), (&wanted, &old.parent, old.kind));
        assert_eq!(new.created, old.created);
        assert!(new.updated > old.updated);
        let info = Info { labels: labels(&[("l1", "new"), ("l4", "v4")]), ..new };
        let new = s.update(info, &["labels.l1".into(), "labels.l2".into()]).await.unwrap();
        assert_eq!(new.labels, labels(&[("l1", "new"), ("l3", "v3")]));
        let info = Info { labels: labels(&[("l5", "v5")]), ..new };
        let new = s.update(info.clone(), &["labels".into()]).await.unwrap();
        assert_eq!(new.labels, info.labels);
        assert_eq!(kind(s.update(info, &["parent".into()]).await), ErrorKind::InvalidArgument);
        assert_eq!(s.stat(name).await.unwrap(), new);
    }
    let missing = Info { name: "missing".into(), ..s.stat("c1").await.unwrap() };
    assert_eq!(kind(s.update(missing, &[]).await), ErrorKind::NotFound);
}

pub async fn walking_selects_by_filters(subject: Subject) {
    let s = &*subject.snapshots;
    s.prepare("a-np", None, Labels::new()).await.unwrap();
    layer(s, "p", None, |_| ()).await;
    s.prepare("a", Some("p"), labels(&[("l", "2")])).await.unwrap();
    s.view("v", Some("p"), labels(&[("l", "3"), ("x.y/z", "1")])).await.unwrap();
    let cases: [(&[&str], &[&str]); 8] = [
        (&[], &["a", "a-np", "p", "v"]),
        (&["kind==active"], &["a", "a-np"]),
        (&["kind==view"], &["v"]),
        (&["kind==committed", "name==a-np"], &["a-np", "p"]),
        (&["parent==p"], &["a", "v"]),
        (&["parent!=\"\",kind==view"], &["v"]),
        (&["labels.l"], &["a", "v"]),
        (&["labels.l==2", "labels.\"x.y/z\"==1"], &["a", "v"]),
    ];
    for (filters, expected) in cases {
        assert_eq!(names(s, filters).await, expected, "{filters:?}");
    }
}

pub async fn a_removed_key_can_be_used_again(subject: Subject) {
    let s = &*subject.snapshots;
    layer(s, "layer", None, |_| ()).await;
    s.prepare("key", Some("layer"), Labels::new()).await.unwrap();
    s.remove("key").await.unwrap();
    assert_eq!(kind(s.remove("key").await), ErrorKind::NotFound);
    s.view("key", Some("layer"), Labels::new()).await.unwrap();
    s.remove("key").await.unwrap();
    let mounts = s.prepare("key", None, Labels::new()).await.unwrap();
    with(&mounts, |root| assert!(fs::read_dir(root).unwrap().next().is_none()));
    s.remove("layer").await.unwrap();
    s.commit("layer", "key", None, Labels::new()).await.unwrap();
    s.cleanup().await.unwrap();
    assert_eq!(names(s, &[]).await, ["layer"]);
}

pub async fn a_parent_stays_while_children_stand_on_it(subject: Subject) {
    let s = &*subject.snapshots;
    layer(s, "one", None, |_| ()).await;
    layer(s, "two", Some("one"), |_| ()).await;
    s.prepare("top", Some("two"), Labels::new()).await.unwrap();
    for name in ["one", "two"] {
        let error = s.remove(name).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
        assert!(error.to_string().contains("remove"), "clients look for the word: {error}");
    }
    for name in ["top", "two", "one"] {
        s.remove(name).await.unwrap();
    }
}

pub async fn a_view_cannot_be_written(subject: Subject) {
    let s = &*subject.snapshots;
    layer(s, "one", None, |root| fs::write(root.join("file"), "x").unwrap()).await;
    layer(s, "two", Some("one"), |_| ()).await;
    for parent in [None, Some("one"), Some("two")] {
        let key = format!("view-{parent:?}");
        let mounts = s.view(&key, parent, Labels::new()).await.unwrap();
        with(&mounts, |root| {
            assert_eq!(root.join("file").exists(), parent.is_some());
            let error = fs::write(root.join("new"), "x").unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        });
    }
}

pub async fn the_root_directory_starts_as_the_parents(subject: Subject) {
    let s = &*subject.snapshots;
    let shape = |root: &Path| {
        let meta = fs::metadata(root).unwrap();
        (meta.mode() & 0o7777, meta.uid(), meta.gid())
    };
    let mounts = s.prepare("key", None, Labels::new()).await.unwrap();
    with(&mounts, |root| {
        assert_eq!(shape(root), (0o755, 0, 0));
        fs::set_permissions(root, fs::Permissions::from_mode(0o1750)).unwrap();
        lchown(root, Some(5), Some(6)).unwrap();
    });
    s.commit("layer", "key", None, Labels::new()).await.unwrap();
    let mounts = s.prepare("next", Some("layer"), Labels::new()).await.unwrap();
    with(&mounts, |root| assert_eq!(shape(root), (0o1750, 5, 6)));
}

pub async fn usage_counts_what_was_written(subject: Subject) {
    let s = &*subject.snapshots;
    let mounts = s.prepare("key", None, Labels::new()).await.unwrap();
    let empty = s.usage("key").await.unwrap();
    with(&mounts, |root| {
        fs::write(root.join("file"), vec![1; 1 << 20]).unwrap();
        fs::hard_link(root.join("file"), root.join("again")).unwrap();
        fs::create_dir(root.join("directory")).unwrap();
        // Blocks of a file are counted once they are on disk.
        fs::File::open(root.join("file")).unwrap().sync_all().unwrap();
    });
    let full = s.usage("key").await.unwrap();
    assert_eq!(full.inodes, empty.inodes + 2);
    assert!((1 << 20..3 << 19).contains(&(full.size - empty.size)), "{empty:?} {full:?}");
    s.commit("layer", "key", None, Labels::new()).await.unwrap();
    let committed = s.usage("layer").await.unwrap();
    // A layer may have become one file.
    let one_file = Usage { inodes: 1, size: committed.size };
    assert!(
        committed == full || committed == one_file && committed.size.abs_diff(full.size) < 64 << 10,
        "{committed:?}"
    );
    assert_eq!(kind(s.usage("key").await), ErrorKind::NotFound);
    s.sync("layer").await.unwrap();
    assert_eq!(kind(s.sync("key").await), ErrorKind::NotFound);
}

pub async fn mounts_are_told_again(subject: Subject) {
    let s = &*subject.snapshots;
    layer(s, "layer", None, |_| ()).await;
    for (key, parent) in [("a", None), ("b", Some("layer"))] {
        assert_eq!(s.prepare(key, parent, Labels::new()).await.unwrap(), s.mounts(key).await.unwrap());
    }
    assert_eq!(s.view("v", Some("layer"), Labels::new()).await.unwrap(), s.mounts("v").await.unwrap());
    assert_eq!(kind(s.mounts("layer").await), ErrorKind::FailedPrecondition);
    assert_eq!(kind(s.mounts("missing").await), ErrorKind::NotFound);
}

pub async fn updated_files_removed_directories_and_changed_owners_are_seen_above(subject: Subject) {
    let s = &*subject.snapshots;
    let directory = subject.root.with_file_name("flat");
    fs::create_dir(&directory).unwrap();
    let steps: [fn(&Path); 4] = [
        |root| {
            fs::create_dir_all(root.join("lib/deep")).unwrap();
            fs::write(root.join("lib/hidden"), "").unwrap();
            fs::write(root.join("file"), "one").unwrap();
            fs::write(root.join("moved"), "moved").unwrap();
            symlink("file", root.join("link")).unwrap();
        },
        |root| {
            fs::remove_dir_all(root.join("lib")).unwrap();
            fs::create_dir(root.join("lib")).unwrap();
            fs::write(root.join("lib/not-hidden"), "").unwrap();
            fs::write(root.join("file"), "two").unwrap();
            fs::rename(root.join("moved"), root.join("lib/moved")).unwrap();
            fs::hard_link(root.join("lib/moved"), root.join("linked")).unwrap();
        },
        |root| {
            lchown(root.join("lib"), Some(1), Some(1)).unwrap();
            lchown(root.join("link"), Some(2), Some(2)).unwrap();
            fs::set_permissions(root.join("file"), fs::Permissions::from_mode(0o4711)).unwrap();
        },
        |root| {
            fs::remove_file(root.join("link")).unwrap();
            fs::create_dir(root.join("link")).unwrap();
            fs::remove_file(root.join("file")).unwrap();
        },
    ];
    let mut parent: Option<String> = None;
    for (i, step) in steps.into_iter().enumerate() {
        step(&directory);
        let name = format!("layer-{i}");
        layer(s, &name, parent.as_deref(), step).await;
        let mounts = s.view(&format!("view-{i}"), Some(&name), Labels::new()).await.unwrap();
        with(&mounts, |root| assert_eq!(describe(root), describe(&directory), "layer {i}"));
        parent = Some(name);
    }
}

pub async fn a_chain_of_130_layers_is_shown_whole(subject: Subject) {
    let s = &*subject.snapshots;
    let directory = subject.root.with_file_name("flat");
    fs::create_dir(&directory).unwrap();
    let mut parent: Option<String> = None;
    for i in 0..130 {
        let step = |root: &Path| {
            fs::write(root.join("overwritten"), format!("{i}")).unwrap();
            fs::write(root.join(format!("added-{i}")), "same").unwrap();
            if i > 0 {
                fs::remove_dir_all(root.join("replaced")).unwrap();
            }
            fs::create_dir(root.join("replaced")).unwrap();
            fs::write(root.join(format!("replaced/{i}")), "only").unwrap();
        };
        step(&directory);
        let name = format!("layer-{i}");
        layer(s, &name, parent.as_deref(), step).await;
        parent = Some(name);
    }
    let mounts = s.view("view", parent.as_deref(), Labels::new()).await.unwrap();
    with(&mounts, |root| assert_eq!(describe(root), describe(&directory)));
    let mounts = s.prepare("active", parent.as_deref(), Labels::new()).await.unwrap();
    with(&mounts, |root| assert_eq!(describe(root), describe(&directory)));
}

pub async fn keys_are_opaque(subject: Subject) {
    let s = &*subject.snapshots;
    let keys =
        ["../../../etc", "/", ".", "..", "a\0b", "new\nline", "ns/7/sha256:abc", "extract-1 sha256:x", "ü😀", "*"];
    let long = "k".repeat(1024);
    for key in keys.into_iter().chain([long.as_str()]) {
        let name = format!("{}:", &key[..key.len().min(1000)].trim_end_matches('\u{fffd}'));
        s.prepare(key, None, Labels::new()).await.unwrap();
        assert_eq!(s.stat(key).await.unwrap().name, key);
        s.commit(&name, key, None, Labels::new()).await.unwrap();
        assert_eq!(s.stat(&name).await.unwrap().kind, Kind::Committed);
        s.remove(&name).await.unwrap();
    }
    assert!(names(s, &[]).await.is_empty());
}

pub async fn of_many_who_prepare_a_key_one_wins(subject: Subject) {
    layer(&*subject.snapshots, "layer", None, |_| ()).await;
    let tasks: Vec<_> = (0..16)
        .map(|_| {
            let s = Arc::clone(&subject.snapshots);
            tokio::spawn(async move { s.prepare("key", Some("layer"), Labels::new()).await.map_err(|e| e.kind()) })
        })
        .collect();
    let mut won = 0;
    for task in tasks {
        match task.await.unwrap() {
            Ok(_) => won += 1,
            Err(kind) => assert_eq!(kind, ErrorKind::AlreadyExists),
        }
    }
    assert_eq!(won, 1);
}

pub async fn many_at_once_leave_a_sound_state(subject: Subject) {
    let tasks: Vec<_> = (0..8).map(|task| tokio::spawn(busy(Arc::clone(&subject.snapshots), task))).collect();
    for task in tasks {
        task.await.unwrap();
    }
    let s = &*subject.snapshots;
    let infos = s.walk(&Filter::default()).await.unwrap();
    for info in infos.iter().filter(|info| info.kind != Kind::Committed) {
        with(&s.mounts(&info.name).await.unwrap(), |root| assert!(root.is_dir()));
        s.remove(&info.name).await.unwrap();
    }
    for info in infos {
        if let Some(parent) = info.parent {
            s.stat(&parent).await.unwrap();
        }
    }
}

/// Takes part in a scramble for few names; any answer will do that is one of the contract's.
async fn busy(s: Arc<dyn Snapshotter>, task: usize) {
    for round in 0..40 {
        let (key, name) = (format!("key-{}", (task + round) % 5), format!("name-{}", (task * round) % 4));
        let parent = (round % 2 == 0).then_some(name.as_str());
        let results = [
            s.prepare(&key, parent, Labels::new()).await.map(|_| ()),
            s.commit(&name, &key, None, Labels::new()).await,
            s.usage(&name).await.map(|_| ()),
            s.remove(if round % 3 == 0 { &name } else { &key }).await,
        ];
        for error in results.into_iter().filter_map(Result::err) {
            let expected = [
                ErrorKind::NotFound,
                ErrorKind::AlreadyExists,
                ErrorKind::FailedPrecondition,
                ErrorKind::InvalidArgument,
            ];
            assert!(expected.contains(&error.kind()), "{error}");
        }
    }
}

pub async fn all_is_there_after_opening_again(subject: Subject) {
    let Subject { snapshots, open, root } = subject;
    layer(&*snapshots, "one", None, |root| fs::write(root.join("file"), "x").unwrap()).await;
    layer(&*snapshots, "two", Some("one"), |_| ()).await;
    snapshots.prepare("active", Some("two"), labels(&[("l", "v")])).await.unwrap();
    snapshots.view("view", Some("two"), Labels::new()).await.unwrap();
    snapshots.prepare("removed", Some("one"), Labels::new()).await.unwrap();
    snapshots.remove("removed").await.unwrap();
    let before = snapshots.walk(&Filter::default()).await.unwrap();
    let usage = snapshots.usage("one").await.unwrap();
    let mounts = snapshots.mounts("active").await.unwrap();
    drop(snapshots);
    let again = open(&root);
    assert_eq!(again.walk(&Filter::default()).await.unwrap(), before);
    assert_eq!(again.usage("one").await.unwrap(), usage);
    assert_eq!(again.mounts("active").await.unwrap(), mounts);
    with(&mounts, |root| assert!(root.join("file").exists()));
    let new = again.prepare("new", None, Labels::new()).await.unwrap();
    assert_ne!(new, mounts);
    with(&new, |root| assert!(fs::read_dir(root).unwrap().next().is_none()));
}
