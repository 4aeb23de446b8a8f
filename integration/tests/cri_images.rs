//! Images for Kubernetes: where they come from by containerd's outdated keys, and the one that holds pods.

use gantry_integration::Lab;
use gantry_integration::images::{Image, busybox_root};
use gantry_integration::lab::run;
use gantry_integration::registry::DockerRegistry;
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
    let pulled = node.ask_images("PullImage", &json!({"image": {"image": image}}));
    assert!(pulled["imageRef"].as_str().is_some_and(|id| id.starts_with("sha256:")), "{pulled}");
    // The mirror answers that it has none; the registry itself cannot be reached.
    let missing = node.call_images("PullImage", &json!({"image": {"image": "mirrored.test/none:1"}}));
    missing.fails_with("NotFound");
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

#[test]
fn file_systems_of_images_and_containers_are_told_as_large_as_they_are() {
    let lab = Lab::new();
    let registry = DockerRegistry::start(&lab);
    // Each usage is measured anew.
    let config =
        format!("{}[plugins.'io.containerd.cri.v1.images']\nstats_collect_period = '1ms'\n", cri_node::config(&lab));
    let node = Node::start_with(&lab, &config);
    let image = node.busybox(&registry);
    let pod = node.run_pod("one", &json!({}));
    let command = json!(["/bin/sh", "-c", "head -c 8388608 /dev/urandom >/noise; sync; echo done; exec sleep 1000"]);
    node.run_container(&pod, "main", &json!({"image": {"image": image}, "command": command}));
    let log = lab.path("logs/main.log");
    cri_node::wait_for("the container has written", || {
        std::fs::read_to_string(&log).is_ok_and(|text| text.contains("done"))
    });
    let told = || node.ask_images("ImageFsInfo", &json!({}));
    let number = |of: &serde_json::Value| of["value"].as_str().and_then(|n| n.parse::<f64>().ok()).expect("a number");
    let (snapshots, content) = (node.daemon.root().join("snapshots"), node.daemon.root().join("content"));
    let du = |flag: &str| {
        let out = run("du", &["-sc", flag, &snapshots.to_string_lossy(), &content.to_string_lossy()]);
        let total = out.lines().last().and_then(|line| line.split_whitespace().next()).expect("a total");
        total.parse::<f64>().expect("a number")
    };
    let (info, used) = (told(), du("--block-size=1"));
    let images = number(&info["imageFilesystems"][0]["usedBytes"]);
    assert!((images - used).abs() < 0.05 * used, "{images} told, {used} by du: {info}");
    let containers = number(&info["containerFilesystems"][0]["usedBytes"]);
    assert!((8_388_608.0..10_000_000.0).contains(&containers), "{info}");
    node.remove_pod(&pod);
    node.finish();
}
