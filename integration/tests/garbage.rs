//! Garbage collection as an operator sees it: what would go and why, what stays and by which path, whose every byte is.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use gantry_integration::images::{Image, busybox_root};
use gantry_integration::registry::DockerRegistry;
use gantry_integration::{Daemon, Lab, Peer};
use serde_json::{Value, json};

use crate::bad_requests::{Wire, ask};

/// Nothing is collected by itself, except what expires.
const BY_HAND: &str = "version = 3\n[plugins.'io.containerd.gc.v1.scheduler']\nschedule_delay = '1h'\n";

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// Namespace, kind, name and bytes of what goes.
fn rows(text: &str, action: &str) -> Vec<(String, String, String, u64)> {
    let field = |row: &Value, name: &str| row[name].as_str().unwrap_or_default().to_owned();
    let chosen = lines(text).into_iter().filter(|row| row["action"] == action);
    let row = |row: Value| {
        let size = row["size"].as_u64().unwrap_or_default();
        (field(&row, "namespace"), field(&row, "kind"), field(&row, "name"), size)
    };
    chosen.map(row).collect()
}

/// Writes `text` as a blob of `default`; its digest.
fn blob(lab: &Lab, daemon: &Daemon, namespace: &str, text: &str, labels: &[&str]) -> String {
    let file = lab.path("blob");
    std::fs::write(&file, text).expect("write a file");
    let digest = gantry_integration::images::digest_of(&file);
    let mut command = daemon.command("/bin/sh");
    let ctr = gantry_integration::lab::peer_binary("ctr");
    let all = format!(
        "{} --address {} -n {namespace} content ingest --expected-digest {digest} --expected-size {} {digest} < {}",
        ctr.display(),
        daemon.address().display(),
        text.len(),
        file.display()
    );
    command.args(["-c", &all]);
    gantry_integration::Outcome::of(command, Duration::from_secs(20)).ok();
    if !labels.is_empty() {
        let mut args = vec!["-n", namespace, "content", "label", &digest];
        args.extend(labels);
        daemon.ctr(&args).ok();
    }
    digest
}

