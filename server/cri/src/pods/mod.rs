//! Pods: the engine's sandboxes of namespace `k8s.io` with what Kubernetes asked for them.

mod checkpoint;
mod network;
mod pause;
mod record;
mod restore;
mod revive;
mod run;
mod spec;
mod status;
mod stop;
mod update;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use gantry_api::pb::runtime::v1 as wire;

pub(crate) use checkpoint::{CONTAINERS, LIST, POD};
pub(crate) use network::open_networks;
pub(crate) use pause::mapping;
pub(crate) use record::{Facts, labels as kind_labels};
pub(crate) use run::SPEC_TYPE;
pub(crate) use spec::{hostname_of, user_ranges};
pub(crate) use status::{metadata_name, selects};
pub(crate) use stop::{absent, found, found_record};

use crate::files::PodFiles;
use crate::gauge::Gauge;
use crate::{Cri, Error, Result};

/// The controller of the engine that runs pods.
pub(crate) const SANDBOXER: &str = "podsandbox";

/// One pod.
pub(crate) struct Pod {
    pub(crate) id: String,
    /// What Kubernetes asked for; its resources may change.
    config: Mutex<Arc<wire::PodSandboxConfig>>,
    pub(crate) facts: Mutex<Facts>,
    /// When it was made, nanoseconds since 1970.
    pub(crate) created_at: i64,
    /// Whether what holds its namespaces runs; nobody can join them otherwise.
    ready: AtomicBool,
    /// Whether plug-ins were told that it goes.
    told_stop: AtomicBool,
    /// One change at a time.
    pub(crate) gate: tokio::sync::Mutex<()>,
    /// The cgroup that its figures are read of, once somebody has asked for them.
    pub(crate) gauge: OnceLock<Gauge>,
}

impl Pod {
    pub(crate) fn new(id: &str, config: wire::PodSandboxConfig, facts: Facts, created_at: i64) -> Arc<Pod> {
        Arc::new(Pod {
            id: id.to_owned(),
            config: Mutex::new(Arc::new(config)),
            facts: Mutex::new(facts),
            created_at,
            ready: AtomicBool::new(false),
            told_stop: AtomicBool::new(false),
            gate: tokio::sync::Mutex::default(),
            gauge: OnceLock::new(),
        })
    }

    /// What Kubernetes asked for.
    pub(crate) fn config(&self) -> Arc<wire::PodSandboxConfig> {
        Arc::clone(&self.config.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes it.
    pub(crate) fn set_config(&self, config: wire::PodSandboxConfig) {
        *self.config.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
    }

    /// What is known of it beside.
    pub(crate) fn facts(&self) -> Facts {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether its namespaces are there.
    pub(crate) fn is_ready(&self) -> bool {
        self.ready.load(Ordering::SeqCst)
    }

    pub(crate) fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::SeqCst);
    }

    /// Notes that its namespaces are gone; whether they were there until now.
    pub(crate) fn end(&self) -> bool {
        self.ready.swap(false, Ordering::SeqCst)
    }

    /// Notes that plug-ins are told that it goes; whether they were before.
    pub(crate) fn told_stop(&self) -> bool {
        self.told_stop.swap(true, Ordering::SeqCst)
    }

    /// How its namespaces are chosen.
    pub(crate) fn namespaces(&self) -> wire::NamespaceOption {
        namespaces_of(&self.config())
    }

    /// The namespace file of that name (`net`, `ipc`, …) of what holds it.
    pub(crate) fn namespace(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/{name}", self.facts().pid))
    }
}

/// How a pod's namespaces are chosen.
pub(crate) fn namespaces_of(config: &wire::PodSandboxConfig) -> wire::NamespaceOption {
    security_of(config).namespace_options.unwrap_or_default()
}

/// A pod's security context; an empty one where it has none.
pub(crate) fn security_of(config: &wire::PodSandboxConfig) -> wire::LinuxSandboxSecurityContext {
    config.linux.as_ref().and_then(|linux| linux.security_context.clone()).unwrap_or_default()
}

/// All pods.
#[derive(Default)]
pub(crate) struct Pods(Mutex<BTreeMap<String, Arc<Pod>>>);

impl Pods {
    /// The pod of that id, or of which the id begins so.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub(crate) fn get(&self, id: &str) -> Result<Arc<Pod>> {
        let pods = self.lock();
        let missing = || Error::NotFound { what: "sandbox", id: id.chars().take(128).collect() };
        if id.is_empty() {
            return Err(Error::invalid("pod_sandbox_id", "must not be empty"));
        }
        let mut fitting = pods.range(id.to_owned()..).take_while(|(key, _)| key.starts_with(id));
        match (fitting.next(), fitting.next()) {
            (Some((_, pod)), None) => Ok(Arc::clone(pod)),
            (Some((key, pod)), Some(_)) if key == id => Ok(Arc::clone(pod)),
            _ => Err(missing()),
        }
    }

    /// All of them, by id.
    pub(crate) fn all(&self) -> Vec<Arc<Pod>> {
        self.lock().values().cloned().collect()
    }

    pub(crate) fn insert(&self, pod: &Arc<Pod>) {
        self.lock().insert(pod.id.clone(), Arc::clone(pod));
    }

    pub(crate) fn remove(&self, id: &str) {
        self.lock().remove(id);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<Pod>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cri {
    /// The directory of a pod's files.
    pub(crate) fn pod_files(&self, id: &str) -> PodFiles {
        PodFiles::of(&self.state, id)
    }
}
