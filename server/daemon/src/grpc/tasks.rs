//! `containerd.services.tasks.v1`.

use std::path::PathBuf;

use gantry_api::convert::{
    any_from_wire, any_to_wire, descriptor_from_wire, descriptor_to_wire, mounts_from_wire, time_to_wire,
};
use gantry_api::pb::containerd::services::tasks::v1 as wire;
use gantry_api::pb::containerd::services::tasks::v1::tasks_server::Tasks;
use gantry_api::pb::containerd::types;
use gantry_api::pb::containerd::v1::types as task;
use gantry_engine::tasks::{Checkpoint, Create, Exec, Exit, Metric, Process, ProcessInfo, Status};
use gantry_types::Scope;
use prost_types::Timestamp;
use tonic::{Request, Response, async_trait};

use super::decode::filter;
use super::{Reply, Services};
use crate::{scope, status};

/// Go's zero time, which clients test for: the process has not ended.
pub(super) const NEVER: Timestamp = Timestamp { seconds: -62_135_596_800, nanos: 0 };

#[async_trait]
impl Tasks for Services {
    async fn create(&self, request: Request<wire::CreateTaskRequest>) -> Reply<wire::CreateTaskResponse> {
        let scope = scope::of(&request)?;
        let wanted = create_from_wire(request.into_inner())?;
        let container_id = wanted.container_id.clone();
        let runs_at_once = matches!(wanted.checkpoint, Some(Checkpoint::Directory { .. }));
        let mut pid = self.engine.tasks.create(&scope, wanted).await.map_err(status::of)?;
        if runs_at_once {
            pid = self.restored(&scope, &container_id).await.map_err(status::of)?;
        }
        Ok(Response::new(wire::CreateTaskResponse { container_id, pid }))
    }

    async fn start(&self, request: Request<wire::StartRequest>) -> Reply<wire::StartResponse> {
        let scope = scope::of(&request)?;
        let r = request.into_inner();
        let pid = self.engine.tasks.start(&scope, &r.container_id, &r.exec_id).await.map_err(status::of)?;
        Ok(Response::new(wire::StartResponse { pid }))
    }

    async fn delete(&self, request: Request<wire::DeleteTaskRequest>) -> Reply<wire::DeleteResponse> {
        let scope = scope::of(&request)?;
        let exit = self.engine.tasks.delete(&scope, &request.get_ref().container_id).await.map_err(status::of)?;
        Ok(Response::new(deleted(String::new(), exit)))
    }

    async fn delete_process(&self, request: Request<wire::DeleteProcessRequest>) -> Reply<wire::DeleteResponse> {
        let scope = scope::of(&request)?;
        let r = request.into_inner();
        let exit = self.engine.tasks.delete_process(&scope, &r.container_id, &r.exec_id).await.map_err(status::of)?;
        Ok(Response::new(deleted(r.exec_id, exit)))
    }

    async fn get(&self, request: Request<wire::GetRequest>) -> Reply<wire::GetResponse> {
        let scope = scope::of(&request)?;
        let r = request.into_inner();
        let process = self.engine.tasks.get(&scope, &r.container_id, &r.exec_id).await.map_err(status::of)?;
        Ok(Response::new(wire::GetResponse { process: Some(process_to_wire(process)) }))
    }

    /// All tasks of the namespace; containerd's clients do not use the request's filter, and it has no meaning.
    async fn list(&self, request: Request<wire::ListTasksRequest>) -> Reply<wire::ListTasksResponse> {
        let scope = scope::of(&request)?;
        let tasks = self.engine.tasks.list(&scope).await.map_err(status::of)?;
        Ok(Response::new(wire::ListTasksResponse { tasks: tasks.into_iter().map(process_to_wire).collect() }))
    }

    async fn kill(&self, request: Request<wire::KillRequest>) -> Reply<()> {
        let scope = scope::of(&request)?;
        let r = request.into_inner();
        let tasks = &self.engine.tasks;
        tasks.kill(&scope, &r.container_id, &r.exec_id, r.signal, r.all).await.map_err(status::of)?;
        Ok(Response::new(()))
    }

