//! Sandboxes: records of what groups containers, and the controllers that run them.

mod controller;
mod handle;
mod remote;
mod shim;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use gantry_types::{Filter, Scope};

use crate::core::{Core, select};
use crate::{Error, Result};

pub use controller::{
    CREATED, CreateSandbox, Instance, NOT_READY, READY, SandboxController, SandboxExit, SandboxStatus,
};
pub use gantry_metadata::Sandbox;
pub use handle::Controller;
use handle::Watched;
pub(crate) use shim::{SandboxShims, ShimController, restore};

/// Name of our own controller.
pub(crate) const SHIM: &str = "shim";
/// The same controller, with sandboxes that show among the tasks.
pub(crate) const PODSANDBOX: &str = "podsandbox";

/// The sandboxes of all namespaces.
#[derive(Clone)]
pub struct Sandboxes {
    core: Arc<Core>,
    controllers: Arc<Mutex<BTreeMap<String, Arc<dyn SandboxController>>>>,
    watched: Watched,
}

impl Sandboxes {
    pub(crate) fn new(core: &Arc<Core>) -> Sandboxes {
        Sandboxes { core: Arc::clone(core), controllers: Arc::default(), watched: Watched::default() }
    }

    /// The controller of that name: `shim` is our own, and `podsandbox` the same under the name that Kubernetes' side
    /// of containerd uses; its sandboxes are visible as tasks, too.
    ///
    /// # Errors
    /// `InvalidArgument` for an empty name, `NotFound`.
    pub fn controller(&self, name: &str) -> Result<Controller> {
        if name.is_empty() {
            return Err(Error::invalid("sandbox controller name", "can not be empty"));
        }
        let controllers = self.controllers.lock().unwrap_or_else(PoisonError::into_inner);
        let found = controllers.get(name).ok_or_else(|| Error::not_found("sandbox controller", name))?;
        Ok(Controller { core: Arc::clone(&self.core), runs: Arc::clone(found), watched: self.watched.clone() })
    }

    /// Names of the controllers.
    pub fn controllers(&self) -> Vec<String> {
        self.controllers.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    /// Adds a controller, or puts it in the place of the one of that name. The sandboxes in its charge are watched
    /// over from here on. Must be called within a tokio runtime.
    pub fn register(&self, name: &str, controller: Arc<dyn SandboxController>) {
        self.controllers.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), controller);
        let Ok(controller) = self.controller(name) else { return };
        for namespace in self.core.db.namespaces().scan().filter_map(std::result::Result::ok) {
            let records = self.core.db.sandboxes(&namespace.name).scan().filter_map(std::result::Result::ok);
            for record in records.filter(|record| record.sandboxer == name) {
                controller.watch_over(&Scope::new(namespace.name.clone()), record.id.as_str());
            }
        }
    }

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
        if sandbox.runtime.name.is_empty() {
            return Err(Error::invalid("sandbox", "its runtime's name is missing"));
        }
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
        self.core.garbage.deleted();
        Ok(())
    }
}
