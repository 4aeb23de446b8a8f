//! What local snapshotters share: the graph in memory, its records on disk, the directories, the trash.
//!
//! ```text
//! ROOT/lock          held while open       ROOT/snapshots/N   the directory of snapshot N
//! ROOT/records/N     record of snapshot N  ROOT/trash/N       what was removed, until it is deleted
//! ROOT/sums/N        list of the files that were unpacked into N, where who did that left one
//! ```
//!
//! The record is the truth: a directory without one is half made or half removed, and goes to the trash at open.
//! Reading takes the lock of the graph only, never the disk.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use gantry_types::{Filter, Labels};
use rustix::fs::FlockOperation;

use crate::contract::{Info, Kind, Usage};
use crate::error::Error;
use crate::graph::{Chain, Change, Graph, Id};
use crate::records::Records;
use crate::trash::{Empty, Trash};
use crate::tree;

/// How long a call waits for another one's change of the same snapshot.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long another process may hold the directory.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);

/// See the module.
#[derive(Debug)]
pub(crate) struct Store {
    root: PathBuf,
    graph: Mutex<Graph>,
    ended: Condvar,
    /// What active snapshots take of which that was counted before their commit.
    counted: Mutex<BTreeMap<Id, Usage>>,
    records: Arc<Records>,
    trash: Trash,
    _lock: File,
}

impl Store {
    /// Opens or makes the store in `root`, for snapshotters of type `format`. `has_directory` tells which snapshots
    /// cannot be without their directory.
    pub(crate) fn open(root: &Path, format: &str, has_directory: fn(&Chain) -> bool) -> Result<Store, Error> {
        Store::open_emptying(root, format, has_directory, |_| Ok(()))
    }

