//! Snapshots as a namespace sees them: its own names over the snapshotters' internal keys. The directory is made
//! before the record that names it, and goes after it.

mod backend;

use std::sync::Arc;
use std::time::SystemTime;

use gantry_metadata::{Committed, Resource};
use gantry_snapshots::{Info, Snapshotter};
use gantry_ttrpc::pb::containerd::events::{SnapshotCommit, SnapshotPrepare, SnapshotRemove};
use gantry_types::{ErrorKind, Filter, HasKind, Labels, Mount, Scope, labels};

use crate::core::{Core, lease, select};
use crate::{Error, Result};

pub use gantry_metadata::{Snapshot, SnapshotKind};
pub use gantry_mount::Tree;
pub use gantry_snapshots::Usage;

/// The snapshots of all namespaces and snapshotters. An empty snapshotter name means the default one.
#[derive(Clone)]
pub struct Snapshots {
    pub(crate) core: Arc<Core>,
}

impl Snapshots {
    /// Names of the snapshotters.
    pub fn names(&self) -> Vec<String> {
        self.core.snapshotters.keys().cloned().collect()
    }

    /// Name of the default one.
    pub fn default_name(&self) -> &str {
        &self.core.config.default_snapshotter
    }

    /// The snapshotter behind a name, for its capabilities and its directory.
    ///
    /// # Errors
    /// `InvalidArgument` for one that is not there.
    pub fn snapshotter(&self, name: &str) -> Result<Arc<dyn Snapshotter>> {
        Ok(Arc::clone(self.core.snapshotter(name)?.1))
    }

    /// What is known about a snapshot.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` for a snapshotter that is not there.
    pub async fn stat(&self, scope: &Scope, snapshotter: &str, key: &str) -> Result<Snapshot> {
        let (name, driver) = self.core.snapshotter(snapshotter)?;
        backend::complete(&**driver, self.core.db.snapshots(&scope.namespace, name).get(key)?).await
    }

    /// Changes labels: those named in `fields` (`labels`, `labels.KEY`), all where there are none.
    ///
    /// # Errors
    /// As [`Snapshots::stat`].
    pub async fn update(
        &self,
        scope: &Scope,
        snapshotter: &str,
        key: &str,
        labels: Labels,
        fields: &[String],
    ) -> Result<Snapshot> {
        let (name, driver) = self.core.snapshotter(snapshotter)?;
        let record = self.core.db.snapshots(&scope.namespace, name).update(key, labels, fields.to_vec()).await?;
        if driver.is_remote() {
            let told = Info { labels: backend::inherited(&record.labels), ..driver.stat(&record.internal).await? };
            driver.update(told, fields).await?;
        }
        backend::complete(&**driver, record).await
    }

    /// The snapshots that `filter` selects (`kind`, `name`, `parent`, `labels`).
    ///
    /// # Errors
    /// As [`Snapshots::stat`].
    pub async fn list(&self, scope: &Scope, snapshotter: &str, filter: &Filter) -> Result<Vec<Snapshot>> {
        let (name, driver) = self.core.snapshotter(snapshotter)?;
        let records = self.core.db.snapshots(&scope.namespace, name);
        if !driver.is_remote() {
            return Ok(select(records.scan(), filter));
        }
        let mut all = backend::complete_all(&**driver, select(records.scan(), &Filter::default())).await?;
        all.retain(|snapshot| filter.matches(snapshot));
        Ok(all)
    }

    /// What a snapshot itself takes up, without its parents.
    ///
    /// # Errors
    /// As [`Snapshots::stat`].
    pub async fn usage(&self, scope: &Scope, snapshotter: &str, key: &str) -> Result<Usage> {
        let (name, driver) = self.core.snapshotter(snapshotter)?;
        let record = self.core.db.snapshots(&scope.namespace, name).get(key)?;
        Ok(driver.usage(&record.internal).await?)
    }

    /// The mounts of an active snapshot or view.
    ///
    /// # Errors
    /// As [`Snapshots::stat`].
    pub async fn mounts(&self, scope: &Scope, snapshotter: &str, key: &str) -> Result<Vec<Mount>> {
        let (name, driver) = self.core.snapshotter(snapshotter)?;
        let record = self.core.db.snapshots(&scope.namespace, name).get(key)?;
        Ok(driver.mounts(&record.internal).await?)
    }