#[test]
fn a_dry_run_names_exactly_what_a_collection_then_removes_and_why_the_rest_stays() {
    let lab = Lab::new();
    let registry = DockerRegistry::start(&lab);
    let daemon = Daemon::start_with(&lab, Peer::Gantry, BY_HAND, &[]);
    let wire = Wire::new(&lab, &daemon);
    let image = Image::new(&lab, "busybox").layer(&busybox_root(&lab)).push(&registry.host(), "busybox");
    daemon.ctr(&["images", "pull", "--plain-http", &image]).ok();
    // What stays: by an image, a root label, a back reference, leases, a container, another namespace.
    let blob = |namespace: &str, text: &str, labels: &[&str]| blob(&lab, &daemon, namespace, text, labels);
    let rooted = blob("default", "rooted", &["containerd.io/gc.root=x"]);
    let back = format!("containerd.io/gc.bref.image.x={image}");
    let backed = blob("default", "backed", &[&back]);
    let leaf = blob("default", "leaf", &[]);
    let reference = format!("containerd.io/gc.ref.content.0={leaf}");
    let middle = blob("default", "middle", &[&reference]);
    wire.ok("leases.v1.Leases/Create", json!({"id": "whole"}));
    wire.ok("leases.v1.Leases/AddResource", json!({"id": "whole", "resource": {"id": middle, "type": "content"}}));
    let below = blob("default", "below", &[]);
    let flat_reference = format!("containerd.io/gc.ref.content.0={below}");
    let above = blob("default", "above", &[&flat_reference]);
    wire.ok("leases.v1.Leases/Create", json!({"id": "flat", "labels": {"containerd.io/gc.flat": "x"}}));
    wire.ok("leases.v1.Leases/AddResource", json!({"id": "flat", "resource": {"id": above, "type": "content"}}));
    let id = lab.id("c");
    daemon.ctr(&["containers", "create", &image, &id, "/bin/true"]).ok();
    // What goes: loose blobs (one shared with a namespace that keeps it), snapshots upon each other, what only a flat
    // lease reached.
    let loose = blob("default", "loose", &[]);
    let shared = blob("default", "shared", &[]);
    blob("other", "shared", &["containerd.io/gc.root=x"]);
    let elsewhere = blob("other", "elsewhere", &[]);
    let prepare = |key: &str, parent: &str| {
        wire.ok("snapshots.v1.Snapshots/Prepare", json!({"snapshotter": "overlayfs", "key": key, "parent": parent}))
    };
    prepare("active", "");
    wire.ok("snapshots.v1.Snapshots/Commit", json!({"snapshotter": "overlayfs", "key": "active", "name": "base"}));
    prepare("top", "base");

    let dry = daemon.gctr(&["--json", "gc", "--dry-run", "--kept"]);
    let predicted = rows(dry.ok(), "would go");
    let names: Vec<(&str, &str, u64)> =
        predicted.iter().map(|(_, kind, name, size)| (kind.as_str(), name.as_str(), *size)).collect();
    for (digest, size) in [(&loose, 5), (&shared, 0), (&elsewhere, 9), (&below, 5)] {
        assert!(names.contains(&("content", digest.as_str(), size)), "{digest} of {size} bytes is not in {names:?}");
    }
    let place = |key: &str| names.iter().position(|(kind, name, _)| *kind == "snapshot/overlayfs" && *name == key);
    assert!(place("top").is_some() && place("top") < place("base"), "{names:?}");
    assert_eq!(names.len(), 6, "{names:?}");
    let kept: BTreeMap<String, String> = lines(&dry.stdout)
        .iter()
        .filter(|row| row["action"] == "stays")
        .map(|row| {
            (row["name"].as_str().unwrap_or_default().to_owned(), row["reason"].as_str().unwrap_or_default().to_owned())
        })
        .collect();
    assert_eq!(kept.get(&leaf), Some(&format!("lease whole → content {middle} → content {leaf}")));
    assert_eq!(kept.get(&backed), Some(&format!("image {image} → content {backed}")));
    assert_eq!(kept.get(&rooted), Some(&format!("content {rooted}")));
    assert_eq!(kept.get(&above), Some(&format!("lease flat → content {above}")));
    assert_eq!(kept.get(&id).map(|path| path.contains(&format!("container {id}"))), Some(true), "{kept:?}");

    let here: Vec<_> = predicted.iter().filter(|row| row.0 == "other").cloned().collect();
    assert_eq!(rows(daemon.gctr(&["--json", "-n", "other", "gc", "--here"]).ok(), "gone"), here);
    let rest: Vec<_> = predicted.into_iter().filter(|row| row.0 != "other").collect();
    assert_eq!(rows(daemon.gctr(&["--json", "gc"]).ok(), "gone"), rest);
    assert_eq!(rows(daemon.gctr(&["--json", "gc", "--dry-run"]).ok(), "would go"), []);
    for digest in [&loose, &below, &elsewhere] {
        assert!(!daemon.root().join("content/blobs/sha256").join(&digest[7..]).exists(), "{digest} is still there");
    }
    assert!(daemon.root().join("content/blobs/sha256").join(&shared[7..]).exists());
    assert_every_byte_is_owned(&daemon);
    daemon.ctr(&["containers", "rm", &id]).ok();
    daemon.stop_clean();
}

