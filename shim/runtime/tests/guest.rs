//! What only a machine with cgroup v2, systemd or AppArmor can show. Run by `integration/vm/test` in a guest; without
//! what they need these tests are ignored, never passed.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio as Pipe};
use std::time::{Duration, Instant};

use common::{Bundle, exec, process, wait};
use gantry_runtime::{CgroupDriver, Container, CreateOptions, Gate, Resources, Stats, Stdio, stats};
use serde_json::{Value, json};

const CGROUPS: &str = "/sys/fs/cgroup";

/// The container's directory in the unified tree, as its first process sees itself from outside.
fn cgroup_of(pid: i32) -> PathBuf {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let path = text.lines().find_map(|line| line.strip_prefix("0::")).expect("a unified tree");
    Path::new(CGROUPS).join(path.trim_start_matches('/'))
}

fn value(directory: &Path, file: &str) -> String {
    let path = directory.join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path:?}: {error}")).trim().to_owned()
}

fn unified(stats: Stats) -> stats::V2 {
    match stats {
        Stats::V2(stats) => *stats,
        Stats::V1(_) => panic!("numbers of v1 in a guest with v2 alone"),
    }
}

fn within<T>(limit: Duration, what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(start.elapsed() < limit, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn resources() -> Value {
    json!({
        "devices": [{"allow": false, "access": "rwm"}],
        "memory": {"limit": 64 << 20, "reservation": 32 << 20, "swap": 96 << 20},
        "cpu": {"shares": 512, "quota": 50_000, "period": 100_000, "cpus": "0"},
        "pids": {"limit": 50},
        "blockIO": {"weight": 200},
        "unified": {"memory.high": "50331648", "cpu.idle": "0"}
    })
}

#[test]
#[ignore = "needs cgroup v2 with its controllers"]
fn every_limit_reaches_its_file_and_is_changed_and_measured() {
    let mut bundle = Bundle::new(&["sleep", "100"]);
    bundle.config["linux"]["resources"] = resources();
    let mut container = bundle.create(Stdio::Null).unwrap();
    container.start().unwrap();
    let directory = cgroup_of(container.pid());
    let expected = [
        ("memory.max", "67108864"),
        ("memory.low", "33554432"),
        ("memory.swap.max", "33554432"),
        ("memory.high", "50331648"),
        ("cpu.max", "50000 100000"),
        ("cpuset.cpus", "0"),
        ("pids.max", "50"),
    ];
    for (file, wanted) in expected {
        // A kernel without swap accounting has no such file.
        if directory.join(file).exists() {
            assert_eq!(value(&directory, file), wanted, "{file}");
        }
    }
    let weight: u64 = value(&directory, "cpu.weight").parse().unwrap();
    assert!((15..=60).contains(&weight), "512 shares are below the default weight of 100: {weight}");
    let measured = unified(container.stats().unwrap());
    assert_eq!((measured.memory_limit, measured.pids_limit, measured.pids_current), (64 << 20, 50, 1));
    assert!(measured.cpu_stat.iter().any(|(name, _)| name == "usage_usec"));
    assert!(measured.memory_stat.iter().any(|(name, _)| name == "anon"));
    let update = Resources::parse(br#"{"memory": {"limit": 33554432, "swap": -1}, "pids": {"limit": -1}}"#).unwrap();
    container.update(&update).unwrap();
    let measured = unified(container.stats().unwrap());
    assert_eq!((measured.memory_limit, measured.pids_limit), (32 << 20, u64::MAX));
    container.delete(true).unwrap();
    wait(container.pid());
    assert!(bundle.leftovers().is_empty(), "{:?}", bundle.leftovers());
}

#[test]
#[ignore = "needs cgroup v2 with its controllers"]
fn a_program_of_the_kernel_decides_on_devices() {
    let mut bundle = Bundle::new(&["sleep", "100"]);
    bundle.config["linux"]["resources"]["devices"] = json!([
        {"allow": false, "access": "rwm"},
        {"allow": true, "type": "c", "major": 1, "minor": 7, "access": "rw"}
    ]);
    bundle.config["process"] = common::process_json(&["sleep", "100"]);
    let mut container = bundle.create(Stdio::Null).unwrap();
    container.start().unwrap();
    let probe = "cat /dev/null && echo null; mknod /tmp/k c 1 11; cat /tmp/k && echo kmsg; \
                 mknod /tmp/f c 1 7; echo x > /tmp/f; echo full $?";
    let (output, _) = exec(&container, &process(&["sh", "-c", probe])).unwrap();
    assert!(output.contains("null\n"), "{output}");
    assert!(output.contains("/tmp/k': Operation not permitted"), "only the default devices may be read: {output}");
    assert!(output.contains("full 1"), "{output}");
    container.delete(true).unwrap();
    wait(container.pid());
}

#[test]
#[ignore = "needs cgroup v2 with its controllers"]
fn a_killed_container_takes_all_its_processes_with_it_though_they_fork() {
    let mut bundle = Bundle::new(&["sh", "-c", "while :; do sleep 1000 & sleep 0.01; done"]);
    bundle.config["linux"]["resources"]["pids"] = json!({"limit": 60});
    let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != "pid");
    let mut container = bundle.create(Stdio::Null).unwrap();
    container.start().unwrap();
    within(Duration::from_secs(60), "children", || (container.pids().unwrap().len() > 10).then_some(()));
    container.kill(libc::SIGKILL, true).unwrap();
    wait(container.pid());
    within(Duration::from_secs(20), "the end of all", || container.pids().unwrap().is_empty().then_some(()));
    container.delete(false).unwrap();
    assert!(bundle.leftovers().is_empty(), "{:?}", bundle.leftovers());
}

#[test]
#[ignore = "needs cgroup v2 with its controllers"]
fn a_frozen_container_does_nothing_until_thawed() {
    let bundle = Bundle::new(&["sh", "-c", "while :; do date >> /tmp/ticks; sleep 0.05; done"]);
    let mut container = bundle.create(Stdio::Null).unwrap();
    container.start().unwrap();
    let ticks = || std::fs::metadata(bundle.root().join("tmp/ticks")).map_or(0, |data| data.len());
    within(Duration::from_secs(30), "a first tick", || (ticks() > 0).then_some(()));
    container.pause().unwrap();
    assert_eq!(value(&cgroup_of(container.pid()), "cgroup.freeze"), "1");
    let before = ticks();
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(ticks(), before);
    container.resume().unwrap();
    within(Duration::from_secs(30), "another tick", || (ticks() > before).then_some(()));
    container.delete(true).unwrap();
    wait(container.pid());
}

/// A container below a systemd scope.
fn create_in_scope(bundle: &Bundle, cgroups_path: &str) -> Container {
    let directory = bundle.directory.path();
    let mut config = bundle.config.clone();
    config["linux"]["cgroupsPath"] = json!(cgroups_path);
    std::fs::write(directory.join("config.json"), config.to_string()).unwrap();
    let spec = gantry_runtime::Spec::load(directory).unwrap();
    let options = CreateOptions {
        id: &bundle.id,
        bundle: directory,
        state_dir: &bundle.state_dir(),
        spec: &spec,
        rootfs_mounts: &[],
        stdio: Stdio::Null,
        cgroup_driver: CgroupDriver::Systemd,
        no_pivot: false,
        no_new_keyring: false,
        preserve_fds: 0,
        gate: Gate::Socket,
    };
    Container::create(options).unwrap()
}

fn property(unit: &str, name: &str) -> String {
    let output = Command::new("systemctl").args(["show", "--value", "--property", name, unit]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
#[ignore = "needs systemd as the service manager"]
fn systemd_holds_the_scope_with_its_limits_and_forgets_it_after() {
    let mut bundle = Bundle::new(&["sleep", "100"]);
    bundle.config["linux"]["resources"] = resources();
    let unit = format!("gantry-{}.scope", bundle.id);
    let mut container = create_in_scope(&bundle, &format!("gantrytest-inner.slice:gantry:{}", bundle.id));
    container.start().unwrap();
    assert_eq!(property(&unit, "ActiveState"), "active");
    assert_eq!(property(&unit, "Slice"), "gantrytest-inner.slice");
    assert_eq!(property(&unit, "Delegate"), "yes");
    assert_eq!(property(&unit, "MemoryMax"), "67108864");
    assert_eq!(property(&unit, "TasksMax"), "50");
    assert_eq!(property(&unit, "CPUQuotaPerSecUSec"), "500ms");
    let directory = cgroup_of(container.pid());
    assert_eq!(directory, Path::new(CGROUPS).join("gantrytest.slice/gantrytest-inner.slice").join(&unit));
    assert_eq!(value(&directory, "memory.max"), "67108864");
    // A reload of systemd writes the properties again: they must be the same ones.
    assert!(Command::new("systemctl").arg("daemon-reload").status().unwrap().success());
    assert_eq!(value(&directory, "pids.max"), "50");
    let update = Resources::parse(br#"{"memory": {"limit": 33554432}, "pids": {"limit": 20}}"#).unwrap();
    container.update(&update).unwrap();
    assert_eq!((property(&unit, "MemoryMax").as_str(), property(&unit, "TasksMax").as_str()), ("33554432", "20"));
    let (output, code) = exec(&container, &process(&["cat", "/proc/self/cgroup"])).unwrap();
    assert_eq!((output.trim(), code), ("0::/", 0));
    container.pause().unwrap();
    assert_eq!(value(&directory, "cgroup.freeze"), "1");
    container.resume().unwrap();
    container.delete(true).unwrap();
    wait(container.pid());
    assert!(!directory.exists());
    assert_eq!(property(&unit, "LoadState"), "not-found");
    let _ = Command::new("systemctl").args(["stop", "gantrytest.slice"]).status();
}

#[test]
#[ignore = "needs systemd as the service manager"]
fn a_scope_whose_container_ended_is_purged_from_its_record() {
    let bundle = Bundle::new(&["true"]);
    let unit = format!("gantry-{}.scope", bundle.id);
    let mut container = create_in_scope(&bundle, &format!("system.slice:gantry:{}", bundle.id));
    container.start().unwrap();
    wait(container.pid());
    drop(container);
    Container::purge(&bundle.state_dir(), &bundle.id).unwrap();
    assert_eq!(property(&unit, "LoadState"), "not-found");
    // The name is free again.
    let mut again = create_in_scope(&bundle, &format!("system.slice:gantry:{}", bundle.id));
    again.start().unwrap();
    wait(again.pid());
    again.delete(true).unwrap();
}

/// Loads a profile for as long as it lives.
struct Profile(String);

impl Profile {
    fn load(name: &str, rules: &str) -> Profile {
        let text = format!("profile {name} flags=(attach_disconnected,mediate_deleted) {{\n{rules}\n}}\n");
        Profile::parser("--replace", &text);
        Profile(text)
    }

    fn parser(action: &str, text: &str) {
        let mut child =
            Command::new("apparmor_parser").args([action, "--skip-cache"]).stdin(Pipe::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "apparmor_parser {action}");
    }
}

impl Drop for Profile {
    fn drop(&mut self) {
        Profile::parser("--remove", &self.0);
    }
}

#[test]
#[ignore = "needs AppArmor"]
fn a_profile_confines_the_container_and_what_is_executed_in_it() {
    let name = "gantry-test-confined";
    let _profile = Profile::load(name, "  file,\n  capability,\n  signal,\n  umount,\n  deny /tmp/secret rw,");
    let script = "cat /proc/self/attr/current; echo x > /tmp/open && echo open; echo x > /tmp/secret; sleep 100";
    let mut bundle = Bundle::new(&["sh", "-c", script]);
    bundle.config["process"]["apparmorProfile"] = json!(name);
    let mut container = bundle.create(Stdio::Null).unwrap();
    container.start().unwrap();
    let mut confined = common::process_json(&["sh", "-c", script.trim_end_matches("; sleep 100")]);
    confined["apparmorProfile"] = json!(name);
    let confined = gantry_runtime::Process::parse(confined.to_string().as_bytes()).unwrap();
    let (output, _) = exec(&container, &confined).unwrap();
    assert!(output.starts_with(&format!("{name} (enforce)\n")), "{output}");
    assert!(output.contains("open\n") && output.contains("/tmp/secret: Permission denied"), "{output}");
    let outside = std::fs::read_to_string(format!("/proc/{}/attr/current", container.pid())).unwrap();
    assert_eq!(outside.trim(), format!("{name} (enforce)"));
    container.delete(true).unwrap();
    wait(container.pid());
    assert!(!bundle.root().join("tmp/secret").exists());
}

#[test]
#[ignore = "needs AppArmor"]
fn a_profile_that_is_not_loaded_stops_the_creation() {
    let mut bundle = Bundle::new(&["true"]);
    bundle.config["process"]["apparmorProfile"] = json!("gantry-test-absent");
    let error = bundle.run().unwrap_err().to_string();
    assert!(error.contains("gantry-test-absent"), "{error}");
    assert!(bundle.leftovers().is_empty());
}

#[test]
#[ignore = "needs cgroup v2 with its controllers"]
fn a_container_without_a_place_of_its_own_is_made_beside_its_maker() {
    let mut bundle = Bundle::new(&["sleep", "100"]);
    let linux = bundle.config["linux"].as_object_mut().unwrap();
    linux.remove("cgroupsPath");
    let mut container = bundle.create(Stdio::Null).unwrap();
    container.start().unwrap();
    let own = cgroup_of(std::process::id() as i32);
    assert_eq!(cgroup_of(container.pid()), own.parent().unwrap_or(Path::new(CGROUPS)).join(&bundle.id));
    container.delete(true).unwrap();
    wait(container.pid());
}
