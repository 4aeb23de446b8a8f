//! Performing mounts one upon the other, and taking them away.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use gantry_mount::Unmount;
use gantry_types::Mount;
use serde::{Deserialize, Serialize};

use super::plan::{Plan, Transform, is_handled, split};
use super::prepare::Roots;
use super::{ActiveMount, Error, format, prepare};
use crate::core::Core;

/// What was performed, and what is left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Performed {
    pub(crate) active: Vec<ActiveMount>,
    pub(crate) system: Vec<Mount>,
}

/// Where the mount points are.
pub(crate) fn targets(core: &Core) -> PathBuf {
    core.config.state.join("mounts")
}

/// Performs `mounts` as planned below the directory of `id`. When one fails, those before it are taken away.
pub(crate) async fn perform(
    core: &Core,
    id: &str,
    mounts: Vec<Mount>,
    plan: Plan,
    temporary: bool,
) -> Result<Performed, Error> {
    let directory = targets(core).join(id);
    make_directory(&directory)?;
    let mut active = Vec::with_capacity(plan.performed);
    let done = perform_in(core, &directory, mounts, plan, temporary, &mut active).await;
    if done.is_err()
        && let Err(error) = take_away(core, id, &active).await
    {
        tracing::warn!(id, %error, "mounts not taken away after a failure");
    }
    Ok(Performed { system: done?, active })
}

async fn perform_in(
    core: &Core,
    directory: &Path,
    mounts: Vec<Mount>,
    plan: Plan,
    temporary: bool,
    active: &mut Vec<ActiveMount>,
) -> Result<Vec<Mount>, Error> {
    let roots = Roots(vec![targets(core), core.config.root.clone()]);
    let mut left = Vec::new();
    for (index, mount) in mounts.into_iter().enumerate() {
        if index > plan.performed {
            left.push(mount);
            continue;
        }
        let count = if index == plan.performed { plan.transforms } else { usize::MAX };
        let mount = transform(mount, count, active, &roots).await?;
        if index == plan.performed {
            left.push(mount);
            continue;
        }
        let point = directory.join((plan.performed - index).to_string());
        make_directory(&point)?;
        let (performed, place) = (mount.clone(), point.clone());
        let mounted = tokio::task::spawn_blocking(move || mount_at(&performed, &place));
        let mounted = mounted.await.map_err(|_| Error::Unsupported { what: "a mount that panics" })?;
        let mount = mounted.map_err(|source| Error::Mount { index, source })?;
        active.push(ActiveMount { mount, mounted_at: SystemTime::now(), mount_point: point, data: Default::default() });
    }
    if let (true, Some(last)) = (temporary, active.last()) {
        left.push(bind(&last.mount_point));
    }
    Ok(left)
}

/// A mount that shows what is at `point`.
pub(crate) fn bind(point: &Path) -> Mount {
    let source = point.to_string_lossy().into_owned();
    Mount { kind: "bind".into(), source, target: String::new(), options: vec!["rbind".into()] }
}

fn make_directory(path: &Path) -> Result<(), Error> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(Error::io("make", path))
}

/// Applies the first `count` transforms of a mount's type.
async fn transform(mut mount: Mount, count: usize, before: &[ActiveMount], roots: &Roots) -> Result<Mount, Error> {
    for _ in 0..count {
        let Some((transform, rest)) = split(&mount.kind) else { break };
        mount.kind = rest.to_owned();
        mount = match transform {
            Transform::Format => format::fill_in(&mount, before)?,
            Transform::Mkdir => prepare::mkdir(mount, roots)?,
            Transform::Mkfs => prepare::mkfs(mount, roots).await?,
        };
    }
    Ok(mount)
}

/// Mounts at `point`; gives the mount as it was performed. Blocks.
fn mount_at(mount: &Mount, point: &Path) -> Result<Mount, gantry_mount::Error> {
    if !is_handled(&mount.kind) {
        gantry_mount::mount_all(std::slice::from_ref(mount), point)?;
        return Ok(mount.clone());
    }
    // A file is mounted as it is where the kernel can (Linux 6.12), else behind a loop device.
    let mut direct = mount.clone();
    direct.options.retain(|option| option != "loop");
    match gantry_mount::mount_all(std::slice::from_ref(&direct), point) {
        Err(error) if error.errno() == Some(nix::errno::Errno::ENOTBLK as i32) => {}
        done => return done.map(|()| direct),
    }
    direct.options.extend(["ro".to_owned(), "loop".to_owned()]);
    gantry_mount::mount_all(std::slice::from_ref(&direct), point)?;
    Ok(direct)
}

/// Unmounts what is active, the last one first, and removes the directory of `id`, and what else is mounted there.
pub(crate) async fn take_away(core: &Core, id: &str, active: &[ActiveMount]) -> Result<(), Error> {
    let directory = targets(core).join(id);
    let points: Vec<PathBuf> = active.iter().rev().map(|mount| mount.mount_point.clone()).collect();
    let work = tokio::task::spawn_blocking(move || {
        let failed = |source| Error::Mount { index: 0, source };
        let first = points.iter().filter_map(|point| gantry_mount::unmount_all(point, Unmount::default()).err());
        if let Some(source) = first.reduce(|first, _| first) {
            return Err(failed(source));
        }
        gantry_mount::unmount_recursive(&directory, Unmount::default()).map_err(failed)?;
        remove(&directory)
    });
    work.await.map_err(|_| Error::Unsupported { what: "an unmount that panics" })?
}

/// Removes mount points, and nothing that lies in them: should one still be mounted, its files are not ours.
fn remove(directory: &Path) -> Result<(), Error> {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        std::fs::remove_dir(entry.path()).map_err(Error::io("remove", &entry.path()))?;
    }
    match std::fs::remove_dir(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", directory)(error)),
        _ => Ok(()),
    }
}
