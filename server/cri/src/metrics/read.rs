//! Reading the numbers.

use std::path::Path;

use gantry_api::pb::runtime::v1 as wire;

use super::Value;
use crate::cgroup::{Cgroups, value};

/// Ticks a second of the times in cgroup v1's `cpuacct.stat` (`USER_HZ`).
const TICKS: u64 = 100;
/// Limits at and above this are none.
const UNLIMITED: u64 = 1 << 62;
const NANO: u64 = 1_000_000_000;
const MICRO: u64 = 1_000_000;

/// A container's cgroup.
pub(super) struct Reading<'a> {
    pub(super) cgroups: &'a Cgroups,
    pub(super) path: &'a str,
}

impl Reading<'_> {
    /// Everything of the container with this first process.
    pub(super) fn all(&self, pid: u32) -> Vec<Value> {
        let mut all = if self.cgroups.is_v2() { self.cpu_v2() } else { self.cpu_v1() };
        all.extend(if self.cgroups.is_v2() { self.memory_v2() } else { self.memory_v1() });
        all.extend(self.blocks());
        all.extend(self.pressure());
        all.extend(self.huge_pages());
        all.extend(self.processes(pid));
        all
    }

    fn text(&self, controller: &str, file: &str) -> String {
        self.cgroups.read(controller, self.path, file).unwrap_or_default()
    }

    /// A file of one number; words such as `max` count as no limit: 0.
    fn number(&self, controller: &str, file: &str) -> u64 {
        self.text(controller, file).trim().parse().ok().filter(|number| *number < UNLIMITED).unwrap_or_default()
    }

    fn cpu_v1(&self) -> Vec<Value> {
        let stat = self.text("cpu", "cpu.stat");
        let times = self.text("cpuacct", "cpuacct.stat");
        let of = |text: &str, key: &str| value(text, key).unwrap_or_default();
        // A quota of -1 is none.
        vec![
            Value::new("container_spec_cpu_period", self.number("cpu", "cpu.cfs_period_us")),
            Value::new("container_spec_cpu_quota", self.number("cpu", "cpu.cfs_quota_us")),
            Value::new("container_spec_cpu_shares", self.number("cpu", "cpu.shares")),
            Value::new("container_cpu_usage_seconds_total", self.number("cpuacct", "cpuacct.usage") / NANO),
            Value::new("container_cpu_user_seconds_total", of(&times, "user") / TICKS),
            Value::new("container_cpu_system_seconds_total", of(&times, "system") / TICKS),
            Value::new("container_cpu_cfs_periods_total", of(&stat, "nr_periods")),
            Value::new("container_cpu_cfs_throttled_periods_total", of(&stat, "nr_throttled")),
            Value::new("container_cpu_cfs_throttled_seconds_total", of(&stat, "throttled_time") / NANO),
        ]
    }

    fn cpu_v2(&self) -> Vec<Value> {
        let stat = self.text("cpu", "cpu.stat");
        let of = |key: &str| value(&stat, key).unwrap_or_default();
        let max = self.text("cpu", "cpu.max");
        let mut max = max.split_ascii_whitespace();
        let quota = max.next().and_then(|quota| quota.parse().ok()).unwrap_or_default();
        let period = max.next().and_then(|period| period.parse().ok()).unwrap_or_default();
        // The kernel's weights 1 to 10000 stand for v1's shares 2 to 262144.
        let weight = self.number("cpu", "cpu.weight");
        let shares = if weight == 0 { 0 } else { 2 + (weight - 1) * 262_142 / 9_999 };
        vec![
            Value::new("container_spec_cpu_period", period),
            Value::new("container_spec_cpu_quota", quota),
            Value::new("container_spec_cpu_shares", shares),
            Value::new("container_cpu_usage_seconds_total", of("usage_usec") / MICRO),
            Value::new("container_cpu_user_seconds_total", of("user_usec") / MICRO),
            Value::new("container_cpu_system_seconds_total", of("system_usec") / MICRO),
            Value::new("container_cpu_cfs_periods_total", of("nr_periods")),
            Value::new("container_cpu_cfs_throttled_periods_total", of("nr_throttled")),
            Value::new("container_cpu_cfs_throttled_seconds_total", of("throttled_usec") / MICRO),
        ]
    }

    fn memory_v1(&self) -> Vec<Value> {
        let number = |file: &str| self.number("memory", file);
        let stat = self.text("memory", "memory.stat");
        let of = |key: &str| value(&stat, key).unwrap_or_default();
        let usage = number("memory.usage_in_bytes");
        let kills = value(&self.text("memory", "memory.oom_control"), "oom_kill").unwrap_or_default();
        let mut all =
            memory(usage, of("total_inactive_file"), of("total_active_file"), of("pgfault"), of("pgmajfault"));
        all.extend([
            Value::new("container_spec_memory_limit_bytes", number("memory.limit_in_bytes")),
            Value::new("container_spec_memory_reservation_limit_bytes", number("memory.soft_limit_in_bytes")),
            Value::new("container_spec_memory_swap_limit_bytes", number("memory.memsw.limit_in_bytes")),
            Value::new("container_memory_max_usage_bytes", number("memory.max_usage_in_bytes")),
            Value::new("container_memory_cache", of("total_cache")),
            Value::new("container_memory_rss", of("total_rss")),
            Value::new("container_memory_mapped_file", of("total_mapped_file")),
            Value::new("container_memory_kernel_usage", number("memory.kmem.usage_in_bytes")),
            Value::new("container_memory_swap", of("total_swap")),
            Value::new("container_memory_failcnt", number("memory.failcnt")),
            Value::new("container_oom_events_total", kills),
        ]);
        all
    }

    fn memory_v2(&self) -> Vec<Value> {
        let number = |file: &str| self.number("memory", file);
        let (stat, events) = (self.text("memory", "memory.stat"), self.text("memory", "memory.events"));
        let of = |key: &str| value(&stat, key).unwrap_or_default();
        let usage = number("memory.current");
        let mut all = memory(usage, of("inactive_file"), of("active_file"), of("pgfault"), of("pgmajfault"));
        all.extend([
            Value::new("container_spec_memory_limit_bytes", number("memory.max")),
            Value::new("container_spec_memory_reservation_limit_bytes", number("memory.low")),
            Value::new("container_spec_memory_swap_limit_bytes", number("memory.swap.max")),
            Value::new("container_memory_max_usage_bytes", number("memory.peak")),
            Value::new("container_memory_cache", of("file")),
            Value::new("container_memory_rss", of("anon")),
            Value::new("container_memory_mapped_file", of("file_mapped")),
            Value::new("container_memory_kernel_usage", of("kernel")),
            Value::new("container_memory_swap", number("memory.swap.current")),
            Value::new("container_memory_failcnt", value(&events, "max").unwrap_or_default()),
            Value::new("container_oom_events_total", value(&events, "oom_kill").unwrap_or_default()),
        ]);
        all
    }

    /// What went to and from block devices.
    fn blocks(&self) -> Vec<Value> {
        let mut all = Vec::new();
        let (bytes, counts) = if self.cgroups.is_v2() {
            let text = self.text("io", "io.stat");
            (
                nested(&text, &[("rbytes", "Read"), ("wbytes", "Write")]),
                nested(&text, &[("rios", "Read"), ("wios", "Write")]),
            )
        } else {
            let read = |file: &str| triples(&self.text("blkio", file));
            (read("blkio.throttle.io_service_bytes"), read("blkio.throttle.io_serviced"))
        };
        for (device, operation, count) in &bytes {
            let (major, minor) = device.split_once(':').unwrap_or((device, ""));
            let labels = [device.as_str(), major, minor, operation];
            all.push(Value::with("container_blkio_device_usage_total", &labels, *count));
        }
        let names = [
            (&bytes, "Read", "container_fs_reads_bytes_total"),
            (&bytes, "Write", "container_fs_writes_bytes_total"),
            (&counts, "Read", "container_fs_reads_total"),
            (&counts, "Write", "container_fs_writes_total"),
        ];
        for (of, wanted, name) in names {
            let found = of.iter().filter(|(_, operation, _)| operation == wanted);
            all.extend(found.map(|(device, _, count)| Value::with(name, &[device], *count)));
        }
        all
    }

    /// Pressure stall information, where the kernel has it: the cgroup's on v2, the node's own elsewhere.
    fn pressure(&self) -> Vec<Value> {
        const NAMES: [(&str, &str, &str); 3] = [
            ("cpu", "container_pressure_cpu_stalled_seconds_total", "container_pressure_cpu_waiting_seconds_total"),
            ("io", "container_pressure_io_stalled_seconds_total", "container_pressure_io_waiting_seconds_total"),
            (
                "memory",
                "container_pressure_memory_stalled_seconds_total",
                "container_pressure_memory_waiting_seconds_total",
            ),
        ];
        let mut all = Vec::new();
        for (kind, stalled, waiting) in NAMES {
            let text = match self.cgroups.is_v2() {
                true => self.text(kind, &format!("{kind}.pressure")),
                false => continue,
            };
            let total = |line: &str| {
                let found = text.lines().find(|candidate| candidate.starts_with(line))?;
                found.rsplit_once("total=")?.1.parse::<u64>().ok()
            };
            all.extend(total("full ").map(|total| Value::new(stalled, total / MICRO)));
            all.extend(total("some ").map(|total| Value::new(waiting, total / MICRO)));
        }
        all
    }

    fn huge_pages(&self) -> Vec<Value> {
        let sizes = std::fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten();
        let sizes = sizes.filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let kilobytes: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
            Some(if kilobytes >= 1 << 20 { format!("{}GB", kilobytes >> 20) } else { format!("{}MB", kilobytes >> 10) })
        });
        let mut all = Vec::new();
        for size in sizes.filter(|_| self.cgroups.has("hugetlb")) {
            let (now, most) = match self.cgroups.is_v2() {
                true => (format!("hugetlb.{size}.current"), format!("hugetlb.{size}.max")),
                false => (format!("hugetlb.{size}.usage_in_bytes"), format!("hugetlb.{size}.max_usage_in_bytes")),
            };
            let number = |file: &str| self.number("hugetlb", file);
            all.push(Value::with("container_hugetlb_usage_bytes", &[&size], number(&now)));
            all.push(Value::with("container_hugetlb_max_usage_bytes", &[&size], number(&most)));
        }
        all
    }

    fn processes(&self, first: u32) -> Vec<Value> {
        let controller = if self.cgroups.has("pids") { "pids" } else { "memory" };
        let pids = self.text(controller, "cgroup.procs");
        let pids: Vec<&str> = pids.lines().collect();
        let (mut descriptors, mut sockets, mut threads) = (0, 0, 0);
        for pid in &pids {
            let process = Path::new("/proc").join(pid);
            threads += std::fs::read_dir(process.join("task")).into_iter().flatten().count() as u64;
            for entry in std::fs::read_dir(process.join("fd")).into_iter().flatten().flatten() {
                descriptors += 1;
                let link = std::fs::read_link(entry.path()).unwrap_or_default();
                sockets += u64::from(link.to_string_lossy().starts_with("socket:"));
            }
        }
        vec![
            Value::new("container_processes", pids.len() as u64),
            Value::new("container_file_descriptors", descriptors),
            Value::new("container_sockets", sockets),
            Value::new("container_threads", threads),
            Value::new("container_threads_max", self.number("pids", "pids.max")),
            Value::with("container_ulimits_soft", &["max_open_files"], soft_limit(first).unwrap_or_default()),
        ]
    }
}

