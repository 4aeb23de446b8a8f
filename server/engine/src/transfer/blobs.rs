//! What an image is made of, as far as one platform needs it.

use gantry_types::{Descriptor, Platform, Scope};

use super::Transfer;
use super::manifest::{self, Document, MAX_DEPTH};
use crate::{Error, Result};

/// The blobs of an image for one platform.
#[derive(Clone, Debug)]
pub struct Blobs {
    /// Indexes on the way, outermost first, and the manifest itself as the last.
    pub manifests: Vec<Descriptor>,
    /// The configuration.
    pub config: Descriptor,
    /// The layers, lowest first.
    pub layers: Vec<Descriptor>,
}

impl Blobs {
    /// Size of all of them together, in bytes.
    pub fn size(&self) -> u64 {
        self.manifests.iter().chain([&self.config]).chain(&self.layers).map(|blob| blob.size).sum()
    }
}

impl Transfer {
    /// The blobs of an image for a platform, below an index or at once.
    ///
    /// # Errors
    /// `NotFound` for a platform it does not have, or a manifest that is not here.
    pub async fn blobs_of(&self, scope: &Scope, target: &Descriptor, platform: &Platform) -> Result<Blobs> {
        let missing = || Error::not_found("manifest for platform", platform.to_string());
        let mut manifests = vec![target.clone()];
        while let Some(next) = manifests.last().filter(|_| manifests.len() <= MAX_DEPTH + 1).cloned() {
            match manifest::read(&self.content, scope, &next).await?.ok_or_else(missing)? {
                Document::Manifest(manifest) => {
                    return Ok(Blobs { manifests, config: manifest.config, layers: manifest.layers });
                }
                Document::Index(index) => {
                    let chosen = manifest::choose(&index.manifests, std::slice::from_ref(platform), 1);
                    manifests.push(chosen.into_iter().next().ok_or_else(missing)?);
                }
            }
        }
        Err(missing())
    }
}
