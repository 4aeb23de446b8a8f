//! Checkpoints of pods' containers under the real shim. What needs a CRIU that works on the kernel is run by
//! `integration/vm/test` in a guest; elsewhere it is ignored, never passed. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail at any line")]

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use gantry_api::pb::runtime::v1 as wire;
use gantry_cri::config::{CniConfig, Config, NriConfig, RuntimeConfig};
use gantry_cri::{Cri, Runtime};
use gantry_engine::transfer::{Import, ProgressSink};
use gantry_engine::{Engine, Platform, Scope};
use gantry_types::Digest;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tonic::Request;
use wire::runtime_service_server::RuntimeService;

const IMAGE: &str = "localhost/busybox:1";
const COUNT: &str = "echo ready; i=0; while :; do i=$((i+1)); echo $i >/tmp/count; sleep 0.05; done";
/// An emulated machine is slow.
const LONG: Duration = Duration::from_secs(120);

/// What containerd's archives have, besides images of single processes and mounts.
const PARTS: [&str; 16] = [
    "checkpoint",
    "checkpoint/cgroup.img",
    "checkpoint/descriptors.json",
    "checkpoint/files.img",
    "checkpoint/inventory.img",
    "checkpoint/pages-1.img",
    "checkpoint/pstree.img",
    "checkpoint/seccomp.img",
    "config.dump",
    "container.log",
    "dump.log",
    "rootfs-diff.tar",
    "spec.dump",
    "stats-dump",
    "status",
    "status.dump",
];

/// Puts a file into an archive.
fn put(tar: &mut tar::Builder<Vec<u8>>, name: &str, mode: u32, bytes: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(mode);
    tar.append_data(&mut header, name, bytes).unwrap();
}

