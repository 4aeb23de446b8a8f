//! Layers as EROFS images, each one file, stacked by the kernel's overlay file system.
//!
//! ```text
//! snapshots/N/layer.erofs   what snapshot N changes, once it is committed
//! snapshots/N/fs            upper directory while it is active; afterwards empty, with the root's attributes
//! snapshots/N/work          the kernel's scratch space beside it
//! snapshots/N/rwlayer.img   with a size given: the file system that holds upper and work directory instead
//! snapshots/N/.erofslayer   tells a differ that it may write `layer.erofs` at once
//! ```
//!
//! The list of files of a committed snapshot names the image alone, whoever has made it.
//!
//! The mounts are containerd's, with its words for a mount manager: one `erofs` a layer, then `format/mkdir/overlay`.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use gantry_layer::{Control, image_of_directory, list_file};
use gantry_mount::Tree;
use gantry_types::{Filter, Labels, Mount};
use rustix::fs::{Gid, IFlags, Uid};

use crate::contract::{Files, Info, Kind, Snapshotter, Usage};
use crate::error::Error;
use crate::graph::{Chain, Id};
use crate::mapping::Mapping;
use crate::overlay::make_dir;
use crate::probe;
use crate::store::{Commit, Store, blocking};
use crate::{copy, quota, tree};

/// The file that holds a layer, in the directory of its snapshot.
pub const LAYER: &str = "layer.erofs";
/// The file that says that [`LAYER`] may be written beside it.
pub const MARK: &str = ".erofslayer";

/// How an EROFS snapshotter behaves.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Options added to every overlay mount.
    pub overlay_options: Vec<String>,
    /// Layers are sealed with fs-verity, so that the kernel finds what is damaged.
    pub verity: bool,
    /// Layers are made immutable (chattr(1), `i`), so that nobody removes or changes them by mistake.
    pub immutable: bool,
    /// Bytes of the file system that an active snapshot is written to; 0: it is written to a directory, without limit.
    /// The label [`MAX_SIZE_LABEL`](crate::MAX_SIZE_LABEL) of a snapshot goes before it where this is not 0.
    pub default_size: u64,
}

/// Layers as EROFS images.
#[derive(Clone, Debug)]
pub struct Erofs {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Store,
    config: Config,
    id_maps: bool,
}

impl Erofs {
    /// Opens (or makes) a snapshotter in `root`; finishes or undoes what a crash left half done. A damaged record costs
    /// that snapshot and those above it, and is named in the log. Blocks.
    ///
    /// # Errors
    /// [`Error::Unusable`] where the kernel has no EROFS, or no overlay or seal as configured can lie there, or another
    /// process has it open; [`Error::Io`].
    pub fn open(root: &Path, config: Config) -> Result<Erofs, Error> {
        let unusable = |reason: &str| Error::Unusable { root: root.to_owned(), reason: reason.into() };
        let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
        if !known.lines().any(|line| line.trim_start_matches("nodev").trim() == "erofs") {
            return Err(unusable("this kernel has no EROFS (modprobe erofs, where it is a module)"));
        }
        let store = Store::open(root, "erofs 1", has_directory)?;
        let features = probe::probe(store.root())?;
        if config.verity && !gantry_mount::verity::works_in(store.root()) {
            return Err(unusable("its file system or this kernel cannot seal files with fs-verity"));
        }
        Ok(Erofs { inner: Arc::new(Inner { store, config, id_maps: features.id_maps }) })
    }

    async fn create(&self, kind: Kind, key: &str, parent: Option<&str>, labels: Labels) -> Result<Vec<Mount>, Error> {
        let (inner, key, parent) = (Arc::clone(&self.inner), key.to_owned(), parent.map(str::to_owned));
        blocking("create", move || inner.create(kind, &key, parent.as_deref(), labels)).await
    }
}

/// A view of a parent shows others' layers only.
fn has_directory(chain: &Chain) -> bool {
    chain.node.kind != Kind::View || chain.parents.is_empty()
}

