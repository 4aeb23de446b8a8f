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
    settings.search = vec![target_dir()];
    let engine = Engine::open(settings).await.unwrap().0;
    let scope = Scope::new("k8s.io".parse().unwrap());
    let (archive, import) =
        (Box::new(std::io::Cursor::new(image())), Import { name: IMAGE.into(), ..Import::default() });
    engine.transfer.import(&scope, archive, import, ProgressSink::default()).await.unwrap();
    Runtime(Cri::open(engine, config(dir), CancellationToken::new()).await.unwrap())
}

/// A pod with a container that counts; both ids.
async fn running(runtime: &Runtime, dir: &Path) -> (String, String) {
    let text = |text: &str| text.to_owned();
    let pod = wire::PodSandboxConfig {
        metadata: Some(wire::PodSandboxMetadata { name: text("p"), uid: text("u"), namespace: text("n"), attempt: 0 }),
        log_directory: dir.join("logs").to_string_lossy().into_owned(),
        ..Default::default()
    };
    let run = wire::RunPodSandboxRequest { config: Some(pod.clone()), ..Default::default() };
    let id = runtime.run_pod_sandbox(Request::new(run)).await.unwrap().into_inner().pod_sandbox_id;
    let container = wire::ContainerConfig {
        metadata: Some(wire::ContainerMetadata { name: text("main"), attempt: 0 }),
        image: Some(wire::ImageSpec { image: text(IMAGE), ..Default::default() }),
        command: ["/bin/sh", "-c", COUNT].map(text).into(),
        log_path: text("main.log"),
        ..Default::default()
    };
    let create =
        wire::CreateContainerRequest { pod_sandbox_id: id.clone(), config: Some(container), sandbox_config: Some(pod) };
    let main = runtime.create_container(Request::new(create)).await.unwrap().into_inner().container_id;
    let start = wire::StartContainerRequest { container_id: main.clone() };
    runtime.start_container(Request::new(start)).await.unwrap();
    (id, main)
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
    let (pod, main) = running(&runtime, dir.path()).await;
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
    let stop = wire::StopPodSandboxRequest { pod_sandbox_id: pod.clone() };
    runtime.stop_pod_sandbox(Request::new(stop)).await.unwrap();
    runtime.remove_pod_sandbox(Request::new(wire::RemovePodSandboxRequest { pod_sandbox_id: pod })).await.unwrap();
    assert_eq!(std::fs::read_dir(dir.path().join("root/cri/checkpoints")).unwrap().count(), 0);
}
