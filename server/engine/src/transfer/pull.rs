//! Pulling an image: resolve, fetch, verify and unpack as one pipeline, under one lease; the image's name comes last.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use futures::future::{join_all, try_join_all};
use futures::{StreamExt, TryStreamExt};
use gantry_types::{Descriptor, Digest, ErrorKind, HasKind, Labels, Platform, Scope, labels, media_type};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::fetch::{Fetch, ingest};
use super::manifest::{self, Document, ImageConfig, MAX_DEPTH, Manifest};
use super::report::{Report, name_of};
use super::unpack::{Asked, Layer, Source, Stack};
use super::{ProgressSink, Pull, Transfer, Unpack};
use crate::content::is_present;
use crate::images::Image;
use crate::ops::Entry;
use crate::{Error, Result, decryption};

/// Longest a pull can hold its lease; a longer one would lose what it has got so far.
const LEASE: Duration = Duration::from_secs(24 * 3600);

pub(super) async fn pull(t: &Transfer, scope: &Scope, pull: Pull, progress: ProgressSink) -> Result<Image> {
    let operation = t.core.ops.begin("pull", pull.reference.to_string(), Some(&scope.namespace), scope.deadline);
    let (scope, cover) = t.leases.cover(scope, LEASE).await?;
    let report = Report::new(progress);
    let stop = CancellationToken::new();
    let one = One { t, scope: &scope, pull: &pull, report: &report, stop: &stop, operation: &operation };
    let image = one.run().await;
    if let Some(cover) = cover {
        cover.end().await;
    }
    image.map_err(|error| match error {
        error @ (Error::Registry(_) | Error::Pull { .. }) => error,
        error => Error::Pull { reference: pull.reference.to_string(), source: Box::new(error) },
    })
}

/// One pull.
struct One<'a> {
    t: &'a Transfer,
    scope: &'a Scope,
    pull: &'a Pull,
    report: &'a Report,
    stop: &'a CancellationToken,
    operation: &'a Entry,
}

/// An image of one platform, its documents being in content.
struct Single {
    /// The manifest's own.
    digest: Digest,
    manifest: Manifest,
    config: Option<ImageConfig>,
}

