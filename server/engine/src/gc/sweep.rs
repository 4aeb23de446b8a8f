//! Removing what a plan names: the records, slice by slice, and what stood behind them.

use std::collections::{BTreeMap, BTreeSet};

use gantry_metadata::gc::{Node, Removal};
use gantry_metadata::{Plan, Target};
use gantry_ttrpc::pb::containerd::events::{ContentDelete, SnapshotRemove};
use gantry_types::{Digest, ErrorKind, HasKind, Namespace};

use super::{Collected, Gc, PATIENCE, SLICE};
use crate::Result;
use crate::core::Core;
use crate::images::ImageDelete;

impl Gc {
    /// Removes what the plan names, telling `gone` of each record that went, and what earlier deletions left.
    /// Of mounts, those go that nothing keeps in `namespaces`.
    pub(super) async fn sweep(
        &self,
        mut plan: Plan,
        namespaces: &[Namespace],
        gone: &mut (dyn FnMut(&Removal) + Send),
    ) -> Result<Collected> {
        let core = &*self.core;
        let operation = core.ops.begin("gc", "", None, None);
        let mut collected = Collected::default();
        operation.stage("what earlier deletions left");
        let (digests, snapshots) = core.garbage.take_loose();
        collected.blobs += delete_blobs(core, &digests).await;
        collected.snapshots += remove_snapshots(core, &snapshots).await;
        while !plan.is_empty() {
            operation.stage(format!("removing {} records", plan.removals().len()));
            let (rest, found) = core.db.remove_next(plan, SLICE).await?;
            plan = rest;
            for removal in &found.removed {
                gone(removal);
            }
            collected.records += found.removed.len() as u64;
            collected.blobs += delete_blobs(core, &found.digests).await;
            collected.snapshots += remove_snapshots(core, &found.snapshots).await;
            for internal in &found.ingests {
                let aborted = core.store.abort(internal).await;
                collected.ingests += u64::from(was_done("ingest", internal, aborted));
            }
            found.removed.iter().for_each(|removal| tell(core, &removal.node));
        }
        operation.stage("ending mounts");
        // An activation that takes long is waited for another time: who comes after us would wait, too.
        if let Ok(_apart) = tokio::time::timeout(PATIENCE, core.joint.write()).await {
            let wanted = |namespace: &Namespace| namespaces.is_empty() || namespaces.contains(namespace);
            for (namespace, name) in crate::mounts::collect(core, wanted).await {
                gone(&super::mounts_removal(&namespace, name));
            }
        }
        if collected != Collected::default() {
            tracing::debug!(?collected, "garbage collected");
        }
        Ok(collected)
    }
}

/// Deletes the bytes of blobs that no namespace sees. Nobody joins bytes and a record of the same digest meanwhile.
async fn delete_blobs(core: &Core, digests: &[Digest]) -> u64 {
    let mut deleted = 0;
    for digest in digests {
        let _one = core.joining.lock(digest.as_str()).await;
        if core.db.sharers(digest) == 0 {
            deleted += u64::from(was_done("blob", digest.as_str(), core.store.delete(digest).await));
        }
    }
    deleted
}

/// Removes snapshots that no namespace sees, children first. One that a child was put upon meanwhile is tried again
/// after that child has gone.
async fn remove_snapshots(core: &Core, snapshots: &[(String, String)]) -> u64 {
    let remote = remote_snapshots(core, snapshots);
    let (mut removed, mut silent) = (0, BTreeSet::new());
    for (name, internal) in snapshots {
        let Some(snapshotter) = core.snapshotters.get(name) else { continue };
        // A layer that a snapshotter of another process had already may be known under several names.
        if remote.get(name.as_str()).is_some_and(|known| known.contains(internal)) {
            continue;
        }
        if silent.contains(name) {
            core.garbage.leave_snapshot(name, internal);
            continue;
        }
        let outcome = snapshotter.remove(internal).await;
        match outcome.as_ref().err().map(HasKind::kind) {
            None | Some(ErrorKind::NotFound) => {}
            Some(kind) => {
                core.garbage.leave_snapshot(name, internal);
                // The others would wait as long.
                if matches!(kind, ErrorKind::Unavailable | ErrorKind::DeadlineExceeded) && snapshotter.is_remote() {
                    silent.insert(name);
                }
            }
        }
        removed += u64::from(was_done("snapshot", internal, outcome));
    }
    for name in remote.keys().filter(|name| !silent.iter().any(|silent| silent == *name)) {
        if let Some(snapshotter) = core.snapshotters.get(*name) {
            was_done("cleanup", name, snapshotter.cleanup().await);
        }
    }
    removed
}

/// What is known of the snapshotters of other processes that are among these.
fn remote_snapshots<'s>(core: &Core, snapshots: &'s [(String, String)]) -> BTreeMap<&'s str, BTreeSet<String>> {
    let names: BTreeSet<&str> = snapshots.iter().map(|(name, _)| name.as_str()).collect();
    let is_remote = |name: &&str| core.snapshotters.get(*name).is_some_and(|found| found.is_remote());
    names.into_iter().filter(is_remote).map(|name| (name, core.db.known_snapshots(name))).collect()
}

/// What goes by itself is announced like what is deleted.
fn tell(core: &Core, node: &Node) {
    let Ok(namespace) = node.namespace.parse::<Namespace>() else { return };
    match &node.target {
        Target::Content(digest) => {
            core.emit(&namespace, "/content/delete", &ContentDelete { digest: digest.clone() });
        }
        Target::Snapshot { snapshotter, key } => {
            let event = SnapshotRemove { key: key.clone(), snapshotter: snapshotter.clone() };
            core.emit(&namespace, "/snapshot/remove", &event);
        }
        Target::Image(name) => {
            core.emit(&namespace, "/images/delete", &ImageDelete { name: name.clone() });
        }
        _ => {}
    }
}

fn was_done<E: std::error::Error>(what: &str, name: &str, outcome: std::result::Result<(), E>) -> bool {
    outcome.inspect_err(|error| tracing::debug!(what, name, %error, "not deleted")).is_ok()
}
