//! Layers that are there before they are fetched: the real snapshotters stargz and nydus behind the daemon, with stargz'
//! own client, and as kubelets use them.

use std::collections::BTreeSet;
use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use gantry_integration::images::{Image, Packed, Packing, busybox_root, debian_root, digest_of};
use gantry_integration::lab::{peer_binary, run};
use gantry_integration::registry::DockerRegistry;
use gantry_integration::{Daemon, Lab, Outcome, Peer, census};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::cri_node::{self, Node, wait_for};

/// What a daemon's configuration says of a snapshotter that is told where layers come from, containerd's as ours.
fn plugin(name: &str, socket: &Path) -> String {
    format!(
        "[proxy_plugins.{name}]\ntype = 'snapshot'\naddress = {socket:?}\n\
         [proxy_plugins.{name}.exports]\nenable_remote_snapshot_annotations = 'true'\n\
         [[plugins.'io.containerd.transfer.v1.local'.unpack_config]]\nplatform = 'linux/amd64'\nsnapshotter = '{name}'\n"
    )
}

/// The stargz snapshotter in a process of its own (`integration/tools/stargz`).
struct Stargz {
    dir: PathBuf,
    child: Child,
}

impl Stargz {
    /// Starts one that fetches what is read, and nothing else.
    fn start(lab: &Lab, name: &str, registry: &DockerRegistry) -> Stargz {
        assert!(File::open("/dev/fuse").is_ok(), "/dev/fuse cannot be opened: lazy layers are mounted by FUSE");
        let (dir, host) = (lab.path(name), registry.host());
        std::fs::create_dir_all(&dir).expect("make a directory");
        let config = format!(
            "noprefetch = true\nno_background_fetch = true\nno_prometheus = true\n\
             [[resolver.host.'{host}'.mirrors]]\nhost = '{host}'\ninsecure = true\n"
        );
        std::fs::write(dir.join("config.toml"), config).expect("write the configuration");
        let mut command = Command::new(peer_binary("stargz"));
        command.arg("-socket").arg(dir.join("s")).arg("-root").arg(dir.join("root"));
        command.arg("-config").arg(dir.join("config.toml")).stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(File::create(dir.join("log")).expect("a log"));
        let stargz = Stargz { child: command.spawn().expect("start the snapshotter"), dir };
        let start = Instant::now();
        while std::os::unix::net::UnixStream::connect(stargz.dir.join("s")).is_err() {
            assert!(start.elapsed() < Duration::from_secs(15), "the snapshotter does not answer:\n{}", stargz.log());
            std::thread::sleep(Duration::from_millis(10));
        }
        stargz
    }

    fn plugin(&self) -> String {
        plugin("stargz", &self.dir.join("s"))
    }

    /// What it was asked, and how that ended.
    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// Labels that it was given.
    fn labels(&self) -> BTreeSet<String> {
        self.log().lines().filter_map(|line| Some(line.split_once(" label ")?.1.to_owned())).collect()
    }

    /// Where it has mounted layers.
    fn mounts(&self) -> Vec<String> {
        let table = std::fs::read_to_string("/proc/thread-self/mountinfo").expect("a mount table");
        let lazy = table.lines().filter(|line| line.contains(" stargz ") && line.contains(" - fuse"));
        let points =
            lazy.filter_map(|line| line.split(' ').nth(4)).filter(|point| Path::new(point).starts_with(&self.dir));
        points.map(str::to_owned).collect()
    }

    /// Insists that it has nothing mounted any more.
    #[track_caller]
    fn assert_unmounted(&self) {
        let until = Instant::now() + Duration::from_secs(10);
        while !self.mounts().is_empty() {
            assert!(Instant::now() < until, "left behind: {:?}\n{}", self.mounts(), self.log());
            std::thread::sleep(Duration::from_millis(25));
        }
    }
}

