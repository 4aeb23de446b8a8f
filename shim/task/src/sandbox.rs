//! `containerd.runtime.sandbox.v1.Sandbox`: one pod, whose namespaces are held by a process of ours, or by its program.
//! To the supervisor it is a container whose steps are not announced; the task service answers for it under its id.

use std::collections::BTreeMap;
use std::path::PathBuf;

use gantry_runtime::Spec;
use gantry_runtime::spec::{Namespace, NamespaceKind};
use gantry_ttrpc::Status;
use gantry_ttrpc::pb::containerd::runtime::sandbox::v1 as pb;
use gantry_ttrpc::pb::containerd::types as types_pb;
use gantry_types::{ErrorKind, HasKind, Id, Mount};
use prost::Message;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::bundle::Bundle;
use crate::events::timestamp;
use crate::io::PipeOwner;
use crate::making::mount;
use crate::runtime::{ProcessIo, Runtime, Wanted};
use crate::service::{decode, on};
use crate::supervisor::{Caller, Entry, Member, Supervisor};
use crate::task::{Moment, Phase, Step, Task};
use crate::{Error, log, stats};

/// Its name on the wire.
pub const SERVICE: &str = "containerd.runtime.sandbox.v1.Sandbox";

type Answered = Option<Result<Vec<u8>, Status>>;

/// Answers a call; none means that the answer comes later.
pub fn answer(s: &mut Supervisor, caller: Caller, method: &str, payload: &[u8]) -> Answered {
    Some(match method {
        "CreateSandbox" => on(payload, |r: pb::CreateSandboxRequest| {
            s.create_sandbox(&r)?;
            Ok(pb::CreateSandboxResponse {})
        }),
        "StartSandbox" => on(payload, |r: pb::StartSandboxRequest| start(s, &r.sandbox_id)),
        "Platform" => on(payload, |_: pb::PlatformRequest| Ok(pb::PlatformResponse { platform: Some(platform()) })),
        "StopSandbox" => return stop(s, caller, payload).transpose(),
        "WaitSandbox" => return wait(s, caller, payload).transpose(),
        "SandboxStatus" => on(payload, |r: pb::SandboxStatusRequest| status(s, &r)),
        "PingSandbox" => on(payload, |r: pb::PingRequest| s.sandbox(&r.sandbox_id).map(|_| pb::PingResponse {})),
        "ShutdownSandbox" => on(payload, |r: pb::ShutdownSandboxRequest| {
            s.shutdown_sandbox(&r.sandbox_id)?;
            Ok(pb::ShutdownSandboxResponse {})
        }),
        "SandboxMetrics" => on(payload, |r: pb::SandboxMetricsRequest| metrics(s, r.sandbox_id)),
        "UpdateSandbox" => on(payload, |r: pb::UpdateSandboxRequest| update(s, r)),
        _ => Err(Status::unimplemented(SERVICE, method)),
    })
}

impl Supervisor {
    /// Makes the sandbox of this shim; its namespaces exist from here on.
    ///
    /// # Errors
    /// `AlreadyExists`, what is wrong with the configuration, or the runtime's error; nothing is left behind.
    pub fn create_sandbox(&mut self, wanted: &pb::CreateSandboxRequest) -> Result<(), Error> {
        let id = &wanted.sandbox_id;
        id.parse::<Id>().map_err(|error| Error::usage(error.to_string()))?;
        if self.entries.contains_key(id) || self.entries.values().any(|entry| entry.sandbox.is_some()) {
            return Err(Error::refused(ErrorKind::AlreadyExists, format!("sandbox {id} exists already")));
        }
        let bundle = Bundle::new(&wanted.bundle_path);
        let spec = configuration(&bundle, wanted)?;
        let mounts: Vec<Mount> = wanted.rootfs.iter().map(mount).collect();
        let options = bundle.options()?;
        let described = Wanted {
            id,
            namespace: &self.namespace,
            bundle: &bundle,
            spec: &spec,
            mounts: &mounts,
            io: ProcessIo::Fds([None; 3]),
            options: &options,
        };
        let created = if spec.has_program() { Runtime::create(described) } else { Runtime::hold(described) }?;
        if let Err(error) = bundle.write_pid(created.pid) {
            log::warning("init.pid cannot be written", &error);
        }
        self.by_pid.insert(created.pid, (id.clone(), String::new()));
        let entry = Entry {
            task: Task::created(created.pid),
            runtime: created.runtime,
            members: BTreeMap::from([(String::new(), Member::default())]),
            oom: None,
            owns_pid_namespace: spec.has_new(NamespaceKind::Pid),
            owner: PipeOwner::default(),
            sandbox: Some(Moment::now()),
            images: None,
            bundle,
        };
        self.entries.insert(id.clone(), entry);
        Ok(())
    }

