//! One at a time for each pod.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::OwnedMutexGuard;

/// Locks by key. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Keyed(Arc<Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>>);

impl Keyed {
    /// Waits for the key's turn. The guard ends it.
    pub(super) async fn lock(&self, key: &str) -> OwnedMutexGuard<()> {
        let mutex = {
            let mut keys = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            keys.retain(|_, mutex| mutex.strong_count() > 0);
            let mutex = keys.get(key).and_then(Weak::upgrade).unwrap_or_default();
            keys.insert(key.to_owned(), Arc::downgrade(&mutex));
            mutex
        };
        mutex.lock_owned().await
    }
}
