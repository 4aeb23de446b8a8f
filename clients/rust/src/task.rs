//! A running task: the init process of a container, or one executed beside it.

use std::time::SystemTime;

use gantry_api::convert;
use gantry_api::pb::containerd::services::tasks::v1 as wire;
use gantry_api::pb::containerd::types::Mount;
use gantry_spec::oci_spec::runtime::Process;

use crate::error::Asked;
use crate::{Client, Error, Paths};

/// Type name of an OCI process as clients of containerd send it.
const PROCESS_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Exit code; 128 + signal where it was killed.
    pub status: u32,
    /// When, as the shim saw it.
    pub at: Option<SystemTime>,
}

/// A process of a container, by name. Nothing happens when it is dropped.
#[derive(Clone, Debug)]
pub struct Task {
    client: Client,
    container: String,
    exec: String,
}

impl Client {
    /// The init process of a container that has one already.
    pub fn task(&self, container: &str) -> Task {
        Task { client: self.clone(), container: container.to_owned(), exec: String::new() }
    }

    /// Creates the task of a container on these mounts; it waits to be started.
    ///
    /// # Errors
    /// What the daemon says.
    pub async fn create_task(&self, container: &str, rootfs: Vec<Mount>, stdio: &Paths) -> Result<(Task, u32), Error> {
        let request = wire::CreateTaskRequest {
            container_id: container.to_owned(),
            rootfs,
            stdin: stdio.stdin.clone(),
            stdout: stdio.stdout.clone(),
            stderr: stdio.stderr.clone(),
            terminal: stdio.terminal,
            ..Default::default()
        };
        let answer = self.tasks().create(request).await.asked(|| format!("create task {container}"))?;
        Ok((self.task(container), answer.pid))
    }
}

impl Task {
    fn what(&self, verb: &str) -> String {
        match self.exec.as_str() {
            "" => format!("{verb} task {}", self.container),
            exec => format!("{verb} process {exec} of {}", self.container),
        }
    }

    /// Adds a process to the container; it waits to be started.
    ///
    /// # Errors
    /// What the daemon says.
    pub async fn exec(&self, exec: &str, process: &Process, stdio: &Paths) -> Result<Task, Error> {
        let value = serde_json::to_vec(process).map_err(|e| Error::malformed("process", e))?;
        let request = wire::ExecProcessRequest {
            container_id: self.container.clone(),
            exec_id: exec.to_owned(),
            stdin: stdio.stdin.clone(),
            stdout: stdio.stdout.clone(),
            stderr: stdio.stderr.clone(),
            terminal: stdio.terminal,
            spec: Some(prost_types::Any { type_url: PROCESS_TYPE.into(), value }),
        };
        let task = Task { exec: exec.to_owned(), ..self.clone() };
        self.client.tasks().exec(request).await.asked(|| task.what("add"))?;
        Ok(task)
    }

    /// Starts the process; its pid on the host.
    ///
    /// # Errors
    /// What the daemon says, for example that the program is not there.
    pub async fn start(&self) -> Result<u32, Error> {
        let request = wire::StartRequest { container_id: self.container.clone(), exec_id: self.exec.clone() };
        Ok(self.client.tasks().start(request).await.asked(|| self.what("start"))?.pid)
    }

    /// Waits until the process has ended.
    ///
    /// # Errors
    /// What the daemon says.
    pub async fn wait(&self) -> Result<Exit, Error> {
        let request = wire::WaitRequest { container_id: self.container.clone(), exec_id: self.exec.clone() };
        let answer = self.client.tasks().wait(request).await.asked(|| self.what("wait for"))?;
        Ok(exit(answer.exit_status, answer.exited_at))
    }

    /// Sends a signal, to `all` processes of the container if asked.
    ///
    /// # Errors
    /// What the daemon says.
    pub async fn kill(&self, signal: u32, all: bool) -> Result<(), Error> {
        let (container_id, exec_id) = (self.container.clone(), self.exec.clone());
        let request = wire::KillRequest { container_id, exec_id, signal, all };
        self.client.tasks().kill(request).await.asked(|| self.what("signal")).map(|_| ())
    }

    /// Tells a process with a terminal its size, in characters.
    ///
    /// # Errors
    /// What the daemon says.
    pub async fn resize(&self, width: u32, height: u32) -> Result<(), Error> {
        let (container_id, exec_id) = (self.container.clone(), self.exec.clone());
        let request = wire::ResizePtyRequest { container_id, exec_id, width, height };
        self.client.tasks().resize_pty(request).await.asked(|| self.what("resize")).map(|_| ())
    }

    /// Closes standard input.
    ///
    /// # Errors
    /// What the daemon says.
    pub async fn close_stdin(&self) -> Result<(), Error> {
        let (container_id, exec_id) = (self.container.clone(), self.exec.clone());
        let request = wire::CloseIoRequest { container_id, exec_id, stdin: true };
        self.client.tasks().close_io(request).await.asked(|| self.what("close standard input of")).map(|_| ())
    }

    /// Removes the ended process, and with an init process the whole task.
    ///
    /// # Errors
    /// `FailedPrecondition` while it runs.
    pub async fn delete(&self) -> Result<Exit, Error> {
        let container_id = self.container.clone();
        let answer = if self.exec.is_empty() {
            self.client.tasks().delete(wire::DeleteTaskRequest { container_id }).await
        } else {
            let request = wire::DeleteProcessRequest { container_id, exec_id: self.exec.clone() };
            self.client.tasks().delete_process(request).await
        };
        let answer = answer.asked(|| self.what("delete"))?;
        Ok(exit(answer.exit_status, answer.exited_at))
    }
}

fn exit(status: u32, at: Option<prost_types::Timestamp>) -> Exit {
    Exit { status, at: at.and_then(|at| convert::time_from_wire(at).ok()) }
}
