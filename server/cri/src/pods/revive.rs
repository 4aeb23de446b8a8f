//! RestorePod: a new pod whose containers go on from a checkpoint once they are started. The checkpoint is only read; what
//! it has is compared with what is asked for, and what fails leaves nothing behind.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use gantry_api::pb::runtime::v1 as wire;
use prost::Message;

use super::checkpoint::{CONTAINER, LIST, List, Listed, POD, VERSION, names, no_options, part};
use super::{namespaces_of, run};
use crate::containers::{CHANGES, IMAGES, check};
use crate::creations::new_id;
use crate::handlers::runtime_of;
use crate::stages::{LONG, Stages};
use crate::{Cri, Error, Result};

/// Longest description that is read.
const MOST: u64 = 4 << 20;

/// A checkpoint, read.
struct Saved {
    at: PathBuf,
    list: List,
    pod: wire::PodSandboxConfig,
    containers: Vec<wire::ContainerConfig>,
}

/// A new pod in the making.
struct Reviving {
    id: String,
    request: wire::RestorePodRequest,
    saved: Saved,
    until: Instant,
}

/// Whether it is a shim's runtime that restores by CRIU: what others need is not known here.
fn needs_criu(runtime: &str) -> bool {
    ["io.containerd.gantry.v1", "io.containerd.runc.v2"].contains(&runtime)
}

impl Cri {
    /// Makes a pod, and containers that go on from a checkpoint when they are started. A retry joins.
    ///
    /// # Errors
    /// [`Error::Invalid`] for what is asked for and is not as in the checkpoint, or for a checkpoint that is none;
    /// [`Error::State`] where CRIU is missing; [`Error::Deadline`] after `limit`; what making pods and containers says.
    /// Nothing stays then.
    pub(crate) async fn revive_pod(
        &self,
        request: wire::RestorePodRequest,
        limit: Option<Duration>,
    ) -> Result<wire::RestorePodResponse> {
        self.check_checkpoints()?;
        no_options(&request.options)?;
        let config = request.config.as_ref().ok_or_else(|| Error::invalid("config", "must be set"))?;
        let (name, bytes) = (run::check(config)?, request.encode_to_vec());
        let runtime = runtime_of(self.handler(&request.runtime_handler)?).name;
        let path = PathBuf::from(&request.checkpoint_path);
        let reading = tokio::task::spawn_blocking(move || Saved::read(&path));
        let saved = reading.await.map_err(|_| Error::Stopped { what: "reading a pod's checkpoint" })??;
        saved.fits(&request, &runtime)?;
        if needs_criu(&runtime) && !self.engine.tasks.finds_program("criu") {
            return Err(Error::State(
                "CRIU is not installed (no criu where shims look for programs): no container could be restored".into(),
            ));
        }
        let (cri, id) = (self.clone(), new_id()?);
        let until = Instant::now() + limit.unwrap_or(LONG);
        let reviving = Reviving { id: id.clone(), request, saved, until };
        let make = async move {
            let made = cri.revive(&reviving).await;
            if made.is_err() {
                cri.undo_revival(&reviving.id).await;
            }
            made
        };
        let pod_sandbox_id = self.pod_names.join(&name, id, bytes, make).await?;
        let restored = self.containers.of_pod(&pod_sandbox_id).into_iter().map(|container| {
            let name = container.config().metadata.clone().unwrap_or_default().name;
            wire::RestoredContainer { name, container_id: container.id.clone() }
        });
        Ok(wire::RestorePodResponse { restored_containers: restored.collect(), pod_sandbox_id })
    }

    async fn revive(&self, reviving: &Reviving) -> Result<()> {
        let Reviving { id, request, saved, until } = reviving;
        let stages = Stages::begin(self, "pod", id);
        let config = request.config.clone().unwrap_or_default();
        self.make_pod(id, config, &request.runtime_handler, &stages).await?;
        let pod = self.pods.get(id)?;
        for (at, asked) in request.container_configs.iter().enumerate() {
            // Nothing is broken off half made.
            if Instant::now() > *until {
                let limit = until.elapsed();
                return Err(Error::Deadline { what: format!("restore of pod {id:?}, late by"), limit });
            }
            let from = saved.number(asked)?;
            self.same_image(at, asked, &saved.list.containers[from]).await?;
            let step = format!("failed to restore container {:?}", saved.list.containers[from].name);
            let making = self.revive_container(&pod, asked, part(&saved.at, from));
            making.await.map_err(Error::at(step))?;
        }
        Ok(())
    }

