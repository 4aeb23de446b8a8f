//! What pods and containers use, read from their cgroups' files without asking a shim.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use gantry_api::pb::runtime::v1 as wire;

use crate::cgroup::value;
use crate::containers::Container;
use crate::pods::{Pod, selects};
use crate::{Cri, Result};

/// Limits at and above this are none (v1 writes the largest multiple of a page).
const UNLIMITED: u64 = 1 << 62;

/// Earlier readings of CPU time by id, to tell rates.
#[derive(Default)]
pub(crate) struct Rates(Mutex<HashMap<String, (i64, u64, u64)>>);

impl Rates {
    /// Thousandths of a millionth of a core used since the last reading that lies far enough back.
    fn nano_cores(&self, id: &str, now: i64, usage: u64) -> u64 {
        /// Readings closer together say little.
        const APART: i64 = 500_000_000;
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((then, before, rate)) = last.get(id).copied() else {
            last.insert(id.to_owned(), (now, usage, 0));
            return 0;
        };
        let passed = now - then;
        if passed < APART {
            return rate;
        }
        let used = u128::from(usage.saturating_sub(before));
        let rate = u64::try_from(used * 1_000_000_000 / passed.unsigned_abs() as u128).unwrap_or(u64::MAX);
        last.insert(id.to_owned(), (now, usage, rate));
        rate
    }

    /// Forgets what is gone.
    pub(crate) fn forget(&self, id: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }
}

fn some(value: u64) -> Option<wire::UInt64Value> {
    Some(wire::UInt64Value { value })
}

impl Cri {
    /// One container's figures.
    pub(crate) async fn container_stats(&self, id: &str) -> Result<wire::ContainerStats> {
        Ok(self.figures(&*self.containers.get(id)?).await)
    }

    /// Figures of the containers that a filter selects.
    pub(crate) async fn list_container_stats(
        &self,
        filter: Option<&wire::ContainerStatsFilter>,
    ) -> Vec<wire::ContainerStats> {
        let fits = |container: &Container| {
            filter.is_none_or(|filter| {
                container.id.starts_with(&filter.id)
                    && container.pod.starts_with(&filter.pod_sandbox_id)
                    && selects(&filter.label_selector, &container.config().labels)
            })
        };
        let mut all = Vec::new();
        for container in self.containers.all().iter().filter(|container| fits(container)) {
            all.push(self.figures(container).await);
        }
        all
    }

    async fn figures(&self, container: &Container) -> wire::ContainerStats {
        let config = container.config();
        let running = container.state() == wire::ContainerState::ContainerRunning;
        let path = if running { self.cgroup_of(&container.id).await } else { None };
        let record = self.engine.containers.get(&self.scope, &container.id).await.ok();
        let layer = match record {
            Some(record) => self.writable_layer(&record.snapshotter, &record.snapshot_key).await.ok(),
            None => None,
        };
        wire::ContainerStats {
            attributes: Some(wire::ContainerAttributes {
                id: container.id.clone(),
                metadata: config.metadata.clone(),
                labels: config.labels.clone(),
                annotations: config.annotations.clone(),
            }),
            cpu: path.as_deref().and_then(|path| self.cpu(&container.id, path)),
            memory: path.as_deref().and_then(|path| self.memory(path)),
            writable_layer: layer,
            swap: path.as_deref().and_then(|path| self.swap(path)),
            io: path.as_deref().and_then(|path| self.io(path)),
        }
    }

    /// For how long processes of a cgroup waited for a resource, where the kernel tells that by cgroup.
    fn pressure(&self, controller: &str, path: &str) -> Option<wire::PsiStats> {
        let text =
            self.cgroups.read(controller, path, &format!("{controller}.pressure")).filter(|_| self.cgroups.is_v2())?;
        Some(wire::PsiStats { full: stalls(&text, "full"), some: stalls(&text, "some") })
    }

    fn io(&self, path: &str) -> Option<wire::IoUsage> {
        Some(wire::IoUsage { timestamp: crate::now(), psi: Some(self.pressure("io", path)?) })
    }

