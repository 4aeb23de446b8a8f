//! One layer on its way into one snapshot.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use gantry_metadata::Resource;
use gantry_snapshots::Snapshotter;
use gantry_types::{Any, Descriptor, Digest, ErrorKind, HasKind, Labels, Mount, Scope};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio_util::sync::CancellationToken;

use super::Transfer;
use super::report::Report;
use super::unpack::{Asked, Layer, STOPPED, Source, Together};
use crate::content::is_present;
use crate::diff::{Applied, Job, is_erofs};
use crate::leases::unique;
use crate::place::{Below, directories, needs_lower};
use crate::stream::{self, Feed};
use crate::{Error, Result, processors};

/// Longest an unpacking thread takes to notice that it is not wanted any more.
const STOPPING: Duration = Duration::from_secs(60);

/// See the module.
pub(super) struct One<'a> {
    pub(super) transfer: &'a Transfer,
    pub(super) scope: &'a Scope,
    pub(super) snapshotter: &'a str,
    /// Differs that may unpack it, in the order they are tried.
    pub(super) differs: &'a [String],
    pub(super) chain_id: &'a Digest,
    /// Chain id of the layer below; empty for the lowest.
    pub(super) parent: &'a str,
    pub(super) report: &'a Report,
    pub(super) together: &'a Together,
}

/// A snapshot that holds the layer, and waits for what is below.
struct Filled<'a> {
    half_done: HalfDone<'a>,
    labels: Labels,
    /// What is to be like what is below, and where.
    undescribed: Vec<PathBuf>,
    mounts: Vec<Mount>,
}

impl<'a> One<'a> {
    /// Unpacks the layer unless its snapshot is there; says whether there was something to do. With `below` the layer
    /// below is being unpacked at the same time, and this says when it is committed.
    pub(super) async fn unpack(&self, layer: Layer, below: Option<watch::Receiver<bool>>) -> Result<bool> {
        let labels = layer.labels(self.chain_id, self.parent);
        let Layer { descriptor, diff_id, source, payloads, .. } = layer;
        let (asked, fetched) = arrival(source).await?;
        let key = format!("{}/{}/{}", self.scope.namespace, self.snapshotter, self.chain_id);
        self.settled().await?;
        let _one = self.transfer.unpacking.lock(&key).await;
        if self.is_there().await? {
            self.report.blob("exists", &descriptor, 0);
            answer(asked, None);
            self.together.ahead.filled();
            return self.mend(&fetched, &descriptor, &diff_id).await;
        }
        let what = What { descriptor: &descriptor, diff_id: &diff_id, labels, payloads };
        let filled = match self.fill(&what, asked, &fetched, below.is_some()).await {
            Err(error) if needs_lower(&error) && below.is_some() => None,
            filled => Some(filled?),
        };
        self.together.ahead.filled();
        if let Some(Some(filled)) = &filled {
            self.count(filled).await?;
        }
        if let Some(below) = below {
            committed(below).await?;
        }
        let filled = match filled {
            Some(Some(filled)) if !self.dress(&filled).await? => {
                drop(filled);
                None
            }
            filled => filled,
        };
        let filled = match filled {
            Some(filled) => filled,
            None => self.fill(&what, None, &fetched, false).await?,
        };
        if let Some(filled) = filled {
            self.commit(filled).await?;
            self.report.blob("extracted", &descriptor, descriptor.size);
        }
        Ok(true)
    }

    /// Makes directories that the layer uses without describing them like those of the layers below, which are there by
    /// now. False where these cannot be looked into.
    async fn dress(&self, filled: &Filled<'_>) -> Result<bool> {
        if filled.undescribed.is_empty() {
            return Ok(true);
        }
        let key = format!("below-{} {}", unique(), self.chain_id);
        let ended = CancellationToken::new();
        let _view = HalfDone { one: self, key: Some(key.clone()), ended: ended.clone() };
        // Until the thread looks through it no more, or there is none.
        let until = ended.drop_guard();
        let below =
            self.transfer.snapshots.view(self.scope, self.snapshotter, &key, self.parent, Labels::new()).await?;
        let (root, parents) = match (directories(&filled.mounts).as_deref(), directories(&below)) {
            (Some([root]), Some(parents)) => (root.clone(), parents),
            _ => return Ok(false),
        };
        let directories = filled.undescribed.clone();
        let dressing = tokio::task::spawn_blocking(move || {
            let _until = until;
            gantry_layer::dress(&root, &directories, &parents)
        });
        let dressed = dressing.await.map_err(Error::task("dress directories"))?;
        dressed.map_err(|source| Error::Layer { digest: self.chain_id.clone(), source }).map(|()| true)
    }

    /// Waits for the check of the snapshot, if one is under way: who mends it needs the turn that comes next.
    async fn settled(&self) -> Result<()> {
        let core = &self.transfer.core;
        let record = core.db.snapshots(&self.scope.namespace, self.snapshotter).get(self.chain_id.as_str());
        if let (false, Ok(record)) = (core.doubt.is_empty(), record) {
            core.doubt.verdict(&(self.snapshotter.to_owned(), record.internal), self.scope.deadline).await?;
        }
        Ok(())
    }

