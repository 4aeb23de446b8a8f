//! Finding shims again after a restart: all at once, each with its own deadline.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use gantry_ttrpc::pb::containerd::task::v3::{ConnectRequest, PidsRequest, StateRequest, StateResponse};
use gantry_types::{ErrorKind, HasKind, Namespace};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::task::JoinSet;

use crate::bundle::{Purpose, clear, state_dir};
use crate::log::LogReader;
use crate::params::socket_dir;
use crate::shim::{Parts, remove, run_delete};
use crate::shims::connect;
use crate::{Answer, Bundle, Calls, Cleanup, Result, Shim, Shims};

/// How long killed starts of shims may take to end.
const ENDING: Duration = Duration::from_secs(1);
/// How often to look whether they have.
const POLL: Duration = Duration::from_millis(2);

/// A bundle that was there, and what became of it.
#[derive(Debug)]
pub struct Restored {
    /// Namespace of the task.
    pub namespace: Namespace,
    /// Id of the task.
    pub id: String,
    /// What became of it.
    pub found: Found,
}

/// What a restart found at a bundle.
#[derive(Debug)]
pub enum Found {
    /// The shim answers and has the task.
    Running {
        /// The shim.
        shim: Shim,
        /// The task, as the shim sees it.
        state: Box<StateResponse>,
    },
    /// The connection stands, but no answer came in time. It may come later.
    Silent {
        /// The shim.
        shim: Shim,
    },
    /// The shim was gone; what it held was cleaned up by its binary.
    Gone {
        /// How the task ended.
        cleanup: Cleanup,
    },
    /// Never got as far as a shim, or its shim held nothing: removed.
    Leaked,
}

impl Shims {
    /// Looks at every bundle at once. Takes at most as long as one shim may, and never fails as a whole; the order of
    /// the answers is that of the directories' names.
    pub async fn restore(&self) -> Vec<Restored> {
        let mut looking = JoinSet::new();
        for (namespace, id) in self.bundles(Purpose::Task) {
            let shims = self.clone();
            looking.spawn(async move {
                let found = shims.find(&namespace, &id).await;
                Restored { namespace, id, found }
            });
        }
        let mut all = looking.join_all().await;
        all.sort_by(|a, b| (&a.namespace, &a.id).cmp(&(&b.namespace, &b.id)));
        all
    }

    /// Names of the bundles; leftovers of removals go on the way.
    pub(crate) fn bundles(&self, purpose: Purpose) -> Vec<(Namespace, String)> {
        let mut bundles = Vec::new();
        let top = state_dir(&self.config, purpose);
        for namespace in names(&top) {
            let Ok(parsed) = namespace.parse::<Namespace>() else { continue };
            for id in names(&top.join(&namespace)) {
                if id.starts_with('.') {
                    let left = top.join(&namespace).join(&id);
                    clear(&left).unwrap_or_else(|error| tracing::warn!(%error, "leftover stays"));
                } else {
                    bundles.push((parsed.clone(), id));
                }
            }
        }
        bundles
    }

    async fn find(&self, namespace: &Namespace, id: &str) -> Found {
        let bundle = Bundle::at(&self.config, Purpose::Task, namespace, id);
        let Some(answer) = bundle.noted_answer() else { return self.discard(namespace, id, bundle).await };
        let Ok(shim) = self.connect_again(namespace, id, &bundle, answer).await else {
            return self.bury(namespace, id, bundle).await;
        };
        match tokio::time::timeout(self.config.deadlines.restore, ask(shim.calls(), id)).await {
            Ok(Ok(Some(state))) => Found::Running { shim, state: Box::new(state) },
            Ok(Ok(None)) => {
                let retired = shim.retire().await;
                retired.unwrap_or_else(|error| tracing::warn!(%namespace, id, %error, "leaked bundle stays"));
                Found::Leaked
            }
            Ok(Err(error)) if error.is_lost() => Found::Gone { cleanup: shim.cleanup().await },
            Ok(Err(error)) if error.kind() == ErrorKind::NotFound => Found::Gone { cleanup: shim.cleanup().await },
            Ok(Err(_)) | Err(_) => Found::Silent { shim },
        }
    }

