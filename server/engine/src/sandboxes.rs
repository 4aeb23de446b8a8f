//! Sandboxes: records of what groups containers. Running one is a shim's affair.

use std::sync::Arc;

use gantry_types::{Filter, Scope};

use crate::Result;
use crate::core::{Core, select};

pub use gantry_metadata::Sandbox;

/// The sandboxes of all namespaces.
#[derive(Clone)]
pub struct Sandboxes {
    pub(crate) core: Arc<Core>,
}

impl Sandboxes {
    /// One sandbox.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn get(&self, scope: &Scope, id: &str) -> Result<Sandbox> {
        Ok(self.core.db.sandboxes(&scope.namespace).get(id)?)
    }

    /// The sandboxes that `filter` selects (`id`, `runtime.name`, `sandboxer`, `labels`), by id.
    ///
    /// # Errors
    /// None at present: damaged records are passed over.
    pub async fn list(&self, scope: &Scope, filter: &Filter) -> Result<Vec<Sandbox>> {
        Ok(select(self.core.db.sandboxes(&scope.namespace).scan(), filter))
    }

    /// Enters a sandbox; its times are set here.
    ///
    /// # Errors
    /// `AlreadyExists`, `InvalidArgument`.
    pub async fn create(&self, scope: &Scope, sandbox: Sandbox) -> Result<Sandbox> {
        Ok(self.core.db.sandboxes(&scope.namespace).create(sandbox).await?)
    }

    /// Changes what `fields` name (`labels`, `labels.KEY`, `extensions`, `extensions.KEY`, `runtime`, `spec`), all that
    /// may change where there are none.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` for what cannot change.
    pub async fn update(&self, scope: &Scope, sandbox: Sandbox, fields: &[String]) -> Result<Sandbox> {
        Ok(self.core.db.sandboxes(&scope.namespace).update(sandbox, fields.to_vec()).await?)
    }

    /// Removes a sandbox's record.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn delete(&self, scope: &Scope, id: &str) -> Result<()> {
        self.core.db.sandboxes(&scope.namespace).delete(id).await?;
        self.core.garbage.notify_one();
        Ok(())
    }
}
