//! Parts of the daemon that another process serves: containerd's own snapshotter, content store and differ behind a
//! socket, programs for layers of a media type of their own, and the daemon itself as such a part of containerd.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use gantry_integration::images::{Image, busybox_root, digest_of, push_blob, push_manifest};
use gantry_integration::lab::{peer_binary, run, source_root};
use gantry_integration::registry::DockerRegistry;
use gantry_integration::{Daemon, Lab, Outcome, Peer};
use serde_json::{Value, json};

use crate::bad_requests::Wire;
use crate::mounts::call;

/// containerd's parts in a process of their own (`integration/tools/plugin`).
struct Plugin {
    dir: PathBuf,
    arguments: Vec<String>,
    child: Option<Child>,
}

impl Plugin {
    fn start(lab: &Lab, arguments: &[&str]) -> Plugin {
        let dir = lab.path("p");
        std::fs::create_dir_all(&dir).expect("make a directory");
        let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let mut plugin = Plugin { dir, arguments, child: None };
        plugin.launch();
        plugin
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("p.sock")
    }

    fn launch(&mut self) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.dir.join("log")).expect("a log");
        let mut command = Command::new(peer_binary("plugin"));
        command.arg("-socket").arg(self.socket()).arg("-root").arg(self.dir.join("root")).args(&self.arguments);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.child = Some(command.spawn().expect("start the plug-in"));
        let start = Instant::now();
        while std::os::unix::net::UnixStream::connect(self.socket()).is_err() {
            assert!(start.elapsed() < Duration::from_secs(15), "the plug-in does not answer:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Calls and labels that came.
    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Configuration of a daemon with one part in another process.
fn configuration(kind: &str, name: &str, socket: &Path) -> String {
    format!(
        "version = 3\n[proxy_plugins.{name}]\ntype = \"{kind}\"\naddress = \"{}\"\ncapabilities = [\"remap-ids\"]\n\
         [proxy_plugins.{name}.exports]\nroot = \"/elsewhere\"\n",
        socket.display()
    )
}

/// Builds containerd's Go suites; outside of a laboratory, because modules may have to be fetched.
fn suites() -> PathBuf {
    let tools = source_root().join("integration/tools");
    let binary = tools.join("bin/suites.test");
    run("go", &["test", "-C", &tools.to_string_lossy(), "-c", "-o", &binary.to_string_lossy(), "./suites"]);
    binary
}

/// Runs one of the suites against a daemon.
#[track_caller]
fn suite(lab: &Lab, binary: &Path, daemon: &Daemon, test: &str, snapshotter: &str) {
    let mut command = daemon.command(binary);
    command.args(["-test.v", "-test.root", "-test.timeout=120s", "-test.run", &format!("^{test}$")]);
    // Copying as many layers as a stack can have says nothing of the way there, and takes a minute.
    command.args(["-test.skip", "128LayersMount"]);
    command.env("GANTRY_SOCKET", daemon.address()).env("GANTRY_SNAPSHOTTER", snapshotter);
    command.env("TMPDIR", lab.dir()).current_dir(lab.dir());
    let out = Outcome::of(command, Duration::from_secs(130));
    let summary: Vec<&str> = out.stdout.lines().filter(|l| l.contains("--- FAIL") || l.contains("_test.go")).collect();
    assert!(out.code == 0, "{}\n{}\nthe daemon's log:\n{}", summary.join("\n"), out, daemon.log_tail());
}

#[test]
fn the_snapshot_suite_passes_on_a_snapshotter_of_another_process() {
    let suites = suites();
    let lab = Lab::new();
    let plugin = Plugin::start(&lab, &[]);
    let config = configuration("snapshot", "outside", &plugin.socket());
    let daemon = Daemon::start_with(&lab, Peer::Gantry, &config, &[]);
    suite(&lab, &suites, &daemon, "TestNamed", "outside");
    let shown = daemon.ctr(&["plugins", "ls", "-d", "id==outside"]);
    for word in ["io.containerd.snapshotter.v1", "/elsewhere", "p.sock", "remap-ids"] {
        assert!(shown.ok().contains(word), "{word}: {shown}");
    }
    daemon.stop_clean();
}

#[test]
fn the_content_suite_passes_on_a_content_store_of_another_process() {
    let suites = suites();
    let lab = Lab::new();
    let plugin = Plugin::start(&lab, &[]);
    let config = configuration("content", "outside", &plugin.socket());
    let daemon = Daemon::start_with(&lab, Peer::Gantry, &config, &[]);
    suite(&lab, &suites, &daemon, "TestContent", "");
    assert!(!daemon.root().join("content").exists(), "blobs lie with the plug-in only");
    daemon.stop_clean();
}

#[test]
fn a_killed_plug_in_is_named_at_once_and_used_again_when_it_is_back() {
    let lab = Lab::new();
    let mut plugin = Plugin::start(&lab, &[]);
    let config = configuration("snapshot", "outside", &plugin.socket());
    let mut daemon = Daemon::start_with(&lab, Peer::Gantry, &config, &[]);
    let snapshots =
        |daemon: &Daemon, args: &[&str]| daemon.ctr(&[&["snapshots", "--snapshotter", "outside"], args].concat());
    snapshots(&daemon, &["prepare", "work"]).ok();
    snapshots(&daemon, &["commit", "base", "work"]).ok();
    snapshots(&daemon, &["label", "base", "containerd.io/gc.root=1"]).ok();
    plugin.kill();
    let refused = snapshots(&daemon, &["prepare", "more", "base"]);
    refused.fails_with("outside").fails_with(&plugin.socket().to_string_lossy());
    assert!(refused.took < Duration::from_secs(9), "{refused}");
    // Also a daemon that starts meanwhile waits for nobody, and keeps its records.
    daemon.crash();
    daemon.launch();
    snapshots(&daemon, &["usage", "base"]).fails_with("outside");
    daemon.ctr(&["snapshots", "ls"]).ok();
    plugin.launch();
    snapshots(&daemon, &["prepare", "more", "base"]).ok();
    let listed = snapshots(&daemon, &["ls"]);
    assert!(listed.ok().contains("base") && listed.ok().contains("more"), "{listed}");
    snapshots(&daemon, &["rm", "more"]).ok();
    daemon.stop_clean();
}

#[test]
fn a_layer_that_a_lazy_snapshotter_has_is_not_fetched() {
    let lab = Lab::new();
    let registry = DockerRegistry::start(&lab);
    let root = busybox_root(&lab);
    let image = Image::new(&lab, "lazy").layer(&root).push(&registry.host(), "lazy");
    // One layer: its chain id is the digest of its tar.
    let chain_id = digest_of(&lab.path("image-lazy/0.tar"));
    let layer = digest_of(&lab.path("image-lazy/0.tar.gz"));
    let layers = lab.path("layers");
    std::fs::create_dir_all(&layers).expect("make a directory");
    run("cp", &["-a", &root.to_string_lossy(), &layers.join(&chain_id).to_string_lossy()]);
    let plugin = Plugin::start(&lab, &["-layers", &layers.to_string_lossy()]);
    let config = configuration("snapshot", "lazy", &plugin.socket());
    let daemon = Daemon::start_with(&lab, Peer::Gantry, &config, &[]);
    daemon.ctr(&["images", "pull", "--plain-http", "--snapshotter", "lazy", &image]).ok();
    let blobs = daemon.ctr(&["content", "ls", "-q"]);
    assert!(!blobs.ok().contains(&layer), "the layer was fetched:\n{blobs}");
    let log = plugin.log();
    let told = ["cri.image-ref", "cri.layer-digest", "cri.image-layers", "cri.manifest-digest"];
    for label in told.map(|name| format!("containerd.io/snapshot/{name}=")) {
        assert!(log.contains(&label), "{label} is missing:\n{log}");
    }
    assert!(log.contains(&format!("containerd.io/snapshot/cri.layer-digest={layer}")), "{log}");
    let id = lab.id("lazy");
    let out = daemon.ctr(&["run", "--rm", "--snapshotter", "lazy", &image, &id, "echo", "it runs"]);
    assert_eq!(out.ok().trim(), "it runs");
    daemon.assert_nothing_leaked();
    daemon.stop_clean();
}

#[test]
fn a_sandbox_of_another_process_is_waited_for_also_over_that_ones_death() {
    let lab = Lab::new();
    let mut plugin = Plugin::start(&lab, &[]);
    let config = configuration("sandbox", "far", &plugin.socket());
    let daemon = Daemon::start_with(&lab, Peer::Gantry, &config, &[]);
    let wire = Wire::new(&lab, &daemon);
    let ask = |method: &str| {
        let message = json!({"sandboxId": "pod", "sandboxer": "far"});
        call(&wire, &format!("sandbox.v1.Controller/{method}"), None, &message)
    };
    assert_eq!(ask("Status"), Err("NotFound".into()), "the controller's own answer");
    ask("Create").expect("created");
    let pid = ask("Start").expect("started")["pid"].as_u64().expect("a process");
    assert_eq!(ask("Status").expect("a status")["state"], "SANDBOX_READY");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| ask("Wait"));
        std::thread::sleep(Duration::from_millis(200));
        plugin.kill();
        assert_eq!(ask("Status"), Err("Unavailable".into()));
        assert!(Path::new(&format!("/proc/{pid}")).exists(), "the sandbox does not depend on it");
        plugin.launch();
        ask("Stop").expect("stopped");
        let exit = waiting.join().expect("the wait ends").expect("an exit");
        assert_eq!(exit["exitStatus"], 137);
    });
    ask("Shutdown").expect("shut down");
    assert_eq!(ask("Wait"), Err("NotFound".into()));
    daemon.stop_clean();
}

