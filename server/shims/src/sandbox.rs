//! Sandboxes: the service of their shims, method by method, and finding them again after a restart.

use std::sync::Arc;
use std::time::Duration;

use gantry_ttrpc::pb::containerd::runtime::sandbox::v1 as wire;
use gantry_ttrpc::{Client, Status};
use gantry_types::{ErrorKind, HasKind, Namespace};
use prost::Message;
use tokio::task::JoinSet;

use crate::bundle::Purpose;
use crate::{Bundle, Cleanup, Deadlines, Error, Found, Result, Shim, Shims};

const SERVICE: &str = "containerd.runtime.sandbox.v1.Sandbox";
/// What a shim may take beyond the time that a stop was given.
const BEYOND: Duration = Duration::from_secs(5);

/// The sandbox service at one connection, for one sandbox. Clones share both.
#[derive(Clone, Debug)]
pub struct SandboxCalls {
    id: Arc<str>,
    client: Client,
    deadlines: Deadlines,
}

/// Gives a method of the service: name on the wire, messages, deadline.
macro_rules! methods {
    ($($(#[$doc:meta])* $name:ident = $method:literal ($request:ident) -> $response:ident, $limit:ident;)*) => {$(
        $(#[$doc])*
        ///
        /// # Errors
        /// [`Error::Call`] with what the shim or the connection said.
        pub async fn $name(&self, request: wire::$request) -> Result<wire::$response> {
            self.call($method, &request, Some(self.deadlines.$limit)).await
        }
    )*};
}

impl SandboxCalls {
    pub(crate) fn new(id: &str, client: Client, deadlines: Deadlines) -> SandboxCalls {
        SandboxCalls { id: id.into(), client, deadlines }
    }

    methods! {
        /// Makes the sandbox.
        create = "CreateSandbox"(CreateSandboxRequest) -> CreateSandboxResponse, create;
        /// Starts it.
        start = "StartSandbox"(StartSandboxRequest) -> StartSandboxResponse, create;
        /// What containers in it have to be made for.
        platform = "Platform"(PlatformRequest) -> PlatformResponse, query;
        /// What it does.
        status = "SandboxStatus"(SandboxStatusRequest) -> SandboxStatusResponse, query;
        /// Whether it answers.
        ping = "PingSandbox"(PingRequest) -> PingResponse, query;
        /// Ends it, and the shim.
        shutdown = "ShutdownSandbox"(ShutdownSandboxRequest) -> ShutdownSandboxResponse, change;
        /// What it has used.
        metrics = "SandboxMetrics"(SandboxMetricsRequest) -> SandboxMetricsResponse, query;
        /// Tells it that its record has changed.
        update = "UpdateSandbox"(UpdateSandboxRequest) -> UpdateSandboxResponse, create;
    }

    /// Ends its processes; returns when they have ended.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn stop(&self, timeout: Option<Duration>) -> Result<()> {
        let given = timeout.unwrap_or(self.deadlines.change);
        let timeout_secs = u32::try_from(given.as_secs()).unwrap_or(u32::MAX);
        let request = wire::StopSandboxRequest { sandbox_id: self.id.to_string(), timeout_secs };
        let _: wire::StopSandboxResponse = self.call("StopSandbox", &request, Some(given + BEYOND)).await?;
        Ok(())
    }

    /// Waits for its end; without a limit of its own, until the connection ends.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn wait(&self) -> Result<wire::WaitSandboxResponse> {
        self.call("WaitSandbox", &wire::WaitSandboxRequest { sandbox_id: self.id.to_string() }, None).await
    }

    async fn call<Q: Message, A: Message + Default>(
        &self,
        method: &'static str,
        request: &Q,
        limit: Option<Duration>,
    ) -> Result<A> {
        let failed = |status: Status| Error::Call { id: self.id.to_string(), method, status };
        self.client.call(SERVICE, method, request, limit).await.map_err(failed)
    }
}

/// A sandbox's bundle that was there, and what became of it.
#[derive(Debug)]
pub struct RestoredSandbox {
    /// Namespace of the sandbox.
    pub namespace: Namespace,
    /// Its id.
    pub id: String,
    /// What became of it.
    pub found: FoundSandbox,
}

/// What a restart found at a sandbox's bundle.
#[derive(Debug)]
pub enum FoundSandbox {
    /// The shim answers and has the sandbox, or it is connected and did not answer in time.
    There(Shim),
    /// The shim was gone; what it held was cleaned up by its binary.
    Gone(Cleanup),
    /// Never got as far as a sandbox: removed.
    Leaked,
}

impl Shims {
    /// Looks at every sandbox's bundle at once, as [`Shims::restore`] does at those of tasks.
    pub async fn restore_sandboxes(&self) -> Vec<RestoredSandbox> {
        let mut looking = JoinSet::new();
        for (namespace, id) in self.bundles(Purpose::Sandbox) {
            let shims = self.clone();
            looking.spawn(async move {
                let found = shims.find_sandbox(&namespace, &id).await;
                RestoredSandbox { namespace, id, found }
            });
        }
        let mut all = looking.join_all().await;
        all.sort_by(|a, b| (&a.namespace, &a.id).cmp(&(&b.namespace, &b.id)));
        all
    }

    async fn find_sandbox(&self, namespace: &Namespace, id: &str) -> FoundSandbox {
        let bundle = Bundle::at(&self.config, Purpose::Sandbox, namespace, id);
        let Some(answer) = bundle.noted_answer() else {
            self.discard(namespace, id, bundle).await;
            return FoundSandbox::Leaked;
        };
        let Ok(shim) = self.connect_again(namespace, id, &bundle, answer).await else {
            return match self.bury(namespace, id, bundle).await {
                Found::Gone { cleanup } => FoundSandbox::Gone(cleanup),
                _ => FoundSandbox::Leaked,
            };
        };
        let request = wire::SandboxStatusRequest { sandbox_id: id.to_owned(), verbose: false };
        match tokio::time::timeout(self.config.deadlines.restore, shim.sandbox().status(request)).await {
            Ok(Err(error)) if error.is_lost() => FoundSandbox::Gone(shim.cleanup().await),
            // The engine died before the sandbox was made.
            Ok(Err(error)) if error.kind() == ErrorKind::NotFound => {
                shim.end_sandbox().await;
                FoundSandbox::Leaked
            }
            _ => FoundSandbox::There(shim),
        }
    }
}

impl Shim {
    /// Ends a sandbox with all that is in it, then its shim, and removes the bundle; also where the shim is silent or
    /// gone: its binary clears away what is left.
    pub async fn end_sandbox(&self) -> Cleanup {
        self.shut_sandbox_down().await;
        self.cleanup().await
    }

    /// The same for a sandbox whose end is known already. A shim of ours that shuts down and hangs up leaves nothing but
    /// the bundle, so its binary is not asked; otherwise what that says is returned.
    pub async fn end_ended_sandbox(&self) -> Option<Cleanup> {
        let over = self.shut_sandbox_down().await && self.answer().is_ours() && self.hangs_up().await;
        if over && self.remove_bundle().await.is_ok() {
            return None;
        }
        Some(self.cleanup().await)
    }

    async fn shut_sandbox_down(&self) -> bool {
        if self.give_up_if_silent().await {
            return false;
        }
        let request = wire::ShutdownSandboxRequest { sandbox_id: self.id().to_owned() };
        let shut = self.sandbox().shutdown(request).await;
        shut.inspect_err(|error| tracing::debug!(id = self.id(), %error, "sandbox does not shut down")).is_ok()
    }
}
