//! The configuration of one container.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use gantry_api::pb::runtime::v1 as wire;
use gantry_engine::spec::oci_spec::image::ImageConfiguration;
use gantry_engine::spec::oci_spec::runtime::{LinuxDeviceCgroup, LinuxNamespaceType as Kind, Spec};
use gantry_engine::spec::{IdRange, MappedMount, SpecBuilder, all_capabilities, default_capabilities};
use gantry_types::Mount;
use wire::NamespaceMode;
use wire::security_profile::ProfileType;

use super::{Identity, Volumes, cdi, cgroups_path, devices, mounts, seccomp_of};
use crate::config::RuntimeHandler;
use crate::pods::Pod;
use crate::stages::Stages;
use crate::{Cri, Error, Result, handlers};

/// Where the kernel lists what AppArmor has loaded; missing where it is not on.
const APPARMOR: &str = "/sys/kernel/security/apparmor/profiles";

/// Everything that a container's configuration is made from.
pub(crate) struct Plan<'a> {
    pub(crate) id: &'a str,
    pub(crate) pod: &'a Pod,
    pub(crate) config: &'a wire::ContainerConfig,
    pub(crate) image: &'a ImageConfiguration,
    pub(crate) handler: &'a RuntimeHandler,
    pub(crate) identity: &'a Identity,
    pub(crate) volumes: &'a Volumes,
    /// Process of the container whose processes are to be seen, for namespace mode TARGET.
    pub(crate) target: Option<u32>,
    /// Ranges of the pod's user namespace.
    pub(crate) users: Option<Vec<IdRange>>,
    /// Told which path is looked at.
    pub(crate) stages: &'a Stages,
}

/// A configuration, and what was decided on the way.
pub(crate) struct ContainerSpec {
    pub(crate) spec: Spec,
    /// All groups of the process.
    pub(crate) groups: Vec<u32>,
    /// Where mounts come from, by destination.
    pub(crate) sources: BTreeMap<String, String>,
}

impl Cri {
    /// The configuration of a container.
    ///
    /// # Errors
    /// [`Error::Invalid`] that names the field.
    pub(crate) fn container_spec(&self, plan: &Plan<'_>) -> Result<ContainerSpec> {
        let security = security_of(plan.config);
        let base = match &plan.handler.base_runtime_spec {
            Some(path) => base_spec(path)?,
            None => SpecBuilder::new(&self.scope.namespace, plan.id)?.without_rlimits(),
        };
        let mut builder = process(base, plan)?;
        builder = namespaces(builder, plan, &security)?;
        builder = self.system_mounts(builder, plan, &security)?;
        let note = |text: String| plan.stages.note(text);
        let (mut builder, sources) =
            mounts::add(builder, &plan.config.mounts, plan.volumes, plan.users.as_deref(), &note)?;
        builder = self.security(builder, plan, &security)?;
        builder = self.resources(builder, plan, &security)?;
        let cdi_names = cdi::names(plan.config);
        if !cdi_names.is_empty() && !self.config.runtime.enable_cdi {
            return Err(Error::invalid("config.CDI_devices", "the configuration has CDI switched off"));
        }
        let (builder, more) = cdi::add(builder, &cdi_names, &self.config.runtime.cdi_spec_dirs)?;
        let mut groups = plan.identity.groups.clone();
        groups.extend(more);
        let builder = builder.user(plan.identity.uid, plan.identity.gid, &groups);
        let builder = annotations(builder, plan);
        Ok(ContainerSpec { spec: builder.build()?, groups, sources })
    }

    /// What every container of a pod has in its file system.
    fn system_mounts(
        &self,
        mut builder: SpecBuilder,
        plan: &Plan<'_>,
        security: &wire::LinuxContainerSecurityContext,
    ) -> Result<SpecBuilder> {
        let access = if security.privileged { "rw" } else { "ro" };
        builder = builder.without_mount("/run").without_mount("/dev/shm");
        let writable = security.privileged || plan.handler.cgroup_writable;
        // Only who owns a network's namespace mounts a sysfs of it; the node's own is bound, and read-only throughout.
        let bound = plan.users.is_some() && options_of(security).network() == NamespaceMode::Node;
        let sys = match bound {
            true => ("bind", "/sys", "/sys", "rro", &["rbind", "rprivate", "nosuid", "noexec", "nodev"][..]),
            false => ("sysfs", "sysfs", "/sys", access, &["nosuid", "noexec", "nodev"][..]),
        };
        let system = [
            sys,
            (
                "cgroup",
                "cgroup",
                "/sys/fs/cgroup",
                if writable { "rw" } else { "ro" },
                &["nosuid", "noexec", "nodev", "relatime"][..],
            ),
        ];
        for (kind, source, target, access, options) in system {
            let options = options.iter().chain([&access]).map(|option| (*option).to_owned()).collect();
            let mount = Mount { kind: kind.into(), source: source.into(), target: target.into(), options };
            builder = builder.mapped_mount(&MappedMount { mount, ..MappedMount::default() })?;
        }
        let files = self.pod_files(&plan.pod.id);
        let access = if security.readonly_rootfs { "ro" } else { "rw" };
        // They are the pod's root's already.
        let own = [
            (files.hostname(), "/etc/hostname"),
            (files.hosts(), "/etc/hosts"),
            (files.resolv_conf(), "/etc/resolv.conf"),
        ];
        for (source, target) in own.iter().filter(|(_, target)| !is_named(plan.config, target)) {
            builder = builder.mapped_mount(&mounts::bind(&source.to_string_lossy(), target, access, None))?;
        }
        if is_named(plan.config, "/dev/shm") {
            return Ok(builder);
        }
        let shared = options_of(security).ipc() == NamespaceMode::Node;
        let shm = if shared { "/dev/shm".to_owned() } else { files.shm().to_string_lossy().into_owned() };
        Ok(builder.mapped_mount(&mounts::bind(&shm, "/dev/shm", "rw", None))?)
    }

