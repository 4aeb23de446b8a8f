//! Tasks: the processes of containers, each held by its shim.

use std::collections::BTreeMap;
use std::time::SystemTime;

use gantry_types::{Any, Descriptor, Filter, Labels, Mount, Scope};

use crate::Result;

/// The tasks of all namespaces.
#[derive(Clone)]
pub struct Tasks {}

/// What a task is made of, beside the container's record.
#[derive(Clone, Debug, Default)]
pub struct Create {
    /// The container.
    pub container_id: String,
    /// Mounts of the root file system; empty: from the container's snapshot where it has one, else none (the spec's
    /// `root.path` stands by itself).
    pub rootfs: Vec<Mount>,
    /// Path or URI of standard input; empty for none.
    pub stdin: String,
    /// Path or URI of standard output; empty for none.
    pub stdout: String,
    /// Path or URI of standard error; empty for none, and with a terminal.
    pub stderr: String,
    /// A terminal instead of pipes.
    pub terminal: bool,
    /// Checkpoint to restore from.
    pub checkpoint: Option<Descriptor>,
    /// Options for the runtime, instead of the container's.
    pub options: Option<Any>,
    /// Absolute path of a shim, instead of the container's runtime name.
    pub runtime_path: String,
}

/// An additional process in a task.
#[derive(Clone, Debug, Default)]
pub struct Exec {
    /// The container.
    pub container_id: String,
    /// The new process' id.
    pub exec_id: String,
    /// Path or URI of standard input; empty for none.
    pub stdin: String,
    /// Path or URI of standard output.
    pub stdout: String,
    /// Path or URI of standard error.
    pub stderr: String,
    /// A terminal instead of pipes.
    pub terminal: bool,
    /// The process, an OCI `Process` in JSON.
    pub spec: Option<Any>,
}

/// What a process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// The shim does not say (it is silent or gone).
    Unknown,
    /// Made, not started.
    Created,
    /// Running.
    Running,
    /// Over; the exit is recorded.
    Stopped,
    /// Frozen.
    Paused,
    /// Being frozen.
    Pausing,
}

/// A process as its shim sees it.
#[derive(Clone, Debug)]
pub struct Process {
    /// The container.
    pub container_id: String,
    /// The process; empty for the first one.
    pub exec_id: String,
    /// Process id on the host; 0 before the start.
    pub pid: u32,
    /// What it does.
    pub status: Status,
    /// Standard input as it was asked for.
    pub stdin: String,
    /// Standard output as it was asked for.
    pub stdout: String,
    /// Standard error as it was asked for.
    pub stderr: String,
    /// Whether it has a terminal.
    pub terminal: bool,
    /// Exit status; meaningful once stopped.
    pub exit_status: u32,
    /// When it ended.
    pub exited_at: Option<SystemTime>,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Process id it had on the host.
    pub pid: u32,
    /// Exit code; 128 + signal for a killed one; 255 where nobody knows.
    pub status: u32,
    /// When.
    pub exited_at: SystemTime,
}

/// A process id inside a container, with what the runtime knows of it.
#[derive(Clone, Debug)]
pub struct ProcessInfo {
    /// Process id on the host.
    pub pid: u32,
    /// More, `containerd.runc.v1.ProcessDetails`.
    pub info: Option<Any>,
}

/// A reading of a task's resource use.
#[derive(Clone, Debug)]
pub struct Metric {
    /// When it was read.
    pub timestamp: SystemTime,
    /// The container.
    pub id: String,
    /// `io.containerd.cgroups.v1.Metrics` or `.v2.Metrics`.
    pub data: Any,
}

impl Tasks {
    /// Makes a container's task; gives its process id. Another call for the same container that is still running
    /// ends in `AlreadyExists` once that one has succeeded.
    ///
    /// # Errors
    /// `NotFound` without the container, `AlreadyExists` with a task; what shim and runtime say.
    pub async fn create(&self, scope: &Scope, create: Create) -> Result<u32> {
        todo!()
    }

