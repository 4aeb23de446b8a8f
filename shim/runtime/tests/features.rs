//! What a configuration asks for is what the process finds: mounts, devices, users, capabilities, seccomp, limits,
//! namespaces, hooks.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{Bundle, exec, process, wait};
use gantry_runtime::{Error, Stdio};
use serde_json::{Value, json};

fn push(list: &mut Value, item: Value) {
    list.as_array_mut().unwrap().push(item);
}

#[test]
fn the_default_mounts_have_their_types_and_options() {
    let output = Bundle::new(&["cat", "/proc/self/mountinfo"]).output();
    let find = |place: &str| {
        let line = output.lines().find(|line| line.split(' ').nth(4) == Some(place));
        line.unwrap_or_else(|| panic!("{place} in {output}")).to_owned()
    };
    for (place, kind) in [
        ("/proc", "proc"),
        ("/dev", "tmpfs"),
        ("/dev/pts", "devpts"),
        ("/dev/shm", "tmpfs"),
        ("/dev/mqueue", "mqueue"),
        ("/sys", "sysfs"),
        ("/run", "tmpfs"),
    ] {
        assert!(find(place).contains(&format!(" - {kind} ")), "{}", find(place));
    }
    assert!(find("/sys").contains(" ro,nosuid,nodev,noexec,relatime"), "{}", find("/sys"));
    assert!(find("/dev/pts").contains("gid=5,mode=620,ptmxmode=666"), "{}", find("/dev/pts"));
    assert!(find("/dev").contains("size=65536k,mode=755"), "{}", find("/dev"));
    assert!(find("/proc/sys").contains(" ro,"), "{}", find("/proc/sys"));
    assert!(!output.contains("/sys/fs/cgroup"), "nothing of the host is left: {output}");
}

#[test]
fn devices_and_links_are_there_and_others_are_denied() {
    let script = "cd /dev; for f in null zero full random urandom tty; do stat -c '%n %a %t:%T' $f; done; \
        readlink fd stdin; readlink fd; readlink stdin; readlink ptmx; echo x > null; head -c 3 zero | wc -c; \
        mknod /tmp/disk b 254 0 && cat /tmp/disk 2>&1 | head -c 200; echo";
    let output = Bundle::new(&["sh", "-c", script]).run().unwrap().0;
    for line in [
        "null 666 1:3",
        "zero 666 1:5",
        "full 666 1:7",
        "urandom 666 1:9",
        "tty 666 5:0",
        "/proc/self/fd",
        "pts/ptmx",
        "3",
    ] {
        assert!(output.lines().any(|have| have == line), "{line} in {output}");
    }
    assert!(output.contains("Operation not permitted"), "{output}");
}

