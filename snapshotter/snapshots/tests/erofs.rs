//! What is special about layers as EROFS images. Needs root and a kernel with EROFS that mounts files (Linux 6.12).
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use gantry_mount::Tree;
use gantry_snapshots::{EROFS_LAYER, EROFS_MARK, Erofs, ErofsConfig, Error, MAX_SIZE_LABEL, Snapshotter};
use gantry_types::{ErrorKind, HasKind, Labels, Mount};

fn open(root: &Path, config: ErofsConfig) -> Erofs {
    Erofs::open(root, config).unwrap()
}

fn option<'a>(mount: &'a Mount, name: &str) -> Option<&'a str> {
    mount.options.iter().find_map(|option| option.strip_prefix(name))
}

/// The file systems of the layers do not depend on what is below them.
async fn layer(snapshots: &Erofs, name: &str, parent: Option<&str>, upon: Option<&str>, file: &str) {
    let mounts = snapshots.prepare("key", parent, Labels::new()).await.unwrap();
    fs::write(Tree::new(&mounts).unwrap().path().join(file), name).unwrap();
    snapshots.commit(name, "key", upon, Labels::new()).await.unwrap();
}

#[tokio::test]
async fn mounts_are_one_file_a_layer_and_an_overlay_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let snapshots =
        open(dir.path(), ErofsConfig { overlay_options: vec!["volatile".into()], ..ErofsConfig::default() });
    layer(&snapshots, "one", None, None, "a").await;
    layer(&snapshots, "two", Some("one"), None, "b").await;
    let view = snapshots.view("view", Some("one"), Labels::new()).await.unwrap();
    assert_eq!(view.len(), 1);
    assert_eq!((view[0].kind.as_str(), view[0].options.join(",")), ("erofs", "ro,loop".to_owned()));
    assert!(view[0].source.ends_with(EROFS_LAYER), "{view:?}");
    let one = snapshots.prepare("upon-one", Some("one"), Labels::new()).await.unwrap();
    assert_eq!(one.iter().map(|mount| mount.kind.as_str()).collect::<Vec<_>>(), ["erofs", "format/mkdir/overlay"]);
    assert_eq!(option(&one[1], "lowerdir="), Some("{{ mount 0 }}"));
    let two = snapshots.prepare("upon-two", Some("two"), Labels::new()).await.unwrap();
    let last = two.last().unwrap();
    assert_eq!((two.len(), option(last, "lowerdir=")), (3, Some("{{ overlay 0 1 }}")));
    assert!(option(last, "upperdir=").unwrap().ends_with("/fs") && last.options.contains(&"volatile".to_owned()));
    let tree = Tree::new(&two).unwrap();
    assert_eq!([fs::read(tree.path().join("a")).unwrap(), fs::read(tree.path().join("b")).unwrap()], [b"one", b"two"]);
}

#[tokio::test]
async fn a_layer_that_a_differ_has_made_is_committed_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let snapshots = open(dir.path(), ErofsConfig::default());
    layer(&snapshots, "one", None, None, "a").await;
    let mounts = snapshots.prepare("key", Some("one"), Labels::new()).await.unwrap();
    let place = Path::new(option(mounts.last().unwrap(), "upperdir=").unwrap()).parent().unwrap().to_owned();
    assert!(place.join(EROFS_MARK).exists());
    fs::copy(&snapshots.view("v", Some("one"), Labels::new()).await.unwrap()[0].source, place.join(EROFS_LAYER))
        .unwrap();
    let made = fs::metadata(place.join(EROFS_LAYER)).unwrap().ino();
    snapshots.commit("two", "key", None, Labels::new()).await.unwrap();
    assert_eq!(fs::metadata(place.join(EROFS_LAYER)).unwrap().ino(), made);
    assert!(!place.join(EROFS_MARK).exists() && fs::read_dir(place.join("fs")).unwrap().next().is_none());
}

