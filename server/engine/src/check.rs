//! Comparing what is stored with what it should be, and mending it.
//!
//! A blob is compared with its digest, a snapshot with the list of files that its unpacking left. What is broken is fetched
//! again from where its image came, or unpacked again.
//!
//! After a stop that was not clean, what was committed since the last mark is checked by itself: a mark is set by a clean
//! stop, and by a check that found everything well in the end. Until a snapshot is checked nothing is built on it, and on
//! one that is broken nothing at all ([`doubt`]).

mod doubt;
mod look;
mod mend;
mod origins;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use gantry_layer::Control;
use gantry_types::{Descriptor, Digest, Namespace, Scope};

use crate::core::Core;
use crate::transfer::Transfer;
use crate::{Error, Result};

pub(crate) use doubt::Doubt;

/// Where the mark is kept among the records.
const COLLECTION: &str = "check";
const MARK: &str = "mark";

/// Comparing and mending.
#[derive(Clone)]
pub struct Check {
    pub(crate) core: Arc<Core>,
    pub(crate) transfer: Transfer,
}

/// What is to be checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Range {
    /// Every blob, and every snapshot that can be compared, of all namespaces.
    All,
    /// What these images of one namespace are made of, as far as it is here.
    Images(Namespace, Vec<String>),
    /// What was committed after this.
    Since(SystemTime),
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it is.
    pub object: Object,
    /// What is wrong with it.
    pub problem: String,
    /// What became of it.
    pub outcome: Outcome,
}

/// A thing that can be checked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Object {
    /// Bytes, for all namespaces that see them.
    Blob(Digest),
    /// A committed snapshot.
    Snapshot {
        /// Whose it is.
        namespace: Namespace,
        /// Which snapshotter has it.
        snapshotter: String,
        /// Its name in the namespace.
        key: String,
    },
}

/// What became of something broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing: mending was not asked for.
    Told,
    /// It is as it should be now.
    Mended(&'static str),
    /// It is gone, so that nobody takes it for good.
    Removed(String),
    /// It is still broken.
    Failed(String),
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Blobs looked at.
    pub blobs: u64,
    /// Snapshots looked at.
    pub snapshots: u64,
    /// Snapshots that nothing tells what they should be: made by commits of clients, by other processes, or of a kind whose
    /// files cannot be looked at.
    pub passed_over: u64,
    /// Bytes read.
    pub bytes: u64,
    /// How long that took.
    pub took: Duration,
    /// What is not as it should be.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Whether everything is well now.
    pub fn is_well(&self) -> bool {
        self.findings.iter().all(|finding| matches!(finding.outcome, Outcome::Mended(_) | Outcome::Removed(_)))
    }
}

impl Check {
    /// Checks what is in `range`; with `mend`, mends what is broken. Takes about as long as reading it all once.
    ///
    /// # Errors
    /// `NotFound` for an image that is not there; when records or directories cannot be read at all.
    pub async fn check(&self, range: Range, mend: bool) -> Result<Report> {
        let operation = self.core.ops.begin("check", format!("{range:?}"), None, None);
        operation.stage("looking for what there is");
        let work = look::select(self, &range).await?;
        self.run(work, mend, &operation).await
    }

    async fn run(&self, work: look::Work, mend: bool, operation: &crate::ops::Entry) -> Result<Report> {
        let began = Instant::now();
        operation.stage("comparing");
        let control = Arc::new(Control::default());
        let _stop_with_caller = Cancel(Arc::clone(&control));
        let (mut report, broken) = look::compare(self, work, &control).await?;
        report.took = began.elapsed();
        for broken in &broken {
            tracing::error!(object = ?broken.object(), problem = broken.problem(), "not what it should be");
            broken.doubt(&self.core.doubt, mend);
        }
        if mend && !broken.is_empty() {
            operation.stage(format!("mending {} objects", broken.len()));
            report.findings = mend::all(self, broken).await;
        } else {
            report.findings = broken.into_iter().map(look::Broken::told).collect();
        }
        Ok(report)
    }

