//! Layers that mean harm: each is refused with a typed error or kept harmless, and nothing outside the root changes.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs;
use std::time::Instant;

use common::{Sandbox, Tar, header, overlay, reason, remove};
use gantry_layer::{Limit, Limits, Options, Reason, apply, unpack};
use gantry_types::{ErrorKind, HasKind};
use proptest::prelude::*;

/// Applies in both modes; gives the reason of the refusal, which must be the same kind of reason.
fn refused(tar: Vec<u8>) -> Reason {
    let sandbox = Sandbox::new();
    let _ = apply(&tar[..], &sandbox.root(), &overlay(&[]));
    sandbox.assert_untouched();
    let sandbox = Sandbox::new();
    let result = sandbox.apply(&tar);
    sandbox.assert_untouched();
    reason(result)
}

fn accepted(tar: Vec<u8>) -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.apply(&tar).unwrap();
    sandbox.assert_untouched();
    sandbox
}

#[test]
fn names_that_climb_above_the_root_are_refused() {
    for name in ["../secret", "a/../../secret", "..", "./../secret", "/../secret", "a/b/../../../secret"] {
        let tar = Tar::new().file(name, "pwned").end();
        assert!(matches!(refused(tar), Reason::Escapes { .. }), "{name}");
        let tar = Tar::new().pax(&[("path", name.as_bytes())]).file("harmless", "pwned").end();
        assert!(matches!(refused(tar), Reason::Escapes { .. }), "{name} by PAX");
        let tar = Tar::new().entry(b'L', "././@LongLink", "", name.as_bytes()).file("harmless", "pwned").end();
        assert!(matches!(refused(tar), Reason::Escapes { .. }), "{name} by GNU long name");
    }
}

#[test]
fn names_that_climb_within_the_root_mean_what_they_say() {
    let sandbox = accepted(Tar::new().file("a/b/../c", "here").end());
    assert_eq!(sandbox.read("a/c"), "here");
}

#[test]
fn absolute_names_count_from_the_root_or_are_refused_on_demand() {
    let tar = Tar::new().file("/etc/passwd", "ours").end();
    let sandbox = accepted(tar.clone());
    assert_eq!(sandbox.read("etc/passwd"), "ours");
    let options = Options { refuse_absolute: true, ..remove() };
    let sandbox = Sandbox::new();
    assert!(matches!(reason(apply(&tar[..], &sandbox.root(), &options)), Reason::Escapes { .. }));
}

#[test]
fn a_symlink_that_climbs_is_never_followed_out() {
    for target in ["..", "../..", "../secret", "x/../../.."] {
        let tar = Tar::new().dir("x").symlink("link", target).file("link/secret", "pwned").end();
        assert!(matches!(refused(tar), Reason::Escapes { .. }), "{target}");
    }
    let tar = Tar::new().symlink("secret", "../secret").file("secret", "own").end();
    assert_eq!(accepted(tar).read("secret"), "own");
}

#[test]
fn an_absolute_symlink_means_the_root() {
    let sandbox = Sandbox::new();
    let outside = sandbox.outer().to_str().unwrap().to_owned();
    let tar = Tar::new().symlink("link", &outside).file("link/secret", "inside").end();
    sandbox.apply(&tar).unwrap();
    sandbox.assert_untouched();
    assert_eq!(sandbox.read(&format!(".{outside}/secret")), "inside");
}

#[test]
fn a_symlink_swapped_for_a_used_directory_is_seen() {
    let tar = Tar::new().dir("d").file("d/a", "1").symlink("d", "../..").file("d/secret", "pwned").end();
    assert!(matches!(refused(tar), Reason::Escapes { .. }));
    let sandbox = accepted(Tar::new().dir("e").dir("d").file("d/a", "1").symlink("d", "e").file("d/b", "2").end());
    assert_eq!(sandbox.read("e/b"), "2");
}

#[test]
fn symlink_loops_and_long_chains_are_refused() {
    let tar = Tar::new().symlink("a", "b").symlink("b", "a").file("a/x", "1").end();
    assert!(matches!(refused(tar), Reason::Name(_)));
    let mut tar = Tar::new().dir("l0");
    for n in 1..60 {
        tar = tar.symlink(&format!("l{n}"), &format!("l{}", n - 1));
    }
    assert!(matches!(refused(tar.clone().file("l59/x", "1").end()), Reason::Name(_)));
    assert_eq!(accepted(tar.file("l30/x", "1").end()).read("l0/x"), "1");
}