    /// As [`Store::open`]; `empty` is called on a removed directory before it is deleted.
    pub(crate) fn open_emptying(
        root: &Path,
        format: &str,
        has_directory: fn(&Chain) -> bool,
        empty: Empty,
    ) -> Result<Store, Error> {
        let root = make_root(root)?;
        let lock = lock(&root)?;
        check_format(&root, format)?;
        make_dir(&root.join("snapshots"))?;
        make_dir(&root.join("sums"))?;
        let records = Arc::new(Records::open(root.join("records"))?);
        let trash = Trash::open(root.join("trash"), Arc::clone(&records), empty)?;
        let graph = Mutex::new(Graph::default());
        let (ended, counted) = (Condvar::new(), Mutex::default());
        let store = Store { root, graph, ended, counted, records, trash, _lock: lock };
        store.recover(has_directory)?;
        Ok(store)
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The directory of snapshot `id`.
    pub(crate) fn dir(&self, id: Id) -> PathBuf {
        self.root.join("snapshots").join(id.to_string())
    }

    /// Where the list of the files of snapshot `id` is, if there is one.
    pub(crate) fn sums(&self, id: Id) -> PathBuf {
        self.root.join("sums").join(id.to_string())
    }

    pub(crate) fn stat(&self, key: &str) -> Result<Info, Error> {
        self.graph().stat(key)
    }

    pub(crate) fn chain(&self, key: &str) -> Result<Chain, Error> {
        self.graph().chain(key)
    }

    /// The snapshot `key`, which must not be committed.
    pub(crate) fn mountable(&self, key: &str) -> Result<Chain, Error> {
        let chain = self.chain(key)?;
        match chain.node.kind {
            Kind::Committed => {
                Err(Error::WrongKind { key: key.into(), kind: Kind::Committed, operation: "give the mounts of" })
            }
            _ => Ok(chain),
        }
    }

    pub(crate) fn walk(&self, filter: &Filter) -> Vec<(Id, Info)> {
        self.graph().walk(filter)
    }

    /// Below the root: directory and record of each snapshot, and its key.
    pub(crate) fn places(&self) -> Vec<(PathBuf, String)> {
        let place = |part: &str, id: Id, info: &Info| (Path::new(part).join(id.to_string()), info.name.clone());
        let all = self.walk(&Filter::default());
        all.iter().flat_map(|(id, info)| ["snapshots", "records", "sums"].map(|part| place(part, *id, info))).collect()
    }

    /// Creates a snapshot, whose directory `make` makes.
    pub(crate) fn create(
        &self,
        kind: Kind,
        key: &str,
        parent: Option<&str>,
        labels: Labels,
        make: impl FnOnce(&Chain) -> Result<(), Error>,
    ) -> Result<Chain, Error> {
        let change = self.graph().begin_create(kind, key, parent, labels, SystemTime::now())?;
        let id = change.id();
        let work = |change: &mut Change| match change {
            Change::Create(chain) => {
                make(chain)?;
                fail::fail_point!("snapshots::before-record");
                self.records.write(chain.id, &chain.node, false)
            }
            _ => Ok(()),
        };
        match self.carry_out(change, work) {
            Ok(Change::Create(chain)) => Ok(chain),
            Ok(_) => Err(Error::Stopped { operation: "create" }),
            Err(error) => {
                self.records.remove(id)?;
                self.trash.take(&self.dir(id))?;
                Err(error)
            }
        }
    }

    /// Commits a snapshot. `close` brings its files into the state in which they stay, and counts them.
    pub(crate) fn commit(
        &self,
        name: &str,
        key: &str,
        parent: Option<&str>,
        labels: Labels,
        close: impl FnOnce(&Commit<'_>) -> Result<Usage, Error>,
    ) -> Result<(), Error> {
        let mut before = None;
        let change = self.begin(key, |graph| {
            let change = graph.begin_commit(name, key, parent, labels, SystemTime::now())?;
            before = graph.chain(key)?.parents.first().copied();
            Ok(change)
        })?;
        self.carry_out(change, |change| {
            let Change::Replace(id, node) = change else { return Ok(()) };
            fail::fail_point!("snapshots::before-record");
            let new_parent = node.parent.filter(|_| before.is_none());
            node.usage = Some(close(&Commit { store: self, id: *id, new_parent })?);
            self.records.write(*id, node, true)
        })
        .map(|_| ())
    }

    pub(crate) fn update(&self, info: &Info, fieldpaths: &[String]) -> Result<Info, Error> {
        let change = self.begin(&info.name, |graph| graph.begin_update(info, fieldpaths, SystemTime::now()))?;
        self.carry_out(change, |change| match change {
            Change::Replace(id, node) => self.records.write(*id, node, node.kind == Kind::Committed),
            _ => Ok(()),
        })?;
        self.stat(&info.name)
    }

    pub(crate) fn remove(&self, key: &str) -> Result<(), Error> {
        let change = self.begin(key, |graph| graph.begin_remove(key))?;
        let id = change.id();
        fail::fail_point!("snapshots::before-record");
        self.carry_out(change, |_| self.records.remove(id))?;
        fail::fail_point!("snapshots::before-trash");
        self.counted().remove(&id);
        self.forget_sums(id);
        self.trash.take(&self.dir(id))
    }

    /// A list without its snapshot: the next start looks for what stays.
    fn forget_sums(&self, id: Id) {
        let path = self.sums(id);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => tracing::debug!(?path, %error, "not removed"),
            _ => {}
        }
    }

    /// Puts what the active snapshot `key` has at `part` of its directory in the place of what the committed snapshot `name`
    /// has there, durably, with its list of files. `key` has then what `name` had. Both must stand upon the same.
    pub(crate) fn exchange(&self, name: &str, key: &str, part: &str) -> Result<(), Error> {
        let (old, new) = (self.chain(name)?, self.mountable(key)?);
        if old.node.kind != Kind::Committed || new.node.kind != Kind::Active || old.parents != new.parents {
            return Err(Error::WrongKind {
                key: key.into(),
                kind: new.node.kind,
                operation: "put in place of another",
            });
        }
        self.sync_files()?;
        let (from, to) = (self.dir(new.id).join(part), self.dir(old.id).join(part));
        let flags = rustix::fs::RenameFlags::EXCHANGE;
        rustix::fs::renameat_with(rustix::fs::CWD, &from, rustix::fs::CWD, &to, flags)
            .map_err(|error| Error::io("exchange", &to)(error.into()))?;
        match fs::rename(self.sums(new.id), self.sums(old.id)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.forget_sums(old.id),
            renamed => renamed.map_err(Error::io("rename", &self.sums(new.id)))?,
        }
        self.sync_files()
    }

    /// What was counted at commit, or what `measure` counts now.
    pub(crate) fn usage(&self, key: &str, measure: impl FnOnce(Id) -> io::Result<Usage>) -> Result<Usage, Error> {
        let chain = self.chain(key)?;
        match (chain.node.kind, chain.node.usage) {
            (_, Some(usage)) => Ok(usage),
            (Kind::View, None) => Ok(Usage::default()),
            (_, None) => {
                match measure(chain.id) {
                    // Removed or committed meanwhile: then the graph knows.
                    Err(_) if self.chain(key).is_err() => Err(Error::NotFound { key: key.into() }),
                    result => result.map_err(Error::io("measure", &self.dir(chain.id))),
                }
            }
        }
    }

    /// Counts what the active snapshot `key` takes in `path`, for its commit.
    pub(crate) fn count_ahead(&self, key: &str, path: impl FnOnce(Id) -> PathBuf) -> Result<(), Error> {
        let Chain { id, node, .. } = self.chain(key)?;
        if node.kind != Kind::Active {
            return Err(Error::WrongKind { key: key.into(), kind: node.kind, operation: "count ahead of a commit" });
        }
        let path = path(id);
        let usage = tree::usage(&path).map_err(Error::io("measure", &path))?;
        self.counted().insert(id, usage);
        if self.chain(key).is_err() {
            // It was removed meanwhile.
            self.counted().remove(&id);
        }
        Ok(())
    }

    fn counted(&self) -> MutexGuard<'_, BTreeMap<Id, Usage>> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn cleanup(&self) {
        self.trash.wait();
    }

