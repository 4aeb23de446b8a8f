//! Layers from and to mounts, as containerd's diff service offers them.

use std::collections::BTreeMap;
use std::time::SystemTime;

use gantry_types::{Any, Descriptor, Labels, Mount, Scope};

use crate::Result;

/// Applying and making layers.
#[derive(Clone)]
pub struct Diff {}

/// How to make a layer.
#[derive(Clone, Debug, Default)]
pub struct DiffOptions {
    /// Media type of the layer; empty: OCI gzip.
    pub media_type: String,
    /// Name of the ingest; empty: made up.
    pub reference: String,
    /// Labels of the blob.
    pub labels: Labels,
    /// Latest time an entry may carry; later ones are set back to it.
    pub source_date_epoch: Option<SystemTime>,
}

impl Diff {
    /// Unpacks a layer blob into the directory that `mounts` show; gives the descriptor of the uncompressed tar.
    /// `sync`: the file system is synced before this returns.
    ///
    /// # Errors
    /// `NotFound` without the blob; `Unknown` for a media type that cannot be unpacked.
    pub async fn apply(
        &self,
        scope: &Scope,
        layer: &Descriptor,
        mounts: &[Mount],
        payloads: &BTreeMap<String, Any>,
        sync: bool,
    ) -> Result<Descriptor> {
        todo!()
    }

    /// Stores what `right` changes in `left` as a layer blob.
    ///
    /// # Errors
    /// `Unimplemented` for a media type that cannot be made.
    pub async fn diff(
        &self,
        scope: &Scope,
        left: &[Mount],
        right: &[Mount],
        options: DiffOptions,
    ) -> Result<Descriptor> {
        todo!()
    }
}