#[test]
fn hard_links_reach_nothing_outside() {
    let tar = Tar::new().link("stolen", "../secret").end();
    assert!(matches!(refused(tar), Reason::Escapes { .. }));
    let tar = Tar::new().symlink("out", "..").link("stolen", "out/secret").end();
    assert!(matches!(refused(tar), Reason::Escapes { .. }));
    let sandbox = Sandbox::new();
    let secret = sandbox.outer().join("secret").to_str().unwrap().to_owned();
    let absolute = sandbox.apply(&Tar::new().link("stolen", &secret).end());
    assert!(matches!(reason(absolute), Reason::LinkTarget { .. }));
    // A hard link to a symlink is a link to the symlink itself.
    let sandbox = accepted(Tar::new().symlink("s", "../secret").link("h", "s").end());
    assert!(sandbox.root().join("h").symlink_metadata().unwrap().is_symlink());
    for target in ["missing", "", ".", "missing/deeper"] {
        assert!(matches!(refused(Tar::new().link("h", target).end()), Reason::LinkTarget { .. }), "{target}");
    }
    assert!(matches!(refused(Tar::new().dir("d").link("h", "d").end()), Reason::Io { call: "linkat", .. }));
}

#[test]
fn a_link_to_itself_changes_nothing() {
    let sandbox = accepted(Tar::new().file("f", "kept").link("f", "./f").end());
    assert_eq!(sandbox.read("f"), "kept");
}

#[test]
fn writing_through_a_symlink_replaces_the_symlink() {
    let sandbox = accepted(Tar::new().file("victim", "safe").symlink("l", "victim").file("l", "new").end());
    assert_eq!(sandbox.read("victim"), "safe");
    assert_eq!(sandbox.read("l"), "new");
    let sandbox = accepted(Tar::new().dir("d").symlink("l", "d").dir("l").file("l/x", "1").end());
    assert!(!sandbox.exists("d/x"));
}

#[test]
fn a_file_amid_a_path_is_named() {
    let tar = Tar::new().file("f", "").file("f/x/y", "1").end();
    match refused(tar) {
        Reason::NotADirectory { path } => assert_eq!(path, "f"),
        other => panic!("{other}"),
    }
}

#[test]
fn names_that_no_file_may_have_are_refused() {
    let long = "n".repeat(256);
    let tar = |name: &[u8]| Tar::new().pax(&[("path", name)]).file("x", "").end();
    assert!(matches!(refused(tar(long.as_bytes())), Reason::Name(_)));
    assert!(matches!(refused(tar(b"a\0b")), Reason::Name(_)));
    assert!(matches!(refused(Tar::new().file(".wh.", "").end()), Reason::Name(_)));
    assert!(matches!(refused(Tar::new().file("a/.wh..", "").end()), Reason::Name(_)));
    assert!(matches!(refused(Tar::new().file(".wh...", "").end()), Reason::Name(_)));
    assert!(matches!(refused(Tar::new().file(".wh.a/b", "").end()), Reason::Name(_)));
    let deep = "d/".repeat(2000);
    assert!(matches!(refused(tar(deep.as_bytes())), Reason::Limit { limit: Limit::Depth, .. }));
    let endless = "dd/".repeat(2000);
    assert!(matches!(refused(tar(endless.as_bytes())), Reason::Limit { limit: Limit::Path, .. }));
}

