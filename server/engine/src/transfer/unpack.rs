//! Unpacking an image's layers into snapshots, one for each chain id, committed in their order. Whoever asks for a
//! chain id that is being unpacked waits for that one.

use std::collections::BTreeMap;
use std::sync::Arc;

use gantry_layer::Control;
use gantry_metadata::Resource;
use gantry_types::{Descriptor, Digest, ErrorKind, HasKind, Labels, Mount, Scope, labels};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::Transfer;
use super::report::Report;
use crate::content::is_present;
use crate::diff::{Applied, Job};
use crate::leases::unique;
use crate::processors;
use crate::stream::{self, Feed};
use crate::{Error, Result};

/// Longest an unpacking thread takes to notice that it is not wanted any more.
const STOPPING: std::time::Duration = std::time::Duration::from_secs(60);

/// A layer to unpack, and how its bytes come.
pub(super) struct Layer {
    pub(super) descriptor: Descriptor,
    pub(super) diff_id: Digest,
    pub(super) source: Source,
    /// What a snapshotter of another process is told of it.
    pub(super) told: Labels,
}

/// How the bytes of a layer come.
pub(super) enum Source {
    /// They are in content.
    Stored,
    /// They will be in content once this says so.
    Fetched(watch::Receiver<bool>),
    /// They come while they are being fetched, through what is sent here. Nothing is sent where they are not wanted:
    /// then the snapshot is there already.
    Coming(oneshot::Sender<Option<Feed>>),
}

/// A stack of layers for one snapshotter.
pub(super) struct Stack {
    pub(super) snapshotter: String,
    pub(super) layers: Vec<Layer>,
}

impl Stack {
    /// The chain ids of its layers.
    pub(super) fn chain(&self) -> Vec<Digest> {
        let diff_ids: Vec<Digest> = self.layers.iter().map(|layer| layer.diff_id.clone()).collect();
        super::manifest::chain_ids(&diff_ids)
    }
}

impl Transfer {
    /// Unpacks what is not unpacked; gives the chain id of the top. Nothing but committed snapshots stays after a
    /// failure.
    pub(super) async fn unpack_stack(&self, scope: &Scope, stack: Stack, report: &Report) -> Result<Digest> {
        let chain = stack.chain();
        let top = chain.last().cloned().ok_or_else(|| Error::invalid("image", "has no layers to unpack"))?;
        let (mut parent, mut made) = (String::new(), false);
        for (layer, chain_id) in stack.layers.into_iter().zip(&chain) {
            let one = One { transfer: self, scope, snapshotter: &stack.snapshotter, chain_id, parent: &parent, report };
            made |= one.unpack(layer).await?;
            parent = chain_id.to_string();
        }
        if made {
            // An image must not be named before its files would survive a power cut.
            self.snapshots.sync(scope, &stack.snapshotter, top.as_str()).await?;
        }
        Ok(top)
    }
}

/// One layer on its way into one snapshot.
struct One<'a> {
    transfer: &'a Transfer,
    scope: &'a Scope,
    snapshotter: &'a str,
    chain_id: &'a Digest,
    parent: &'a str,
    report: &'a Report,
}

