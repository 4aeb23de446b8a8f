//! Pods come and go while the daemon is killed again and again and shims are stopped: nothing is left.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use gantry_integration::lab::{run, source_root};
use gantry_integration::registry::DockerRegistry;
use gantry_integration::{Daemon, Lab};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cri_node::Node;

/// How many pods, when nobody says; how many at once; how often the daemon is killed, in milliseconds.
const PODS: &str = "200";
const GROUP: &str = "50";
const KILL_EVERY: &str = "6000";
/// Every so often a shim is stopped.
const STOP_EVERY: Duration = Duration::from_millis(1500);
/// How long all of it may take.
const PATIENCE: Duration = Duration::from_secs(1800);

fn setting(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.to_owned())
}

fn suites() -> PathBuf {
    let tools = source_root().join("integration/tools");
    let suites = tools.join("bin/suites.test");
    // Built outside the laboratory: modules may have to be fetched.
    run("go", &["test", "-C", &tools.to_string_lossy(), "-c", "-o", &suites.to_string_lossy(), "./suites"]);
    suites
}

/// The shims of a daemon.
fn shims(daemon: &Daemon) -> Vec<Pid> {
    let program = daemon.root().parent().map(|dir| dir.join("bin/containerd-shim-gantry-v1")).unwrap_or_default();
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbered = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    // They run from mounts that are nowhere attached, so their executables have no path.
    let wanted = [program.as_os_str().as_encoded_bytes(), b"\0"].concat();
    let ours =
        numbered.filter(|pid| std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|c| c.starts_with(&wanted)));
    ours.map(Pid::from_raw).collect()
}

/// Kills the daemon and stops shims for as long as the client runs; how often.
fn harass(node: &mut Node<'_>, client: &mut std::process::Child) -> (u32, u32) {
    let every = Duration::from_millis(setting("GANTRY_CHURN_KILL_MS", KILL_EVERY).parse().expect("milliseconds"));
    let (began, mut killed, mut stopped) = (Instant::now(), 0, 0);
    let (mut last_kill, mut last_stop) = (Instant::now(), Instant::now());
    while client.try_wait().expect("ask for the client").is_none() {
        assert!(began.elapsed() < PATIENCE, "the pods do not come to an end:\n{}", node.daemon.log_tail());
        if last_kill.elapsed() > every {
            node.daemon.crash();
            node.daemon.launch();
            (last_kill, killed) = (Instant::now(), killed + 1);
        }
        if last_stop.elapsed() > STOP_EVERY {
            let shims = shims(&node.daemon);
            // Some of them, a different one each time.
            let chosen = shims.get((stopped as usize * 7 + 3) % shims.len().max(1));
            if chosen.is_some_and(|pid| kill(*pid, Signal::SIGSTOP).is_ok()) {
                stopped += 1;
            }
            last_stop = Instant::now();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    (killed, stopped)
}

#[test]
fn pods_that_come_and_go_while_daemon_and_shims_fail_leave_nothing() {
    let suites = suites();
    let lab = Lab::new();
    let registry = DockerRegistry::start(&lab);
    let mut node = Node::start(&lab);
    let image = node.busybox(&registry);
    let log = std::fs::File::create(lab.path("churn.log")).expect("make a log");
    let mut command = Command::new(suites);
    command.args(["-test.v", "-test.root", "-test.timeout=30m", "-test.run", "^TestPodsChurn$"]);
    command.env("GANTRY_SOCKET", node.daemon.address()).env("GANTRY_IMAGE", &image).env("GANTRY_ID", lab.id("churn"));
    command.env("GANTRY_CHURN_PODS", setting("GANTRY_CHURN_PODS", PODS));
    command.env("GANTRY_CHURN_GROUP", setting("GANTRY_CHURN_GROUP", GROUP));
    command.env("TMPDIR", lab.dir()).current_dir(lab.dir());
    command.stdout(log.try_clone().expect("a descriptor")).stderr(log).stdin(Stdio::null());
    let mut client = command.spawn().expect("start the Go test");
    let began = Instant::now();
    let (killed, stopped) = harass(&mut node, &mut client);
    let ended = client.wait().expect("wait for the Go test");
    let said = std::fs::read_to_string(lab.path("churn.log")).unwrap_or_default();
    assert!(ended.success(), "{said}\nthe daemon's log:\n{}", node.daemon.log_tail());
    println!("{:?}, {killed} daemons killed, {stopped} shims stopped", began.elapsed());
    assert!(killed > 0 && stopped > 0, "nothing failed: {killed} daemons killed, {stopped} shims stopped");
    node.finish();
}
