//! The restart monitor: keeps the tasks of containers as the labels `containerd.io/restart.*` ask for, like containerd's.
//!
//! A container with the label `containerd.io/restart.status` is looked at again and again: `running` starts its task anew
//! where the policy says so, `stopped` ends it. A container that ends soon after each start waits longer and longer.
//!
//! Clients copy the labels of an image to its containers. An image must not choose what runs on the host or which of its
//! files are written: what a label says counts only where the image does not say the same (see [`origin`]). And an output
//! is a file or a program by an absolute path, nothing else.

pub(crate) mod origin;
mod rules;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use futures::future::join_all;
use gantry_types::{ErrorKind, HasKind, Labels, Namespace, Scope};

use crate::containers::{Container, ContainerView, Containers};
use crate::core::Core;
use crate::tasks::{Create, Process, Tasks};
use crate::{Error, Result};
use rules::{Change, Wish, decide};

#[cfg(feature = "fuzzing")]
pub(crate) fn output(uri: &str) -> Option<String> {
    rules::output(uri).ok()
}

/// How long a killed task may take to end.
const KILL_PATIENCE: Duration = Duration::from_secs(30);

/// How often a failing container is tried at least.
const LONGEST_BACK_OFF: Duration = Duration::from_secs(300);

const SIGKILL: u32 = 9;

/// See the module.
pub(crate) struct Monitor {
    core: Arc<Core>,
    containers: Containers,
    tasks: Tasks,
    opened: SystemTime,
    attempts: Mutex<HashMap<(Namespace, String), Attempt>>,
}

/// The last start of a container by the monitor.
#[derive(Clone, Copy, Debug)]
struct Attempt {
    at: Instant,
    /// How long the next one waits after it.
    back_off: Duration,
}

impl Monitor {
    pub(crate) fn new(core: &Arc<Core>, containers: Containers, tasks: Tasks) -> Monitor {
        Monitor { core: Arc::clone(core), containers, tasks, opened: SystemTime::now(), attempts: Mutex::default() }
    }

    /// Looks again and again until the engine closes.
    pub(crate) async fn serve(self) {
        self.forget_stops().await;
        let interval = match self.core.config.restart_interval {
            Duration::ZERO => Duration::from_secs(10),
            interval => interval,
        };
        loop {
            tokio::select! {
                () = self.core.stop.cancelled() => return,
                () = self.look(interval) => {}
            }
            tokio::select! {
                () = self.core.stop.cancelled() => return,
                () = tokio::time::sleep(interval) => {}
            }
        }
    }

    /// `always` means that a stop lasts no longer than the daemon.
    async fn forget_stops(&self) {
        for (scope, container) in self.watched() {
            let wish = self.wish(&scope, &container);
            if wish.is_always() && wish.explicitly_stopped {
                self.set(&scope, &container, rules::EXPLICITLY_STOPPED, "false").await;
            }
        }
    }

    async fn look(&self, interval: Duration) {
        let watched = self.watched();
        self.attempts().retain(|(namespace, id), _| {
            watched.iter().any(|(scope, container)| scope.namespace == *namespace && container.id.as_str() == id)
        });
        join_all(watched.iter().map(|(scope, container)| self.keep(scope, container, interval))).await;
    }

    /// The containers that somebody wants watched.
    fn watched(&self) -> Vec<(Scope, Container)> {
        let namespaces = self.core.db.namespaces().scan().filter_map(std::result::Result::ok);
        namespaces.flat_map(|namespace| self.watched_in(&Scope::new(namespace.name))).collect()
    }

    fn watched_in(&self, scope: &Scope) -> Vec<(Scope, Container)> {
        let mut listing = self.containers.listing(scope, gantry_types::Filter::default());
        let mut ids = Vec::new();
        // Seen as they are stored: of thousands, most are not watched.
        let watched = |container: &ContainerView<'_>| container.labels().iter().any(|(key, _)| *key == rules::STATUS);
        while let Some(id) = listing.see(|container| watched(&container).then(|| container.id.to_owned())) {
            ids.extend(id);
        }
        let records = self.core.db.containers(&scope.namespace);
        ids.iter().filter_map(|id| Some((scope.clone(), records.get(id).ok()?))).collect()
    }