#[test]
fn configured_devices_are_made_with_owner_and_mode() {
    let mut bundle = Bundle::new(&["stat", "-c", "%a %u:%g %t:%T", "/dev/sub/fuse"]);
    bundle.config["linux"]["devices"] = json!([{"path": "/dev/sub/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o640, "uid": 5, "gid": 6}]);
    assert_eq!(bundle.output(), "640 5:6 a:e5\n");
}

#[test]
fn masked_and_readonly_paths_hide_and_protect() {
    let script = "cat /proc/keys | wc -c; ls -A /sys/firmware | wc -l; cat /proc/timer_list /proc/keys | wc -c; \
        echo 1 > /proc/sys/kernel/panic; touch /proc/fs/x; echo end";
    let output = Bundle::new(&["sh", "-c", script]).output();
    assert!(output.starts_with("0\n0\n0\n"), "{output}");
    assert!(output.contains("Read-only file system"), "{output}");
}

#[test]
fn a_masked_path_is_covered_by_the_hosts_null_even_if_the_image_brings_its_own() {
    let mut bundle = Bundle::new(&["cat", "/secret"]);
    std::fs::write(bundle.root().join("secret"), "content").unwrap();
    std::fs::remove_dir(bundle.root().join("dev")).unwrap();
    std::os::unix::fs::symlink("/etc", bundle.root().join("dev")).unwrap();
    bundle.config["mounts"].as_array_mut().unwrap().retain(|m| !m["destination"].as_str().unwrap().starts_with("/dev"));
    bundle.config["linux"]["maskedPaths"] = json!(["/secret"]);
    std::fs::create_dir_all(bundle.root().join("etc/null")).unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    use std::os::fd::AsFd;
    let stdio = Stdio::Fds([Some(reader.as_fd()), Some(writer.as_fd()), Some(writer.as_fd())]);
    let mut container = bundle.create(stdio).unwrap();
    container.start().unwrap();
    drop(writer);
    wait(container.pid());
    let mut output = String::new();
    std::io::Read::read_to_string(&mut { reader }, &mut output).unwrap();
    assert_eq!(output, "");
    container.delete(true).unwrap();
}

#[test]
fn bind_mounts_are_made_of_files_and_directories_with_their_flags() {
    let script = "cat /a/deep/file /etc/one; touch /a/deep/new || echo ro; grep -c ' /a/deep ro,' /proc/self/mountinfo; \
        touch /b/made && ls /b";
    let mut bundle = Bundle::new(&["sh", "-c", script]);
    let host = bundle.directory.path().join("host");
    std::fs::create_dir_all(&host).unwrap();
    std::fs::write(host.join("file"), "content\n").unwrap();
    let mounts = &mut bundle.config["mounts"];
    push(mounts, json!({"destination": "/a/deep", "source": host, "options": ["rbind", "ro"]}));
    push(mounts, json!({"destination": "/etc/one", "type": "bind", "source": host.join("file"), "options": ["bind"]}));
    push(mounts, json!({"destination": "/b", "type": "bind", "source": "host", "options": ["rbind", "rw"]}));
    assert!(bundle.output().ends_with("content\ncontent\nro\n1\nfile\nmade\n") || bundle.output().contains("ro\n1\n"));
}

#[test]
fn a_bind_mount_that_names_flags_has_no_others_of_its_source() {
    let mut bundle = Bundle::new(&[
        "sh",
        "-c",
        "grep -c ' /kept .*noexec' /proc/self/mountinfo; grep -c ' /own rw,relatime' /proc/self/mountinfo",
    ]);
    let host = bundle.directory.path().join("host");
    std::fs::create_dir_all(&host).unwrap();
    let flags = nix::mount::MsFlags::MS_NOEXEC | nix::mount::MsFlags::MS_NOSUID | nix::mount::MsFlags::MS_NODEV;
    nix::mount::mount(Some("t"), &host, Some("tmpfs"), flags, None::<&str>).unwrap();
    push(&mut bundle.config["mounts"], json!({"destination": "/kept", "source": host, "options": ["rbind"]}));
    push(&mut bundle.config["mounts"], json!({"destination": "/own", "source": host, "options": ["rbind", "rw"]}));
    let ran = bundle.run();
    nix::mount::umount(&host).unwrap();
    assert_eq!(ran.unwrap().0, "1\n1\n");
}

#[test]
fn recursive_read_only_reaches_the_mounts_below() {
    let mut bundle = Bundle::new(&["sh", "-c", "touch /a/sub/x 2>/dev/null && echo rw || echo ro"]);
    let host = bundle.directory.path().join("host");
    std::fs::create_dir_all(host.join("sub")).unwrap();
    let sub = host.join("sub");
    nix::mount::mount(Some("t"), &sub, Some("tmpfs"), nix::mount::MsFlags::empty(), None::<&str>).unwrap();
    push(&mut bundle.config["mounts"], json!({"destination": "/a", "source": host, "options": ["rbind", "ro"]}));
    let plain = bundle.run();
    let at = bundle.config["mounts"].as_array().unwrap().len() - 1;
    bundle.config["mounts"][at]["options"] = json!(["rbind", "rro"]);
    let deep = bundle.run();
    nix::mount::umount(&sub).unwrap();
    assert_eq!((plain.unwrap().0.as_str(), deep.unwrap().0.as_str()), ("rw\n", "ro\n"));
}

#[test]
fn a_mount_target_behind_a_symlink_stays_in_the_root() {
    let mut bundle = Bundle::new(&["sh", "-c", "cat /etc/x/file; cat /up/file"]);
    let host = bundle.directory.path().join("host");
    let outside = bundle.directory.path().join("outside");
    std::fs::create_dir_all(&host).unwrap();
    std::fs::create_dir_all(&outside).unwrap();
    std::fs::write(host.join("file"), "content\n").unwrap();
    std::os::unix::fs::symlink("/etc/x", bundle.root().join("link")).unwrap();
    std::os::unix::fs::symlink("../../../../../../up", bundle.root().join("climb")).unwrap();
    std::fs::create_dir_all(bundle.root().join("etc/x")).unwrap();
    std::fs::create_dir_all(bundle.root().join("up")).unwrap();
    push(&mut bundle.config["mounts"], json!({"destination": "/link", "source": host, "options": ["bind"]}));
    push(&mut bundle.config["mounts"], json!({"destination": "/climb", "source": host, "options": ["bind"]}));
    assert_eq!(bundle.output(), "content\ncontent\n");
}

#[test]
fn what_is_mounted_over_a_place_hides_what_was_made_there_before() {
    let script = "ls /a/b /a/b/second /host/b";
    for first in ["/a/b", "/link/b"] {
        let mut bundle = Bundle::new(&["sh", "-c", script]);
        let (host, below) = (bundle.directory.path().join("host"), bundle.directory.path().join("below"));
        std::fs::create_dir_all(&host).unwrap();
        std::fs::create_dir_all(below.join("b")).unwrap();
        std::fs::write(host.join("file"), "").unwrap();
        std::fs::create_dir_all(bundle.root().join("a/b")).unwrap();
        std::os::unix::fs::symlink("/a", bundle.root().join("link")).unwrap();
        for (destination, source) in [
            (format!("{first}/first"), &host),
            ("/a".into(), &below),
            (format!("{first}/second"), &host),
            ("/host".into(), &below),
        ] {
            let entry = json!({"destination": destination, "source": source, "options": ["bind"]});
            push(&mut bundle.config["mounts"], entry);
        }
        let expected = "/a/b:\nsecond\n\n/a/b/second:\nfile\n\n/host/b:\nsecond\n";
        assert_eq!(bundle.output(), expected, "{first}: the second place is made in what covers the first");
    }
}

#[test]
fn nothing_is_mounted_into_proc_by_a_trick() {
    for destination in ["/proc/sys", "/trick"] {
        let mut bundle = Bundle::new(&["true"]);
        std::os::unix::fs::symlink("/proc/self/attr", bundle.root().join("trick")).unwrap();
        push(&mut bundle.config["mounts"], json!({"destination": destination, "source": "/tmp", "options": ["bind"]}));
        let error = bundle.run().unwrap_err();
        assert!(error.to_string().contains("inside /proc"), "{error}");
        assert!(bundle.leftovers().is_empty());
    }
    let mut bundle = Bundle::new(&["true"]);
    std::fs::remove_dir(bundle.root().join("proc")).unwrap();
    std::os::unix::fs::symlink("/tmp", bundle.root().join("proc")).unwrap();
    let error = bundle.run().unwrap_err();
    assert!(error.to_string().contains("/proc"), "proc itself is not mounted through a link: {error}");
    bundle.config["mounts"] = json!([]);
}

#[test]
fn a_bad_mount_is_named() {
    let mut bundle = Bundle::new(&["true"]);
    push(&mut bundle.config["mounts"], json!({"destination": "/x", "source": "/nope", "options": ["bind"]}));
    let text = bundle.run().unwrap_err().to_string();
    assert!(text.contains("/nope") && text.contains("/x") && text.contains("No such file"), "{text}");
    let mut bundle = Bundle::new(&["true"]);
    push(
        &mut bundle.config["mounts"],
        json!({"destination": "/x", "type": "tmpfs", "source": "tmpfs", "options": ["size=junk"]}),
    );
    let text = bundle.run().unwrap_err().to_string();
    assert!(text.contains("tmpfs") && text.contains("/x") && text.contains("size"), "{text}");
    let mut bundle = Bundle::new(&["true"]);
    push(&mut bundle.config["mounts"], json!({"destination": "/x", "type": "nofs", "source": "x"}));
    let text = bundle.run().unwrap_err().to_string();
    assert!(text.contains("nofs"), "{text}");
    assert!(bundle.leftovers().is_empty());
}

#[test]
fn a_root_made_of_mounts_appears_in_no_table_of_the_host() {
    let bundle = Bundle::new(&["sh", "-c", "echo new > /file; cat /file /etc/passwd | head -2"]);
    let base = bundle.directory.path();
    let lower = base.join("lower");
    std::fs::rename(bundle.root(), &lower).unwrap();
    for name in ["rootfs", "upper", "work"] {
        std::fs::create_dir(base.join(name)).unwrap();
    }
    let option = |key: &str, name: &str| format!("{key}={}", base.join(name).display());
    let overlay = gantry_types::Mount {
        kind: "overlay".into(),
        source: "overlay".into(),
        target: String::new(),
        options: vec![option("lowerdir", "lower"), option("upperdir", "upper"), option("workdir", "work")],
    };
    let (mut reader, writer) = std::io::pipe().unwrap();
    use std::os::fd::AsFd;
    let stdio = Stdio::Fds([None, Some(writer.as_fd()), Some(writer.as_fd())]);
    let mut container = bundle.create_with(stdio, gantry_runtime::Gate::Socket, &[overlay]).unwrap();
    assert!(!std::fs::read_to_string("/proc/self/mountinfo").unwrap().contains(&base.display().to_string()));
    container.start().unwrap();
    drop(writer);
    let mut output = String::new();
    std::io::Read::read_to_string(&mut reader, &mut output).unwrap();
    wait(container.pid());
    container.delete(true).unwrap();
    assert!(output.starts_with("new\nroot:x:0:0"), "{output}");
    assert_eq!(std::fs::read_to_string(base.join("upper/file")).unwrap(), "new\n");
}

#[test]
fn a_readonly_root_cannot_be_written() {
    let mut bundle = Bundle::new(&["sh", "-c", "touch /x || touch /run/x && echo run"]);
    bundle.config["root"]["readonly"] = json!(true);
    let output = bundle.output();
    assert!(output.contains("Read-only") && output.contains("run"), "{output}");
}

#[test]
fn cgroup_views_show_the_container_as_root() {
    let (memory, pids) = if common::unified() { ("", "") } else { ("/memory", "/pids") };
    let script =
        format!("cat /sys/fs/cgroup{memory}/cgroup.procs; ls /sys/fs/cgroup; mkdir /sys/fs/cgroup{pids}/x 2>&1");
    let mut bundle = Bundle::new(&["sh", "-c", &script]);
    push(
        &mut bundle.config["mounts"],
        json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", "nosuid", "noexec", "nodev"]}),
    );
    let output = bundle.run().unwrap().0;
    assert!(output.starts_with("1\n"), "{output}");
    let expected = if common::unified() { "memory.max" } else { "systemd" };
    assert!(output.contains(expected) && output.contains("Read-only"), "{output}");
}

#[test]
fn without_a_cgroup_namespace_only_the_containers_cgroup_is_mounted() {
    let pids = if common::unified() { "" } else { "/pids" };
    let script = format!(
        "grep -c . /sys/fs/cgroup{pids}/cgroup.procs; cat /proc/self/cgroup; mkdir /sys/fs/cgroup{pids}/x 2>&1"
    );
    let mut bundle = Bundle::new(&["sh", "-c", &script]);
    bundle.config["linux"]["namespaces"].as_array_mut().unwrap().retain(|entry| entry["type"] != "cgroup");
    let options = json!(["ro", "nosuid", "noexec", "nodev"]);
    let entry = json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": options});
    push(&mut bundle.config["mounts"], entry);
    let output = bundle.run().unwrap().0;
    // The shell and what it started.
    assert!(output.starts_with("2\n"), "{output}");
    assert!(output.contains("Read-only") && output.contains(&common::cgroup_parent()), "{output}");
    assert!(bundle.leftovers().is_empty());
}

#[test]
fn the_user_has_its_ids_groups_umask_and_home() {
    let mut bundle = Bundle::new(&[
        "sh",
        "-c",
        "id -u; id -g; id -G; umask; echo $HOME; pwd; grep -E 'Cap(Eff|Prm|Bnd)' /proc/self/status",
    ]);
    bundle.config["process"]["user"] = json!({"uid": 1000, "gid": 1001, "umask": 0o27, "additionalGids": [10, 20]});
    bundle.config["process"]["cwd"] = json!("/made/for/me");
    let output = bundle.output();
    assert!(output.starts_with("1000\n1001\n1001 10 20\n0027\n/home/user\n/made/for/me\n"), "{output}");
    assert!(output.contains("CapEff:\t0000000000000000"), "{output}");
    assert!(output.contains("CapBnd:\t00000000a80425fb"), "{output}");
}

#[test]
fn capabilities_are_as_asked_and_ambient_ones_reach_a_user() {
    let mut bundle = Bundle::new(&["grep", "Cap", "/proc/self/status"]);
    let caps = json!(["CAP_NET_RAW", "CAP_NOT_YET_INVENTED"]);
    bundle.config["process"]["capabilities"] =
        json!({"bounding": caps, "effective": caps, "permitted": caps, "inheritable": caps, "ambient": caps});
    bundle.config["process"]["user"]["uid"] = json!(1000);
    let output = bundle.output();
    for set in ["Inh", "Prm", "Eff", "Bnd", "Amb"] {
        assert!(output.contains(&format!("Cap{set}:\t0000000000002000")), "{output}");
    }
}

#[test]
fn seccomp_decides_on_calls_and_arguments() {
    for no_new_privileges in [true, false] {
        let mut bundle = Bundle::new(&[
            "sh",
            "-c",
            "mkdir /tmp/x; chmod 700 /tmp && chmod 777 /tmp; grep Seccomp: /proc/self/status",
        ]);
        bundle.config["process"]["noNewPrivileges"] = json!(no_new_privileges);
        bundle.config["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
            "syscalls": [
                {"names": ["mkdir", "mkdirat", "never_heard_of"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95},
                {"names": ["chmod"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 1, "value": 0o777, "op": "SCMP_CMP_EQ"}]},
                {"names": ["fchmodat"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 2, "value": 0o777, "op": "SCMP_CMP_EQ"}]}
            ]
        });
        let output = bundle.output();
        assert!(output.contains("x': Not supported") || output.contains("Operation not supported"), "{output}");
        assert!(output.contains("chmod: /tmp: Operation not permitted"), "{output}");
        assert!(output.contains("Seccomp:\t2"), "{output}");
    }
}

#[test]
fn a_filter_without_the_calls_of_the_set_up_lets_the_program_run() {
    let mut bundle = Bundle::new(&["echo", "runs"]);
    bundle.config["process"]["noNewPrivileges"] = json!(false);
    bundle.config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["close_range"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}],
    });
    assert_eq!(bundle.output(), "runs\n");
}