    /// What is there and known to be broken is unpacked again; says whether it was.
    async fn mend(
        &self,
        fetched: &Option<watch::Receiver<bool>>,
        layer: &Descriptor,
        diff_id: &Digest,
    ) -> Result<bool> {
        let (transfer, name) = (self.transfer, self.snapshotter.to_owned());
        if transfer.core.doubt.is_empty() {
            return Ok(false);
        }
        let record = transfer.core.db.snapshots(&self.scope.namespace, self.snapshotter).get(self.chain_id.as_str())?;
        let name = (name, record.internal.clone());
        let Some(problem) = transfer.core.doubt.verdict(&name, self.scope.deadline).await? else { return Ok(false) };
        wait_for(fetched).await?;
        tracing::warn!(snapshot = %self.chain_id, problem, "broken; unpacked again by a pull");
        crate::check::mend_one(transfer, self.scope, &record, layer, diff_id).await.map(|()| true)
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

    /// Unpacks into a new snapshot, which with `alone` stands on nothing. None where the snapshotter has it by now.
    async fn fill(
        &self,
        what: &What<'_>,
        asked: Option<Asked>,
        fetched: &Option<watch::Receiver<bool>>,
        alone: bool,
    ) -> Result<Option<Filled<'_>>> {
        let (_permit, asked) = self.turn(asked, fetched).await?;
        let key = format!("extract-{} {}", unique(), self.chain_id);
        let (snapshots, labels) = (&self.transfer.snapshots, what.labels.clone());
        let parent = if alone { "" } else { self.parent };
        let mounts = match snapshots.prepare(self.scope, self.snapshotter, &key, parent, labels.clone()).await {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                answer(asked, None);
                return Ok(None);
            }
            prepared => prepared?,
        };
        let ended = CancellationToken::new();
        let mut half_done = HalfDone { one: self, key: Some(key), ended: ended.clone() };
        let below = if alone { Below::Absent } else { Below::Shown };
        let sums = self.sums(half_done.key.as_deref().unwrap_or_default())?;
        if let Some(applied) = self.elsewhere(what, &mounts, &ended).await? {
            what.check(&applied)?;
            return Ok(Some(Filled { half_done, labels, undescribed: Vec::new(), mounts }));
        }
        let applied = match self.write(what, (mounts.clone(), sums.clone()), asked, ended, below).await {
            Err(error) if !alone && needs_lower(&error) => {
                wait_for(fetched).await?;
                half_done.ended = CancellationToken::new();
                self.write(what, (mounts.clone(), sums), None, half_done.ended.clone(), Below::Needed).await
            }
            applied => applied,
        }?;
        what.check(&applied)?;
        Ok(Some(Filled { half_done, labels, undescribed: applied.undescribed, mounts }))
    }

    /// Has the differs of other processes unpack the layer that come before our own; none where it is our turn.
    async fn elsewhere(&self, what: &What<'_>, mounts: &[Mount], ended: &CancellationToken) -> Result<Option<Applied>> {
        let idle = ended.clone().drop_guard();
        let core = &self.transfer.core;
        let mut refused = None;
        for name in self.differs {
            let Some(differ) = core.differs.get(name) else {
                idle.disarm();
                return Ok(None);
            };
            self.report.blob("extracting", what.descriptor, 0);
            match differ.apply(self.scope, what.descriptor, mounts, &what.payloads, false).await {
                Err(error) if error.kind() == ErrorKind::Unimplemented => refused = Some(error),
                applied => {
                    let applied = applied?;
                    let (diff_id, size) = (applied.digest, applied.size);
                    return Ok(Some(Applied { diff_id, size, undescribed: Vec::new() }));
                }
            }
        }
        Err(refused.map_or(Error::Unimplemented("unpacking layers"), Error::from))
    }

    /// Whether another process is asked first: it reads the layer from content.
    fn is_elsewhere(&self) -> bool {
        self.differs.first().is_some_and(|name| self.transfer.core.differs.contains_key(name))
    }

    /// Waits until the layer may be unpacked. One that could be had while it comes does not wait for that: then it is
    /// fetched first.
    async fn turn(
        &self,
        asked: Option<Asked>,
        fetched: &Option<watch::Receiver<bool>>,
    ) -> Result<(OwnedSemaphorePermit, Option<Asked>)> {
        let unpacking = &self.transfer.core.unpacking;
        if let Some(asked) = asked {
            if !self.is_elsewhere()
                && let Some(permit) = unpacking.get().try_enter()
            {
                return Ok((permit, Some(asked)));
            }
            answer(Some(asked), None);
        }
        wait_for(fetched).await?;
        Ok((unpacking.get().enter().await?, None))
    }

    /// Where the list of the files of a snapshot is to be.
    fn sums(&self, key: &str) -> Result<Option<PathBuf>> {
        let (driver, internal) = self.behind(key)?;
        Ok(driver.files(&internal).map(|files| files.sums))
    }

    /// Has what the layer takes counted, beside the others: the commits have to wait for each other.
    async fn count(&self, filled: &Filled<'_>) -> Result<()> {
        let Some(key) = filled.half_done.key.as_deref() else { return Ok(()) };
        let (driver, internal) = self.behind(key)?;
        Ok(driver.count_ahead(&internal).await?)
    }

    /// The snapshotter, and its name of a snapshot.
    fn behind(&self, key: &str) -> Result<(&Arc<dyn Snapshotter>, String)> {
        let core = &self.transfer.core;
        let (name, driver) = core.snapshotter(self.snapshotter)?;
        Ok((driver, core.db.snapshots(&self.scope.namespace, name).get(key)?.internal))
    }

    async fn write(
        &self,
        what: &What<'_>,
        (mounts, sums): (Vec<Mount>, Option<PathBuf>),
        asked: Option<Asked>,
        ended: CancellationToken,
        below: Below,
    ) -> Result<Applied> {
        let descriptor = what.descriptor;
        // Until the job runs, nobody fills the snapshot.
        let idle = ended.clone().drop_guard();
        let job = Job {
            ended,
            digest: descriptor.digest.clone(),
            recipe: processors::recipe(&self.transfer.core.config, &descriptor.media_type, &what.payloads)?,
            native: is_erofs(&descriptor.media_type),
            deadline: self.scope.deadline,
            limits: self.transfer.core.config.unpack,
            mounts,
            below,
            sums,
            control: self.together.ahead.watched(),
        };
        let Some(asked) = asked else {
            self.report.blob("extracting", descriptor, 0);
            let reader = self.transfer.content.reader(self.scope, &descriptor.digest).await?;
            idle.disarm();
            return job.run_stored(reader, false).await;
        };
        let (feed, drain) = stream::pipe();
        answer(Some(asked), Some(feed));
        idle.disarm();
        let applied = job.run(drain, false).await;
        // Until now the line was that of the download.
        self.report.blob("extracting", descriptor, descriptor.size);
        applied
    }

    async fn commit(&self, filled: Filled<'_>) -> Result<()> {
        let Filled { mut half_done, labels, .. } = filled;
        let Some(key) = half_done.key.as_deref() else { return Ok(()) };
        let (snapshots, name) = (&self.transfer.snapshots, self.chain_id.as_str());
        match snapshots.commit(self.scope, self.snapshotter, name, key, self.parent, labels).await {
            Err(error) if is_present(&error) => Ok(()),
            committed => {
                committed?;
                self.transfer.unsynced.committed(self.snapshotter);
                half_done.key = None;
                Ok(())
            }
        }
    }
}

