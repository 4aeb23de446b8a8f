//! Sandboxes: pods that shall run.

use std::time::SystemTime;

use gantry_types::Id;

use crate::scan::Scan;
use crate::{Db, Error, Sandbox, mask};

/// Sandboxes of one namespace.
pub struct Sandboxes<'d> {
    pub(crate) db: &'d Db,
    pub(crate) namespace: Id,
}

impl Sandboxes<'_> {
    /// The sandbox of that id.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn get(&self, id: &str) -> Result<Sandbox, Error> {
        self.db.find(&self.namespace, id.as_bytes())
    }

    /// All sandboxes, sorted by id.
    pub fn scan(&self) -> Scan<Sandbox> {
        self.db.scan(&self.namespace, Vec::new())
    }

    /// Creates a sandbox.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`], [`Error::Invalid`], [`Error::Label`].
    pub async fn create(&self, mut sandbox: Sandbox) -> Result<Sandbox, Error> {
        sandbox.created = SystemTime::now();
        sandbox.updated = sandbox.created;
        self.db.create(&self.namespace, sandbox, |_| Ok(())).await
    }

    /// Changes a sandbox. An empty mask replaces labels, extensions, spec and runtime.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Immutable`], [`Error::UnknownField`], [`Error::Invalid`], [`Error::Label`].
    pub async fn update(&self, sandbox: Sandbox, mask: Vec<String>) -> Result<Sandbox, Error> {
        let name = sandbox.id.as_bytes().to_vec();
        self.db
            .modify(&self.namespace, name, move |_, old: Sandbox| {
                Ok(Sandbox { updated: SystemTime::now(), ..mask::sandbox(old, &sandbox, &mask)? })
            })
            .await
    }

    /// Removes a sandbox and returns it.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn delete(&self, id: &str) -> Result<Sandbox, Error> {
        self.db.remove(&self.namespace, id.as_bytes().to_vec(), |_, _| Ok(())).await
    }
}
