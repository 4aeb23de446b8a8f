//! Which metrics there are.

/// What a metric is called and means.
pub(crate) struct Metric {
    pub(crate) name: &'static str,
    pub(crate) help: &'static str,
    /// Labels beyond those that all have.
    pub(crate) labels: &'static [&'static str],
    /// Whether it only ever rises.
    pub(crate) counter: bool,
}

const fn gauge(name: &'static str, help: &'static str, labels: &'static [&'static str]) -> Metric {
    Metric { name, help, labels, counter: false }
}

const fn counter(name: &'static str, help: &'static str, labels: &'static [&'static str]) -> Metric {
    Metric { name, help, labels, counter: true }
}

/// All of them.
#[rustfmt::skip]
pub(crate) const METRICS: &[Metric] = &[
    gauge("container_last_seen", "When the container was last seen, seconds since 1970", &[]),
    gauge("container_start_time_seconds", "When the container was started, seconds since 1970", &[]),
    gauge("container_spec_cpu_period", "Length of a CPU period, microseconds", &[]),
    gauge("container_spec_cpu_shares", "Relative weight among siblings", &[]),
    gauge("container_spec_memory_limit_bytes", "Limit of memory", &[]),
    gauge("container_spec_memory_reservation_limit_bytes", "Soft limit of memory", &[]),
    gauge("container_spec_memory_swap_limit_bytes", "Limit of memory and swap together", &[]),
    counter("container_cpu_user_seconds_total", "CPU time in user mode", &[]),
    counter("container_cpu_system_seconds_total", "CPU time in the kernel", &[]),
    counter("container_cpu_usage_seconds_total", "CPU time", &[]),
    counter("container_cpu_cfs_periods_total", "CPU periods that have passed", &[]),
    counter("container_cpu_cfs_throttled_periods_total", "CPU periods in which the container was held back", &[]),
    counter("container_cpu_cfs_throttled_seconds_total", "For how long the container was held back", &[]),
    gauge("container_memory_cache", "Memory of the page cache", &[]),
    gauge("container_memory_rss", "Anonymous memory", &[]),
    gauge("container_memory_kernel_usage", "Memory of the kernel", &[]),
    gauge("container_memory_mapped_file", "Memory mapped from files", &[]),
    gauge("container_memory_swap", "Swap in use", &[]),
    counter("container_memory_failcnt", "How often the memory limit was hit", &[]),
    gauge("container_memory_usage_bytes", "Memory in use", &[]),
    gauge("container_memory_max_usage_bytes", "Most memory that was in use", &[]),
    gauge("container_memory_working_set_bytes", "Memory that cannot be reclaimed easily", &[]),
    gauge("container_memory_total_active_file_bytes", "Page cache that was used lately", &[]),
    gauge("container_memory_total_inactive_file_bytes", "Page cache that was not used lately", &[]),
    counter("container_memory_failures_total", "Page faults by kind", &["failure_type", "scope"]),
    counter("container_oom_events_total", "Processes killed for want of memory", &[]),
    counter("container_network_receive_bytes_total", "Bytes received", &["interface"]),
    counter("container_network_receive_packets_total", "Packets received", &["interface"]),
    counter("container_network_receive_packets_dropped_total", "Packets dropped instead of being received", &["interface"]),
    counter("container_network_receive_errors_total", "Packets not received because of an error", &["interface"]),
    counter("container_network_transmit_bytes_total", "Bytes sent", &["interface"]),
    counter("container_network_transmit_packets_total", "Packets sent", &["interface"]),
    counter("container_network_transmit_packets_dropped_total", "Packets dropped instead of being sent", &["interface"]),
    counter("container_network_transmit_errors_total", "Packets not sent because of an error", &["interface"]),
    gauge("container_fs_inodes_free", "Free inodes of the file system", &["device"]),
    gauge("container_fs_inodes_total", "Inodes that the writable layer takes up", &["device"]),
    gauge("container_fs_limit_bytes", "Size of the file system", &["device"]),
    gauge("container_fs_usage_bytes", "Bytes that the writable layer takes up", &["device"]),
    counter("container_fs_reads_bytes_total", "Bytes read by device", &["device"]),
    counter("container_fs_reads_total", "Reads by device", &["device"]),
    counter("container_fs_writes_bytes_total", "Bytes written by device", &["device"]),
    counter("container_fs_writes_total", "Writes by device", &["device"]),
    counter("container_blkio_device_usage_total", "Bytes moved by device and operation", &["device", "major", "minor", "operation"]),
    gauge("container_processes", "Processes", &[]),
    gauge("container_file_descriptors", "Open file descriptors", &[]),
    gauge("container_sockets", "Open sockets", &[]),
    gauge("container_threads_max", "Most threads allowed; 0 for no limit", &[]),
    gauge("container_threads", "Threads", &[]),
    gauge("container_ulimits_soft", "Soft limits of the first process", &["ulimit"]),
    gauge("container_hugetlb_max_usage_bytes", "Most memory of huge pages that was in use", &["pagesize"]),
    gauge("container_hugetlb_usage_bytes", "Memory of huge pages in use", &["pagesize"]),
    counter("container_pressure_cpu_stalled_seconds_total", "For how long all processes waited for cpu", &[]),
    counter("container_pressure_cpu_waiting_seconds_total", "For how long some process waited for cpu", &[]),
    counter("container_pressure_io_stalled_seconds_total", "For how long all processes waited for io", &[]),
    counter("container_pressure_io_waiting_seconds_total", "For how long some process waited for io", &[]),
    counter("container_pressure_memory_stalled_seconds_total", "For how long all processes waited for memory", &[]),
    counter("container_pressure_memory_waiting_seconds_total", "For how long some process waited for memory", &[]),
    gauge("container_spec_cpu_quota", "CPU time in a period, microseconds", &[]),
];