impl Drop for Stargz {
    fn drop(&mut self) {
        // It takes its mounts away, which would keep a reader waiting for nobody.
        let _ = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM);
        let until = Instant::now() + Duration::from_secs(5);
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An image in the eSTARGZ form, and what is known of it.
struct Lazy {
    image: String,
    /// Digest and size of each layer.
    layers: Vec<(String, u64)>,
    /// A file of the upper layer, and its digest.
    file: (String, String),
    /// Another one.
    other: (String, String),
}

/// Has a daemon of ours convert an image of two layers and push it; nothing of that daemon is left.
fn lazy_image(lab: &Lab, registry: &DockerRegistry) -> Lazy {
    let daemon = Daemon::start_named(lab, "convert", Peer::Gantry, "", &[]);
    let root = debian_root(lab, &["perl-modules-5.36"]);
    let plain = Image::new(lab, "plain").layer(&busybox_root(lab)).layer(&root).push(&registry.host(), "plain");
    daemon.gctr(&["pull", "--plain-http", &plain]).ok();
    let image = format!("{}/lazy:latest", registry.host());
    let manifest = daemon.gctr(&["image", "convert", "--form", "estargz", &plain, &image]).ok().trim().to_owned();
    daemon.ctr(&["images", "push", "--plain-http", &image]).ok();
    let manifest: Value = serde_json::from_str(daemon.gctr(&["content", "get", &manifest]).ok()).expect("a manifest");
    daemon.stop_clean();
    let layers = manifest["layers"].as_array().expect("layers").iter();
    let layers =
        layers.map(|l| (l["digest"].as_str().expect("a digest").to_owned(), l["size"].as_u64().expect("a size")));
    let file = |name: &str| {
        let path = format!("usr/share/perl/5.36.0/{name}");
        let digest = digest_of(&root.join(&path)).trim_start_matches("sha256:").to_owned();
        (format!("/{path}"), digest)
    };
    Lazy { image, layers: layers.collect(), file: file("CPAN.pm"), other: file("perl5db.pl") }
}

impl Lazy {
    /// Insists that the daemon fetched no layer, and the snapshotter only parts of the upper one. Of the lower one all is
    /// read: it is little more than the program.
    #[track_caller]
    fn assert_not_fetched(&self, daemon: &Daemon, namespace: &str, registry: &DockerRegistry) {
        let blobs = daemon.ctr(&["-n", namespace, "content", "ls", "-q"]).ok().to_owned();
        for (digest, _) in &self.layers {
            assert!(!blobs.contains(digest), "{digest} was fetched:\n{blobs}");
            let answers = registry.answers(digest);
            assert!(answers.iter().all(|(status, _)| *status == 206), "not only ranges of {digest}: {answers:?}");
        }
        let (digest, size) = self.layers.last().expect("an upper layer");
        let answers = registry.answers(digest);
        let sent: u64 = answers.iter().map(|(_, bytes)| bytes).sum();
        assert!((1..size / 2).contains(&sent), "{sent} of {size} bytes of {digest}: {answers:?}");
    }
}

/// Runs a container that reads a file of the upper layer.
#[track_caller]
fn assert_reads(lab: &Lab, daemon: &Daemon, image: &str, (file, digest): &(String, String)) {
    let run = ["run", "--rm", "--snapshotter", "stargz", image, &lab.id("reader"), "sha256sum", file];
    assert_eq!(daemon.ctr(&run).ok().trim(), format!("{digest}  {file}"), "{}", daemon.log_tail());
}

#[test]
fn stargz_is_told_what_containerd_tells_it_and_layers_are_read_as_they_are_needed() {
    let lab = Lab::new();
    let registry = DockerRegistry::start(&lab);
    let lazy = lazy_image(&lab, &registry);
    let mut told = Vec::new();
    for (name, peer) in [("a", Peer::Gantry), ("b", Peer::Containerd)] {
        let stargz = Stargz::start(&lab, &format!("stargz-{name}"), &registry);
        let config = format!("version = 3\n{}", stargz.plugin());
        let daemon = Daemon::start_with(&lab, peer, &config, &[]);
        daemon.ctr(&["images", "pull", "--plain-http", "--snapshotter", "stargz", &lazy.image]).ok();
        assert_eq!(stargz.mounts().len(), lazy.layers.len(), "{}\n{}", stargz.log(), daemon.log_tail());
        assert_reads(&lab, &daemon, &lazy.image, &lazy.file);
        lazy.assert_not_fetched(&daemon, "default", &registry);
        told.push(stargz.labels());
        daemon.ctr(&["images", "rm", "--sync", &lazy.image]).ok();
        stargz.assert_unmounted();
        daemon.assert_nothing_leaked();
        daemon.stop_clean();
    }
    assert_eq!(told[0], told[1], "left by ours, right by containerd");
}

#[test]
fn a_pod_runs_on_layers_that_were_not_fetched() {
    let lab = Lab::new();
    let registry = DockerRegistry::start(&lab);
    let lazy = lazy_image(&lab, &registry);
    let stargz = Stargz::start(&lab, "stargz-cri", &registry);
    let images =
        "[plugins.'io.containerd.cri.v1.images']\nsnapshotter = 'stargz'\ndisable_snapshot_annotations = false\n";
    let node = Node::start_with(&lab, &format!("{}{images}{}", cri_node::config(&lab), stargz.plugin()));
    node.ask_images("PullImage", &json!({"image": {"image": lazy.image}}));
    assert_eq!(stargz.mounts().len(), lazy.layers.len(), "{}\n{}", stargz.log(), node.daemon.log_tail());
    let pod = node.run_pod("lazy", &json!({}));
    let sleeping = json!({"image": {"image": lazy.image}, "command": ["sleep", "3600"]});
    let container = node.run_container(&pod, "reader", &sleeping);
    for (file, digest) in [&lazy.file, &lazy.other] {
        let check = format!("echo '{digest}  {file}' | sha256sum -c");
        let exec = json!({"container_id": container, "cmd": ["sh", "-c", check], "timeout": 30});
        assert_eq!(node.ask("ExecSync", &exec)["exitCode"], 0, "{}", node.daemon.log_tail());
    }
    lazy.assert_not_fetched(&node.daemon, "k8s.io", &registry);
    node.remove_pod(&pod);
    node.ask_images("RemoveImage", &json!({"image": {"image": lazy.image}}));
    stargz.assert_unmounted();
    node.finish();
}

#[test]
fn the_client_of_stargz_pulls_and_containers_read_on_whatever_becomes_of_the_daemon() {
    let lab = Lab::new();
    let registry = DockerRegistry::start(&lab);
    let lazy = lazy_image(&lab, &registry);
    let stargz = Stargz::start(&lab, "stargz", &registry);
    let config = format!("version = 3\n{}", stargz.plugin());
    let mut daemon = Daemon::start_with(&lab, Peer::Gantry, &config, &[]);
    let mut pull = daemon.command(peer_binary("debian/ctr-remote"));
    pull.arg("--address").arg(daemon.address()).args(["images", "rpull", "--plain-http", &lazy.image]);
    Outcome::of(pull, Duration::from_secs(60)).ok();
    assert_eq!(stargz.mounts().len(), lazy.layers.len(), "{}\n{}", stargz.log(), daemon.log_tail());
    let told = stargz.labels();
    for (name, value) in [("reference", &lazy.image), ("digest", &lazy.layers[0].0), ("digest", &lazy.layers[1].0)] {
        let label = format!("containerd.io/snapshot/remote/stargz.{name}={value}");
        assert!(told.contains(&label), "{label} is missing: {told:?}");
    }
    let id = lab.id("reader");
    daemon.ctr(&["run", "-d", "--snapshotter", "stargz", &lazy.image, &id, "sleep", "1000"]).ok();
    let read = |daemon: &Daemon, name: &str, (file, digest): &(String, String)| {
        let out = daemon.ctr(&["tasks", "exec", "--exec-id", name, &id, "sha256sum", file]);
        assert_eq!(out.ok().trim(), format!("{digest}  {file}"), "{}", daemon.log_tail());
    };
    read(&daemon, "one", &lazy.file);
    daemon.crash();
    daemon.launch();
    read(&daemon, "two", &lazy.other);
    // Nothing to do for another pull, and nothing broken or superfluous.
    daemon.ctr(&["images", "pull", "--plain-http", "--snapshotter", "stargz", &lazy.image]).ok();
    daemon.gctr(&["gc"]).ok();
    daemon.gctr(&["fsck"]).ok();
    lazy.assert_not_fetched(&daemon, "default", &registry);
    daemon.ctr(&["tasks", "kill", "-s", "KILL", &id]).ok();
    wait_for("the task has ended", || daemon.ctr(&["tasks", "rm", &id]).code == 0);
    daemon.ctr(&["containers", "rm", &id]).ok();
    daemon.ctr(&["images", "rm", "--sync", &lazy.image]).ok();
    stargz.assert_unmounted();
    daemon.assert_nothing_leaked();
    daemon.stop_clean();
}

#[test]
fn what_stargz_cannot_mount_is_fetched_and_unpacked_and_what_it_lost_is_pulled_again() {
    let lab = Lab::new();
    let registry = DockerRegistry::start(&lab);
    let image = Image::new(&lab, "plain").layer(&busybox_root(&lab)).push(&registry.host(), "plain");
    let mut stargz = Stargz::start(&lab, "stargz", &registry);
    let config = format!("version = 3\n{}", stargz.plugin());
    let mut daemon = Daemon::start_with(&lab, Peer::Gantry, &config, &[]);
    let file = ("/etc/passwd".to_owned(), digest_of(&lab.path("busybox-root/etc/passwd")).replace("sha256:", ""));
    let pull = ["images", "pull", "--plain-http", "--snapshotter", "stargz", &image];
    daemon.ctr(&pull).ok();
    assert_eq!(stargz.mounts(), [""; 0], "{}", stargz.log());
    assert_reads(&lab, &daemon, &image, &file);
    // An operator's remedy: a new beginning of the snapshotter alone.
    daemon.stop();
    drop(stargz);
    std::fs::remove_dir_all(lab.path("stargz")).expect("remove the snapshotter's directory");
    stargz = Stargz::start(&lab, "stargz", &registry);
    daemon.launch();
    // Its records are compared with what is there meanwhile, and judged only after a while.
    wait_for("what was lost is pulled again", || daemon.ctr(&pull).code == 0);
    assert_reads(&lab, &daemon, &image, &file);
    assert!(stargz.log().contains("Snapshots/Commit"), "{}", stargz.log());
    daemon.assert_nothing_leaked();
    daemon.stop_clean();
}

/// The nydus snapshotter.
struct Nydus {
    dir: PathBuf,
    tag: String,
    child: Child,
}

impl Nydus {
    /// Starts one whose files are brought in by `driver`: its own `nydusd` (`fusedev`), or somebody else in a virtual machine.
    fn start(lab: &Lab, name: &str, driver: &str) -> Nydus {
        let dir = lab.path(name);
        std::fs::create_dir_all(&dir).expect("make a directory");
        let (root, socket, file, device) =
            (dir.join("root"), dir.join("s"), dir.join("config.toml"), dir.join("device.json"));
        // A machine may withhold the right to raise limits.
        let program = dir.join("nydusd");
        let script = format!("#!/bin/sh\nexec {:?} \"$@\" --rlimit-nofile 0\n", peer_binary("nydus/bin/nydusd"));
        std::fs::write(&program, script).expect("write a script");
        std::fs::set_permissions(&program, Permissions::from_mode(0o755)).expect("set a mode");
        let mode = if driver == "fusedev" { "dedicated" } else { "none" };
        let config = format!(
            "version = 1\nroot = {root:?}\naddress = {socket:?}\ndaemon_mode = '{mode}'\n\
             [daemon]\nfs_driver = '{driver}'\nrecover_policy = 'none'\nnydusd_config = {device:?}\n\
             nydusd_path = {program:?}\nnydusimage_path = {:?}\n\
             [snapshot]\nenable_kata_volume = {}\n[log]\nlog_to_stdout = true\nlevel = 'debug'\n",
            peer_binary("nydus/bin/nydus-image"),
            mode == "none",
        );
        std::fs::write(&file, config).expect("write the configuration");
        let backend = json!({"type": "registry", "config": {"scheme": "http", "timeout": 5, "retry_limit": 2}});
        let device_config = json!({
            "device": {"backend": backend, "cache": {"type": "blobcache"}}, "mode": "direct", "enable_xattr": true,
            "fs_prefetch": {"enable": false},
        });
        std::fs::write(device, device_config.to_string()).expect("write the configuration");
        let log = File::create(dir.join("log")).expect("a log");
        let mut command = Command::new(peer_binary("containerd-nydus-grpc"));
        command.arg("--config").arg(file).stdin(Stdio::null());
        command.stdout(log.try_clone().expect("a descriptor")).stderr(log);
        let nydus = Nydus { child: command.spawn().expect("start the snapshotter"), dir, tag: lab.tag().to_owned() };
        wait_for("the snapshotter answers", || std::os::unix::net::UnixStream::connect(&socket).is_ok());
        nydus
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// Insists that it has removed all snapshots.
    #[track_caller]
    fn assert_empty(&self) {
        let left = || std::fs::read_dir(self.dir.join("root/snapshots")).map(Iterator::count).unwrap_or_default();
        wait_for("nydus has removed its snapshots", || left() == 0);
    }
}

impl Drop for Nydus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // Processes that hold its mounts are children of nobody by then.
        census::end_processes_of(&self.dir, &self.tag);
    }
}

