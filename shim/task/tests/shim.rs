//! The shim's binary under a daemon in miniature, with real containers. Needs root and busybox-static.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[allow(dead_code)]
mod harness;

use std::time::Duration;

use gantry_ttrpc::pb::containerd::task::v3 as pb;
use gantry_ttrpc::pb::containerd::v1::types::Status as Phase;
use gantry_types::ErrorKind;
use harness::{Container, Kind, SOON, World, is_alive, reader, run_shim, runc, writer};
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};

/// Every test once for each runtime, and for both ways to start our own.
macro_rules! for_each_runtime {
    ($($name:ident),* $(,)?) => {
        mod builtin { $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name(super::Kind::Builtin).await; }
        )* }
        mod staying { $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name(super::Kind::Staying).await; }
        )* }
        mod by_runc { $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                if super::runc().is_some() { super::$name(super::Kind::Runc).await; }
            }
        )* }
    };
}

for_each_runtime!(
    a_container_runs_and_its_exit_is_told_in_order,
    a_process_can_be_executed_listed_and_killed,
    stdin_is_closed_after_what_was_sent,
    a_terminal_has_the_size_it_is_given,
    a_killed_shim_is_cleared_up_after,
    a_stopped_shim_is_cleared_up_after,
    a_shim_whose_bundle_is_gone_is_ended_by_the_next_start,
    a_shim_killed_at_any_moment_leaves_nothing,
    a_failed_start_can_be_deleted_at_once,
    what_a_container_uses_is_measured_and_limited,
    events_wait_for_a_daemon_that_is_away,
    what_makes_no_sense_is_refused_with_the_code_clients_expect,
    a_container_can_be_frozen,
    a_container_that_was_never_started_can_be_deleted,
    a_program_that_is_not_there_is_named,
    many_executions_leave_nothing,
    containers_of_one_group_share_a_shim,
);

async fn end(world: &World, container: &Container) {
    container.shutdown().await;
    container.delete_verb();
    world.census();
}

async fn a_container_runs_and_its_exit_is_told_in_order(kind: Kind) {
    let world = World::new(kind);
    let events = world.events();
    let (out, err) = (world.fifo("out"), world.fifo("err"));
    let bundle = world.bundle("c", &["/bin/sh", "-c", "echo out; echo err >&2; exit 7"], |_| {});
    let container = world.shim("c", bundle).await;
    let created = container.create(&world, |request| {
        request.stdout = out.display().to_string();
        request.stderr = err.display().to_string();
    });
    let pid = created.await.unwrap().pid;
    let (out, err) = (reader(out), reader(err));
    assert_eq!(container.state("").await.unwrap().status(), Phase::Created);
    let host_mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    if kind != Kind::Runc {
        assert!(
            !host_mounts.contains(&world.dir.path().display().to_string()),
            "nothing is mounted in the host's table"
        );
    }
    assert_eq!(container.start("").await.unwrap(), pid);
    assert_eq!(container.wait("").await, 7);
    assert_eq!(out.join().unwrap(), "out\n");
    assert_eq!(err.join().unwrap(), "err\n");
    let state = container.state("").await.unwrap();
    assert_eq!((state.status(), state.exit_status, state.pid), (Phase::Stopped, 7, pid));
    let deleted = container.delete("").await.unwrap();
    assert_eq!((deleted.exit_status, deleted.pid), (7, pid));
    assert_eq!(container.state("").await.unwrap_err().kind, ErrorKind::NotFound);
    events.expect(&["create", "start", "exit init 7", "delete"]).await;
    let shim = container.shim_pid().await;
    container.shutdown().await;
    let gone = container.delete_verb();
    assert_eq!((gone.exit_status, gone.pid), (7, pid), "the stored exit outlives the shim");
    assert!(!is_alive(shim.cast_unsigned()));
    world.census();
}

