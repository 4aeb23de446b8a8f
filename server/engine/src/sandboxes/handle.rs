//! A controller as callers use it: tells of what happens, names what is under way, and goes on when a caller leaves.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use gantry_ttrpc::pb::containerd::events::{SandboxCreate, SandboxExit as ExitEvent, SandboxStart};
use gantry_types::{Namespace, Platform, Scope};

use super::{CreateSandbox, Instance, Sandbox, SandboxController, SandboxExit, SandboxStatus};
use crate::core::Core;
use crate::tasks::Metric;
use crate::{Error, Result};

/// A sandbox controller in use. Clones are the same one.
#[derive(Clone)]
pub struct Controller {
    pub(super) core: Arc<Core>,
    pub(super) runs: Arc<dyn SandboxController>,
    pub(super) watched: Watched,
}

/// The sandboxes whose end somebody waits for here.
#[derive(Clone, Default)]
pub(super) struct Watched(Arc<Mutex<HashSet<(Namespace, String)>>>);

impl Watched {
    fn enter(&self, key: &(Namespace, String)) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone())
    }

    fn leave(&self, key: &(Namespace, String)) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

impl Controller {
    /// Makes a sandbox; see [`SandboxController::create`]. The work goes on when the caller goes away.
    ///
    /// # Errors
    /// As there.
    pub async fn create(&self, scope: &Scope, sandbox: &Sandbox, create: CreateSandbox) -> Result<()> {
        let (this, own, sandbox) = (self.clone(), scope.clone(), sandbox.clone());
        let work = async move {
            let _operation = this.begin("sandbox create", &own, sandbox.id.as_str());
            this.runs.create(&own, &sandbox, create).await?;
            let event = SandboxCreate { sandbox_id: sandbox.id.to_string() };
            this.core.emit(&own.namespace, "/sandboxes/create", &event);
            Ok(())
        };
        whole("sandbox create", work).await
    }

    /// Starts it; see [`SandboxController::start`]. The work goes on when the caller goes away.
    ///
    /// # Errors
    /// As there.
    pub async fn start(&self, scope: &Scope, id: &str) -> Result<Instance> {
        let (this, own, id) = (self.clone(), scope.clone(), id.to_owned());
        let work = async move {
            let _operation = this.begin("sandbox start", &own, &id);
            let instance = this.runs.start(&own, &id).await?;
            this.core.emit(&own.namespace, "/sandboxes/start", &SandboxStart { sandbox_id: id.clone() });
            this.watch_over(&own, &id);
            Ok(instance)
        };
        whole("sandbox start", work).await
    }

    /// See [`SandboxController::platform`].
    ///
    /// # Errors
    /// As there.
    pub async fn platform(&self, scope: &Scope, id: &str) -> Result<Platform> {
        self.runs.platform(scope, id).await
    }

    /// Ends its processes; see [`SandboxController::stop`]. The work goes on when the caller goes away.
    ///
    /// # Errors
    /// As there.
    pub async fn stop(&self, scope: &Scope, id: &str, timeout: Option<Duration>) -> Result<()> {
        let (this, own, id) = (self.clone(), scope.clone(), id.to_owned());
        let work = async move {
            let _operation = this.begin("sandbox stop", &own, &id);
            this.runs.stop(&own, &id, timeout).await
        };
        whole("sandbox stop", work).await
    }

    /// See [`SandboxController::wait`].
    ///
    /// # Errors
    /// As there.
    pub async fn wait(&self, scope: &Scope, id: &str) -> Result<SandboxExit> {
        self.runs.wait(scope, id).await
    }

    /// See [`SandboxController::status`].
    ///
    /// # Errors
    /// As there.
    pub async fn status(&self, scope: &Scope, id: &str, verbose: bool) -> Result<SandboxStatus> {
        self.runs.status(scope, id, verbose).await
    }

    /// Clears it away; see [`SandboxController::shutdown`]. The work goes on when the caller goes away.
    ///
    /// # Errors
    /// As there.
    pub async fn shutdown(&self, scope: &Scope, id: &str) -> Result<()> {
        let (this, own, id) = (self.clone(), scope.clone(), id.to_owned());
        let work = async move {
            let _operation = this.begin("sandbox shutdown", &own, &id);
            this.runs.shutdown(&own, &id).await
        };
        whole("sandbox shutdown", work).await
    }

    /// See [`SandboxController::metrics`].
    ///
    /// # Errors
    /// As there.
    pub async fn metrics(&self, scope: &Scope, id: &str) -> Result<Option<Metric>> {
        self.runs.metrics(scope, id).await
    }

    /// See [`SandboxController::update`].
    ///
    /// # Errors
    /// As there.
    pub async fn update(&self, scope: &Scope, sandbox: &Sandbox, fields: &[String]) -> Result<()> {
        self.runs.update(scope, sandbox, fields).await
    }

    /// Tells of its end when it comes, once.
    pub(super) fn watch_over(&self, scope: &Scope, id: &str) {
        let key = (scope.namespace.clone(), id.to_owned());
        if !self.watched.enter(&key) {
            return;
        }
        let (this, scope) = (self.clone(), Scope::new(scope.namespace.clone()));
        tokio::spawn(async move {
            let waiting = this.runs.wait(&scope, &key.1);
            if let Some(Ok(exit)) = this.core.stop.run_until_cancelled(waiting).await {
                let event = ExitEvent {
                    sandbox_id: key.1.clone(),
                    exit_status: exit.status,
                    exited_at: Some(exit.exited_at.into()),
                };
                this.core.emit(&key.0, "/sandboxes/exit", &event);
            }
            this.watched.leave(&key);
        });
    }

    fn begin(&self, what: &'static str, scope: &Scope, id: &str) -> crate::ops::Entry {
        self.core.ops.begin(what, id, Some(&scope.namespace), scope.deadline)
    }
}

/// Runs to its end, whoever waits for it.
async fn whole<T: Send + 'static>(
    what: &'static str,
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    tokio::spawn(work).await.map_err(Error::task(what))?
}