fn memory(usage: u64, inactive: u64, active: u64, faults: u64, major: u64) -> Vec<Value> {
    vec![
        Value::new("container_memory_usage_bytes", usage),
        Value::new("container_memory_working_set_bytes", usage.saturating_sub(inactive)),
        Value::new("container_memory_total_active_file_bytes", active),
        Value::new("container_memory_total_inactive_file_bytes", inactive),
        Value::with("container_memory_failures_total", &["pgfault", "container"], faults),
        Value::with("container_memory_failures_total", &["pgmajfault", "container"], major),
    ]
}

/// `DEVICE OPERATION NUMBER` lines of v1.
fn triples(text: &str) -> Vec<(String, String, u64)> {
    let one = |line: &str| {
        let mut parts = line.split_ascii_whitespace();
        Some((parts.next()?.to_owned(), parts.next()?.to_owned(), parts.next()?.parse().ok()?))
    };
    text.lines().filter_map(one).collect()
}

/// `DEVICE KEY=NUMBER …` lines of v2, the keys as v1 calls them.
fn nested(text: &str, names: &[(&str, &str)]) -> Vec<(String, String, u64)> {
    let mut all = Vec::new();
    for line in text.lines() {
        let mut parts = line.split_ascii_whitespace();
        let Some(device) = parts.next() else { continue };
        let pairs = parts.filter_map(|part| part.split_once('='));
        all.extend(pairs.filter_map(|(key, number)| {
            let (_, name) = names.iter().find(|(wanted, _)| *wanted == key)?;
            Some((device.to_owned(), (*name).to_owned(), number.parse().ok()?))
        }));
    }
    all
}

