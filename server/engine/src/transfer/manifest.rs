//! Reading indexes, manifests and configurations: bounded, strict, and into one form whether OCI's or Docker's.

use std::collections::BTreeMap;

use gantry_types::{Descriptor, Digest, Labels, Platform, Scope, labels, media_type};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use crate::content::Content;
use crate::{Error, Result};

/// Largest index, manifest or configuration that is read, in bytes.
pub(crate) const MAX_SIZE: u64 = 8 << 20;
/// Indexes within indexes are followed this deep.
pub(crate) const MAX_DEPTH: usize = 4;
/// Most manifests in an index, and most layers in a manifest.
const MAX_CHILDREN: usize = 4096;

/// A document as it is written. Its fields stand in the order of the specification's Go types: tools that write the
/// same document then give it the same digest.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Written<'a> {
    /// Always 2.
    pub(super) schema_version: u8,
    /// Media type of the document itself.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub(super) media_type: &'a str,
    /// Configuration, of a manifest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) config: Option<&'a Descriptor>,
    /// Layers, of a manifest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) layers: Option<&'a [Descriptor]>,
    /// Manifests, of an index.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) manifests: Option<&'a [Descriptor]>,
}

impl<'a> Written<'a> {
    /// An index of `manifests`.
    pub(super) fn index(media_type: &'a str, manifests: &'a [Descriptor]) -> Written<'a> {
        Written { schema_version: 2, media_type, config: None, layers: None, manifests: Some(manifests) }
    }
}

/// An image manifest.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    /// The configuration.
    pub(crate) config: Descriptor,
    /// The layers, lowest first.
    #[serde(default)]
    pub(crate) layers: Vec<Descriptor>,
}

/// An index or manifest list.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Index {
    /// Its manifests.
    #[serde(default)]
    pub(crate) manifests: Vec<Descriptor>,
}

/// What unpacking needs of an image configuration.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct ImageConfig {
    /// Platform.
    #[serde(flatten)]
    pub(crate) platform: Platform,
    /// The layers' uncompressed digests, lowest first.
    pub(crate) rootfs: RootFs,
}

/// The `rootfs` of a configuration.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct RootFs {
    /// Digests of the uncompressed layers, lowest first.
    #[serde(default)]
    pub(crate) diff_ids: Vec<Digest>,
}

/// An index or a manifest.
#[derive(Clone, Debug)]
pub(crate) enum Document {
    /// Index or manifest list.
    Index(Index),
    /// Image manifest.
    Manifest(Box<Manifest>),
}

impl Document {
    /// Parses the bytes of what `descriptor` stands for; none for other media types.
    ///
    /// # Errors
    /// [`Error::BadBlob`].
    pub(crate) fn parse(descriptor: &Descriptor, bytes: &[u8]) -> Result<Option<Document>> {
        if is_document(descriptor) {
            refuse_ambiguous(descriptor, bytes)?;
        }
        if media_type::is_index(&descriptor.media_type) {
            return parse("index", &descriptor.digest, bytes).map(Document::Index).map(Some);
        }
        if media_type::is_manifest(&descriptor.media_type) {
            return parse("manifest", &descriptor.digest, bytes).map(Document::Manifest).map(Some);
        }
        Ok(None)
    }

    /// What it refers to, in its order: manifests of an index; configuration and layers of a manifest.
    pub(crate) fn children(&self) -> Vec<Descriptor> {
        match self {
            Document::Index(index) => index.manifests.clone(),
            Document::Manifest(manifest) => {
                std::iter::once(&manifest.config).chain(&manifest.layers).cloned().collect()
            }
        }
    }

    /// The labels by which it keeps its children, as containerd names them: `.m.N`, `.config`, `.l.N`.
    pub(crate) fn gc_labels(&self) -> Labels {
        let mut labels = Labels::new();
        let mut refer = |suffix: String, digest: &Digest| {
            labels.insert(format!("{}.{suffix}", labels::GC_REF_CONTENT), digest.to_string());
        };
        match self {
            Document::Index(index) => {
                index.manifests.iter().enumerate().for_each(|(n, child)| refer(format!("m.{n}"), &child.digest));
            }
            Document::Manifest(manifest) => {
                refer("config".into(), &manifest.config.digest);
                manifest.layers.iter().enumerate().for_each(|(n, layer)| refer(format!("l.{n}"), &layer.digest));
            }
        }
        labels
    }
}

/// Whether a descriptor stands for a document with children.
fn is_document(descriptor: &Descriptor) -> bool {
    media_type::is_index(&descriptor.media_type) || media_type::is_manifest(&descriptor.media_type)
}

/// Two readers must not understand one document differently: it is an index or a manifest, and of the type that its
/// descriptor says.
fn refuse_ambiguous(descriptor: &Descriptor, bytes: &[u8]) -> Result<()> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Shape {
        #[serde(default)]
        media_type: String,
        manifests: Option<Vec<IgnoredAny>>,
        config: Option<IgnoredAny>,
        layers: Option<Vec<IgnoredAny>>,
    }
    let bad = |reason: String| Error::BadBlob { what: "manifest", digest: descriptor.digest.clone(), reason };
    let shape: Shape = parse("manifest", &descriptor.digest, bytes)?;
    if !shape.media_type.is_empty() && shape.media_type != descriptor.media_type {
        return Err(bad(format!("it says it is {:?}, its descriptor {:?}", shape.media_type, descriptor.media_type)));
    }
    let children = shape.manifests.as_ref().or(shape.layers.as_ref()).map_or(0, Vec::len);
    if children > MAX_CHILDREN {
        return Err(bad(format!("it names {children} blobs, more than {MAX_CHILDREN}")));
    }
    match media_type::is_index(&descriptor.media_type) {
        true if shape.config.is_some() || shape.layers.is_some() => {
            Err(bad("an index has neither `config` nor `layers`".into()))
        }
        false if shape.manifests.is_some() => Err(bad("a manifest has no `manifests`".into())),
        _ => Ok(()),
    }
}

