//! Tasks under the real shim, with busybox as the root file system. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail at any line")]

mod common;

use std::path::{Path, PathBuf};
use std::time::Duration;

use common::Host;
use common::tasks::{SHIM, container, shim_is_there};
use gantry_engine::tasks::{Create, Exec, Status};
use gantry_engine::{Any, Engine, ErrorKind, Filter, HasKind, Mount};

/// The shims to test under: ours, and containerd's own where the integration tools are built.
fn shims_to_test() -> Vec<PathBuf> {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../integration/tools/bin/containerd-shim-runc-v2");
    let all = [common::target_dir().join(SHIM), tools.canonicalize().unwrap_or(tools)];
    all.into_iter().filter(|shim| shim.exists()).collect()
}

async fn topics(events: &mut gantry_engine::events::Subscription, last: &str) -> Vec<String> {
    let mut topics = Vec::new();
    while topics.last().is_none_or(|topic| topic != last) {
        let next = tokio::time::timeout(Duration::from_secs(5), events.next()).await;
        let envelope = next.unwrap_or_else(|_| panic!("no {last} after {topics:?}")).unwrap();
        topics.push(envelope.topic.clone());
    }
    // A second telling would come soon.
    tokio::time::sleep(Duration::from_millis(700)).await;
    while let Ok(Ok(envelope)) = tokio::time::timeout(Duration::from_millis(1), events.next()).await {
        topics.push(envelope.topic.clone());
    }
    topics
}

/// Shims of this host that still run.
fn shims(host: &Host) -> Vec<String> {
    let state = host.dir.path().to_string_lossy().into_owned();
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = processes.filter_map(|p| std::fs::read_to_string(p.path().join("cmdline")).ok());
    lines.filter(|line| line.contains("containerd-shim-") && line.contains(&state)).collect()
}

