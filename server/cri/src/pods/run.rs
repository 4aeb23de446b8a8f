//! RunPodSandbox: record, files, network and namespaces; what fails leaves nothing behind.

use std::path::Path;
use std::sync::PoisonError;

use gantry_api::pb::runtime::v1 as wire;
use gantry_engine::containers::{Container as ContainerRecord, Runtime};
use gantry_engine::sandboxes::{CreateSandbox, Sandbox};
use gantry_engine::spec::oci_spec::runtime::Spec;
use gantry_types::Any;
use prost::Message as _;
use std::time::{SystemTime, UNIX_EPOCH};

use super::network::ports_of;
use super::pause::Pause;
use super::record::{self, Facts};
use super::spec::{hostname_of, pod_limits, user_ranges};
use super::{Pod, SANDBOXER, namespaces_of};
use crate::config::RuntimeHandler;
use crate::creations::new_id;
use crate::events::Kind;
use crate::files::check_dns;
use crate::handlers::runtime_of;
use crate::network::{self, Attached};
use crate::stages::{LONG, PATIENCE, SHORT, Stages};
use crate::{Cri, Error, Result};
use std::sync::Arc;
use wire::NamespaceMode;

/// Type of an OCI configuration in records.
pub(crate) const SPEC_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";

/// What a pod's sandbox is made with.
struct Held<'a> {
    /// Whether its network namespace is bound before there is a process in it.
    bound_first: bool,
    own_network: bool,
    netns: &'a Path,
    pause: Option<&'a Pause>,
}

impl Cri {
    /// Makes and starts a pod; gives its id. A retry joins.
    pub(crate) async fn run_pod(&self, request: wire::RunPodSandboxRequest) -> Result<String> {
        let bytes = request.encode_to_vec();
        let config = request.config.ok_or_else(|| Error::invalid("config", "must be set"))?;
        let name = check(&config)?;
        let id = new_id()?;
        let (cri, handler, new) = (self.clone(), request.runtime_handler, id.clone());
        let make = async move {
            let stages = Stages::begin(&cri, "pod", &new);
            cri.make_pod(&new, config, &handler, &stages).await
        };
        self.pod_names.join(&name, id, bytes, make).await
    }

    pub(super) async fn make_pod(
        &self,
        id: &str,
        config: wire::PodSandboxConfig,
        handler: &str,
        stages: &Stages,
    ) -> Result<()> {
        let found = self.handler(handler);
        let runtime = found.map_err(Error::at(format!("unable to get OCI runtime for sandbox {id:?}")))?.clone();
        let facts = self.first_facts(handler, &config)?;
        let pod = Pod::new(id, config, facts, crate::now());
        stages.run("recording what is to be made", SHORT, self.record_pod(&pod, &runtime)).await?;
        let made = match self.raise_pod(&pod, &runtime, stages).await {
            Ok(()) => self.admit_pod(&pod, stages).await,
            Err(error) => Err(error),
        };
        if let Err(error) = made {
            stages.note("undoing after a failure".to_owned());
            self.undo_pod(id).await;
            return Err(error);
        }
        self.events.tell(self, Kind::Created, &pod.id, &pod).await;
        self.events.tell(self, Kind::Started, &pod.id, &pod).await;
        self.watch_pod(&pod);
        Ok(())
    }

    fn first_facts(&self, handler: &str, config: &wire::PodSandboxConfig) -> Result<Facts> {
        let security = super::security_of(config);
        let asked = security.selinux_options.clone().unwrap_or_default();
        let labels = self.selinux_labels(Some(&asked), security.privileged)?;
        let (process_label, mount_label) = labels;
        Ok(Facts { handler: handler.to_owned(), process_label, mount_label, ..Facts::default() })
    }

