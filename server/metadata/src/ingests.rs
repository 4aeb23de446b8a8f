//! Ingests that a namespace sees.

use std::time::SystemTime;

use gantry_types::{Digest, Id};

use crate::keys::{self, Kind};
use crate::leases::{hold, release};
use crate::scan::Scan;
use crate::tx::Tx;
use crate::{Db, Error, Ingest, Resource};

/// Ingests of one namespace.
pub struct Ingests<'d> {
    pub(crate) db: &'d Db,
    pub(crate) namespace: Id,
}

impl Ingests<'_> {
    /// The ingest of that ref.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn get(&self, reference: &str) -> Result<Ingest, Error> {
        self.db.find(&self.namespace, reference.as_bytes())
    }

    /// All ingests, sorted by ref.
    pub fn scan(&self) -> Scan<Ingest> {
        self.db.scan(&self.namespace, Vec::new())
    }

    /// Records an ingest before its first byte, or finds the one that is recorded. `lease` keeps it; without one it lives until
    /// `expires`. The name in the content store is `NAMESPACE/SEQUENCE/REF`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an empty ref, [`Error::NotFound`] for the lease.
    pub async fn open(
        &self,
        reference: &str,
        expected: Option<Digest>,
        expires: SystemTime,
        lease: Option<&str>,
    ) -> Result<Ingest, Error> {
        keys::check(Kind::Ingest, "ref", reference)?;
        let sequence = self.db.next_sequence().await?;
        let new = Ingest {
            reference: reference.to_owned(),
            internal: format!("{}/{sequence}/{reference}", self.namespace),
            expected,
            expires: lease.is_none().then_some(expires),
            created: SystemTime::now(),
        };
        let (namespace, lease) = (self.namespace.clone(), lease.map(str::to_owned));
        self.db.transact(move |tx| open(tx, &namespace, new, lease.as_deref())).await
    }

    /// Forgets an ingest.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn delete(&self, reference: &str, lease: Option<&str>) -> Result<Ingest, Error> {
        let (namespace, lease) = (self.namespace.clone(), lease.map(str::to_owned));
        self.db
            .remove(&self.namespace, reference.as_bytes().to_vec(), move |tx, ingest: &Ingest| {
                release(tx, &namespace, lease.as_deref(), &Resource::Ingest(ingest.reference.clone()));
                Ok(())
            })
            .await
    }
}

fn open(tx: &mut Tx<'_>, namespace: &Id, new: Ingest, lease: Option<&str>) -> Result<Ingest, Error> {
    hold(tx, namespace, lease, &Resource::Ingest(new.reference.clone()))?;
    let ingest = match tx.read::<Ingest>(namespace, new.reference.as_bytes())? {
        Some(old) => {
            Ingest { internal: old.internal, created: old.created, expected: new.expected.or(old.expected), ..new }
        }
        None => new,
    };
    tx.write(namespace, &ingest)?;
    Ok(ingest)
}
