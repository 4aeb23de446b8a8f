//! One shim that holds one task: its bundle, its connection, and cleaning up behind it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use gantry_ttrpc::pb::containerd::task::v3::{ConnectRequest, DeleteResponse, ShutdownRequest};
use gantry_types::Namespace;
use prost::Message;

use crate::command::Run;
use crate::log::LogReader;
use crate::{Answer, Bundle, Calls, Config, Result, SandboxCalls};

/// How long a shim that was told to end may take to hang up.
const HANG_UP: Duration = Duration::from_millis(200);
/// How long a shim may take to answer the simplest call, when something is to end.
const SILENT: Duration = Duration::from_secs(2);

/// A shim. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Shim(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: Arc<Config>,
    namespace: Namespace,
    id: String,
    binary: PathBuf,
    bundle: Bundle,
    answer: Answer,
    calls: Calls,
    log: Mutex<Option<LogReader>>,
}

/// What a shim is made known by.
pub(crate) struct Parts {
    pub(crate) binary: PathBuf,
    pub(crate) bundle: Bundle,
    pub(crate) answer: Answer,
    pub(crate) calls: Calls,
    pub(crate) log: Option<LogReader>,
}

/// What the `delete` verb said about a task whose shim is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cleanup {
    /// Process id the task had.
    pub pid: u32,
    /// Its exit status; 255 where the verb did not know.
    pub status: u32,
    /// When it ended.
    pub exited_at: SystemTime,
}

impl Shim {
    pub(crate) fn new(config: &Arc<Config>, (namespace, id): (&Namespace, &str), parts: Parts) -> Shim {
        let (config, namespace, id) = (Arc::clone(config), namespace.clone(), id.to_owned());
        let Parts { binary, bundle, answer, calls, log } = parts;
        Shim(Arc::new(Inner { config, namespace, id, binary, bundle, answer, calls, log: Mutex::new(log) }))
    }

    /// Namespace of the task.
    pub fn namespace(&self) -> &Namespace {
        &self.0.namespace
    }

    /// Id of the task.
    pub fn id(&self) -> &str {
        &self.0.id
    }

    /// The shim's binary.
    pub fn binary(&self) -> &Path {
        &self.0.binary
    }

    /// The bundle.
    pub fn bundle(&self) -> &Bundle {
        &self.0.bundle
    }

    /// How it is reached.
    pub fn answer(&self) -> &Answer {
        &self.0.answer
    }

    /// The calls of the sandbox service, for a sandbox's shim.
    pub fn sandbox(&self) -> SandboxCalls {
        SandboxCalls::new(&self.0.id, self.0.calls.client().clone(), self.0.config.deadlines)
    }

    /// The calls it answers.
    pub fn calls(&self) -> &Calls {
        &self.0.calls
    }

    /// Waits until the connection is gone.
    pub async fn closed(&self) {
        self.0.calls.client().closed().await;
    }

    /// Hangs up on a shim that does not answer the simplest call: it counts as lost then, and is cleaned up by who
    /// watches over it. Whether it was so.
    pub async fn give_up_if_silent(&self) -> bool {
        let request = ConnectRequest { id: self.0.id.clone() };
        let silent = tokio::time::timeout(SILENT, self.0.calls.connect(request)).await.is_err();
        if silent {
            tracing::warn!(id = self.0.id, limit = ?SILENT, "a shim does not answer and is given up");
            self.0.calls.client().close();
        }
        silent
    }

    /// After the task was deleted: ends the shim (one that holds other tasks stays), hangs up, removes the bundle.
    ///
    /// # Errors
    /// When the bundle cannot be removed.
    pub async fn retire(&self) -> Result<()> {
        // The shim of a sandbox ends with that.
        if !self.0.bundle.is_in_sandbox() {
            // One that serves others keeps the connection, and so does one that was stopped meanwhile; one that was given up
            // has none. The binary, which needs the bundle for it, tells them apart and ends who does not answer.
            let ended = !self.0.calls.client().is_closed() && {
                self.shut_down(false).await;
                self.hangs_up().await
            };
            if !ended {
                self.delete_verb().await;
            }
        }
        self.0.calls.client().close();
        self.remove_bundle().await
    }

    /// After the shim was lost, or its task could not be made: ends the shim where it still answers, has its binary
    /// kill and clean what is left, then removes the bundle. A binary that fails is said and passed over: the exit
    /// status is 255 then.
    pub async fn cleanup(&self) -> Cleanup {
        if !self.0.calls.client().is_closed() && !self.0.bundle.is_in_sandbox() {
            self.shut_down(true).await;
        }
        self.0.calls.client().close();
        let cleanup = self.delete_verb().await;
        if let Err(error) = self.remove_bundle().await {
            tracing::warn!(id = self.0.id, %error, "bundle of a lost shim stays");
        }
        cleanup
    }

    /// Whether a shim that was told to end hangs up.
    pub(crate) async fn hangs_up(&self) -> bool {
        tokio::time::timeout(HANG_UP, self.closed()).await.is_ok()
    }

    async fn delete_verb(&self) -> Cleanup {
        let Inner { config, namespace, id, binary, bundle, .. } = &*self.0;
        run_delete(config, namespace, id, binary, bundle).await
    }

    async fn shut_down(&self, now: bool) {
        let request = ShutdownRequest { id: self.0.id.clone(), now };
        if let Err(error) = self.0.calls.shutdown(request).await {
            tracing::debug!(id = self.0.id, %error, "shim does not shut down");
        }
    }

    pub(crate) async fn remove_bundle(&self) -> Result<()> {
        self.0.log.lock().unwrap_or_else(PoisonError::into_inner).take();
        remove(self.0.bundle.clone()).await
    }
}

/// Removes a bundle away from the async threads.
pub(crate) async fn remove(bundle: Bundle) -> Result<()> {
    let path = bundle.path().to_owned();
    let removed = tokio::task::spawn_blocking(move || bundle.remove()).await;
    removed.unwrap_or_else(|error| Err(crate::Error::io("remove", &path)(std::io::Error::other(error))))
}

/// Runs the binary's `delete` verb.
pub(crate) async fn run_delete(
    config: &Config,
    namespace: &Namespace,
    id: &str,
    binary: &Path,
    bundle: &Bundle,
) -> Cleanup {
    let mut args = Run::common_args(config, namespace, id, "delete");
    args.extend(["-bundle".to_owned(), bundle.path().to_string_lossy().into_owned(), "delete".to_owned()]);
    let limit = config.deadlines.verb;
    let run = Run { binary, verb: "delete", args, directory: Some(bundle.path()), stdin: Vec::new(), limit };
    let answer = match run.separate(config, namespace).await {
        Ok(output) => DeleteResponse::decode(output.as_slice()).ok(),
        Err(error) => {
            tracing::warn!(%namespace, id, %error, "shim's delete failed");
            None
        }
    };
    cleanup_of(answer)
}

fn cleanup_of(answer: Option<DeleteResponse>) -> Cleanup {
    let unknown = Cleanup { pid: 0, status: 255, exited_at: SystemTime::now() };
    answer.map_or(unknown, |answer| Cleanup {
        pid: answer.pid,
        status: answer.exit_status,
        exited_at: answer.exited_at.and_then(|t| SystemTime::try_from(t).ok()).unwrap_or(unknown.exited_at),
    })
}