fn soft_limit(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// What went through the interfaces of a process' network namespace.
pub(super) fn network(pid: u32) -> Vec<Value> {
    const NAMES: [(usize, &str); 8] = [
        (0, "container_network_receive_bytes_total"),
        (1, "container_network_receive_packets_total"),
        (2, "container_network_receive_errors_total"),
        (3, "container_network_receive_packets_dropped_total"),
        (8, "container_network_transmit_bytes_total"),
        (9, "container_network_transmit_packets_total"),
        (10, "container_network_transmit_errors_total"),
        (11, "container_network_transmit_packets_dropped_total"),
    ];
    let text = std::fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap_or_default();
    let mut all = Vec::new();
    for (name, numbers) in text.lines().filter_map(|line| line.split_once(':')) {
        let name = name.trim();
        let numbers: Vec<u64> = numbers.split_ascii_whitespace().filter_map(|number| number.parse().ok()).collect();
        if name == "lo" || numbers.len() < 12 {
            continue;
        }
        all.extend(NAMES.map(|(at, metric)| Value::with(metric, &[name], numbers[at])));
    }
    all
}

/// The writable layer and the file system that it is on.
pub(super) fn filesystem(layer: &wire::FilesystemUsage) -> Vec<Value> {
    const DEVICE: [&str; 1] = ["/"];
    let number = |value: &Option<wire::UInt64Value>| value.as_ref().map(|value| value.value).unwrap_or_default();
    let mountpoint = layer.fs_id.as_ref().map(|id| id.mountpoint.as_str()).unwrap_or("/");
    let known = nix::sys::statvfs::statvfs(mountpoint).ok();
    let limit = known.as_ref().map(|known| known.blocks() * known.fragment_size()).unwrap_or_default();
    let free = known.as_ref().map(|known| known.files_free()).unwrap_or_default();
    vec![
        Value::with("container_fs_usage_bytes", &DEVICE, number(&layer.used_bytes)),
        Value::with("container_fs_limit_bytes", &DEVICE, limit),
        Value::with("container_fs_inodes_total", &DEVICE, number(&layer.inodes_used)),
        Value::with("container_fs_inodes_free", &DEVICE, free),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_of_both_versions_are_told_alike() {
        let v1 = triples("8:0 Read 10\n8:0 Write 20\nTotal 30\n");
        let v2 = nested("8:0 rbytes=10 wbytes=20 rios=1\n", &[("rbytes", "Read"), ("wbytes", "Write")]);
        assert_eq!(v1, v2);
    }
}
