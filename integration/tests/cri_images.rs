//! Images for Kubernetes: where they come from by containerd's outdated keys, and the one that holds pods.

use std::process::Command;
use std::time::Duration;

use gantry_integration::images::{Image, busybox_root};
use gantry_integration::lab::peer_binary;
use gantry_integration::registry::DockerRegistry;
use gantry_integration::{Lab, Outcome};
use serde_json::json;

use crate::cri_node::{self, Node};

#[test]
fn images_come_from_the_mirrors_that_outdated_keys_name() {
    let lab = Lab::new();
    let registry = DockerRegistry::start(&lab);
    let host = registry.host();
    let pushed = Image::new(&lab, "busybox").layer(&busybox_root(&lab)).push(&host, "busybox");
    let name = pushed.strip_prefix(&host).expect("the registry's host comes first");
    let mirrors = format!(
        "{}[plugins.'io.containerd.cri.v1.images'.registry.mirrors.'mirrored.test']\nendpoint = [\"http://{host}\"]\n\
         [plugins.'io.containerd.cri.v1.images'.registry.configs.'{host}'.auth]\nusername = 'u'\npassword = 'p'\n",
        cri_node::config(&lab)
    );
    let node = Node::start_with(&lab, &mirrors);
    let image = format!("mirrored.test{name}");
    let mut command = Command::new(peer_binary("grpcurl"));
    command.args(["-plaintext", "-unix", "-authority", "localhost", "-max-time", "60", "-d"]);
    command.arg(json!({"image": {"image": image}}).to_string()).arg(node.daemon.address());
    command.arg("runtime.v1.ImageService/PullImage");
    let out = Outcome::of(command, Duration::from_secs(60));
    assert!(out.code == 0 && out.stdout.contains("sha256:"), "{out}\n{}", node.daemon.log_tail());
    node.finish();
}

#[test]
fn a_runtime_class_may_have_its_pods_held_by_the_pause_image() {
    let lab = Lab::new();
    let registry = DockerRegistry::start(&lab);
    let sleeping = json!({"Cmd": ["sleep", "1000000"], "Env": ["PATH=/bin"], "User": "65535:65535"});
    let image = Image::new(&lab, "pause").layer(&busybox_root(&lab)).config(sleeping).push(&registry.host(), "pause");
    let config = format!(
        "{}[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.paused]\n\
         runtime_type = 'io.containerd.runc.v2'\npause_image = true\n\
         [plugins.'io.containerd.cri.v1.images'.pinned_images]\nsandbox = '{image}'\n",
        cri_node::config(&lab)
    );
    let mut node = Node::start_with(&lab, &config);
    let run = json!({"config": node.pod_config("one", &json!({})), "runtime_handler": "paused"});
    // Nobody pulled it before.
    let pod = node.ask("RunPodSandbox", &run)["podSandboxId"].as_str().expect("an id").to_owned();
    let status = node.ask("PodSandboxStatus", &json!({"pod_sandbox_id": pod, "verbose": true}));
    let info: serde_json::Value =
        serde_json::from_str(status["info"]["info"].as_str().expect("details")).expect("JSON");
    let of = |name: &str| std::fs::read_to_string(format!("/proc/{}/{name}", info["pid"])).unwrap_or_default();
    assert_eq!(of("cmdline"), "sleep\x001000000\x00", "{info}");
    assert!(of("status").contains("Uid:\t65535\t65535"), "{}", of("status"));
    let container = node.run_container(&pod, "main", &json!({"image": {"image": image}}));
    node.daemon.crash();
    node.daemon.launch();
    let status = node.ask("ContainerStatus", &json!({"container_id": container}));
    assert_eq!(status["status"]["state"], "CONTAINER_RUNNING", "{status}");
    node.remove_pod(&pod);
    let left = node.daemon.ctr(&["-n", "k8s.io", "snapshots", "ls"]);
    assert!(!left.ok().contains(&pod), "{left}");
    node.finish();
}
