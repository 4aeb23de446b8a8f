//! Tasks: the processes of containers, each held by its shim. The shim is the truth; what is kept here is which shims
//! there are, and how processes ended.

mod checkpoint;
mod create;
mod exits;
mod monitor;
pub(crate) mod pipes;
mod streams;
mod table;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use futures::future::join_all;
use gantry_shims::Shims;
use gantry_ttrpc::pb::containerd::task::v3 as wire;
use gantry_ttrpc::pb::containerd::v1::types::Status as WireStatus;
use gantry_types::{Any, ErrorKind, Fields, Filter, HasKind, Id, Mount, Scope};

use crate::core::Core;
use crate::mounts::Mounts;
use crate::sandboxes::SandboxShims;
use crate::snapshots::Snapshots;
use crate::{Error, Result};

pub use checkpoint::{ARCHIVE as CHECKPOINT_ARCHIVE, CONFIG as CHECKPOINT_CONFIG, Checkpoint};
pub(crate) use create::{any, mapped_root, mount as mount_to_wire};
use exits::Exits;
pub(crate) use exits::time_of;
use monitor::name;
pub use streams::{Attach, AttachEnd, Attached, LogIo, LogTo, MAX_LOG_LINE, RunExec, RunningExec, Streams};
use table::{ProcessEntry, Table};
pub(crate) use table::{Task, TaskKey};

/// How long a list waits for one shim's answer.
const LIST_PATIENCE: std::time::Duration = std::time::Duration::from_secs(1);
/// The last real-time signal (signal(7)).
const LAST_SIGNAL: u32 = 64;

