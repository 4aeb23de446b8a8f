//! Images between registries, archives and this engine. Every road (command line, CRI, transfer service) ends here.

mod ahead;
mod blobs;
mod convert;
mod export;
mod extract;
mod fetch;
pub(crate) mod import;
mod lazy;
pub(crate) mod manifest;
mod names;
mod pull;
mod push;
mod report;
mod unpack;

use std::sync::Arc;

use gantry_types::{Descriptor, Digest, Labels, Platform, Reference, Scope, media_type};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use crate::content::Content;
use crate::core::Core;
use crate::images::{Image, Images};
use crate::keyed::Keyed;
use crate::leases::Leases;
use crate::snapshots::Snapshots;
use crate::{Error, Result, UnpackPlatform};

use report::Report;

pub use blobs::Blobs;
pub use gantry_registry::{Access, Ask, Credential, Credentials, CredentialsError, Provided, Scheme, Secret};

/// The transfers of all namespaces.
#[derive(Clone)]
pub struct Transfer {
    pub(crate) core: Arc<Core>,
    pub(crate) content: Content,
    pub(crate) snapshots: Snapshots,
    pub(crate) images: Images,
    pub(crate) leases: Leases,
    /// One fetch of a digest at a time.
    pub(crate) fetching: Keyed,
    /// One unpacking of a chain id at a time.
    pub(crate) unpacking: Keyed,
    /// Which snapshotters have commits that may not be durable yet.
    unsynced: unpack::Unsynced,
}

/// How far something is. The names and forms are those the transfer service streams.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Progress {
    /// `Resolving from …`, `waiting`, `downloading`, `complete`, `extracting`, `extracted`, `saved`, `uploading`, …
    pub event: String,
    /// What: a reference, `manifest-sha256:…`, `layer-sha256:…`.
    pub name: String,
    /// Names of what it belongs to.
    pub parents: Vec<String>,
    /// Bytes done.
    pub progress: i64,
    /// Bytes in all; 0 where unknown.
    pub total: i64,
    /// The blob, where it is one.
    pub descriptor: Option<Descriptor>,
}

/// Where progress goes. Default: nowhere. A closed receiver is no error.
#[derive(Clone, Default)]
pub struct ProgressSink(Option<mpsc::UnboundedSender<Progress>>);

impl ProgressSink {
    /// A sink, and what reads from it.
    pub fn channel() -> (ProgressSink, mpsc::UnboundedReceiver<Progress>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (ProgressSink(Some(sender)), receiver)
    }

    /// Tells of progress.
    pub fn tell(&self, progress: Progress) {
        if let Some(sender) = &self.0 {
            // Nobody has to listen.
            let _ = sender.send(progress);
        }
    }
}

/// What is to be unpacked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unpack {
    /// For which platform.
    pub platform: Platform,
    /// By which snapshotter; empty for the default one.
    pub snapshotter: String,
    /// Whether every snapshotter is told which image a layer belongs to; else only one of another process is that wants
    /// to be.
    pub annotate: bool,
    /// Whether imgcrypt's programs, as stream processors, are told how an encrypted layer's key is found.
    pub decrypt: bool,
}

impl Unpack {
    /// An unpacking that tells nobody more than needed.
    pub fn new(platform: Platform, snapshotter: impl Into<String>) -> Unpack {
        Unpack { platform, snapshotter: snapshotter.into(), annotate: false, decrypt: false }
    }
}

/// What to pull and under which name to keep it.
#[derive(Clone)]
pub struct Pull {
    /// What to resolve.
    pub reference: Reference,
    /// Name of the image; empty: the reference.
    pub name: String,
    /// Labels of the image.
    pub labels: Labels,
    /// Platforms to fetch; none: all of an index.
    pub platforms: Vec<Platform>,
    /// Of an index fetch no more than this many manifests, the best first; 0 for no limit.
    pub manifest_limit: usize,
    /// Also fetch manifests and configurations of other platforms, without their layers.
    pub all_metadata: bool,
    /// What to unpack.
    pub unpacks: Vec<Unpack>,
    /// Whether layers' blobs are left to the next collection once they are unpacked.
    pub discard_layers: bool,
    /// How registries are reached.
    pub access: Access,
    /// Layers fetched at once; none: as the engine's configuration has it.
    pub concurrent_downloads: Option<usize>,
}

