//! Start-up: comparing records with what is on the disk, and finding tasks again. Never fails as a whole: what cannot
//! be mended is named.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use gantry_shims::{Found, Restored};
use gantry_snapshots::Snapshotter;
use gantry_ttrpc::pb::containerd::task::v3::StateResponse;
use gantry_ttrpc::pb::containerd::v1::types::Status;
use gantry_types::{Filter, Namespace};

use crate::content::PASSING;
use crate::core::Core;
use crate::engine::Repair;
use crate::tasks::{Exit, Task, Tasks};

/// Collects what was found and done.
#[derive(Default)]
pub(crate) struct Repairs(pub(crate) Vec<Repair>);

impl Repairs {
    pub(crate) fn note(&mut self, object: impl Into<String>, action: impl Into<String>) {
        let repair = Repair { object: object.into(), action: action.into() };
        tracing::warn!(object = repair.object, action = repair.action, "repaired at start");
        self.0.push(repair);
    }
}

/// Removes what no record names, and records whose object is gone.
pub(crate) async fn reconcile(core: &Core, repairs: &mut Repairs) {
    passing_ingests(core, repairs).await;
    if !core.config.has_remote_store() {
        orphaned_content(core, repairs).await;
        missing_content(core, repairs).await;
    }
    // Those of other processes are seen to when they are reached.
    for (name, snapshotter) in core.snapshotters.iter().filter(|(_, snapshotter)| !snapshotter.is_remote()) {
        orphaned_snapshots(core, name, &**snapshotter, repairs).await;
        missing_snapshots(core, name, &**snapshotter, repairs).await;
    }
}

/// Records of ingests that only an earlier run of the daemon could have ended; their bytes go as those that no record
/// names.
async fn passing_ingests(core: &Core, repairs: &mut Repairs) {
    for namespace in namespaces(core) {
        let ingests = core.db.ingests(&namespace);
        for ingest in ingests.scan().filter_map(Result::ok).filter(|ingest| ingest.reference.starts_with(PASSING)) {
            let outcome = ingests.delete(&ingest.reference, None).await;
            let what = format!("record of ingest {:?} in {namespace}", ingest.reference);
            repairs.note(what, said(outcome, "removed: nobody can go on with it"));
        }
    }
}

/// Bytes that were stored, and the end came before their record.
async fn orphaned_content(core: &Core, repairs: &mut Repairs) {
    let known = core.db.known_digests();
    for blob in core.store.walk().await.unwrap_or_default() {
        if !known.contains(&blob.digest) {
            let outcome = core.store.delete(&blob.digest).await;
            repairs.note(format!("blob {}", blob.digest), said(outcome, "removed: no record names it"));
        }
    }
    let known = core.db.known_ingests();
    for ingest in core.store.statuses().await.unwrap_or_default() {
        if !known.contains(&ingest.reference) {
            let outcome = core.store.abort(&ingest.reference).await;
            repairs.note(format!("ingest {}", ingest.reference), said(outcome, "removed: no record names it"));
        }
    }
}

/// Records whose bytes are gone: better none than a wrong one; a pull fetches them again.
async fn missing_content(core: &Core, repairs: &mut Repairs) {
    let Ok(there) = core.store.walk().await else { return };
    let there: std::collections::HashSet<_> = there.into_iter().map(|blob| blob.digest).collect();
    for namespace in namespaces(core) {
        let blobs = core.db.blobs(&namespace);
        for blob in blobs.scan().filter_map(Result::ok).filter(|blob| !there.contains(&blob.digest)) {
            let outcome = blobs.delete(&blob.digest, None).await;
            repairs.note(
                format!("record of blob {} in {namespace}", blob.digest),
                said(outcome, "removed: its bytes are gone"),
            );
        }
    }
}

/// Snapshots that were made, and the end came before their record. Children go before their parents.
async fn orphaned_snapshots(core: &Core, name: &str, snapshotter: &dyn Snapshotter, repairs: &mut Repairs) {
    let known = core.db.known_snapshots(name);
    let Ok(all) = snapshotter.walk(&Filter::default()).await else { return };
    let orphans = all.into_iter().map(|info| info.name).filter(|key| !known.contains(key)).collect();
    remove_snapshots(name, snapshotter, orphans, repairs).await;
}

