//! Whose is every byte under the root directory.
//!
//! The tree is walked once; what lies where a store puts its things is asked of the records, and what lies elsewhere is
//! foreign. Bytes are what is allocated on the disk; what has several names counts once; other file systems are left out.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use gantry_types::{Digest, Namespace};

use crate::core::Core;
use crate::{Engine, Error, Result};

/// Whether somebody needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// A record names it, or the engine itself needs it.
    Owned,
    /// The engine made it, and no record names it any more.
    Garbage,
    /// The engine did not make it, and leaves it alone.
    Foreign,
}

/// What something is kept as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A blob.
    Content,
    /// A blob to be.
    Ingest,
    /// A snapshot's files, or its record.
    Snapshot,
    /// The records.
    Metadata,
    /// Removed, and soon deleted.
    Trash,
    /// A container's directory.
    Runtime,
    /// What the daemon keeps beside: directories, locks, its identity.
    Daemon,
    /// Unknown.
    Foreign,
}

/// A file, or a directory with all that is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// From the root directory on.
    pub path: PathBuf,
    /// What it is.
    pub kind: Kind,
    /// Digest, ref or key of it; empty for what has none.
    pub name: String,
    /// Of a snapshot: whose it is.
    pub snapshotter: String,
    /// Who sees it.
    pub namespaces: Vec<Namespace>,
    /// Whether somebody needs it.
    pub state: State,
    /// Allocated on the disk.
    pub bytes: u64,
    /// Files and directories.
    pub inodes: u64,
}

impl Engine {
    /// Whose is every byte under the root directory. The bytes of all entries are those of the directory. Takes time in
    /// proportion to the number of files.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub async fn usage(&self) -> Result<Vec<Entry>> {
        let operation = self.core.ops.begin("usage", "", None, None);
        operation.stage("asking the records");
        let owners = Owners::of(&self.core).await?;
        operation.stage("walking the directory");
        let root = self.core.config.root.clone();
        let walked = tokio::task::spawn_blocking(move || Walk::new(&root, owners).run()).await;
        walked.map_err(Error::task("usage"))?.map_err(Error::io("walk", &self.core.config.root))
    }
}

/// An object, and who sees it. One without namespaces is garbage.
#[derive(Clone, Debug, Default)]
struct Owner {
    name: String,
    namespaces: Vec<Namespace>,
}

/// What the records say.
struct Owners {
    /// By the name of the file.
    blobs: BTreeMap<String, Owner>,
    /// By the name of the directory.
    ingests: BTreeMap<String, Owner>,
    /// By snapshotter and by path below its directory; none for one that does not say where its snapshots are.
    snapshots: BTreeMap<String, Option<BTreeMap<PathBuf, Owner>>>,
    /// `NAMESPACE/ID` of all containers.
    containers: BTreeSet<PathBuf>,
}

impl Owners {
    async fn of(core: &Core) -> Result<Owners> {
        let mut owners = Owners {
            blobs: BTreeMap::new(),
            ingests: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            containers: BTreeSet::new(),
        };
        let mut keys: BTreeMap<(String, String), Owner> = BTreeMap::new();
        for namespace in core.db.namespaces().scan().filter_map(std::result::Result::ok) {
            let namespace = namespace.name;
            owners.add_content(core, &namespace);
            for name in core.snapshotters.keys() {
                for record in core.db.snapshots(&namespace, name).scan().filter_map(std::result::Result::ok) {
                    let owner = keys.entry((name.clone(), record.internal)).or_default();
                    owner.name = record.key;
                    owner.namespaces.push(namespace.clone());
                }
            }
        }
        for (name, snapshotter) in &core.snapshotters {
            let own = |internal: String| {
                let known = keys.get(&(name.clone(), internal.clone())).cloned();
                known.unwrap_or(Owner { name: internal, namespaces: Vec::new() })
            };
            let places = snapshotter.places();
            let places = places.map(|places| places.into_iter().map(|(path, key)| (path, own(key))).collect());
            owners.snapshots.insert(name.clone(), places);
        }
        Ok(owners)
    }

