//! Labels: what users and clients attach to objects, and the keys that garbage collection reads.

use std::collections::BTreeMap;

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// Longest key and value together, in bytes.
pub const MAX_LEN: usize = 4096;

/// Keeps an object alive by itself.
pub const GC_ROOT: &str = "containerd.io/gc.root";
/// Prefix of references to blobs: exactly this, or followed by `.NAME` or `/NAME`.
pub const GC_REF_CONTENT: &str = "containerd.io/gc.ref.content";
/// Prefix of references to snapshots; followed by `.SNAPSHOTTER` and optionally `/NAME`.
pub const GC_REF_SNAPSHOT: &str = "containerd.io/gc.ref.snapshot.";
/// Prefix of references to images.
pub const GC_REF_IMAGE: &str = "containerd.io/gc.ref.image";
/// Prefix of back references (from the referring side's target to its source).
pub const GC_BREF: &str = "containerd.io/gc.bref.";
/// When a lease or image expires (RFC 3339).
pub const GC_EXPIRE: &str = "containerd.io/gc.expire";
/// A lease whose resources' own references are not followed.
pub const GC_FLAT: &str = "containerd.io/gc.flat";
/// On a compressed layer blob: the digest of the bytes inside.
pub const UNCOMPRESSED: &str = "containerd.io/uncompressed";
/// On a blob: which repositories of a registry host hold it; followed by the host.
pub const DISTRIBUTION_SOURCE: &str = "containerd.io/distribution.source";
/// On a snapshot to prepare: the name to commit under, for remote snapshotters.
pub const SNAPSHOT_REF: &str = "containerd.io/snapshot.ref";

/// Checks one label.
///
/// # Errors
/// [`InvalidLabel`] when key and value together are longer than [`MAX_LEN`], or the key is empty.
pub fn validate(key: &str, value: &str) -> Result<(), InvalidLabel> {
    let invalid = |reason| InvalidLabel { key: key.chars().take(80).collect(), reason };
    if key.is_empty() {
        return Err(invalid("the key is empty"));
    }
    if key.len() + value.len() > MAX_LEN {
        return Err(invalid("key and value together are longer than 4096 bytes"));
    }
    Ok(())
}

/// Checks all of them.
///
/// # Errors
/// The first label that [`validate`] refuses.
pub fn validate_all(labels: &Labels) -> Result<(), InvalidLabel> {
    labels.iter().try_for_each(|(k, v)| validate(k, v))
}

/// Not a label.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid label {key:?}: {reason}")]
pub struct InvalidLabel {
    key: String,
    reason: &'static str,
}

impl crate::HasKind for InvalidLabel {
    fn kind(&self) -> crate::ErrorKind {
        crate::ErrorKind::InvalidArgument
    }
}
