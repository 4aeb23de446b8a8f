//! cgroup v2 (kernel: Documentation/admin-guide/cgroup-v2): one tree for all controllers.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use super::{OomSource, ROOT, devices, file};
use crate::container::OomWatch;
use crate::error::{Error, Result};
use crate::spec::{BlockIo, Cpu, Memory, Resources};
use crate::stats::{Counter, IoDevice, Pressure, PressureLine, V2};
use crate::sys;

mod device_filter;

/// Makes the directory, and turns the controllers on for it all the way down.
pub(super) fn make(path: &Path) -> Result<()> {
    file::make_directory(path)?;
    let available = file::read(&Path::new(ROOT).join("cgroup.controllers"))?;
    let Ok(relative) = path.strip_prefix(ROOT) else { return Ok(()) };
    let mut level = Path::new(ROOT).to_owned();
    for part in relative.components() {
        enable(&level, &available);
        level.push(part);
    }
    Ok(())
}

/// Turns controllers on for the children of a cgroup. Those that refuse are missed when a limit is asked of them.
fn enable(level: &Path, controllers: &str) {
    let control = level.join("cgroup.subtree_control");
    let all = controllers.split_whitespace().map(|name| format!("+{name}")).collect::<Vec<_>>();
    if file::write(&control, &all.join(" ")).is_err() {
        for one in &all {
            let _ = file::write(&control, one);
        }
    }
}

/// Writes to a control file; its absence names the controller.
fn set(path: &Path, controller: &'static str, name: &str, value: &str) -> Result<()> {
    let control = path.join(name);
    match file::write(&control, value) {
        Err(Error::Cgroup { source, .. }) if source.raw_os_error() == Some(libc::ENOENT) => {
            Err(Error::NoController { controller })
        }
        other => other,
    }
}

/// A limit as v2 spells it: −1 is `max`.
fn max_or(value: i64) -> String {
    if value == -1 { "max".to_owned() } else { value.to_string() }
}

/// Sets limits. `new`: device rules start from what every container needs.
pub(super) fn limit(path: &Path, resources: &Resources, new: bool) -> Result<()> {
    if new || !resources.devices.is_empty() {
        device_filter::attach(path, &devices::rules(&resources.devices)?)?;
    }
    if let Some(limit) = resources.pids.as_ref().and_then(|pids| pids.limit).filter(|limit| *limit != 0) {
        set(path, "pids", "pids.max", &max_or(limit.max(-1)))?;
    }
    if let Some(memory) = &resources.memory {
        limit_memory(path, memory)?;
    }
    if let Some(cpu) = &resources.cpu {
        limit_cpu(path, cpu)?;
    }
    if let Some(block) = &resources.block_io {
        limit_io(path, block)?;
    }
    for limit in &resources.hugepage_limits {
        super::v1::check_page_size(&limit.page_size)?;
        set(path, "hugetlb", &format!("hugetlb.{}.max", limit.page_size), &limit.limit.to_string())?;
        let reserved = format!("hugetlb.{}.rsvd.max", limit.page_size);
        if path.join(&reserved).exists() {
            set(path, "hugetlb", &reserved, &limit.limit.to_string())?;
        }
    }
    for (device, limit) in &resources.rdma {
        let number = |value: Option<u32>| value.map_or("max".to_owned(), |value| value.to_string());
        let value =
            format!("{device} hca_handle={} hca_object={}", number(limit.hca_handles), number(limit.hca_objects));
        set(path, "rdma", "rdma.max", &value)?;
    }
    for (key, value) in &resources.unified {
        if key.contains('/') || !key.contains('.') {
            return Err(Error::invalid("linux.resources.unified", format!("{key:?} is no control file")));
        }
        if !path.join(key).exists() {
            let why = format!("{key:?} is not there: this kernel lacks it, or its controller is not enabled");
            return Err(Error::invalid("linux.resources.unified", why));
        }
        file::write(&path.join(key), value)?;
    }
    Ok(())
}

fn limit_memory(path: &Path, memory: &Memory) -> Result<()> {
    let limit = memory.limit.filter(|limit| *limit != 0);
    if let Some(swap) = swap_only(limit, memory.swap)? {
        // Without swap accounting there is nothing to limit, and "unlimited" or "none" hold anyway.
        let written = set(path, "memory", "memory.swap.max", &max_or(swap));
        if !(matches!(written, Err(Error::NoController { .. })) && swap <= 0) {
            written?;
        }
    }
    if let Some(limit) = limit {
        set(path, "memory", "memory.max", &max_or(limit))?;
    }
    match memory.reservation.filter(|value| *value != 0) {
        Some(reservation) => set(path, "memory", "memory.low", &max_or(reservation)),
        None => Ok(()),
    }
}

