//! The configuration: containerd's files with their effect, the commands about it, reading it again, and what it opens
//! to whom: the TCP port behind certificates, limits, measurements, the service manager, image verifiers.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use gantry_integration::images::{Image, busybox_root};
use gantry_integration::lab::{our_binary, peer_binary};
use gantry_integration::registry::DockerRegistry;
use gantry_integration::{Daemon, Lab, Outcome, Peer};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const LIMIT: Duration = Duration::from_secs(20);

fn file(lab: &Lab, name: &str, text: &str) -> PathBuf {
    let path = lab.path(name);
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("make a folder");
    std::fs::write(&path, text).expect("write a file");
    path
}

fn config(program: PathBuf, path: &Path, command: &str) -> Outcome {
    let mut line = Command::new(program);
    line.arg("--config").arg(path).args(["config", command]);
    Outcome::of(line, LIMIT)
}

fn ours(path: &Path, command: &str) -> Outcome {
    config(our_binary("gantryd"), path, command)
}

fn theirs(path: &Path, command: &str) -> Outcome {
    config(peer_binary("containerd"), path, command)
}

/// Every value of a configuration by its dotted name.
fn values(text: &str) -> BTreeMap<String, toml::Value> {
    fn add(name: &str, value: toml::Value, all: &mut BTreeMap<String, toml::Value>) {
        match value {
            toml::Value::Table(table) if !table.is_empty() => {
                table.into_iter().for_each(|(key, value)| add(&format!("{name}/{key}"), value, all));
            }
            value => drop(all.insert(name.to_owned(), value)),
        }
    }
    let mut all = BTreeMap::new();
    add("", toml::Value::Table(text.parse().expect("TOML")), &mut all);
    all
}

/// What differs in `new`.
fn changed(old: &str, new: &str) -> BTreeMap<String, toml::Value> {
    let old = values(old);
    values(new).into_iter().filter(|(name, value)| old.get(name) != Some(value)).collect()
}

const VERSION_2: &str = r#"
version = 2
oom_score = -5
imports = ["drop-ins/*.toml"]
disabled_plugins = ["io.containerd.snapshotter.v1.native"]
[grpc]
address = "/x.sock"
gid = 7
tcp_address = "127.0.0.1:2376"
[debug]
level = "debug"
address = "/debug.sock"
[metrics]
address = "127.0.0.1:1338"
grpc_histogram = true
[timeouts]
"io.containerd.timeout.shim.load" = "7s"
[proxy_plugins.far]
type = "snapshot"
address = "/far.sock"
[stream_processors.dec]
accepts = ["a/b"]
returns = "c/d"
path = "dec"
[plugins."io.containerd.gc.v1.scheduler"]
deletion_threshold = 5
[plugins."io.containerd.internal.v1.restart"]
interval = "7s"
[plugins."io.containerd.runtime.v2.task"]
sched_core = true
[plugins."io.containerd.snapshotter.v1.overlayfs"]
upperdir_label = true
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "pause.example/pause:1"
max_container_log_line_size = 99
stream_idle_timeout = "1h"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.kata]
runtime_type = "io.containerd.kata.v2"
sandbox_mode = "shim"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.kata.options]
ConfigPath = "/kata.toml"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/cni"
[plugins."io.containerd.grpc.v1.cri".registry]
config_path = "/hosts"
"#;

const DROP_IN: &str = r#"
version = 3
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs"]
[plugins."io.containerd.gc.v1.scheduler"]
mutation_threshold = 9
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.kata]
pod_annotations = ["kata.*"]
[proxy_plugins.far]
type = "content"
address = "/far.sock"
"#;

