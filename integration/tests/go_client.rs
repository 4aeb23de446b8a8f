//! containerd's own Go client and its reusable test suites over the socket.

use std::time::Duration;

use gantry_integration::images::{Image, busybox_root};
use gantry_integration::lab::{run, source_root};
use gantry_integration::registry::DockerRegistry;
use gantry_integration::{Daemon, Lab, Outcome};

/// Runs one Go test of `integration/tools/suites` against a daemon of its own.
fn go_test(name: &str) {
    let tools = source_root().join("integration/tools");
    let binary = tools.join("bin/suites.test");
    // Built outside the laboratory: modules may have to be fetched.
    run("go", &["test", "-C", &tools.to_string_lossy(), "-c", "-o", &binary.to_string_lossy(), "./suites"]);
    let lab = Lab::new();
    let registry = DockerRegistry::start(&lab);
    let daemon = Daemon::start(&lab);
    let image = Image::new(&lab, "busybox").layer(&busybox_root(&lab)).push(&registry.host(), "busybox");
    let mut command = daemon.command(&binary);
    command.args(["-test.v", "-test.root", "-test.timeout=240s", "-test.run", &format!("^{name}$")]);
    command.env("GANTRY_SOCKET", daemon.address()).env("GANTRY_IMAGE", image).env("GANTRY_ID", lab.id("go"));
    command.env("TMPDIR", lab.dir()).current_dir(lab.dir());
    let out = Outcome::of(command, Duration::from_secs(250));
    let summary: Vec<&str> = out.stdout.lines().filter(|l| l.contains("--- ") || l.contains("_test.go")).collect();
    assert!(out.code == 0, "{}\n{}\nthe daemon's log:\n{}", summary.join("\n"), out, daemon.log_tail());
    daemon.assert_nothing_leaked();
    daemon.stop_clean();
}

#[test]
fn the_content_suite_passes() {
    go_test("TestContent");
}

#[test]
fn the_snapshot_suite_passes_on_overlay() {
    go_test("TestOverlay");
}

#[test]
fn the_snapshot_suite_passes_on_native() {
    go_test("TestNative");
}

#[test]
fn the_snapshot_suite_passes_on_erofs() {
    go_test("TestErofs");
}

#[test]
fn a_go_program_runs_a_container_by_the_official_client() {
    go_test("TestTask");
}

#[test]
fn calls_that_a_go_client_gives_up_leave_no_lock_no_permit_and_no_operation() {
    go_test("TestCancelled");
}
