//! What is to be looked at, and looking at it: as many threads as there are cores.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::SystemTime;

use futures::StreamExt as _;
use gantry_content::ReaderAt;
use gantry_layer::{CheckError, Checked, Control};
use gantry_metadata::{Snapshot, SnapshotKind};
use gantry_snapshots::Files;
use gantry_types::{Digest, ErrorKind, HasKind as _, Hasher, Namespace, labels};
use tokio::runtime::Handle;

use super::{Check, Doubt, Finding, Object, Outcome, Range, Report, own};
use crate::transfer::manifest::{self, Document};
use crate::{Error, Result, restore};

/// How much of a blob is read at once.
const PIECE: usize = 1 << 20;

/// Label of what the engine itself has unpacked: the digest of its tar.
pub(super) const DIFF_ID: &str = "containerd.io/snapshot/diff-id";

/// A committed snapshot whose files can be looked at.
#[derive(Clone)]
pub(super) struct Layer {
    pub(super) namespace: Namespace,
    pub(super) record: Snapshot,
    pub(super) files: Files,
}

/// What is to be looked at.
#[derive(Default)]
pub(super) struct Work {
    blobs: Vec<(Digest, u64)>,
    layers: Vec<Layer>,
    passed_over: u64,
}

impl Work {
    pub(super) fn is_empty(&self) -> bool {
        self.blobs.is_empty() && self.layers.is_empty()
    }

    /// Snapshotter and internal key of all snapshots.
    pub(super) fn snapshots(&self) -> impl Iterator<Item = (String, String)> + '_ {
        self.layers.iter().map(|layer| (layer.record.snapshotter.clone(), layer.record.internal.clone()))
    }
}

/// Something that was looked at and is not as it should be.
pub(super) enum Broken {
    Blob { digest: Digest, problem: String },
    Layer { layer: Box<Layer>, problem: String },
}

impl Broken {
    pub(super) fn object(&self) -> Object {
        match self {
            Broken::Blob { digest, .. } => Object::Blob(digest.clone()),
            Broken::Layer { layer, .. } => Object::Snapshot {
                namespace: layer.namespace.clone(),
                snapshotter: layer.record.snapshotter.clone(),
                key: layer.record.key.clone(),
            },
        }
    }

    pub(super) fn problem(&self) -> &str {
        match self {
            Broken::Blob { problem, .. } | Broken::Layer { problem, .. } => problem,
        }
    }

    /// Nothing is built on a broken snapshot; who wants to waits where it is being mended.
    pub(super) fn doubt(&self, doubt: &Doubt, mending: bool) {
        if let Broken::Layer { layer, problem } = self {
            let (name, key) = (&layer.record.snapshotter, &layer.record.internal);
            match mending {
                true => doubt.enter(std::iter::once((name.clone(), key.clone()))),
                false => doubt.is_broken(name, key, problem),
            }
        }
    }

    pub(super) fn told(self) -> Finding {
        Finding { object: self.object(), problem: self.problem().to_owned(), outcome: Outcome::Told }
    }
}

/// Finds what is in the range.
pub(super) async fn select(check: &Check, range: &Range) -> Result<Work> {
    match range {
        Range::All => everything(check, SystemTime::UNIX_EPOCH).await,
        Range::Since(since) => everything(check, *since).await,
        Range::Images(namespace, names) => of_images(check, namespace, names).await,
    }
}

async fn everything(check: &Check, since: SystemTime) -> Result<Work> {
    let core = &check.core;
    let mut work = Work::default();
    let mut blobs = BTreeSet::new();
    for namespace in restore::namespaces(core) {
        if !core.config.has_remote_store() {
            let records = core.db.blobs(&namespace).scan().filter_map(std::result::Result::ok);
            blobs.extend(records.filter(|blob| blob.created > since).map(|blob| (blob.size, blob.digest)));
        }
        for name in core.snapshotters.keys() {
            let records = core.db.snapshots(&namespace, name).scan().filter_map(std::result::Result::ok);
            let later = records.filter(|record| record.created > since || record.updated > since);
            later.for_each(|record| work.add(check, &namespace, record));
        }
    }
    // The small ones first: they are what others are found by.
    work.blobs = blobs.into_iter().map(|(size, digest)| (digest, size)).collect();
    Ok(work)
}

