//! Which transitions of snapshots are legal: pure rules over an in-memory graph.
//!
//! A change has two halves, with the disk's work between them: `begin_…` checks the rules, reserves what it needs and says
//! what to write; `finish` or `abort` ends it. Readers see the state before until then.
//!
//! ```text
//!            begin_create      finish                begin_commit        finish
//!   (none) ───────────▶ making ─────▶ active, view ────────────▶ (busy) ─────▶ committed
//!                          │abort          │  ▲                     │abort
//!                          ▼               ▼  └─────────────────────┘
//!                        (none)   begin_remove, finish ▶ (none)
//! ```

use std::collections::{BTreeMap, HashMap};
use std::time::SystemTime;

use gantry_types::labels;
use gantry_types::{Filter, Labels};
use serde::{Deserialize, Serialize};

use crate::contract::{Info, Kind, MAX_KEY, Usage};
use crate::error::Error;

/// Number of a snapshot: names its directory and its record; never used twice by one process.
pub type Id = u64;

/// What is kept of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Key or name.
    pub name: String,
    /// What it is for.
    pub kind: Kind,
    /// The committed snapshot below.
    pub parent: Option<Id>,
    /// Labels.
    pub labels: Labels,
    /// When it was prepared or committed.
    pub created: SystemTime,
    /// When its labels last changed.
    pub updated: SystemTime,
    /// Counted at commit.
    pub usage: Option<Usage>,
}

/// A snapshot and all it stands on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The snapshot.
    pub id: Id,
    /// What is kept of it.
    pub node: Node,
    /// Its parents, the nearest first.
    pub parents: Vec<Id>,
}

/// A change between its two halves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// To exist.
    Create(Chain),
    /// To be kept as this from now on (committed, relabelled).
    Replace(Id, Node),
    /// To be gone.
    Remove(Id, Node),
}

impl Change {
    /// The snapshot that changes.
    pub fn id(&self) -> Id {
        match self {
            Change::Create(chain) => chain.id,
            Change::Replace(id, _) | Change::Remove(id, _) => *id,
        }
    }
}

#[derive(Debug)]
struct Slot {
    node: Node,
    children: usize,
    /// Not yet to be seen.
    making: bool,
    /// Between the halves of a change.
    busy: bool,
}

/// All snapshots of a snapshotter.
#[derive(Debug, Default)]
pub struct Graph {
    slots: HashMap<Id, Slot>,
    names: BTreeMap<String, Id>,
    last: Id,
}

