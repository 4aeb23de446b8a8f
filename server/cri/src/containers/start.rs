//! StartContainer: the task, with its log written by the shim.

use std::path::PathBuf;
use std::sync::Arc;

use gantry_api::pb::runtime::v1 as wire;
use gantry_engine::tasks::{Checkpoint, Create, LogTo};

use super::record::Facts;
use super::{CHANGES, Container, IMAGES, record};
use crate::events::Kind;
use crate::{Cri, Error, Result};

/// Exit code of a container that could not be started.
const NOT_STARTED: i32 = 128;

impl Cri {
    /// Starts a container.
    pub(crate) async fn start_container(&self, id: &str) -> Result<()> {
        let container = self.containers.get(id)?;
        let cri = self.clone();
        // Runs to its end when the caller goes away.
        let work = tokio::spawn(async move { cri.launch(&container).await });
        work.await.map_err(|_| Error::Stopped { what: "starting a container" })?
    }

    async fn launch(&self, container: &Arc<Container>) -> Result<()> {
        let _one = container.gate.lock().await;
        let state = container.state();
        if state != wire::ContainerState::ContainerCreated {
            let name = state.as_str_name();
            let text =
                format!("failed to set starting state for container {:?}: container is in {name} state", container.id);
            return Err(Error::State(text));
        }
        let pod = self.pods.get(&container.pod)?;
        if !pod.is_ready() {
            return Err(Error::State(format!("sandbox container {:?} is not running", pod.id)));
        }
        let hold = self.nri.hold().await;
        let started = match self.nri_start(container).await {
            Ok(()) => self.run(container).await,
            Err(error) => Err(error),
        };
        match started {
            Ok(pid) => {
                let started_at = crate::now();
                self.set_facts(container, |facts| {
                    facts.started_at = started_at;
                    facts.pid = pid;
                })
                .await?;
                if container.facts().restores {
                    self.forget_checkpoint(&container.id).await;
                }
                // Told before the end can be.
                self.events.tell(self, Kind::Started, &container.id, &pod).await;
                self.watch_container(container);
                self.nri_started(container).await;
                Ok(())
            }
            Err(error) => {
                drop(hold);
                self.remove_task(&container.id).await;
                let message = error.to_string();
                self.set_facts(container, |facts| {
                    facts.finished_at = crate::now();
                    facts.exit_code = NOT_STARTED;
                    facts.reason = "StartError".to_owned();
                    facts.message = message;
                })
                .await?;
                self.events.tell(self, Kind::Stopped, &container.id, &pod).await;
                self.nri_stopped(container).await;
                Err(error)
            }
        }
    }

    async fn run(&self, container: &Container) -> Result<u32> {
        let (config, facts) = (container.config(), container.facts());
        let path = (!facts.log_path.is_empty()).then(|| PathBuf::from(&facts.log_path));
        if let Some(parent) = path.as_deref().and_then(std::path::Path::parent) {
            std::fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
        }
        let record = self.engine.containers.get(&self.scope, &container.id).await?;
        let limit = self.config.runtime.max_container_log_line_size;
        let to = LogTo {
            path,
            max_line: usize::try_from(limit).ok().filter(|limit| *limit > 0).unwrap_or(usize::MAX),
            stdin: config.stdin,
            terminal: config.tty,
        };
        let io = self.engine.tasks.log_io(&record.runtime.name, record.runtime.options.as_ref(), &to).await?;
        let create = Create {
            container_id: container.id.clone(),
            stdin: io.stdin,
            stdout: io.stdout,
            stderr: io.stderr,
            terminal: config.tty,
            checkpoint: facts.restores.then(|| {
                let from = self.checkpoint_of(&container.id);
                Checkpoint::Directory { images: from.join(IMAGES), changes: Some(from.join(CHANGES)) }
            }),
            ..Create::default()
        };
        let failed = Error::at("failed to create containerd task");
        self.engine.tasks.create(&self.scope, create).await.map_err(failed)?;
        let failed = Error::at(format!("failed to start containerd task {:?}", container.id));
        self.engine.tasks.start(&self.scope, &container.id, "").await.map_err(failed)
    }

    /// Changes a container's facts, on the disk first.
    pub(crate) async fn set_facts(&self, container: &Container, change: impl FnOnce(&mut Facts)) -> Result<()> {
        let mut facts = container.facts();
        change(&mut facts);
        let mut all = self.engine.containers.get(&self.scope, &container.id).await?;
        all.extensions.insert(record::FACTS.to_owned(), record::facts_any(&facts)?);
        let field = format!("extensions.{}", record::FACTS);
        self.engine.containers.update(&self.scope, all, &[field]).await?;
        container.facts.send_replace(facts);
        Ok(())
    }

    /// Removes whatever task a container has; failures are told in the log.
    pub(super) async fn remove_task(&self, id: &str) {
        self.engine.tasks.give_up_if_silent(&self.scope, id).await;
        let killed = self.engine.tasks.kill(&self.scope, id, "", 9, true).await;
        if killed.is_ok() {
            let waiting = self.engine.tasks.wait(&self.scope, id, "");
            let _ = tokio::time::timeout(std::time::Duration::from_secs(10), waiting).await;
        }
        if let Err(error) = crate::pods::absent(self.engine.tasks.delete(&self.scope, id).await.map(drop)) {
            tracing::warn!(id, %error, "task not removed");
        }
    }
}
