//! Leases: what keeps resources alive while somebody works with them.

use std::time::SystemTime;

use gantry_types::{Id, Labels};

use crate::keys::{self, Kind};
use crate::memory::Value;
use crate::scan::Scan;
use crate::table::not_found;
use crate::tx::Tx;
use crate::{Db, Error, Lease, Resource};

/// Leases of one namespace.
pub struct Leases<'d> {
    pub(crate) db: &'d Db,
    pub(crate) namespace: Id,
}

impl Leases<'_> {
    /// The lease of that id.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn get(&self, id: &str) -> Result<Lease, Error> {
        self.db.find(&self.namespace, id.as_bytes())
    }

    /// All leases, expired ones included, sorted by id.
    pub fn scan(&self) -> Scan<Lease> {
        self.db.scan(&self.namespace, Vec::new())
    }

    /// Creates a lease.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`], [`Error::Invalid`], [`Error::Label`].
    pub async fn create(&self, id: &str, labels: Labels) -> Result<Lease, Error> {
        let lease = Lease { id: id.to_owned(), labels, created: SystemTime::now() };
        self.db.create(&self.namespace, lease, |_| Ok(())).await
    }

    /// Removes a lease; what it kept goes with the next collection.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn delete(&self, id: &str) -> Result<Lease, Error> {
        let namespace = self.namespace.clone();
        self.db
            .remove(&self.namespace, id.as_bytes().to_vec(), move |tx, lease: &Lease| {
                release_all(tx, &namespace, &lease.id);
                Ok(())
            })
            .await
    }

    /// Lets a lease keep a resource, which need not exist yet.
    ///
    /// # Errors
    /// [`Error::NotFound`] for the lease, [`Error::Invalid`] for a name no resource can have.
    pub async fn add_resource(&self, id: &str, resource: Resource) -> Result<(), Error> {
        let (namespace, id) = (self.namespace.clone(), id.to_owned());
        self.db.transact(move |tx| hold(tx, &namespace, Some(&id), &resource)).await
    }

    /// Lets a lease no longer keep a resource; one that it does not keep is no error.
    ///
    /// # Errors
    /// [`Error::NotFound`] for the lease.
    pub async fn delete_resource(&self, id: &str, resource: Resource) -> Result<(), Error> {
        let (namespace, id) = (self.namespace.clone(), id.to_owned());
        self.db
            .transact(move |tx| {
                tx.require::<Lease>(&namespace, id.as_bytes())?;
                release(tx, &namespace, Some(&id), &resource);
                Ok(())
            })
            .await
    }

    /// What a lease keeps.
    ///
    /// # Errors
    /// [`Error::NotFound`] for the lease.
    pub fn resources(&self, id: &str) -> Result<Vec<Resource>, Error> {
        let memory = self.db.memory();
        if memory.get(Kind::Lease, &self.namespace, id.as_bytes()).is_none() {
            return Err(not_found::<Lease>(id.as_bytes()));
        }
        let records = memory.records(Kind::Resource, &self.namespace);
        let prefix = keys::prefix(&[id]);
        Ok(records.starting(&prefix).filter_map(|(name, _)| parse(name)).map(|(_, resource)| resource).collect())
    }
}

/// Lets `lease`, where there is one, keep `resource`, in the transaction that writes the resource.
pub(crate) fn hold(tx: &mut Tx<'_>, namespace: &Id, lease: Option<&str>, resource: &Resource) -> Result<(), Error> {
    let Some(lease) = lease else { return Ok(()) };
    if tx.get(Kind::Lease, namespace, lease.as_bytes()).is_none() {
        return Err(not_found::<Lease>(lease.as_bytes()));
    }
    keys::check(Kind::Resource, "type", &resource.type_name())?;
    keys::check(Kind::Resource, "id", resource.id())?;
    tx.put(Kind::Resource, namespace, name(lease, resource), Value::from([]));
    Ok(())
}

/// The opposite of [`hold`].
pub(crate) fn release(tx: &mut Tx<'_>, namespace: &Id, lease: Option<&str>, resource: &Resource) {
    if let Some(lease) = lease {
        tx.delete(Kind::Resource, namespace, &name(lease, resource));
    }
}

/// Forgets all that a lease keeps.
pub(crate) fn release_all(tx: &mut Tx<'_>, namespace: &str, lease: &str) {
    for name in tx.range(Kind::Resource, namespace, &keys::prefix(&[lease])).into_keys() {
        tx.delete(Kind::Resource, namespace, &name);
    }
}

fn name(lease: &str, resource: &Resource) -> Vec<u8> {
    keys::join(&[lease, &resource.type_name(), resource.id()])
}

/// The lease and the resource of a name in the table.
pub(crate) fn parse(name: &[u8]) -> Option<(&str, Resource)> {
    let [lease, type_name, id] = keys::split::<3>(name)?;
    Some((lease, Resource::parse(type_name, id).ok()?))
}
