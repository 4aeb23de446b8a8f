//! Shims and daemons of others: the same Go program by the official client, on our shim under a real containerd, and on
//! containerd's shims, today's and an old one, under our daemon.

use std::path::Path;
use std::time::Duration;

use gantry_integration::daemon::Peer;
use gantry_integration::images::{Image, busybox_root};
use gantry_integration::lab::{our_binary, peer_binary, run, source_root};
use gantry_integration::registry::DockerRegistry;
use gantry_integration::{Daemon, Lab, Outcome};

fn a_go_program_runs_a_container(lab: &Lab, daemon: Daemon, runtime: &str) {
    let tools = source_root().join("integration/tools");
    let registry = DockerRegistry::start(lab);
    let image = Image::new(lab, "busybox").layer(&busybox_root(lab)).push(&registry.host(), "busybox");
    let mut command = daemon.command(tools.join("bin/suites.test"));
    command.args(["-test.v", "-test.timeout=100s", "-test.run", "^TestTask$"]);
    command.env("GANTRY_SOCKET", daemon.address()).env("GANTRY_IMAGE", image).env("GANTRY_ID", lab.id("shim"));
    command.env("GANTRY_RUNTIME", runtime).env("TMPDIR", lab.dir()).current_dir(lab.dir());
    let out = Outcome::of(command, Duration::from_secs(110));
    assert!(out.code == 0, "{out}\nthe daemon's log:\n{}", daemon.log_tail());
    daemon.assert_nothing_leaked();
    daemon.stop_clean();
}

/// Built outside a laboratory: modules may have to be fetched.
fn build_program() {
    let tools = source_root().join("integration/tools");
    let binary = tools.join("bin/suites.test");
    run("go", &["test", "-C", &tools.to_string_lossy(), "-c", "-o", &binary.to_string_lossy(), "./suites"]);
}

#[test]
fn our_shim_under_a_real_containerd() {
    build_program();
    let lab = Lab::new();
    let daemon = Daemon::start_with(&lab, Peer::Containerd, "", &[]);
    let shim = lab.path("c").join("bin/containerd-shim-gantry-v1");
    std::fs::copy(our_binary("containerd-shim-gantry-v1"), shim).expect("copy the shim");
    a_go_program_runs_a_container(&lab, daemon, "io.containerd.gantry.v1");
}

fn a_shim_under_our_daemon(shim: &Path) {
    build_program();
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    a_go_program_runs_a_container(&lab, daemon, &shim.to_string_lossy());
}

#[test]
fn containerds_shim_under_our_daemon() {
    a_shim_under_our_daemon(&peer_binary("containerd-shim-runc-v2"));
}

#[test]
fn an_old_shim_of_containerds_under_our_daemon() {
    a_shim_under_our_daemon(&peer_binary("debian/containerd-shim-runc-v2"));
}
