//! Plug-ins of the Node Resource Interface: what they are told, when, and what becomes of their answers. Nothing is
//! done, and no message made, while no plug-in is connected.

mod apply;
mod messages;

pub(crate) use messages::asked;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use gantry_api::pb::runtime::v1 as wire;
use gantry_engine::spec::SpecBuilder;
use gantry_engine::spec::oci_spec::runtime::Spec;
use gantry_nri::api::{self, Event};
use gantry_nri::{Host, Nri, Snapshot};
use prost::Message;
use serde_json::Value;
use tokio::sync::OwnedRwLockReadGuard;

use crate::containers::Container;
use crate::pods::Pod;
use crate::spec::cdi;
use crate::{Cri, Error, Result};

/// How long a plug-in's wish waits for a container that is being changed.
const BUSY: Duration = Duration::from_secs(1);

/// Keeps plug-ins that connect from looking at all there is until it is dropped.
pub(crate) type Hold = OwnedRwLockReadGuard<()>;

/// The plug-ins that a configuration allows.
pub(crate) fn open(config: &crate::config::Config) -> Nri {
    let runtime_name = "gantry".to_owned();
    let runtime_version = env!("CARGO_PKG_VERSION").to_owned();
    Nri::new(gantry_nri::Config { runtime_name, runtime_version, ..config.nri.clone() })
}

impl Cri {
    /// Starts the plug-ins and lets others connect.
    pub(crate) async fn listen_to_plugins(&self) {
        let stopping = self.stopping.clone();
        let host = Arc::new(self.clone());
        self.nri.start(host, async move { stopping.cancelled().await }).await;
    }

    /// Tells of a pod, by an event without an answer.
    async fn tell_pod<Q: Message>(&self, event: Event, method: &'static str, request: Q) -> Result<()> {
        Ok(self.nri.tell(event, method, &request).await?)
    }

    /// A pod stands, and nobody knows of it yet.
    ///
    /// # Errors
    /// What a plug-in says: then there is to be no such pod; the others are told that it goes.
    pub(crate) async fn nri_run_pod(&self, pod: &Pod) -> Result<()> {
        if self.nri.is_idle() {
            return Ok(());
        }
        let told = Some(messages::pod(pod));
        let request = api::RunPodSandboxRequest { pod: told };
        let done = self.tell_pod(Event::RunPodSandbox, "RunPodSandbox", request).await;
        if done.is_err() {
            self.nri_stop_pod(pod).await;
            self.nri_remove_pod(pod).await;
        }
        done
    }

    /// A pod's containers have ended, and it goes.
    pub(crate) async fn nri_stop_pod(&self, pod: &Pod) {
        if self.nri.is_idle() || pod.told_stop() {
            return;
        }
        let request = api::StopPodSandboxRequest { pod: Some(messages::pod(pod)) };
        let done = self.tell_pod(Event::StopPodSandbox, "StopPodSandbox", request).await;
        log(&pod.id, done);
    }

    /// A pod goes for ever.
    pub(crate) async fn nri_remove_pod(&self, pod: &Pod) {
        if self.nri.is_idle() {
            return;
        }
        let request = api::RemovePodSandboxRequest { pod: Some(messages::pod(pod)) };
        let done = self.tell_pod(Event::RemovePodSandbox, "RemovePodSandbox", request).await;
        log(&pod.id, done);
    }

    /// A pod's limits are to change.
    ///
    /// # Errors
    /// What a plug-in says: then they stay.
    pub(crate) async fn nri_update_pod(
        &self,
        pod: &Pod,
        overhead: Option<&wire::LinuxContainerResources>,
        resources: Option<&wire::LinuxContainerResources>,
    ) -> Result<()> {
        if self.nri.is_idle() {
            return Ok(());
        }
        let request = api::UpdatePodSandboxRequest {
            pod: Some(messages::pod(pod)),
            overhead_linux_resources: overhead.map(messages::limits),
            linux_resources: resources.map(messages::limits),
        };
        self.tell_pod(Event::UpdatePodSandbox, "UpdatePodSandbox", request).await
    }