    /// Everything behind the first record.
    async fn raise_pod(&self, pod: &Arc<Pod>, handler: &RuntimeHandler, stages: &Stages) -> Result<()> {
        let config = pod.config();
        stages.run("writing the pod's files", SHORT, self.write_files(pod)).await?;
        let options = namespaces_of(&config);
        let users = user_ranges("config.linux.security_context.namespace_options", &options)?;
        let own_network = options.network() != NamespaceMode::Node;
        let netns = self.netns_of(&pod.id);
        // A network namespace belongs to the user namespace in which it was made.
        let bound_first = own_network && users.is_none();
        if bound_first {
            let making = async { network::create_namespace(&netns).await.map_err(super::network::failure) };
            stages.run("making the network namespace", SHORT, making).await?;
        }
        let pause = stages.run("looking for the pause image", LONG, self.pause_of(pod, handler)).await?;
        let spec = self.pod_spec(pod, handler, bound_first.then_some(netns.as_path()), pause.as_ref())?;
        let recording = self.record_spec(pod, &spec, pause.as_ref());
        stages.run("recording its configuration", SHORT, recording).await?;
        let held = Held { bound_first, own_network, netns: &netns, pause: pause.as_ref() };
        let making = self.create_connected(pod, handler, &held);
        let attached = stages.run("making the sandbox and its network", LONG, making).await?;
        let starting = async {
            let controller = self.engine.sandboxes.controller(SANDBOXER)?;
            Ok(controller.start(&self.scope, &pod.id).await?)
        };
        let instance = stages.run("starting the sandbox", PATIENCE, starting).await?;
        let mut facts = pod.facts.lock().unwrap_or_else(PoisonError::into_inner);
        facts.pid = instance.pid;
        if let Some(attached) = attached {
            facts.ips = attached.ips.iter().map(ToString::to_string).collect();
            facts.results = attached.results;
        }
        Ok(())
    }

    /// Asks the plug-ins whether the pod may be; from then on it is.
    async fn admit_pod(&self, pod: &Arc<Pod>, stages: &Stages) -> Result<()> {
        let _hold = self.nri.hold().await;
        stages.run("asking NRI plugins", PATIENCE, self.nri_run_pod(pod)).await?;
        let complete = self.set_pod_facts(pod, |facts| facts.complete = true);
        stages.run("recording that it is made", SHORT, complete).await?;
        pod.set_ready(true);
        self.pods.insert(pod);
        Ok(())
    }

    /// Makes the sandbox and connects it: at once where its network namespace is there already.
    async fn create_connected(&self, pod: &Pod, handler: &RuntimeHandler, held: &Held<'_>) -> Result<Option<Attached>> {
        if held.bound_first {
            let (made, attached) = tokio::join!(self.create_sandbox(pod, held.pause), self.connect(pod, handler));
            return made.and(attached).map(Some);
        }
        self.create_sandbox(pod, held.pause).await?;
        if !held.own_network {
            return Ok(None);
        }
        network::adopt_namespace(&pod.namespace("net"), held.netns).await.map_err(super::network::failure)?;
        self.connect(pod, handler).await.map(Some)
    }

    async fn write_files(&self, pod: &Pod) -> Result<()> {
        let config = pod.config();
        let (files, hostname) = (self.pod_files(&pod.id), hostname_of(&config)?);
        let namespaces = namespaces_of(&config);
        let users = user_ranges("config.linux.security_context.namespace_options", &namespaces)?;
        // Groups have the same range.
        let root = users.and_then(|(uids, _)| uids.iter().find(|range| range.container == 0).map(|range| range.host));
        let owner = root.unwrap_or_default();
        let shared = namespaces.ipc() == NamespaceMode::Node;
        let write = move || {
            files.write(&hostname, config.dns_config.as_ref(), owner)?;
            if shared { Ok(()) } else { files.mount_shm(owner) }
        };
        tokio::task::spawn_blocking(write).await.map_err(|_| Error::Stopped { what: "writing the pod's files" })?
    }

    /// Makes the sandbox; its namespaces are there then, and who holds them is known.
    async fn create_sandbox(&self, pod: &Pod, pause: Option<&Pause>) -> Result<()> {
        let rootfs = match pause {
            Some(pause) => self.pause_root(pod, pause).await?,
            None => Vec::new(),
        };
        let controller = self.engine.sandboxes.controller(SANDBOXER)?;
        let record = self.engine.sandboxes.get(&self.scope, &pod.id).await?;
        let annotations = pod.config().annotations.clone();
        let create = CreateSandbox { annotations, rootfs, ..CreateSandbox::default() };
        let failed = Error::at(format!("failed to create sandbox {:?}", pod.id));
        controller.create(&self.scope, &record, create).await.map_err(failed)?;
        let status = controller.status(&self.scope, &pod.id, false).await?;
        pod.facts.lock().unwrap_or_else(PoisonError::into_inner).pid = status.pid;
        Ok(())
    }

