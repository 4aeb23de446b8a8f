//! A process that holds a pod's namespaces and runs no program.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use common::{Bundle, wait};
use gantry_runtime::{CgroupDriver, Container, CreateOptions, Gate, Spec, Status, Stdio};
use serde_json::{Value, json};

/// A bundle that asks for namespaces and for nothing to run in them.
fn pod(linux: Value) -> Bundle {
    let mut bundle = Bundle::new(&["none"]);
    let cgroup = bundle.config["linux"]["cgroupsPath"].clone();
    let mut linux = linux;
    linux["cgroupsPath"] = cgroup;
    let named = linux.to_string().contains("uts");
    bundle.config = json!({ "ociVersion": "1.2.0", "hostname": if named { "pod" } else { "" }, "linux": linux });
    bundle
}

fn new(kinds: &[&str]) -> Value {
    kinds.iter().map(|kind| json!({ "type": kind })).collect()
}

fn hold(bundle: &Bundle) -> Container {
    fs::write(bundle.directory.path().join("config.json"), bundle.config.to_string()).unwrap();
    let spec = Spec::load_pod(bundle.directory.path()).unwrap();
    assert!(!spec.has_program());
    Container::hold(CreateOptions {
        id: &bundle.id,
        bundle: bundle.directory.path(),
        state_dir: &bundle.state_dir(),
        spec: &spec,
        rootfs_mounts: &[],
        stdio: Stdio::Null,
        cgroup_driver: CgroupDriver::Cgroupfs,
        no_pivot: false,
        no_new_keyring: false,
        preserve_fds: 0,
        gate: Gate::Socket,
    })
    .unwrap()
}

fn end(container: &mut Container, bundle: &Bundle) {
    container.kill(libc::SIGKILL, false).unwrap();
    assert_eq!(wait(container.pid()), 137);
    container.delete(false).unwrap();
    assert!(bundle.leftovers().is_empty(), "{:?}", bundle.leftovers());
}

fn namespace(pid: i32, name: &str) -> u64 {
    fs::metadata(format!("/proc/{pid}/ns/{name}")).unwrap().ino()
}

fn status(pid: i32, field: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field).map(str::to_owned));
    line.unwrap().trim().to_owned()
}

fn inside(pid: i32, what: &[&str], command: &str) -> String {
    let target = pid.to_string();
    let output = std::process::Command::new("nsenter")
        .args(["-t", &target])
        .args(what)
        .args(["sh", "-c", command])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn it_holds_the_namespaces_and_has_no_rights_no_files_and_no_descriptors() {
    let bundle = pod(json!({
        "namespaces": new(&["pid", "network", "ipc", "uts", "mount"]),
        "sysctl": { "net.ipv4.ip_unprivileged_port_start": "7", "kernel.shm_rmid_forced": "1" },
    }));
    let mut container = hold(&bundle);
    let pid = container.pid();
    assert_eq!(container.status(), Status::Created);
    for name in ["pid", "net", "ipc", "uts", "mnt"] {
        assert_ne!(namespace(pid, name), namespace(std::process::id() as i32, name), "{name}");
    }
    container.start().unwrap();
    assert_eq!(container.status(), Status::Running);
    assert_eq!(inside(pid, &["-u"], "hostname"), "pod");
    assert_eq!(inside(pid, &["-n"], "cat /proc/sys/net/ipv4/ip_unprivileged_port_start"), "7");
    assert_eq!(inside(pid, &["-i"], "cat /proc/sys/kernel/shm_rmid_forced"), "1");
    assert_eq!(fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(format!("/proc/{pid}/root/")).unwrap().count(), 0);
    assert_eq!((status(pid, "CapEff:"), status(pid, "CapBnd:")), ("0".repeat(16), "0".repeat(16)));
    assert_eq!((status(pid, "NoNewPrivs:"), status(pid, "Uid:")), ("1".into(), ["65535"; 4].join("\t")));
    assert_eq!(fs::read(format!("/proc/{pid}/cmdline")).unwrap(), b"/pause\0");
    assert_eq!(status(pid, "Name:"), "pause");
    end(&mut container, &bundle);
}

#[test]
fn orphans_of_its_pid_namespace_leave_no_zombies() {
    let bundle = pod(json!({ "namespaces": new(&["pid", "mount"]) }));
    let mut container = hold(&bundle);
    container.start().unwrap();
    inside(container.pid(), &["-p"], "for i in 1 2 3 4 5; do (true & ) ; done; sleep 0.1");
    let children = format!("/proc/{0}/task/{0}/children", container.pid());
    let left = fs::read_to_string(&children).unwrap();
    assert_eq!(left.trim(), "", "children of the holder");
    end(&mut container, &bundle);
}

#[test]
fn in_a_user_namespace_its_network_belongs_to_that() {
    let map = json!([{ "containerID": 0, "hostID": 200_000, "size": 65_536 }]);
    let bundle = pod(json!({
        "namespaces": new(&["user", "network", "ipc", "uts", "pid", "mount"]),
        "uidMappings": map, "gidMappings": map,
    }));
    let mut container = hold(&bundle);
    let pid = container.pid();
    assert_eq!(status(pid, "Uid:"), ["200000"; 4].join("\t"));
    container.start().unwrap();
    assert_eq!(inside(pid, &["-U", "-n"], "ip addr add 10.9.8.7/32 dev lo && ip -o -4 addr | wc -l"), "2");
    end(&mut container, &bundle);
}

#[test]
fn a_namespace_of_the_host_is_shared_and_one_given_by_path_is_joined() {
    let first = pod(json!({ "namespaces": new(&["network", "mount"]) }));
    let mut holder = hold(&first);
    let path = format!("/proc/{}/ns/net", holder.pid());
    let second = pod(json!({ "namespaces": [{ "type": "network", "path": path }, { "type": "mount" }] }));
    let mut joined = hold(&second);
    assert_eq!(namespace(joined.pid(), "net"), namespace(holder.pid(), "net"));
    assert_eq!(namespace(joined.pid(), "pid"), namespace(std::process::id() as i32, "pid"));
    joined.start().unwrap();
    end(&mut joined, &second);
    end(&mut holder, &first);
}

#[test]
fn what_was_held_is_cleared_away_by_its_state_alone() {
    let bundle = pod(json!({ "namespaces": new(&["pid", "mount"]) }));
    let mut container = hold(&bundle);
    container.start().unwrap();
    let pid = container.pid();
    drop(container);
    assert!(Path::new(&format!("/proc/{pid}")).exists());
    Container::purge(&bundle.state_dir(), &bundle.id).unwrap();
    assert_eq!(wait(pid), 137);
    assert!(bundle.leftovers().is_empty(), "{:?}", bundle.leftovers());
}

#[test]
fn a_pod_without_a_configuration_has_the_hosts_namespaces() {
    let directory = tempfile::tempdir().unwrap();
    let spec = Spec::load_pod(directory.path()).unwrap();
    assert_eq!(spec.linux.namespaces.len(), 1, "its mounts alone are its own");
}