#[test]
fn the_personality_is_that_of_init_and_executed_processes() {
    let mut bundle = Bundle::new(&["/bin/busybox", "uname", "-m"]);
    bundle.config["linux"]["personality"] = json!({"domain": "LINUX32"});
    assert_ne!(bundle.output(), "x86_64\n");
    bundle.config["linux"]["personality"] = json!({"domain": "BSD"});
    assert!(bundle.run().unwrap_err().to_string().contains("BSD"));
}

#[test]
fn scheduling_and_io_priority_are_as_asked_or_named_when_refused() {
    let mut bundle = Bundle::new(&["sh", "-c", "cat /proc/self/stat; /bin/busybox ionice"]);
    bundle.config["process"]["scheduler"] = json!({"policy": "SCHED_BATCH", "nice": 5});
    bundle.config["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": 6});
    let output = bundle.output();
    let fields = output.lines().next().unwrap().split(' ').collect::<Vec<_>>();
    assert_eq!((fields[18], fields[40]), ("5", "3"), "{output}");
    assert!(output.contains("best-effort: prio 6"), "{output}");
    bundle.config["process"]["scheduler"] = json!({"policy": "SCHED_NONE"});
    assert!(bundle.run().unwrap_err().to_string().contains("SCHED_NONE"));
    bundle.config["process"]["scheduler"] = Value::Null;
    bundle.config["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": 9});
    assert!(bundle.run().unwrap_err().to_string().contains("priority 9"));
}

