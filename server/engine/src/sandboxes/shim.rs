//! Our own controller: each sandbox is held by a shim. The shim is the truth; what is kept here is which there are, and
//! how they ended.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use gantry_shims::{BundleSpec, Cleanup, FoundSandbox, Launch, RestoredSandbox, Shim};
use gantry_ttrpc::pb::containerd::runtime::sandbox::v1 as wire;
use gantry_ttrpc::pb::containerd::types;
use gantry_types::{Any, ErrorKind, HasKind, Platform, Scope};
use tokio::sync::watch;

use super::{CreateSandbox, Instance, NOT_READY, READY, Sandbox, SandboxController, SandboxExit, SandboxStatus};
use crate::keyed::Keyed;
use crate::restore::Repairs;
use crate::tasks::{Metric, Task, TaskKey, Tasks, any, mapped_root, mount_to_wire, time_of};
use crate::{Error, Result};

/// How long the number of a sandbox's process is waited for: nothing but what is shown depends on it.
const ASKING: Duration = Duration::from_secs(1);

/// The sandboxes of all namespaces that have, or had, a shim.
#[derive(Clone, Default)]
pub(crate) struct SandboxShims(Arc<Mutex<HashMap<TaskKey, Arc<Held>>>>);

/// A sandbox.
pub(crate) struct Held {
    /// None where it was gone when the engine was opened.
    shim: Option<Shim>,
    exit: watch::Sender<Option<SandboxExit>>,
    /// The shim is gone, or is told to go: its going is no loss.
    retiring: AtomicBool,
    /// One change at a time.
    turn: tokio::sync::Mutex<()>,
}

impl SandboxShims {
    /// The shim of a sandbox, while it has one.
    pub(crate) fn shim(&self, key: &TaskKey) -> Option<Shim> {
        self.get(key).and_then(|held| held.live().cloned())
    }

    fn get(&self, key: &TaskKey) -> Option<Arc<Held>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    fn insert(&self, key: TaskKey, held: &Arc<Held>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key, Arc::clone(held));
    }

    fn remove(&self, key: &TaskKey) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

impl Held {
    fn new(shim: Option<Shim>) -> Arc<Held> {
        let retiring = AtomicBool::new(shim.is_none());
        Arc::new(Held { shim, exit: watch::Sender::new(None), retiring, turn: tokio::sync::Mutex::default() })
    }

    fn live(&self) -> Option<&Shim> {
        self.shim.as_ref().filter(|_| !self.retiring.load(Ordering::SeqCst))
    }

    /// Records the end, unless it is recorded.
    fn ended(&self, exit: SandboxExit) {
        self.exit.send_if_modified(|recorded| {
            let first = recorded.is_none();
            recorded.get_or_insert(exit);
            first
        });
    }
}

/// The controller. With `visible`, its sandboxes show among the tasks.
pub(crate) struct ShimController {
    tasks: Tasks,
    visible: bool,
    creating: Keyed,
}

impl ShimController {
    pub(crate) fn new(tasks: &Tasks, visible: bool) -> ShimController {
        ShimController { tasks: tasks.clone(), visible, creating: Keyed::default() }
    }

    fn find(&self, scope: &Scope, id: &str) -> Result<Arc<Held>> {
        let held = self.tasks.sandboxes.get(&(scope.namespace.clone(), id.to_owned()));
        held.ok_or_else(|| Error::not_found("sandbox", id))
    }

    /// A sandbox that can be asked.
    fn shim(&self, scope: &Scope, id: &str) -> Result<Shim> {
        let held = self.find(scope, id)?;
        held.live().cloned().ok_or_else(|| ended(id))
    }

