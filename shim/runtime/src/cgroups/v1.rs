//! cgroup v1 (kernel: Documentation/admin-guide/cgroup-v1): each controller in its hierarchy.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use super::{Hierarchy, OomSource, devices, file};
use crate::container::OomWatch;
use crate::error::{Error, Result};
use crate::spec::{BlockIo, Cpu, DeviceRule, Memory, Resources};
use crate::stats::{BlkioEntry, Counter, Throttling, V1};
use crate::sys;

/// Whether a hierarchy's processes are frozen.
pub(super) const STATE: &str = "freezer.state";

/// Makes the container's directory in a hierarchy.
pub(super) fn make(hierarchy: &Hierarchy) -> Result<()> {
    file::make_directory(&hierarchy.path)?;
    if hierarchy.has("cpuset") { inherit_cpuset(&hierarchy.path) } else { Ok(()) }
}

/// A new cpuset has no processors and no memory nodes, and nobody can join it until it has.
fn inherit_cpuset(path: &Path) -> Result<()> {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        inherit(path, name)?;
    }
    Ok(())
}

fn inherit(path: &Path, name: &str) -> Result<String> {
    let own = file::read(&path.join(name))?;
    if !own.trim().is_empty() {
        return Ok(own);
    }
    let Some(parent) = path.parent().filter(|parent| parent.join(name).exists()) else { return Ok(own) };
    let inherited = inherit(parent, name)?;
    file::write(&path.join(name), inherited.trim())?;
    Ok(inherited)
}

/// Finds the directory of a controller; its absence is an error that names it.
fn controller<'a>(all: &'a [Hierarchy], controller: &'static str) -> Result<&'a Path> {
    all.iter()
        .find(|hierarchy| hierarchy.has(controller))
        .map(|hierarchy| hierarchy.path.as_path())
        .ok_or(Error::NoController { controller })
}

/// Sets limits. `new`: device rules start from what every container needs.
pub(super) fn limit(all: &[Hierarchy], resources: &Resources, new: bool) -> Result<()> {
    if new || !resources.devices.is_empty() {
        limit_devices(all, &resources.devices)?;
    }
    if let Some(memory) = &resources.memory {
        limit_memory(all, memory)?;
    }
    if let Some(cpu) = &resources.cpu {
        limit_cpu(all, cpu)?;
    }
    if let Some(limit) = resources.pids.as_ref().and_then(|pids| pids.limit).filter(|limit| *limit != 0) {
        let value = if limit > 0 { limit.to_string() } else { "max".to_owned() };
        file::write(&controller(all, "pids")?.join("pids.max"), &value)?;
    }
    if let Some(block) = &resources.block_io {
        limit_block(all, block)?;
    }
    for limit in &resources.hugepage_limits {
        limit_hugepages(all, &limit.page_size, limit.limit)?;
    }
    if let Some(network) = &resources.network {
        limit_network(all, network)?;
    }
    for (device, limit) in &resources.rdma {
        let number = |value: Option<u32>| value.map_or("max".to_owned(), |value| value.to_string());
        let value =
            format!("{device} hca_handle={} hca_object={}", number(limit.hca_handles), number(limit.hca_objects));
        file::write(&controller(all, "rdma")?.join("rdma.max"), &value)?;
    }
    Ok(())
}

fn limit_devices(all: &[Hierarchy], configured: &[DeviceRule]) -> Result<()> {
    let Ok(directory) = controller(all, "devices") else {
        // Without the controller nothing can be denied, so a rule that denies must not pass silently.
        let denies = configured.iter().any(|rule| !rule.allow);
        return if denies { Err(Error::NoController { controller: "devices" }) } else { Ok(()) };
    };
    let paths = [directory.join("devices.deny"), directory.join("devices.allow")];
    let files = [file::open_write(&paths[0])?, file::open_write(&paths[1])?];
    for rule in devices::rules(configured)? {
        let at = usize::from(rule.allow);
        for line in rule.lines() {
            sys::write_once(files[at].0, line.as_bytes()).map_err(|errno| Error::Cgroup {
                path: paths[at].clone(),
                value: line.clone(),
                source: std::io::Error::from_raw_os_error(errno),
            })?;
        }
    }
    Ok(())
}

