//! The daemon's configuration: defaults, then files, then the command line.
//!
//! Files are containerd's TOML (versions 1 to 4, with imports) and our own section `[gantry]`. On the way from text to
//! [`Config`]: `tree` knows values and places, `load` files and imports, `migrate` older versions, `setting` how a type
//! is read and written, `schema` and `cri` which name sets what. Every mistake is reported with file and line, all at
//! once; what containerd knows and has no effect here is named with the reason, and stops nothing.

mod changes;
mod command;
mod cri;
mod disk;
mod load;
mod migrate;
mod processors;
mod report;
mod schema;
mod setting;
#[cfg(test)]
mod tests;
mod tree;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tracing::level_filters::LevelFilter;

pub use self::changes::Changes;
pub use self::command::{default_text, dump, migrate};
pub use self::report::{Mistake, Notice};
use crate::socket::Owner;

/// Everything an operator can set.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// What survives a reboot.
    pub root: PathBuf,
    /// What a reboot clears.
    pub state: PathBuf,
    /// Directory for what is temporary; none: the system's.
    pub temp: Option<PathBuf>,
    /// Score with the out-of-memory killer, −1000 to 1000.
    pub oom_score: i64,
    /// Parts that must be there (`TYPE.ID`), or the daemon does not start.
    pub required: Vec<String>,
    /// Parts that are left out (`TYPE.ID`).
    pub disabled: Vec<String>,
    /// The unix socket.
    pub grpc: GrpcSocket,
    /// The TCP port.
    pub tcp: TcpSocket,
    /// The socket for shims' events.
    pub ttrpc: TtrpcSocket,
    /// The socket for those who look for a fault.
    pub debug: DebugSocket,
    /// The port for measurements.
    pub metrics: Metrics,
    /// How many calls may run at once.
    pub limits: Limits,
    /// What is logged.
    pub log_level: LevelFilter,
    /// How it is written.
    pub log_format: LogFormat,
    /// How long running calls may take to end after a signal to stop.
    pub drain: Duration,
    /// The daemon's own program: shims are looked for beside it, and told of it. Not from a file.
    pub executable: PathBuf,
    /// Further directories to look for shims in. Not from a file.
    pub search: Vec<PathBuf>,
    /// Snapshotter used where none is named.
    pub snapshotter: String,
    /// Runtime used where none is named.
    pub runtime: String,
    /// Shim binaries by runtime name.
    pub runtimes: BTreeMap<String, PathBuf>,
    /// Environment added for shims, `NAME=VALUE`.
    pub shim_environment: Vec<String>,
    /// Directories of `HOST/hosts.toml`.
    pub hosts_dirs: Vec<PathBuf>,
    /// How registries are reached; its `hosts_dirs` come from [`Config::hosts_dirs`].
    pub registry: gantry_engine::RegistryConfig,
    /// What a layer may contain.
    pub unpack: gantry_engine::UnpackLimits,
    /// Layers fetched at once for one pull.
    pub concurrent_downloads: usize,
    /// A file that says which images need a signature.
    pub signature_policy: Option<PathBuf>,
    /// Layers' blobs go once they are unpacked.
    pub discard_unpacked_layers: bool,
    /// After a stop that was not clean, check what was committed since the last mark.
    pub check_at_start: bool,
    /// Layers unpacked at once.
    pub concurrent_unpacks: usize,
    /// What pulls unpack that leave it to the daemon.
    pub unpack_platforms: Vec<gantry_engine::UnpackPlatform>,
    /// When garbage is collected.
    pub gc: gantry_engine::GcConfig,
    /// How long one shim may take to answer at start-up.
    pub restore_timeout: Duration,
    /// Parts served by other processes.
    pub proxy_plugins: BTreeMap<String, Proxy>,
    /// Programs that turn one media type into another.
    pub stream_processors: BTreeMap<String, gantry_engine::StreamProcessor>,
    /// Settings of the built-in snapshotters.
    pub snapshotters: gantry_engine::SnapshotterConfigs,
    /// Names of differs, in the order they are tried.
    pub differs: Vec<String>,
    /// Programs that must agree to a pull.
    pub image_verifier: gantry_engine::ImageVerifier,
    /// How often the restart monitor looks.
    pub restart_interval: Duration,
    /// Where `ctr install` puts what an image brings.
    pub opt_path: PathBuf,
    /// Kubernetes' part.
    pub cri: gantry_cri::config::Config,
}