    async fn launch(&self, scope: &Scope, sandbox: &Sandbox) -> Result<Shim> {
        if sandbox.runtime.name.is_empty() {
            return Err(Error::invalid("sandbox", "its runtime's name is missing"));
        }
        let config = sandbox.spec.as_ref().map(|spec| spec.value.as_slice()).filter(|spec| !spec.is_empty());
        let launch = Launch {
            namespace: &scope.namespace,
            id: sandbox.id.as_str(),
            runtime: &sandbox.runtime.name,
            options: sandbox.runtime.options.as_ref().filter(|options| !options.value.is_empty()),
            bundle: BundleSpec { config, gid: config.and_then(mapped_root) },
        };
        Ok(self.tasks.shims.launch_sandbox(launch).await?)
    }

    async fn retire(&self, scope: &Scope, held: &Held, shim: &Shim) {
        held.retiring.store(true, Ordering::SeqCst);
        let known = held.exit.borrow().is_some();
        let cleanup = if known { shim.end_ended_sandbox().await } else { Some(shim.end_sandbox().await) };
        fail::fail_point!("sandbox::after-shutdown");
        if let Some(cleanup) = cleanup {
            held.ended(exit_of(cleanup));
        }
        let key = (scope.namespace.clone(), shim.id().to_owned());
        self.tasks.hide_sandbox(&key);
        self.tasks.sandboxes.remove(&key);
    }
}

#[async_trait]
impl SandboxController for ShimController {
    async fn create(&self, scope: &Scope, sandbox: &Sandbox, create: CreateSandbox) -> Result<()> {
        let id = sandbox.id.to_string();
        let key = (scope.namespace.clone(), id.clone());
        let _turn = self.creating.lock(&format!("{}/{id}", key.0)).await;
        let taken = self.visible && self.tasks.table.get(&key).is_ok();
        if taken || self.tasks.sandboxes.get(&key).is_some_and(|held| held.live().is_some()) {
            return Err(Error::AlreadyExists { what: "sandbox", name: id });
        }
        fail::fail_point!("sandbox::before-shim");
        let shim = self.launch(scope, sandbox).await?;
        fail::fail_point!("sandbox::after-shim");
        let request = wire::CreateSandboxRequest {
            sandbox_id: id,
            bundle_path: shim.bundle().path().to_string_lossy().into_owned(),
            rootfs: create.rootfs.into_iter().map(mount_to_wire).collect(),
            options: create.options.as_ref().map(any),
            netns_path: create.netns_path,
            annotations: create.annotations,
        };
        if let Err(error) = shim.sandbox().create(request).await {
            shim.end_sandbox().await;
            return Err(error.into());
        }
        fail::fail_point!("sandbox::after-create");
        take_up(&self.tasks, shim, self.visible).await;
        Ok(())
    }

    async fn start(&self, scope: &Scope, id: &str) -> Result<Instance> {
        let held = self.find(scope, id)?;
        let _turn = held.turn.lock().await;
        let shim = held.live().ok_or_else(|| ended(id))?;
        match shim.sandbox().start(wire::StartSandboxRequest { sandbox_id: id.to_owned() }).await {
            Ok(answer) => {
                fail::fail_point!("sandbox::after-start");
                Ok(instance(shim, answer))
            }
            Err(error) => {
                // A second start must not cost the sandbox.
                let status = shim.sandbox().status(status_request(id, false)).await;
                if !status.is_ok_and(|status| status.state == READY) {
                    self.retire(scope, &held, shim).await;
                }
                Err(error.into())
            }
        }
    }

    async fn platform(&self, scope: &Scope, id: &str) -> Result<Platform> {
        let request = wire::PlatformRequest { sandbox_id: id.to_owned() };
        let platform = self.shim(scope, id)?.sandbox().platform(request).await?.platform;
        let host = Platform::host();
        Ok(platform.map_or(host.clone(), |p| Platform {
            os: p.os,
            architecture: p.architecture,
            variant: p.variant,
            ..host
        }))
    }

    async fn stop(&self, scope: &Scope, id: &str, timeout: Option<Duration>) -> Result<()> {
        let Ok(held) = self.find(scope, id) else { return Ok(()) };
        let Some(shim) = held.live() else { return Ok(()) };
        let stopped = shim.sandbox().stop(timeout).await;
        fail::fail_point!("sandbox::after-stop");
        match stopped {
            Err(error) if error.is_lost() || error.kind() == ErrorKind::NotFound => Ok(()),
            stopped => Ok(stopped?),
        }
    }

