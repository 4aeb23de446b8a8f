//! Small records of other parts of the daemon: intents, counters, settings. Opaque here.

use gantry_types::Id;

use crate::keys::{self, Kind};
use crate::{Db, Error};

/// Documents of one collection. They belong to a namespace or, with none, to the daemon.
pub struct Documents<'d> {
    pub(crate) db: &'d Db,
    pub(crate) namespace: Option<Id>,
    pub(crate) collection: &'static str,
}

impl Documents<'_> {
    /// The bytes of a document.
    pub fn get(&self, name: &str) -> Option<Vec<u8>> {
        let key = keys::join(&[self.collection, name]);
        self.db.memory().get(Kind::Document, self.space(), &key).map(|value| value.to_vec())
    }

    /// Names and bytes of all documents, sorted by name.
    pub fn all(&self) -> Vec<(String, Vec<u8>)> {
        let records = self.db.memory().records(Kind::Document, self.space());
        let prefix = keys::prefix(&[self.collection]);
        records
            .starting(&prefix)
            .map(|(name, value)| (String::from_utf8_lossy(&name[prefix.len()..]).into_owned(), value.to_vec()))
            .collect()
    }

    /// Writes a document over what is there.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a bad name; [`Error::NotWritten`].
    pub async fn put(&self, name: &str, bytes: Vec<u8>) -> Result<(), Error> {
        keys::check(Kind::Document, "name", name)?;
        let (space, key) = (self.space().to_owned(), keys::join(&[self.collection, name]));
        let put = move |tx: &mut crate::tx::Tx<'_>| {
            tx.put(Kind::Document, &space, key, bytes);
            Ok(())
        };
        self.db.transact(put).await
    }

    /// Removes a document; one that is not there is no error.
    ///
    /// # Errors
    /// [`Error::NotWritten`].
    pub async fn delete(&self, name: &str) -> Result<(), Error> {
        let (space, key) = (self.space().to_owned(), keys::join(&[self.collection, name]));
        let delete = move |tx: &mut crate::tx::Tx<'_>| {
            tx.delete(Kind::Document, &space, &key);
            Ok(())
        };
        self.db.transact(delete).await
    }

    fn space(&self) -> &str {
        self.namespace.as_deref().unwrap_or_default()
    }
}