    /// The files of an active snapshot or view, mounted for a moment where only this process sees them.
    ///
    /// # Errors
    /// As [`Snapshots::stat`]; when it cannot be mounted.
    pub async fn tree(&self, scope: &Scope, snapshotter: &str, key: &str) -> Result<Tree> {
        let mounts = self.mounts(scope, snapshotter, key).await?;
        let mounting = tokio::task::spawn_blocking(move || Tree::new(&mounts));
        Ok(mounting.await.map_err(Error::task("mounting a snapshot"))??)
    }

    /// Makes an active snapshot on top of `parent` (empty for none).
    ///
    /// # Errors
    /// `AlreadyExists`; `NotFound` without the parent.
    pub async fn prepare(
        &self,
        scope: &Scope,
        snapshotter: &str,
        key: &str,
        parent: &str,
        labels: Labels,
    ) -> Result<Vec<Mount>> {
        self.make(scope, snapshotter, SnapshotKind::Active, (key, parent), labels).await
    }

    /// Makes a read-only view of `parent`.
    ///
    /// # Errors
    /// As [`Snapshots::prepare`].
    pub async fn view(
        &self,
        scope: &Scope,
        snapshotter: &str,
        key: &str,
        parent: &str,
        labels: Labels,
    ) -> Result<Vec<Mount>> {
        self.make(scope, snapshotter, SnapshotKind::View, (key, parent), labels).await
    }

    async fn make(
        &self,
        scope: &Scope,
        snapshotter: &str,
        kind: SnapshotKind,
        (key, parent): (&str, &str),
        labels: Labels,
    ) -> Result<Vec<Mount>> {
        let (name, _) = self.core.snapshotter(snapshotter)?;
        let records = self.core.db.snapshots(&scope.namespace, name);
        if let Some(target) = labels.get(labels::SNAPSHOT_REF).filter(|target| !target.is_empty()) {
            self.refuse_present(scope, name, target).await?;
        }
        self.refuse_present(scope, name, key).await?;
        let parent = (!parent.is_empty()).then(|| records.get(parent)).transpose()?;
        if let Some(parent) = &parent {
            self.trust(scope, name, parent).await?;
        }
        let new = New { snapshotter: name.to_owned(), kind, key: key.to_owned(), parent, labels };
        let (snapshots, scope) = (self.clone(), scope.clone());
        // Runs to its end when the caller goes away: a directory without a record would be nobody's.
        let making = tokio::spawn(async move { snapshots.join(&scope, new).await });
        making.await.map_err(Error::task("prepare"))?
    }

