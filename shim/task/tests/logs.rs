//! Logs in Kubernetes' format by the shim's binary, who is attached beside them, and bounded executions. Needs root and
//! busybox-static.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[allow(dead_code)]
mod harness;

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gantry_ttrpc::pb::containerd::task::v3 as task_pb;
use gantry_ttrpc::pb::gantry::shim::v1 as pb;
use gantry_types::ErrorKind;
use harness::{Container, Kind, World, is_alive};
use tokio::time::{Instant, sleep};

struct Logged {
    container: Container,
    log: PathBuf,
}

/// A started container whose shim keeps its log.
async fn logged(world: &World, script: &str, change: impl FnOnce(&mut task_pb::CreateTaskRequest)) -> Logged {
    let log = world.dir.path().join("0.log");
    let uri = format!("gantry-log://{}?max-line=100", log.display());
    let bundle = world.bundle("c", &["/bin/sh", "-c", script], |_| {});
    let container = world.shim("c", bundle).await;
    let create = |request: &mut task_pb::CreateTaskRequest| {
        request.stdout.clone_from(&uri);
        request.stderr.clone_from(&uri);
        change(request);
    };
    container.create(world, create).await.unwrap();
    container.start("").await.unwrap();
    Logged { container, log }
}

impl Logged {
    /// The records without their times.
    fn records(&self) -> Vec<String> {
        records(&self.log)
    }

    async fn until(&self, count: usize) -> Vec<String> {
        let deadline = Instant::now() + harness::SOON;
        while self.records().len() < count {
            assert!(Instant::now() < deadline, "{:?}", self.records());
            sleep(Duration::from_millis(5)).await;
        }
        self.records()
    }

    async fn end(self, world: &World) {
        let _ = self.container.kill("", 9).await;
        self.container.wait("").await;
        self.container.delete("").await.unwrap();
        self.container.shutdown().await;
        self.container.delete_verb();
        world.census();
    }
}

fn records(log: &Path) -> Vec<String> {
    let text = fs::read_to_string(log).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'), "a torn line: {text:?}");
    text.lines().map(|line| line.split_once(' ').unwrap().1.to_owned()).collect()
}

