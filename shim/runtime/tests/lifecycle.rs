//! Life of a container: create, start, exec, signals, freezing, limits, delete; what is left (nothing).
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{Bundle, exec, process, read_console, wait};
use gantry_runtime::{Container, Error, ExecOptions, ExecPlace, Gate, Resources, Status, Stdio};
use serde_json::json;

#[test]
fn the_default_configuration_runs_and_leaves_nothing() {
    let bundle = Bundle::new(&["sh", "-c", "echo $$; hostname; pwd; id -u; exit 7"]);
    let (output, code) = bundle.run().unwrap();
    assert_eq!(output, "1\nbox\n/\n0\n");
    assert_eq!(code, 7);
    assert_eq!(bundle.leftovers(), Vec::<std::path::PathBuf>::new());
}

#[test]
fn a_container_passes_through_its_states() {
    let bundle = Bundle::new(&["sleep", "100"]);
    let mut container = bundle.create(Stdio::Null).unwrap();
    assert_eq!(container.status(), Status::Created);
    assert_eq!(container.state().pid, container.pid());
    assert!(matches!(container.delete(false), Err(Error::State { .. })), "a created container is not deleted unforced");
    container.start().unwrap();
    assert_eq!(container.status(), Status::Running);
    assert!(matches!(container.start(), Err(Error::State { action: "start", .. })));
    assert_eq!(container.pids().unwrap(), [container.pid()]);
    container.pause().unwrap();
    assert_eq!(container.status(), Status::Paused);
    container.resume().unwrap();
    assert_eq!(container.status(), Status::Running);
    container.kill(libc::SIGKILL, false).unwrap();
    assert_eq!(wait(container.pid()), 128 + 9);
    assert_eq!(container.status(), Status::Stopped);
    assert!(matches!(container.kill(libc::SIGTERM, false), Err(Error::Gone { .. })));
    container.delete(false).unwrap();
    assert!(bundle.leftovers().is_empty(), "{:?}", bundle.leftovers());
}

#[test]
fn an_id_is_taken_only_once() {
    let bundle = Bundle::new(&["sleep", "100"]);
    let mut container = bundle.create(Stdio::Null).unwrap();
    assert!(matches!(bundle.create(Stdio::Null), Err(Error::Exists { .. })));
    assert_eq!(container.status(), Status::Created, "the failed create left the first alone");
    container.delete(true).unwrap();
    wait(container.pid());
}

#[test]
fn a_killed_paused_container_dies() {
    let bundle = Bundle::new(&["sleep", "100"]);
    let mut container = bundle.create(Stdio::Null).unwrap();
    container.start().unwrap();
    container.pause().unwrap();
    container.kill(libc::SIGKILL, false).unwrap();
    assert_eq!(wait(container.pid()), 137);
    container.delete(false).unwrap();
}

#[test]
fn a_created_container_dies_with_its_creator_and_is_purged_from_its_record() {
    let bundle = Bundle::new(&["sleep", "100"]);
    let container = bundle.create(Stdio::Null).unwrap();
    let pid = container.pid();
    drop(container);
    wait(pid);
    let loaded = Container::load(&bundle.state_dir(), &bundle.id).unwrap();
    assert_eq!(loaded.status(), Status::Stopped);
    Container::purge(&bundle.state_dir(), &bundle.id).unwrap();
    Container::purge(&bundle.state_dir(), &bundle.id).unwrap();
    assert!(bundle.leftovers().is_empty());
    assert!(matches!(Container::load(&bundle.state_dir(), &bundle.id), Err(Error::NotFound { .. })));
}

#[test]
fn another_process_can_start_a_container_behind_a_fifo() {
    let bundle = Bundle::new(&["sleep", "100"]);
    let created = bundle.create_with(Stdio::Null, Gate::Fifo, &[]).unwrap();
    let pid = created.pid();
    drop(created);
    let mut loaded = Container::load(&bundle.state_dir(), &bundle.id).unwrap();
    assert_eq!(loaded.status(), Status::Created);
    loaded.start().unwrap();
    assert_eq!(loaded.status(), Status::Running);
    let (output, code) = exec(&loaded, &process(&["cat", "/proc/1/comm"])).unwrap();
    assert_eq!((output.as_str(), code), ("sleep\n", 0));
    loaded.delete(true).unwrap();
    wait(pid);
    assert!(bundle.leftovers().is_empty());
}