    async fn wait(&self, scope: &Scope, id: &str) -> Result<SandboxExit> {
        let held = self.find(scope, id)?;
        let mut exit = held.exit.subscribe();
        let ended = exit.wait_for(Option::is_some).await.map_err(|_| Error::Stopped { what: "sandbox wait" })?;
        (*ended).ok_or(Error::Stopped { what: "sandbox wait" })
    }

    /// As containerd, one that is not there has simply ended.
    async fn status(&self, scope: &Scope, id: &str, verbose: bool) -> Result<SandboxStatus> {
        let gone = |exit: Option<SandboxExit>| SandboxStatus {
            state: exit.map_or_else(String::new, |_| NOT_READY.to_owned()),
            exited_at: Some(exit.map_or_else(SystemTime::now, |exit| exit.exited_at)),
            ..SandboxStatus::default()
        };
        let Ok(held) = self.find(scope, id) else { return Ok(gone(None)) };
        let Some(shim) = held.live() else { return Ok(gone(*held.exit.borrow())) };
        let status = shim.sandbox().status(status_request(id, verbose)).await?;
        Ok(SandboxStatus {
            pid: status.pid,
            state: status.state,
            info: status.info,
            created_at: time(status.created_at),
            exited_at: time(status.exited_at),
            extra: status.extra.map(|any| Any { type_url: any.type_url, value: any.value }),
            address: address(shim),
            version: shim.calls().version().unsigned_abs(),
        })
    }

    async fn shutdown(&self, scope: &Scope, id: &str) -> Result<()> {
        let held = self.find(scope, id)?;
        let _turn = held.turn.lock().await;
        match held.live() {
            Some(shim) => self.retire(scope, &held, shim).await,
            None => {
                let key = (scope.namespace.clone(), id.to_owned());
                self.tasks.hide_sandbox(&key);
                self.tasks.sandboxes.remove(&key);
            }
        }
        Ok(())
    }

    async fn metrics(&self, scope: &Scope, id: &str) -> Result<Option<Metric>> {
        let request = wire::SandboxMetricsRequest { sandbox_id: id.to_owned() };
        let metrics = self.shim(scope, id)?.sandbox().metrics(request).await?.metrics;
        Ok(metrics.and_then(|metric| {
            let data = metric.data.map(|any| Any { type_url: any.type_url, value: any.value })?;
            Some(Metric { timestamp: time_of(metric.timestamp), id: metric.id, data })
        }))
    }

    async fn update(&self, scope: &Scope, sandbox: &Sandbox, fields: &[String]) -> Result<()> {
        let id = sandbox.id.to_string();
        let shim = self.shim(scope, &id)?;
        let record = types::Sandbox {
            sandbox_id: id.clone(),
            runtime: Some(types::sandbox::Runtime {
                name: sandbox.runtime.name.clone(),
                options: sandbox.runtime.options.as_ref().map(any),
            }),
            spec: sandbox.spec.as_ref().map(any),
            labels: sandbox.labels.clone(),
            extensions: sandbox.extensions.iter().map(|(name, extension)| (name.clone(), any(extension))).collect(),
            sandboxer: sandbox.sandboxer.clone(),
            created_at: Some(sandbox.created.into()),
            updated_at: Some(sandbox.updated.into()),
        };
        let request = wire::UpdateSandboxRequest {
            sandbox_id: id,
            sandbox: Some(record),
            fields: fields.to_vec(),
            ..wire::UpdateSandboxRequest::default()
        };
        shim.sandbox().update(request).await?;
        Ok(())
    }
}

