//! Version, Status, RuntimeConfig: what this runtime is, and whether it is ready.

use std::collections::BTreeMap;

use gantry_api::pb::runtime::v1 as wire;

use crate::{Cri, Result};

/// Version of the kubelet's side that containerd answers.
const KUBE_API: &str = "0.1.0";

impl Cri {
    pub(super) fn version(&self) -> wire::VersionResponse {
        wire::VersionResponse {
            version: KUBE_API.into(),
            runtime_name: "gantry".into(),
            runtime_version: env!("CARGO_PKG_VERSION").into(),
            runtime_api_version: "v1".into(),
        }
    }

    pub(super) async fn status(&self, verbose: bool) -> Result<wire::StatusResponse> {
        let network = self.networks.readiness().await;
        let condition = |kind: &str, status, reason: &str, message: &str| wire::RuntimeCondition {
            r#type: kind.into(),
            status,
            reason: reason.into(),
            message: message.into(),
        };
        let conditions = vec![
            condition("RuntimeReady", true, "", ""),
            condition("NetworkReady", network.ready, &network.reason, &network.message),
        ];
        Ok(wire::StatusResponse {
            status: Some(wire::RuntimeStatus { conditions }),
            info: if verbose { self.info(&network) } else { BTreeMap::new() },
            runtime_handlers: self.runtime_handlers(),
            features: Some(wire::RuntimeFeatures {
                supplemental_groups_policy: true,
                user_namespaces_host_network: true,
                mount_options: true,
            }),
        })
    }

    /// All handlers; the default one also under the empty name.
    fn runtime_handlers(&self) -> Vec<wire::RuntimeHandler> {
        let features = |name: &str| wire::RuntimeHandlerFeatures {
            recursive_read_only_mounts: true,
            user_namespaces: self.maps_ids(name),
        };
        let names = std::iter::once(String::new()).chain(self.config.runtime.runtimes.keys().cloned());
        names.map(|name| wire::RuntimeHandler { features: Some(features(&name)), name }).collect()
    }

    /// Whether the files of a handler's containers can be seen with other owners, as a user namespace needs it. Overlays
    /// cannot have their layers mapped on every kernel.
    fn maps_ids(&self, handler: &str) -> bool {
        let snapshotter = self.engine.snapshots.snapshotter(&self.snapshotter_of(handler));
        snapshotter.is_ok_and(|snapshotter| snapshotter.capabilities().iter().any(|word| word.ends_with("remap-ids")))
    }

    pub(super) fn runtime_config(&self) -> Result<wire::RuntimeConfigResponse> {
        let systemd = self.systemd_cgroups(self.handler("")?);
        let driver = if systemd { wire::CgroupDriver::Systemd } else { wire::CgroupDriver::Cgroupfs };
        Ok(wire::RuntimeConfigResponse {
            linux: Some(wire::LinuxRuntimeConfiguration { cgroup_driver: driver as i32 }),
        })
    }
}
