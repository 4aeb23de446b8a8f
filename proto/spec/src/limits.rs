//! Limits of resources, as one table for pods and containers.

use std::collections::{BTreeMap, HashMap};

use oci_spec::runtime::{LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxPids, LinuxResources};

use crate::SpecBuilder;

/// What is limited; zero and empty mean that nothing is said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Length of a CPU period, µs.
    pub cpu_period: u64,
    /// CPU time in a period, µs; −1 for no limit.
    pub cpu_quota: i64,
    /// Relative weight among siblings (cgroup v1's `cpu.shares`).
    pub cpu_shares: u64,
    /// Memory, bytes; −1 for no limit.
    pub memory: i64,
    /// Memory and swap together, bytes; −1 for no limit.
    pub memory_swap: i64,
    /// CPUs that may be used.
    pub cpuset_cpus: String,
    /// Memory nodes that may be used.
    pub cpuset_mems: String,
    /// Huge pages by size (`2MB`), bytes.
    pub hugepages: Vec<(String, u64)>,
    /// Files of cgroup v2 and their values.
    pub unified: BTreeMap<String, String>,
    /// Number of processes; −1 for no limit.
    pub pids: i64,
}

impl Limits {
    /// As a runtime takes them, without rules for devices.
    pub fn to_resources(&self) -> LinuxResources {
        let mut resources = LinuxResources::default();
        self.apply(&mut resources);
        resources
    }

    fn apply(&self, resources: &mut LinuxResources) {
        let cpu = self.cpu();
        if cpu != LinuxCpu::default() {
            resources.set_cpu(Some(cpu));
        }
        if self.memory != 0 || self.memory_swap != 0 {
            let mut memory = LinuxMemory::default();
            memory.set_limit((self.memory != 0).then_some(self.memory));
            memory.set_swap((self.memory_swap != 0).then_some(self.memory_swap));
            resources.set_memory(Some(memory));
        }
        if self.pids != 0 {
            let mut pids = LinuxPids::default();
            pids.set_limit(self.pids);
            resources.set_pids(Some(pids));
        }
        if !self.hugepages.is_empty() {
            resources.set_hugepage_limits(Some(self.hugepages.iter().map(hugepage).collect()));
        }
        if !self.unified.is_empty() {
            let unified: HashMap<_, _> = self.unified.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
            resources.set_unified(Some(unified));
        }
    }

    fn cpu(&self) -> LinuxCpu {
        let mut cpu = LinuxCpu::default();
        cpu.set_period((self.cpu_period != 0).then_some(self.cpu_period));
        cpu.set_quota((self.cpu_quota != 0).then_some(self.cpu_quota));
        cpu.set_shares((self.cpu_shares != 0).then_some(self.cpu_shares));
        cpu.set_cpus((!self.cpuset_cpus.is_empty()).then(|| self.cpuset_cpus.clone()));
        cpu.set_mems((!self.cpuset_mems.is_empty()).then(|| self.cpuset_mems.clone()));
        cpu
    }
}

impl SpecBuilder {
    /// Limits resources.
    #[must_use]
    pub fn limits(mut self, limits: &Limits) -> SpecBuilder {
        self.resources(|resources| limits.apply(resources));
        self
    }
}

fn hugepage((size, limit): &(String, u64)) -> LinuxHugepageLimit {
    let mut page = LinuxHugepageLimit::default();
    page.set_page_size(size.clone()).set_limit(i64::try_from(*limit).unwrap_or(i64::MAX));
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_limited_is_not_said() {
        assert_eq!(Limits::default().to_resources(), LinuxResources::default().set_devices(None).clone());
        let resources = Limits { memory: 10, ..Limits::default() }.to_resources();
        assert_eq!(resources.memory().as_ref().unwrap().limit(), Some(10));
        assert!(resources.cpu().is_none() && resources.memory().as_ref().unwrap().swap().is_none());
    }
}
