//! Plain archives of GNU tar, in each of its formats, unpacked by it and by us alike; and ours by it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use common::remove;
use gantry_layer::{DiffOptions, Times, apply, diff, tree};

fn shell(dir: &Path, script: &str) {
    let output = Command::new("sh").args(["-ec", script]).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A directory `src` with one of everything.
fn sources() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    shell(
        dir.path(),
        r#"
        mkdir src; cd src
        mkdir -p deep/er/est "$(printf 'd%.0s' $(seq 90))/$(printf 'e%.0s' $(seq 90))/$(printf 'f%.0s' $(seq 90))"
        echo content > deep/er/est/file
        head -c 300000 /dev/urandom > large
        : > empty
        ln large linked; ln -s large symlink; ln -s "$(printf 'x%.0s' $(seq 150))" longlink; ln symlink linked-symlink
        mkfifo pipe; mknod null c 1 3; mknod disk b 8 1
        touch "ünïcode name" "$(printf 'n%.0s' $(seq 200))"
        chmod 4755 large; chmod 3777 deep; chmod 0 empty
        chown 1000:2000 deep/er/est/file; chown -h 5:6 symlink
        touch -d '2001-02-03 04:05:06.789' large; touch -h -d @77.5 symlink
        truncate -s 5000000 sparse; printf middle | dd of=sparse bs=1 seek=2000000 conv=notrunc status=none
        truncate -s 1000000 hole
        for n in $(seq 0 2 60); do printf x | dd of=holes bs=1 seek=$((n * 65536)) conv=notrunc status=none; done
        touch -d @1000 .
        "#,
    );
    dir
}

fn unpacked_alike(options: &str) {
    let dir = sources();
    shell(dir.path(), &format!("tar -C src {options} --sort=name -cf layer.tar ."));
    shell(dir.path(), "mkdir theirs ours; tar -C theirs --numeric-owner --xattrs -pxf layer.tar");
    let tar = fs::File::open(dir.path().join("layer.tar")).unwrap();
    apply(tar, &dir.path().join("ours"), &remove()).unwrap();
    let difference = tree::difference(&dir.path().join("theirs"), &dir.path().join("ours")).unwrap();
    assert!(difference.is_empty(), "{options}: {difference:#?}");
}

#[test]
fn gnu_archives_unpack_alike() {
    unpacked_alike("--format=gnu");
}

#[test]
fn pax_archives_unpack_alike() {
    unpacked_alike("--format=posix --xattrs");
}

#[test]
fn sparse_archives_of_all_formats_unpack_alike_and_stay_sparse() {
    for options in [
        "--format=gnu -S",
        "--format=posix -S --sparse-version=0.0",
        "--format=posix -S --sparse-version=0.1",
        "--format=posix -S --sparse-version=1.0",
    ] {
        unpacked_alike(options);
    }
    let dir = sources();
    shell(dir.path(), "tar -C src -S -cf layer.tar sparse hole holes; mkdir ours");
    let tar = fs::File::open(dir.path().join("layer.tar")).unwrap();
    apply(tar, &dir.path().join("ours"), &remove()).unwrap();
    let metadata = fs::metadata(dir.path().join("ours/sparse")).unwrap();
    assert!(metadata.blocks() * 512 < 100_000, "{} blocks", metadata.blocks());
}

#[test]
fn gnu_tar_unpacks_our_layers_alike() {
    let dir = sources();
    let mut layer = Vec::new();
    let options = DiffOptions { times: Times::Nanoseconds, ..DiffOptions::default() };
    diff(None, &dir.path().join("src"), &mut layer, &options).unwrap();
    fs::write(dir.path().join("layer.tar"), layer).unwrap();
    shell(dir.path(), "mkdir theirs; tar -C theirs --numeric-owner --xattrs --xattrs-include='*' -pxf layer.tar");
    let difference = tree::difference(&dir.path().join("src"), &dir.path().join("theirs")).unwrap();
    assert!(difference.is_empty(), "{difference:#?}");
}

#[test]
fn archives_written_by_another_library_unpack() {
    let dir = sources();
    let mut builder = tar::Builder::new(Vec::new());
    builder.follow_symlinks(false);
    for name in ["deep", "large", "empty", "symlink", "longlink"] {
        let path = dir.path().join("src").join(name);
        match path.symlink_metadata().unwrap().is_dir() {
            true => builder.append_dir_all(name, path).unwrap(),
            false => builder.append_path_with_name(path, name).unwrap(),
        }
    }
    let layer = builder.into_inner().unwrap();
    fs::create_dir(dir.path().join("ours")).unwrap();
    apply(&layer[..], &dir.path().join("ours"), &remove()).unwrap();
    assert_eq!(fs::read(dir.path().join("src/large")).unwrap(), fs::read(dir.path().join("ours/large")).unwrap());
    assert_eq!(fs::read_to_string(dir.path().join("ours/deep/er/est/file")).unwrap(), "content\n");
}