#[test]
fn layers_are_unpacked_and_made_by_a_differ_of_another_process() {
    let lab = Lab::new();
    let registry = DockerRegistry::start(&lab);
    let image = Image::new(&lab, "diff").layer(&busybox_root(&lab)).push(&registry.host(), "diff");
    let socket = lab.path("g/s.sock");
    let plugin = Plugin::start(&lab, &["-daemon", &socket.to_string_lossy()]);
    let mut config = configuration("diff", "outside", &plugin.socket());
    config.push_str("[plugins.\"io.containerd.service.v1.diff-service\"]\ndefault = [\"outside\", \"walking\"]\n");
    let daemon = Daemon::start_with(&lab, Peer::Gantry, &config, &[]);
    daemon.ctr(&["images", "pull", "--local", "--plain-http", &image]).ok();
    let chain_id = digest_of(&lab.path("image-diff/0.tar"));
    daemon.ctr(&["snapshots", "prepare", "changed", &chain_id]).ok();
    let out = daemon.ctr(&["snapshots", "diff", "--keep", &chain_id]);
    assert!(out.code == 0 && out.stdout.len() > 512, "{out}");
    let log = plugin.log();
    for method in ["Diff/Apply", "Diff/Diff"] {
        assert!(log.contains(method), "{method} was not asked for:\n{log}");
    }
    // The daemon's own pulls ask it, too: here for the second layer.
    let two = Image::new(&lab, "two").layer(&busybox_root(&lab)).layer(&busybox_root(&lab));
    let two = two.push(&registry.host(), "two");
    let asked = || plugin.log().matches("Diff/Apply").count();
    let before = asked();
    daemon.ctr(&["images", "pull", "--plain-http", &two]).ok();
    assert_eq!(asked(), before + 1, "{}", plugin.log());
    let out = daemon.ctr(&["run", "--rm", &two, &lab.id("two"), "echo", "unpacked"]);
    assert!(out.ok().contains("unpacked"), "{out}");
    daemon.stop_clean();
}

