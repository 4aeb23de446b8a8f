//! The daemon's configuration: defaults, then files, then the command line.
//!
//! Files are containerd's TOML (versions 2 to 4) and our own section `[gantry]`. Every mistake is reported with file
//! and line, all at once; sections of containerd that mean nothing here are reported too, but stop nothing.

mod file;
mod keys;

use std::path::{Path, PathBuf};
use std::time::Duration;

use tracing::level_filters::LevelFilter;

pub use self::file::{Mistake, Notice};
use crate::socket::Owner;

/// Everything an operator can set.
#[derive(Clone, Debug)]
pub struct Config {
    /// What survives a reboot.
    pub root: PathBuf,
    /// What a reboot clears.
    pub state: PathBuf,
    /// The gRPC socket.
    pub address: PathBuf,
    /// The socket for shims' events; none: the gRPC socket's name with `.ttrpc`.
    pub ttrpc_address: Option<PathBuf>,
    /// Who may connect to the gRPC socket.
    pub owner: Owner,
    /// Longest message a client may send, in bytes.
    pub max_message: usize,
    /// Score with the out-of-memory killer, −1000 to 1000.
    pub oom_score: i32,
    /// What is logged.
    pub log_level: LevelFilter,
    /// How it is written.
    pub log_format: LogFormat,
    /// How long running calls may take to end after a signal to stop.
    pub drain: Duration,
    /// Snapshotter used where none is named.
    pub snapshotter: Option<String>,
    /// Runtime used where none is named.
    pub runtime: Option<String>,
    /// The daemon's own program: shims are looked for beside it, and told of it.
    pub executable: PathBuf,
    /// Further directories to look for shims in.
    pub search: Vec<PathBuf>,
    /// Shim binaries by runtime name.
    pub runtimes: Vec<(String, PathBuf)>,
    /// Environment added for shims, `NAME=VALUE`.
    pub shim_environment: Vec<(String, String)>,
    /// Directories of `HOST/hosts.toml`.
    pub hosts_dirs: Vec<PathBuf>,
    /// How registries are reached.
    pub registry: gantry_engine::RegistryConfig,
    /// What a layer may contain.
    pub unpack: gantry_engine::UnpackLimits,
    /// Layers fetched at once for one pull.
    pub concurrent_downloads: Option<usize>,
    /// Layers unpacked at once.
    pub concurrent_unpacks: Option<usize>,
    /// Pause between a deletion and the collection it asks for.
    pub gc_delay: Option<Duration>,
    /// How long one shim may take to answer at start-up.
    pub restore_timeout: Option<Duration>,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For programs: one JSON object a line.
    Json,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            root: "/var/lib/gantry".into(),
            state: "/run/gantry".into(),
            address: "/run/gantry/gantry.sock".into(),
            ttrpc_address: None,
            owner: Owner::default(),
            max_message: 16 << 20,
            oom_score: 0,
            log_level: LevelFilter::INFO,
            log_format: LogFormat::Text,
            drain: Duration::from_secs(10),
            snapshotter: None,
            runtime: None,
            executable: PathBuf::new(),
            search: Vec::new(),
            runtimes: Vec::new(),
            shim_environment: Vec::new(),
            hosts_dirs: Vec::new(),
            registry: gantry_engine::RegistryConfig::default(),
            unpack: gantry_engine::UnpackLimits::default(),
            concurrent_downloads: None,
            concurrent_unpacks: None,
            gc_delay: None,
            restore_timeout: None,
        }
    }
}

impl Config {
    /// Takes over what a file says; gives what was understood but has no effect, and what was not understood.
    ///
    /// # Errors
    /// All mistakes of the file. The configuration is to be thrown away then.
    pub fn read(&mut self, path: &Path) -> Result<Vec<Notice>, Vec<Mistake>> {
        let text = std::fs::read_to_string(path).map_err(|error| vec![Mistake::unreadable(path, &error)])?;
        self.parse(path, &text)
    }

    /// As [`Config::read`], of text that came from `path`.
    ///
    /// # Errors
    /// As [`Config::read`].
    pub fn parse(&mut self, path: &Path, text: &str) -> Result<Vec<Notice>, Vec<Mistake>> {
        file::apply(self, path, text)
    }

    /// The socket for shims' events.
    pub fn ttrpc_address(&self) -> PathBuf {
        self.ttrpc_address.clone().unwrap_or_else(|| {
            let mut path = self.address.as_os_str().to_owned();
            path.push(".ttrpc");
            path.into()
        })
    }

    /// The part of the engine.
    pub fn engine(&self) -> gantry_engine::Config {
        let mut engine = gantry_engine::Config::new(&self.root, &self.state);
        engine.address = self.address.to_string_lossy().into_owned();
        engine.ttrpc_address = self.ttrpc_address();
        engine.executable.clone_from(&self.executable);
        engine.search.clone_from(&self.search);
        engine.debug = self.log_level >= LevelFilter::DEBUG;
        engine.runtimes.extend(self.runtimes.iter().cloned());
        engine.shim_environment.clone_from(&self.shim_environment);
        engine.registry = self.registry.clone();
        engine.unpack = self.unpack;
        engine.registry.hosts_dirs.extend(self.hosts_dirs.iter().cloned());
        replace(&mut engine.default_snapshotter, &self.snapshotter);
        replace(&mut engine.default_runtime, &self.runtime);
        replace(&mut engine.concurrent_downloads, &self.concurrent_downloads);
        replace(&mut engine.concurrent_unpacks, &self.concurrent_unpacks);
        replace(&mut engine.gc.schedule_delay, &self.gc_delay);
        replace(&mut engine.restore_timeout, &self.restore_timeout);
        engine
    }
}

fn replace<T: Clone>(default: &mut T, set: &Option<T>) {
    if let Some(value) = set {
        default.clone_from(value);
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
