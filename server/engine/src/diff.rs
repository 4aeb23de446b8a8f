//! Layers from and to mounts, as containerd's diff service offers them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use gantry_layer::{Compression, Compressor, Control, DiffOptions as LayerOptions, Limits, Options};
use gantry_mount::Tree;
use gantry_types::{Algorithm, Any, Descriptor, Digest, Hasher, Labels, Mount, Scope, labels, media_type};
use tokio_util::sync::CancellationToken;

use crate::content::{Content, is_present};
use crate::core::Core;
use crate::leases::unique;
use crate::place::Place;
use crate::stream::{self, Drain, Spout};
use crate::{Error, Result, UnpackLimits};

/// Applying and making layers.
#[derive(Clone)]
pub struct Diff {
    pub(crate) core: Arc<Core>,
    pub(crate) content: Content,
}

/// How to make a layer.
#[derive(Clone, Debug, Default)]
pub struct DiffOptions {
    /// Media type of the layer; empty: OCI gzip.
    pub media_type: String,
    /// Name of the ingest; empty: made up.
    pub reference: String,
    /// Labels of the blob.
    pub labels: Labels,
    /// Latest time an entry may carry; later ones are set back to it.
    pub source_date_epoch: Option<SystemTime>,
}

/// Sync half of unpacking: what a stream holds.
pub(crate) struct Applied {
    /// Digest of the uncompressed tar.
    pub(crate) diff_id: Digest,
    /// Bytes of the uncompressed tar.
    pub(crate) size: u64,
}

impl Diff {
    /// Unpacks a layer blob into the directory that `mounts` show; gives the descriptor of the uncompressed tar.
    /// `sync`: the file system is synced before this returns.
    ///
    /// # Errors
    /// `NotFound` without the blob; `Unknown` for a media type that cannot be unpacked.
    pub async fn apply(
        &self,
        scope: &Scope,
        layer: &Descriptor,
        mounts: &[Mount],
        _payloads: &BTreeMap<String, Any>,
        sync: bool,
    ) -> Result<Descriptor> {
        let compression = compression_of(&layer.media_type)?;
        let operation = self.core.ops.begin("apply", layer.digest.as_str(), Some(&scope.namespace), scope.deadline);
        let reader = self.content.reader(scope, &layer.digest).await?;
        operation.stage("waiting for a free unpacker");
        let _permit = self.core.unpacking.acquire().await.map_err(|_| Error::Stopped { what: "apply" })?;
        operation.stage("unpacking");
        let (feed, drain) = stream::pipe();
        let feeding = tokio::spawn(feed.blob(reader));
        let job = Job {
            ended: CancellationToken::new(),
            digest: layer.digest.clone(),
            compression,
            limits: self.core.config.unpack,
            mounts: mounts.to_vec(),
        };
        let applied = job.run(drain, sync, Arc::default()).await;
        feeding.abort();
        let applied = applied?;
        Ok(Descriptor::new(media_type::OCI_LAYER, applied.diff_id, applied.size))
    }

    /// Stores what `right` changes in `left` as a layer blob.
    ///
    /// # Errors
    /// `Unknown` for a media type that cannot be made.
    pub async fn diff(
        &self,
        scope: &Scope,
        left: &[Mount],
        right: &[Mount],
        options: DiffOptions,
    ) -> Result<Descriptor> {
        let (media_type, compression) = made_as(&options.media_type)?;
        let made_up = format!("layer-{}", unique());
        let reference = if options.reference.is_empty() { &made_up } else { &options.reference };
        let operation = self.core.ops.begin("diff", reference.as_str(), Some(&scope.namespace), scope.deadline);
        operation.stage("comparing and storing");
        let mut writer = self.content.writer(scope, reference, None, None).await?;
        writer.truncate(0).await?;
        writer.describe(media_type);
        let (spout, mut pieces) = stream::spout();
        let (left, right, newest) = (left.to_vec(), right.to_vec(), options.source_date_epoch);
        let making = tokio::task::spawn_blocking(move || make(&left, &right, spout, compression, newest));
        let mut offset = 0;
        while let Some(piece) = pieces.recv().await {
            offset = writer.write(offset, piece).await?;
        }
        let made = making.await.map_err(Error::task("diff"))?;
        let stored = match made {
            Ok(diff_id) => self.store(writer, offset, diff_id, options.labels).await,
            Err(error) => Err(error),
        };
        if stored.is_err() {
            // What was written is of no use; a failure to drop it is healed when it expires.
            let _ = self.content.abort(scope, reference).await;
        }
        let (digest, diff_id) = stored?;
        let mut descriptor = Descriptor::new(media_type, digest, offset);
        descriptor.annotations.insert(labels::UNCOMPRESSED.to_owned(), diff_id.to_string());
        Ok(descriptor)
    }

