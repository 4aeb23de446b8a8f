//! All records in memory, for readers that never wait.
//!
//! Each namespace has one map for each kind. A reader takes the lock to find a value or to clone a map's pointer, never for longer; the committer, the
//! only one that changes anything, copies beforehand what of a map it changes, where a reader still holds that.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

use crate::keys::{Key, Kind};
use crate::records::Records;

/// An encoded record.
pub(crate) type Value = Arc<[u8]>;

/// What a batch changes; none removes.
pub(crate) type Changes = BTreeMap<Key, Option<Value>>;

type Space = [Arc<Records>; Kind::ALL.len()];

/// All records as of one commit.
pub(crate) type Snapshot = HashMap<Arc<str>, Space>;

#[derive(Default)]
pub(crate) struct Memory {
    spaces: RwLock<Snapshot>,
    /// Who wants to know what changes. Taken only while `spaces` is held.
    watches: Mutex<Vec<Weak<Watch>>>,
}

/// The keys of what has changed since [`Memory::watched`].
#[derive(Default)]
pub(crate) struct Watch(Mutex<BTreeSet<Key>>);

impl Watch {
    /// What has changed since the last time it was asked.
    pub(crate) fn take(&self) -> BTreeSet<Key> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Memory {
    pub(crate) fn get(&self, kind: Kind, namespace: &str, name: &[u8]) -> Option<Value> {
        self.read().get(namespace)?[kind.index()].get(name).cloned()
    }

    /// The records of one kind in a namespace, as they are now.
    pub(crate) fn records(&self, kind: Kind, namespace: &str) -> Arc<Records> {
        self.read().get(namespace).map(|space| space[kind.index()].clone()).unwrap_or_default()
    }

    /// Everything, as of one commit.
    pub(crate) fn snapshot(&self) -> Snapshot {
        self.read().clone()
    }

    /// Everything, as of one commit, and what changes from that commit on, for as long as the watch is held.
    pub(crate) fn watched(&self) -> (Snapshot, Arc<Watch>) {
        let watch = Arc::<Watch>::default();
        let spaces = self.read();
        self.watches.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(&watch));
        (spaces.clone(), watch)
    }

    /// Names of the namespaces that ever had a record.
    pub(crate) fn namespaces(&self) -> Vec<Arc<str>> {
        self.read().keys().cloned().collect()
    }

    /// Makes changes visible, all at once.
    pub(crate) fn publish(&self, changes: Changes) {
        let copies = self.copy_held(&changes);
        let mut spaces = self.write();
        self.tell(&changes);
        for ((namespace, kind), records) in copies {
            spaces.entry(namespace).or_default()[kind.index()] = Arc::new(records);
        }
        for (key, value) in changes {
            let space = spaces.entry(key.namespace).or_default();
            let records = Arc::make_mut(&mut space[key.kind.index()]);
            match value {
                Some(value) => records.insert(key.name, value),
                None => records.remove(&key.name),
            };
        }
    }

    fn tell(&self, changes: &Changes) {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner).retain(|watch| {
            let Some(watch) = watch.upgrade() else { return false };
            watch.0.lock().unwrap_or_else(PoisonError::into_inner).extend(changes.keys().cloned());
            true
        });
    }

    /// Copies of those maps which the changes touch and a reader holds, made without the lock.
    fn copy_held(&self, changes: &Changes) -> BTreeMap<(Arc<str>, Kind), Records> {
        let mut held = BTreeMap::new();
        {
            let spaces = self.read();
            for key in changes.keys() {
                let Some(space) = spaces.get(&key.namespace) else { continue };
                let records = &space[key.kind.index()];
                if Arc::strong_count(records) > 1 {
                    held.entry((key.namespace.clone(), key.kind)).or_insert_with(|| records.clone());
                }
            }
        }
        held.into_iter().map(|(place, records)| (place, (*records).clone())).collect()
    }

    fn read(&self) -> RwLockReadGuard<'_, Snapshot> {
        self.spaces.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Snapshot> {
        self.spaces.write().unwrap_or_else(PoisonError::into_inner)
    }
}