async fn of_images(check: &Check, namespace: &Namespace, names: &[String]) -> Result<Work> {
    let (core, scope) = (&check.core, own(namespace));
    let (mut work, mut blobs) = (Work::default(), BTreeSet::new());
    for name in names {
        let mut open = vec![core.db.images(namespace).get(name)?.target];
        while let Some(descriptor) = open.pop() {
            let Ok(record) = core.db.blobs(namespace).get(&descriptor.digest) else { continue };
            if !blobs.insert((record.size, record.digest)) {
                continue;
            }
            // One that cannot be read is found when it is compared.
            let document = manifest::read(&check.transfer.content, &scope, &descriptor).await;
            let Ok(Some(document)) = document else { continue };
            if let Document::Manifest(manifest) = &document
                && let Ok(config) = manifest::read_config(&check.transfer.content, &scope, &manifest.config).await
            {
                work.add_chain(check, namespace, &config.rootfs.diff_ids);
            }
            open.extend(document.children());
        }
    }
    work.blobs = blobs.into_iter().map(|(size, digest)| (digest, size)).collect();
    Ok(work)
}

impl Work {
    fn add_chain(&mut self, check: &Check, namespace: &Namespace, diff_ids: &[Digest]) {
        for chain_id in manifest::chain_ids(diff_ids) {
            for name in check.core.snapshotters.keys() {
                if let Ok(record) = check.core.db.snapshots(namespace, name).get(chain_id.as_str()) {
                    self.add(check, namespace, record);
                }
            }
        }
    }

    /// Takes a committed snapshot in, if there is a way to look at it.
    fn add(&mut self, check: &Check, namespace: &Namespace, record: Snapshot) {
        if record.kind != SnapshotKind::Committed
            || self.layers.iter().any(|layer| layer.record.internal == record.internal)
        {
            return;
        }
        let driver = check.core.snapshotters.get(&record.snapshotter);
        let files = driver.filter(|driver| !driver.is_remote()).and_then(|driver| driver.files(&record.internal));
        match files {
            // Made by who left no list: clients, or a commit of a container.
            Some(files) if files.sums.exists() || record.labels.contains_key(DIFF_ID) => {
                self.layers.push(Layer { namespace: namespace.clone(), record, files });
            }
            _ => self.passed_over += 1,
        }
    }
}

/// Looks at all; gives what is not as it should be.
pub(super) async fn compare(check: &Check, work: Work, control: &Arc<Control>) -> Result<(Report, Vec<Broken>)> {
    let mut report = Report {
        blobs: work.blobs.len() as u64,
        snapshots: work.layers.len() as u64,
        passed_over: work.passed_over,
        ..Report::default()
    };
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let blobs = work.blobs.into_iter().map(|(digest, size)| look(check, Item::Blob(digest, size), control));
    let layers = work.layers.into_iter().map(|layer| look(check, Item::Layer(Box::new(layer)), control));
    let mut looking = futures::stream::iter(blobs.chain(layers).collect::<Vec<_>>()).buffer_unordered(cores);
    let mut all = Vec::new();
    while let Some(seen) = looking.next().await {
        let (bytes, broken) = seen?;
        report.bytes += bytes;
        all.extend(broken);
    }
    Ok((report, all))
}

enum Item {
    Blob(Digest, u64),
    Layer(Box<Layer>),
}

