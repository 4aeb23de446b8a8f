//! Snapshots as a namespace sees them: its own names over the snapshotters' internal keys.

use gantry_types::{Filter, Labels, Mount, Scope};

use crate::Result;

pub use gantry_snapshots::Usage;

pub use gantry_metadata::{Snapshot, SnapshotKind};

/// The snapshots of all namespaces and snapshotters. An empty snapshotter name means the default one.
#[derive(Clone)]
pub struct Snapshots {}

impl Snapshots {
    /// Names of the snapshotters.
    pub fn names(&self) -> Vec<String> {
        todo!()
    }

    /// Name of the default one.
    pub fn default_name(&self) -> &str {
        todo!()
    }

    /// What is known about a snapshot.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` for a snapshotter that is not there.
    pub async fn stat(&self, scope: &Scope, snapshotter: &str, key: &str) -> Result<Snapshot> {
        todo!()
    }

    /// Changes labels: those named in `fields` (`labels`, `labels.KEY`), all where there are none.
    ///
    /// # Errors
    /// As [`Snapshots::stat`].
    pub async fn update(
        &self,
        scope: &Scope,
        snapshotter: &str,
        name: &str,
        labels: Labels,
        fields: &[String],
    ) -> Result<Snapshot> {
        todo!()
    }

    /// The snapshots that `filter` selects (`kind`, `name`, `parent`, `labels`).
    ///
    /// # Errors
    /// When records or snapshotter cannot be read.
    pub async fn list(&self, scope: &Scope, snapshotter: &str, filter: &Filter) -> Result<Vec<Snapshot>> {
        todo!()
    }

    /// What a snapshot itself takes up, without its parents.
    ///
    /// # Errors
    /// As [`Snapshots::stat`].
    pub async fn usage(&self, scope: &Scope, snapshotter: &str, key: &str) -> Result<Usage> {
        todo!()
    }

    /// The mounts of an active snapshot or view.
    ///
    /// # Errors
    /// As [`Snapshots::stat`].
    pub async fn mounts(&self, scope: &Scope, snapshotter: &str, key: &str) -> Result<Vec<Mount>> {
        todo!()
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
        todo!()
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
        todo!()
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
        todo!()
    }

    /// Removes a snapshot.
    ///
    /// # Errors
    /// `FailedPrecondition` while it has children, `NotFound`.
    pub async fn remove(&self, scope: &Scope, snapshotter: &str, key: &str) -> Result<()> {
        todo!()
    }

    /// Frees what removals left behind.
    ///
    /// # Errors
    /// When directories cannot be removed.
    pub async fn cleanup(&self, scope: &Scope, snapshotter: &str) -> Result<()> {
        todo!()
    }
}