/// No shim runs and no bundle is there.
async fn assert_nothing_left(host: &Host) {
    for _ in 0..40 {
        if shims(host).is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(shims(host).is_empty(), "{:?}", shims(host));
    assert!(bundles(host).is_empty(), "{:?}", bundles(host));
    assert!(host.running().is_empty(), "{:?}", host.running());
}

fn bundles(host: &Host) -> Vec<PathBuf> {
    common::files_below(&host.dir.path().join("state/io.containerd.runtime.v2.task"))
}

fn task_events() -> Filter {
    Filter::parse(&["topic~=|^/tasks/|"]).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exec_id_that_is_free_again_is_a_new_process() {
    if !shim_is_there() {
        return;
    }
    let host = Host::new().await;
    let (tasks, scope) = (&host.engine.tasks, &host.scope);
    let create = container(&host, "one", &["/bin/sleep", "1000"]).await;
    tasks.create(scope, create).await.unwrap();
    tasks.start(scope, "one", "").await.unwrap();
    let spec = |script: &str| Any {
        type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".into(),
        value: format!(r#"{{"cwd":"/","args":["/bin/sh","-c","{script}"],"user":{{"uid":0,"gid":0}}}}"#).into(),
    };
    for round in 0..20 {
        let script = format!("sleep 0.0{}; exit {round}", round % 5);
        let exec =
            Exec { container_id: "one".into(), exec_id: "e".into(), spec: Some(spec(&script)), ..Exec::default() };
        tasks.exec(scope, exec).await.unwrap();
        tasks.start(scope, "one", "e").await.unwrap();
        let waiting = tokio::time::timeout(Duration::from_secs(20), tasks.wait(scope, "one", "e"));
        assert_eq!(waiting.await.expect("an end in time").unwrap().status, round, "its own end");
        tasks.delete_process(scope, "one", "e").await.unwrap();
        // The shim's event of the end may come only now.
        tokio::time::sleep(Duration::from_millis(round as u64)).await;
        assert!(tasks.exit_of(scope, "one", "e").is_none(), "nothing is left of round {round}");
    }
    tasks.kill(scope, "one", "", 9, true).await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(20), tasks.wait(scope, "one", ""));
    ended.await.expect("an end in time").unwrap();
    tasks.delete(scope, "one").await.unwrap();
    assert_nothing_left(&host).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_lives_from_create_to_delete_and_each_step_is_told_once() {
    if !shim_is_there() {
        return;
    }
    for shim in shims_to_test() {
        eprintln!("under {}", shim.display());
        a_task_lives_from_create_to_delete_and_each_step_is_told_once_under(&shim).await;
    }
}

async fn a_task_lives_from_create_to_delete_and_each_step_is_told_once_under(shim: &Path) {
    let host = Host::new().await;
    let mut events = host.engine.events.subscribe(task_events());
    let create = container(&host, "one", &["/bin/sh", "-c", "exit 7"]).await;
    let create = Create { runtime_path: shim.to_string_lossy().into_owned(), ..create };
    let pid = host.engine.tasks.create(&host.scope, create.clone()).await.unwrap();
    assert!(pid > 1);
    let again = host.engine.tasks.create(&host.scope, create).await.unwrap_err();
    assert_eq!(again.kind(), ErrorKind::AlreadyExists);
    let state = host.engine.tasks.get(&host.scope, "one", "").await.unwrap();
    assert_eq!((state.status, state.pid), (Status::Created, pid));
    let wait = host.engine.tasks.wait(&host.scope, "one", "");
    let start = host.engine.tasks.start(&host.scope, "one", "");
    let (exit, started) = tokio::join!(wait, start);
    assert_eq!((exit.unwrap().status, started.unwrap()), (7, pid));
    assert_eq!(host.engine.tasks.get(&host.scope, "one", "").await.unwrap().status, Status::Stopped);
    let deleted = host.engine.tasks.delete(&host.scope, "one").await.unwrap();
    assert_eq!((deleted.status, deleted.pid), (7, pid));
    let gone = host.engine.tasks.get(&host.scope, "one", "").await.unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::NotFound);
    let told = topics(&mut events, "/tasks/delete").await;
    assert_eq!(told, ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]);
    assert_nothing_left(&host).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_task_can_be_listed_executed_in_paused_measured_and_killed() {
    if !shim_is_there() {
        return;
    }
    for shim in shims_to_test() {
        eprintln!("under {}", shim.display());
        a_running_task_can_be_listed_executed_in_paused_measured_and_killed_under(&shim).await;
    }
}

async fn a_running_task_can_be_listed_executed_in_paused_measured_and_killed_under(shim: &Path) {
    let host = Host::new().await;
    let (tasks, scope) = (&host.engine.tasks, &host.scope);
    let create = container(&host, "two", &["/bin/sleep", "100"]).await;
    let create = Create { runtime_path: shim.to_string_lossy().into_owned(), ..create };
    let pid = tasks.create(scope, create).await.unwrap();
    tasks.start(scope, "two", "").await.unwrap();
    let listed = tasks.list(scope).await.unwrap();
    assert_eq!(listed.iter().map(|p| (p.pid, p.status)).collect::<Vec<_>>(), [(pid, Status::Running)]);
    let process = r#"{"args":["/bin/sh","-c","exit 3"],"cwd":"/","env":["PATH=/bin"],"user":{"uid":0,"gid":0}}"#;
    let spec =
        Any { type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".into(), value: process.into() };
    let exec = Exec { container_id: "two".into(), exec_id: "e1".into(), spec: Some(spec), ..Exec::default() };
    tasks.exec(scope, exec.clone()).await.unwrap();
    let refused = tasks.exec(scope, Exec { exec_id: "../x".into(), ..exec }).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidArgument);
    let (exit, started) = tokio::join!(tasks.wait(scope, "two", "e1"), tasks.start(scope, "two", "e1"));
    started.unwrap();
    assert_eq!(exit.unwrap().status, 3);
    assert_eq!(tasks.delete_process(scope, "two", "e1").await.unwrap().status, 3);
    assert_eq!(tasks.pids(scope, "two").await.unwrap().iter().map(|p| p.pid).collect::<Vec<_>>(), [pid]);
    tasks.pause(scope, "two").await.unwrap();
    assert_eq!(tasks.get(scope, "two", "").await.unwrap().status, Status::Paused);
    tasks.resume(scope, "two").await.unwrap();
    let metrics = tasks.metrics(scope, &Filter::default()).await.unwrap();
    assert_eq!(metrics.iter().map(|m| m.id.as_str()).collect::<Vec<_>>(), ["two"]);
    tasks.kill(scope, "two", "", 9, false).await.unwrap();
    assert_eq!(tasks.wait(scope, "two", "").await.unwrap().status, 137);
    tasks.delete(scope, "two").await.unwrap();
    assert_nothing_left(&host).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_shim_ends_its_task_once_and_its_exit_can_still_be_asked_for() {
    if !shim_is_there() {
        return;
    }
    for shim in shims_to_test() {
        eprintln!("under {}", shim.display());
        a_lost_shim_ends_its_task_once_and_its_exit_can_still_be_asked_for_under(&shim).await;
    }
}

async fn a_lost_shim_ends_its_task_once_and_its_exit_can_still_be_asked_for_under(shim: &Path) {
    let host = Host::new().await;
    let create = container(&host, "three", &["/bin/sleep", "100"]).await;
    let create = Create { runtime_path: shim.to_string_lossy().into_owned(), ..create };
    let pid = host.engine.tasks.create(&host.scope, create).await.unwrap();
    host.engine.tasks.start(&host.scope, "three", "").await.unwrap();
    let ends = Filter::parse(&["topic==\"/tasks/exit\"", "topic==\"/tasks/delete\""]).unwrap();
    let mut events = host.engine.events.subscribe(ends);
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim().parse::<i32>().unwrap();
    assert!(std::fs::read_to_string(format!("/proc/{parent}/cmdline")).unwrap().contains("containerd-shim-"));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(parent), nix::sys::signal::Signal::SIGKILL).unwrap();
    // Who passes signals on is told of the end, whoever is first.
    let killed = host.engine.tasks.kill(&host.scope, "three", "", 15, false).await;
    assert_eq!(killed.unwrap_err().kind(), ErrorKind::NotFound);
    let exit = host.engine.tasks.wait(&host.scope, "three", "").await.unwrap();
    assert!([137, 255].contains(&exit.status), "{exit:?}");
    assert_eq!(topics(&mut events, "/tasks/delete").await, ["/tasks/exit", "/tasks/delete"]);
    let exit = host.engine.tasks.delete(&host.scope, "three").await.unwrap();
    assert!([137, 255].contains(&exit.status), "{exit:?}");
    assert!(!is_alive(pid), "the container is dead");
    assert_nothing_left(&host).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_outlives_the_engine_and_its_exit_is_delivered_afterwards() {
    if !shim_is_there() {
        return;
    }
    let host = Host::new().await;
    for (id, script) in [("runs", "sleep 100"), ("ends", "sleep 1; exit 5")] {
        let create = container(&host, id, &["/bin/sh", "-c", script]).await;
        host.engine.tasks.create(&host.scope, create).await.unwrap();
        host.engine.tasks.start(&host.scope, id, "").await.unwrap();
    }
    let Host { engine, scope, dir } = host;
    engine.close().await;
    drop(engine);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let (engine, tasks) = reopen(dir.path()).await;
    assert_eq!(tasks, ["default/ends", "default/runs"]);
    assert_eq!(engine.tasks.get(&scope, "runs", "").await.unwrap().status, Status::Running);
    assert_eq!(engine.tasks.wait(&scope, "ends", "").await.unwrap().status, 5);
    engine.tasks.kill(&scope, "runs", "", 9, true).await.unwrap();
    assert_eq!(engine.tasks.wait(&scope, "runs", "").await.unwrap().status, 137);
    for id in ["runs", "ends"] {
        engine.tasks.delete(&scope, id).await.unwrap();
    }
    let host = Host { engine, scope, dir };
    assert_nothing_left(&host).await;
}

/// Who nobody has waited for yet is dead all the same.
fn is_alive(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    !status.is_empty() && !status.contains("State:\tZ") && !status.contains("State:\tX")
}

async fn reopen(dir: &Path) -> (Engine, Vec<String>) {
    for _ in 0..50 {
        match Engine::open(common::config(dir)).await {
            Ok((engine, report)) => return (engine, report.tasks),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
    panic!("the former engine does not let go");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_that_fails_leaves_nothing_and_the_name_is_free() {
    if !shim_is_there() {
        return;
    }
    for shim in shims_to_test() {
        eprintln!("under {}", shim.display());
        a_create_that_fails_leaves_nothing_and_the_name_is_free_under(&shim).await;
    }
}

async fn a_create_that_fails_leaves_nothing_and_the_name_is_free_under(shim: &Path) {
    let host = Host::new().await;
    let create = container(&host, "bad", &["/no/such/program"]).await;
    let create = Create { runtime_path: shim.to_string_lossy().into_owned(), ..create };
    let made = host.engine.tasks.create(&host.scope, create.clone()).await;
    if made.is_ok() {
        assert!(host.engine.tasks.start(&host.scope, "bad", "").await.is_err());
        host.engine.tasks.delete(&host.scope, "bad").await.unwrap();
    }
    assert_nothing_left(&host).await;
    let nowhere = Mount { source: "/no/such/directory".into(), ..create.rootfs[0].clone() };
    let failed = host.engine.tasks.create(&host.scope, Create { rootfs: vec![nowhere], ..create }).await;
    assert!(failed.is_err());
    assert_nothing_left(&host).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_runtimes_and_containers_are_not_found() {
    let host = Host::new().await;
    let missing = host.engine.tasks.create(&host.scope, Create { container_id: "x".into(), ..Create::default() }).await;
    assert_eq!(missing.unwrap_err().kind(), ErrorKind::NotFound);
    let create = container(&host, "four", &["/bin/true"]).await;
    let create = Create { runtime_path: "/no/such/shim".into(), ..create };
    assert_eq!(host.engine.tasks.create(&host.scope, create).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(host.engine.tasks.wait(&host.scope, "four", "").await.unwrap_err().kind(), ErrorKind::NotFound);
}

/// The shim of a task: its process' parent.
fn shim_of(pid: u32) -> nix::unistd::Pid {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap();
    nix::unistd::Pid::from_raw(parent.trim().parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_shim_is_shown_as_unknown_and_delays_nobody_also_over_a_restart() {
    use nix::sys::signal::{Signal, kill};
    if !shim_is_there() {
        return;
    }
    let host = Host::new().await;
    let mut pids = Vec::new();
    for id in ["mute", "well"] {
        let create = container(&host, id, &["/bin/sleep", "100"]).await;
        pids.push(host.engine.tasks.create(&host.scope, create).await.unwrap());
        host.engine.tasks.start(&host.scope, id, "").await.unwrap();
    }
    let mute = shim_of(pids[0]);
    kill(mute, Signal::SIGSTOP).unwrap();
    let began = std::time::Instant::now();
    assert_eq!(host.engine.tasks.get(&host.scope, "well", "").await.unwrap().status, Status::Running);
    assert!(began.elapsed() < Duration::from_millis(500), "{:?}", began.elapsed());
    let listed = host.engine.tasks.list(&host.scope).await.unwrap();
    let states = |listed: &[gantry_engine::tasks::Process]| listed.iter().map(|p| p.status).collect::<Vec<_>>();
    assert_eq!(states(&listed), [Status::Unknown, Status::Running]);
    let Host { engine, scope, dir } = host;
    engine.close().await;
    drop(engine);
    let (engine, tasks) = reopen(dir.path()).await;
    assert_eq!(tasks, ["default/mute", "default/well"]);
    assert_eq!(states(&engine.tasks.list(&scope).await.unwrap()), [Status::Unknown, Status::Running]);
    kill(mute, Signal::SIGCONT).unwrap();
    for id in ["mute", "well"] {
        engine.tasks.kill(&scope, id, "", 9, true).await.unwrap();
        assert_eq!(engine.tasks.wait(&scope, id, "").await.unwrap().status, 137);
        engine.tasks.delete(&scope, id).await.unwrap();
    }
    let host = Host { engine, scope, dir };
    assert_nothing_left(&host).await;
}