    async fn store(
        &self,
        mut writer: crate::content::Writer,
        size: u64,
        diff_id: Digest,
        mut labels: Labels,
    ) -> Result<(Digest, Digest)> {
        let digest = writer.digest().await?;
        if digest != diff_id {
            labels.insert(labels::UNCOMPRESSED.to_owned(), diff_id.to_string());
        }
        match writer.commit(Some(size), Some(&digest), labels).await {
            Err(error) if is_present(&error) => {}
            committed => drop(committed?),
        }
        Ok((digest, diff_id))
    }
}

/// A layer to be unpacked into mounts.
pub(crate) struct Job {
    /// Cancelled once the thread has ended and touches the directory no more.
    pub(crate) ended: CancellationToken,
    pub(crate) digest: Digest,
    pub(crate) compression: Compression,
    pub(crate) limits: UnpackLimits,
    pub(crate) mounts: Vec<Mount>,
}

impl Job {
    /// Unpacks on a thread of its own. When the caller goes away the thread is told to stop.
    pub(crate) async fn run(self, layer: Drain, sync: bool, control: Arc<Control>) -> Result<Applied> {
        let stop = CancellationToken::new();
        let _stop_with_caller = stop.clone().drop_guard();
        let watched = Arc::clone(&control);
        let ended = self.ended.clone().drop_guard();
        let thread = tokio::task::spawn_blocking(move || {
            let _ended = ended;
            self.unpack(layer, sync, control)
        });
        tokio::spawn(async move {
            stop.cancelled().await;
            watched.cancel();
        });
        thread.await.map_err(Error::task("unpack"))?
    }

    fn unpack(self, layer: Drain, sync: bool, control: Arc<Control>) -> Result<Applied> {
        let place = Place::of(&self.mounts)?;
        let limits = Limits {
            bytes: self.limits.max_bytes,
            entries: self.limits.max_entries,
            ratio: self.limits.max_ratio,
            ..Limits::default()
        };
        let options = place.options(Options { limits, control, ..Options::default() });
        let unpacked = gantry_layer::unpack(layer, Some(self.compression), place.directory(), &options);
        let unpacked = unpacked.map_err(|source| Error::Layer { digest: self.digest, source })?;
        if sync {
            sync_file_system(place.directory())?;
        }
        Ok(Applied { diff_id: unpacked.diff_id, size: unpacked.applied.tar_bytes })
    }
}

/// The compression of a layer's media type.
pub(crate) fn compression_of(media_type: &str) -> Result<Compression> {
    let unknown = || Error::MediaType { media_type: media_type.chars().take(200).collect(), wanted: "unpacked" };
    media_type::layer_compression(media_type).ok_or_else(unknown)
}

fn made_as(media_type: &str) -> Result<(&str, Compression)> {
    let media_type = if media_type.is_empty() { media_type::OCI_LAYER_GZIP } else { media_type };
    let unknown = || Error::MediaType { media_type: media_type.chars().take(200).collect(), wanted: "made" };
    Ok((media_type, media_type::layer_compression(media_type).ok_or_else(unknown)?))
}

fn sync_file_system(directory: &std::path::Path) -> Result<()> {
    let open = std::fs::File::open(directory).map_err(Error::io("open", directory))?;
    nix::unistd::syncfs(&open).map_err(std::io::Error::from).map_err(Error::io("sync", directory))
}

/// Writes the layer, compressed; gives the digest of the plain tar.
fn make(
    left: &[Mount],
    right: &[Mount],
    spout: Spout,
    compression: Compression,
    newest: Option<SystemTime>,
) -> Result<Digest> {
    let writing = |error| Error::Diff(gantry_layer::DiffError::Write(error));
    let lower = if left.is_empty() { None } else { Some(Tree::new(left)?) };
    let upper = Tree::new(right)?;
    let mut out =
        Hashed { out: Compressor::new(spout, compression).map_err(writing)?, hasher: Hasher::new(Algorithm::Sha256) };
    let options = LayerOptions { newest, ..LayerOptions::default() };
    gantry_layer::diff(lower.as_ref().map(Tree::path).as_deref(), &upper.path(), &mut out, &options)?;
    let mut spout = out.out.finish().map_err(writing)?;
    std::io::Write::flush(&mut spout).map_err(writing)?;
    Ok(out.hasher.finish())
}

/// Hashes what passes.
struct Hashed<W> {
    out: W,
    hasher: Hasher,
}

impl<W: std::io::Write> std::io::Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let length = self.out.write(bytes)?;
        self.hasher.update(&bytes[..length]);
        Ok(length)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}