async fn a_process_can_be_executed_listed_and_killed(kind: Kind) {
    let world = World::new(kind);
    let events = world.events();
    let container = world.created("c", &["/bin/sleep", "1000"]).await;
    container.start("").await.unwrap();
    let out = world.fifo("out");
    let stdout = out.display().to_string();
    container.exec("e1", &["/bin/sh", "-c", "echo hi; exit 3"], |r| r.stdout = stdout).await.unwrap();
    let out = reader(out);
    container.start("e1").await.unwrap();
    assert_eq!(container.wait("e1").await, 3);
    assert_eq!(out.join().unwrap(), "hi\n");
    container.exec("e2", &["/bin/sleep", "1000"], |_| {}).await.unwrap();
    let e2 = container.start("e2").await.unwrap();
    let pids: pb::PidsResponse = container.call("Pids", pb::PidsRequest { id: "c".into() }).await.unwrap();
    assert_eq!(pids.processes.len(), 2, "{pids:?}");
    let named = pids.processes.iter().find(|process| process.pid == e2).unwrap();
    assert_eq!(named.info.as_ref().unwrap().type_url, "containerd.runc.v1.ProcessDetails");
    container.kill("e2", 15).await.unwrap();
    assert_eq!(container.wait("e2").await, 143);
    assert_eq!(container.kill("e2", 15).await.unwrap_err().kind, ErrorKind::NotFound);
    assert_eq!(container.delete("e1").await.unwrap().exit_status, 3);
    assert_eq!(container.state("e1").await.unwrap_err().kind, ErrorKind::NotFound);
    container.kill("", 9).await.unwrap();
    assert_eq!(container.wait("").await, 137);
    container.delete("").await.unwrap();
    let expected = [
        "create",
        "start",
        "exec-added",
        "exec-started e1",
        "exit e1 3",
        "exec-added",
        "exec-started e2",
        "exit e2 143",
        "exit init 137",
        "delete",
    ];
    events.expect(&expected).await;
    end(&world, &container).await;
}

async fn stdin_is_closed_after_what_was_sent(kind: Kind) {
    let world = World::new(kind);
    let _events = world.events();
    let (input, out) = (world.fifo("in"), world.fifo("out"));
    let container = world.shim("c", world.bundle("c", &["/bin/cat"], |_| {})).await;
    let created = container.create(&world, |request| {
        request.stdin = input.display().to_string();
        request.stdout = out.display().to_string();
    });
    created.await.unwrap();
    let out = reader(out);
    container.start("").await.unwrap();
    let mut client = writer(&input);
    std::io::Write::write_all(&mut client, b"hello").unwrap();
    let close = pb::CloseIoRequest { id: "c".into(), exec_id: String::new(), stdin: true };
    container.call::<_, ()>("CloseIO", close).await.unwrap();
    assert_eq!(container.wait("").await, 0);
    assert_eq!(out.join().unwrap(), "hello");
    container.delete("").await.unwrap();
    end(&world, &container).await;
}

async fn a_terminal_has_the_size_it_is_given(kind: Kind) {
    let world = World::new(kind);
    let _events = world.events();
    let (input, out) = (world.fifo("in"), world.fifo("out"));
    let script = "read line; stty size; echo got $line; test -t 2 && echo tty";
    let bundle = world.bundle("c", &["/bin/sh", "-c", script], |config| config["process"]["terminal"] = json!(true));
    let container = world.shim("c", bundle).await;
    let created = container.create(&world, |request| {
        request.terminal = true;
        request.stdin = input.display().to_string();
        request.stdout = out.display().to_string();
    });
    created.await.unwrap();
    let out = reader(out);
    container.start("").await.unwrap();
    let resize = pb::ResizePtyRequest { id: "c".into(), exec_id: String::new(), width: 100, height: 40 };
    container.call::<_, ()>("ResizePty", resize).await.unwrap();
    std::io::Write::write_all(&mut writer(&input), b"word\n").unwrap();
    assert_eq!(container.wait("").await, 0);
    let text = out.join().unwrap();
    assert!(text.contains("40 100") && text.contains("got word") && text.contains("tty"), "{text:?}");
    container.delete("").await.unwrap();
    end(&world, &container).await;
}