impl Inner {
    fn create(&self, kind: Kind, key: &str, parent: Option<&str>, labels: Labels) -> Result<Vec<Mount>, Error> {
        let mapping = Mapping::of(key, &labels)?;
        if mapping.is_some() && !self.id_maps {
            return Err(Error::Unsupported { snapshotter: "erofs", operation: "map ids on this kernel" });
        }
        let chain = self.store.create(kind, key, parent, labels, |chain| self.make(chain, mapping.as_ref()))?;
        self.mounts(&chain)
    }

    fn make(&self, chain: &Chain, mapping: Option<&Mapping>) -> Result<(), Error> {
        if !has_directory(chain) {
            return Ok(());
        }
        let dir = self.store.dir(chain.id);
        let upper = self.upper(chain.id);
        make_dir(&dir, 0o700)?;
        make_dir(&upper, 0o755)?;
        if let Some(parent) = chain.parents.first() {
            self.like_parent(&upper, *parent)?;
        }
        if let (Some(mapping), false) = (mapping, self.in_file()) {
            let (uid, gid) = mapping.root();
            let changed = rustix::fs::chown(&upper, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
            changed.map_err(|error| Error::io("change the owner of", &upper)(error.into()))?;
        }
        if chain.node.kind == Kind::Active {
            if !self.in_file() {
                make_dir(&dir.join("work"), 0o711)?;
            }
            let mark = dir.join(MARK);
            fs::write(&mark, "").map_err(Error::io("write", &mark))?;
        }
        Ok(())
    }

    /// The upper directory's attributes hide those of the layers' roots, so it starts with the parent's.
    fn like_parent(&self, upper: &Path, parent: Id) -> Result<(), Error> {
        copy::attributes(&self.upper(parent), upper).map_err(Error::io("set the attributes of", upper))
    }

    fn in_file(&self) -> bool {
        self.config.default_size > 0
    }

    /// Turns what was written into an image, unless a differ has made one.
    fn seal(&self, commit: &Commit<'_>) -> Result<Usage, Error> {
        let (upper, image) = (self.upper(commit.id), self.image(commit.id));
        if let Some(parent) = commit.new_parent {
            self.like_parent(&upper, parent)?;
        }
        if !image.exists() {
            self.convert(commit.id, &image)?;
        }
        self.finish(commit.id)?;
        sync_directory(&self.store.dir(commit.id).join(".."))?;
        self.set_immutable(&image, true);
        tree::usage_of_file(&image).map_err(Error::io("measure", &image))
    }

    /// The image is whole: it is sealed, listed and durable.
    fn finish(&self, id: Id) -> Result<(), Error> {
        let (image, sums) = (self.image(id), self.store.sums(id));
        let file = File::open(&image).map_err(Error::io("open", &image))?;
        if self.config.verity {
            gantry_mount::verity::enable(&file).map_err(Error::io("seal with fs-verity", &image))?;
        }
        file.sync_all().map_err(Error::io("sync", &image))?;
        list_file(&self.store.dir(id), LAYER, &sums).map_err(Error::io("list the files of", &image))?;
        sync_directory(&self.store.root().join("sums"))?;
        sync_directory(&self.store.dir(id))
    }

    fn set_immutable(&self, image: &Path, immutable: bool) {
        if !self.config.immutable {
            return;
        }
        if let Err(error) = File::open(image).and_then(|file| set_immutable(&file, immutable)) {
            tracing::warn!(?image, immutable, %error, "whether a layer can be changed is not as configured");
        }
    }

    fn replace(&self, name: &str, key: &str) -> Result<(), Error> {
        let (old, new) = (self.store.chain(name)?, self.store.mountable(key)?);
        if old.node.kind != Kind::Committed || new.node.kind != Kind::Active {
            return Err(Error::WrongKind {
                key: key.into(),
                kind: new.node.kind,
                operation: "put in place of another",
            });
        }
        let (lost, image) = (self.image(old.id), self.image(new.id));
        if !image.exists() {
            self.convert(new.id, &image)?;
        }
        self.finish(new.id)?;
        if !lost.exists() {
            // One that is gone needs a place to be exchanged with.
            File::create(&lost).map_err(Error::io("make", &lost))?;
        }
        self.set_immutable(&lost, false);
        self.store.exchange(name, key, LAYER)?;
        self.set_immutable(&lost, true);
        Ok(())
    }

    fn convert(&self, id: Id, image: &Path) -> Result<(), Error> {
        let half = image.with_extension("half");
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&half);
        let file = file.map_err(Error::io("make", &half))?;
        let made = |directory: &Path| image_of_directory(directory, &file, &Control::default());
        let written = match self.written(id)? {
            Some(tree) if tree.path().join("upper").is_dir() => made(&tree.path().join("upper")),
            _ => made(&self.upper(id)),
        };
        written.map_err(|error| Error::io("make an image of", &self.upper(id))(io::Error::other(error)))?;
        file.sync_all().map_err(Error::io("sync", &half))?;
        fs::rename(&half, image).map_err(Error::io("rename", &half))
    }

