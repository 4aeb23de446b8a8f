//! Images through the real `ctr`: pulled by the daemon's transfer service and by the client itself, listed, tagged,
//! removed; and what a pull leaves in content and snapshots.

use gantry_integration::images::{Format, Image, Packing, busybox_root};
use gantry_integration::registry::DockerRegistry;
use gantry_integration::{Daemon, Lab};

fn setup() -> (Lab, DockerRegistry, Daemon) {
    let lab = Lab::new();
    let registry = DockerRegistry::start(&lab);
    let daemon = Daemon::start(&lab);
    (lab, registry, daemon)
}

#[test]
fn ctr_prints_the_versions_and_the_daemons_id() {
    let (_lab, _registry, daemon) = setup();
    let out = daemon.ctr(&["version"]);
    assert!(out.ok().contains("Server:"), "{out}");
    assert!(out.stdout.contains("UUID:"), "{out}");
    daemon.stop_clean();
}

#[test]
fn ctr_creates_labels_lists_and_removes_namespaces() {
    let (_lab, _registry, daemon) = setup();
    daemon.ctr(&["namespaces", "create", "blue", "team=a"]).ok();
    let list = daemon.ctr(&["namespaces", "ls"]);
    assert!(list.ok().lines().any(|l| l.starts_with("blue") && l.contains("team=a")), "{list}");
    daemon.ctr(&["namespaces", "label", "blue", "team=b"]).ok();
    assert!(daemon.ctr(&["namespaces", "ls"]).ok().contains("team=b"));
    daemon.ctr(&["namespaces", "rm", "blue"]).ok();
    assert!(!daemon.ctr(&["namespaces", "ls", "-q"]).ok().contains("blue"));
    daemon.ctr(&["namespaces", "create", "Not A Name"]).fails_with("invalid");
    daemon.stop_clean();
}

#[test]
fn ctr_pulls_by_the_transfer_service_every_format_and_compression() {
    let (lab, registry, daemon) = setup();
    let root = busybox_root(&lab);
    for (name, format, packing) in [
        ("oci-gzip", Format::Oci, Packing::Gzip),
        ("oci-zstd", Format::Oci, Packing::Zstd),
        ("oci-plain", Format::Oci, Packing::Plain),
        ("docker-gzip", Format::Docker, Packing::Gzip),
    ] {
        let reference =
            Image::new(&lab, name).layer(&root).format(format).packing(packing).push(&registry.host(), name);
        daemon.ctr(&["images", "pull", "--plain-http", &reference]).ok();
        let id = lab.id(name);
        let out = daemon.ctr(&["run", "--rm", &reference, &id, "/bin/echo", "hello from", name]);
        assert_eq!(out.ok(), format!("hello from {name}\n"));
    }
    daemon.assert_nothing_leaked();
    daemon.stop_clean();
}

#[test]
fn ctr_pulls_client_side_too() {
    let (lab, registry, daemon) = setup();
    let reference = Image::new(&lab, "local").layer(&busybox_root(&lab)).push(&registry.host(), "local");
    daemon.ctr(&["images", "pull", "--local", "--plain-http", &reference]).ok();
    let out = daemon.ctr(&["run", "--rm", &reference, &lab.id("local"), "/bin/echo", "hi"]);
    assert_eq!(out.ok(), "hi\n");
    let check = daemon.ctr(&["images", "check"]);
    assert!(check.ok().contains("complete"), "{check}");
    daemon.assert_nothing_leaked();
    daemon.stop_clean();
}

