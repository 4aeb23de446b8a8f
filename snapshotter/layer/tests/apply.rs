//! What well-meant layers become.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use common::{Sandbox, Tar, header, metadata, overlay, reason, remove};
use gantry_layer::{Compression, Compressor, Control, Options, Reason, apply, unpack};
use gantry_types::{Digest, ErrorKind, HasKind};
use std::io::{Read, Write};

#[test]
fn modes_owners_times_and_set_id_bits_are_as_archived() {
    let mut file = header(b'0', "f", "", 3);
    file.set_mode(0o4757);
    file.set_uid(1234);
    file.set_gid(70000);
    file.set_cksum();
    let mut dir = header(b'5', "d", "", 0);
    dir.set_mode(0o3777);
    dir.set_cksum();
    let mut inner = header(b'0', "d/inner", "", 0);
    inner.set_mode(0o666);
    inner.set_cksum();
    let tar = Tar::new().pax(&[("mtime", b"1700000000.123456789")]).raw(&file, b"abc").raw(&dir, b"").raw(&inner, b"");
    let sandbox = Sandbox::new();
    let applied = sandbox.apply(&tar.end()).unwrap();
    assert_eq!((applied.entries, applied.bytes), (3, 3));
    let f = metadata(&sandbox.root().join("f"));
    assert_eq!((f.mode() & 0o7777, f.uid(), f.gid()), (0o4757, 1234, 70000));
    assert_eq!((f.mtime(), f.mtime_nsec(), f.atime()), (1_700_000_000, 123_456_789, 1_700_000_000));
    let d = metadata(&sandbox.root().join("d"));
    assert_eq!((d.mode() & 0o7777, d.mtime()), (0o3777, 1000));
    assert_eq!(metadata(&sandbox.root().join("d/inner")).mode() & 0o7777, 0o666);
}

#[test]
fn a_set_group_id_directory_passes_nothing_on_that_the_archive_does_not_say() {
    let mut dir = header(b'5', "d", "", 0);
    dir.set_mode(0o2755);
    dir.set_gid(50);
    dir.set_cksum();
    let tar = Tar::new().raw(&dir, b"").file("d/f", "").dir("d/sub").symlink("d/l", "f").end();
    let sandbox = Sandbox::new();
    sandbox.apply(&tar).unwrap();
    for (name, mode) in [("d/f", 0o644), ("d/sub", 0o755)] {
        let metadata = metadata(&sandbox.root().join(name));
        assert_eq!((metadata.gid(), metadata.mode() & 0o7777), (0, mode), "{name}");
    }
    assert_eq!(metadata(&sandbox.root().join("d/l")).gid(), 0);
}

#[test]
fn times_before_the_epoch_become_the_epoch() {
    let sandbox = Sandbox::new();
    sandbox.apply(&Tar::new().pax(&[("mtime", b"-5.5")]).file("f", "").end()).unwrap();
    assert_eq!(metadata(&sandbox.root().join("f")).mtime(), 0);
}

#[test]
fn capabilities_survive_owner_and_content() {
    // Version 2, cap_net_bind_service=ep (linux/capability.h).
    let capability = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let mut file = header(b'0', "f", "", 4);
    file.set_uid(7);
    file.set_mode(0o2755);
    file.set_cksum();
    let tar = Tar::new().pax(&[("SCHILY.xattr.security.capability", capability)]).raw(&file, b"prog");
    let mut link = header(b'1', "same", "f", 0);
    link.set_uid(7);
    link.set_mode(0o2755);
    link.set_cksum();
    let sandbox = Sandbox::new();
    sandbox.apply(&tar.raw(&link, b"").end()).unwrap();
    let mut value = [0_u8; 64];
    let length = rustix::fs::lgetxattr(sandbox.root().join("f"), "security.capability", &mut value[..]).unwrap();
    assert_eq!(&value[..length], capability);
    assert_eq!(metadata(&sandbox.root().join("f")).nlink(), 2);
}

