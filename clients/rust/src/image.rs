//! Looking into an image: its manifest for a platform, its configuration, its chain of layers.

use gantry_api::convert;
use gantry_api::pb::containerd::services::content::v1::ReadContentRequest;
use gantry_api::pb::containerd::services::images::v1::GetImageRequest;
use gantry_spec::oci_spec::image::{ImageConfiguration, ImageManifest};
use gantry_types::{Descriptor, Digest, Platform, media_type};
use serde_json::Value;

use crate::error::Asked;
use crate::{Client, Error};

/// Largest manifest or configuration that is read whole, in bytes.
const MAX_DOCUMENT: usize = 8 << 20;
/// Deepest nesting of indexes that is followed.
const MAX_DEPTH: u32 = 4;

/// An image as one platform sees it.
#[derive(Clone, Debug)]
pub struct Image {
    /// Its name in the store.
    pub name: String,
    /// What the name points at: an index or a manifest.
    pub target: Descriptor,
    /// The platform's manifest.
    pub manifest: ImageManifest,
    /// The platform's configuration.
    pub config: ImageConfiguration,
    /// Name of the topmost unpacked layer: the chain ID of all (OCI image-spec, config.md); empty without layers.
    pub chain_id: String,
}

impl Client {
    /// Looks an image up and reads its manifest and configuration for `platform`.
    ///
    /// # Errors
    /// `NotFound` when there is no such image, or nothing in it for the platform.
    pub async fn image(&self, name: &str, platform: &Platform) -> Result<Image, Error> {
        let what = || format!("image {name}");
        let found = self.images().get(GetImageRequest { name: name.to_owned() }).await.asked(what)?;
        let target = found.image.and_then(|i| i.target).ok_or_else(|| Error::malformed(what(), "has no target"))?;
        let target = convert::descriptor_from_wire(target).map_err(|e| Error::malformed(what(), e))?;
        let (manifest, config) = self.manifest(&target, platform, MAX_DEPTH).await?;
        let chain_id = chain_id(config.rootfs().diff_ids());
        Ok(Image { name: name.to_owned(), target, manifest, config, chain_id })
    }

    async fn manifest(
        &self,
        target: &Descriptor,
        platform: &Platform,
        depth: u32,
    ) -> Result<(ImageManifest, ImageConfiguration), Error> {
        let what = format!("manifest {}", target.digest);
        let document = self.read_blob(&target.digest).await?;
        if media_type::is_index(&target.media_type) && depth > 0 {
            let index: Value = serde_json::from_slice(&document).map_err(|e| Error::malformed(&what, e))?;
            let entries: Vec<Descriptor> = index["manifests"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|entry| serde_json::from_value(entry.clone()).ok())
                .collect();
            let best = entries
                .iter()
                .filter_map(|d| Some((platform.preference(d.platform.as_ref().unwrap_or(&Platform::host()))?, d)))
                .min_by_key(|(cost, _)| *cost);
            let Some((_, entry)) = best else {
                return Err(Error::malformed(&what, format!("has nothing for {platform}")));
            };
            return Box::pin(self.manifest(entry, platform, depth - 1)).await;
        }
        let manifest: ImageManifest = serde_json::from_slice(&document).map_err(|e| Error::malformed(&what, e))?;
        let config: Digest = manifest.config().digest().to_string().parse().map_err(|e| Error::malformed(&what, e))?;
        let config = self.read_blob(&config).await?;
        let config = serde_json::from_slice(&config).map_err(|e| Error::malformed(&what, e))?;
        Ok((manifest, config))
    }

    /// Reads a small blob whole.
    ///
    /// # Errors
    /// `NotFound` when it is not there; [`Error::Malformed`] when it is larger than 8 MiB.
    pub async fn read_blob(&self, digest: &Digest) -> Result<Vec<u8>, Error> {
        let what = || format!("blob {digest}");
        let request = ReadContentRequest { digest: digest.to_string(), ..Default::default() };
        let mut stream = self.content().read(request).await.asked(what)?;
        let mut bytes = Vec::new();
        while let Some(part) = stream.message().await.map(tonic::Response::new).asked(what)? {
            bytes.extend_from_slice(&part.data);
            if bytes.len() > MAX_DOCUMENT {
                return Err(Error::malformed(what(), "is larger than 8 MiB"));
            }
        }
        Ok(bytes)
    }
}

/// The chain ID of layers given by their diff IDs (OCI image-spec, config.md, "Layer ChainID").
pub(crate) fn chain_id(diff_ids: &[String]) -> String {
    diff_ids.iter().fold(String::new(), |chain, diff_id| {
        if chain.is_empty() { diff_id.clone() } else { Digest::of(format!("{chain} {diff_id}").as_bytes()).to_string() }
    })
}

#[cfg(test)]
mod tests {
    use super::chain_id;

    #[test]
    fn the_chain_id_of_one_layer_is_its_diff_id_and_of_none_is_empty() {
        assert_eq!(chain_id(&[]), "");
        assert_eq!(chain_id(&["sha256:aa".into()]), "sha256:aa");
    }

    #[test]
    fn the_chain_id_hashes_parent_and_diff_id_with_a_blank_between() {
        // printf 'sha256:aa sha256:bb' | sha256sum
        let expected = gantry_types::Digest::of(b"sha256:aa sha256:bb").to_string();
        assert_eq!(chain_id(&["sha256:aa".into(), "sha256:bb".into()]), expected);
    }
}
