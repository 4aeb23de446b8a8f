//! Mounts that the engine performs and keeps by name, for clients and for itself: those that the kernel's calls alone
//! do not perform (images of file systems, templates, directories to be made first).
//!
//! ```text
//! STATE/mounts/ID/N    mount point of a mount of activation ID; the last mount has N = 1
//! ```
//!
//! The record is written before the first mount (intent) and again after the last; it goes before the mounts do. What
//! a crash left between is undone at the next start, when records are compared with the mount table. An activation
//! lives as long as its lease, or what its labels `containerd.io/gc.bref.*` name; a collection ends the others.

mod error;
mod format;
mod perform;
mod plan;
mod prepare;
mod records;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use gantry_types::{Labels, Mount, Scope};
use serde::{Deserialize, Serialize};

pub use self::error::Error;
use self::perform::{Performed, perform, take_away};
pub use self::plan::Claims;
use self::plan::plan;
use self::records::Record;
pub(crate) use self::records::Records;
pub(crate) use self::records::{collect, reconcile};
use crate::core::{Core, lease};
use crate::leases::unique;

/// More mounts than this in one list are a mistake.
const MAX_MOUNTS: usize = 255;

type Result<T> = std::result::Result<T, crate::Error>;

/// The activations of all namespaces.
#[derive(Clone)]
pub struct Mounts {
    pub(crate) core: Arc<Core>,
}

/// What is to be activated.
#[derive(Clone, Debug, Default)]
pub struct Activate {
    /// Under which name.
    pub name: String,
    /// The mounts, the last one on top.
    pub mounts: Vec<Mount>,
    /// Labels; `containerd.io/gc.bref.*` name what the activation lives as long as.
    pub labels: Labels,
    /// All mounts are performed, and a bind mount shows the result.
    pub temporary: bool,
    /// What the caller performs by itself.
    pub claims: Claims,
}

/// A mount that was performed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActiveMount {
    /// What was mounted.
    pub mount: Mount,
    /// When.
    pub mounted_at: SystemTime,
    /// Where.
    pub mount_point: PathBuf,
    /// What later mounts may want to know of it.
    #[serde(default)]
    pub data: Labels,
}

/// Mounts under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Activation {
    /// The name.
    pub name: String,
    /// What was performed.
    pub active: Vec<ActiveMount>,
    /// What is left for the caller.
    pub system: Vec<Mount>,
    /// Labels.
    pub labels: Labels,
}

impl Mounts {
    pub(crate) fn new(core: &Arc<Core>) -> Mounts {
        Mounts { core: Arc::clone(core) }
    }

    /// Performs what the caller cannot, and says which mounts are left for it.
    ///
    /// # Errors
    /// `Unimplemented` where the caller can perform all by itself; `AlreadyExists`; `Unknown` where a mount fails.
    pub async fn activate(&self, scope: &Scope, wanted: Activate) -> Result<Activation> {
        let plan = plan(&wanted.mounts, wanted.temporary, &wanted.claims).ok_or(Error::NotNeeded)?;
        check(&wanted)?;
        let (mounts, scope) = (self.clone(), scope.clone());
        // Runs to its end when the caller goes away: a mount without a record would be nobody's.
        let activating = tokio::spawn(async move { mounts.activate_planned(&scope, wanted, plan).await });
        activating.await.map_err(crate::Error::task("activate"))?
    }

    async fn activate_planned(&self, scope: &Scope, wanted: Activate, plan: plan::Plan) -> Result<Activation> {
        let Activate { name, mounts, labels, temporary, .. } = wanted;
        let operation = self.core.ops.begin("activate mounts", name.as_str(), Some(&scope.namespace), scope.deadline);
        let records = Records::of(&self.core);
        let _one = self.core.activating.lock(&format!("{}/{name}", scope.namespace)).await;
        let _together = self.core.joint.read().await;
        if let Some(there) = records.get(&scope.namespace, &name) {
            if there.done.is_some() {
                return Err(Error::Exists { name }.into());
            }
            // The end came amid it.
            take_away(&self.core, &there.id, &[]).await?;
        }
        let id = self.core.db.next_sequence().await?.to_string();
        let mut record = Record { id, labels, lease: lease(scope).map(str::to_owned), done: None };
        records.put(&scope.namespace, &name, &record).await?;
        operation.stage("mounting");
        let performed = perform(&self.core, &record.id, mounts, plan, temporary).await;
        let stored = match performed {
            Ok(performed) => {
                record.done = Some(performed);
                records.put(&scope.namespace, &name, &record).await
            }
            Err(error) => Err(error.into()),
        };
        if let Err(error) = stored {
            let made = record.done.take().map(|done| done.active).unwrap_or_default();
            give_up(&self.core, &record.id, &made).await;
            records.delete(&scope.namespace, &name).await?;
            return Err(error);
        }
        Ok(record.shown(name))
    }

    /// Takes the mounts of a name away, the last one first.
    ///
    /// # Errors
    /// `NotFound`; `Unknown` where a mount is in use: the name is free then, and the next collection tries again.
    pub async fn deactivate(&self, scope: &Scope, name: &str) -> Result<()> {
        let (mounts, scope, name) = (self.clone(), scope.clone(), name.to_owned());
        let ending = tokio::spawn(async move { mounts.end(&scope, &name).await });
        ending.await.map_err(crate::Error::task("deactivate"))?
    }

