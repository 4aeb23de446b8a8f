//! `containerd.task.v3.Task` and `v2.Task` (the same messages on the wire): decode, call, encode. Other services have
//! modules of their own.

use gantry_ttrpc::Status;
use gantry_ttrpc::pb::containerd::runc::v1::{CheckpointOptions, Options, ProcessDetails};
use gantry_ttrpc::pb::containerd::task::v3 as pb;
use gantry_ttrpc::pb::containerd::v1::types::{ProcessInfo, Status as PhasePb};
use gantry_ttrpc::wire::Request;
use gantry_types::ErrorKind;
use prost::{Message, Name};
use prost_types::Any;

use crate::bootstrap::runc_options;
use crate::events::timestamp;
use crate::io::Streams;
use crate::supervisor::{Answer, Caller, CreateTask, Supervisor};
use crate::task::{Exit, Phase};
use crate::{Error, extras, sandbox, stats};

/// Answers a call; none means that the answer comes later, when a process has ended.
pub fn answer(supervisor: &mut Supervisor, caller: Caller, request: &Request) -> Option<Result<Vec<u8>, Status>> {
    let Request { service, method, payload, .. } = request;
    match service.as_str() {
        "containerd.task.v3.Task" | "containerd.task.v2.Task" => {}
        sandbox::SERVICE => return sandbox::answer(supervisor, caller, method, payload),
        extras::SERVICE => return extras::answer(supervisor, caller, method, payload),
        _ => return Some(Err(Status::unknown_service(service))),
    }
    if method == "Wait" {
        return wait(supervisor, caller, payload).transpose();
    }
    Some(call(supervisor, method, payload).unwrap_or_else(|| Err(Status::unimplemented(service, method))))
}

/// An answer that came later. That of a sandbox's Wait is the same on the wire as that of a task's.
pub fn waited(answer: Answer) -> Vec<u8> {
    match answer {
        Answer::Exit(Exit { status, at }) => {
            pb::WaitResponse { exit_status: status, exited_at: Some(timestamp(at)) }.encode_to_vec()
        }
        Answer::Stopped => Vec::new(),
        Answer::Detached(end) => extras::detached(end),
    }
}

fn call(s: &mut Supervisor, method: &str, payload: &[u8]) -> Option<Result<Vec<u8>, Status>> {
    Some(match method {
        "State" => on(payload, |r: pb::StateRequest| state(s, r)),
        "Create" => on(payload, |r: pb::CreateTaskRequest| create(s, r)),
        "Start" => on(payload, |r: pb::StartRequest| {
            Ok(pb::StartResponse { pid: s.start(&r.id, &r.exec_id)?.cast_unsigned() })
        }),
        "Delete" => on(payload, |r: pb::DeleteRequest| delete(s, r)),
        "Pids" => on(payload, |r: pb::PidsRequest| pids(s, r)),
        "Pause" => on(payload, |r: pb::PauseRequest| s.pause(&r.id)),
        "Resume" => on(payload, |r: pb::ResumeRequest| s.resume(&r.id)),
        "Checkpoint" => on(payload, |r: pb::CheckpointTaskRequest| checkpoint(s, &r)),
        "Kill" => on(payload, |r: pb::KillRequest| s.kill(&r.id, &r.exec_id, r.signal, r.all)),
        "Exec" => on(payload, |r: pb::ExecProcessRequest| exec(s, r)),
        "ResizePty" => on(payload, |r: pb::ResizePtyRequest| s.resize(&r.id, &r.exec_id, r.width, r.height)),
        "CloseIO" => {
            on(payload, |r: pb::CloseIoRequest| if r.stdin { s.close_stdin(&r.id, &r.exec_id) } else { Ok(()) })
        }
        "Update" => on(payload, |r: pb::UpdateTaskRequest| s.update(&r.id, &r.resources.unwrap_or_default().value)),
        "Stats" => {
            on(payload, |r: pb::StatsRequest| Ok(pb::StatsResponse { stats: Some(stats::metrics(s.stats(&r.id)?)) }))
        }
        "Connect" => on(payload, |r: pb::ConnectRequest| connect(s, r)),
        "Shutdown" => on(payload, |_: pb::ShutdownRequest| {
            s.shutdown();
            Ok(())
        }),
        _ => return None,
    })
}

pub(crate) fn on<Req, Resp>(payload: &[u8], act: impl FnOnce(Req) -> Result<Resp, Error>) -> Result<Vec<u8>, Status>
where
    Req: Message + Default,
    Resp: Message,
{
    Ok(act(decode(payload)?)?.encode_to_vec())
}

pub(crate) fn decode<M: Message + Default>(payload: &[u8]) -> Result<M, Status> {
    M::decode(payload).map_err(|error| Status::new(ErrorKind::InvalidArgument, format!("undecodable request: {error}")))
}

