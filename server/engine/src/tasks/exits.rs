//! Exits, each told once: whichever of event, answer to Wait, answer to Delete or lost connection comes first.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use gantry_ttrpc::pb::containerd::events::{TaskDelete, TaskExit};
use gantry_types::Namespace;

use super::Exit;
use crate::core::Core;

/// How many announcements are remembered to keep from repeating one.
const REMEMBERED: usize = 8192;

/// Announces ends of processes.
#[derive(Clone)]
pub(crate) struct Exits {
    core: Arc<Core>,
    told: Arc<Mutex<Told>>,
}

#[derive(Default)]
struct Told {
    set: HashSet<Key>,
    order: VecDeque<Key>,
}

/// What is announced: topic, namespace, container, process, pid.
type Key = (&'static str, Namespace, String, String, u32);

/// A process, by names; the task's own process has the container's id.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Name<'a> {
    pub(crate) namespace: &'a Namespace,
    pub(crate) container: &'a str,
    /// Empty for the task's own process.
    pub(crate) exec: &'a str,
}

impl Name<'_> {
    /// The process' id in events.
    fn process(&self) -> String {
        if self.exec.is_empty() { self.container.to_owned() } else { self.exec.to_owned() }
    }
}

impl Exits {
    pub(crate) fn new(core: &Arc<Core>) -> Exits {
        Exits { core: Arc::clone(core), told: Arc::default() }
    }

    /// Announces `/tasks/exit`, unless that was done.
    pub(crate) fn exited(&self, name: Name<'_>, exit: Exit) {
        if !self.first("exit", name, exit.pid) {
            return;
        }
        let event = TaskExit {
            container_id: name.container.to_owned(),
            id: name.process(),
            pid: exit.pid,
            exit_status: exit.status,
            exited_at: Some(exit.exited_at.into()),
        };
        self.core.emit(name.namespace, "/tasks/exit", &event);
    }

    /// Announces `/tasks/delete` of a task, and its exit before that, unless they were.
    pub(crate) fn deleted(&self, name: Name<'_>, exit: Exit) {
        self.exited(name, exit);
        if !self.first("delete", name, exit.pid) {
            return;
        }
        let event = TaskDelete {
            container_id: name.container.to_owned(),
            pid: exit.pid,
            exit_status: exit.status,
            exited_at: Some(exit.exited_at.into()),
            id: String::new(),
        };
        self.core.emit(name.namespace, "/tasks/delete", &event);
    }

    /// Whether this is said for the first time.
    pub(crate) fn first(&self, topic: &'static str, name: Name<'_>, pid: u32) -> bool {
        let key = (topic, name.namespace.clone(), name.container.to_owned(), name.process(), pid);
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if !told.set.insert(key.clone()) {
            return false;
        }
        told.order.push_back(key);
        let forgotten = if told.order.len() > REMEMBERED { told.order.pop_front() } else { None };
        if let Some(oldest) = forgotten {
            told.set.remove(&oldest);
        }
        true
    }

    /// A new process has these names and this pid: what was said about an earlier one does not count.
    pub(crate) fn forget(&self, name: Name<'_>, pid: u32) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        for topic in ["exit", "delete"] {
            told.set.remove(&(topic, name.namespace.clone(), name.container.to_owned(), name.process(), pid));
        }
    }
}

/// A time as a shim reports it; now where it reports none.
pub(crate) fn time_of(timestamp: Option<prost_types::Timestamp>) -> SystemTime {
    timestamp.and_then(|t| SystemTime::try_from(t).ok()).unwrap_or_else(SystemTime::now)
}
