//! Layers as subvolumes of btrfs: a snapshot is a copy of its parent that shares all blocks with it.
//!
//! `snapshots/N/fs` is the subvolume of snapshot N; a committed one is read-only. A view shows its parent's.

use std::ffi::{CStr, OsStr};
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use gantry_mount::{btrfs, mountinfo};
use gantry_types::{Filter, Labels, Mount};
use rustix::fs::{FileType, Stat};

use crate::contract::{Files, Info, Kind, Snapshotter, Usage};
use crate::error::Error;
use crate::graph::{Chain, Id};
use crate::mapping::Mapping;
use crate::overlay::make_dir;
use crate::store::{Store, blocking};
use crate::tree::{self, Counter, Visitor};

/// Layers as subvolumes.
#[derive(Clone, Debug)]
pub struct Btrfs {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Store,
    /// What mounts name.
    device: String,
}

impl Btrfs {
    /// Opens (or makes) a snapshotter in `root`; finishes or undoes what a crash left half done. A damaged record costs
    /// that snapshot and those above it, and is named in the log. Blocks.
    ///
    /// # Errors
    /// [`Error::Unusable`] when it does not lie on btrfs, or another process has it open; [`Error::Io`].
    pub fn open(root: &Path) -> Result<Btrfs, Error> {
        let device = device_of(root)?;
        let store = Store::open_emptying(root, "btrfs 1", has_directory, empty)?;
        let inner = Inner { store, device };
        inner.heal()?;
        Ok(Btrfs { inner: Arc::new(inner) })
    }

    async fn create(&self, kind: Kind, key: &str, parent: Option<&str>, labels: Labels) -> Result<Vec<Mount>, Error> {
        if Mapping::of(key, &labels)?.is_some() {
            return Err(Error::Unsupported { snapshotter: "btrfs", operation: "map ids" });
        }
        let (inner, key, parent) = (Arc::clone(&self.inner), key.to_owned(), parent.map(str::to_owned));
        blocking("create", move || {
            let chain = inner.store.create(kind, &key, parent.as_deref(), labels, |chain| inner.make(chain))?;
            inner.mounts(&chain)
        })
        .await
    }
}

/// The device behind the file system that `root`, or the directory it is to be made in, lies on.
fn device_of(root: &Path) -> Result<String, Error> {
    let unusable = |reason: String| Error::Unusable { root: root.to_owned(), reason };
    let there = root.ancestors().find_map(|path| path.canonicalize().ok());
    let there = there.ok_or_else(|| unusable("it cannot be resolved".into()))?;
    let table = mountinfo::read().map_err(|error| unusable(error.to_string()))?;
    let holders = table.into_iter().filter(|entry| there.starts_with(&entry.target));
    // Of several at one place the last covers the others.
    let holder = holders.max_by_key(|entry| entry.target.components().count());
    match holder {
        Some(entry) if entry.kind == "btrfs" => Ok(entry.source.display().to_string()),
        Some(entry) => Err(unusable(format!("it lies on {}, not on btrfs", entry.kind))),
        None => Err(unusable("the file system it lies on is in no mount table".into())),
    }
}

/// Takes the subvolume away at once. One that the kernel will not let go of is deleted file by file.
fn empty(directory: &Path) -> io::Result<()> {
    let path = directory.join("fs");
    match btrfs::delete(&path) {
        Err(_) if path.exists() => btrfs::set_read_only(&path, false),
        deleted => deleted,
    }
}

/// A view of a parent shows the parent's subvolume.
fn has_directory(chain: &Chain) -> bool {
    chain.node.kind != Kind::View || chain.parents.is_empty()
}

impl Inner {
    fn make(&self, chain: &Chain) -> Result<(), Error> {
        if !has_directory(chain) {
            return Ok(());
        }
        make_dir(&self.store.dir(chain.id), 0o700)?;
        let path = self.subvolume(chain.id);
        match chain.parents.first() {
            Some(parent) => btrfs::snapshot(&self.subvolume(*parent), &path),
            None => btrfs::create(&path).and_then(|()| rustix::fs::chmod(&path, 0o755.into()).map_err(Into::into)),
        }
        .map_err(Error::io("make the subvolume", &path))
    }

