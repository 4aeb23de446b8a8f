//! Images as the kernel shows them: the same trees as the same layers in directories. Needs root and a kernel with EROFS
//! that mounts files (Linux 6.12).
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs::{self, File};
use std::path::Path;

use common::{Sandbox, Tar, header, overlay, reason};
use gantry_layer::tree::{difference, listing};
use gantry_layer::{ApplyError, Control, Options, Reason, apply, image_of_directory, image_of_tar};
use gantry_mount::Tree;
use gantry_types::Mount;
use proptest::prelude::*;
use rustix::fs::{XattrFlags, getxattr, setxattr};

fn mounted(image: &Path) -> Tree {
    let mount = Mount {
        kind: "erofs".into(),
        source: image.display().to_string(),
        options: vec!["ro".into()],
        ..Mount::default()
    };
    Tree::new(&[mount]).unwrap_or_else(|error| panic!("{}: {error}", image.display()))
}

fn new_file(path: &Path) -> File {
    File::options().read(true).write(true).create_new(true).open(path).unwrap()
}

fn make(tar: &[u8], path: &Path, options: &Options) -> Result<(), ApplyError> {
    image_of_tar(tar, &new_file(path), options).map(drop)
}

/// What erofs-utils say of an image, where they are there.
fn fsck(image: &Path) {
    let Ok(output) = std::process::Command::new("fsck.erofs").arg(image).output() else { return };
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Insists that the image of a layer shows what its directory holds, and so does the image of that directory.
fn agree(tar: &[u8]) {
    let sandbox = Sandbox::new();
    let options = overlay(&[]);
    let applied = apply(tar, &sandbox.root(), &options);
    let (image, again) = (sandbox.outer().join("image"), sandbox.outer().join("again"));
    let made = make(tar, &image, &options);
    assert_eq!(applied.is_ok(), made.is_ok(), "{applied:?} {made:?}");
    if applied.is_err() {
        return;
    }
    image_of_directory(&sandbox.root(), &new_file(&again), &Control::default()).unwrap();
    for image in [&image, &again] {
        fsck(image);
        let tree = mounted(image);
        let mut lines = difference(&sandbox.root(), &tree.path()).unwrap();
        // A directory no entry described has the time when it was made; so has a whiteout.
        lines.retain(|line| !line.contains("whiteout"));
        assert_eq!(lines, Vec::<String>::new());
    }
}

fn long(letter: &str, length: usize) -> String {
    letter.repeat(length)
}

#[test]
fn a_layer_of_every_kind_of_file_is_the_same_tree_as_in_a_directory() {
    let mut tar =
        Tar::new().dir("etc").file("etc/hosts", "127.0.0.1").symlink("etc/link", "hosts").dir("dev").dir("empty");
    let mut device = header(b'3', "dev/null", "", 0);
    device.set_device_major(1).unwrap();
    device.set_device_minor(3).unwrap();
    device.set_cksum();
    tar = tar.raw(&device, b"");
    let mut block = header(b'4', "dev/sd", "", 0);
    block.set_device_major(259).unwrap();
    block.set_device_minor(70_000).unwrap();
    block.set_cksum();
    tar = tar.raw(&block, b"").entry(b'6', "dev/fifo", "", b"");
    let mut owned = header(b'0', "etc/owned", "", 3);
    owned.set_mode(0o6755);
    owned.set_uid(70_000);
    owned.set_gid(4_000_000);
    owned.set_cksum();
    tar = tar.raw(&owned, b"abc").link("etc/same", "etc/hosts").link("etc/third", "etc/hosts");
    tar =
        tar.pax(&[("SCHILY.xattr.user.colour", b"red\0blue"), ("mtime", b"1000.123456789")]).file("etc/coloured", "x");
    tar = tar
        .pax(&[("SCHILY.xattr.security.capability", b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0")])
        .file("ping", "elf");
    agree(&tar.end());
}

#[test]
fn contents_of_every_length_about_a_block_come_back() {
    let mut tar = Tar::new();
    for length in [0, 1, 31, 32, 63, 2000, 3999, 4031, 4032, 4033, 4095, 4096, 4097, 8191, 8192, 8193, 12_345, 300_000]
    {
        let content: Vec<u8> = (0..length).map(|at: u32| (at * 7 + at / 251) as u8).collect();
        tar = tar.entry(b'0', &format!("file-{length}"), "", &content);
    }
    agree(&tar.end());
}

#[test]
fn large_directories_and_long_names_are_found_by_name() {
    let mut tar = Tar::new().dir("d");
    for number in 0..3000 {
        tar = tar.file(&format!("d/{number}"), "");
    }
    for letter in ["a", "b", "c", "+", "~"] {
        let name = format!("d/{}", long(letter, 90));
        tar = tar.file(&name, "long").symlink(&format!("{letter}l"), &long(letter, 99));
    }
    let path = long("p", 255);
    tar = tar.pax(&[("path", path.as_bytes()), ("linkpath", long("t/", 2000).as_bytes())]).symlink("x", "y");
    agree(&tar.end());
}

#[test]
fn later_entries_take_the_place_of_earlier_ones() {
    let tar = Tar::new().dir("a").file("a/b", "1").file("a", "file now").file("c", "1").dir("c").file("c/d", "2");
    agree(
        &tar.symlink("e", "c").file("e/through", "3").file("f", "1").link("g", "f").file("f", "2").link("f", "g").end(),
    );
}

#[test]
fn whiteouts_and_opaque_directories_are_those_of_an_overlay() {
    let sandbox = Sandbox::new();
    let image = sandbox.outer().join("image");
    let tar = Tar::new()
        .dir("d")
        .file("d/new", "n")
        .file("d/.wh..wh..opq", "")
        .file(".wh.gone", "")
        .dir("e")
        .file(".wh.e", "");
    make(&tar.end(), &image, &overlay(&[])).unwrap();
    fsck(&image);
    let tree = mounted(&image);
    let lines = listing(&tree.path()).unwrap();
    assert!(
        lines.iter().any(|line| line.starts_with("\"gone\" character device 0000 0:0") && line.contains("device 0x0")),
        "{lines:?}"
    );
    for (name, opaque) in [("d", true), ("e", true), ("", false)] {
        let mut value = [0; 2];
        let found = getxattr(tree.path().join(name), "trusted.overlay.opaque", &mut value[..]);
        assert_eq!(found.is_ok_and(|length| &value[..length] == b"y"), opaque, "{name:?}");
    }
}

#[test]
fn a_layer_that_needs_those_below_says_so() {
    let alone = Options { standalone: true, ..overlay(&[]) };
    let undescribed = Tar::new().file("usr/share/file", "x").end();
    let described = Tar::new().file("usr/file", "x").dir("usr").end();
    let linked = Tar::new().link("new", "of/a/lower/layer").end();
    for (tar, needs) in [(undescribed, true), (described, false), (linked, true)] {
        let sandbox = Sandbox::new();
        let made = make(&tar, &sandbox.outer().join("image"), &alone);
        let applied = apply(&tar[..], &sandbox.root(), &alone);
        assert_eq!(made.is_err(), needs);
        assert_eq!(applied.is_err(), needs);
        if needs {
            assert!(matches!(made.unwrap_err().reason, Reason::NeedsLower));
            assert!(matches!(reason(applied), Reason::NeedsLower));
        }
    }
}

#[test]
fn the_same_layer_is_the_same_image_to_the_byte() {
    let sandbox = Sandbox::new();
    let tar = Tar::new().dir("a").file("a/b", "content").link("c", "a/b").symlink("d", "a").end();
    let images = ["one", "two"].map(|name| sandbox.outer().join(name));
    images.iter().for_each(|image| make(&tar, image, &overlay(&[])).unwrap());
    assert_eq!(fs::read(&images[0]).unwrap(), fs::read(&images[1]).unwrap());
}

#[test]
fn a_hole_of_a_gigabyte_takes_no_space() {
    use std::os::unix::fs::MetadataExt;
    let sandbox = Sandbox::new();
    fs::write(sandbox.root().join("sparse"), "start").unwrap();
    let file = File::options().write(true).open(sandbox.root().join("sparse")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"end", 1 << 30).unwrap();
    let image = sandbox.outer().join("image");
    image_of_directory(&sandbox.root(), &new_file(&image), &Control::default()).unwrap();
    assert!(fs::metadata(&image).unwrap().blocks() * 512 < 1 << 20);
    let tree = mounted(&image);
    let shown = File::open(tree.path().join("sparse")).unwrap();
    let mut end = [1; 5];
    std::os::unix::fs::FileExt::read_exact_at(&shown, &mut end, (1 << 30) - 2).unwrap();
    assert_eq!(&end, b"\0\0end");
}

#[test]
fn marks_of_an_overlay_that_mean_nothing_elsewhere_are_left_out() {
    let sandbox = Sandbox::new();
    fs::create_dir(sandbox.root().join("d")).unwrap();
    for (name, value) in [("trusted.overlay.origin", "x"), ("trusted.overlay.opaque", "y"), ("trusted.mine", "z")] {
        setxattr(sandbox.root().join("d"), name, value.as_bytes(), XattrFlags::empty()).unwrap();
    }
    let image = sandbox.outer().join("image");
    image_of_directory(&sandbox.root(), &new_file(&image), &Control::default()).unwrap();
    let tree = mounted(&image);
    let has = |name: &str| getxattr(tree.path().join("d"), name, &mut [0; 8][..]).is_ok();
    assert_eq!(
        [has("trusted.overlay.origin"), has("trusted.overlay.opaque"), has("trusted.mine")],
        [false, true, true]
    );
}

#[test]
fn a_link_cannot_take_the_place_of_a_directory_around_its_target() {
    let sandbox = Sandbox::new();
    let bytes = Tar::new().file("a/b/c", "x").link("a", "a/b/c").end();
    let image = sandbox.outer().join("image");
    let error = make(&bytes, &image, &overlay(&[])).unwrap_err().to_string();
    assert!(error.contains("a/b/c"), "{error}");
    assert!(apply(&bytes[..], &sandbox.root(), &overlay(&[])).is_err());
    // Beside it there is nothing wrong with it.
    let bytes = Tar::new().file("a/b/c", "x").dir("d").link("d", "a/b/c").end();
    make(&bytes, &sandbox.outer().join("other"), &overlay(&[])).unwrap();
}

/// One entry of a made-up layer.
fn any_entry() -> impl Strategy<Value = (u8, String, String)> {
    let path = "[ab](/[abc]){0,2}";
    (prop_oneof![Just(b'0'), Just(b'5'), Just(b'2'), Just(b'1'), Just(b'w')], path, path)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn any_layer_is_the_same_tree_as_in_a_directory(entries in proptest::collection::vec(any_entry(), 1..16)) {
        let mut tar = Tar::new();
        for (kind, path, other) in entries {
            tar = match kind {
                b'0' => tar.file(&path, &other),
                b'5' => tar.dir(&path),
                b'2' => tar.symlink(&path, &other),
                b'1' => tar.link(&path, &other),
                _ => {
                    let (dir, name) = path.rsplit_once('/').unwrap_or(("", &path));
                    tar.file(&format!("{dir}/.wh.{name}"), "")
                }
            };
        }
        let names = |lines: Vec<String>| -> Vec<String> {
            // Made-up layers name directories without describing them, whose times differ.
            lines.into_iter().map(|line| line.split_whitespace().take(4).collect::<Vec<_>>().join(" ")).collect()
        };
        let sandbox = Sandbox::in_memory();
        let bytes = tar.end();
        let applied = apply(&bytes[..], &sandbox.root(), &overlay(&[]));
        let outer = tempfile::tempdir().unwrap();
        let image = outer.path().join("image");
        let made = make(&bytes, &image, &overlay(&[]));
        prop_assert_eq!(applied.is_ok(), made.is_ok(), "{:?} {:?}", applied, made);
        if applied.is_ok() {
            let tree = mounted(&image);
            prop_assert_eq!(names(listing(&sandbox.root()).unwrap()), names(listing(&tree.path()).unwrap()));
        }
    }
}