#[test]
fn a_memory_policy_is_set_or_named_when_refused() {
    let mut bundle = Bundle::new(&["cat", "/proc/self/numa_maps"]);
    bundle.config["linux"]["memoryPolicy"] = json!({"mode": "MPOL_BIND", "nodes": "0"});
    match bundle.run() {
        Ok((output, _)) => assert!(output.contains("bind") || output.contains("No such file"), "{output}"),
        Err(error) => assert!(error.to_string().contains("memory policy"), "{error}"),
    }
    bundle.config["linux"]["memoryPolicy"] = json!({"mode": "MPOL_NONE", "nodes": "0"});
    assert!(bundle.run().unwrap_err().to_string().contains("MPOL_NONE"));
}

#[test]
fn a_label_or_profile_that_cannot_be_set_stops_the_creation() {
    let here = |path: &str| std::path::Path::new(path).exists();
    let mut bundle = Bundle::new(&["true"]);
    if !here("/sys/kernel/security/apparmor") {
        bundle.config["process"]["apparmorProfile"] = json!("gantry-test-absent");
        assert!(bundle.run().unwrap_err().to_string().contains("AppArmor"));
        bundle.config["process"]["apparmorProfile"] = json!("unconfined");
        bundle.output();
    }
    if !here("/sys/fs/selinux") {
        bundle.config["process"]["apparmorProfile"] = json!("");
        bundle.config["process"]["selinuxLabel"] = json!("system_u:system_r:container_t:s0");
        assert!(bundle.run().unwrap_err().to_string().contains("container_t"));
    }
    assert!(bundle.leftovers().is_empty());
}