    /// Enters the pod as a sandbox, and as a container for those who know containers only.
    async fn record_pod(&self, pod: &Pod, handler: &RuntimeHandler) -> Result<()> {
        let config = pod.config();
        let sandbox = Sandbox {
            id: pod.id.parse().map_err(gantry_engine::Error::from)?,
            labels: record::labels(&config.labels, "sandbox"),
            runtime: runtime_of(handler),
            spec: None,
            sandboxer: SANDBOXER.to_owned(),
            extensions: record::extensions(&config, &pod.facts())?,
            created: UNIX_EPOCH,
            updated: UNIX_EPOCH,
        };
        self.engine.sandboxes.create(&self.scope, sandbox).await?;
        Ok(())
    }

    async fn record_spec(&self, pod: &Pod, spec: &Spec, pause: Option<&Pause>) -> Result<()> {
        let value = serde_json::to_vec(spec).map_err(|error| Error::State(format!("sandbox spec: {error}")))?;
        let spec = Any { type_url: SPEC_TYPE.into(), value };
        let mut sandbox = self.engine.sandboxes.get(&self.scope, &pod.id).await?;
        sandbox.spec = Some(spec.clone());
        let (labels, runtime) = (sandbox.labels.clone(), sandbox.runtime.clone());
        self.engine.sandboxes.update(&self.scope, sandbox, &["spec".to_owned()]).await?;
        let mut container = container_record(pod, labels, runtime, spec)?;
        if let Some(pause) = pause {
            container.image = pause.name();
            container.snapshotter.clone_from(&pause.snapshotter);
            container.snapshot_key.clone_from(&pod.id);
        }
        self.engine.containers.create(&self.scope, container).await?;
        Ok(())
    }

    /// Changes the facts, on the disk first.
    pub(super) async fn set_pod_facts(&self, pod: &Pod, change: impl FnOnce(&mut Facts)) -> Result<()> {
        let mut facts = pod.facts();
        change(&mut facts);
        let mut sandbox = self.engine.sandboxes.get(&self.scope, &pod.id).await?;
        sandbox.extensions.insert(record::FACTS.to_owned(), record::facts_any(&facts)?);
        let field = format!("extensions.{}", record::FACTS);
        self.engine.sandboxes.update(&self.scope, sandbox, &[field]).await?;
        *pod.facts.lock().unwrap_or_else(PoisonError::into_inner) = facts;
        Ok(())
    }

    /// Notices the end of what holds the pod's namespaces.
    pub(super) fn watch_pod(&self, pod: &Arc<Pod>) {
        let (cri, pod) = (self.clone(), Arc::clone(pod));
        tokio::spawn(async move {
            let Ok(controller) = cri.engine.sandboxes.controller(SANDBOXER) else { return };
            let waiting = controller.wait(&cri.scope, &pod.id);
            if let Some(Ok(_)) = cri.stopping.run_until_cancelled(waiting).await
                && pod.end()
            {
                cri.events.tell(&cri, Kind::Stopped, &pod.id, &pod).await;
            }
        });
    }
}

fn container_record(pod: &Pod, labels: gantry_types::Labels, runtime: Runtime, spec: Any) -> Result<ContainerRecord> {
    Ok(ContainerRecord {
        id: pod.id.parse().map_err(gantry_engine::Error::from)?,
        labels,
        image: String::new(),
        runtime,
        spec: Some(spec),
        snapshotter: String::new(),
        snapshot_key: String::new(),
        sandbox_id: pod.id.clone(),
        extensions: Default::default(),
        created: SystemTime::UNIX_EPOCH,
        updated: SystemTime::UNIX_EPOCH,
    })
}

