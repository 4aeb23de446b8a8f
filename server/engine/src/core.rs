//! What all parts of the engine share.

use std::collections::BTreeMap;
use std::sync::Arc;

use gantry_content::Store;
use gantry_metadata::{Db, Scan, Viewed};
use gantry_plugins::{RemoteDiffer, RemoteSandboxer};
use gantry_registry::Registry;
use gantry_snapshots::Snapshotter;
use gantry_types::{Any, Fields, Filter, Namespace, Scope};
use prost::{Message, Name};
use tokio::sync::{OwnedSemaphorePermit, RwLock, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::check::Doubt;
use crate::events::Events;
use crate::gc::Garbage;
use crate::keyed::Keyed;
use crate::live::Live;
use crate::ops::Ops;
use crate::{Config, Error, Result};

/// The parts beneath the engine.
pub(crate) struct Core {
    pub(crate) config: Config,
    pub(crate) db: Db,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) snapshotters: BTreeMap<String, Arc<dyn Snapshotter>>,
    /// Differs of other processes.
    pub(crate) differs: BTreeMap<String, RemoteDiffer>,
    /// Sandbox controllers of other processes.
    pub(crate) sandboxers: BTreeMap<String, RemoteSandboxer>,
    pub(crate) registry: Live<Registry>,
    pub(crate) events: Events,
    pub(crate) ops: Ops,
    /// Held for reading while mounts and their record are joined, for writing while a collection takes them apart.
    pub(crate) joint: RwLock<()>,
    /// One joining of bytes and record of a digest at a time, so that a failed one can take its bytes back, and a collection
    /// never takes the bytes of one under way.
    pub(crate) joining: Keyed,
    /// One change of a mount activation's name at a time.
    pub(crate) activating: Keyed,
    /// Asks for collections.
    pub(crate) garbage: Garbage,
    /// What may not be built on.
    pub(crate) doubt: Doubt,
    /// Bounds the layers unpacked at once.
    pub(crate) unpacking: Live<Workers>,
    /// Ends what runs in the background.
    pub(crate) stop: CancellationToken,
}

impl Core {
    /// Puts an event into the log, its type named as containerd names it.
    pub(crate) fn emit<M: Message + Name>(&self, namespace: &Namespace, topic: &str, event: &M) {
        let event = Any { type_url: M::full_name(), value: event.encode_to_vec() };
        if let Err(error) = self.events.publish(namespace, topic, event) {
            tracing::error!(%error, "an event of our own has a bad topic");
        }
    }

    /// The snapshotter of that name, and its name; the default one for an empty name.
    pub(crate) fn snapshotter<'a>(&'a self, name: &'a str) -> Result<(&'a str, &'a Arc<dyn Snapshotter>)> {
        let name = if name.is_empty() { self.config.default_snapshotter.as_str() } else { name };
        let found = self.snapshotters.get(name);
        let snapshotter = found.ok_or_else(|| Error::invalid("snapshotter", format!("there is no {name:?}")))?;
        Ok((name, snapshotter))
    }
}

/// So many at once, over all calls.
#[derive(Clone)]
pub(crate) struct Workers {
    pub(crate) most: usize,
    places: Arc<Semaphore>,
}

impl Workers {
    pub(crate) fn new(most: usize) -> Workers {
        let most = most.max(1);
        Workers { most, places: Arc::new(Semaphore::new(most)) }
    }

    /// A place as soon as there is one.
    pub(crate) async fn enter(self) -> Result<OwnedSemaphorePermit> {
        self.places.acquire_owned().await.map_err(|_| Error::Stopped { what: "unpack" })
    }

    /// A place, if there is one now.
    pub(crate) fn try_enter(self) -> Option<OwnedSemaphorePermit> {
        self.places.try_acquire_owned().ok()
    }
}

/// The lease of a call, as the records take it.
pub(crate) fn lease(scope: &Scope) -> Option<&str> {
    scope.lease.as_deref()
}

/// The records that a filter selects, shown one by one as they are stored. A damaged one is named in the log and passed over.
pub struct Listing<R> {
    scan: Scan<R>,
    filter: Filter,
}

impl<R: Viewed> Listing<R> {
    pub(crate) fn new(scan: Scan<R>, filter: Filter) -> Listing<R> {
        Listing { scan, filter }
    }

    /// Shows the next one; none at the end.
    pub fn see<T>(&mut self, see: impl FnOnce(R::View<'_>) -> T) -> Option<T> {
        let Listing { scan, filter } = self;
        let mut see = Some(see);
        let mut selected = |view: R::View<'_>| filter.matches(&view).then(|| see.take().map(|see| see(view))).flatten();
        loop {
            match scan.see(&mut selected)? {
                Ok(Some(seen)) => return Some(seen),
                Ok(None) => {}
                Err(error) => tracing::warn!(%error, "record skipped"),
            }
        }
    }
}

/// The records that `filter` selects. A damaged one is named in the log and passed over.
pub(crate) fn select<R: Fields>(
    scan: impl Iterator<Item = std::result::Result<R, gantry_metadata::Error>>,
    filter: &Filter,
) -> Vec<R> {
    let healthy = scan.filter_map(|record| record.inspect_err(|error| tracing::warn!(%error, "record skipped")).ok());
    healthy.filter(|record| filter.matches(record)).collect()
}
