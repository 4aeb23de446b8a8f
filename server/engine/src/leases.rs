//! Leases: what keeps objects alive while a client is at work.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use gantry_types::{Filter, Labels, Scope};

use crate::Result;
use crate::core::{Core, select};
use crate::gc::Gc;

pub use gantry_metadata::{Lease, Resource};

/// The leases of all namespaces.
#[derive(Clone)]
pub struct Leases {
    pub(crate) core: Arc<Core>,
    pub(crate) gc: Gc,
}

impl Leases {
    /// Enters a lease; without an id one is made up.
    ///
    /// # Errors
    /// `AlreadyExists`, `InvalidArgument`.
    pub async fn create(&self, scope: &Scope, id: Option<&str>, labels: Labels) -> Result<Lease> {
        let made_up = id.is_none().then(unique);
        let id = id.or(made_up.as_deref()).unwrap_or_default();
        let lease = self.core.db.leases(&scope.namespace).create(id, labels).await?;
        if lease.labels.contains_key(gantry_types::labels::GC_EXPIRE) {
            self.core.garbage.expires();
        }
        Ok(lease)
    }

    /// Ends a lease; with `sync` what it alone kept is gone when this returns.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn delete(&self, scope: &Scope, id: &str, sync: bool) -> Result<()> {
        self.core.db.leases(&scope.namespace).delete(id).await?;
        self.gc.after_deletion(sync).await
    }

    /// The leases that `filter` selects (`id`, `labels`), by id.
    ///
    /// # Errors
    /// None at present: damaged records are passed over.
    pub async fn list(&self, scope: &Scope, filter: &Filter) -> Result<Vec<Lease>> {
        Ok(select(self.core.db.leases(&scope.namespace).scan(), filter))
    }

    /// Adds to what a lease keeps.
    ///
    /// # Errors
    /// `NotFound` without the lease, `InvalidArgument` for a name no resource can have.
    pub async fn add(&self, scope: &Scope, id: &str, resource: Resource) -> Result<()> {
        Ok(self.core.db.leases(&scope.namespace).add_resource(id, self.named(resource)).await?)
    }

    /// Takes from what a lease keeps.
    ///
    /// # Errors
    /// As [`Leases::add`].
    pub async fn remove(&self, scope: &Scope, id: &str, resource: Resource) -> Result<()> {
        self.core.db.leases(&scope.namespace).delete_resource(id, self.named(resource)).await?;
        self.core.garbage.deleted();
        Ok(())
    }

    /// What a lease keeps.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn resources(&self, scope: &Scope, id: &str) -> Result<Vec<Resource>> {
        Ok(self.core.db.leases(&scope.namespace).resources(id)?)
    }

    /// The scope itself where it has a lease; else the same under a new lease that ends after `limit`, and a guard
    /// that ends it sooner.
    pub(crate) async fn cover(&self, scope: &Scope, limit: Duration) -> Result<(Scope, Option<Cover>)> {
        if scope.lease.is_some() {
            return Ok((scope.clone(), None));
        }
        let expire = rfc3339(SystemTime::now() + limit);
        let labels = Labels::from([(gantry_types::labels::GC_EXPIRE.to_owned(), expire)]);
        let id = unique();
        let covered = Scope { lease: Some(id.clone()), ..scope.clone() };
        // Before the lease: a caller may go away while it is made.
        let mut cover = Cover { leases: self.clone(), scope: scope.clone(), id: Some(id.clone()) };
        if let Err(error) = self.create(scope, Some(&id), labels).await {
            cover.id = None;
            return Err(error);
        }
        Ok((covered, Some(cover)))
    }

    fn named(&self, resource: Resource) -> Resource {
        match resource {
            Resource::Snapshot { snapshotter, key } if snapshotter.is_empty() => {
                Resource::Snapshot { snapshotter: self.core.config.default_snapshotter.clone(), key }
            }
            other => other,
        }
    }
}

/// A temporary lease, ended by [`Cover::end`]; where its holder is dropped before, soon after.
pub(crate) struct Cover {
    leases: Leases,
    scope: Scope,
    id: Option<String>,
}

impl Cover {
    /// Ends the lease.
    pub(crate) async fn end(mut self) {
        if let Some(id) = self.id.clone() {
            end(&self.leases, &self.scope, &id).await;
        }
        // Only now: who is broken off before this ends it once more.
        self.id = None;
    }
}

impl Drop for Cover {
    fn drop(&mut self) {
        if let (Some(id), Ok(runtime)) = (self.id.take(), tokio::runtime::Handle::try_current()) {
            let (leases, scope) = (self.leases.clone(), self.scope.clone());
            runtime.spawn(async move { end(&leases, &scope, &id).await });
        }
    }
}

/// A lease that cannot be ended expires.
async fn end(leases: &Leases, scope: &Scope, id: &str) {
    if let Err(error) = leases.delete(scope, id, false).await {
        tracing::debug!(id, %error, "temporary lease not ended");
    }
}

/// An id no one has: time, process and a counter.
pub(crate) fn unique() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{}-{:x}-{count:x}", now.as_nanos(), std::process::id())
}

/// A time as labels carry it, in whole seconds.
pub(crate) fn rfc3339(time: SystemTime) -> String {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let time = prost_types::Timestamp { seconds: i64::try_from(seconds).unwrap_or(i64::MAX), nanos: 0 };
    time.to_string()
}