/// The unix socket that clients connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrpcSocket {
    /// Its path.
    pub address: PathBuf,
    /// Who may connect.
    pub owner: Owner,
    /// Longest message a client may send, in bytes.
    pub max_recv: usize,
    /// Longest message sent to a client, in bytes.
    pub max_send: usize,
}

/// The TCP port that clients connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpSocket {
    /// Where it listens; none: nowhere.
    pub address: Option<SocketAddr>,
    /// PEM file of the authorities that clients' certificates must come from; none: no client shows one.
    pub ca: Option<PathBuf>,
    /// PEM file of our certificate; none: no TLS.
    pub cert: Option<PathBuf>,
    /// PEM file of its key.
    pub key: Option<PathBuf>,
    /// Longest message a client may send, in bytes.
    pub max_recv: usize,
    /// Longest message sent to a client, in bytes.
    pub max_send: usize,
    /// Whether it may be without TLS on an address that others reach.
    pub allow_plain: bool,
}

/// The socket that shims send events to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TtrpcSocket {
    /// Its path; none: the gRPC socket's with `.ttrpc`.
    pub address: Option<PathBuf>,
    /// Who may connect besides root.
    pub owner: Owner,
}

/// The socket that tells what goes on inside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DebugSocket {
    /// Its path; none: there is none.
    pub address: Option<PathBuf>,
    /// Who may connect.
    pub owner: Owner,
}

/// Measurements for Prometheus.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metrics {
    /// Where they are served; none: nowhere.
    pub address: Option<SocketAddr>,
    /// Whether they tell how long calls took.
    pub histogram: bool,
}

/// How many calls may run at once. A call beyond gets `ResourceExhausted`. Calls that wait by their nature (events,
/// waits, streams, transfers) are counted apart, so that they never keep short ones out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Short calls of one connection.
    pub calls_per_connection: usize,
    /// Short calls in all.
    pub calls: usize,
    /// Long calls of one connection.
    pub streams_per_connection: usize,
    /// Long calls in all.
    pub streams: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { calls_per_connection: 4096, calls: 16_384, streams_per_connection: 65_536, streams: 131_072 }
    }
}

/// One of `proxy_plugins`, as written; [`Config::engine`] gives the typed one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proxy {
    /// `snapshot`, `content`, `diff` or `sandbox`; none where another was written.
    pub kind: Option<gantry_engine::ProxyKind>,
    /// Path of its socket.
    pub address: PathBuf,
    /// Platform told to clients.
    pub platform: String,
    /// Told to clients.
    pub exports: BTreeMap<String, String>,
    /// What it can do.
    pub capabilities: Vec<String>,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For programs: one JSON object a line.
    Json,
}

/// Longest message where a file says nothing.
const MESSAGE: usize = 16 << 20;