async fn a_killed_shim_is_cleared_up_after(kind: Kind) {
    let world = World::new(kind);
    let _events = world.events();
    let container = world.created("c", &["/bin/sh", "-c", "sleep 1000 & sleep 1000"]).await;
    let init = container.start("").await.unwrap();
    let shim = container.shim_pid().await;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(shim), nix::sys::signal::Signal::SIGKILL).unwrap();
    timeout(SOON, container.client.closed()).await.unwrap();
    let deleted = container.delete_verb();
    assert_eq!((deleted.exit_status, deleted.pid), (137, init));
    let deadline = Instant::now() + SOON;
    while is_alive(init) {
        assert!(Instant::now() < deadline, "the container outlived its deletion");
        sleep(Duration::from_millis(5)).await;
    }
    world.census();
    assert_eq!(container.delete_verb().exit_status, 137, "a second delete is harmless");
}

async fn a_stopped_shim_is_cleared_up_after(kind: Kind) {
    let world = World::new(kind);
    let container = world.created("c", &["/bin/sleep", "1000"]).await;
    let init = container.start("").await.unwrap();
    let shim = container.shim_pid().await;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(shim), nix::sys::signal::Signal::SIGSTOP).unwrap();
    assert_eq!(container.delete_verb().exit_status, 137);
    assert!(!is_alive(init) && !is_alive(shim.cast_unsigned()));
    world.census();
}

async fn a_shim_whose_bundle_is_gone_is_ended_by_the_next_start(kind: Kind) {
    let world = World::new(kind);
    let bundle = world.bundle("c", &["/bin/sleep", "1000"], |_| {});
    let first = world.shim("c", bundle.clone()).await;
    let old = first.shim_pid().await;
    // It cannot end by itself.
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(old), nix::sys::signal::Signal::SIGSTOP).unwrap();
    std::fs::remove_dir_all(&bundle).unwrap();
    let container = world.created("c", &["/bin/sleep", "1000"]).await;
    assert!(!is_alive(old.cast_unsigned()), "the shim of the earlier start lives on");
    assert_ne!(container.shim_pid().await, old);
    container.start("").await.unwrap();
    container.kill("", 9).await.unwrap();
    assert_eq!(container.wait("").await, 137);
    container.delete("").await.unwrap();
    end(&world, &container).await;
}

async fn a_shim_killed_at_any_moment_leaves_nothing(kind: Kind) {
    let (step, most) = if kind != Kind::Runc { (400, 12_000) } else { (9_000, 80_000) };
    for delay in (0..most).step_by(step) {
        let world = World::new(kind);
        let container = world.shim("c", world.bundle("c", &["/bin/sleep", "1000"], |_| {})).await;
        let shim = container.shim_pid().await;
        let life = async {
            let _ = container.create(&world, |_| {}).await;
            let _ = container.start("").await;
            let _ = container.exec("e", &["/bin/sleep", "1000"], |_| {}).await;
            let _ = container.start("e").await;
        };
        let death = async {
            sleep(Duration::from_micros(delay)).await;
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(shim), nix::sys::signal::Signal::SIGKILL).unwrap();
        };
        tokio::join!(life, death);
        timeout(SOON, container.client.closed()).await.unwrap();
        container.delete_verb();
        world.no_processes().await;
        world.census();
    }
}

async fn a_failed_start_can_be_deleted_at_once(kind: Kind) {
    let world = World::new(kind);
    let events = world.events();
    let container = world.shim("c", world.bundle("c", &["/etc"], |_| {})).await;
    if container.create(&world, |_| {}).await.is_ok() {
        container.start("").await.unwrap_err();
        container.delete("").await.unwrap();
        let seen = events.all();
        assert_eq!((seen.len(), seen[2].as_str()), (3, "delete"), "{seen:?}");
    }
    end(&world, &container).await;
}

async fn events_wait_for_a_daemon_that_is_away(kind: Kind) {
    let world = World::new(kind);
    let container = world.created("c", &["/bin/true"]).await;
    container.start("").await.unwrap();
    assert_eq!(container.wait("").await, 0);
    sleep(Duration::from_millis(200)).await;
    assert!(!container.ttrpc().exists());
    let events = world.events();
    events.expect(&["create", "start", "exit init 0"]).await;
    container.delete("").await.unwrap();
    events.expect(&["create", "start", "exit init 0", "delete"]).await;
    end(&world, &container).await;
}

