//! The daemon dies at any moment: containers live on, and their exit codes are delivered.

use std::time::Duration;

use gantry_integration::images::{Image, busybox_root};
use gantry_integration::registry::DockerRegistry;
use gantry_integration::{Daemon, Lab};

fn pulled(lab: &Lab, registry: &DockerRegistry, daemon: &Daemon) -> String {
    let image = Image::new(lab, "busybox").layer(&busybox_root(lab)).push(&registry.host(), "busybox");
    daemon.ctr(&["images", "pull", "--plain-http", &image]).ok();
    image
}

fn status(daemon: &Daemon, id: &str) -> String {
    let list = daemon.ctr(&["tasks", "ls"]);
    let line = list.ok().lines().find(|l| l.starts_with(id)).unwrap_or_default().to_owned();
    line.split_whitespace().last().unwrap_or_default().to_owned()
}

#[track_caller]
fn wait_for(daemon: &Daemon, id: &str, wanted: &str) {
    for _ in 0..200 {
        if status(daemon, id) == wanted {
            return;
        }
        std::thread::sleep(Duration::from_millis(25));
    }
    panic!("{id} is {}, not {wanted}\n{}", status(daemon, id), daemon.log_tail());
}

#[test]
fn a_container_lives_through_the_daemons_death_and_can_be_used_afterwards() {
    let lab = Lab::new();
    let registry = DockerRegistry::start(&lab);
    let mut daemon = Daemon::start(&lab);
    let image = pulled(&lab, &registry, &daemon);
    let id = lab.id("alive");
    let script = "trap 'exit 7' TERM; while :; do sleep 0.05; done";
    daemon.ctr(&["run", "-d", &image, &id, "/bin/sh", "-c", script]).ok();
    daemon.crash();
    daemon.launch();
    assert_eq!(status(&daemon, &id), "RUNNING");
    let out = daemon.ctr(&["tasks", "exec", "--exec-id", "e", &id, "/bin/echo", "still here"]);
    assert_eq!(out.ok(), "still here\n");
    daemon.ctr(&["tasks", "kill", &id]).ok();
    wait_for(&daemon, &id, "STOPPED");
    let removed = daemon.ctr(&["tasks", "rm", &id]);
    assert!(removed.stderr.contains("non-zero exit code 7"), "{removed}");
    daemon.ctr(&["containers", "rm", &id]).ok();
    daemon.assert_nothing_leaked();
    daemon.stop_clean();
}

#[test]
fn the_exit_code_of_a_container_that_ended_while_the_daemon_was_away_is_delivered() {
    let lab = Lab::new();
    let registry = DockerRegistry::start(&lab);
    let mut daemon = Daemon::start(&lab);
    let image = pulled(&lab, &registry, &daemon);
    let id = lab.id("ends");
    daemon.ctr(&["run", "-d", &image, &id, "/bin/sh", "-c", "sleep 0.7; exit 23"]).ok();
    daemon.crash();
    std::thread::sleep(Duration::from_millis(1200));
    daemon.launch();
    wait_for(&daemon, &id, "STOPPED");
    let removed = daemon.ctr(&["tasks", "rm", &id]);
    assert!(removed.stderr.contains("non-zero exit code 23"), "{removed}");
    daemon.ctr(&["containers", "rm", &id]).ok();
    daemon.assert_nothing_leaked();
    daemon.stop_clean();
}

#[test]
fn a_shim_that_was_killed_is_noticed_and_cleared_away() {
    let lab = Lab::new();
    let registry = DockerRegistry::start(&lab);
    let daemon = Daemon::start(&lab);
    let image = pulled(&lab, &registry, &daemon);
    let id = lab.id("shimdead");
    daemon.ctr(&["run", "-d", &image, &id, "/bin/sleep", "1000"]).ok();
    let processes = gantry_integration::census::processes(lab.dir(), lab.tag());
    let (shim, _) = processes.iter().find(|(_, c)| c.contains("containerd-shim-gantry-v1")).expect("a shim runs");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(*shim), nix::sys::signal::Signal::SIGKILL)
        .expect("kill the shim");
    for _ in 0..200 {
        if status(&daemon, &id) != "RUNNING" {
            break;
        }
        std::thread::sleep(Duration::from_millis(25));
    }
    daemon.ctr(&["tasks", "rm", "--force", &id]);
    daemon.ctr(&["containers", "rm", &id]).ok();
    daemon.assert_nothing_leaked();
    daemon.stop_clean();
}

#[test]
fn a_daemon_killed_while_it_pulls_leaves_no_half_image_and_the_next_pull_succeeds() {
    let lab = Lab::new();
    let registry = DockerRegistry::start(&lab);
    let mut daemon = Daemon::start(&lab);
    let root = gantry_integration::images::debian_root(&lab, &["perl-modules-5.36", "libicu72"]);
    let image = Image::new(&lab, "big").layer(&busybox_root(&lab)).layer(&root).push(&registry.host(), "big");
    for milliseconds in [30, 120, 250, 400] {
        let mut command = daemon.command(gantry_integration::lab::peer_binary("ctr"));
        command.arg("--address").arg(daemon.address()).args(["images", "pull", "--plain-http", &image]);
        let mut client =
            command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().expect("start ctr");
        std::thread::sleep(Duration::from_millis(milliseconds));
        daemon.crash();
        let _ = client.wait();
        daemon.launch();
    }
    daemon.ctr(&["images", "pull", "--plain-http", &image]).ok();
    let out = daemon.ctr(&["run", "--rm", &image, &lab.id("after"), "/bin/sh", "-c", "ls /usr/share/perl | head -1"]);
    assert!(!out.ok().is_empty(), "{out}");
    daemon.assert_nothing_leaked();
    daemon.stop_clean();
}