#[test]
fn a_file_means_to_us_what_it_means_to_containerd() {
    let lab = Lab::new();
    let old = file(&lab, "config.toml", VERSION_2);
    file(&lab, "drop-ins/10.toml", DROP_IN);
    let nothing = file(&lab, "nothing.toml", "version = 4\n");
    // What each says that the file changes, in our words.
    let dump = file(&lab, "dump.toml", theirs(&old, "dump").ok());
    let default = file(&lab, "default.toml", theirs(&nothing, "default").ok());
    let seen_by_them = changed(ours(&default, "dump").ok(), ours(&dump, "dump").ok());
    let seen_by_us = changed(ours(&nothing, "dump").ok(), ours(&old, "dump").ok());
    assert!(seen_by_us.len() > 25, "{seen_by_us:#?}");
    // There, a file of version 2 loses this on its way through version 3.
    let kept = |name: &&String| !name.contains("io.containerd.shim.v1.manager/env");
    assert!(!seen_by_us.keys().all(|name| kept(&name)), "{seen_by_us:#?}");
    for (name, value) in seen_by_us.iter().filter(|(name, _)| kept(name)) {
        assert_eq!(seen_by_them.get(name), Some(value), "{name}: ours is the second");
    }
    // The socket for events is written out there, and follows the main one here.
    for (name, value) in seen_by_them.iter().filter(|(name, _)| !name.contains("server.v1.ttrpc")) {
        assert_eq!(seen_by_us.get(name), Some(value), "{name}: theirs is the second");
    }
}

#[test]
fn all_that_containerd_prints_of_its_configuration_is_accepted() {
    let lab = Lab::new();
    let old = file(&lab, "config.toml", VERSION_2);
    file(&lab, "drop-ins/10.toml", DROP_IN);
    let section = regex::Regex::new(r"(?m)^\[gantry[^\[]*").expect("a pattern");
    for command in ["default", "dump", "migrate"] {
        let printed = file(&lab, &format!("{command}.toml"), theirs(&old, command).ok());
        let checked = ours(&printed, "check");
        assert!(!checked.stderr.contains("unknown key"), "{command}: {checked}");
        checked.ok();
        let dumped = file(&lab, "dumped.toml", ours(&printed, "dump").ok());
        assert_eq!(ours(&dumped, "dump").ok(), ours(&printed, "dump").ok(), "{command}: reads back");
        // And what we print, containerd reads, but for our own section.
        let without = section.replace_all(ours(&dumped, "dump").ok(), "").into_owned();
        let read = theirs(&file(&lab, "ours.toml", &without), "dump");
        assert!(read.code == 0, "{command}: {read}");
    }
}

#[test]
fn migrate_renews_one_file_and_keeps_what_it_means() {
    let lab = Lab::new();
    let old = file(&lab, "config.toml", VERSION_2);
    file(&lab, "drop-ins/10.toml", DROP_IN);
    let text = ours(&old, "migrate").ok().to_owned();
    assert!(text.starts_with("disabled_plugins") || text.contains("version = 4"), "{text}");
    assert!(!text.contains("kata.*"), "an import was mixed in: {text}");
    let new = file(&lab, "new.toml", &text);
    assert_eq!(ours(&new, "dump").ok(), ours(&old, "dump").ok());
    assert_eq!(ours(&new, "migrate").ok(), text);
}

#[test]
fn check_names_every_mistake_of_every_file_with_its_line_and_fails() {
    let lab = Lab::new();
    let hosts = file(&lab, "hosts/r.example/hosts.toml", "server = 3\n");
    let hosts = hosts.parent().and_then(Path::parent).expect("two folders").display().to_string();
    let main = file(
        &lab,
        "config.toml",
        &format!(
            "version = 3\nimports = [\"b.toml\", \"gone.toml\"]\noom_score = 5000\n[grpc]\nadress = \"/x\"\n\
             [plugins.\"io.containerd.transfer.v1.local\"]\nconfig_path = \"{hosts}\"\n"
        ),
    );
    file(&lab, "b.toml", "version = 4\n\n[gantry.runtimes]\n\"a.b.v1\" = \"/no/such/shim\"\n[gantry]\ndrain = 1\n");
    let out = ours(&main, "check");
    out.code(1);
    for expected in [
        "config.toml:2: ",
        "gone.toml cannot be read",
        "config.toml:3: `oom_score` must be a number from -1000 to 1000",
        "r.example/hosts.toml:1: ",
        "b.toml:4: /no/such/shim cannot be run",
        "b.toml:6: `gantry.drain` must be a duration",
    ] {
        assert!(out.stderr.contains(expected), "no {expected:?}\n{out}");
    }
    let fine = file(&lab, "fine.toml", "version = 3\n[grpc]\nadress = \"/x\"\n");
    let out = ours(&fine, "check");
    out.ok();
    assert!(out.stderr.contains("fine.toml:3: unknown key") && out.stderr.contains("did you mean `address`"), "{out}");
}