    async fn join(&self, scope: &Scope, new: New) -> Result<Vec<Mount>> {
        let New { snapshotter: name, kind, key, parent, labels } = new;
        let snapshotter = self.core.snapshotter(&name)?.1;
        let records = self.core.db.snapshots(&scope.namespace, &name);
        let internal = records.internal(&key).await?;
        let below = parent.as_ref().map(|p| p.internal.as_str());
        let told = backend::inherited(&labels);
        let made = match kind {
            SnapshotKind::View => snapshotter.view(&internal, below, told).await,
            _ => snapshotter.prepare(&internal, below, told).await,
        };
        let mounts = match made {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                // The key is new, so it has what the key was to become.
                let Some(target) = labels.get(labels::SNAPSHOT_REF).cloned() else {
                    return Err(Error::Unexpected { what: "snapshotter", reason: error.to_string() });
                };
                self.adopt(scope, (&name, &**snapshotter), &target, parent.as_ref(), labels).await?;
                return Err(Error::AlreadyExists { what: "target snapshot", name: target });
            }
            made => made?,
        };
        let parent = parent.map(|p| p.key);
        let record = record(&name, &key, &internal, kind, parent.clone(), labels);
        if let Err(error) = records.create(record, lease(scope)).await {
            self.undo(&**snapshotter, &name, &internal).await;
            return Err(error.into());
        }
        // Nobody is told of views: as with containerd.
        if kind != SnapshotKind::View {
            let event = SnapshotPrepare { key, parent: parent.unwrap_or_default(), snapshotter: name };
            self.core.emit(&scope.namespace, "/snapshot/prepare", &event);
        }
        Ok(mounts)
    }

    /// Turns the active snapshot `key` into the committed snapshot `name`. `parent` (else empty) puts one that was
    /// prepared from nothing upon a committed snapshot.
    ///
    /// # Errors
    /// `AlreadyExists`, `NotFound`, `FailedPrecondition` where it is not active.
    pub async fn commit(
        &self,
        scope: &Scope,
        snapshotter: &str,
        name: &str,
        key: &str,
        parent: &str,
        labels: Labels,
    ) -> Result<()> {
        let (driver, _) = self.core.snapshotter(snapshotter)?;
        if name.is_empty() {
            // Found out after the act, it would cost the active snapshot.
            return Err(Error::invalid("snapshot", "name: must not be empty"));
        }
        let records = self.core.db.snapshots(&scope.namespace, driver);
        self.refuse_present(scope, driver, name).await?;
        let active = records.get(key)?;
        let parent = match (parent, &active.parent) {
            ("", _) => None,
            (parent, None) => Some(records.get(parent)?),
            (parent, Some(now)) if parent == now => None,
            (_, Some(now)) => {
                return Err(Error::invalid("parent", format!("snapshot {key:?} stands upon {now:?} already")));
            }
        };
        let (snapshots, scope) = (self.clone(), scope.clone());
        let (driver, name) = (driver.to_owned(), name.to_owned());
        let committing =
            tokio::spawn(async move { snapshots.join_commit(&scope, &driver, name, active, parent, labels).await });
        committing.await.map_err(Error::task("commit"))?
    }

    async fn join_commit(
        &self,
        scope: &Scope,
        driver: &str,
        name: String,
        active: Snapshot,
        parent: Option<Snapshot>,
        labels: Labels,
    ) -> Result<()> {
        let snapshotter = self.core.snapshotter(driver)?.1;
        let records = self.core.db.snapshots(&scope.namespace, driver);
        // Who comes second with a name is refused before anything has happened to its snapshot.
        let _one = self.core.joining.lock(&format!("snapshot {} {driver} {name}", scope.namespace)).await;
        self.refuse_present(scope, driver, &name).await?;
        let active = records.get(&active.key)?;
        let internal = records.internal(&name).await?;
        let below = parent.as_ref().map(|parent| parent.internal.as_str());
        snapshotter.commit(&internal, &active.internal, below, backend::inherited(&labels)).await?;
        let committed = Committed { internal: internal.clone(), parent: parent.map(|parent| parent.key), labels };
        if let Err(error) = records.commit(&active.key, &name, committed, lease(scope)).await {
            self.take_back(&scope.namespace, driver, &active, &internal).await;
            return Err(error.into());
        }
        let event = SnapshotCommit { key: active.key, name, snapshotter: driver.to_owned() };
        self.core.emit(&scope.namespace, "/snapshot/commit", &event);
        Ok(())
    }

    /// After a commit without a record: the active snapshot, whose record is still there, stands on what it has become, and
    /// so holds what it held. What it stands on goes with it. Where it was removed meanwhile, both go.
    async fn take_back(&self, namespace: &gantry_types::Id, driver: &str, active: &Snapshot, internal: &str) {
        let Ok((_, snapshotter)) = self.core.snapshotter(driver) else { return };
        let labels = backend::inherited(&active.labels);
        let prepared = snapshotter.prepare(&active.internal, Some(internal), labels).await;
        if self.core.db.snapshots(namespace, driver).get(&active.key).is_err() {
            self.undo(&**snapshotter, driver, &active.internal).await;
            self.undo(&**snapshotter, driver, internal).await;
            return;
        }
        if let Err(error) = prepared {
            tracing::error!(key = active.key, %error, "an active snapshot is lost: neither its commit nor itself has a record");
        }
        self.core.garbage.leave_snapshot(driver, internal);
    }

    /// Removes a snapshot.
    ///
    /// # Errors
    /// `FailedPrecondition` while it has children, `NotFound`.
    pub async fn remove(&self, scope: &Scope, snapshotter: &str, key: &str) -> Result<()> {
        let (name, snapshotter) = self.core.snapshotter(snapshotter)?;
        let removed = self.core.db.snapshots(&scope.namespace, name).remove(key, lease(scope)).await?;
        let event = SnapshotRemove { key: key.to_owned(), snapshotter: name.to_owned() };
        self.core.emit(&scope.namespace, "/snapshot/remove", &event);
        self.undo(&**snapshotter, name, &removed.internal).await;
        Ok(())
    }

    /// Returns when the files of a committed snapshot, and of all below it, are durable.
    ///
    /// # Errors
    /// As [`Snapshots::stat`]; when the disk fails.
    pub async fn sync(&self, scope: &Scope, snapshotter: &str, name: &str) -> Result<()> {
        let (driver_name, driver) = self.core.snapshotter(snapshotter)?;
        let record = self.core.db.snapshots(&scope.namespace, driver_name).get(name)?;
        Ok(driver.sync(&record.internal).await?)
    }

    /// Frees what removals left behind.
    ///
    /// # Errors
    /// When directories cannot be removed.
    pub async fn cleanup(&self, _scope: &Scope, snapshotter: &str) -> Result<()> {
        Ok(self.core.snapshotter(snapshotter)?.1.cleanup().await?)
    }

    /// Removes what no record names. Collections, and the next start, look for what stays.
    async fn undo(&self, snapshotter: &dyn Snapshotter, name: &str, internal: &str) {
        // A layer that a snapshotter had already may be known under several names.
        if snapshotter.is_remote() && self.core.db.known_snapshots(name).contains(internal) {
            return;
        }
        if let Err(error) = snapshotter.remove(internal).await {
            tracing::warn!(internal, %error, "snapshot without a record stays until the next collection");
            self.core.garbage.leave_snapshot(name, internal);
        }
    }

    /// Waits until it is known that a snapshot and those below it hold what was unpacked.
    ///
    /// # Errors
    /// `FailedPrecondition` where one does not, `DeadlineExceeded`.
    pub(crate) async fn trust(&self, scope: &Scope, snapshotter: &str, top: &Snapshot) -> Result<()> {
        let doubt = &self.core.doubt;
        if doubt.is_empty() {
            return Ok(());
        }
        let records = self.core.db.snapshots(&scope.namespace, snapshotter);
        let mut next = Some(top.clone());
        while let Some(snapshot) = next {
            let name = (snapshotter.to_owned(), snapshot.internal.clone());
            if let Some(problem) = doubt.verdict(&name, scope.deadline).await? {
                let reason = format!("it is damaged ({problem}); pull its image again, or run `gctr fsck --repair`");
                return Err(Error::Precondition { what: "snapshot", name: snapshot.key, reason });
            }
            next = snapshot.parent.as_deref().and_then(|parent| records.get(parent).ok());
        }
        Ok(())
    }

    /// What a caller wants to make and is there already, its lease keeps from now on.
    async fn refuse_present(&self, scope: &Scope, snapshotter: &str, key: &str) -> Result<()> {
        let records = self.core.db.snapshots(&scope.namespace, snapshotter);
        if records.get(key).is_err() {
            return Ok(());
        }
        if let Some(lease) = lease(scope) {
            let resource = Resource::Snapshot { snapshotter: snapshotter.to_owned(), key: key.to_owned() };
            self.core.db.leases(&scope.namespace).add_resource(lease, resource).await?;
        }
        // It may have been collected before the lease had it.
        match records.get(key) {
            Ok(_) => Err(Error::AlreadyExists { what: "snapshot", name: key.to_owned() }),
            Err(_) => Ok(()),
        }
    }
}

/// A snapshot to be made.
struct New {
    snapshotter: String,
    kind: SnapshotKind,
    key: String,
    parent: Option<Snapshot>,
    labels: Labels,
}

fn record(
    snapshotter: &str,
    key: &str,
    internal: &str,
    kind: SnapshotKind,
    parent: Option<String>,
    labels: Labels,
) -> Snapshot {
    Snapshot {
        snapshotter: snapshotter.to_owned(),
        key: key.to_owned(),
        internal: internal.to_owned(),
        kind,
        parent,
        labels,
        created: SystemTime::UNIX_EPOCH,
        updated: SystemTime::UNIX_EPOCH,
    }
}
