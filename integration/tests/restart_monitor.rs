//! The restart monitor, by the labels that nerdctl and others set.

use std::path::Path;
use std::time::{Duration, Instant};

use gantry_integration::images::{Image, busybox_root};
use gantry_integration::registry::DockerRegistry;
use gantry_integration::{Daemon, Lab, Peer};
use serde_json::{Value, json};

const OFTEN: &str = "version = 3\n[plugins.'io.containerd.monitor.container.v1.restart']\ninterval = '200ms'\n";

fn world(config: Value) -> (Lab, DockerRegistry, Daemon, String) {
    let lab = Lab::new();
    let registry = DockerRegistry::start(&lab);
    let daemon = Daemon::start_with(&lab, Peer::Gantry, OFTEN, &[]);
    let image = Image::new(&lab, "busybox").layer(&busybox_root(&lab)).config(config);
    let image = image.push(&registry.host(), "busybox");
    daemon.ctr(&["images", "pull", "--plain-http", &image]).ok();
    (lab, registry, daemon, image)
}

fn plain() -> Value {
    json!({"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"], "WorkingDir": "/"})
}

/// Runs `script` with `labels` below `containerd.io/restart.` and `/out` as a directory of the host.
fn start(daemon: &Daemon, image: &str, id: &str, out: &Path, labels: &[&str], script: &str) {
    let labels: Vec<String> = labels.iter().map(|label| format!("containerd.io/restart.{label}")).collect();
    let mount = format!("type=bind,src={},dst=/out,options=rbind:rw", out.display());
    let mut args = vec!["run", "-d", "--mount", &mount];
    for label in &labels {
        args.extend(["--label", label]);
    }
    args.extend([image, id, "/bin/sh", "-c", script]);
    daemon.ctr(&args).ok();
}

fn directory(lab: &Lab, name: &str) -> std::path::PathBuf {
    let path = lab.path(name);
    std::fs::create_dir_all(&path).expect("make a directory");
    path
}

/// How often the script has run.
fn runs(out: &Path) -> usize {
    std::fs::read_to_string(out.join("runs")).unwrap_or_default().lines().count()
}

fn wait_until(what: &str, daemon: &Daemon, limit: u64, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(limit), "{what} does not happen:\n{}", daemon.log_tail());
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn label(daemon: &Daemon, id: &str, name: &str) -> String {
    let info = daemon.ctr(&["containers", "info", id]);
    let info: Value = serde_json::from_str(info.ok()).expect("JSON");
    info["Labels"][format!("containerd.io/restart.{name}")].as_str().unwrap_or_default().to_owned()
}

fn remove(daemon: &Daemon, id: &str) {
    // First the wish, else it comes again.
    daemon.ctr(&["containers", "label", id, "containerd.io/restart.status="]).ok();
    std::thread::sleep(Duration::from_millis(300));
    daemon.ctr(&["tasks", "rm", "--force", id]);
    daemon.ctr(&["containers", "rm", id]).ok();
}

#[test]
fn an_ended_container_is_started_anew_as_its_policy_says_and_after_a_crash_of_the_daemon_too() {
    let (lab, _registry, mut daemon, image) = world(plain());
    let (always, failing, fine) = (directory(&lab, "always"), directory(&lab, "failing"), directory(&lab, "fine"));
    let (a, f, g) = (lab.id("always"), lab.id("failing"), lab.id("fine"));
    let script = |code: u32| format!("echo x >> /out/runs; exit {code}");
    start(&daemon, &image, &f, &failing, &["status=running", "policy=on-failure:2"], &script(3));
    start(&daemon, &image, &g, &fine, &["status=running", "policy=on-failure"], &script(0));
    let log = lab.path("log-of-a");
    let uri = format!("loguri=file://{}", log.display());
    start(
        &daemon,
        &image,
        &a,
        &always,
        &["status=running", "policy=always", &uri],
        "echo said; echo x >> /out/runs; sleep 1000",
    );
    wait_until("the bound of retries", &daemon, 15, || runs(&failing) == 3);
    assert_eq!(label(&daemon, &f, "count"), "2");
    // A container that is killed comes back, and its output goes where the label says.
    daemon.ctr(&["tasks", "kill", "--signal", "SIGKILL", &a]).ok();
    wait_until("a second run", &daemon, 10, || runs(&always) == 2);
    assert_eq!(std::fs::read_to_string(&log).unwrap_or_default(), "said\n");
    // One that ends while the daemon is away, too.
    daemon.crash();
    let shims = gantry_integration::census::processes(lab.dir(), lab.tag());
    let (pid, _) = shims.iter().find(|(_, command)| command.contains("sleep 1000")).expect("the container runs");
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), nix::sys::signal::Signal::SIGKILL);
    daemon.launch();
    wait_until("a third run", &daemon, 10, || runs(&always) == 3);
    assert_eq!((runs(&failing), runs(&fine)), (3, 1), "what has failed often enough, or ended well, stays");
    for id in [&a, &f, &g] {
        remove(&daemon, id);
    }
    daemon.assert_nothing_leaked();
    daemon.stop_clean();
}

