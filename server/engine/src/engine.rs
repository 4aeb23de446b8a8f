//! The engine itself: opening, its parts, closing.

use gantry_types::Any;

use crate::containers::Containers;
use crate::content::Content;
use crate::diff::Diff;
use crate::events::Events;
use crate::gc::Gc;
use crate::images::Images;
use crate::leases::Leases;
use crate::namespaces::Namespaces;
use crate::ops::Ops;
use crate::snapshots::Snapshots;
use crate::tasks::Tasks;
use crate::transfer::Transfer;
use crate::{Config, Result};

/// A running engine. Cheap to clone; clones are the same engine.
#[derive(Clone)]
pub struct Engine {
    /// Whose objects are whose.
    pub namespaces: Namespaces,
    /// Blobs.
    pub content: Content,
    /// Snapshots.
    pub snapshots: Snapshots,
    /// Names of images.
    pub images: Images,
    /// What is to run.
    pub containers: Containers,
    /// What runs.
    pub tasks: Tasks,
    /// What keeps objects alive.
    pub leases: Leases,
    /// What happened.
    pub events: Events,
    /// Layers from and to mounts.
    pub diff: Diff,
    /// Pull, push, import, export, tag.
    pub transfer: Transfer,
    /// The collector.
    pub gc: Gc,
    /// What is under way.
    pub ops: Ops,
}

/// What opening found and did.
#[derive(Debug, Default)]
pub struct OpenReport {
    /// What was finished or undone, and what was given up.
    pub repairs: Vec<Repair>,
    /// Running tasks found again, as `NAMESPACE/ID`.
    pub tasks: Vec<String>,
}

/// One thing that was not as it should have been.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repair {
    /// The object: `bundle default/web`, `snapshot …`, `record …`.
    pub object: String,
    /// What was done about it.
    pub action: String,
}

impl Engine {
    /// Opens the engine's directories, mends what an unclean stop left, and finds running tasks again.
    ///
    /// # Errors
    /// Only when the directories themselves cannot be made or are in use by another engine.
    pub async fn open(config: Config) -> Result<(Engine, OpenReport)> {
        todo!()
    }

    /// The settings it was opened with.
    pub fn config(&self) -> &Config {
        todo!()
    }

    /// What a shim says about itself and its runtime (`-info`): a `containerd.types.RuntimeInfo`.
    ///
    /// # Errors
    /// `NotFound` for a runtime without a binary.
    pub async fn runtime_info(
        &self,
        runtime: &str,
        options: Option<&Any>,
    ) -> Result<gantry_ttrpc::pb::containerd::types::RuntimeInfo> {
        todo!()
    }

    /// Stops what the engine does in the background and makes its records durable. Containers run on.
    pub async fn close(&self) {
        todo!()
    }
}
