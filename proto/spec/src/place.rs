//! Where a process runs: its namespaces, identities, mounts, devices and cgroup.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    Hooks, LinuxDevice, LinuxDeviceCgroup, LinuxIdMapping, LinuxIdMappingBuilder, LinuxNamespace,
    LinuxNamespaceBuilder, LinuxNamespaceType, Mount, MountBuilder, Spec,
};

use crate::{SpecBuilder, SpecError};

/// A range of ids that stand for others: `size` ids from `container` on are those from `host` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    /// First id inside.
    pub container: u32,
    /// First id outside.
    pub host: u32,
    /// How many.
    pub size: u32,
}

/// A mount with ids mapped.
#[derive(Clone, Debug, Default)]
pub struct MappedMount {
    /// The mount.
    pub mount: gantry_types::Mount,
    /// User ids.
    pub uids: Vec<IdRange>,
    /// Group ids.
    pub gids: Vec<IdRange>,
}

impl SpecBuilder {
    /// Starts from a whole configuration instead of the defaults.
    pub fn from_spec(spec: Spec) -> SpecBuilder {
        let args = spec.process().as_ref().and_then(|process| process.args().clone()).unwrap_or_default();
        SpecBuilder { spec, args }
    }

    /// A namespace of its own, or the one at `path`.
    ///
    /// # Errors
    /// [`SpecError::Build`] when it cannot be described.
    pub fn namespace(mut self, kind: LinuxNamespaceType, path: Option<&Path>) -> Result<SpecBuilder, SpecError> {
        self = self.without_namespace(kind);
        let base = LinuxNamespaceBuilder::default().typ(kind);
        let made = match path {
            Some(path) => base.path(path).build(),
            None => base.build(),
        };
        let made = made.map_err(|source| SpecError::Build { what: "namespace", source })?;
        let mut all = self.linux().namespaces().clone().unwrap_or_default();
        all.push(made);
        self.linux().set_namespaces(Some(all));
        Ok(self)
    }

    /// The host's namespace of that kind.
    #[must_use]
    pub fn without_namespace(mut self, kind: LinuxNamespaceType) -> SpecBuilder {
        let mut all: Vec<LinuxNamespace> = self.linux().namespaces().clone().unwrap_or_default();
        all.retain(|namespace| namespace.typ() != kind);
        self.linux().set_namespaces(Some(all));
        self
    }

    /// How the ids of its user namespace stand for the host's.
    ///
    /// # Errors
    /// [`SpecError::Build`] when they cannot be described.
    pub fn id_mappings(mut self, uids: &[IdRange], gids: &[IdRange]) -> Result<SpecBuilder, SpecError> {
        let (uids, gids) = (mappings(uids)?, mappings(gids)?);
        self.linux().set_uid_mappings(Some(uids)).set_gid_mappings(Some(gids));
        Ok(self)
    }

    /// Takes the mount at that destination out.
    #[must_use]
    pub fn without_mount(mut self, destination: &str) -> SpecBuilder {
        let mut mounts: Vec<Mount> = self.spec.mounts().clone().unwrap_or_default();
        mounts.retain(|mount| mount.destination() != Path::new(destination));
        self.spec.set_mounts(Some(mounts));
        self
    }

    /// Adds a mount of which the ids are mapped; one at the same destination is replaced.
    ///
    /// # Errors
    /// [`SpecError::Destination`] when the destination is not absolute.
    pub fn mapped_mount(mut self, mapped: &MappedMount) -> Result<SpecBuilder, SpecError> {
        let mount = &mapped.mount;
        let destination = PathBuf::from(&mount.target);
        if !destination.is_absolute() {
            return Err(SpecError::Destination { destination });
        }
        let mut builder = MountBuilder::default()
            .destination(destination.clone())
            .typ(mount.kind.clone())
            .source(PathBuf::from(&mount.source))
            .options(mount.options.clone());
        if !mapped.uids.is_empty() {
            builder = builder.uid_mappings(mappings(&mapped.uids)?).gid_mappings(mappings(&mapped.gids)?);
        }
        let added = builder.build().map_err(|source| SpecError::Build { what: "mount", source })?;
        let mut mounts: Vec<Mount> = self.spec.mounts().clone().unwrap_or_default();
        mounts.retain(|have| have.destination() != &destination);
        mounts.push(added);
        self.spec.set_mounts(Some(mounts));
        Ok(self)
    }

    /// How mounts of the root file system pass between container and host: `private`, `rslave`, `rshared`, …
    #[must_use]
    pub fn rootfs_propagation(mut self, propagation: &str) -> SpecBuilder {
        self.linux().set_rootfs_propagation(Some(propagation.to_owned()));
        self
    }

