//! Snapshots that a namespace sees: its keys, and the keys in the snapshotter that stand behind them.

use std::time::SystemTime;

use gantry_types::{Id, Labels};

use crate::keys::{self, Kind};
use crate::leases::{hold, release};
use crate::memory::Value;
use crate::scan::Scan;
use crate::table::Record;
use crate::tx::Tx;
use crate::{Db, Error, Object, Resource, Snapshot, SnapshotKind, mask};

/// Snapshots of one namespace on one snapshotter.
pub struct Snapshots<'d> {
    pub(crate) db: &'d Db,
    pub(crate) namespace: Id,
    pub(crate) snapshotter: String,
}

impl Snapshots<'_> {
    /// The snapshot of that key.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn get(&self, key: &str) -> Result<Snapshot, Error> {
        self.db.find(&self.namespace, &self.name(key))
    }

    /// All snapshots, sorted by key.
    pub fn scan(&self) -> Scan<Snapshot> {
        self.db.scan(&self.namespace, keys::prefix(&[&self.snapshotter]))
    }

    /// A key in the snapshotter that was never given before: `NAMESPACE/SEQUENCE/KEY`.
    ///
    /// # Errors
    /// [`Error::NotWritten`].
    pub async fn internal(&self, key: &str) -> Result<String, Error> {
        Ok(format!("{}/{}/{key}", self.namespace, self.db.next_sequence().await?))
    }

    /// Lets the namespace see a snapshot that the snapshotter has made under `snapshot.internal`; `lease` keeps it.
    /// Its snapshotter and times are set here.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`], [`Error::NotFound`] for the parent or the lease, [`Error::SnapshotKind`] for a parent that is
    /// not committed, [`Error::Invalid`], [`Error::Label`].
    pub async fn create(&self, snapshot: Snapshot, lease: Option<&str>) -> Result<Snapshot, Error> {
        let now = SystemTime::now();
        let mut snapshot = Snapshot { snapshotter: self.snapshotter.clone(), created: now, updated: now, ..snapshot };
        snapshot.check()?;
        let (namespace, lease) = (self.namespace.clone(), lease.map(str::to_owned));
        self.db
            .transact(move |tx| {
                check_parent(tx, &namespace, &snapshot)?;
                insert(tx, &namespace, &snapshot)?;
                hold(tx, &namespace, lease.as_deref(), &resource(&snapshot))?;
                Ok(snapshot)
            })
            .await
    }

    /// Replaces the active snapshot `key` by the committed snapshot `name`. `lease` keeps the new one in place of the old.
    ///
    /// # Errors
    /// [`Error::NotFound`] for it or its parent, [`Error::AlreadyExists`] for `name`, [`Error::SnapshotKind`] where `key` is
    /// not active or the parent is not committed.
    pub async fn commit(
        &self,
        key: &str,
        name: &str,
        committed: Committed,
        lease: Option<&str>,
    ) -> Result<Snapshot, Error> {
        keys::check(Kind::Snapshot, "name", name)?;
        let (key, name, namespace) = (self.name(key), name.to_owned(), self.namespace.clone());
        let lease = lease.map(str::to_owned);
        self.db
            .transact(move |tx| {
                let active = tx.require::<Snapshot>(&namespace, &key)?;
                demand(&active, SnapshotKind::Active, "active")?;
                let committed = commit(&active, name, committed)?;
                check_parent(tx, &namespace, &committed)?;
                remove(tx, &namespace, &active)?;
                insert(tx, &namespace, &committed)?;
                release(tx, &namespace, lease.as_deref(), &resource(&active));
                hold(tx, &namespace, lease.as_deref(), &resource(&committed))?;
                Ok(committed)
            })
            .await
    }

    /// Changes labels; an empty mask replaces all.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::UnknownField`], [`Error::Label`].
    pub async fn update(&self, key: &str, labels: Labels, mask: Vec<String>) -> Result<Snapshot, Error> {
        self.db
            .modify(&self.namespace, self.name(key), move |_, mut snapshot: Snapshot| {
                mask::labels("snapshot", &snapshot.key, &mut snapshot.labels, &labels, &mask)?;
                Ok(Snapshot { updated: SystemTime::now(), ..snapshot })
            })
            .await
    }

    /// Lets the namespace no longer see a snapshot, and returns what it was.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::HasChild`].
    pub async fn remove(&self, key: &str, lease: Option<&str>) -> Result<Snapshot, Error> {
        let (name, namespace, lease) = (self.name(key), self.namespace.clone(), lease.map(str::to_owned));
        self.db
            .transact(move |tx| {
                let snapshot = tx.require::<Snapshot>(&namespace, &name)?;
                check_childless(tx, &namespace, &snapshot)?;
                remove(tx, &namespace, &snapshot)?;
                release(tx, &namespace, lease.as_deref(), &resource(&snapshot));
                Ok(snapshot)
            })
            .await
    }

    fn name(&self, key: &str) -> Vec<u8> {
        keys::join(&[&self.snapshotter, key])
    }
}

