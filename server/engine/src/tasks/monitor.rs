//! Watching over tasks: their ends, and the loss of their shims; and taking in what shims report.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use gantry_shims::{Cleanup, Forwarded};
use gantry_ttrpc::pb::containerd::events::{TaskDelete, TaskExit};
use gantry_ttrpc::pb::containerd::task::v3::{WaitRequest, WaitResponse};
use gantry_types::Namespace;
use prost::Message;

use super::exits::{Name, time_of};
use super::table::{ProcessEntry, Task};
use super::{Exit, Tasks};

/// How long a shim's own exit event is waited for, once Wait has told of the exit.
const EVENT_GRACE: Duration = Duration::from_millis(500);

impl Tasks {
    /// Watches the task's own process and its connection, for as long as the task lives.
    pub(crate) fn watch_over(&self, task: &Arc<Task>) {
        self.watch_process(task, "");
        let (tasks, task) = (self.clone(), Arc::clone(task));
        tokio::spawn(async move {
            tokio::select! {
                () = tasks.core.stop.cancelled() => {}
                () = task.shim.closed() => tasks.lost(&task).await,
            }
        });
    }

    /// Waits at the shim for the end of a process, once for all who ask here.
    pub(crate) fn watch_process(&self, task: &Arc<Task>, exec_id: &str) {
        let entry = task.process(exec_id);
        if entry.watched.swap(true, Ordering::SeqCst) {
            return;
        }
        let (tasks, task, exec_id) = (self.clone(), Arc::clone(task), exec_id.to_owned());
        tokio::spawn(async move {
            let request = WaitRequest { id: task.shim.id().to_owned(), exec_id: exec_id.clone() };
            let waiting = task.shim.calls().wait(request);
            let Some(waited) = tasks.core.stop.run_until_cancelled(waiting).await else { return };
            match waited {
                Ok(answer) => tasks.waited(&task, &exec_id, &entry, answer).await,
                // An event, or the loss of the connection, tells; or the next who asks waits anew.
                Err(_) => entry.watched.store(false, Ordering::SeqCst),
            }
        });
    }

    async fn waited(&self, task: &Task, exec_id: &str, entry: &ProcessEntry, answer: WaitResponse) {
        let (status, exited_at) = (answer.exit_status, time_of(answer.exited_at));
        entry.ended(Exit { pid: entry.pid.load(Ordering::SeqCst), status, exited_at });
        tokio::time::sleep(EVENT_GRACE).await;
        // Without a pid nobody could tell this exit from another's.
        let pid = entry.pid.load(Ordering::SeqCst);
        if pid != 0 && !task.is_sandbox {
            self.exits.exited(name(task, exec_id), Exit { pid, status, exited_at });
        }
    }

    /// The shim is gone and was not asked to go.
    async fn lost(&self, task: &Task) {
        if task.retiring.load(Ordering::SeqCst) {
            return;
        }
        let _one = task.deleting.lock().await;
        if task.retiring.swap(true, Ordering::SeqCst) {
            return;
        }
        let (namespace, id) = (task.shim.namespace(), task.shim.id());
        tracing::warn!(%namespace, id, "shim was lost");
        let operation = self.core.ops.begin("shim cleanup", id, Some(namespace), None);
        operation.stage("running the shim's delete");
        let cleanup = task.shim.cleanup().await;
        for (exec_id, entry) in task.unfinished() {
            let pid = entry.pid.load(Ordering::SeqCst);
            let exit = exit_of(cleanup, pid, exec_id.is_empty());
            entry.ended(exit);
            if pid != 0 {
                self.exits.exited(name(task, &exec_id), exit);
            }
        }
        let exit = task.process("").exit().unwrap_or_else(|| exit_of(cleanup, 0, true));
        self.table.bury(&(namespace.clone(), id.to_owned()), exit);
        self.exits.deleted(name(task, ""), exit);
    }

    /// A restart found that the shim had gone meanwhile.
    pub(crate) fn found_gone(&self, namespace: &Namespace, id: &str, cleanup: Cleanup) {
        let exit = exit_of(cleanup, cleanup.pid, true);
        self.table.bury(&(namespace.clone(), id.to_owned()), exit);
        self.exits.deleted(Name { namespace, container: id, exec: "" }, exit);
    }

    /// Takes in an event of a shim: ends are recorded, what was told already is dropped, all others go on as they are.
    pub(crate) fn take_in(&self, forwarded: Forwarded) {
        let known = match forwarded.topic.as_str() {
            "/tasks/exit" => self.exit_reported(&forwarded),
            "/tasks/delete" => delete_reported(&forwarded),
            _ => false,
        };
        if known {
            return;
        }
        let Forwarded { namespace, topic, event, timestamp } = forwarded;
        if let Err(error) = self.core.events.forward(&namespace, &topic, event, timestamp) {
            tracing::warn!(%namespace, %error, "a shim's event is dropped");
        }
    }

    /// Whether this exit was told before.
    fn exit_reported(&self, forwarded: &Forwarded) -> bool {
        let Ok(event) = TaskExit::decode(forwarded.event.value.as_slice()) else { return false };
        let exec = if event.id == event.container_id { "" } else { event.id.as_str() };
        let exit = Exit { pid: event.pid, status: event.exit_status, exited_at: time_of(event.exited_at) };
        if let Ok(task) = self.table.get(&(forwarded.namespace.clone(), event.container_id.clone())) {
            // One that was deleted meanwhile must not come back: its name may be another's soon.
            if let Some(entry) = task.known(exec).filter(|entry| entry.can_have(exit, exec.is_empty())) {
                entry.ended(exit);
            }
        }
        let name = Name { namespace: &forwarded.namespace, container: &event.container_id, exec };
        !self.exits.first("exit", name, event.pid)
    }
}

/// A task's deletion is announced by us when it is done, not by its shim; an exec's is the shim's to tell.
fn delete_reported(forwarded: &Forwarded) -> bool {
    let Ok(event) = TaskDelete::decode(forwarded.event.value.as_slice()) else { return false };
    event.id.is_empty() || event.id == event.container_id
}

pub(crate) fn name<'a>(task: &'a Task, exec: &'a str) -> Name<'a> {
    Name { namespace: task.shim.namespace(), container: task.shim.id(), exec }
}

/// The verb knows about the task's own process alone.
fn exit_of(cleanup: Cleanup, pid: u32, own: bool) -> Exit {
    let pid = if pid == 0 { cleanup.pid } else { pid };
    Exit { pid, status: if own { cleanup.status } else { 255 }, exited_at: cleanup.exited_at }
}