impl Pull {
    /// A pull of the host's platform, unpacked by the default snapshotter.
    pub fn new(reference: Reference) -> Pull {
        Pull {
            reference,
            name: String::new(),
            labels: Labels::new(),
            platforms: vec![Platform::host()],
            manifest_limit: 1,
            all_metadata: false,
            unpacks: vec![Unpack::new(Platform::host(), "")],
            discard_layers: false,
            access: Access::default(),
            concurrent_downloads: None,
        }
    }
}

/// What to push where.
#[derive(Clone)]
pub struct Push {
    /// Name of the image.
    pub name: String,
    /// Where to.
    pub reference: Reference,
    /// Platforms to push; none: all that is here.
    pub platforms: Vec<Platform>,
    /// How registries are reached.
    pub access: Access,
}

/// How the layers of an image are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerForm {
    /// Not compressed.
    Plain,
    /// gzip, level 6.
    Gzip,
    /// zstd, level 3.
    Zstd,
    /// gzip whose files can be read one by one.
    Estargz,
}

impl LayerForm {
    fn compression(self) -> gantry_layer::Compression {
        match self {
            LayerForm::Plain => gantry_layer::Compression::None,
            LayerForm::Gzip | LayerForm::Estargz => gantry_layer::Compression::Gzip,
            LayerForm::Zstd => gantry_layer::Compression::Zstd,
        }
    }

    fn media_type(self) -> &'static str {
        match self {
            LayerForm::Plain => media_type::OCI_LAYER,
            LayerForm::Gzip | LayerForm::Estargz => media_type::OCI_LAYER_GZIP,
            LayerForm::Zstd => media_type::OCI_LAYER_ZSTD,
        }
    }
}

/// An image to write in another form.
#[derive(Clone, Debug)]
pub struct Convert {
    /// Name of the image that is here.
    pub source: String,
    /// Name of the new one; one that is there comes to stand for it.
    pub target: String,
    /// How its layers are written.
    pub form: LayerForm,
    /// Platforms of an index to convert; none: all that are here.
    pub platforms: Vec<Platform>,
}

/// How to name and unpack what an archive holds.
#[derive(Clone, Default)]
pub struct Import {
    /// Name for an archive's single image that carries none; prefix for tags where `prefix` is set.
    pub name: String,
    /// Labels of the images.
    pub labels: Labels,
    /// Platforms to keep; none: all.
    pub platforms: Vec<Platform>,
    /// Whether manifests of other platforms are kept although their layers are not there.
    pub all_metadata: bool,
    /// Rules for further names, as the transfer service gives them.
    pub references: Vec<ImageReference>,
    /// What to unpack.
    pub unpacks: Vec<Unpack>,
    /// Compress layers that are plain tar.
    pub force_compress: bool,
}

/// A rule by which imported images are named (`containerd.types.transfer.ImageReference`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageReference {
    /// The name, or the part of it in front of tag or digest.
    pub name: String,
    /// Whether `name` is a prefix that the archive's names must have or get.
    pub is_prefix: bool,
    /// Whether an archive's name replaces what is there already.
    pub allow_overwrite: bool,
    /// Whether to also name by digest: `NAME@DIGEST`.
    pub add_digest: bool,
    /// Whether names by digest leave out those that have another name.
    pub skip_named_digest: bool,
}

/// What to write into an archive.
#[derive(Clone, Debug, Default)]
pub struct Export {
    /// Names of images; none: all of the namespace.
    pub names: Vec<String>,
    /// Platforms to write; none: the host's, unless `all_platforms`.
    pub platforms: Vec<Platform>,
    /// Everything an index names.
    pub all_platforms: bool,
    /// Leave out Docker's `manifest.json`.
    pub skip_docker_manifest: bool,
    /// Leave out layers that must not be distributed.
    pub skip_non_distributable: bool,
}

impl Transfer {
    pub(crate) fn new(
        core: &Arc<Core>,
        content: Content,
        snapshots: Snapshots,
        images: Images,
        leases: Leases,
    ) -> Transfer {
        let (fetching, unpacking, unsynced) = (Keyed::default(), Keyed::default(), unpack::Unsynced::default());
        Transfer { core: Arc::clone(core), content, snapshots, images, leases, fetching, unpacking, unsynced }
    }

    /// Fetches, verifies and unpacks an image: one pipeline under one lease. After a failure no image of that name
    /// has changed; bytes that came are kept for a while, and the next pull goes on behind them.
    ///
    /// # Errors
    /// What registry, content or layers say, naming blob, registry and reason.
    pub async fn pull(&self, scope: &Scope, pull: Pull, progress: ProgressSink) -> Result<Image> {
        pull::pull(self, scope, pull, progress).await
    }