    /// The sandbox, by its id.
    pub(crate) fn sandbox(&self, id: &str) -> Result<(&Entry, Moment), Error> {
        let entry = self.entries.get(id).and_then(|entry| entry.sandbox.map(|created| (entry, created)));
        entry.ok_or_else(|| Error::refused(ErrorKind::NotFound, format!("sandbox {id}: not found")))
    }

    /// Ends the sandbox with all tasks that are in this shim, clears away what they had, and lets the shim end. A shim
    /// that holds nothing ends all the same: its sandbox could not be made.
    ///
    /// # Errors
    /// `NotFound` where this shim's sandbox is another; what could not be cleared away: it may be repeated.
    pub fn shutdown_sandbox(&mut self, id: &str) -> Result<(), Error> {
        if !self.entries.is_empty() {
            self.sandbox(id)?;
        }
        let tasks = self.entries.keys().filter(|task| *task != id).cloned();
        for id in tasks.chain(self.entries.contains_key(id).then(|| id.to_owned())).collect::<Vec<_>>() {
            self.remove(&id)?;
        }
        self.shutting_down = true;
        Ok(())
    }

    fn remove(&mut self, id: &str) -> Result<(), Error> {
        self.reap();
        if self.entry(id)?.task.process("")?.exit().is_none() {
            self.end_init(id)?;
        }
        let entry = self.entry_mut(id)?;
        entry.runtime.delete(true)?;
        let members: Vec<String> = entry.members.keys().cloned().collect();
        members.iter().for_each(|member| self.forget(id, member));
        self.step(id, Step::Delete { exec: "" })?;
        self.entries.remove(id);
        Ok(())
    }
}

/// The bundle's configuration, in the network namespace that the request names, where it names one.
fn configuration(bundle: &Bundle, wanted: &pb::CreateSandboxRequest) -> Result<Spec, Error> {
    let mut spec = Spec::load_pod(bundle.dir()).map_err(Error::runtime("create"))?;
    spec.annotations.extend(wanted.annotations.clone());
    if !wanted.netns_path.is_empty() {
        if !wanted.netns_path.starts_with('/') {
            let reason = "the path is not absolute";
            return Err(Error::Invalid { what: "netns_path", value: wanted.netns_path.clone(), reason });
        }
        let network = |namespace: &Namespace| NamespaceKind::parse(&namespace.kind) == Some(NamespaceKind::Network);
        spec.linux.namespaces.retain(|namespace| !network(namespace));
        let path = PathBuf::from(&wanted.netns_path);
        spec.linux.namespaces.push(Namespace { kind: "network".to_owned(), path });
    }
    Ok(spec)
}

fn start(s: &mut Supervisor, id: &str) -> Result<pb::StartSandboxResponse, Error> {
    let (_, created) = s.sandbox(id)?;
    let pid = s.start(id, "")?;
    Ok(pb::StartSandboxResponse { pid: pid.cast_unsigned(), created_at: Some(timestamp(created)), spec: None })
}

/// This machine, in the words that images use.
fn platform() -> types_pb::Platform {
    let host = gantry_types::Platform::host();
    types_pb::Platform {
        os: host.os,
        architecture: host.architecture,
        variant: host.variant,
        ..types_pb::Platform::default()
    }
}

/// Kills what holds the sandbox; answered when it has ended.
fn stop(s: &mut Supervisor, caller: Caller, payload: &[u8]) -> Result<Option<Vec<u8>>, Status> {
    let request: pb::StopSandboxRequest = decode(payload)?;
    s.reap();
    let (entry, _) = s.sandbox(&request.sandbox_id)?;
    let ended = entry.task.process("")?.exit().is_some();
    let killed = if ended { Ok(()) } else { s.kill(&request.sandbox_id, "", libc::SIGKILL.cast_unsigned(), false) };
    match killed {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
        _ if ended => return Ok(Some(Vec::new())),
        _ => {}
    }
    if let Some(member) = s.entry_mut(&request.sandbox_id)?.members.get_mut("") {
        member.stopping.push(caller);
    }
    Ok(None)
}

