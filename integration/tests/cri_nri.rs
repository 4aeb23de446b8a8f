//! Plug-ins of the Node Resource Interface: those that connect, on the official stub, and pre-installed ones.

use std::path::PathBuf;
use std::time::Duration;

use gantry_integration::lab::{run, source_root};
use gantry_integration::registry::DockerRegistry;
use gantry_integration::{Lab, Outcome};

use crate::cri_node::{self, Node};

/// Configuration with the laboratory's own socket and directories of plug-ins.
fn config(lab: &Lab) -> String {
    format!(
        "{}[plugins.'io.containerd.nri.v1.nri']\nsocket_path = {:?}\nplugin_path = {:?}\nplugin_config_path = {:?}\n",
        cri_node::config(lab),
        lab.path("nri/nri.sock"),
        lab.path("nri/plugins"),
        lab.path("nri/conf.d")
    )
}

fn suites() -> PathBuf {
    let tools = source_root().join("integration/tools");
    let suites = tools.join("bin/suites.test");
    // Built outside the laboratory: modules may have to be fetched.
    run("go", &["test", "-C", &tools.to_string_lossy(), "-c", "-o", &suites.to_string_lossy(), "./suites"]);
    suites
}

fn go_test(node: &Node<'_>, name: &str, image: &str, nri: PathBuf) {
    let mut command = node.daemon.command(suites());
    command.args(["-test.v", "-test.root", "-test.timeout=120s", "-test.run", &format!("^{name}$")]);
    command.env("GANTRY_SOCKET", node.daemon.address()).env("GANTRY_IMAGE", image).env("GANTRY_NRI", nri);
    command.env("GANTRY_ID", node.lab.id("nri")).env("TMPDIR", node.lab.dir()).current_dir(node.lab.dir());
    let out = Outcome::of(command, Duration::from_secs(130));
    assert!(out.code == 0, "{out}\nthe daemon's log:\n{}", node.daemon.log_tail());
}

#[test]
fn plugins_see_all_that_happens_change_what_they_may_and_contradict_each_other_by_name() {
    let lab = Lab::new();
    let registry = DockerRegistry::start(&lab);
    let node = Node::start_with(&lab, &config(&lab));
    let image = node.busybox(&registry);
    go_test(&node, "TestPlugins", &image, lab.path("nri/nri.sock"));
    node.finish();
}

#[test]
fn a_preinstalled_plugin_has_its_configuration_and_goes_with_the_daemon() {
    let lab = Lab::new();
    for directory in ["nri/plugins", "nri/conf.d"] {
        std::fs::create_dir_all(lab.path(directory)).expect("make a directory");
    }
    std::fs::copy(suites(), lab.path("nri/plugins/40-writer")).expect("install the plug-in");
    let said = lab.path("nri/said");
    std::fs::write(lab.path("nri/conf.d/writer.conf"), said.to_string_lossy().as_bytes()).expect("configure it");
    let node = Node::start_with(&lab, &config(&lab));
    go_test(&node, "TestPluginInstalled", "", said);
    let program = lab.path("nri/plugins/40-writer");
    let running = || {
        let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        processes.filter(|p| std::fs::read_link(p.path().join("exe")).is_ok_and(|exe| exe == program)).count()
    };
    assert_eq!(running(), 1, "the plug-in runs beside its daemon");
    node.daemon.stop_clean();
    let until = std::time::Instant::now() + Duration::from_secs(10);
    while running() != 0 {
        assert!(std::time::Instant::now() < until, "the plug-in outlives its daemon");
        std::thread::sleep(Duration::from_millis(20));
    }
}