    /// Sends an image: blobs first, manifests last.
    ///
    /// # Errors
    /// `NotFound` for a blob that is not here, what the registry says.
    pub async fn push(&self, scope: &Scope, push: Push, progress: ProgressSink) -> Result<()> {
        push::push(self, scope, push, progress).await
    }

    /// Reads an archive (OCI layout or Docker, plain, gzip or zstd); gives the images it made.
    ///
    /// # Errors
    /// `InvalidArgument` for what is no such archive.
    pub async fn import(
        &self,
        scope: &Scope,
        archive: Box<dyn AsyncRead + Send + Unpin>,
        import: Import,
        progress: ProgressSink,
    ) -> Result<Vec<Image>> {
        import::import(self, scope, archive, import, progress).await
    }

    /// Writes an archive: an OCI layout that Docker reads too.
    ///
    /// # Errors
    /// `NotFound` for an image or blob that is not here.
    pub async fn export(
        &self,
        scope: &Scope,
        archive: Box<dyn AsyncWrite + Send + Unpin>,
        export: Export,
        progress: ProgressSink,
    ) -> Result<()> {
        export::export(self, scope, archive, export, progress).await
    }

    /// Writes an image with its layers in another form, as an image of OCI's types. The same image gives the same bytes.
    ///
    /// # Errors
    /// `NotFound` for an image or blob that is not here; `InvalidArgument` for a layer that the form cannot hold.
    pub async fn convert(&self, scope: &Scope, convert: &Convert) -> Result<Image> {
        convert::convert(self, scope, convert).await
    }

    /// Unpacks an image that is here; gives the chain id, which is the name of its top snapshot.
    ///
    /// # Errors
    /// `NotFound` for a blob that is not here.
    pub async fn unpack(
        &self,
        scope: &Scope,
        image: &Image,
        unpack: &Unpack,
        progress: ProgressSink,
    ) -> Result<String> {
        let (scope, cover) = self.leases.cover(scope, UNPACK_LEASE).await?;
        let top = unpack_stored(self, &scope, image, unpack, &Report::new(progress)).await;
        if let Some(cover) = cover {
            cover.end().await;
        }
        top
    }

    /// Fetches a blob of an image that is here.
    ///
    /// # Errors
    /// `NotFound` without an image to fetch it by; what the registry says.
    pub(crate) async fn bring_back(
        &self,
        scope: &Scope,
        blob: &Descriptor,
        reference: Option<&Reference>,
    ) -> Result<()> {
        let reference = reference.ok_or_else(|| Error::not_found("image to fetch by", blob.digest.to_string()))?;
        let (access, stop) = (Access::default(), tokio_util::sync::CancellationToken::new());
        let report = Report::new(ProgressSink::default());
        let fetch = fetch::Fetch { transfer: self, scope, reference, access: &access, report: &report, stop: &stop };
        fetch.blob(blob, &Labels::new(), None).await
    }

    /// Sees to it that the layers of a manifest are here, where they were discarded after their unpacking: they come again
    /// from where the image did. The scope's lease keeps them.
    ///
    /// # Errors
    /// `NotFound` where the image's name says no registry, what the registry says.
    pub(crate) async fn have_layers(&self, scope: &Scope, manifest: &Descriptor, image: &str) -> Result<()> {
        if !self.content.info(scope, &manifest.digest).await?.labels.contains_key(DISCARDED) {
            return Ok(());
        }
        let document = manifest::read(&self.content, scope, manifest).await?;
        let reference = image.parse().ok();
        for layer in document.iter().flat_map(manifest::Document::children) {
            if self.content.info(scope, &layer.digest).await.is_err() {
                self.bring_back(scope, &layer, reference.as_ref()).await?;
            }
        }
        Ok(())
    }

    /// The configuration of an image for a platform, below an index or at once.
    ///
    /// # Errors
    /// `NotFound` for a platform it does not have, or a blob that is not here.
    pub async fn config_of(&self, scope: &Scope, target: &Descriptor, platform: &Platform) -> Result<Descriptor> {
        Ok(find_manifest(self, scope, target, platform).await?.1.config)
    }

    /// Gives an image another name; with `force` over one that is there.
    ///
    /// # Errors
    /// `NotFound`, `AlreadyExists`.
    pub async fn tag(&self, scope: &Scope, source: &str, target: &str, labels: Labels, force: bool) -> Result<Image> {
        let image = self.images.get(scope, source).await?;
        let mut all = image.labels;
        all.extend(labels);
        if force {
            return self.name_image(scope, target, &image.target, &all).await;
        }
        self.images.create(scope, pull::new_image(target, image.target, all)).await
    }
}