    /// Adds a device and allows it `access` (some of `rwm`).
    #[must_use]
    pub fn device(mut self, device: LinuxDevice, access: &str) -> SpecBuilder {
        let mut rule = LinuxDeviceCgroup::default();
        rule.set_allow(true).set_typ(Some(device.typ())).set_access(Some(access.to_owned()));
        rule.set_major(Some(device.major())).set_minor(Some(device.minor()));
        let mut devices = self.linux().devices().clone().unwrap_or_default();
        devices.retain(|have| have.path() != device.path());
        devices.push(device);
        self.linux().set_devices(Some(devices));
        self.device_rule(rule)
    }

    /// Adds a rule for devices behind those that are there.
    #[must_use]
    pub fn device_rule(mut self, rule: LinuxDeviceCgroup) -> SpecBuilder {
        self.resources(|resources| {
            let mut rules = resources.devices().clone().unwrap_or_default();
            rules.push(rule);
            resources.set_devices(Some(rules));
        });
        self
    }

    /// Forgets all rules for devices, and denies all but those that every container has.
    #[must_use]
    pub fn no_devices(mut self) -> SpecBuilder {
        let mut rule = LinuxDeviceCgroup::default();
        rule.set_allow(false).set_access(Some("rwm".to_owned()));
        self.resources(|resources| {
            resources.set_devices(Some(vec![rule]));
        });
        self
    }

    /// Programs to run at points of the container's life, behind those that are there.
    #[must_use]
    pub fn hooks(mut self, hooks: Hooks) -> SpecBuilder {
        self.spec.set_hooks(Some(hooks));
        self
    }

    /// Puts it into this cgroup: a path, or `SLICE:PREFIX:NAME` for systemd.
    #[must_use]
    pub fn cgroups_path(mut self, path: &str) -> SpecBuilder {
        self.linux().set_cgroups_path(Some(PathBuf::from(path)));
        self
    }

    /// Sets kernel parameters of its namespaces.
    #[must_use]
    pub fn sysctls<'a>(mut self, sysctls: impl IntoIterator<Item = (&'a String, &'a String)>) -> SpecBuilder {
        let mut all = self.linux().sysctl().clone().unwrap_or_default();
        all.extend(sysctls.into_iter().map(|(key, value)| (key.clone(), value.clone())));
        if !all.is_empty() {
            self.linux().set_sysctl(Some(all));
        }
        self
    }

    /// Adds an annotation.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> SpecBuilder {
        let mut all = self.spec.annotations().clone().unwrap_or_default();
        all.insert(key.to_owned(), value.to_owned());
        self.spec.set_annotations(Some(all));
        self
    }

    /// The configuration of a sandbox: namespaces and limits, without root file system and program.
    #[must_use]
    pub fn build_sandbox(mut self) -> Spec {
        self.spec.set_root(None);
        self.process().set_args(None);
        self.spec
    }
}

fn mappings(ranges: &[IdRange]) -> Result<Vec<LinuxIdMapping>, SpecError> {
    let one = |range: &IdRange| {
        let builder = LinuxIdMappingBuilder::default();
        builder.container_id(range.container).host_id(range.host).size(range.size).build()
    };
    let all: Result<Vec<_>, _> = ranges.iter().map(one).collect();
    all.map_err(|source| SpecError::Build { what: "id mapping", source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn builder() -> SpecBuilder {
        SpecBuilder::new(&"ns".parse().unwrap(), "c").unwrap().args(&["x".into()])
    }

    #[test]
    fn a_namespace_by_path_replaces_one_of_its_own() {
        let path = Path::new("/proc/7/ns/net");
        let spec = builder().namespace(LinuxNamespaceType::Network, Some(path)).unwrap().build().unwrap();
        let namespaces = spec.linux().as_ref().unwrap().namespaces().clone().unwrap();
        let network: Vec<_> = namespaces.iter().filter(|ns| ns.typ() == LinuxNamespaceType::Network).collect();
        assert_eq!(network.len(), 1);
        assert_eq!(network[0].path().as_deref(), Some(path));
    }

    #[test]
    fn a_mapped_mount_carries_its_ranges() {
        let mount = gantry_types::Mount { kind: "bind".into(), target: "/m".into(), ..Default::default() };
        let ranges = vec![IdRange { container: 0, host: 1000, size: 10 }];
        let mapped = MappedMount { mount, uids: ranges.clone(), gids: ranges };
        let spec = builder().mapped_mount(&mapped).unwrap().build().unwrap();
        let mount = spec.mounts().as_ref().unwrap().last().unwrap().clone();
        assert_eq!(mount.uid_mappings().as_ref().unwrap()[0].host_id(), 1000);
    }

    #[test]
    fn a_sandbox_has_neither_root_nor_program() {
        let spec = builder().build_sandbox();
        assert!(spec.root().is_none() && spec.process().as_ref().unwrap().args().is_none());
    }
}
