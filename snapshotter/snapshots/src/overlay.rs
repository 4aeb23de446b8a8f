//! Layers as directories that the kernel's overlay file system stacks.
//!
//! `snapshots/N/fs` holds the changes of snapshot N, `snapshots/N/work` is the kernel's scratch space beside it. A view of a
//! parent has no directory.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use gantry_types::{Filter, Labels, Mount};
use rustix::fs::{Gid, Mode, Uid};

use crate::contract::{Files, Info, Kind, Snapshotter, UPPERDIR_LABEL, Usage};
use crate::copy;
use crate::error::Error;
use crate::graph::{Chain, Id};
use crate::mapping::Mapping;
use crate::probe::{self, Features};
use crate::quota::{self, Quotas};
use crate::store::{Store, blocking};
use crate::tree;

/// How an overlay snapshotter behaves.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Report where a snapshot's changes lie in the label [`UPPERDIR_LABEL`].
    pub upperdir_label: bool,
    /// Options added to every overlay mount (`volatile`, `index=on`, …).
    pub mount_options: Vec<String>,
    /// `commit` returns only when the layer's files are durable (as if followed by `sync`).
    pub sync_commit: bool,
}

/// Layers as directories that the kernel's overlay file system stacks.
#[derive(Clone, Debug)]
pub struct Overlay {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Store,
    config: Config,
    features: Features,
    /// The configured options, and those that this kernel needs.
    options: Vec<String>,
    /// Where the file system below can hold a snapshot to a size.
    quotas: Option<Quotas>,
}

impl Overlay {
    /// Opens (or makes) a snapshotter in `root`: probes the kernel and the file system, finishes or undoes what a crash
    /// left half done. A damaged record costs that snapshot and those above it, and is named in the log. Blocks.
    ///
    /// # Errors
    /// [`Error::Unusable`] when overlays cannot lie there, or another process has it open; [`Error::Io`].
    pub fn open(root: &Path, config: Config) -> Result<Overlay, Error> {
        let store = Store::open_emptying(root, "overlay 1", has_directory, quota::release)?;
        check_path(store.root())?;
        let features = probe::probe(store.root())?;
        let quotas = Quotas::open(store.root());
        tracing::debug!(root = ?store.root(), ?features, quotas = quotas.is_some(), "overlay snapshots");
        let options = options(&config, features);
        Ok(Overlay { inner: Arc::new(Inner { store, config, features, options, quotas }) })
    }

    /// What the kernel offers there.
    pub fn features(&self) -> Features {
        self.inner.features
    }

    async fn create(&self, kind: Kind, key: &str, parent: Option<&str>, labels: Labels) -> Result<Vec<Mount>, Error> {
        let (inner, key, parent) = (Arc::clone(&self.inner), key.to_owned(), parent.map(str::to_owned));
        blocking("create", move || inner.create(kind, &key, parent.as_deref(), labels)).await
    }
}

/// A view of a parent shows others' directories only.
fn has_directory(chain: &Chain) -> bool {
    chain.node.kind != Kind::View || chain.parents.is_empty()
}

/// Clients split options at `,` and layers at `:`, most without minding escapes.
fn check_path(root: &Path) -> Result<(), Error> {
    let fits = root.to_str().is_some_and(|path| !path.contains([':', ',', '\\', '"']));
    let reason = "its path holds a character that overlay options cannot".to_owned();
    if fits { Ok(()) } else { Err(Error::Unusable { root: root.to_owned(), reason }) }
}

fn options(config: &Config, features: Features) -> Vec<String> {
    let mut options = config.mount_options.clone();
    let set = |key: &str| config.mount_options.iter().any(|option| option.split('=').next() == Some(key));
    if features.userxattr && !set("userxattr") {
        options.push("userxattr".into());
    }
    if features.index && !set("index") {
        // A lower layer is shared by many overlays, which the index would refuse.
        options.push("index=off".into());
    }
    options
}

impl Inner {
    fn create(&self, kind: Kind, key: &str, parent: Option<&str>, labels: Labels) -> Result<Vec<Mount>, Error> {
        let mapping = Mapping::of(key, &labels)?;
        if mapping.is_some() && !self.features.id_maps {
            return Err(Error::Unsupported { snapshotter: "overlay", operation: "map ids on this kernel" });
        }
        let chain = self.store.create(kind, key, parent, labels, |chain| self.make(chain, mapping.as_ref()))?;
        self.mounts(&chain)
    }

