//! Random changes in random layers: overlay and plain copies must show the same trees.

#![allow(clippy::unwrap_used)]

use std::ffi::CString;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use gantry_snapshots::suite::{describe, layer, with};
use gantry_snapshots::{Native, Overlay, OverlayConfig, Snapshotter};
use gantry_types::Labels;
use proptest::prelude::*;
use rustix::fs::{CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};

#[derive(Clone, Debug)]
enum Op {
    Write(PathBuf, u8),
    Directory(PathBuf),
    Symlink(PathBuf, u8),
    Special(PathBuf),
    Link(PathBuf, PathBuf),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
    Replace(PathBuf),
    Mode(PathBuf, u32),
    Owner(PathBuf, u32),
    Attribute(PathBuf, u8),
    Time(PathBuf, i64),
}

fn path() -> impl Strategy<Value = PathBuf> {
    let name = proptest::sample::select(&["a", "b", "c"][..]);
    proptest::collection::vec(name, 1..4).prop_map(|names| names.into_iter().collect())
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (path(), any::<u8>()).prop_map(|(p, n)| Op::Write(p, n)),
        4 => path().prop_map(Op::Directory),
        1 => (path(), any::<u8>()).prop_map(|(p, n)| Op::Symlink(p, n)),
        1 => path().prop_map(Op::Special),
        1 => (path(), path()).prop_map(|(a, b)| Op::Link(a, b)),
        2 => (path(), path()).prop_map(|(a, b)| Op::Rename(a, b)),
        2 => path().prop_map(Op::Remove),
        1 => path().prop_map(Op::Replace),
        1 => (path(), proptest::sample::select(&[0o755u32, 0o4711, 0o1777, 0o600][..])).prop_map(|(p, m)| Op::Mode(p, m)),
        1 => (path(), 0u32..3).prop_map(|(p, o)| Op::Owner(p, o)),
        1 => (path(), any::<u8>()).prop_map(|(p, n)| Op::Attribute(p, n)),
        1 => (path(), 1i64..1_000_000).prop_map(|(p, t)| Op::Time(p, t)),
    ]
}

/// Whether the kernel's overlay, as it is used here, does what a plain file system does: it does not move directories of
/// lower layers (EXDEV), and it parts the names of a file of a lower layer when one of them is changed.
fn is_common(root: &Path, op: &Op) -> bool {
    let meta = |path: &PathBuf| fs::symlink_metadata(root.join(path));
    let single = |path: &PathBuf| meta(path).map_or(true, |meta| meta.is_dir() || meta.nlink() == 1);
    let no_directory = |path: &PathBuf| !meta(path).is_ok_and(|meta| meta.is_dir());
    match op {
        Op::Rename(from, to) => no_directory(from) && single(from) && no_directory(to) && from != to,
        Op::Link(from, _) => single(from) && !meta(from).is_ok_and(|meta| meta.is_symlink()),
        Op::Write(path, _) | Op::Mode(path, _) | Op::Owner(path, _) | Op::Attribute(path, _) | Op::Time(path, _) => {
            single(path)
        }
        _ => true,
    }
}

fn apply(root: &Path, op: &Op) -> io::Result<()> {
    let at = |path: &PathBuf| root.join(path);
    let no_link = |path: &PathBuf| match fs::symlink_metadata(at(path))?.is_symlink() {
        true => Err(io::Error::from(io::ErrorKind::InvalidInput)),
        false => Ok(()),
    };
    match op {
        Op::Write(path, n) => match fs::symlink_metadata(at(path)) {
            Ok(meta) if !meta.is_file() => Err(io::ErrorKind::InvalidInput.into()),
            _ => fs::write(at(path), n.to_string()),
        },
        Op::Directory(path) => fs::create_dir(at(path)),
        Op::Symlink(path, n) => symlink(format!("to-{n}"), at(path)),
        Op::Special(path) => {
            Ok(rustix::fs::mknodat(CWD, at(path), FileType::CharacterDevice, Mode::RUSR, rustix::fs::makedev(1, 3))?)
        }
        Op::Link(from, to) => fs::hard_link(at(from), at(to)),
        Op::Rename(from, to) => fs::rename(at(from), at(to)),
        Op::Remove(path) => remove(&at(path)),
        Op::Replace(path) => remove(&at(path)).and_then(|()| fs::create_dir(at(path))),
        Op::Mode(path, mode) => {
            no_link(path).and_then(|()| fs::set_permissions(at(path), Permissions::from_mode(*mode)))
        }
        Op::Owner(path, owner) => lchown(at(path), Some(*owner), Some(*owner)),
        Op::Attribute(path, n) => {
            no_link(path)?;
            Ok(rustix::fs::setxattr(at(path), "trusted.test", &[*n], XattrFlags::empty())?)
        }
        Op::Time(path, seconds) => {
            let time = Timespec { tv_sec: *seconds, tv_nsec: 5 };
            let path = CString::new(at(path).as_os_str().as_bytes())?;
            let times = Timestamps { last_access: time, last_modification: time };
            Ok(rustix::fs::utimensat(CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)?)
        }
    }
}

fn remove(path: &Path) -> io::Result<()> {
    if fs::symlink_metadata(path)?.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

async fn both(overlay: &dyn Snapshotter, native: &dyn Snapshotter, layers: &[Vec<Op>]) {
    let mut parent: Option<String> = None;
    for (i, ops) in layers.iter().enumerate() {
        let name = format!("layer-{i}");
        let mut done: Vec<(&Op, Option<i32>)> = Vec::new();
        layer(native, &name, parent.as_deref(), |root| {
            for op in ops {
                if is_common(root, op) {
                    done.push((op, apply(root, op).err().and_then(|error| error.raw_os_error())));
                }
            }
        })
        .await;
        layer(overlay, &name, parent.as_deref(), |root| {
            for (op, expected) in &done {
                let answer = apply(root, op).err().and_then(|error| error.raw_os_error());
                assert_eq!(answer, *expected, "{op:?} in layer {i}");
            }
        })
        .await;
        let (key, mut trees) = (format!("view-{i}"), Vec::new());
        for snapshots in [overlay, native] {
            let mounts = snapshots.view(&key, Some(&name), Labels::new()).await.unwrap();
            trees.push(with(&mounts, describe));
        }
        assert_eq!(trees[0], trees[1], "layer {i}, after {done:?}");
        parent = Some(name);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn overlay_and_copies_show_the_same_trees(
        layers in proptest::collection::vec(proptest::collection::vec(op(), 1..25), 1..5)
    ) {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let overlay = Overlay::open(&dir.path().join("overlay"), OverlayConfig::default()).unwrap();
        let native = Native::open(&dir.path().join("native")).unwrap();
        runtime.block_on(both(&overlay, &native, &layers));
    }
}