async fn look(check: &Check, item: Item, control: &Arc<Control>) -> Result<(u64, Option<Broken>)> {
    match item {
        Item::Blob(digest, size) => {
            let (bytes, problem) = look_at_blob(check, &digest, size, control).await?;
            let still = || check.core.db.sharers(&digest) > 0;
            let problem = problem.filter(|_| still());
            Ok((bytes, problem.map(|problem| Broken::Blob { digest, problem })))
        }
        Item::Layer(layer) => {
            let (bytes, problem) = look_at_layer(&layer, control).await?;
            let (name, key) = (&layer.record.snapshotter, &layer.record.internal);
            let still = || {
                let record = check.core.db.snapshots(&layer.namespace, name).get(&layer.record.key);
                record.is_ok_and(|record| record.internal == *key)
            };
            let problem = problem.filter(|_| still());
            if problem.is_none() {
                check.core.doubt.is_well(name, key);
            }
            Ok((bytes, problem.map(|problem| Broken::Layer { layer, problem })))
        }
    }
}

/// Bytes read, and what is wrong.
type Seen = (u64, Option<String>);

async fn look_at_blob(check: &Check, digest: &Digest, size: u64, control: &Arc<Control>) -> Result<Seen> {
    let reader = match check.core.store.reader(digest).await {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok((0, Some("is missing".into()))),
        Err(error) => return Ok((0, Some(error.to_string()))),
        Ok(reader) => reader,
    };
    let (expected, control, handle) = (digest.clone(), Arc::clone(control), Handle::current());
    let hashing = tokio::task::spawn_blocking(move || {
        let _low = gantry_mount::priority::Background::new();
        hash(&*reader, &expected, size, &control, &handle)
    });
    hashing.await.map_err(Error::task("checking a blob"))
}

fn hash(reader: &dyn ReaderAt, expected: &Digest, size: u64, control: &Control, handle: &Handle) -> Seen {
    if reader.size() != size {
        return (0, Some(format!("has {} bytes, not {size}", reader.size())));
    }
    let mut hasher = Hasher::new(expected.algorithm());
    let mut offset = 0;
    while offset < size && !control.is_cancelled() {
        match handle.block_on(reader.read_at(offset, PIECE)) {
            Ok(piece) if piece.is_empty() => return (offset, Some(format!("ends after {offset} of {size} bytes"))),
            Ok(piece) => {
                hasher.update(&piece);
                offset += piece.len() as u64;
            }
            Err(error) => return (offset, Some(error.to_string())),
        }
    }
    let wrong = offset == size && hasher.finish() != *expected;
    (offset, wrong.then(|| "has other bytes than its digest says".to_owned()))
}

async fn look_at_layer(layer: &Layer, control: &Arc<Control>) -> Result<Seen> {
    let (files, control) = (layer.files.clone(), Arc::clone(control));
    let comparing = tokio::task::spawn_blocking(move || {
        let _low = gantry_mount::priority::Background::new();
        gantry_layer::check(&files.directory, &files.sums, files.alone, &control)
    });
    match comparing.await.map_err(Error::task("checking a snapshot"))? {
        Ok(Checked { bytes, differences, .. }) => {
            let told: Vec<String> = differences.iter().take(3).map(ToString::to_string).collect();
            let more = if differences.len() > told.len() { " …" } else { "" };
            Ok((bytes, (!told.is_empty()).then(|| format!("{}{more}", told.join("; ")))))
        }
        Err(CheckError::Cancelled) => Err(Error::Stopped { what: "checking" }),
        Err(error) => Ok((0, Some(error.to_string()))),
    }
}

/// The layer's digest of its tar, if it is known.
pub(super) fn diff_id(layer: &Layer) -> Option<Digest> {
    layer.record.labels.get(DIFF_ID)?.parse().ok()
}

/// The chain id that it stands for.
pub(super) fn chain_id(layer: &Layer) -> &str {
    layer.record.labels.get(labels::SNAPSHOT_REF).map_or(layer.record.key.as_str(), String::as_str)
}
