//! From the kernel's numbers to the metrics messages that clients decode, for both cgroup versions.

use gantry_runtime::Stats;
use gantry_runtime::stats::{BlkioEntry, Counter, Pressure, PressureLine, V1, V2};
use gantry_ttrpc::pb::io::containerd::cgroups::{v1, v2};
use prost::{Message, Name};
use prost_types::Any;

/// Limits at or above this mean none, in version 1: the kernel rounds its maximum down to a page.
const NO_LIMIT: u64 = 0x7fff_ffff_ffff_f000;

/// The metrics message of the cgroup version at hand.
pub fn metrics(stats: Stats) -> Any {
    match stats {
        Stats::V1(stats) => any(&of_v1(*stats)),
        Stats::V2(stats) => any(&of_v2(*stats)),
    }
}

fn any<M: Message + Name>(message: &M) -> Any {
    Any { type_url: M::full_name(), value: message.encode_to_vec() }
}

fn of_v1(stats: V1) -> v1::Metrics {
    let throttling = v1::Throttle {
        periods: stats.throttling.periods,
        throttled_periods: stats.throttling.throttled_periods,
        throttled_time: stats.throttling.throttled_time,
    };
    let usage = v1::CpuUsage {
        total: stats.cpu_total,
        kernel: stats.cpu_kernel,
        user: stats.cpu_user,
        per_cpu: stats.cpu_percpu.clone(),
    };
    let oom = find(&stats.memory_oom_control);
    v1::Metrics {
        hugetlb: stats.hugetlb.iter().map(hugetlb_v1).collect(),
        pids: Some(v1::PidsStat { current: stats.pids_current, limit: stats.pids_limit }),
        cpu: Some(v1::CpuStat { usage: Some(usage), throttling: Some(throttling) }),
        memory: Some(memory_v1(&stats)),
        blkio: Some(blkio(&stats.blkio)),
        memory_oom_control: Some(v1::MemoryOomControl {
            oom_kill_disable: oom("oom_kill_disable"),
            under_oom: oom("under_oom"),
            oom_kill: oom("oom_kill"),
        }),
        ..v1::Metrics::default()
    }
}

fn hugetlb_v1((pagesize, counter): &(String, Counter)) -> v1::HugetlbStat {
    let Counter { usage, max, failcnt, .. } = *counter;
    v1::HugetlbStat { usage, max, failcnt, pagesize: pagesize.clone() }
}

fn entry(counter: Counter) -> Option<v1::MemoryEntry> {
    let limit = if counter.limit >= NO_LIMIT { u64::MAX } else { counter.limit };
    Some(v1::MemoryEntry { limit, usage: counter.usage, max: counter.max, failcnt: counter.failcnt })
}

fn memory_v1(stats: &V1) -> v1::MemoryStat {
    let of = find(&stats.memory_stat);
    v1::MemoryStat {
        cache: of("cache"),
        rss: of("rss"),
        rss_huge: of("rss_huge"),
        mapped_file: of("mapped_file"),
        dirty: of("dirty"),
        writeback: of("writeback"),
        pg_pg_in: of("pgpgin"),
        pg_pg_out: of("pgpgout"),
        pg_fault: of("pgfault"),
        pg_maj_fault: of("pgmajfault"),
        inactive_anon: of("inactive_anon"),
        active_anon: of("active_anon"),
        inactive_file: of("inactive_file"),
        active_file: of("active_file"),
        unevictable: of("unevictable"),
        hierarchical_memory_limit: of("hierarchical_memory_limit"),
        hierarchical_swap_limit: of("hierarchical_memsw_limit"),
        total_cache: of("total_cache"),
        total_rss: of("total_rss"),
        total_rss_huge: of("total_rss_huge"),
        total_mapped_file: of("total_mapped_file"),
        total_dirty: of("total_dirty"),
        total_writeback: of("total_writeback"),
        total_pg_pg_in: of("total_pgpgin"),
        total_pg_pg_out: of("total_pgpgout"),
        total_pg_fault: of("total_pgfault"),
        total_pg_maj_fault: of("total_pgmajfault"),
        total_inactive_anon: of("total_inactive_anon"),
        total_active_anon: of("total_active_anon"),
        total_inactive_file: of("total_inactive_file"),
        total_active_file: of("total_active_file"),
        total_unevictable: of("total_unevictable"),
        usage: entry(stats.memory),
        swap: entry(stats.memory_swap),
        kernel: entry(stats.memory_kernel),
        kernel_tcp: entry(stats.memory_kernel_tcp),
    }
}

fn blkio(tables: &[(String, Vec<BlkioEntry>)]) -> v1::BlkIoStat {
    let table = |names: &[&str]| -> Vec<v1::BlkIoEntry> {
        let found = tables.iter().find(|(name, _)| names.contains(&name.as_str()));
        found.into_iter().flat_map(|(_, entries)| entries).map(blkio_entry).collect()
    };
    v1::BlkIoStat {
        io_service_bytes_recursive: table(&["io_service_bytes_recursive", "throttle.io_service_bytes"]),
        io_serviced_recursive: table(&["io_serviced_recursive", "throttle.io_serviced"]),
        io_queued_recursive: table(&["io_queued_recursive"]),
        io_service_time_recursive: table(&["io_service_time_recursive"]),
        io_wait_time_recursive: table(&["io_wait_time_recursive"]),
        io_merged_recursive: table(&["io_merged_recursive"]),
        io_time_recursive: table(&["time_recursive"]),
        sectors_recursive: table(&["sectors_recursive"]),
    }
}

fn blkio_entry(entry: &BlkioEntry) -> v1::BlkIoEntry {
    let BlkioEntry { major, minor, op, value } = entry.clone();
    v1::BlkIoEntry { op, device: format!("{major}:{minor}"), major, minor, value }
}

