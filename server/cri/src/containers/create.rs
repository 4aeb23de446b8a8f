//! CreateContainer: image, volumes, snapshot, configuration, record. No process yet; what fails leaves nothing behind.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use gantry_api::pb::runtime::v1 as wire;
use gantry_engine::containers::Container as Record;
use gantry_engine::transfer::{ProgressSink, Unpack};
use gantry_types::{Any, Labels};
use prost::Message as _;
use wire::NamespaceMode;

use super::Container;
use super::record::{self, Facts};
use super::volumes::{Ready, view_key};
use crate::creations::new_id;
use crate::events::Kind;
use crate::handlers::runtime_of;
use crate::images::Image;
use crate::nri::Hold;
use crate::pods::{Pod, SPEC_TYPE, absent, kind_labels, mapping, namespaces_of, user_ranges};
use crate::spec::{Accounts, Plan, identity, limits_of, mounts_check, options_of, security_of};
use crate::stages::{LONG, PATIENCE, SHORT, Stages};
use crate::{Cri, Error, Result};

/// What is made, step by step.
struct Making {
    id: String,
    pod: Arc<Pod>,
    config: wire::ContainerConfig,
    /// The part of a pod's checkpoint that it goes on from.
    from: Option<PathBuf>,
}

impl Cri {
    /// Makes a container that goes on, once started, from a part of a pod's checkpoint. All of the part that it needs is
    /// its own then. The pod is known to nobody yet, so no other container can want the name.
    pub(crate) async fn revive_container(
        &self,
        pod: &Arc<Pod>,
        config: &wire::ContainerConfig,
        from: PathBuf,
    ) -> Result<()> {
        let (name, id) = (container_name(config, pod), new_id()?);
        let making = Making { id: id.clone(), pod: Arc::clone(pod), config: config.clone(), from: Some(from) };
        let stages = Stages::begin(self, "container", &id);
        self.container_names.occupy(&name, &id);
        let made = self.make_container(making, &stages).await;
        made.inspect_err(|_| self.container_names.free(&name, &id))
    }

    /// Makes a container; gives its id. A retry joins.
    pub(crate) async fn create_container(&self, request: wire::CreateContainerRequest) -> Result<String> {
        let bytes = request.encode_to_vec();
        let pod = self.pods.get(&request.pod_sandbox_id)?;
        let config = request.config.ok_or_else(|| Error::invalid("config", "must be set"))?;
        check(&config)?;
        if !pod.is_ready() {
            return Err(Error::State(format!("sandbox container {:?} is not running", pod.id)));
        }
        let name = container_name(&config, &pod);
        let id = new_id()?;
        let (cri, making) = (self.clone(), Making { id: id.clone(), pod, config, from: None });
        let make = async move {
            let stages = Stages::begin(&cri, "container", &making.id);
            cri.make_container(making, &stages).await
        };
        self.container_names.join(&name, id, bytes, make).await
    }

    async fn make_container(&self, making: Making, stages: &Stages) -> Result<()> {
        let handler = making.pod.facts().handler;
        let snapshotter = self.snapshotter_of(&handler);
        let made = self.build_container(&making, &snapshotter, stages).await;
        // Held until the container is known.
        let (container, _hold) = match made {
            Ok(made) => made,
            Err(error) => {
                stages.note("undoing after a failure".to_owned());
                self.undo_container(&making.id, &snapshotter).await;
                return Err(error);
            }
        };
        self.containers.insert(&container);
        self.nri_created(&container).await;
        self.events.tell(self, Kind::Created, &container.id, &making.pod).await;
        Ok(())
    }

