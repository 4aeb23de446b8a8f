//! Containers: what is to run. Running it is a task's affair.

use gantry_types::{Filter, Scope};

use crate::Result;

pub use gantry_metadata::{Container, Runtime};

/// The containers of all namespaces.
#[derive(Clone)]
pub struct Containers {}

impl Containers {
    /// One container.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn get(&self, scope: &Scope, id: &str) -> Result<Container> {
        todo!()
    }

    /// The containers that `filter` selects (`id`, `image`, `runtime.name`, `labels`), by id.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub async fn list(&self, scope: &Scope, filter: &Filter) -> Result<Vec<Container>> {
        todo!()
    }

    /// Enters a container.
    ///
    /// # Errors
    /// `AlreadyExists`, `InvalidArgument`.
    pub async fn create(&self, scope: &Scope, container: Container) -> Result<Container> {
        todo!()
    }

    /// Changes what `fields` name (`labels`, `spec`, `image`, `extensions`, `snapshotkey`, each of the maps with
    /// `.KEY`), all that may change where there are none.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` for what cannot change.
    pub async fn update(&self, scope: &Scope, container: Container, fields: &[String]) -> Result<Container> {
        todo!()
    }

    /// Removes a container's record. A task it has runs on.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn delete(&self, scope: &Scope, id: &str) -> Result<()> {
        todo!()
    }
}