    async fn keep(&self, scope: &Scope, container: &Container, interval: Duration) {
        let id = container.id.as_str();
        let wish = self.wish(scope, container);
        let task = match self.tasks.get(scope, id, "").await {
            Ok(task) => Some(task),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return tracing::warn!(id, %error, "restart monitor cannot see the task"),
        };
        // Who has just made a container is about to make and start its task.
        let is_new = container.created > self.opened
            && container.created.elapsed().is_ok_and(|age| age < interval.max(Duration::from_secs(1)));
        let change = decide(&wish, task.as_ref(), is_new);
        let done = match change {
            Change::None => return,
            Change::Stop => self.end(scope, id).await,
            Change::Start if !self.is_due(scope, id, task.as_ref(), interval) => return,
            Change::Start => self.start(scope, container, &wish).await,
        };
        if let Err(error) = done {
            tracing::warn!(id, namespace = %scope.namespace, ?change, %error, "restart monitor failed");
        }
    }

    /// Notes the attempt where it may be made now.
    fn is_due(&self, scope: &Scope, id: &str, task: Option<&Process>, interval: Duration) -> bool {
        let key = (scope.namespace.clone(), id.to_owned());
        let mut attempts = self.attempts();
        let ran = |last: &Attempt| match task.and_then(|task| task.exited_at) {
            Some(exited) => exited.elapsed().map_or(Duration::ZERO, |ago| last.at.elapsed().saturating_sub(ago)),
            None => last.at.elapsed(),
        };
        let back_off = match attempts.get(&key) {
            Some(last) if last.at.elapsed() < last.back_off => return false,
            Some(last) if ran(last) < last.back_off => (last.back_off * 2).min(LONGEST_BACK_OFF),
            _ => interval.min(LONGEST_BACK_OFF),
        };
        attempts.insert(key, Attempt { at: Instant::now(), back_off });
        true
    }

    async fn start(&self, scope: &Scope, container: &Container, wish: &Wish) -> Result<()> {
        let id = container.id.as_str();
        let deadline = Instant::now() + KILL_PATIENCE;
        let operation = self.core.ops.begin("restart", id, Some(&scope.namespace), Some(deadline));
        operation.stage("counting");
        self.set(scope, container, rules::COUNT, &(wish.count + 1).to_string()).await;
        operation.stage("ending what is left of the task");
        self.end(scope, id).await?;
        operation.stage("making the task");
        self.tasks.create(scope, wish.create(container)).await?;
        operation.stage("starting the task");
        if let Err(error) = self.tasks.start(scope, id, "").await {
            self.end(scope, id).await?;
            return Err(error);
        }
        tracing::info!(id, namespace = %scope.namespace, count = wish.count + 1, "restarted");
        Ok(())
    }

    /// Kills and removes the task where there is one.
    async fn end(&self, scope: &Scope, id: &str) -> Result<()> {
        match self.tasks.get(scope, id, "").await {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
            Ok(task) if task.status == crate::tasks::Status::Stopped => {}
            Ok(_) => {
                // One that ended by itself meanwhile cannot be killed, and one that was never started ends without.
                if let Err(error) = self.tasks.kill(scope, id, "", SIGKILL, true).await {
                    tracing::debug!(id, %error, "not killed");
                } else {
                    let ended = tokio::time::timeout(KILL_PATIENCE, self.tasks.wait(scope, id, "")).await;
                    ended.map_err(|_| Error::Stopped { what: "waiting for a killed task" })??;
                }
            }
        }
        match self.tasks.delete(scope, id).await {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    async fn set(&self, scope: &Scope, container: &Container, key: &str, value: &str) {
        let labels = Labels::from([(key.to_owned(), value.to_owned())]);
        let changed = Container { labels, ..container.clone() };
        if let Err(error) = self.containers.update(scope, changed, &[format!("labels.{key}")]).await {
            tracing::warn!(id = container.id.as_str(), key, %error, "restart monitor cannot write a label");
        }
    }

    /// What the container's labels ask for, without those that came from its image.
    fn wish(&self, scope: &Scope, container: &Container) -> Wish {
        let images = origin::of(&self.core.db, &scope.namespace, container.id.as_str());
        let (wish, refused) = Wish::of(&images.without(&container.labels));
        for reason in refused {
            tracing::warn!(id = container.id.as_str(), namespace = %scope.namespace, reason, "restart label not followed");
        }
        wish
    }

    fn attempts(&self) -> std::sync::MutexGuard<'_, HashMap<(Namespace, String), Attempt>> {
        self.attempts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wish {
    /// The task to make.
    fn create(&self, container: &Container) -> Create {
        let terminal = container.spec.as_ref().is_some_and(|spec| rules::has_terminal(&spec.value));
        let output = self.output.clone().unwrap_or_default();
        Create {
            container_id: container.id.to_string(),
            stderr: if terminal { String::new() } else { output.clone() },
            stdout: output,
            terminal,
            ..Create::default()
        }
    }
}
