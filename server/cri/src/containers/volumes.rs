//! Volumes that stand ready before a container starts: other images' files, and those that its own image declares.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use gantry_api::pb::runtime::v1 as wire;
use gantry_engine::spec::oci_spec::image::ImageConfiguration;
use gantry_types::Labels;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

use crate::files::unmount;
use crate::images::Image;
use crate::pods::Pod;
use crate::spec::{ImageVolume, Volumes};
use crate::{Cri, Error, Result};

/// What a container's volumes are, and by which image each mount is named in its status.
pub(super) struct Ready {
    pub(super) volumes: Volumes,
    pub(super) refs: BTreeMap<String, String>,
}

impl Cri {
    /// Makes a container's volumes ready.
    pub(super) async fn make_volumes(
        &self,
        id: &str,
        pod: &Pod,
        config: &wire::ContainerConfig,
        image: &ImageConfiguration,
    ) -> Result<Ready> {
        let (mut volumes, mut refs) = (Volumes::default(), BTreeMap::new());
        for (at, mount) in config.mounts.iter().enumerate() {
            let Some(spec) = mount.image.as_ref().filter(|spec| !spec.image.is_empty()) else { continue };
            let field = format!("config.mounts[{at}].image");
            let other = self.image(&spec.image).await?;
            let other = other.ok_or_else(|| Error::invalid(&field, format!("image {:?} not found", spec.image)))?;
            let source = self.mount_image(id, pod, at, &other, &mount.image_sub_path).await?;
            volumes.images.push(ImageVolume { at, source });
            refs.insert(mount.container_path.clone(), other.id().to_owned());
        }
        if !self.config.runtime.ignore_image_defined_volumes {
            let named = |path: &String| config.mounts.iter().any(|m| Path::new(&m.container_path) == Path::new(path));
            let declared = image.config().as_ref().and_then(|config| config.volumes().clone()).unwrap_or_default();
            let declared = declared.into_iter().filter(|path| path.starts_with('/') && !named(path));
            for (at, path) in declared.enumerate() {
                volumes.declared.push((path, self.volumes_of(id).join(at.to_string())));
            }
        }
        Ok(Ready { volumes, refs })
    }

    /// Fills the volumes that an image declares with what the image has there.
    pub(super) async fn fill_volumes(&self, id: &str, snapshotter: &str, volumes: &Volumes) -> Result<()> {
        if volumes.declared.is_empty() {
            return Ok(());
        }
        let tree = self.engine.snapshots.tree(&self.scope, snapshotter, id).await?;
        let declared = volumes.declared.clone();
        let copy = move || {
            for (inside, outside) in &declared {
                std::fs::create_dir_all(outside).map_err(Error::io("create", outside))?;
                copy_from(&tree, inside, outside)?;
            }
            Ok(())
        };
        tokio::task::spawn_blocking(copy).await.map_err(|_| Error::Stopped { what: "filling volumes" })?
    }

    /// Mounts an image's files on the host for one of the container's mounts; gives the directory asked for in it.
    async fn mount_image(&self, id: &str, pod: &Pod, at: usize, image: &Image, sub: &str) -> Result<PathBuf> {
        let target = self.images_of(id).join(at.to_string());
        let unpack = self.unpack_for(&pod.facts().handler);
        let top = self.unpacked(image, &unpack).await?;
        let mounts = self
            .engine
            .snapshots
            .view(&self.scope, &unpack.snapshotter, &view_key(id, at), &top, Labels::new())
            .await?;
        let (place, sub) = (target.clone(), sub.to_owned());
        let mounting = move || {
            std::fs::create_dir_all(&place).map_err(Error::io("create", &place))?;
            let failed = |error| Error::State(format!("mount of an image at {}: {error}", place.display()));
            gantry_mount::mount_all(&mounts, &place).map_err(failed)?;
            within(&place, &sub, at)
        };
        tokio::task::spawn_blocking(mounting).await.map_err(|_| Error::Stopped { what: "mounting an image" })?
    }

