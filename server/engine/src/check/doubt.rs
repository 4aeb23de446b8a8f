//! Snapshots of which it is not known, or known to be wrong, what they hold.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::{Error, Result};

/// Longest wait for a check where the caller sets no deadline.
const PATIENCE: Duration = Duration::from_secs(120);

/// By snapshotter and internal key.
type Name = (String, String);

#[derive(Default)]
struct State {
    unchecked: HashSet<Name>,
    broken: HashMap<Name, String>,
}

/// See the module.
pub(crate) struct Doubt {
    state: Mutex<State>,
    changed: watch::Sender<()>,
    settled: AtomicBool,
}

impl Default for Doubt {
    fn default() -> Doubt {
        Doubt { state: Mutex::default(), changed: watch::Sender::new(()), settled: AtomicBool::new(false) }
    }
}

impl Doubt {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These are to be checked.
    pub(super) fn enter(&self, names: impl Iterator<Item = Name>) {
        self.state().unchecked.extend(names);
    }

    /// Checked, or mended: it is well.
    pub(super) fn is_well(&self, snapshotter: &str, internal: &str) {
        let name = (snapshotter.to_owned(), internal.to_owned());
        let mut state = self.state();
        state.unchecked.remove(&name);
        state.broken.remove(&name);
        drop(state);
        self.changed.send_replace(());
    }

    pub(super) fn is_broken(&self, snapshotter: &str, internal: &str, problem: &str) {
        let name = (snapshotter.to_owned(), internal.to_owned());
        let mut state = self.state();
        state.unchecked.remove(&name);
        state.broken.insert(name, problem.to_owned());
        drop(state);
        self.changed.send_replace(());
    }

    /// Nobody will check what is left.
    pub(super) fn end_waiting(&self) {
        self.state().unchecked.clear();
        self.changed.send_replace(());
    }

    /// Everything that was there at the start is well.
    pub(super) fn settle(&self) {
        self.settled.store(true, Ordering::SeqCst);
    }

    /// Whether that is so, and nothing broken was found since.
    pub(super) fn is_settled(&self) -> bool {
        let state = self.state();
        self.settled.load(Ordering::SeqCst) && state.unchecked.is_empty() && state.broken.is_empty()
    }

    /// Whether nothing is in doubt: the usual case.
    pub(crate) fn is_empty(&self) -> bool {
        let state = self.state();
        state.unchecked.is_empty() && state.broken.is_empty()
    }

    /// What is wrong with a snapshot, once it is checked.
    ///
    /// # Errors
    /// `DeadlineExceeded` where it is not checked in time.
    pub(crate) async fn verdict(&self, name: &Name, deadline: Option<Instant>) -> Result<Option<String>> {
        let mut changes = self.changed.subscribe();
        let until = deadline.unwrap_or_else(|| Instant::now() + PATIENCE);
        loop {
            {
                let state = self.state();
                if !state.unchecked.contains(name) {
                    return Ok(state.broken.get(name).cloned());
                }
            }
            let changed = tokio::time::timeout_at(until.into(), changes.changed()).await;
            if changed.is_err() {
                return Err(Error::Deadline { what: "checking a snapshot after a stop that was not clean" });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(key: &str) -> Name {
        ("overlayfs".into(), key.into())
    }

    #[tokio::test]
    async fn who_asks_waits_for_the_verdict_and_no_longer_than_its_deadline() {
        let doubt = Doubt::default();
        doubt.enter([name("a"), name("b")].into_iter());
        let soon = Instant::now() + Duration::from_millis(20);
        assert!(doubt.verdict(&name("a"), Some(soon)).await.is_err());
        let a = name("a");
        let (waited, ()) = tokio::join!(doubt.verdict(&a, None), async {
            doubt.is_broken("overlayfs", "a", "is torn");
        });
        assert_eq!(waited.unwrap().as_deref(), Some("is torn"));
        doubt.is_well("overlayfs", "b");
        assert_eq!(doubt.verdict(&name("b"), None).await.unwrap(), None);
        doubt.settle();
        assert!(!doubt.is_settled(), "something is broken");
        doubt.is_well("overlayfs", "a");
        assert!(doubt.is_settled() && doubt.is_empty());
    }
}
