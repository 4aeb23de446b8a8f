//! Checkpoints of containers as a kubelet asks for them: an archive where CRIU works, a clear error where it does not.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use gantry_integration::daemon::Peer;
use gantry_integration::lab::run;
use gantry_integration::registry::DockerRegistry;
use gantry_integration::{Daemon, Lab, Outcome};
use serde_json::json;

use crate::cri_node::{Node, config};

/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What containerd's archives have, and `checkpointctl` reads.
const PARTS: [&str; 8] = [
    "checkpoint/inventory.img",
    "config.dump",
    "container.log",
    "dump.log",
    "rootfs-diff.tar",
    "spec.dump",
    "status",
    "status.dump",
];

#[test]
fn a_checkpoint_is_an_archive_with_all_its_parts_or_an_error_that_says_what_criu_said() {
    let lab = Lab::new();
    let registry = DockerRegistry::start(&lab);
    let node = Node::start(&lab);
    let image = node.busybox(&registry);
    let pod = node.run_pod("one", &json!({}));
    let command = json!(["/bin/sh", "-c", "echo changed >/root/changed; echo ready; exec sleep 1000"]);
    let container = node.run_container(&pod, "main", &json!({"image": {"image": image}, "command": command}));
    let archives = lab.path("archives");
    fs::create_dir(&archives).expect("make a directory");
    let ask = |location: &str| {
        node.call("CheckpointContainer", &json!({"container_id": container, "location": location, "timeout": 60}))
    };
    for bad in ["", "relative.tar", "/no/such/directory/c.tar", &archives.to_string_lossy()] {
        ask(bad).fails_with("location");
    }
    let location = archives.join("c.tar");
    let out = ask(&location.to_string_lossy());
    if out.code == 0 {
        let listed = run("tar", &["-tf", &location.to_string_lossy()]);
        for part in PARTS {
            assert!(listed.lines().any(|line| line == part), "{part} is missing:\n{listed}");
        }
        let changes = format!("tar -xOf {} rootfs-diff.tar | tar -tzf -", location.display());
        assert!(run("sh", &["-c", &changes]).contains("root/changed"));
    } else {
        println!("CRIU does not work here: {}", out.stderr.trim());
        assert!(out.stderr.to_lowercase().contains("criu"), "{out}");
        assert_eq!(fs::read_dir(&archives).expect("the directory").count(), 0, "half an archive is left");
    }
    let status = node.ask("ContainerStatus", &json!({"container_id": container}));
    assert_eq!(status["status"]["state"], "CONTAINER_RUNNING", "it runs on: {status}");
    assert_eq!(fs::read_dir(node.daemon.root().join("cri/checkpoints")).expect("parts").count(), 0);
    node.remove_pod(&pod);
    node.finish();
}

#[test]
fn a_daemon_killed_within_a_pods_checkpoint_lets_its_containers_run_and_empties_the_directory() {
    let lab = Lab::new();
    let registry = DockerRegistry::start(&lab);
    let daemon = Daemon::start_with(&lab, Peer::Gantry, &config(&lab), &[("FAILPOINTS", "")]);
    let mut node = Node { lab: &lab, daemon };
    let image = node.busybox(&registry);
    let pod = node.run_pod("one", &json!({}));
    let command = json!(["/bin/sh", "-c", "while :; do echo x >>/root/beats; sleep 0.1; done"]);
    let container = node.run_container(&pod, "main", &json!({"image": {"image": image}, "command": command}));
    let out = lab.path("out");
    fs::create_dir(&out).expect("make a directory");
    let request = json!({"pod_sandbox_id": pod, "output_path": out, "container_ids": [container]});
    let plain = node.command("RuntimeService", "CheckpointPod", &request);
    let mut call = Command::new(plain.get_program());
    call.args(["-H", "gantry-failpoint: cri::pod-checkpoint-part"]).args(plain.get_args());
    let killed = Outcome::of(call, PATIENCE);
    assert!(node.daemon.has_ended(), "it was answered and lives: {killed}");
    assert!(fs::read_dir(&out).expect("the directory").count() > 0, "it was killed too early for this test");
    node.daemon.crash();
    node.daemon.launch();
    assert_eq!(fs::read_dir(&out).expect("the directory").count(), 0, "half a checkpoint is left");
    assert_eq!(fs::read_dir(node.daemon.root().join("cri/checkpoints")).expect("marks").count(), 0);
    let beats = || {
        let wc = json!({"container_id": container, "cmd": ["wc", "-l", "/root/beats"], "timeout": 10});
        node.ask("ExecSync", &wc)["stdout"].to_string()
    };
    let (before, deadline) = (beats(), Instant::now() + PATIENCE);
    while beats() == before {
        assert!(Instant::now() < deadline, "the container stays frozen at {before}");
    }
    node.remove_pod(&pod);
    node.finish();
}
