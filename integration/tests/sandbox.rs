//! Sandboxes: pods without an image, by `ctr` and the official Go client; our shim under a real containerd; and both
//! daemon and shim killed at each step.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use gantry_integration::daemon::Peer;
use gantry_integration::images::busybox_root;
use gantry_integration::lab::{our_binary, peer_binary, run, source_root};
use gantry_integration::{Daemon, Lab, Outcome};
use serde_json::json;

use crate::bad_requests::{Wire, ask};

const RUNTIME: &str = "io.containerd.gantry.v1";

/// A pod's configuration in a file.
pub(crate) fn pod(lab: &Lab, id: &str) -> String {
    let file = lab.path(&format!("{id}.json"));
    let config = serde_json::json!({
        "ociVersion": "1.2.0",
        "hostname": "pod",
        "linux": {
            "cgroupsPath": format!("/{id}"),
            "namespaces": [{"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "pid"}],
        },
    });
    std::fs::write(&file, config.to_string()).expect("write the pod's configuration");
    file.to_string_lossy().into_owned()
}

/// The real containerd, which finds our shim beside its own.
fn containerd_with_our_shim(lab: &Lab) -> Daemon {
    let daemon = Daemon::start_with(lab, Peer::Containerd, "", &[]);
    let shim = our_binary("containerd-shim-gantry-v1");
    std::fs::copy(&shim, lab.path("c").join("bin/containerd-shim-gantry-v1")).expect("copy the shim");
    daemon
}

fn go_test(lab: &Lab, daemon: &Daemon, runtime: &str) {
    let tools = source_root().join("integration/tools");
    let binary = tools.join("bin/suites.test");
    run("go", &["test", "-C", &tools.to_string_lossy(), "-c", "-o", &binary.to_string_lossy(), "./suites"]);
    let mut command = daemon.command(&binary);
    command.args(["-test.v", "-test.timeout=60s", "-test.run", "^TestSandbox$"]);
    command.env("GANTRY_SOCKET", daemon.address()).env("GANTRY_RUNTIME", runtime).env("GANTRY_ID", lab.id("pod"));
    command.env("GANTRY_ROOTFS", busybox_root(lab)).env("TMPDIR", lab.dir()).current_dir(lab.dir());
    let out = Outcome::of(command, Duration::from_secs(70));
    assert!(out.code == 0, "{out}\nthe daemon's log:\n{}", daemon.log_tail());
}

#[test]
fn a_go_program_runs_a_pod_by_the_official_client() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    go_test(&lab, &daemon, "io.containerd.runc.v2");
    daemon.assert_nothing_leaked();
    daemon.stop_clean();
}

#[test]
fn the_same_program_runs_it_on_our_shim_under_a_real_containerd() {
    let lab = Lab::new();
    let daemon = containerd_with_our_shim(&lab);
    go_test(&lab, &daemon, RUNTIME);
    daemon.assert_nothing_leaked();
    daemon.stop_clean();
}

#[test]
fn our_shim_runs_containers_under_a_real_containerd() {
    let lab = Lab::new();
    let daemon = containerd_with_our_shim(&lab);
    let (id, root) = (lab.id("c"), busybox_root(&lab));
    let root = root.to_string_lossy();
    let run = ["run", "--runtime", RUNTIME, "--rootfs", "--rm"];
    let out = daemon.ctr(&[&run[..], &[&root, &id, "/bin/sh", "-c", "echo out; echo err >&2; exit 3"]].concat());
    assert_eq!((out.code, out.stdout.as_str()), (3, "out\n"), "{out}");
    assert!(out.stderr.ends_with("err\n"), "{out}");
    let detached = ["run", "-d", "--runtime", RUNTIME, "--rootfs", &root, &id, "/bin/sleep", "100"];
    daemon.ctr(&detached).ok();
    assert_eq!(daemon.ctr(&["tasks", "exec", "--exec-id", "e", &id, "/bin/echo", "in"]).ok(), "in\n");
    daemon.ctr(&["tasks", "exec", "--exec-id", "e", &id, "/bin/sh", "-c", "exit 9"]).code(9);
    daemon.ctr(&["tasks", "pause", &id]).ok();
    daemon.ctr(&["tasks", "resume", &id]).ok();
    daemon.ctr(&["tasks", "kill", "--signal", "SIGKILL", &id]).ok();
    daemon.ctr(&["tasks", "rm", "-f", &id]);
    daemon.ctr(&["containers", "rm", &id]).ok();
    daemon.assert_nothing_leaked();
    daemon.stop_clean();
}

#[test]
fn ctr_makes_shows_and_removes_a_sandbox() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let id = lab.id("pod");
    assert_eq!(daemon.ctr(&["sandboxes", "run", &pod(&lab, &id), &id]).ok(), format!("{id}\n"));
    assert!(daemon.ctr(&["sandboxes", "ls"]).ok().contains(&id));
    daemon.ctr(&["sandboxes", "run", &pod(&lab, &id), &id]).fails_with("already exists");
    daemon.ctr(&["sandboxes", "rm", &id]).ok();
    assert!(!daemon.ctr(&["sandboxes", "ls"]).ok().contains(&id));
    daemon.assert_nothing_leaked();
    daemon.stop_clean();
}