    fn security(
        &self,
        mut builder: SpecBuilder,
        plan: &Plan<'_>,
        security: &wire::LinuxContainerSecurityContext,
    ) -> Result<SpecBuilder> {
        let (held, ambient) = capabilities(security)?;
        builder = builder.capabilities(&held, &ambient).no_new_privileges(security.no_new_privs);
        if security.readonly_rootfs {
            builder = builder.readonly_root();
        }
        if security.privileged {
            return Ok(builder.hidden_paths(&[], &[]).seccomp(None));
        }
        let (masked, readonly) = match self.config.runtime.disable_proc_mount {
            true => (Vec::new(), Vec::new()),
            false => (security.masked_paths.clone(), security.readonly_paths.clone()),
        };
        builder = builder.hidden_paths(&masked, &readonly);
        let field = "config.linux.security_context.seccomp";
        let unset = &self.config.runtime.unset_seccomp_profile;
        let deprecated = &security.seccomp_profile_path;
        builder = builder.seccomp(seccomp_of(field, security.seccomp.as_ref(), deprecated, unset, &held)?);
        if let Some(profile) = self.apparmor(security)? {
            builder = builder.apparmor(&profile);
        }
        let (mut process, mut mount) = self.selinux_labels(security.selinux_options.as_ref(), false)?;
        if process.is_empty() {
            let facts = plan.pod.facts();
            (process, mount) = (facts.process_label, facts.mount_label);
        }
        Ok(if process.is_empty() { builder } else { builder.selinux(&process, &mount) })
    }

    /// The AppArmor profile that is asked for; the default is left out on a node without AppArmor.
    fn apparmor(&self, security: &wire::LinuxContainerSecurityContext) -> Result<Option<String>> {
        let field = "config.linux.security_context.apparmor";
        let on = !self.config.runtime.disable_apparmor && Path::new(APPARMOR).exists();
        let name = match &security.apparmor {
            Some(profile) => match profile.profile_type() {
                ProfileType::Localhost => Some(profile.localhost_ref.trim_start_matches("localhost/").to_owned()),
                ProfileType::RuntimeDefault | ProfileType::Unconfined => None,
            },
            None => security.apparmor_profile.strip_prefix("localhost/").map(str::to_owned),
        };
        let Some(name) = name else { return Ok(None) };
        if !on {
            return Err(Error::invalid(field, "apparmor is not supported"));
        }
        let loaded = std::fs::read_to_string(APPARMOR).unwrap_or_default();
        if !loaded.lines().any(|line| line.rsplit_once(" (").is_some_and(|(known, _)| known == name)) {
            return Err(Error::invalid(field, format!("apparmor profile not found {name:?}")));
        }
        Ok(Some(name))
    }

    fn resources(
        &self,
        mut builder: SpecBuilder,
        plan: &Plan<'_>,
        security: &wire::LinuxContainerSecurityContext,
    ) -> Result<SpecBuilder> {
        let handler = plan.handler;
        let host_devices = security.privileged && !handler.privileged_without_host_devices;
        builder = builder.no_devices();
        if host_devices || (security.privileged && handler.privileged_without_host_devices_all_devices_allowed) {
            let mut rule = LinuxDeviceCgroup::default();
            rule.set_allow(true).set_access(Some("rwm".to_owned()));
            builder = builder.device_rule(rule);
        }
        if host_devices {
            builder = devices::all().into_iter().fold(builder, |builder, device| builder.device(device, "rwm"));
        }
        let owner = match self.config.runtime.device_ownership_from_security_context {
            true => owner(security),
            false => devices::Owner::default(),
        };
        builder = devices::add(builder, &plan.config.devices, owner)?;
        let linux = plan.config.linux.as_ref();
        if let Some(asked) = linux.and_then(|linux| linux.resources.as_ref()) {
            let limits = self.limits_here("config.linux.resources", asked)?;
            let score = i32::try_from(asked.oom_score_adj.clamp(-1000, 1000)).unwrap_or_default();
            builder = builder.limits(&limits).oom_score_adj(self.oom_score(score));
        }
        let parent = plan.pod.config();
        let parent = parent.linux.as_ref().map(|linux| linux.cgroup_parent.as_str()).unwrap_or_default();
        Ok(match cgroups_path(parent, plan.id).filter(|_| !self.config.runtime.disable_cgroup) {
            Some(path) => builder.cgroups_path(&path),
            None => builder,
        })
    }
}