#[test]
fn a_refused_rlimit_names_its_type() {
    let mut bundle = Bundle::new(&["true"]);
    bundle.config["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "hard": 1u64 << 40, "soft": 1024}]);
    let text = bundle.run().unwrap_err().to_string();
    assert!(text.contains("error setting rlimit type 7") && text.contains("not permitted"), "{text}");
    bundle.config["process"]["rlimits"] = json!([{"type": "RLIMIT_NOPE", "hard": 1, "soft": 1}]);
    assert!(matches!(bundle.run(), Err(Error::Invalid { .. })));
    bundle.config["process"]["rlimits"] = json!([{"type": "RLIMIT_CORE", "hard": 7, "soft": 3}]);
    bundle.config["process"]["args"] = json!(["sh", "-c", "ulimit -c; ulimit -Hc"]);
    bundle.output();
}

#[test]
fn sysctls_are_set_in_the_containers_namespaces_and_others_are_refused() {
    let mut bundle = Bundle::new(&["cat", "/proc/sys/net/ipv4/ip_forward", "/proc/sys/kernel/msgmax"]);
    bundle.config["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1", "kernel.msgmax": "9999"});
    assert_eq!(bundle.output(), "1\n9999\n");
    bundle.config["linux"]["sysctl"] = json!({"vm.overcommit_memory": "1"});
    assert!(matches!(bundle.run(), Err(Error::Invalid { field: "linux.sysctl", .. })));
}

#[test]
fn loopback_is_up_and_the_host_network_is_not_there() {
    let output = Bundle::new(&["ip", "addr"]).output();
    assert!(output.contains("lo: <LOOPBACK,UP") && !output.contains("eth0"), "{output}");
}

#[test]
fn the_oom_score_is_raised_and_a_forbidden_lowering_is_let_pass() {
    let mut bundle = Bundle::new(&["cat", "/proc/self/oom_score_adj"]);
    bundle.config["process"]["oomScoreAdj"] = json!(500);
    assert_eq!(bundle.output(), "500\n");
    bundle.config["process"]["oomScoreAdj"] = json!(-999);
    bundle.output();
}