#[test]
fn ctr_lists_tags_and_removes_images_and_what_they_held_is_collected() {
    let (lab, registry, daemon) = setup();
    let reference = Image::new(&lab, "tags").layer(&busybox_root(&lab)).push(&registry.host(), "tags");
    daemon.ctr(&["images", "pull", "--plain-http", &reference]).ok();
    let other = format!("{}/tags:other", registry.host());
    daemon.ctr(&["images", "tag", &reference, &other]).ok();
    daemon.ctr(&["images", "tag", "--local", &reference, "example.com/local:tag"]).ok();
    let names = daemon.ctr(&["images", "ls", "-q"]);
    assert_eq!(names.ok().lines().count(), 3, "{names}");
    daemon.ctr(&["images", "label", &other, "colour=red"]).ok();
    assert!(daemon.ctr(&["images", "ls"]).ok().contains("colour=red"));
    daemon.ctr(&["images", "rm", "--sync", &reference, "example.com/local:tag"]).ok();
    assert_eq!(
        daemon.ctr(&["content", "ls", "-q"]).ok().lines().count(),
        3,
        "manifest, config and layer stay for the tag"
    );
    daemon.ctr(&["images", "rm", "--sync", &other]).ok();
    assert_eq!(daemon.ctr(&["content", "ls", "-q"]).ok(), "");
    assert_eq!(daemon.ctr(&["snapshots", "ls"]).ok().lines().count(), 1, "only the heading");
    let missing = daemon.ctr(&["images", "rm", "example.com/nothing:here"]);
    assert!(missing.stderr.contains("not found"), "{missing}");
    daemon.stop_clean();
}

#[test]
fn ctr_reads_blobs_and_their_labels() {
    let (lab, registry, daemon) = setup();
    let reference = Image::new(&lab, "blobs").layer(&busybox_root(&lab)).push(&registry.host(), "blobs");
    daemon.ctr(&["images", "pull", "--plain-http", &reference]).ok();
    let list = daemon.ctr(&["content", "ls"]);
    assert!(list.ok().contains("containerd.io/gc.ref.content.config"), "{list}");
    assert!(list.stdout.contains("containerd.io/distribution.source.127.0.0.1=blobs"), "{list}");
    assert!(list.stdout.contains("containerd.io/uncompressed=sha256:"), "{list}");
    let target = daemon.ctr(&["images", "ls"]);
    let digest = target.ok().split_whitespace().find(|w| w.starts_with("sha256:")).expect("a digest").to_owned();
    let manifest = daemon.ctr(&["content", "get", &digest]);
    assert!(manifest.ok().contains("schemaVersion"), "{manifest}");
    daemon.ctr(&["content", "get", &format!("sha256:{}", "0".repeat(64))]).fails_with("not found");
    daemon.stop_clean();
}

#[test]
fn ctr_sees_snapshots_and_their_usage() {
    let (lab, registry, daemon) = setup();
    let reference = Image::new(&lab, "snap").layer(&busybox_root(&lab)).push(&registry.host(), "snap");
    daemon.ctr(&["images", "pull", "--plain-http", &reference]).ok();
    let list = daemon.ctr(&["snapshots", "ls"]);
    let chain = list.ok().lines().nth(1).expect("one layer").split_whitespace().next().expect("a key").to_owned();
    assert!(list.stdout.contains("Committed"), "{list}");
    let usage = daemon.ctr(&["snapshots", "usage", &chain]);
    assert!(usage.ok().contains("iB"), "{usage}");
    daemon.ctr(&["snapshots", "prepare", "work", &chain]).ok();
    assert!(daemon.ctr(&["snapshots", "mounts", "/x", "work"]).ok().contains("overlay"));
    assert!(daemon.ctr(&["snapshots", "info", "work"]).ok().contains(&chain));
    daemon.ctr(&["snapshots", "rm", &chain]).fails_with("cannot remove");
    daemon.ctr(&["snapshots", "rm", "work"]).ok();
    daemon.stop_clean();
}

#[test]
fn an_image_that_is_not_there_is_refused_with_its_name() {
    let (_lab, registry, daemon) = setup();
    let reference = format!("{}/no/such:image", registry.host());
    daemon.ctr(&["images", "pull", "--plain-http", &reference]).fails_with("not found");
    assert_eq!(daemon.ctr(&["images", "ls", "-q"]).ok(), "");
    assert_eq!(daemon.ctr(&["content", "ls", "-q"]).ok(), "");
    daemon.assert_nothing_leaked();
    daemon.stop_clean();
}