/// The process that holds a sandbox's namespaces, as its bundle says.
fn holder(daemon: &Daemon, id: &str) -> i32 {
    number(&daemon.state().join("io.containerd.sandbox.controller.v1.shim/default").join(id).join("init.pid"))
}

fn shim(daemon: &Daemon, id: &str) -> i32 {
    number(&daemon.state().join("io.containerd.sandbox.controller.v1.shim/default").join(id).join("shim.pid"))
}

fn number(file: &Path) -> i32 {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.split(' ').next().and_then(|pid| pid.trim().parse().ok()).expect("a process id")
}

fn is_alive(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[track_caller]
pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..400 {
        if done() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("{what} did not come");
}

#[test]
fn a_sandbox_lives_through_the_daemons_death_and_is_removed_afterwards() {
    let lab = Lab::new();
    let mut daemon = Daemon::start(&lab);
    let id = lab.id("pod");
    daemon.ctr(&["sandboxes", "run", &pod(&lab, &id), &id]).ok();
    let pid = holder(&daemon, &id);
    daemon.crash();
    assert!(is_alive(pid));
    daemon.launch();
    assert!(is_alive(pid), "{}", daemon.log_tail());
    daemon.ctr(&["sandboxes", "rm", &id]).ok();
    assert!(!is_alive(pid));
    daemon.assert_nothing_leaked();
    daemon.stop_clean();
}

#[test]
fn a_sandboxs_shim_that_is_killed_takes_all_of_it_along() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let id = lab.id("pod");
    daemon.ctr(&["sandboxes", "run", &pod(&lab, &id), &id]).ok();
    let pid = holder(&daemon, &id);
    kill(shim(&daemon, &id));
    until("the end of what the shim held", || !is_alive(pid));
    daemon.ctr(&["sandboxes", "rm", &id]).ok();
    daemon.assert_nothing_leaked();
    daemon.stop_clean();
}

#[test]
fn a_shim_that_is_killed_while_the_daemon_is_away_is_cleared_up_after_at_its_start() {
    let lab = Lab::new();
    let mut daemon = Daemon::start(&lab);
    let id = lab.id("pod");
    daemon.ctr(&["sandboxes", "run", &pod(&lab, &id), &id]).ok();
    let pid = holder(&daemon, &id);
    daemon.crash();
    kill(shim(&daemon, &id));
    daemon.launch();
    assert!(!is_alive(pid));
    daemon.ctr(&["sandboxes", "rm", &id]).ok();
    daemon.assert_nothing_leaked();
    daemon.stop_clean();
}

#[test]
fn a_daemon_killed_at_any_moment_of_a_sandboxs_making_leaves_nothing() {
    let lab = Lab::new();
    let mut daemon = Daemon::start(&lab);
    for (round, pause) in [1, 3, 6, 10, 15, 25].into_iter().enumerate() {
        let id = lab.id(&format!("pod{round}"));
        let file = pod(&lab, &id);
        std::thread::scope(|scope| {
            let running = scope.spawn(|| daemon.ctr(&["sandboxes", "run", &file, &id]));
            std::thread::sleep(Duration::from_millis(pause * 4));
            kill(daemon.pid());
            let _ = running.join();
        });
        daemon.crash();
        daemon.launch();
        // What was acknowledged is there; the rest may be removed by force.
        daemon.ctr(&["sandboxes", "rm", "-f", &id]);
        daemon.assert_nothing_leaked();
    }
    daemon.stop_clean();
}

/// A daemon that dies where a call tells it to.
fn mortal(lab: &Lab) -> (Daemon, Wire) {
    let daemon = Daemon::start_with(lab, Peer::Gantry, "", &[("FAILPOINTS", "")]);
    let wire = Wire::new(lab, &daemon);
    (daemon, wire)
}