#[test]
fn devices_and_fifos_get_their_numbers_and_modes() {
    let mut null = header(b'3', "null", "", 0);
    null.set_device_major(1).unwrap();
    null.set_device_minor(3).unwrap();
    null.set_mode(0o666);
    null.set_cksum();
    let tar = Tar::new().raw(&null, b"").entry(b'6', "pipe", "", b"").end();
    let sandbox = Sandbox::new();
    sandbox.apply(&tar).unwrap();
    let null = metadata(&sandbox.root().join("null"));
    assert_eq!((null.rdev(), null.mode(), null.mtime()), (rustix::fs::makedev(1, 3), 0o020666, 1000));
    assert_eq!(metadata(&sandbox.root().join("pipe")).mode(), 0o010644);
}

#[test]
fn a_later_entry_replaces_an_earlier_of_any_type() {
    let add = |tar: Tar, kind: u8| match kind {
        0 => tar.file("x", "file"),
        1 => tar.dir("x").file("x/inner", ""),
        2 => tar.symlink("x", "target"),
        3 => tar.entry(b'6', "x", "", b""),
        _ => tar.file("other", "linked").link("x", "other"),
    };
    for first in 0..5 {
        for second in 0..5 {
            let sandbox = Sandbox::new();
            sandbox.apply(&add(add(Tar::new(), first), second).end()).unwrap();
            let alone = Sandbox::new();
            alone.apply(&add(Tar::new(), second).end()).unwrap();
            let one = |sandbox: &Sandbox| metadata(&sandbox.root().join("x")).mode();
            assert_eq!(one(&sandbox), one(&alone), "{first} then {second}");
            let listing = gantry_layer::tree::listing(&sandbox.root()).unwrap();
            let x = listing.iter().find(|line| line.starts_with("\"x\""));
            assert_eq!(x, gantry_layer::tree::listing(&alone.root()).unwrap().iter().find(|l| l.starts_with("\"x\"")));
        }
    }
}

#[test]
fn a_directory_keeps_its_time_though_files_come_later() {
    let sandbox = Sandbox::new();
    sandbox.apply(&Tar::new().dir("a").dir("a/b").file("a/b/f", "").file("a/g", "").end()).unwrap();
    assert_eq!(metadata(&sandbox.root().join("a")).mtime(), 1000);
    assert_eq!(metadata(&sandbox.root().join("a/b")).mtime(), 1000);
}

#[test]
fn the_time_of_a_directory_that_became_a_file_is_not_set() {
    let sandbox = Sandbox::new();
    let tar = Tar::new().dir("a").dir("a/b").pax(&[("mtime", b"2000")]).file("a", "").end();
    sandbox.apply(&tar).unwrap();
    assert_eq!(metadata(&sandbox.root().join("a")).mtime(), 2000);
}

#[test]
fn removals_spare_what_the_same_layer_brings_in_any_order() {
    let base = Tar::new()
        .dir("d")
        .file("d/old", "")
        .file("d/both", "old")
        .dir("d/sub")
        .file("d/sub/old", "")
        .file("gone", "")
        .end();
    let new = |tar: Tar| tar.file("d/both", "new").file("d/new", "").file("d/sub/new", "");
    let opaque = |tar: Tar| tar.file("d/.wh..wh..opq", "");
    for tar in [new(opaque(Tar::new().dir("d"))), opaque(new(Tar::new().dir("d"))), new(opaque(Tar::new()))] {
        let sandbox = Sandbox::new();
        sandbox.apply(&base).unwrap();
        sandbox.apply(&tar.file(".wh.gone", "").end()).unwrap();
        let names: Vec<String> = walk(&sandbox);
        assert_eq!(names, ["d", "d/both", "d/new", "d/sub", "d/sub/new"]);
        assert_eq!(sandbox.read("d/both"), "new");
    }
    let sandbox = Sandbox::new();
    sandbox.apply(&base).unwrap();
    sandbox.apply(&Tar::new().file("d/both", "new").file("d/.wh.both", "").file(".wh.d", "").end()).unwrap();
    assert_eq!(walk(&sandbox), ["d", "d/both", "gone"]);
}

#[test]
fn a_whiteout_of_a_directory_removes_all_of_it_and_of_nothing_does_nothing() {
    let sandbox = Sandbox::new();
    sandbox.apply(&Tar::new().file("d/e/f", "").symlink("l", "d").end()).unwrap();
    sandbox.apply(&Tar::new().file(".wh.d", "").file(".wh.l", "").file(".wh.absent", "").end()).unwrap();
    assert_eq!(walk(&sandbox), Vec::<String>::new());
}