    async fn same_image(&self, at: usize, asked: &wire::ContainerConfig, listed: &Listed) -> Result<()> {
        let name = asked.image.clone().unwrap_or_default().image;
        let image = self.image(&name).await?.ok_or(Error::NotFound { what: "image", id: name.clone() })?;
        if image.id() == listed.image_id {
            return Ok(());
        }
        let reason = format!("{name:?} is {}, and the checkpoint's is {}", image.id(), listed.image_id);
        Err(Error::invalid(format!("container_configs[{at}].image"), reason))
    }

    async fn undo_revival(&self, id: &str) {
        if self.pods.get(id).is_err() {
            // What fails before it is known takes itself back.
            return;
        }
        if let Err(error) = self.remove_pod(id).await {
            tracing::warn!(id, %error, "a pod that could not be restored stays");
        }
    }

    /// Where a container that is to go on from a checkpoint has it.
    pub(crate) fn checkpoint_of(&self, id: &str) -> PathBuf {
        self.root.join("containers").join(id).join("checkpoint")
    }

    /// Copies what a container goes on from; its first start needs it, whatever becomes of the checkpoint meanwhile.
    pub(crate) async fn keep_checkpoint(&self, id: &str, from: PathBuf) -> Result<()> {
        let to = self.checkpoint_of(id);
        let copying = move || {
            let images = to.join(IMAGES);
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&images)
                .map_err(Error::io("create", &images))?;
            copy(&from.join(CHANGES), &to.join(CHANGES))?;
            let source = from.join(IMAGES);
            for entry in std::fs::read_dir(&source).map_err(Error::io("read", &source))? {
                let entry = entry.map_err(Error::io("read", &source))?;
                copy(&entry.path(), &images.join(entry.file_name()))?;
            }
            Ok(())
        };
        tokio::task::spawn_blocking(copying).await.map_err(|_| Error::Stopped { what: "copying a checkpoint" })?
    }

    /// Removes what a container went on from.
    pub(crate) async fn forget_checkpoint(&self, id: &str) {
        let path = self.checkpoint_of(id);
        let removing = tokio::task::spawn_blocking(move || std::fs::remove_dir_all(path));
        if let Ok(Err(error)) = removing.await {
            tracing::warn!(id, %error, "what a container went on from stays until it is removed");
        }
    }
}

impl Saved {
    fn read(at: &Path) -> Result<Saved> {
        if !at.is_absolute() || !at.is_dir() {
            return Err(bad(at, "is not the absolute path of a directory that is there"));
        }
        let list: List = serde_json::from_slice(&bytes(&at.join(LIST))?).map_err(|error| bad(&at.join(LIST), error))?;
        if list.version != VERSION {
            return Err(bad(&at.join(LIST), format!("has form {}, and only {VERSION} is known", list.version)));
        }
        let pod = message(&at.join(POD))?;
        let config = |at: PathBuf| message(&at.join(CONTAINER));
        let containers = (0..list.containers.len()).map(|number| config(part(at, number))).collect::<Result<_>>()?;
        Ok(Saved { at: at.to_owned(), list, pod, containers })
    }

    /// Compares what is asked for with what was, as far as it can be told without a look at this node.
    fn fits(&self, request: &wire::RestorePodRequest, runtime: &str) -> Result<()> {
        if runtime != self.list.runtime {
            let reason = format!("is {runtime}, and the checkpoint was made by {}", self.list.runtime);
            return Err(Error::invalid("runtime_handler", reason));
        }
        let configs = &request.container_configs;
        let metadata = configs.iter().map(|config| config.metadata.as_ref().map_or("", |metadata| &metadata.name));
        let asked = names("container_configs", metadata)?;
        let has: BTreeSet<&str> = self.list.containers.iter().map(|container| container.name.as_str()).collect();
        if asked != has {
            let reason = format!("have the names {asked:?}, and the checkpoint has {has:?}");
            return Err(Error::invalid("container_configs", reason));
        }
        let namespaces = |config: &wire::PodSandboxConfig| wire::NamespaceOption {
            target_id: String::new(),
            ..namespaces_of(config)
        };
        if request.config.as_ref().map(namespaces) != Some(namespaces(&self.pod)) {
            return Err(other("config.linux.security_context.namespace_options"));
        }
        for (at, config) in configs.iter().enumerate() {
            check(config)?;
            let differs = difference(&self.containers[self.number(config)?], config);
            differs.map_or(Ok(()), |field| Err(other(&format!("container_configs[{at}].{field}"))))?;
        }
        Ok(())
    }