    /// The file system in a file that an active snapshot was written to, if it was.
    fn written(&self, id: Id) -> Result<Option<Tree>, Error> {
        let source = self.writable(id);
        if !source.exists() {
            return Ok(None);
        }
        // Not even its journal is replayed, should it still be mounted elsewhere: it has been synced by that mount.
        let options = ["ro", "loop", "noload"].map(str::to_owned).to_vec();
        rustix::fs::sync();
        let mount = Mount { kind: "ext4".into(), source: source.display().to_string(), target: String::new(), options };
        let tree = Tree::new(&[mount]);
        tree.map(Some).map_err(|error| Error::io("mount", &source)(io::Error::other(error)))
    }

    /// The upper directory is in the image now. What stays by a crash is found by nobody.
    fn empty(&self, id: Id) {
        let dir = self.store.dir(id);
        let upper = self.upper(id);
        let names = fs::read_dir(&upper).into_iter().flatten().flatten().map(|entry| entry.path());
        for path in names.chain([dir.join("work"), self.writable(id), dir.join(MARK)]) {
            if let Err(error) = tree::delete(&path, &|| true) {
                tracing::warn!(?path, %error, "what an image holds now stays beside it");
            }
        }
    }

    fn mounts(&self, chain: &Chain) -> Result<Vec<Mount>, Error> {
        let lowers: Vec<Mount> = chain.parents.iter().map(|id| layer(&self.image(*id))).collect();
        let active = chain.node.kind == Kind::Active;
        match (active, lowers.len()) {
            (_, 0) => Ok(self.bottom(chain)),
            (false, 1) => Ok(lowers),
            _ => self.stacked(chain, lowers, active),
        }
    }

    /// One that stands on nothing.
    fn bottom(&self, chain: &Chain) -> Vec<Mount> {
        let mode = if chain.node.kind == Kind::Active { "rw" } else { "ro" };
        let image = self.image(chain.id);
        if image.exists() {
            return vec![layer(&image)];
        }
        if !self.in_file() || chain.node.kind != Kind::Active {
            let source = self.upper(chain.id).display().to_string();
            return vec![mount("bind", source, vec![mode.into(), "rbind".into()])];
        }
        let options = vec!["X-containerd.mkdir.path={{ mount 0 }}/upper:0755".into(), mode.into(), "rbind".into()];
        let upper = mount("format/mkdir/bind", "{{ mount 0 }}/upper".into(), options);
        vec![self.file_system(chain, mode), upper]
    }

    fn stacked(&self, chain: &Chain, lowers: Vec<Mount>, active: bool) -> Result<Vec<Mount>, Error> {
        let (mut mounts, mut options) = (Vec::with_capacity(lowers.len() + 2), Vec::new());
        if active && self.in_file() {
            mounts.push(self.file_system(chain, "rw"));
            options
                .extend(["upper", "work"].map(|dir| format!("X-containerd.mkdir.path={{{{ mount 0 }}}}/{dir}:0755")));
            options.extend(["workdir={{ mount 0 }}/work".to_owned(), "upperdir={{ mount 0 }}/upper".to_owned()]);
        } else if active {
            options.push(format!("workdir={}", self.store.dir(chain.id).join("work").display()));
            options.push(format!("upperdir={}", self.upper(chain.id).display()));
        }
        let first = mounts.len();
        mounts.extend(lowers);
        if let Some(mapping) = Mapping::of(&chain.node.name, &chain.node.labels)? {
            options.extend(mapping.options());
        }
        options.push(match mounts.len() - first {
            1 => format!("lowerdir={{{{ mount {first} }}}}"),
            _ => format!("lowerdir={{{{ overlay {first} {} }}}}", mounts.len() - 1),
        });
        options.extend(self.config.overlay_options.iter().cloned());
        mounts.push(mount("format/mkdir/overlay", "overlay".into(), options));
        Ok(mounts)
    }