#[test]
fn aufs_metadata_is_ignored() {
    let sandbox = Sandbox::new();
    let tar = Tar::new().dir(".wh..wh.plnk").file(".wh..wh.plnk/1.2", "").file(".wh..wh.aufs", "").file("f", "").end();
    sandbox.apply(&tar).unwrap();
    assert_eq!(walk(&sandbox), ["f"]);
}

#[test]
fn overlay_whiteouts_become_devices_and_opaque_attributes() {
    let sandbox = Sandbox::new();
    let tar = Tar::new().file("d/.wh.gone", "").file("o/.wh..wh..opq", "").file("o/f", "").file(".wh.r", "").dir("r");
    apply(&tar.end()[..], &sandbox.root(), &overlay(&[])).unwrap();
    let gone = metadata(&sandbox.root().join("d/gone"));
    assert_eq!((gone.mode() & 0o170000, gone.rdev()), (0o020000, 0));
    // A directory in place of what a whiteout of the same layer hides must not show it again.
    for name in ["o", "r"] {
        let mut value = [0_u8; 4];
        let length =
            rustix::fs::lgetxattr(sandbox.root().join(name), "trusted.overlay.opaque", &mut value[..]).unwrap();
        assert_eq!(&value[..length], b"y", "{name}");
    }
}

#[test]
fn a_directory_that_the_layer_does_not_name_looks_like_the_lower_one() {
    let (lower, upper) = (Sandbox::new(), Sandbox::new());
    let mut dir = header(b'5', "tmp", "", 0);
    dir.set_mode(0o1777);
    dir.set_uid(5);
    dir.set_cksum();
    lower.apply(&Tar::new().pax(&[("SCHILY.xattr.user.k", b"v")]).raw(&dir, b"").end()).unwrap();
    let options = overlay(&[&lower.root()]);
    apply(&Tar::new().file("tmp/f", "").file("fresh/f", "").end()[..], &upper.root(), &options).unwrap();
    let tmp = metadata(&upper.root().join("tmp"));
    assert_eq!((tmp.mode() & 0o7777, tmp.uid()), (0o1777, 5));
    assert!(rustix::fs::lgetxattr(upper.root().join("tmp"), "user.k", &mut [0_u8; 4][..]).is_ok());
    assert_eq!(metadata(&upper.root().join("fresh")).mode() & 0o7777, 0o755);
}

#[test]
fn the_file_that_finds_no_room_is_named_though_others_are_made_meanwhile() {
    let mount = gantry_types::Mount {
        kind: "tmpfs".to_owned(),
        source: "tmpfs".to_owned(),
        options: vec!["size=128k".to_owned()],
        ..gantry_types::Mount::default()
    };
    let small = gantry_mount::Tree::new(&[mount]).unwrap();
    let content = "x".repeat(16 << 10);
    let tar = (0..100).fold(Tar::new(), |tar, n| tar.file(&format!("f{n}"), &content)).end();
    let error = apply(&tar[..], &small.path(), &overlay(&[])).unwrap_err();
    assert!(matches!(&error.reason, Reason::Io { call: "write", .. }), "{error}");
    assert_eq!((error.entry.as_str(), error.kind()), ("f8", ErrorKind::ResourceExhausted), "{error}");
}