/// An image with busybox, as Docker saves it.
fn image() -> Vec<u8> {
    let mut layer = tar::Builder::new(Vec::new());
    put(&mut layer, "bin/busybox", 0o755, &std::fs::read("/bin/busybox").unwrap());
    for applet in ["sh", "sleep", "echo"] {
        let mut link = tar::Header::new_gnu();
        link.set_entry_type(tar::EntryType::Symlink);
        link.set_size(0);
        layer.append_link(&mut link, format!("bin/{applet}"), "busybox").unwrap();
    }
    put(&mut layer, "tmp/count", 0o644, b"0");
    let layer = layer.into_inner().unwrap();
    let config = json!({"architecture": Platform::host().architecture, "os": "linux",
        "config": {"Env": ["PATH=/bin"]}, "rootfs": {"type": "layers", "diff_ids": [Digest::of(&layer).to_string()]}});
    let manifest = json!([{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]);
    let mut archive = tar::Builder::new(Vec::new());
    put(&mut archive, "config.json", 0o644, config.to_string().as_bytes());
    put(&mut archive, "layer.tar", 0o644, &layer);
    put(&mut archive, "manifest.json", 0o644, manifest.to_string().as_bytes());
    archive.into_inner().unwrap()
}

/// A network whose one plug-in does nothing, and says where it did not.
fn config(dir: &Path) -> Config {
    std::fs::create_dir_all(dir.join("net.d")).unwrap();
    let conf = json!({"cniVersion": "1.0.0", "name": "odd", "plugins": [{"type": "odd"}]});
    std::fs::write(dir.join("net.d/10.conflist"), conf.to_string()).unwrap();
    let answer = r#"{"cniVersion":"1.0.0","ips":[{"address":"192.0.2.7/24"}]}"#;
    std::fs::write(dir.join("odd"), format!("#!/bin/sh\n[ $CNI_COMMAND != ADD ] || echo '{answer}'\n")).unwrap();
    std::fs::set_permissions(dir.join("odd"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let cni = CniConfig { conf_dir: dir.join("net.d"), bin_dirs: vec![dir.to_owned()], ..CniConfig::default() };
    Config {
        runtime: RuntimeConfig { cni, netns_mounts_under_state_dir: true, ..RuntimeConfig::default() },
        nri: NriConfig { disable: true, ..NriConfig::default() },
        ..Config::default()
    }
}

/// Where cargo puts binaries: the directory above the tests' own.
fn target_dir() -> PathBuf {
    std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().to_owned()
}

async fn open(dir: &Path) -> Runtime {
    let mut settings = gantry_engine::Config::new(dir.join("root"), dir.join("state"));
    settings.executable = std::env::current_exe().unwrap();
    // As the daemon has it: shims lie here, and find CRIU by the search path.
    let path = std::env::var_os("PATH").unwrap_or_default();
    settings.search = std::iter::once(target_dir()).chain(std::env::split_paths(&path)).collect();
    let engine = Engine::open(settings).await.unwrap().0;
    let scope = Scope::new("k8s.io".parse().unwrap());
    let (archive, import) =
        (Box::new(std::io::Cursor::new(image())), Import { name: IMAGE.into(), ..Import::default() });
    engine.transfer.import(&scope, archive, import, ProgressSink::default()).await.unwrap();
    Runtime(Cri::open(engine, config(dir), CancellationToken::new()).await.unwrap())
}

fn text(text: &str) -> String {
    text.to_owned()
}

fn pod_config(dir: &Path, uid: &str) -> wire::PodSandboxConfig {
    wire::PodSandboxConfig {
        metadata: Some(wire::PodSandboxMetadata { name: text("p"), uid: text(uid), namespace: text("n"), attempt: 0 }),
        log_directory: dir.join("logs").join(uid).to_string_lossy().into_owned(),
        ..Default::default()
    }
}

/// A container that counts.
fn container_config(name: &str) -> wire::ContainerConfig {
    wire::ContainerConfig {
        metadata: Some(wire::ContainerMetadata { name: text(name), attempt: 0 }),
        image: Some(wire::ImageSpec { image: text(IMAGE), ..Default::default() }),
        command: ["/bin/sh", "-c", COUNT].map(text).into(),
        log_path: format!("{name}.log"),
        ..Default::default()
    }
}

/// A pod with containers that count; its id, and theirs.
async fn running<const N: usize>(runtime: &Runtime, dir: &Path, names: [&str; N]) -> (String, [String; N]) {
    let pod = pod_config(dir, "u");
    let run = wire::RunPodSandboxRequest { config: Some(pod.clone()), ..Default::default() };
    let id = runtime.run_pod_sandbox(Request::new(run)).await.unwrap().into_inner().pod_sandbox_id;
    let mut containers = [(); N].map(|()| String::new());
    for (at, name) in names.into_iter().enumerate() {
        let (config, sandbox_config) = (Some(container_config(name)), Some(pod.clone()));
        let create = wire::CreateContainerRequest { pod_sandbox_id: id.clone(), config, sandbox_config };
        containers[at] = runtime.create_container(Request::new(create)).await.unwrap().into_inner().container_id;
        start(runtime, &containers[at]).await;
    }
    (id, containers)
}

async fn start(runtime: &Runtime, container: &str) {
    let start = wire::StartContainerRequest { container_id: text(container) };
    runtime.start_container(Request::new(start)).await.unwrap();
}

async fn remove(runtime: &Runtime, pod: &str) {
    let stop = wire::StopPodSandboxRequest { pod_sandbox_id: text(pod) };
    runtime.stop_pod_sandbox(Request::new(stop)).await.unwrap();
    runtime
        .remove_pod_sandbox(Request::new(wire::RemovePodSandboxRequest { pod_sandbox_id: text(pod) }))
        .await
        .unwrap();
}

async fn count(runtime: &Runtime, container: &str) -> u64 {
    let cmd = ["/bin/sh", "-c", "read i </tmp/count; echo $i"].map(str::to_owned).into();
    let exec = wire::ExecSyncRequest { container_id: container.into(), cmd, ..Default::default() };
    let out = runtime.exec_sync(Request::new(exec)).await.unwrap().into_inner().stdout;
    // It may be just being written.
    String::from_utf8_lossy(&out).trim().parse().unwrap_or(0)
}

async fn beyond(runtime: &Runtime, container: &str, number: u64) {
    let deadline = Instant::now() + LONG;
    while count(runtime, container).await <= number {
        assert!(Instant::now() < deadline, "it does not count beyond {number}");
    }
}

/// Names and bytes of an archive's files.
fn entries(location: &Path) -> Vec<(String, Vec<u8>)> {
    let mut tar = tar::Archive::new(std::fs::File::open(location).unwrap());
    let read = |entry: std::io::Result<tar::Entry<'_, std::fs::File>>| {
        let mut entry = entry.unwrap();
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut bytes).unwrap();
        (entry.path().unwrap().to_string_lossy().into_owned(), bytes)
    };
    tar.entries().unwrap().map(read).collect()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a CRIU that works on this kernel"]
async fn a_checkpoint_has_the_parts_that_containerds_has_and_the_container_runs_on() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = open(dir.path()).await;
    let (pod, [main]) = running(&runtime, dir.path(), ["main"]).await;
    beyond(&runtime, &main, 3).await;
    let location = dir.path().join("c.tar");
    let checkpoint = wire::CheckpointContainerRequest {
        container_id: main.clone(),
        location: location.to_string_lossy().into_owned(),
        timeout: 0,
    };
    runtime.checkpoint_container(Request::new(checkpoint)).await.unwrap();
    let parts = entries(&location);
    let names: Vec<&str> = parts.iter().map(|(name, _)| name.trim_end_matches('/')).collect();
    for part in PARTS {
        assert!(names.contains(&part), "{part} is missing: {names:?}");
    }
    let bytes = |name: &str| &parts.iter().find(|(part, _)| part == name).unwrap().1;
    let config: Value = serde_json::from_slice(bytes("config.dump")).unwrap();
    assert_eq!((&config["id"], &config["rootfsImageName"]), (&json!(main), &json!(IMAGE)));
    assert!(String::from_utf8_lossy(bytes("container.log")).contains("stdout F ready"));
    let mut changes = tar::Archive::new(flate2::read::GzDecoder::new(bytes("rootfs-diff.tar").as_slice()));
    let changed = changes.entries().unwrap().any(|entry| entry.unwrap().path().unwrap().ends_with("tmp/count"));
    assert!(changed, "what it wrote is not among its changes");
    let last = count(&runtime, &main).await;
    beyond(&runtime, &main, last).await;
    remove(&runtime, &pod).await;
    assert_eq!(std::fs::read_dir(dir.path().join("root/cri/checkpoints")).unwrap().count(), 0);
}

/// All files below a directory, with their sizes.
fn files(directory: &Path) -> Vec<(PathBuf, u64)> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let (path, known) = (entry.as_ref().unwrap().path(), entry.as_ref().unwrap().metadata().unwrap());
        if known.is_dir() { all.extend(files(&path)) } else { all.push((path, known.len())) }
    }
    all.sort();
    all
}