#[test]
fn files_have_their_effect_and_disabled_parts_are_gone() {
    let lab = Lab::new();
    file(&lab, "g/conf.d/1.toml", "version = 2\n[grpc]\ngid = 12345\n[metrics]\naddress = \"127.0.0.1:1338\"\n");
    let debug = lab.path("g/debug.sock");
    let text = format!("oom_score = 500\n[plugins.'io.containerd.server.v1.debug']\naddress = '{}'\n", debug.display());
    file(&lab, "g/conf.d/2.toml", &format!("version = 4\n{text}"));
    let main = "version = 4\nimports = ['conf.d/*.toml']\ndisabled_plugins = ['io.containerd.snapshotter.v1.native', \
                'io.containerd.grpc.v1.leases']\nrequired_plugins = ['io.containerd.snapshotter.v1.overlayfs']\n";
    let daemon = Daemon::start_with(&lab, Peer::Gantry, main, &[]);
    assert_eq!(std::fs::metadata(daemon.address()).expect("a socket").gid(), 12345);
    let score = std::fs::read_to_string(format!("/proc/{}/oom_score_adj", daemon.pid())).expect("a score");
    assert_eq!(score.trim(), "500");
    let plugins = daemon.ctr(&["plugins", "ls"]);
    assert!(plugins.ok().contains("overlayfs") && !plugins.ok().contains("native"), "{plugins}");
    daemon.ctr(&["leases", "ls"]).fails_with("mplemented");
    daemon.ctr(&["snapshots", "--snapshotter", "native", "ls"]).fails_with("native");
    let page = get(std::net::TcpStream::connect("127.0.0.1:1338").expect("a port"), "/v1/metrics");
    let counted = "grpc_server_handled_total{grpc_code=\"OK\",grpc_method=\"Plugins\",\
                   grpc_service=\"containerd.services.introspection.v1.Introspection\"} 1";
    assert!(page.starts_with("HTTP/1.1 200") && page.contains(counted), "{page}");
    assert!(page.contains("process_resident_memory_bytes"), "{page}");
    let page = get(UnixStream::connect(&debug).expect("a socket"), "/debug/config");
    assert!(page.contains("oom_score = 500"), "{page}");
    let page = get(UnixStream::connect(&debug).expect("a socket"), "/debug/pprof/goroutine");
    assert!(page.starts_with("HTTP/1.1 501"), "{page}");
    daemon.stop_clean();
}

fn get(mut stream: impl Read + Write, path: &str) -> String {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").expect("ask");
    let mut page = String::new();
    stream.read_to_string(&mut page).expect("an answer");
    page
}

#[test]
fn a_daemon_without_a_required_part_refuses_to_start() {
    let lab = Lab::new();
    let text =
        "version = 4\nrequired_plugins = ['io.containerd.snapshotter.v1.overlayfs', 'io.containerd.nri.v1.nri']\n";
    let path = file(&lab, "config.toml", text);
    let out = Outcome::of(start(&lab, &path), LIMIT);
    assert!(out.code == 1 && out.stderr.contains("required parts are missing: io.containerd.nri.v1.nri"), "{out}");
}

