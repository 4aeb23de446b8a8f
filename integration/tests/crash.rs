//! The daemon is killed at every moment of a container's making and ending: after its restart it can be cleared, and
//! nothing is left.

use std::process::Stdio;
use std::time::Duration;

use gantry_integration::images::{Image, busybox_root};
use gantry_integration::lab::peer_binary;
use gantry_integration::registry::DockerRegistry;
use gantry_integration::{Daemon, Lab};

/// Runs `args` by ctr, kills the daemon `after` that long, starts it again.
fn crash_during(daemon: &mut Daemon, args: &[&str], after: Duration) {
    let mut command = daemon.command(peer_binary("ctr"));
    command.arg("--address").arg(daemon.address()).args(args);
    let mut client =
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("start ctr");
    std::thread::sleep(after);
    daemon.crash();
    let _ = client.kill();
    let _ = client.wait();
    daemon.launch();
}

#[test]
fn a_daemon_killed_at_any_moment_of_create_start_and_delete_leaves_nothing_behind() {
    let lab = Lab::new();
    let registry = DockerRegistry::start(&lab);
    let mut daemon = Daemon::start(&lab);
    let image = Image::new(&lab, "busybox").layer(&busybox_root(&lab)).push(&registry.host(), "busybox");
    daemon.ctr(&["images", "pull", "--plain-http", &image]).ok();
    for (n, milliseconds) in (6..90).step_by(4).enumerate() {
        let id = lab.id(&format!("k{n}"));
        let args = ["run", "--rm", &image, &id, "/bin/sleep", "0.02"];
        crash_during(&mut daemon, &args, Duration::from_millis(milliseconds));
        // Whatever is known of it can be removed in the ordinary way.
        daemon.ctr(&["tasks", "rm", "--force", &id]);
        daemon.ctr(&["containers", "rm", &id]);
        let left = daemon.ctr(&["containers", "ls", "-q"]);
        assert_eq!(left.ok(), "", "killed after {milliseconds} ms: {left}");
        daemon.assert_nothing_leaked();
    }
    let out = daemon.ctr(&["run", "--rm", &image, &lab.id("last"), "/bin/echo", "fine"]);
    assert_eq!(out.ok(), "fine\n");
    daemon.stop_clean();
}
