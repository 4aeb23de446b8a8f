//! Namespaces: whose objects are whose.

use gantry_types::{Labels, Namespace};

use crate::Result;

pub use gantry_metadata::NamespaceRecord;

/// All namespaces.
#[derive(Clone)]
pub struct Namespaces {}

impl Namespaces {
    /// One namespace.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn get(&self, name: &Namespace) -> Result<NamespaceRecord> {
        todo!()
    }

    /// All of them, by name.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub async fn list(&self) -> Result<Vec<NamespaceRecord>> {
        todo!()
    }

    /// Enters a namespace.
    ///
    /// # Errors
    /// `AlreadyExists`, `InvalidArgument`.
    pub async fn create(&self, name: &Namespace, labels: Labels) -> Result<NamespaceRecord> {
        todo!()
    }

    /// Changes labels: those named in `fields` (`labels`, `labels.KEY`; an empty value removes one), all where there
    /// are none. Makes the namespace where it does not exist.
    ///
    /// # Errors
    /// `InvalidArgument`.
    pub async fn update(&self, name: &Namespace, labels: Labels, fields: &[String]) -> Result<NamespaceRecord> {
        todo!()
    }

    /// Removes an empty namespace.
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` while it holds anything, naming what.
    pub async fn delete(&self, name: &Namespace) -> Result<()> {
        todo!()
    }
}