/// An image whose only layer is a tar that was encrypted.
fn secret_image(lab: &Lab, host: &str) -> String {
    let (tar, sealed) = (lab.path("image-open/0.tar"), lab.path("sealed"));
    Image::new(lab, "open").layer(&busybox_root(lab)).push(host, "open");
    let (from, to) = (tar.to_string_lossy(), sealed.to_string_lossy());
    run("openssl", &["enc", "-aes-256-cbc", "-pbkdf2", "-pass", "pass:key", "-in", &from, "-out", &to]);
    let digest = digest_of(&sealed);
    push_blob(host, "secret", &sealed, &digest);
    let config: Value =
        serde_json::from_slice(&std::fs::read(lab.path("image-open/config.json")).expect("the configuration"))
            .expect("a configuration is JSON");
    let document = |name: &str, value: &Value| {
        let path = lab.path(name);
        let mut file = std::fs::File::create(&path).expect("make a file");
        file.write_all(value.to_string().as_bytes()).expect("write a document");
        path
    };
    let size = |path: &Path| std::fs::metadata(path).expect("a file just written").len();
    let config = document("secret-config.json", &config);
    push_blob(host, "secret", &config, &digest_of(&config));
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({
        "schemaVersion": 2, "mediaType": kind,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest_of(&config), "size": size(&config)},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+secret", "digest": digest, "size": size(&sealed)}],
    });
    push_manifest(host, "secret", "latest", &document("secret-manifest.json", &manifest), kind);
    format!("{host}/secret:latest")
}

/// A program that reads its key from the variable `KEY`.
fn processor(variable: &str) -> String {
    format!(
        "version = 3\n[stream_processors.opener]\naccepts = [\"application/vnd.oci.image.layer.v1.tar+secret\"]\n\
         returns = \"application/vnd.oci.image.layer.v1.tar\"\npath = \"openssl\"\n\
         args = [\"enc\", \"-d\", \"-aes-256-cbc\", \"-pbkdf2\", \"-pass\", \"env:KEY\"]\nenv = [\"{variable}=key\"]\n"
    )
}

