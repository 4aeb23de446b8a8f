//! How much a snapshot may take (label [`MAX_SIZE_LABEL`]), by project quotas of the file system below.
//!
//! The directory of a snapshot says itself which project it is: there is no other record, so nothing can disagree with it.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use gantry_mount::quota;
use gantry_types::Labels;

use crate::contract::{MAX_SIZE_LABEL, Usage};
use crate::error::Error;
use crate::graph::Id;
use crate::tree;

/// Projects from here on are ours, as far as nobody else has taken them.
const FIRST: u32 = 0x4000_0000;
const LAST: u32 = 0x7fff_ffff;

/// How many numbers in a row are tried: they are taken only where another snapshotter shares the file system.
const ATTEMPTS: u32 = 10_000;

/// The limit that a snapshot's labels ask for, in bytes. As a hint it is passed over where it makes no sense.
pub(crate) fn wanted(labels: &Labels) -> Option<u64> {
    let text = labels.get(MAX_SIZE_LABEL)?;
    let bytes = text.parse::<u64>().ok().filter(|bytes| *bytes > 0 && i64::try_from(*bytes).is_ok());
    if bytes.is_none() {
        tracing::warn!(label = MAX_SIZE_LABEL, text, "no count of bytes: the snapshot has no limit");
    }
    bytes
}

/// Gives projects to the directories of one snapshotter.
#[derive(Debug)]
pub(crate) struct Quotas {
    root: File,
    /// One project is chosen at a time.
    choosing: Mutex<()>,
}

impl Quotas {
    /// None where the file system of `root` has no project quotas, or does not hold to them.
    pub(crate) fn open(root: &Path) -> Option<Quotas> {
        let root = File::open(root).ok()?;
        quota::enforced(&root).then(|| Quotas { root, choosing: Mutex::default() })
    }

    /// Limits the new, empty directory `dir` of snapshot `id` and all that will be in it.
    pub(crate) fn limit(&self, dir: &Path, id: Id, bytes: u64) -> Result<(), Error> {
        let limit = || {
            let directory = File::open(dir)?;
            let project = self.claim(&directory, id)?;
            quota::set_limit(&directory, project, bytes)
        };
        limit().map_err(Error::io("limit the size of", dir))
    }

    /// Makes `directory` the first of a project that nobody has.
    fn claim(&self, directory: &File, id: Id) -> io::Result<u32> {
        let _one = self.choosing.lock().unwrap_or_else(PoisonError::into_inner);
        let start = (id % u64::from(LAST - FIRST)) as u32;
        for attempt in 0..ATTEMPTS {
            let project = FIRST + (start + attempt) % (LAST - FIRST);
            if quota::usage(&self.root, project)?.inodes > 0 {
                continue;
            }
            quota::assign(directory, project)?;
            // Another process on this file system may have chosen it at the same moment.
            if quota::usage(&self.root, project)?.inodes == 1 {
                return Ok(project);
            }
        }
        Err(io::Error::other(format!("no project without files among {ATTEMPTS}")))
    }

    /// Changes the limit of a snapshot that was made with one, to none for `None`.
    pub(crate) fn change(&self, dir: &Path, bytes: Option<u64>) -> Result<(), Error> {
        limit_of(dir, bytes.unwrap_or(0)).map_err(Error::io("limit the size of", dir))
    }

    /// What the directory of a snapshot takes, if it has a project: without a walk.
    ///
    /// `scratch`, a small directory in it, and the directory itself do not count.
    pub(crate) fn usage(&self, dir: &Path, scratch: &Path) -> io::Result<Option<Usage>> {
        let directory = File::open(dir)?;
        let Some(project) = ours(&directory)? else { return Ok(None) };
        let all = quota::usage(&self.root, project)?;
        let other = tree::usage(scratch)?;
        let size = other.size + directory.metadata()?.blocks() * 512;
        Ok(Some(Usage { inodes: all.inodes.saturating_sub(other.inodes + 1), size: all.bytes.saturating_sub(size) }))
    }
}

/// Lets the project of a directory go that is to be deleted, or grows no more. It hangs on no open snapshotter. Should it
/// fail, a limit stays for files that nobody adds to.
pub(crate) fn release(dir: &Path) -> io::Result<()> {
    if let Err(error) = limit_of(dir, 0) {
        tracing::debug!(?dir, %error, "the limit of a snapshot's size stays");
    }
    Ok(())
}

fn limit_of(dir: &Path, bytes: u64) -> io::Result<()> {
    let directory = File::open(dir)?;
    match ours(&directory)? {
        Some(project) => quota::set_limit(&directory, project, bytes),
        None => Ok(()),
    }
}

/// The project of a directory, if it is one that we gave. A file system that knows no projects gave none.
fn ours(directory: &File) -> io::Result<Option<u32>> {
    match quota::project(directory) {
        Ok(project) => Ok((FIRST..=LAST).contains(&project).then_some(project)),
        Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(None),
        Err(error) if matches!(error.raw_os_error(), Some(25 | 95)) => Ok(None),
        Err(error) => Err(error),
    }
}
