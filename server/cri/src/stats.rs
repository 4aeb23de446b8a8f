//! What pods and containers use, read from their cgroups' files without asking a shim.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use gantry_api::pb::runtime::v1 as wire;

use crate::cgroup::{Cgroups, value, values};
use crate::containers::Container;
use crate::gauge::Gauge;
use crate::images::Layer;
use crate::pods::{Pod, selects};
use crate::{Cri, Result};

/// Limits at and above this are none (v1 writes the largest multiple of a page).
const UNLIMITED: u64 = 1 << 62;

/// How long a container's figures are told again, unless `stats_collect_period` is set: containerd samples as often.
const SAMPLE: Duration = Duration::from_secs(1);

/// Where the figures of a container are read.
pub(crate) struct Meter {
    /// None where it has no cgroup.
    pub(crate) gauge: Option<Gauge>,
    pub(crate) layer: Layer,
    last: Mutex<Option<Sample>>,
}

impl Meter {
    /// What was read last counts no more: a limit has changed.
    pub(crate) fn forget(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// What was read of a container's cgroup at once. Each part has the time at which it was read.
#[derive(Clone)]
struct Sample {
    taken: Instant,
    /// The start that it belongs to.
    started_at: i64,
    cpu: Option<wire::CpuUsage>,
    memory: Option<wire::MemoryUsage>,
    swap: Option<wire::SwapUsage>,
    io: Option<wire::IoUsage>,
}

/// Earlier readings of CPU time by id, to tell rates.
pub(crate) struct Rates {
    last: Mutex<HashMap<String, (i64, u64, u64)>>,
    /// Readings older than this many nanoseconds tell nothing any more (`stats_retention_period`).
    kept: i64,
}

impl Rates {
    pub(crate) fn new(retention: Option<Duration>) -> Rates {
        let kept = retention.and_then(|kept| i64::try_from(kept.as_nanos()).ok()).unwrap_or(i64::MAX);
        Rates { last: Mutex::default(), kept }
    }

    /// Thousandths of a millionth of a core used since the last reading that lies far enough back.
    fn nano_cores(&self, id: &str, now: i64, usage: u64) -> u64 {
        /// Readings closer together say little.
        const APART: i64 = 500_000_000;
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let known = last.get(id).copied().filter(|(then, ..)| now - then <= self.kept);
        let Some((then, before, rate)) = known else {
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
        self.last.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
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
        let fits = |container: &Arc<Container>| {
            filter.is_none_or(|filter| {
                container.id.starts_with(&filter.id)
                    && container.pod.starts_with(&filter.pod_sandbox_id)
                    && selects(&filter.label_selector, &container.config().labels)
            })
        };
        let mut all = self.containers.all();
        all.retain(fits);
        self.all_figures(&all).await
    }

    async fn all_figures(&self, containers: &[Arc<Container>]) -> Vec<wire::ContainerStats> {
        let mut all = Vec::with_capacity(containers.len());
        for (at, container) in containers.iter().enumerate() {
            all.push(self.figures(container).await);
            // Reading does not wait for anything: others get their turn.
            if at % 32 == 31 {
                tokio::task::yield_now().await;
            }
        }
        all
    }

    /// Where a container's figures are read.
    pub(crate) async fn meter<'c>(&self, container: &'c Container) -> Option<&'c Meter> {
        if let Some(meter) = container.meter.get() {
            return Some(meter);
        }
        let record = self.engine.containers.get(&self.scope, &container.id).await.ok()?;
        let gauge = crate::cgroup::of_record(&record).map(Gauge::new);
        let layer = self.layer_of(&record);
        Some(container.meter.get_or_init(|| Meter { gauge, layer, last: Mutex::default() }))
    }

    async fn figures(&self, container: &Container) -> wire::ContainerStats {
        let config = container.config();
        let meter = self.meter(container).await;
        let sample = meter.and_then(|meter| self.sampled(container, meter));
        let layer = match meter {
            Some(meter) => self.writable_layer(&meter.layer).await,
            None => None,
        };
        wire::ContainerStats {
            attributes: Some(wire::ContainerAttributes {
                id: container.id.clone(),
                metadata: config.metadata.clone(),
                labels: config.labels.clone(),
                annotations: config.annotations.clone(),
            }),
            cpu: sample.as_ref().and_then(|sample| sample.cpu),
            memory: sample.as_ref().and_then(|sample| sample.memory),
            writable_layer: layer,
            swap: sample.as_ref().and_then(|sample| sample.swap),
            io: sample.and_then(|sample| sample.io),
        }
    }

    /// What a container's cgroup says, or said a moment ago; none of one that does not run.
    fn sampled(&self, container: &Container, meter: &Meter) -> Option<Sample> {
        let gauge = meter.gauge.as_ref()?;
        if container.state() != wire::ContainerState::ContainerRunning {
            gauge.close();
            return None;
        }
        let started_at = container.facts.borrow().started_at;
        let period = self.config.runtime.stats_collect_period.unwrap_or(SAMPLE);
        let mut last = meter.last.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = |sample: &&Sample| sample.started_at == started_at && sample.taken.elapsed() < period;
        if let Some(sample) = last.as_ref().filter(fresh) {
            return Some(sample.clone());
        }
        let reading = Reading { cgroups: &self.cgroups, gauge };
        let (memory, swap) = reading.memory();
        let (cpu, io) = (reading.cpu(&self.rates, &container.id), reading.io());
        let sample = Sample { taken: Instant::now(), started_at, cpu, memory, swap, io };
        *last = Some(sample.clone());
        Some(sample)
    }

    /// Samples all that runs as often as `stats_collect_period` says, where it is set; else that is left to those who
    /// ask.
    pub(crate) fn collect_stats(&self) {
        let Some(period) = self.config.runtime.stats_collect_period.filter(|period| !period.is_zero()) else { return };
        let cri = self.clone();
        tokio::spawn(async move {
            while cri.stopping.run_until_cancelled(tokio::time::sleep(period)).await.is_some() {
                cri.all_figures(&cri.containers.all()).await;
                for pod in cri.pods.all().iter().filter(|pod| pod.is_ready()) {
                    let reading = cri.gauge_of_pod(pod).await.map(|gauge| Reading { cgroups: &cri.cgroups, gauge });
                    reading.and_then(|reading| reading.cpu(&cri.rates, &pod.id));
                }
            }
        });
    }

    /// One pod's figures.
    pub(crate) async fn pod_stats(&self, id: &str) -> Result<wire::PodSandboxStats> {
        let pod = self.pods.get(id)?;
        Ok(self.figures_of_pod(&pod, &self.containers.of_pod(&pod.id)).await)
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
        let mut of_pods = self.containers.by_pod();
        let mut all = Vec::new();
        for pod in self.pods.all().iter().filter(|pod| pod.is_ready() && fits(pod)) {
            all.push(self.figures_of_pod(pod, &of_pods.remove(&pod.id).unwrap_or_default()).await);
        }
        all
    }

    async fn figures_of_pod(&self, pod: &Pod, containers: &[Arc<Container>]) -> wire::PodSandboxStats {
        let config = pod.config();
        let containers = self.all_figures(containers).await;
        let reading = self.gauge_of_pod(pod).await.map(|gauge| Reading { cgroups: &self.cgroups, gauge });
        let linux = wire::LinuxPodSandboxStats {
            cpu: reading.as_ref().and_then(|reading| reading.cpu(&self.rates, &pod.id)),
            memory: reading.as_ref().and_then(|reading| reading.memory().0),
            network: network_usage(pod.facts().pid),
            process: reading.as_ref().and_then(Reading::processes),
            containers,
            io: reading.as_ref().and_then(Reading::io),
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

    async fn gauge_of_pod<'p>(&self, pod: &'p Pod) -> Option<&'p Gauge> {
        if let Some(gauge) = pod.gauge.get() {
            return Some(gauge);
        }
        let config = pod.config();
        let parent = config.linux.as_ref().map(|linux| linux.cgroup_parent.as_str()).unwrap_or_default();
        // Without a parent the pod's processes have no cgroup in common but that of the sandbox.
        let path = match parent {
            "" => self.cgroup_of(&pod.id).await?,
            parent => pod_cgroup(parent),
        };
        Some(pod.gauge.get_or_init(|| Gauge::new(path)))
    }
}

/// What is read of one cgroup.
struct Reading<'a> {
    cgroups: &'a Cgroups,
    gauge: &'a Gauge,
}