/// The specification limits memory and swap together, v2 swap alone.
fn swap_only(limit: Option<i64>, joint: Option<i64>) -> Result<Option<i64>> {
    match (limit, joint.filter(|joint| *joint != 0)) {
        (Some(-1), None) => Ok(Some(-1)),
        (_, None) => Ok(None),
        (_, Some(-1)) => Ok(Some(-1)),
        (Some(limit), Some(joint)) if limit >= 0 && joint >= limit => Ok(Some(joint - limit)),
        (None | Some(-1), Some(_)) => Err(Error::invalid("linux.resources.memory.swap", "needs a memory limit")),
        _ => Err(Error::invalid("linux.resources.memory.swap", "is below the memory limit")),
    }
}

fn limit_cpu(path: &Path, cpu: &Cpu) -> Result<()> {
    if let Some(idle) = cpu.idle {
        set(path, "cpu", "cpu.idle", &idle.to_string())?;
    }
    if let Some(shares) = cpu.shares.filter(|shares| *shares != 0)
        && cpu.idle != Some(1)
    {
        set(path, "cpu", "cpu.weight", &weight_of_shares(shares).to_string())?;
    }
    let (quota, period) = (cpu.quota.filter(|quota| *quota != 0), cpu.period.filter(|period| *period != 0));
    if quota.is_some() || period.is_some() {
        let quota = quota.filter(|quota| *quota > 0).map_or("max".to_owned(), |quota| quota.to_string());
        set(path, "cpu", "cpu.max", &format!("{quota} {}", period.unwrap_or(100_000)))?;
    }
    if let Some(burst) = cpu.burst {
        set(path, "cpu", "cpu.max.burst", &burst.to_string())?;
    }
    for (name, value) in [("cpuset.cpus", &cpu.cpus), ("cpuset.mems", &cpu.mems)] {
        if !value.is_empty() {
            set(path, "cpuset", name, value)?;
        }
    }
    Ok(())
}