fn base_spec(path: &Path) -> Result<SpecBuilder> {
    let text = std::fs::read(path).map_err(Error::io("read", path))?;
    let spec = serde_json::from_slice(&text);
    Ok(SpecBuilder::from_spec(spec.map_err(|error| Error::State(format!("{}: {error}", path.display())))?))
}

fn process(mut builder: SpecBuilder, plan: &Plan<'_>) -> Result<SpecBuilder> {
    let config = plan.config;
    let image = plan.image.config().clone().unwrap_or_default();
    builder = builder.image(&image, &config.args);
    if !config.command.is_empty() {
        builder = builder.args(&[config.command.clone(), config.args.clone()].concat());
    }
    if !config.working_dir.is_empty() {
        if !config.working_dir.starts_with('/') {
            return Err(Error::invalid("config.working_dir", "must be an absolute path"));
        }
        builder = builder.cwd(&config.working_dir);
    }
    if config.tty {
        builder = builder.env("TERM=xterm");
    }
    let pod = plan.pod.config();
    let hostname = if pod.hostname.is_empty() { crate::pods::hostname_of(&pod)? } else { pod.hostname.clone() };
    builder = builder.env(&format!("HOSTNAME={hostname}"));
    for (at, pair) in config.envs.iter().enumerate() {
        if pair.key.is_empty() || pair.key.contains(['=', '\0']) || pair.value.contains(&0) {
            let reason = "must have a name without `=`, and no NUL";
            return Err(Error::invalid(format!("config.envs[{at}].key"), reason));
        }
        let value = std::str::from_utf8(&pair.value)
            .map_err(|_| Error::invalid(format!("config.envs[{at}].value"), "is not UTF-8"))?;
        builder = builder.env(&format!("{}={value}", pair.key));
    }
    Ok(builder.process_terminal(config.tty))
}

fn namespaces(
    mut builder: SpecBuilder,
    plan: &Plan<'_>,
    security: &wire::LinuxContainerSecurityContext,
) -> Result<SpecBuilder> {
    let options = options_of(security);
    let pod = plan.pod;
    let joined = [
        (Kind::Network, "net", options.network() == NamespaceMode::Node),
        (Kind::Uts, "uts", options.network() == NamespaceMode::Node),
        (Kind::Ipc, "ipc", options.ipc() == NamespaceMode::Node),
    ];
    for (kind, name, of_node) in joined {
        builder = match of_node {
            true => builder.without_namespace(kind),
            false => builder.namespace(kind, Some(&pod.namespace(name)))?,
        };
    }
    builder = match (options.pid(), plan.target) {
        (NamespaceMode::Container, _) => builder.namespace(Kind::Pid, None)?,
        (NamespaceMode::Node, _) => builder.without_namespace(Kind::Pid),
        (NamespaceMode::Target, Some(pid)) => {
            builder.namespace(Kind::Pid, Some(Path::new(&format!("/proc/{pid}/ns/pid"))))?
        }
        _ => builder.namespace(Kind::Pid, Some(&pod.namespace("pid")))?,
    };
    if let Some(ranges) = &plan.users {
        builder = builder.namespace(Kind::User, Some(&pod.namespace("user")))?.id_mappings(ranges, ranges)?;
    }
    Ok(builder)
}

