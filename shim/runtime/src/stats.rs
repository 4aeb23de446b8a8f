//! What a container's cgroup has used: raw numbers, as the kernel's files say them, for both cgroup versions.

/// What the cgroup of any process has used: for containers that another runtime made.
///
/// # Errors
/// [`crate::Error::File`] when the process is gone.
pub fn of_process(pid: i32) -> crate::Result<Stats> {
    crate::cgroups::Cgroup::of_process(pid)?.stats()
}

/// Usage of a container's cgroup.
#[derive(Clone, Debug)]
pub enum Stats {
    /// From cgroup v1 hierarchies.
    V1(Box<V1>),
    /// From the unified hierarchy.
    V2(Box<V2>),
}

/// cgroup v1. Members of an absent controller are zero or empty.
#[derive(Clone, Debug, Default)]
pub struct V1 {
    /// `cpuacct.usage`, nanoseconds.
    pub cpu_total: u64,
    /// `cpuacct.usage_percpu`, nanoseconds per CPU.
    pub cpu_percpu: Vec<u64>,
    /// User time, nanoseconds.
    pub cpu_user: u64,
    /// System time, nanoseconds.
    pub cpu_kernel: u64,
    /// `cpu.stat`: `nr_periods`, `nr_throttled`, `throttled_time` (nanoseconds).
    pub throttling: Throttling,
    /// `pids.current`.
    pub pids_current: u64,
    /// `pids.max`; 0 means no limit.
    pub pids_limit: u64,
    /// `memory.stat`, every line.
    pub memory_stat: Vec<(String, u64)>,
    /// `memory.*`.
    pub memory: Counter,
    /// `memory.memsw.*`.
    pub memory_swap: Counter,
    /// `memory.kmem.*`.
    pub memory_kernel: Counter,
    /// `memory.kmem.tcp.*`.
    pub memory_kernel_tcp: Counter,
    /// `memory.oom_control`, every line (`oom_kill_disable`, `under_oom`, `oom_kill`).
    pub memory_oom_control: Vec<(String, u64)>,
    /// `blkio.*_recursive` (or throttle) tables by file name without the `blkio.` prefix: `throttle.io_service_bytes`.
    pub blkio: Vec<(String, Vec<BlkioEntry>)>,
    /// Per huge page size: size, usage, max, failcnt.
    pub hugetlb: Vec<(String, Counter)>,
}

/// A v1 resource counter, bytes. A limit of `u64::MAX` or the kernel's page-rounded maximum means none.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct Counter {
    pub usage: u64,
    pub max: u64,
    pub limit: u64,
    pub failcnt: u64,
}

/// CPU bandwidth throttling.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct Throttling {
    pub periods: u64,
    pub throttled_periods: u64,
    pub throttled_time: u64,
}

/// One line of a blkio table.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct BlkioEntry {
    pub major: u64,
    pub minor: u64,
    /// `Read`, `Write`, …; empty when the table has none.
    pub op: String,
    pub value: u64,
}

/// cgroup v2. Members of an absent controller are zero or empty.
#[derive(Clone, Debug, Default)]
pub struct V2 {
    /// `pids.current`.
    pub pids_current: u64,
    /// `pids.max`; `u64::MAX` means no limit.
    pub pids_limit: u64,
    /// `cpu.stat`, every line (`usage_usec`, …).
    pub cpu_stat: Vec<(String, u64)>,
    /// `memory.stat`, every line.
    pub memory_stat: Vec<(String, u64)>,
    /// `memory.current`, bytes.
    pub memory_current: u64,
    /// `memory.max`; `u64::MAX` means no limit.
    pub memory_limit: u64,
    /// `memory.peak`.
    pub memory_peak: u64,
    /// `memory.swap.current`.
    pub swap_current: u64,
    /// `memory.swap.max`; `u64::MAX` means no limit.
    pub swap_limit: u64,
    /// `memory.swap.peak`.
    pub swap_peak: u64,
    /// `memory.events`, every line (`low`, `high`, `max`, `oom`, `oom_kill`).
    pub memory_events: Vec<(String, u64)>,
    /// `io.stat`: device and its `rbytes`, `wbytes`, `rios`, `wios`, ….
    pub io: Vec<IoDevice>,
    /// Per huge page size: `current`, `max`, and `events`' `max` count.
    pub hugetlb: Vec<(String, Counter)>,
    /// `{cpu,memory,io}.pressure`.
    pub pressure: Vec<(String, Pressure)>,
}

/// One device of `io.stat`.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct IoDevice {
    pub major: u64,
    pub minor: u64,
    pub values: Vec<(String, u64)>,
}

/// Pressure stall information of one resource.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct Pressure {
    pub some: PressureLine,
    pub full: PressureLine,
}

/// One line of a pressure file; averages in per cent, total in microseconds.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct PressureLine {
    pub avg10: f64,
    pub avg60: f64,
    pub avg300: f64,
    pub total: u64,
}
