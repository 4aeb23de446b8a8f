//! Plug-ins that a daemon left running when it died. They must end before what they began is undone, or they would
//! finish it afterwards.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill as signal};
use nix::unistd::Pid;

/// A killed process goes at once, unless it hangs in the kernel.
const PATIENCE: Duration = Duration::from_secs(5);

/// Kills every process of a plug-in, and of those that it started, that was called by an owner of these records for
/// one of these pods. Blocking. How many there were.
pub(in crate::network) fn kill(root: &Path, ids: &[String]) -> usize {
    if ids.is_empty() {
        return 0;
    }
    let orphans: Vec<Pid> = processes().filter(|(_, dir)| is_orphan(dir, root, ids)).map(|(pid, _)| pid).collect();
    for pid in &orphans {
        tracing::warn!(%pid, "killing a network plug-in that an earlier daemon left running");
        let _ = signal(*pid, Signal::SIGKILL);
    }
    let until = Instant::now() + PATIENCE;
    while orphans.iter().any(|pid| is_running(*pid)) && Instant::now() < until {
        thread::sleep(Duration::from_millis(5));
    }
    orphans.len()
}

fn processes() -> impl Iterator<Item = (Pid, PathBuf)> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| Some((Pid::from_raw(entry.file_name().to_str()?.parse().ok()?), entry.path())))
}

fn is_orphan(process: &Path, root: &Path, ids: &[String]) -> bool {
    let Ok(environment) = fs::read(process.join("environ")) else { return false };
    let variable = |name: &str| {
        let mut all = environment.split(|byte| *byte == 0);
        all.find_map(|entry| entry.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
    };
    let ours = variable(super::MARK).is_some_and(|value| value == root.as_os_str().as_encoded_bytes());
    ours && variable("CNI_CONTAINERID").is_some_and(|id| ids.iter().any(|known| known.as_bytes() == id))
}

/// A zombie does nothing any more.
fn is_running(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}
