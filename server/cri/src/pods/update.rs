//! UpdatePodSandboxResources: limits of a pod as a whole, and UpdateRuntimeConfig.

use gantry_api::pb::runtime::v1 as wire;

use super::record;
use crate::spec::limits_of;
use crate::{Cri, Error, Result};

impl Cri {
    /// Takes note of a pod's new limits and tells its sandbox. The pod's own cgroup is the kubelet's to write.
    pub(crate) async fn update_pod(&self, request: wire::UpdatePodSandboxResourcesRequest) -> Result<()> {
        let pod = self.pods.get(&request.pod_sandbox_id)?;
        let checked = [("overhead", &request.overhead), ("resources", &request.resources)];
        for (field, resources) in checked {
            resources.as_ref().map_or(Ok(()), |resources| limits_of(field, resources).map(drop))?;
        }
        let _one = pod.gate.lock().await;
        let mut config = (*pod.config()).clone();
        let linux = config.linux.get_or_insert_default();
        linux.overhead = request.overhead.or(linux.overhead.take());
        linux.resources = request.resources.or(linux.resources.take());
        let mut sandbox = self.engine.sandboxes.get(&self.scope, &pod.id).await?;
        sandbox.extensions.extend(record::extensions(&config, &pod.facts())?);
        let field = format!("extensions.{}", record::CONFIG);
        self.engine.sandboxes.update(&self.scope, sandbox, &[field]).await?;
        pod.set_config(config);
        Ok(())
    }

    /// Takes the range of addresses that this node's pods are to have.
    pub(crate) async fn update_runtime_config(&self, request: wire::UpdateRuntimeConfigRequest) -> Result<()> {
        let range = request.runtime_config.and_then(|config| config.network_config).map(|network| network.pod_cidr);
        for part in range.iter().flat_map(|range| range.split(',')).filter(|part| !part.is_empty()) {
            let address = part.trim().split_once('/').and_then(|(address, _)| address.parse::<std::net::IpAddr>().ok());
            if address.is_none() {
                return Err(Error::invalid(
                    "runtime_config.network_config.pod_cidr",
                    format!("{part:?} is not a range"),
                ));
            }
        }
        // Without a template there is no configuration to write, as in containerd.
        Ok(())
    }
}