fn limit_memory(all: &[Hierarchy], memory: &Memory) -> Result<()> {
    let directory = || controller(all, "memory");
    let set = |name: &str, value: i64| file::write(&directory()?.join(name), &value.to_string());
    let limit = memory.limit.filter(|limit| *limit != 0);
    // Lifting the memory limit lifts the joint one too, or the kernel refuses.
    let swap =
        memory.swap.filter(|swap| *swap != 0).or(if limit == Some(-1) && has_swap(all) { Some(-1) } else { None });
    match (limit, swap) {
        (Some(limit), Some(swap)) => limit_both(directory()?, limit, swap)?,
        (Some(limit), None) => set_memory_limit(directory()?, limit)?,
        (None, Some(swap)) => set("memory.memsw.limit_in_bytes", swap)?,
        (None, None) => {}
    }
    if let Some(reservation) = memory.reservation.filter(|value| *value != 0) {
        set("memory.soft_limit_in_bytes", reservation)?;
    }
    if let Some(limit) = memory.kernel_tcp.filter(|value| *value != 0) {
        set("memory.kmem.tcp.limit_in_bytes", limit)?;
    }
    if memory.disable_oom_killer == Some(true) {
        set("memory.oom_control", 1)?;
    }
    match memory.swappiness {
        None => Ok(()),
        Some(value) if value <= 100 => set("memory.swappiness", value as i64),
        Some(value) => Err(Error::invalid("linux.resources.memory.swappiness", format!("{value} is above 100"))),
    }
}

fn has_swap(all: &[Hierarchy]) -> bool {
    controller(all, "memory").is_ok_and(|directory| directory.join("memory.memsw.limit_in_bytes").exists())
}

/// The joint limit may never be below the memory limit, also not for a moment.
fn limit_both(directory: &Path, limit: i64, swap: i64) -> Result<()> {
    let joint = directory.join("memory.memsw.limit_in_bytes");
    let current = file::read_number(&directory.join("memory.limit_in_bytes"))?;
    if swap == -1 || current < swap as u64 {
        file::write(&joint, &swap.to_string())?;
        set_memory_limit(directory, limit)
    } else {
        set_memory_limit(directory, limit)?;
        file::write(&joint, &swap.to_string())
    }
}

fn set_memory_limit(directory: &Path, limit: i64) -> Result<()> {
    file::write(&directory.join("memory.limit_in_bytes"), &limit.to_string())
}

fn limit_cpu(all: &[Hierarchy], cpu: &Cpu) -> Result<()> {
    let set = |name: &str, value: String| file::write(&controller(all, "cpu")?.join(name), &value);
    if let Some(shares) = cpu.shares.filter(|shares| *shares != 0) {
        set("cpu.shares", shares.to_string())?;
    }
    if let Some(period) = cpu.realtime_period.filter(|period| *period != 0) {
        set("cpu.rt_period_us", period.to_string())?;
    }
    if let Some(runtime) = cpu.realtime_runtime.filter(|runtime| *runtime != 0) {
        set("cpu.rt_runtime_us", runtime.to_string())?;
    }
    limit_bandwidth(all, cpu)?;
    if let Some(idle) = cpu.idle {
        set("cpu.idle", idle.to_string())?;
    }
    for (name, value) in [("cpuset.cpus", &cpu.cpus), ("cpuset.mems", &cpu.mems)] {
        if !value.is_empty() {
            file::write(&controller(all, "cpuset")?.join(name), value)?;
        }
    }
    Ok(())
}

fn limit_bandwidth(all: &[Hierarchy], cpu: &Cpu) -> Result<()> {
    let set = |name: &str, value: &str| file::write(&controller(all, "cpu")?.join(name), value);
    let period = cpu.period.filter(|period| *period != 0);
    let quota = cpu.quota.filter(|quota| *quota != 0);
    if let Some(period) = period {
        // A shorter period can be refused while the old quota stands, and the other way round: try again after it.
        let first = set("cpu.cfs_period_us", &period.to_string());
        if first.is_err() && quota.is_none() {
            return first;
        }
        if first.is_err() {
            set("cpu.cfs_quota_us", &quota.unwrap_or(-1).to_string())?;
            set("cpu.cfs_period_us", &period.to_string())?;
        }
    }
    if let Some(quota) = quota {
        set("cpu.cfs_quota_us", &quota.to_string())?;
    }
    if let Some(burst) = cpu.burst {
        set("cpu.cfs_burst_us", &burst.to_string())?;
    }
    Ok(())
}