async fn pods(runtime: &Runtime) -> usize {
    let list = runtime.list_pod_sandbox(Request::new(wire::ListPodSandboxRequest::default())).await;
    list.unwrap().into_inner().items.len()
}

/// Which requests for a checkpoint of a pod are refused, and by which field.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the shim beside it"]
async fn a_pods_checkpoint_that_cannot_be_is_refused_by_the_field_and_leaves_the_pod_and_the_directory_as_they_were() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = open(dir.path()).await;
    let (pod, [main]) = running(&runtime, dir.path(), ["main"]).await;
    let out = dir.path().join("out");
    std::fs::create_dir(&out).unwrap();
    let good = || wire::CheckpointPodRequest {
        pod_sandbox_id: pod.clone(),
        output_path: out.to_string_lossy().into_owned(),
        container_ids: vec![main.clone()],
        options: [].into(),
    };
    let bad = [
        ("output_path", wire::CheckpointPodRequest { output_path: text("out"), ..good() }),
        ("output_path", wire::CheckpointPodRequest { output_path: dir.path().to_string_lossy().into(), ..good() }),
        ("container_ids", wire::CheckpointPodRequest { container_ids: vec![], ..good() }),
        ("container_ids[1]", wire::CheckpointPodRequest { container_ids: vec![main.clone(), main.clone()], ..good() }),
        ("container_ids[0]", wire::CheckpointPodRequest { container_ids: vec![text("none")], ..good() }),
        ("options[\"x\"]", wire::CheckpointPodRequest { options: [(text("x"), text("y"))].into(), ..good() }),
    ];
    for (field, request) in bad {
        let refused = runtime.checkpoint_pod(Request::new(request)).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{refused}");
        assert!(refused.message().starts_with(field), "{refused}");
    }
    let restore = wire::RestorePodRequest {
        checkpoint_path: out.to_string_lossy().into_owned(),
        config: Some(pod_config(dir.path(), "v")),
        container_configs: vec![container_config("main")],
        ..Default::default()
    };
    let refused = runtime.restore_pod(Request::new(restore)).await.unwrap_err();
    assert!(refused.message().starts_with("checkpoint_path"), "{refused}");
    assert_eq!((files(&out).len(), pods(&runtime).await), (0, 1));
    let last = count(&runtime, &main).await;
    beyond(&runtime, &main, last).await;
    remove(&runtime, &pod).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a CRIU that works on this kernel"]