/// What becomes of an active snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Committed {
    /// Its key in the snapshotter.
    pub internal: String,
    /// What one that was made from nothing is put upon.
    pub parent: Option<String>,
    /// Labels.
    pub labels: Labels,
}

fn resource(snapshot: &Snapshot) -> Resource {
    Resource::Snapshot { snapshotter: snapshot.snapshotter.clone(), key: snapshot.key.clone() }
}

fn demand(snapshot: &Snapshot, kind: SnapshotKind, expected: &'static str) -> Result<(), Error> {
    match snapshot.kind == kind {
        true => Ok(()),
        false => {
            Err(Error::SnapshotKind { snapshotter: snapshot.snapshotter.clone(), key: snapshot.key.clone(), expected })
        }
    }
}

fn commit(active: &Snapshot, name: String, committed: Committed) -> Result<Snapshot, Error> {
    let Committed { internal, parent, labels } = committed;
    let now = SystemTime::now();
    let parent = active.parent.clone().or(parent);
    let mut committed = Snapshot {
        key: name,
        internal,
        kind: SnapshotKind::Committed,
        parent,
        labels,
        created: now,
        updated: now,
        ..active.clone()
    };
    committed.check()?;
    Ok(committed)
}

fn check_parent(tx: &Tx<'_>, namespace: &Id, snapshot: &Snapshot) -> Result<(), Error> {
    let Some(parent) = &snapshot.parent else { return Ok(()) };
    let name = keys::join(&[&snapshot.snapshotter, parent]);
    match tx.read::<Snapshot>(namespace, &name)? {
        Some(parent) => demand(&parent, SnapshotKind::Committed, "committed"),
        None => Err(Error::NotFound(Object::new("parent snapshot", parent))),
    }
}

fn check_childless(tx: &Tx<'_>, namespace: &Id, snapshot: &Snapshot) -> Result<(), Error> {
    let prefix = keys::prefix(&[&snapshot.snapshotter, &snapshot.key]);
    match tx.first(Kind::Child, namespace, &prefix) {
        None => Ok(()),
        Some(child) => Err(Error::HasChild {
            snapshotter: snapshot.snapshotter.clone(),
            key: snapshot.key.clone(),
            child: String::from_utf8_lossy(&child[prefix.len()..]).into_owned(),
        }),
    }
}

/// Writes a new snapshot and the entry that finds it from its parent.
fn insert(tx: &mut Tx<'_>, namespace: &Id, snapshot: &Snapshot) -> Result<(), Error> {
    tx.insert::<Snapshot>(namespace, &snapshot.name(), snapshot.encode()?)?;
    if let Some(parent) = &snapshot.parent {
        let child = keys::join(&[&snapshot.snapshotter, parent, &snapshot.key]);
        tx.put(Kind::Child, namespace, child, Value::from([]));
    }
    Ok(())
}

/// Removes a snapshot and the entry that finds it from its parent.
pub(crate) fn remove(tx: &mut Tx<'_>, namespace: &str, snapshot: &Snapshot) -> Result<(), Error> {
    tx.delete(Kind::Snapshot, namespace, &snapshot.name());
    if let Some(parent) = &snapshot.parent {
        tx.delete(Kind::Child, namespace, &keys::join(&[&snapshot.snapshotter, parent, &snapshot.key]));
    }
    Ok(())
}