fn limit_block(all: &[Hierarchy], block: &BlockIo) -> Result<()> {
    let directory = || controller(all, "blkio");
    let set = |name: &str, value: String| file::write(&directory()?.join(name), &value);
    // BFQ's files stand in for CFQ's, which went with that scheduler.
    let weight_file = |name: &str, bfq: &'static str| -> Result<String> {
        let directory = directory()?;
        Ok(if directory.join(name).exists() || !directory.join(bfq).exists() {
            name.to_owned()
        } else {
            bfq.to_owned()
        })
    };
    if let Some(weight) = block.weight.filter(|weight| *weight != 0) {
        set(&weight_file("blkio.weight", "blkio.bfq.weight")?, weight.to_string())?;
    }
    if let Some(weight) = block.leaf_weight.filter(|weight| *weight != 0) {
        set("blkio.leaf_weight", weight.to_string())?;
    }
    for device in &block.weight_device {
        let name = format!("{}:{}", device.major, device.minor);
        if let Some(weight) = device.weight.filter(|weight| *weight != 0) {
            set(&weight_file("blkio.weight_device", "blkio.bfq.weight_device")?, format!("{name} {weight}"))?;
        }
        if let Some(weight) = device.leaf_weight.filter(|weight| *weight != 0) {
            set("blkio.leaf_weight_device", format!("{name} {weight}"))?;
        }
    }
    for (name, devices) in [
        ("blkio.throttle.read_bps_device", &block.throttle_read_bps_device),
        ("blkio.throttle.write_bps_device", &block.throttle_write_bps_device),
        ("blkio.throttle.read_iops_device", &block.throttle_read_iops_device),
        ("blkio.throttle.write_iops_device", &block.throttle_write_iops_device),
    ] {
        for device in devices {
            set(name, format!("{}:{} {}", device.major, device.minor, device.rate))?;
        }
    }
    Ok(())
}

fn limit_hugepages(all: &[Hierarchy], size: &str, limit: u64) -> Result<()> {
    let directory = controller(all, "hugetlb")?;
    check_page_size(size)?;
    file::write(&directory.join(format!("hugetlb.{size}.limit_in_bytes")), &limit.to_string())?;
    let reserved = directory.join(format!("hugetlb.{size}.rsvd.limit_in_bytes"));
    if reserved.exists() { file::write(&reserved, &limit.to_string()) } else { Ok(()) }
}

/// The size becomes part of a file name.
pub(super) fn check_page_size(size: &str) -> Result<()> {
    let good = !size.is_empty() && size.chars().all(|c| c.is_ascii_alphanumeric());
    if good { Ok(()) } else { Err(Error::invalid("linux.resources.hugepageLimits", format!("page size {size:?}"))) }
}

fn limit_network(all: &[Hierarchy], network: &crate::spec::Network) -> Result<()> {
    if let Some(class) = network.class_id.filter(|class| *class != 0) {
        file::write(&controller(all, "net_cls")?.join("net_cls.classid"), &class.to_string())?;
    }
    for interface in &network.priorities {
        let value = format!("{} {}", interface.name, interface.priority);
        file::write(&controller(all, "net_prio")?.join("net_prio.ifpriomap"), &value)?;
    }
    Ok(())
}

/// Freezes or thaws. A process that forks while it is being frozen can keep the state at FREEZING: then thaw for a
/// moment and try again.
pub(super) fn freeze(path: &Path, frozen: bool) -> Result<()> {
    let state = path.join(STATE);
    if !frozen {
        return file::write(&state, "THAWED");
    }
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut rounds = 0;
    while Instant::now() < deadline {
        file::write(&state, "FROZEN")?;
        for _ in 0..25 {
            if file::read(&state)?.trim() == "FROZEN" {
                return Ok(());
            }
            std::thread::sleep(Duration::from_micros(100 + 100 * rounds.min(20)));
        }
        rounds += 1;
        if rounds % 4 == 0 {
            file::write(&state, "THAWED")?;
        }
    }
    file::write(&state, "THAWED")?;
    Err(Error::Timeout { what: "the container to freeze" })
}

pub(super) fn is_frozen(path: &Path) -> bool {
    file::read(&path.join(STATE)).is_ok_and(|state| says_frozen(state.as_bytes()))
}

/// What [`STATE`] says.
pub(super) fn says_frozen(state: &[u8]) -> bool {
    matches!(state.trim_ascii(), b"FROZEN" | b"FREEZING")
}

/// Reads everything the container has used. An absent controller leaves zeroes.
pub(super) fn stats(all: &[Hierarchy]) -> Result<V1> {
    let mut stats = V1::default();
    if let Ok(path) = controller(all, "cpuacct") {
        cpu_stats(path, &mut stats);
    }
    if let Ok(path) = controller(all, "cpu") {
        let pairs = file::pairs(&path.join("cpu.stat"));
        let of = |name: &str| pairs.iter().find(|(key, _)| key == name).map_or(0, |(_, value)| *value);
        stats.throttling = Throttling {
            periods: of("nr_periods"),
            throttled_periods: of("nr_throttled"),
            throttled_time: of("throttled_time"),
        };
    }
    if let Ok(path) = controller(all, "pids") {
        stats.pids_current = file::number_or_zero(&path.join("pids.current"));
        stats.pids_limit = Some(file::number_or_zero(&path.join("pids.max"))).filter(|n| *n != u64::MAX).unwrap_or(0);
    }
    if let Ok(path) = controller(all, "memory") {
        stats.memory_stat = file::pairs(&path.join("memory.stat"));
        stats.memory_oom_control = file::pairs(&path.join("memory.oom_control"));
        stats.memory = counter(path, "memory");
        stats.memory_swap = counter(path, "memory.memsw");
        stats.memory_kernel = counter(path, "memory.kmem");
        stats.memory_kernel_tcp = counter(path, "memory.kmem.tcp");
    }
    if let Ok(path) = controller(all, "blkio") {
        stats.blkio = blkio_stats(path);
    }
    if let Ok(path) = controller(all, "hugetlb") {
        stats.hugetlb = page_sizes(path, ".usage_in_bytes")
            .into_iter()
            .map(|size| {
                let counter = counter(path, &format!("hugetlb.{size}"));
                (size, counter)
            })
            .collect();
    }
    Ok(stats)
}

