//! What all kinds of records share: where they are kept, how they are encoded, how they are created, read and removed.

use gantry_types::{Id, labels};

use crate::keys::Kind;
use crate::scan::Scan;
use crate::tx::Tx;
use crate::{Db, Error, Object};

/// A record of its own kind.
pub(crate) trait Record: Sized + Send + 'static {
    const KIND: Kind;

    /// Name in the table.
    fn name(&self) -> Vec<u8>;

    /// Refuses what no record may hold, and drops labels without a value.
    fn check(&mut self) -> Result<(), Error>;

    /// The stored form, version first.
    fn encode(&self) -> Result<Vec<u8>, Error>;

    /// From the name in the table and the stored form.
    fn decode(name: &[u8], bytes: &[u8]) -> Result<Self, Error>;

    /// The name in messages.
    fn display(name: &[u8]) -> String {
        let text = String::from_utf8_lossy(name);
        text.rsplit('\0').next().unwrap_or_default().to_owned()
    }
}

/// Labels as they are stored: those with an empty value are not set.
pub(crate) fn clean(labels: &mut labels::Labels) -> Result<(), Error> {
    labels.retain(|_, value| !value.is_empty());
    Ok(labels::validate_all(labels)?)
}

impl Db {
    pub(crate) fn find<R: Record>(&self, namespace: &Id, name: &[u8]) -> Result<R, Error> {
        match self.memory().get(R::KIND, namespace, name) {
            Some(value) => R::decode(name, &value),
            None => Err(not_found::<R>(name)),
        }
    }

    pub(crate) fn scan<R: Record>(&self, namespace: &Id, prefix: Vec<u8>) -> Scan<R> {
        Scan::new(self.memory().records(R::KIND, namespace), prefix)
    }

    /// Creates a record, encoded by the caller's thread; `also` runs in the same transaction.
    pub(crate) async fn create<R: Record>(
        &self,
        namespace: &Id,
        mut record: R,
        also: impl FnOnce(&mut Tx<'_>) -> Result<(), Error> + Send + 'static,
    ) -> Result<R, Error> {
        record.check()?;
        let (name, value, namespace) = (record.name(), record.encode()?, namespace.clone());
        self.transact(move |tx| {
            tx.insert::<R>(&namespace, &name, value)?;
            also(tx)
        })
        .await?;
        Ok(record)
    }

    /// Reads, changes and writes a record in one transaction.
    pub(crate) async fn modify<R: Record>(
        &self,
        namespace: &Id,
        name: Vec<u8>,
        change: impl FnOnce(&mut Tx<'_>, R) -> Result<R, Error> + Send + 'static,
    ) -> Result<R, Error> {
        let namespace = namespace.clone();
        self.transact(move |tx| {
            let record = tx.require::<R>(&namespace, &name)?;
            let mut record = change(tx, record)?;
            record.check()?;
            tx.write(&namespace, &record)?;
            Ok(record)
        })
        .await
    }

    /// Removes a record and returns it.
    pub(crate) async fn remove<R: Record>(
        &self,
        namespace: &Id,
        name: Vec<u8>,
        also: impl FnOnce(&mut Tx<'_>, &R) -> Result<(), Error> + Send + 'static,
    ) -> Result<R, Error> {
        let namespace = namespace.clone();
        self.transact(move |tx| {
            let record = tx.require::<R>(&namespace, &name)?;
            also(tx, &record)?;
            tx.delete(R::KIND, &namespace, &name);
            Ok(record)
        })
        .await
    }
}

pub(crate) fn damaged<R: Record>(name: &[u8], reason: &dyn std::fmt::Display) -> Error {
    Error::Damaged { object: Object::new(R::KIND.noun(), R::display(name)), reason: reason.to_string() }
}

pub(crate) fn not_found<R: Record>(name: &[u8]) -> Error {
    Error::NotFound(Object::new(R::KIND.noun(), R::display(name)))
}