fn of_v2(stats: V2) -> v2::Metrics {
    let cpu = find(&stats.cpu_stat);
    let events = find(&stats.memory_events);
    let psi = |name: &str| stats.pressure.iter().find(|(resource, _)| resource == name).map(|(_, p)| pressure(p));
    v2::Metrics {
        pids: Some(v2::PidsStat { current: stats.pids_current, limit: stats.pids_limit }),
        cpu: Some(v2::CpuStat {
            usage_usec: cpu("usage_usec"),
            user_usec: cpu("user_usec"),
            system_usec: cpu("system_usec"),
            nr_periods: cpu("nr_periods"),
            nr_throttled: cpu("nr_throttled"),
            throttled_usec: cpu("throttled_usec"),
            psi: psi("cpu"),
            nr_bursts: cpu("nr_bursts"),
            burst_usec: cpu("burst_usec"),
        }),
        memory: Some(v2::MemoryStat { psi: psi("memory"), ..memory_v2(&stats) }),
        io: Some(v2::IoStat { usage: io_v2(&stats), psi: psi("io") }),
        hugetlb: stats.hugetlb.iter().map(hugetlb_v2).collect(),
        memory_events: Some(v2::MemoryEvents {
            low: events("low"),
            high: events("high"),
            max: events("max"),
            oom: events("oom"),
            oom_kill: events("oom_kill"),
            oom_group_kill: events("oom_group_kill"),
        }),
        ..v2::Metrics::default()
    }
}

fn memory_v2(stats: &V2) -> v2::MemoryStat {
    let of = find(&stats.memory_stat);
    v2::MemoryStat {
        anon: of("anon"),
        file: of("file"),
        kernel_stack: of("kernel_stack"),
        slab: of("slab"),
        sock: of("sock"),
        shmem: of("shmem"),
        file_mapped: of("file_mapped"),
        file_dirty: of("file_dirty"),
        file_writeback: of("file_writeback"),
        anon_thp: of("anon_thp"),
        inactive_anon: of("inactive_anon"),
        active_anon: of("active_anon"),
        inactive_file: of("inactive_file"),
        active_file: of("active_file"),
        unevictable: of("unevictable"),
        slab_reclaimable: of("slab_reclaimable"),
        slab_unreclaimable: of("slab_unreclaimable"),
        pgfault: of("pgfault"),
        pgmajfault: of("pgmajfault"),
        workingset_refault: of("workingset_refault_anon") + of("workingset_refault_file"),
        workingset_activate: of("workingset_activate_anon") + of("workingset_activate_file"),
        workingset_nodereclaim: of("workingset_nodereclaim"),
        pgrefill: of("pgrefill"),
        pgscan: of("pgscan"),
        pgsteal: of("pgsteal"),
        pgactivate: of("pgactivate"),
        pgdeactivate: of("pgdeactivate"),
        pglazyfree: of("pglazyfree"),
        pglazyfreed: of("pglazyfreed"),
        thp_fault_alloc: of("thp_fault_alloc"),
        thp_collapse_alloc: of("thp_collapse_alloc"),
        usage: stats.memory_current,
        usage_limit: stats.memory_limit,
        swap_usage: stats.swap_current,
        swap_limit: stats.swap_limit,
        max_usage: stats.memory_peak,
        swap_max_usage: stats.swap_peak,
        psi: None,
    }
}

fn io_v2(stats: &V2) -> Vec<v2::IoEntry> {
    let device = |device: &gantry_runtime::stats::IoDevice| {
        let of = find(&device.values);
        let (rbytes, wbytes, rios, wios) = (of("rbytes"), of("wbytes"), of("rios"), of("wios"));
        v2::IoEntry { major: device.major, minor: device.minor, rbytes, wbytes, rios, wios }
    };
    stats.io.iter().map(device).collect()
}

fn hugetlb_v2((pagesize, counter): &(String, Counter)) -> v2::HugeTlbStat {
    let Counter { usage, limit, failcnt, .. } = *counter;
    v2::HugeTlbStat { current: usage, max: limit, pagesize: pagesize.clone(), failcnt }
}

fn pressure(pressure: &Pressure) -> v2::PsiStats {
    let line = |line: PressureLine| {
        let PressureLine { avg10, avg60, avg300, total } = line;
        Some(v2::PsiData { avg10, avg60, avg300, total })
    };
    v2::PsiStats { some: line(pressure.some), full: line(pressure.full) }
}

/// Looks a name up in a flat file's lines; absent is 0.
fn find(lines: &[(String, u64)]) -> impl Fn(&str) -> u64 {
    |name| lines.iter().find(|(key, _)| key == name).map_or(0, |&(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_arrive_in_their_fields() {
        let counter = Counter { usage: 5, max: 6, limit: u64::MAX, failcnt: 1 };
        let stats = V1 {
            cpu_total: 9,
            memory: counter,
            memory_stat: vec![("rss".into(), 4)],
            blkio: vec![(
                "throttle.io_serviced".into(),
                vec![BlkioEntry { major: 8, minor: 1, op: "Read".into(), value: 3 }],
            )],
            ..V1::default()
        };
        let any = metrics(Stats::V1(Box::new(stats)));
        assert_eq!(any.type_url, "io.containerd.cgroups.v1.Metrics");
        let decoded = v1::Metrics::decode(any.value.as_slice()).unwrap();
        assert_eq!(decoded.cpu.unwrap().usage.unwrap().total, 9);
        let memory = decoded.memory.unwrap();
        assert_eq!((memory.rss, memory.usage.unwrap().usage), (4, 5));
        assert_eq!(decoded.blkio.unwrap().io_serviced_recursive[0].device, "8:1");
    }
}
