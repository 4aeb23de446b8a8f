//! One at a time for each key: who comes second waits, and then finds the work done.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::OwnedMutexGuard;

/// Locks by key. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct Keyed(Arc<Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>>);

impl Keyed {
    /// Waits for the key's turn. The guard ends it.
    pub(crate) async fn lock(&self, key: &str) -> OwnedMutexGuard<()> {
        self.mutex(key).lock_owned().await
    }

    /// The key's turn where nobody has it.
    pub(crate) fn try_lock(&self, key: &str) -> Option<OwnedMutexGuard<()>> {
        self.mutex(key).try_lock_owned().ok()
    }

    fn mutex(&self, key: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut keys = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mutex) = keys.get(key).and_then(Weak::upgrade) {
            return mutex;
        }
        keys.retain(|_, mutex| mutex.strong_count() > 0);
        let mutex = Arc::default();
        keys.insert(key.to_owned(), Arc::downgrade(&mutex));
        mutex
    }
}