    async fn end(&self, scope: &Scope, name: &str) -> Result<()> {
        let _one = self.core.activating.lock(&format!("{}/{name}", scope.namespace)).await;
        let records = Records::of(&self.core);
        let record = records.get(&scope.namespace, name).ok_or_else(|| not_found(name))?;
        records.delete(&scope.namespace, name).await?;
        let active = record.done.map(|done| done.active).unwrap_or_default();
        Ok(take_away(&self.core, &record.id, &active).await?)
    }

    /// What is active under a name.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn info(&self, scope: &Scope, name: &str) -> Result<Activation> {
        let record = Records::of(&self.core).get(&scope.namespace, name);
        Ok(record.ok_or_else(|| not_found(name))?.shown(name.to_owned()))
    }

    /// All activations of the namespace, by name.
    pub fn list(&self, scope: &Scope) -> Vec<Activation> {
        let all = Records::of(&self.core).all().into_iter();
        all.filter(|(namespace, ..)| *namespace == scope.namespace)
            .map(|(_, name, record)| record.shown(name))
            .collect()
    }

    /// The root file system of a container, as a shim can perform it, and whether this call made an activation of the
    /// rest: it lives until the task or the container is gone. One that is there already is used again.
    ///
    /// # Errors
    /// As [`Mounts::activate`].
    pub(crate) async fn for_container(
        &self,
        scope: &Scope,
        id: &str,
        rootfs: Vec<Mount>,
    ) -> Result<(Vec<Mount>, bool)> {
        if plan(&rootfs, false, &Claims::default()).is_none() {
            return Ok((rootfs, false));
        }
        let labels = Labels::from([(format!("{}container", gantry_types::labels::GC_BREF), id.to_owned())]);
        let wanted = Activate { name: id.to_owned(), mounts: rootfs, labels, ..Activate::default() };
        match self.activate(scope, wanted).await {
            Ok(activation) => Ok((activation.shown(), true)),
            Err(crate::Error::Mounts(Error::Exists { .. })) => Ok((self.info(scope, id)?.shown(), false)),
            Err(error) => Err(error),
        }
    }

    /// Ends the activation of a container's root file system, if there is one. One in use is left to the collector.
    pub(crate) async fn release(&self, scope: &Scope, id: &str) {
        if Records::of(&self.core).get(&scope.namespace, id).is_none() {
            return;
        }
        match self.deactivate(scope, id).await {
            Ok(()) | Err(crate::Error::Mounts(Error::NotFound { .. })) => {}
            Err(error) => tracing::warn!(id, %error, "mounts of a task not taken away"),
        }
    }
}

impl Activation {
    /// The mounts that show the whole: what is left to be mounted, else the last one that was.
    fn shown(self) -> Vec<Mount> {
        match self.active.last() {
            Some(last) if self.system.is_empty() => vec![perform::bind(&last.mount_point)],
            _ => self.system,
        }
    }
}

/// Mounts for a moment's work: what had to be performed before is taken away when this is dropped.
pub(crate) struct Held {
    /// What is left to be mounted.
    pub(crate) mounts: Vec<Mount>,
    undo: Option<(Arc<Core>, String, Vec<ActiveMount>)>,
}

impl Held {
    /// Performs what `gantry_mount` does not.
    ///
    /// # Errors
    /// As [`Mounts::activate`], save that others are no error.
    pub(crate) async fn of(core: &Arc<Core>, mounts: &[Mount]) -> Result<Held> {
        // All but making file systems is done without mounting anything where others see it (`gantry_mount`).
        let needed = plan(mounts, false, &Claims::default()).filter(|_| mounts.iter().any(plan::makes_file_system));
        let Some(plan) = needed else {
            return Ok(Held { mounts: mounts.to_vec(), undo: None });
        };
        // Collections leave such names alone; the next start does not.
        let id = format!("work-{}", unique());
        let Performed { active, system } = match perform(core, &id, mounts.to_vec(), plan, false).await {
            Ok(performed) => performed,
            Err(error) => {
                give_up(core, &id, &[]).await;
                return Err(error.into());
            }
        };
        // Where all was performed, the last one is shown.
        let shown = active.last().filter(|_| system.is_empty()).map(|last| perform::bind(&last.mount_point));
        let mounts = if system.is_empty() { shown.into_iter().collect() } else { system };
        Ok(Held { mounts, undo: Some((Arc::clone(core), id, active)) })
    }
}

impl Held {
    /// Takes away what was performed; returns when that is done.
    pub(crate) async fn end(mut self) {
        if let Some((core, id, active)) = self.undo.take() {
            give_up(&core, &id, &active).await;
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let (Some((core, id, active)), Ok(runtime)) = (self.undo.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(async move { give_up(&core, &id, &active).await });
        }
    }
}

/// What stays is tried again by the next collection or start.
async fn give_up(core: &Core, id: &str, active: &[ActiveMount]) {
    if let Err(error) = take_away(core, id, active).await {
        tracing::warn!(id, %error, "mounts not taken away");
    }
}

fn check(wanted: &Activate) -> std::result::Result<(), Error> {
    gantry_types::labels::validate_all(&wanted.labels)
        .map_err(|error| Error::Invalid { what: "labels", reason: error.to_string() })?;
    if wanted.name.is_empty() {
        return Err(Error::Invalid { what: "name", reason: "must not be empty".into() });
    }
    if wanted.mounts.len() > MAX_MOUNTS {
        let reason = format!("{} mounts, at most {MAX_MOUNTS} are possible", wanted.mounts.len());
        return Err(Error::Invalid { what: "mounts", reason });
    }
    Ok(())
}

fn not_found(name: &str) -> Error {
    Error::NotFound { name: name.chars().take(200).collect() }
}
