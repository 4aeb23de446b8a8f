//! Files go to the disk while layers are still being unpacked: the sync at the end, which a pull waits for, then finds
//! little to do, and what it takes of the processors is taken while a thread or two of the unpacking wait anyway.

use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use gantry_layer::Control;
use gantry_snapshots::Snapshotter;
use tokio::sync::Notify;

/// Between two looks at how far the unpacking is.
const LOOK: Duration = Duration::from_millis(100);
/// What is worth a sync: so many bytes of tar, or entries. A pull that comes slowly is not to have a busy disk.
const BYTES: u64 = 32 << 20;
const ENTRIES: u64 = 4096;

/// How far layers are that are unpacked together.
pub(super) struct Ahead {
    watched: Mutex<Vec<Arc<Control>>>,
    /// Layers that are not unpacked yet.
    left: AtomicUsize,
    all_filled: Notify,
}

impl Ahead {
    /// Of so many layers.
    pub(super) fn new(layers: usize) -> Ahead {
        Ahead { watched: Mutex::default(), left: AtomicUsize::new(layers), all_filled: Notify::new() }
    }

    /// One of the layers is unpacked: behind the last there is a sync while they are counted and committed.
    pub(super) fn filled(&self) {
        if self.left.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.all_filled.notify_one();
        }
    }

    /// What one more layer is to tell how far it is.
    pub(super) fn watched(&self) -> Arc<Control> {
        let control = Arc::default();
        self.watched.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&control));
        control
    }

    /// Bytes of tar and entries until now.
    fn done(&self) -> (u64, u64) {
        let layers = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        layers.iter().fold((0, 0), |(bytes, entries), layer| (bytes + layer.bytes(), entries + layer.entries()))
    }

    /// Syncs time and again, and once more behind the last layer, whether or not a sync is still under way; ends only by
    /// being dropped.
    pub(super) async fn run(&self, driver: &dyn Snapshotter) -> Infallible {
        let last = async {
            self.all_filled.notified().await;
            if self.done() != (0, 0) {
                sync(driver).await;
            }
            std::future::pending().await
        };
        tokio::select! {
            never = self.meanwhile(driver) => never,
            never = last => never,
        }
    }

    async fn meanwhile(&self, driver: &dyn Snapshotter) -> Infallible {
        let mut synced = (0, 0);
        loop {
            tokio::time::sleep(LOOK).await;
            let done = self.done();
            if done.0 - synced.0 >= BYTES || done.1 - synced.1 >= ENTRIES {
                synced = done;
                sync(driver).await;
            }
        }
    }
}

async fn sync(driver: &dyn Snapshotter) {
    if let Err(error) = driver.sync_ahead().await {
        // What it means for the image, the sync at the end tells.
        tracing::debug!(%error, "files did not go to the disk ahead of the end");
    }
}