    async fn build_container(
        &self,
        making: &Making,
        snapshotter: &str,
        stages: &Stages,
    ) -> Result<(Arc<Container>, Hold)> {
        let Making { id, pod, config, .. } = making;
        let asked = config.image.clone().unwrap_or_default();
        let image = stages.run("looking for the image", SHORT, self.image(&asked.image)).await?;
        let missing = || Error::NotFound { what: "image", id: asked.image.clone() };
        let image = image.ok_or_else(missing)?;
        let unpack = self.unpack_for(&pod.facts().handler);
        let top = stages.run("unpacking the image", LONG, self.unpacked(&image, &unpack)).await?;
        // The record keeps the snapshots that are made for it.
        stages.run("recording what is to be made", SHORT, self.record_intent(making, &image, snapshotter)).await?;
        let volumes = self.make_volumes(id, pod, config, &image.facts.config);
        let ready = stages.run("mounting volumes of images", LONG, volumes).await?;
        let users = user_ranges("config.linux.security_context.namespace_options", &namespaces_of(&pod.config()))?;
        let ranges = users.map(|(uids, _)| uids);
        let labels = mapping(ranges.as_deref());
        let prepare = async {
            self.engine.snapshots.prepare(&self.scope, snapshotter, id, &top, labels).await?;
            self.fill_volumes(id, snapshotter, &ready.volumes).await
        };
        stages.run("making the snapshot", PATIENCE, prepare).await?;
        if let Some(from) = &making.from {
            stages.run("copying the checkpoint", LONG, self.keep_checkpoint(id, from.clone())).await?;
        }
        let describe = self.describe(making, &image, &ready, snapshotter, ranges, stages);
        stages.run("describing it for the runtime", PATIENCE, describe).await
    }

    async fn describe(
        &self,
        making: &Making,
        image: &Image,
        ready: &Ready,
        snapshotter: &str,
        users: Option<Vec<gantry_engine::spec::IdRange>>,
        stages: &Stages,
    ) -> Result<(Arc<Container>, Hold)> {
        let Making { id, pod, config, .. } = making;
        let security = security_of(config);
        let accounts = self.accounts_of(id, snapshotter).await?;
        let mut identity = identity(&security, &image.user(), &accounts)?;
        let target = self.target_of_processes(pod, &security)?;
        let handler = self.handler(&pod.facts().handler)?.clone();
        let (cri, moved) = (self.clone(), (id.clone(), Arc::clone(pod), config.clone(), image.clone()));
        let (own, volumes, told) = (identity.clone(), ready.volumes.clone(), stages.clone());
        // Paths of the host are looked at: a dead mount may hold that up.
        let name = container_name(config, pod);
        let describing = self.threads.run(&name, move || {
            let (id, pod, config, image) = moved;
            let plan = Plan {
                id: &id,
                pod: &pod,
                config: &config,
                image: &image.facts.config,
                handler: &handler,
                identity: &own,
                volumes: &volumes,
                target,
                users,
                stages: &told,
            };
            cri.container_spec(&plan)
        });
        let made = describing.await?;
        stages.note("asking NRI plugins".to_owned());
        let hold = self.nri.hold().await;
        let spec = self.nri_create(pod, id, config, made.spec).await?;
        identity.groups = made.groups;
        let facts = Facts {
            image_id: image.id().to_owned(),
            image_ref: image.image_ref(),
            volume_refs: ready.refs.clone(),
            sources: made.sources,
            log_path: log_path(&pod.config(), config),
            stop_signal: super::stop::stop_signal(config, image)?,
            identity,
            restores: making.from.is_some(),
            ..Facts::default()
        };
        let value = serde_json::to_vec(&spec).map_err(|error| Error::State(format!("container spec: {error}")))?;
        let mut record = self.engine.containers.get(&self.scope, id).await?;
        record.spec = Some(Any { type_url: SPEC_TYPE.into(), value });
        record.extensions.insert(record::FACTS.to_owned(), record::facts_any(&facts)?);
        let record =
            self.engine.containers.update(&self.scope, record, &["spec".to_owned(), "extensions".to_owned()]).await?;
        Ok((Container::new(id, &pod.id, config.clone(), facts, crate::nanoseconds(record.created)), hold))
    }

