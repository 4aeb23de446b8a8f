//! Metrics of pods and containers by name, as Kubernetes' summary has them.

use gantry_api::pb::runtime::v1 as wire;

use crate::Cri;

impl Cri {
    /// The metrics that there are.
    pub(crate) fn metric_descriptors(&self) -> Vec<wire::MetricDescriptor> {
        Vec::new()
    }

    /// Metrics of all pods.
    pub(crate) async fn pod_metrics(&self) -> Vec<wire::PodSandboxMetrics> {
        Vec::new()
    }
}
