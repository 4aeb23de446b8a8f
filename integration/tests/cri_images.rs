//! Images for Kubernetes: where they come from by containerd's outdated keys.

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
