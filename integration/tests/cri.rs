//! Kubernetes' interface by its own client modules: pods with the built-in network, their containers, logs, images.

use std::process::{Command, Stdio};
use std::time::Duration;

use gantry_integration::images::{Image, busybox_root};
use gantry_integration::lab::{run, source_root};
use gantry_integration::registry::DockerRegistry;
use gantry_integration::{Daemon, Lab, Outcome, Peer};
use serde_json::json;

use crate::cri_node;

/// A laboratory with a registry and a daemon; Go tests run against it one after the other.
struct Node {
    lab: Lab,
    _registry: DockerRegistry,
    daemon: Daemon,
    image: String,
    suites: std::path::PathBuf,
}

impl Node {
    fn new() -> Node {
        // The machine may have networks of its own configured.
        Node::with(cri_node::config)
    }

    /// With a configuration of its own for the daemon.
    fn with(config: impl Fn(&Lab) -> String) -> Node {
        let tools = source_root().join("integration/tools");
        let suites = tools.join("bin/suites.test");
        // Built outside the laboratory: modules may have to be fetched.
        run("go", &["test", "-C", &tools.to_string_lossy(), "-c", "-o", &suites.to_string_lossy(), "./suites"]);
        let lab = Lab::new();
        let registry = DockerRegistry::start(&lab);
        let daemon = Daemon::start_with(&lab, Peer::Gantry, &config(&lab), &[]);
        let image = Image::new(&lab, "busybox").layer(&busybox_root(&lab)).push(&registry.host(), "busybox");
        Node { lab, _registry: registry, daemon, image, suites }
    }

    /// Runs one of the Go tests.
    fn go_test(&self, name: &str) {
        let out = Outcome::of(self.go_command(name), Duration::from_secs(130));
        assert!(out.code == 0, "{out}\nthe daemon's log:\n{}", self.daemon.log_tail());
    }

    fn go_command(&self, name: &str) -> Command {
        let mut command = self.daemon.command(&self.suites);
        command.args(["-test.v", "-test.root", "-test.timeout=120s", "-test.run", &format!("^{name}$")]);
        command.env("GANTRY_SOCKET", self.daemon.address()).env("GANTRY_IMAGE", &self.image);
        command.env("GANTRY_ID", self.lab.id("cri")).env("TMPDIR", self.lab.dir()).current_dir(self.lab.dir());
        command
    }

    /// Runs the test with a kubelet's own modules; pods must have addresses that begin so.
    fn kubelet(&self, range: &str) {
        let mut command = self.go_command("TestKubelet");
        command.env("GANTRY_RANGE", range);
        let out = Outcome::of(command, Duration::from_secs(130));
        assert!(out.code == 0, "{out}\nthe daemon's log:\n{}", self.daemon.log_tail());
    }

    fn end(self) {
        self.daemon.assert_nothing_leaked();
        self.daemon.stop_clean();
    }
}

#[test]
fn a_pod_lives_from_pull_to_removal_and_leaves_nothing() {
    let node = Node::new();
    node.go_test("TestPodsLife");
    node.end();
}

#[test]
fn bad_requests_of_every_method_are_refused_by_field_and_leave_nothing() {
    let node = Node::new();
    node.go_test("TestPodsBadRequests");
    node.go_test("TestBadFields");
    node.end();
}

#[test]
fn pods_run_on_while_the_daemon_is_killed_and_their_ends_are_known_after_it() {
    let mut node = Node::new();
    node.go_test("TestPodsLeave");
    node.daemon.crash();
    std::thread::sleep(Duration::from_millis(700));
    node.daemon.launch();
    node.go_test("TestPodsFind");
    node.end();
}

#[test]
fn a_daemon_killed_while_it_makes_pods_leaves_nothing_that_cannot_be_removed() {
    let mut node = Node::new();
    for moment in [60, 150, 300] {
        let mut storm = node.go_command("TestPodsStorm");
        let mut storm = storm.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("start the Go test");
        std::thread::sleep(Duration::from_millis(moment));
        node.daemon.crash();
        storm.wait().expect("wait for the Go test");
        node.daemon.launch();
        node.go_test("TestPodsClear");
    }
    node.end();
}

#[test]
fn every_method_and_stream_of_a_kubelets_own_modules_works_with_the_built_in_network() {
    let node = Node::new();
    node.kubelet("10.87.");
    node.end();
}

#[test]
fn every_method_and_stream_of_a_kubelets_own_modules_works_with_the_plugins_of_cni() {
    let node = Node::with(|lab| {
        let conf = json!({"cniVersion": "1.0.0", "name": "pods", "plugins": [
            {"type": "bridge", "bridge": "cni0", "isGateway": true,
             "ipam": {"type": "host-local", "dataDir": lab.path("ipam"), "ranges": [[{"subnet": "{{.PodCIDR}}"}]]}},
            {"type": "portmap", "backend": "nftables", "capabilities": {"portMappings": true}}]});
        std::fs::write(lab.path("net.tmpl"), conf.to_string()).expect("write the template");
        // The test tells the range of the pods, as a kubelet does.
        format!("{}conf_template = {:?}\n", cri_node::config(lab), lab.path("net.tmpl"))
    });
    node.kubelet("10.9.0.");
    node.end();
}
