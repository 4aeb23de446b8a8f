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
    /// Further directories to look in for shims' binaries, and for programs that shims call (`PATH`).
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
    /// Layers' blobs are left to the next collection once they are unpacked; a push or export fetches them again.
    pub discard_unpacked_layers: bool,
    /// After a stop that was not clean, check what was committed since the last mark.
    pub check_at_start: bool,
    /// Layers fetched at once for one pull.
    pub concurrent_downloads: usize,
    /// Layers unpacked at once, over all pulls.
    pub concurrent_unpacks: usize,
    /// When garbage is collected.
    pub gc: GcConfig,
    /// How many events are kept for slow subscribers.
    pub event_log: usize,
    /// How often the restart monitor looks at containers with the labels `containerd.io/restart.*`; 0: every 10 s.
    pub restart_interval: Duration,
    /// How long one shim may take to answer at start-up.
    pub restore_timeout: Duration,
    /// How long an incomplete ingest is kept for resuming.
    pub ingest_expiry: Duration,
    /// Parts of the engine in processes of their own, by name.
    pub proxy_plugins: BTreeMap<String, ProxyPlugin>,
    /// Programs that turn one media type into another, by name.
    pub stream_processors: BTreeMap<String, StreamProcessor>,
    /// Parts that are left out, as `TYPE.ID`, such as `io.containerd.monitor.container.v1.restart`.
    pub disabled: Vec<String>,
    /// Which snapshotters are opened and how.
    pub snapshotters: SnapshotterConfigs,
    /// Names of differs, in the order they are tried.
    pub differs: Vec<String>,
    /// What pulls by the transfer service unpack, where the client leaves it to the daemon; empty: the host's platform
    /// by the default snapshotter.
    pub unpack_platforms: Vec<UnpackPlatform>,
    /// A file that says which images need a signature, and by which keys; none: no check.
    pub signature_policy: Option<PathBuf>,
    /// Programs that must agree to an image before it is pulled; none: no check.
    pub image_verifier: Option<ImageVerifier>,
}

/// When garbage is collected (containerd's `io.containerd.gc.v1.scheduler`).
#[derive(Clone, Debug, PartialEq)]
pub struct GcConfig {
    /// Largest part of the time that collections may take: after one that took `t`, none is started by a threshold
    /// for `t / pause_threshold`. 0: no bound. At most 0.5.
    pub pause_threshold: f64,
    /// Deletions after which a collection is asked for; 0 and 1: each.
    pub deletion_threshold: u64,
    /// Changes after which the next timer collects although nothing was deleted; 0: never.
    pub mutation_threshold: u64,
    /// Pause between what asks for a collection and the collection.
    pub schedule_delay: Duration,
    /// Pause between the start and the first collection.
    pub startup_delay: Duration,
    /// Longest time without a look for expired leases and for `mutation_threshold`.
    pub interval: Duration,
}

impl Default for GcConfig {
    /// Prompt: containerd waits for thresholds by default, which leaves garbage lying about.
    fn default() -> GcConfig {
        GcConfig {
            pause_threshold: 0.02,
            deletion_threshold: 1,
            mutation_threshold: 100,
            schedule_delay: Duration::from_millis(100),
            startup_delay: Duration::from_millis(100),
            interval: Duration::from_secs(60),
        }
    }
}

/// A part of the engine that another process serves over gRPC (containerd's `proxy_plugins`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyPlugin {
    /// Which part.
    pub kind: ProxyKind,
    /// Path of its unix socket.
    pub address: PathBuf,
    /// Platform told to clients, such as `linux/amd64`; empty: the host's.
    pub platform: String,
    /// Told to clients that ask for the plug-in.
    pub exports: BTreeMap<String, String>,
    /// What it can do, in its own words (`remap-ids`, `rebase`, …).
    pub capabilities: Vec<String>,
}

/// What a [`ProxyPlugin`] serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyKind {
    /// `containerd.services.snapshots.v1.Snapshots`.
    Snapshot,
    /// `containerd.services.content.v1.Content`.
    Content,
    /// `containerd.services.diff.v1.Diff`.
    Diff,
    /// `containerd.services.sandbox.v1.Controller`.
    Sandbox,
}

/// A program that turns one media type into another between standard input and output.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamProcessor {
    /// Media types it takes.
    pub accepts: Vec<String>,
    /// Media type it gives.
    pub returns: String,
    /// The program: absolute, or found in [`Config::search`].
    pub path: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Its environment, `NAME=VALUE`.
    pub env: Vec<String>,
}

/// By which snapshotter an image is unpacked where the client leaves it to the daemon (containerd's `unpack_config`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnpackPlatform {
    /// Such as `linux/amd64`; empty: any.
    pub platform: String,
    /// Its snapshotter; one that is not there is passed over.
    pub snapshotter: String,
    /// The differ that unpacks for it; empty: those of [`Config::differs`], in their order.
    pub differ: String,
}

/// Programs of one directory that each must agree to a pull (containerd's `io.containerd.image-verifier.v1.bindir`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageVerifier {
    /// The directory; one that is not there means no check.
    pub bin_dir: PathBuf,
    /// How many programs are asked, by name; negative: all.
    pub max_verifiers: i64,
    /// How long each may take.
    pub timeout: Duration,
}

impl Default for ImageVerifier {
    /// Where containerd looks too: who relies on a check keeps it.
    fn default() -> ImageVerifier {
        ImageVerifier {
            bin_dir: "/opt/containerd/image-verifier/bin".into(),
            max_verifiers: 10,
            timeout: Duration::from_secs(10),
        }
    }
}

/// Settings of the built-in snapshotters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotterConfigs {
    /// Names of those that are not to be opened.
    pub disabled: Vec<String>,
    /// `overlayfs`.
    pub overlay: OverlaySettings,
    /// `native`: where it keeps its files; none: below the engine's root.
    pub native_root: Option<PathBuf>,
    /// `btrfs`: likewise.
    pub btrfs_root: Option<PathBuf>,
    /// `erofs`.
    pub erofs: ErofsSettings,
}

/// Settings of `overlayfs`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OverlaySettings {
    /// Where it keeps its files; none: below the engine's root.
    pub root: Option<PathBuf>,
    /// Snapshots tell their upper directory by a label.
    pub upperdir_label: bool,
    /// Further mount options.
    pub mount_options: Vec<String>,
}

/// Settings of `erofs`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ErofsSettings {
    /// Where it keeps its files; none: below the engine's root.
    pub root: Option<PathBuf>,
    /// Further options of the overlay on top.
    pub overlay_options: Vec<String>,
    /// Layers are sealed with fs-verity.
    pub enable_fsverity: bool,
    /// Layers are made immutable.
    pub set_immutable: bool,
    /// Bytes of a writable layer that is a file; 0: it is a directory.
    pub default_size: u64,
}

/// Bounds on what unpacking a layer may make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
            discard_unpacked_layers: false,
            check_at_start: true,
            concurrent_downloads: 6,
            concurrent_unpacks: 4,
            gc: GcConfig::default(),
            event_log: 16_384,
            restart_interval: Duration::from_secs(10),
            restore_timeout: Duration::from_secs(3),
            ingest_expiry: Duration::from_secs(24 * 3600),
            proxy_plugins: BTreeMap::new(),
            stream_processors: BTreeMap::new(),
            disabled: Vec::new(),
            snapshotters: SnapshotterConfigs::default(),
            differs: vec!["walking".into()],
            unpack_platforms: Vec::new(),
            signature_policy: None,
            image_verifier: Some(ImageVerifier::default()),
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