impl One<'_> {
    async fn run(&self) -> Result<Image> {
        let name = if self.pull.name.is_empty() { self.pull.reference.to_string() } else { self.pull.name.clone() };
        self.operation.stage("resolving");
        let reference = self.pull.reference.to_string();
        self.report.title(format!("Resolving from OCI Registry ({reference})"));
        let resolved = self.t.core.registry.get().resolve(&self.pull.reference, &self.pull.access).await?;
        let root = Descriptor { platform: None, ..resolved.descriptor };
        self.operation.stage("looking for signatures");
        crate::policy::at_pull(&self.t.core, &self.pull.reference, &root.digest, &self.pull.access).await?;
        if let Some(verifier) = &self.t.core.config.image_verifier {
            self.operation.stage("asking the image verifiers");
            crate::verify::verify(verifier, &name, &root).await?;
        }
        self.report.title(format!("Pulling from OCI Registry ({reference})"));
        self.report.named("fetching image content", &reference, &root);
        self.report.belongs(&root, reference.clone());
        self.operation.stage("fetching manifests");
        let singles = self.documents(&root, resolved.body).await?;
        self.operation.stage("fetching and unpacking layers");
        let moved = self.all_layers(&singles).await;
        if moved.is_err() {
            self.abandon(&singles).await;
        }
        moved?;
        self.operation.stage("naming the image");
        let image = self.t.name_image(self.scope, &name, &root, &self.pull.labels).await?;
        self.report.named("saved", &name, &root);
        self.report.title(format!("Completed pull from OCI Registry ({reference})"));
        Ok(image)
    }

    /// Fetches indexes and manifests from the root down; gives the images that were chosen.
    async fn documents(&self, root: &Descriptor, body: Option<bytes::Bytes>) -> Result<Vec<Single>> {
        let mut open = vec![(root.clone(), body, 0)];
        let mut seen = HashSet::new();
        let mut manifests = Vec::new();
        while let Some((descriptor, body, depth)) = open.pop() {
            if !seen.insert(descriptor.digest.clone()) {
                continue;
            }
            match self.document(&descriptor, body).await? {
                Document::Manifest(manifest) => manifests.push((descriptor.digest.clone(), *manifest)),
                Document::Index(index) if depth < MAX_DEPTH => {
                    let chosen = manifest::choose(&index.manifests, &self.pull.platforms, self.pull.manifest_limit);
                    if self.pull.all_metadata {
                        self.metadata(&index.manifests, &chosen).await?;
                    } else if chosen.is_empty() {
                        return Err(self.no_platform());
                    }
                    open.extend(chosen.into_iter().rev().map(|child| (child, None, depth + 1)));
                }
                Document::Index(_) => return Err(bad(&descriptor, "index", "indexes are nested too deep")),
            }
        }
        self.configs(manifests).await
    }

    /// Fetches manifests and configurations that were not chosen, without their layers.
    async fn metadata(&self, all: &[Descriptor], chosen: &[Descriptor]) -> Result<()> {
        let other = |descriptor: &&Descriptor| !chosen.iter().any(|chosen| chosen.digest == descriptor.digest);
        for descriptor in all.iter().filter(other).filter(|d| media_type::is_manifest(&d.media_type)) {
            if let Document::Manifest(manifest) = self.document(descriptor, None).await? {
                self.fetch().blob(&manifest.config, &Labels::from_iter(self.source_label()), None).await?;
            }
        }
        Ok(())
    }

    /// Fetches one document and stores it with what it keeps.
    async fn document(&self, descriptor: &Descriptor, body: Option<bytes::Bytes>) -> Result<Document> {
        let registry = &self.t.core.registry.get();
        self.report.blob("waiting", descriptor, 0);
        let mut had = false;
        let bytes = match body {
            Some(body) => body,
            None => match self.t.content.read_all(self.scope, &descriptor.digest, manifest::MAX_SIZE).await {
                Ok(bytes) => {
                    had = true;
                    bytes
                }
                Err(_) => registry.manifest(&self.pull.reference, descriptor, &self.pull.access).await?,
            },
        };
        let document = Document::parse(descriptor, &bytes)?;
        let unknown = || Error::MediaType { media_type: descriptor.media_type.clone(), wanted: "pulled" };
        let document = document.ok_or_else(unknown)?;
        document.children().iter().for_each(|child| self.report.belongs(child, name_of(descriptor)));
        let mut labels = document.gc_labels();
        if self.discards() {
            let of_layers = format!("{}.l.", labels::GC_REF_CONTENT);
            labels.retain(|key, _| !key.starts_with(&of_layers));
            if matches!(document, Document::Manifest(_)) {
                labels.insert(super::DISCARDED.to_owned(), "true".to_owned());
            }
        }
        labels.extend(self.source_label());
        let content = &self.t.content;
        content.write_all(self.scope, &descriptor.digest, bytes, labels.clone()).await?;
        self.fetch().add_source(descriptor, &labels).await?;
        self.report.blob(if had { "already exists" } else { "complete" }, descriptor, descriptor.size);
        Ok(document)
    }

    /// Fetches the configurations; of several images without a platform of their own, keeps those that fit.
    async fn configs(&self, manifests: Vec<(Digest, Manifest)>) -> Result<Vec<Single>> {
        let mut singles = Vec::new();
        for (digest, manifest) in manifests {
            self.fetch().blob(&manifest.config, &Labels::from_iter(self.source_label()), None).await?;
            let config = match media_type::is_config(&manifest.config.media_type) {
                true => Some(manifest::read_config(&self.t.content, self.scope, &manifest.config).await?),
                false => None,
            };
            if config.as_ref().is_none_or(|config| self.fits(&config.platform)) {
                singles.push(Single { digest, manifest, config });
            }
        }
        if singles.is_empty() && !self.pull.all_metadata { Err(self.no_platform()) } else { Ok(singles) }
    }

    fn fits(&self, platform: &Platform) -> bool {
        let wanted = &self.pull.platforms;
        wanted.is_empty() || platform.os.is_empty() || wanted.iter().any(|wanted| wanted.preference(platform).is_some())
    }

    async fn all_layers(&self, singles: &[Single]) -> Result<()> {
        try_join_all(singles.iter().map(|single| self.layers(single))).await.map(drop)
    }

    /// Fetches an image's layers side by side, and unpacks them meanwhile.
    async fn layers(&self, single: &Single) -> Result<()> {
        let unpacks = self.unpacks(single);
        let layers = &single.manifest.layers;
        let (done, fetched): (Vec<_>, Vec<_>) = layers.iter().map(|_| watch::channel(false)).unzip();
        let mut asking: Vec<Option<oneshot::Sender<Asked>>> = layers.iter().map(|_| None).collect();
        let mut stacks = Vec::new();
        for unpack in &unpacks {
            let sources = fetched.iter().map(|fetched| Source::Fetched(fetched.clone()));
            stacks.push(self.stack(single, unpack, sources)?);
        }
        let present = self.present(&mut stacks).await?;
        // What comes can be unpacked by one snapshotter meanwhile.
        let first = stacks.first_mut().into_iter().flat_map(|stack| &mut stack.layers);
        for ((layer, asking), fetched) in first.zip(&mut asking).zip(&fetched).skip(present) {
            let (ask, asked) = oneshot::channel();
            layer.source = Source::Coming(asked, fetched.clone());
            *asking = Some(ask);
        }
        let most = self.pull.concurrent_downloads.unwrap_or(self.t.core.config.concurrent_downloads).max(1);
        let fetches = layers
            .iter()
            .zip(done)
            .zip(asking)
            .skip(present)
            .map(|((layer, done), asking)| self.layer(layer, done, asking));
        // Collected, for the compiler cannot see that the borrowed iterator is the same for every lifetime.
        let fetches: Vec<_> = fetches.collect();
        let fetching = futures::stream::iter(fetches).buffer_unordered(most).try_collect::<Vec<()>>();
        let unpacking =
            try_join_all(stacks.into_iter().map(|stack| self.t.unpack_stack(self.scope, stack, self.report)));
        let tops = match race(fetching, unpacking, self.stop).await? {
            Some(tops) => tops,
            None => self.unpack_again(single, &unpacks).await?,
        };
        for (unpack, top) in unpacks.iter().zip(tops) {
            self.t.mark_unpacked(self.scope, &single.manifest, single.config.as_ref(), unpack, &top).await?;
        }
        Ok(())
    }

    /// Whether layers are of no use once they are unpacked.
    fn discards(&self) -> bool {
        let wished = self.pull.discard_layers || self.t.core.config.discard_unpacked_layers;
        wished && !self.pull.unpacks.is_empty()
    }

    /// How many of the lowest layers need not be fetched, because all snapshotters have them.
    async fn present(&self, stacks: &mut [Stack]) -> Result<usize> {
        let mut present = usize::MAX;
        for stack in stacks.iter() {
            present = present.min(self.t.present(self.scope, stack, self.discards()).await?);
        }
        let present = if stacks.is_empty() { 0 } else { present };
        for stack in stacks {
            stack.layers.iter_mut().take(present).for_each(|layer| layer.source = Source::Stored);
        }
        Ok(present)
    }

    /// After a layer came whole only at the second try: unpacks from content.
    async fn unpack_again(&self, single: &Single, unpacks: &[Unpack]) -> Result<Vec<gantry_types::Digest>> {
        let stored = || single.manifest.layers.iter().map(|_| Source::Stored);
        let stack = |unpack| self.stack(single, unpack, stored());
        let stacks = unpacks.iter().map(stack).collect::<Result<Vec<_>>>()?;
        try_join_all(stacks.into_iter().map(|stack| self.t.unpack_stack(self.scope, stack, self.report))).await
    }

    async fn layer(
        &self,
        layer: &Descriptor,
        done: watch::Sender<bool>,
        asking: Option<oneshot::Sender<Asked>>,
    ) -> Result<()> {
        let (asked, answer) = oneshot::channel();
        // The unpacker says whether it wants the bytes now; where it failed there is nothing to feed.
        let feed = match asking.map(|ask| ask.send(asked)) {
            Some(Ok(())) => answer.await.ok().flatten(),
            _ => None,
        };
        self.fetch().blob(layer, &Labels::from_iter(self.source_label()), feed).await?;
        done.send_replace(true);
        Ok(())
    }

    fn stack(&self, single: &Single, unpack: &Unpack, sources: impl Iterator<Item = Source>) -> Result<Stack> {
        let mut stack = self.t.stack_of(&single.manifest, single.config.as_ref(), unpack, sources)?;
        if unpack.annotate || self.t.is_told(&stack.snapshotter) {
            stack.tell(&self.pull.reference.to_string(), &single.digest, &single.manifest);
        }
        Ok(stack)
    }

    /// What of the wanted unpacking concerns this image.
    fn unpacks(&self, single: &Single) -> Vec<Unpack> {
        let Some(config) = &single.config else { return Vec::new() };
        let mut wanted: Vec<Unpack> = Vec::new();
        for unpack in &self.pull.unpacks {
            let snapshotter = super::or_default(self.t, unpack);
            let fits = config.platform.os.is_empty() || unpack.platform.preference(&config.platform).is_some();
            if fits && !wanted.iter().any(|other| other.snapshotter == snapshotter) {
                wanted.push(Unpack { snapshotter, ..unpack.clone() });
            }
        }
        wanted
    }

    /// After a failure: nothing is left of what was being fetched, unless another pull is at it.
    async fn abandon(&self, singles: &[Single]) {
        let blobs = singles.iter().flat_map(|single| &single.manifest.layers);
        join_all(blobs.map(|blob| async move {
            if let Some(_nobody_else) = self.t.fetching.try_lock(blob.digest.as_str()) {
                // Most have none.
                let _ = self.t.content.abort(self.scope, &ingest(blob)).await;
            }
        }))
        .await;
    }

    fn fetch(&self) -> Fetch<'_> {
        Fetch {
            transfer: self.t,
            scope: self.scope,
            reference: &self.pull.reference,
            access: &self.pull.access,
            report: self.report,
            stop: self.stop,
        }
    }

    /// Says on a blob where it came from, so that a push can mount it there.
    fn source_label(&self) -> Option<(String, String)> {
        let key = super::source_label(&self.pull.reference);
        let value = self.pull.reference.path().to_owned();
        labels::validate(&key, &value).ok().map(|()| (key, value))
    }

    fn no_platform(&self) -> Error {
        let wanted: Vec<String> = self.pull.platforms.iter().map(Platform::to_string).collect();
        Error::not_found("manifest for platform", wanted.join(", "))
    }
}