#[test]
fn malformed_headers_are_refused() {
    let mut wrong_sum = header(b'0', "f", "", 0);
    wrong_sum.as_mut_bytes()[0] = b'g';
    assert!(matches!(refused(Tar::new().raw(&wrong_sum, b"").end()), Reason::Malformed(_)));
    for (offset, field) in [
        (108, &b"9999999\0"[..]),
        (116, b"\xff\xff\xff\xff\xff\xff\xff\xff"),
        (124, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
    ] {
        let mut bad = header(b'0', "f", "", 0);
        bad.as_mut_bytes()[offset..offset + field.len()].copy_from_slice(field);
        bad.set_cksum();
        assert!(matches!(refused(Tar::new().raw(&bad, b"").end()), Reason::Malformed(_)), "{offset}");
    }
    for flag in *b"VMDNZ" {
        assert!(matches!(refused(Tar::new().entry(flag, "f", "", b"").end()), Reason::Type(_)));
    }
    let mut lone = vec![0; 512];
    lone.extend(Tar::new().file("f", "").end());
    assert!(matches!(refused(lone), Reason::Malformed(_)));
    for (key, value) in
        [("size", "-1"), ("size", "1e3"), ("mtime", "soon"), ("uid", "4294967295"), ("gid", "99999999999")]
    {
        let tar = Tar::new().pax(&[(key, value.as_bytes())]).file("f", "").end();
        assert!(matches!(refused(tar), Reason::Malformed(_)), "{key}={value}");
    }
}

#[test]
fn a_size_beyond_the_stream_is_a_cut_archive_and_beyond_the_limit_too_much() {
    let tar = |size: &str| Tar::new().pax(&[("size", size.as_bytes())]).file("f", "").end();
    assert!(matches!(refused(tar("1000000")), Reason::Truncated));
    assert!(matches!(refused(tar("9000000000000000000")), Reason::Limit { limit: Limit::Bytes, .. }));
    assert!(matches!(refused(tar("18446744073709551615")), Reason::Malformed(_)));
    let error = Sandbox::new().apply(&tar("1000000")).unwrap_err();
    assert_eq!((error.kind(), error.entry.as_str()), (ErrorKind::DataLoss, "f"));
}

#[test]
fn sparse_bombs_are_refused_before_a_byte_is_written() {
    let tar = |records: &[(&str, &[u8])], content: &[u8]| Tar::new().pax(records).entry(b'0', "f", "", content).end();
    let huge = tar(&[("GNU.sparse.realsize", b"9223372036854775807"), ("GNU.sparse.map", b"0,1")], b"x");
    assert!(matches!(refused(huge), Reason::Limit { limit: Limit::Bytes, .. }));
    for map in ["5,1,0,1", "0,1,0,1", "0,99", "18446744073709551615,2", "0", "a,b"] {
        let bad = tar(&[("GNU.sparse.realsize", b"10"), ("GNU.sparse.map", map.as_bytes())], b"xy");
        assert!(matches!(refused(bad), Reason::Malformed(_)), "{map}");
    }
    let one: &[(&str, &[u8])] =
        &[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"10")];
    for map in ["99999999999999999999\n", "4000000000\n0\n", "1\n", "x\n", ""] {
        let mut content = map.as_bytes().to_vec();
        content.resize(512, b'\n');
        assert!(matches!(refused(tar(one, &content)), Reason::Malformed(_)), "{map:?}");
    }
}

#[test]
fn extended_headers_are_bounded_one_by_one_and_together() {
    let big = vec![b'x'; 2 << 20];
    for flag in *b"xgLK" {
        let tar = Tar::new().entry(flag, "big", "", &big).file("f", "").end();
        assert!(matches!(refused(tar), Reason::Limit { limit: Limit::ExtendedHeader, .. }));
    }
    let mut many = Tar::new();
    for _ in 0..4000 {
        many = many.entry(b'L', "empty", "", b"");
    }
    assert!(matches!(refused(many.file("f", "").end()), Reason::Limit { limit: Limit::ExtendedHeader, .. }));
    let value = vec![7; 70_000];
    let tar = Tar::new().pax(&[("SCHILY.xattr.user.big", &value)]).file("f", "").end();
    assert!(matches!(refused(tar), Reason::Limit { limit: Limit::Xattr, .. }));
}

#[test]
fn entries_and_bytes_are_bounded() {
    let sandbox = Sandbox::new();
    let tar = Tar::new().file("a", "12345").file("b", "12345").file("c", "").end();
    let limited = |limits: Limits| reason(apply(&tar[..], &sandbox.root(), &Options { limits, ..remove() }));
    let entries = limited(Limits { entries: 2, ..Limits::default() });
    assert!(matches!(entries, Reason::Limit { limit: Limit::Entries, max: 2 }));
    let bytes = limited(Limits { bytes: 9, ..Limits::default() });
    assert!(matches!(bytes, Reason::Limit { limit: Limit::Bytes, max: 9 }));
}

#[test]
fn a_zip_bomb_is_stopped_by_its_ratio() {
    let sandbox = Sandbox::new();
    let mut bomb = zstd::Encoder::new(Vec::new(), 1).unwrap();
    let size = 280_u64 << 20;
    std::io::Write::write_all(&mut bomb, header(b'0', "zeros", "", size).as_bytes()).unwrap();
    std::io::copy(&mut std::io::Read::take(std::io::repeat(0), size), &mut bomb).unwrap();
    let bomb = bomb.finish().unwrap();
    let error = unpack(&bomb[..], None, &sandbox.root(), &remove()).unwrap_err();
    assert!(matches!(error.reason, Reason::Limit { limit: Limit::Ratio, .. }), "{error}");
    assert_eq!(error.kind(), ErrorKind::ResourceExhausted);
}