    /// Takes a container's volumes away.
    pub(super) async fn remove_volumes(&self, id: &str, snapshotter: &str) -> Result<()> {
        let (images, declared) = (self.images_of(id), self.volumes_of(id));
        let parent = declared.parent().map(Path::to_owned).unwrap_or_default();
        let mut count = 0;
        while images.join(count.to_string()).exists() || view_exists(self, id, snapshotter, count).await {
            unmount(&images.join(count.to_string()))?;
            let key = view_key(id, count);
            crate::pods::absent(self.engine.snapshots.remove(&self.scope, snapshotter, &key).await)?;
            count += 1;
        }
        let clear = move || [images, parent].iter().for_each(|path| drop(std::fs::remove_dir_all(path)));
        tokio::task::spawn_blocking(clear).await.map_err(|_| Error::Stopped { what: "removing volumes" })
    }

    fn images_of(&self, id: &str) -> PathBuf {
        self.state.join("image-volumes").join(id)
    }

    fn volumes_of(&self, id: &str) -> PathBuf {
        self.root.join("containers").join(id).join("volumes")
    }
}

async fn view_exists(cri: &Cri, id: &str, snapshotter: &str, at: usize) -> bool {
    cri.engine.snapshots.stat(&cri.scope, snapshotter, &view_key(id, at)).await.is_ok()
}

/// Key of the snapshot of an image that is mounted as a volume.
pub(super) fn view_key(id: &str, at: usize) -> String {
    format!("{id}-volume-{at}")
}

/// A directory below `root` that links cannot lead out of.
fn within(root: &Path, sub: &str, at: usize) -> Result<PathBuf> {
    if sub.is_empty() {
        return Ok(root.to_owned());
    }
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let opened = std::fs::File::open(root).map_err(Error::io("open", root))?;
    let field = format!("config.mounts[{at}].image_sub_path");
    let found = openat2(&opened, sub, how).map_err(|error| Error::invalid(&field, format!("{sub:?}: {error}")))?;
    let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&found));
    std::fs::read_link(&link).map_err(|error| Error::invalid(field, format!("{sub:?}: {error}")))
}

/// Copies what an image has at a path into a directory of the host, owners, modes and links as they are.
fn copy_from(tree: &gantry_engine::snapshots::Tree, inside: &str, outside: &Path) -> Result<()> {
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let relative = inside.trim_start_matches('/');
    let Ok(found) = openat2(tree, if relative.is_empty() { "." } else { relative }, how) else { return Ok(()) };
    let from = PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&found)));
    copy_directory(&from, outside)
}

fn copy_directory(from: &Path, to: &Path) -> Result<()> {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, lchown, symlink};
    let known = std::fs::metadata(from).map_err(Error::io("read", from))?;
    chown(to, Some(known.uid()), Some(known.gid())).map_err(Error::io("change the owner of", to))?;
    let mode = std::fs::Permissions::from_mode(known.mode() & 0o7777);
    std::fs::set_permissions(to, mode).map_err(Error::io("change the mode of", to))?;
    for entry in std::fs::read_dir(from).map_err(Error::io("read", from))? {
        let entry = entry.map_err(Error::io("read", from))?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let known = std::fs::symlink_metadata(&source).map_err(Error::io("read", &source))?;
        if known.is_dir() {
            std::fs::create_dir_all(&target).map_err(Error::io("create", &target))?;
            copy_directory(&source, &target)?;
        } else if known.is_symlink() {
            let link = std::fs::read_link(&source).map_err(Error::io("read", &source))?;
            symlink(link, &target).map_err(Error::io("create", &target))?;
            lchown(&target, Some(known.uid()), Some(known.gid())).map_err(Error::io("change the owner of", &target))?;
        } else if known.is_file() {
            std::fs::copy(&source, &target).map_err(Error::io("copy", &source))?;
            chown(&target, Some(known.uid()), Some(known.gid())).map_err(Error::io("change the owner of", &target))?;
            let mode = std::fs::Permissions::from_mode(known.mode() & 0o7777);
            std::fs::set_permissions(&target, mode).map_err(Error::io("change the mode of", &target))?;
        }
    }
    Ok(())
}
