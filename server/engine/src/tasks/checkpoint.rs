//! Tasks into images of CRIU and back: an archive of images in content, as containerd stores it, or a directory.

use std::fs::File;
use std::io::Seek;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use gantry_layer::{Compression, Control, DiffOptions, Limits, Options};
use gantry_shims::{Bundle, Shim};
use gantry_ttrpc::pb::containerd::runc::v1::{CheckpointOptions, Options as RuncOptions};
use gantry_ttrpc::pb::containerd::task::v3::CheckpointTaskRequest;
use gantry_types::{Algorithm, Any, Descriptor, Digest, Hasher, Labels, Mount, Scope};
use prost::{Message, Name};
use tempfile::TempDir;

use super::create::any;
use super::{Create, Task, Tasks};
use crate::content::{Content, is_present, passing};
use crate::mounts::Held;
use crate::place::{Below, Place};
use crate::stream;
use crate::{Error, Result};

/// Media type of an archive of images (containerd, `core/images/mediatypes.go`).
pub const ARCHIVE: &str = "application/vnd.containerd.container.criu.checkpoint.criu.tar";
/// Media type of the configuration beside it.
pub const CONFIG: &str = "application/vnd.containerd.container.checkpoint.config.v1+proto";
/// Longest an archive may take to be unpacked.
const UNPACKING: Duration = Duration::from_secs(600);

/// What a task is restored from.
#[derive(Clone, Debug)]
pub enum Checkpoint {
    /// An archive of images in content: what [`Tasks::checkpoint`] stored first.
    Archive(Descriptor),
    /// What [`Tasks::checkpoint_into`] left on this machine.
    Directory {
        /// The images; an absolute path.
        images: PathBuf,
        /// A layer's tar, compressed or not, that is applied to the root file system before.
        changes: Option<PathBuf>,
    },
}

