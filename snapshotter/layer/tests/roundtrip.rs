//! What a diff says, applied to the old tree, gives the new one: on plain directories and on mounted overlays.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{overlay, remove};
use gantry_layer::{DiffOptions, Times, apply, diff, diff_overlay, tree};
use proptest::prelude::*;

/// One change of a tree, as a shell command. Those that make no sense in a tree fail, which is as good.
#[derive(Clone, Debug)]
struct Op(String);

const PATHS: [&str; 12] = ["a", "b", "c", "a/x", "a/y", "b/x", "b/z", "a/x/m", "a/x/n", "b/x/m", "c/long name", "c/é"];

fn op() -> impl Strategy<Value = Op> {
    let path = proptest::sample::select(&PATHS[..]);
    (0..14_u8, path.clone(), path, 0..1_000_000_u32).prop_map(|(kind, p, q, n)| {
        let (p, q) = (format!("'{p}'"), format!("'{q}'"));
        Op(match kind {
            0..=2 => format!("mkdir -p \"$(dirname {p})\"; rm -rf {p}; echo {n} > {p}; touch -d @{n}.{n:06} {p}"),
            3 => format!("test -f {p} && echo {n} >> {p} && touch -d @{n}.5 {p}"),
            4 => format!("mkdir -p {p}"),
            5 | 6 => format!("rm -rf {p}"),
            7 => format!("mv -T {p} {q}"),
            8 => format!("test -h {p} || chmod {:o} {p}", (n % 0o7777) | 0o700),
            9 => format!("chown -h {}:{} {p}", n % 3, n % 70_000),
            10 => format!("ln -sfn {q} {p}"),
            11 => format!("test -d {p} || ln -fT {p} {q}"),
            12 => format!("rm -rf {p}; mkfifo {p}; mknod {q} c 1 {}", n % 200),
            _ => format!("rm -rf {p}; truncate -s {n} {p}; echo end >> {p}; touch -d @{n}.25 {p}"),
        })
    })
}

fn ops(count: impl Into<proptest::collection::SizeRange>) -> impl Strategy<Value = Vec<Op>> {
    proptest::collection::vec(op(), count)
}

fn script(ops: &[Op]) -> String {
    ops.iter().map(|op| format!("{{ {}; }} || true\n", op.0)).collect()
}

