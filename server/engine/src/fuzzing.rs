//! Readers of what comes from outside, for fuzzing alone (feature `fuzzing`): nothing here may panic, whatever the bytes.

use std::path::Path;

use gantry_types::{Descriptor, Digest, media_type};

use crate::transfer::{import, manifest};

/// Reads an index, a manifest and a configuration.
pub fn manifest(bytes: &[u8]) {
    let digest = Digest::of(bytes);
    for kind in [media_type::OCI_INDEX, media_type::OCI_MANIFEST] {
        let descriptor = Descriptor::new(kind, digest.clone(), bytes.len() as u64);
        if let Ok(Some(manifest::Document::Index(index))) = manifest::Document::parse(&descriptor, bytes) {
            let _ = manifest::choose(&index.manifests, &[gantry_types::Platform::host()], 2);
        }
    }
    if let Ok(config) = manifest::parse::<manifest::ImageConfig>("image configuration", &digest, bytes) {
        let chain = manifest::chain_ids(&config.rootfs.diff_ids);
        assert_eq!(chain.len(), config.rootfs.diff_ids.len());
    }
}

/// Reads `manifest.json` of an archive in Docker's form. What a path in it names lies within the archive.
pub fn docker_archive(bytes: &[u8]) {
    for path in import::docker_paths(bytes) {
        if let Ok(clean) = import::clean(Path::new(&path)) {
            assert!(clean.is_relative() && !clean.components().any(|part| part == std::path::Component::ParentDir));
        }
    }
}

/// What the restart monitor makes of a label that names an output.
pub fn restart_output(uri: &str) -> Option<String> {
    crate::monitor::output(uri)
}