impl Default for Config {
    fn default() -> Config {
        let engine = gantry_engine::Config::new("/var/lib/gantry", "/run/gantry");
        Config {
            root: engine.root,
            state: engine.state,
            temp: None,
            oom_score: 0,
            required: Vec::new(),
            disabled: Vec::new(),
            grpc: GrpcSocket {
                address: "/run/gantry/gantry.sock".into(),
                owner: Owner::default(),
                max_recv: MESSAGE,
                max_send: MESSAGE,
            },
            tcp: TcpSocket {
                address: None,
                ca: None,
                cert: None,
                key: None,
                max_recv: MESSAGE,
                max_send: MESSAGE,
                allow_plain: false,
            },
            ttrpc: TtrpcSocket::default(),
            debug: DebugSocket::default(),
            metrics: Metrics::default(),
            limits: Limits::default(),
            log_level: LevelFilter::INFO,
            log_format: LogFormat::Text,
            drain: Duration::from_secs(10),
            executable: PathBuf::new(),
            search: Vec::new(),
            snapshotter: engine.default_snapshotter,
            runtime: engine.default_runtime,
            runtimes: BTreeMap::new(),
            shim_environment: Vec::new(),
            hosts_dirs: Vec::new(),
            registry: engine.registry,
            unpack: engine.unpack,
            signature_policy: None,
            discard_unpacked_layers: engine.discard_unpacked_layers,
            check_at_start: engine.check_at_start,
            concurrent_downloads: engine.concurrent_downloads,
            concurrent_unpacks: engine.concurrent_unpacks,
            unpack_platforms: Vec::new(),
            gc: engine.gc,
            restore_timeout: engine.restore_timeout,
            proxy_plugins: BTreeMap::new(),
            stream_processors: processors::default(),
            snapshotters: engine.snapshotters,
            differs: engine.differs,
            image_verifier: gantry_engine::ImageVerifier::default(),
            restart_interval: Duration::from_secs(10),
            opt_path: "/opt/gantry".into(),
            cri: gantry_cri::config::Config::default(),
        }
    }
}

impl Config {
    /// Takes over what a file and its imports say; gives what has no effect, and what was not understood. `further`
    /// are patterns of files that are imported after it though it does not say so.
    ///
    /// # Errors
    /// All mistakes of all files. The configuration is to be thrown away then.
    pub fn read(&mut self, path: Option<&Path>, further: &[&str]) -> Result<Vec<Notice>, Vec<Mistake>> {
        let mut report = report::Report::default();
        let tree = load::load(path, further, &mut report);
        self.take_over(&tree, &mut report);
        report.close()
    }

    /// As [`Config::read`], of one text without its imports.
    ///
    /// # Errors
    /// As [`Config::read`].
    pub fn parse(&mut self, path: &Path, text: &str) -> Result<Vec<Notice>, Vec<Mistake>> {
        let mut report = report::Report::default();
        let tree = load::one(path, text, &mut report);
        self.take_over(&tree, &mut report);
        report.close()
    }

    fn take_over(&mut self, tree: &tree::Table, report: &mut report::Report) {
        let place = report::Place::nowhere();
        let node = tree::Node { value: tree::Value::Table(tree.clone()), place };
        setting::Setting::read(self, &node, report);
    }

    /// As [`Config::read`], and looks at what only the disk can tell: certificates, `hosts.toml`, programs.
    ///
    /// # Errors
    /// As [`Config::read`].
    pub fn read_and_look(&mut self, path: Option<&Path>, further: &[&str]) -> Result<Vec<Notice>, Vec<Mistake>> {
        let mut report = report::Report::default();
        let tree = load::load(path, further, &mut report);
        self.take_over(&tree, &mut report);
        self.look(&tree, &mut report);
        report.close()
    }

    /// The socket for shims' events.
    pub fn ttrpc_address(&self) -> PathBuf {
        self.ttrpc.address.clone().unwrap_or_else(|| {
            let mut path = self.grpc.address.as_os_str().to_owned();
            path.push(".ttrpc");
            path.into()
        })
    }

    /// Whether a part (`TYPE.ID`) is to be there.
    pub fn has(&self, part: &str) -> bool {
        !self.disabled.iter().any(|disabled| disabled == part)
    }

    /// Forgets the addresses of servers that are disabled.
    pub(crate) fn leave_out_servers(&mut self) {
        let has = |id: &str| self.has(&format!("io.containerd.server.v1.{id}"));
        let (tcp, metrics, debug) = (has("grpc-tcp"), has("metrics"), has("debug"));
        self.tcp.address = self.tcp.address.filter(|_| tcp);
        self.metrics.address = self.metrics.address.filter(|_| metrics);
        self.debug.address = self.debug.address.take().filter(|_| debug);
    }

