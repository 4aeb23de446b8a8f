//! Pods as Kubernetes asks for them.

use std::collections::BTreeMap;
use std::sync::Arc;

use gantry_api::pb::runtime::v1 as wire;
use serde_json::{Value, json};

use super::{Pod, SANDBOXER};
use crate::{Cri, Result, verbose};

/// The name by which a pod is unique on its node.
pub(crate) fn metadata_name(metadata: &wire::PodSandboxMetadata) -> String {
    format!("{}_{}_{}_{}", metadata.name, metadata.namespace, metadata.uid, metadata.attempt)
}

/// Whether containers can run in a pod.
pub(crate) fn state_of(pod: &Pod) -> wire::PodSandboxState {
    match pod.is_ready() {
        true => wire::PodSandboxState::SandboxReady,
        false => wire::PodSandboxState::SandboxNotready,
    }
}

impl Cri {
    /// The pods that a filter selects.
    pub(crate) fn list_pods(&self, filter: Option<&wire::PodSandboxFilter>) -> Vec<wire::PodSandbox> {
        let pods = self.pods.all();
        pods.iter().filter(|pod| filter.is_none_or(|filter| fits(pod, filter))).map(|pod| listed(pod)).collect()
    }

    /// A pod's status.
    pub(crate) async fn pod_status(&self, id: &str, verbose: bool) -> Result<wire::PodSandboxStatusResponse> {
        let pod = self.pods.get(id)?;
        let info = if verbose { self.pod_info(&pod).await } else { BTreeMap::new() };
        Ok(wire::PodSandboxStatusResponse {
            status: Some(self.status_of_pod(&pod)),
            info,
            containers_statuses: Vec::new(),
            timestamp: crate::now(),
        })
    }

    /// A pod's status without the details.
    pub(crate) fn status_of_pod(&self, pod: &Pod) -> wire::PodSandboxStatus {
        let config = pod.config();
        let facts = pod.facts();
        let ready = pod.is_ready();
        let mut ips = facts.ips.iter().filter(|_| ready).cloned();
        let namespaces = wire::Namespace { options: Some(pod.namespaces()) };
        wire::PodSandboxStatus {
            id: pod.id.clone(),
            metadata: config.metadata.clone(),
            state: state_of(pod) as i32,
            created_at: pod.created_at,
            network: Some(wire::PodSandboxNetworkStatus {
                ip: ips.next().unwrap_or_default(),
                additional_ips: ips.map(|ip| wire::PodIp { ip }).collect(),
            }),
            linux: Some(wire::LinuxPodSandboxStatus { namespaces: Some(namespaces) }),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            runtime_handler: facts.handler,
        }
    }

    /// What containerd tells of a pod when asked verbosely.
    async fn pod_info(&self, pod: &Arc<Pod>) -> BTreeMap<String, String> {
        let facts = pod.facts();
        let record = self.engine.sandboxes.get(&self.scope, &pod.id).await.ok();
        let spec: Value = record
            .as_ref()
            .and_then(|record| serde_json::from_slice(&record.spec.as_ref()?.value).ok())
            .unwrap_or_default();
        let status = match self.engine.sandboxes.controller(SANDBOXER) {
            Ok(controller) => controller.status(&self.scope, &pod.id, false).await.ok(),
            Err(_) => None,
        };
        let ready = pod.is_ready();
        let netns = self.netns_of(&pod.id);
        let held = self.engine.containers.get(&self.scope, &pod.id).await.ok();
        let told = verbose::cni_result(&facts.results, &netns);
        let config = verbose::message(&*pod.config());
        let info = json!({
            "pid": status.filter(|_| ready).map_or(0, |status| status.pid),
            "processStatus": if ready { "running" } else { "deleted" },
            "netNamespaceClosed": !crate::network::is_namespace(&netns),
            "image": held.as_ref().map(|held| held.image.clone()).unwrap_or_default(),
            "snapshotKey": held.as_ref().map(|held| held.snapshot_key.clone()).unwrap_or_default(),
            "snapshotter": held.map(|held| held.snapshotter).unwrap_or_default(),
            "runtimeHandler": facts.handler,
            "runtimeType": record.as_ref().map(|record| record.runtime.name.clone()),
            "runtimeOptions": verbose::options(record.as_ref().and_then(|record| record.runtime.options.as_ref())),
            "config": config,
            "runtimeSpec": spec,
            "cniResult": told,
            "sandboxMetadata": self.metadata_of(pod, config, told),
        });
        BTreeMap::from([("info".to_owned(), info.to_string())])
    }

    /// What containerd keeps of a pod besides.
    fn metadata_of(&self, pod: &Pod, config: Value, result: Value) -> Value {
        let facts = pod.facts();
        let own = pod.namespaces().network() != wire::NamespaceMode::Node;
        let netns = if own { self.netns_of(&pod.id).to_string_lossy().into_owned() } else { String::new() };
        let mut ips = facts.ips.iter();
        let ip = ips.next().cloned().unwrap_or_default();
        let others: Vec<&String> = ips.collect();
        let metadata = json!({
            "ID": pod.id,
            "Name": metadata_name(&pod.config().metadata.clone().unwrap_or_default()),
            "Config": config,
            "NetNSPath": netns,
            "IP": ip,
            "AdditionalIPs": if others.is_empty() { Value::Null } else { json!(others) },
            "RuntimeHandler": facts.handler,
            "CNIResult": result,
            "ProcessLabel": facts.process_label,
        });
        json!({"Version": "v1", "Metadata": metadata})
    }
}

fn listed(pod: &Pod) -> wire::PodSandbox {
    let config = pod.config();
    wire::PodSandbox {
        id: pod.id.clone(),
        metadata: config.metadata.clone(),
        state: state_of(pod) as i32,
        created_at: pod.created_at,
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        runtime_handler: pod.facts().handler,
    }
}

fn fits(pod: &Pod, filter: &wire::PodSandboxFilter) -> bool {
    let of_state = filter.state.is_none_or(|wanted| wanted.state == state_of(pod) as i32);
    pod.id.starts_with(&filter.id) && of_state && selects(&filter.label_selector, &pod.config().labels)
}

/// Whether labels have all that a selector wants.
pub(crate) fn selects(selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}