    /// Enters a container before anything is made for it. Without [`Facts`], it was not made to the end.
    async fn record_intent(&self, making: &Making, image: &Image, snapshotter: &str) -> Result<()> {
        let Making { id, pod, config, .. } = making;
        let handler = self.handler(&pod.facts().handler)?;
        let snapshotter = if snapshotter.is_empty() { self.engine.snapshots.default_name() } else { snapshotter };
        let mut labels = labels(config, image);
        for at in (0..config.mounts.len()).filter(|at| config.mounts[*at].image.is_some()) {
            let key = format!("{}{snapshotter}/volume-{at}", gantry_types::labels::GC_REF_SNAPSHOT);
            labels.insert(key, view_key(id, at));
        }
        let record = Record {
            id: id.parse().map_err(gantry_engine::Error::from)?,
            labels,
            image: image.names.iter().find(|name| !name.starts_with("sha256:")).cloned().unwrap_or_default(),
            runtime: runtime_of(handler),
            spec: None,
            snapshotter: snapshotter.to_owned(),
            snapshot_key: id.clone(),
            sandbox_id: pod.id.clone(),
            extensions: [(record::CONFIG.to_owned(), record::config_any(config))].into(),
            created: SystemTime::UNIX_EPOCH,
            updated: SystemTime::UNIX_EPOCH,
        };
        self.engine.containers.create(&self.scope, record).await?;
        Ok(())
    }

    /// Users and groups of the container's files.
    async fn accounts_of(&self, id: &str, snapshotter: &str) -> Result<Accounts> {
        let tree = self.engine.snapshots.tree(&self.scope, snapshotter, id).await?;
        let reading = tokio::task::spawn_blocking(move || Accounts::read(&tree));
        reading.await.map_err(|_| Error::Stopped { what: "reading the container's users" })
    }

    /// Name of the snapshot that an image is unpacked to.
    pub(crate) async fn unpacked(&self, image: &Image, unpack: &Unpack) -> Result<String> {
        let snapshotter = match unpack.snapshotter.as_str() {
            "" => self.engine.snapshots.default_name(),
            name => name,
        };
        let label = format!("{}{snapshotter}", gantry_types::labels::GC_REF_SNAPSHOT);
        let info = self.engine.content.info(&self.scope, &image.facts.id).await?;
        if let Some(top) = info.labels.get(&label)
            && self.engine.snapshots.stat(&self.scope, snapshotter, top).await.is_ok()
        {
            return Ok(top.clone());
        }
        let name = image.names.first().cloned().unwrap_or_default();
        let record = self.engine.images.get(&self.scope, &name).await?;
        Ok(self.engine.transfer.unpack(&self.scope, &record, unpack, ProgressSink::default()).await?)
    }

    /// The process of the container whose processes are to be seen.
    fn target_of_processes(&self, pod: &Pod, security: &wire::LinuxContainerSecurityContext) -> Result<Option<u32>> {
        let options = options_of(security);
        if options.pid() != NamespaceMode::Target {
            return Ok(None);
        }
        let field = "config.linux.security_context.namespace_options.target_id";
        let target =
            self.containers.get(&options.target_id).map_err(|error| Error::invalid(field, error.to_string()))?;
        if target.pod != pod.id {
            return Err(Error::invalid(field, "is a container of another pod"));
        }
        match (target.state(), target.facts().pid) {
            (wire::ContainerState::ContainerRunning, pid) if pid != 0 => Ok(Some(pid)),
            _ => Err(Error::invalid(field, format!("container {:?} is not running", target.id))),
        }
    }

    /// Takes back whatever there is of a container that was not made to the end.
    pub(super) async fn undo_container(&self, id: &str, snapshotter: &str) {
        let removed = absent(self.engine.containers.delete(&self.scope, id).await);
        let snapshot = absent(self.engine.snapshots.remove(&self.scope, snapshotter, id).await);
        let volumes = self.remove_volumes(id, snapshotter).await;
        for error in [removed, snapshot, volumes].into_iter().filter_map(Result::err) {
            tracing::warn!(id, %error, "parts of a container that failed stay until the next start");
        }
    }
}