    /// The file system in a file, which the mount manager makes where there is none.
    fn file_system(&self, chain: &Chain, mode: &str) -> Mount {
        let size = quota::wanted(&chain.node.labels).unwrap_or(self.config.default_size);
        let options = vec![
            "X-containerd.mkfs.fs=ext4".to_owned(),
            format!("X-containerd.mkfs.size={size}"),
            mode.to_owned(),
            "loop".to_owned(),
        ];
        mount("mkfs/ext4", self.writable(chain.id).display().to_string(), options)
    }

    fn upper(&self, id: Id) -> PathBuf {
        self.store.dir(id).join("fs")
    }

    fn writable(&self, id: Id) -> PathBuf {
        self.store.dir(id).join("rwlayer.img")
    }

    fn image(&self, id: Id) -> PathBuf {
        self.store.dir(id).join(LAYER)
    }

    /// What an active snapshot takes up.
    fn measure(&self, id: Id) -> io::Result<Usage> {
        let files = [self.writable(id), self.image(id)].into_iter().filter(|path| path.exists());
        files.map(|path| tree::usage_of_file(&path)).try_fold(tree::usage(&self.upper(id))?, |mut sum, usage| {
            sum += usage?;
            Ok(sum)
        })
    }
}

fn layer(image: &Path) -> Mount {
    mount("erofs", image.display().to_string(), vec!["ro".into(), "loop".into()])
}

fn mount(kind: &str, source: String, options: Vec<String>) -> Mount {
    Mount { kind: kind.into(), source, target: String::new(), options }
}

fn sync_directory(path: &Path) -> Result<(), Error> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(Error::io("sync", path))
}

fn set_immutable(file: &File, immutable: bool) -> io::Result<()> {
    let mut flags = rustix::fs::ioctl_getflags(file)?;
    flags.set(IFlags::IMMUTABLE, immutable);
    Ok(rustix::fs::ioctl_setflags(file, flags)?)
}

#[async_trait]
impl Snapshotter for Erofs {
    async fn stat(&self, key: &str) -> Result<Info, Error> {
        self.inner.store.stat(key)
    }

    async fn update(&self, info: Info, fieldpaths: &[String]) -> Result<Info, Error> {
        let (inner, fieldpaths) = (Arc::clone(&self.inner), fieldpaths.to_vec());
        blocking("update", move || inner.store.update(&info, &fieldpaths)).await
    }

    async fn usage(&self, key: &str) -> Result<Usage, Error> {
        let (inner, key) = (Arc::clone(&self.inner), key.to_owned());
        blocking("usage", move || inner.store.usage(&key, |id| inner.measure(id))).await
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
            let id = inner.store.chain(&key)?.id;
            inner.store.commit(&name, &key, parent.as_deref(), labels, |commit| inner.seal(commit))?;
            inner.empty(id);
            Ok(())
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
        // A commit ends when the image is durable.
        self.inner.store.stat(name).map(drop)
    }

    fn files(&self, key: &str) -> Option<Files> {
        let id = self.inner.store.chain(key).ok().filter(has_directory)?.id;
        Some(Files { directory: self.inner.store.dir(id), sums: self.inner.store.sums(id), alone: false })
    }

    async fn replace(&self, name: &str, key: &str) -> Result<(), Error> {
        let (inner, name, key) = (Arc::clone(&self.inner), name.to_owned(), key.to_owned());
        blocking("replace", move || inner.replace(&name, &key)).await
    }

    fn capabilities(&self) -> &'static [&'static str] {
        if self.inner.id_maps { &["only-remap-ids", "remap-ids", "rebase"] } else { &["only-remap-ids", "rebase"] }
    }

    fn root(&self) -> Option<&Path> {
        Some(self.inner.store.root())
    }
}