    pub(crate) async fn connect_again(
        &self,
        namespace: &Namespace,
        id: &str,
        bundle: &Bundle,
        answer: Answer,
    ) -> Result<Shim> {
        let limits = self.config.deadlines;
        let deadlines = crate::Deadlines { connect: limits.connect.min(limits.restore), ..limits };
        let calls = connect(id, &answer, deadlines).await?;
        let log = if bundle.is_in_sandbox() { None } else { LogReader::open(bundle, namespace, id) };
        let binary = bundle.noted_binary().unwrap_or_default();
        let parts = Parts { binary, bundle: bundle.clone(), answer, calls, log };
        Ok(Shim::new(&self.config, (namespace, id), parts))
    }

    /// There was a shim, and nobody listens any more.
    pub(crate) async fn bury(&self, namespace: &Namespace, id: &str, bundle: Bundle) -> Found {
        let cleanup = self.delete_verb(namespace, id, &bundle).await;
        take_away(bundle).await;
        Found::Gone { cleanup }
    }

    /// The daemon died before the shim's address was noted: there may be a shim all the same, or a start that hangs.
    pub(crate) async fn discard(&self, namespace: &Namespace, id: &str, bundle: Bundle) -> Found {
        let (directory, sockets) = (bundle.path().to_owned(), socket_dir(&self.config));
        let ending = tokio::task::spawn_blocking(move || {
            if end_starters(&directory) {
                sockets.as_deref().map(Path::new).into_iter().for_each(remove_dead_sockets);
            }
        });
        ending.await.unwrap_or_else(|error| tracing::warn!(%namespace, id, %error, "starts of a shim not looked for"));
        let signs = ["config.json", "address", "shim.pid"];
        if signs.iter().any(|sign| bundle.path().join(sign).exists()) {
            self.delete_verb(namespace, id, &bundle).await;
        }
        take_away(bundle).await;
        Found::Leaked
    }

    async fn delete_verb(&self, namespace: &Namespace, id: &str, bundle: &Bundle) -> Cleanup {
        let default = || self.binary("io.containerd.runc.v2").ok();
        match bundle.noted_binary().or_else(default) {
            Some(binary) => run_delete(&self.config, namespace, id, &binary, bundle).await,
            None => Cleanup { pid: 0, status: 255, exited_at: std::time::SystemTime::now() },
        }
    }
}

/// The task's state; none where the shim holds no task.
async fn ask(calls: &Calls, id: &str) -> Result<Option<StateResponse>> {
    calls.connect(ConnectRequest { id: id.into() }).await?;
    let state = calls.state(StateRequest { id: id.into(), exec_id: String::new() }).await;
    match state {
        Ok(state) => Ok(Some(state)),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let pids = calls.pids(PidsRequest { id: id.into() }).await;
            if pids.is_ok_and(|answer| !answer.processes.is_empty()) { Err(error) } else { Ok(None) }
        }
        Err(error) => Err(error),
    }
}

/// Kills what works in the bundle of a shim that nobody was told about: its start, which may be stopped, and what that has
/// made. Says whether there was anything.
fn end_starters(bundle: &Path) -> bool {
    let Ok(wanted) = std::fs::metadata(bundle).map(|found| (found.dev(), found.ino())) else { return false };
    let is_here = |pid: &i32| {
        std::fs::metadata(format!("/proc/{pid}/cwd")).is_ok_and(|found| (found.dev(), found.ino()) == wanted)
    };
    let (mut any, deadline) = (false, Instant::now() + ENDING);
    loop {
        let numbers = names(Path::new("/proc")).into_iter().filter_map(|name| name.parse().ok());
        let here: Vec<i32> = numbers.filter(is_here).collect();
        if here.is_empty() || Instant::now() > deadline {
            return any;
        }
        any = true;
        for pid in here {
            // One that has ended by itself is what is wanted.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        std::thread::sleep(POLL);
    }
}

/// Removes sockets on which nobody listens any more.
fn remove_dead_sockets(directory: &Path) {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    for socket in entries.map(|entry| entry.path()) {
        let refused = std::os::unix::net::UnixStream::connect(&socket);
        if refused.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
            std::fs::remove_file(&socket).unwrap_or_else(|error| tracing::warn!(%error, "socket of no shim stays"));
        }
    }
}

async fn take_away(bundle: Bundle) {
    remove(bundle).await.unwrap_or_else(|error| tracing::warn!(%error, "leaked bundle stays"));
}

fn names(directory: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let directories = entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
    directories.filter_map(|e| e.file_name().into_string().ok()).collect()
}
