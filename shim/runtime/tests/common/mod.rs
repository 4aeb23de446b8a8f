//! Bundles of busybox for tests as root. Every container lives in cgroups below `/gantry-test-PID`, removed afterwards.
#![allow(dead_code)]

use std::cell::RefCell;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use gantry_runtime::{CgroupDriver, Child, Container, CreateOptions, ExecOptions, Gate, Process, Result, Spec, Stdio};
use serde_json::{Value, json};

static COUNT: AtomicU32 = AtomicU32::new(0);
/// One test at a time: a forked init holds copies of the descriptors that other threads have open.
static SERIAL: Mutex<()> = Mutex::new(());

thread_local! {
    static HELD: RefCell<(u32, Option<MutexGuard<'static, ()>>)> = const { RefCell::new((0, None)) };
}

/// This test's turn, held by each of its bundles.
struct Turn;

impl Turn {
    fn take() -> Turn {
        HELD.with_borrow_mut(|(count, guard)| {
            if *count == 0 {
                *guard = Some(SERIAL.lock().unwrap_or_else(PoisonError::into_inner));
            }
            *count += 1;
        });
        Turn
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        HELD.with_borrow_mut(|(count, guard)| {
            *count -= 1;
            if *count == 0 {
                *guard = None;
            }
        });
    }
}

/// The parent cgroup of every container of this run.
pub fn cgroup_parent() -> String {
    format!("gantry-test-{}", std::process::id())
}

/// Where cgroup hierarchies are mounted, of either version.
fn hierarchies() -> impl Iterator<Item = PathBuf> {
    let root = PathBuf::from("/sys/fs/cgroup");
    let entries = std::fs::read_dir(&root).unwrap().flatten().map(|entry| entry.path());
    entries.filter(|path| path.join("cgroup.procs").exists()).chain([root]).collect::<Vec<_>>().into_iter()
}

/// Whether the unified tree is the only one.
pub fn unified() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// A bundle with a busybox root, and a state directory.
pub struct Bundle {
    pub config: Value,
    pub id: String,
    pub directory: tempfile::TempDir,
    _serial: Turn,
}

impl Bundle {
    /// A bundle with the configuration `ctr run` makes, running `args`.
    pub fn new(args: &[&str]) -> Bundle {
        let serial = Turn::take();
        let directory = tempfile::tempdir().unwrap();
        let id = format!("t{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let root = directory.path().join("rootfs");
        for sub in ["bin", "etc", "proc", "sys", "dev", "tmp", "run"] {
            std::fs::create_dir_all(root.join(sub)).unwrap();
        }
        let busybox = ["/bin/busybox", "/usr/bin/busybox"].iter().find(|path| Path::new(path).exists());
        std::fs::copy(busybox.expect("busybox-static is installed"), root.join("bin/busybox")).unwrap();
        for tool in TOOLS {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(tool)).unwrap();
        }
        std::fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n")
            .unwrap();
        let config = config(&id, args);
        Bundle { config, id, directory, _serial: serial }
    }

    pub fn root(&self) -> PathBuf {
        self.directory.path().join("rootfs")
    }

    pub fn state_dir(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    /// Writes `config.json` and reads it as the runtime does.
    pub fn spec(&self) -> Result<Spec> {
        std::fs::write(self.directory.path().join("config.json"), self.config.to_string()).unwrap();
        Spec::load(self.directory.path())
    }

    pub fn create(&self, stdio: Stdio<'_>) -> Result<Container> {
        self.create_with(stdio, Gate::Socket, &[])
    }

    pub fn create_with(
        &self,
        stdio: Stdio<'_>,
        gate: Gate,
        rootfs_mounts: &[gantry_types::Mount],
    ) -> Result<Container> {
        let spec = self.spec()?;
        Container::create(CreateOptions {
            id: &self.id,
            bundle: self.directory.path(),
            state_dir: &self.state_dir(),
            spec: &spec,
            rootfs_mounts,
            stdio,
            cgroup_driver: CgroupDriver::Cgroupfs,
            no_pivot: false,
            no_new_keyring: false,
            preserve_fds: 0,
            gate,
        })
    }

    /// Runs to the end: output (stdout and stderr) and exit code.
    pub fn run(&self) -> Result<(String, i32)> {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let mut container = self.create(Stdio::Fds([None, Some(writer.as_fd()), Some(writer.as_fd())]))?;
        let started = container.start();
        drop(writer);
        let mut output = String::new();
        if started.is_ok() {
            reader.read_to_string(&mut output).unwrap();
        } else {
            container.kill(9, false).ok();
        }
        let code = wait(container.pid());
        container.delete(true)?;
        started.map(|()| (output, code))
    }

    /// Runs to the end and expects success.
    pub fn output(&self) -> String {
        let (output, code) = self.run().unwrap();
        assert_eq!(code, 0, "output: {output}");
        output
    }

    /// What must not be there when all is deleted.
    pub fn leftovers(&self) -> Vec<PathBuf> {
        let mut left = Vec::new();
        left.extend(hierarchies().map(|path| path.join(cgroup_parent()).join(&self.id)).filter(|path| path.exists()));
        let state = self.state_dir().join(&self.id);
        if state.exists() {
            left.push(state);
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let here = self.directory.path().display().to_string();
        left.extend(mounts.lines().filter(|line| line.contains(&here)).map(PathBuf::from));
        left
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        let _ = Container::purge(&self.state_dir(), &self.id);
        hierarchies().for_each(|path| drop(std::fs::remove_dir(path.join(cgroup_parent()))));
    }
}

/// A process document for exec.
pub fn process(args: &[&str]) -> Process {
    Process::parse(process_json(args).to_string().as_bytes()).unwrap()
}

pub fn process_json(args: &[&str]) -> Value {
    let caps = json!([
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FSETID",
        "CAP_FOWNER",
        "CAP_MKNOD",
        "CAP_NET_RAW",
        "CAP_SETGID",
        "CAP_SETUID",
        "CAP_SETFCAP",
        "CAP_SETPCAP",
        "CAP_NET_BIND_SERVICE",
        "CAP_SYS_CHROOT",
        "CAP_KILL",
        "CAP_AUDIT_WRITE"
    ]);
    json!({
        "user": {"uid": 0, "gid": 0},
        "args": args,
        "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        "cwd": "/",
        "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
        "noNewPrivileges": true
    })
}

/// Runs a process in a container to its end.
pub fn exec(container: &Container, process: &Process) -> Result<(String, i32)> {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let stdio = Stdio::Fds([None, Some(writer.as_fd()), Some(writer.as_fd())]);
    let child: Child = container.exec(ExecOptions { process, stdio, preserve_fds: 0 })?;
    drop(writer);
    let mut output = String::new();
    reader.read_to_string(&mut output).unwrap();
    Ok((output, wait(child.pid)))
}

/// Reaps a child: its exit code, 128 + signal when killed.
pub fn wait(pid: i32) -> i32 {
    use nix::sys::wait::{WaitStatus, waitpid};
    match waitpid(nix::unistd::Pid::from_raw(pid), None).unwrap() {
        WaitStatus::Exited(_, code) => code,
        WaitStatus::Signaled(_, signal, _) => 128 + signal as i32,
        other => panic!("{other:?}"),
    }
}

/// Reads a terminal's master until the other end is gone.
pub fn read_console(master: OwnedFd) -> String {
    let mut file = std::fs::File::from(master);
    let mut bytes = Vec::new();
    let mut buffer = [0u8; 4096];
    while let Ok(length) = file.read(&mut buffer) {
        if length == 0 {
            break;
        }
        bytes.extend_from_slice(&buffer[..length]);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

const TOOLS: [&str; 40] = [
    "sh", "true", "false", "cat", "echo", "ls", "id", "hostname", "mount", "sleep", "ps", "touch", "mkdir", "rm", "ln",
    "env", "pwd", "stat", "grep", "sort", "dd", "test", "head", "wc", "kill", "ip", "stty", "tty", "umask", "chmod",
    "readlink", "mknod", "tr", "seq", "nc", "date", "cp", "mv", "find", "tail",
];

fn config(id: &str, args: &[&str]) -> Value {
    let mut process = process_json(args);
    process["terminal"] = json!(false);
    json!({
        "ociVersion": "1.3.0",
        "process": process,
        "root": {"path": "rootfs"},
        "hostname": "box",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/run", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]}
        ],
        "linux": {
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "cgroupsPath": format!("/{}/{id}", cgroup_parent()),
            "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"}, {"type": "cgroup"}],
            "maskedPaths": ["/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/sys/devices/virtual/powercap", "/proc/scsi"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
        }
    })
}
