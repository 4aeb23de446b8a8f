//! CheckpointContainer: the images of a running container's processes, what it changed in its root file system, and what
//! describes it, in one archive with the names that containerd and `checkpointctl` have for its parts. The container
//! runs on.

use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use gantry_api::pb::containerd::runc::v1::CheckpointOptions;
use gantry_api::pb::runtime::v1 as wire;
use gantry_engine::containers::Container as Record;
use gantry_engine::diff::DiffOptions;
use gantry_types::{Any, Labels, Scope};
use prost::{Message as _, Name as _};
use serde_json::{Value, json};
use wire::ContainerState;

use super::{Container, Facts, status_of};
use crate::checkpoints::Parts;
use crate::creations::new_id;
use crate::stages::{LONG, Stages};
use crate::{Cri, Error, Result};

/// Directory of CRIU's images within a checkpoint.
pub(crate) const IMAGES: &str = "checkpoint";
/// What the container changed in its root file system, a compressed layer.
pub(crate) const CHANGES: &str = "rootfs-diff.tar";

impl Cri {
    /// Checkpoints a container into an archive at `location`, which is there whole or not at all.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a location that cannot be; [`Error::State`] for a container that does not run, or where
    /// checkpoints are switched off; what CRIU says, or that it is missing.
    pub(crate) async fn checkpoint_container(&self, request: wire::CheckpointContainerRequest) -> Result<()> {
        let container = self.containers.get(&request.container_id)?;
        if !self.config.runtime.enable_criu {
            return Err(Error::State("criu support is disabled by configuration".into()));
        }
        check_location(&request.location)?;
        let limit = match u64::try_from(request.timeout) {
            Ok(0) => LONG,
            Ok(seconds) => Duration::from_secs(seconds),
            Err(_) => return Err(Error::invalid("timeout", "must not be negative")),
        };
        let cri = self.clone();
        // Goes on when the caller goes away: what is begun is cleared up.
        let work = tokio::spawn(async move {
            let what = || format!("checkpoint of container {:?}", container.id);
            let making = cri.make_checkpoint(&container, Path::new(&request.location));
            tokio::time::timeout(limit, making).await.map_err(|_| Error::Deadline { what: what(), limit })?
        });
        work.await.map_err(|_| Error::Stopped { what: "checkpointing a container" })?
    }

    async fn make_checkpoint(&self, container: &Arc<Container>, location: &Path) -> Result<()> {
        let _one = container.gate.lock().await;
        check_runs(container)?;
        let stages = Stages::begin(self, "checkpoint", &container.id);
        let parts = Parts::new(&self.root)?;
        self.capture(container, parts.path(), &stages).await?;
        let (from, to) = (parts.path().to_owned(), location.to_owned());
        let archiving = async move {
            let archiving = tokio::task::spawn_blocking(move || archive(&from, &to));
            archiving.await.map_err(|_| Error::Stopped { what: "writing a checkpoint's archive" })?
        };
        stages.run("writing the archive", LONG, archiving).await
    }

    /// Writes a container's images, what it changed and what describes it into a directory that is there.
    pub(crate) async fn capture(&self, container: &Container, into: &Path, stages: &Stages) -> Result<()> {
        let record = self.engine.containers.get(&self.scope, &container.id).await?;
        stages.run("waiting for the shim to write images", LONG, self.write_images(container, into)).await?;
        stages.run("storing what the container changed", LONG, self.write_changes(&record, into)).await?;
        describe(container, &record, into)
    }

    async fn write_images(&self, container: &Container, parts: &Path) -> Result<()> {
        // CRIU's own log and figures lie beside the images.
        let options =
            CheckpointOptions { work_path: parts.to_string_lossy().into_owned(), ..CheckpointOptions::default() };
        let options = Any { type_url: CheckpointOptions::full_name(), value: options.encode_to_vec() };
        let images = parts.join(IMAGES);
        let made = self.engine.tasks.checkpoint_into(&self.scope, &container.id, &images, Some(options)).await;
        made.map_err(Error::at(format!("failed to checkpoint container {:?}", container.id)))
    }

    /// The writable layer, against what the container was made from.
    async fn write_changes(&self, record: &Record, parts: &Path) -> Result<()> {
        let hour = SystemTime::now() + Duration::from_secs(3600);
        let expires = prost_types::Timestamp::from(hour).to_string();
        let labels = [(gantry_types::labels::GC_EXPIRE.to_owned(), expires)].into();
        let lease = self.engine.leases.create(&self.scope, None, labels).await?;
        let scope = Scope { lease: Some(lease.id.clone()), ..self.scope.clone() };
        let written = self.changes_into(&scope, record, &parts.join(CHANGES)).await;
        self.engine.leases.delete(&self.scope, &lease.id, false).await?;
        written
    }

