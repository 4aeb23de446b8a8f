//! Garbage collection: what nothing keeps goes, first from the records, then from the disk.

use crate::Result;

/// What a collection removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Blobs.
    pub blobs: u64,
    /// Snapshots.
    pub snapshots: u64,
    /// Expired leases.
    pub leases: u64,
    /// Ingests.
    pub ingests: u64,
}

/// The collector.
#[derive(Clone)]
pub struct Gc {}

impl Gc {
    /// Asks for a collection soon; gives at once.
    pub fn schedule(&self) {
        todo!()
    }

    /// Collects now; gives when what nothing keeps is gone. Joins a run that has not begun.
    ///
    /// # Errors
    /// When the records cannot be read. What cannot be deleted now is deleted by a later run.
    pub async fn collect(&self) -> Result<Collected> {
        todo!()
    }
}
