//! Names of ingests that a writer holds, and how far it is.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use crate::Error;

/// The names that are held.
#[derive(Debug, Default)]
pub(crate) struct Locks {
    held: Mutex<HashMap<String, Held>>,
}

#[derive(Debug)]
struct Held {
    since: Instant,
    /// Bytes received and when, once the writer knows.
    progress: Option<(u64, SystemTime)>,
}

/// Holds a name until it is dropped.
#[derive(Debug)]
pub(crate) struct Guard {
    locks: Arc<Locks>,
    reference: String,
}

impl Locks {
    /// # Errors
    /// [`Error::Locked`].
    pub(crate) fn lock(self: &Arc<Locks>, reference: &str) -> Result<Guard, Error> {
        let mut held = self.held();
        if let Some(other) = held.get(reference) {
            return Err(Error::Locked { reference: reference.to_owned(), held: other.since.elapsed() });
        }
        held.insert(reference.to_owned(), Held { since: Instant::now(), progress: None });
        Ok(Guard { locks: self.clone(), reference: reference.to_owned() })
    }

    /// How far the writer of that name is, where there is one.
    pub(crate) fn progress(&self, reference: &str) -> Option<(u64, SystemTime)> {
        self.held().get(reference)?.progress
    }

    /// Tells how far the writer of that name is.
    pub(crate) fn report(&self, reference: &str, offset: u64, at: SystemTime) {
        if let Some(held) = self.held().get_mut(reference) {
            held.progress = Some((offset, at));
        }
    }

    fn held(&self) -> MutexGuard<'_, HashMap<String, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.locks.held().remove(&self.reference);
    }
}
