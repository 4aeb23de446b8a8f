//! CheckpointPod: chosen containers of a pod as they all were at one moment, in a directory of the caller's: each is
//! frozen before any is captured, and all run on afterwards, whatever became of it.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use gantry_api::pb::runtime::v1 as wire;
use gantry_engine::tasks::Status;
use prost::Message as _;
use serde::{Deserialize, Serialize};

use super::{Pod, found};
use crate::checkpoints::Output;
use crate::containers::{Container, check_runs};
use crate::handlers::runtime_of;
use crate::stages::{LONG, SHORT, Stages};
use crate::{Cri, Error, Result};

/// What lists the containers of a checkpoint. Written last: without it there is none.
pub(crate) const LIST: &str = "pod.json";
/// Configuration of the pod, as a message.
pub(crate) const POD: &str = "pod.config";
/// Configuration of a container, as a message, beside what else a container's checkpoint has.
pub(super) const CONTAINER: &str = "container.config";
/// The form of all that.
pub(super) const VERSION: u32 = 1;
/// How long a thaw may take that the shim answers at once when it is well.
const THAWING: Duration = Duration::from_secs(30);

/// How much of the time that the caller gives is kept for the thaw, at most.
const RESERVE: Duration = Duration::from_secs(5);

/// What a checkpoint says of itself.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct List {
    pub(super) version: u32,
    /// The engine's runtime.
    pub(super) runtime: String,
    /// In the order of their directories.
    pub(super) containers: Vec<Listed>,
}

/// One container of a checkpoint.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Listed {
    pub(super) name: String,
    pub(super) image_id: String,
}

/// Directory of the directories of its containers.
pub(crate) const CONTAINERS: &str = "containers";

/// Directory of the container of that number.
pub(super) fn part(of: &Path, at: usize) -> PathBuf {
    of.join(CONTAINERS).join(at.to_string())
}

/// Options of checkpoints are the runtime's own, and ours has none.
pub(super) fn no_options(options: &BTreeMap<String, String>) -> Result<()> {
    let known = |key: &String| {
        Error::invalid(format!("options[{key:?}]"), "is not known: this runtime has no options of pods' checkpoints")
    };
    options.keys().min().map_or(Ok(()), |key| Err(known(key)))
}

impl Cri {
    /// Checkpoints containers of a pod into a directory that is empty, within `limit`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a directory or containers that cannot be; [`Error::State`] for what does not run, or where
    /// checkpoints are switched off; [`Error::Deadline`]; what CRIU says. The directory is empty again then.
    pub(crate) async fn checkpoint_pod(
        &self,
        request: wire::CheckpointPodRequest,
        limit: Option<Duration>,
    ) -> Result<()> {
        let pod = self.pods.get(&request.pod_sandbox_id)?;
        self.check_checkpoints()?;
        no_options(&request.options)?;
        let output = Output::of(&self.root, &request.output_path)?;
        let chosen = self.chosen(&pod, &request.container_ids)?;
        // What is left of it is for the thaw.
        let (cri, limit) = (self.clone(), limit.map_or(LONG, |limit| limit.saturating_sub(RESERVE.min(limit / 4))));
        // Goes on when the caller goes away: nothing stays frozen.
        let work = tokio::spawn(async move { cri.cut(&pod, &chosen, output, limit).await });
        work.await.map_err(|_| Error::Stopped { what: "checkpointing a pod" })?
    }

    /// Checkpoints can be switched off.
    pub(super) fn check_checkpoints(&self) -> Result<()> {
        match self.config.runtime.enable_criu {
            true => Ok(()),
            false => Err(Error::State("criu support is disabled by configuration".into())),
        }
    }

    /// The containers, by id.
    fn chosen(&self, pod: &Pod, ids: &[String]) -> Result<Vec<Arc<Container>>> {
        if ids.is_empty() {
            return Err(Error::invalid("container_ids", "must not be empty"));
        }
        let mut chosen = BTreeMap::new();
        for (at, id) in ids.iter().enumerate() {
            let bad = |reason: String| Error::invalid(format!("container_ids[{at}]"), reason);
            let container = found(self.containers.get(id))?.ok_or_else(|| bad(format!("{id:?} is no container")))?;
            if container.pod != pod.id {
                return Err(bad(format!("{id:?} is a container of another pod")));
            }
            if chosen.insert(container.id.clone(), container).is_some() {
                return Err(bad(format!("{id:?} is there twice")));
            }
        }
        Ok(chosen.into_values().collect())
    }

