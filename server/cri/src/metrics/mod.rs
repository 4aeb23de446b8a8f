//! Metrics of pods and containers by name, as cAdvisor's users know them: one table says what there is, and what is told
//! is read from cgroups' files and `/proc`.

mod read;
mod table;

use gantry_api::pb::runtime::v1 as wire;

use crate::Cri;
use crate::containers::Container;
use crate::pods::Pod;
use read::Reading;
use table::{METRICS, Metric};

/// Labels that every metric has.
const LABELS: [&str; 5] = ["pod", "namespace", "container", "id", "image"];

/// One value: the name, the labels beyond [`LABELS`], the number.
pub(crate) struct Value {
    pub(crate) name: &'static str,
    pub(crate) labels: Vec<String>,
    pub(crate) value: u64,
}

impl Value {
    fn new(name: &'static str, value: u64) -> Value {
        Value { name, labels: Vec::new(), value }
    }

    fn with(name: &'static str, labels: &[&str], value: u64) -> Value {
        Value { name, labels: labels.iter().map(|label| (*label).to_owned()).collect(), value }
    }
}

impl Cri {
    /// The metrics that there are.
    pub(crate) fn metric_descriptors(&self) -> Vec<wire::MetricDescriptor> {
        let keys = |metric: &Metric| LABELS.iter().chain(metric.labels).map(|key| (*key).to_owned()).collect();
        let one = |metric: &Metric| wire::MetricDescriptor {
            name: metric.name.to_owned(),
            help: metric.help.to_owned(),
            label_keys: keys(metric),
        };
        METRICS.iter().map(one).collect()
    }

    /// Metrics of all pods that run.
    pub(crate) async fn pod_metrics(&self) -> Vec<wire::PodSandboxMetrics> {
        let mut of_pods = self.containers.by_pod();
        let mut all = Vec::new();
        for pod in self.pods.all().iter().filter(|pod| pod.is_ready()) {
            let labels = labels_of(pod, None);
            let mut of_containers = Vec::new();
            for container in of_pods.remove(&pod.id).unwrap_or_default() {
                if container.state() != wire::ContainerState::ContainerRunning {
                    continue;
                }
                let labels = labels_of(pod, Some(&container));
                let values = self.container_values(&container).await;
                let metrics = values.into_iter().map(|value| told(&labels, value)).collect();
                of_containers.push(wire::ContainerMetrics { container_id: container.id.clone(), metrics });
            }
            let metrics = read::network(pod.facts().pid).into_iter().map(|value| told(&labels, value)).collect();
            let pod_sandbox_id = pod.id.clone();
            all.push(wire::PodSandboxMetrics { pod_sandbox_id, metrics, container_metrics: of_containers });
        }
        all
    }

    async fn container_values(&self, container: &Container) -> Vec<Value> {
        let Some(meter) = self.meter(container).await else { return Vec::new() };
        let Some(gauge) = &meter.gauge else { return Vec::new() };
        let facts = container.facts();
        let seconds = |nanoseconds: i64| u64::try_from(nanoseconds / 1_000_000_000).unwrap_or_default();
        let mut values = vec![
            Value::new("container_last_seen", seconds(crate::now())),
            Value::new("container_start_time_seconds", seconds(facts.started_at)),
        ];
        let reading = Reading { cgroups: &self.cgroups, path: gauge.path() };
        values.extend(reading.all(facts.pid));
        if let Some(layer) = self.writable_layer(&meter.layer).await {
            values.extend(read::filesystem(&layer));
        }
        values
    }
}

fn labels_of(pod: &Pod, container: Option<&Container>) -> Vec<String> {
    let metadata = pod.config().metadata.clone().unwrap_or_default();
    let (name, id, image) = match container {
        None => (String::new(), pod.id.clone(), String::new()),
        Some(container) => {
            let config = container.config();
            let name = config.metadata.as_ref().map(|metadata| metadata.name.clone()).unwrap_or_default();
            let image = config.image.as_ref().map(|image| image.image.clone()).unwrap_or_default();
            (name, container.id.clone(), image)
        }
    };
    vec![metadata.name, metadata.namespace, name, id, image]
}

fn told(labels: &[String], value: Value) -> wire::Metric {
    let counter = METRICS.iter().any(|metric| metric.name == value.name && metric.counter);
    let kind = if counter { wire::MetricType::Counter } else { wire::MetricType::Gauge };
    wire::Metric {
        name: value.name.to_owned(),
        timestamp: crate::now(),
        metric_type: kind as i32,
        label_values: labels.iter().cloned().chain(value.labels).collect(),
        value: Some(wire::UInt64Value { value: value.value }),
    }
}
