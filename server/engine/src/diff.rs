//! Layers from and to mounts, as containerd's diff service offers them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use gantry_content::ReaderAt;
use gantry_layer::{Compression, Compressor, Control, DiffOptions as LayerOptions, Limits, Options, Unpacked};
use gantry_mount::Tree;
use gantry_plugins::{DiffWishes, RemoteDiffer};
use gantry_types::{
    Algorithm, Any, Descriptor, Digest, ErrorKind, HasKind, Hasher, Labels, Mount, Scope, labels, media_type,
};
use tokio_util::sync::CancellationToken;

use crate::content::{Content, is_present, passing};
use crate::core::Core;
use crate::mounts::Held;
use crate::place::{self, Below, Place};
use crate::processors::{self, Programs, Recipe};
use crate::stream::{self, Drain, Spout};
use crate::{Error, Result, UnpackLimits};

/// Differs that need no other process.
pub(crate) const BUILT_IN: &[&str] = &["erofs", "walking"];

/// How long a layer may take where the caller sets no deadline.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

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

impl From<DiffOptions> for DiffWishes {
    fn from(options: DiffOptions) -> DiffWishes {
        let DiffOptions { media_type, reference, labels, source_date_epoch } = options;
        DiffWishes { media_type, reference, labels, source_date_epoch }
    }
}

/// Sync half of unpacking: what a stream holds.
pub(crate) struct Applied {
    /// Digest of the uncompressed tar.
    pub(crate) diff_id: Digest,
    /// Bytes of the uncompressed tar.
    pub(crate) size: u64,
    /// Directories that are to be like those of the layers below, once these are there.
    pub(crate) undescribed: Vec<PathBuf>,
}

impl Diff {
    /// Names of the differs.
    pub fn names(&self) -> Vec<String> {
        BUILT_IN.iter().map(|name| (*name).to_owned()).chain(self.core.differs.keys().cloned()).collect()
    }

    /// Unpacks a layer blob into the directory that `mounts` show; gives the descriptor of the uncompressed tar.
    /// `payloads` are for stream processors, by their names. `sync`: the file system is synced before this returns.
    ///
    /// # Errors
    /// `NotFound` without the blob; `Unknown` for a media type that cannot be unpacked.
    pub async fn apply(
        &self,
        scope: &Scope,
        layer: &Descriptor,
        mounts: &[Mount],
        payloads: &BTreeMap<String, Any>,
        sync: bool,
    ) -> Result<Descriptor> {
        let mut refused = Error::Unimplemented("unpacking layers");
        for name in &self.core.config.differs {
            let applied = match self.core.differs.get(name) {
                Some(remote) => self.apply_elsewhere(remote, scope, layer, mounts, payloads, sync).await,
                None => self.apply_here(scope, layer, mounts, payloads, sync).await,
            };
            match applied {
                Err(error) if error.kind() == ErrorKind::Unimplemented => refused = error,
                applied => return applied,
            }
        }
        Err(refused)
    }

    async fn apply_elsewhere(
        &self,
        differ: &RemoteDiffer,
        scope: &Scope,
        layer: &Descriptor,
        mounts: &[Mount],
        payloads: &BTreeMap<String, Any>,
        sync: bool,
    ) -> Result<Descriptor> {
        let operation = self.core.ops.begin("apply", layer.digest.as_str(), Some(&scope.namespace), scope.deadline);
        operation.stage("waiting for another process");
        Ok(differ.apply(scope, layer, mounts, payloads, sync).await?)
    }

    async fn apply_here(
        &self,
        scope: &Scope,
        layer: &Descriptor,
        mounts: &[Mount],
        payloads: &BTreeMap<String, Any>,
        sync: bool,
    ) -> Result<Descriptor> {
        let recipe = processors::recipe(&self.core.config, &layer.media_type, payloads)?;
        let operation = self.core.ops.begin("apply", layer.digest.as_str(), Some(&scope.namespace), scope.deadline);
        let reader = self.content.reader(scope, &layer.digest).await?;
        operation.stage("waiting for a free unpacker");
        let _permit = self.core.unpacking.get().enter().await?;
        operation.stage("mounting");
        // An image is written without any mount.
        let (as_image, native) = (place::erofs_layer(mounts).is_some(), is_erofs(&layer.media_type));
        let held = if as_image { None } else { Some(Held::of(&self.core, mounts).await?) };
        operation.stage("unpacking");
        let job = |below| Job {
            ended: CancellationToken::new(),
            digest: layer.digest.clone(),
            recipe: recipe.clone(),
            native,
            deadline: scope.deadline,
            limits: self.core.config.unpack,
            mounts: held.as_ref().map_or(mounts, |held| &held.mounts).to_vec(),
            below,
            // Clients may change what they have mounted before they commit it.
            sums: None,
            control: Arc::default(),
        };
        let applied = match job(Below::Shown).run_stored(Arc::clone(&reader), sync).await {
            Err(error) if place::needs_lower(&error) => job(Below::Needed).run_stored(reader, sync).await,
            applied => applied,
        };
        if let Some(held) = held {
            held.end().await;
        }
        let applied = applied?;
        let media_type = if native { layer.media_type.trim_end_matches("+zstd") } else { media_type::OCI_LAYER };
        Ok(Descriptor::new(media_type, applied.diff_id, applied.size))
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
        let mut refused = Error::Unimplemented("making layers");
        for name in &self.core.config.differs {
            let made = match self.core.differs.get(name) {
                Some(remote) => remote.diff(scope, left, right, options.clone().into()).await.map_err(Error::from),
                None => self.diff_here(scope, left, right, options.clone()).await,
            };
            match made {
                Err(error) if error.kind() == ErrorKind::Unimplemented => refused = error,
                made => return made,
            }
        }
        Err(refused)
    }