/// v1 shares (2 … 262144, 1024 is one unit) as v2 weight (1 … 10000, 100 is one unit): the curve through both ends
/// and the middle that runc uses.
pub(super) fn weight_of_shares(shares: u64) -> u64 {
    if shares <= 2 {
        return 1;
    }
    if shares >= 262_144 {
        return 10_000;
    }
    let log = (shares as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    10f64.powf(exponent).ceil() as u64
}

fn limit_io(path: &Path, block: &BlockIo) -> Result<()> {
    if let Some(weight) = block.weight.filter(|weight| *weight != 0) {
        if path.join("io.bfq.weight").exists() {
            set(path, "io", "io.bfq.weight", &weight.to_string())?;
        } else {
            let weight = 1 + (u64::from(weight).clamp(10, 1000) - 10) * 9999 / 990;
            set(path, "io", "io.weight", &weight.to_string())?;
        }
    }
    for device in &block.weight_device {
        if let Some(weight) = device.weight {
            set(path, "io", "io.bfq.weight", &format!("{}:{} {weight}", device.major, device.minor))?;
        }
    }
    for (key, devices) in [
        ("rbps", &block.throttle_read_bps_device),
        ("wbps", &block.throttle_write_bps_device),
        ("riops", &block.throttle_read_iops_device),
        ("wiops", &block.throttle_write_iops_device),
    ] {
        for device in devices {
            set(path, "io", "io.max", &format!("{}:{} {key}={}", device.major, device.minor, device.rate))?;
        }
    }
    Ok(())
}

/// Whether processes are frozen.
pub(super) const FREEZE: &str = "cgroup.freeze";

/// Freezes or thaws; returns when done.
pub(super) fn freeze(path: &Path, frozen: bool) -> Result<()> {
    file::write(&path.join(FREEZE), if frozen { "1" } else { "0" })?;
    let deadline = Instant::now() + Duration::from_secs(5);
    while Instant::now() < deadline {
        let now = file::pairs(&path.join("cgroup.events")).iter().any(|(key, value)| key == "frozen" && *value == 1);
        if now == frozen {
            return Ok(());
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    if frozen {
        file::write(&path.join(FREEZE), "0")?;
    }
    Err(Error::Timeout { what: "the container to freeze" })
}

pub(super) fn is_frozen(path: &Path) -> bool {
    file::read(&path.join(FREEZE)).is_ok_and(|state| says_frozen(state.as_bytes()))
}

/// What [`FREEZE`] says.
pub(super) fn says_frozen(state: &[u8]) -> bool {
    state.trim_ascii() == b"1"
}

/// Reads everything the container has used. An absent controller leaves zeroes.
pub(super) fn stats(path: &Path) -> Result<V2> {
    let number = |name: &str| file::number_or_zero(&path.join(name));
    let pairs = |name: &str| file::pairs(&path.join(name));
    Ok(V2 {
        pids_current: number("pids.current"),
        pids_limit: number("pids.max"),
        cpu_stat: pairs("cpu.stat"),
        memory_stat: pairs("memory.stat"),
        memory_current: number("memory.current"),
        memory_limit: number("memory.max"),
        memory_peak: number("memory.peak"),
        swap_current: number("memory.swap.current"),
        swap_limit: number("memory.swap.max"),
        swap_peak: number("memory.swap.peak"),
        memory_events: pairs("memory.events"),
        io: file::read(&path.join("io.stat")).unwrap_or_default().lines().filter_map(io_device).collect(),
        hugetlb: super::v1::page_sizes(path, ".current").into_iter().map(|size| hugetlb(path, size)).collect(),
        pressure: ["cpu", "memory", "io"].into_iter().filter_map(|name| pressure(path, name)).collect(),
    })
}

fn hugetlb(path: &Path, size: String) -> (String, Counter) {
    let of = |name: &str| file::number_or_zero(&path.join(format!("hugetlb.{size}.{name}")));
    let events = file::pairs(&path.join(format!("hugetlb.{size}.events")));
    let failcnt = events.iter().find(|(key, _)| key == "max").map_or(0, |(_, value)| *value);
    let counter = Counter { usage: of("current"), max: 0, limit: of("max"), failcnt };
    (size, counter)
}

/// `8:0 rbytes=1 wbytes=2 …`.
fn io_device(line: &str) -> Option<IoDevice> {
    let mut words = line.split_whitespace();
    let (major, minor) = words.next()?.split_once(':')?;
    let value = |word: &str| word.split_once('=').and_then(|(key, value)| Some((key.to_owned(), value.parse().ok()?)));
    Some(IoDevice { major: major.parse().ok()?, minor: minor.parse().ok()?, values: words.filter_map(value).collect() })
}

fn pressure(path: &Path, name: &str) -> Option<(String, Pressure)> {
    let text = file::read(&path.join(format!("{name}.pressure"))).ok()?;
    let mut pressure = Pressure::default();
    for line in text.lines() {
        let parsed = pressure_line(line);
        match line.split(' ').next() {
            Some("some") => pressure.some = parsed,
            Some("full") => pressure.full = parsed,
            _ => {}
        }
    }
    Some((name.to_owned(), pressure))
}

fn pressure_line(line: &str) -> PressureLine {
    let mut parsed = PressureLine::default();
    for (key, value) in line.split(' ').filter_map(|word| word.split_once('=')) {
        match key {
            "avg10" => parsed.avg10 = value.parse().unwrap_or(0.0),
            "avg60" => parsed.avg60 = value.parse().unwrap_or(0.0),
            "avg300" => parsed.avg300 = value.parse().unwrap_or(0.0),
            "total" => parsed.total = value.parse().unwrap_or(0),
            _ => {}
        }
    }
    parsed
}

/// Watches `memory.events` for changes.
#[allow(unsafe_code)]
pub(super) fn oom_watch(path: &Path) -> Result<OomWatch> {
    let failed = |errno| Error::system("watch memory.events", std::io::Error::from_raw_os_error(errno));
    let fd = sys::raw!(libc::SYS_inotify_init1, libc::IN_CLOEXEC | libc::IN_NONBLOCK).map_err(failed)?;
    // SAFETY: the kernel just returned this descriptor to us.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let name = crate::plan::c_path(&path.join("memory.events"))?;
    sys::raw!(libc::SYS_inotify_add_watch, fd.as_raw_fd(), name.as_ptr(), libc::IN_MODIFY).map_err(failed)?;
    Ok(OomWatch::new(fd, OomSource::V2(path.to_owned())))
}

pub(super) fn take_oom(fd: &OwnedFd, path: &Path, seen: &mut u64) -> Result<u64> {
    let mut buffer = [0u8; 1024];
    while nix::unistd::read(fd, &mut buffer).is_ok_and(|length| length > 0) {}
    let kills = file::pairs(&path.join("memory.events"))
        .iter()
        .find(|(key, _)| key == "oom_kill")
        .map_or(*seen, |(_, value)| *value);
    let new = kills.saturating_sub(*seen);
    *seen = kills;
    Ok(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_become_weights_between_the_ends() {
        assert_eq!(weight_of_shares(2), 1);
        assert_eq!(weight_of_shares(1024), 100);
        assert_eq!(weight_of_shares(262_144), 10_000);
        assert!((3..=300_000).step_by(97).map(weight_of_shares).is_sorted());
    }

    #[test]
    fn swap_is_what_the_joint_limit_leaves() {
        assert_eq!(swap_only(Some(100), Some(150)).unwrap(), Some(50));
        assert_eq!(swap_only(Some(100), Some(100)).unwrap(), Some(0));
        assert_eq!(swap_only(Some(-1), None).unwrap(), Some(-1));
        assert!(swap_only(None, Some(100)).is_err());
        assert!(swap_only(Some(100), Some(50)).is_err());
    }
}