/// Held and ambient capabilities.
fn capabilities(security: &wire::LinuxContainerSecurityContext) -> Result<(BTreeSet<String>, BTreeSet<String>)> {
    let all = all_capabilities();
    if security.privileged {
        return Ok((all, BTreeSet::new()));
    }
    let mut held = default_capabilities()?;
    let mut ambient = BTreeSet::new();
    let Some(asked) = &security.capabilities else { return Ok((held, ambient)) };
    let named = |field: &str, names: &[String]| -> Result<Vec<String>> {
        let one = |(at, name): (usize, &String)| {
            let upper = name.to_uppercase();
            let full = if upper.starts_with("CAP_") || upper == "ALL" { upper } else { format!("CAP_{upper}") };
            let field = format!("config.linux.security_context.capabilities.{field}[{at}]");
            let known = full == "ALL" || all.contains(&full);
            known.then_some(full).ok_or_else(|| Error::invalid(field, format!("unknown capability {name:?}")))
        };
        names.iter().enumerate().map(one).collect()
    };
    let drop = named("drop_capabilities", &asked.drop_capabilities)?;
    let add = named("add_capabilities", &asked.add_capabilities)?;
    let also = named("add_ambient_capabilities", &asked.add_ambient_capabilities)?;
    let is_all = |names: &[String]| names.iter().any(|name| name == "ALL");
    // "ALL" first, so that single ones count behind it, whichever list they stand in.
    if is_all(&add) {
        held.clone_from(&all);
    }
    if is_all(&drop) {
        held.clear();
    }
    held.extend(add.into_iter().filter(|name| name != "ALL"));
    for name in drop.iter().filter(|name| *name != "ALL") {
        held.remove(name);
    }
    let wanted: BTreeSet<String> = if is_all(&also) { all } else { also.into_iter().collect() };
    held.extend(wanted.iter().cloned());
    ambient.extend(wanted);
    Ok((held, ambient))
}

fn annotations(mut builder: SpecBuilder, plan: &Plan<'_>) -> SpecBuilder {
    let pod = plan.pod.config().metadata.clone().unwrap_or_default();
    let name = plan.config.metadata.as_ref().map(|metadata| metadata.name.as_str()).unwrap_or_default();
    let image = plan.config.image.as_ref().map(|image| match image.user_specified_image.as_str() {
        "" => image.image.as_str(),
        specified => specified,
    });
    for (key, value) in [
        ("io.kubernetes.cri.container-type", "container"),
        ("io.kubernetes.cri.container-name", name),
        ("io.kubernetes.cri.image-name", image.unwrap_or_default()),
        ("io.kubernetes.cri.sandbox-id", &plan.pod.id),
        ("io.kubernetes.cri.sandbox-name", &pod.name),
        ("io.kubernetes.cri.sandbox-namespace", &pod.namespace),
        ("io.kubernetes.cri.sandbox-uid", &pod.uid),
    ] {
        builder = builder.annotation(key, value);
    }
    for (key, value) in handlers::passed(&plan.handler.container_annotations, &plan.config.annotations) {
        builder = builder.annotation(key, value);
    }
    builder
}

fn is_named(config: &wire::ContainerConfig, destination: &str) -> bool {
    config.mounts.iter().any(|mount| Path::new(&mount.container_path) == Path::new(destination))
}

/// A container's security context; an empty one where it has none.
pub(crate) fn security_of(config: &wire::ContainerConfig) -> wire::LinuxContainerSecurityContext {
    config.linux.as_ref().and_then(|linux| linux.security_context.clone()).unwrap_or_default()
}

/// How its namespaces are chosen.
pub(crate) fn options_of(security: &wire::LinuxContainerSecurityContext) -> wire::NamespaceOption {
    security.namespace_options.clone().unwrap_or_default()
}

/// User and group that a security context names by number.
fn owner(security: &wire::LinuxContainerSecurityContext) -> devices::Owner {
    let number = |id: &Option<wire::Int64Value>| id.as_ref().and_then(|id| u32::try_from(id.value).ok()).unwrap_or(0);
    devices::Owner { uid: number(&security.run_as_user), gid: number(&security.run_as_group) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(add: &[&str], drop: &[&str], ambient: &[&str]) -> Result<(BTreeSet<String>, BTreeSet<String>)> {
        let all = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let capability = wire::Capability {
            add_capabilities: all(add),
            drop_capabilities: all(drop),
            add_ambient_capabilities: all(ambient),
        };
        capabilities(&wire::LinuxContainerSecurityContext { capabilities: Some(capability), ..Default::default() })
    }

    #[test]
    fn single_capabilities_count_behind_all() {
        let (held, _) = of(&["ALL"], &["chown"], &[]).unwrap();
        assert!(held.len() == all_capabilities().len() - 1 && !held.contains("CAP_CHOWN"));
        let (held, _) = of(&["NET_ADMIN"], &["ALL"], &[]).unwrap();
        assert_eq!(held, BTreeSet::from(["CAP_NET_ADMIN".to_owned()]));
        let (held, ambient) = of(&[], &[], &["SYS_TIME"]).unwrap();
        assert!(held.contains("CAP_SYS_TIME") && ambient.contains("CAP_SYS_TIME"));
    }

    #[test]
    fn an_unknown_capability_is_refused_by_field() {
        let error = of(&["CHOWN", "NO_SUCH"], &[], &[]).unwrap_err();
        let expected = "config.linux.security_context.capabilities.add_capabilities[1]";
        assert!(matches!(error, Error::Invalid { field, .. } if field == expected));
    }
}
