//! Namespaces: made with the first thing in them, gone when asked for and empty.

use gantry_types::{Id, Labels};

use crate::keys::{self, Kind};
use crate::memory::Value;
use crate::scan::Scan;
use crate::table::Record;
use crate::tx::Tx;
use crate::{Db, Error, NamespaceRecord, Object, mask};

/// Namespaces of a [`Db`].
pub struct Namespaces<'d>(pub(crate) &'d Db);

impl Namespaces<'_> {
    /// The namespace of that name.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn get(&self, name: &str) -> Result<NamespaceRecord, Error> {
        match self.0.memory().get(Kind::Namespace, "", name.as_bytes()) {
            Some(value) => NamespaceRecord::decode(name.as_bytes(), &value),
            None => Err(Error::NotFound(Object::new("namespace", name))),
        }
    }

    /// All namespaces, sorted by name.
    pub fn scan(&self) -> Scan<NamespaceRecord> {
        Scan::new(self.0.memory().records(Kind::Namespace, ""), Vec::new())
    }

    /// Creates a namespace.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`], [`Error::Label`].
    pub async fn create(&self, name: Id, labels: Labels) -> Result<NamespaceRecord, Error> {
        let mut record = NamespaceRecord { name, labels };
        record.check()?;
        let (key, value) = (record.name(), record.encode()?);
        self.0
            .transact(move |tx| match tx.get(Kind::Namespace, "", &key) {
                Some(_) => Err(Error::AlreadyExists(Object::new("namespace", String::from_utf8_lossy(&key)))),
                None => {
                    tx.put(Kind::Namespace, "", key, value);
                    Ok(())
                }
            })
            .await?;
        Ok(record)
    }

    /// Changes labels, creating the namespace where there is none. An empty mask replaces all labels.
    ///
    /// # Errors
    /// [`Error::UnknownField`], [`Error::Label`].
    pub async fn update(&self, name: Id, labels: Labels, mask: Vec<String>) -> Result<NamespaceRecord, Error> {
        self.0
            .transact(move |tx| {
                let mut record = match tx.get(Kind::Namespace, "", name.as_bytes()) {
                    Some(value) => NamespaceRecord::decode(name.as_bytes(), &value)?,
                    None => NamespaceRecord { name, labels: Labels::new() },
                };
                mask::namespace(&mut record, &labels, &mask)?;
                record.check()?;
                tx.put(Kind::Namespace, "", record.name(), record.encode()?);
                Ok(record)
            })
            .await
    }

    /// Removes an empty namespace, and the leases, ingests and documents in it.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::NamespaceNotEmpty`].
    pub async fn delete(&self, name: Id) -> Result<(), Error> {
        self.0.transact(move |tx| delete(tx, &name)).await
    }
}

fn delete(tx: &mut Tx<'_>, name: &Id) -> Result<(), Error> {
    let holds = holds(tx, name);
    if !holds.is_empty() {
        return Err(Error::NamespaceNotEmpty { namespace: name.to_string(), holds });
    }
    if tx.get(Kind::Namespace, "", name.as_bytes()).is_none() {
        return Err(Error::NotFound(Object::new("namespace", name.as_str())));
    }
    for kind in [Kind::Lease, Kind::Resource, Kind::Ingest, Kind::Document] {
        for record in tx.range(kind, name, b"").into_keys() {
            tx.delete(kind, name, &record);
        }
    }
    tx.delete(Kind::Namespace, "", name.as_bytes());
    Ok(())
}

/// What keeps a namespace from going.
fn holds(tx: &Tx<'_>, name: &Id) -> Vec<String> {
    let kinds =
        [(Kind::Image, "images"), (Kind::Blob, "blobs"), (Kind::Container, "containers"), (Kind::Sandbox, "sandboxes")];
    let mut holds: Vec<String> = kinds
        .iter()
        .filter(|(kind, _)| tx.first(*kind, name, b"").is_some())
        .map(|(_, word)| (*word).to_owned())
        .collect();
    let mut snapshotters: Vec<String> = tx
        .range(Kind::Snapshot, name, b"")
        .keys()
        .filter_map(|key| {
            keys::split::<2>(key).map(|[snapshotter, _]| format!("snapshots on {snapshotter:?} snapshotter"))
        })
        .collect();
    snapshotters.dedup();
    holds.append(&mut snapshotters);
    holds
}

/// The stored form of a namespace without labels.
pub(crate) fn empty() -> Value {
    // Version 1, no edges, no labels.
    [1, 0, 0].into()
}
