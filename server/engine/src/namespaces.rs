//! Namespaces: whose objects are whose.

use std::sync::Arc;

use gantry_ttrpc::pb::containerd::events::{NamespaceCreate, NamespaceDelete, NamespaceUpdate};
use gantry_types::{Filter, Labels, Namespace};

use crate::Result;
use crate::core::{Core, select};

pub use gantry_metadata::NamespaceRecord;

/// All namespaces.
#[derive(Clone)]
pub struct Namespaces {
    pub(crate) core: Arc<Core>,
}

impl Namespaces {
    /// One namespace.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn get(&self, name: &Namespace) -> Result<NamespaceRecord> {
        Ok(self.core.db.namespaces().get(name)?)
    }

    /// All of them, by name.
    ///
    /// # Errors
    /// None at present: damaged records are passed over.
    pub async fn list(&self) -> Result<Vec<NamespaceRecord>> {
        Ok(select(self.core.db.namespaces().scan(), &Filter::default()))
    }

    /// Enters a namespace.
    ///
    /// # Errors
    /// `AlreadyExists`, `InvalidArgument`.
    pub async fn create(&self, name: &Namespace, labels: Labels) -> Result<NamespaceRecord> {
        let record = self.core.db.namespaces().create(name.clone(), labels).await?;
        let event = NamespaceCreate { name: name.to_string(), labels: record.labels.clone() };
        self.core.emit(name, "/namespaces/create", &event);
        Ok(record)
    }

    /// Changes labels: those named in `fields` (`labels`, `labels.KEY`; an empty value removes one), all where there
    /// are none. Makes the namespace where it does not exist.
    ///
    /// # Errors
    /// `InvalidArgument`.
    pub async fn update(&self, name: &Namespace, labels: Labels, fields: &[String]) -> Result<NamespaceRecord> {
        let record = self.core.db.namespaces().update(name.clone(), labels, fields.to_vec()).await?;
        let event = NamespaceUpdate { name: name.to_string(), labels: record.labels.clone() };
        self.core.emit(name, "/namespaces/update", &event);
        Ok(record)
    }

    /// Removes an empty namespace.
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` while it holds anything, naming what.
    pub async fn delete(&self, name: &Namespace) -> Result<()> {
        self.core.db.namespaces().delete(name.clone()).await?;
        self.core.emit(name, "/namespaces/delete", &NamespaceDelete { name: name.to_string() });
        Ok(())
    }
}
