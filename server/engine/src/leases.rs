//! Leases: what keeps objects alive while a client is at work.

use gantry_types::{Filter, Labels, Scope};

use crate::Result;

pub use gantry_metadata::{Lease, Resource};

/// The leases of all namespaces.
#[derive(Clone)]
pub struct Leases {}

impl Leases {
    /// Enters a lease; without an id one is made up.
    ///
    /// # Errors
    /// `AlreadyExists`, `InvalidArgument`.
    pub async fn create(&self, scope: &Scope, id: Option<&str>, labels: Labels) -> Result<Lease> {
        todo!()
    }

    /// Ends a lease; with `sync` what it alone kept is gone when this returns.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn delete(&self, scope: &Scope, id: &str, sync: bool) -> Result<()> {
        todo!()
    }

    /// The leases that `filter` selects (`id`, `labels`), by id.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub async fn list(&self, scope: &Scope, filter: &Filter) -> Result<Vec<Lease>> {
        todo!()
    }

    /// Adds to what a lease keeps.
    ///
    /// # Errors
    /// `NotFound` without the lease, `InvalidArgument` for a kind that is not one.
    pub async fn add(&self, scope: &Scope, id: &str, resource: Resource) -> Result<()> {
        todo!()
    }

    /// Takes from what a lease keeps.
    ///
    /// # Errors
    /// As [`Leases::add`].
    pub async fn remove(&self, scope: &Scope, id: &str, resource: Resource) -> Result<()> {
        todo!()
    }

    /// What a lease keeps.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn resources(&self, scope: &Scope, id: &str) -> Result<Vec<Resource>> {
        todo!()
    }
}
