//! Times create, start, wait and delete of a bundle's container in process: `speed BUNDLE [ROUNDS]`, as root.

use std::path::Path;
use std::time::{Duration, Instant};

use gantry_runtime::{CgroupDriver, Container, CreateOptions, ExecOptions, Gate, Result, Spec, Stdio};

fn main() -> Result<()> {
    let mut words = std::env::args().skip(1);
    let bundle = words.next().unwrap_or_else(|| ".".to_owned());
    let rounds = words.next().and_then(|word| word.parse().ok()).unwrap_or(200);
    let bundle = std::fs::canonicalize(bundle).unwrap_or_default();
    let spec = Spec::load(&bundle)?;
    let mut times: [Vec<Duration>; 5] = Default::default();
    for _ in 0..rounds {
        let round = one(&bundle, &spec)?;
        times.iter_mut().zip(round).for_each(|(all, time)| all.push(time));
    }
    for (name, mut all) in ["create", "start", "wait", "delete", "all"].iter().zip(times) {
        all.sort();
        println!("{name:7} p50 {:>7.1} µs  p90 {:>7.1} µs", micros(&all, 50), micros(&all, 90));
    }
    exec(&bundle, &spec, rounds)
}

fn micros(sorted: &[Duration], percent: usize) -> f64 {
    sorted.get(sorted.len() * percent / 100).map_or(0.0, |time| time.as_secs_f64() * 1e6)
}

fn options<'a>(bundle: &'a Path, spec: &'a Spec) -> CreateOptions<'a> {
    CreateOptions {
        id: "speed",
        bundle,
        state_dir: Path::new("/run/gantry-speed"),
        spec,
        rootfs_mounts: &[],
        stdio: Stdio::Null,
        cgroup_driver: CgroupDriver::Cgroupfs,
        no_pivot: false,
        no_new_keyring: false,
        preserve_fds: 0,
        gate: Gate::Socket,
    }
}

fn one(bundle: &Path, spec: &Spec) -> Result<[Duration; 5]> {
    let begin = Instant::now();
    let mut container = Container::create(options(bundle, spec))?;
    let created = Instant::now();
    container.start()?;
    let started = Instant::now();
    let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(container.pid()), None);
    let ended = Instant::now();
    container.delete(false)?;
    let deleted = Instant::now();
    Ok([created - begin, started - created, ended - started, deleted - ended, deleted - begin])
}

/// Executes the init's program in a container whose init waits.
fn exec(bundle: &Path, spec: &Spec, rounds: usize) -> Result<()> {
    let mut container = Container::create(options(bundle, spec))?;
    let process = spec.process.clone().unwrap_or_default();
    let mut times = Vec::new();
    for _ in 0..rounds {
        let begin = Instant::now();
        let child = container.exec(ExecOptions { process: &process, stdio: Stdio::Null, preserve_fds: 0 })?;
        let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(child.pid), None);
        times.push(begin.elapsed());
    }
    times.sort();
    println!("exec    p50 {:>7.1} µs  p90 {:>7.1} µs", micros(&times, 50), micros(&times, 90));
    container.delete(true)?;
    let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(container.pid()), None);
    Ok(())
}
