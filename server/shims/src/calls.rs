//! The task service of a shim, method by method: each call has a deadline and a name.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use gantry_ttrpc::pb::containerd::task::v3 as wire;
use gantry_ttrpc::pb::gantry::shim::v1 as extras;
use gantry_ttrpc::{Client, Status};
use gantry_types::ErrorKind;
use prost::Message;

use crate::{Deadlines, Error, Result};

const V2: &str = "containerd.task.v2.Task";
const V3: &str = "containerd.task.v3.Task";
const EXTRAS: &str = "gantry.shim.v1.Extras";

/// The task service at one connection, for one task. Clones share both.
#[derive(Clone, Debug)]
pub struct Calls {
    id: Arc<str>,
    client: Client,
    old: Arc<AtomicBool>,
    deadlines: Deadlines,
}

/// Gives a method of the service: name on the wire, messages, deadline.
macro_rules! methods {
    ($($(#[$doc:meta])* $name:ident = $method:literal ($request:ident) -> $response:ty, $limit:ident;)*) => {$(
        $(#[$doc])*
        ///
        /// # Errors
        /// [`Error::Call`] with what the shim or the connection said.
        pub async fn $name(&self, request: wire::$request) -> Result<$response> {
            self.call($method, &request, Some(self.deadlines.$limit)).await
        }
    )*};
}

impl Calls {
    /// Calls for the task `id` by the given version of the API.
    pub(crate) fn new(id: &str, client: Client, version: i32, deadlines: Deadlines) -> Calls {
        Calls { id: id.into(), client, old: Arc::new(AtomicBool::new(version < 3)), deadlines }
    }

    /// The connection.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// Version of the task API in use; may fall from 3 to 2 with the first call.
    pub fn version(&self) -> i32 {
        if self.old.load(Ordering::Relaxed) { 2 } else { 3 }
    }

    methods! {
        /// State of a process.
        state = "State"(StateRequest) -> wire::StateResponse, query;
        /// Makes the task.
        create = "Create"(CreateTaskRequest) -> wire::CreateTaskResponse, create;
        /// Starts a process.
        start = "Start"(StartRequest) -> wire::StartResponse, change;
        /// Starts a task that is restored, which may move bytes.
        restore = "Start"(StartRequest) -> wire::StartResponse, create;
        /// Forgets an ended process.
        delete = "Delete"(DeleteRequest) -> wire::DeleteResponse, change;
        /// All process ids in the container.
        pids = "Pids"(PidsRequest) -> wire::PidsResponse, query;
        /// Freezes.
        pause = "Pause"(PauseRequest) -> (), change;
        /// Thaws.
        resume = "Resume"(ResumeRequest) -> (), change;
        /// Checkpoints into a directory.
        checkpoint = "Checkpoint"(CheckpointTaskRequest) -> (), create;
        /// Sends a signal.
        kill = "Kill"(KillRequest) -> (), change;
        /// Adds a process.
        exec = "Exec"(ExecProcessRequest) -> (), change;
        /// Sets a terminal's size.
        resize_pty = "ResizePty"(ResizePtyRequest) -> (), change;
        /// Closes standard input.
        close_io = "CloseIO"(CloseIoRequest) -> (), change;
        /// Changes resource limits.
        update = "Update"(UpdateTaskRequest) -> (), create;
        /// Resource use.
        stats = "Stats"(StatsRequest) -> wire::StatsResponse, query;
        /// Process ids of shim and task.
        connect = "Connect"(ConnectRequest) -> wire::ConnectResponse, query;
    }

    /// Waits for the end of a process; without a limit of its own, until the connection ends.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn wait(&self, request: wire::WaitRequest) -> Result<wire::WaitResponse> {
        self.call("Wait", &request, None).await
    }

    /// Asks the shim to end. It may hang up before it answers, which is as good.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn shutdown(&self, request: wire::ShutdownRequest) -> Result<()> {
        match self.call("Shutdown", &request, Some(self.deadlines.query)).await {
            Err(error) if error.is_lost() => Ok(()),
            ended => ended,
        }
    }

    /// Opens the task's log anew; gives the number of records that were lost so far. Our own shim's alone.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn reopen_log(&self) -> Result<u64> {
        let request = extras::ReopenLogRequest { id: self.id.to_string() };
        let answer: extras::ReopenLogResponse = self.extra("ReopenLog", &request, Some(self.deadlines.query)).await?;
        Ok(answer.dropped)
    }

    /// Copies the task's streams to and from named pipes until that has ended. Our own shim's alone.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn attach(&self, request: extras::AttachRequest) -> Result<extras::AttachResponse> {
        self.extra("Attach", &request, None).await
    }

    /// Bounds an execution before its start. Our own shim's alone.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn limit_exec(&self, exec_id: &str, timeout: Duration) -> Result<()> {
        // A limit of zero would be none.
        let timeout_millis = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX).max(1);
        let request = extras::LimitExecRequest { id: self.id.to_string(), exec_id: exec_id.into(), timeout_millis };
        let _: extras::LimitExecResponse = self.extra("LimitExec", &request, Some(self.deadlines.query)).await?;
        Ok(())
    }

    async fn extra<Q: Message, A: Message + Default>(
        &self,
        method: &'static str,
        request: &Q,
        limit: Option<Duration>,
    ) -> Result<A> {
        let failed = |status: Status| Error::Call { id: self.id.to_string(), method, status };
        self.client.call(EXTRAS, method, request, limit).await.map_err(failed)
    }

    /// Versions 2 and 3 differ in the service's name alone: a shim that lacks the newer one is asked by the older.
    async fn call<Q: Message, A: Message + Default>(
        &self,
        method: &'static str,
        request: &Q,
        limit: Option<Duration>,
    ) -> Result<A> {
        let failed = |status: Status| Error::Call { id: self.id.to_string(), method, status };
        if self.old.load(Ordering::Relaxed) {
            return self.client.call(V2, method, request, limit).await.map_err(failed);
        }
        match self.client.call(V3, method, request, limit).await {
            Err(status) if lacks_service(&status) => {}
            answer => return answer.map_err(failed),
        }
        let answer = self.client.call(V2, method, request, limit).await.map_err(failed)?;
        self.old.store(true, Ordering::Relaxed);
        Ok(answer)
    }
}

/// An unimplemented method of a service that is there must not look like an old shim.
fn lacks_service(status: &Status) -> bool {
    status.kind == ErrorKind::Unimplemented && status.message.contains("service")
}
