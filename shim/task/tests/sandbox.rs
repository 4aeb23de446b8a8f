//! The sandbox service of the shim's binary: a pod's namespaces without a pause image. Needs root and busybox-static.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[allow(dead_code)]
mod harness;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use gantry_ttrpc::pb::containerd::runtime::sandbox::v1 as pb;
use gantry_ttrpc::pb::containerd::types::Mount;
use gantry_types::ErrorKind;
use harness::{Container, Kind, World, is_alive, reader};
use serde_json::{Value, json};

/// A pod's bundle: namespaces, and nothing to run.
fn pod(world: &World, id: &str, change: impl FnOnce(&mut Value)) -> PathBuf {
    world.bundle(id, &["none"], |config| {
        let group = config["linux"]["cgroupsPath"].clone();
        let namespaces = json!([{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "network"}]);
        *config = json!({ "ociVersion": "1.2.0", "hostname": "pod", "linux": { "cgroupsPath": group, "namespaces": namespaces } });
        change(config);
    })
}

fn create(sandbox: &Container) -> pb::CreateSandboxRequest {
    pb::CreateSandboxRequest {
        sandbox_id: sandbox.id.clone(),
        bundle_path: sandbox.bundle.display().to_string(),
        ..pb::CreateSandboxRequest::default()
    }
}

async fn made(world: &World, id: &str, change: impl FnOnce(&mut Value)) -> Container {
    let sandbox = world.shim(id, pod(world, id, change)).await;
    sandbox.sandbox::<_, pb::CreateSandboxResponse>("CreateSandbox", create(&sandbox)).await.unwrap();
    sandbox
}

async fn start(sandbox: &Container) -> u32 {
    let request = pb::StartSandboxRequest { sandbox_id: sandbox.id.clone() };
    sandbox.sandbox::<_, pb::StartSandboxResponse>("StartSandbox", request).await.unwrap().pid
}

async fn status(sandbox: &Container) -> pb::SandboxStatusResponse {
    let request = pb::SandboxStatusRequest { sandbox_id: sandbox.id.clone(), verbose: true };
    sandbox.sandbox("SandboxStatus", request).await.unwrap()
}

async fn stop(sandbox: &Container) {
    let request = pb::StopSandboxRequest { sandbox_id: sandbox.id.clone(), timeout_secs: 5 };
    sandbox.sandbox::<_, pb::StopSandboxResponse>("StopSandbox", request).await.unwrap();
}

async fn shut_down(world: &World, sandbox: &Container) {
    let request = pb::ShutdownSandboxRequest { sandbox_id: sandbox.id.clone() };
    sandbox.sandbox::<_, pb::ShutdownSandboxResponse>("ShutdownSandbox", request).await.unwrap();
    tokio::time::timeout(harness::SOON, sandbox.client.closed()).await.expect("the shim ends");
    sandbox.delete_verb();
    world.census();
    world.no_processes().await;
}

