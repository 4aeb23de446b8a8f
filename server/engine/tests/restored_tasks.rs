//! Checkpoints of tasks into content and back, under the real shim. What needs a CRIU that works on the kernel is run by
//! `integration/vm/test` in a guest; elsewhere it is ignored, never passed. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail at any line")]

mod common;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::Host;
use common::tasks::{busybox, container, shim_is_there};
use gantry_engine::tasks::{CHECKPOINT_ARCHIVE, CHECKPOINT_CONFIG, Checkpoint, Create, Status};
use gantry_engine::{Any, Descriptor, Digest, ErrorKind, Filter, HasKind, Labels, Scope};
use gantry_ttrpc::pb::containerd::runc::v1::CheckpointOptions;
use prost::{Message, Name};

const COUNTING: [&str; 3] =
    ["/bin/sh", "-c", "i=0; while :; do i=$((i+1)); echo $i > /tmp/new; mv /tmp/new /tmp/count; sleep 0.05; done"];
/// An emulated machine is slow.
const LONG: Duration = Duration::from_secs(60);
const SIGKILL: u32 = 9;

async fn running(host: &Host, id: &str) -> Create {
    let create = container(host, id, &COUNTING).await;
    host.engine.tasks.create(&host.scope, create.clone()).await.unwrap();
    host.engine.tasks.start(&host.scope, id, "").await.unwrap();
    beyond(host, 3).await;
    create
}

