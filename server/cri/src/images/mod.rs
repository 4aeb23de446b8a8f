//! Images as Kubernetes sees them: one for each configuration, under all the names that stand for it. What the records
//! of namespace `k8s.io` say is the truth; what is remembered here belongs to digests and never changes.

mod name;
mod progress;
mod pull;
mod registries;
mod usage;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use gantry_api::pb::runtime::v1 as wire;
use gantry_engine::images::Image as Record;
use gantry_engine::spec::oci_spec::image::ImageConfiguration;
use gantry_types::{Descriptor, Digest, Filter, Platform, Reference};

pub(crate) use name::normalize;
pub(crate) use registries::Registries;
pub(crate) use usage::{Layer, Usages};

use crate::{Cri, Error, Result};

/// Label of images that Kubernetes may see.
pub(crate) const MANAGED: (&str, &str) = ("io.cri-containerd.image", "managed");
/// Label of images that are never collected.
pub(crate) const PINNED: (&str, &str) = ("io.cri-containerd.pinned", "pinned");
/// Largest configuration that is read, in bytes.
const MAX_CONFIG: u64 = 8 << 20;

/// What is known of targets that were looked at, by their digests.
#[derive(Default)]
pub(crate) struct Known(Mutex<HashMap<Digest, Arc<Facts>>>);

/// What a target's bytes say, for this node's platform.
pub(crate) struct Facts {
    /// Digest of the configuration: the image's id.
    pub(crate) id: Digest,
    /// Size of all blobs, in bytes.
    pub(crate) size: u64,
    /// The configuration.
    pub(crate) config: ImageConfiguration,
}

/// One image with all its names.
#[derive(Clone)]
pub(crate) struct Image {
    /// What it stands for.
    pub(crate) facts: Arc<Facts>,
    /// All names, sorted; also `sha256:…`.
    pub(crate) names: Vec<String>,
    /// Whether it is never collected.
    pub(crate) pinned: bool,
}

impl Image {
    /// Digest of the configuration.
    pub(crate) fn id(&self) -> &str {
        self.facts.id.as_str()
    }

    fn references(&self) -> impl Iterator<Item = (&str, Reference)> {
        self.names.iter().filter_map(|name| Some((name.as_str(), name.parse::<Reference>().ok()?)))
    }

    /// Names with a tag.
    pub(crate) fn tags(&self) -> Vec<String> {
        self.references().filter(|(_, r)| r.digest().is_none()).map(|(name, _)| name.to_owned()).collect()
    }

    /// Names with a digest.
    pub(crate) fn digests(&self) -> Vec<String> {
        self.references().filter(|(_, r)| r.digest().is_some()).map(|(name, _)| name.to_owned()).collect()
    }

    /// How a container names the image it was made from: by digest where there is such a name, else by id.
    pub(crate) fn image_ref(&self) -> String {
        self.digests().into_iter().next().unwrap_or_else(|| self.id().to_owned())
    }

    /// User of the configuration.
    pub(crate) fn user(&self) -> String {
        self.facts.config.config().as_ref().and_then(|config| config.user().clone()).unwrap_or_default()
    }

    /// The message for lists and status.
    pub(crate) fn to_wire(&self) -> wire::Image {
        let user = self.user();
        let user = user.split(':').next().unwrap_or_default();
        let uid = user.parse::<i64>().ok();
        wire::Image {
            id: self.id().to_owned(),
            repo_tags: self.tags(),
            repo_digests: self.digests(),
            size: self.facts.size,
            uid: uid.map(|value| wire::Int64Value { value }),
            username: if uid.is_some() { String::new() } else { user.to_owned() },
            spec: None,
            pinned: self.pinned,
        }
    }
}

impl Cri {
    /// All images whose bytes are here, by id.
    pub(crate) async fn images(&self) -> Result<Vec<Image>> {
        let records = self.engine.images.list(&self.scope, &Filter::default()).await?;
        let mut images: BTreeMap<Digest, Image> = BTreeMap::new();
        for record in records {
            match self.facts(&record.target).await {
                Ok(facts) => enter(&mut images, facts, record),
                Err(error) => tracing::debug!(name = record.name, %error, "image left out"),
            }
        }
        Ok(images.into_values().collect())
    }

    /// The image that `text` stands for: a name, an id, or the unambiguous beginning of an id.
    pub(crate) async fn image(&self, text: &str) -> Result<Option<Image>> {
        if text.is_empty() {
            return Err(Error::invalid("image.image", "must not be empty"));
        }
        let named = match self.target_of(text).await {
            Some(target) => self.facts(&target).await.ok().map(|facts| facts.id.clone()),
            None => None,
        };
        let prefix = name::id_prefix(text);
        let mut found = self.images().await?.into_iter().filter(|image| match (&named, prefix) {
            (Some(id), _) => &image.facts.id == id,
            (None, Some(prefix)) => image.facts.id.hex().starts_with(prefix),
            (None, None) => false,
        });
        let first = found.next();
        // Half an id that fits two images stands for none.
        Ok(first.filter(|_| found.next().is_none()))
    }

    async fn target_of(&self, text: &str) -> Option<Descriptor> {
        let name = normalize("image", text).ok()?.to_string();
        self.engine.images.get(&self.scope, &name).await.ok().map(|record| record.target)
    }

    /// What a target's bytes say.
    pub(crate) async fn facts(&self, target: &Descriptor) -> Result<Arc<Facts>> {
        let known = || self.known.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(facts) = known().get(&target.digest).cloned() {
            return Ok(facts);
        }
        let blobs = self.engine.transfer.blobs_of(&self.scope, target, &Platform::host()).await?;
        let bytes = self.engine.content.read_all(&self.scope, &blobs.config.digest, MAX_CONFIG).await?;
        let config = serde_json::from_slice(&bytes)
            .map_err(|error| Error::State(format!("image configuration {}: {error}", blobs.config.digest)))?;
        let facts = Arc::new(Facts { id: blobs.config.digest.clone(), size: blobs.size(), config });
        known().insert(target.digest.clone(), Arc::clone(&facts));
        Ok(facts)
    }

    /// Removes an image under all its names; one that is not there is no error.
    pub(crate) async fn remove_image(&self, text: &str) -> Result<()> {
        let Some(image) = self.image(text).await? else { return Ok(()) };
        let last = image.names.len().saturating_sub(1);
        for (at, name) in image.names.iter().enumerate() {
            let removed = self.engine.images.delete(&self.scope, name, None, at == last).await;
            match removed {
                Err(error) if gantry_types::HasKind::kind(&error) == gantry_types::ErrorKind::NotFound => {}
                other => other?,
            }
        }
        self.known.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, facts| facts.id != image.facts.id);
        Ok(())
    }
}

fn enter(images: &mut BTreeMap<Digest, Image>, facts: Arc<Facts>, record: Record) {
    let pinned = record.labels.get(PINNED.0).is_some_and(|value| value == PINNED.1);
    let image = images.entry(facts.id.clone()).or_insert_with(|| Image { facts, names: Vec::new(), pinned: false });
    image.pinned |= pinned;
    image.names.push(record.name);
}