fn namespace(pid: u32, name: &str) -> u64 {
    fs::metadata(format!("/proc/{pid}/ns/{name}")).unwrap().ino()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_needs_no_image_and_its_namespaces_are_there_before_its_start() {
    let world = World::new(Kind::Builtin);
    let events = world.events();
    let sandbox = made(&world, "pod", |_| {}).await;
    let before = status(&sandbox).await;
    assert_eq!(before.state, "SANDBOX_CREATED");
    assert_ne!(namespace(before.pid, "net"), namespace(std::process::id(), "net"));
    assert_eq!(start(&sandbox).await, before.pid);
    let running = status(&sandbox).await;
    assert_eq!(running.state, "SANDBOX_READY");
    let info: Value = serde_json::from_str(&running.info["info"]).unwrap();
    assert_eq!(info["pid"], running.pid);
    assert_eq!(sandbox.state("").await.unwrap().pid, running.pid, "the task service knows it by its id");
    let again = sandbox.sandbox::<_, pb::CreateSandboxResponse>("CreateSandbox", create(&sandbox)).await;
    assert_eq!(again.unwrap_err().kind, ErrorKind::AlreadyExists);
    assert_eq!(sandbox.exec("e", &["true"], |_| {}).await.unwrap_err().kind, ErrorKind::FailedPrecondition);
    assert_eq!(sandbox.delete("").await.unwrap_err().kind, ErrorKind::FailedPrecondition);
    stop(&sandbox).await;
    stop(&sandbox).await;
    assert_eq!((status(&sandbox).await.state.as_str(), status(&sandbox).await.pid), ("SANDBOX_NOTREADY", 0));
    let wait = pb::WaitSandboxRequest { sandbox_id: "pod".into() };
    let ended: pb::WaitSandboxResponse = sandbox.sandbox("WaitSandbox", wait).await.unwrap();
    assert_eq!(ended.exit_status, 137);
    shut_down(&world, &sandbox).await;
    assert_eq!(events.all(), Vec::<String>::new(), "a sandbox is no task");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_with_shims_of_their_own_share_its_namespaces() {
    let world = World::new(Kind::Builtin);
    let sandbox = made(&world, "pod", |_| {}).await;
    let pid = start(&sandbox).await;
    let out = world.fifo("out");
    let bundle = world.bundle("c", &["/bin/sh", "-c", "cat /proc/1/cmdline; echo; exec sleep 100"], |config| {
        let joined = ["net", "ipc", "uts", "pid"].map(|name| {
            let kind = if name == "net" { "network" } else { name };
            json!({ "type": kind, "path": format!("/proc/{pid}/ns/{name}") })
        });
        config["linux"]["namespaces"] = joined.into_iter().chain([json!({"type": "mount"})]).collect();
        config["hostname"] = json!("");
    });
    let container = world.shim("c", bundle).await;
    container.create(&world, |request| request.stdout = out.display().to_string()).await.unwrap();
    let child = container.start("").await.unwrap();
    assert_ne!(container.shim_pid().await, sandbox.shim_pid().await);
    for name in ["net", "ipc", "uts", "pid"] {
        assert_eq!(namespace(child, name), namespace(pid, name), "{name}");
    }
    // Its shell has told what it saw once it has become the other program.
    for _ in 0..200 {
        if fs::read(format!("/proc/{child}/cmdline")).unwrap().starts_with(b"sleep") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    stop(&sandbox).await;
    assert_eq!(container.wait("").await, 137, "who shares its pid namespace ends with it");
    assert_eq!(reader(out).join().unwrap().trim_end_matches(['\n', '\0']), "/pause");
    container.delete("").await.unwrap();
    container.shutdown().await;
    container.delete_verb();
    shut_down(&world, &sandbox).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_in_the_sandboxes_own_shim_go_with_it() {
    let world = World::new(Kind::Builtin);
    let events = world.events();
    let sandbox = made(&world, "pod", |_| {}).await;
    start(&sandbox).await;
    let inside = sandbox.another("c", world.bundle("c", &["/bin/sleep", "100"], |_| {}));
    inside.create(&world, |_| {}).await.unwrap();
    let pid = inside.start("").await.unwrap();
    shut_down(&world, &sandbox).await;
    assert!(!is_alive(pid));
    events.expect(&["create", "start", "exit init 137", "delete"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_program_of_its_own_that_is_run() {
    let world = World::new(Kind::Builtin);
    let bundle = world.bundle("pod", &["/bin/sleep", "100"], |_| {});
    let sandbox = world.shim("pod", bundle).await;
    let source = world.rootfs().display().to_string();
    let bind = Mount { r#type: "bind".into(), source, options: vec!["rbind".into()], ..Mount::default() };
    let request = pb::CreateSandboxRequest { rootfs: vec![bind], ..create(&sandbox) };
    sandbox.sandbox::<_, pb::CreateSandboxResponse>("CreateSandbox", request).await.unwrap();
    let pid = start(&sandbox).await;
    assert_eq!(fs::read(format!("/proc/{pid}/cmdline")).unwrap(), b"/bin/sleep\x00100\x00");
    stop(&sandbox).await;
    shut_down(&world, &sandbox).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_namespace_given_by_path_is_joined_and_one_that_is_none_is_refused() {
    let world = World::new(Kind::Builtin);
    let first = made(&world, "first", |_| {}).await;
    let pid = status(&first).await.pid;
    let second = world.shim("second", pod(&world, "second", |_| {})).await;
    for (path, kind) in [
        ("relative", ErrorKind::InvalidArgument),
        ("/nowhere", ErrorKind::Unknown),
        ("/proc/self/ns/mnt", ErrorKind::InvalidArgument),
    ] {
        let request = pb::CreateSandboxRequest { netns_path: path.into(), ..create(&second) };
        let refused = second.sandbox::<_, pb::CreateSandboxResponse>("CreateSandbox", request).await.unwrap_err();
        assert_eq!(refused.kind, kind, "{path}: {}", refused.message);
    }
    let request = pb::CreateSandboxRequest { netns_path: format!("/proc/{pid}/ns/net"), ..create(&second) };
    second.sandbox::<_, pb::CreateSandboxResponse>("CreateSandbox", request).await.unwrap();
    assert_eq!(namespace(status(&second).await.pid, "net"), namespace(pid, "net"));
    let request = pb::ShutdownSandboxRequest { sandbox_id: "second".into() };
    second.sandbox::<_, pb::ShutdownSandboxResponse>("ShutdownSandbox", request).await.unwrap();
    second.client.closed().await;
    second.delete_verb();
    shut_down(&world, &first).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_change_with_the_specification_and_use_is_measured() {
    let world = World::new(Kind::Builtin);
    let sandbox = made(&world, "pod", |config| config["linux"]["resources"] = json!({ "pids": { "limit": 50 } })).await;
    start(&sandbox).await;
    let spec = json!({ "linux": { "resources": { "pids": { "limit": 77 } } } }).to_string().into_bytes();
    let record = gantry_ttrpc::pb::containerd::types::Sandbox {
        spec: Some(prost_types::Any { type_url: String::new(), value: spec }),
        ..Default::default()
    };
    let id = "pod".to_owned();
    let request = pb::UpdateSandboxRequest { sandbox_id: id.clone(), sandbox: Some(record), ..Default::default() };
    sandbox.sandbox::<_, pb::UpdateSandboxResponse>("UpdateSandbox", request).await.unwrap();
    let path = fs::read_to_string(format!("/proc/{}/cgroup", status(&sandbox).await.pid)).unwrap();
    let group = path.lines().find_map(|line| line.split_once(":pids:")).map(|(_, path)| path.to_owned());
    if let Some(group) = group {
        assert_eq!(fs::read_to_string(format!("/sys/fs/cgroup/pids{group}/pids.max")).unwrap().trim(), "77");
    }
    let request = pb::SandboxMetricsRequest { sandbox_id: id };
    let metrics: pb::SandboxMetricsResponse = sandbox.sandbox("SandboxMetrics", request).await.unwrap();
    assert!(metrics.metrics.unwrap().data.unwrap().type_url.contains("cgroups"));
    shut_down(&world, &sandbox).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sandbox_shim_killed_at_any_moment_leaves_nothing() {
    let world = World::new(Kind::Builtin);
    for (number, step) in ["started", "created", "running", "stopped"].into_iter().enumerate() {
        let id = format!("pod{number}");
        let sandbox = world.shim(&id, pod(&world, &id, |_| {})).await;
        if step != "started" {
            sandbox.sandbox::<_, pb::CreateSandboxResponse>("CreateSandbox", create(&sandbox)).await.unwrap();
        }
        let mut pid = None;
        if step == "running" || step == "stopped" {
            pid = Some(start(&sandbox).await);
        }
        if step == "stopped" {
            stop(&sandbox).await;
        }
        let shim: i32 =
            fs::read_to_string(sandbox.bundle.join("shim.pid")).unwrap().split(' ').next().unwrap().parse().unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(shim), nix::sys::signal::Signal::SIGKILL).unwrap();
        sandbox.client.closed().await;
        sandbox.delete_verb();
        assert!(pid.is_none_or(|pid| !is_alive(pid)), "{step}");
        world.census();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shim_whose_starter_died_before_there_was_a_sandbox_ends_by_the_delete_verb() {
    let world = World::new(Kind::Builtin);
    let sandbox = world.shim("pod", pod(&world, "pod", |_| {})).await;
    sandbox.delete_verb();
    tokio::time::timeout(harness::SOON, sandbox.client.closed()).await.expect("the shim ends");
    world.census();
}
