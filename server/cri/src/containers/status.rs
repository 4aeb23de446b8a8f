//! Containers as Kubernetes asks for them.

use std::collections::BTreeMap;

use gantry_api::pb::runtime::v1 as wire;
use serde_json::{Value, json};
use wire::ContainerState;

use super::stop::wire_signal;
use super::{Container, Facts};
use crate::pods::selects;
use crate::{Cri, Result, verbose};

/// What a container with these facts does.
pub(crate) fn state_of(facts: &Facts) -> ContainerState {
    match facts {
        Facts { unknown: true, .. } => ContainerState::ContainerUnknown,
        Facts { finished_at: 0, started_at: 0, .. } => ContainerState::ContainerCreated,
        Facts { finished_at: 0, .. } => ContainerState::ContainerRunning,
        _ => ContainerState::ContainerExited,
    }
}

impl Cri {
    /// The containers that a filter selects.
    pub(crate) fn list_containers(&self, filter: Option<&wire::ContainerFilter>) -> Vec<wire::Container> {
        let all = self.containers.all();
        let selected = all.iter().filter(|container| filter.is_none_or(|filter| fits(container, filter)));
        selected.map(|container| listed(container)).collect()
    }

    /// A container's status.
    pub(crate) async fn container_status(&self, id: &str, verbose: bool) -> Result<wire::ContainerStatusResponse> {
        let container = self.containers.get(id)?;
        let info = if verbose { self.container_info(&container).await } else { BTreeMap::new() };
        Ok(wire::ContainerStatusResponse { status: Some(status_of(&container)), info })
    }

    async fn container_info(&self, container: &Container) -> BTreeMap<String, String> {
        let record = self.engine.containers.get(&self.scope, &container.id).await.ok();
        let spec: Value = record
            .as_ref()
            .and_then(|record| serde_json::from_slice(&record.spec.as_ref()?.value).ok())
            .unwrap_or_default();
        let info = json!({
            "sandboxID": container.pod,
            "pid": container.facts().pid,
            "removing": container.is_going(),
            "snapshotKey": container.id,
            "snapshotter": record.as_ref().map(|record| record.snapshotter.clone()),
            "runtimeType": record.as_ref().map(|record| record.runtime.name.clone()),
            "runtimeOptions": verbose::options(record.as_ref().and_then(|record| record.runtime.options.as_ref())),
            "config": verbose::container_config(&container.config()),
            "runtimeSpec": spec,
        });
        BTreeMap::from([("info".to_owned(), info.to_string())])
    }
}

/// A container's status without the details.
pub(crate) fn status_of(container: &Container) -> wire::ContainerStatus {
    let (config, facts) = (container.config(), container.facts());
    let asked = config.image.clone().unwrap_or_default();
    let image = match asked.user_specified_image.as_str() {
        "" => asked.image.clone(),
        specified => specified.to_owned(),
    };
    let resources = config.linux.as_ref().and_then(|linux| linux.resources.clone()).map(with_swap);
    let identity = &facts.identity;
    wire::ContainerStatus {
        id: container.id.clone(),
        metadata: config.metadata.clone(),
        state: state_of(&facts) as i32,
        created_at: container.created_at,
        started_at: facts.started_at,
        finished_at: facts.finished_at,
        exit_code: facts.exit_code,
        image: Some(wire::ImageSpec { image, ..Default::default() }),
        image_ref: facts.image_ref.clone(),
        reason: facts.reason.clone(),
        message: facts.message.clone(),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        mounts: config.mounts.iter().map(|mount| told(mount, &facts)).collect(),
        log_path: facts.log_path.clone(),
        resources: Some(wire::ContainerResources { linux: Some(resources.unwrap_or_default()), windows: None }),
        image_id: facts.image_id.clone(),
        user: Some(wire::ContainerUser {
            linux: Some(wire::LinuxContainerUser {
                uid: identity.uid.into(),
                gid: identity.gid.into(),
                supplemental_groups: identity.groups.iter().map(|group| i64::from(*group)).collect(),
            }),
        }),
        stop_signal: wire_signal(facts.stop_signal) as i32,
    }
}

/// A mount as it is: an image's under the digest that it stands for.
fn told(mount: &wire::Mount, facts: &Facts) -> wire::Mount {
    let mut mount = mount.clone();
    if let (Some(image), Some(found)) = (mount.image.as_mut(), facts.volume_refs.get(&mount.container_path)) {
        image.image_ref.clone_from(found);
    }
    // Not looked at now: the path may be dead.
    let image = mount.image.as_ref().is_some_and(|image| !image.image.is_empty());
    if let Some(real) = facts.sources.get(&mount.container_path).filter(|_| !image) {
        mount.host_path.clone_from(real);
    }
    mount
}

fn with_swap(mut resources: wire::LinuxContainerResources) -> wire::LinuxContainerResources {
    if resources.memory_swap_limit_in_bytes == 0 {
        resources.memory_swap_limit_in_bytes = resources.memory_limit_in_bytes;
    }
    resources
}

fn listed(container: &Container) -> wire::Container {
    let config = container.config();
    let facts = container.facts.borrow();
    wire::Container {
        id: container.id.clone(),
        pod_sandbox_id: container.pod.clone(),
        metadata: config.metadata.clone(),
        image: config.image.clone(),
        image_ref: facts.image_id.clone(),
        state: state_of(&facts) as i32,
        created_at: container.created_at,
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        image_id: facts.image_id.clone(),
    }
}

fn fits(container: &Container, filter: &wire::ContainerFilter) -> bool {
    container.id.starts_with(&filter.id)
        && container.pod.starts_with(&filter.pod_sandbox_id)
        && filter.state.is_none_or(|wanted| wanted.state == container.state() as i32)
        && selects(&filter.label_selector, &container.config().labels)
}