    fn add_content(&mut self, core: &Core, namespace: &Namespace) {
        for blob in core.db.blobs(namespace).scan().filter_map(std::result::Result::ok) {
            let owner = self.blobs.entry(blob.digest.hex().to_owned()).or_default();
            owner.name = blob.digest.to_string();
            owner.namespaces.push(namespace.clone());
        }
        for ingest in core.db.ingests(namespace).scan().filter_map(std::result::Result::ok) {
            let directory = Digest::of(ingest.internal.as_bytes()).hex().to_owned();
            let owner = self.ingests.entry(directory).or_default();
            owner.name = ingest.reference;
            owner.namespaces.push(namespace.clone());
        }
        for container in core.db.containers(namespace).scan().filter_map(std::result::Result::ok) {
            self.containers.insert(Path::new(namespace.as_str()).join(container.id.as_str()));
        }
    }
}

/// What to do with something that was found.
enum Found {
    /// It is this, with all that is in it.
    Whole(Kind, State, Owner, String),
    /// A directory of the engine's own, in which each entry is looked at.
    Within,
}

struct Walk {
    root: PathBuf,
    device: u64,
    owners: Owners,
    linked: HashSet<u64>,
    entries: Vec<Entry>,
}

impl Walk {
    fn new(root: &Path, owners: Owners) -> Walk {
        Walk { root: root.to_owned(), device: 0, owners, linked: HashSet::new(), entries: Vec::new() }
    }

    fn run(mut self) -> io::Result<Vec<Entry>> {
        let root = fs::symlink_metadata(&self.root)?;
        self.device = root.dev();
        self.within(Path::new(""), &root)?;
        Ok(self.entries)
    }

    /// One of our own directories: its own bytes, then what is in it.
    fn within(&mut self, path: &Path, data: &Metadata) -> io::Result<()> {
        let own = Sum::of(data);
        self.push(path, Kind::Daemon, State::Owned, Owner::default(), "", own);
        for (name, data) in self.list(&self.root.join(path))? {
            let path = path.join(name);
            match self.owners.find(&path, data.is_dir()) {
                Found::Within => self.within(&path, &data)?,
                Found::Whole(kind, state, owner, snapshotter) => {
                    let sum = self.sum(&path, &data)?;
                    self.push(&path, kind, state, owner, &snapshotter, sum);
                }
            }
        }
        Ok(())
    }

    fn push(&mut self, path: &Path, kind: Kind, state: State, owner: Owner, snapshotter: &str, sum: Sum) {
        let (path, snapshotter) = (path.to_owned(), snapshotter.to_owned());
        let Owner { name, namespaces } = owner;
        let Sum { bytes, inodes } = sum;
        self.entries.push(Entry { path, kind, name, snapshotter, namespaces, state, bytes, inodes });
    }

    /// All below `path`, whatever its depth, following no link.
    fn sum(&mut self, path: &Path, data: &Metadata) -> io::Result<Sum> {
        let mut sum = Sum::default();
        self.count(data, &mut sum);
        let mut directories = if data.is_dir() { vec![self.root.join(path)] } else { Vec::new() };
        while let Some(directory) = directories.pop() {
            for (name, data) in self.list(&directory)? {
                self.count(&data, &mut sum);
                if data.is_dir() {
                    directories.push(directory.join(name));
                }
            }
        }
        Ok(sum)
    }

    fn count(&mut self, data: &Metadata, sum: &mut Sum) {
        if data.is_dir() || data.nlink() < 2 || self.linked.insert(data.ino()) {
            let one = Sum::of(data);
            sum.bytes += one.bytes;
            sum.inodes += one.inodes;
        }
    }

    /// The entries of a directory on this file system, by name. What vanishes meanwhile is left out.
    fn list(&self, directory: &Path) -> io::Result<Vec<(std::ffi::OsString, Metadata)>> {
        let entries = match fs::read_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry?;
            match entry.metadata() {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                data => found.push((entry.file_name(), data?)),
            }
        }
        found.retain(|(_, data)| data.dev() == self.device);
        found.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(found)
    }
}

#[derive(Clone, Copy, Default)]
struct Sum {
    bytes: u64,
    inodes: u64,
}