#[tokio::test]
async fn layers_made_side_by_side_are_put_upon_each_other_at_commit() {
    let dir = tempfile::tempdir().unwrap();
    let snapshots = open(dir.path(), ErofsConfig::default());
    layer(&snapshots, "one", None, None, "file").await;
    layer(&snapshots, "two", None, Some("one"), "file").await;
    layer(&snapshots, "three", None, Some("two"), "other").await;
    let view = snapshots.view("view", Some("three"), Labels::new()).await.unwrap();
    let tree = Tree::new(&view).unwrap();
    assert_eq!(
        [fs::read(tree.path().join("file")).unwrap(), fs::read(tree.path().join("other")).unwrap()],
        [b"two".to_vec(), b"three".to_vec()]
    );
    assert!(snapshots.capabilities().contains(&"rebase"));
}

#[tokio::test]
async fn an_immutable_layer_cannot_be_removed_but_by_its_snapshotter() {
    let dir = tempfile::tempdir().unwrap();
    let snapshots = open(dir.path(), ErofsConfig { immutable: true, ..ErofsConfig::default() });
    layer(&snapshots, "one", None, None, "a").await;
    let source = snapshots.view("view", Some("one"), Labels::new()).await.unwrap()[0].source.clone();
    let refused = fs::remove_file(&source).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::PermissionDenied);
    snapshots.remove("view").await.unwrap();
    snapshots.remove("one").await.unwrap();
    snapshots.cleanup().await.unwrap();
    assert!(!Path::new(&source).exists());
}

/// mkfs.ext4 as the mount manager runs it.
fn make_file_system(mount: &Mount) {
    let size: u64 = option(mount, "X-containerd.mkfs.size=").unwrap().parse().unwrap();
    File::create(&mount.source).unwrap().set_len(size).unwrap();
    let made = std::process::Command::new("mkfs.ext4").args(["-q", &mount.source]).status().unwrap();
    assert!(made.success());
}

#[tokio::test]
async fn with_a_size_what_is_written_goes_to_a_file_system_of_that_size() {
    let dir = tempfile::tempdir().unwrap();
    let snapshots = open(dir.path(), ErofsConfig { default_size: 16 << 20, ..ErofsConfig::default() });
    let labels = |size: &str| Labels::from([(MAX_SIZE_LABEL.to_owned(), size.to_owned())]);
    let sizes = [("", 16 << 20), ("8388608", 8 << 20), ("0", 16 << 20), ("8M", 16 << 20)];
    for (number, (size, expected)) in sizes.into_iter().enumerate() {
        let mounts = snapshots.prepare(&format!("key-{number}"), None, labels(size)).await.unwrap();
        assert_eq!(mounts[0].kind, "mkfs/ext4");
        assert_eq!(option(&mounts[0], "X-containerd.mkfs.size="), Some(expected.to_string().as_str()), "{size:?}");
    }
    let bottom = snapshots.mounts("key-0").await.unwrap();
    make_file_system(&bottom[0]);
    fs::write(Tree::new(&bottom).unwrap().path().join("file"), "below").unwrap();
    snapshots.commit("layer", "key-0", None, Labels::new()).await.unwrap();
    assert!(!Path::new(&bottom[0].source).exists());

    let top = snapshots.prepare("top", Some("layer"), Labels::new()).await.unwrap();
    make_file_system(&top[0]);
    let tree = Tree::new(&top).unwrap();
    assert_eq!(fs::read(tree.path().join("file")).unwrap(), b"below");
    let full = fs::write(tree.path().join("large"), vec![1; 32 << 20]).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
}

#[test]
fn a_seal_that_the_kernel_does_not_have_is_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    if gantry_mount::verity::works_in(dir.path()) {
        return;
    }
    let refused = Erofs::open(dir.path(), ErofsConfig { verity: true, ..ErofsConfig::default() }).unwrap_err();
    assert!(matches!(&refused, Error::Unusable { reason, .. } if reason.contains("fs-verity")), "{refused}");
    assert_eq!(refused.kind(), ErrorKind::FailedPrecondition);
}
