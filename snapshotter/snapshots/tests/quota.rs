//! Limits of a snapshot's size on the file systems that hold to them. Needs a kernel with project quotas, mke2fs and mkfs.xfs:
//! run in the guest, with `--ignored`.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use gantry_snapshots::{MAX_SIZE_LABEL, Overlay, OverlayConfig, Snapshotter};

const MIB: u64 = 1 << 20;

/// A file system in a file, mounted until it is dropped.
struct Disk {
    dir: tempfile::TempDir,
}

impl Disk {
    fn new(make: &[&str], options: &str) -> Disk {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        File::create(&image).unwrap().set_len(512 * MIB).unwrap();
        run(Command::new(make[0]).args(&make[1..]).arg(&image));
        fs::create_dir(dir.path().join("m")).unwrap();
        run(Command::new("mount").args(["-o", &format!("loop,{options}")]).arg(&image).arg(dir.path().join("m")));
        Disk { dir }
    }

    fn overlay(&self) -> Overlay {
        Overlay::open(&self.dir.path().join("m/overlay"), OverlayConfig::default()).unwrap()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.dir.path().join("m")).status();
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn limited(bytes: u64) -> BTreeMap<String, String> {
    [(MAX_SIZE_LABEL.to_owned(), bytes.to_string())].into()
}

/// Where the only snapshot's own files lie.
fn upper(mounts: &[gantry_types::Mount]) -> PathBuf {
    let of = |key: &str, option: &String| option.strip_prefix(key).map(PathBuf::from);
    let upper = mounts[0].options.iter().find_map(|option| of("upperdir=", option));
    upper.unwrap_or_else(|| PathBuf::from(&mounts[0].source))
}

/// How many bytes, of `most`, a program that may not pass over quotas (without CAP_SYS_RESOURCE) can write to a new
/// file, and what it says of the rest.
fn written(path: &Path, most: u64) -> (u64, String) {
    let output = Command::new("setpriv")
        .args(["--bounding-set", "-sys_resource", "dd", "if=/dev/zero", "bs=64k", "status=none", "conv=fsync"])
        .args([format!("of={}", path.display()), format!("count={}", most >> 16)])
        .env("LC_ALL", "C")
        .output()
        .unwrap();
    (path.metadata().unwrap().len(), String::from_utf8_lossy(&output.stderr).into_owned())
}

async fn a_writer_is_stopped_at_its_limit_and_others_are_not(disk: Disk) {
    let overlay = disk.overlay();
    assert!(overlay.capabilities().contains(&"quota"));
    let small = upper(&overlay.prepare("small", None, limited(8 * MIB).into_iter().collect()).await.unwrap());
    let free = upper(&overlay.prepare("free", None, Default::default()).await.unwrap());

    let (count, error) = written(&small.join("a"), 64 * MIB);
    // ext4 answers EDQUOT; XFS says ENOSPC for projects.
    let told = ["quota exceeded", "No space left"].iter().any(|words| error.contains(words));
    assert!(told, "{error:?} after {count} bytes");
    assert!(count.abs_diff(8 * MIB) <= MIB, "{count} bytes of 8 MiB");
    assert_eq!(written(&free.join("a"), 32 * MIB), (32 * MIB, String::new()), "the neighbour goes on");

    let usage = overlay.usage("small").await.unwrap();
    assert_eq!(usage.inodes, 2, "its directory and the file");
    assert!(usage.size.abs_diff(8 * MIB) <= MIB, "{usage:?}");

    // The limit follows the label; a second opening knows it still.
    let mut info = overlay.stat("small").await.unwrap();
    info.labels = limited(24 * MIB).into_iter().collect();
    overlay.update(info, &["labels".to_owned()]).await.unwrap();
    drop(overlay);
    let overlay = disk.overlay();
    let (count, error) = written(&small.join("b"), 64 * MIB);
    assert!(!error.is_empty() && count.abs_diff(16 * MIB) <= MIB, "{count} bytes more, {error:?}");

    // What is committed is no limit to what stands on it.
    overlay.commit("layer", "small", None, Default::default()).await.unwrap();
    let above = overlay.prepare("above", Some("layer"), limited(MIB).into_iter().collect()).await.unwrap();
    let (count, error) = written(&upper(&above).join("c"), 8 * MIB);
    assert!(!error.is_empty() && count <= MIB, "{count} bytes, {error:?}");

    // Many come and go: each starts with nothing used.
    for round in 0..20 {
        let key = format!("round-{round}");
        let dir = upper(&overlay.prepare(&key, None, limited(2 * MIB).into_iter().collect()).await.unwrap());
        assert_eq!(written(&dir.join("a"), MIB), (MIB, String::new()), "round {round}");
        overlay.remove(&key).await.unwrap();
    }
    overlay.cleanup().await.unwrap();
}

#[tokio::test]
#[ignore = "needs project quotas in the kernel, and the programs that make file systems"]
async fn on_ext4_a_writer_is_stopped_at_its_limit_and_others_are_not() {
    let disk =
        Disk::new(&["mke2fs", "-q", "-t", "ext4", "-O", "project,quota", "-E", "quotatype=prjquota"], "prjquota");
    a_writer_is_stopped_at_its_limit_and_others_are_not(disk).await;
}

#[tokio::test]
#[ignore = "needs project quotas in the kernel, and the programs that make file systems"]
async fn on_xfs_a_writer_is_stopped_at_its_limit_and_others_are_not() {
    a_writer_is_stopped_at_its_limit_and_others_are_not(Disk::new(&["mkfs.xfs", "-q"], "pquota")).await;
}

#[tokio::test]
async fn where_the_file_system_counts_no_projects_a_limit_is_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    let overlay = Overlay::open(&dir.path().join("overlay"), OverlayConfig::default()).unwrap();
    if overlay.capabilities().contains(&"quota") {
        return;
    }
    for text in ["1024", "no number", "-1"] {
        let labels = [(MAX_SIZE_LABEL.to_owned(), text.to_owned())].into_iter().collect();
        let dir = upper(&overlay.prepare(text, None, labels).await.unwrap());
        assert_eq!(written(&dir.join("a"), 64 << 10), (64 << 10, String::new()));
        assert!(overlay.usage(text).await.unwrap().size >= 64 << 10);
        overlay.remove(text).await.unwrap();
    }
}
