//! A transaction: reads see what was committed, what earlier transactions of the batch did, and its own writes.

use std::collections::BTreeMap;
use std::sync::Arc;

use gantry_types::Id;

use crate::keys::{Key, Kind};
use crate::memory::{Changes, Memory, Value};
use crate::table::Record;
use crate::{Error, Object};

pub(crate) struct Tx<'b> {
    memory: &'b Memory,
    batch: &'b Changes,
    own: Changes,
}

impl<'b> Tx<'b> {
    pub(crate) fn new(memory: &'b Memory, batch: &'b Changes) -> Tx<'b> {
        Tx { memory, batch, own: Changes::new() }
    }

    /// What was changed and is not published yet.
    pub(crate) fn unpublished(&self) -> impl Iterator<Item = &Key> {
        self.batch.keys().chain(self.own.keys())
    }

    /// Whether any namespace has a record of that kind and name.
    pub(crate) fn is_anywhere(&self, kind: Kind, name: &[u8]) -> bool {
        let fresh = self.unpublished().map(|key| key.namespace.clone());
        self.memory.namespaces().into_iter().chain(fresh).any(|namespace| self.get(kind, &namespace, name).is_some())
    }

    /// What the transaction changes.
    pub(crate) fn into_changes(self) -> Changes {
        self.own
    }

    pub(crate) fn get(&self, kind: Kind, namespace: &str, name: &[u8]) -> Option<Value> {
        let key = Key::new(kind, namespace, name);
        match self.own.get(&key).or_else(|| self.batch.get(&key)) {
            Some(value) => value.clone(),
            None => self.memory.get(kind, namespace, name),
        }
    }

    /// Writes a record, and with it the namespace's where there is none.
    pub(crate) fn put(&mut self, kind: Kind, namespace: &str, name: impl Into<Box<[u8]>>, value: impl Into<Value>) {
        if !namespace.is_empty() && self.get(Kind::Namespace, "", namespace.as_bytes()).is_none() {
            let empty = crate::namespaces::empty();
            self.own.insert(Key::new(Kind::Namespace, "", namespace.as_bytes()), Some(empty));
        }
        self.own.insert(Key::new(kind, namespace, name), Some(value.into()));
    }

    pub(crate) fn delete(&mut self, kind: Kind, namespace: &str, name: &[u8]) {
        self.own.insert(Key::new(kind, namespace, name), None);
    }

    /// The records of a kind whose name begins with `prefix`, sorted.
    pub(crate) fn range(&self, kind: Kind, namespace: &str, prefix: &[u8]) -> BTreeMap<Box<[u8]>, Value> {
        let records = self.memory.records(kind, namespace);
        let mut found: BTreeMap<_, _> = records.starting(prefix).map(|(n, v)| (n.clone(), v.clone())).collect();
        for (name, value) in
            in_range(self.batch, kind, namespace, prefix).chain(in_range(&self.own, kind, namespace, prefix))
        {
            match value {
                Some(value) => found.insert(name.clone(), value.clone()),
                None => found.remove(name),
            };
        }
        found
    }

    /// The first record of a kind whose name begins with `prefix`.
    pub(crate) fn first(&self, kind: Kind, namespace: &str, prefix: &[u8]) -> Option<Box<[u8]>> {
        let changed = |name: &[u8]| {
            let key = Key::new(kind, namespace, name);
            self.own.contains_key(&key) || self.batch.contains_key(&key)
        };
        let records = self.memory.records(kind, namespace);
        let old = records.starting(prefix).map(|(name, _)| name).find(|name| !changed(name.as_ref())).cloned();
        let written = in_range(self.batch, kind, namespace, prefix)
            .chain(in_range(&self.own, kind, namespace, prefix))
            .map(|(name, _)| name)
            .filter(|name| self.get(kind, namespace, name).is_some())
            .min();
        [old.as_ref(), written].into_iter().flatten().min().cloned()
    }

    pub(crate) fn read<R: Record>(&self, namespace: &Id, name: &[u8]) -> Result<Option<R>, Error> {
        self.get(R::KIND, namespace, name).map(|value| R::decode(name, &value)).transpose()
    }

    /// # Errors
    /// [`Error::NotFound`].
    pub(crate) fn require<R: Record>(&self, namespace: &Id, name: &[u8]) -> Result<R, Error> {
        self.read(namespace, name)?.ok_or_else(|| Error::NotFound(Object::new(R::KIND.noun(), R::display(name))))
    }

    /// # Errors
    /// [`Error::AlreadyExists`].
    pub(crate) fn insert<R: Record>(
        &mut self,
        namespace: &Id,
        name: &[u8],
        value: impl Into<Value>,
    ) -> Result<(), Error> {
        if self.get(R::KIND, namespace, name).is_some() {
            return Err(Error::AlreadyExists(Object::new(R::KIND.noun(), R::display(name))));
        }
        self.put(R::KIND, namespace, name, value);
        Ok(())
    }

    /// Writes a record over what is there.
    pub(crate) fn write<R: Record>(&mut self, namespace: &Id, record: &R) -> Result<(), Error> {
        self.put(R::KIND, namespace, record.name(), record.encode()?);
        Ok(())
    }
}

fn in_range<'c>(
    changes: &'c Changes,
    kind: Kind,
    namespace: &str,
    prefix: &'c [u8],
) -> impl Iterator<Item = (&'c Box<[u8]>, &'c Option<Value>)> {
    let namespace: Arc<str> = namespace.into();
    let from = Key { kind, namespace: namespace.clone(), name: prefix.into() };
    changes
        .range(from..)
        .take_while(move |(key, _)| key.kind == kind && key.namespace == namespace && key.name.starts_with(prefix))
        .map(|(key, value)| (&key.name, value))
}