/// Runs both to their end; gives what was unpacked, or none where the bytes came whole but the unpacker saw them break
/// off. A failed fetch counts more than what unpacking its bytes led to; neither is broken off in the middle.
async fn race<A, B>(
    fetching: impl Future<Output = Result<A>>,
    unpacking: impl Future<Output = Result<B>>,
    stop: &CancellationToken,
) -> Result<Option<B>> {
    let (mut fetching, mut unpacking) = (Box::pin(fetching), Box::pin(unpacking));
    let unpacked = tokio::select! {
        fetched = &mut fetching => {
            let fetched = fetched.map(drop);
            // What it still holds of streams breaks off here, and the unpacker sees it.
            drop(fetching);
            let unpacked = unpacking.await;
            fetched?;
            unpacked
        }
        unpacked = &mut unpacking => {
            if unpacked.as_ref().is_err_and(|error| !is_doubtful(error)) {
                stop.cancel();
            }
            match fetching.await {
                Err(error) if !stop.is_cancelled() => return Err(error),
                _ => unpacked,
            }
        }
    };
    match unpacked {
        Err(error) if is_broken_off(&error) => Ok(None),
        unpacked => unpacked.map(Some),
    }
}

/// Whether an unpacker's error may come from wrong bytes, which only the end of the fetch tells.
fn is_doubtful(error: &Error) -> bool {
    is_broken_off(error) || matches!(error, Error::Layer { .. }) && error.kind() != ErrorKind::ResourceExhausted
}

