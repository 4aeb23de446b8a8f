//! Unpacking a compressed layer: decompress, hash and apply beside each other.

use std::io::Read;
use std::path::Path;

use gantry_types::Digest;

use crate::{Applied, ApplyError, Compression, Options};

/// What was unpacked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unpacked {
    /// What was applied.
    pub applied: Applied,
    /// SHA-256 of the uncompressed tar (OCI image-spec, config.md, "Layer DiffID").
    pub diff_id: Digest,
    /// Compressed bytes read.
    pub compressed_bytes: u64,
}

/// Decompresses `layer`, computes its diff ID and applies it to the directory `root`, all at once: decompressing and
/// hashing have a thread of their own each, applying is done by the caller's. Without a given compression the first
/// bytes tell. Reads `layer` to its end. At most 4 MiB wait between the threads.
pub fn unpack<R: Read + Send>(
    layer: R,
    compression: Option<Compression>,
    root: &Path,
    options: &Options,
) -> Result<Unpacked, ApplyError> {
    let _ = (layer, compression, root, options);
    todo!()
}