/// Has nydus' builder make an image of busybox and a large file, and pushes it: data that nobody else can read, and above it
/// a layer with the table of files. Its reference, and the digests of both blobs.
fn nydus_image(lab: &Lab, registry: &DockerRegistry) -> (String, [String; 2]) {
    let (blobs, table, root) = (lab.path("blobs"), lab.path("table"), busybox_root(lab));
    for dir in [&blobs, &table.join("image")] {
        std::fs::create_dir_all(dir).expect("make a directory");
    }
    run(
        "cp",
        &["-a", &debian_root(lab, &["perl-modules-5.36"]).join("usr").to_string_lossy(), &root.to_string_lossy()],
    );
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let (boot, into, from) = (text(&table.join("image/image.boot")), text(&blobs), text(&root));
    let build = ["create", "--bootstrap", &boot, "--blob-dir", &into, "--log-level", "error", &from];
    run(&text(&peer_binary("nydus/bin/nydus-image")), &build);
    let data = std::fs::read_dir(&blobs).expect("blobs").flatten().next().expect("a blob").path();
    let blob = Packed { file: data.clone(), diff_id: digest_of(&data), packing: Packing::Gzip };
    let note = |key: &str| json!({format!("containerd.io/snapshot/nydus-{key}"): "true"});
    let kind = "application/vnd.oci.image.layer.nydus.blob.v1";
    let image = Image::new(lab, "nydus").packed(&blob);
    let image = image.described(json!({"mediaType": kind, "annotations": note("blob")}));
    let image = image.layer(&table).described(json!({"annotations": note("bootstrap")}));
    let image = image.push(&registry.host(), "nydus");
    (image, [digest_of(&data), digest_of(&lab.path("image-nydus/1.tar.gz"))])
}

