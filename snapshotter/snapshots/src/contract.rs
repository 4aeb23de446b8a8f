//! The trait every snapshotter implements, and its vocabulary.

use std::borrow::Cow;
use std::path::PathBuf;
use std::time::SystemTime;

use async_trait::async_trait;
use gantry_types::{Fields, Filter, Labels, Mount};
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// Longest key or name, in bytes.
pub const MAX_KEY: usize = 1024;

/// Label that says where a snapshot's own changes lie (option of the overlay snapshotter).
pub const UPPERDIR_LABEL: &str = "containerd.io/snapshot/overlay.upperdir";

/// Label of an active snapshot: most bytes that may be written to it, as a decimal number (containerd 2.4). A hint:
/// followed where the snapshotter can hold to it.
pub const MAX_SIZE_LABEL: &str = "containerd.io/snapshot/max-size";

/// What a snapshot is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Read-only look at a parent; cannot be committed.
    View,
    /// Open for changes.
    Active,
    /// Finished; the only kind that can be a parent.
    Committed,
}

impl Kind {
    /// The word filters compare with.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::View => "view",
            Kind::Active => "active",
            Kind::Committed => "committed",
        }
    }
}

/// What is known of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// What it is for.
    pub kind: Kind,
    /// Its key (active, view) or name (committed).
    pub name: String,
    /// Name of the committed snapshot below.
    pub parent: Option<String>,
    /// Labels.
    pub labels: Labels,
    /// When it was prepared; for a committed one, when it was committed.
    pub created: SystemTime,
    /// When its labels last changed; equal to `created` at first.
    pub updated: SystemTime,
}

impl Fields for Info {
    fn field(&self, path: &[&str]) -> Option<Cow<'_, str>> {
        match path {
            ["kind"] => Some(self.kind.as_str().into()),
            ["name"] => Some(self.name.as_str().into()),
            ["parent"] => Some(self.parent.as_deref().unwrap_or_default().into()),
            ["labels", rest @ ..] => self.labels.get(&rest.join(".")).map(|value| value.as_str().into()),
            _ => None,
        }
    }
}

/// Disk resources of a snapshot alone, without its parents'.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Files and directories, hard links counted once.
    pub inodes: u64,
    /// Bytes allocated on disk.
    pub size: u64,
}

/// Where the files of a snapshot lie, for who compares them with what was unpacked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// Its directory.
    pub directory: PathBuf,
    /// Where the list of what was unpacked there is, or is to be written (`gantry_layer::Options::sums`).
    pub sums: PathBuf,
    /// Whether the directory holds this snapshot's changes alone, and not those of its parents.
    pub alone: bool,
}

impl std::ops::AddAssign for Usage {
    fn add_assign(&mut self, other: Usage) {
        self.inodes = self.inodes.saturating_add(other.inodes);
        self.size = self.size.saturating_add(other.size);
    }
}