    async fn changes_into(&self, scope: &Scope, record: &Record, to: &Path) -> Result<()> {
        let (snapshots, name) = (&self.engine.snapshots, record.snapshotter.as_str());
        let own = snapshots.stat(scope, name, &record.snapshot_key).await?;
        let view = format!("checkpoint-{}", new_id()?);
        let before =
            snapshots.view(scope, name, &view, own.parent.as_deref().unwrap_or_default(), Labels::new()).await?;
        let after = snapshots.mounts(scope, name, &record.snapshot_key).await?;
        let made = self.engine.diff.diff(scope, &before, &after, DiffOptions::default()).await;
        snapshots.remove(scope, name, &view).await?;
        let layer = made?;
        let reader = self.engine.content.reader(scope, &layer.digest).await?;
        let mut file = create(to)?;
        let mut offset = 0;
        while offset < layer.size {
            let piece = reader.read_at(offset, PIECE).await.map_err(gantry_engine::Error::from)?;
            if piece.is_empty() {
                return Err(Error::State(format!("{}: ends after {offset} of {} bytes", layer.digest, layer.size)));
            }
            offset += piece.len() as u64;
            std::io::Write::write_all(&mut file, &piece).map_err(Error::io("write", to))?;
        }
        Ok(())
    }
}

/// Only what runs can be checkpointed.
pub(crate) fn check_runs(container: &Container) -> Result<()> {
    let (is, wanted) = (container.state(), ContainerState::ContainerRunning);
    if is == wanted {
        return Ok(());
    }
    let (is, wanted) = (is.as_str_name(), wanted.as_str_name());
    let text = format!("container {:?} is in {is} state. only {wanted} containers can be checkpointed", container.id);
    Err(Error::State(text))
}

/// How much of a layer is copied at once.
const PIECE: usize = 1 << 20;

/// An archive is put where a directory is, and replaces nothing but a file.
fn check_location(location: &str) -> Result<()> {
    let path = Path::new(location);
    let bad = |reason: &str| Err(Error::invalid("location", format!("{location:?} {reason}")));
    if !path.is_absolute() || path.file_name().is_none() || location.ends_with('/') || location.contains('\0') {
        return bad("is not the absolute path of a file");
    }
    if !path.parent().is_some_and(Path::is_dir) {
        return bad("lies in a directory that is not there");
    }
    match std::fs::symlink_metadata(path) {
        Ok(there) if !there.is_file() => bad("is there already, and is no file"),
        _ => Ok(()),
    }
}

fn create(path: &Path) -> Result<std::fs::File> {
    let opened = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    opened.map_err(Error::io("create", path))
}

/// Writes what describes the container beside its images.
fn describe(container: &Container, record: &Record, parts: &Path) -> Result<()> {
    let facts = container.facts();
    let spec = record.spec.as_ref().map(|spec| spec.value.clone()).unwrap_or_default();
    let status = status_of(container);
    let files = [
        ("spec.dump", spec),
        ("config.dump", config_dump(container, record, &status).to_string().into_bytes()),
        ("status.dump", status_dump(&status).to_string().into_bytes()),
        ("status", own_status(container, &facts).to_string().into_bytes()),
    ];
    for (name, bytes) in files {
        let path = parts.join(name);
        std::io::Write::write_all(&mut create(&path)?, &bytes).map_err(Error::io("write", &path))?;
    }
    let (log, copy) = (Path::new(&facts.log_path), parts.join("container.log"));
    if log.is_file() {
        std::fs::copy(log, &copy).map_err(Error::io("copy", log))?;
    }
    Ok(())
}

/// `ContainerConfig` of `checkpointctl`.
fn config_dump(container: &Container, record: &Record, status: &wire::ContainerStatus) -> Value {
    let time = |time: SystemTime| prost_types::Timestamp::from(time).to_string();
    let image = status.image.as_ref().map(|image| image.image.as_str()).unwrap_or_default();
    json!({
        "id": container.id,
        "name": status.metadata.as_ref().map(|metadata| metadata.name.as_str()).unwrap_or_default(),
        "rootfsImage": image,
        "rootfsImageName": image,
        "rootfsImageRef": status.image_ref,
        "runtime": record.runtime.name,
        "createdTime": time(record.created),
        "checkpointedTime": time(SystemTime::now()),
        "restoredTime": "0001-01-01T00:00:00Z",
        "restored": false,
    })
}

