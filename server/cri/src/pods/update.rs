//! UpdatePodSandboxResources: limits of a pod as a whole, and UpdateRuntimeConfig.

use gantry_api::pb::runtime::v1 as wire;
use gantry_types::{ErrorKind, HasKind};

use super::{Pod, SANDBOXER, record};
use crate::containers::merge;
use crate::spec::limits_of;
use crate::{Cri, Error, Result};

impl Cri {
    /// Changes a pod's limits: in its record and its sandbox's configuration, and for the sandbox that runs, whose cgroup
    /// (or virtual machine) they hold for. The cgroup above it, of the pod as a whole, is the kubelet's to write.
    pub(crate) async fn update_pod(&self, request: wire::UpdatePodSandboxResourcesRequest) -> Result<()> {
        let pod = self.pods.get(&request.pod_sandbox_id)?;
        let checked = [("overhead", &request.overhead), ("resources", &request.resources)];
        for (field, resources) in checked {
            resources.as_ref().map_or(Ok(()), |resources| limits_of(field, resources).map(drop))?;
        }
        let _one = pod.gate.lock().await;
        self.nri_update_pod(&pod, request.overhead.as_ref(), request.resources.as_ref()).await?;
        let mut config = (*pod.config()).clone();
        let linux = config.linux.get_or_insert_default();
        linux.overhead = request.overhead.or(linux.overhead.take());
        let old = linux.resources.take();
        linux.resources = match (old, &request.resources) {
            (Some(old), Some(new)) => Some(merge(old, new)),
            (old, new) => new.clone().or(old),
        };
        let mut sandbox = self.engine.sandboxes.get(&self.scope, &pod.id).await?;
        if let Some(spec) = sandbox.spec.as_mut() {
            spec.value = super::spec::with_pod_limits(&spec.value, &config, &pod.id)?;
        }
        sandbox.extensions.extend(record::extensions(&config, &pod.facts())?);
        let fields = ["spec".to_owned(), format!("extensions.{}", record::CONFIG)];
        let updated = self.engine.sandboxes.update(&self.scope, sandbox, &fields).await?;
        pod.set_config(config);
        if pod.is_ready() {
            self.update_sandbox(&pod, &updated).await?;
        }
        self.nri_updated_pod(&pod).await;
        Ok(())
    }

    async fn update_sandbox(&self, pod: &Pod, updated: &gantry_engine::sandboxes::Sandbox) -> Result<()> {
        let controller = self.engine.sandboxes.controller(SANDBOXER)?;
        match controller.update(&self.scope, updated, &["spec".to_owned()]).await {
            // A sandbox that has no limits of its own.
            Err(error) if error.kind() == ErrorKind::Unimplemented => Ok(()),
            told => told.map_err(Error::at(format!("failed to update sandbox {:?}", pod.id))),
        }
    }

    /// Takes the range of addresses that this node's pods are to have: a template of a network's configuration is filled
    /// in with it.
    pub(crate) async fn update_runtime_config(&self, request: wire::UpdateRuntimeConfigRequest) -> Result<()> {
        let range = request.runtime_config.and_then(|config| config.network_config).map(|network| network.pod_cidr);
        let ranges: Vec<String> =
            range.iter().flat_map(|range| range.split(',')).map(|r| r.trim().to_owned()).collect();
        let ranges: Vec<String> = ranges.into_iter().filter(|range| !range.is_empty()).collect();
        if let Some(bad) = ranges.iter().find(|range| !is_range(range)) {
            let field = "runtime_config.network_config.pod_cidr";
            return Err(Error::invalid(field, format!("{bad:?} is not a range")));
        }
        let Some(template) = self.config.runtime.cni.conf_template.clone().filter(|_| !ranges.is_empty()) else {
            return Ok(());
        };
        let written = self.networks.configure(template, ranges).await.map_err(super::network::failure)?;
        tracing::info!(written, "asked to configure the network of pods from its template");
        Ok(())
    }
}

/// Whether a text is an address and the length of a prefix.
fn is_range(text: &str) -> bool {
    let Some((address, prefix)) = text.split_once('/') else { return false };
    let bits = match address.parse::<std::net::IpAddr>() {
        Ok(address) if address.is_ipv4() => 32,
        Ok(_) => 128,
        Err(_) => return false,
    };
    prefix.parse::<u8>().is_ok_and(|prefix| prefix <= bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_an_address_with_a_prefix_that_fits_it() {
        assert!(is_range("10.0.0.0/8") && is_range("fd00::/64"));
        assert!(!is_range("10.0.0.0/33") && !is_range("10.0.0.0") && !is_range("x/8") && !is_range("10.0.0.0/-1"));
    }
}
