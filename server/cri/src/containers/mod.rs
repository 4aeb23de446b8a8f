//! Containers: the engine's containers of namespace `k8s.io` with what Kubernetes asked for them.

mod checkpoint;
mod create;
mod exit;
mod log;
mod record;
mod restore;
mod start;
mod status;
mod stop;
mod update;
mod volumes;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use gantry_api::pb::runtime::v1 as wire;
use tokio::sync::watch;

pub(crate) use checkpoint::{CHANGES, IMAGES, check_runs};
pub(crate) use create::check;
pub(crate) use record::Facts;
pub(crate) use status::{state_of, status_of};
pub(crate) use update::merge;

use crate::stats::Meter;
use crate::{Error, Result};

/// One container.
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) pod: String,
    /// What Kubernetes asked for; its resources may change.
    config: Mutex<Arc<wire::ContainerConfig>>,
    /// What is known beside; watched by those who wait for its end.
    pub(crate) facts: watch::Sender<Facts>,
    /// When it was made, nanoseconds since 1970.
    pub(crate) created_at: i64,
    /// One change at a time.
    pub(crate) gate: tokio::sync::Mutex<()>,
    /// Whether plug-ins were told of its end.
    pub(crate) told_stop: tokio::sync::Mutex<bool>,
    /// Where its figures are read, once somebody has asked for them.
    pub(crate) meter: OnceLock<Meter>,
    /// Whether it is being removed.
    going: AtomicBool,
}

impl Container {
    pub(crate) fn new(
        id: &str,
        pod: &str,
        config: wire::ContainerConfig,
        facts: Facts,
        created_at: i64,
    ) -> Arc<Container> {
        Arc::new(Container {
            id: id.to_owned(),
            pod: pod.to_owned(),
            config: Mutex::new(Arc::new(config)),
            told_stop: tokio::sync::Mutex::new(facts.finished_at != 0),
            facts: watch::Sender::new(facts),
            created_at,
            gate: tokio::sync::Mutex::default(),
            meter: OnceLock::new(),
            going: AtomicBool::new(false),
        })
    }

    /// What Kubernetes asked for.
    pub(crate) fn config(&self) -> Arc<wire::ContainerConfig> {
        Arc::clone(&self.config.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes it.
    pub(crate) fn set_config(&self, config: wire::ContainerConfig) {
        *self.config.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
    }

    /// What is known of it beside.
    pub(crate) fn facts(&self) -> Facts {
        self.facts.borrow().clone()
    }

    /// Notes whether it is being removed.
    pub(crate) fn set_going(&self, going: bool) {
        self.going.store(going, Ordering::Relaxed);
    }

    /// Whether it is being removed.
    pub(crate) fn is_going(&self) -> bool {
        self.going.load(Ordering::Relaxed)
    }

    /// What it does.
    pub(crate) fn state(&self) -> wire::ContainerState {
        state_of(&self.facts.borrow())
    }
}

/// All containers.
#[derive(Default)]
pub(crate) struct Containers(Mutex<BTreeMap<String, Arc<Container>>>);

impl Containers {
    /// The container of that id, or of which the id begins so.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub(crate) fn get(&self, id: &str) -> Result<Arc<Container>> {
        if id.is_empty() {
            return Err(Error::invalid("container_id", "must not be empty"));
        }
        let containers = self.lock();
        let mut fitting = containers.range(id.to_owned()..).take_while(|(key, _)| key.starts_with(id));
        match (fitting.next(), fitting.next()) {
            (Some((_, container)), None) => Ok(Arc::clone(container)),
            (Some((key, container)), Some(_)) if key == id => Ok(Arc::clone(container)),
            _ => Err(Error::NotFound { what: "container", id: id.chars().take(128).collect() }),
        }
    }

    /// All of them, by id.
    pub(crate) fn all(&self) -> Vec<Arc<Container>> {
        self.lock().values().cloned().collect()
    }

    /// Those of a pod, by id.
    pub(crate) fn of_pod(&self, pod: &str) -> Vec<Arc<Container>> {
        self.lock().values().filter(|container| container.pod == pod).cloned().collect()
    }

    /// All of them, by the pod they are of.
    pub(crate) fn by_pod(&self) -> HashMap<String, Vec<Arc<Container>>> {
        let mut all: HashMap<String, Vec<Arc<Container>>> = HashMap::new();
        for container in self.lock().values() {
            all.entry(container.pod.clone()).or_default().push(Arc::clone(container));
        }
        all
    }

    pub(crate) fn insert(&self, container: &Arc<Container>) {
        self.lock().insert(container.id.clone(), Arc::clone(container));
    }

    pub(crate) fn remove(&self, id: &str) {
        self.lock().remove(id);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<Container>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
