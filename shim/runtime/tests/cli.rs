//! The command line, as callers of runc use it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::process::{Command, Output};

use common::Bundle;
use serde_json::{Value, json};

fn runtime(bundle: &Bundle, words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gantry-runtime"));
    let log = bundle.directory.path().join("log.json");
    command.arg("--root").arg(bundle.state_dir()).arg("--log").arg(log).args(["--log-format", "json"]);
    command.args(words).current_dir(bundle.directory.path()).output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A command whose container outlives it: its streams go nowhere, or the output would never end.
fn quiet(bundle: &Bundle, words: &[&str]) -> i32 {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gantry-runtime"));
    command.arg("--root").arg(bundle.state_dir()).args(words).current_dir(bundle.directory.path());
    let null = || std::process::Stdio::null();
    command.stdin(null()).stdout(null()).stderr(null()).status().unwrap().code().unwrap()
}

#[test]
fn run_returns_output_and_code() {
    let bundle = Bundle::new(&["sh", "-c", "echo out; echo err >&2; exit 9"]);
    bundle.spec().unwrap();
    let output = runtime(&bundle, &["run", &bundle.id]);
    assert_eq!((text(&output).as_str(), output.status.code()), ("out\n", Some(9)));
    assert_eq!(output.stderr, b"err\n");
    assert!(bundle.leftovers().is_empty());
}

#[test]
fn a_container_lives_across_commands() {
    let bundle = Bundle::new(&["sleep", "100"]);
    bundle.spec().unwrap();
    let id = bundle.id.as_str();
    assert_eq!(quiet(&bundle, &["create", "--bundle", ".", "--pid-file", "pid", id]), 0);
    let pid = std::fs::read_to_string(bundle.directory.path().join("pid")).unwrap();
    let state = || -> Value { serde_json::from_str(&text(&runtime(&bundle, &["state", id]))).unwrap() };
    assert_eq!((state()["status"].clone(), state()["pid"].to_string()), (json!("created"), pid.clone()));
    assert!(!runtime(&bundle, &["delete", id]).status.success());
    assert_eq!(quiet(&bundle, &["start", id]), 0);
    assert_eq!(state()["status"], "running");
    let output = runtime(
        &bundle,
        &["exec", "-e", "X=y", "--cwd", "/tmp", "-u", "7:8", id, "sh", "-c", "id -u; id -g; pwd; echo $X; exit 4"],
    );
    assert_eq!((text(&output).as_str(), output.status.code()), ("7\n8\n/tmp\ny\n", Some(4)));
    let output = runtime(&bundle, &["exec", "--tty", id, "tty"]);
    assert_eq!(text(&output), "/dev/pts/0\r\n");
    assert_eq!(text(&runtime(&bundle, &["ps", "-f", "json", id])).trim(), format!("[{pid}]"));
    assert!(text(&runtime(&bundle, &["list"])).contains(id));
    assert_eq!(text(&runtime(&bundle, &["list", "-q"])).trim(), id);
    assert!(runtime(&bundle, &["pause", id]).status.success());
    assert_eq!(state()["status"], "paused");
    assert!(runtime(&bundle, &["resume", id]).status.success());
    assert!(runtime(&bundle, &["update", "--memory", "64m", id]).status.success());
    let stats: Value = serde_json::from_str(&text(&runtime(&bundle, &["events", "--stats", id]))).unwrap();
    assert_eq!(stats["data"]["memory"]["usage"]["limit"], 64 << 20);
    assert!(runtime(&bundle, &["kill", id, "KILL"]).status.success());
    for _ in 0..100 {
        if state()["status"] == "stopped" {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert!(String::from_utf8_lossy(&runtime(&bundle, &["kill", id, "TERM"]).stderr).contains("container not running"));
    assert!(runtime(&bundle, &["delete", id]).status.success());
    assert!(runtime(&bundle, &["delete", "--force", id]).status.success(), "forced deletion of nothing is fine");
    assert!(!runtime(&bundle, &["state", id]).status.success());
    assert!(bundle.leftovers().is_empty());
}

#[test]
fn failures_are_in_the_log_as_callers_read_them() {
    let bundle = Bundle::new(&["nope"]);
    bundle.spec().unwrap();
    assert!(!runtime(&bundle, &["run", &bundle.id]).status.success());
    let log = std::fs::read_to_string(bundle.directory.path().join("log.json")).unwrap();
    let line: Value = serde_json::from_str(log.lines().next().unwrap()).unwrap();
    assert_eq!(line["level"], "error");
    assert!(line["msg"].as_str().unwrap().contains("executable file not found in $PATH"), "{line}");
}

#[test]
fn the_master_of_a_terminal_goes_to_the_console_socket() {
    let mut bundle = Bundle::new(&["tty"]);
    bundle.config["process"]["terminal"] = json!(true);
    bundle.spec().unwrap();
    let path = bundle.directory.path().join("console");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let id = bundle.id.as_str();
    assert_eq!(quiet(&bundle, &["create", "--console-socket", path.to_str().unwrap(), id]), 0);
    let (stream, _) = listener.accept().unwrap();
    let master = receive_fd(&stream);
    assert_eq!(quiet(&bundle, &["start", id]), 0);
    assert_eq!(common::read_console(master), "/dev/pts/0\r\n");
    assert!(runtime(&bundle, &["delete", "-f", id]).status.success());
}

fn receive_fd(stream: &std::os::unix::net::UnixStream) -> std::os::fd::OwnedFd {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
    use std::os::fd::{AsRawFd, FromRawFd};
    let mut bytes = [0u8; 64];
    let mut vector = [std::io::IoSliceMut::new(&mut bytes)];
    let mut space = nix::cmsg_space!([i32; 1]);
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut vector, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC).unwrap();
    let Some(ControlMessageOwned::ScmRights(fds)) = message.cmsgs().unwrap().next() else { panic!("a descriptor") };
    // SAFETY: the kernel just gave us this descriptor.
    unsafe { std::os::fd::OwnedFd::from_raw_fd(fds[0]) }
}

#[test]
fn preserved_descriptors_reach_the_program_and_others_do_not() {
    let mut bundle = Bundle::new(&["sh", "-c", "cat <&3; ls /proc/self/fd"]);
    bundle.config["process"]["noNewPrivileges"] = json!(false);
    bundle.spec().unwrap();
    let script = "exec 3</proc/sys/kernel/ostype 4</dev/null; exec \"$0\" --root \"$1\" run --preserve-fds 1 --bundle \"$2\" \"$3\"";
    let output = Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_gantry-runtime")])
        .args([bundle.state_dir().as_os_str(), bundle.directory.path().as_os_str(), bundle.id.as_ref()])
        .output()
        .unwrap();
    // The descriptor after those that were kept is the listing's own.
    assert_eq!(text(&output), "Linux\n0\n1\n2\n3\n4\n", "{output:?}");
}

#[test]
fn specification_and_features_are_printed() {
    let bundle = Bundle::new(&["true"]);
    assert!(runtime(&bundle, &["spec"]).status.success());
    assert!(!runtime(&bundle, &["spec"]).status.success(), "an existing file is not overwritten");
    gantry_runtime::Spec::load(bundle.directory.path()).unwrap();
    let features: Value = serde_json::from_str(&text(&runtime(&bundle, &["features"]))).unwrap();
    assert_eq!(features["ociVersionMax"], "1.3.0");
    assert!(text(&runtime(&bundle, &["--version"])).starts_with("gantry-runtime version"));
}

/// What a system with only cgroup v2 has, as far as a hybrid one can show it: no controller but devices and freezer.
#[test]
fn features_name_what_runc_names() {
    let bundle = Bundle::new(&["true"]);
    let features: Value = serde_json::from_str(&text(&runtime(&bundle, &["features"]))).unwrap();
    assert_eq!(features["linux"]["cgroup"]["systemd"], true);
    assert_eq!(features["linux"]["memoryPolicy"]["modes"].as_array().unwrap().len(), 7);
    assert_eq!(features["annotations"]["org.opencontainers.runc.checkpoint.enabled"], "true");
}

#[test]
fn the_unified_tree_alone_is_enough() {
    if !std::path::Path::new("/sys/fs/cgroup/unified/cgroup.procs").exists() {
        eprintln!("skipped: no v2 tree beside v1 hierarchies here");
        return;
    }
    let bundle = Bundle::new(&[
        "sh",
        "-c",
        "mknod /tmp/d b 254 0; cat /tmp/d; cat /dev/null && cat /proc/self/cgroup; sleep 1000",
    ]);
    bundle.spec().unwrap();
    let script = format!(
        "mount --make-rprivate / && mount --bind /sys/fs/cgroup/unified /sys/fs/cgroup && R='{} --root {}' && \
        $R create --bundle . {id} < /dev/null > out 2>&1 && $R start {id} && sleep 0.2 && $R pause {id} && \
        $R state {id} | grep status && $R resume {id} && $R exec {id} true && $R events --stats {id} | head -c 30 && \
        $R delete --force {id} && echo done",
        env!("CARGO_BIN_EXE_gantry-runtime"),
        bundle.state_dir().display(),
        id = bundle.id
    );
    let output = Command::new("unshare")
        .args(["-m", "sh", "-c", &script])
        .current_dir(bundle.directory.path())
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(text(&output).contains("paused") && text(&output).ends_with("done\n"), "{}{errors}", text(&output));
    let inside = std::fs::read_to_string(bundle.directory.path().join("out")).unwrap();
    assert!(inside.contains("/tmp/d': Operation not permitted"), "{inside}");
    assert!(inside.contains("0::/\n"), "in a cgroup namespace: {inside}");
    let unified = std::path::Path::new("/sys/fs/cgroup/unified").join(common::cgroup_parent());
    assert!(!unified.join(&bundle.id).exists());
    let _ = std::fs::remove_dir(unified);
}

/// Whether a process's executable could be written by whoever reaches it through /proc (CVE-2019-5736). A running one
/// cannot be opened for writing at all; what counts is the mount.
fn is_writable(pid: &str) -> bool {
    let path = format!("/proc/{pid}/exe");
    nix::unistd::access(path.as_str(), nix::unistd::AccessFlags::W_OK) != Err(nix::errno::Errno::EROFS)
}

#[test]
fn the_program_that_a_container_may_reach_is_read_only() {
    let bundle = Bundle::new(&["sleep", "100"]);
    bundle.spec().unwrap();
    let id = bundle.id.as_str();
    assert_eq!(quiet(&bundle, &["create", "--bundle", ".", "--pid-file", "pid", id]), 0);
    let pid = std::fs::read_to_string(bundle.directory.path().join("pid")).unwrap();
    let exe = std::fs::metadata(format!("/proc/{pid}/exe")).unwrap();
    let own = std::fs::metadata(env!("CARGO_BIN_EXE_gantry-runtime")).unwrap();
    use std::os::unix::fs::MetadataExt;
    assert_eq!((exe.dev(), exe.ino()), (own.dev(), own.ino()), "its pages are shared with all others");
    assert!(!is_writable(&pid));
    assert_eq!(quiet(&bundle, &["delete", "--force", id]), 0);
}

#[test]
fn a_script_that_has_the_runtime_interpret_it_reaches_a_read_only_one() {
    use std::os::unix::fs::PermissionsExt;
    let bundle = Bundle::new(&["sleep", "100"]);
    let script = bundle.root().join("bin/evil");
    std::fs::write(&script, "#!/proc/self/exe\n").unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    // It holds what it can of every process that comes, and tries to write when that has ended.
    let hold = "while :; do for p in /proc/[0-9]*; do case $(readlink $p/exe) in */busybox|'') ;; *) \
                exec 9<$p/exe && echo held && sleep 0.3 && (echo x >/proc/self/fd/9) 2>&1;; esac; done; done";
    let mut config = bundle.config.clone();
    config["process"]["args"] = json!(["sh", "-c", hold]);
    std::fs::write(bundle.directory.path().join("config.json"), config.to_string()).unwrap();
    let id = bundle.id.as_str();
    let before = std::fs::read(env!("CARGO_BIN_EXE_gantry-runtime")).unwrap();
    assert_eq!(quiet(&bundle, &["run", "--detach", id]), 0);
    for _ in 0..5 {
        quiet(&bundle, &["exec", id, "/bin/evil"]);
    }
    assert_eq!(quiet(&bundle, &["delete", "--force", id]), 0);
    assert!(std::fs::read(env!("CARGO_BIN_EXE_gantry-runtime")).unwrap() == before, "the runtime was overwritten");
}