/// Whether unpacking failed because its bytes could not be read.
fn is_broken_off(error: &Error) -> bool {
    match error {
        Error::Layer { source, .. } => matches!(&source.reason, gantry_layer::Reason::Read(_)),
        error => error.kind() == ErrorKind::Cancelled,
    }
}

fn bad(descriptor: &Descriptor, what: &'static str, reason: &str) -> Error {
    Error::BadBlob { what, digest: descriptor.digest.clone(), reason: reason.to_owned() }
}

impl Transfer {
    /// The layers of an image, each with its source.
    pub(super) fn stack_of(
        &self,
        manifest: &Manifest,
        config: Option<&ImageConfig>,
        unpack: &Unpack,
        sources: impl Iterator<Item = Source>,
    ) -> Result<Stack> {
        let config =
            config.ok_or_else(|| bad(&manifest.config, "image", "no image configuration: nothing to unpack"))?;
        let diff_ids = &config.rootfs.diff_ids;
        if diff_ids.len() != manifest.layers.len() {
            return Err(bad(&manifest.config, "image configuration", "does not name as many layers as the manifest"));
        }
        let layers = manifest.layers.iter().zip(diff_ids).zip(sources);
        let layers = layers.map(|((descriptor, diff_id), source)| Layer {
            descriptor: descriptor.clone(),
            diff_id: diff_id.clone(),
            source,
            told: self.told_always(&unpack.snapshotter, descriptor),
            payloads: if unpack.decrypt { decryption::payloads(descriptor) } else { BTreeMap::new() },
        });
        let (snapshotter, differs) = (unpack.snapshotter.clone(), super::differs_for(self, unpack)?);
        Ok(Stack { snapshotter, differs, layers: layers.collect() })
    }