    async fn exec(&self, request: Request<wire::ExecProcessRequest>) -> Reply<()> {
        let scope = scope::of(&request)?;
        let r = request.into_inner();
        if r.exec_id.is_empty() {
            return Err(tonic::Status::invalid_argument("exec id cannot be empty"));
        }
        let exec = Exec {
            container_id: r.container_id,
            exec_id: r.exec_id,
            stdin: r.stdin,
            stdout: r.stdout,
            stderr: r.stderr,
            terminal: r.terminal,
            spec: r.spec.map(any_from_wire),
        };
        self.engine.tasks.exec(&scope, exec).await.map_err(status::of)?;
        Ok(Response::new(()))
    }

    async fn resize_pty(&self, request: Request<wire::ResizePtyRequest>) -> Reply<()> {
        let scope = scope::of(&request)?;
        let r = request.into_inner();
        let tasks = &self.engine.tasks;
        tasks.resize_pty(&scope, &r.container_id, &r.exec_id, r.width, r.height).await.map_err(status::of)?;
        Ok(Response::new(()))
    }

    async fn close_io(&self, request: Request<wire::CloseIoRequest>) -> Reply<()> {
        let scope = scope::of(&request)?;
        let r = request.into_inner();
        let tasks = &self.engine.tasks;
        if r.stdin {
            tasks.close_stdin(&scope, &r.container_id, &r.exec_id).await.map_err(status::of)?;
        } else {
            tasks.get(&scope, &r.container_id, &r.exec_id).await.map_err(status::of)?;
        }
        Ok(Response::new(()))
    }

    async fn pause(&self, request: Request<wire::PauseTaskRequest>) -> Reply<()> {
        let scope = scope::of(&request)?;
        self.engine.tasks.pause(&scope, &request.get_ref().container_id).await.map_err(status::of)?;
        Ok(Response::new(()))
    }

    async fn resume(&self, request: Request<wire::ResumeTaskRequest>) -> Reply<()> {
        let scope = scope::of(&request)?;
        self.engine.tasks.resume(&scope, &request.get_ref().container_id).await.map_err(status::of)?;
        Ok(Response::new(()))
    }

    async fn list_pids(&self, request: Request<wire::ListPidsRequest>) -> Reply<wire::ListPidsResponse> {
        let scope = scope::of(&request)?;
        let pids = self.engine.tasks.pids(&scope, &request.get_ref().container_id).await.map_err(status::of)?;
        Ok(Response::new(wire::ListPidsResponse { processes: pids.into_iter().map(pid_to_wire).collect() }))
    }

    async fn checkpoint(&self, request: Request<wire::CheckpointTaskRequest>) -> Reply<wire::CheckpointTaskResponse> {
        let scope = scope::of(&request)?;
        let r = request.into_inner();
        let options = r.options.map(any_from_wire);
        let stored = self.engine.tasks.checkpoint(&scope, &r.container_id, options).await.map_err(status::of)?;
        let descriptors = stored.iter().map(descriptor_to_wire).collect();
        Ok(Response::new(wire::CheckpointTaskResponse { descriptors }))
    }

    async fn update(&self, request: Request<wire::UpdateTaskRequest>) -> Reply<()> {
        let scope = scope::of(&request)?;
        let r = request.into_inner();
        let resources = r.resources.map(any_from_wire);
        self.engine.tasks.update(&scope, &r.container_id, resources, r.annotations).await.map_err(status::of)?;
        Ok(Response::new(()))
    }

    async fn metrics(&self, request: Request<wire::MetricsRequest>) -> Reply<wire::MetricsResponse> {
        let scope = scope::of(&request)?;
        let filter = filter(&request.get_ref().filters)?;
        let metrics = self.engine.tasks.metrics(&scope, &filter).await.map_err(status::of)?;
        Ok(Response::new(wire::MetricsResponse { metrics: metrics.into_iter().map(metric_to_wire).collect() }))
    }

