//! Containers: what shall run.

use std::time::SystemTime;

use gantry_types::Id;

use crate::keys::{self, Kind};
use crate::scan::Scan;
use crate::tx::Tx;
use crate::{Container, Db, Error, mask};

/// The collection of documents that holds what is noted with containers.
const NOTES: &str = "container-note";

fn note_name(id: &str) -> Vec<u8> {
    keys::join(&[NOTES, id])
}

/// Containers of one namespace.
pub struct Containers<'d> {
    pub(crate) db: &'d Db,
    pub(crate) namespace: Id,
}

impl Containers<'_> {
    /// The container of that id.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn get(&self, id: &str) -> Result<Container, Error> {
        self.db.find(&self.namespace, id.as_bytes())
    }

    /// All containers, sorted by id.
    pub fn scan(&self) -> Scan<Container> {
        self.db.scan(&self.namespace, Vec::new())
    }

    /// Creates a container.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`], [`Error::Invalid`], [`Error::Label`].
    pub async fn create(&self, container: Container) -> Result<Container, Error> {
        self.create_noted(container, None).await
    }

    /// Creates a container, and with it a note that clients do not see.
    ///
    /// # Errors
    /// As [`Containers::create`].
    pub async fn create_noted(&self, mut container: Container, note: Option<Vec<u8>>) -> Result<Container, Error> {
        container.created = SystemTime::now();
        container.updated = container.created;
        let (namespace, name) = (self.namespace.clone(), note_name(&container.id));
        let also = move |tx: &mut Tx<'_>| {
            match note {
                Some(note) => tx.put(Kind::Document, &namespace, name, note),
                None => tx.delete(Kind::Document, &namespace, &name),
            }
            Ok(())
        };
        self.db.create(&self.namespace, container, also).await
    }

    /// What was noted with a container.
    pub fn note(&self, id: &str) -> Option<Vec<u8>> {
        self.db.documents(Some(&self.namespace), NOTES).get(id)
    }

    /// Notes something else with a container.
    ///
    /// # Errors
    /// [`Error::NotWritten`].
    pub async fn set_note(&self, id: &str, note: Vec<u8>) -> Result<(), Error> {
        self.db.documents(Some(&self.namespace), NOTES).put(id, note).await
    }

    /// Changes a container. An empty mask replaces labels, spec, extensions, image and snapshot key.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Immutable`], [`Error::UnknownField`], [`Error::Invalid`], [`Error::Label`].
    pub async fn update(&self, container: Container, mask: Vec<String>) -> Result<Container, Error> {
        let name = container.id.as_bytes().to_vec();
        self.db
            .modify(&self.namespace, name, move |_, old: Container| {
                Ok(Container { updated: SystemTime::now(), ..mask::container(old, &container, &mask)? })
            })
            .await
    }

    /// Removes a container and returns it.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn delete(&self, id: &str) -> Result<Container, Error> {
        let (namespace, name) = (self.namespace.clone(), note_name(id));
        let also = move |tx: &mut Tx<'_>, _: &Container| {
            tx.delete(Kind::Document, &namespace, &name);
            Ok(())
        };
        self.db.remove(&self.namespace, id.as_bytes().to_vec(), also).await
    }
}
