//! Making a task: bundle, shim, then the shim's Create. What fails leaves nothing behind.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use gantry_metadata::Container;
use gantry_shims::{Answer, BundleSpec, Launch, Shim};
use gantry_ttrpc::pb::containerd::task::v3::{CreateTaskRequest, DeleteRequest, KillRequest};
use gantry_ttrpc::pb::containerd::types as wire;
use gantry_types::{Any, ErrorKind, HasKind, Mount, Scope};
use serde::Deserialize;
use tokio::sync::watch;

use super::checkpoint::{ARCHIVE, Checkpoint};
use super::monitor::name;
use super::table::{Entry, Outcome, Task, TaskKey};
use super::{Create, Tasks};
use crate::mounts::Mounts;
use crate::{Error, Result};

const SIGKILL: u32 = 9;
/// First version of the task API whose shims may hold a sandbox.
const KNOWS_SANDBOXES: i32 = 3;

impl Tasks {
    /// Makes a container's task; gives its process id. The work goes on when the caller goes away; another call for
    /// the same container joins it, and gets its result where the first caller is gone.
    ///
    /// # Errors
    /// `NotFound` without the container, `AlreadyExists` with a task; what shim and runtime say.
    pub async fn create(&self, scope: &Scope, create: Create) -> Result<u32> {
        let container = self.core.db.containers(&scope.namespace).get(&create.container_id)?;
        let key = (scope.namespace.clone(), container.id.to_string());
        let id = key.1.clone();
        match self.table.enter(&key)? {
            Entry::Creating(creation) => creation.outcome(&id).await,
            Entry::Vacant(sender, creation) => {
                let (tasks, scope, claimed) = (self.clone(), scope.clone(), creation.claim());
                tokio::spawn(async move {
                    if let Some(unwanted) = tasks.make(&scope, &container, &create, &key, (sender, claimed)).await {
                        tasks.discard(&unwanted).await;
                    }
                });
                creation.outcome(&id).await
            }
        }
    }

    /// Gives the task back where nobody is left to know of it.
    async fn make(
        &self,
        scope: &Scope,
        container: &Container,
        create: &Create,
        key: &TaskKey,
        (outcome, claimed): (watch::Sender<Option<Outcome>>, Arc<AtomicBool>),
    ) -> Option<Arc<Task>> {
        match self.make_task(scope, container, create).await {
            Ok((task, pid)) => {
                self.table.insert(key, &task);
                self.watch_over(&task);
                outcome.send_replace(Some(Ok(pid)));
                let unwanted = outcome.receiver_count() == 0 && !claimed.load(Ordering::SeqCst);
                unwanted.then_some(task)
            }
            Err(error) => {
                self.table.remove(key);
                outcome.send_replace(Some(Err(Arc::new(error))));
                None
            }
        }
    }

    async fn make_task(&self, scope: &Scope, container: &Container, create: &Create) -> Result<(Arc<Task>, u32)> {
        let id = container.id.as_str();
        let operation = self.core.ops.begin("task create", id, Some(&scope.namespace), scope.deadline);
        if let Some(Checkpoint::Archive(archive)) = &create.checkpoint
            && archive.media_type != ARCHIVE
        {
            return Err(Error::invalid("checkpoint", format!("media type {:?} is not {ARCHIVE}", archive.media_type)));
        }
        operation.stage("asking the snapshotter for the root file system");
        let rootfs = self.rootfs(scope, container, create).await?;
        self.apply_changes(create, &rootfs).await?;
        operation.stage("starting the shim");
        fail::fail_point!("task::before-shim");
        let shim = self.launch(scope, container, create).await?;
        operation.stage("creating the task in the shim");
        fail::fail_point!("task::after-shim");
        let mounts = Mounts::new(&self.core);
        let mut mounted = false;
        let created = match mounts.for_container(scope, id, rootfs).await {
            Ok((rootfs, made)) => {
                mounted = made;
                self.create_in(scope, &shim, create, (rootfs, options_of(container, create))).await
            }
            Err(error) => Err(error),
        };
        match created {
            Ok(pid) => {
                fail::fail_point!("task::after-create");
                Ok((self.enter(shim, pid), pid))
            }
            Err(error) => {
                operation.stage("cleaning up after a failure");
                shim.cleanup().await;
                if mounted {
                    mounts.release(scope, id).await;
                }
                Err(error)
            }
        }
    }

    fn enter(&self, shim: Shim, pid: u32) -> Arc<Task> {
        let task = Task::new(shim);
        task.process("").pid.store(pid, Ordering::SeqCst);
        self.exits.forget(name(&task, ""), pid);
        task
    }

    /// The mounts of the root file system: the client's, else those of the container's snapshot, else none.
    async fn rootfs(&self, scope: &Scope, container: &Container, create: &Create) -> Result<Vec<Mount>> {
        if !create.rootfs.is_empty() || container.snapshot_key.is_empty() {
            return Ok(create.rootfs.clone());
        }
        self.snapshots.mounts(scope, &container.snapshotter, &container.snapshot_key).await
    }

