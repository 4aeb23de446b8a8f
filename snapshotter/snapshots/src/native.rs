//! Layers as full copies of directories: `snapshots/N` is all of snapshot N. Slow, simple, and at home on any file system.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use gantry_types::{Filter, Labels, Mount};
use rustix::fs::Mode;

use crate::contract::{Files, Info, Kind, Snapshotter, Usage};
use crate::copy;
use crate::error::Error;
use crate::graph::Chain;
use crate::mapping::Mapping;
use crate::store::{Commit, Store, blocking};
use crate::tree;

/// Layers as full copies of directories.
#[derive(Clone, Debug)]
pub struct Native {
    store: Arc<Store>,
}

impl Native {
    /// Opens (or makes) a snapshotter in `root`; finishes or undoes what a crash left half done. A damaged record costs
    /// that snapshot and those above it, and is named in the log. Blocks.
    ///
    /// # Errors
    /// [`Error::Unusable`] when it is another's directory, or another process has it open; [`Error::Io`].
    pub fn open(root: &Path) -> Result<Native, Error> {
        Ok(Native { store: Arc::new(Store::open(root, "native 1", has_directory)?) })
    }

    async fn create(&self, kind: Kind, key: &str, parent: Option<&str>, labels: Labels) -> Result<Vec<Mount>, Error> {
        if Mapping::of(key, &labels)?.is_some() {
            return Err(Error::Unsupported { snapshotter: "native", operation: "map ids" });
        }
        let (store, key, parent) = (Arc::clone(&self.store), key.to_owned(), parent.map(str::to_owned));
        blocking("create", move || {
            let chain = store.create(kind, &key, parent.as_deref(), labels, |chain| make(&store, chain))?;
            Ok(mounts(&store, &chain))
        })
        .await
    }
}

/// A view of a parent shows the parent's directory.
fn has_directory(chain: &Chain) -> bool {
    chain.node.kind != Kind::View || chain.parents.is_empty()
}

fn make(store: &Store, chain: &Chain) -> Result<(), Error> {
    if !has_directory(chain) {
        return Ok(());
    }
    let dir = store.dir(chain.id);
    let mode = Mode::from_raw_mode(0o755);
    let made = rustix::fs::mkdir(&dir, mode).and_then(|()| rustix::fs::chmod(&dir, mode));
    made.map_err(|error| Error::io("make", &dir)(error.into()))?;
    match chain.parents.first() {
        Some(parent) => copy::tree(&store.dir(*parent), &dir).map_err(Error::io("copy into", &dir)),
        None => Ok(()),
    }
}

fn mounts(store: &Store, chain: &Chain) -> Vec<Mount> {
    let (shown, mode) = match (chain.node.kind, chain.parents.first()) {
        (Kind::Active, _) => (chain.id, "rw"),
        (_, None) => (chain.id, "ro"),
        (_, Some(parent)) => (*parent, "ro"),
    };
    vec![Mount {
        kind: "bind".into(),
        source: store.dir(shown).display().to_string(),
        target: String::new(),
        options: vec![mode.into(), "rbind".into()],
    }]
}

#[async_trait]
impl Snapshotter for Native {
    async fn stat(&self, key: &str) -> Result<Info, Error> {
        self.store.stat(key)
    }

    async fn update(&self, info: Info, fieldpaths: &[String]) -> Result<Info, Error> {
        let (store, fieldpaths) = (Arc::clone(&self.store), fieldpaths.to_vec());
        blocking("update", move || store.update(&info, &fieldpaths)).await
    }

    async fn usage(&self, key: &str) -> Result<Usage, Error> {
        let (store, key) = (Arc::clone(&self.store), key.to_owned());
        blocking("usage", move || store.usage(&key, |id| tree::usage(&store.dir(id)))).await
    }

    async fn mounts(&self, key: &str) -> Result<Vec<Mount>, Error> {
        Ok(mounts(&self.store, &self.store.mountable(key)?))
    }

    async fn prepare(&self, key: &str, parent: Option<&str>, labels: Labels) -> Result<Vec<Mount>, Error> {
        self.create(Kind::Active, key, parent, labels).await
    }

    async fn view(&self, key: &str, parent: Option<&str>, labels: Labels) -> Result<Vec<Mount>, Error> {
        self.create(Kind::View, key, parent, labels).await
    }

    async fn commit(&self, name: &str, key: &str, parent: Option<&str>, labels: Labels) -> Result<(), Error> {
        // A copy cannot be put upon another one afterwards; naming the parent that it has is no change.
        if parent.is_some() && self.store.stat(key)?.parent.is_none() {
            return Err(Error::Unsupported { snapshotter: "native", operation: "commit upon a parent given later" });
        }
        let (store, name, key) = (Arc::clone(&self.store), name.to_owned(), key.to_owned());
        let parent = parent.map(str::to_owned);
        blocking("commit", move || {
            let close = |commit: &Commit<'_>| commit.measure(&store.dir(commit.id), false);
            store.commit(&name, &key, parent.as_deref(), labels, close)
        })
        .await
    }

    async fn remove(&self, key: &str) -> Result<(), Error> {
        let (store, key) = (Arc::clone(&self.store), key.to_owned());
        blocking("remove", move || store.remove(&key)).await
    }

    async fn walk(&self, filter: &Filter) -> Result<Vec<Info>, Error> {
        Ok(self.store.walk(filter).into_iter().map(|(_, info)| info).collect())
    }

    async fn cleanup(&self) -> Result<(), Error> {
        let store = Arc::clone(&self.store);
        blocking("cleanup", move || {
            store.cleanup();
            Ok(())
        })
        .await
    }

    async fn sync(&self, name: &str) -> Result<(), Error> {
        self.store.stat(name)?;
        self.sync_ahead().await
    }

    async fn sync_ahead(&self) -> Result<(), Error> {
        let store = Arc::clone(&self.store);
        blocking("sync", move || store.sync_files()).await
    }

    fn files(&self, key: &str) -> Option<Files> {
        let id = self.store.chain(key).ok().filter(has_directory)?.id;
        Some(Files { directory: self.store.dir(id), sums: self.store.sums(id), alone: false })
    }

    async fn replace(&self, name: &str, key: &str) -> Result<(), Error> {
        let (store, name, key) = (Arc::clone(&self.store), name.to_owned(), key.to_owned());
        blocking("replace", move || store.exchange(&name, &key, "")).await
    }

    fn root(&self) -> Option<&Path> {
        Some(self.store.root())
    }

    fn places(&self) -> Option<Vec<(std::path::PathBuf, String)>> {
        Some(self.store.places())
    }
}