fn assert_every_byte_is_owned(daemon: &Daemon) {
    let start = Instant::now();
    while !daemon.gctr(&["--json", "du", "--unowned"]).ok().is_empty() {
        assert!(start.elapsed() < Duration::from_secs(5), "{}", daemon.gctr(&["du", "--unowned"]).ok());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn the_bytes_of_all_entries_are_those_that_du_counts_and_foreign_files_are_named() {
    let lab = Lab::new();
    let registry = DockerRegistry::start(&lab);
    let daemon = Daemon::start(&lab);
    let image = Image::new(&lab, "busybox").layer(&busybox_root(&lab)).push(&registry.host(), "busybox");
    daemon.ctr(&["images", "pull", "--plain-http", &image]).ok();
    daemon.ctr(&["images", "pull", "--plain-http", "--snapshotter", "native", "--local", &image]).ok();
    let id = lab.id("c");
    daemon.ctr(&["run", "-d", &image, &id, "/bin/sleep", "1000"]).ok();
    assert_every_byte_is_owned(&daemon);
    let total = |daemon: &Daemon| {
        let sums = lines(daemon.gctr(&["--json", "du"]).ok());
        sums.iter().find(|row| row["kind"] == "total").and_then(|row| row["size"].as_u64()).expect("a total")
    };
    let du = |daemon: &Daemon| {
        let output = Command::new("du").args(["-s", "-x", "-B1"]).arg(daemon.root()).output().expect("run du");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.split_whitespace().next().and_then(|number| number.parse::<u64>().ok()).expect("a number")
    };
    // The records' files grow and shrink by themselves.
    let start = Instant::now();
    while total(&daemon) != du(&daemon) {
        assert!(start.elapsed() < Duration::from_secs(5), "gctr counts {}, du {}", total(&daemon), du(&daemon));
    }
    let hex = "a".repeat(64);
    let planted = [
        ("note.txt", "foreign"),
        ("content/blobs/sha256/not-a-digest", "foreign"),
        (&format!("content/blobs/sha256/{hex}"), "garbage"),
        (&format!("content/ingest/{hex}"), "garbage"),
        ("snapshots/overlayfs/snapshots/mine", "foreign"),
        ("snapshots/overlayfs/trash/x", "foreign"),
        ("snapshots/zfs", "foreign"),
    ];
    for (path, _) in &planted {
        std::fs::write(daemon.root().join(path), "planted").expect("plant a file");
    }
    let named: BTreeMap<String, String> = lines(daemon.gctr(&["--json", "du", "--unowned"]).ok())
        .iter()
        .map(|row| {
            (row["path"].as_str().unwrap_or_default().to_owned(), row["state"].as_str().unwrap_or_default().to_owned())
        })
        .collect();
    let expected: BTreeMap<String, String> =
        planted.iter().map(|(path, state)| ((*path).to_owned(), (*state).to_owned())).collect();
    assert_eq!(named, expected);
    for (path, _) in planted {
        std::fs::remove_file(daemon.root().join(path)).expect("remove a file");
    }
    daemon.ctr(&["tasks", "rm", "--force", &id]).ok();
    daemon.ctr(&["containers", "rm", &id]).ok();
    daemon.assert_nothing_leaked();
    daemon.stop_clean();
}

#[test]
fn what_expires_goes_by_itself_soon_after_its_time() {
    let lab = Lab::new();
    let daemon = Daemon::start_with(&lab, Peer::Gantry, BY_HAND, &[]);
    let wire = Wire::new(&lab, &daemon);
    let digest = blob(&lab, &daemon, "default", "leased", &[]);
    let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a clock").as_secs() + 2;
    let time = run_date(at);
    wire.ok("leases.v1.Leases/Create", json!({"id": "short", "labels": {"containerd.io/gc.expire": time}}));
    wire.ok("leases.v1.Leases/AddResource", json!({"id": "short", "resource": {"id": digest, "type": "content"}}));
    assert_eq!(rows(daemon.gctr(&["--json", "gc", "--dry-run"]).ok(), "would go"), []);
    let start = Instant::now();
    while wire.send(&ask("", "content.v1.Content/Info", json!({"digest": digest}))).0 == "OK" {
        assert!(start.elapsed() < Duration::from_secs(8), "the lease's end goes unnoticed");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(daemon.ctr(&["leases", "ls", "-q"]).ok(), "");
    assert_every_byte_is_owned(&daemon);
    daemon.stop_clean();
}

fn run_date(at: u64) -> String {
    gantry_integration::lab::run("date", &["-u", "-d", &format!("@{at}"), "+%Y-%m-%dT%H:%M:%SZ"]).trim().to_owned()
}
