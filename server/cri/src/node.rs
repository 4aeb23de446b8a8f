//! What all parts share: the engine, the configuration, and what is known of pods, containers and images.

use std::ops::Deref;
use std::path::PathBuf;
use std::sync::Arc;

use gantry_engine::Engine;
use gantry_types::Scope;
use tokio_util::sync::CancellationToken;

use crate::Result;
use crate::cgroup::Cgroups;
use crate::config::Config;
use crate::containers::Containers;
use crate::creations::Creations;
use crate::events::Events;
use crate::images::{Known, Registries, Usages};
use crate::network::Networks;
use crate::pods::Pods;
use crate::stages::Threads;
use crate::stats::Rates;
use crate::streaming::Server;

/// The namespace of all that Kubernetes makes.
pub(crate) const NAMESPACE: &str = "k8s.io";

/// Kubernetes' view over an engine. Clones are the same one.
#[derive(Clone)]
pub struct Cri(Arc<Node>);

/// What the clones share.
pub struct Node {
    pub(crate) engine: Engine,
    pub(crate) config: Config,
    pub(crate) scope: Scope,
    /// What a reboot clears: files of pods, mounts for containers.
    pub(crate) state: PathBuf,
    /// What survives it: volumes of containers.
    pub(crate) root: PathBuf,
    pub(crate) pods: Pods,
    pub(crate) containers: Containers,
    pub(crate) pod_names: Creations,
    pub(crate) container_names: Creations,
    pub(crate) known: Known,
    pub(crate) registries: Registries,
    pub(crate) usages: Usages,
    pub(crate) rates: Rates,
    pub(crate) events: Events,
    pub(crate) threads: Threads,
    pub(crate) cgroups: Cgroups,
    pub(crate) networks: Networks,
    pub(crate) nri: gantry_nri::Nri,
    pub(crate) streaming: tokio::sync::OnceCell<Arc<Server>>,
    pub(crate) stopping: CancellationToken,
}

impl Deref for Cri {
    type Target = Node;
    fn deref(&self) -> &Node {
        &self.0
    }
}

impl Cri {
    /// Takes up the pods and containers that the engine's records name, and mends what an unclean stop left. Must be
    /// called within a tokio runtime.
    ///
    /// # Errors
    /// When the directories or the streaming server's address cannot be used.
    pub async fn open(engine: Engine, config: Config, stopping: CancellationToken) -> Result<Cri> {
        let (root, state) = (engine.config().root.join("cri"), engine.config().state.join("cri"));
        for directory in [&root, &state] {
            std::fs::create_dir_all(directory).map_err(crate::Error::io("create", directory))?;
        }
        let scope = Scope::new(NAMESPACE.parse().map_err(gantry_engine::Error::from)?);
        let registries = Registries::open(&config.images.registry, &state)?;
        let networks = crate::pods::open_networks(&config, &root).await?;
        let nri = crate::nri::open(&config);
        let cri = Cri(Arc::new(Node {
            nri,
            networks,
            scope,
            root,
            state,
            pods: Pods::default(),
            containers: Containers::default(),
            pod_names: Creations::new("sandbox"),
            container_names: Creations::new("container"),
            registries,
            known: Known::default(),
            usages: Usages::default(),
            rates: Rates::new(config.runtime.stats_retention_period),
            events: Events::default(),
            threads: Threads::default(),
            streaming: tokio::sync::OnceCell::new(),
            cgroups: Cgroups::detect(),
            stopping,
            engine,
            config,
        }));
        cri.restore().await;
        cri.listen().await?;
        cri.listen_to_plugins().await;
        cri.collect_stats();
        Ok(cri)
    }
}
