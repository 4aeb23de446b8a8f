//! Checkpoints through the shim's binary. What needs a CRIU that works on the kernel is run by `integration/vm/test` in
//! a guest; elsewhere it is ignored, never passed.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[allow(dead_code)]
mod harness;

use std::path::Path;
use std::time::Duration;

use gantry_ttrpc::Status;
use gantry_ttrpc::pb::containerd::runc::v1::CheckpointOptions;
use gantry_ttrpc::pb::containerd::task::v3 as pb;
use gantry_types::ErrorKind;
use harness::{Container, Kind, NAMESPACE, World};
use prost::{Message, Name};
use prost_types::Any;
use tokio::time::{Instant, sleep};

/// An emulated machine is slow.
const LONG: Duration = Duration::from_secs(60);
const TASK: &str = "containerd.task.v3.Task";
const COUNT: &str = "i=0; while :; do i=$((i+1)); echo $i > /tmp/new; mv /tmp/new /tmp/count; sleep 0.05; done";

async fn end(world: &World, container: &Container) {
    container.call::<_, ()>("Shutdown", pb::ShutdownRequest { id: container.id.clone(), now: false }).await.ok();
    let deadline = Instant::now() + LONG;
    while Path::new(&container.socket).exists() && Instant::now() < deadline {
        sleep(Duration::from_millis(10)).await;
    }
    world.no_processes().await;
    world.census();
}

async fn start(container: &Container) -> Result<u32, Status> {
    let request = pb::StartRequest { id: container.id.clone(), exec_id: String::new() };
    container.client.call::<_, pb::StartResponse>(TASK, "Start", &request, LONG).await.map(|answer| answer.pid)
}

#[tokio::test]
async fn what_cannot_be_restored_is_planned_still_and_can_be_removed() {
    let world = World::new(Kind::Builtin);
    let events = world.events();
    let container = world.shim("c", world.bundle("c", &["/bin/sleep", "1000"], |_| {})).await;
    let refused = container.create(&world, |r| r.checkpoint = "/nowhere".into()).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::InvalidArgument);
    let images = world.dir.path().join("images");
    std::fs::create_dir(&images).unwrap();
    let made = container.create(&world, |r| r.checkpoint = images.display().to_string()).await.unwrap();
    assert_eq!(made.pid, 0, "there is no process before the start");
    let error = start(&container).await.unwrap_err();
    assert!(
        error.message.contains("CRIU") || error.message.contains("descriptors.json"),
        "it says what is missing: {error:?}"
    );
    let state: pb::StateResponse =
        container.call("State", pb::StateRequest { id: "c".into(), exec_id: String::new() }).await.unwrap();
    assert_eq!((state.pid, state.status), (0, 1), "created");
    let path = world.dir.path().join("other").display().to_string();
    let request = pb::CheckpointTaskRequest { id: "c".into(), path, options: None };
    let error = container.call::<_, ()>("Checkpoint", request).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::FailedPrecondition);
    let deleted = container.delete("").await.unwrap();
    assert_eq!(deleted.exit_status, 137);
    events.expect(&["create", "exit init 137", "delete"]).await;
    end(&world, &container).await;
}

fn count(world: &World) -> u64 {
    let text = std::fs::read_to_string(world.rootfs().join("tmp/count")).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

async fn beyond(world: &World, number: u64) {
    let deadline = Instant::now() + LONG;
    while count(world) <= number {
        assert!(Instant::now() < deadline, "still at {}", count(world));
        sleep(Duration::from_millis(20)).await;
    }
}

async fn a_task_goes_on_from_its_checkpoint(kind: Kind) {
    let world = World::new(kind);
    let events = world.events();
    let container = world.created("c", &["/bin/sh", "-c", COUNT]).await;
    start(&container).await.unwrap();
    beyond(&world, 5).await;
    let path = world.dir.path().join("images").display().to_string();
    let options = CheckpointOptions { exit: true, ..CheckpointOptions::default() };
    let options = Some(Any { type_url: CheckpointOptions::full_name(), value: options.encode_to_vec() });
    let request = pb::CheckpointTaskRequest { id: "c".into(), path: path.clone(), options };
    container.client.call::<_, ()>(TASK, "Checkpoint", &request, LONG).await.unwrap();
    assert_eq!(container.wait("").await, 137);
    let last = count(&world);
    container.delete("").await.unwrap();
    events.expect(&["create", "start", "checkpointed", "exit init 137", "delete"]).await;
    assert_eq!(container.create(&world, |r| r.checkpoint = path).await.unwrap().pid, 0);
    let pid = start(&container).await.unwrap();
    assert!(pid > 0, "in {NAMESPACE}");
    beyond(&world, last + 3).await;
    container.exec("e", &["/bin/sh", "-c", "exit 4"], |_| {}).await.unwrap();
    container.start("e").await.unwrap();
    assert_eq!(container.wait("e").await, 4);
    container.kill("", 9).await.unwrap();
    assert_eq!(container.wait("").await, 137);
    container.delete("").await.unwrap();
    end(&world, &container).await;
}

#[tokio::test]
#[ignore = "needs a CRIU that works on this kernel"]
async fn a_task_of_the_built_in_runtime_goes_on_from_its_checkpoint() {
    a_task_goes_on_from_its_checkpoint(Kind::Builtin).await;
}

#[tokio::test]
#[ignore = "needs a CRIU that works on this kernel, and runc"]
async fn a_task_of_runc_goes_on_from_its_checkpoint() {
    a_task_goes_on_from_its_checkpoint(Kind::Runc).await;
}

/// CVE-2019-5736: what a container could reach of the shim's program, by the process that is about to become its own.
#[tokio::test]
async fn the_shims_program_is_read_only_for_whoever_reaches_it_by_its_process() {
    let world = World::new(Kind::Builtin);
    let _events = world.events();
    let container = world.created("c", &["/bin/sleep", "1000"]).await;
    let shim = container.shim_pid().await;
    let writable = |pid: i32| {
        let path = format!("/proc/{pid}/exe");
        nix::unistd::access(path.as_str(), nix::unistd::AccessFlags::W_OK) != Err(nix::errno::Errno::EROFS)
    };
    assert!(!writable(shim));
    let name = std::fs::read_to_string(format!("/proc/{shim}/comm")).unwrap();
    assert_eq!(name.trim(), "containerd-shim");
    container.delete("").await.unwrap();
    end(&world, &container).await;
}
