//! Which tasks there are: one entry a container, from the moment its creation begins.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use gantry_shims::Shim;
use gantry_types::Namespace;
use tokio::sync::watch;

use super::Exit;
use crate::{Error, Result};

/// Namespace and container.
pub(crate) type TaskKey = (Namespace, String);

/// How many ended tasks of lost shims are remembered, so that who waits for them still learns their exit.
const REMEMBERED: usize = 1024;

/// The tasks of all namespaces.
#[derive(Clone, Default)]
pub(crate) struct Table(Arc<Mutex<Slots>>);

#[derive(Default)]
struct Slots {
    live: HashMap<TaskKey, Slot>,
    lost: HashMap<TaskKey, Exit>,
}

enum Slot {
    Creating(Creation),
    Live(Arc<Task>),
}

/// A task with a shim.
pub(crate) struct Task {
    pub(crate) shim: Shim,
    /// Set before the shim is told to end, so that its going is not taken for a loss.
    pub(crate) retiring: AtomicBool,
    /// One deletion at a time.
    pub(crate) deleting: tokio::sync::Mutex<()>,
    /// A sandbox that shows among the tasks: its controller makes it and takes it away.
    pub(crate) is_sandbox: bool,
    processes: Mutex<HashMap<String, Arc<ProcessEntry>>>,
}

/// A process of a task.
pub(crate) struct ProcessEntry {
    /// When the entry was made.
    made: SystemTime,
    /// 0 until it is known.
    pub(crate) pid: AtomicU32,
    /// How it ended, once it has.
    pub(crate) exit: watch::Sender<Option<Exit>>,
    /// Whether somebody waits at the shim for it.
    pub(crate) watched: AtomicBool,
}

/// A creation under way.
#[derive(Clone)]
pub(crate) struct Creation {
    outcome: watch::Receiver<Option<Outcome>>,
    claimed: Arc<AtomicBool>,
}

/// How a creation ended.
pub(crate) type Outcome = std::result::Result<u32, Arc<Error>>;

/// What a caller who wants to create finds.
pub(crate) enum Entry {
    /// Nobody was there: this caller creates, and tells the outcome by the sender.
    Vacant(watch::Sender<Option<Outcome>>, Creation),
    /// A creation is under way.
    Creating(Creation),
}

impl Creation {
    /// Whether somebody has got the pid.
    pub(crate) fn claim(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.claimed)
    }

    /// Waits for the end. The first to learn of a success gets the pid; to all others the task already exists.
    pub(crate) async fn outcome(mut self, id: &str) -> Result<u32> {
        let ended = self.outcome.wait_for(Option::is_some).await.ok().and_then(|outcome| outcome.clone());
        match ended {
            Some(Ok(pid)) if !self.claimed.swap(true, Ordering::SeqCst) => Ok(pid),
            Some(Ok(_)) => Err(Error::AlreadyExists { what: "task", name: id.to_owned() }),
            Some(Err(error)) => Err(Error::Joined(error)),
            None => Err(Error::Stopped { what: "task create" }),
        }
    }
}

impl Table {
    /// Enters a creation, or finds the one under way.
    pub(crate) fn enter(&self, key: &TaskKey) -> Result<Entry> {
        let mut slots = self.lock();
        match slots.live.get(key) {
            Some(Slot::Live(_)) => Err(Error::AlreadyExists { what: "task", name: key.1.clone() }),
            Some(Slot::Creating(creation)) => Ok(Entry::Creating(creation.clone())),
            None => {
                let (sender, outcome) = watch::channel(None);
                let creation = Creation { outcome, claimed: Arc::default() };
                slots.live.insert(key.clone(), Slot::Creating(creation.clone()));
                slots.lost.remove(key);
                Ok(Entry::Vacant(sender, creation))
            }
        }
    }

    /// Puts a task in the place of its creation.
    pub(crate) fn insert(&self, key: &TaskKey, task: &Arc<Task>) {
        self.lock().live.insert(key.clone(), Slot::Live(Arc::clone(task)));
    }

    /// Takes a creation that failed, or a task, out.
    pub(crate) fn remove(&self, key: &TaskKey) {
        self.lock().live.remove(key);
    }

