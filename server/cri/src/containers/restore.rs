//! After a start: containers are taken up from their records, and what ended meanwhile is recorded.

use std::sync::Arc;
use std::time::Duration;

use gantry_api::pb::runtime::v1::ContainerState;
use gantry_engine::containers::Container as Record;
use gantry_engine::tasks::Status;
use gantry_types::Filter;

use super::create::container_name;
use super::exit::unknown_exit;
use super::{Container, record};
use crate::{Cri, now};

/// How long the shim of a container may take to say what became of it.
const ANSWER: Duration = Duration::from_secs(1);

impl Cri {
    /// Takes up all containers.
    pub(crate) async fn restore_containers(&self) {
        let records = self.engine.containers.list(&self.scope, &Filter::default()).await.unwrap_or_default();
        // All at once: a silent shim holds up none but its own container.
        futures::future::join_all(records.into_iter().map(|record| self.restore_container(record))).await;
    }

    async fn restore_container(&self, of: Record) {
        let id = of.id.to_string();
        if record::is_half_made(&of) {
            tracing::warn!(id, "a container that was not made to the end is removed");
            return self.undo_container(&id, &of.snapshotter).await;
        }
        let Some((config, facts)) = record::read(&of) else { return };
        let Ok(pod) = self.pods.get(&of.sandbox_id) else {
            tracing::warn!(id, pod = of.sandbox_id, "a container of a pod that is gone is removed");
            let cri = self.clone();
            tokio::spawn(async move {
                cri.remove_task(&id).await;
                cri.undo_container(&id, &of.snapshotter).await;
            });
            return;
        };
        let name = container_name(&config, &pod);
        let container = Container::new(&id, &pod.id, config, facts, crate::nanoseconds(of.created));
        self.containers.insert(&container);
        self.container_names.occupy(&name, &id);
        self.follow_task(&container).await;
        if container.facts().held {
            let cri = self.clone();
            tokio::spawn(async move {
                // The daemon ended while its pod was checkpointed.
                if let Err(error) = cri.thaw(&container).await {
                    tracing::warn!(id = container.id, %error, "a container stays frozen");
                }
            });
        }
    }

    /// Takes up a container of which the shim does not answer.
    fn follow_silent(&self, container: &Arc<Container>) {
        tracing::warn!(id = container.id, "a container's shim does not answer");
        match container.state() {
            ContainerState::ContainerRunning | ContainerState::ContainerUnknown => {
                let pid = self.engine.tasks.pid_of(&self.scope, &container.id).unwrap_or_default();
                container.facts.send_modify(|facts| {
                    facts.pid = pid;
                    facts.unknown = true;
                });
                self.watch_container(container);
            }
            // It has no task that counts.
            _ => self.remove_task_later(container),
        }
    }

    /// Removes a container's task without holding up the start; the container has no other change meanwhile.
    fn remove_task_later(&self, container: &Arc<Container>) {
        let (cri, container) = (self.clone(), Arc::clone(container));
        tokio::spawn(async move {
            let _one = container.gate.lock().await;
            cri.remove_task(&container.id).await;
        });
    }

    /// Learns from the task what became of a container.
    async fn follow_task(&self, container: &Arc<Container>) {
        let asking = tokio::time::timeout(ANSWER, self.engine.tasks.get(&self.scope, &container.id, ""));
        let Ok(task) = asking.await else { return self.follow_silent(container) };
        match (container.state(), task) {
            // The second: the start was cut off, and nobody was told of it.
            (ContainerState::ContainerExited, Ok(_)) => self.remove_task_later(container),
            (ContainerState::ContainerCreated, Ok(task)) if task.status == Status::Created => {
                self.remove_task_later(container);
            }
            (ContainerState::ContainerCreated, Err(_)) | (ContainerState::ContainerExited, Err(_)) => {}
            (state, Ok(task)) => {
                if state == ContainerState::ContainerCreated
                    && let Err(error) = self.set_facts(container, |facts| facts.started_at = now()).await
                {
                    tracing::warn!(id = container.id, %error, "the start of a container could not be recorded");
                }
                let unknown = task.status == Status::Unknown;
                container.facts.send_modify(|facts| {
                    facts.pid = task.pid;
                    facts.unknown = unknown;
                });
                self.watch_container(container);
            }
            (_, Err(_)) => {
                let exit = self.engine.tasks.exit_of(&self.scope, &container.id, "").unwrap_or_else(unknown_exit);
                self.record_exit(container, exit).await;
            }
        }
    }
}