impl Tasks {
    /// Checkpoints a running or paused task into content; gives the descriptors of the archive of images and of the
    /// container's configuration. With a directory in its `options` (`image_path`) the images stay there, and
    /// nothing is stored. Goes on when the caller goes away.
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` for a task that does not run; `InvalidArgument` for other options than
    /// `containerd.runc.v1.CheckpointOptions`; what the shim says, so where CRIU is missing.
    pub async fn checkpoint(&self, scope: &Scope, id: &str, options: Option<Any>) -> Result<Vec<Descriptor>> {
        let named = checkpoint_options(options.as_ref())?.image_path;
        if !named.is_empty() {
            return self.checkpoint_into(scope, id, Path::new(&named), options).await.map(|()| Vec::new());
        }
        let (task, spec) = self.task_and_spec(scope, id)?;
        let (tasks, scope) = (self.clone(), scope.clone());
        let storing = tokio::spawn(async move { tasks.store(&scope, &task, spec, options).await });
        storing.await.map_err(Error::task("checkpoint"))?
    }

    /// Checkpoints a running or paused task into a directory, which is made where it is not there.
    ///
    /// # Errors
    /// As [`Tasks::checkpoint`]; `InvalidArgument` for a relative path.
    pub async fn checkpoint_into(&self, scope: &Scope, id: &str, images: &Path, options: Option<Any>) -> Result<()> {
        checkpoint_options(options.as_ref())?;
        let (task, _) = self.task_and_spec(scope, id)?;
        let operation = self.core.ops.begin("task checkpoint", id, Some(&scope.namespace), scope.deadline);
        operation.stage("waiting for the shim to write images");
        dump(&task, images, options.as_ref()).await
    }

    fn task_and_spec(&self, scope: &Scope, id: &str) -> Result<(Arc<Task>, Option<Any>)> {
        let container = self.core.db.containers(&scope.namespace).get(id)?;
        Ok((self.task(scope, id)?, container.spec))
    }

    async fn store(
        &self,
        scope: &Scope,
        task: &Task,
        spec: Option<Any>,
        options: Option<Any>,
    ) -> Result<Vec<Descriptor>> {
        let operation = self.core.ops.begin("task checkpoint", task.shim.id(), Some(&scope.namespace), scope.deadline);
        operation.stage("waiting for the shim to write images");
        // Beside the task's own files: what a crash leaves goes with them.
        let work = task.shim.bundle().work();
        let images = TempDir::with_prefix_in("checkpoint-", work).map_err(Error::io("make a directory in", work))?;
        dump(task, images.path(), options.as_ref()).await?;
        operation.stage("storing the images");
        let archive = self.store_archive(scope, images).await?;
        let config = any(&spec.unwrap_or_default()).encode_to_vec();
        let digest = Digest::of(&config);
        let descriptor = Descriptor::new(CONFIG, digest.clone(), config.len() as u64);
        self.content().write_all(scope, &digest, config.into(), Labels::new()).await?;
        Ok(vec![archive, descriptor])
    }

    /// Stores a directory as a tar, and removes it.
    async fn store_archive(&self, scope: &Scope, images: TempDir) -> Result<Descriptor> {
        let (content, reference) = (self.content(), passing("checkpoint"));
        let mut writer = content.writer(scope, &reference, None, None).await?;
        writer.describe(ARCHIVE);
        let (mut spout, mut pieces) = stream::spout();
        let making = tokio::task::spawn_blocking(move || {
            gantry_layer::diff(None, images.path(), &mut spout, &DiffOptions::default())?;
            std::io::Write::flush(&mut spout).map_err(gantry_layer::DiffError::Write)
        });
        let (mut size, mut hasher) = (0, Hasher::new(Algorithm::Sha256));
        while let Some(piece) = pieces.recv().await {
            hasher.update(&piece);
            size = writer.write(size, piece).await?;
        }
        let digest = hasher.finish();
        let stored = match making.await.map_err(Error::task("archiving a checkpoint"))? {
            Ok(()) => writer.commit(Some(size), Some(&digest), Labels::new()).await.map(drop),
            Err(error) => Err(error.into()),
        };
        match stored {
            Err(error) if !is_present(&error) => {
                // What was written is of no use; a failure to drop it is healed when it expires.
                let _ = content.abort(scope, &reference).await;
                Err(error)
            }
            _ => Ok(Descriptor::new(ARCHIVE, digest, size)),
        }
    }

    /// The directory of images that a new task is to be made from; empty for none. An archive is unpacked into the
    /// task's own directory, and goes with it.
    pub(super) async fn images(&self, scope: &Scope, shim: &Shim, create: &Create) -> Result<String> {
        let named = restore_options(create.options.as_ref())?.criu_image_path;
        match &create.checkpoint {
            _ if !named.is_empty() => Ok(named),
            None => Ok(named),
            Some(Checkpoint::Directory { images, .. }) => Ok(images.to_string_lossy().into_owned()),
            Some(Checkpoint::Archive(archive)) => self.unpack_images(scope, shim.bundle(), archive).await,
        }
    }

    async fn unpack_images(&self, scope: &Scope, bundle: &Bundle, archive: &Descriptor) -> Result<String> {
        let directory = bundle.work().join("checkpoint");
        std::fs::DirBuilder::new().mode(0o700).create(&directory).map_err(Error::io("create", &directory))?;
        let reader = self.content().reader(scope, &archive.digest).await?;
        let (feed, drain) = stream::pipe();
        let feeding = tokio::spawn(feed.blob(reader));
        let (control, target) = (Arc::<Control>::default(), directory.clone());
        // Images are files of root's: whatever else an archive names is not made, or refused by the shim.
        let options = Options { unprivileged: true, ..self.limits(&control) };
        let unpacking = tokio::task::spawn_blocking(move || {
            gantry_layer::unpack(drain, Some(Compression::None), &target, &options)
        });
        let unpacked = tokio::time::timeout(UNPACKING, unpacking).await;
        feeding.abort();
        let unpacked = unpacked.map_err(|_| {
            control.cancel();
            Error::Deadline { what: "unpacking a checkpoint" }
        })?;
        let layer = |source| Error::Layer { digest: archive.digest.clone(), source };
        unpacked.map_err(Error::task("unpacking a checkpoint"))?.map_err(layer)?;
        Ok(directory.to_string_lossy().into_owned())
    }

    /// Applies what the root file system of the checkpoint had changed.
    pub(super) async fn apply_changes(&self, create: &Create, rootfs: &[Mount]) -> Result<()> {
        let Some(Checkpoint::Directory { changes: Some(changes), .. }) = create.checkpoint.clone() else {
            return Ok(());
        };
        let held = Held::of(&self.core, rootfs).await?;
        let (mounts, control) = (held.mounts.clone(), Arc::<Control>::default());
        let options = self.limits(&control);
        let applying = tokio::task::spawn_blocking(move || apply(&mounts, &changes, options));
        let applied = tokio::time::timeout(UNPACKING, applying).await;
        control.cancel();
        held.end().await;
        let late = |_| Error::Deadline { what: "applying the changes of a checkpoint" };
        applied.map_err(late)?.map_err(Error::task("applying the changes of a checkpoint"))?
    }

    fn limits(&self, control: &Arc<Control>) -> Options {
        let unpack = self.core.config.unpack;
        let limits = Limits { bytes: unpack.max_bytes, entries: unpack.max_entries, ..Limits::default() };
        Options { limits, control: Arc::clone(control), ..Options::default() }
    }

    fn content(&self) -> Content {
        Content { core: Arc::clone(&self.core) }
    }
}

async fn dump(task: &Task, images: &Path, options: Option<&Any>) -> Result<()> {
    let path = images.to_string_lossy().into_owned();
    let request = CheckpointTaskRequest { id: task.shim.id().to_owned(), path, options: options.map(any) };
    Ok(task.shim.calls().checkpoint(request).await?)
}

fn apply(mounts: &[Mount], changes: &Path, options: Options) -> Result<()> {
    let failed = || Error::io("read the changes of a checkpoint", changes);
    let mut file = File::open(changes).map_err(failed())?;
    let mut head = Vec::new();
    std::io::Read::read_to_end(&mut std::io::Read::take(&file, 16), &mut head).map_err(failed())?;
    file.rewind().map_err(failed())?;
    let place = Place::of(mounts, Below::Shown)?;
    let refused = |error| Error::Invalid { what: "changes of a checkpoint", reason: format!("{changes:?}: {error}") };
    place.unpack(file, gantry_layer::compression_of(&head), options).map(drop).map_err(refused)
}

/// The options of a checkpoint; all defaults where there are none.
fn checkpoint_options(options: Option<&Any>) -> Result<CheckpointOptions> {
    let Some(options) = options else { return Ok(CheckpointOptions::default()) };
    decoded(options).ok_or_else(|| {
        let kind: String = options.type_url.chars().take(200).collect();
        Error::invalid("checkpoint options", format!("{kind:?} is not {}", CheckpointOptions::full_name()))
    })
}

/// Options of a new task as far as they say from where it is restored; those of other runtimes say nothing of it.
fn restore_options(options: Option<&Any>) -> Result<RuncOptions> {
    let Some(options) = options.filter(|any| is::<RuncOptions>(any)) else { return Ok(RuncOptions::default()) };
    decoded(options).ok_or_else(|| Error::invalid("task options", "cannot be decoded"))
}

fn is<M: Name>(any: &Any) -> bool {
    any.type_url.rsplit('/').next() == Some(&M::full_name())
}

fn decoded<M: Message + Name + Default>(any: &Any) -> Option<M> {
    M::decode(any.value.as_slice()).ok().filter(|_| is::<M>(any))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_options_of_a_checkpoint_are_taken() {
        let any = |type_url: String, value| Any { type_url, value };
        let wanted = CheckpointOptions { image_path: "/x".into(), ..CheckpointOptions::default() };
        for prefix in ["", "type.googleapis.com/"] {
            let options = any(format!("{prefix}{}", CheckpointOptions::full_name()), wanted.encode_to_vec());
            assert_eq!(checkpoint_options(Some(&options)).unwrap().image_path, "/x");
        }
        let other = any(RuncOptions::full_name(), wanted.encode_to_vec());
        assert!(checkpoint_options(Some(&other)).unwrap_err().to_string().contains("CheckpointOptions"));
        assert!(checkpoint_options(Some(&any(CheckpointOptions::full_name(), vec![0xff]))).is_err());
        assert_eq!(restore_options(Some(&any("other".into(), vec![0xff]))).unwrap(), RuncOptions::default());
    }
}