/// The tasks of all namespaces.
#[derive(Clone)]
pub struct Tasks {
    pub(crate) core: Arc<Core>,
    pub(crate) shims: Shims,
    pub(crate) snapshots: Snapshots,
    pub(crate) table: Table,
    /// The sandboxes whose shims containers may have to be put into.
    pub(crate) sandboxes: SandboxShims,
    pub(crate) exits: Exits,
}

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
    /// What it is restored from, once it is started.
    pub checkpoint: Option<Checkpoint>,
    /// Options for the runtime, instead of the container's.
    pub options: Option<Any>,
    /// Absolute path of a shim, instead of the container's runtime name.
    pub runtime_path: String,
    /// Address of a shim to use instead of starting one, as a sandbox's controller gives it: `ttrpc+unix://PATH`.
    pub task_api_address: String,
    /// Version of the task API at that address.
    pub task_api_version: u32,
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
    pub(crate) fn new(core: &Arc<Core>, shims: Shims, snapshots: Snapshots) -> Tasks {
        Tasks {
            core: Arc::clone(core),
            shims,
            snapshots,
            table: Table::default(),
            sandboxes: SandboxShims::default(),
            exits: Exits::new(core),
        }
    }

    /// Whether shims, which have the daemon's search path, find a program of that name.
    pub fn finds_program(&self, name: &str) -> bool {
        self.core.config.search.iter().any(|directory| directory.join(name).is_file())
    }

    /// Starts the task, or with an exec id that process; gives the process id.
    ///
    /// # Errors
    /// `NotFound`; what the shim says.
    pub async fn start(&self, scope: &Scope, container_id: &str, exec_id: &str) -> Result<u32> {
        let task = self.task(scope, container_id)?;
        let entry = task.process(exec_id);
        self.watch_process(&task, exec_id);
        let request = wire::StartRequest { id: container_id.into(), exec_id: exec_id.into() };
        // Only what is to be restored has no process yet.
        let restored = exec_id.is_empty() && entry.pid.load(Ordering::SeqCst) == 0;
        let calls = task.shim.calls();
        let pid = if restored { calls.restore(request).await?.pid } else { calls.start(request).await?.pid };
        fail::fail_point!("task::after-start");
        entry.pid.store(pid, Ordering::SeqCst);
        Ok(pid)
    }

    /// Removes an ended task: at the shim, then the shim, then its bundle.
    ///
    /// # Errors
    /// `NotFound`, `FailedPrecondition` while it runs.
    pub async fn delete(&self, scope: &Scope, container_id: &str) -> Result<Exit> {
        let key = (scope.namespace.clone(), container_id.to_owned());
        let Ok(task) = self.table.get(&key) else {
            return self.table.take_buried(&key).ok_or_else(|| Error::not_found("task", container_id));
        };
        if task.is_sandbox {
            let reason = "it is a sandbox, which is shut down".to_owned();
            return Err(Error::Precondition { what: "task", name: container_id.to_owned(), reason });
        }
        let operation = self.core.ops.begin("task delete", container_id, Some(&scope.namespace), scope.deadline);
        let tasks = self.clone();
        // Runs to its end when the caller goes away: a task half deleted is nobody's.
        let deletion = tokio::spawn(async move { tasks.delete_whole(&key, &task, &operation).await });
        deletion.await.map_err(Error::task("task delete"))?
    }

    /// Removes an ended exec process.
    ///
    /// # Errors
    /// As [`Tasks::delete`].
    pub async fn delete_process(&self, scope: &Scope, container_id: &str, exec_id: &str) -> Result<Exit> {
        let task = self.task(scope, container_id)?;
        let recorded = task.known(exec_id).and_then(|entry| entry.exit());
        let answered = self.delete_at(&task, exec_id).await?;
        task.forget(exec_id);
        let exit = answered.or(recorded).ok_or_else(|| Error::not_found("process", exec_id))?;
        // One that never ran has no end to tell of.
        if exit.pid != 0 {
            self.exits.exited(name(&task, exec_id), exit);
        }
        Ok(exit)
    }

    /// The state of the task (empty `exec_id`) or of an exec process, asked of its shim.
    ///
    /// # Errors
    /// `NotFound`. A silent shim is no error: its task is `Unknown`.
    pub async fn get(&self, scope: &Scope, container_id: &str, exec_id: &str) -> Result<Process> {
        let task = self.task(scope, container_id)?;
        state(&task, exec_id).await
    }

    /// How a process ended, as far as it is known without asking its shim; none while it runs or is not known.
    pub fn exit_of(&self, scope: &Scope, container_id: &str, exec_id: &str) -> Option<Exit> {
        let key = (scope.namespace.clone(), container_id.to_owned());
        match self.table.get(&key) {
            Ok(task) => task.known(exec_id).and_then(|entry| entry.exit()),
            Err(_) => self.table.buried(&key).filter(|_| exec_id.is_empty()),
        }
    }

    /// Whether a container has a task, and its process id; asks no shim.
    pub fn pid_of(&self, scope: &Scope, container_id: &str) -> Option<u32> {
        let task = self.task(scope, container_id).ok()?;
        task.known("").map(|entry| entry.pid.load(Ordering::SeqCst))
    }

    /// The tasks of the namespace, asked of their shims at once.
    ///
    /// # Errors
    /// None at present: a silent shim gives `Unknown`.
    pub async fn list(&self, scope: &Scope) -> Result<Vec<Process>> {
        let tasks = self.table.of(&scope.namespace);
        let asked = tasks.iter().map(|task| async {
            let state = tokio::time::timeout(LIST_PATIENCE, state(task, "")).await;
            state.unwrap_or_else(|_| Ok(unheard(task, "")))
        });
        let states = join_all(asked).await;
        // One that was deleted meanwhile is none.
        Ok(states.into_iter().filter_map(Result::ok).collect())
    }

    /// For a task, or a sandbox that shows among them, that is to end: if its shim does not answer, it is given up, and
    /// the container killed and cleaned up without it; its end comes as that of a lost shim does. Whether it was so.
    pub async fn give_up_if_silent(&self, scope: &Scope, container_id: &str) -> bool {
        match self.task(scope, container_id) {
            Ok(task) => task.shim.give_up_if_silent().await,
            Err(_) => false,
        }
    }

    /// Sends a signal to the task, to an exec process, or (`all`) to every process of the container.
    ///
    /// # Errors
    /// `NotFound` for an ended process.
    pub async fn kill(&self, scope: &Scope, container_id: &str, exec_id: &str, signal: u32, all: bool) -> Result<()> {
        let (id, exec_id) = (container_id.to_owned(), exec_id.to_owned());
        let calls = self.task(scope, container_id)?.shim.calls().clone();
        if signal > LAST_SIGNAL {
            return Err(Error::invalid("signal", format!("{signal} is none: the last one is {LAST_SIGNAL}")));
        }
        match calls.kill(wire::KillRequest { id, exec_id, signal, all }).await {
            // A shim goes when its task is deleted: clients that pass signals on take this for the end that it is.
            Err(error) if error.is_lost() => Err(Error::not_found("task", container_id)),
            answer => Ok(answer?),
        }
    }

    /// Adds a process, not yet started.
    ///
    /// # Errors
    /// `AlreadyExists`, `NotFound`, `InvalidArgument`.
    pub async fn exec(&self, scope: &Scope, exec: Exec) -> Result<()> {
        exec.exec_id.parse::<Id>()?;
        let task = self.task(scope, &exec.container_id)?;
        let request = wire::ExecProcessRequest {
            id: exec.container_id,
            exec_id: exec.exec_id,
            terminal: exec.terminal,
            stdin: exec.stdin,
            stdout: exec.stdout,
            stderr: exec.stderr,
            spec: exec.spec.as_ref().map(any),
        };
        let exec_id = request.exec_id.clone();
        task.shim.calls().exec(request).await?;
        self.watch_process(&task, &exec_id);
        Ok(())
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
        let (id, exec_id) = (container_id.to_owned(), exec_id.to_owned());
        let calls = self.task(scope, container_id)?.shim.calls().clone();
        Ok(calls.resize_pty(wire::ResizePtyRequest { id, exec_id, width, height }).await?)
    }

    /// Closes the process' standard input.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn close_stdin(&self, scope: &Scope, container_id: &str, exec_id: &str) -> Result<()> {
        let (id, exec_id) = (container_id.to_owned(), exec_id.to_owned());
        let calls = self.task(scope, container_id)?.shim.calls().clone();
        Ok(calls.close_io(wire::CloseIoRequest { id, exec_id, stdin: true }).await?)
    }

    /// Freezes the task.
    ///
    /// # Errors
    /// What the shim says.
    pub async fn pause(&self, scope: &Scope, container_id: &str) -> Result<()> {
        let calls = self.task(scope, container_id)?.shim.calls().clone();
        Ok(calls.pause(wire::PauseRequest { id: container_id.to_owned() }).await?)
    }

    /// Thaws the task.
    ///
    /// # Errors
    /// What the shim says.
    pub async fn resume(&self, scope: &Scope, container_id: &str) -> Result<()> {
        let calls = self.task(scope, container_id)?.shim.calls().clone();
        Ok(calls.resume(wire::ResumeRequest { id: container_id.to_owned() }).await?)
    }

    /// All process ids in the container.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn pids(&self, scope: &Scope, container_id: &str) -> Result<Vec<ProcessInfo>> {
        let calls = self.task(scope, container_id)?.shim.calls().clone();
        let answer = calls.pids(wire::PidsRequest { id: container_id.to_owned() }).await?;
        let info = |any: prost_types::Any| Any { type_url: any.type_url, value: any.value };
        Ok(answer.processes.into_iter().map(|p| ProcessInfo { pid: p.pid, info: p.info.map(info) }).collect())
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
        let calls = self.task(scope, container_id)?.shim.calls().clone();
        let resources = resources.as_ref().map(any);
        Ok(calls.update(wire::UpdateTaskRequest { id: container_id.to_owned(), resources, annotations }).await?)
    }

    /// Resource use of the namespace's running tasks that `filter` selects (`id`, `namespace`).
    ///
    /// # Errors
    /// None at present: a task without figures is left out.
    pub async fn metrics(&self, scope: &Scope, filter: &Filter) -> Result<Vec<Metric>> {
        let tasks = self.table.of(&scope.namespace);
        let selected = tasks.iter().filter(|task| filter.matches(&TaskFields(task)));
        let read = join_all(selected.map(|task| metric(task))).await;
        Ok(read.into_iter().flatten().collect())
    }

    /// Waits for the end of the task (empty `exec_id`) or of an exec process; at once where it has ended.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn wait(&self, scope: &Scope, container_id: &str, exec_id: &str) -> Result<Exit> {
        let key = (scope.namespace.clone(), container_id.to_owned());
        let task = match self.table.get(&key) {
            Ok(task) => task,
            Err(error) if exec_id.is_empty() => return self.table.buried(&key).ok_or(error),
            Err(error) => return Err(error),
        };
        let entry = self.entry_to_wait_for(&task, exec_id).await?;
        let mut exit = entry.exit.subscribe();
        let ended = exit.wait_for(Option::is_some).await.map_err(|_| Error::Stopped { what: "task wait" })?;
        (*ended).ok_or(Error::Stopped { what: "task wait" })
    }

    /// Shows a sandbox among the tasks.
    pub(crate) fn show_sandbox(&self, key: &TaskKey, task: Arc<Task>, pid: u32) {
        task.process("").pid.store(pid, Ordering::SeqCst);
        self.table.insert(key, &task);
        self.watch_process(&task, "");
    }

    /// Takes it out again.
    pub(crate) fn hide_sandbox(&self, key: &TaskKey) {
        if self.table.get(key).is_ok_and(|task| task.is_sandbox) {
            self.table.remove(key);
        }
    }

    /// Announces the end of a task's own process.
    pub(crate) fn tell_exit(&self, task: &Task, exit: Exit) {
        self.exits.exited(name(task, ""), exit);
    }

    fn task(&self, scope: &Scope, container_id: &str) -> Result<Arc<Task>> {
        self.table.get(&(scope.namespace.clone(), container_id.to_owned()))
    }

    /// A process that is not known here may be known to the shim: a restart forgets what was executed.
    async fn entry_to_wait_for(&self, task: &Arc<Task>, exec_id: &str) -> Result<Arc<ProcessEntry>> {
        if let Some(entry) = task.known(exec_id) {
            if entry.exit().is_none() {
                self.watch_process(task, exec_id);
            }
            return Ok(entry);
        }
        let state = state(task, exec_id).await?;
        let entry = task.process(exec_id);
        entry.pid.store(state.pid, Ordering::SeqCst);
        self.watch_process(task, exec_id);
        Ok(entry)
    }

    /// Deletes at the shim, then the shim, then the bundle; then the name is free.
    async fn delete_whole(
        &self,
        key: &table::TaskKey,
        task: &Arc<Task>,
        operation: &crate::ops::Entry,
    ) -> Result<Exit> {
        let _one = task.deleting.lock().await;
        if task.retiring.load(Ordering::SeqCst) {
            return self.table.take_buried(key).ok_or_else(|| Error::not_found("task", &key.1));
        }
        operation.stage("waiting for the shim to delete the task");
        let answered = self.delete_at(task, "").await?;
        fail::fail_point!("task::after-delete");
        task.retiring.store(true, Ordering::SeqCst);
        let entry = task.process("");
        let unknown = Exit { pid: entry.pid.load(Ordering::SeqCst), status: 255, exited_at: SystemTime::now() };
        let exit = answered.or(entry.exit()).unwrap_or(unknown);
        entry.ended(exit);
        operation.stage("waiting for the shim to end");
        let retired = match answered {
            Some(_) => task.shim.retire().await,
            None => {
                task.shim.cleanup().await;
                Ok(())
            }
        };
        retired.unwrap_or_else(|error| tracing::warn!(id = key.1, %error, "bundle of a deleted task stays"));
        fail::fail_point!("task::after-bundle");
        Mounts::new(&self.core).release(&Scope::new(key.0.clone()), &key.1).await;
        self.table.remove(key);
        self.exits.deleted(name(task, ""), exit);
        Ok(exit)
    }
}