    /// Returns when everything on the file system is durable.
    pub(crate) fn sync_files(&self) -> Result<(), Error> {
        let root = File::open(&self.root).map_err(Error::io("open", &self.root))?;
        rustix::fs::syncfs(&root).map_err(|error| Error::io("sync", &self.root)(error.into()))
    }

    fn graph(&self) -> MutexGuard<'_, Graph> {
        // Each half of a change leaves the graph whole, so a panic elsewhere does not spoil it.
        self.graph.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a change of an existing snapshot once no other change of it is under way.
    fn begin(&self, key: &str, begin: impl FnOnce(&mut Graph) -> Result<Change, Error>) -> Result<Change, Error> {
        let deadline = Instant::now() + PATIENCE;
        let mut graph = self.graph();
        while graph.is_busy(key) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::Busy { key: key.into(), waited: PATIENCE });
            }
            graph = self.ended.wait_timeout(graph, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        begin(&mut graph)
    }

    /// Does the disk's half of a change, and ends it either way.
    fn carry_out(&self, change: Change, work: impl FnOnce(&mut Change) -> Result<(), Error>) -> Result<Change, Error> {
        let mut pending = Pending { store: self, change, done: false };
        work(&mut pending.change)?;
        fail::fail_point!("snapshots::after-record");
        pending.done = true;
        let change = pending.change.clone();
        drop(pending);
        Ok(change)
    }

    fn recover(&self, has_directory: fn(&Chain) -> bool) -> Result<(), Error> {
        let directories = self.numbered("snapshots")?;
        let mut nodes = self.records.load()?;
        let mut dropped: Vec<(Id, &str)> = Vec::new();
        let bare = |id: Id, node: &crate::graph::Node| Chain {
            id,
            node: node.clone(),
            parents: node.parent.into_iter().collect(),
        };
        nodes.retain(|id, node| {
            let whole = directories.contains(id) || !has_directory(&bare(*id, node));
            if !whole {
                dropped.push((*id, "its directory is missing"));
            }
            whole
        });
        let (mut graph, refused) = Graph::load(nodes);
        dropped.extend(refused);
        graph.skip_to(directories.last().copied().unwrap_or(0).max(dropped.iter().map(|d| d.0).max().unwrap_or(0)));
        for (id, reason) in &dropped {
            tracing::error!(snapshot = id, reason, "a snapshot is lost");
            self.records.remove(*id)?;
        }
        for id in directories.iter().filter(|id| !graph.holds(**id)) {
            self.trash.take(&self.dir(*id))?;
        }
        for id in self.numbered("sums")?.into_iter().filter(|id| !graph.holds(*id)) {
            self.forget_sums(id);
        }
        *self.graph() = graph;
        Ok(())
    }

    /// The snapshots that have an entry in this directory.
    fn numbered(&self, part: &str) -> Result<BTreeSet<Id>, Error> {
        let dir = self.root.join(part);
        let mut ids = BTreeSet::new();
        for entry in fs::read_dir(&dir).map_err(Error::io("list", &dir))? {
            let name = entry.map_err(Error::io("list", &dir))?.file_name();
            ids.extend(name.to_str().and_then(|name| name.parse::<Id>().ok()));
        }
        Ok(ids)
    }
}