async fn a_pod_goes_on_from_its_checkpoint_in_a_pod_of_another_uid_once_its_containers_are_started() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = open(dir.path()).await;
    let (pod, containers) = running(&runtime, dir.path(), ["main", "side"]).await;
    for container in &containers {
        beyond(&runtime, container, 3).await;
    }
    let out = dir.path().join("out");
    std::fs::create_dir(&out).unwrap();
    let checkpoint = wire::CheckpointPodRequest {
        pod_sandbox_id: pod.clone(),
        output_path: out.to_string_lossy().into_owned(),
        container_ids: containers.to_vec(),
        options: [].into(),
    };
    runtime.checkpoint_pod(Request::new(checkpoint)).await.unwrap();
    for container in &containers {
        let last = count(&runtime, container).await;
        beyond(&runtime, container, last).await;
    }
    remove(&runtime, &pod).await;
    let saved = files(&out);
    let restore = |change: &dyn Fn(&mut wire::RestorePodRequest)| {
        let mut request = wire::RestorePodRequest {
            checkpoint_path: out.to_string_lossy().into_owned(),
            config: Some(pod_config(dir.path(), "v")),
            container_configs: ["side", "main"].map(container_config).into(),
            ..Default::default()
        };
        change(&mut request);
        let runtime = &runtime;
        async move { runtime.restore_pod(Request::new(request)).await }
    };
    let refused = restore(&|request| request.container_configs[1].command = vec![text("/bin/true")]).await.unwrap_err();
    assert!(refused.message().starts_with("container_configs[1].command"), "{refused}");
    let refused = restore(&|request| drop(request.container_configs.pop())).await.unwrap_err();
    assert!(refused.message().starts_with("container_configs"), "{refused}");
    assert_eq!(pods(&runtime).await, 0);
    let restored = restore(&|_| ()).await.unwrap().into_inner();
    let mut names: Vec<&str> = restored.restored_containers.iter().map(|container| container.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["main", "side"]);
    for container in &restored.restored_containers {
        let id = &container.container_id;
        let status = wire::ContainerStatusRequest { container_id: id.clone(), verbose: false };
        let status = runtime.container_status(Request::new(status)).await.unwrap().into_inner().status.unwrap();
        assert_eq!(status.state(), wire::ContainerState::ContainerCreated);
        start(&runtime, id).await;
        // It counts on from where it was, and not from one.
        assert!(count(&runtime, id).await >= 4);
        let last = count(&runtime, id).await;
        beyond(&runtime, id, last).await;
    }
    assert_eq!(files(&out), saved, "the checkpoint was changed");
    remove(&runtime, &restored.pod_sandbox_id).await;
    assert_eq!(std::fs::read_dir(dir.path().join("root/cri/containers")).unwrap().count(), 0);
}
