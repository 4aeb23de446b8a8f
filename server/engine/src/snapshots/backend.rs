//! What a snapshotter is told, and what it knows better: labels that are its business, and layers that it has already.

use std::collections::HashMap;

use gantry_metadata::{Snapshot, SnapshotKind};
use gantry_snapshots::{Info, Kind, Snapshotter};
use gantry_types::{Filter, Labels, Scope, labels};

use super::{Snapshots, record};
use crate::core::lease;
use crate::{Error, Result};

/// Labels with this prefix are told to the snapshotter, and the one that names the target; others are the records' own.
const INHERITED: &str = "containerd.io/snapshot/";

/// The labels that a snapshotter is told.
pub(super) fn inherited(all: &Labels) -> Labels {
    let is_told = |key: &str| key == labels::SNAPSHOT_REF || key.starts_with(INHERITED);
    all.iter().filter(|(key, _)| is_told(key)).map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// A record with the snapshotter's own labels beneath its own.
fn laid_over(record: Snapshot, info: Info) -> Snapshot {
    let mut labels = info.labels;
    labels.extend(record.labels);
    Snapshot { labels, ..record }
}

/// As [`laid_over`], where the snapshotter may have labels of its own.
///
/// # Errors
/// When the snapshotter cannot be asked.
pub(super) async fn complete(snapshotter: &dyn Snapshotter, record: Snapshot) -> Result<Snapshot> {
    if !snapshotter.is_remote() {
        return Ok(record);
    }
    let info = snapshotter.stat(&record.internal).await?;
    Ok(laid_over(record, info))
}

/// As [`complete`], of many. One that the snapshotter does not have is left out.
///
/// # Errors
/// As [`complete`].
pub(super) async fn complete_all(snapshotter: &dyn Snapshotter, records: Vec<Snapshot>) -> Result<Vec<Snapshot>> {
    if !snapshotter.is_remote() || records.is_empty() {
        return Ok(records);
    }
    let all = snapshotter.walk(&Filter::default()).await?;
    let mut infos: HashMap<String, Info> = all.into_iter().map(|info| (info.name.clone(), info)).collect();
    let whole = |record: Snapshot| infos.remove(&record.internal).map(|info| laid_over(record, info));
    Ok(records.into_iter().filter_map(whole).collect())
}

impl Snapshots {
    /// Enters the layer that a snapshotter says it has (`target`) as a committed snapshot, so that nobody has to fetch it.
    ///
    /// # Errors
    /// `NotFound` where it does not have it after all; `InvalidArgument` where it has it upon another parent.
    pub(super) async fn adopt(
        &self,
        scope: &Scope,
        (name, snapshotter): (&str, &dyn Snapshotter),
        target: &str,
        parent: Option<&Snapshot>,
        labels: Labels,
    ) -> Result<()> {
        let below = parent.map(|parent| parent.internal.as_str());
        let is_it = |info: &Info| {
            info.kind == Kind::Committed && info.labels.get(labels::SNAPSHOT_REF).is_some_and(|found| found == target)
        };
        let mut all = snapshotter.walk(&Filter::default()).await?;
        all.retain(is_it);
        let missing = || Error::not_found("target snapshot in the snapshotter", target);
        let info = all.into_iter().find(|info| info.parent.as_deref() == below).ok_or_else(missing)?;
        let mut known = info.labels;
        known.extend(labels);
        let above = parent.map(|parent| parent.key.clone());
        let record = record(name, target, &info.name, SnapshotKind::Committed, above, known);
        let records = self.core.db.snapshots(&scope.namespace, name);
        match records.create(record, lease(scope)).await {
            // Somebody else was told of it, too.
            Err(gantry_metadata::Error::AlreadyExists(_)) => Ok(()),
            entered => {
                entered?;
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshotter_is_told_its_own_labels_only() {
        let all = ["containerd.io/snapshot/uidmapping", "containerd.io/snapshot.ref", "containerd.io/gc.root", "mine"];
        let all: Labels = all.into_iter().map(|key| (key.to_owned(), "1".to_owned())).collect();
        let told: Vec<String> = inherited(&all).into_keys().collect();
        assert_eq!(told, ["containerd.io/snapshot.ref", "containerd.io/snapshot/uidmapping"]);
    }
}
