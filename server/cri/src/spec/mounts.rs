//! Mounts of a container: what every pod shares, what the request names, volumes of images.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use gantry_api::pb::runtime::v1 as wire;
use gantry_engine::spec::{IdRange, MappedMount, SpecBuilder};
use gantry_types::Mount;
use wire::MountPropagation;

use crate::{Error, Result};

/// Options that a mount may ask for beside (`Mount.mount_options`).
const EXTRA: [&str; 12] = [
    "nosuid",
    "suid",
    "nodev",
    "dev",
    "noexec",
    "exec",
    "noatime",
    "atime",
    "nodiratime",
    "diratime",
    "relatime",
    "nosymfollow",
];

/// Directories that stand ready for a container before its mounts are described.
#[derive(Clone, Debug, Default)]
pub(crate) struct Volumes {
    /// Images mounted as volumes.
    pub(crate) images: Vec<ImageVolume>,
    /// Volumes that the image's own configuration declares: destination and directory on the host.
    pub(crate) declared: Vec<(String, PathBuf)>,
}

/// An image's files, mounted on the host.
#[derive(Clone, Debug)]
pub(crate) struct ImageVolume {
    /// Which of the request's mounts it is for.
    pub(crate) at: usize,
    /// The directory in it that is to be mounted.
    pub(crate) source: PathBuf,
}

/// Checks the mounts of a request as far as this can be done without the node.
///
/// # Errors
/// [`Error::Invalid`] that names the field.
pub(crate) fn check(mounts: &[wire::Mount]) -> Result<()> {
    for (at, mount) in mounts.iter().enumerate() {
        let bad = |name: &str, reason: &str| Err(Error::invalid(format!("config.mounts[{at}].{name}"), reason));
        let image = mount.image.as_ref().is_some_and(|image| !image.image.is_empty());
        if mount.container_path.is_empty() || mount.container_path.contains('\0') {
            return bad("container_path", "must not be empty");
        }
        match (image, mount.host_path.is_empty()) {
            (true, false) => return bad("image", "cannot be set together with host_path"),
            (false, true) => return bad("host_path", "must be set, or image"),
            _ => {}
        }
        if !mount.host_path.is_empty() && (!mount.host_path.starts_with('/') || mount.host_path.contains('\0')) {
            return bad("host_path", "must be an absolute path");
        }
        if image && !mount.readonly {
            return bad("readonly", "must be set: an image cannot be written to");
        }
        if !mount.image_sub_path.is_empty() && !image {
            return bad("image_sub_path", "needs an image");
        }
        if Path::new(&mount.image_sub_path).is_absolute() || mount.image_sub_path.split('/').any(|part| part == "..") {
            return bad("image_sub_path", "must be relative and without `..`");
        }
        if MountPropagation::try_from(mount.propagation).is_err() {
            return bad("propagation", "is not known");
        }
        if mount.recursive_read_only && !(mount.readonly && mount.propagation() == MountPropagation::PropagationPrivate)
        {
            return bad("recursive_read_only", "needs readonly, and private propagation");
        }
        if mount.uid_mappings.is_empty() != mount.gid_mappings.is_empty() {
            return bad("uidMappings", "must be set together with gidMappings");
        }
        if let Some(option) = mount.mount_options.iter().find(|option| !EXTRA.contains(&option.as_str())) {
            return bad("mount_options", &format!("{option:?} is not one of {}", EXTRA.join(", ")));
        }
    }
    Ok(())
}

/// Adds the mounts of a request, and the volumes that the image declares; gives where each comes from, by destination.
/// `note` is told of each path of the host before it is looked at.
///
/// # Errors
/// [`Error::Invalid`] that names the field.
pub(super) fn add(
    mut builder: SpecBuilder,
    mounts: &[wire::Mount],
    volumes: &Volumes,
    users: Option<&[IdRange]>,
    note: &dyn Fn(String),
) -> Result<(SpecBuilder, BTreeMap<String, String>)> {
    let mut sorted: Vec<(usize, &wire::Mount)> = mounts.iter().enumerate().collect();
    // What lies above is mounted first, or it would hide what lies below.
    sorted.sort_by_key(|(_, mount)| Path::new(&mount.container_path).components().count());
    for (destination, source) in &volumes.declared {
        let named = mounts.iter().any(|mount| Path::new(&mount.container_path) == Path::new(destination));
        if !named {
            builder = builder.mapped_mount(&bind(&source.to_string_lossy(), destination, "rw", users))?;
        }
    }
    let (mut propagation, mut sources) = (None, BTreeMap::new());
    for (at, mount) in sorted {
        let source = match volumes.images.iter().find(|volume| volume.at == at) {
            Some(volume) => volume.source.clone(),
            None => {
                note(format!("looking at config.mounts[{at}].host_path {:?}", mount.host_path));
                source_of(at, mount)?
            }
        };
        sources.insert(mount.container_path.clone(), source.to_string_lossy().into_owned());
        builder = builder.mapped_mount(&described(mount, &source))?;
        propagation = propagation.max(needed(mount.propagation()));
    }
    let builder = match propagation {
        None => builder,
        Some(Needed::Slave) => builder.rootfs_propagation("rslave"),
        Some(Needed::Shared) => builder.rootfs_propagation("rshared"),
    };
    Ok((builder, sources))
}