impl Sum {
    fn of(data: &Metadata) -> Sum {
        // Blocks are of 512 bytes whatever the file system's are (stat(3type)).
        Sum { bytes: data.blocks() * 512, inodes: 1 }
    }
}

/// Directories of the daemon beside the engine's stores, each one whole.
const OWN: &[&str] = &["io.containerd.grpc.v1.introspection", "cri"];

impl Owners {
    /// What lies at a path below the root directory.
    fn find(&self, path: &Path, is_dir: bool) -> Found {
        let parts: Vec<&OsStr> = path.iter().collect();
        let names: Vec<&str> = parts.iter().filter_map(|part| part.to_str()).collect();
        if names.len() != parts.len() {
            return foreign();
        }
        match names.as_slice() {
            ["content"] | ["content", "blobs"] | ["content", "ingest"] | ["snapshots"] if is_dir => Found::Within,
            ["content", "blobs", "sha256" | "sha512"] if is_dir => Found::Within,
            ["content", "blobs", _, hex] if is_hex(hex) => whole(Kind::Content, self.blobs.get(*hex), hex),
            ["content", "ingest", hex] if is_hex(hex) => whole(Kind::Ingest, self.ingests.get(*hex), hex),
            ["metadata"] if is_dir => ours(Kind::Metadata),
            ["snapshots", name] if is_dir => self.snapshotter(name),
            ["snapshots", name, rest @ ..] => self.snapshot(name, rest),
            ["io.containerd.runtime.v2.task"] | ["io.containerd.runtime.v2.task", _] if is_dir => Found::Within,
            ["io.containerd.runtime.v2.task", namespace, id] if is_dir => self.bundle(namespace, id),
            [top] if OWN.contains(top) && is_dir => ours(Kind::Daemon),
            _ => foreign(),
        }
    }

    fn snapshotter(&self, name: &str) -> Found {
        match self.snapshots.get(name) {
            Some(Some(_)) => Found::Within,
            Some(None) => ours(Kind::Snapshot),
            None => foreign(),
        }
    }

    fn snapshot(&self, name: &str, rest: &[&str]) -> Found {
        let path: PathBuf = rest.iter().collect();
        let Some(Some(places)) = self.snapshots.get(name) else { return foreign() };
        if let Some(owner) = places.get(&path) {
            return Found::Whole(Kind::Snapshot, state(owner), owner.clone(), name.to_owned());
        }
        match rest {
            ["snapshots" | "records" | "trash" | "sums"] => Found::Within,
            ["lock" | "format"] => ours(Kind::Daemon),
            ["trash", number] if number.parse::<u64>().is_ok() => {
                Found::Whole(Kind::Trash, State::Garbage, Owner::default(), name.to_owned())
            }
            // Made or removed at this moment.
            ["snapshots" | "records" | "sums", id] if id.trim_end_matches(".tmp").parse::<u64>().is_ok() => {
                Found::Whole(Kind::Snapshot, State::Garbage, Owner::default(), name.to_owned())
            }
            _ => foreign(),
        }
    }

    fn bundle(&self, namespace: &str, id: &str) -> Found {
        let path = Path::new(namespace).join(id);
        let namespaces = self.containers.contains(&path).then(|| namespace.parse().ok()).flatten();
        let owner = Owner { name: id.to_owned(), namespaces: namespaces.into_iter().collect() };
        Found::Whole(Kind::Runtime, state(&owner), owner, String::new())
    }
}

fn whole(kind: Kind, owner: Option<&Owner>, name: &str) -> Found {
    let owner = owner.cloned().unwrap_or(Owner { name: name.to_owned(), namespaces: Vec::new() });
    Found::Whole(kind, state(&owner), owner, String::new())
}

fn state(owner: &Owner) -> State {
    if owner.namespaces.is_empty() { State::Garbage } else { State::Owned }
}

fn ours(kind: Kind) -> Found {
    Found::Whole(kind, State::Owned, Owner::default(), String::new())
}

fn foreign() -> Found {
    Found::Whole(Kind::Foreign, State::Foreign, Owner::default(), String::new())
}

/// Whether it is a name that the content store gives.
fn is_hex(name: &str) -> bool {
    matches!(name.len(), 64 | 128) && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}