#[test]
fn device_numbers_out_of_range_are_refused_and_the_unprivileged_get_no_devices() {
    let mut wide = header(b'3', "dev", "", 0);
    wide.as_mut_bytes()[329..337].copy_from_slice(b"\x80\0\0\0\0\0\x10\0");
    wide.set_cksum();
    assert!(matches!(refused(Tar::new().raw(&wide, b"").end()), Reason::Malformed(_)));
    let mut null = header(b'3', "null", "", 0);
    null.set_device_major(1).unwrap();
    null.set_device_minor(3).unwrap();
    null.set_cksum();
    let tar = Tar::new().raw(&null, b"").file("f", "x").end();
    let sandbox = Sandbox::new();
    apply(&tar[..], &sandbox.root(), &Options { unprivileged: true, ..remove() }).unwrap();
    assert!(!sandbox.exists("null") && sandbox.exists("f"));
}

#[test]
fn attributes_that_steer_the_host_are_not_set() {
    let tar = Tar::new().pax(&[("SCHILY.xattr.trusted.overlay.redirect", b"/etc"), ("SCHILY.xattr.user.ok", b"1")]);
    let sandbox = accepted(tar.file("f", "x").end());
    let lines = gantry_layer::tree::listing(&sandbox.root()).unwrap();
    assert!(lines[0].ends_with("user.ok=1"), "{lines:?}");
    let mut list = [0_u8; 256];
    let length = rustix::fs::llistxattr(sandbox.root().join("f"), &mut list[..]).unwrap();
    assert_eq!(&list[..length], b"user.ok\0");
}

#[test]
fn replacing_directories_over_and_over_costs_no_more_than_each_replacement() {
    let mut tar = Tar::new();
    for n in 0..3000 {
        tar = tar.dir(&format!("dir{n}"));
    }
    for _ in 0..2000 {
        tar = tar.dir("x").file("x", "");
    }
    let (sandbox, tar) = (Sandbox::in_memory(), tar.end());
    let start = Instant::now();
    sandbox.apply(&tar).unwrap();
    assert!(start.elapsed().as_secs() < 10);
}

#[test]
fn a_layer_over_a_fifo_does_not_wait_for_it() {
    let tar = Tar::new().entry(b'6', "p", "", b"").file("p", "file now").end();
    assert_eq!(accepted(tar).read("p"), "file now");
    let tar = Tar::new().entry(b'6', "p", "", b"").file("p/x", "").end();
    assert!(matches!(refused(tar), Reason::NotADirectory { .. }));
}

#[test]
fn a_full_root_that_is_missing_is_an_error_of_the_file_system() {
    let sandbox = Sandbox::new();
    let error = apply(&Tar::new().end()[..], &sandbox.outer().join("absent"), &remove()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    fs::write(sandbox.root().join("f"), "").unwrap();
    assert!(apply(&Tar::new().end()[..], &sandbox.root().join("f"), &remove()).is_err());
}

#[derive(Clone, Debug)]
struct Fuzzed {
    flag: u8,
    path: String,
    link: String,
}

fn fuzzed() -> impl Strategy<Value = Fuzzed> {
    let component = proptest::sample::select(
        &["a", "b", "..", ".", "", ".wh.a", ".wh..wh..opq", "secret", ".wh...", "root", ".wh..wh.plnk"][..],
    );
    let path = proptest::collection::vec(component, 1..5).prop_map(|components| components.join("/"));
    let flag = proptest::sample::select(&b"0001225566"[..]);
    (flag, path.clone(), path).prop_map(|(flag, path, link)| Fuzzed { flag, path, link })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn no_mix_of_names_links_and_whiteouts_leaves_the_root(entries in proptest::collection::vec(fuzzed(), 1..12)) {
        for options in [remove(), overlay(&[])] {
            let sandbox = Sandbox::new();
            let mut taken = 0;
            // Refused entries end a layer; the rest comes in the next one.
            while taken < entries.len() {
                let mut tar = Tar::new();
                for entry in &entries[taken..] {
                    let content: &[u8] = if entry.flag == b'0' { b"content" } else { b"" };
                    tar = tar.entry(entry.flag, &entry.path, &entry.link, content);
                }
                let applied = apply(&tar.end()[..], &sandbox.root(), &options);
                sandbox.assert_untouched();
                match applied {
                    Ok(_) => break,
                    Err(_) => taken += 1,
                }
            }
        }
    }
}