    /// Starts the task, or with an exec id that process; gives the process id.
    ///
    /// # Errors
    /// `NotFound`; what the shim says.
    pub async fn start(&self, scope: &Scope, container_id: &str, exec_id: &str) -> Result<u32> {
        todo!()
    }

    /// Removes an ended task: at the shim, then the shim, then its bundle.
    ///
    /// # Errors
    /// `NotFound`, `FailedPrecondition` while it runs.
    pub async fn delete(&self, scope: &Scope, container_id: &str) -> Result<Exit> {
        todo!()
    }

    /// Removes an ended exec process.
    ///
    /// # Errors
    /// As [`Tasks::delete`].
    pub async fn delete_process(&self, scope: &Scope, container_id: &str, exec_id: &str) -> Result<Exit> {
        todo!()
    }

    /// The state of the task (empty `exec_id`) or of an exec process, asked of its shim.
    ///
    /// # Errors
    /// `NotFound`. A silent shim is no error: its task is `Unknown`.
    pub async fn get(&self, scope: &Scope, container_id: &str, exec_id: &str) -> Result<Process> {
        todo!()
    }

    /// The tasks of the namespace, asked of their shims at once.
    ///
    /// # Errors
    /// None at present: a silent shim gives `Unknown`.
    pub async fn list(&self, scope: &Scope) -> Result<Vec<Process>> {
        todo!()
    }

    /// Sends a signal to the task, to an exec process, or (`all`) to every process of the container.
    ///
    /// # Errors
    /// `NotFound` for an ended process.
    pub async fn kill(&self, scope: &Scope, container_id: &str, exec_id: &str, signal: u32, all: bool) -> Result<()> {
        todo!()
    }

    /// Adds a process, not yet started.
    ///
    /// # Errors
    /// `AlreadyExists`, `NotFound`, `InvalidArgument`.
    pub async fn exec(&self, scope: &Scope, exec: Exec) -> Result<()> {
        todo!()
    }

    /// Sets a terminal's size, in characters.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn resize_pty(
        &self,
        scope: &Scope,
        container_id: &str,
        exec_id: &str,
        width: u32,
        height: u32,
    ) -> Result<()> {
        todo!()
    }

    /// Closes the process' standard input.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn close_stdin(&self, scope: &Scope, container_id: &str, exec_id: &str) -> Result<()> {
        todo!()
    }

    /// Freezes the task.
    ///
    /// # Errors
    /// What the shim says.
    pub async fn pause(&self, scope: &Scope, container_id: &str) -> Result<()> {
        todo!()
    }

    /// Thaws the task.
    ///
    /// # Errors
    /// What the shim says.
    pub async fn resume(&self, scope: &Scope, container_id: &str) -> Result<()> {
        todo!()
    }

    /// All process ids in the container.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn pids(&self, scope: &Scope, container_id: &str) -> Result<Vec<ProcessInfo>> {
        todo!()
    }

    /// Checkpoints the task into content; gives the descriptors of what was stored.
    ///
    /// # Errors
    /// What the shim says.
    pub async fn checkpoint(
        &self,
        scope: &Scope,
        container_id: &str,
        parent: Option<&Descriptor>,
        options: Option<Any>,
    ) -> Result<Vec<Descriptor>> {
        todo!()
    }

    /// Changes the task's resource limits.
    ///
    /// # Errors
    /// What the shim says.
    pub async fn update(
        &self,
        scope: &Scope,
        container_id: &str,
        resources: Option<Any>,
        annotations: BTreeMap<String, String>,
    ) -> Result<()> {
        todo!()
    }

    /// Resource use of the namespace's running tasks that `filter` selects (`id`, `namespace`).
    ///
    /// # Errors
    /// None at present: a task without figures is left out.
    pub async fn metrics(&self, scope: &Scope, filter: &Filter) -> Result<Vec<Metric>> {
        todo!()
    }

    /// Waits for the end of the task (empty `exec_id`) or of an exec process; at once where it has ended.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn wait(&self, scope: &Scope, container_id: &str, exec_id: &str) -> Result<Exit> {
        todo!()
    }
}