    async fn cut(&self, pod: &Arc<Pod>, chosen: &[Arc<Container>], output: Output, limit: Duration) -> Result<()> {
        // By id, so that no two calls wait for each other.
        let mut gates = Vec::new();
        for container in chosen {
            gates.push(container.gate.lock().await);
        }
        if !pod.is_ready() {
            return Err(Error::State(format!("sandbox container {:?} is not running", pod.id)));
        }
        chosen.iter().try_for_each(|container| check_runs(container))?;
        let stages = Stages::begin(self, "pod checkpoint", &pod.id);
        let capturing = self.freeze_and_capture(pod, chosen, output.path(), &stages);
        let late = |_| Error::Deadline { what: format!("checkpoint of pod {:?}", pod.id), limit };
        let captured = tokio::time::timeout(limit, capturing).await.map_err(late).and_then(|captured| captured);
        stages.note("thawing".to_owned());
        let mut thawed = Ok(());
        for container in chosen {
            thawed = self.thaw(container).await.and(thawed);
        }
        captured.and(thawed)?;
        stages.note("writing all to the disk".to_owned());
        let finishing = tokio::task::spawn_blocking(move || output.finish());
        finishing.await.map_err(|_| Error::Stopped { what: "writing a pod's checkpoint" })?
    }

    async fn freeze_and_capture(
        &self,
        pod: &Pod,
        chosen: &[Arc<Container>],
        into: &Path,
        stages: &Stages,
    ) -> Result<()> {
        for container in chosen {
            // On the disk first: a daemon that is killed now thaws it when it is back.
            self.set_facts(container, |facts| facts.held = true).await?;
            let pausing = async { Ok(self.engine.tasks.pause(&self.scope, &container.id).await?) };
            stages.run("freezing", SHORT, pausing).await?;
        }
        let runtime = runtime_of(self.handler(&pod.facts().handler)?).name;
        let mut list = List { version: VERSION, runtime, containers: Vec::new() };
        for (at, container) in chosen.iter().enumerate() {
            let (config, part) = (container.config(), part(into, at));
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&part).map_err(Error::io("create", &part))?;
            fail::fail_point!("cri::pod-checkpoint-part");
            self.capture(container, &part, stages).await?;
            write(&part.join(CONTAINER), &config.encode_to_vec())?;
            let name = config.metadata.clone().unwrap_or_default().name;
            list.containers.push(Listed { name, image_id: container.facts().image_id });
        }
        write(&into.join(POD), &pod.config().encode_to_vec())?;
        let list = serde_json::to_vec(&list).map_err(|error| Error::State(format!("{LIST}: {error}")))?;
        write(&into.join(LIST), &list)
    }

    /// Lets a container run that was frozen for a checkpoint.
    pub(crate) async fn thaw(&self, container: &Container) -> Result<()> {
        if !container.facts().held {
            return Ok(());
        }
        let resuming = async {
            // The shim answers when what it does is done.
            let resumed = self.engine.tasks.resume(&self.scope, &container.id).await;
            match (resumed, self.engine.tasks.get(&self.scope, &container.id, "").await) {
                (Err(error), Ok(task)) if task.status == Status::Paused => Err(error),
                _ => Ok(()),
            }
        };
        let what = || format!("thaw of container {:?}", container.id);
        let late = |_| Error::Deadline { what: what(), limit: THAWING };
        let thawed = tokio::time::timeout(THAWING, resuming).await.map_err(late)?;
        thawed.map_err(Error::at(what()))?;
        self.set_facts(container, |facts| facts.held = false).await
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let opened = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    opened.and_then(|mut file| std::io::Write::write_all(&mut file, bytes)).map_err(Error::io("write", path))
}

/// The names of what a checkpoint has, or of what is asked for, each once.
pub(super) fn names<'a>(field: &str, all: impl Iterator<Item = &'a str>) -> Result<BTreeSet<&'a str>> {
    let mut names = BTreeSet::new();
    for (at, name) in all.enumerate() {
        if name.is_empty() || !names.insert(name) {
            return Err(Error::invalid(
                format!("{field}[{at}].metadata.name"),
                format!("{name:?} is empty, or there twice"),
            ));
        }
    }
    if names.is_empty() { Err(Error::invalid(field, "must not be empty")) } else { Ok(names) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_refused_and_names_are_there_once() {
        assert!(no_options(&[].into()).is_ok());
        let some = [("b".to_owned(), String::new()), ("a".to_owned(), String::new())].into();
        assert!(matches!(no_options(&some), Err(Error::Invalid { field, .. }) if field == "options[\"a\"]"));
        assert_eq!(names("f", ["a", "b"].into_iter()).unwrap().len(), 2);
        for bad in [&["a", "a"][..], &[""], &[]] {
            assert!(names("f", bad.iter().copied()).is_err(), "{bad:?}");
        }
    }
}
