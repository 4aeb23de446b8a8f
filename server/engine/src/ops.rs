//! What runs right now: every long operation with its stage, since when, and what it waits for.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use gantry_types::Namespace;

/// A running operation, as it was when listed.
#[derive(Clone, Debug)]
pub struct Operation {
    /// Number of the operation, unique since the engine was opened.
    pub id: u64,
    /// What is done: `pull`, `task create`, `gc`, …
    pub what: &'static str,
    /// To which object.
    pub object: String,
    /// In which namespace; none for what concerns all.
    pub namespace: Option<Namespace>,
    /// The present stage and what it waits for.
    pub stage: String,
    /// When the operation began.
    pub started: SystemTime,
    /// When the stage began.
    pub stage_since: Instant,
    /// When the operation gives up; none where it has no limit of its own.
    pub deadline: Option<Instant>,
}

/// The running operations. Clones share the list.
#[derive(Clone, Default)]
pub struct Ops(Arc<Mutex<Running>>);

#[derive(Default)]
struct Running {
    last: u64,
    by_id: BTreeMap<u64, Operation>,
}

impl Ops {
    /// All that runs, oldest first.
    pub fn list(&self) -> Vec<Operation> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).by_id.values().cloned().collect()
    }

    /// Enters an operation; it is listed until the returned guard is dropped.
    pub fn begin(
        &self,
        what: &'static str,
        object: impl Into<String>,
        namespace: Option<&Namespace>,
        deadline: Option<Instant>,
    ) -> Entry {
        let mut running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        running.last += 1;
        let id = running.last;
        let operation = Operation {
            id,
            what,
            object: object.into(),
            namespace: namespace.cloned(),
            stage: "started".into(),
            started: SystemTime::now(),
            stage_since: Instant::now(),
            deadline,
        };
        running.by_id.insert(id, operation);
        Entry { ops: self.clone(), id }
    }
}

/// Keeps an operation in the list.
pub struct Entry {
    ops: Ops,
    id: u64,
}

impl Entry {
    /// Says what the operation does now, and what it waits for.
    pub fn stage(&self, stage: impl Into<String>) {
        let mut running = self.ops.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(operation) = running.by_id.get_mut(&self.id) {
            operation.stage = stage.into();
            operation.stage_since = Instant::now();
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.ops.0.lock().unwrap_or_else(PoisonError::into_inner).by_id.remove(&self.id);
    }
}