fn count(host: &Host) -> u64 {
    let text = std::fs::read_to_string(busybox(host).join("tmp/count")).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

async fn beyond(host: &Host, number: u64) {
    let deadline = Instant::now() + LONG;
    while count(host) <= number {
        assert!(Instant::now() < deadline, "still at {}", count(host));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn end(host: &Host, id: &str) {
    let tasks = &host.engine.tasks;
    tasks.kill(&host.scope, id, "", SIGKILL, true).await.unwrap();
    tokio::time::timeout(LONG, tasks.wait(&host.scope, id, "")).await.expect("an end in time").unwrap();
    tasks.delete(&host.scope, id).await.unwrap();
}

/// No bundle, no directory of images and no ingest is left.
async fn assert_nothing_left(host: &Host) {
    for kind in ["state", "root"] {
        let below = host.dir.path().join(kind).join("io.containerd.runtime.v2.task");
        assert_eq!(common::files_below(&below), Vec::<PathBuf>::new());
    }
    let ingests = host.engine.content.statuses(&host.scope, &Filter::default()).await.unwrap();
    assert!(ingests.is_empty(), "{ingests:?}");
}

fn exit_after() -> Any {
    let options = CheckpointOptions { exit: true, ..CheckpointOptions::default() };
    Any { type_url: CheckpointOptions::full_name(), value: options.encode_to_vec() }
}

async fn stored(host: &Host, media_type: &str, bytes: Vec<u8>) -> Descriptor {
    let (digest, size) = (Digest::of(&bytes), bytes.len() as u64);
    // Nothing else names it: a collection may come at any time.
    let labels = Labels::from([("containerd.io/gc.root".into(), "now".into())]);
    host.engine.content.write_all(&host.scope, &digest, bytes.into(), labels).await.unwrap();
    Descriptor::new(media_type, digest, size)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_checkpointed_says_why_and_goes_on() {
    if !shim_is_there() {
        return;
    }
    let host = Host::new().await;
    let (tasks, scope) = (&host.engine.tasks, &host.scope);
    assert_eq!(tasks.checkpoint(scope, "none", None).await.unwrap_err().kind(), ErrorKind::NotFound);
    let create = container(&host, "c", &COUNTING).await;
    tasks.create(scope, create).await.unwrap();
    assert_eq!(tasks.checkpoint(scope, "c", None).await.unwrap_err().kind(), ErrorKind::FailedPrecondition);
    tasks.start(scope, "c", "").await.unwrap();
    let other = Any { type_url: "other".into(), value: Vec::new() };
    assert_eq!(tasks.checkpoint(scope, "c", Some(other)).await.unwrap_err().kind(), ErrorKind::InvalidArgument);
    let relative = tasks.checkpoint_into(scope, "c", Path::new("images"), None).await.unwrap_err();
    assert_eq!(relative.kind(), ErrorKind::InvalidArgument);
    // Either CRIU works here, and stores both, or it is named.
    match tasks.checkpoint(scope, "c", None).await {
        Ok(stored) => assert_eq!(stored.len(), 2),
        Err(error) => assert!(error.to_string().to_lowercase().contains("criu"), "{error}"),
    }
    assert_eq!(tasks.get(scope, "c", "").await.unwrap().status, Status::Running);
    beyond(&host, count(&host)).await;
    end(&host, "c").await;
    assert_nothing_left(&host).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_checkpoint_makes_no_task() {
    if !shim_is_there() {
        return;
    }
    let host = Host::new().await;
    let (tasks, scope) = (&host.engine.tasks, &host.scope);
    let create = container(&host, "c", &COUNTING).await;
    let from = |descriptor| Create { checkpoint: Some(Checkpoint::Archive(descriptor)), ..create.clone() };
    let layer = stored(&host, "application/vnd.oci.image.layer.v1.tar", b"layer".to_vec()).await;
    assert_eq!(tasks.create(scope, from(layer)).await.unwrap_err().kind(), ErrorKind::InvalidArgument);
    let absent = Descriptor::new(CHECKPOINT_ARCHIVE, Digest::of(b"absent"), 6);
    assert_eq!(tasks.create(scope, from(absent)).await.unwrap_err().kind(), ErrorKind::NotFound);
    let noise = stored(&host, CHECKPOINT_ARCHIVE, vec![0x5a; 3000]).await;
    assert_eq!(tasks.create(scope, from(noise)).await.unwrap_err().kind(), ErrorKind::InvalidArgument);
    let elsewhere = Checkpoint::Directory { images: "relative".into(), changes: None };
    let elsewhere = Create { checkpoint: Some(elsewhere), ..create.clone() };
    assert_eq!(tasks.create(scope, elsewhere).await.unwrap_err().kind(), ErrorKind::InvalidArgument);
    assert_nothing_left(&host).await;
    // Links in an archive lead nowhere: they are refused before CRIU reads anything.
    let mut archive = tar::Builder::new(Vec::new());
    let mut link = tar::Header::new_gnu();
    link.set_entry_type(tar::EntryType::Symlink);
    link.set_size(0);
    archive.append_link(&mut link, "pages-1.img", "/etc/shadow").unwrap();
    let hostile = stored(&host, CHECKPOINT_ARCHIVE, archive.into_inner().unwrap()).await;
    assert_eq!(tasks.create(scope, from(hostile)).await.unwrap(), 0, "there is no process before the start");
    let error = tasks.start(scope, "c", "").await.unwrap_err().to_string();
    assert!(error.contains("pages-1.img"), "{error}");
    tasks.delete(scope, "c").await.unwrap();
    assert_nothing_left(&host).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a CRIU that works on this kernel"]
async fn a_task_goes_on_from_what_was_stored_and_from_a_directory() {
    let host = Host::new().await;
    let tasks = &host.engine.tasks;
    // It holds what is stored until there is a task of it.
    let lease = host.engine.leases.create(&host.scope, None, Labels::new()).await.unwrap();
    let scope = &Scope { lease: Some(lease.id), ..host.scope.clone() };
    let create = running(&host, "c").await;
    let stored = tasks.checkpoint(scope, "c", Some(exit_after())).await.unwrap();
    assert_eq!([&*stored[0].media_type, &*stored[1].media_type], [CHECKPOINT_ARCHIVE, CHECKPOINT_CONFIG]);
    let exit = tokio::time::timeout(LONG, tasks.wait(scope, "c", "")).await.unwrap().unwrap();
    assert_eq!(exit.status, 137);
    tasks.delete(scope, "c").await.unwrap();
    assert_nothing_left(&host).await;
    let last = count(&host);
    let restored = Create { checkpoint: Some(Checkpoint::Archive(stored[0].clone())), ..create.clone() };
    assert_eq!(tasks.create(scope, restored).await.unwrap(), 0);
    let pid = tasks.start(scope, "c", "").await.unwrap();
    assert_eq!(tasks.get(scope, "c", "").await.unwrap().pid, pid);
    beyond(&host, last + 2).await;
    let images = host.dir.path().join("images");
    tasks.checkpoint_into(scope, "c", &images, Some(exit_after())).await.unwrap();
    tokio::time::timeout(LONG, tasks.wait(scope, "c", "")).await.unwrap().unwrap();
    tasks.delete(scope, "c").await.unwrap();
    let last = count(&host);
    let changes = host.dir.path().join("changes.tar");
    let mut tar = tar::Builder::new(std::fs::File::create(&changes).unwrap());
    let mut header = tar::Header::new_gnu();
    header.set_size(3);
    header.set_mode(0o600);
    tar.append_data(&mut header, "added", &b"yes"[..]).unwrap();
    tar.finish().unwrap();
    let restored = Checkpoint::Directory { images, changes: Some(changes) };
    tasks.create(scope, Create { checkpoint: Some(restored), ..create }).await.unwrap();
    tasks.start(scope, "c", "").await.unwrap();
    beyond(&host, last + 2).await;
    assert_eq!(std::fs::read(busybox(&host).join("added")).unwrap(), b"yes");
    end(&host, "c").await;
    assert_nothing_left(&host).await;
}