/// A snapshot that is being committed.
pub(crate) struct Commit<'a> {
    pub(crate) store: &'a Store,
    pub(crate) id: Id,
    /// What it is put upon only now.
    pub(crate) new_parent: Option<Id>,
}

impl Commit<'_> {
    /// Counts what is in `path` unless that was done ahead; with `durable`, once all is durable.
    pub(crate) fn measure(&self, path: &Path, durable: bool) -> Result<Usage, Error> {
        let counted = self.store.counted().remove(&self.id);
        let usage = counted.map_or_else(|| tree::usage(path).map_err(Error::io("measure", path)), Ok)?;
        if durable {
            self.store.sync_files()?;
        }
        Ok(usage)
    }
}

/// A change under way, taken back unless it is done, also when its work panics.
struct Pending<'a> {
    store: &'a Store,
    change: Change,
    done: bool,
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        let mut graph = self.store.graph();
        match self.done {
            true => graph.finish(&self.change),
            false => graph.abort(&self.change),
        }
        self.store.ended.notify_all();
    }
}

/// The directory, free of links, so that mounts name it as the kernel's tables do.
fn make_root(root: &Path) -> Result<PathBuf, Error> {
    make_dir(root)?;
    root.canonicalize().map_err(Error::io("resolve", root))
}

fn make_dir(path: &Path) -> Result<(), Error> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(Error::io("make", path))
}

/// A process that was just killed, or a child of it between fork and exec, may hold the lock for a moment longer.
fn lock(root: &Path) -> Result<File, Error> {
    let path = root.join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(Error::io("open", &path))?;
    let deadline = Instant::now() + LOCK_PATIENCE;
    while rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        if Instant::now() > deadline {
            return Err(Error::Unusable { root: root.to_owned(), reason: "another process uses it".into() });
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(file)
}

fn check_format(root: &Path, format: &str) -> Result<(), Error> {
    let path = root.join("format");
    match fs::read_to_string(&path) {
        Ok(found) if found.trim_end() == format => Ok(()),
        Ok(found) if !found.is_empty() => {
            let reason = format!("it is of format {:?}, not {format:?}", found.trim_end());
            Err(Error::Unusable { root: root.to_owned(), reason })
        }
        _ => fs::write(&path, format!("{format}\n")).map_err(Error::io("write", &path)),
    }
}

/// Runs `work`, which may block on the disk, where blocking is allowed.
pub(crate) async fn blocking<T: Send + 'static>(
    operation: &'static str,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(_) => Err(Error::Stopped { operation }),
    }
}
