//! Images beside the world's other tools, and images that were damaged while nobody looked.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use gantry_integration::daemon::Peer;
use gantry_integration::images::{Image, busybox_root, debian_root};
use gantry_integration::lab::{peer_binary, run};
use gantry_integration::registry::DockerRegistry;
use gantry_integration::{Daemon, Lab};

use crate::trees::{contents, listing, mounted_by, special_root};

fn skopeo(args: &[&str]) {
    run(
        "skopeo",
        &[&["--insecure-policy", "copy", "--src-tls-verify=false", "--dest-tls-verify=false"], args].concat(),
    );
}

#[track_caller]
fn assert_same(ours: &str, theirs: &str) {
    for (a, b) in ours.lines().zip(theirs.lines()) {
        assert_eq!(a, b, "ours is left");
    }
    assert_eq!(ours.lines().count(), theirs.lines().count());
}

/// A name that an upper layer removed is gone from a plain tree, and still counts in an overlay's lower layer.
fn without_link_counts(listing: &str) -> String {
    let line = |line: &str| {
        let fields: Vec<&str> = line.split('\t').collect();
        let kept = fields.iter().enumerate().filter(|(number, _)| fields.len() < 8 || *number != 6);
        kept.map(|(_, field)| *field).collect::<Vec<_>>().join("\t")
    };
    listing.lines().map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn what_we_push_skopeo_and_containerd_pull_and_umoci_unpacks_to_the_same_tree() {
    let lab = Lab::new();
    let registry = DockerRegistry::start(&lab);
    let (ours, theirs) = (Daemon::start(&lab), Daemon::start_with(&lab, Peer::Containerd, "", &[]));
    let (debian, special) = (debian_root(&lab, &["perl-modules-5.36"]), special_root(&lab));
    // containerd and we have no times before the epoch; umoci does.
    std::fs::remove_file(special.join("opt/before")).expect("remove a file");
    // What the special files' layer removes must have been there: else the kernel lists what hides it.
    let base = lab.path("base");
    std::fs::create_dir_all(base.join("bin")).expect("make a directory");
    std::fs::write(base.join("bin/vi"), "removed above").expect("write");
    let image = Image::new(&lab, "cross").layer(&base).layer(&debian).layer(&special);
    let (image, pushed) = (image.push(&registry.host(), "cross"), format!("{}/pushed:1", registry.host()));
    ours.ctr(&["images", "pull", "--plain-http", &image]).ok();
    ours.ctr(&["images", "tag", &image, &pushed]).ok();
    ours.ctr(&["images", "push", "--plain-http", &pushed]).ok();
    theirs.ctr(&["images", "pull", "--plain-http", &pushed]).ok();
    let (layout, bundle) = (lab.path("layout"), lab.path("bundle"));
    let layout = format!("{}:1", layout.display());
    skopeo(&[&format!("docker://{pushed}"), &format!("oci:{layout}")]);
    run("umoci", &["unpack", "--image", &layout, &bundle.to_string_lossy()]);
    let [our_tree, _, our_contents, _] = mounted_by(&lab, &ours, &image, ("overlayfs", "ours"));
    assert_same(&without_link_counts(&our_tree), &without_link_counts(&listing(&bundle.join("rootfs"))));
    assert_same(&our_contents, &contents(&bundle.join("rootfs")));
    let [their_tree, ..] = mounted_by(&lab, &theirs, &pushed, ("overlayfs", "theirs"));
    assert_same(&our_tree, &their_tree);
    ours.stop_clean();
}

#[test]
fn what_skopeo_and_containerd_push_we_pull_and_run() {
    let lab = Lab::new();
    let registry = DockerRegistry::start(&lab);
    let (ours, theirs) = (Daemon::start(&lab), Daemon::start_with(&lab, Peer::Containerd, "", &[]));
    let image = Image::new(&lab, "from").layer(&busybox_root(&lab)).push(&registry.host(), "from");
    let (by_skopeo, docker) = (format!("{}/skopeo:1", registry.host()), format!("{}/docker:1", registry.host()));
    let zstd = ["--dest-compress-format=zstd", "--format=oci"];
    skopeo(&[&zstd[..], &[&format!("docker://{image}"), &format!("docker://{by_skopeo}")]].concat());
    skopeo(&["--format=v2s2", &format!("docker://{image}"), &format!("docker://{docker}")]);
    theirs.ctr(&["images", "pull", "--plain-http", &docker]).ok();
    let by_containerd = format!("{}/containerd:1", registry.host());
    theirs.ctr(&["images", "tag", &docker, &by_containerd]).ok();
    theirs.ctr(&["images", "push", "--plain-http", &by_containerd]).ok();
    for (number, image) in [by_skopeo, docker, by_containerd].iter().enumerate() {
        ours.ctr(&["images", "pull", "--plain-http", image]).ok();
        let out = ours.ctr(&["run", "--rm", image, &lab.id(&format!("r{number}")), "/bin/echo", "from elsewhere"]);
        assert_eq!(out.ok(), "from elsewhere\n");
    }
    ours.assert_nothing_leaked();
    ours.stop_clean();
}

/// A file of some snapshot.
fn unpacked(daemon: &Daemon, name: &str) -> PathBuf {
    let snapshots = daemon.root().join("snapshots/overlayfs/snapshots");
    let found = run("find", &[&snapshots.to_string_lossy(), "-path", &format!("*/fs/{name}")]);
    PathBuf::from(found.lines().next().expect("it was unpacked"))
}

fn flip(path: &Path) {
    let file = std::fs::File::options().read(true).write(true).open(path).expect("open what is to be damaged");
    let mut byte = [0];
    file.read_exact_at(&mut byte, 100).expect("read");
    file.write_all_at(&[!byte[0]], 100).expect("write");
}

#[test]
fn a_daemon_that_was_killed_finds_and_mends_what_is_damaged() {
    let lab = Lab::new();
    let registry = DockerRegistry::start(&lab);
    let mut daemon = Daemon::start(&lab);
    let image = Image::new(&lab, "torn").layer(&busybox_root(&lab)).push(&registry.host(), "torn");
    daemon.gctr(&["pull", "--plain-http", &image]).ok();
    let whole = daemon.gctr(&["image", "check", &image]);
    assert!(whole.stdout.contains("3 blobs and 1 snapshots checked"), "{whole}");
    daemon.crash();
    flip(&unpacked(&daemon, "bin/busybox"));
    std::fs::remove_file(unpacked(&daemon, "etc/passwd")).expect("remove a file");
    daemon.launch();
    // Nothing is made of it before it is mended.
    let out = daemon.ctr(&["run", "--rm", &image, &lab.id("after"), "/bin/cat", "/etc/passwd"]);
    assert!(out.ok().starts_with("root:x:0:0:"), "{out}");
    daemon.gctr(&["fsck"]).ok();
    flip(&unpacked(&daemon, "bin/busybox"));
    let told = daemon.gctr(&["--json", "fsck"]);
    assert!(told.code == 1 && told.stdout.contains(": has "), "{told}");
    let mended = daemon.gctr(&["--json", "fsck", "--repair"]);
    assert!(mended.ok().contains("unpacked again"), "{mended}");
    daemon.gctr(&["fsck"]).ok();
    daemon.assert_nothing_leaked();
    daemon.stop_clean();
}

#[test]
fn what_is_converted_to_estargz_passes_the_formats_own_verifier_and_runs() {
    let lab = Lab::new();
    let registry = DockerRegistry::start(&lab);
    let daemon = Daemon::start(&lab);
    let root = debian_root(&lab, &["perl-modules-5.36"]);
    let image = Image::new(&lab, "lazy").layer(&busybox_root(&lab)).layer(&root).push(&registry.host(), "lazy");
    daemon.gctr(&["pull", "--plain-http", &image]).ok();
    let converted = format!("{}/lazy:estargz", registry.host());
    let digest = daemon.gctr(&["image", "convert", "--form", "estargz", &image, &converted]).ok().trim().to_owned();
    let manifest: serde_json::Value =
        serde_json::from_str(daemon.gctr(&["content", "get", &digest]).ok()).expect("a manifest");
    for layer in manifest["layers"].as_array().expect("layers") {
        let (digest, table) = (&layer["digest"], &layer["annotations"]["containerd.io/snapshot/stargz/toc.digest"]);
        let (digest, table) = (digest.as_str().expect("a digest"), table.as_str().expect("a table"));
        let hex = digest.trim_start_matches("sha256:");
        let blob = daemon.root().join("content/blobs/sha256").join(hex);
        let judged = run(&peer_binary("estargz").to_string_lossy(), &[&blob.to_string_lossy(), table]);
        assert!(judged.contains(" files, "), "{judged}");
    }
    daemon.ctr(&["images", "push", "--plain-http", &converted]).ok();
    daemon.gctr(&["pull", "--plain-http", &converted]).ok();
    let out =
        daemon.ctr(&["run", "--rm", &converted, &lab.id("lazy"), "/bin/sh", "-c", "ls /usr/share/perl | head -1"]);
    assert!(!out.ok().is_empty(), "{out}");
    daemon.assert_nothing_leaked();
    daemon.stop_clean();
}

#[test]
fn an_image_is_shown_at_a_directory_until_it_is_unmounted() {
    let lab = Lab::new();
    let registry = DockerRegistry::start(&lab);
    let daemon = Daemon::start(&lab);
    let image = Image::new(&lab, "shown").layer(&busybox_root(&lab)).layer(&special_root(&lab));
    let image = image.push(&registry.host(), "shown");
    daemon.gctr(&["pull", "--plain-http", &image]).ok();
    let place = lab.path("place");
    std::fs::create_dir(&place).expect("make a directory");
    let text = place.to_string_lossy().into_owned();
    daemon.gctr(&["image", "mount", &image, &text]).ok();
    daemon.gctr(&["gc"]).ok();
    assert!(std::fs::read_to_string(place.join("etc/passwd")).expect("read").starts_with("root:"));
    assert!(std::fs::write(place.join("new"), "").is_err(), "it is read-only");
    daemon.gctr(&["image", "unmount", &text]).ok();
    daemon.gctr(&["image", "mount", "--writable", &image, &text]).ok();
    std::fs::write(place.join("new"), "mine").expect("write");
    daemon.gctr(&["image", "unmount", &text]).ok();
    assert!(std::fs::read_dir(&place).expect("list").next().is_none(), "nothing is mounted any more");
    daemon.assert_nothing_leaked();
    daemon.stop_clean();
}

/// A disk of its own for one daemon.
struct Disk {
    image: PathBuf,
    at: PathBuf,
}

impl Disk {
    fn new(lab: &Lab, name: &str, megabytes: u64) -> Disk {
        let disk = Disk { image: lab.path(&format!("{name}.img")), at: lab.path(name) };
        let file = std::fs::File::create(&disk.image).expect("make an image file");
        file.set_len(megabytes << 20).expect("size the image file");
        run("mkfs.ext4", &["-q", "-m", "0", &disk.image.to_string_lossy()]);
        std::fs::create_dir_all(&disk.at).expect("make a directory");
        disk.mount();
        disk
    }

    fn mount(&self) {
        run("mount", &["-o", "loop", &self.image.to_string_lossy(), &self.at.to_string_lossy()]);
    }

    /// Leaves this many megabytes free.
    fn fill(&self, megabytes: u64) -> PathBuf {
        let at = self.at.to_string_lossy();
        let free: u64 = run("stat", &["-f", "-c", "%a", &at]).trim().parse().expect("a number of blocks");
        let size: u64 = run("stat", &["-f", "-c", "%S", &at]).trim().parse().expect("the size of a block");
        let filler = self.at.join("filler");
        let length = (free * size).saturating_sub(megabytes << 20);
        run("fallocate", &["-l", &length.to_string(), &filler.to_string_lossy()]);
        filler
    }
}

#[test]
fn a_pull_onto_a_full_or_broken_disk_is_refused_whole_and_works_once_the_disk_does() {
    let lab = Lab::new();
    let registry = DockerRegistry::start(&lab);
    let root = lab.path("noise");
    std::fs::create_dir_all(&root).expect("make a directory");
    run(
        "dd",
        &["if=/dev/urandom", &format!("of={}", root.join("noise").display()), "bs=1M", "count=24", "status=none"],
    );
    let image = Image::new(&lab, "noise").layer(&root).push(&registry.host(), "noise");
    let disk = Disk::new(&lab, "g", 640);
    let mut daemon = Daemon::start(&lab);
    let refused = |daemon: &Daemon, why: &str| {
        let out = daemon.ctr(&["images", "pull", "--plain-http", &image]);
        assert!(out.code != 0 && out.stderr.to_lowercase().contains(why), "{out}");
        assert_eq!(daemon.gctr(&["--json", "images"]).ok(), "", "no half image");
        daemon.gctr(&["version"]).ok();
    };
    // No room for the blob, then none for its files.
    for megabytes in [12, 34] {
        let filler = disk.fill(megabytes);
        refused(&daemon, "no space left");
        std::fs::remove_file(filler).expect("make room");
    }
    daemon.ctr(&["images", "pull", "--plain-http", &image]).ok();
    daemon.ctr(&["images", "rm", "--sync", &image]).ok();
    // The kernel lets nobody write to a disk that has failed.
    let at = disk.at.to_string_lossy().into_owned();
    run("mount", &["-o", "remount,abort", &at]);
    let out = daemon.ctr(&["images", "pull", "--plain-http", &image]);
    assert!(out.code != 0, "{out}");
    daemon.gctr(&["version"]).ok();
    daemon.crash();
    run("umount", &[&at]);
    let _ = std::process::Command::new("e2fsck").args(["-fy", &disk.image.to_string_lossy()]).output();
    disk.mount();
    daemon.restart();
    daemon.ctr(&["images", "pull", "--plain-http", &image]).ok();
    let report = daemon.gctr(&["fsck"]);
    assert!(report.ok().contains("checked"), "{report}");
    daemon.ctr(&["images", "rm", "--sync", &image]).ok();
    assert_eq!(daemon.gctr(&["--json", "content"]).ok(), "");
    daemon.stop_clean();
}