    fn make(&self, chain: &Chain, mapping: Option<&Mapping>) -> Result<(), Error> {
        if !has_directory(chain) {
            return Ok(());
        }
        let upper = self.upper(chain.id);
        make_dir(&self.store.dir(chain.id), 0o700)?;
        let limit = quota::wanted(&chain.node.labels).filter(|_| chain.node.kind == Kind::Active);
        if let (Some(quotas), Some(bytes)) = (&self.quotas, limit) {
            quotas.limit(&self.store.dir(chain.id), chain.id, bytes)?;
        }
        make_dir(&upper, 0o755)?;
        if let Some(parent) = chain.parents.first() {
            self.like_parent(&upper, *parent, mapping)?;
        }
        if chain.node.kind == Kind::Active {
            make_dir(&self.work(chain.id), 0o711)?;
        }
        Ok(())
    }

    /// The topmost directory's attributes hide those below, so a new one starts with them.
    fn like_parent(&self, upper: &Path, parent: Id, mapping: Option<&Mapping>) -> Result<(), Error> {
        copy::attributes(&self.upper(parent), upper).map_err(Error::io("set the attributes of", upper))?;
        let Some((uid, gid)) = mapping.map(Mapping::root) else { return Ok(()) };
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        rustix::fs::chown(upper, Some(uid), Some(gid)).map_err(|e| Error::io("change the owner of", upper)(e.into()))
    }

    fn mounts(&self, chain: &Chain) -> Result<Vec<Mount>, Error> {
        let mut options: Vec<String> = Vec::new();
        if let Some(mapping) = Mapping::of(&chain.node.name, &chain.node.labels)? {
            options.extend(mapping.options());
        }
        let mount = match (chain.node.kind, chain.parents.as_slice()) {
            (Kind::Active, []) => bind(&self.upper(chain.id), options, "rw"),
            (_, []) => bind(&self.upper(chain.id), options, "ro"),
            (Kind::View | Kind::Committed, [parent]) => bind(&self.upper(*parent), options, "ro"),
            (kind, parents) => {
                if kind == Kind::Active {
                    options.push(format!("workdir={}", self.work(chain.id).display()));
                    options.push(format!("upperdir={}", self.upper(chain.id).display()));
                }
                let lowers: Vec<_> = parents.iter().map(|id| self.upper(*id).display().to_string()).collect();
                options.push(format!("lowerdir={}", lowers.join(":")));
                options.extend(self.options.iter().cloned());
                Mount { kind: "overlay".into(), source: "overlay".into(), target: String::new(), options }
            }
        };
        Ok(vec![mount])
    }

    fn upper(&self, id: Id) -> PathBuf {
        self.store.dir(id).join("fs")
    }

    fn work(&self, id: Id) -> PathBuf {
        self.store.dir(id).join("work")
    }

    /// What the snapshot takes, without a walk where the file system counts for us.
    fn usage(&self, id: Id) -> io::Result<Usage> {
        let counted = match &self.quotas {
            Some(quotas) => quotas.usage(&self.store.dir(id), &self.work(id))?,
            None => None,
        };
        counted.map_or_else(|| tree::usage(&self.upper(id)), Ok)
    }

    fn labelled(&self, id: Id, mut info: Info) -> Info {
        if self.config.upperdir_label {
            info.labels.insert(UPPERDIR_LABEL.into(), self.upper(id).display().to_string());
        }
        info
    }
}

fn bind(source: &Path, mut options: Vec<String>, mode: &str) -> Mount {
    options.extend([mode.to_owned(), "rbind".to_owned()]);
    Mount { kind: "bind".into(), source: source.display().to_string(), target: String::new(), options }
}

/// Makes a directory with exactly this mode.
pub(crate) fn make_dir(path: &Path, mode: u32) -> Result<(), Error> {
    let mode = Mode::from_raw_mode(mode);
    let made = rustix::fs::mkdir(path, mode).and_then(|()| rustix::fs::chmod(path, mode));
    made.map_err(|error| Error::io("make", path)(error.into()))
}

