//! The leak census: what of a laboratory's containers is still there, as the kernel and the disk see it.

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Everything of the containers of the daemon in `dir` that is still there; `daemon` itself does not count.
pub fn leaks(dir: &Path, tag: &str, daemon: i32) -> Vec<String> {
    let mut found = Vec::new();
    found.extend(
        processes(dir, tag).into_iter().filter(|p| p.0 != daemon).map(|(pid, what)| format!("process {pid}: {what}")),
    );
    found.extend(mounts(dir).into_iter().map(|m| format!("mount {m}")));
    found.extend(cgroups(tag).into_iter().map(|c| format!("cgroup {}", c.display())));
    found.extend(
        entries(&dir.join("state/io.containerd.runtime.v2.task"), 2)
            .into_iter()
            .map(|p| format!("bundle {}", p.display())),
    );
    found.extend(
        entries(&dir.join("root/io.containerd.runtime.v2.task"), 2)
            .into_iter()
            .map(|p| format!("work directory {}", p.display())),
    );
    for place in ["state", "root"] {
        let sandboxes = dir.join(place).join("io.containerd.sandbox.controller.v1.shim");
        found.extend(entries(&sandboxes, 2).into_iter().map(|p| format!("sandbox's bundle {}", p.display())));
    }
    found.extend(entries(&dir.join("state/fifo"), 1).into_iter().map(|p| format!("pipes {}", p.display())));
    found.extend(entries(&dir.join("state/s"), 1).into_iter().map(|p| format!("shim socket {}", p.display())));
    for ingest in ["root/content/ingest", "root/io.containerd.content.v1.content/ingest"] {
        found.extend(entries(&dir.join(ingest), 1).into_iter().map(|p| format!("ingest {}", p.display())));
    }
    found
}

/// Processes that work in `dir` (by command line, working directory or root) or in a cgroup that bears `tag`.
pub fn processes(dir: &Path, tag: &str) -> Vec<(i32, String)> {
    let me = std::process::id().cast_signed();
    let pids = entries(Path::new("/proc"), 1).into_iter().filter_map(|p| p.file_name()?.to_str()?.parse::<i32>().ok());
    pids.filter(|pid| *pid != me).filter_map(|pid| Some((pid, belongs(pid, dir, tag)?))).collect()
}

fn belongs(pid: i32, dir: &Path, tag: &str) -> Option<String> {
    let proc = PathBuf::from(format!("/proc/{pid}"));
    let stat = fs::read_to_string(proc.join("stat")).ok()?;
    if stat.rsplit(')').next()?.trim_start().starts_with('Z') && !stat.contains("shim") {
        return None; // reaped by its parent in a moment
    }
    let command = fs::read(proc.join("cmdline")).ok()?;
    let command = String::from_utf8_lossy(&command).replace('\0', " ");
    let dir = dir.to_str()?;
    let link = |name: &str| fs::read_link(proc.join(name)).is_ok_and(|p| p.starts_with(dir));
    let cgroup = fs::read_to_string(proc.join("cgroup")).unwrap_or_default();
    (command.contains(dir) || link("cwd") || link("root") || cgroup.contains(tag)).then_some(command)
}

/// Mounts below `dir` in the mount table of the calling thread.
pub fn mounts(dir: &Path) -> Vec<String> {
    let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
    let point = |line: &str| line.split(' ').nth(4).map(str::to_owned);
    table.lines().filter_map(point).filter(|p| Path::new(p).starts_with(dir)).collect()
}

/// Cgroups whose path bears `tag`, in every hierarchy.
pub fn cgroups(tag: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for hierarchy in entries(Path::new("/sys/fs/cgroup"), 1) {
        collect_cgroups(&hierarchy, tag, 4, &mut found);
    }
    found
}

fn collect_cgroups(dir: &Path, tag: &str, depth: u32, found: &mut Vec<PathBuf>) {
    let is_link = fs::symlink_metadata(dir).is_ok_and(|m| m.is_symlink());
    if depth == 0 || is_link {
        return;
    }
    for child in entries(dir, 1).into_iter().filter(|p| p.is_dir()) {
        if child.to_string_lossy().contains(tag) {
            found.push(child.clone());
        }
        collect_cgroups(&child, tag, depth - 1, found);
    }
}

/// What lies exactly `depth` levels below `dir`, names that start with a dot left out.
fn entries(dir: &Path, depth: u32) -> Vec<PathBuf> {
    let here = fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path());
    let here = here.filter(|p| !p.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.')));
    if depth <= 1 { here.collect() } else { here.flat_map(|p| entries(&p, depth - 1)).collect() }
}

/// Ends what a failed test left running.
pub fn end_processes_of(dir: &Path, tag: &str) {
    for (pid, _) in processes(dir, tag) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

/// Removes cgroups that a failed test left, children first. Processes that were just killed hold theirs a moment longer.
pub fn remove_cgroups_of(tag: &str) {
    for _ in 0..40 {
        let left = cgroups(tag);
        if left.is_empty() {
            return;
        }
        for cgroup in left.into_iter().rev() {
            let _ = fs::remove_dir(cgroup);
        }
        std::thread::sleep(std::time::Duration::from_millis(25));
    }
}