impl Reading<'_> {
    fn read(&self, controller: &str, file: &str) -> Option<String> {
        self.gauge.read(self.cgroups, controller, file)
    }

    fn number(&self, controller: &str, file: &str) -> Option<u64> {
        self.read(controller, file)?.trim().parse().ok()
    }

    /// For how long processes of the cgroup waited for a resource, where the kernel tells that by cgroup.
    fn pressure(&self, controller: &str) -> Option<wire::PsiStats> {
        if !self.cgroups.is_v2() {
            return None;
        }
        let text = self.read(controller, &format!("{controller}.pressure"))?;
        Some(wire::PsiStats { full: stalls(&text, "full"), some: stalls(&text, "some") })
    }

    fn io(&self) -> Option<wire::IoUsage> {
        Some(wire::IoUsage { timestamp: crate::now(), psi: Some(self.pressure("io")?) })
    }

    fn cpu(&self, rates: &Rates, id: &str) -> Option<wire::CpuUsage> {
        let usage = if self.cgroups.is_v2() {
            value(&self.read("cpu", "cpu.stat")?, "usage_usec")?.saturating_mul(1000)
        } else {
            self.number("cpuacct", "cpuacct.usage")?
        };
        let timestamp = crate::now();
        let rate = rates.nano_cores(id, timestamp, usage);
        let (usage_core_nano_seconds, usage_nano_cores) = (some(usage), some(rate));
        Some(wire::CpuUsage { timestamp, usage_core_nano_seconds, usage_nano_cores, psi: self.pressure("cpu") })
    }

    /// Memory, and what of it was swapped out.
    fn memory(&self) -> (Option<wire::MemoryUsage>, Option<wire::SwapUsage>) {
        let v2 = self.cgroups.is_v2();
        let pick = |v1: &'static str, unified: &'static str| if v2 { unified } else { v1 };
        let usage = self.number("memory", pick("memory.usage_in_bytes", "memory.current"));
        let (Some(usage), Some(stat)) = (usage, self.read("memory", "memory.stat")) else { return (None, None) };
        let limit = self.number("memory", pick("memory.limit_in_bytes", "memory.max"));
        let keys = [pick("total_inactive_file", "inactive_file"), pick("total_rss", "anon"), "pgfault", "pgmajfault"];
        let [inactive, anonymous, faults, major] = values(&stat, keys);
        let working_set = usage.saturating_sub(inactive);
        let limit = limit.filter(|limit| *limit < UNLIMITED);
        let memory = wire::MemoryUsage {
            timestamp: crate::now(),
            working_set_bytes: some(working_set),
            available_bytes: some(limit.map_or(0, |limit| limit.saturating_sub(working_set))),
            usage_bytes: some(usage),
            rss_bytes: some(anonymous),
            page_faults: some(faults),
            major_page_faults: some(major),
            psi: self.pressure("memory"),
        };
        (Some(memory), self.swap(&stat))
    }

    /// `stat` is the cgroup's `memory.stat`: without accounting of swap v1 says nothing of it there.
    fn swap(&self, stat: &str) -> Option<wire::SwapUsage> {
        let (used, limit) = if self.cgroups.is_v2() {
            (self.number("memory", "memory.swap.current")?, self.number("memory", "memory.swap.max"))
        } else {
            (value(stat, "total_swap")?, self.number("memory", "memory.memsw.limit_in_bytes"))
        };
        let limit = limit.filter(|limit| *limit < UNLIMITED);
        Some(wire::SwapUsage {
            timestamp: crate::now(),
            swap_available_bytes: some(limit.map_or(0, |limit| limit.saturating_sub(used))),
            swap_usage_bytes: some(used),
        })
    }

    fn processes(&self) -> Option<wire::ProcessUsage> {
        let count = self.number("pids", "pids.current")?;
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
        let rates = Rates::new(Some(Duration::from_secs(60)));
        assert_eq!(rates.nano_cores("a", 0, 0), 0);
        assert_eq!(rates.nano_cores("a", 1_000_000_000, 500_000_000), 500_000_000);
        assert_eq!(rates.nano_cores("a", 1_000_000_001, 900_000_000), 500_000_000);
        // What was read too long ago tells nothing.
        assert_eq!(rates.nano_cores("a", 62_000_000_000, 900_000_000), 0);
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