    /// A commit that was broken off may have left its subvolume read-only, and a mending one writable.
    fn heal(&self) -> Result<(), Error> {
        for (id, info) in self.store.walk(&Filter::default()) {
            let path = self.subvolume(id);
            match info.kind {
                Kind::Active => btrfs::set_read_only(&path, false).map_err(Error::io("make writable", &path))?,
                Kind::Committed => btrfs::set_read_only(&path, true).map_err(Error::io("make read-only", &path))?,
                Kind::View => {}
            }
        }
        Ok(())
    }

    /// A subvolume goes to another directory only while it may be written to.
    fn replace(&self, name: &str, key: &str) -> Result<(), Error> {
        let (old, new) = (self.store.chain(name)?, self.store.mountable(key)?);
        let path = self.subvolume(old.id);
        if old.node.kind != Kind::Committed || new.node.kind != Kind::Active {
            return Err(Error::WrongKind {
                key: key.into(),
                kind: new.node.kind,
                operation: "put in place of another",
            });
        }
        btrfs::set_read_only(&path, false).map_err(Error::io("make writable", &path))?;
        let exchanged = self.store.exchange(name, key, "fs");
        btrfs::set_read_only(&path, true).map_err(Error::io("make read-only", &path))?;
        exchanged
    }

    fn mounts(&self, chain: &Chain) -> Result<Vec<Mount>, Error> {
        let shown = if has_directory(chain) { Some(&chain.id) } else { chain.parents.first() };
        let path = self.subvolume(shown.copied().unwrap_or(chain.id));
        let id = btrfs::id(&path).map_err(|error| {
            // Another call may have removed it since it was found.
            let now = self.store.chain(&chain.node.name);
            match now.is_ok_and(|now| now.id == chain.id) {
                true => Error::io("find the number of", &path)(error),
                false => Error::NotFound { key: chain.node.name.clone() },
            }
        })?;
        let mut options = vec![format!("subvolid={id}")];
        if chain.node.kind != Kind::Active {
            options.push("ro".into());
        }
        Ok(vec![Mount { kind: "btrfs".into(), source: self.device.clone(), target: String::new(), options }])
    }

    /// What is in the subvolume and not, just so, in its parent's.
    fn measure(&self, id: Id, parent: Option<Id>) -> io::Result<Usage> {
        let Some(parent) = parent else { return tree::usage(&self.subvolume(id)) };
        let mut changes = Changes { parent: self.subvolume(parent), path: PathBuf::new(), counter: Counter::default() };
        changes.count(&rustix::fs::lstat(self.subvolume(id))?);
        tree::walk(&self.subvolume(id), &mut changes)?;
        Ok(changes.counter.usage())
    }

    fn subvolume(&self, id: Id) -> PathBuf {
        self.store.dir(id).join("fs")
    }
}

/// Counts what differs from a parent. A copied subvolume keeps inode numbers and times of changes.
struct Changes {
    parent: PathBuf,
    path: PathBuf,
    counter: Counter,
}

impl Changes {
    fn count(&mut self, stat: &Stat) {
        let unchanged = rustix::fs::lstat(self.parent.join(&self.path)).is_ok_and(|old| {
            let key = |stat: &Stat| (stat.st_ino, stat.st_ctime, stat.st_ctime_nsec, stat.st_size);
            key(&old) == key(stat)
        });
        if !unchanged {
            self.counter.count(stat);
        }
    }
}

impl Visitor for Changes {
    fn enter(&mut self, _dir: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> io::Result<()> {
        self.path.push(OsStr::from_bytes(name.to_bytes()));
        self.count(stat);
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            self.path.pop();
        }
        Ok(())
    }

    fn leave(&mut self, _dir: BorrowedFd<'_>, _name: &CStr) -> io::Result<()> {
        self.path.pop();
        Ok(())
    }
}