impl Graph {
    /// A graph of what was kept, and the numbers of what had to be left out, each with the reason: parents that are not
    /// there or not committed, names used twice (the higher number stays), rings.
    pub fn load(nodes: BTreeMap<Id, Node>) -> (Graph, Vec<(Id, &'static str)>) {
        let mut graph = Graph { last: nodes.keys().next_back().copied().unwrap_or(0), ..Graph::default() };
        let mut refused = Vec::new();
        let mut names: HashMap<String, Id> = HashMap::new();
        for (id, node) in &nodes {
            if let Some(older) = names.insert(node.name.clone(), *id) {
                refused.push((older, "its name is used again by a later one"));
            }
        }
        let mut rest: Vec<(Id, Node)> =
            nodes.into_iter().filter(|(id, node)| names.get(&node.name) == Some(id)).collect();
        loop {
            let before = rest.len();
            let ready = |graph: &Graph, node: &Node| {
                node.parent.is_none_or(|parent| graph.kind(parent) == Some(Kind::Committed))
            };
            // Parents mostly have lower numbers, so that one round is nearly always enough.
            rest = rest
                .into_iter()
                .filter_map(|(id, node)| {
                    if ready(&graph, &node) {
                        graph.insert(id, node, false);
                        None
                    } else {
                        Some((id, node))
                    }
                })
                .collect();
            if rest.len() == before {
                break;
            }
        }
        refused.extend(rest.into_iter().map(|(id, _)| (id, "what it stands on is missing or not committed")));
        (graph, refused)
    }

    /// Makes sure that numbers up to `id` are not used.
    pub fn skip_to(&mut self, id: Id) {
        self.last = self.last.max(id);
    }

    /// Whether `id` is a snapshot.
    pub fn holds(&self, id: Id) -> bool {
        self.slots.contains_key(&id)
    }

    /// What is known of `key`.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::InvalidKey`].
    pub fn stat(&self, key: &str) -> Result<Info, Error> {
        let (_, slot) = self.visible(key)?;
        Ok(self.info(&slot.node))
    }

    /// `key` and all it stands on.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::InvalidKey`].
    pub fn chain(&self, key: &str) -> Result<Chain, Error> {
        let (id, slot) = self.visible(key)?;
        Ok(Chain { id, node: slot.node.clone(), parents: self.parents(slot.node.parent) })
    }

    /// All that `filter` selects, by name, with their numbers.
    pub fn walk(&self, filter: &Filter) -> Vec<(Id, Info)> {
        let seen = self.names.values().filter_map(|id| self.slots.get(id).map(|slot| (*id, slot)));
        let infos = seen.filter(|(_, slot)| !slot.making).map(|(id, slot)| (id, self.info(&slot.node)));
        infos.filter(|(_, info)| filter.matches(info)).collect()
    }

    /// Whether `key` is between the halves of a change, whose end should be waited for.
    pub fn is_busy(&self, key: &str) -> bool {
        self.names.get(key).and_then(|id| self.slots.get(id)).is_some_and(|slot| slot.busy && !slot.making)
    }

    /// Reserves `key` and a number for an active snapshot or a view.
    ///
    /// # Errors
    /// As [`crate::Snapshotter::prepare`].
    pub fn begin_create(
        &mut self,
        kind: Kind,
        key: &str,
        parent: Option<&str>,
        labels: Labels,
        now: SystemTime,
    ) -> Result<Change, Error> {
        check_key(key)?;
        labels::validate_all(&labels)?;
        let parent = match parent {
            Some(parent) => Some(self.committed_parent(parent)?),
            None => None,
        };
        self.check_free(key)?;
        self.last += 1;
        let node = Node { name: key.into(), kind, parent, labels, created: now, updated: now, usage: None };
        self.insert(self.last, node.clone(), true);
        Ok(Change::Create(Chain { id: self.last, parents: self.parents(parent), node }))
    }

    /// Reserves `name` for what `key` is to become. The usage is for the caller to count and fill in.
    ///
    /// # Errors
    /// As [`crate::Snapshotter::commit`].
    pub fn begin_commit(
        &mut self,
        name: &str,
        key: &str,
        parent: Option<&str>,
        labels: Labels,
        now: SystemTime,
    ) -> Result<Change, Error> {
        check_key(name)?;
        labels::validate_all(&labels)?;
        let (id, slot) = self.visible(key)?;
        self.check_free(name)?;
        if slot.node.kind != Kind::Active {
            return Err(Error::WrongKind { key: key.into(), kind: slot.node.kind, operation: "commit" });
        }
        let own = slot.node.parent;
        let parent = match parent {
            Some(parent) => Some(self.rebase(key, own, parent)?),
            None => own,
        };
        let node =
            Node { name: name.into(), kind: Kind::Committed, parent, labels, created: now, updated: now, usage: None };
        self.names.insert(name.into(), id);
        // Both the old and the new parent must stay until the end of the change.
        self.hold(node.parent);
        self.set_busy(id, true);
        Ok(Change::Replace(id, node))
    }

    /// Works out what `info` and `fieldpaths` make of the labels.
    ///
    /// # Errors
    /// As [`crate::Snapshotter::update`].
    pub fn begin_update(&mut self, info: &Info, fieldpaths: &[String], now: SystemTime) -> Result<Change, Error> {
        let (id, slot) = self.visible(&info.name)?;
        let labels = updated_labels(&slot.node.labels, info, fieldpaths)?;
        labels::validate_all(&labels)?;
        let node = Node { labels, updated: now, ..slot.node.clone() };
        self.hold(node.parent);
        self.set_busy(id, true);
        Ok(Change::Replace(id, node))
    }

    /// Checks that nothing stands on `key`.
    ///
    /// # Errors
    /// As [`crate::Snapshotter::remove`].
    pub fn begin_remove(&mut self, key: &str) -> Result<Change, Error> {
        let (id, slot) = self.visible(key)?;
        if slot.children > 0 {
            return Err(Error::HasChildren { key: key.into(), children: slot.children });
        }
        let node = slot.node.clone();
        // Nothing may come to stand on it any more.
        if let Some(slot) = self.slots.get_mut(&id) {
            (slot.making, slot.busy) = (true, true);
        }
        Ok(Change::Remove(id, node))
    }

    /// The change is on disk: everybody sees it from now on.
    pub fn finish(&mut self, change: &Change) {
        match change {
            Change::Create(chain) => {
                if let Some(slot) = self.slots.get_mut(&chain.id) {
                    (slot.making, slot.busy) = (false, false);
                }
            }
            Change::Replace(id, node) => self.replace(*id, node.clone()),
            Change::Remove(id, _) => self.drop_slot(*id),
        }
    }

    /// The change did not come about: what it reserved is free again.
    pub fn abort(&mut self, change: &Change) {
        match change {
            Change::Create(chain) => self.drop_slot(chain.id),
            Change::Replace(id, node) => {
                self.release(node.parent);
                if self.slots.get(id).is_some_and(|slot| slot.node.name != node.name) {
                    self.names.remove(&node.name);
                }
                self.set_busy(*id, false);
            }
            Change::Remove(id, _) => {
                if let Some(slot) = self.slots.get_mut(id) {
                    (slot.making, slot.busy) = (false, false);
                }
            }
        }
    }

    fn replace(&mut self, id: Id, node: Node) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        slot.busy = false;
        let old = std::mem::replace(&mut slot.node, node);
        let renamed = slot.node.name != old.name;
        // The new parent was held by the first half.
        self.release(old.parent);
        if renamed {
            self.names.remove(&old.name);
        }
    }