/// The name by which a container is unique on its node.
pub(super) fn container_name(config: &wire::ContainerConfig, pod: &Pod) -> String {
    let own = config.metadata.clone().unwrap_or_default();
    let of = pod.config().metadata.clone().unwrap_or_default();
    format!("{}_{}_{}_{}_{}", own.name, of.name, of.namespace, of.uid, own.attempt)
}

fn labels(config: &wire::ContainerConfig, image: &Image) -> Labels {
    let of_image = image.facts.config.config().as_ref().and_then(|config| config.labels().clone()).unwrap_or_default();
    let mut all: std::collections::BTreeMap<String, String> = of_image.into_iter().collect();
    all.extend(config.labels.clone());
    kind_labels(&all, "container")
}

fn log_path(pod: &wire::PodSandboxConfig, config: &wire::ContainerConfig) -> String {
    match (pod.log_directory.as_str(), config.log_path.as_str()) {
        ("", _) | (_, "") => String::new(),
        (directory, path) => std::path::Path::new(directory).join(path).to_string_lossy().into_owned(),
    }
}

/// Checks what does not depend on this node.
pub(crate) fn check(config: &wire::ContainerConfig) -> Result<()> {
    let metadata = config.metadata.as_ref().ok_or_else(|| Error::invalid("config.metadata", "must be set"))?;
    if metadata.name.is_empty() {
        return Err(Error::invalid("config.metadata.name", "must not be empty"));
    }
    if config.image.as_ref().is_none_or(|image| image.image.is_empty()) {
        return Err(Error::invalid("config.image.image", "must not be empty"));
    }
    let path = std::path::Path::new(&config.log_path);
    if path.is_absolute() || path.components().any(|part| part == std::path::Component::ParentDir) {
        return Err(Error::invalid("config.log_path", "must be relative to the pod's log directory, and within it"));
    }
    if config.stdin_once && !config.stdin {
        return Err(Error::invalid("config.stdin_once", "needs stdin"));
    }
    mounts_check(&config.mounts)?;
    let options = options_of(&security_of(config));
    for (name, mode) in [("network", options.network), ("pid", options.pid), ("ipc", options.ipc)] {
        if NamespaceMode::try_from(mode).is_err() {
            let field = format!("config.linux.security_context.namespace_options.{name}");
            return Err(Error::invalid(field, format!("{mode} is not a mode of namespaces")));
        }
    }
    let resources = config.linux.as_ref().and_then(|linux| linux.resources.as_ref());
    resources.map_or(Ok(()), |resources| limits_of("config.linux.resources", resources).map(drop))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bad_field_is_named() {
        let text = |text: &str| text.to_owned();
        let good = || wire::ContainerConfig {
            metadata: Some(wire::ContainerMetadata { name: text("c"), attempt: 0 }),
            image: Some(wire::ImageSpec { image: text("i"), ..Default::default() }),
            ..Default::default()
        };
        let refused = |config: wire::ContainerConfig| match check(&config) {
            Err(Error::Invalid { field, .. }) => field,
            other => panic!("{other:?}"),
        };
        assert!(check(&good()).is_ok());
        assert_eq!(refused(wire::ContainerConfig { metadata: None, ..good() }), "config.metadata");
        assert_eq!(refused(wire::ContainerConfig { image: None, ..good() }), "config.image.image");
        assert_eq!(refused(wire::ContainerConfig { log_path: text("../x"), ..good() }), "config.log_path");
        assert_eq!(refused(wire::ContainerConfig { log_path: text("/x"), ..good() }), "config.log_path");
        assert_eq!(refused(wire::ContainerConfig { stdin_once: true, ..good() }), "config.stdin_once");
    }
}
