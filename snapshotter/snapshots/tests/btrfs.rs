//! The contract on btrfs, in a file on a loop device and mount namespaces of the tests' own. Needs root, a kernel with
//! btrfs, and mkfs.btrfs: without it nothing is tested.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use gantry_mount::Tree;
use gantry_snapshots::{Btrfs, Error, Snapshotter};
use gantry_types::{ErrorKind, HasKind, Labels};
use nix::mount::MsFlags;
use nix::sched::CloneFlags;

fn has_btrfs() -> bool {
    let known = fs::read_to_string("/proc/filesystems").unwrap();
    known.contains("\tbtrfs\n") && Command::new("mkfs.btrfs").arg("--version").output().is_ok()
}

/// Runs `test` in a thread for which the directory of temporary files is on btrfs.
fn on_btrfs(test: impl FnOnce() + Send + 'static) {
    if !has_btrfs() {
        return;
    }
    let run = move || {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(512 << 20).unwrap();
        let made = Command::new("mkfs.btrfs").arg("-q").arg(image.path()).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        nix::sched::unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        nix::mount::mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        let mounted =
            Command::new("mount").args(["-o", "loop"]).arg(image.path()).arg(std::env::temp_dir()).output().unwrap();
        assert!(mounted.status.success(), "{}", String::from_utf8_lossy(&mounted.stderr));
        test();
        nix::mount::umount2(&std::env::temp_dir(), nix::mount::MntFlags::MNT_DETACH).unwrap();
    };
    if let Err(panic) = std::thread::spawn(run).join() {
        std::panic::resume_unwind(panic);
    }
}

fn open(root: &Path) -> Arc<dyn Snapshotter> {
    Arc::new(Btrfs::open(root).unwrap())
}

macro_rules! contract_on_btrfs {
    ($($name:ident),*) => {
        $(
            #[test]
            fn $name() {
                on_btrfs(|| gantry_snapshots::suite::run(open, gantry_snapshots::suite::$name));
            }
        )*
    };
}

contract_on_btrfs!(
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

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

fn temporary() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    (dir, root)
}

#[test]
fn only_what_differs_from_the_parent_is_counted() {
    on_btrfs(|| {
        let (_dir, root) = temporary();
        let snapshots = open(&root);
        block_on(async {
            let write = |mounts: &[gantry_types::Mount], name: &str, size: usize| {
                let tree = Tree::new(mounts).unwrap();
                let file = tree.path().join(name);
                fs::write(&file, vec![1; size]).unwrap();
                File::open(&file).unwrap().sync_all().unwrap();
            };
            write(&snapshots.prepare("a", None, Labels::new()).await.unwrap(), "large", 4 << 20);
            snapshots.commit("one", "a", None, Labels::new()).await.unwrap();
            write(&snapshots.prepare("b", Some("one"), Labels::new()).await.unwrap(), "small", 64 << 10);
            snapshots.commit("two", "b", None, Labels::new()).await.unwrap();
            let (one, two) = (snapshots.usage("one").await.unwrap(), snapshots.usage("two").await.unwrap());
            assert!(one.size >= 4 << 20 && two.size < 1 << 20 && two.inodes == 2, "{one:?} {two:?}");
        });
    });
}

#[test]
fn a_removed_snapshot_leaves_no_subvolume_behind() {
    on_btrfs(|| {
        let (dir, root) = temporary();
        let snapshots = open(&root);
        block_on(async {
            snapshots.prepare("a", None, Labels::new()).await.unwrap();
            snapshots.commit("one", "a", None, Labels::new()).await.unwrap();
            snapshots.prepare("b", Some("one"), Labels::new()).await.unwrap();
            snapshots.remove("b").await.unwrap();
            snapshots.remove("one").await.unwrap();
            snapshots.cleanup().await.unwrap();
        });
        let list = Command::new("btrfs").args(["subvolume", "list"]).arg(dir.path()).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&list.stdout), "", "{}", String::from_utf8_lossy(&list.stderr));
    });
}

#[test]
fn elsewhere_it_says_what_it_lies_on() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let refused = Btrfs::open(&dir.path().join("root")).unwrap_err();
    assert!(matches!(&refused, Error::Unusable { reason, .. } if reason.contains("not on btrfs")), "{refused}");
    assert_eq!(refused.kind(), ErrorKind::FailedPrecondition);
}
