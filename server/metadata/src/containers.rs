//! Containers: what shall run.

use std::time::SystemTime;

use gantry_types::Id;

use crate::scan::Scan;
use crate::{Container, Db, Error, mask};

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
    pub async fn create(&self, mut container: Container) -> Result<Container, Error> {
        container.created = SystemTime::now();
        container.updated = container.created;
        self.db.create(&self.namespace, container, |_| Ok(())).await
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
        self.db.remove(&self.namespace, id.as_bytes().to_vec(), |_, _| Ok(())).await
    }
}
