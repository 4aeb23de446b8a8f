//! The same bundle under runc and under `gantry-runtime`: the process finds the same surroundings.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::collections::BTreeSet;
use std::process::Command;

use common::Bundle;
use serde_json::json;

const SECTIONS: &str = "echo == mounts; cat /proc/self/mountinfo | cut -d' ' -f5-; echo == dev; \
    cd /dev; for f in *; do stat -c '%n %A %u %g %t %T %N' $f; done; echo == status; \
    grep -E '^(Cap|NoNew|Seccomp:|Groups|Uid|Gid|Umask)' /proc/self/status; echo == limits; ulimit -Hn; ulimit -Sn; \
    echo == names; hostname; pwd; env | sort; id; echo == sys; cat /proc/sys/net/ipv4/ip_forward; ls /proc/self/fd | wc -l; \
    ip addr | grep -c LOOPBACK,UP; cat /proc/self/oom_score_adj; cat /proc/self/cgroup; ls -a /tmp; ls /sys/firmware";

fn run(program: &str, bundle: &Bundle) -> String {
    let state = bundle.directory.path().join("oracle-state");
    let output = Command::new(program)
        .arg("--root")
        .arg(state)
        .args(["run", &bundle.id])
        .current_dir(bundle.directory.path())
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Lines without what differs from run to run or is a matter of taste: mount numbers, what covers masked paths (the
/// host's null here, the container's there), whether the tmpfs that holds the cgroup views is read-only (it is here).
fn normal(bundle: &Bundle, output: &str) -> BTreeSet<String> {
    let masked = bundle.config["linux"]["maskedPaths"].as_array().unwrap().iter().map(|path| path.as_str().unwrap());
    let masked = masked.chain(["/sys/fs/cgroup"]).collect::<Vec<_>>();
    let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let line = |line: &str| {
        let mut words = words(line);
        words.retain(|word| !word.starts_with("master:") && !word.starts_with("shared:"));
        words.join(" ").replace(",inode64", "").replace(",relatime", "").replace("cgroup systemd", "cgroup cgroup")
    };
    output.lines().filter(|line| !masked.iter().any(|path| line.starts_with(&format!("{path} ")))).map(line).collect()
}

#[test]
fn a_process_finds_under_us_what_it_finds_under_runc() {
    if Command::new("runc").arg("--version").output().is_err() {
        eprintln!("skipped: no runc to compare with");
        return;
    }
    let mut bundle = Bundle::new(&["sh", "-c", SECTIONS]);
    bundle.config["ociVersion"] = json!("1.0.2");
    bundle.config["process"]["user"] = json!({"uid": 0, "gid": 0, "additionalGids": [5, 7]});
    bundle.config["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1"});
    bundle.config["process"]["oomScoreAdj"] = json!(100);
    bundle.config["linux"]["devices"] =
        json!([{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o640, "uid": 1, "gid": 2}]);
    bundle.config["linux"]["seccomp"] =
        json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["ptrace"], "action": "SCMP_ACT_ERRNO"}]});
    bundle.config["mounts"].as_array_mut().unwrap().push(json!(
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]}
    ));
    bundle.spec().unwrap();
    let (theirs, ours) =
        (normal(&bundle, &run("runc", &bundle)), normal(&bundle, &run(env!("CARGO_BIN_EXE_gantry-runtime"), &bundle)));
    let only = |a: &BTreeSet<String>, b: &BTreeSet<String>| a.difference(b).cloned().collect::<Vec<_>>().join("\n");
    assert!(ours == theirs, "only under runc:\n{}\n\nonly under us:\n{}", only(&theirs, &ours), only(&ours, &theirs));
}