/// Removes snapshots that no record names, in as many rounds as help.
pub(crate) async fn remove_snapshots(
    name: &str,
    snapshotter: &dyn Snapshotter,
    mut orphans: Vec<String>,
    repairs: &mut Repairs,
) {
    loop {
        let before = orphans.len();
        let mut left = Vec::new();
        for key in orphans {
            match snapshotter.remove(&key).await {
                Ok(()) => repairs.note(format!("snapshot {key} of {name}"), "removed: no record names it"),
                Err(_) => left.push(key),
            }
        }
        if left.is_empty() || left.len() == before {
            left.iter().for_each(|key| {
                repairs.note(format!("snapshot {key} of {name}"), "no record names it, and it cannot be removed")
            });
            return;
        }
        orphans = left;
    }
}

/// Records whose snapshot is gone; also where the commit was done and the end came before its record.
async fn missing_snapshots(core: &Core, name: &str, snapshotter: &dyn Snapshotter, repairs: &mut Repairs) {
    let Ok(all) = snapshotter.walk(&Filter::default()).await else { return };
    let there: std::collections::HashSet<_> = all.into_iter().map(|info| info.name).collect();
    for namespace in namespaces(core) {
        let records = core.db.snapshots(&namespace, name);
        let gone = || records.scan().filter_map(Result::ok).filter(|s| !there.contains(&s.internal));
        // Children stand in the way of their parents: as many rounds as help.
        for _ in 0..gone().count() {
            let before = gone().count();
            for snapshot in gone().collect::<Vec<_>>() {
                if records.remove(&snapshot.key, None).await.is_ok() {
                    repairs.note(
                        format!("record of snapshot {} of {name} in {namespace}", snapshot.key),
                        "removed: its files are gone",
                    );
                }
            }
            if gone().count() == before {
                break;
            }
        }
    }
}

pub(crate) fn namespaces(core: &Core) -> Vec<Namespace> {
    core.db.namespaces().scan().filter_map(Result::ok).map(|namespace| namespace.name).collect()
}

fn said<T, E: std::fmt::Display>(outcome: Result<T, E>, done: &str) -> String {
    outcome.map_or_else(|error| format!("could not be removed: {error}"), |_| done.to_owned())
}

/// Finds the tasks again; gives the names of those that are there.
pub(crate) async fn restore_tasks(tasks: &Tasks, repairs: &mut Repairs) -> Vec<String> {
    let mut found = Vec::new();
    for Restored { namespace, id, found: what } in tasks.shims.restore().await {
        let full = format!("{namespace}/{id}");
        match what {
            Found::Running { shim, state } => {
                take_up(tasks, Task::new(shim), Some(&state));
                found.push(full);
            }
            Found::Silent { shim } => {
                take_up(tasks, Task::new(shim), None);
                repairs.note(format!("task {full}"), "its shim is silent; shown as unknown");
                found.push(full);
            }
            Found::Gone { cleanup } => {
                tasks.found_gone(&namespace, &id, cleanup);
                repairs.note(format!("task {full}"), "its shim was gone; cleaned up");
            }
            Found::Leaked => repairs.note(format!("bundle {full}"), "removed: it held no task"),
        }
    }
    found
}

fn take_up(tasks: &Tasks, task: Arc<Task>, state: Option<&StateResponse>) {
    let entry = task.process("");
    if let Some(state) = state {
        entry.pid.store(state.pid, Ordering::SeqCst);
        if state.status == Status::Stopped as i32 {
            let exited_at = state.exited_at.and_then(|t| SystemTime::try_from(t).ok());
            let exited_at = exited_at.unwrap_or_else(SystemTime::now);
            let exit = Exit { pid: state.pid, status: state.exit_status, exited_at };
            entry.ended(exit);
            // Nobody could tell while the engine was away.
            tasks.tell_exit(&task, exit);
        }
    }
    let key = (task.shim.namespace().clone(), task.shim.id().to_owned());
    tasks.table.insert(&key, &task);
    tasks.watch_over(&task);
}