    /// A pod's limits have changed.
    pub(crate) async fn nri_updated_pod(&self, pod: &Pod) {
        if self.nri.is_idle() {
            return;
        }
        let request = api::PostUpdatePodSandboxRequest { pod: Some(messages::pod(pod)) };
        let done = self.tell_pod(Event::PostUpdatePodSandbox, "PostUpdatePodSandbox", request).await;
        log(&pod.id, done);
    }

    /// Lets plug-ins change a container that is being made.
    ///
    /// # Errors
    /// One refuses, or what they want cannot be had.
    pub(crate) async fn nri_create(
        &self,
        pod: &Pod,
        id: &str,
        config: &wire::ContainerConfig,
        spec: Spec,
    ) -> Result<Spec> {
        if self.nri.is_idle() {
            return Ok(spec);
        }
        let mut value = serde_json::to_value(&spec).map_err(broken)?;
        let container = messages::described(id, &pod.id, config, &value);
        let wanted = self.nri.create(&messages::pod(pod), container).await?;
        let refused = |reason: String| Error::State(format!("NRI adjustment of container {id:?}: {reason}"));
        apply::apply(&mut value, &wanted.adjust).map_err(refused)?;
        let mut spec: Spec = serde_json::from_value(value).map_err(broken)?;
        let devices: Vec<String> = wanted.adjust.cdi_devices.into_iter().map(|device| device.name).collect();
        if !devices.is_empty() {
            let added = cdi::add(SpecBuilder::from_spec(spec), &devices, &self.config.runtime.cdi_spec_dirs)?;
            spec = added.0.build()?;
        }
        self.perform(wanted.updates).await;
        Ok(spec)
    }

    /// Tells of a container, by an event without an answer.
    async fn tell_container(&self, event: Event, method: &'static str, container: &Container) -> Result<()> {
        let Ok(pod) = self.pods.get(&container.pod) else { return Ok(()) };
        let told = messages::container(container, &self.spec_of(&container.id).await);
        // All requests about one container have these two fields, by the same numbers.
        let request = api::StartContainerRequest { pod: Some(messages::pod(&pod)), container: Some(told) };
        Ok(self.nri.tell(event, method, &request).await?)
    }

    /// A container is made.
    pub(crate) async fn nri_created(&self, container: &Container) {
        if self.nri.is_idle() {
            return;
        }
        let done = self.tell_container(Event::PostCreateContainer, "PostCreateContainer", container).await;
        log(&container.id, done);
    }

    /// A container is to start.
    ///
    /// # Errors
    /// What a plug-in says: then it does not.
    pub(crate) async fn nri_start(&self, container: &Container) -> Result<()> {
        if self.nri.is_idle() {
            return Ok(());
        }
        self.tell_container(Event::StartContainer, "StartContainer", container).await
    }

    /// A container runs.
    pub(crate) async fn nri_started(&self, container: &Container) {
        if self.nri.is_idle() {
            return;
        }
        let done = self.tell_container(Event::PostStartContainer, "PostStartContainer", container).await;
        log(&container.id, done);
    }

    /// A container has ended; told once, whoever comes first. The caller has no [`Hold`].
    pub(crate) async fn nri_stopped(&self, container: &Container) {
        let mut told = container.told_stop.lock().await;
        if *told || container.facts().finished_at == 0 {
            return;
        }
        *told = true;
        let _hold = self.nri.hold().await;
        if self.nri.is_idle() {
            return;
        }
        let Ok(pod) = self.pods.get(&container.pod) else { return };
        let message = messages::container(container, &self.spec_of(&container.id).await);
        match self.nri.stop(messages::pod(&pod), message).await {
            Ok(updates) => self.perform(updates).await,
            Err(error) => log(&container.id, Err(error.into())),
        }
    }

