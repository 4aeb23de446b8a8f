//! After a start: pods are taken up from their records, and what was half made or half removed is undone.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::join_all;
use gantry_engine::sandboxes::{READY, Sandbox};
use gantry_types::{ErrorKind, Filter, HasKind};

use super::{Pod, SANDBOXER, record};
use crate::Cri;

/// How long the shim of a pod may take to say whether that is there.
const ANSWER: Duration = Duration::from_secs(1);
/// How long the start waits for pods to be undone that were not made to the end.
const UNDOING: Duration = Duration::from_secs(5);

impl Cri {
    /// Takes up all pods and containers; what cannot be mended is named in the log.
    pub(crate) async fn restore(&self) {
        let records = self.engine.sandboxes.list(&self.scope, &Filter::default()).await.unwrap_or_default();
        // All at once: a silent shim holds up none but its own pod.
        join_all(records.into_iter().map(|record| self.restore_pod(record))).await;
        self.clear_networks().await;
        self.restore_containers().await;
        self.clear_files().await;
        self.clear_checkpoints().await;
    }

    async fn restore_pod(&self, record: Sandbox) {
        let id = record.id.to_string();
        let Some((config, facts)) = record::read(&record) else { return };
        if !facts.complete {
            tracing::warn!(id, "a pod that was not made to the end is removed");
            let cri = self.clone();
            // What does not let go must not hold up the start.
            let undoing = tokio::spawn(async move { cri.undo_pod(&id).await });
            let _ = tokio::time::timeout(UNDOING, undoing).await;
            return;
        }
        let created = crate::nanoseconds(record.created);
        let name = super::metadata_name(&config.metadata.clone().unwrap_or_default());
        let ready = self.is_held(&id, facts.pid).await;
        let pod = Pod::new(&id, config, facts, created);
        pod.set_ready(ready);
        self.pods.insert(&pod);
        self.pod_names.occupy(&name, &id);
        if ready {
            self.watch_pod(&pod);
        }
    }

    /// Whether what holds a pod's namespaces is there: by its shim's word, or by what is seen where that is silent.
    async fn is_held(&self, id: &str, pid: u32) -> bool {
        let Ok(controller) = self.engine.sandboxes.controller(SANDBOXER) else { return false };
        match tokio::time::timeout(ANSWER, controller.status(&self.scope, id, false)).await {
            Ok(Ok(status)) => status.state == READY,
            Ok(Err(error)) if error.kind() != ErrorKind::DeadlineExceeded => false,
            _ => {
                tracing::warn!(id, "a pod's shim does not answer");
                std::fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|text| text.contains(id))
            }
        }
    }

    /// Networks of pods that are not there any more, or no longer run.
    async fn clear_networks(&self) {
        let attached: Vec<String> = self.networks.attachments().into_iter().map(|attachment| attachment.id).collect();
        for id in attached {
            let running = self.pods.get(&id).is_ok_and(|pod| pod.is_ready());
            if !running && let Err(error) = self.disconnect(&id).await {
                tracing::warn!(id, %error, "network of a pod that is gone stays");
            }
        }
        if let Err(error) = self.networks.collect().await {
            tracing::warn!(%error, "networks were not asked to collect what nobody uses");
        }
    }

    /// Files of pods that are not there any more.
    async fn clear_files(&self) {
        let known: BTreeSet<String> = self.pods.all().iter().map(|pod| pod.id.clone()).collect();
        let Ok(entries) = std::fs::read_dir(self.state.join("sandboxes")) else { return };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        for id in names.filter(|id| !known.contains(id)) {
            let files = self.pod_files(&id);
            if let Err(error) = files.unmount_shm().and_then(|()| files.remove()) {
                tracing::warn!(id, %error, "files of a pod that is gone stay");
            }
        }
    }
}
