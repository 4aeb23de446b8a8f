//! What the owner of the shims sets.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// Settings of [`Shims`](crate::Shims).
#[derive(Clone, Debug)]
pub struct Config {
    /// Directory that survives a reboot; work directories are below it.
    pub root: PathBuf,
    /// Directory that a reboot clears; bundles are below it.
    pub state: PathBuf,
    /// The gRPC socket's path, told to shims; part of the names of their sockets.
    pub address: String,
    /// Path of the socket that takes events.
    pub ttrpc_address: PathBuf,
    /// The program shims may call to publish events (`-publish-binary`).
    pub executable: PathBuf,
    /// Version told to shims.
    pub version: String,
    /// Binaries by runtime name, before all other rules.
    pub runtimes: BTreeMap<String, PathBuf>,
    /// Environment added for shims.
    pub environment: Vec<(String, String)>,
    /// Ask shims for debug logs.
    pub debug: bool,
    /// How long each wait may be.
    pub deadlines: Deadlines,
}

/// Longest waits.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// The binary's `start` verb.
    pub start: Duration,
    /// The binary's `delete` verb and `-info`.
    pub verb: Duration,
    /// Connecting to the socket.
    pub connect: Duration,
    /// Calls that only ask: State, Pids, Stats, Connect.
    pub query: Duration,
    /// Calls that change a task: Start, Kill, Exec, Delete, Pause, …
    pub change: Duration,
    /// Create, Checkpoint and Update, which may move bytes.
    pub create: Duration,
    /// One shim at start-up, all calls together.
    pub restore: Duration,
}

impl Default for Deadlines {
    fn default() -> Deadlines {
        Deadlines {
            start: Duration::from_secs(20),
            verb: Duration::from_secs(20),
            connect: Duration::from_secs(5),
            query: Duration::from_secs(5),
            change: Duration::from_secs(30),
            create: Duration::from_secs(120),
            restore: Duration::from_secs(5),
        }
    }
}

impl Config {
    /// Settings below these two directories, everything else by default.
    pub fn new(root: impl Into<PathBuf>, state: impl Into<PathBuf>, executable: impl Into<PathBuf>) -> Config {
        let state = state.into();
        Config {
            root: root.into(),
            address: String::new(),
            ttrpc_address: state.join("gantry.sock.ttrpc"),
            executable: executable.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            runtimes: BTreeMap::new(),
            environment: Vec::new(),
            debug: false,
            deadlines: Deadlines::default(),
            state,
        }
    }
}