#[test]
fn a_container_runs_on_what_nydus_reads_as_it_is_needed() {
    let lab = Lab::new();
    let registry = DockerRegistry::start(&lab);
    let (image, [data, table]) = nydus_image(&lab, &registry);
    let nydus = Nydus::start(&lab, "nydus", "fusedev");
    let config = format!("version = 3\n{}", plugin("nydus", &nydus.dir.join("s")));
    let mut daemon = Daemon::start_with(&lab, Peer::Gantry, &config, &[]);
    daemon.ctr(&["images", "pull", "--plain-http", "--snapshotter", "nydus", &image]).ok();
    let id = lab.id("reader");
    let started = daemon.ctr(&["run", "-d", "--snapshotter", "nydus", &image, &id, "sleep", "1000"]);
    assert!(started.code == 0, "{started}\n{}", nydus.log());
    let read = |daemon: &Daemon, name: &str| {
        let file = format!("/usr/share/perl/5.36.0/{name}");
        let digest = digest_of(&lab.path("busybox-root").join(&file[1..])).replace("sha256:", "");
        let out = daemon.ctr(&["tasks", "exec", "--exec-id", name, &id, "sha256sum", &file]);
        assert_eq!(out.ok().trim(), format!("{digest}  {file}"), "{}", nydus.log());
    };
    read(&daemon, "CPAN.pm");
    daemon.crash();
    daemon.launch();
    read(&daemon, "perl5db.pl");
    let blobs = daemon.ctr(&["content", "ls", "-q"]).ok().to_owned();
    assert!(blobs.contains(&table) && !blobs.contains(&data), "{blobs}");
    let answers = registry.answers(&data);
    let sent: u64 = answers.iter().map(|(_, bytes)| bytes).sum();
    let size = std::fs::metadata(lab.path("blobs").join(data.trim_start_matches("sha256:"))).expect("the blob").len();
    assert!((1..size).contains(&sent) && answers.iter().all(|(status, _)| *status == 206), "of {size}: {answers:?}");
    daemon.ctr(&["tasks", "kill", "-s", "KILL", &id]).ok();
    wait_for("the task has ended", || daemon.ctr(&["tasks", "rm", &id]).code == 0);
    daemon.ctr(&["containers", "rm", &id]).ok();
    daemon.ctr(&["images", "rm", "--sync", &image]).ok();
    nydus.assert_empty();
    let left = census::mounts(&nydus.dir);
    assert!(left.is_empty(), "{left:?}\n{}", nydus.log());
    daemon.assert_nothing_leaked();
    daemon.stop_clean();
}