#[test]
fn a_sandbox_can_be_cleared_and_its_name_used_again_wherever_the_daemon_is_killed() {
    let lab = Lab::new();
    let (mut daemon, wire) = mortal(&lab);
    let making = ["before-shim", "after-shim", "after-create", "after-start"].map(|point| (point, ""));
    let ending = [("after-stop", "Stop"), ("after-shutdown", "Shutdown")];
    let id = lab.id("pod");
    let file = pod(&lab, &id);
    for (point, method) in making.into_iter().chain(ending) {
        let header = format!("gantry-failpoint: sandbox::{point}");
        if method.is_empty() {
            wire.send_with(&ask("", "version.v1.Version/Version", json!({})), Some(&header));
            let mut client = daemon.command(peer_binary("ctr"));
            client.arg("--address").arg(daemon.address()).args(["sandboxes", "run", &file, &id]);
            Outcome::of(client, Duration::from_secs(5));
        } else {
            daemon.ctr(&["sandboxes", "run", &file, &id]).ok();
            let method = if method == "Stop" { STOP } else { SHUTDOWN };
            wire.send_with(&ask("", method, json!({"sandboxId": id, "sandboxer": "shim"})), Some(&header));
        }
        until(point, || daemon.has_ended());
        daemon.crash();
        daemon.launch();
        clear(&daemon, &wire, &id);
        daemon.ctr(&["sandboxes", "run", &file, &id]).ok();
        clear(&daemon, &wire, &id);
    }
    daemon.stop_clean();
}

const STOP: &str = "sandbox.v1.Controller/Stop";
const SHUTDOWN: &str = "sandbox.v1.Controller/Shutdown";

/// Removes what there is of a sandbox, and its record.
fn clear(daemon: &Daemon, wire: &Wire, id: &str) {
    let removals = [
        ask("", SHUTDOWN, json!({"sandboxId": id, "sandboxer": "shim"})),
        ask("", "sandbox.v1.Store/Delete", json!({"sandboxId": id})),
    ];
    for removal in removals {
        let (code, text) = wire.send(&removal);
        assert!(["OK", "NotFound"].contains(&code.as_str()), "{}: {code} {text}", removal.method());
    }
    daemon.assert_nothing_leaked();
}

#[test]
fn a_shim_that_is_killed_at_a_step_of_a_sandbox_leaves_nothing_and_the_name_is_free() {
    let lab = Lab::new();
    // Long enough to be met in; all that follows holds as well if it is missed.
    let points = "sandbox::after-shim=sleep(150);sandbox::after-create=sleep(150);sandbox::after-stop=sleep(150)";
    let daemon = Daemon::start_with(&lab, Peer::Gantry, "", &[("FAILPOINTS", points)]);
    let wire = Wire::new(&lab, &daemon);
    let id = lab.id("pod");
    let file = pod(&lab, &id);
    let bundle = daemon.state().join("io.containerd.sandbox.controller.v1.shim/default").join(&id);
    for step in ["shim.pid", "init.pid", "init.exit"] {
        std::thread::scope(|scope| {
            let running = scope.spawn(|| {
                let made = daemon.ctr(&["sandboxes", "run", &file, &id]);
                if step == "init.exit" {
                    made.ok();
                    wire.send(&ask("", STOP, json!({"sandboxId": id, "sandboxer": "shim"})));
                }
            });
            until(step, || bundle.join(step).exists() && bundle.join("shim.pid").exists());
            kill(shim(&daemon, &id));
            running.join().expect("the client's thread");
        });
        clear(&daemon, &wire, &id);
    }
    daemon.ctr(&["sandboxes", "run", &file, &id]).ok();
    clear(&daemon, &wire, &id);
    daemon.stop_clean();
}

#[test]
fn a_shim_that_is_stopped_does_not_keep_its_sandbox_from_being_shut_down() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let wire = Wire::new(&lab, &daemon);
    let id = lab.id("pod");
    daemon.ctr(&["sandboxes", "run", &pod(&lab, &id), &id]).ok();
    let (pid, shim) = (holder(&daemon, &id), shim(&daemon, &id));
    signal("-STOP", shim);
    clear(&daemon, &wire, &id);
    assert!(!is_alive(pid) && !is_alive(shim));
    daemon.stop_clean();
}

fn kill(pid: i32) {
    signal("-9", pid);
}

fn signal(signal: &str, pid: i32) {
    let status = Command::new("kill").args([signal, &pid.to_string()]).status();
    assert!(status.is_ok_and(|status| status.success()), "kill {signal} {pid}");
}