/// A layer, and what its snapshot is to say.
struct What<'a> {
    descriptor: &'a Descriptor,
    diff_id: &'a Digest,
    labels: Labels,
    payloads: BTreeMap<String, Any>,
}

impl What<'_> {
    fn check(&self, applied: &Applied) -> Result<()> {
        if applied.diff_id == *self.diff_id {
            return Ok(());
        }
        let (digest, expected) = (self.descriptor.digest.clone(), self.diff_id.clone());
        Err(Error::DiffId { digest, expected, actual: applied.diff_id.clone() })
    }
}

/// Waits until the bytes are there, or can be had while they come; then this is to be answered.
async fn arrival(source: Source) -> Result<(Option<Asked>, Option<watch::Receiver<bool>>)> {
    match source {
        Source::Stored => Ok((None, None)),
        Source::Fetched(fetched) => {
            let fetched = Some(fetched);
            wait_for(&fetched).await?;
            Ok((None, fetched))
        }
        // A fetch that ends without asking has failed, which `fetched` tells.
        Source::Coming(asks, fetched) => Ok((asks.await.ok(), Some(fetched))),
    }
}

async fn wait_for(fetched: &Option<watch::Receiver<bool>>) -> Result<()> {
    let Some(mut fetched) = fetched.clone() else { return Ok(()) };
    // An error means that fetching has failed, which is told elsewhere.
    let stopped = |_| Error::Stopped { what: "unpack: the layer was not fetched" };
    fetched.wait_for(|done| *done).await.map(drop).map_err(stopped)
}

async fn committed(mut below: watch::Receiver<bool>) -> Result<()> {
    below.wait_for(|done| *done).await.map(drop).map_err(|_| STOPPED)
}

/// A fetch that has failed needs no answer.
fn answer(asked: Option<Asked>, feed: Option<Feed>) {
    if let Some(asked) = asked {
        let _ = asked.send(feed);
    }
}

/// A snapshot that is being filled, or looked through: removed unless it is committed.
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
        let removal = tokio::spawn(async move {
            // The thread that fills it has been told to stop, and until then would put files back.
            let _ = tokio::time::timeout(STOPPING, ended.cancelled()).await;
            if let Err(error) = snapshots.remove(&scope, &snapshotter, &key).await {
                tracing::debug!(key, %error, "half unpacked snapshot was removed otherwise");
            }
            // A collection may have come first, and found it being filled.
            let _ = snapshots.cleanup(&scope, &snapshotter).await;
        });
        self.one.together.removals.lock().unwrap_or_else(PoisonError::into_inner).push(removal);
    }
}