    fn cpu(&self, id: &str, path: &str) -> Option<wire::CpuUsage> {
        let usage = if self.cgroups.is_v2() {
            value(&self.cgroups.read("cpu", path, "cpu.stat")?, "usage_usec")?.saturating_mul(1000)
        } else {
            self.cgroups.read("cpuacct", path, "cpuacct.usage")?.trim().parse().ok()?
        };
        let timestamp = crate::now();
        let rate = self.rates.nano_cores(id, timestamp, usage);
        let (usage_core_nano_seconds, usage_nano_cores) = (some(usage), some(rate));
        Some(wire::CpuUsage { timestamp, usage_core_nano_seconds, usage_nano_cores, psi: self.pressure("cpu", path) })
    }

    fn memory(&self, path: &str) -> Option<wire::MemoryUsage> {
        let v2 = self.cgroups.is_v2();
        let pick = |v1: &'static str, unified: &'static str| if v2 { unified } else { v1 };
        let read = |file: &str| self.cgroups.read("memory", path, file);
        let number = |file: &str| read(file)?.trim().parse::<u64>().ok();
        let usage = number(pick("memory.usage_in_bytes", "memory.current"))?;
        let limit = number(pick("memory.limit_in_bytes", "memory.max")).filter(|limit| *limit < UNLIMITED);
        let stat = read("memory.stat")?;
        let of = |v1: &'static str, unified: &'static str| value(&stat, pick(v1, unified)).unwrap_or_default();
        let working_set = usage.saturating_sub(of("total_inactive_file", "inactive_file"));
        Some(wire::MemoryUsage {
            timestamp: crate::now(),
            working_set_bytes: some(working_set),
            available_bytes: some(limit.map_or(0, |limit| limit.saturating_sub(working_set))),
            usage_bytes: some(usage),
            rss_bytes: some(of("total_rss", "anon")),
            page_faults: some(of("pgfault", "pgfault")),
            major_page_faults: some(of("pgmajfault", "pgmajfault")),
            psi: self.pressure("memory", path),
        })
    }

    fn swap(&self, path: &str) -> Option<wire::SwapUsage> {
        let number = |file: &str| self.cgroups.read("memory", path, file)?.trim().parse::<u64>().ok();
        let (used, limit) = if self.cgroups.is_v2() {
            (number("memory.swap.current")?, number("memory.swap.max"))
        } else {
            let (both, memory) = (number("memory.memsw.usage_in_bytes")?, number("memory.usage_in_bytes")?);
            (both.saturating_sub(memory), number("memory.memsw.limit_in_bytes"))
        };
        let limit = limit.filter(|limit| *limit < UNLIMITED);
        Some(wire::SwapUsage {
            timestamp: crate::now(),
            swap_available_bytes: some(limit.map_or(0, |limit| limit.saturating_sub(used))),
            swap_usage_bytes: some(used),
        })
    }

    /// One pod's figures.
    pub(crate) async fn pod_stats(&self, id: &str) -> Result<wire::PodSandboxStats> {
        Ok(self.figures_of_pod(&*self.pods.get(id)?).await)
    }

    /// Figures of the pods that a filter selects.
    pub(crate) async fn list_pod_stats(
        &self,
        filter: Option<&wire::PodSandboxStatsFilter>,
    ) -> Vec<wire::PodSandboxStats> {
        let fits = |pod: &Pod| {
            filter.is_none_or(|filter| {
                pod.id.starts_with(&filter.id) && selects(&filter.label_selector, &pod.config().labels)
            })
        };
        let mut all = Vec::new();
        for pod in self.pods.all().iter().filter(|pod| pod.is_ready() && fits(pod)) {
            all.push(self.figures_of_pod(pod).await);
        }
        all
    }

    async fn figures_of_pod(&self, pod: &Pod) -> wire::PodSandboxStats {
        let config = pod.config();
        let filter = wire::ContainerStatsFilter { pod_sandbox_id: pod.id.clone(), ..Default::default() };
        let containers = self.list_container_stats(Some(&filter)).await;
        let parent = config.linux.as_ref().map(|linux| linux.cgroup_parent.clone()).unwrap_or_default();
        // Without a parent the pod's processes have no cgroup in common but that of the sandbox.
        let path = match parent.as_str() {
            "" => self.cgroup_of(&pod.id).await,
            parent => Some(pod_cgroup(parent)),
        };
        let pid = pod.facts().pid;
        let linux = wire::LinuxPodSandboxStats {
            cpu: path.as_deref().and_then(|path| self.cpu(&pod.id, path)),
            memory: path.as_deref().and_then(|path| self.memory(path)),
            network: network_usage(pid),
            process: path.as_deref().and_then(|path| self.processes(path)),
            containers,
            io: path.as_deref().and_then(|path| self.io(path)),
        };
        wire::PodSandboxStats {
            attributes: Some(wire::PodSandboxAttributes {
                id: pod.id.clone(),
                metadata: config.metadata.clone(),
                labels: config.labels.clone(),
                annotations: config.annotations.clone(),
            }),
            linux: Some(linux),
            windows: None,
        }
    }