fn wait(s: &mut Supervisor, caller: Caller, payload: &[u8]) -> Result<Option<Vec<u8>>, Status> {
    let request: pb::WaitRequest = decode(payload)?;
    Ok(s.wait(&request.id, &request.exec_id, caller)?.map(|exit| waited(Answer::Exit(exit))))
}

fn create(s: &mut Supervisor, r: pb::CreateTaskRequest) -> Result<pb::CreateTaskResponse, Error> {
    let streams = Streams { stdin: r.stdin, stdout: r.stdout, stderr: r.stderr, terminal: r.terminal };
    let options = options(r.options)?;
    let pid = s.create(CreateTask {
        id: r.id,
        bundle: r.bundle,
        rootfs: r.rootfs,
        streams,
        options,
        checkpoint: r.checkpoint,
    })?;
    Ok(pb::CreateTaskResponse { pid: pid.cast_unsigned() })
}

/// runc's options; other runtimes' options cannot be meant for us, but their configuration path may be empty and is ignored.
fn options(any: Option<Any>) -> Result<Options, Error> {
    let Some(any) = any.filter(|any| !any.type_url.is_empty()) else { return Ok(Options::default()) };
    if any.type_url.ends_with("runtimeoptions.v1.Options") {
        return Ok(Options::default());
    }
    let reason = "only containerd.runc.v1.Options are understood";
    runc_options(&any).ok_or(Error::Invalid { what: "options", value: any.type_url, reason })
}

fn exec(s: &mut Supervisor, r: pb::ExecProcessRequest) -> Result<(), Error> {
    let streams = Streams { stdin: r.stdin, stdout: r.stdout, stderr: r.stderr, terminal: r.terminal };
    s.exec(&r.id, &r.exec_id, streams, r.spec.unwrap_or_default().value)
}

fn checkpoint(s: &mut Supervisor, r: &pb::CheckpointTaskRequest) -> Result<(), Error> {
    let options = match &r.options {
        Some(any) if !any.value.is_empty() => CheckpointOptions::decode(any.value.as_slice())
            .map_err(|error| Error::refused(ErrorKind::InvalidArgument, format!("checkpoint options: {error}")))?,
        _ => CheckpointOptions::default(),
    };
    s.checkpoint(&r.id, &r.path, &options)
}

fn delete(s: &mut Supervisor, r: pb::DeleteRequest) -> Result<pb::DeleteResponse, Error> {
    let process = s.delete(&r.id, &r.exec_id)?;
    let exit = process.exit();
    Ok(pb::DeleteResponse {
        pid: process.pid.cast_unsigned(),
        exit_status: exit.map_or(0, |exit| exit.status),
        exited_at: exit.map(|exit| timestamp(exit.at)),
    })
}

fn state(s: &Supervisor, r: pb::StateRequest) -> Result<pb::StateResponse, Error> {
    let view = s.view(&r.id, &r.exec_id)?;
    let streams = view.streams.clone();
    let exit = view.process.exit();
    Ok(pb::StateResponse {
        bundle: view.bundle.dir().display().to_string(),
        pid: view.process.pid.cast_unsigned(),
        status: phase(view.process.phase).into(),
        stdin: streams.stdin,
        stdout: streams.stdout,
        stderr: streams.stderr,
        terminal: streams.terminal,
        exit_status: exit.map_or(0, |exit| exit.status),
        exited_at: exit.map(|exit| timestamp(exit.at)),
        id: r.id,
        exec_id: r.exec_id,
    })
}

fn phase(phase: Phase) -> PhasePb {
    match phase {
        Phase::Created => PhasePb::Created,
        Phase::Running => PhasePb::Running,
        Phase::Paused => PhasePb::Paused,
        Phase::Stopped(_) => PhasePb::Stopped,
    }
}

fn pids(s: &Supervisor, r: pb::PidsRequest) -> Result<pb::PidsResponse, Error> {
    let details = |exec: &str| {
        let value = ProcessDetails { exec_id: exec.to_owned() }.encode_to_vec();
        Any { type_url: ProcessDetails::full_name(), value }
    };
    let pids = s.pids(&r.id)?.into_iter();
    let processes = pids.map(|(pid, exec)| ProcessInfo { pid: pid.cast_unsigned(), info: exec.map(details) }).collect();
    Ok(pb::PidsResponse { processes })
}

fn connect(s: &Supervisor, r: pb::ConnectRequest) -> Result<pb::ConnectResponse, Error> {
    let task_pid = s.view(&r.id, "").map_or(0, |view| view.process.pid.cast_unsigned());
    Ok(pb::ConnectResponse { shim_pid: std::process::id(), task_pid, version: env!("CARGO_PKG_VERSION").to_owned() })
}
