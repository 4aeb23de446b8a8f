//! Where blobs and layers come from, as the images that are here say.

use std::collections::{HashMap, HashSet};

use gantry_types::{Descriptor, Digest, Namespace, Reference};

use super::{Check, own};
use crate::restore;
use crate::transfer::manifest::{self, Document};

/// A blob that can be fetched.
#[derive(Clone, Debug)]
pub(super) struct Origin {
    pub(super) descriptor: Descriptor,
    /// Name of an image that has it.
    pub(super) reference: Reference,
}

/// What is known.
#[derive(Default)]
pub(super) struct Origins {
    blobs: HashMap<Digest, Vec<Origin>>,
    /// Layers by the digest of their tar and namespace.
    layers: HashMap<(Namespace, Digest), Descriptor>,
}

impl Origins {
    /// Reads all images, without what is known to be `broken`.
    pub(super) async fn of(check: &Check, broken: &HashSet<Digest>) -> Origins {
        let mut origins = Origins::default();
        for namespace in restore::namespaces(&check.core) {
            for image in check.core.db.images(&namespace).scan().filter_map(Result::ok) {
                let reference = image.name.parse::<Reference>().ok();
                origins.add(check, &namespace, image.target, reference.as_ref(), broken).await;
            }
        }
        origins
    }

    async fn add(
        &mut self,
        check: &Check,
        namespace: &Namespace,
        root: Descriptor,
        reference: Option<&Reference>,
        broken: &HashSet<Digest>,
    ) {
        let (mut open, mut seen, content) = (vec![root], HashSet::new(), &check.transfer.content);
        let scope = own(namespace);
        while let Some(descriptor) = open.pop() {
            if !seen.insert(descriptor.digest.clone()) {
                continue;
            }
            if let Some(reference) = reference {
                let origin = Origin { descriptor: descriptor.clone(), reference: reference.clone() };
                self.blobs.entry(descriptor.digest.clone()).or_default().push(origin);
            }
            if broken.contains(&descriptor.digest) {
                continue;
            }
            let Ok(Some(document)) = manifest::read(content, &scope, &descriptor).await else { continue };
            if let Document::Manifest(manifest) = &document
                && !broken.contains(&manifest.config.digest)
                && let Ok(config) = manifest::read_config(content, &scope, &manifest.config).await
            {
                for (diff_id, layer) in config.rootfs.diff_ids.into_iter().zip(&manifest.layers) {
                    self.layers.insert((namespace.clone(), diff_id), layer.clone());
                }
            }
            open.extend(document.children());
        }
    }

    /// Where a blob can be had.
    pub(super) fn of_blob(&self, digest: &Digest) -> &[Origin] {
        self.blobs.get(digest).map_or(&[], Vec::as_slice)
    }

    /// The layer whose tar has this digest.
    pub(super) fn layer(&self, namespace: &Namespace, diff_id: &Digest) -> Option<&Descriptor> {
        self.layers.get(&(namespace.clone(), diff_id.clone()))
    }
}