#[test]
fn directories_dressed_afterwards_are_those_of_a_layer_unpacked_with_the_lower_ones_at_hand() {
    let (top, bottom) = (Sandbox::new(), Sandbox::new());
    let set_gid = |path: &str| {
        let mut header = header(b'5', path, "", 0);
        header.set_mode(0o2710);
        header.set_uid(7);
        header.set_cksum();
        header
    };
    bottom.apply(&Tar::new().dir("a").raw(&set_gid("a/b"), b"").raw(&set_gid("only"), b"").end()).unwrap();
    let marked = Tar::new().pax(&[("SCHILY.xattr.user.note", b"kept")]).dir("a").file("hidden", "no directory").end();
    top.apply(&marked).unwrap();
    let parents = [top.root(), bottom.root()];
    let layer = Tar::new()
        .file("a/b/new", "x")
        .file("only/new", "x")
        .file("hidden/new", "x")
        .file("nowhere/deep/new", "x")
        .file("later/new", "x")
        .dir("later")
        .end();
    let [at_hand, alone] = [Sandbox::new(), Sandbox::new()];
    let unpack = |sandbox: &Sandbox, options: Options| {
        gantry_layer::unpack(&layer[..], None, &sandbox.root(), &options).unwrap().undescribed
    };
    assert!(unpack(&at_hand, overlay(&[&parents[0], &parents[1]])).is_empty());
    let undescribed = unpack(&alone, Options { standalone: true, ..overlay(&[]) });
    assert_eq!(undescribed, ["a", "a/b", "hidden", "nowhere", "nowhere/deep", "only"].map(PathBuf::from));
    gantry_layer::dress(&alone.root(), &undescribed, &parents).unwrap();
    // When they were made says nothing of them.
    let times = |sandbox: &Sandbox| {
        undescribed.iter().for_each(|path| {
            fs::File::open(sandbox.root().join(path)).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
        });
    };
    [&at_hand, &alone].into_iter().for_each(times);
    assert_eq!(gantry_layer::tree::difference(&at_hand.root(), &alone.root()).unwrap(), Vec::<String>::new());
    assert_eq!(metadata(&alone.root().join("only")).mode() & 0o7777, 0o2710);
    // A way out that was planted meanwhile leads nowhere.
    std::os::unix::fs::symlink(alone.outer(), alone.root().join("out")).unwrap();
    assert!(gantry_layer::dress(&alone.root(), &[PathBuf::from("out"), PathBuf::from("../secret")], &parents).is_err());
}

#[test]
fn the_target_of_a_hard_link_is_copied_up_from_the_topmost_lower_layer() {
    let (bottom, top, upper) = (Sandbox::new(), Sandbox::new(), Sandbox::new());
    bottom.apply(&Tar::new().file("bin/tool", "old").file("bin/hidden", "h").file("o/f", "f").end()).unwrap();
    let over = Tar::new()
        .pax(&[("mtime", b"5000.5")])
        .file("bin/tool", "new")
        .file("bin/.wh.hidden", "")
        .file("o/.wh..wh..opq", "");
    apply(&over.end()[..], &top.root(), &overlay(&[])).unwrap();
    let options = overlay(&[&top.root(), &bottom.root()]);
    let tar = Tar::new().pax(&[("mtime", b"5000.5")]).link("usr/link", "bin/tool").end();
    apply(&tar[..], &upper.root(), &options).unwrap();
    assert_eq!(upper.read("usr/link"), "new");
    let tool = metadata(&upper.root().join("bin/tool"));
    assert_eq!((tool.nlink(), tool.mtime(), tool.mtime_nsec()), (2, 5000, 500_000_000));
    assert_eq!(metadata(&top.root().join("bin/tool")).nlink(), 1);
    for hidden in ["bin/hidden", "o/f", "bin/absent"] {
        let tar = Tar::new().link("l", hidden).end();
        let refused = reason(apply(&tar[..], &upper.root(), &options));
        assert!(matches!(refused, Reason::LinkTarget { .. }), "{hidden}");
    }
    let tar = Tar::new().file(".wh.bin", "").link("l", "bin/tool").end();
    let fresh = Sandbox::new();
    assert!(matches!(
        reason(apply(&tar[..], &fresh.root(), &options)),
        Reason::NotADirectory { .. } | Reason::LinkTarget { .. }
    ));
}