#[async_trait]
impl Snapshotter for Btrfs {
    async fn stat(&self, key: &str) -> Result<Info, Error> {
        self.inner.store.stat(key)
    }

    async fn update(&self, info: Info, fieldpaths: &[String]) -> Result<Info, Error> {
        let (inner, fieldpaths) = (Arc::clone(&self.inner), fieldpaths.to_vec());
        blocking("update", move || inner.store.update(&info, &fieldpaths)).await
    }

    async fn usage(&self, key: &str) -> Result<Usage, Error> {
        let (inner, key) = (Arc::clone(&self.inner), key.to_owned());
        blocking("usage", move || {
            let parent = inner.store.chain(&key)?.parents.first().copied();
            inner.store.usage(&key, |id| inner.measure(id, parent))
        })
        .await
    }

    async fn mounts(&self, key: &str) -> Result<Vec<Mount>, Error> {
        let (inner, key) = (Arc::clone(&self.inner), key.to_owned());
        blocking("mounts", move || inner.mounts(&inner.store.mountable(&key)?)).await
    }

    async fn prepare(&self, key: &str, parent: Option<&str>, labels: Labels) -> Result<Vec<Mount>, Error> {
        self.create(Kind::Active, key, parent, labels).await
    }

    async fn view(&self, key: &str, parent: Option<&str>, labels: Labels) -> Result<Vec<Mount>, Error> {
        self.create(Kind::View, key, parent, labels).await
    }

    async fn commit(&self, name: &str, key: &str, parent: Option<&str>, labels: Labels) -> Result<(), Error> {
        let before = self.inner.store.chain(key)?.parents.first().copied();
        // A copy cannot be put upon another one afterwards; naming the parent that it has is no change.
        if parent.is_some() && before.is_none() {
            return Err(Error::Unsupported { snapshotter: "btrfs", operation: "commit upon a parent given later" });
        }
        let (inner, name, key) = (Arc::clone(&self.inner), name.to_owned(), key.to_owned());
        let parent = parent.map(str::to_owned);
        blocking("commit", move || {
            inner.store.commit(&name, &key, parent.as_deref(), labels, |commit| {
                let path = inner.subvolume(commit.id);
                btrfs::set_read_only(&path, true).map_err(Error::io("make read-only", &path))?;
                inner.measure(commit.id, before).map_err(Error::io("measure", &path))
            })
        })
        .await
    }

    async fn remove(&self, key: &str) -> Result<(), Error> {
        let (inner, key) = (Arc::clone(&self.inner), key.to_owned());
        blocking("remove", move || inner.store.remove(&key)).await
    }

    async fn walk(&self, filter: &Filter) -> Result<Vec<Info>, Error> {
        Ok(self.inner.store.walk(filter).into_iter().map(|(_, info)| info).collect())
    }

    async fn cleanup(&self) -> Result<(), Error> {
        let inner = Arc::clone(&self.inner);
        blocking("cleanup", move || {
            inner.store.cleanup();
            Ok(())
        })
        .await
    }

    async fn sync(&self, name: &str) -> Result<(), Error> {
        self.inner.store.stat(name)?;
        self.sync_ahead().await
    }

    async fn sync_ahead(&self) -> Result<(), Error> {
        let inner = Arc::clone(&self.inner);
        blocking("sync", move || inner.store.sync_files()).await
    }

    fn files(&self, key: &str) -> Option<Files> {
        let id = self.inner.store.chain(key).ok().filter(has_directory)?.id;
        Some(Files { directory: self.inner.subvolume(id), sums: self.inner.store.sums(id), alone: false })
    }

    async fn replace(&self, name: &str, key: &str) -> Result<(), Error> {
        let (inner, name, key) = (Arc::clone(&self.inner), name.to_owned(), key.to_owned());
        blocking("replace", move || inner.replace(&name, &key)).await
    }

    fn root(&self) -> Option<&Path> {
        Some(self.inner.store.root())
    }
}