fn cpu_stats(path: &Path, stats: &mut V1) {
    /// `cpuacct.stat` counts in USER_HZ ticks, which is 100 a second on every architecture of ours.
    const TICK: u64 = 10_000_000;
    stats.cpu_total = file::number_or_zero(&path.join("cpuacct.usage"));
    let percpu = file::read(&path.join("cpuacct.usage_percpu")).unwrap_or_default();
    stats.cpu_percpu = percpu.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    for (key, value) in file::pairs(&path.join("cpuacct.stat")) {
        match key.as_str() {
            "user" => stats.cpu_user = value.saturating_mul(TICK),
            "system" => stats.cpu_kernel = value.saturating_mul(TICK),
            _ => {}
        }
    }
}

fn counter(path: &Path, prefix: &str) -> Counter {
    let of = |name: &str| file::number_or_zero(&path.join(format!("{prefix}.{name}")));
    Counter {
        usage: of("usage_in_bytes"),
        max: of("max_usage_in_bytes"),
        limit: of("limit_in_bytes"),
        failcnt: of("failcnt"),
    }
}

/// Page sizes that have a `hugetlb.SIZE` + suffix file.
pub(super) fn page_sizes(path: &Path, suffix: &str) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(path) else { return Vec::new() };
    let mut sizes: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter_map(|name| name.strip_prefix("hugetlb.")?.strip_suffix(suffix).map(str::to_owned))
        .filter(|size| !size.contains('.'))
        .collect();
    sizes.sort();
    sizes
}

fn blkio_stats(path: &Path) -> Vec<(String, Vec<BlkioEntry>)> {
    const TABLES: [&str; 9] = [
        "io_service_bytes_recursive",
        "io_serviced_recursive",
        "io_queued_recursive",
        "io_service_time_recursive",
        "io_wait_time_recursive",
        "io_merged_recursive",
        "time_recursive",
        "throttle.io_service_bytes_recursive",
        "throttle.io_serviced_recursive",
    ];
    let mut tables = Vec::new();
    for name in TABLES {
        for prefix in ["blkio.", "blkio.bfq."] {
            if let Ok(text) = file::read(&path.join(format!("{prefix}{name}"))) {
                tables.push((name.to_owned(), text.lines().filter_map(blkio_entry).collect()));
                break;
            }
        }
    }
    tables
}

/// `8:0 Read 4096`, or `8:0 12`; a `Total` line has no device and is left out.
fn blkio_entry(line: &str) -> Option<BlkioEntry> {
    let mut words = line.split_whitespace();
    let (major, minor) = words.next()?.split_once(':')?;
    let second = words.next()?;
    let (op, value) = match words.next() {
        Some(value) => (second, value),
        None => ("", second),
    };
    Some(BlkioEntry {
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
        op: op.to_owned(),
        value: value.parse().ok()?,
    })
}

/// Registers an eventfd for the cgroup's out-of-memory events.
#[allow(unsafe_code)]
pub(super) fn oom_watch(path: &Path) -> Result<OomWatch> {
    let control = std::fs::File::open(path.join("memory.oom_control"))
        .map_err(|source| Error::file("open", path.join("memory.oom_control"), source))?;
    let event = sys::raw!(libc::SYS_eventfd2, 0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK)
        .map_err(|errno| Error::system("eventfd", std::io::Error::from_raw_os_error(errno)))?;
    // SAFETY: the kernel just returned this descriptor to us.
    let event = unsafe { OwnedFd::from_raw_fd(event as i32) };
    file::write(&path.join("cgroup.event_control"), &format!("{} {}", event.as_raw_fd(), control.as_raw_fd()))?;
    Ok(OomWatch::new(event, OomSource::V1(path.to_owned())))
}

/// The removal of the cgroup also makes the eventfd readable; that is no kill.
pub(super) fn take_oom(fd: &OwnedFd, path: &Path) -> Result<u64> {
    let mut count = [0u8; 8];
    let read = nix::unistd::read(fd, &mut count).unwrap_or(0);
    if read < 8 || !path.join("memory.oom_control").exists() {
        return Ok(0);
    }
    Ok(u64::from_ne_bytes(count))
}