async fn what_makes_no_sense_is_refused_with_the_code_clients_expect(kind: Kind) {
    let world = World::new(kind);
    let _events = world.events();
    let container = world.shim("c", world.bundle("c", &["/bin/sleep", "1000"], |_| {})).await;
    let kind_of = |result: Result<(), gantry_ttrpc::Status>| result.unwrap_err().kind;
    assert_eq!(kind_of(container.start("").await.map(drop)), ErrorKind::NotFound);
    assert_eq!(kind_of(container.create(&world, |r| r.id = "../x".into()).await.map(drop)), ErrorKind::InvalidArgument);
    assert_eq!(kind_of(container.create(&world, |r| r.bundle = "/nowhere".into()).await.map(drop)), ErrorKind::Unknown);
    assert_eq!(
        kind_of(container.create(&world, |r| r.stdout = "/nowhere".into()).await.map(drop)),
        ErrorKind::NotFound
    );
    assert_eq!(
        kind_of(container.create(&world, |r| r.stdout = "ftp://x".into()).await.map(drop)),
        ErrorKind::InvalidArgument
    );
    assert_eq!(
        kind_of(container.create(&world, |r| r.checkpoint = "/c".into()).await.map(drop)),
        ErrorKind::InvalidArgument
    );
    container.create(&world, |_| {}).await.unwrap();
    assert_eq!(kind_of(container.create(&world, |_| {}).await.map(drop)), ErrorKind::AlreadyExists);
    container.start("").await.unwrap();
    assert_eq!(kind_of(container.start("").await.map(drop)), ErrorKind::Unknown);
    assert_eq!(kind_of(container.delete("").await.map(drop)), ErrorKind::FailedPrecondition);
    assert_eq!(kind_of(container.exec("e", &[], |_| {}).await), ErrorKind::InvalidArgument);
    container.exec("e", &["/bin/true"], |_| {}).await.unwrap();
    assert_eq!(kind_of(container.exec("e", &["/bin/true"], |_| {}).await), ErrorKind::AlreadyExists);
    container.delete("e").await.unwrap();
    assert_eq!(kind_of(container.call("NoSuch", ()).await), ErrorKind::Unimplemented);
    let elsewhere =
        container.client.call_raw("containerd.runtime.other.v1.Other", "Platform", Vec::new(), &[], Some(SOON));
    let elsewhere = elsewhere.await.unwrap_err();
    assert_eq!(elsewhere.message, "service containerd.runtime.other.v1.Other");
    let v2 = container.client.call_raw("containerd.task.v2.Task", "State", b"\x0a\x01c".to_vec(), &[], Some(SOON));
    assert!(v2.await.is_ok());
    container.shutdown_refused().await;
    container.kill("", 9).await.unwrap();
    container.wait("").await;
    assert_eq!(kind_of(container.start("").await.map(drop)), ErrorKind::Unknown);
    assert_eq!(kind_of(container.kill("", 9).await), ErrorKind::NotFound);
    container.delete("").await.unwrap();
    end(&world, &container).await;
}

async fn a_container_can_be_frozen(kind: Kind) {
    let world = World::new(kind);
    let events = world.events();
    let container = world.created("c", &["/bin/sleep", "1000"]).await;
    container.start("").await.unwrap();
    container.call::<_, ()>("Pause", pb::PauseRequest { id: "c".into() }).await.unwrap();
    assert_eq!(container.state("").await.unwrap().status(), Phase::Paused);
    let exec = container.exec("e", &["/bin/true"], |_| {}).await;
    assert_eq!(exec.unwrap_err().kind, ErrorKind::Unknown);
    container.call::<_, ()>("Resume", pb::ResumeRequest { id: "c".into() }).await.unwrap();
    container.call::<_, ()>("Pause", pb::PauseRequest { id: "c".into() }).await.unwrap();
    container.kill("", 9).await.unwrap();
    assert_eq!(container.wait("").await, 137);
    container.delete("").await.unwrap();
    events.expect(&["create", "start", "paused", "resumed", "paused", "exit init 137", "delete"]).await;
    end(&world, &container).await;
}

async fn a_container_that_was_never_started_can_be_deleted(kind: Kind) {
    let world = World::new(kind);
    let events = world.events();
    let container = world.created("c", &["/bin/sleep", "1000"]).await;
    assert_eq!(container.delete("").await.unwrap().exit_status, 137);
    events.expect(&["create", "exit init 137", "delete"]).await;
    end(&world, &container).await;
}