    /// Takes a task out whose shim was lost. Its exit is remembered.
    pub(crate) fn bury(&self, key: &TaskKey, exit: Exit) {
        let mut slots = self.lock();
        slots.live.remove(key);
        let any = slots.lost.keys().next().filter(|_| slots.lost.len() >= REMEMBERED).cloned();
        if let Some(any) = any {
            slots.lost.remove(&any);
        }
        slots.lost.insert(key.clone(), exit);
    }

    /// The exit of a task whose shim was lost.
    pub(crate) fn buried(&self, key: &TaskKey) -> Option<Exit> {
        self.lock().lost.get(key).copied()
    }

    /// The same, which nobody will ask for again.
    pub(crate) fn take_buried(&self, key: &TaskKey) -> Option<Exit> {
        self.lock().lost.remove(key)
    }

    /// A task that has been created.
    pub(crate) fn get(&self, key: &TaskKey) -> Result<Arc<Task>> {
        match self.lock().live.get(key) {
            Some(Slot::Live(task)) => Ok(Arc::clone(task)),
            _ => Err(Error::not_found("task", &key.1)),
        }
    }

    /// The tasks of a namespace, by id.
    pub(crate) fn of(&self, namespace: &Namespace) -> Vec<Arc<Task>> {
        let slots = self.lock();
        let live = slots.live.iter().filter(|((of, _), _)| of == namespace);
        let mut tasks: Vec<_> = live
            .filter_map(|(_, slot)| match slot {
                Slot::Live(task) => Some(Arc::clone(task)),
                Slot::Creating(_) => None,
            })
            .collect();
        tasks.sort_by(|a, b| a.shim.id().cmp(b.shim.id()));
        tasks
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Slots> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Task {
    pub(crate) fn new(shim: Shim) -> Arc<Task> {
        Arc::new(Task::plain(shim))
    }

    /// What shows of a sandbox.
    pub(crate) fn of_sandbox(shim: Shim) -> Arc<Task> {
        Arc::new(Task { is_sandbox: true, ..Task::plain(shim) })
    }

    fn plain(shim: Shim) -> Task {
        let (retiring, deleting, processes) = (AtomicBool::new(false), tokio::sync::Mutex::default(), Mutex::default());
        Task { shim, retiring, deleting, is_sandbox: false, processes }
    }

    /// The entry of a process, made where there is none; empty for the task's own.
    pub(crate) fn process(&self, exec_id: &str) -> Arc<ProcessEntry> {
        let mut processes = self.processes.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(processes.entry(exec_id.to_owned()).or_default())
    }

    /// The same, without making one.
    pub(crate) fn known(&self, exec_id: &str) -> Option<Arc<ProcessEntry>> {
        self.processes.lock().unwrap_or_else(PoisonError::into_inner).get(exec_id).cloned()
    }

    /// Forgets a process.
    pub(crate) fn forget(&self, exec_id: &str) {
        self.processes.lock().unwrap_or_else(PoisonError::into_inner).remove(exec_id);
    }

    /// All processes that have not ended, by exec id.
    pub(crate) fn unfinished(&self) -> Vec<(String, Arc<ProcessEntry>)> {
        let processes = self.processes.lock().unwrap_or_else(PoisonError::into_inner);
        let open = processes.iter().filter(|(_, entry)| entry.exit.borrow().is_none());
        open.map(|(id, entry)| (id.clone(), Arc::clone(entry))).collect()
    }
}

impl Default for ProcessEntry {
    fn default() -> ProcessEntry {
        ProcessEntry {
            made: SystemTime::now(),
            pid: AtomicU32::default(),
            exit: watch::Sender::default(),
            watched: AtomicBool::default(),
        }
    }
}

impl ProcessEntry {
    /// Whether an end that was reported can be this process's, and not that of an earlier one of its name. The task's own
    /// may have ended before its entry was made, while no daemon ran.
    pub(crate) fn can_have(&self, exit: Exit, own: bool) -> bool {
        match self.pid.load(Ordering::SeqCst) {
            0 => own || exit.exited_at >= self.made,
            pid => pid == exit.pid,
        }
    }

    /// Records the end, unless it is recorded.
    pub(crate) fn ended(&self, exit: Exit) {
        self.exit.send_if_modified(|recorded| {
            let first = recorded.is_none();
            if first {
                *recorded = Some(exit);
            }
            first
        });
    }

    /// The recorded end.
    pub(crate) fn exit(&self) -> Option<Exit> {
        *self.exit.borrow()
    }
}
