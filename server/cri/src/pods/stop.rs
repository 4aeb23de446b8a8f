//! StopPodSandbox and RemovePodSandbox: both may be asked for again and again.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use gantry_types::{ErrorKind, HasKind};

use super::{Pod, SANDBOXER};
use crate::events::Kind;
use crate::{Cri, Error, Result};

impl Cri {
    /// Stops a pod's containers, disconnects it and ends what holds its namespaces; it stays listed. One that is not
    /// there is no error.
    pub(crate) async fn stop_pod(&self, id: &str) -> Result<()> {
        let Some(pod) = found(self.pods.get(id))? else { return Ok(()) };
        let cri = self.clone();
        // Runs to its end when the caller goes away.
        let work = tokio::spawn(async move { cri.halt_pod(&pod).await });
        work.await.map_err(|_| Error::Stopped { what: "stopping a pod" })?
    }

    pub(super) async fn halt_pod(&self, pod: &Arc<Pod>) -> Result<()> {
        let _one = pod.gate.lock().await;
        let operation = self.engine.ops.begin("pod stop", pod.id.clone(), Some(&self.scope.namespace), None);
        operation.stage("killing its containers");
        let containers = self.containers.of_pod(&pod.id);
        let halted = join_all(containers.iter().map(|container| self.halt_container(container, Duration::ZERO))).await;
        halted.into_iter().collect::<Result<()>>()?;
        operation.stage("telling NRI plugins");
        for container in &containers {
            self.nri_stopped(container).await;
        }
        {
            let _hold = self.nri.hold().await;
            self.nri_stop_pod(pod).await;
        }
        // Plug-ins get the namespace by its file: what else holds it may go meanwhile.
        operation.stage("disconnecting it, and ending the sandbox");
        let (disconnected, ended) = tokio::join!(self.disconnect(&pod.id), self.end_sandbox(pod));
        disconnected?;
        let ended_now = ended?;
        if ended_now {
            self.events.tell(self, Kind::Stopped, &pod.id, pod).await;
        }
        Ok(())
    }

    /// Ends what holds a pod's namespaces, and takes its shared memory away. Whether it had not ended before.
    async fn end_sandbox(&self, pod: &Arc<Pod>) -> Result<bool> {
        let controller = self.engine.sandboxes.controller(SANDBOXER)?;
        self.engine.tasks.give_up_if_silent(&self.scope, &pod.id).await;
        absent(controller.stop(&self.scope, &pod.id, None).await)?;
        // Who waits for its end may have told of it.
        let ended_now = pod.end();
        if !pod.facts().ips.is_empty() {
            self.set_pod_facts(pod, |facts| facts.ips.clear()).await?;
        }
        let files = self.pod_files(&pod.id);
        let unmounted = tokio::task::spawn_blocking(move || files.unmount_shm()).await;
        unmounted.map_err(|_| Error::Stopped { what: "unmounting a pod's shared memory" })??;
        Ok(ended_now)
    }

    /// Removes a pod with all its containers, stopping it before. One that is not there is no error.
    pub(crate) async fn remove_pod(&self, id: &str) -> Result<()> {
        let Some(pod) = found(self.pods.get(id))? else { return Ok(()) };
        let cri = self.clone();
        let work = tokio::spawn(async move {
            cri.halt_pod(&pod).await?;
            let containers = cri.containers.of_pod(&pod.id);
            let discarded = join_all(containers.iter().map(|container| cri.discard_container(container))).await;
            discarded.into_iter().collect::<Result<()>>()?;
            cri.discard_pod(&pod).await
        });
        work.await.map_err(|_| Error::Stopped { what: "removing a pod" })?
    }

    async fn discard_pod(&self, pod: &Arc<Pod>) -> Result<()> {
        let _one = pod.gate.lock().await;
        let there = self.pods.get(&pod.id).is_ok();
        self.clear_pod(&pod.id).await?;
        {
            let _hold = self.nri.hold().await;
            if there {
                self.nri_remove_pod(pod).await;
            }
            self.pods.remove(&pod.id);
        }
        self.rates.forget(&pod.id);
        let metadata = pod.config().metadata.clone().unwrap_or_default();
        self.pod_names.free(&super::metadata_name(&metadata), &pod.id);
        if there {
            self.events.tell(self, Kind::Deleted, &pod.id, pod).await;
        }
        Ok(())
    }

    /// Removes all that a pod is made of but its network, the record as the last.
    async fn clear_pod(&self, id: &str) -> Result<()> {
        let controller = self.engine.sandboxes.controller(SANDBOXER)?;
        absent(controller.shutdown(&self.scope, id).await)?;
        let files = self.pod_files(id);
        let clear = move || files.unmount_shm().and_then(|()| files.remove());
        tokio::task::spawn_blocking(clear).await.map_err(|_| Error::Stopped { what: "removing a pod's files" })??;
        let record = self.engine.containers.get(&self.scope, id).await;
        if let Some(record) = found_record(record)?.filter(|record| !record.snapshot_key.is_empty()) {
            absent(self.engine.snapshots.remove(&self.scope, &record.snapshotter, &record.snapshot_key).await)?;
        }
        // One commit for both where nothing else is on the way; they get there in this order.
        let (container, sandbox) =
            tokio::join!(self.engine.containers.delete(&self.scope, id), self.engine.sandboxes.delete(&self.scope, id));
        absent(container)?;
        absent(sandbox)
    }

    /// Takes back whatever there is of a pod that was not made to the end.
    pub(super) async fn undo_pod(&self, id: &str) {
        if let Err(error) = self.disconnect(id).await {
            tracing::warn!(id, %error, "network of a pod that failed stays until the next start");
        }
        if let Err(error) = self.clear_pod(id).await {
            tracing::warn!(id, %error, "parts of a pod that failed stay until the next start");
        }
    }
}

/// What is not there, for those who only want it gone.
pub(crate) fn absent<T: Default>(outcome: gantry_engine::Result<T>) -> Result<T> {
    match outcome {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(T::default()),
        other => Ok(other?),
    }
}

/// A record, or none where it is not there.
pub(crate) fn found_record<T>(outcome: gantry_engine::Result<T>) -> Result<Option<T>> {
    absent(outcome.map(Some))
}

/// An object, or none where it is not there.
pub(crate) fn found<T>(outcome: Result<T>) -> Result<Option<T>> {
    match outcome {
        Ok(object) => Ok(Some(object)),
        Err(Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