/// Reads an index or manifest from content; none for another media type.
pub(crate) async fn read(content: &Content, scope: &Scope, descriptor: &Descriptor) -> Result<Option<Document>> {
    if !is_document(descriptor) {
        return Ok(None);
    }
    let bytes = content.read_all(scope, &descriptor.digest, MAX_SIZE).await?;
    Document::parse(descriptor, &bytes)
}

/// Reads an image configuration from content.
pub(crate) async fn read_config(content: &Content, scope: &Scope, descriptor: &Descriptor) -> Result<ImageConfig> {
    let bytes = content.read_all(scope, &descriptor.digest, MAX_SIZE).await?;
    parse("image configuration", &descriptor.digest, &bytes)
}

/// Parses a document, its digest being known to be right.
pub(crate) fn parse<'a, T: Deserialize<'a>>(what: &'static str, digest: &Digest, bytes: &'a [u8]) -> Result<T> {
    let bad = |error: serde_json::Error| Error::BadBlob { what, digest: digest.clone(), reason: error.to_string() };
    serde_json::from_slice(bytes).map_err(bad)
}

/// Chain ids of a stack of layers, lowest first (OCI image-spec, config.md, "Layer ChainID").
pub(crate) fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chain: Vec<Digest> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        let next = match chain.last() {
            None => diff_id.clone(),
            Some(below) => Digest::of(format!("{below} {diff_id}").as_bytes()),
        };
        chain.push(next);
    }
    chain
}

/// The children of an index that `platforms` ask for, best first for each; all where none are asked for. Entries
/// without a platform stay, for their configurations decide; attestations go with none.
pub(crate) fn choose(manifests: &[Descriptor], platforms: &[Platform], limit: usize) -> Vec<Descriptor> {
    if platforms.is_empty() {
        return manifests.to_vec();
    }
    let rank = |descriptor: &Descriptor| match &descriptor.platform {
        None => Some(u32::MAX),
        Some(there) => platforms.iter().filter_map(|wanted| wanted.preference(there)).min(),
    };
    let mut ranked: Vec<(u32, &Descriptor)> =
        manifests.iter().filter_map(|descriptor| Some((rank(descriptor)?, descriptor))).collect();
    ranked.sort_by_key(|(rank, _)| *rank);
    let most = if limit == 0 { ranked.len() } else { limit };
    ranked.into_iter().take(most).map(|(_, descriptor)| descriptor.clone()).collect()
}

/// Labels as pairs for an update of single ones.
pub(crate) fn fields(labels: &BTreeMap<String, String>) -> Vec<String> {
    labels.keys().map(|key| format!("labels.{key}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(text: &str) -> Digest {
        Digest::of(text.as_bytes())
    }

    #[test]
    fn chain_ids_hash_the_chain_below_and_the_layer() {
        let (a, b) = (digest("a"), digest("b"));
        let chain = chain_ids(&[a.clone(), b.clone()]);
        assert_eq!(chain, vec![a.clone(), Digest::of(format!("{a} {b}").as_bytes())]);
        assert!(chain_ids(&[]).is_empty());
    }

    #[test]
    fn the_best_platform_of_an_index_is_chosen() {
        let entry = |name: &str, platform: Option<&str>| Descriptor {
            platform: platform.map(|p| p.parse().unwrap()),
            ..Descriptor::new(media_type::OCI_MANIFEST, digest(name), 1)
        };
        let index =
            [entry("arm", Some("linux/arm64")), entry("amd", Some("linux/amd64")), entry("386", Some("linux/386"))];
        let chosen = choose(&index, &["linux/amd64".parse().unwrap()], 1);
        assert_eq!(chosen, vec![index[1].clone()]);
        assert_eq!(choose(&index, &["linux/amd64".parse().unwrap()], 0).len(), 2);
        assert_eq!(choose(&index, &[], 1).len(), 3);
        assert!(choose(&index, &["linux/s390x".parse().unwrap()], 0).is_empty());
    }

    #[test]
    fn a_document_that_two_readers_could_understand_differently_is_refused() {
        let child = format!(r#"{{"mediaType":"c","digest":"{}","size":2}}"#, digest("c"));
        let both = format!(r#"{{"config":{child},"layers":[],"manifests":[{child}]}}"#);
        let lying = format!(r#"{{"mediaType":"{}","config":{child},"layers":[]}}"#, media_type::DOCKER_MANIFEST);
        for (kind, text) in
            [(media_type::OCI_MANIFEST, &both), (media_type::OCI_INDEX, &both), (media_type::OCI_MANIFEST, &lying)]
        {
            let descriptor = Descriptor::new(kind, digest("m"), 1);
            assert!(Document::parse(&descriptor, text.as_bytes()).is_err(), "{kind}: {text}");
        }
    }

    #[test]
    fn a_manifest_keeps_its_configuration_and_layers() {
        let bytes = format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"c","digest":"{}","size":2}},"layers":[{{"mediaType":"l","digest":"{}","size":3}}]}}"#,
            digest("c"),
            digest("l")
        );
        let descriptor = Descriptor::new(media_type::OCI_MANIFEST, digest("m"), 1);
        let document = Document::parse(&descriptor, bytes.as_bytes()).unwrap().unwrap();
        let labels = document.gc_labels();
        assert_eq!(labels["containerd.io/gc.ref.content.config"], digest("c").to_string());
        assert_eq!(labels["containerd.io/gc.ref.content.l.0"], digest("l").to_string());
        assert_eq!(document.children().len(), 2);
    }
}
