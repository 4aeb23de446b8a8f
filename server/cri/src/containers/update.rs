//! UpdateContainerResources and UpdatePodSandboxResources: limits of what runs, and of what will.

use std::collections::BTreeMap;

use gantry_api::pb::runtime::v1 as wire;
use gantry_engine::spec::Limits;
use gantry_engine::spec::oci_spec::runtime::Spec;
use gantry_nri::api::LinuxResources;
use gantry_types::Any;

use super::{Container, record};
use crate::{Cri, Error, Result};

/// Type of OCI limits in calls to runtimes.
const RESOURCES_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";

impl Cri {
    /// Changes a container's limits; zero and empty leave a limit as it is.
    pub(crate) async fn update_container(&self, request: wire::UpdateContainerResourcesRequest) -> Result<()> {
        let container = self.containers.get(&request.container_id)?;
        let asked = request.linux.ok_or_else(|| Error::invalid("linux", "must be set"))?;
        self.limits_here("linux", &asked)?;
        let _one = container.gate.lock().await;
        let wanted = self.nri_update(&container, &asked).await?;
        let asked = wanted.as_ref().map_or(asked.clone(), |wanted| crate::nri::asked(wanted, asked.oom_score_adj));
        self.change_limits(&container, &asked, wanted.as_ref(), request.annotations).await?;
        self.nri_updated(&container).await;
        Ok(())
    }

    /// Changes limits, of what runs and in the record; `wanted` has those, too, that Kubernetes has no words for. The
    /// caller has the container's turn.
    pub(crate) async fn change_limits(
        &self,
        container: &Container,
        asked: &wire::LinuxContainerResources,
        wanted: Option<&LinuxResources>,
        annotations: BTreeMap<String, String>,
    ) -> Result<()> {
        if container.state() == wire::ContainerState::ContainerExited {
            return Err(Error::State(format!("container {:?} is in CONTAINER_EXITED state", container.id)));
        }
        let old = container.config().linux.as_ref().and_then(|linux| linux.resources.clone()).unwrap_or_default();
        let merged = merge(old, asked);
        let limits = self.limits_here("linux", &merged)?;
        if container.state() == wire::ContainerState::ContainerRunning {
            let mut changed = serde_json::json!({"linux": {"resources": limits.to_resources()}});
            wanted.map_or(Ok(()), |wanted| crate::nri::put(&mut changed, wanted))?;
            self.update_task(container, &changed["linux"]["resources"], annotations).await?;
        }
        self.record_limits(container, merged, &limits, wanted).await
    }

    async fn update_task(
        &self,
        container: &Container,
        resources: &serde_json::Value,
        annotations: BTreeMap<String, String>,
    ) -> Result<()> {
        let any = Any { type_url: RESOURCES_TYPE.into(), value: resources.to_string().into_bytes() };
        let updated = self.engine.tasks.update(&self.scope, &container.id, Some(any), annotations).await;
        updated.map_err(Error::at("failed to update resources"))
    }

    async fn record_limits(
        &self,
        container: &Container,
        merged: wire::LinuxContainerResources,
        limits: &Limits,
        wanted: Option<&LinuxResources>,
    ) -> Result<()> {
        let mut config = (*container.config()).clone();
        config.linux.get_or_insert_default().resources = Some(merged);
        let mut all = self.engine.containers.get(&self.scope, &container.id).await?;
        if let Some(spec) = all.spec.as_mut() {
            spec.value = with_limits(&spec.value, limits, wanted)?;
        }
        all.extensions.insert(record::CONFIG.to_owned(), record::config_any(&config));
        let fields = ["spec".to_owned(), format!("extensions.{}", record::CONFIG)];
        self.engine.containers.update(&self.scope, all, &fields).await?;
        container.set_config(config);
        if let Some(meter) = container.meter.get() {
            meter.forget();
        }
        Ok(())
    }
}

fn with_limits(spec: &[u8], limits: &Limits, wanted: Option<&LinuxResources>) -> Result<Vec<u8>> {
    let broken = |error: serde_json::Error| Error::State(format!("container spec: {error}"));
    let spec: Spec = serde_json::from_slice(spec).map_err(broken)?;
    let spec = gantry_engine::spec::SpecBuilder::from_spec(spec).limits(limits).build()?;
    let mut spec = serde_json::to_value(&spec).map_err(broken)?;
    wanted.map_or(Ok(()), |wanted| crate::nri::put(&mut spec, wanted))?;
    Ok(spec.to_string().into_bytes())
}

/// The limits of `old` with what `new` says.
pub(crate) fn merge(
    old: wire::LinuxContainerResources,
    new: &wire::LinuxContainerResources,
) -> wire::LinuxContainerResources {
    let number = |old: i64, new: i64| if new == 0 { old } else { new };
    let text = |old: String, new: &str| if new.is_empty() { old } else { new.to_owned() };
    let mut unified = old.unified;
    unified.extend(new.unified.clone());
    let memory = number(old.memory_limit_in_bytes, new.memory_limit_in_bytes);
    // A swap limit that only followed the memory limit goes on to follow it.
    let followed = old.memory_swap_limit_in_bytes == old.memory_limit_in_bytes;
    let swap = if followed { 0 } else { old.memory_swap_limit_in_bytes };
    wire::LinuxContainerResources {
        cpu_period: number(old.cpu_period, new.cpu_period),
        cpu_quota: number(old.cpu_quota, new.cpu_quota),
        cpu_shares: number(old.cpu_shares, new.cpu_shares),
        memory_limit_in_bytes: memory,
        oom_score_adj: number(old.oom_score_adj, new.oom_score_adj),
        cpuset_cpus: text(old.cpuset_cpus, &new.cpuset_cpus),
        cpuset_mems: text(old.cpuset_mems, &new.cpuset_mems),
        hugepage_limits: if new.hugepage_limits.is_empty() { old.hugepage_limits } else { new.hugepage_limits.clone() },
        unified,
        memory_swap_limit_in_bytes: number(swap, new.memory_swap_limit_in_bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_said_changes() {
        let base = wire::LinuxContainerResources::default;
        let old = wire::LinuxContainerResources { cpu_shares: 512, memory_limit_in_bytes: 64, ..base() };
        let new = merge(old, &wire::LinuxContainerResources { memory_limit_in_bytes: 48, ..base() });
        assert_eq!((new.cpu_shares, new.memory_limit_in_bytes, new.memory_swap_limit_in_bytes), (512, 48, 0));
    }
}