    /// Which container of the checkpoint that is.
    fn number(&self, config: &wire::ContainerConfig) -> Result<usize> {
        let name = config.metadata.as_ref().map_or("", |metadata| &metadata.name);
        let found = self.list.containers.iter().position(|container| container.name == name);
        found.filter(|at| *at < self.containers.len()).ok_or_else(|| other("container_configs"))
    }
}

/// The first field of a container that the processes of the checkpoint were made by and that is another now.
fn difference(was: &wire::ContainerConfig, is: &wire::ContainerConfig) -> Option<&'static str> {
    let security =
        |config: &wire::ContainerConfig| config.linux.clone().unwrap_or_default().security_context.unwrap_or_default();
    let (old, new) = (security(was), security(is));
    let envs = |config: &wire::ContainerConfig| -> BTreeSet<(String, Vec<u8>)> {
        config.envs.iter().map(|env| (env.key.clone(), env.value.clone())).collect()
    };
    let mounts = |config: &wire::ContainerConfig| -> BTreeSet<String> {
        config.mounts.iter().map(|mount| mount.container_path.clone()).collect()
    };
    let options = |of: &wire::LinuxContainerSecurityContext| of.namespace_options.clone().unwrap_or_default();
    let same = [
        ("command", was.command == is.command),
        ("args", was.args == is.args),
        ("working_dir", was.working_dir == is.working_dir),
        ("envs", envs(was) == envs(is)),
        ("tty", was.tty == is.tty),
        ("stdin", was.stdin == is.stdin),
        ("mounts", mounts(was) == mounts(is)),
        ("linux.security_context.run_as_user", old.run_as_user == new.run_as_user),
        ("linux.security_context.run_as_group", old.run_as_group == new.run_as_group),
        ("linux.security_context.run_as_username", old.run_as_username == new.run_as_username),
        ("linux.security_context.supplemental_groups", old.supplemental_groups == new.supplemental_groups),
        ("linux.security_context.privileged", old.privileged == new.privileged),
        ("linux.security_context.namespace_options", options(&old) == options(&new)),
    ];
    same.into_iter().find(|(_, same)| !same).map(|(field, _)| field)
}

fn other(field: &str) -> Error {
    Error::invalid(field, "is not what the checkpoint was made with")
}

fn bad(path: &Path, why: impl std::fmt::Display) -> Error {
    Error::invalid("checkpoint_path", format!("{}: {why}", path.display()))
}

/// A plain file, and no link to one.
fn open(path: &Path) -> Result<std::fs::File> {
    let flags = (nix::fcntl::OFlag::O_NOFOLLOW | nix::fcntl::OFlag::O_NONBLOCK).bits();
    let opened = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path);
    let file = opened.map_err(|error| bad(path, error))?;
    match file.metadata().is_ok_and(|known| known.is_file()) {
        true => Ok(file),
        false => Err(bad(path, "is not a plain file")),
    }
}

fn bytes(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.take(MOST + 1).read_to_end(&mut bytes).map_err(|error| bad(path, error))?;
    if bytes.len() as u64 > MOST { Err(bad(path, format!("is longer than {MOST} bytes"))) } else { Ok(bytes) }
}

fn message<M: Message + Default>(path: &Path) -> Result<M> {
    M::decode(bytes(path)?.as_slice()).map_err(|error| bad(path, error))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut source = open(from)?;
    let made = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(to);
    let copied = made.and_then(|mut file| std::io::copy(&mut source, &mut file).and_then(|_| file.sync_all()));
    copied.map_err(Error::io("write", to))
}
