//! The list of files that unpacking leaves: it fits what was unpacked, and tells what has changed since.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use common::{Sandbox, Tar, overlay, remove};
use gantry_layer::{CheckError, Control, Options, apply, check};

/// Unpacks into `root` with a list; gives the list.
fn unpack(tar: &[u8], root: &Path, options: Options) -> PathBuf {
    let sums = root.with_extension("sums");
    apply(tar, root, &Options { sums: Some(sums.clone()), ..options }).unwrap();
    sums
}

fn differences(root: &Path, sums: &Path, whole: bool) -> Vec<String> {
    let checked = check(root, sums, whole, &Control::default()).unwrap();
    checked.differences.iter().map(ToString::to_string).collect()
}

/// Something of everything, with entries that come twice and change their type.
fn layer() -> Tar {
    Tar::new()
        .dir("d")
        .file("d/one", "1")
        .link("d/two", "d/one")
        .symlink("d/to", "one")
        .entry(b'3', "null", "", b"")
        .entry(b'6', "pipe", "", b"")
        .file("deep/made/file", "x")
        .file("twice", "first")
        .file("twice", "second, longer")
        .dir("becomes")
        .file("becomes/inner", "gone")
        .file("becomes", "a file")
        .file("was", "a file")
        .dir("was")
        .file("was/inner", "")
        .link("is/late", "twice")
        .file("hidden/.wh.lower", "")
        .file("opaque/.wh..wh..opq", "")
        .file("opaque/new", "n")
        .pax(&[("mtime", b"1700000000.5")])
        .file("later", "with a time")
        .file("empty", "")
}

#[test]
fn what_was_unpacked_fits_its_list_with_either_kind_of_whiteouts() {
    for options in [remove(), overlay(&[])] {
        let sandbox = Sandbox::new();
        let sums = unpack(&layer().end(), &sandbox.root(), options);
        let checked = check(&sandbox.root(), &sums, true, &Control::default()).unwrap();
        assert_eq!(checked.differences, []);
        assert!(checked.entries > 15 && checked.bytes > 30, "{checked:?}");
    }
}

#[test]
fn files_copied_up_for_a_hard_link_are_listed_too() {
    let lower = Sandbox::new();
    lower.apply(&Tar::new().dir("l").file("l/file", "from below").symlink("l/link", "file").end()).unwrap();
    let sandbox = Sandbox::new();
    let tar = Tar::new().link("new", "l/file").link("newlink", "l/link").end();
    let sums = unpack(&tar, &sandbox.root(), overlay(&[&lower.root()]));
    assert_eq!(differences(&sandbox.root(), &sums, true), Vec::<String>::new());
    fs::write(sandbox.root().join("new"), "From below").unwrap();
    assert!(!differences(&sandbox.root(), &sums, true).is_empty());
}

#[test]
fn every_change_is_told_by_its_path() {
    type Change = fn(&Path);
    let changes: [(&str, Change); 11] = [
        ("twice: has other content", |root| {
            let path = root.join("twice");
            let time = fs::metadata(&path).unwrap().modified().unwrap();
            fs::write(&path, "second, lOnger").unwrap();
            fs::File::open(&path).unwrap().set_modified(time).unwrap();
        }),
        ("twice: has another size", |root| fs::write(root.join("twice"), "").unwrap()),
        ("later: has another time", |root| fs::write(root.join("later"), "with a time").unwrap()),
        ("d/one: is missing", |root| fs::remove_file(root.join("d/one")).unwrap()),
        ("was/inner: is missing", |root| fs::remove_dir_all(root.join("was")).unwrap()),
        ("empty: has another mode", |root| {
            fs::set_permissions(root.join("empty"), fs::Permissions::from_mode(0o600)).unwrap();
        }),
        ("empty: has another owner", |root| std::os::unix::fs::chown(root.join("empty"), Some(9), None).unwrap()),
        ("d/to: leads elsewhere", |root| {
            fs::remove_file(root.join("d/to")).unwrap();
            symlink("two", root.join("d/to")).unwrap();
        }),
        ("null: is of another type", |root| {
            fs::remove_file(root.join("null")).unwrap();
            fs::write(root.join("null"), "").unwrap();
        }),
        ("was/more: was not unpacked here", |root| fs::write(root.join("was/more"), "").unwrap()),
        ("d/two: is no link to the same file any more", |root| {
            fs::remove_file(root.join("d/two")).unwrap();
            fs::write(root.join("d/two"), "1").unwrap();
        }),
    ];
    for (expected, change) in changes {
        let sandbox = Sandbox::new();
        let sums = unpack(&layer().end(), &sandbox.root(), overlay(&[]));
        change(&sandbox.root());
        let told = differences(&sandbox.root(), &sums, true);
        assert!(told.iter().any(|told| told == expected), "{expected}: {told:?}");
    }
}

#[test]
fn a_lost_opaque_mark_is_told() {
    let sandbox = Sandbox::new();
    let sums = unpack(&layer().end(), &sandbox.root(), overlay(&[]));
    rustix::fs::removexattr(sandbox.root().join("opaque"), "trusted.overlay.opaque").unwrap();
    let told = differences(&sandbox.root(), &sums, true);
    assert_eq!(told, ["opaque: does not hide what is below it any more"]);
}

#[test]
fn a_list_that_is_missing_cut_or_changed_is_not_believed() {
    let sandbox = Sandbox::new();
    let sums = unpack(&layer().end(), &sandbox.root(), remove());
    let whole = fs::read(&sums).unwrap();
    let check = || check(&sandbox.root(), &sums, true, &Control::default());
    for length in [0, 3, 20, whole.len() / 2, whole.len() - 1] {
        fs::write(&sums, &whole[..length]).unwrap();
        assert!(matches!(check(), Err(CheckError::BadList)), "{length} bytes");
    }
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    fs::write(&sums, &flipped).unwrap();
    assert!(matches!(check(), Err(CheckError::BadList)));
    fs::remove_file(&sums).unwrap();
    assert!(matches!(check(), Err(CheckError::NoList)));
}

#[test]
fn a_root_that_is_gone_is_a_difference_and_a_stopped_check_ends() {
    let sandbox = Sandbox::new();
    let sums = unpack(&layer().end(), &sandbox.root(), remove());
    let control = Control::default();
    control.cancel();
    assert!(matches!(check(&sandbox.root(), &sums, true, &control), Err(CheckError::Cancelled)));
    fs::remove_dir_all(sandbox.root()).unwrap();
    assert_eq!(differences(&sandbox.root(), &sums, true).len(), 1);
}