/// A daemon that the test holds itself: without a log level on its command line.
fn start(lab: &Lab, config: &Path) -> Command {
    let mut command = Command::new(our_binary("gantryd"));
    command.arg("--config").arg(config).arg("--root").arg(lab.path("r")).arg("--state").arg(lab.path("s"));
    command.arg("--address").arg(lab.path("own.sock")).stdin(Stdio::null());
    command
}

struct Own(Child);

impl Own {
    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.0.id().cast_signed()), signal).expect("signal the daemon");
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[track_caller]
fn wait_for(what: &str, mut seen: impl FnMut() -> bool) {
    let start = Instant::now();
    while !seen() {
        assert!(start.elapsed() < LIMIT, "{what} does not come");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn the_service_manager_hears_ready_and_stopping_and_the_log_level_is_read_again() {
    let lab = Lab::new();
    let manager = UnixDatagram::bind(lab.path("notify")).expect("a socket");
    manager.set_read_timeout(Some(LIMIT)).expect("a limit");
    let config = file(&lab, "config.toml", "version = 4\noom_score = -900\n");
    let log = std::fs::File::create(lab.path("own.log")).expect("a log");
    let mut command = start(&lab, &config);
    command.env("NOTIFY_SOCKET", lab.path("notify")).stderr(log);
    let mut daemon = Own(command.spawn().expect("start the daemon"));
    let hear = || {
        let mut heard = [0; 64];
        let size = manager.recv(&mut heard).expect("a word");
        String::from_utf8_lossy(&heard[..size]).into_owned()
    };
    let read = || std::fs::read_to_string(lab.path("own.log")).expect("a log");
    assert_eq!(hear(), "READY=1");
    assert!(UnixStream::connect(lab.path("own.sock")).is_ok(), "not ready when it says so");
    // Without the capability the kernel refuses a lower score; the daemon says so and goes on.
    let score = std::fs::read_to_string(format!("/proc/{}/oom_score_adj", daemon.0.id())).expect("a score");
    assert!(score.trim() == "-900" || read().contains("did not lower the oom score"), "{score}{}", read());
    assert!(!read().contains("DEBUG"), "{}", read());
    std::fs::write(&config, "version = 4\n[debug]\nlevel = 'debug'\n").expect("write");
    daemon.signal(Signal::SIGHUP);
    wait_for("the new configuration", || read().contains("the configuration was read again"));
    assert!(read().contains("`oom_score` has changed, which takes a restart"), "{}", read());
    daemon.signal(Signal::SIGTERM);
    assert_eq!(hear(), "STOPPING=1");
    assert!(daemon.0.wait().expect("an end").success());
    assert!(read().contains("DEBUG"), "{}", read());
}

#[test]
fn registries_and_runtimes_are_read_again_beside_a_running_container_all_or_nothing() {
    let lab = Lab::new();
    let registry = DockerRegistry::start(&lab);
    let image = Image::new(&lab, "busybox").layer(&busybox_root(&lab)).push(&registry.host(), "busybox");
    let mut daemon = Daemon::start_with(&lab, Peer::Gantry, "version = 4\n", &[]);
    let config = daemon.root().with_file_name("config.toml");
    daemon.ctr(&["images", "pull", "--plain-http", &image]).ok();
    let id = lab.id("runs");
    daemon.ctr(&["run", "-d", &image, &id, "/bin/sleep", "1000"]).ok();
    let other = image.replace(&registry.host(), "nowhere.example");
    daemon.ctr(&["images", "pull", &other]).fails_with("nowhere.example");

    let hosts = file(&lab, "hosts/nowhere.example/hosts.toml", &format!("[host.'http://{}']\n", registry.host()));
    let hosts = hosts.parent().and_then(Path::parent).expect("two folders");
    let shim = daemon.root().with_file_name("bin").join("containerd-shim-gantry-v1");
    let text = format!(
        "version = 4\ndisabled_plugins = ['io.containerd.grpc.v1.leases']\n\
         [plugins.'io.containerd.transfer.v1.local']\nconfig_path = '{}'\n\
         [gantry.runtimes]\n'io.example.other.v1' = '{}'\n",
        hosts.display(),
        shim.display()
    );
    std::fs::write(&config, &text).expect("write");
    hang_up(&daemon, "the configuration was read again");
    assert!(
        daemon.log_tail().contains("`disabled_plugins` has changed, which takes a restart"),
        "{}",
        daemon.log_tail()
    );
    daemon.ctr(&["images", "pull", &other]).ok();
    let second = lab.id("other");
    daemon.ctr(&["run", "--rm", "--runtime", "io.example.other.v1", &image, &second, "/bin/true"]).ok();

    // A mistake: both are named, and nothing changes.
    std::fs::write(&config, "version = 4\nroot = 'x'\n[gantry.runtimes]\n'a.b.v1' = '/no/such'\n").expect("write");
    hang_up(&daemon, "the configuration stays as it was");
    let log = daemon.log_tail();
    assert!(log.contains("config.toml:2: ") && log.contains("config.toml:4: /no/such"), "{log}");
    daemon.ctr(&["images", "rm", "--sync", &other]).ok();
    daemon.ctr(&["images", "pull", &other]).ok();
    let third = lab.id("third");
    daemon.ctr(&["run", "--rm", "--runtime", "io.example.other.v1", &image, &third, "/bin/true"]).ok();

    assert!(daemon.ctr(&["tasks", "ls"]).ok().contains("RUNNING"));
    daemon.ctr(&["tasks", "rm", "--force", &id]);
    daemon.ctr(&["containers", "rm", &id]).ok();
    daemon.assert_nothing_leaked();
    std::fs::write(&config, &text).expect("write");
    daemon.stop();
}

fn hang_up(daemon: &Daemon, expected: &str) {
    let count = || std::fs::read_to_string(daemon.log()).unwrap_or_default().matches(expected).count();
    let before = count();
    kill(Pid::from_raw(daemon.pid()), Signal::SIGHUP).expect("signal the daemon");
    wait_for(expected, || count() > before);
}

/// An authority, and certificates that it has signed.
struct Authority {
    issuer: rcgen::CertifiedIssuer<'static, rcgen::KeyPair>,
}

impl Authority {
    fn new() -> Authority {
        let mut params = rcgen::CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "an authority");
        let key = rcgen::KeyPair::generate().expect("a key");
        Authority { issuer: rcgen::CertifiedIssuer::self_signed(params, key).expect("an authority") }
    }

    fn write(&self, lab: &Lab, name: &str) -> String {
        file(lab, name, &self.issuer.pem()).display().to_string()
    }

    /// Writes NAME.pem and NAME.key.
    fn sign(&self, lab: &Lab, name: &str) -> (String, String) {
        let params = rcgen::CertificateParams::new(vec!["localhost".into(), "127.0.0.1".into()]).expect("parameters");
        let key = rcgen::KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let certificate = file(lab, &format!("{name}.pem"), &certificate.pem());
        let key = file(lab, &format!("{name}.key"), &key.serialize_pem());
        (certificate.display().to_string(), key.display().to_string())
    }
}

/// Asks for the version over the TCP port.
fn ask(flags: &[&str]) -> Outcome {
    let mut command = Command::new(peer_binary("grpcurl"));
    command.args(["-max-time", "10", "-connect-timeout", "5"]).args(flags);
    command.args(["127.0.0.1:2376", "containerd.services.version.v1.Version/Version"]);
    Outcome::of(command, LIMIT)
}

#[test]
fn the_tcp_port_lets_in_who_shows_a_certificate_of_our_authority_and_certificates_are_read_again() {
    let lab = Lab::new();
    let (ours, foreign) = (Authority::new(), Authority::new());
    let (ca, foreign_ca) = (ours.write(&lab, "ca.pem"), foreign.write(&lab, "foreign-ca.pem"));
    let (cert, key) = ours.sign(&lab, "server");
    let (good, good_key) = ours.sign(&lab, "client");
    let (wrong, wrong_key) = foreign.sign(&lab, "stranger");
    let config = format!(
        "version = 3\n[grpc]\ntcp_address = '0.0.0.0:2376'\ntcp_tls_ca = '{ca}'\ntcp_tls_cert = '{cert}'\n\
         tcp_tls_key = '{key}'\n"
    );
    let daemon = Daemon::start_with(&lab, Peer::Gantry, &config, &[]);
    let with = |certificate: &str, key: &str| ask(&["-cacert", &ca, "-cert", certificate, "-key", key]);
    assert!(with(&good, &good_key).ok().contains("version"));
    for (refused, why) in [
        (ask(&["-cacert", &ca]), "no certificate"),
        (with(&wrong, &wrong_key), "a stranger's certificate"),
        (ask(&["-plaintext"]), "no TLS"),
        (ask(&["-cacert", &foreign_ca, "-cert", &good, "-key", &good_key]), "the client trusts another authority"),
    ] {
        assert!(refused.code != 0 && !refused.stdout.contains("version"), "{why}: {refused}");
    }
    assert!(daemon.log_tail().contains("a client was not let in"), "{}", daemon.log_tail());
    // Certificates that do not fit together change nothing.
    std::fs::copy(&wrong_key, &key).expect("copy");
    hang_up(&daemon, "the configuration stays as it was");
    assert!(with(&good, &good_key).ok().contains("version"));
    // From now on the other authority counts.
    let (new, new_key) = ours.sign(&lab, "server");
    assert_eq!((new, new_key), (cert, key));
    std::fs::copy(&foreign_ca, lab.path("ca.pem")).expect("copy");
    let old_ca = ours.write(&lab, "old-ca.pem");
    hang_up(&daemon, "the configuration was read again");
    assert!(ask(&["-cacert", &old_ca, "-cert", &good, "-key", &good_key]).code != 0);
    assert!(ask(&["-cacert", &old_ca, "-cert", &wrong, "-key", &wrong_key]).ok().contains("version"));
    daemon.stop_clean();
}

#[test]
fn a_port_without_tls_that_others_reach_is_refused_and_one_on_loopback_is_not() {
    let lab = Lab::new();
    let open = file(&lab, "open.toml", "version = 3\n[grpc]\ntcp_address = '0.0.0.0:2376'\n");
    let out = Outcome::of(start(&lab, &open), LIMIT);
    assert!(out.code == 1 && out.stderr.contains("open.toml:3: ") && out.stderr.contains("has no TLS"), "{out}");
    let daemon = Daemon::start_with(&lab, Peer::Gantry, "version = 3\n[grpc]\ntcp_address = '127.0.0.1:2376'\n", &[]);
    assert!(ask(&["-plaintext"]).ok().contains("version"));
    // Kubernetes' services are not on it.
    let mut command = Command::new(peer_binary("grpcurl"));
    command.args(["-plaintext", "127.0.0.1:2376", "list"]);
    let list = Outcome::of(command, LIMIT);
    assert!(list.ok().contains("containerd.services.tasks.v1.Tasks"), "{list}");
    daemon.stop_clean();
}

#[test]
fn calls_beyond_a_limit_are_refused_by_name_and_long_ones_keep_no_short_ones_out() {
    let lab = Lab::new();
    let config = "version = 4\n[gantry.limits]\nstreams = 3\ncalls = 2\n[plugins.'io.containerd.server.v1.grpc']\n\
                  max_recv_message_size = 3000\nmax_send_message_size = 3000\n";
    let daemon = Daemon::start_with(&lab, Peer::Gantry, config, &[]);
    let subscribe = || {
        let mut command = daemon.command(peer_binary("ctr"));
        command.arg("--address").arg(daemon.address()).arg("events");
        command
    };
    let stand = || Own(subscribe().stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("start ctr"));
    let mut waiting: Vec<Own> = (0..3).map(|_| stand()).collect();
    wait_for("the refusal of a fourth subscription", || {
        // One that came behind the fourth was refused in its place.
        let gone = |own: &mut Own| own.0.try_wait().expect("a look").is_some();
        waiting.iter_mut().filter_map(|own| gone(own).then_some(own)).for_each(|own| *own = stand());
        let mut command = daemon.command("timeout");
        command.arg("1").arg(peer_binary("ctr")).arg("--address").arg(daemon.address()).arg("events");
        let out = Outcome::of(command, LIMIT);
        out.stderr.contains("more than 3 long calls at once in all") && !waiting.iter_mut().any(gone)
    });
    // Short calls under load, all subscriptions standing.
    for _ in 0..20 {
        daemon.ctr(&["version"]).ok();
    }
    waiting.pop();
    wait_for("room for another subscription", || {
        let mut again = stand();
        std::thread::sleep(Duration::from_millis(300));
        again.0.try_wait().expect("a look").is_none()
    });
    // A storm of short calls: each ends well or is refused by name.
    let mut storm: Vec<Child> = (0..12)
        .map(|_| {
            let mut command = daemon.command(peer_binary("ctr"));
            command.arg("--address").arg(daemon.address()).args(["plugins", "ls"]);
            command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("start ctr")
        })
        .collect();
    for child in storm.drain(..) {
        let out = child.wait_with_output().expect("an end");
        let text = String::from_utf8_lossy(&out.stderr);
        assert!(
            out.status.success() || text.contains("ResourceExhausted") || text.contains("larger than max"),
            "{text}"
        );
    }
    // Sizes: containerd's code for both directions.
    let request = format!("{{\"namespace\": {{\"name\": \"big\", \"labels\": {{\"a\": \"{}\"}}}}}}", "x".repeat(3500));
    let mut command = daemon.command(peer_binary("grpcurl"));
    command.args(["-plaintext", "-unix", "-authority", "localhost", "-d", &request]).arg(daemon.address());
    command.arg("containerd.services.namespaces.v1.Namespaces/Create");
    Outcome::of(command, LIMIT).fails_with("ResourceExhausted").fails_with("message length too large");
    daemon.ctr(&["namespaces", "create", "small", "a=b"]).ok();
    drop(waiting);
    daemon.stop_clean();
}

#[test]
fn an_image_that_a_verifier_does_not_agree_to_is_not_pulled() {
    let lab = Lab::new();
    let registry = DockerRegistry::start(&lab);
    let image = Image::new(&lab, "busybox").layer(&busybox_root(&lab)).push(&registry.host(), "busybox");
    let verdict = file(&lab, "verdict", "it is not signed\n");
    // Its own files must not lie beside it, for all that lies there is asked.
    let script = format!("#!/bin/sh\necho \"$@\" >'{0}.said'\ncat '{0}' && exit 1\nexit 0\n", verdict.display());
    let program = file(&lab, "verifiers/signed", &script);
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("permissions");
    let config = format!(
        "version = 3\n[plugins.'io.containerd.image-verifier.v1.bindir']\nbin_dir = '{}'\n",
        program.parent().expect("a folder").display()
    );
    let daemon = Daemon::start_with(&lab, Peer::Gantry, &config, &[]);
    daemon.ctr(&["images", "pull", "--plain-http", &image]).fails_with("it is not signed");
    assert!(!daemon.ctr(&["images", "ls", "-q"]).ok().contains("busybox"));
    std::fs::remove_file(&verdict).expect("remove");
    daemon.ctr(&["images", "pull", "--plain-http", &image]).ok();
    let said = std::fs::read_to_string(lab.path("verdict.said")).expect("what it was told");
    assert!(said.starts_with(&format!("-name {image} -digest sha256:")), "{said}");
    daemon.stop_clean();
}