fn attach(world: &World, name: &str) -> (pb::AttachRequest, fs::File) {
    let path = world.fifo(name);
    let reader = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
    (pb::AttachRequest { id: "c".into(), stdout: path.display().to_string(), ..pb::AttachRequest::default() }, reader)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_streams_are_logged_line_by_line_and_the_last_words_too() {
    let world = World::new(Kind::Builtin);
    let long = "x".repeat(250);
    let logged = logged(&world, &format!("echo one; echo {long}; echo two >&2; printf three"), |_| {}).await;
    logged.container.wait("").await;
    let (x, rest) = ("x".repeat(100), "x".repeat(50));
    let mut found = logged.until(6).await;
    found.sort();
    let mut expected = [
        "stdout F one".to_owned(),
        format!("stdout P {x}"),
        format!("stdout P {x}"),
        format!("stdout F {rest}"),
        "stderr F two".into(),
        "stdout P three".into(),
    ];
    expected.sort();
    assert_eq!(found, expected);
    logged.end(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotation_loses_no_line_and_doubles_none() {
    let world = World::new(Kind::Builtin);
    let script = "i=0; while [ $i -lt 3000 ]; do echo $i; i=$((i+1)); done; exec sleep 100";
    let logged = logged(&world, script, |_| {}).await;
    let mut olds = Vec::new();
    for number in 0..5 {
        let old = world.dir.path().join(format!("old{number}"));
        fs::rename(&logged.log, &old).unwrap();
        olds.push(old);
        let request = pb::ReopenLogRequest { id: "c".into() };
        let answer: pb::ReopenLogResponse = logged.container.extra("ReopenLog", request).await.unwrap();
        assert_eq!(answer.dropped, 0);
        sleep(Duration::from_millis(2)).await;
    }
    let all = || -> Vec<String> { olds.iter().chain([&logged.log]).flat_map(|log| records(log)).collect() };
    let deadline = Instant::now() + harness::SOON;
    while all().len() < 3000 && Instant::now() < deadline {
        sleep(Duration::from_millis(5)).await;
    }
    let expected: Vec<String> = (0..3000).map(|number| format!("stdout F {number}")).collect();
    assert!(all() == expected, "{} records", all().len());
    logged.end(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_costs_lines_but_never_holds_up_the_container() {
    let world = World::new(Kind::Builtin);
    let logged = logged(&world, "yes | head -c 1000000; exit 5", |request| {
        request.stdout = "gantry-log:///dev/full".into();
    });
    let logged = logged.await;
    assert_eq!(logged.container.wait("").await, 5);
    let request = pb::ReopenLogRequest { id: "c".into() };
    let answer: pb::ReopenLogResponse = logged.container.extra("ReopenLog", request).await.unwrap();
    assert!(answer.dropped > 0);
    logged.end(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_attaches_gets_copies_and_feeds_stdin_until_it_is_closed_once() {
    let world = World::new(Kind::Builtin);
    let change = |request: &mut task_pb::CreateTaskRequest| request.stdin = "gantry-attach://".into();
    let logged = logged(&world, "while read line; do echo got $line; done; echo over", change).await;
    for (round, once) in [("first", false), ("second", true)] {
        let (mut request, mut output) = attach(&world, &format!("out-{round}"));
        let input = world.fifo(&format!("in-{round}"));
        let mut writer = OpenOptions::new().read(true).write(true).open(&input).unwrap();
        request.stdin = input.display().to_string();
        request.stdin_once = once;
        let client = logged.container.client.clone();
        let attached = tokio::spawn(async move {
            client.call::<_, pb::AttachResponse>("gantry.shim.v1.Extras", "Attach", &request, harness::SOON).await
        });
        writer.write_all(format!("{round}\n").as_bytes()).unwrap();
        let mut text = String::new();
        let deadline = Instant::now() + harness::SOON;
        while !text.contains(round) {
            assert!(Instant::now() < deadline, "nothing came back");
            let _ = output.read_to_string(&mut text);
            sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(text, format!("got {round}\n"));
        drop(writer);
        if once {
            assert_eq!(logged.container.wait("").await, 0, "the end of stdin was the process's");
            assert_eq!(attached.await.unwrap().unwrap().end(), pb::attach_response::End::Exited);
        } else {
            drop(output);
            assert_eq!(attached.await.unwrap().unwrap().end(), pb::attach_response::End::Closed);
        }
    }
    assert_eq!(logged.until(3).await, ["stdout F got first", "stdout F got second", "stdout F over"]);
    logged.end(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_reads_too_slowly_is_cut_off_and_the_log_is_whole() {
    let world = World::new(Kind::Builtin);
    let logged = logged(&world, "sleep 0.3; yes 123456789 | head -c 2000000", |_| {}).await;
    let (request, _unread) = attach(&world, "slow");
    let answer: pb::AttachResponse = logged.container.extra("Attach", request).await.unwrap();
    assert_eq!(answer.end(), pb::attach_response::End::Lagged);
    assert_eq!(logged.container.wait("").await, 0);
    logged.container.delete("").await.unwrap();
    assert_eq!(logged.records().len(), 200_000);
    logged.container.shutdown().await;
    logged.container.delete_verb();
    world.census();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminal_is_logged_attached_to_and_typed_into() {
    let world = World::new(Kind::Builtin);
    let change = |request: &mut task_pb::CreateTaskRequest| {
        request.stdin = "gantry-attach://".into();
        request.stderr = String::new();
        request.terminal = true;
    };
    let script = "stty -echo; read line; echo got $line; exit 3";
    let logged = {
        let log = world.dir.path().join("0.log");
        let bundle =
            world.bundle("c", &["/bin/sh", "-c", script], |config| config["process"]["terminal"] = true.into());
        let container = world.shim("c", bundle).await;
        let uri = format!("gantry-log://{}", log.display());
        let create = |request: &mut task_pb::CreateTaskRequest| {
            request.stdout.clone_from(&uri);
            change(request);
        };
        container.create(&world, create).await.unwrap();
        container.start("").await.unwrap();
        Logged { container, log }
    };
    let input = world.fifo("in");
    let mut writer = OpenOptions::new().read(true).write(true).open(&input).unwrap();
    let (mut request, _reader) = attach(&world, "out");
    request.stdin = input.display().to_string();
    let client = logged.container.client.clone();
    tokio::spawn(async move {
        client.call::<_, pb::AttachResponse>("gantry.shim.v1.Extras", "Attach", &request, harness::SOON).await
    });
    sleep(Duration::from_millis(200)).await;
    writer.write_all(b"typed\n").unwrap();
    assert_eq!(logged.container.wait("").await, 3);
    let records = logged.until(1).await;
    assert!(records.contains(&"stdout F got typed".to_owned()), "{records:?}");
    logged.end(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_program_is_a_logger_for_other_shims_and_follows_a_rotation() {
    let world = World::new(Kind::Builtin);
    let log = world.dir.path().join("a b.log");
    let uri = format!("binary://{}?log={}&max-line=4", env!("CARGO_BIN_EXE_containerd-shim-gantry-v1"), log.display());
    let uri = uri.replace(' ', "%20");
    let bundle = world.bundle("c", &["/bin/sh", "-c", "echo first; read x < /dev/stdin; echo more >&2"], |_| {});
    let container = world.shim("c", bundle).await;
    let input = world.fifo("in");
    let create = |request: &mut task_pb::CreateTaskRequest| {
        request.stdin = input.display().to_string();
        request.stdout.clone_from(&uri);
        request.stderr.clone_from(&uri);
    };
    container.create(&world, create).await.unwrap();
    container.start("").await.unwrap();
    let logged = Logged { container, log: log.clone() };
    assert_eq!(logged.until(2).await, ["stdout P firs", "stdout F t"]);
    fs::rename(&log, world.dir.path().join("old.log")).unwrap();
    harness::writer(&input).write_all(b"go\n").unwrap();
    logged.container.wait("").await;
    let deadline = Instant::now() + harness::SOON;
    while !log.exists() || logged.records().is_empty() {
        assert!(Instant::now() < deadline, "the rotation was not noticed");
        sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(logged.records(), ["stderr F more"]);
    logged.end(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_execution_over_its_time_dies_with_all_that_it_started() {
    let world = World::new(Kind::Builtin);
    let container = world.created("c", &["/bin/sleep", "100"]).await;
    container.start("").await.unwrap();
    container.exec("e", &["/bin/sh", "-c", "sleep 100 & sleep 100"], |_| {}).await.unwrap();
    let limit = |millis| pb::LimitExecRequest { id: "c".into(), exec_id: "e".into(), timeout_millis: millis };
    container.extra::<_, pb::LimitExecResponse>("LimitExec", limit(300)).await.unwrap();
    let pid = container.start("e").await.unwrap();
    let late = container.extra::<_, pb::LimitExecResponse>("LimitExec", limit(1)).await;
    assert_eq!(late.unwrap_err().kind, ErrorKind::FailedPrecondition);
    assert_eq!(container.wait("e").await, 137);
    assert!(!is_alive(pid));
    let request = task_pb::PidsRequest { id: "c".into() };
    let pids: task_pb::PidsResponse = container.call("Pids", request).await.unwrap();
    assert_eq!(pids.processes.len(), 1, "the container's own process alone is left");
    container.delete("e").await.unwrap();
    container.kill("", 9).await.unwrap();
    container.wait("").await;
    container.delete("").await.unwrap();
    container.shutdown().await;
    container.delete_verb();
    world.census();
}