    async fn wait(&self, request: Request<wire::WaitRequest>) -> Reply<wire::WaitResponse> {
        let scope = scope::of(&request)?;
        let r = request.into_inner();
        let exit = async { self.engine.tasks.wait(&scope, &r.container_id, &r.exec_id).await.map_err(status::of) };
        let exit = self.unless_stopping(exit).await?;
        Ok(Response::new(wire::WaitResponse { exit_status: exit.status, exited_at: exited_at(exit) }))
    }
}

fn create_from_wire(r: wire::CreateTaskRequest) -> Result<Create, tonic::Status> {
    Ok(Create {
        container_id: r.container_id,
        rootfs: mounts_from_wire(r.rootfs),
        stdin: r.stdin,
        stdout: r.stdout,
        stderr: r.stderr,
        terminal: r.terminal,
        checkpoint: r.checkpoint.map(checkpoint_from_wire).transpose()?,
        options: r.options.map(any_from_wire),
        runtime_path: r.runtime_path,
        task_api_address: r.task_api_address,
        task_api_version: r.task_api_version,
    })
}

impl Services {
    /// Starts a task that was made from a directory, or removes it.
    async fn restored(&self, scope: &Scope, id: &str) -> gantry_engine::Result<u32> {
        let started = self.engine.tasks.start(scope, id, "").await;
        if let (Err(_), Err(error)) = (&started, self.engine.tasks.delete(scope, id).await) {
            tracing::warn!(id, %error, "a task that could not be restored stays");
        }
        started
    }
}

/// With this annotation containerd's clients name a directory instead of a blob; the task runs at once then.
const RESTORE_FROM_PATH: &str = "RestoreFromPath";
/// Changes of the root file system, beside that directory.
const CHANGES: &str = "rootfs-diff.tar";

fn checkpoint_from_wire(descriptor: types::Descriptor) -> Result<Checkpoint, tonic::Status> {
    let Some(images) = descriptor.annotations.get(RESTORE_FROM_PATH).map(PathBuf::from) else {
        return descriptor_from_wire(descriptor).map(Checkpoint::Archive).map_err(status::of);
    };
    let changes = images.parent().map(|parent| parent.join(CHANGES)).filter(|changes| changes.exists());
    Ok(Checkpoint::Directory { images, changes })
}

fn deleted(id: String, exit: Exit) -> wire::DeleteResponse {
    wire::DeleteResponse { id, pid: exit.pid, exit_status: exit.status, exited_at: exited_at(exit) }
}

fn exited_at(exit: Exit) -> Option<Timestamp> {
    Some(time_to_wire(exit.exited_at))
}

/// containerd gives the process' own id (the container's for the first one) and leaves `container_id` empty.
fn process_to_wire(process: Process) -> task::Process {
    let id = if process.exec_id.is_empty() { process.container_id } else { process.exec_id };
    task::Process {
        container_id: String::new(),
        id,
        pid: process.pid,
        status: status_to_wire(process.status).into(),
        stdin: process.stdin,
        stdout: process.stdout,
        stderr: process.stderr,
        terminal: process.terminal,
        exit_status: process.exit_status,
        exited_at: Some(process.exited_at.map_or(NEVER, time_to_wire)),
    }
}

fn status_to_wire(status: Status) -> task::Status {
    match status {
        Status::Unknown => task::Status::Unknown,
        Status::Created => task::Status::Created,
        Status::Running => task::Status::Running,
        Status::Stopped => task::Status::Stopped,
        Status::Paused => task::Status::Paused,
        Status::Pausing => task::Status::Pausing,
    }
}

fn pid_to_wire(process: ProcessInfo) -> task::ProcessInfo {
    task::ProcessInfo { pid: process.pid, info: process.info.map(any_to_wire) }
}

pub(super) fn metric_to_wire(metric: Metric) -> types::Metric {
    types::Metric {
        timestamp: Some(time_to_wire(metric.timestamp)),
        id: metric.id,
        data: Some(any_to_wire(metric.data)),
    }
}