/// Runs a shell script in a mount namespace of its own.
fn shell(dir: &Path, script: &str) {
    let output = Command::new("unshare").args(["-m", "sh", "-ec", script]).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn quiet(script: &str) -> String {
    format!("exec 2>/dev/null\n{script}")
}

fn nanoseconds() -> DiffOptions {
    DiffOptions { times: Times::Nanoseconds, ..DiffOptions::default() }
}

struct Trees(tempfile::TempDir);

impl Trees {
    /// The directory `old`, made by `ops`, beside the empty `upper`, `work` and `merged`.
    fn new(ops: &[Op]) -> Trees {
        let trees = Trees(tempfile::tempdir().unwrap());
        for name in ["old", "upper", "work", "merged"] {
            fs::create_dir(trees.path(name)).unwrap();
        }
        shell(&trees.path("old"), &quiet(&script(ops)));
        trees
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn copy(&self, from: &str, to: &str) -> PathBuf {
        shell(self.0.path(), &format!("cp -a {from} {to}"));
        self.path(to)
    }

    /// Runs `script` in the overlay of `upper` over `old`, and copies the merged tree to `to`.
    fn in_overlay(&self, script: &str, to: &str) -> PathBuf {
        let options = "lowerdir=old,upperdir=upper,workdir=work,redirect_dir=off,index=off,metacopy=off";
        let script = format!("mount -t overlay overlay -o {options} merged\n(cd merged; {script})\ncp -a merged {to}");
        shell(self.0.path(), &script);
        self.path(to)
    }
}

fn assert_equal(expected: &Path, actual: &Path) -> Result<(), TestCaseError> {
    let difference = tree::difference(expected, actual).unwrap();
    prop_assert!(difference.is_empty(), "{:#?}", difference);
    Ok(())
}

fn config() -> ProptestConfig {
    ProptestConfig { cases: 40, max_shrink_iters: 60, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_diff_of_directories_applied_to_the_old_gives_the_new(before in ops(1..16), changes in ops(1..12)) {
        let trees = Trees::new(&before);
        let new = trees.copy("old", "new");
        shell(&new, &quiet(&script(&changes)));
        let mut layer = Vec::new();
        diff(Some(&trees.path("old")), &new, &mut layer, &nanoseconds()).unwrap();
        let mut again = Vec::new();
        diff(Some(&trees.path("old")), &new, &mut again, &nanoseconds()).unwrap();
        prop_assert!(layer == again, "the same trees gave different bytes");
        let copy = trees.copy("old", "copy");
        apply(&layer[..], &copy, &remove()).unwrap();
        assert_equal(&new, &copy)?;

        apply(&layer[..], &trees.path("upper"), &overlay(&[&trees.path("old")])).unwrap();
        let merged = trees.in_overlay("true", "seen");
        assert_equal(&new, &merged)?;
    }

    #[test]
    fn a_diff_of_an_overlay_applied_to_the_old_gives_the_merged_tree(before in ops(1..16), changes in ops(1..12)) {
        let trees = Trees::new(&before);
        let merged = trees.in_overlay(&format!("exec 2>/dev/null; {}", script(&changes)), "seen");
        for lowers in [vec![trees.path("old")], vec![]] {
            let mut layer = Vec::new();
            diff_overlay(&trees.path("upper"), &lowers, &mut layer, &nanoseconds()).unwrap();
            let name = format!("copy{}", lowers.len());
            let copy = trees.copy("old", &name);
            apply(&layer[..], &copy, &remove()).unwrap();
            assert_equal(&merged, &copy)?;
        }
    }
}

#[test]
fn a_diff_from_nothing_is_the_whole_tree_and_whole_seconds_are_the_default() {
    let trees = Trees::new(&[]);
    let old = trees.path("old");
    fs::create_dir(old.join("d")).unwrap();
    fs::write(old.join("d/f"), "content").unwrap();
    shell(&old, "touch -d @5.75 d/f; ln d/f link; setfattr -n user.k -v v d/f 2>/dev/null || true");
    let mut layer = Vec::new();
    let written = diff(None, &old, &mut layer, &DiffOptions::default()).unwrap();
    assert_eq!((written.entries, written.tar_bytes), (3, layer.len() as u64));
    let copy = trees.path("upper");
    apply(&layer[..], &copy, &remove()).unwrap();
    let lines = tree::listing(&copy).unwrap();
    assert!(lines.iter().any(|line| line.starts_with("\"d/f\" file 0644 0:0 5.000000000 7 bytes")), "{lines:#?}");
    assert!(lines.iter().any(|line| line.starts_with("\"link\"") && line.contains("same as \"d/f\"")), "{lines:#?}");
}

#[test]
fn equal_directories_differ_by_nothing() {
    let trees = Trees::new(&[]);
    shell(&trees.path("old"), "mkdir d; echo 1 > d/f; ln d/f l; ln -s f s; mkfifo p");
    let new = trees.copy("old", "new");
    let mut layer = Vec::new();
    let written = diff(Some(&trees.path("old")), &new, &mut layer, &nanoseconds()).unwrap();
    assert_eq!(written.entries, 0);
    assert_eq!(layer, [0; 1024]);
}

#[test]
fn files_whose_times_lost_their_nanoseconds_are_compared_by_content() {
    let trees = Trees::new(&[]);
    shell(&trees.path("old"), "echo 1 > same; echo 1 > other; touch -d @7 same other");
    let new = trees.copy("old", "new");
    shell(&new, "touch -d @7.5 same; echo 2 > other; touch -d @7 other");
    let mut layer = Vec::new();
    let written = diff(Some(&trees.path("old")), &new, &mut layer, &DiffOptions::default()).unwrap();
    assert_eq!(written.entries, 1);
}

#[test]
fn times_can_be_bounded() {
    let trees = Trees::new(&[]);
    shell(&trees.path("old"), "echo 1 > new; echo 1 > old; touch -d @500 old");
    let newest = Some(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1000));
    let mut layer = Vec::new();
    diff(None, &trees.path("old"), &mut layer, &DiffOptions { newest, ..DiffOptions::default() }).unwrap();
    apply(&layer[..], &trees.path("upper"), &remove()).unwrap();
    let lines = tree::listing(&trees.path("upper")).unwrap();
    assert!(lines[0].contains(" 1000.000000000 ") && lines[1].contains(" 500.000000000 "), "{lines:#?}");
}

#[test]
fn overlays_with_redirects_and_names_that_layers_reserve_are_refused() {
    let trees = Trees::new(&[]);
    fs::create_dir(trees.path("upper").join("moved")).unwrap();
    let moved = trees.path("upper").join("moved");
    rustix::fs::setxattr(&moved, "trusted.overlay.redirect", b"/from", rustix::fs::XattrFlags::empty()).unwrap();
    let refused = diff_overlay(&trees.path("upper"), &[], Vec::new(), &DiffOptions::default());
    assert!(matches!(refused, Err(gantry_layer::DiffError::OverlayFeature { .. })));
    fs::write(trees.path("old").join(".wh.x"), "").unwrap();
    let refused = diff(None, &trees.path("old"), Vec::new(), &DiffOptions::default());
    assert!(matches!(refused, Err(gantry_layer::DiffError::ReservedName { .. })));
}