#[test]
fn what_is_compressed_in_any_way_unpacks_alike_with_its_diff_id() {
    let content = "0123456789abcdef".repeat(100_000);
    let mut tar = Tar::new().dir("d").file("d/f", "small").0;
    tar.extend_from_slice(header(b'0', "large", "", content.len() as u64).as_bytes());
    tar.extend_from_slice(content.as_bytes());
    tar.resize(tar.len().next_multiple_of(512), 0);
    // What follows the end marker belongs to the digest.
    tar.extend_from_slice(&[0; 10240]);
    let expected = Digest::of(&tar);
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let mut out = Compressor::new(Vec::new(), compression).unwrap();
        let (half, rest) = tar.split_at(tar.len() / 2);
        out.write_all(half).unwrap();
        let mut layer = out.finish().unwrap();
        // Two members, as parallel compressors write them.
        let mut out = Compressor::new(Vec::new(), compression).unwrap();
        out.write_all(rest).unwrap();
        layer.extend(out.finish().unwrap());
        for given in [None, Some(compression)] {
            let sandbox = Sandbox::new();
            let unpacked = unpack(&layer[..], given, &sandbox.root(), &remove()).unwrap();
            assert_eq!(unpacked.diff_id, expected);
            assert_eq!(unpacked.applied.tar_bytes, tar.len() as u64);
            assert_eq!(unpacked.compressed_bytes, layer.len() as u64);
            assert_eq!(sandbox.read("large"), content);
        }
        for cut in [layer.len() - 1, layer.len() / 3] {
            let sandbox = Sandbox::new();
            let error = unpack(&layer[..cut], Some(compression), &sandbox.root(), &remove());
            assert!(error.is_err() || compression == Compression::None, "{compression:?} cut at {cut}");
        }
    }
}

#[test]
fn damaged_compressed_bytes_are_an_error() {
    let sandbox = Sandbox::new();
    let mut out = Compressor::new(Vec::new(), Compression::Gzip).unwrap();
    out.write_all(&Tar::new().file("f", &"x".repeat(5000)).end()).unwrap();
    let mut layer = out.finish().unwrap();
    let last = layer.len() - 6;
    layer[last] ^= 1;
    let garbage = [&[0x1f, 0x8b][..], &[0xff; 100]].concat();
    let broken = [&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0][..], &[0xff; 100]].concat();
    for layer in [layer, garbage, broken] {
        let error = unpack(&layer[..], None, &sandbox.root(), &remove()).unwrap_err();
        assert!(matches!(error.reason, Reason::Read(_)), "{error}");
        assert_eq!(error.kind(), ErrorKind::DataLoss, "{error}");
    }
}

#[test]
fn cancelling_stops_within_a_chunk() {
    struct Endless;
    impl Read for Endless {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            std::thread::sleep(Duration::from_millis(1));
            let length = buffer.len().min(4096);
            buffer[..length].fill(b'x');
            Ok(length)
        }
    }
    let sandbox = Sandbox::new();
    let control = Arc::new(Control::default());
    let options = Options { control: Arc::clone(&control), ..remove() };
    let head = header(b'0', "endless", "", 1 << 36);
    let layer = head.as_bytes().chain(Endless);
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| apply(layer, &sandbox.root(), &options));
        std::thread::sleep(Duration::from_millis(50));
        control.cancel();
        assert!(matches!(worker.join().unwrap().unwrap_err().reason, Reason::Cancelled));
    });
}

#[test]
fn progress_can_be_watched() {
    let sandbox = Sandbox::new();
    let options = remove();
    let tar = Tar::new().file("a", "x").file("b", "y").end();
    let applied = apply(&tar[..], &sandbox.root(), &options).unwrap();
    assert_eq!((options.control.entries(), applied.entries), (2, 2));
    assert!(options.control.bytes() >= 2048);
}

/// All paths, sorted.
fn walk(sandbox: &Sandbox) -> Vec<String> {
    let lines = gantry_layer::tree::listing(&sandbox.root()).unwrap();
    let mut names: Vec<String> = lines.iter().map(|line| line.split('"').nth(1).unwrap().to_owned()).collect();
    names.sort();
    names
}

#[test]
fn no_file_is_left_open() {
    let open = || fs::read_dir("/proc/self/task").map(|_| fs::read_dir("/proc/self/fd").unwrap().count()).unwrap();
    let sandbox = Sandbox::new();
    let mut tar = Tar::new();
    for n in 0..500 {
        tar = tar.file(&format!("d{n}/f"), "");
    }
    sandbox.apply(&tar.end()).unwrap();
    // Other tests of this process open files too; hundreds they are not.
    assert!(open() < 200);
}