    /// The part of the engine.
    pub fn engine(&self) -> gantry_engine::Config {
        let mut engine = gantry_engine::Config::new(&self.root, &self.state);
        engine.address = self.grpc.address.to_string_lossy().into_owned();
        engine.ttrpc_address = self.ttrpc_address();
        engine.executable.clone_from(&self.executable);
        engine.search.clone_from(&self.search);
        engine.search.push(self.opt_path.join("bin"));
        engine.disabled.clone_from(&self.disabled);
        engine.restart_interval = self.restart_interval;
        engine.debug = self.log_level >= LevelFilter::DEBUG;
        engine.runtimes = self.engine_runtimes();
        engine.shim_environment = self.environment();
        engine.registry = self.engine_registry();
        engine.unpack = self.unpack;
        engine.discard_unpacked_layers = self.discard_unpacked_layers;
        engine.check_at_start = self.check_at_start;
        engine.signature_policy.clone_from(&self.signature_policy);
        engine.default_snapshotter.clone_from(&self.snapshotter);
        engine.default_runtime.clone_from(&self.runtime);
        engine.concurrent_downloads = self.concurrent_downloads;
        engine.concurrent_unpacks = self.concurrent_unpacks;
        engine.unpack_platforms.clone_from(&self.unpack_platforms);
        engine.gc = self.gc.clone();
        engine.restore_timeout = self.restore_timeout;
        engine.proxy_plugins = self.proxies();
        engine.stream_processors.clone_from(&self.stream_processors);
        engine.snapshotters = self.snapshotter_settings();
        engine.differs.clone_from(&self.differs);
        let verifier = Some(self.image_verifier.clone());
        engine.image_verifier = verifier.filter(|_| self.has("io.containerd.image-verifier.v1.bindir"));
        engine
    }

    /// How registries are reached.
    pub fn engine_registry(&self) -> gantry_engine::RegistryConfig {
        gantry_engine::RegistryConfig { hosts_dirs: self.hosts_dirs.clone(), ..self.registry.clone() }
    }

    /// Shim binaries by runtime name.
    pub fn engine_runtimes(&self) -> BTreeMap<String, PathBuf> {
        self.runtimes.clone()
    }

    fn environment(&self) -> Vec<(String, String)> {
        let temp = self.temp.iter().map(|path| ("TMPDIR".to_owned(), path.to_string_lossy().into_owned()));
        let set = self.shim_environment.iter().filter_map(|entry| entry.split_once('='));
        temp.chain(set.map(|(name, value)| (name.to_owned(), value.to_owned()))).collect()
    }

    fn proxies(&self) -> BTreeMap<String, gantry_engine::ProxyPlugin> {
        let typed = |(name, proxy): (&String, &Proxy)| {
            let proxy = gantry_engine::ProxyPlugin {
                kind: proxy.kind?,
                address: proxy.address.clone(),
                platform: proxy.platform.clone(),
                exports: proxy.exports.clone(),
                capabilities: proxy.capabilities.clone(),
            };
            Some((name.clone(), proxy))
        };
        self.proxy_plugins.iter().filter_map(typed).collect()
    }

    fn snapshotter_settings(&self) -> gantry_engine::SnapshotterConfigs {
        let names = self.disabled.iter().filter_map(|part| part.strip_prefix("io.containerd.snapshotter.v1."));
        gantry_engine::SnapshotterConfigs { disabled: names.map(Into::into).collect(), ..self.snapshotters.clone() }
    }
}

/// The filter for a level's name, as containerd spells it on its command line.
pub fn level(name: &str) -> Option<LevelFilter> {
    match name {
        "trace" => Some(LevelFilter::TRACE),
        "debug" => Some(LevelFilter::DEBUG),
        "info" => Some(LevelFilter::INFO),
        "warn" | "warning" => Some(LevelFilter::WARN),
        "error" | "fatal" | "panic" => Some(LevelFilter::ERROR),
        _ => None,
    }
}
