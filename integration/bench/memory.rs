//! Proportional set sizes, as the kernel accounts them.

use gantry_integration::census;
use gantry_integration::daemon::Daemon;

/// PSS of a process, in MiB.
pub fn pss(pid: i32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("Pss:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap_or(f64::NAN) / 1024.0
}

/// Mean PSS of a daemon's shims, in MiB.
pub fn mean_of_shims(daemon: &Daemon, dir: &std::path::Path, tag: &str) -> f64 {
    let address = daemon.address().to_string_lossy().into_owned();
    let processes = census::processes(dir, tag);
    let state = daemon.state().to_string_lossy().into_owned();
    let belongs = |pid: i32, command: &str| {
        let cwd = std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|p| p.starts_with(&state));
        command.contains("containerd-shim") && (command.contains(&address) || command.contains(&state) || cwd)
    };
    let sizes: Vec<f64> = processes.iter().filter(|(pid, c)| belongs(*pid, c)).map(|(pid, _)| pss(*pid)).collect();
    sizes.iter().sum::<f64>() / sizes.len() as f64
}
