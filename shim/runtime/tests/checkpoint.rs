//! Checkpoint and restore through the real CRIU, beside runc. Those that need a CRIU that works on the kernel are run
//! by `integration/vm/test` in a guest; elsewhere they are ignored, never passed.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use common::{Bundle, exec, process, wait};
use gantry_runtime::{CgroupDriver, Container, CreateOptions, CriuOptions, Gate, Result, Status, Stdio};
use gantry_types::{ErrorKind, HasKind};
use serde_json::json;

/// Counts in its own memory, and says so in a file of a tmpfs and on stdout.
const COUNT: &str = "i=0; while :; do i=$((i+1)); echo $i > /run/count; echo $i; sleep 0.05; done";

fn images(bundle: &Bundle, name: &str) -> PathBuf {
    bundle.directory.path().join(name)
}

fn restore(bundle: &Bundle, id: &str, images: &Path, stdio: Stdio<'_>) -> Result<Container> {
    let spec = bundle.spec()?;
    let options = CreateOptions {
        id,
        bundle: bundle.directory.path(),
        state_dir: &bundle.state_dir(),
        spec: &spec,
        rootfs_mounts: &[],
        stdio,
        cgroup_driver: CgroupDriver::Cgroupfs,
        no_pivot: false,
        no_new_keyring: false,
        preserve_fds: 0,
        gate: Gate::Socket,
    };
    Container::restore(options, &CriuOptions::new(images))
}

fn read_count(container: &Container) -> u64 {
    let path = format!("/proc/{}/root/run/count", container.pid());
    std::fs::read_to_string(path).unwrap_or_default().trim().parse().unwrap_or(0)
}