    async fn launch(&self, scope: &Scope, container: &Container, create: &Create) -> Result<Shim> {
        let named =
            if container.runtime.name.is_empty() { &self.core.config.default_runtime } else { &container.runtime.name };
        let runtime = if create.runtime_path.is_empty() { named } else { &create.runtime_path };
        let config = container.spec.as_ref().map(|spec| spec.value.as_slice()).filter(|spec| !spec.is_empty());
        let launch = Launch {
            namespace: &scope.namespace,
            id: container.id.as_str(),
            runtime,
            options: options_of(container, create),
            bundle: BundleSpec { config, gid: config.and_then(mapped_root) },
        };
        match self.shim_to_join(scope, container, create)? {
            Some(answer) => Ok(self.shims.join(launch, &container.sandbox_id, &answer).await?),
            None => Ok(self.shims.launch(launch).await?),
        }
    }

    /// The shim that a client names, or that of the container's sandbox where it holds the tasks of its pod: not ours,
    /// and new enough to know sandboxes.
    fn shim_to_join(&self, scope: &Scope, container: &Container, create: &Create) -> Result<Option<Answer>> {
        if !create.task_api_address.is_empty() {
            let answer = Answer::of_address(&create.task_api_address, create.task_api_version);
            return answer.map(Some).map_err(|reason| Error::invalid("task API address", reason));
        }
        let sandbox = self.sandboxes.shim(&(scope.namespace.clone(), container.sandbox_id.clone()));
        let answer = sandbox.map(|shim| shim.answer().clone());
        Ok(answer.filter(|answer| !answer.is_ours() && answer.version >= KNOWS_SANDBOXES))
    }

    async fn create_in(
        &self,
        scope: &Scope,
        shim: &Shim,
        create: &Create,
        (rootfs, options): (Vec<Mount>, Option<&Any>),
    ) -> Result<u32> {
        let request = CreateTaskRequest {
            id: shim.id().to_owned(),
            bundle: shim.bundle().path().to_string_lossy().into_owned(),
            rootfs: rootfs.into_iter().map(mount).collect(),
            terminal: create.terminal,
            stdin: create.stdin.clone(),
            stdout: create.stdout.clone(),
            stderr: create.stderr.clone(),
            checkpoint: self.images(scope, shim, create).await?,
            parent_checkpoint: String::new(),
            options: options.map(any),
        };
        Ok(shim.calls().create(request).await?.pid)
    }

    /// Ends and removes a task that nobody knows of.
    async fn discard(&self, task: &Arc<Task>) {
        let id = task.shim.id().to_owned();
        tracing::info!(id, "nobody waits for this task any more: it is removed");
        let kill = KillRequest { id: id.clone(), exec_id: String::new(), signal: SIGKILL, all: true };
        if let Err(error) = task.shim.calls().kill(kill).await {
            tracing::debug!(id, %error, "unwanted task not killed");
        }
        let scope = Scope::new(task.shim.namespace().clone());
        let wait = tokio::time::timeout(std::time::Duration::from_secs(10), self.wait(&scope, &id, "")).await;
        if wait.is_err() || self.delete(&scope, &id).await.is_err() {
            tracing::warn!(id, "unwanted task stays");
        }
    }

    /// Deletes at the shim; one that does not know the task any more has deleted it.
    pub(crate) async fn delete_at(&self, task: &Task, exec_id: &str) -> Result<Option<super::Exit>> {
        let request = DeleteRequest { id: task.shim.id().to_owned(), exec_id: exec_id.to_owned() };
        match task.shim.calls().delete(request).await {
            Ok(answer) => Ok(Some(super::Exit {
                pid: answer.pid,
                status: answer.exit_status,
                exited_at: super::exits::time_of(answer.exited_at),
            })),
            Err(error) if error.kind() == ErrorKind::NotFound || error.is_lost() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// Options of this task, else of its container.
fn options_of<'a>(container: &'a Container, create: &'a Create) -> Option<&'a Any> {
    create.options.as_ref().or(container.runtime.options.as_ref())
}

pub(crate) fn any(any: &Any) -> prost_types::Any {
    prost_types::Any { type_url: any.type_url.clone(), value: any.value.clone() }
}

pub(crate) fn mount(mount: Mount) -> wire::Mount {
    wire::Mount { r#type: mount.kind, source: mount.source, target: mount.target, options: mount.options }
}

/// The group on the host that is root's in the container, where it is another one.
pub(crate) fn mapped_root(config: &[u8]) -> Option<u32> {
    #[derive(Deserialize)]
    struct Spec {
        linux: Option<Linux>,
    }
    #[derive(Deserialize)]
    struct Linux {
        #[serde(default, rename = "gidMappings")]
        gid_mappings: Vec<Mapping>,
    }
    #[derive(Deserialize)]
    struct Mapping {
        #[serde(rename = "containerID")]
        container: u32,
        #[serde(rename = "hostID")]
        host: u32,
    }
    let spec: Spec = serde_json::from_slice(config).ok()?;
    let root = spec.linux?.gid_mappings.into_iter().find(|mapping| mapping.container == 0)?;
    (root.host != 0).then_some(root.host)
}

#[cfg(test)]
mod tests {
    use super::mapped_root;

    #[test]
    fn only_a_root_that_is_another_group_opens_the_bundle() {
        let with = |host: u32| {
            format!(r#"{{"linux":{{"gidMappings":[{{"containerID":0,"hostID":{host},"size":10}}]}}}}"#).into_bytes()
        };
        assert_eq!(mapped_root(&with(1000)), Some(1000));
        assert_eq!(mapped_root(&with(0)), None);
        assert_eq!(mapped_root(b"{}"), None);
        assert_eq!(mapped_root(b"no json"), None);
    }
}