#[test]
fn nydus_knows_its_layers_by_their_annotations_and_only_the_table_of_files_is_fetched() {
    let lab = Lab::new();
    let registry = DockerRegistry::start(&lab);
    let (image, [data, table]) = nydus_image(&lab, &registry);
    for (name, peer) in [("a", Peer::Gantry), ("b", Peer::Containerd)] {
        let nydus = Nydus::start(&lab, name, "nodev");
        let config = format!("version = 3\n{}", plugin("nydus", &nydus.dir.join("s")));
        let daemon = Daemon::start_with(&lab, peer, &config, &[]);
        daemon.ctr(&["images", "pull", "--plain-http", "--snapshotter", "nydus", &image]).ok();
        assert_eq!(registry.answers(&data), [], "{peer:?} fetched what is nydus' own:\n{}", nydus.log());
        assert!(daemon.ctr(&["content", "ls", "-q"]).ok().contains(&table), "{peer:?}\n{}", nydus.log());
        for layer in ["found nydus data layer", "found nydus meta layer"] {
            assert!(nydus.log().contains(layer), "{peer:?}\n{}", nydus.log());
        }
        let boot = run("find", &[&nydus.dir.to_string_lossy(), "-name", "image.boot"]);
        let built = digest_of(&lab.path("table/image/image.boot"));
        assert_eq!(digest_of(Path::new(boot.trim())), built, "{peer:?}");
        daemon.ctr(&["images", "rm", "--sync", &image]).ok();
        nydus.assert_empty();
        daemon.assert_nothing_leaked();
        daemon.stop_clean();
    }
}

