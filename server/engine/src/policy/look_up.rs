//! Where signatures are: at the tag that cosign makes of the digest, and among the referrers.

use bytes::Bytes;
use gantry_registry::{Access, Registry};
use gantry_types::{Descriptor, Digest, ErrorKind, HasKind as _, Reference};
use serde::Deserialize;

use super::evidence::Evidence;
use crate::{Error, Result};

const SIMPLE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const ARTIFACT: &str = "application/vnd.dev.cosign.artifact.sig.v1+json";
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";

/// Largest payload or bundle, in bytes.
const MAX_SIZE: u64 = 1 << 20;
/// Most signatures that are looked at.
const MOST: usize = 64;

/// Where to look.
pub(super) struct LookUp<'a> {
    pub(super) registry: &'a Registry,
    pub(super) image: &'a Reference,
    pub(super) digest: &'a Digest,
    pub(super) access: &'a Access,
}

#[derive(Deserialize)]
struct Manifest {
    #[serde(default)]
    layers: Vec<Descriptor>,
}

impl LookUp<'_> {
    /// All that may be a signature.
    ///
    /// # Errors
    /// When the registry cannot be asked: no signature there is no error.
    pub(super) async fn all(&self) -> Result<Vec<Evidence>> {
        let mut all = self.at_tag().await?;
        for referrer in self.referrers().await?.into_iter().take(MOST) {
            let found = match referrer.artifact_type.as_deref() {
                Some(ARTIFACT) => self.simple(&referrer).await,
                Some(BUNDLE) => self.bundles(&referrer).await,
                _ => continue,
            };
            all.extend(found.unwrap_or_else(|error| vec![Evidence::Unreadable(error.to_string())]));
        }
        all.truncate(MOST);
        Ok(all)
    }

    async fn referrers(&self) -> Result<Vec<Descriptor>> {
        match self.registry.referrers(self.image, self.digest, None, self.access).await {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            found => Ok(found?),
        }
    }

    async fn at_tag(&self) -> Result<Vec<Evidence>> {
        let tag = self.digest.as_str().replace(':', "-");
        let name = format!("{}:{tag}.sig", super::repository(self.image));
        let reference: Reference = name.parse()?;
        let resolved = match self.registry.resolve(&reference, self.access).await {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            resolved => resolved?,
        };
        self.simple(&resolved.descriptor).await
    }

    /// The payloads in a manifest, with the signatures in its annotations.
    async fn simple(&self, manifest: &Descriptor) -> Result<Vec<Evidence>> {
        let mut all = Vec::new();
        for layer in self.layers(manifest).await?.into_iter().filter(|layer| layer.media_type == SIMPLE).take(MOST) {
            let Some(signature) = layer.annotations.get(SIGNATURE).cloned() else { continue };
            let payload = self.blob(&layer).await?;
            all.push(Evidence::Simple { payload, signature });
        }
        Ok(all)
    }

    async fn bundles(&self, manifest: &Descriptor) -> Result<Vec<Evidence>> {
        let mut all = Vec::new();
        for layer in self.layers(manifest).await?.into_iter().filter(|layer| layer.media_type == BUNDLE).take(MOST) {
            let json = self.blob(&layer).await?;
            all.push(Evidence::Bundle { json, manifest: self.itself().await? });
        }
        Ok(all)
    }

    async fn layers(&self, manifest: &Descriptor) -> Result<Vec<Descriptor>> {
        let bytes = self.registry.manifest(self.image, manifest, self.access).await?;
        let parsed: serde_json::Result<Manifest> = serde_json::from_slice(&bytes);
        let bad = |error: serde_json::Error| Error::BadBlob {
            what: "manifest of signatures",
            digest: manifest.digest.clone(),
            reason: error.to_string(),
        };
        Ok(parsed.map_err(bad)?.layers)
    }

    /// The manifest that is signed.
    async fn itself(&self) -> Result<Bytes> {
        let reference: Reference = format!("{}@{}", super::repository(self.image), self.digest).parse()?;
        let resolved = self.registry.resolve(&reference, self.access).await?;
        match resolved.body {
            Some(body) => Ok(body),
            None => Ok(self.registry.manifest(self.image, &resolved.descriptor, self.access).await?),
        }
    }

    /// A small blob, which must have its digest.
    async fn blob(&self, descriptor: &Descriptor) -> Result<Bytes> {
        let bad = |reason: &str| Error::BadBlob {
            what: "signature",
            digest: descriptor.digest.clone(),
            reason: reason.to_owned(),
        };
        if descriptor.size > MAX_SIZE {
            return Err(bad("it is larger than 1 MiB"));
        }
        let mut pieces = self.registry.fetch(self.image, descriptor, 0, self.access).await?;
        let mut bytes = Vec::new();
        while let Some(piece) = futures::StreamExt::next(&mut pieces).await {
            bytes.extend_from_slice(&piece?);
        }
        let mut hasher = gantry_types::Hasher::new(descriptor.digest.algorithm());
        hasher.update(&bytes);
        if hasher.finish() == descriptor.digest { Ok(bytes.into()) } else { Err(bad("it is not what its digest says")) }
    }
}