/// What the shim says about a process. One that does not answer makes it `Unknown`, or what was recorded.
async fn state(task: &Task, exec_id: &str) -> Result<Process> {
    let request = wire::StateRequest { id: task.shim.id().to_owned(), exec_id: exec_id.to_owned() };
    match task.shim.calls().state(request).await {
        Ok(state) => Ok(process(task, exec_id, state)),
        Err(error) if error.kind() == ErrorKind::NotFound => Err(error.into()),
        Err(error) => {
            tracing::warn!(id = task.shim.id(), %error, "shim does not say the state");
            Ok(unheard(task, exec_id))
        }
    }
}

fn process(task: &Task, exec_id: &str, state: wire::StateResponse) -> Process {
    let ended = state.status == WireStatus::Stopped as i32;
    if let Some(entry) = task.known(exec_id) {
        // After a restart a shim that was silent says it now.
        let _ = entry.pid.compare_exchange(0, state.pid, Ordering::SeqCst, Ordering::SeqCst);
    }
    Process {
        container_id: task.shim.id().to_owned(),
        exec_id: exec_id.to_owned(),
        pid: state.pid,
        status: status(state.status),
        stdin: state.stdin,
        stdout: state.stdout,
        stderr: state.stderr,
        terminal: state.terminal,
        exit_status: state.exit_status,
        exited_at: state.exited_at.filter(|_| ended).and_then(|t| t.try_into().ok()),
    }
}