#[test]
fn nydus_may_leave_all_layers_to_the_guest_and_its_mounts_come_through_as_they_are() {
    let lab = Lab::new();
    let registry = DockerRegistry::start(&lab);
    let (image, layers) = nydus_image(&lab, &registry);
    let mut all = Vec::new();
    for (name, peer) in [("a", Peer::Gantry), ("b", Peer::Containerd)] {
        let nydus = Nydus::start(&lab, name, "proxy");
        let config = format!("version = 3\n{}", plugin("nydus", &nydus.dir.join("s")));
        let daemon = Daemon::start_with(&lab, peer, &config, &[]);
        daemon.ctr(&["images", "pull", "--plain-http", "--snapshotter", "nydus", &image]).ok();
        for layer in &layers {
            assert_eq!(registry.answers(layer), [], "{peer:?}\n{}", nydus.log());
        }
        let snapshots = |args: &[&str]| daemon.ctr(&[&["snapshots", "--snapshotter", "nydus"], args].concat());
        let listed = snapshots(&["ls"]).ok().to_owned();
        let top = listed.lines().find(|line| line.contains(&format!(" {} ", layers[0]))).unwrap_or(&listed);
        snapshots(&["prepare", "work", top.split(' ').next().unwrap_or_default()]).ok();
        let mounts = snapshots(&["mounts", "/m", "work"]);
        assert!(mounts.ok().contains("fuse.nydus-overlayfs"), "{peer:?}: {mounts}");
        all.push(mounts.ok().replace(&*nydus.dir.to_string_lossy(), "DIR"));
        snapshots(&["rm", "work"]).ok();
        daemon.ctr(&["images", "rm", "--sync", &image]).ok();
        nydus.assert_empty();
        daemon.assert_nothing_leaked();
        daemon.stop_clean();
    }
    assert_eq!(all[0], all[1], "left by ours, right by containerd");
}