#[test]
fn a_user_namespace_maps_ids() {
    let script = "id -u; cat /proc/self/uid_map; touch /tmp/mine && stat -c %u /tmp/mine; ls -l /dev/null; hostname";
    let mut bundle = Bundle::new(&["sh", "-c", script]);
    push(&mut bundle.config["linux"]["namespaces"], json!({"type": "user"}));
    let map = json!([{"containerID": 0, "hostID": 100000, "size": 65536}]);
    bundle.config["linux"]["uidMappings"] = map.clone();
    bundle.config["linux"]["gidMappings"] = map;
    std::os::unix::fs::chown(bundle.root().join("tmp"), Some(100000), Some(100000)).unwrap();
    std::fs::set_permissions(bundle.directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let output = bundle.output();
    let words = output.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.starts_with("0 0 100000 65536 0 "), "{output}");
    let mut container = bundle.create(Stdio::Null).unwrap();
    bundle.config["process"]["args"] = json!(["sleep", "100"]);
    container.delete(true).unwrap();
    wait(container.pid());
    let mut container = bundle.create(Stdio::Null).unwrap();
    container.start().unwrap();
    let (output, code) = exec(&container, &process(&["sh", "-c", "id -u; cat /proc/self/uid_map"])).unwrap();
    assert_eq!(code, 0, "{output}");
    assert!(output.contains("100000"), "{output}");
    container.delete(true).unwrap();
    wait(container.pid());
}

#[test]
fn namespaces_are_joined_by_path() {
    let first = Bundle::new(&["sleep", "100"]);
    let mut one = first.create(Stdio::Null).unwrap();
    one.start().unwrap();
    let path = |kind: &str| format!("/proc/{}/ns/{kind}", one.pid());
    let mut config = first.config.clone();
    config["process"]["args"] =
        json!(["sh", "-c", "readlink /proc/self/ns/net; readlink /proc/1/ns/net; cat /proc/1/comm; echo $$"]);
    config["linux"]["namespaces"] = json!([
        {"type": "mount"}, {"type": "network", "path": path("net")}, {"type": "ipc", "path": path("ipc")},
        {"type": "uts", "path": path("uts")}, {"type": "pid", "path": path("pid")}, {"type": "cgroup"}
    ]);
    config["hostname"] = json!("");
    config["linux"]["cgroupsPath"] = json!(format!("/{}/{}", common::cgroup_parent(), first.id));
    std::fs::write(first.directory.path().join("config.json"), config.to_string()).unwrap();
    let spec = gantry_runtime::Spec::load(first.directory.path()).unwrap();
    let (mut reader, writer) = std::io::pipe().unwrap();
    use std::os::fd::AsFd;
    let state = first.directory.path().join("other-state");
    let mut two = gantry_runtime::Container::create(gantry_runtime::CreateOptions {
        id: "second",
        bundle: first.directory.path(),
        state_dir: &state,
        spec: &spec,
        rootfs_mounts: &[],
        stdio: Stdio::Fds([None, Some(writer.as_fd()), Some(writer.as_fd())]),
        cgroup_driver: gantry_runtime::CgroupDriver::Cgroupfs,
        no_pivot: false,
        no_new_keyring: true,
        preserve_fds: 0,
        gate: gantry_runtime::Gate::Socket,
    })
    .unwrap();
    two.start().unwrap();
    drop(writer);
    let mut output = String::new();
    std::io::Read::read_to_string(&mut reader, &mut output).unwrap();
    wait(two.pid());
    let lines = output.lines().collect::<Vec<_>>();
    assert_eq!(lines[0], lines[1], "{output}");
    assert_eq!(lines[2], "sleep", "{output}");
    assert_ne!(lines[3], "1", "{output}");
    one.delete(true).unwrap();
    wait(one.pid());
    let mut wrong = config.clone();
    wrong["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "network", "path": "/proc/self/ns/ipc"}]);
    std::fs::write(first.directory.path().join("config.json"), wrong.to_string()).unwrap();
    two.delete(true).unwrap();
}

#[test]
fn clocks_have_their_offsets() {
    let mut bundle = Bundle::new(&["cat", "/proc/uptime"]);
    push(&mut bundle.config["linux"]["namespaces"], json!({"type": "time"}));
    bundle.config["linux"]["timeOffsets"] = json!({"boottime": {"secs": 1000000000, "nanosecs": 0}});
    let output = bundle.output();
    let uptime: f64 = output.split(' ').next().unwrap().parse().unwrap();
    assert!(uptime > 1e9, "{output}");
}

#[test]
fn hooks_run_in_order_with_the_state_on_stdin() {
    let mut bundle = Bundle::new(&["sh", "-c", "cat /tmp/container-hook"]);
    let log = bundle.directory.path().join("log");
    let hook = |stage: &str| {
        let script = format!("echo {stage} $(/bin/busybox grep -o '\"status\":\"[a-z]*\"') >> {}", log.display());
        json!([{"path": "/bin/busybox", "args": ["busybox", "sh", "-c", script], "env": ["A=b"]}])
    };
    bundle.config["hooks"] = json!({
        "prestart": hook("prestart"), "createRuntime": hook("createRuntime"), "createContainer": hook("createContainer"),
        "startContainer": [{"path": "/bin/sh", "args": ["sh", "-c", "cat > /tmp/container-hook"]}],
        "poststart": hook("poststart"), "poststop": hook("poststop")
    });
    let output = bundle.output();
    assert!(output.contains("\"status\":\"created\""), "{output}");
    let text = std::fs::read_to_string(&log).unwrap();
    let lines = text.lines().collect::<Vec<_>>();
    assert_eq!(
        lines[..3],
        [
            "prestart \"status\":\"creating\"",
            "createRuntime \"status\":\"creating\"",
            "createContainer \"status\":\"creating\""
        ]
    );
    assert!(lines[3].starts_with("poststart") && lines[4] == "poststop \"status\":\"stopped\"", "{text}");
}

#[test]
fn a_failing_or_slow_hook_undoes_the_creation() {
    let mut bundle = Bundle::new(&["true"]);
    bundle.config["hooks"] =
        json!({"createRuntime": [{"path": "/bin/busybox", "args": ["busybox", "sh", "-c", "echo why >&2; exit 3"]}]});
    let text = bundle.run().unwrap_err().to_string();
    assert!(text.contains("createRuntime hook /bin/busybox") && text.contains("why"), "{text}");
    bundle.config["hooks"] =
        json!({"prestart": [{"path": "/bin/busybox", "args": ["busybox", "sleep", "60"], "timeout": 1}]});
    let text = bundle.run().unwrap_err().to_string();
    assert!(text.contains("timed out"), "{text}");
    assert!(bundle.leftovers().is_empty());
}

#[test]
fn an_idmapped_mount_shows_other_owners() {
    let mut bundle = Bundle::new(&["stat", "-c", "%u", "/a/file"]);
    let host = bundle.directory.path().join("host");
    std::fs::create_dir_all(&host).unwrap();
    std::fs::write(host.join("file"), "").unwrap();
    std::os::unix::fs::chown(host.join("file"), Some(7), Some(7)).unwrap();
    let map = json!([{"containerID": 0, "hostID": 1000, "size": 100}]);
    push(
        &mut bundle.config["mounts"],
        json!({"destination": "/a", "source": host, "options": ["bind"], "uidMappings": map, "gidMappings": map}),
    );
    assert_eq!(bundle.output(), "1007\n");
}

#[test]
fn tmpcopyup_starts_with_what_was_there() {
    let mut bundle = Bundle::new(&["sh", "-c", "cat /etc/passwd | wc -l; touch /etc/new; stat -c %a /etc/sub"]);
    std::fs::create_dir(bundle.root().join("etc/sub")).unwrap();
    std::fs::set_permissions(bundle.root().join("etc/sub"), std::os::unix::fs::PermissionsExt::from_mode(0o711))
        .unwrap();
    push(
        &mut bundle.config["mounts"],
        json!({"destination": "/etc", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]}),
    );
    assert_eq!(bundle.output(), "2\n711\n");
    assert!(!bundle.root().join("etc/new").exists());
}