/// The container's status under the names that the interface's fields have.
fn status_dump(status: &wire::ContainerStatus) -> Value {
    let metadata = status.metadata.clone().unwrap_or_default();
    let mount = |mount: &wire::Mount| {
        json!({"container_path": mount.container_path, "host_path": mount.host_path, "readonly": mount.readonly,
               "selinux_relabel": mount.selinux_relabel, "propagation": mount.propagation})
    };
    json!({
        "id": status.id,
        "metadata": {"name": metadata.name, "attempt": metadata.attempt},
        "state": status.state,
        "created_at": status.created_at,
        "started_at": status.started_at,
        "finished_at": status.finished_at,
        "exit_code": status.exit_code,
        "image": {"image": status.image.as_ref().map(|image| image.image.as_str()).unwrap_or_default()},
        "image_ref": status.image_ref,
        "image_id": status.image_id,
        "reason": status.reason,
        "message": status.message,
        "labels": status.labels,
        "annotations": status.annotations,
        "mounts": status.mounts.iter().map(mount).collect::<Vec<Value>>(),
        "log_path": status.log_path,
    })
}

/// `ContainerdStatus` of `checkpointctl`.
fn own_status(container: &Container, facts: &Facts) -> Value {
    json!({
        "Version": "v1",
        "CreatedAt": container.created_at,
        "StartedAt": facts.started_at,
        "FinishedAt": facts.finished_at,
        "ExitCode": facts.exit_code,
        "Pid": facts.pid,
        "Reason": facts.reason,
        "Message": facts.message,
    })
}

/// Writes the parts into a tar that replaces what is at `location` once it is on the disk.
fn archive(parts: &Path, location: &Path) -> Result<()> {
    let name = location.file_name().unwrap_or_default().to_string_lossy();
    let partial = location.with_file_name(format!(".{name}.{}", new_id()?));
    let write = || {
        let mut tar = tar::Builder::new(create(&partial)?);
        tar.follow_symlinks(false);
        let written = tar.append_dir_all("", parts).and_then(|()| tar.into_inner()).and_then(|file| file.sync_all());
        written.map_err(Error::io("write", &partial))?;
        std::fs::rename(&partial, location).map_err(Error::io("rename", &partial))
    };
    write().inspect_err(|_| {
        // What is half written is of no use to anybody.
        let _ = std::fs::remove_file(&partial);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_goes_where_a_file_can_be() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
        assert!(check_location(&at("new.tar")).is_ok());
        std::fs::write(at("old.tar"), "x").unwrap();
        assert!(check_location(&at("old.tar")).is_ok());
        std::os::unix::fs::symlink("/etc/passwd", at("link")).unwrap();
        let long = format!("{}/", at("new.tar"));
        for bad in ["", "/", "relative.tar", &at("no/such.tar"), &at(""), &at("link"), &long, "/tmp/x\0y"] {
            assert!(matches!(check_location(bad), Err(Error::Invalid { field, .. }) if field == "location"), "{bad:?}");
        }
    }

    #[test]
    fn an_archive_has_the_parts_under_their_own_names_and_is_there_whole_or_not_at_all() {
        let (dir, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let parts = Parts::new(root.path()).unwrap();
        std::fs::create_dir(parts.path().join(IMAGES)).unwrap();
        std::fs::write(parts.path().join("checkpoint/pages-1.img"), "pages").unwrap();
        std::fs::write(parts.path().join("config.dump"), "{}").unwrap();
        let location = dir.path().join("c.tar");
        archive(parts.path(), &location).unwrap();
        let mut tar = tar::Archive::new(std::fs::File::open(&location).unwrap());
        let named = |entry: std::io::Result<tar::Entry<'_, std::fs::File>>| {
            entry.unwrap().path().unwrap().to_string_lossy().into_owned()
        };
        let mut names: Vec<String> = tar.entries().unwrap().map(named).collect();
        names.sort();
        assert_eq!(names, ["checkpoint", "checkpoint/pages-1.img", "config.dump"]);
        archive(&root.path().join("nothing"), &dir.path().join("d.tar")).unwrap_err();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        let path = parts.path().to_owned();
        drop(parts);
        assert!(!path.exists());
    }
}