/// Keeps directories in layers.
///
/// A snapshot is the state of a directory tree. *Active* and *view* snapshots are made by [`prepare`] and [`view`] from
/// nothing or from a *committed* one, its parent. [`commit`] turns an active snapshot into a committed one, under a new
/// name and with the same parent; the key is gone then. Keys and names share one space of opaque strings of 1 to
/// [`MAX_KEY`] bytes. A committed snapshot never changes but for its labels.
///
/// Calls are atomic: each has happened or has not, also when the process is killed meanwhile; the ones whose answer was
/// seen have happened. A power cut may take back the latest prepares and removals, but no commit and no committed
/// snapshot's labels. The *files* of a committed snapshot are durable only after [`sync`].
///
/// Every key-taking method answers `NotFound` for a key that does not exist, and `InvalidArgument` for an empty or
/// overlong one.
///
/// [`prepare`]: Snapshotter::prepare
/// [`view`]: Snapshotter::view
/// [`commit`]: Snapshotter::commit
/// [`sync`]: Snapshotter::sync
#[async_trait]
pub trait Snapshotter: Send + Sync + 'static {
    /// What is known of `key`, of any kind.
    async fn stat(&self, key: &str) -> Result<Info, Error>;

    /// Changes the labels of `info.name`, and returns all of it. `fieldpaths` are `labels` (replace all) or
    /// `labels.KEY` (set one; an empty value removes it); none means `labels`. Other fields of `info` are not looked at.
    ///
    /// # Errors
    /// `InvalidArgument` for any other field path; then nothing has changed.
    async fn update(&self, info: Info, fieldpaths: &[String]) -> Result<Info, Error>;

    /// Disk usage of `key` alone. Counted once for a committed snapshot; for an active one at each call, which takes time
    /// in proportion to its size. Nothing else waits for it.
    async fn usage(&self, key: &str) -> Result<Usage, Error>;

    /// The mounts that show the active or view snapshot `key`.
    ///
    /// # Errors
    /// `FailedPrecondition` for a committed one.
    async fn mounts(&self, key: &str) -> Result<Vec<Mount>, Error>;

    /// Makes `key`, an active snapshot of the content of `parent` (or of an empty directory, mode 0755), and returns its
    /// mounts.
    ///
    /// # Errors
    /// `NotFound` when there is no such parent, `InvalidArgument` when it is not committed, `AlreadyExists` for a key in use.
    async fn prepare(&self, key: &str, parent: Option<&str>, labels: Labels) -> Result<Vec<Mount>, Error>;

    /// As [`prepare`](Snapshotter::prepare), but the mounts are read-only and the result cannot be committed.
    async fn view(&self, key: &str, parent: Option<&str>, labels: Labels) -> Result<Vec<Mount>, Error>;

    /// Makes the active snapshot `key` the committed snapshot `name`, with these labels only. Where `key` was
    /// prepared from nothing, `parent` may put it upon a committed snapshot now (layers unpacked side by side; what they
    /// delete must then be there as the overlay's whiteouts).
    ///
    /// # Errors
    /// `AlreadyExists` for a name in use, `FailedPrecondition` for a view, a committed snapshot or a parent that is not
    /// committed, `InvalidArgument` for a parent other than the one it has, `NotFound` for a parent that does not exist,
    /// `Unimplemented` where putting upon a parent is not offered (see [`capabilities`](Snapshotter::capabilities)).
    async fn commit(&self, name: &str, key: &str, parent: Option<&str>, labels: Labels) -> Result<(), Error>;

    /// Forgets `key` at once; its disk space is given back soon after, at the latest by
    /// [`cleanup`](Snapshotter::cleanup).
    ///
    /// # Errors
    /// `FailedPrecondition` while it is the parent of another.
    async fn remove(&self, key: &str) -> Result<(), Error>;

    /// All snapshots that `filter` selects (fields `name`, `parent`, `kind`, `labels.KEY`), as of one moment, by name.
    async fn walk(&self, filter: &Filter) -> Result<Vec<Info>, Error>;

    /// Returns when the disk space of all that was removed before the call is free.
    async fn cleanup(&self) -> Result<(), Error>;

    /// Returns when the files of the committed snapshot `name` (and of everything else on that file system) are durable.
    async fn sync(&self, name: &str) -> Result<(), Error>;

    /// Brings to the disk what was written to snapshots until now, so that a [`sync`](Snapshotter::sync) later has less to
    /// do. A promise of nothing: by default it does nothing.
    async fn sync_ahead(&self) -> Result<(), Error> {
        Ok(())
    }

    /// Counts what the active snapshot `key` takes, so that its commit need not. For one that is written to no more, but for
    /// owners and modes. By default it does nothing.
    async fn count_ahead(&self, _key: &str) -> Result<(), Error> {
        Ok(())
    }

    /// Where the files of `key` lie, where they are files of their own in a directory.
    fn files(&self, _key: &str) -> Option<Files> {
        None
    }

    /// Puts the files of the active snapshot `key` in the place of those of the committed snapshot `name`, which stands upon
    /// the same parent, durably; `key` then holds what `name` held. Mounts that are there keep what they show. Only for
    /// files that are not what was unpacked.
    ///
    /// # Errors
    /// `FailedPrecondition` for other kinds and parents; `Unimplemented` where [`files`](Snapshotter::files) gives none.
    async fn replace(&self, _name: &str, _key: &str) -> Result<(), Error> {
        Err(Error::Unsupported { snapshotter: "this", operation: "put files in place of others" })
    }

    /// containerd's capability words that hold here: `rebase` (see [`commit`](Snapshotter::commit)), `remap-ids`
    /// (mounts carry `uidmap=`/`gidmap=` for snapshots with the mapping labels); and ours, `quota` (a limit by
    /// [`MAX_SIZE_LABEL`] is held to).
    fn capabilities(&self) -> &[&'static str] {
        &[]
    }

    /// Whether another process keeps the snapshots: it may be away for a while, and keep labels of its own.
    fn is_remote(&self) -> bool {
        false
    }

    /// Where its directories are, if they are local (`exports.root` of introspection).
    fn root(&self) -> Option<&std::path::Path> {
        None
    }

    /// Files and directories below [`root`](Snapshotter::root) and the key of the snapshot that each belongs to, for an
    /// account of every byte; none where it cannot say, and all below its root is to be taken for its own.
    fn places(&self) -> Option<Vec<(std::path::PathBuf, String)>> {
        None
    }
}
