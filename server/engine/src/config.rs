//! What an embedder or operator can set.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// Settings of the engine. [`Config::new`] gives the defaults for a pair of directories.
#[derive(Clone, Debug)]
pub struct Config {
    /// What survives a reboot: content, snapshots, records.
    pub root: PathBuf,
    /// What a reboot clears: bundles, sockets.
    pub state: PathBuf,
    /// Snapshotter used where none is named: `overlayfs` or `native`.
    pub default_snapshotter: String,
    /// The gRPC socket that shims are told (`GRPC_ADDRESS`); empty where nothing listens.
    pub address: String,
    /// The socket that shims send events to. [`Engine`](crate::Engine) listens on it itself.
    pub ttrpc_address: PathBuf,
    /// The program that embeds the engine; shims are told it as `-publish-binary`, and their binaries are looked for
    /// beside it.
    pub executable: PathBuf,
    /// Further directories to look for shims' binaries in (`PATH`).
    pub search: Vec<PathBuf>,
    /// Shim binaries by runtime name, in front of all other rules.
    pub runtimes: BTreeMap<String, PathBuf>,
    /// Environment added for shims.
    pub shim_environment: Vec<(String, String)>,
    /// Runtime name of containers that name none.
    pub default_runtime: String,
    /// Logs of shims at debug level.
    pub debug: bool,
    /// How registries are reached.
    pub registry: gantry_registry::Config,
    /// What a layer may contain.
    pub unpack: UnpackLimits,
    /// Layers fetched at once for one pull.
    pub concurrent_downloads: usize,
    /// Layers unpacked at once, over all pulls.
    pub concurrent_unpacks: usize,
    /// Pause between a deletion and the collection it asks for.
    pub gc_delay: Duration,
    /// Longest time without a look for expired leases.
    pub gc_interval: Duration,
    /// How many events are kept for slow subscribers.
    pub event_log: usize,
    /// How long one shim may take to answer at start-up.
    pub restore_timeout: Duration,
    /// How long an incomplete ingest is kept for resuming.
    pub ingest_expiry: Duration,
}

/// Bounds on what unpacking a layer may make.
#[derive(Clone, Copy, Debug)]
pub struct UnpackLimits {
    /// Most bytes out of one layer.
    pub max_bytes: u64,
    /// Most entries in one layer.
    pub max_entries: u64,
    /// Most bytes out for each byte in, once past the first 256 MiB.
    pub max_ratio: u64,
}

impl Default for UnpackLimits {
    fn default() -> UnpackLimits {
        UnpackLimits { max_bytes: 256 << 30, max_entries: 16 << 20, max_ratio: 1000 }
    }
}

impl Config {
    /// Default settings below these two directories.
    pub fn new(root: impl Into<PathBuf>, state: impl Into<PathBuf>) -> Config {
        let state = state.into();
        Config {
            root: root.into(),
            default_snapshotter: "overlayfs".into(),
            address: String::new(),
            ttrpc_address: state.join("gantry.sock.ttrpc"),
            executable: PathBuf::new(),
            search: Vec::new(),
            runtimes: BTreeMap::new(),
            shim_environment: Vec::new(),
            default_runtime: "io.containerd.runc.v2".into(),
            debug: false,
            registry: gantry_registry::Config::default(),
            unpack: UnpackLimits::default(),
            concurrent_downloads: 6,
            concurrent_unpacks: 4,
            gc_delay: Duration::from_millis(100),
            gc_interval: Duration::from_secs(60),
            event_log: 16_384,
            restore_timeout: Duration::from_secs(3),
            ingest_expiry: Duration::from_secs(24 * 3600),
            state,
        }
    }
}

impl Config {
    /// What the shims' crate is to be given.
    pub(crate) fn shims(&self) -> (gantry_shims::Config, Vec<PathBuf>) {
        let mut config = gantry_shims::Config::new(&self.root, &self.state, &self.executable);
        config.address.clone_from(&self.address);
        config.ttrpc_address.clone_from(&self.ttrpc_address);
        config.runtimes.clone_from(&self.runtimes);
        config.environment.clone_from(&self.shim_environment);
        config.debug = self.debug;
        config.deadlines.restore = self.restore_timeout;
        let beside = self.executable.parent().filter(|dir| dir.is_absolute()).map(PathBuf::from);
        (config, beside.into_iter().chain(self.search.iter().cloned()).collect())
    }
}