    /// A container goes for ever.
    pub(crate) async fn nri_remove(&self, container: &Container) {
        if self.nri.is_idle() {
            return;
        }
        let done = self.tell_container(Event::RemoveContainer, "RemoveContainer", container).await;
        log(&container.id, done);
    }

    /// Lets plug-ins change the limits that a container is to have; none where nobody is asked.
    ///
    /// # Errors
    /// One refuses.
    pub(crate) async fn nri_update(
        &self,
        container: &Container,
        asked: &wire::LinuxContainerResources,
    ) -> Result<Option<api::LinuxResources>> {
        if self.nri.is_idle() {
            return Ok(None);
        }
        let Ok(pod) = self.pods.get(&container.pod) else { return Ok(None) };
        let message = messages::container(container, &self.spec_of(&container.id).await);
        let limits = messages::limits(asked);
        let (others, limits) = self.nri.update(&messages::pod(&pod), &message, limits).await?;
        self.perform(others).await;
        Ok(Some(limits))
    }

    /// A container's limits have changed.
    pub(crate) async fn nri_updated(&self, container: &Container) {
        if self.nri.is_idle() {
            return;
        }
        let done = self.tell_container(Event::PostUpdateContainer, "PostUpdateContainer", container).await;
        log(&container.id, done);
    }

    /// Does what plug-ins want of other containers; what fails is told in the log.
    async fn perform(&self, updates: Vec<api::ContainerUpdate>) {
        for failed in self.update(updates).await {
            tracing::warn!(id = failed.container_id, "an update that an NRI plugin wants failed");
        }
    }

    /// A container's configuration for its runtime.
    async fn spec_of(&self, id: &str) -> Value {
        let record = self.engine.containers.get(&self.scope, id).await.ok();
        let spec = record.and_then(|record| serde_json::from_slice(&record.spec?.value).ok());
        spec.unwrap_or_default()
    }
}

#[async_trait]
impl Host for Cri {
    async fn snapshot(&self) -> Snapshot {
        let mut all =
            Snapshot { pods: self.pods.all().iter().map(|pod| messages::pod(pod)).collect(), ..Snapshot::default() };
        for container in self.containers.all() {
            all.containers.push(messages::container(&container, &self.spec_of(&container.id).await));
        }
        all
    }

    async fn update(&self, updates: Vec<api::ContainerUpdate>) -> Vec<api::ContainerUpdate> {
        let mut failed = Vec::new();
        for update in updates {
            let limits = update.linux.clone().and_then(|linux| linux.resources).unwrap_or_default();
            if let Err(error) = self.limit_for_plugin(&update.container_id, &limits).await {
                tracing::warn!(id = update.container_id, %error, "limits that an NRI plugin wants");
                if !update.ignore_failure {
                    failed.push(update);
                }
            }
        }
        failed
    }
}

impl Cri {
    async fn limit_for_plugin(&self, id: &str, limits: &api::LinuxResources) -> Result<()> {
        let container = self.containers.get(id)?;
        // Who is changing the container may just be waiting for this very plug-in.
        let gate = tokio::time::timeout(BUSY, container.gate.lock()).await;
        let busy = |_| Error::Deadline { what: format!("container {id:?} is being changed"), limit: BUSY };
        let _one = gate.map_err(busy)?;
        self.change_limits(&container, &messages::asked(limits, 0), Some(limits), Default::default()).await
    }
}

/// Puts limits that plug-ins want over those of a configuration.
///
/// # Errors
/// What cannot be had.
pub(crate) fn put(spec: &mut Value, limits: &api::LinuxResources) -> Result<()> {
    apply::limits(spec, limits).map_err(|reason| Error::invalid("linux.resources", reason))
}

fn broken(error: serde_json::Error) -> Error {
    Error::State(format!("container spec: {error}"))
}

fn log(id: &str, done: Result<()>) {
    if let Err(error) = done {
        tracing::warn!(id, %error, "an NRI plugin failed");
    }
}