/// Label of a manifest whose layers' blobs were left to the collector once they were unpacked.
const DISCARDED: &str = "io.gantry.layers.discarded";

/// Longest an unpacking can hold its lease.
const UNPACK_LEASE: std::time::Duration = std::time::Duration::from_secs(24 * 3600);

/// Unpacks the image of `unpack`'s platform from content.
async fn unpack_stored(t: &Transfer, scope: &Scope, image: &Image, unpack: &Unpack, report: &Report) -> Result<String> {
    let unpack = Unpack { snapshotter: or_default(t, unpack), ..unpack.clone() };
    let (digest, manifest) = find_manifest(t, scope, &image.target, &unpack.platform).await?;
    let config = manifest::read_config(&t.content, scope, &manifest.config).await?;
    manifest.layers.iter().for_each(|layer| report.belongs(layer, report::name_of(&image.target)));
    let sources = manifest.layers.iter().map(|_| unpack::Source::Stored);
    let mut stack = t.stack_of(&manifest, Some(&config), &unpack, sources)?;
    if unpack.annotate {
        stack.tell(&image.name, &digest, &manifest);
    }
    let top = t.unpack_stack(scope, stack, report).await?;
    t.mark_unpacked(scope, &manifest, Some(&config), &unpack, &top).await?;
    Ok(top.to_string())
}

/// The manifest for a platform, below an index or at once, and its digest.
pub(crate) async fn find_manifest(
    t: &Transfer,
    scope: &Scope,
    root: &Descriptor,
    platform: &Platform,
) -> Result<(Digest, manifest::Manifest)> {
    let missing = || Error::not_found("manifest for platform", platform.to_string());
    let mut next = root.clone();
    for _ in 0..=manifest::MAX_DEPTH {
        match manifest::read(&t.content, scope, &next).await?.ok_or_else(missing)? {
            manifest::Document::Manifest(manifest) => return Ok((next.digest, *manifest)),
            manifest::Document::Index(index) => {
                let chosen = manifest::choose(&index.manifests, std::slice::from_ref(platform), 1);
                next = chosen.into_iter().next().ok_or_else(missing)?;
            }
        }
    }
    Err(missing())
}

/// The label that names a registry's repositories: by host without its port, as containerd has it.
fn source_label(reference: &Reference) -> String {
    let host = reference.host();
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    format!("{}.{}", gantry_types::labels::DISTRIBUTION_SOURCE, name.trim_matches(['[', ']']))
}

/// Whether an operator's choice is about a platform.
fn is_about(of: &UnpackPlatform, platform: &Platform) -> bool {
    match of.platform.parse::<Platform>() {
        _ if of.platform.is_empty() => true,
        Ok(of) => of.preference(platform).is_some(),
        Err(_) => false,
    }
}

/// The differ that the operator chose for the platform and its snapshotter; else all, in the order they are tried.
///
/// # Errors
/// `NotFound` for a differ that is not there.
fn differs_for(t: &Transfer, unpack: &Unpack) -> Result<Vec<String>> {
    let config = &t.core.config;
    let of_it = |of: &&UnpackPlatform| {
        is_about(of, &unpack.platform) && (of.snapshotter.is_empty() || of.snapshotter == unpack.snapshotter)
    };
    match config.unpack_platforms.iter().filter(|of| !of.differ.is_empty()).find(of_it) {
        None => Ok(config.differs.clone()),
        Some(of) if is_known(t, &of.differ) => Ok(vec![of.differ.clone()]),
        Some(of) => Err(Error::not_found("differ of unpack_config", of.differ.clone())),
    }
}

fn is_known(t: &Transfer, differ: &str) -> bool {
    crate::diff::BUILT_IN.contains(&differ) || t.core.differs.contains_key(differ)
}

/// The snapshotter that is asked for; else the one that the operator chose for the platform; else the default one.
fn or_default(t: &Transfer, unpack: &Unpack) -> String {
    let wished = |of: &&UnpackPlatform| is_about(of, &unpack.platform);
    let known = |of: &&UnpackPlatform| t.snapshots.names().contains(&of.snapshotter);
    let chosen = t.core.config.unpack_platforms.iter().filter(known).find(wished);
    match chosen {
        _ if !unpack.snapshotter.is_empty() => unpack.snapshotter.clone(),
        Some(of) => of.snapshotter.clone(),
        None => t.snapshots.default_name().to_owned(),
    }
}