#[test]
fn a_stop_is_respected_and_can_be_asked_for() {
    let (lab, _registry, mut daemon, image) = world(plain());
    let (unless, always) = (directory(&lab, "unless"), directory(&lab, "always"));
    let (u, a) = (lab.id("unless"), lab.id("always"));
    let script = "echo x >> /out/runs; exit 1";
    start(
        &daemon,
        &image,
        &u,
        &unless,
        &["status=running", "policy=unless-stopped", "explicitly-stopped=true"],
        script,
    );
    start(&daemon, &image, &a, &always, &["status=running", "policy=always", "explicitly-stopped=true"], script);
    std::thread::sleep(Duration::from_millis(900));
    assert_eq!((runs(&unless), runs(&always)), (1, 1), "a stopped container is not started");
    // `always` counts again after a restart of the daemon.
    daemon.restart();
    wait_until("the start of an `always`", &daemon, 10, || runs(&always) >= 2);
    assert_eq!((runs(&unless), label(&daemon, &a, "explicitly-stopped").as_str()), (1, "false"));
    // `stopped` ends what runs.
    let sleeper = lab.id("sleeper");
    start(&daemon, &image, &sleeper, &directory(&lab, "s"), &[], "sleep 1000");
    daemon.ctr(&["containers", "label", &sleeper, "containerd.io/restart.status=stopped"]).ok();
    wait_until("the end of the sleeper", &daemon, 10, || !daemon.ctr(&["tasks", "ls"]).ok().contains(&sleeper));
    for id in [&u, &a, &sleeper] {
        remove(&daemon, id);
    }
    daemon.assert_nothing_leaked();
    daemon.stop_clean();
}

#[test]
fn no_word_of_an_image_starts_a_container_or_names_a_file_or_a_program() {
    let lab = Lab::new();
    let (evil, program) = (lab.path("evil"), lab.path("program"));
    drop(lab);
    let config = json!({
        "Cmd": ["/bin/sh"], "Env": ["PATH=/bin"], "WorkingDir": "/",
        "Labels": {
            "containerd.io/restart.status": "running",
            "containerd.io/restart.policy": "always",
            "containerd.io/restart.loguri": format!("file://{}", evil.display()),
        },
    });
    let (lab, _registry, mut daemon, image) = world(config);
    std::fs::create_dir_all(evil.parent().expect("a parent")).expect("make a directory");
    let (theirs, mine) = (directory(&lab, "theirs"), directory(&lab, "mine"));
    let (t, m, b) = (lab.id("theirs"), lab.id("mine"), lab.id("binary"));
    let script = "echo out; echo x >> /out/runs; exit 1";
    // Many clients copy an image's labels: they are there then, and do not count.
    let copied = format!("loguri=file://{}", evil.display());
    start(&daemon, &image, &t, &theirs, &["status=running", "policy=always", &copied], script);
    assert_eq!(label(&daemon, &t, "status"), "running");
    // What the caller says counts, though the image says it otherwise; the output that is the image's does not.
    start(&daemon, &image, &m, &mine, &["status=running", "policy=on-failure:1"], script);
    // The caller may not name just anything, either.
    let binary = directory(&lab, "binary");
    let uri = format!("loguri=fifo://{}", program.display());
    start(&daemon, &image, &b, &binary, &["policy=on-failure:1", &uri], script);
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!((runs(&theirs), runs(&binary)), (1, 1), "an image has a container restarted");
    // The image is gone: what is known of it stays.
    daemon.ctr(&["images", "rm", "--sync", &image]).ok();
    daemon.restart();
    std::thread::sleep(Duration::from_millis(700));
    assert_eq!(runs(&theirs), 1);
    assert!(!evil.exists() && !program.exists(), "an image has a file written");
    for id in [&t, &m, &b] {
        remove(&daemon, id);
    }
    let _ = std::fs::remove_dir_all(evil.parent().expect("a parent"));
    daemon.assert_nothing_leaked();
    daemon.stop_clean();
}
