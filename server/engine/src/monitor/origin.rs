//! Which labels of a container came from its image.
//!
//! Clients copy the labels of an image's configuration to the container, and the record does not say which. So when a
//! container is made, what its image says about restarts is noted with its record, by the engine alone and out of clients'
//! reach. A label counts as the image's where it says what the image says; where the image cannot be read, its word on
//! an output could be anybody's, and is not followed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use gantry_metadata::Db;
use gantry_types::{Descriptor, Labels, Namespace, Scope};
use serde::{Deserialize, Serialize};

use crate::content::Content;
use crate::core::Core;
use crate::transfer::manifest::{self, Document, Manifest};

/// What all labels about restarts begin with.
const PREFIX: &str = "containerd.io/restart.";

/// The label that names a path or a program.
const OUTPUT: &str = "containerd.io/restart.loguri";

/// What the image of a container says about restarts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Origin {
    /// Per label, the values that the image has for its platforms.
    labels: BTreeMap<String, BTreeSet<String>>,
    /// The image could not be read.
    unknown: bool,
}

impl Origin {
    /// The labels that are not the image's.
    pub(super) fn without(&self, labels: &Labels) -> Labels {
        let is_images = |key: &str, value: &str| {
            self.labels.get(key).is_some_and(|values| values.contains(value)) || self.unknown && key == OUTPUT
        };
        let own = labels.iter().filter(|(key, value)| !is_images(key, value));
        own.map(|(key, value)| (key.clone(), value.clone())).collect()
    }
}

/// What was noted of a container when it was made.
pub(super) fn of(db: &Db, namespace: &Namespace, container: &str) -> Origin {
    match db.containers(namespace).note(container) {
        None => Origin::default(),
        // A damaged note must not let an image's words pass.
        Some(note) => serde_json::from_slice(&note).unwrap_or(Origin { unknown: true, ..Origin::default() }),
    }
}

/// What is to be noted of a container with these labels; none where there is nothing to tell apart.
pub(crate) async fn note(core: &Arc<Core>, scope: &Scope, image: &str, labels: &Labels) -> Option<Vec<u8>> {
    if image.is_empty() || !labels.keys().any(|key| key.starts_with(PREFIX)) {
        return None;
    }
    encode(&word_of(core, scope, image).await)
}

/// What is to be noted of a container that gets another image: its labels may be of either.
pub(crate) async fn note_again(core: &Arc<Core>, scope: &Scope, container: &str, image: &str) -> Option<Vec<u8>> {
    let mut origin = of(&core.db, &scope.namespace, container);
    let new = word_of(core, scope, image).await;
    origin.unknown |= new.unknown;
    for (key, values) in new.labels {
        origin.labels.entry(key).or_default().extend(values);
    }
    encode(&origin)
}

fn encode(origin: &Origin) -> Option<Vec<u8>> {
    (*origin != Origin::default()).then(|| serde_json::to_vec(origin).ok()).flatten()
}

async fn word_of(core: &Arc<Core>, scope: &Scope, image: &str) -> Origin {
    match images_word(core, scope, image).await {
        Ok(labels) => Origin { labels, unknown: false },
        Err(error) => {
            tracing::debug!(image, %error, "what the image says about restarts cannot be read");
            Origin { labels: BTreeMap::new(), unknown: true }
        }
    }
}

type Word = BTreeMap<String, BTreeSet<String>>;

/// What an image says about restarts, for any of its platforms that are here.
async fn images_word(core: &Arc<Core>, scope: &Scope, image: &str) -> crate::Result<Word> {
    let target = core.db.images(&scope.namespace).get(image)?.target;
    let content = Content { core: core.clone() };
    let mut word = Word::new();
    let mut read = 0_usize;
    let mut left = vec![(target, 0)];
    while let Some((descriptor, depth)) = left.pop() {
        match manifest::read(&content, scope, &descriptor).await {
            Ok(Some(Document::Manifest(manifest))) => {
                read += usize::from(add(&content, scope, &manifest, &mut word).await)
            }
            Ok(Some(Document::Index(index))) if depth < manifest::MAX_DEPTH => {
                left.extend(index.manifests.into_iter().map(|child| (child, depth + 1)));
            }
            // Other platforms' manifests are rarely here.
            _ => {}
        }
    }
    if read == 0 { Err(crate::Error::not_found("configuration of image", image)) } else { Ok(word) }
}

/// Adds what the configuration of a manifest says; false where it is not here, or is none.
async fn add(content: &Content, scope: &Scope, manifest: &Manifest, word: &mut Word) -> bool {
    let Ok(labels) = labels_of(content, scope, &manifest.config).await else { return false };
    for (key, value) in labels.into_iter().filter(|(key, _)| key.starts_with(PREFIX)) {
        word.entry(key).or_default().insert(value);
    }
    true
}

async fn labels_of(content: &Content, scope: &Scope, config: &Descriptor) -> crate::Result<Labels> {
    #[derive(Deserialize)]
    struct Image {
        config: Option<Config>,
    }
    #[derive(Deserialize)]
    struct Config {
        #[serde(rename = "Labels")]
        labels: Option<Labels>,
    }
    let bytes = content.read_all(scope, &config.digest, manifest::MAX_SIZE).await?;
    let image: Image = manifest::parse("image configuration", &config.digest, &bytes)?;
    Ok(image.config.and_then(|config| config.labels).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(key, value)| (format!("{PREFIX}{key}"), (*value).to_owned())).collect()
    }

    #[test]
    fn what_the_image_says_too_is_the_images() {
        let said = [(OUTPUT.to_owned(), BTreeSet::from(["file:///etc/x".to_owned()]))];
        let origin = Origin { labels: said.into(), unknown: false };
        let copied = labels(&[("status", "running"), ("loguri", "file:///etc/x")]);
        assert_eq!(origin.without(&copied), labels(&[("status", "running")]));
        let own = labels(&[("loguri", "file:///var/log/x")]);
        assert_eq!(origin.without(&own), own);
    }

    #[test]
    fn of_an_unknown_image_no_output_is_followed() {
        let origin = Origin { labels: BTreeMap::new(), unknown: true };
        let all = labels(&[("status", "running"), ("loguri", "file:///x")]);
        assert_eq!(origin.without(&all), labels(&[("status", "running")]));
    }
}