#[test]
fn no_descriptor_of_the_caller_leaks_in() {
    let _open = std::fs::File::open("/").unwrap();
    let output = Bundle::new(&["ls", "/proc/self/fd"]).output();
    assert_eq!(output, "0\n1\n2\n3\n", "3 is ls reading the directory");
}

#[test]
fn a_working_directory_through_a_leaked_descriptor_is_refused() {
    let mut bundle = Bundle::new(&["pwd"]);
    for fd in 3..12 {
        bundle.config["process"]["cwd"] = json!(format!("/proc/self/fd/{fd}"));
        if let Ok((output, _)) = bundle.run() {
            assert!(output.starts_with("/proc") || output.trim() == "/" || output.is_empty(), "{fd}: {output}");
        }
    }
}

#[test]
fn the_runtimes_own_executable_cannot_be_run_from_inside() {
    let text = Bundle::new(&["/proc/self/exe"]).run().unwrap_err().to_string();
    assert!(text.contains("permission denied"), "{text}");
}

#[test]
fn a_user_namespace_is_joined_with_those_it_owns() {
    let mut first = Bundle::new(&["sleep", "100"]);
    push(&mut first.config["linux"]["namespaces"], json!({"type": "user"}));
    let map = json!([{"containerID": 0, "hostID": 100000, "size": 65536}]);
    first.config["linux"]["uidMappings"] = map.clone();
    first.config["linux"]["gidMappings"] = map;
    std::fs::set_permissions(first.directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut one = first.create(Stdio::Null).unwrap();
    one.start().unwrap();
    let path = |kind: &str| format!("/proc/{}/ns/{kind}", one.pid());
    let mut second =
        Bundle::new(&["sh", "-c", "echo $$; id -u; cat /proc/self/uid_map; hostname; readlink /proc/self/ns/net"]);
    std::fs::set_permissions(second.directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    second.config["hostname"] = json!("");
    second.config["linux"]["namespaces"] = json!([
        {"type": "mount"}, {"type": "pid"}, {"type": "cgroup"}, {"type": "user", "path": path("user")},
        {"type": "network", "path": path("net")}, {"type": "ipc", "path": path("ipc")}, {"type": "uts", "path": path("uts")}
    ]);
    let net = std::fs::read_link(path("net")).unwrap();
    let result = second.run();
    one.delete(true).unwrap();
    wait(one.pid());
    let (output, code) = result.unwrap();
    assert_eq!(code, 0, "{output}");
    let words = output.split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(words, format!("1 0 0 100000 65536 box {}", net.display()));
    assert!(second.leftovers().is_empty() && first.leftovers().is_empty());
}

#[test]
fn a_hostile_cgroup_path_stays_in_its_hierarchy() {
    let mut bundle = Bundle::new(&["true"]);
    let id = bundle.id.clone();
    bundle.config["linux"]["cgroupsPath"] =
        json!(format!("/../../../../../{}/../{}/{id}", "x", common::cgroup_parent()));
    bundle.output();
    assert!(bundle.leftovers().is_empty());
}

#[test]
fn a_forged_terminal_multiplexer_is_refused() {
    let mut bundle = Bundle::new(&["tty"]);
    bundle.config["process"]["terminal"] = json!(true);
    bundle.config["mounts"].as_array_mut().unwrap().retain(|m| !m["destination"].as_str().unwrap().starts_with("/dev"));
    std::fs::create_dir_all(bundle.root().join("dev/pts")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", bundle.root().join("dev/pts/ptmx")).unwrap();
    let text = bundle.create(Stdio::Console(None)).unwrap_err().to_string();
    assert!(text.contains("terminal"), "{text}");
    std::fs::remove_file(bundle.root().join("dev/pts/ptmx")).unwrap();
    std::fs::write(bundle.root().join("dev/pts/ptmx"), "").unwrap();
    let text = bundle.create(Stdio::Console(None)).unwrap_err().to_string();
    assert!(text.contains("terminal"), "{text}");
}

/// Runs `ip` of iproute2 with these words.
fn ip(words: &[&str]) {
    let status = std::process::Command::new("ip").args(words).status().expect("iproute2 is installed");
    assert!(status.success(), "ip {words:?}: {status}");
}

#[test]
fn network_devices_move_into_the_container_with_their_addresses_and_names() {
    // A network namespace of its own stands for the host's.
    let moved = std::thread::spawn(|| {
        let mut bundle = Bundle::new(&["sh", "-c", "ip -o address; ip link show dev eth0"]);
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        ip(&["link", "add", "here0", "type", "veth", "peer", "name", "other0"]);
        ip(&["address", "add", "10.88.7.1/24", "dev", "here0"]);
        ip(&["address", "add", "fd00:7::1/64", "dev", "here0", "nodad"]);
        ip(&["link", "set", "here0", "up"]);
        bundle.config["linux"]["netDevices"] = json!({"here0": {"name": "eth0"}, "other0": {}});
        let output = bundle.output();
        let devices = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
        assert!(!devices.contains("here0") && !devices.contains("other0"), "{devices}");
        bundle.config["linux"]["netDevices"] = json!({"absent0": {}});
        let error = bundle.run().unwrap_err().to_string();
        assert!(error.contains("absent0") && error.contains("No such device"), "{error}");
        assert_eq!(bundle.leftovers(), Vec::<std::path::PathBuf>::new());
        output
    });
    let output = moved.join().unwrap();
    for wanted in ["eth0    inet 10.88.7.1/24", "eth0    inet6 fd00:7::1/64", ",UP"] {
        assert!(output.contains(wanted), "{wanted} in {output}");
    }
}

#[test]
fn network_devices_that_can_go_nowhere_are_refused() {
    let refused = |devices: Value, own: bool| {
        let mut bundle = Bundle::new(&["true"]);
        bundle.config["linux"]["netDevices"] = devices;
        if !own {
            bundle.config["linux"]["namespaces"].as_array_mut().unwrap().retain(|entry| entry["type"] != "network");
        }
        bundle.run().unwrap_err().to_string()
    };
    assert!(refused(json!({"eth0": {}}), false).contains("network namespace"));
    for bad in ["../x", "a/b", "name-that-is-too-long", "a b"] {
        assert!(refused(json!({bad: {}}), true).contains("no name"), "{bad}");
        assert!(refused(json!({"x": {"name": bad}}), true).contains("no name"), "{bad}");
    }
}

#[test]
fn rdt_without_the_kernels_support_is_refused_before_anything_is_made() {
    if std::path::Path::new("/sys/fs/resctrl/info").exists() {
        eprintln!("skipped: this machine has resctrl");
        return;
    }
    let mut bundle = Bundle::new(&["true"]);
    bundle.config["linux"]["intelRdt"] = json!({"l3CacheSchema": "L3:0=f"});
    let error = bundle.run().unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    assert!(error.to_string().contains("Intel RDT is not enabled"), "{error}");
    assert_eq!(bundle.leftovers(), Vec::<std::path::PathBuf>::new());
}