/// A process whose shim is silent: its end, where that is known, else nothing.
fn unheard(task: &Task, exec_id: &str) -> Process {
    let entry = task.process(exec_id);
    let exit = entry.exit();
    Process {
        container_id: task.shim.id().to_owned(),
        exec_id: exec_id.to_owned(),
        pid: entry.pid.load(Ordering::SeqCst),
        status: exit.map_or(Status::Unknown, |_| Status::Stopped),
        stdin: String::new(),
        stdout: String::new(),
        stderr: String::new(),
        terminal: false,
        exit_status: exit.map_or(0, |exit| exit.status),
        exited_at: exit.map(|exit| exit.exited_at),
    }
}

fn status(status: i32) -> Status {
    match WireStatus::try_from(status) {
        Ok(WireStatus::Created) => Status::Created,
        Ok(WireStatus::Running) => Status::Running,
        Ok(WireStatus::Stopped) => Status::Stopped,
        Ok(WireStatus::Paused) => Status::Paused,
        Ok(WireStatus::Pausing) => Status::Pausing,
        _ => Status::Unknown,
    }
}

async fn metric(task: &Task) -> Option<Metric> {
    let id = task.shim.id().to_owned();
    let answer = task.shim.calls().stats(wire::StatsRequest { id: id.clone() }).await;
    let answer = answer.inspect_err(|error| tracing::debug!(id, %error, "no metrics")).ok()?;
    let data = answer.stats.map(|any| Any { type_url: any.type_url, value: any.value })?;
    Some(Metric { timestamp: SystemTime::now(), id, data })
}

struct TaskFields<'a>(&'a Task);

impl Fields for TaskFields<'_> {
    fn field(&self, path: &[&str]) -> Option<std::borrow::Cow<'_, str>> {
        match path {
            ["id"] => Some(self.0.shim.id().into()),
            ["namespace"] => Some(self.0.shim.namespace().as_str().into()),
            _ => None,
        }
    }
}