async fn a_program_that_is_not_there_is_named(kind: Kind) {
    let world = World::new(kind);
    let _events = world.events();
    let container = world.shim("c", world.bundle("c", &["nosuchthing"], |_| {})).await;
    let failed = match container.create(&world, |_| {}).await {
        Err(failed) => failed,
        Ok(_) => {
            let failed = container.start("").await.unwrap_err();
            container.wait("").await;
            container.delete("").await.unwrap();
            failed
        }
    };
    assert!(
        failed.message.contains("nosuchthing") && failed.message.contains("executable file not found in $PATH"),
        "{failed}"
    );
    end(&world, &container).await;
    let container = world.created("d", &["/bin/sleep", "1000"]).await;
    container.start("").await.unwrap();
    container.exec("e", &["nosuchthing"], |_| {}).await.unwrap();
    let failed = container.start("e").await.unwrap_err();
    assert!(failed.message.contains("nosuchthing"), "{failed}");
    let (waited, deleted) = tokio::join!(container.wait("e"), async {
        sleep(Duration::from_millis(50)).await;
        container.delete("e").await
    });
    deleted.unwrap();
    assert_eq!(waited, 255, "nobody waits for ever for what never ran");
    container.kill("", 9).await.unwrap();
    container.wait("").await;
    container.delete("").await.unwrap();
    end(&world, &container).await;
}

async fn many_executions_leave_nothing(kind: Kind) {
    let world = World::new(kind);
    let _events = world.events();
    let container = world.created("c", &["/bin/sleep", "1000"]).await;
    container.start("").await.unwrap();
    let shim = container.shim_pid().await;
    let descriptors = || std::fs::read_dir(format!("/proc/{shim}/fd")).unwrap().count();
    let rounds = if kind != Kind::Runc { 100 } else { 8 };
    let mut before = 0;
    for round in 0..rounds {
        let name = format!("e{round}");
        let out = world.fifo(&name);
        let stdout = out.display().to_string();
        container.exec(&name, &["/bin/echo", &name], |r| r.stdout = stdout).await.unwrap();
        let out = reader(out);
        container.start(&name).await.unwrap();
        assert_eq!(container.wait(&name).await, 0);
        assert_eq!(out.join().unwrap(), format!("{name}\n"));
        container.delete(&name).await.unwrap();
        if round == 2 {
            before = descriptors();
        }
    }
    assert_eq!(descriptors(), before, "descriptors are left open");
    container.kill("", 9).await.unwrap();
    container.wait("").await;
    container.delete("").await.unwrap();
    end(&world, &container).await;
}