#[test]
fn an_encrypted_layer_is_opened_by_a_program_as_containerd_does() {
    let lab = Lab::new();
    let registry = DockerRegistry::start(&lab);
    let image = secret_image(&lab, &registry.host());
    let pull = ["images", "pull", "--local", "--plain-http", &image];
    for peer in [Peer::Gantry, Peer::Containerd] {
        let daemon = Daemon::start_with(&lab, peer, &processor("KEY"), &[]);
        daemon.ctr(&pull).ok();
        let id = lab.id("secret");
        let out = daemon.ctr(&["run", "--rm", &image, &id, "echo", "opened"]);
        assert_eq!(out.ok().trim(), "opened", "{peer:?}");
        daemon.stop_clean();
    }
    // A program that fails is told in its own words, by the daemon's own pull, too.
    let daemon = Daemon::start_named(&lab, "w", Peer::Gantry, &processor("OTHER"), &[]);
    let refused = daemon.ctr(&["images", "pull", "--plain-http", &image]);
    refused.fails_with("opener").fails_with("KEY");
    daemon.assert_nothing_leaked();
    daemon.stop_clean();
}

#[test]
fn what_a_plug_in_acknowledged_is_there_however_often_it_is_killed() {
    let lab = Lab::new();
    let mut plugin = Plugin::start(&lab, &[]);
    let config = configuration("snapshot", "outside", &plugin.socket());
    let daemon = Daemon::start_with(&lab, Peer::Gantry, &config, &[]);
    let snapshots = |args: &[&str]| daemon.ctr(&[&["snapshots", "--snapshotter", "outside"], args].concat());
    let made: Vec<String> = std::thread::scope(|scope| {
        let work = scope.spawn(|| {
            let keys = (0..40).map(|number| format!("key-{number}-"));
            keys.filter(|key| snapshots(&["prepare", key]).code == 0).collect::<Vec<_>>()
        });
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(300));
            plugin.kill();
            std::thread::sleep(Duration::from_millis(150));
            plugin.launch();
        }
        work.join().expect("the work ends")
    });
    assert!(!made.is_empty());
    let listed = snapshots(&["ls"]).ok().to_owned();
    let there: Vec<&str> = listed.lines().filter_map(|line| line.split_whitespace().next()).collect();
    for key in &made {
        assert!(there.contains(&key.as_str()), "{key} is lost:\n{listed}");
        snapshots(&["rm", key]).ok();
    }
    daemon.stop_clean();
}

#[test]
fn containerd_keeps_images_and_layers_with_our_daemon() {
    let lab = Lab::new();
    let registry = DockerRegistry::start(&lab);
    let image = Image::new(&lab, "other").layer(&busybox_root(&lab)).push(&registry.host(), "other");
    // Names of built-in parts are taken there, so the snapshotter is one that is behind us, too.
    let plugin = Plugin::start(&lab, &[]);
    // What is garbage its records say: leases and labels stay with it.
    let keep = "[plugins.'io.containerd.gc.v1.scheduler']\nstartup_delay = '1h'\nmutation_threshold = 0\n";
    let config = configuration("snapshot", "outside", &plugin.socket()) + keep;
    let ours = Daemon::start_with(&lab, Peer::Gantry, &config, &[]);
    let part = |name: &str, kind: &str| {
        format!("[proxy_plugins.{name}]\ntype = \"{kind}\"\naddress = \"{}\"\n", ours.address().display())
    };
    let config = format!(
        "version = 3\ndisabled_plugins = [\"io.containerd.content.v1.content\"]\n{}{}{}\
         [plugins.\"io.containerd.service.v1.diff-service\"]\ndefault = [\"differ\"]\n",
        part("outside", "snapshot"),
        part("blobs", "content"),
        part("differ", "diff"),
    );
    let theirs = Daemon::start_with(&lab, Peer::Containerd, &config, &[]);
    theirs.ctr(&["images", "pull", "--local", "--plain-http", "--snapshotter", "outside", &image]).ok();
    let blobs = ours.ctr(&["content", "ls", "-q"]);
    assert!(blobs.ok().lines().count() >= 3, "{blobs}");
    let layers = ours.ctr(&["snapshots", "--snapshotter", "outside", "ls"]);
    assert!(layers.ok().contains("default/"), "{layers}");
    let id = lab.id("other");
    let out = theirs.ctr(&["run", "--snapshotter", "outside", &image, &id, "echo", "with us"]);
    assert_eq!(out.ok().trim(), "with us");
    let usage = theirs.ctr(&["snapshots", "--snapshotter", "outside", "usage", &id]);
    assert!(usage.ok().contains(&id), "{usage}");
    theirs.ctr(&["containers", "rm", &id]).ok();
    theirs.stop_clean();
    ours.stop_clean();
}