fn wait(s: &mut Supervisor, caller: Caller, payload: &[u8]) -> Result<Option<Vec<u8>>, Status> {
    let request: pb::WaitSandboxRequest = decode(payload)?;
    s.sandbox(&request.sandbox_id)?;
    let exit = s.wait(&request.sandbox_id, "", caller)?;
    Ok(exit.map(|exit| {
        pb::WaitSandboxResponse { exit_status: exit.status, exited_at: Some(timestamp(exit.at)) }.encode_to_vec()
    }))
}

fn status(s: &Supervisor, r: &pb::SandboxStatusRequest) -> Result<pb::SandboxStatusResponse, Error> {
    let (entry, created) = s.sandbox(&r.sandbox_id)?;
    let process = *entry.task.process("")?;
    let state = match process.phase {
        Phase::Created => "SANDBOX_CREATED",
        Phase::Running | Phase::Paused => "SANDBOX_READY",
        Phase::Stopped(_) => "SANDBOX_NOTREADY",
    };
    let info = if r.verbose { info(entry, process.pid) } else { BTreeMap::new() };
    Ok(pb::SandboxStatusResponse {
        sandbox_id: r.sandbox_id.clone(),
        pid: if process.exit().is_some() { 0 } else { process.pid.cast_unsigned() },
        state: state.to_owned(),
        info,
        created_at: Some(timestamp(created)),
        exited_at: process.exit().map(|exit| timestamp(exit.at)),
        extra: None,
    })
}

fn info(entry: &Entry, pid: i32) -> BTreeMap<String, String> {
    let namespaces: BTreeMap<&str, String> = ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"]
        .into_iter()
        .filter_map(|name| {
            let link = std::fs::read_link(format!("/proc/{pid}/ns/{name}")).ok()?;
            Some((name, link.to_string_lossy().into_owned()))
        })
        .collect();
    let shim = std::process::id();
    let info = serde_json::json!({ "pid": pid, "shim": shim, "bundle": entry.bundle.dir(), "namespaces": namespaces });
    BTreeMap::from([("info".to_owned(), info.to_string())])
}

fn metrics(s: &Supervisor, id: String) -> Result<pb::SandboxMetricsResponse, Error> {
    s.sandbox(&id)?;
    let data = Some(stats::metrics(s.stats(&id)?));
    let metrics = types_pb::Metric { timestamp: Some(timestamp(Moment::now())), id, data };
    Ok(pb::SandboxMetricsResponse { metrics: Some(metrics) })
}

/// Takes limits: those of the request, or those of a changed specification.
fn update(s: &mut Supervisor, r: pb::UpdateSandboxRequest) -> Result<pb::UpdateSandboxResponse, Error> {
    #[derive(Deserialize)]
    struct Document<'a> {
        #[serde(borrow)]
        linux: Option<Linux<'a>>,
    }
    #[derive(Deserialize)]
    struct Linux<'a> {
        #[serde(borrow)]
        resources: Option<&'a RawValue>,
    }
    s.sandbox(&r.sandbox_id)?;
    if let Some(resources) = r.resources.filter(|any| !any.value.is_empty()) {
        s.update(&r.sandbox_id, &resources.value)?;
    }
    let concerned = r.fields.is_empty() || r.fields.iter().any(|field| field == "spec");
    let spec = r.sandbox.and_then(|sandbox| sandbox.spec).filter(|_| concerned).unwrap_or_default();
    if !spec.value.is_empty() {
        let document: Document<'_> = serde_json::from_slice(&spec.value)
            .map_err(|error| Error::usage(format!("the sandbox's spec is no OCI specification: {error}")))?;
        if let Some(resources) = document.linux.and_then(|linux| linux.resources) {
            s.update(&r.sandbox_id, resources.get().as_bytes())?;
        }
    }
    Ok(pb::UpdateSandboxResponse {})
}