async fn containers_of_one_group_share_a_shim(kind: Kind) {
    let world = World::new(kind);
    let _events = world.events();
    let group = |config: &mut serde_json::Value| config["annotations"] = json!({"io.containerd.runc.v2.group": "pod"});
    let first = world.shim("a", world.bundle("a", &["/bin/sleep", "1000"], group)).await;
    let second = world.shim("b", world.bundle("b", &["/bin/sleep", "1000"], group)).await;
    assert_eq!(first.shim_pid().await, second.shim_pid().await);
    assert_eq!(first.socket, second.socket);
    for container in [&first, &second] {
        container.create(&world, |_| {}).await.unwrap();
        container.start("").await.unwrap();
    }
    first.kill("", 9).await.unwrap();
    assert_eq!(first.wait("").await, 137);
    first.delete("").await.unwrap();
    first.shutdown_refused().await;
    first.delete_verb();
    assert_eq!(second.state("").await.unwrap().status(), Phase::Running, "the other one lives on");
    second.kill("", 9).await.unwrap();
    second.wait("").await;
    second.delete("").await.unwrap();
    end(&world, &second).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_for_lack_of_memory_is_told_before_the_exit() {
    let world = World::new(Kind::Builtin);
    let events = world.events();
    let limit = |config: &mut serde_json::Value| {
        config["linux"]["resources"]["memory"] = json!({"limit": 16 << 20, "swap": 16 << 20});
    };
    let hungry = ["/bin/sh", "-c", "x=$(yes | head -c 100000000)"];
    let container = world.shim("c", world.bundle("c", &hungry, limit)).await;
    container.create(&world, |_| {}).await.unwrap();
    container.start("").await.unwrap();
    let status = container.wait("").await;
    let exit = format!("exit init {status}");
    let deadline = Instant::now() + SOON;
    while !events.all().contains(&exit) && Instant::now() < deadline {
        sleep(Duration::from_millis(5)).await;
    }
    // Version 1 notifies of each failed charge, and may do so several times for one kill.
    let mut seen = events.all();
    seen.dedup();
    assert_eq!(seen, ["create", "start", "oom", &exit]);
    container.delete("").await.unwrap();
    end(&world, &container).await;
}

async fn what_a_container_uses_is_measured_and_limited(kind: Kind) {
    let world = World::new(kind);
    let _events = world.events();
    let container = world.created("c", &["/bin/sleep", "1000"]).await;
    container.start("").await.unwrap();
    let stats: pb::StatsResponse = container.call("Stats", pb::StatsRequest { id: "c".into() }).await.unwrap();
    let stats = stats.stats.unwrap();
    assert!(stats.type_url.starts_with("io.containerd.cgroups.v"), "{}", stats.type_url);
    assert!(!stats.value.is_empty());
    let resources = prost_types::Any { type_url: String::new(), value: br#"{"pids":{"limit":33}}"#.to_vec() };
    let update =
        pb::UpdateTaskRequest { id: "c".into(), resources: Some(resources), ..pb::UpdateTaskRequest::default() };
    container.call::<_, ()>("Update", update).await.unwrap();
    container.kill("", 9).await.unwrap();
    container.wait("").await;
    container.delete("").await.unwrap();
    end(&world, &container).await;
}

/// Run by hand, with `GANTRY_SHIM` naming the build that is shipped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes"]
async fn memory_stays_flat_over_thousands_of_executions() {
    let world = World::new(Kind::Builtin);
    let _events = world.events();
    let container = world.created("c", &["/bin/sleep", "1000"]).await;
    container.start("").await.unwrap();
    let shim = container.shim_pid().await;
    let dirty = || {
        let rollup = std::fs::read_to_string(format!("/proc/{shim}/smaps_rollup")).unwrap();
        let line = rollup.lines().find(|line| line.starts_with("Private_Dirty")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let mut before = 0;
    let begun = Instant::now();
    for round in 0..5000 {
        let name = format!("e{round}");
        container.exec(&name, &["/bin/true"], |_| {}).await.unwrap();
        container.start(&name).await.unwrap();
        assert_eq!(container.wait(&name).await, 0);
        container.delete(&name).await.unwrap();
        if round == 100 {
            before = dirty();
        }
    }
    println!("5000 executions in {:?}, {before} KiB before, {} KiB after", begun.elapsed(), dirty());
    assert!(dirty() <= before + 64);
    container.kill("", 9).await.unwrap();
    container.wait("").await;
    container.delete("").await.unwrap();
    end(&world, &container).await;
}

#[test]
fn the_older_forms_of_start_are_answered_in_json() {
    let world = World::new(Kind::Builtin);
    let bundle = world.bundle("c", &["/bin/true"], |_| {});
    let answer = run_shim("old-form", &bundle, &["start"], b"");
    let answer: serde_json::Value = serde_json::from_slice(&answer).unwrap();
    assert_eq!((answer["version"].clone(), answer["protocol"].clone()), (json!(3), json!("ttrpc")));
    let socket = answer["address"].as_str().unwrap().trim_start_matches("unix://").to_owned();
    let again = run_shim("old-form", &bundle, &["start"], b"");
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&again).unwrap(), answer, "a live shim is found again");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let client = gantry_ttrpc::Client::connect(&gantry_ttrpc::Address::of_path(&socket), Instant::now() + SOON)
            .await
            .unwrap();
        client
            .call::<_, ()>("containerd.task.v2.Task", "Shutdown", &pb::ShutdownRequest::default(), SOON)
            .await
            .unwrap();
        timeout(SOON, client.closed()).await.unwrap();
    });
    assert!(!std::path::Path::new(&socket).exists());
}
