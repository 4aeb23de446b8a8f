//! Devices: those that a request names, and for privileged containers all of the node's.

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use gantry_api::pb::runtime::v1 as wire;
use gantry_engine::spec::SpecBuilder;
use gantry_engine::spec::oci_spec::runtime::{LinuxDevice, LinuxDeviceBuilder, LinuxDeviceType};

use crate::{Error, Result};

/// Deepest directory below `/dev` that is looked into.
const MAX_DEPTH: usize = 8;
/// Parts of `/dev` that every container has of its own.
const OWN: [&str; 7] =
    ["/dev/pts", "/dev/shm", "/dev/fd", "/dev/mqueue", "/dev/.lxc", "/dev/.lxd-mounts", "/dev/.udev"];

/// Whose a container's devices are: those of the node's owner where it is nobody.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Owner {
    /// User, unless 0.
    pub(super) uid: u32,
    /// Group, unless 0.
    pub(super) gid: u32,
}

impl Owner {
    fn of(self, mut device: LinuxDevice) -> LinuxDevice {
        if self.uid != 0 {
            device.set_uid(Some(self.uid));
        }
        if self.gid != 0 {
            device.set_gid(Some(self.gid));
        }
        device
    }
}

/// Adds the devices that a request names; a directory stands for all devices in it.
///
/// # Errors
/// [`Error::Invalid`] that names the field.
pub(super) fn add(mut builder: SpecBuilder, asked: &[wire::Device], owner: Owner) -> Result<SpecBuilder> {
    for (at, device) in asked.iter().enumerate() {
        let bad = |name: &str, reason: String| Error::invalid(format!("config.devices[{at}].{name}"), reason);
        if !device.permissions.bytes().all(|b| b"rwm".contains(&b)) {
            return Err(bad("permissions", format!("{:?} must be some of r, w and m", device.permissions)));
        }
        let path = std::fs::canonicalize(&device.host_path)
            .map_err(|error| bad("host_path", format!("{:?}: {error}", device.host_path)))?;
        let inside = if device.container_path.is_empty() { &device.host_path } else { &device.container_path };
        if !inside.starts_with('/') {
            return Err(bad("container_path", format!("{inside:?} is not an absolute path")));
        }
        let mut found = Vec::new();
        collect(&path, Path::new(inside), 0, &mut found);
        if found.is_empty() {
            return Err(bad("host_path", format!("{:?} is not a device", device.host_path)));
        }
        let owned = found.into_iter().map(|found| owner.of(found));
        builder = owned.fold(builder, |builder, found| builder.device(found, &device.permissions));
    }
    Ok(builder)
}

/// All devices of the node.
pub(super) fn all() -> Vec<LinuxDevice> {
    let mut found = Vec::new();
    collect(Path::new("/dev"), Path::new("/dev"), 0, &mut found);
    found.retain(|device| device.path() != Path::new("/dev/console"));
    found
}

fn collect(path: &Path, inside: &Path, depth: usize, found: &mut Vec<LinuxDevice>) {
    let Ok(known) = std::fs::symlink_metadata(path) else { return };
    if known.is_dir() {
        if depth == MAX_DEPTH || OWN.iter().any(|own| path == Path::new(own)) {
            return;
        }
        let mut names: Vec<_> =
            std::fs::read_dir(path).into_iter().flatten().flatten().map(|e| e.file_name()).collect();
        names.sort();
        names.iter().for_each(|name| collect(&path.join(name), &inside.join(name), depth + 1, found));
        return;
    }
    found.extend(device(path, inside));
}

/// The device at a path, as it is to appear inside.
pub(super) fn device(path: &Path, inside: &Path) -> Option<LinuxDevice> {
    let known = std::fs::symlink_metadata(path).ok()?;
    let kind = match known.file_type() {
        kind if kind.is_char_device() => LinuxDeviceType::C,
        kind if kind.is_block_device() => LinuxDeviceType::B,
        _ => return None,
    };
    let number = known.rdev();
    let (major, minor) = (nix::sys::stat::major(number), nix::sys::stat::minor(number));
    let builder = LinuxDeviceBuilder::default()
        .path(inside)
        .typ(kind)
        .major(i64::try_from(major).ok()?)
        .minor(i64::try_from(minor).ok()?)
        .file_mode(known.mode() & 0o777)
        .uid(known.uid())
        .gid(known.gid());
    builder.build().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(host: &str, permissions: &str) -> wire::Device {
        wire::Device { host_path: host.into(), container_path: "/dev/x".into(), permissions: permissions.into() }
    }

    fn builder() -> SpecBuilder {
        SpecBuilder::new(&"ns".parse().unwrap(), "c").unwrap().args(&["x".into()])
    }

    #[test]
    fn a_device_is_made_under_its_inner_name() {
        let made = |owner| {
            let spec = add(builder(), &[asked("/dev/null", "rw")], owner).unwrap().build().unwrap();
            spec.linux().as_ref().unwrap().devices().as_ref().unwrap()[0].clone()
        };
        let device = made(Owner::default());
        assert_eq!((device.path().to_str().unwrap(), device.major(), device.minor()), ("/dev/x", 1, 3));
        assert_eq!((device.uid(), device.gid()), (Some(0), Some(0)));
        let device = made(Owner { uid: 7, gid: 0 });
        assert_eq!((device.uid(), device.gid()), (Some(7), Some(0)), "the container's user, where it has one");
    }

    #[test]
    fn what_is_no_device_is_refused_by_field() {
        for (host, permissions, field) in [
            ("/etc/passwd", "r", "config.devices[0].host_path"),
            ("/no/such", "r", "config.devices[0].host_path"),
            ("/dev/null", "rx", "config.devices[0].permissions"),
        ] {
            let error = add(builder(), &[asked(host, permissions)], Owner::default()).map(|_| ()).unwrap_err();
            assert!(matches!(&error, Error::Invalid { field: f, .. } if f == field), "{error}");
        }
    }
}