#[async_trait]
impl Snapshotter for Overlay {
    async fn stat(&self, key: &str) -> Result<Info, Error> {
        let id = self.inner.store.chain(key)?.id;
        Ok(self.inner.labelled(id, self.inner.store.stat(key)?))
    }

    async fn update(&self, mut info: Info, fieldpaths: &[String]) -> Result<Info, Error> {
        let (inner, fieldpaths) = (Arc::clone(&self.inner), fieldpaths.to_vec());
        blocking("update", move || {
            if inner.config.upperdir_label {
                // It is told, not kept.
                info.labels.remove(UPPERDIR_LABEL);
            }
            let id = inner.store.chain(&info.name)?.id;
            let info = inner.store.update(&info, &fieldpaths)?;
            if let (Some(quotas), Kind::Active) = (&inner.quotas, info.kind) {
                quotas.change(&inner.store.dir(id), quota::wanted(&info.labels))?;
            }
            Ok(inner.labelled(id, info))
        })
        .await
    }

    async fn usage(&self, key: &str) -> Result<Usage, Error> {
        let (inner, key) = (Arc::clone(&self.inner), key.to_owned());
        blocking("usage", move || inner.store.usage(&key, |id| inner.usage(id))).await
    }

    async fn mounts(&self, key: &str) -> Result<Vec<Mount>, Error> {
        self.inner.mounts(&self.inner.store.mountable(key)?)
    }

    async fn prepare(&self, key: &str, parent: Option<&str>, labels: Labels) -> Result<Vec<Mount>, Error> {
        self.create(Kind::Active, key, parent, labels).await
    }

    async fn view(&self, key: &str, parent: Option<&str>, labels: Labels) -> Result<Vec<Mount>, Error> {
        self.create(Kind::View, key, parent, labels).await
    }

    async fn commit(&self, name: &str, key: &str, parent: Option<&str>, labels: Labels) -> Result<(), Error> {
        let (inner, name, key) = (Arc::clone(&self.inner), name.to_owned(), key.to_owned());
        let parent = parent.map(str::to_owned);
        blocking("commit", move || {
            inner.store.commit(&name, &key, parent.as_deref(), labels, |commit| {
                let upper = inner.upper(commit.id);
                if let Some(parent) = commit.new_parent {
                    inner.like_parent(&upper, parent, None)?;
                }
                // What is committed does not grow any more.
                let dir = inner.store.dir(commit.id);
                quota::release(&dir).map_err(Error::io("release the limit of", &dir))?;
                commit.measure(&upper, inner.config.sync_commit)
            })
        })
        .await
    }

    async fn remove(&self, key: &str) -> Result<(), Error> {
        let (inner, key) = (Arc::clone(&self.inner), key.to_owned());
        blocking("remove", move || inner.store.remove(&key)).await
    }

    async fn walk(&self, filter: &Filter) -> Result<Vec<Info>, Error> {
        let infos = self.inner.store.walk(filter);
        Ok(infos.into_iter().map(|(id, info)| self.inner.labelled(id, info)).collect())
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

    async fn count_ahead(&self, key: &str) -> Result<(), Error> {
        let (inner, key) = (Arc::clone(&self.inner), key.to_owned());
        blocking("count", move || inner.store.count_ahead(&key, |id| inner.upper(id))).await
    }

    fn files(&self, key: &str) -> Option<Files> {
        let id = self.inner.store.chain(key).ok().filter(has_directory)?.id;
        Some(Files { directory: self.inner.upper(id), sums: self.inner.store.sums(id), alone: true })
    }

    async fn replace(&self, name: &str, key: &str) -> Result<(), Error> {
        let (inner, name, key) = (Arc::clone(&self.inner), name.to_owned(), key.to_owned());
        blocking("replace", move || inner.store.exchange(&name, &key, "fs")).await
    }

    fn capabilities(&self) -> &'static [&'static str] {
        match (self.inner.features.id_maps, self.inner.quotas.is_some()) {
            (true, true) => &["rebase", "remap-ids", "quota"],
            (true, false) => &["rebase", "remap-ids"],
            (false, true) => &["rebase", "quota"],
            (false, false) => &["rebase"],
        }
    }

    fn root(&self) -> Option<&Path> {
        Some(self.inner.store.root())
    }

    fn places(&self) -> Option<Vec<(std::path::PathBuf, String)>> {
        Some(self.inner.store.places())
    }
}
