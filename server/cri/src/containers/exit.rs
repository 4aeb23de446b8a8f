//! The end of a container: recorded first, then its task goes.

use std::sync::Arc;
use std::time::Duration;

use gantry_engine::tasks::Exit;

use super::Container;
use crate::events::Kind;
use crate::{Cri, Error};

/// Exit code of a container killed by the kernel for want of memory.
const KILLED: i32 = 137;
/// How long to wait before asking again how a container ended, where its shim could not say.
const AGAIN: Duration = Duration::from_secs(2);

impl Cri {
    /// Waits for a container's end and records it, once.
    pub(super) fn watch_container(&self, container: &Arc<Container>) {
        let (cri, container) = (self.clone(), Arc::clone(container));
        tokio::spawn(async move {
            loop {
                let waiting = cri.engine.tasks.wait(&cri.scope, &container.id, "");
                let Some(waited) = cri.stopping.run_until_cancelled(waiting).await else { return };
                match waited {
                    Ok(exit) => return cri.record_exit(&container, exit).await,
                    Err(error) if gantry_types::HasKind::kind(&error) == gantry_types::ErrorKind::NotFound => {
                        return cri.record_exit(&container, unknown_exit()).await;
                    }
                    Err(error) => {
                        tracing::warn!(id = container.id, %error, "the end of a container cannot be waited for");
                        tokio::time::sleep(AGAIN).await;
                    }
                }
            }
        });
    }

    /// Records how a container ended, and removes its task.
    pub(super) async fn record_exit(&self, container: &Arc<Container>, exit: Exit) {
        let code = i32::try_from(exit.status).unwrap_or(i32::MAX);
        let starved = code == KILLED && self.cgroups.was_starved(self, &container.id).await;
        let recorded = self
            .set_facts(container, |facts| {
                facts.pid = 0;
                facts.finished_at = crate::nanoseconds(exit.exited_at);
                facts.exit_code = code;
                facts.reason = reason(code, starved).to_owned();
            })
            .await;
        if let Err(error) = recorded {
            tracing::error!(id = container.id, %error, "the end of a container could not be recorded");
            container.facts.send_modify(|facts| {
                facts.pid = 0;
                facts.finished_at = crate::nanoseconds(exit.exited_at);
                facts.exit_code = code;
                facts.reason = reason(code, starved).to_owned();
            });
        }
        if let Ok(pod) = self.pods.get(&container.pod) {
            self.events.tell(self, Kind::Stopped, &container.id, &pod).await;
        }
        self.nri_stopped(container).await;
        self.remove_task(&container.id).await;
    }

    /// Waits until a container's end is recorded.
    pub(super) async fn ended(&self, container: &Container, limit: Duration) -> Result<(), Error> {
        let mut facts = container.facts.subscribe();
        let over = facts.wait_for(|facts| facts.finished_at != 0);
        match tokio::time::timeout(limit, over).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Error::Deadline { what: format!("end of container {:?}", container.id), limit }),
        }
    }
}

/// The end of a container of which nobody knows more.
pub(super) fn unknown_exit() -> Exit {
    Exit { pid: 0, status: 255, exited_at: std::time::SystemTime::now() }
}

/// Why a container ended, in the word that Kubernetes shows.
fn reason(code: i32, starved: bool) -> &'static str {
    match code {
        0 => "Completed",
        KILLED if starved => "OOMKilled",
        _ => "Error",
    }
}
