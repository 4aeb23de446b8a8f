//! The little that the shim itself does with control groups: joining one, and sweeping away one that was orphaned.

use std::fs;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::log;

/// How long killed processes may take to leave their group.
const LEAVING: Duration = Duration::from_secs(2);

/// Puts a process into a group, made if missing, in every hierarchy there is.
pub fn join(name: &str, pid: u32) {
    let Some(relative) = plain(name) else {
        return log::warning("the shim's cgroup is no plain path", &name);
    };
    // A new cpuset group takes nobody before it has been given processors and memory.
    for hierarchy in hierarchies().into_iter().filter(|hierarchy| !hierarchy.ends_with("cpuset")) {
        let group = hierarchy.join(relative);
        let joined = fs::create_dir_all(&group).and_then(|()| fs::write(group.join("cgroup.procs"), pid.to_string()));
        if let Err(error) = joined {
            log::warning("the shim cannot join its cgroup", &error);
        }
    }
}

/// Kills what is in a container's group, whose runtime left it behind, and removes it from every hierarchy.
pub fn sweep(name: &str) {
    let Some(relative) = plain(name) else { return };
    for hierarchy in hierarchies() {
        remove(&hierarchy.join(relative));
    }
}

fn remove(group: &Path) {
    let deadline = Instant::now() + LEAVING;
    while group.exists() {
        kill_members(group);
        match fs::remove_dir(group) {
            Ok(()) => return,
            Err(error) if Instant::now() >= deadline => {
                return log::warning("a control group cannot be removed", &error);
            }
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

fn kill_members(group: &Path) {
    let members = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    // 0 stands for processes of another process namespace, and would be this process's own group.
    for pid in members.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|&pid| pid > 1) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

/// The path below a hierarchy's root; none for the root itself, and for what could climb.
fn plain(name: &str) -> Option<&Path> {
    let relative = Path::new(name.trim_start_matches('/'));
    let normal = relative.components().all(|part| matches!(part, Component::Normal(_)));
    (normal && !relative.as_os_str().is_empty() && !name.contains(':')).then_some(relative)
}

fn hierarchies() -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    if root.join("cgroup.controllers").exists() {
        return vec![root.to_owned()];
    }
    let entries = fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.filter(|path| !path.is_symlink() && path.join("cgroup.procs").exists()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_paths_below_the_root_are_touched() {
        assert_eq!(plain("/a/b"), Some(Path::new("a/b")));
        for name in ["", "/", "..", "/a/../b", "system.slice:x:y"] {
            assert_eq!(plain(name), None, "{name}");
        }
    }
}