/// Checks what does not depend on this node; gives the pod's name.
pub(super) fn check(config: &wire::PodSandboxConfig) -> Result<String> {
    let metadata = config.metadata.as_ref().ok_or_else(|| Error::invalid("config.metadata", "must be set"))?;
    for (field, value) in [("name", &metadata.name), ("namespace", &metadata.namespace), ("uid", &metadata.uid)] {
        if value.is_empty() {
            return Err(Error::invalid(format!("config.metadata.{field}"), "must not be empty"));
        }
    }
    if let Some(dns) = &config.dns_config {
        check_dns(dns)?;
    }
    check_hostname(&config.hostname)?;
    check_directory("config.log_directory", &config.log_directory)?;
    ports_of(config)?;
    pod_limits(config)?;
    if let Some(linux) = &config.linux {
        check_linux(linux)?;
    }
    let options = namespaces_of(config);
    let field = "config.linux.security_context.namespace_options";
    user_ranges(field, &options)?;
    for (name, mode) in [("network", options.network), ("pid", options.pid), ("ipc", options.ipc)] {
        let known = NamespaceMode::try_from(mode);
        if known.is_err() || (known == Ok(NamespaceMode::Target)) {
            return Err(Error::invalid(format!("{field}.{name}"), "must be POD, CONTAINER or NODE for a pod"));
        }
    }
    Ok(super::metadata_name(metadata))
}

/// What of these would lead out of the cgroups or of `/proc/sys`.
fn check_linux(linux: &wire::LinuxPodSandboxConfig) -> Result<()> {
    let parent = &linux.cgroup_parent;
    if parent.contains('\0') || parent.split('/').any(|part| part == "..") {
        return Err(Error::invalid("config.linux.cgroup_parent", "must be without `..`"));
    }
    for (name, value) in &linux.sysctls {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-/:*@".contains(c);
        let leads_out = name.contains("..") || name.starts_with('/');
        if name.is_empty() || leads_out || !name.chars().all(plain) || value.contains('\0') {
            let reason = "is not the name of a kernel parameter, such as net.ipv4.ip_forward, with a value";
            return Err(Error::invalid(format!("config.linux.sysctls[{name:?}]"), reason));
        }
    }
    Ok(())
}

/// A host name as sethostname(2) takes it: at most 64 bytes, no blanks.
fn check_hostname(name: &str) -> Result<()> {
    if name.len() > 64 || name.chars().any(|c| c.is_whitespace() || c.is_control() || c == '/') {
        return Err(Error::invalid("config.hostname", "must be at most 64 bytes without blanks and slashes"));
    }
    Ok(())
}

fn check_directory(field: &str, path: &str) -> Result<()> {
    if !path.is_empty() && (!path.starts_with('/') || path.contains('\0')) {
        return Err(Error::invalid(field, "must be an absolute path"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> wire::PodSandboxConfig {
        let text = |text: &str| text.to_owned();
        let metadata = wire::PodSandboxMetadata { name: text("n"), uid: text("u"), namespace: text("ns"), attempt: 2 };
        wire::PodSandboxConfig { metadata: Some(metadata), ..Default::default() }
    }

    #[test]
    fn a_pods_name_is_made_of_its_metadata() {
        assert_eq!(check(&config()).unwrap(), "n_ns_u_2");
    }

    #[test]
    fn every_bad_field_is_named() {
        let refused = |change: &dyn Fn(&mut wire::PodSandboxConfig)| {
            let mut config = config();
            change(&mut config);
            match check(&config) {
                Err(Error::Invalid { field, .. }) => field,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(refused(&|c| c.metadata = None), "config.metadata");
        assert_eq!(refused(&|c| c.metadata.as_mut().unwrap().uid.clear()), "config.metadata.uid");
        assert_eq!(refused(&|c| c.hostname = "a b".into()), "config.hostname");
        assert_eq!(refused(&|c| c.log_directory = "relative".into()), "config.log_directory");
        let linux = |c: &mut wire::PodSandboxConfig, parent: &str, sysctl: &str| {
            let sysctls = [(sysctl.to_owned(), "1".to_owned())].into();
            let cgroup_parent = parent.to_owned();
            c.linux = Some(wire::LinuxPodSandboxConfig { cgroup_parent, sysctls, ..Default::default() });
        };
        assert_eq!(refused(&|c| linux(c, "/a/../../b", "a.b")), "config.linux.cgroup_parent");
        assert_eq!(refused(&|c| linux(c, "/a", "../../etc")), "config.linux.sysctls[\"../../etc\"]");
        let mut good = config();
        linux(&mut good, "/kubepods.slice", "net.ipv4.conf.eth0/1.forwarding");
        assert!(check(&good).is_ok());
    }
}