/// Waits until the container has counted beyond a number.
fn counts_beyond(container: &Container, number: u64) -> u64 {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let count = read_count(container);
        if count > number {
            return count;
        }
        assert!(Instant::now() < deadline, "still at {count}, {:?}", container.status());
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn running(bundle: &Bundle) -> Container {
    let mut container = bundle.create(Stdio::Null).unwrap();
    container.start().unwrap();
    counts_beyond(&container, 5);
    container
}

fn command(program: &str, bundle: &Bundle, words: &[&str]) -> Output {
    let mut command = Command::new(program);
    command.arg("--root").arg(bundle.directory.path().join(format!("state-{}", program.len())));
    command.arg("--log").arg(bundle.directory.path().join("log"));
    command.args(words).current_dir(bundle.directory.path());
    let null = || std::process::Stdio::null();
    // The container's streams: whoever reads them would wait for its end.
    command.stdin(null()).stdout(null()).stderr(null()).output().unwrap()
}

fn succeed(program: &str, bundle: &Bundle, words: &[&str]) {
    let output = command(program, bundle, words);
    let log = std::fs::read_to_string(bundle.directory.path().join("log")).unwrap_or_default();
    assert!(output.status.success(), "{program} {words:?}: {log}");
}

#[test]
fn a_missing_criu_is_named_and_the_container_goes_on() {
    let bundle = Bundle::new(&["sleep", "100"]);
    let mut container = bundle.create(Stdio::Null).unwrap();
    container.start().unwrap();
    let options = CriuOptions { program: "/nowhere/criu".into(), ..CriuOptions::new(images(&bundle, "images")) };
    let error = container.checkpoint(&options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unimplemented);
    assert!(error.to_string().contains("CRIU is not installed (/nowhere/criu is not found)"), "{error}");
    assert_eq!(container.status(), Status::Running);
    assert!(!options.images.exists(), "nothing was done");
    container.delete(true).unwrap();
    wait(container.pid());
}

#[test]
fn a_program_that_is_no_criu_is_told_from_one() {
    let bundle = Bundle::new(&["sleep", "100"]);
    let mut container = bundle.create(Stdio::Null).unwrap();
    container.start().unwrap();
    let options = CriuOptions { program: "/bin/false".into(), ..CriuOptions::new(images(&bundle, "images")) };
    let error = container.checkpoint(&options).unwrap_err();
    assert!(error.to_string().contains("CRIU does not work on this system"), "{error}");
    container.delete(true).unwrap();
    wait(container.pid());
}

#[test]
fn only_what_runs_can_be_checkpointed() {
    let bundle = Bundle::new(&["true"]);
    let mut container = bundle.create(Stdio::Null).unwrap();
    let options = CriuOptions::new(images(&bundle, "images"));
    assert_eq!(container.checkpoint(&options).unwrap_err().kind(), ErrorKind::FailedPrecondition);
    container.delete(true).unwrap();
    wait(container.pid());
}

#[test]
#[ignore = "needs a CRIU that works on this kernel"]
fn a_container_goes_on_where_it_was_under_another_name() {
    let bundle = Bundle::new(&["sh", "-c", COUNT]);
    let mut container = running(&bundle);
    let before = counts_beyond(&container, 5);
    container.checkpoint(&CriuOptions::new(images(&bundle, "images"))).unwrap();
    assert_eq!(wait(container.pid()), 128 + 9, "CRIU ends what it has written down");
    container.delete(false).unwrap();
    let written = std::fs::read_to_string(images(&bundle, "images").join("descriptors.json")).unwrap();
    assert_eq!(written, r#"["/dev/null","/dev/null","/dev/null"]"#);
    let mut container = restore(&bundle, &bundle.id, &images(&bundle, "images"), Stdio::Null).unwrap();
    assert_eq!(container.status(), Status::Running);
    let first = counts_beyond(&container, 0);
    assert!(first >= before, "its memory is as it was: {first}");
    counts_beyond(&container, first + 3);
    let (output, code) =
        exec(&container, &process(&["sh", "-c", "hostname; ip addr show lo; cat /proc/1/cmdline"])).unwrap();
    assert_eq!(code, 0, "{output}");
    assert!(output.starts_with("box\n") && output.contains("LOOPBACK,UP") && output.contains("/run/count"), "{output}");
    let pids = container.pids().unwrap();
    assert!(pids.contains(&container.pid()), "it is in its cgroup: {pids:?}");
    let loaded = Container::load(&bundle.state_dir(), &bundle.id).unwrap();
    assert_eq!((loaded.status(), loaded.pid()), (Status::Running, container.pid()));
    container.pause().unwrap();
    assert_eq!(container.status(), Status::Paused);
    container.resume().unwrap();
    container.kill(15, false).unwrap();
    container.kill(9, false).unwrap();
    assert_eq!(wait(container.pid()), 128 + 9);
    container.delete(false).unwrap();
    assert!(bundle.leftovers().is_empty(), "{:?}", bundle.leftovers());
}

#[test]
#[ignore = "needs a CRIU that works on this kernel"]
fn its_streams_are_the_new_ones() {
    use std::io::Read;
    let bundle = Bundle::new(&["sh", "-c", COUNT]);
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut container = bundle.create(Stdio::Fds([None, Some(writer.as_fd()), None])).unwrap();
    container.start().unwrap();
    drop(writer);
    counts_beyond(&container, 5);
    container.checkpoint(&CriuOptions::new(images(&bundle, "images"))).unwrap();
    wait(container.pid());
    container.delete(false).unwrap();
    let mut said = String::new();
    reader.read_to_string(&mut said).unwrap();
    let last: u64 = said.lines().last().unwrap().parse().unwrap();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let stdio = Stdio::Fds([None, Some(writer.as_fd()), None]);
    let mut container = restore(&bundle, &bundle.id, &images(&bundle, "images"), stdio).unwrap();
    drop(writer);
    counts_beyond(&container, last + 3);
    container.delete(true).unwrap();
    wait(container.pid());
    let mut said = String::new();
    reader.read_to_string(&mut said).unwrap();
    let first: u64 = said.lines().next().expect("it goes on writing").parse().unwrap();
    assert!(first == last || first == last + 1, "{last} then {first}");
}

#[test]
#[ignore = "needs a CRIU that works on this kernel"]
fn it_goes_on_running_when_asked_to_and_memory_can_be_written_before() {
    let bundle = Bundle::new(&["sh", "-c", COUNT]);
    let mut container = running(&bundle);
    let before = CriuOptions { pre_dump: true, ..CriuOptions::new(images(&bundle, "1")) };
    container.checkpoint(&before).unwrap();
    counts_beyond(&container, read_count(&container) + 1);
    let after = CriuOptions {
        leave_running: true,
        parent: Some("../1".into()),
        work: Some(images(&bundle, "work")),
        ..CriuOptions::new(images(&bundle, "2"))
    };
    container.checkpoint(&after).unwrap();
    assert!(images(&bundle, "work").join("dump.log").exists());
    let count = counts_beyond(&container, read_count(&container) + 1);
    container.delete(true).unwrap();
    wait(container.pid());
    let mut container = restore(&bundle, &bundle.id, &images(&bundle, "2"), Stdio::Null).unwrap();
    assert!(read_count(&container) <= count, "it is where it was when it was written");
    counts_beyond(&container, 5);
    container.delete(true).unwrap();
    wait(container.pid());
}

#[test]
#[ignore = "needs a CRIU that works on this kernel"]
fn images_get_no_more_than_their_configuration_gives() {
    let mut bundle = Bundle::new(&["sh", "-c", COUNT]);
    let own = bundle.config.clone();
    let mut refused = |change: &dyn Fn(&mut serde_json::Value), words: &str| {
        bundle.config = own.clone();
        change(&mut bundle.config);
        let mut container = running(&bundle);
        let images = images(&bundle, &format!("images-{}", words.len()));
        container.checkpoint(&CriuOptions::new(&images)).unwrap();
        wait(container.pid());
        container.delete(false).unwrap();
        bundle.config = own.clone();
        let error = restore(&bundle, &bundle.id, &images, Stdio::Null).unwrap_err();
        assert!(error.to_string().contains(words), "{words}: {error}");
        assert!(bundle.leftovers().is_empty(), "{words}: {:?}", bundle.leftovers());
    };
    let more = |config: &mut serde_json::Value| {
        for set in ["bounding", "effective", "permitted"] {
            config["process"]["capabilities"][set].as_array_mut().unwrap().push(json!("CAP_SYS_ADMIN"));
        }
    };
    refused(&more, "has capabilities that the configuration does not give");
    let shared = |kind: &'static str| {
        move |config: &mut serde_json::Value| {
            config["linux"]["namespaces"].as_array_mut().unwrap().retain(|entry| entry["type"] != kind);
        }
    };
    refused(&shared("ipc"), "is not in the container's ipc namespace");
}

#[test]
#[ignore = "needs a CRIU that works on this kernel"]
fn images_that_are_damaged_or_lead_elsewhere_are_refused_and_leave_nothing() {
    let bundle = Bundle::new(&["sh", "-c", COUNT]);
    let mut container = running(&bundle);
    let images = images(&bundle, "images");
    container.checkpoint(&CriuOptions::new(&images)).unwrap();
    wait(container.pid());
    container.delete(false).unwrap();
    let refused = |words: &str| {
        let error = restore(&bundle, &bundle.id, &images, Stdio::Null).unwrap_err().to_string();
        assert!(error.contains(words), "{words}: {error}");
        assert!(bundle.leftovers().is_empty(), "{words}: {:?}", bundle.leftovers());
    };
    std::os::unix::fs::symlink("/etc/hostname", images.join("restore.log")).unwrap();
    refused("restore.log is neither a file nor a directory");
    std::fs::remove_file(images.join("restore.log")).unwrap();
    for name in ["core-", "mountpoints-"] {
        let mut paths = std::fs::read_dir(&images).unwrap().flatten().map(|entry| entry.path());
        let path = paths.find(|path| path.file_name().unwrap().to_string_lossy().starts_with(name)).expect("is there");
        let good = std::fs::read(&path).unwrap();
        let mut bad = good.clone();
        bad.iter_mut().skip(8).for_each(|byte| *byte ^= 0x55);
        std::fs::write(&path, &bad).unwrap();
        refused("restore");
        std::fs::write(&path, &good).unwrap();
    }
    let mut container = restore(&bundle, &bundle.id, &images, Stdio::Null).unwrap();
    container.delete(true).unwrap();
    wait(container.pid());
}

#[test]
#[ignore = "needs a CRIU that works on this kernel, and runc"]
fn what_either_wrote_the_other_restores() {
    let ours = env!("CARGO_BIN_EXE_gantry-runtime");
    for (from, to) in [(ours, ours), (ours, "runc"), ("runc", ours)] {
        let mut bundle = Bundle::new(&["sh", "-c", COUNT]);
        let shared = bundle.directory.path().join("shared");
        std::fs::create_dir(&shared).unwrap();
        let bind = json!({"destination": "/shared", "type": "bind", "source": shared, "options": ["rbind", "rw"]});
        bundle.config["mounts"].as_array_mut().unwrap().push(bind);
        let text = COUNT.replace("/run/count", "/shared/count");
        bundle.config["process"]["args"] = json!(["sh", "-c", text]);
        bundle.config["ociVersion"] = json!("1.0.2");
        bundle.spec().unwrap();
        let id = format!("swap-{}", bundle.id);
        let count =
            || -> u64 { std::fs::read_to_string(shared.join("count")).unwrap_or_default().trim().parse().unwrap_or(0) };
        let beyond = |number: u64| {
            let deadline = Instant::now() + Duration::from_secs(60);
            while count() <= number {
                assert!(Instant::now() < deadline, "{from} to {to}: still at {}", count());
                std::thread::sleep(Duration::from_millis(20));
            }
        };
        succeed(from, &bundle, &["run", "--detach", "--bundle", ".", &id]);
        beyond(5);
        succeed(from, &bundle, &["checkpoint", "--image-path", "images", &id]);
        let last = count();
        succeed(to, &bundle, &["restore", "--detach", "--bundle", ".", "--image-path", "images", &id]);
        beyond(last + 3);
        succeed(to, &bundle, &["kill", &id, "KILL"]);
        succeed(to, &bundle, &["delete", "--force", &id]);
    }
}