impl One<'_> {
    /// Whether there was something to unpack.
    async fn unpack(&self, layer: Layer) -> Result<bool> {
        let Layer { descriptor, diff_id, source, told } = layer;
        if let Source::Fetched(mut fetched) = source.clone_fetched() {
            // An error means that fetching has failed, which is told elsewhere.
            let stopped = |_| Error::Stopped { what: "unpack: the layer was not fetched" };
            fetched.wait_for(|done| *done).await.map_err(stopped)?;
        }
        let key = format!("{}/{}/{}", self.scope.namespace, self.snapshotter, self.chain_id);
        let _one = self.transfer.unpacking.lock(&key).await;
        if self.is_there().await? {
            self.report.blob("exists", &descriptor, 0);
            if let Source::Coming(wanted) = source {
                // A fetch that has failed does not ask.
                let _ = wanted.send(None);
            }
            return Ok(false);
        }
        self.extract(&descriptor, &diff_id, source, told).await.map(|()| true)
    }

    /// Whether the snapshot is there; if so the lease keeps it from now on.
    async fn is_there(&self) -> Result<bool> {
        let key = self.chain_id.as_str();
        let snapshots = &self.transfer.snapshots;
        if snapshots.stat(self.scope, self.snapshotter, key).await.is_err() {
            return Ok(false);
        }
        if let Some(lease) = &self.scope.lease {
            let resource = Resource::Snapshot { snapshotter: self.snapshotter.to_owned(), key: key.to_owned() };
            self.transfer.leases.add(self.scope, lease, resource).await?;
        }
        // It may have gone before the lease had it.
        Ok(snapshots.stat(self.scope, self.snapshotter, key).await.is_ok())
    }

    async fn extract(&self, descriptor: &Descriptor, diff_id: &Digest, source: Source, told: Labels) -> Result<()> {
        let _permit = self.transfer.core.unpacking.acquire().await.map_err(|_| Error::Stopped { what: "unpack" })?;
        let key = format!("extract-{} {}", unique(), self.chain_id);
        let mut labels = self.labels(diff_id);
        labels.extend(told);
        let snapshots = &self.transfer.snapshots;
        let prepared = snapshots.prepare(self.scope, self.snapshotter, &key, self.parent, labels.clone()).await;
        let mounts = match prepared {
            // The snapshotter has it by now.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                if let Source::Coming(wanted) = source {
                    let _ = wanted.send(None);
                }
                return Ok(());
            }
            prepared => prepared?,
        };
        let ended = CancellationToken::new();
        let mut half_done = HalfDone { one: self, key: Some(key.clone()), ended: ended.clone() };
        let unpacked = self.fill(descriptor, mounts, source, ended).await;
        let checked = unpacked.and_then(|applied| self.check(descriptor, diff_id, applied));
        let committed = match checked {
            Ok(()) => self.commit(&key, labels).await,
            Err(error) => Err(error),
        };
        half_done.key = None;
        if committed.is_err() {
            self.remove(&key).await;
        } else {
            self.report.blob("extracted", descriptor, descriptor.size);
        }
        committed
    }

    /// What containerd's clients look for on a layer's snapshot.
    fn labels(&self, diff_id: &Digest) -> Labels {
        let mut labels = Labels::from([
            (labels::SNAPSHOT_REF.to_owned(), self.chain_id.to_string()),
            ("containerd.io/snapshot/diff-id".to_owned(), diff_id.to_string()),
        ]);
        if !self.parent.is_empty() {
            labels.insert("containerd.io/snapshot/parent-chain-id".to_owned(), self.parent.to_owned());
        }
        labels
    }

    async fn fill(
        &self,
        descriptor: &Descriptor,
        mounts: Vec<Mount>,
        source: Source,
        ended: CancellationToken,
    ) -> Result<Applied> {
        let job = Job {
            ended,
            digest: descriptor.digest.clone(),
            recipe: processors::recipe(&self.transfer.core.config, &descriptor.media_type, &BTreeMap::new())?,
            deadline: self.scope.deadline,
            limits: self.transfer.core.config.unpack,
            mounts,
            native: crate::diff::is_erofs(&descriptor.media_type),
            below: crate::place::Below::Shown,
        };
        let (feed, drain) = stream::pipe();
        match source {
            Source::Coming(wanted) => {
                let _ = wanted.send(Some(feed));
                let applied = job.run(drain, false, Arc::new(Control::default())).await;
                // Until now the line was that of the download.
                self.report.blob("extracting", descriptor, descriptor.size);
                applied
            }
            Source::Stored | Source::Fetched(_) => {
                self.report.blob("extracting", descriptor, 0);
                let reader = self.transfer.content.reader(self.scope, &descriptor.digest).await?;
                let feeding = tokio::spawn(feed.blob(reader));
                let applied = job.run(drain, false, Arc::new(Control::default())).await;
                feeding.abort();
                applied
            }
        }
    }

    fn check(&self, descriptor: &Descriptor, diff_id: &Digest, applied: Applied) -> Result<()> {
        if applied.diff_id == *diff_id {
            return Ok(());
        }
        let (digest, expected) = (descriptor.digest.clone(), diff_id.clone());
        Err(Error::DiffId { digest, expected, actual: applied.diff_id })
    }

    async fn commit(&self, key: &str, labels: Labels) -> Result<()> {
        let (snapshots, name) = (&self.transfer.snapshots, self.chain_id.as_str());
        match snapshots.commit(self.scope, self.snapshotter, name, key, "", labels).await {
            Err(error) if is_present(&error) => {
                self.remove(key).await;
                Ok(())
            }
            committed => committed,
        }
    }

    async fn remove(&self, key: &str) {
        if let Err(error) = self.transfer.snapshots.remove(self.scope, self.snapshotter, key).await {
            tracing::warn!(key, %error, "half unpacked snapshot stays until it is collected");
        }
    }
}

impl Source {
    /// Itself where it is one to wait for.
    fn clone_fetched(&self) -> Source {
        match self {
            Source::Fetched(fetched) => Source::Fetched(fetched.clone()),
            _ => Source::Stored,
        }
    }
}

/// A snapshot that is being filled: removed when the caller goes away in the middle of it.
struct HalfDone<'a> {
    one: &'a One<'a>,
    key: Option<String>,
    ended: CancellationToken,
}

impl Drop for HalfDone<'_> {
    fn drop(&mut self) {
        let Some(key) = self.key.take() else { return };
        let (snapshots, scope) = (self.one.transfer.snapshots.clone(), self.one.scope.clone());
        let (snapshotter, ended) = (self.one.snapshotter.to_owned(), self.ended.clone());
        tokio::spawn(async move {
            // The thread that fills it has been told to stop, and until then would put files back.
            let _ = tokio::time::timeout(STOPPING, ended.cancelled()).await;
            if let Err(error) = snapshots.remove(&scope, &snapshotter, &key).await {
                tracing::debug!(key, %error, "half unpacked snapshot was removed otherwise");
            }
            // A collection may have come first, and found it being filled.
            let _ = snapshots.cleanup(&scope, &snapshotter).await;
        });
    }
}