    fn drop_slot(&mut self, id: Id) {
        if let Some(slot) = self.slots.remove(&id) {
            self.release(slot.node.parent);
            self.names.remove(&slot.node.name);
        }
    }

    fn insert(&mut self, id: Id, node: Node, making: bool) {
        self.hold(node.parent);
        self.names.insert(node.name.clone(), id);
        self.slots.insert(id, Slot { node, children: 0, making, busy: making });
    }

    fn hold(&mut self, parent: Option<Id>) {
        if let Some(slot) = parent.and_then(|parent| self.slots.get_mut(&parent)) {
            slot.children += 1;
        }
    }

    fn release(&mut self, parent: Option<Id>) {
        if let Some(slot) = parent.and_then(|parent| self.slots.get_mut(&parent)) {
            slot.children = slot.children.saturating_sub(1);
        }
    }

    fn set_busy(&mut self, id: Id, busy: bool) {
        if let Some(slot) = self.slots.get_mut(&id) {
            slot.busy = busy;
        }
    }

    fn kind(&self, id: Id) -> Option<Kind> {
        self.slots.get(&id).map(|slot| slot.node.kind)
    }

    /// The slot whose present name is `key`: neither one being made nor one that is about to get the name.
    fn visible(&self, key: &str) -> Result<(Id, &Slot), Error> {
        check_key(key)?;
        let found = self.names.get(key).and_then(|id| self.slots.get(id).map(|slot| (*id, slot)));
        let seen = found.filter(|(_, slot)| !slot.making && slot.node.name == key);
        seen.ok_or_else(|| Error::NotFound { key: key.into() })
    }

    fn committed_parent(&self, parent: &str) -> Result<Id, Error> {
        let (id, slot) = self.parent(parent)?;
        match slot.node.kind {
            Kind::Committed => Ok(id),
            kind => Err(Error::ParentNotCommitted { parent: parent.into(), kind }),
        }
    }

    fn rebase(&self, key: &str, own: Option<Id>, parent: &str) -> Result<Id, Error> {
        let own_name = own.and_then(|own| self.slots.get(&own)).map(|slot| slot.node.name.as_str());
        if own_name.is_some_and(|own| own != parent) {
            return Err(Error::ParentChange { key: key.into() });
        }
        let (id, slot) = self.parent(parent)?;
        match slot.node.kind {
            Kind::Committed => Ok(id),
            kind => Err(Error::RebaseParent { key: key.into(), parent: parent.into(), kind }),
        }
    }

    fn parent(&self, parent: &str) -> Result<(Id, &Slot), Error> {
        self.visible(parent).map_err(|error| match error {
            Error::NotFound { key } => Error::ParentNotFound { parent: key },
            other => other,
        })
    }

    fn check_free(&self, name: &str) -> Result<(), Error> {
        match self.names.contains_key(name) {
            true => Err(Error::Exists { key: name.into() }),
            false => Ok(()),
        }
    }

    fn parents(&self, mut parent: Option<Id>) -> Vec<Id> {
        let mut parents = Vec::new();
        while let Some(id) = parent {
            parents.push(id);
            parent = self.slots.get(&id).and_then(|slot| slot.node.parent);
        }
        parents
    }

    fn info(&self, node: &Node) -> Info {
        let parent = node.parent.and_then(|parent| self.slots.get(&parent));
        Info {
            kind: node.kind,
            name: node.name.clone(),
            parent: parent.map(|slot| slot.node.name.clone()),
            labels: node.labels.clone(),
            created: node.created,
            updated: node.updated,
        }
    }
}

fn check_key(key: &str) -> Result<(), Error> {
    match key.len() {
        1..=MAX_KEY => Ok(()),
        length => Err(Error::InvalidKey { length }),
    }
}

fn updated_labels(old: &Labels, info: &Info, fieldpaths: &[String]) -> Result<Labels, Error> {
    if fieldpaths.is_empty() {
        return Ok(without_empty(info.labels.clone()));
    }
    let mut labels = old.clone();
    for path in fieldpaths {
        match path.strip_prefix("labels.") {
            Some(key) => {
                labels.insert(key.into(), info.labels.get(key).cloned().unwrap_or_default());
            }
            None if path == "labels" => labels = info.labels.clone(),
            None => return Err(Error::InvalidField { key: info.name.clone(), path: path.clone() }),
        }
    }
    Ok(without_empty(labels))
}

fn without_empty(mut labels: Labels) -> Labels {
    labels.retain(|_, value| !value.is_empty());
    labels
}

#[cfg(test)]
mod tests;