    async fn diff_here(
        &self,
        scope: &Scope,
        left: &[Mount],
        right: &[Mount],
        options: DiffOptions,
    ) -> Result<Descriptor> {
        let (media_type, compression) = made_as(&options.media_type)?;
        let made_up = passing("layer");
        let reference = if options.reference.is_empty() { &made_up } else { &options.reference };
        let operation = self.core.ops.begin("diff", reference.as_str(), Some(&scope.namespace), scope.deadline);
        operation.stage("comparing and storing");
        let mut writer = self.content.writer(scope, reference, None, None).await?;
        writer.truncate(0).await?;
        writer.describe(media_type);
        let (spout, mut pieces) = stream::spout();
        let held = (Held::of(&self.core, left).await?, Held::of(&self.core, right).await?);
        let (left, right, newest) = (held.0.mounts.clone(), held.1.mounts.clone(), options.source_date_epoch);
        let making = tokio::task::spawn_blocking(move || make(&left, &right, spout, compression, newest));
        let mut offset = 0;
        while let Some(piece) = pieces.recv().await {
            offset = writer.write(offset, piece).await?;
        }
        let made = making.await.map_err(Error::task("diff"))?;
        held.0.end().await;
        held.1.end().await;
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
    pub(crate) recipe: Recipe,
    /// Whether it is an EROFS image already.
    pub(crate) native: bool,
    /// When the work must be done, at the latest.
    pub(crate) deadline: Option<Instant>,
    pub(crate) limits: UnpackLimits,
    pub(crate) mounts: Vec<Mount>,
    /// What of the layers below is at hand.
    pub(crate) below: Below,
    /// Where to leave a list of what was unpacked.
    pub(crate) sums: Option<PathBuf>,
    /// Tells how far it is.
    pub(crate) control: Arc<Control>,
}

impl Job {
    /// Unpacks a blob that is in content.
    pub(crate) async fn run_stored(self, blob: Arc<dyn ReaderAt>, sync: bool) -> Result<Applied> {
        let (feed, drain) = stream::pipe();
        let feeding = tokio::spawn(feed.blob(blob));
        let applied = self.run(drain, sync).await;
        feeding.abort();
        applied
    }

    /// Unpacks on a thread of its own. When the caller goes away, or the time is over, the thread is told to stop, and
    /// the programs that the layer passes through are killed.
    pub(crate) async fn run(self, layer: Drain, sync: bool) -> Result<Applied> {
        let stop = CancellationToken::new();
        let _stop_with_caller = stop.clone().drop_guard();
        let (watched, programs) = (Arc::clone(&self.control), Arc::<Programs>::default());
        let watched_programs = Arc::clone(&programs);
        let until = self.deadline.unwrap_or_else(|| Instant::now() + LONGEST);
        let ended = self.ended.clone().drop_guard();
        let thread = tokio::task::spawn_blocking(move || {
            let _ended = ended;
            self.unpack(layer, sync, &programs)
        });
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => watched_programs.kill("its work is not wanted any more"),
                () = tokio::time::sleep_until(until.into()) => watched_programs.kill("not done before the deadline"),
            }
            stop.cancelled().await;
            watched.cancel();
        });
        thread.await.map_err(Error::task("unpack"))?
    }

    fn unpack(self, layer: Drain, sync: bool, programs: &Arc<Programs>) -> Result<Applied> {
        // Containers go before images.
        let _low = gantry_mount::priority::Background::new();
        let place = Place::of(&self.mounts, self.below)?;
        let limits = Limits {
            bytes: self.limits.max_bytes,
            entries: self.limits.max_entries,
            ratio: self.limits.max_ratio,
            ..Limits::default()
        };
        let (control, sums) = (Arc::clone(&self.control), self.sums.clone());
        let options = Options { limits, control, sums, ..Options::default() };
        let plain = self.recipe.open(layer, programs)?;
        let compression = self.recipe.compression();
        if self.native {
            return place.store(plain, compression, self.limits.max_bytes);
        }
        let unpacked = place.unpack(plain, compression, options);
        let unpacked = unpacked.map_err(|source| Error::Layer { digest: self.digest, source })?;
        if sync {
            sync_file_system(place.directory())?;
        }
        let Unpacked { diff_id, applied, undescribed, .. } = unpacked;
        Ok(Applied { diff_id, size: applied.tar_bytes, undescribed })
    }
}

/// The compression of a layer's media type.
pub(crate) fn compression_of(media_type: &str) -> Result<Compression> {
    let unknown = || Error::MediaType { media_type: media_type.chars().take(200).collect(), wanted: "unpacked" };
    let erofs = || match media_type.strip_prefix(EROFS)?.split_once('+') {
        None => Some(Compression::None),
        Some((_, "zstd")) => Some(Compression::Zstd),
        Some(_) => None,
    };
    media_type::layer_compression(media_type).or_else(erofs).ok_or_else(unknown)
}

/// Layers that are EROFS images, of whatever version (as containerd takes them).
const EROFS: &str = "application/vnd.erofs.layer";

pub(crate) fn is_erofs(media_type: &str) -> bool {
    media_type.starts_with(EROFS)
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