#[test]
fn executed_processes_share_namespaces_and_cgroup() {
    let bundle = Bundle::new(&["sleep", "100"]);
    let mut container = bundle.create(Stdio::Null).unwrap();
    container.start().unwrap();
    let script = "hostname; for p in 1 self; do for n in pid mnt; do readlink /proc/$p/ns/$n; done; done";
    let (output, code) = exec(&container, &process(&["sh", "-c", script])).unwrap();
    assert_eq!(code, 0, "{output}");
    let lines = output.lines().collect::<Vec<_>>();
    assert_eq!(lines[0], "box");
    assert_eq!(lines[1..3], lines[3..5]);
    let (groups, _) = exec(&container, &process(&["cat", "/proc/self/cgroup"])).unwrap();
    assert!(
        groups.lines().filter(|line| line.contains("memory") || line.contains("pids")).all(|line| line.ends_with(":/")),
        "{groups}"
    );
    let (init_groups, _) = exec(&container, &process(&["cat", "/proc/1/cgroup"])).unwrap();
    assert_eq!(groups, init_groups);
    let (_, code) = exec(&container, &process(&["sh", "-c", "exit 3"])).unwrap();
    assert_eq!(code, 3);
    container.delete(true).unwrap();
    wait(container.pid());
}

#[test]
fn an_executed_process_with_a_cgroup_of_its_own_dies_with_all_it_started() {
    let bundle = Bundle::new(&["sleep", "60"]);
    let mut container = bundle.create(Stdio::Null).unwrap();
    container.start().unwrap();
    let before = container.pids().unwrap();
    let process = process(&["sh", "-c", "setsid sleep 61 & setsid sleep 62 & wait"]);
    let options = ExecOptions { process: &process, stdio: Stdio::Null, preserve_fds: 0 };
    let place = ExecPlace { own: Some("exec-1"), ..ExecPlace::default() };
    let child = container.exec_in(options, place).unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
    while container.pids().unwrap().len() < before.len() + 3 {
        assert!(std::time::Instant::now() < deadline, "{:?}", container.pids());
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    container.kill_exec("exec-1").unwrap();
    assert_eq!(wait(child.pid), 128 + 9);
    assert_eq!(container.pids().unwrap(), before);
    container.kill_exec("exec-1").unwrap();
    assert!(container.kill_exec("../x").is_err());
    container.delete(true).unwrap();
    wait(container.pid());
    assert!(bundle.leftovers().is_empty());
}

#[test]
fn a_frozen_container_takes_a_process_only_when_told_so() {
    let bundle = Bundle::new(&["sleep", "60"]);
    let mut container = bundle.create(Stdio::Null).unwrap();
    container.start().unwrap();
    container.pause().unwrap();
    let process = process(&["true"]);
    let options = ExecOptions { process: &process, stdio: Stdio::Null, preserve_fds: 0 };
    assert!(container.exec(options).is_err());
    let place = ExecPlace { ignore_paused: true, ..ExecPlace::default() };
    let child = container.exec_in(options, place).unwrap();
    assert_eq!(container.status(), Status::Paused);
    container.resume().unwrap();
    assert_eq!(wait(child.pid), 0);
    let absent = [(String::new(), "/absent".to_owned())];
    let place = ExecPlace { existing: &absent, ..ExecPlace::default() };
    assert!(container.exec_in(options, place).unwrap_err().to_string().contains("absent"));
    container.delete(true).unwrap();
    wait(container.pid());
}

#[test]
fn programs_that_cannot_run_are_named_as_runc_names_them() {
    let text = |args: &[&str]| Bundle::new(args).create(Stdio::Null).expect_err("creating fails already").to_string();
    assert_eq!(text(&["nope"]), r#"exec: "nope": executable file not found in $PATH"#);
    assert_eq!(text(&["/nope"]), r#"exec: "/nope": stat /nope: no such file or directory"#);
    assert_eq!(text(&["/etc/passwd"]), r#"exec: "/etc/passwd": permission denied"#);
    assert_eq!(text(&["/etc"]), r#"exec: "/etc": is a directory"#);
    let bundle = Bundle::new(&["/bin/broken"]);
    std::fs::write(bundle.root().join("bin/broken"), "garbage").unwrap();
    std::fs::set_permissions(bundle.root().join("bin/broken"), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .unwrap();
    assert_eq!(bundle.run().unwrap_err().to_string(), r#"exec: "/bin/broken": exec format error"#);
    assert!(bundle.leftovers().is_empty());
}

#[test]
fn a_program_to_execute_that_is_missing_is_named_too() {
    let bundle = Bundle::new(&["sleep", "9"]);
    let mut container = bundle.create(Stdio::Null).unwrap();
    container.start().unwrap();
    let error = exec(&container, &process(&["nope"])).unwrap_err();
    assert_eq!(error.to_string(), r#"exec: "nope": executable file not found in $PATH"#);
    container.delete(true).unwrap();
    wait(container.pid());
}

#[test]
fn a_terminal_is_allocated_in_the_container() {
    let mut bundle = Bundle::new(&["sh", "-c", "tty; stty size; ls -l /dev/console | head -c 1"]);
    bundle.config["process"]["terminal"] = json!(true);
    bundle.config["process"]["consoleSize"] = json!({"height": 33, "width": 111});
    let mut container = bundle.create(Stdio::Console(None)).unwrap();
    let console = container.take_console().expect("a master");
    container.start().unwrap();
    let output = read_console(console);
    assert_eq!(wait(container.pid()), 0);
    assert_eq!(output, "/dev/pts/0\r\n33 111\r\nc");
    container.delete(true).unwrap();
}

#[test]
fn an_executed_process_can_have_a_terminal_too() {
    let bundle = Bundle::new(&["sleep", "100"]);
    let mut container = bundle.create(Stdio::Null).unwrap();
    container.start().unwrap();
    let process = process(&["sh", "-c", "tty; echo hi > /dev/tty"]);
    let options = gantry_runtime::ExecOptions { process: &process, stdio: Stdio::Console(None), preserve_fds: 0 };
    let child = container.exec(options).unwrap();
    let output = read_console(child.console.expect("a master"));
    assert_eq!(wait(child.pid), 0);
    assert_eq!(output, "/dev/pts/0\r\nhi\r\n");
    container.delete(true).unwrap();
    wait(container.pid());
}

#[test]
fn limits_are_set_changed_and_measured() {
    let mut bundle = Bundle::new(&["sleep", "100"]);
    bundle.config["linux"]["resources"]["memory"] = json!({"limit": 64 << 20, "reservation": 32 << 20});
    bundle.config["linux"]["resources"]["cpu"] = json!({"shares": 512, "quota": 50000, "period": 100000});
    bundle.config["linux"]["resources"]["pids"] = json!({"limit": 50});
    let mut container = bundle.create(Stdio::Null).unwrap();
    container.start().unwrap();
    let gantry_runtime::Stats::V1(stats) = container.stats().unwrap() else { return };
    assert_eq!(stats.memory.limit, 64 << 20);
    assert_eq!(stats.pids_limit, 50);
    assert_eq!(stats.pids_current, 1);
    assert!(stats.cpu_total > 0);
    assert!(stats.memory_stat.iter().any(|(key, _)| key == "total_rss"));
    let update = Resources::parse(br#"{"memory": {"limit": 33554432}, "pids": {"limit": -1}}"#).unwrap();
    container.update(&update).unwrap();
    let gantry_runtime::Stats::V1(stats) = container.stats().unwrap() else { return };
    assert_eq!((stats.memory.limit, stats.pids_limit), (32 << 20, 0));
    container.delete(true).unwrap();
    wait(container.pid());
}

#[test]
fn a_limit_on_an_absent_controller_is_refused_before_anything_runs() {
    let mut bundle = Bundle::new(&["true"]);
    bundle.config["linux"]["resources"]["network"] = json!({"classID": 5});
    if common::unified() {
        // There v2 has no class of packets, and runc passes over the setting.
        bundle.output();
        bundle.config["linux"]["resources"] = json!({"unified": {"nothing.max": "1"}});
        let error = bundle.run().unwrap_err();
        assert!(matches!(error, Error::Invalid { .. }) && error.to_string().contains("nothing.max"), "{error}");
    } else {
        let error = bundle.run().unwrap_err();
        assert!(matches!(error, Error::NoController { controller: "net_cls" }), "{error}");
    }
    assert!(bundle.leftovers().is_empty());
}

#[test]
fn running_out_of_memory_is_noticed() {
    let mut bundle = Bundle::new(&["sh", "-c", "cat /tmp/go; tail /dev/zero"]);
    bundle.config["linux"]["resources"]["memory"] = json!({"limit": 16 << 20});
    nix::unistd::mkfifo(&bundle.root().join("tmp/go"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut container = bundle.create(Stdio::Null).unwrap();
    let mut watch = container.oom_watch().unwrap();
    container.start().unwrap();
    assert_eq!(watch.take().unwrap(), 0);
    std::fs::write(bundle.root().join("tmp/go"), "go").unwrap();
    // The unified tree also wakes for a limit that is reached, before anything is killed.
    let mut killed = 0;
    while killed == 0 {
        let mut poll = [nix::poll::PollFd::new(std::os::fd::AsFd::as_fd(&watch), nix::poll::PollFlags::POLLIN)];
        assert_eq!(nix::poll::poll(&mut poll, 10_000u16).unwrap(), 1, "notice within ten seconds");
        killed = watch.take().unwrap();
    }
    wait(container.pid());
    container.delete(true).unwrap();
}

#[test]
fn deletion_kills_what_the_init_left_in_a_shared_pid_namespace() {
    let mut bundle = Bundle::new(&["sh", "-c", "sleep 1000 & exit 0"]);
    let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|ns| ns["type"] != "pid");
    let mut container = bundle.create(Stdio::Null).unwrap();
    container.start().unwrap();
    wait(container.pid());
    assert_eq!(container.pids().unwrap().len(), 1);
    container.delete(false).unwrap();
    assert!(bundle.leftovers().is_empty());
}

#[test]
fn usage_is_found_by_a_process_too() {
    let bundle = Bundle::new(&["sleep", "100"]);
    let mut container = bundle.create(Stdio::Null).unwrap();
    let gantry_runtime::Stats::V1(stats) = gantry_runtime::stats::of_process(container.pid()).unwrap() else { return };
    assert_eq!(stats.pids_current, 1);
    container.delete(true).unwrap();
    wait(container.pid());
}

#[test]
fn many_created_and_deleted_containers_leave_no_descriptor() {
    let bundle = Bundle::new(&["true"]);
    let count = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    bundle.output();
    let before = count();
    for _ in 0..10 {
        bundle.output();
    }
    assert_eq!(count(), before);
}

#[test]
fn a_root_without_devices_still_has_null_streams() {
    let mut bundle = Bundle::new(&["sh", "-c", "cat; echo x >&2"]);
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    mounts.retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev"));
    // A bound /dev gets no device nodes.
    let place = bundle.root().join("dev");
    bundle.config["mounts"]
        .as_array_mut()
        .unwrap()
        .push(json!({"destination": "/dev", "source": place, "options": ["bind"]}));
    let mut container = bundle.create(Stdio::Null).unwrap();
    container.start().unwrap();
    assert_eq!(wait(container.pid()), 0);
    container.delete(false).unwrap();
}