    /// Labels what was unpacked: the configuration keeps the top snapshot, each layer says what is inside.
    pub(super) async fn mark_unpacked(
        &self,
        scope: &Scope,
        manifest: &Manifest,
        config: Option<&ImageConfig>,
        unpack: &Unpack,
        top: &gantry_types::Digest,
    ) -> Result<()> {
        let key = format!("{}{}", labels::GC_REF_SNAPSHOT, unpack.snapshotter);
        self.label(scope, &manifest.config, key, top.to_string()).await?;
        let diff_ids = config.iter().flat_map(|config| &config.rootfs.diff_ids);
        for (layer, diff_id) in
            manifest.layers.iter().zip(diff_ids).filter(|(layer, diff_id)| layer.digest != **diff_id)
        {
            match self.label(scope, layer, labels::UNCOMPRESSED.to_owned(), diff_id.to_string()).await {
                // A layer that a snapshotter had was not fetched.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                labelled => labelled?,
            }
        }
        Ok(())
    }

    async fn label(&self, scope: &Scope, blob: &Descriptor, key: String, value: String) -> Result<()> {
        let labels = Labels::from([(key, value)]);
        let fields = manifest::fields(&labels);
        self.content.update(scope, &blob.digest, labels, &fields).await.map(drop)
    }

    /// Enters an image, or changes what its name stands for.
    pub(super) async fn name_image(
        &self,
        scope: &Scope,
        name: &str,
        target: &Descriptor,
        labels: &Labels,
    ) -> Result<Image> {
        let image = new_image(name, target.clone(), labels.clone());
        match self.images.create(scope, image.clone()).await {
            Err(error) if is_present(&error) => {
                let mut fields = vec!["target".to_owned()];
                fields.extend(manifest::fields(labels));
                self.images.update(scope, image, &fields).await
            }
            created => created,
        }
    }
}

/// An image whose times the records set.
pub(super) fn new_image(name: &str, target: Descriptor, labels: Labels) -> Image {
    let epoch = std::time::SystemTime::UNIX_EPOCH;
    Image { name: name.to_owned(), target, labels, created: epoch, updated: epoch }
}
