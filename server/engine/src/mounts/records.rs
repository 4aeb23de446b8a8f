//! Records of activations, and what keeps them.

use std::collections::BTreeSet;
use std::path::PathBuf;

use gantry_metadata::{Edge, Target};
use gantry_mount::mountinfo;
use gantry_types::{Digest, Labels, Namespace};
use serde::{Deserialize, Serialize};

use super::Activation;
use super::perform::{Performed, take_away, targets};
use crate::core::Core;
use crate::restore::Repairs;

const COLLECTION: &str = "mounts";

/// An activation as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Name of its directory.
    pub(crate) id: String,
    pub(crate) labels: Labels,
    pub(crate) lease: Option<String>,
    /// None while it is under way.
    pub(crate) done: Option<Performed>,
}

impl Record {
    pub(crate) fn shown(self, name: String) -> Activation {
        let (active, system) = self.done.map(|done| (done.active, done.system)).unwrap_or_default();
        Activation { name, active, system, labels: self.labels }
    }

    /// What lets it stay: its lease, or what its labels say that it lives as long as, where that is there and stays.
    pub(crate) fn keeper(&self, core: &Core, namespace: &Namespace, stays: impl Fn(&Target) -> bool) -> Option<Target> {
        let labelled = gantry_metadata::edges_of_labels(&self.labels).into_iter().filter_map(|edge| match edge {
            Edge::BackRefers(target) => Some(target),
            _ => None,
        });
        let mut keepers = self.lease.clone().map(Target::Lease).into_iter().chain(labelled);
        keepers.find(|target| is_there(core, namespace, target) && stays(target))
    }
}

fn is_there(core: &Core, namespace: &Namespace, target: &Target) -> bool {
    match target {
        Target::Lease(id) => core.db.leases(namespace).get(id).is_ok(),
        Target::Content(digest) => {
            digest.parse::<Digest>().is_ok_and(|digest| core.db.blobs(namespace).get(&digest).is_ok())
        }
        Target::Snapshot { snapshotter, key } => core.db.snapshots(namespace, snapshotter).get(key).is_ok(),
        Target::Image(name) => core.db.images(namespace).get(name).is_ok(),
        Target::Container(id) => core.db.containers(namespace).get(id).is_ok(),
        _ => false,
    }
}

/// Where the records are.
pub(crate) struct Records<'c> {
    core: &'c Core,
}

impl<'c> Records<'c> {
    pub(crate) fn of(core: &'c Core) -> Records<'c> {
        Records { core }
    }

    fn documents(&self) -> gantry_metadata::Documents<'c> {
        self.core.db.documents(None, COLLECTION)
    }

    pub(crate) fn get(&self, namespace: &Namespace, name: &str) -> Option<Record> {
        decode(&self.documents().get(&key(namespace, name))?)
    }

    /// All records by namespace and name; damaged ones are passed over.
    pub(crate) fn all(&self) -> Vec<(Namespace, String, Record)> {
        let read = |(key, bytes): (String, Vec<u8>)| {
            let (namespace, name) = key.split_once('/')?;
            Some((namespace.parse().ok()?, name.to_owned(), decode(&bytes)?))
        };
        self.documents().all().into_iter().filter_map(read).collect()
    }

    pub(crate) async fn put(&self, namespace: &Namespace, name: &str, record: &Record) -> crate::Result<()> {
        let bytes = serde_json::to_vec(record).map_err(|error| crate::Error::invalid("mount", error.to_string()))?;
        Ok(self.documents().put(&key(namespace, name), bytes).await?)
    }

    pub(crate) async fn delete(&self, namespace: &Namespace, name: &str) -> crate::Result<()> {
        Ok(self.documents().delete(&key(namespace, name)).await?)
    }
}

/// Namespaces hold no slash.
fn key(namespace: &Namespace, name: &str) -> String {
    format!("{namespace}/{name}")
}

fn decode(bytes: &[u8]) -> Option<Record> {
    let decoded = serde_json::from_slice(bytes);
    decoded.inspect_err(|error| tracing::warn!(%error, "record of mounts passed over")).ok()
}

/// Ends what nothing keeps in the namespaces that are `wanted`, and takes away what earlier ends left mounted. For the
/// collector, after a collection: no activation is under way then. Gives the names of what it ended.
pub(crate) async fn collect(core: &Core, wanted: impl Fn(&Namespace) -> bool) -> Vec<(Namespace, String)> {
    let records = Records::of(core);
    let mut ended = Vec::new();
    for (namespace, name, record) in records.all().into_iter().filter(|(namespace, ..)| wanted(namespace)) {
        if record.keeper(core, &namespace, |_| true).is_some() {
            continue;
        }
        match records.delete(&namespace, &name).await {
            Ok(()) => ended.push((namespace, name)),
            Err(error) => tracing::warn!(name, %error, "record of mounts not deleted"),
        }
    }
    let known: BTreeSet<String> = records.all().into_iter().map(|(.., record)| record.id).collect();
    for id in directories(core) {
        if !known.contains(&id) && id.parse::<u64>().is_ok() {
            super::give_up(core, &id, &[]).await;
        }
    }
    ended
}

/// At start: activations that are whole stay; records of others go, and with them what is mounted for nobody.
pub(crate) async fn reconcile(core: &Core, repairs: &mut Repairs) {
    let mounted: BTreeSet<PathBuf> = match mountinfo::read() {
        Ok(table) => table.into_iter().map(|entry| entry.target).collect(),
        Err(error) => {
            repairs.note("mounts", format!("not compared with the mount table: {error}"));
            return;
        }
    };
    let records = Records::of(core);
    let mut known = BTreeSet::new();
    for (namespace, name, record) in records.all() {
        let point = |path: &PathBuf| mounted.contains(&path.canonicalize().unwrap_or_else(|_| path.clone()));
        if record.done.as_ref().is_some_and(|done| done.active.iter().all(|mount| point(&mount.mount_point))) {
            known.insert(record.id);
            continue;
        }
        let outcome = records.delete(&namespace, &name).await;
        let action = outcome.map_or_else(|error| format!("could not be removed: {error}"), |()| "ended".into());
        repairs.note(format!("mounts {name:?} of {namespace}, not all there"), action);
    }
    for id in directories(core).into_iter().filter(|id| !known.contains(id)) {
        let action = match take_away(core, &id, &[]).await {
            Ok(()) => "unmounted: no record names them".to_owned(),
            Err(error) => format!("no record names them, and they cannot be unmounted: {error}"),
        };
        repairs.note(format!("mounts in {}", targets(core).join(&id).display()), action);
    }
}

fn directories(core: &Core) -> Vec<String> {
    let entries = std::fs::read_dir(targets(core)).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}