/// A bind mount of the pod's own files. With a user namespace they belong to its root.
pub(super) fn bind(source: &str, destination: &str, access: &str, users: Option<&[IdRange]>) -> MappedMount {
    let options = ["rbind", "rprivate", access].map(str::to_owned).to_vec();
    let mount = Mount { kind: "bind".into(), source: source.into(), target: destination.into(), options };
    let ranges = users.map(<[IdRange]>::to_vec).unwrap_or_default();
    MappedMount { mount, uids: ranges.clone(), gids: ranges }
}

/// What the root file system must pass on for a mount.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Needed {
    Slave,
    Shared,
}

fn needed(propagation: MountPropagation) -> Option<Needed> {
    match propagation {
        MountPropagation::PropagationPrivate => None,
        MountPropagation::PropagationHostToContainer => Some(Needed::Slave),
        MountPropagation::PropagationBidirectional => Some(Needed::Shared),
    }
}

fn described(mount: &wire::Mount, source: &Path) -> MappedMount {
    let propagation = match mount.propagation() {
        MountPropagation::PropagationPrivate => "rprivate",
        MountPropagation::PropagationHostToContainer => "rslave",
        MountPropagation::PropagationBidirectional => "rshared",
    };
    let image = mount.image.as_ref().is_some_and(|image| !image.image.is_empty());
    let mut options = vec!["rbind", propagation];
    options.push(if mount.readonly || image { "ro" } else { "rw" });
    if mount.recursive_read_only {
        options.push("rro");
    }
    options.extend(mount.mount_options.iter().map(String::as_str));
    let ranges = |all: &[wire::IdMapping]| {
        all.iter().map(|r| IdRange { container: r.container_id, host: r.host_id, size: r.length }).collect()
    };
    let target = if mount.container_path.starts_with('/') {
        mount.container_path.clone()
    } else {
        format!("/{}", mount.container_path)
    };
    let mount_ = Mount {
        kind: "bind".into(),
        source: source.to_string_lossy().into_owned(),
        target,
        options: options.into_iter().map(str::to_owned).collect(),
    };
    MappedMount { mount: mount_, uids: ranges(&mount.uid_mappings), gids: ranges(&mount.gid_mappings) }
}

/// Where a mount of the host comes from: links followed, a missing directory made, as Docker and containerd do.
fn source_of(at: usize, mount: &wire::Mount) -> Result<PathBuf> {
    let bad = |error: std::io::Error| {
        Error::invalid(format!("config.mounts[{at}].host_path"), format!("{:?}: {error}", mount.host_path))
    };
    let path = Path::new(&mount.host_path);
    match std::fs::canonicalize(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            std::fs::create_dir_all(path).map_err(bad)?;
            std::fs::canonicalize(path).map_err(bad)
        }
        found => found.map_err(bad),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(host: &str, inside: &str) -> wire::Mount {
        wire::Mount { host_path: host.into(), container_path: inside.into(), ..Default::default() }
    }

    fn refused(mount: wire::Mount) -> String {
        match check(&[mount]) {
            Err(Error::Invalid { field, .. }) => field,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn contradictory_mounts_are_refused_by_field() {
        let image = wire::ImageSpec { image: "i".into(), ..Default::default() };
        assert_eq!(refused(mount("/a", "")), "config.mounts[0].container_path");
        assert_eq!(refused(mount("", "/a")), "config.mounts[0].host_path");
        assert_eq!(refused(mount("a", "/a")), "config.mounts[0].host_path");
        assert_eq!(refused(wire::Mount { image: Some(image.clone()), ..mount("/a", "/a") }), "config.mounts[0].image");
        let written = wire::Mount { image: Some(image.clone()), ..mount("", "/a") };
        assert_eq!(refused(written), "config.mounts[0].readonly");
        let up =
            wire::Mount { readonly: true, image: Some(image), image_sub_path: "a/../../b".into(), ..mount("", "/a") };
        assert_eq!(refused(up), "config.mounts[0].image_sub_path");
        let rro = wire::Mount { recursive_read_only: true, ..mount("/a", "/a") };
        assert_eq!(refused(rro), "config.mounts[0].recursive_read_only");
        let option = wire::Mount { mount_options: vec!["bind".into()], ..mount("/a", "/a") };
        assert_eq!(refused(option), "config.mounts[0].mount_options");
    }

    #[test]
    fn upper_mounts_come_first_and_propagation_reaches_the_root() {
        let directory = tempfile::tempdir().unwrap();
        let host = directory.path().to_str().unwrap();
        let mut shared = mount(host, "/a/b");
        shared.set_propagation(MountPropagation::PropagationBidirectional);
        let builder = SpecBuilder::new(&"ns".parse().unwrap(), "c").unwrap().args(&["x".into()]);
        let told = std::cell::RefCell::new(Vec::new());
        let note = |text: String| told.borrow_mut().push(text);
        let (builder, sources) = add(builder, &[shared, mount(host, "/a")], &Volumes::default(), None, &note).unwrap();
        assert_eq!((told.borrow().len(), sources.len()), (2, 2));
        let spec = builder.build().unwrap();
        let mounts = spec.mounts().as_ref().unwrap();
        let last: Vec<_> = mounts[mounts.len() - 2..].iter().map(|m| m.destination().to_str().unwrap()).collect();
        assert_eq!(last, ["/a", "/a/b"]);
        assert_eq!(spec.linux().as_ref().unwrap().rootfs_propagation().as_deref(), Some("rshared"));
    }

    #[test]
    fn a_missing_directory_of_the_host_is_made() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new/one");
        source_of(0, &mount(path.to_str().unwrap(), "/x")).unwrap();
        assert!(path.is_dir());
    }
}
