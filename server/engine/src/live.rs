//! A value that is exchanged while it is in use: who holds the former one goes on with it, who asks anew gets the new.

use std::sync::{PoisonError, RwLock};

/// The one owner of such a value, which is cheap to clone.
pub(crate) struct Live<T>(RwLock<T>);

impl<T: Clone> Live<T> {
    pub(crate) fn new(value: T) -> Live<T> {
        Live(RwLock::new(value))
    }

    /// The value that holds now.
    pub(crate) fn get(&self) -> T {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Exchanges it.
    pub(crate) fn set(&self, value: T) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = value;
    }
}