/// Finds the sandboxes again; what is not there any more has ended.
pub(crate) async fn restore(tasks: &Tasks, repairs: &mut Repairs) {
    let mut there = Vec::new();
    for RestoredSandbox { namespace, id, found } in tasks.shims.restore_sandboxes().await {
        let full = format!("sandbox {namespace}/{id}");
        match found {
            FoundSandbox::There(shim) => {
                let record = tasks.core.db.sandboxes(&namespace).get(&id);
                let visible = record.is_ok_and(|record| record.sandboxer == super::PODSANDBOX);
                there.push(take_up(tasks, shim, visible));
            }
            FoundSandbox::Gone(cleanup) => {
                let held = Held::new(None);
                held.ended(exit_of(cleanup));
                tasks.sandboxes.insert((namespace, id), &held);
                repairs.note(full, "its shim was gone; cleaned up");
            }
            FoundSandbox::Leaked => repairs.note(full, "removed: it was not made whole"),
        }
    }
    // All at once: a silent one holds up none but itself.
    futures::future::join_all(there).await;
}

/// Takes a sandbox's shim in, and watches over it.
async fn take_up(tasks: &Tasks, shim: Shim, visible: bool) {
    let key = (shim.namespace().clone(), shim.id().to_owned());
    let held = Held::new(Some(shim.clone()));
    tasks.sandboxes.insert(key.clone(), &held);
    if visible {
        let asking = tokio::time::timeout(ASKING, async { shim.sandbox().status(status_request(&key.1, false)).await });
        let pid = asking.await.ok().and_then(|answer| answer.ok()).map_or(0, |status| status.pid);
        tasks.show_sandbox(&key, Task::of_sandbox(shim.clone()), pid);
    }
    let tasks = tasks.clone();
    tokio::spawn(async move {
        let watching = watch_over(&tasks, &held, &shim);
        tasks.core.stop.run_until_cancelled(watching).await;
    });
}

/// Waits for the sandbox's end, then for that of its shim, which is a loss unless it was told to go.
async fn watch_over(tasks: &Tasks, held: &Held, shim: &Shim) {
    if let Ok(answer) = shim.sandbox().wait().await {
        held.ended(SandboxExit { status: answer.exit_status, exited_at: time_of(answer.exited_at) });
    }
    shim.closed().await;
    let _turn = held.turn.lock().await;
    if held.retiring.swap(true, Ordering::SeqCst) {
        return;
    }
    let (namespace, id) = (shim.namespace(), shim.id());
    tracing::warn!(%namespace, id, "shim of a sandbox was lost");
    let operation = tasks.core.ops.begin("sandbox cleanup", id, Some(namespace), None);
    operation.stage("running the shim's delete");
    held.ended(exit_of(shim.cleanup().await));
    tasks.hide_sandbox(&(namespace.clone(), id.to_owned()));
}

fn instance(shim: &Shim, answer: wire::StartSandboxResponse) -> Instance {
    Instance {
        pid: answer.pid,
        created_at: time(answer.created_at),
        labels: BTreeMap::new(),
        address: address(shim),
        version: shim.calls().version().unsigned_abs(),
        spec: answer.spec.map(|any| Any { type_url: any.type_url, value: any.value }),
    }
}

fn exit_of(cleanup: Cleanup) -> SandboxExit {
    SandboxExit { status: cleanup.status, exited_at: cleanup.exited_at }
}

fn ended(id: &str) -> Error {
    Error::Precondition {
        what: "sandbox",
        name: id.to_owned(),
        reason: "it has ended, and can only be shut down".into(),
    }
}

fn status_request(id: &str, verbose: bool) -> wire::SandboxStatusRequest {
    wire::SandboxStatusRequest { sandbox_id: id.to_owned(), verbose }
}

/// Our own shim holds no containers but its own: theirs come with shims of their own.
fn address(shim: &Shim) -> String {
    if shim.answer().is_ours() { String::new() } else { shim.answer().to_address() }
}

fn time(timestamp: Option<prost_types::Timestamp>) -> Option<SystemTime> {
    timestamp.and_then(|timestamp| timestamp.try_into().ok())
}
