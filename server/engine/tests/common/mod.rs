//! An engine in temporary directories, and what it must not leave behind.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail at any line")]
#![allow(dead_code, reason = "each test binary uses a part of it")]

pub mod tasks;

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use gantry_engine::containers::{Container, Runtime};
use gantry_engine::transfer::{Access, ProgressSink, Pull, Unpack};
use gantry_engine::{Any, Config, Engine, Filter, Labels, Platform, Result, Scope};
use gantry_registry::fake::{Fake, Options};
use tempfile::TempDir;

pub struct Host {
    pub engine: Engine,
    pub scope: Scope,
    pub dir: TempDir,
}

impl Host {
    pub async fn new() -> Host {
        Host::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut Config)) -> Host {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path());
        change(&mut config);
        let engine = Engine::open(config).await.unwrap().0;
        Host { engine, scope: Scope::new("default".parse().unwrap()), dir }
    }

    pub async fn pull(&self, reference: &gantry_types::Reference) -> Result<gantry_engine::images::Image> {
        self.engine.transfer.pull(&self.scope, pull(reference), ProgressSink::default()).await
    }

    /// Names of all images.
    pub async fn images(&self) -> Vec<String> {
        let images = self.engine.images.list(&self.scope, &Filter::default()).await.unwrap();
        images.into_iter().map(|image| image.name).collect()
    }

    /// The committed and active snapshots of the default snapshotter.
    pub async fn snapshots(&self) -> Vec<gantry_engine::snapshots::Snapshot> {
        self.engine.snapshots.list(&self.scope, "", &Filter::default()).await.unwrap()
    }

    /// After garbage was collected, the engine holds nothing at all: no image, blob, ingest, snapshot or lease.
    pub async fn assert_empty(&self) {
        self.engine.gc.collect().await.unwrap();
        assert_eq!(self.images().await, Vec::<String>::new(), "no image");
        let statuses = self.engine.content.statuses(&self.scope, &Filter::default()).await.unwrap();
        assert!(statuses.is_empty(), "no ingest: {statuses:?}");
        assert!(self.snapshots().await.is_empty(), "no snapshot: {:?}", self.snapshots().await);
        let blobs = self.engine.content.list(&self.scope, &Filter::default()).await.unwrap();
        assert!(blobs.is_empty(), "no blob: {blobs:?}");
        assert!(self.engine.leases.list(&self.scope, &Filter::default()).await.unwrap().is_empty(), "no lease");
        assert!(self.running().is_empty(), "nothing runs: {:?}", self.running());
        let mut left = self.left_on_disk();
        for _ in 0..40 {
            if left.is_empty() {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            left = self.left_on_disk();
        }
        assert!(left.is_empty(), "nothing on the disk: {left:?}");
    }

    /// Blobs, ingests and snapshots as directories and files.
    fn left_on_disk(&self) -> Vec<PathBuf> {
        let root = self.dir.path().join("root");
        let mut left: Vec<PathBuf> = files_below(&root.join("content/blobs"));
        for directory in ["content/ingest", "snapshots/overlayfs/snapshots"] {
            left.extend(std::fs::read_dir(root.join(directory)).into_iter().flatten().flatten().map(|e| e.path()));
        }
        left
    }

    /// What runs, besides collections, which come and go by themselves.
    pub fn running(&self) -> Vec<gantry_engine::ops::Operation> {
        self.engine.ops.list().into_iter().filter(|operation| operation.what != "gc").collect()
    }

    /// A file of the image's root file system, looked for in its layers from the top.
    pub async fn file(&self, chain_top: &str, path: &str) -> Option<Vec<u8>> {
        let key = format!("look-{}", path.replace('/', "-"));
        let lease = self.engine.leases.create(&self.scope, None, Default::default()).await.unwrap();
        let scope = &Scope { lease: Some(lease.id.clone()), ..self.scope.clone() };
        let mounts = self.engine.snapshots.view(scope, "", &key, chain_top, Default::default()).await.unwrap();
        let tree = gantry_mount::Tree::new(&mounts).unwrap();
        let bytes = std::fs::read(tree.path().join(path)).ok();
        drop(tree);
        self.engine.snapshots.remove(scope, "", &key).await.unwrap();
        self.engine.leases.delete(&self.scope, &lease.id, false).await.unwrap();
        bytes
    }
}

pub fn config(dir: &Path) -> Config {
    let mut config = Config::new(dir.join("root"), dir.join("state"));
    config.registry.backoff = std::time::Duration::from_millis(10);
    config.registry.max_failures = 3;
    config.registry.max_retry_after = std::time::Duration::from_secs(1);
    config.executable = std::env::current_exe().unwrap();
    config.search = vec![target_dir()];
    // containerd's own shim looks for runc there.
    let tools = concat!(env!("CARGO_MANIFEST_DIR"), "/../../integration/tools/bin");
    let path = std::env::var("PATH").unwrap_or_default();
    config.shim_environment.push(("PATH".into(), format!("{tools}:{path}")));
    config.restore_timeout = std::time::Duration::from_secs(1);
    config.gc.schedule_delay = std::time::Duration::from_millis(10);
    config
}

/// Where cargo puts binaries: the directory above the tests' own.
pub fn target_dir() -> PathBuf {
    std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().to_owned()
}

pub fn pull(reference: &gantry_types::Reference) -> Pull {
    Pull {
        unpacks: vec![Unpack::new(Platform::host(), "")],
        access: Access::anonymous(),
        ..Pull::new(reference.clone())
    }
}

pub async fn registry() -> Fake {
    Fake::start(Options::default()).await.unwrap()
}

pub fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut open = vec![directory.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
            match entry.file_type().unwrap().is_dir() {
                true => open.push(entry.path()),
                false => files.push(entry.path()),
            }
        }
    }
    files
}

/// A container of the default runtime that says nothing else.
pub fn record(id: &str, spec: Option<Any>) -> Container {
    Container {
        id: id.parse().unwrap(),
        labels: Labels::new(),
        image: String::new(),
        runtime: Runtime { name: "io.containerd.runc.v2".into(), options: None },
        spec,
        snapshotter: String::new(),
        snapshot_key: String::new(),
        sandbox_id: String::new(),
        extensions: Default::default(),
        created: SystemTime::UNIX_EPOCH,
        updated: SystemTime::UNIX_EPOCH,
    }
}
