//! What runs sandboxes: the contract that our own controller and those behind a plug-in's socket keep.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use gantry_types::{Any, Mount, Platform, Scope};

use super::Sandbox;
use crate::Result;
use crate::tasks::Metric;

/// Runs sandboxes of all namespaces. Callers use it through [`Controller`](super::Controller), which tells of what
/// happens and names what is under way.
#[async_trait]
pub trait SandboxController: Send + Sync {
    /// Makes a sandbox; `sandbox` is its record. Its namespaces exist from here on, its `status` has a pid.
    ///
    /// # Errors
    /// `AlreadyExists`; what stands in the way. Nothing stays behind.
    async fn create(&self, scope: &Scope, sandbox: &Sandbox, create: CreateSandbox) -> Result<()>;

    /// Starts it.
    ///
    /// # Errors
    /// `NotFound`. After a failed start the sandbox is gone.
    async fn start(&self, scope: &Scope, id: &str) -> Result<Instance>;

    /// What containers in it have to be made for.
    ///
    /// # Errors
    /// `NotFound`.
    async fn platform(&self, scope: &Scope, id: &str) -> Result<Platform>;

    /// Ends all its processes, and waits for that. One that has ended, or is not there, is no error. Without `timeout`
    /// the controller's own patience counts.
    ///
    /// # Errors
    /// `DeadlineExceeded`.
    async fn stop(&self, scope: &Scope, id: &str, timeout: Option<Duration>) -> Result<()>;

    /// Waits for its end; at once where it has ended.
    ///
    /// # Errors
    /// `NotFound`.
    async fn wait(&self, scope: &Scope, id: &str) -> Result<SandboxExit>;

    /// What it does. `verbose` fills `info`.
    ///
    /// # Errors
    /// `NotFound`; what the sandbox says.
    async fn status(&self, scope: &Scope, id: &str, verbose: bool) -> Result<SandboxStatus>;

    /// Ends it with whatever is in it, and clears everything away but its record.
    ///
    /// # Errors
    /// `NotFound`. Repeating it after another failure is safe.
    async fn shutdown(&self, scope: &Scope, id: &str) -> Result<()>;

    /// What it has used.
    ///
    /// # Errors
    /// `NotFound`.
    async fn metrics(&self, scope: &Scope, id: &str) -> Result<Option<Metric>>;

    /// Tells it that its record has changed; `fields` say where, none of them: everywhere. Ours takes limits from a
    /// changed `spec` (`linux.resources`).
    ///
    /// # Errors
    /// `NotFound`, `Unimplemented`.
    async fn update(&self, scope: &Scope, sandbox: &Sandbox, fields: &[String]) -> Result<()>;
}

/// What a sandbox is made of, beside its record.
#[derive(Clone, Debug, Default)]
pub struct CreateSandbox {
    /// Mounts of a root file system; none where the sandbox needs no program of its own.
    pub rootfs: Vec<Mount>,
    /// Free options for the sandbox's shim.
    pub options: Option<Any>,
    /// Network namespace to join, instead of what the spec says; empty for none.
    pub netns_path: String,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
}

/// A started sandbox.
#[derive(Clone, Debug, Default)]
pub struct Instance {
    /// Process that holds its namespaces (`/proc/PID/ns/…`); 0 where there is none on this machine.
    pub pid: u32,
    /// When it was made.
    pub created_at: Option<SystemTime>,
    /// Labels from the controller.
    pub labels: BTreeMap<String, String>,
    /// Where its tasks are made, `ttrpc+unix://…`: for `Create::task_api_address`. Empty: each has a shim of its own.
    pub address: String,
    /// Version of the task API there.
    pub version: u32,
    /// What it runs by, where it tells.
    pub spec: Option<Any>,
}

/// How a sandbox ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SandboxExit {
    /// Exit status of what held it; 137 for one that was stopped.
    pub status: u32,
    /// When.
    pub exited_at: SystemTime,
}

/// What a sandbox does.
#[derive(Clone, Debug, Default)]
pub struct SandboxStatus {
    /// As in [`Instance`]; from `create` on.
    pub pid: u32,
    /// [`READY`] once started, [`NOT_READY`] once ended, [`CREATED`] before; other controllers have words of their own.
    pub state: String,
    /// More in JSON, when asked for verbosely.
    pub info: BTreeMap<String, String>,
    /// When it was made.
    pub created_at: Option<SystemTime>,
    /// When it ended.
    pub exited_at: Option<SystemTime>,
    /// Whatever else the controller says.
    pub extra: Option<Any>,
    /// As in [`Instance`].
    pub address: String,
    /// As in [`Instance`].
    pub version: u32,
}

/// State of a sandbox that was made, but not started.
pub const CREATED: &str = "SANDBOX_CREATED";
/// State of a sandbox that runs.
pub const READY: &str = "SANDBOX_READY";
/// State of a sandbox that has ended.
pub const NOT_READY: &str = "SANDBOX_NOTREADY";
