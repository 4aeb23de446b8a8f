//! What Kubernetes' interface tells when it is asked verbosely: all that containerd's answers have, in the same forms,
//! for tools that look it up by its keys.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use gantry_integration::daemon::{Daemon, Peer};
use gantry_integration::images::{Image, busybox_root};
use gantry_integration::lab::{peer_binary, source_root};
use gantry_integration::registry::DockerRegistry;
use gantry_integration::{Lab, Outcome, cri};
use serde_json::{Value, json};

/// What only containerd can tell.
const THEIRS: [&str; 2] = ["status.golang", "status.config.containerdEndpoint"];
/// Here keys are names of things, not of fields.
const NAMES: [&str; 2] = ["pod.info.cniResult.Interfaces", "pod.info.sandboxMetadata.Metadata.CNIResult.Interfaces"];
/// Without a pause image a pod's configuration says less.
const LESS: [&str; 1] = ["pod.info.runtimeSpec"];

#[test]
fn verbose_answers_have_all_that_containerds_have_in_the_same_form() {
    let lab = Lab::new();
    let registry = DockerRegistry::start(&lab);
    let sleeping = json!({"Cmd": ["sleep", "1000000"], "Env": ["PATH=/bin"]});
    let image = Image::new(&lab, "sleep").layer(&busybox_root(&lab)).config(sleeping).push(&registry.host(), "sleep");
    let theirs = answers(&lab, "c", Peer::Containerd, &image);
    let ours = answers(&lab, "g", Peer::Gantry, &image);
    let mut missing = Vec::new();
    for (name, theirs) in &theirs {
        compare(name, theirs, &ours[name], &mut missing);
    }
    assert!(missing.is_empty(), "{missing:#?}\ntheirs: {theirs:#?}\nours: {ours:#?}");
}

/// Containerd tells the options of its runtime; ours gets the same.
fn config(lab: &Lab, name: &str, image: &str) -> String {
    format!(
        "{}[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]\nruntime_type = 'io.containerd.runc.v2'\n\
         [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]\nRoot = {:?}\n",
        cri::config(lab, name, "10.98.0.0/24", image),
        lab.path(&format!("runc-{name}"))
    )
}

/// What a daemon tells verbosely of itself, an image, a pod and a container, by these names.
fn answers(lab: &Lab, name: &str, peer: Peer, image: &str) -> BTreeMap<&'static str, Value> {
    let daemon = Daemon::start_named(lab, name, peer, &config(lab, name, image), &[]);
    daemon.ctr(&["-n", "k8s.io", "images", "pull", "--plain-http", image]).ok();
    let pod = json!({
        "metadata": {"name": "pod", "uid": lab.id(name), "namespace": "default"}, "hostname": "pod",
        "log_directory": lab.path("logs"), "labels": {"app": "one"}, "annotations": {"note": "x"},
        "dns_config": {"servers": ["192.0.2.1"]}, "linux": {"cgroup_parent": format!("/{}", lab.id(name))},
    });
    let id = call(&daemon, "RuntimeService/RunPodSandbox", &json!({"config": pod}))["podSandboxId"].clone();
    let limits = json!({"cpu_shares": 512, "memory_limit_in_bytes": "67108864"});
    let container = json!({
        "metadata": {"name": "main"}, "image": {"image": image}, "log_path": "main.log",
        "envs": [{"key": "FOO", "value": "YmFy"}],
        "linux": {"resources": limits, "security_context": {"capabilities": {"drop_capabilities": ["NET_RAW"]}}},
    });
    let create = json!({"pod_sandbox_id": id, "config": container, "sandbox_config": pod});
    let container = call(&daemon, "RuntimeService/CreateContainer", &create)["containerId"].clone();
    call(&daemon, "RuntimeService/StartContainer", &json!({"container_id": container}));
    let status = call(&daemon, "RuntimeService/Status", &json!({"verbose": true}));
    let of_image = json!({"image": {"image": image}, "verbose": true});
    let told = [
        ("status", status),
        ("image", call(&daemon, "ImageService/ImageStatus", &of_image)),
        ("pod", call(&daemon, "RuntimeService/PodSandboxStatus", &json!({"pod_sandbox_id": id, "verbose": true}))),
        (
            "container",
            call(&daemon, "RuntimeService/ContainerStatus", &json!({"container_id": container, "verbose": true})),
        ),
    ];
    for method in ["StopPodSandbox", "RemovePodSandbox"] {
        call(&daemon, &format!("RuntimeService/{method}"), &json!({"pod_sandbox_id": id}));
    }
    told.map(|(name, answer)| (name, details(&answer["info"]))).into()
}

fn call(daemon: &Daemon, method: &str, request: &Value) -> Value {
    let mut command = Command::new(peer_binary("grpcurl"));
    // containerd has no reflection.
    command.arg("-import-path").arg(source_root().join("proto/defs")).args(["-proto", "runtime/v1/cri.proto"]);
    command.args(["-plaintext", "-unix", "-authority", "localhost", "-emit-defaults", "-max-time", "60", "-d"]);
    command.arg(request.to_string()).arg(daemon.address()).arg(format!("runtime.v1.{method}"));
    let out = Outcome::of(command, Duration::from_secs(60));
    assert!(out.code == 0, "{method}: {out}\nthe daemon's log:\n{}", daemon.log_tail());
    serde_json::from_str(&out.stdout).expect("grpcurl prints JSON")
}

/// Details, each of which is JSON itself or a word.
fn details(info: &Value) -> Value {
    let read = |text: &Value| -> Value {
        let text = text.as_str().expect("details are texts");
        serde_json::from_str(text).unwrap_or_else(|_| text.into())
    };
    info.as_object().into_iter().flatten().map(|(key, text)| (key.clone(), read(text))).collect()
}

/// Notes what they have and we have not, or in another form.
fn compare(path: &str, theirs: &Value, ours: &Value, missing: &mut Vec<String>) {
    if THEIRS.contains(&path) || LESS.contains(&path) {
        return;
    }
    match (theirs, ours) {
        (Value::Object(theirs), Value::Object(ours)) => {
            let named = |key: &&String| !NAMES.contains(&path) || ["eth0", "lo"].contains(&key.as_str());
            for key in theirs.keys().filter(named) {
                let path = format!("{path}.{key}");
                match ours.get(key) {
                    Some(ours) => compare(&path, &theirs[key], ours, missing),
                    None if THEIRS.contains(&path.as_str()) => {}
                    None => missing.push(path),
                }
            }
        }
        (Value::Array(theirs), Value::Array(ours)) => {
            // Of those with a type, those of the same.
            let twin = |(at, theirs): (usize, &Value)| match theirs.get("type") {
                Some(kind) => ours.iter().find(|ours| ours.get("type") == Some(kind)),
                None => ours.get(at),
            };
            for (theirs, ours) in theirs.iter().enumerate().filter_map(|entry| Some((entry.1, twin(entry)?))) {
                compare(&format!("{path}[]"), theirs, ours, missing);
            }
        }
        (Value::Null, _) | (_, Value::Null) => {}
        _ if std::mem::discriminant(theirs) == std::mem::discriminant(ours) => {}
        _ => missing.push(format!("{path}: {ours} instead of {theirs}")),
    }
}