    /// What must be checked after the last stop, if it was no clean one. What is built on it waits from now on.
    ///
    /// # Errors
    /// When records or directories cannot be read.
    pub(crate) async fn at_start(&self) -> Result<Option<AtStart>> {
        let now = SystemTime::now();
        // A clock that was set back tells nothing.
        let since = self.mark().filter(|mark| *mark <= now).unwrap_or(SystemTime::UNIX_EPOCH);
        let work = look::select(self, &Range::Since(since)).await?;
        if work.is_empty() {
            self.core.doubt.settle();
            return Ok(None);
        }
        self.core.doubt.enter(work.snapshots());
        let operation = self.core.ops.begin("check", "what the last run has committed", None, None);
        Ok(Some(AtStart { check: self.clone(), work, began: now, operation }))
    }

    fn mark(&self) -> Option<SystemTime> {
        let bytes = self.core.db.documents(None, COLLECTION).get(MARK)?;
        let nanoseconds = u64::from_le_bytes(bytes.try_into().ok()?);
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_nanos(nanoseconds))
    }

    async fn set_mark(&self, at: SystemTime) -> Result<()> {
        let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let nanoseconds = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
        Ok(self.core.db.documents(None, COLLECTION).put(MARK, nanoseconds.to_le_bytes().to_vec()).await?)
    }

    /// Says that all which is there is well, and durable. Not after a check that has not come to its end.
    ///
    /// # Errors
    /// When the disk fails.
    pub(crate) async fn stop_clean(&self) -> Result<()> {
        if !self.core.doubt.is_settled() {
            return Ok(());
        }
        let now = SystemTime::now();
        for snapshotter in self.core.snapshotters.values().filter(|found| !found.is_remote()) {
            if let Some(root) = snapshotter.root() {
                let open = std::fs::File::open(root).map_err(Error::io("open", root))?;
                nix::unistd::syncfs(&open).map_err(std::io::Error::from).map_err(Error::io("sync", root))?;
            }
        }
        self.set_mark(now).await
    }
}

/// A check that begins with the engine.
pub(crate) struct AtStart {
    check: Check,
    work: look::Work,
    began: SystemTime,
    operation: crate::ops::Entry,
}

impl AtStart {
    /// Checks and mends in the background.
    pub(crate) async fn run(self) {
        let AtStart { check, work, began, operation } = self;
        let stop = check.core.stop.clone();
        match stop.run_until_cancelled(check.run(work, true, &operation)).await {
            Some(Ok(report)) => {
                let Report { blobs, snapshots, bytes, .. } = report;
                let (well, findings) = (report.is_well(), report.findings.len());
                tracing::info!(blobs, snapshots, bytes, findings, well, "checked what the last run has committed");
                check.core.doubt.end_waiting();
                if well {
                    check.core.doubt.settle();
                    if let Err(error) = check.set_mark(began).await {
                        tracing::warn!(%error, "the next start checks the same again");
                    }
                }
            }
            Some(Err(error)) => {
                tracing::error!(%error, "what the last run has committed could not be checked");
                check.core.doubt.end_waiting();
            }
            None => {}
        }
    }
}

/// Unpacks a broken snapshot again from its layer, for who has its turn.
pub(crate) async fn mend_one(
    transfer: &Transfer,
    scope: &Scope,
    record: &gantry_metadata::Snapshot,
    layer: &Descriptor,
    diff_id: &Digest,
) -> Result<()> {
    let check = Check { core: Arc::clone(&transfer.core), transfer: transfer.clone() };
    mend::unpack(&check, scope, record, layer, diff_id).await?;
    check.core.doubt.is_well(&record.snapshotter, &record.internal);
    Ok(())
}

/// Stops the threads when nobody waits for them any more.
struct Cancel(Arc<Control>);

impl Drop for Cancel {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// A scope for work of the engine's own.
fn own(namespace: &Namespace) -> Scope {
    Scope::new(namespace.clone())
}