    fn processes(&self, path: &str) -> Option<wire::ProcessUsage> {
        let count = self.cgroups.read("pids", path, "pids.current")?.trim().parse().ok()?;
        Some(wire::ProcessUsage { timestamp: crate::now(), process_count: some(count) })
    }
}

/// Where a parent given by its path or as a slice is.
fn pod_cgroup(parent: &str) -> String {
    let name = parent.rsplit('/').next().unwrap_or_default();
    if !name.ends_with(".slice") || parent.trim_start_matches('/').contains('/') {
        return parent.to_owned();
    }
    let scope = crate::cgroup::path_of(&format!("{name}:x:y"));
    scope.rsplit_once('/').map_or_else(String::new, |(path, _)| path.to_owned())
}

/// One line of a pressure file: `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`, times in microseconds.
fn stalls(text: &str, kind: &str) -> Option<wire::PsiData> {
    let line = text.lines().find_map(|line| line.strip_prefix(kind))?;
    let of = |key: &str| line.split_ascii_whitespace().find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
    let average = |key: &str| of(key).and_then(|number| number.parse().ok()).unwrap_or_default();
    let total = of("total").and_then(|number| number.parse().ok()).unwrap_or_default();
    Some(wire::PsiData { total, avg10: average("avg10"), avg60: average("avg60"), avg300: average("avg300") })
}

/// What went through the interfaces of a process' network namespace.
fn network_usage(pid: u32) -> Option<wire::NetworkUsage> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/net/dev")).ok()?;
    let all: Vec<wire::NetworkInterfaceUsage> = text.lines().filter_map(interface).filter(|i| i.name != "lo").collect();
    let default_interface = all.iter().find(|interface| interface.name == "eth0").or_else(|| all.first()).cloned();
    Some(wire::NetworkUsage { timestamp: crate::now(), default_interface, interfaces: all })
}

fn interface(line: &str) -> Option<wire::NetworkInterfaceUsage> {
    let (name, numbers) = line.split_once(':')?;
    let numbers: Vec<u64> = numbers.split_ascii_whitespace().filter_map(|number| number.parse().ok()).collect();
    let [rx_bytes, _, rx_errors, _, _, _, _, _, tx_bytes, _, tx_errors, ..] = numbers[..] else { return None };
    Some(wire::NetworkInterfaceUsage {
        name: name.trim().to_owned(),
        rx_bytes: some(rx_bytes),
        rx_errors: some(rx_errors),
        tx_bytes: some(tx_bytes),
        tx_errors: some(tx_errors),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_told_between_readings_that_lie_apart() {
        let rates = Rates::default();
        assert_eq!(rates.nano_cores("a", 0, 0), 0);
        assert_eq!(rates.nano_cores("a", 1_000_000_000, 500_000_000), 500_000_000);
        assert_eq!(rates.nano_cores("a", 1_000_000_001, 900_000_000), 500_000_000);
    }

    #[test]
    fn stalls_are_read_by_kind() {
        let text = "some avg10=1.50 avg60=0.10 avg300=0.00 total=42\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n";
        let some = stalls(text, "some").unwrap();
        assert_eq!((some.avg10, some.total, stalls(text, "full").unwrap().total), (1.5, 42, 7));
    }

    #[test]
    fn an_interface_is_read_from_its_line() {
        let line = "  eth0: 1191 10 1 0 0 0 0 0 1138 12 2 0 0 0 0 0";
        let usage = interface(line).unwrap();
        assert_eq!((usage.name.as_str(), usage.rx_bytes, usage.tx_errors), ("eth0", some(1191), some(2)));
        assert!(interface("Inter-|   Receive").is_none());
    }
}
