//! The configuration of what holds a pod's namespaces.

use std::path::Path;

use gantry_api::pb::runtime::v1::{LinuxContainerResources, NamespaceMode, PodSandboxConfig};
use gantry_engine::spec::oci_spec::runtime::{LinuxNamespaceType as Kind, Spec};
use gantry_engine::spec::{IdRange, Limits, SpecBuilder};

use super::pause::Pause;
use super::{Pod, namespaces_of, security_of};
use crate::config::RuntimeHandler;
use crate::spec::{cgroups_path, limits_of, seccomp_of};
use crate::{Cri, Error, Result, handlers};

/// The weight of what only waits.
const SANDBOX_SHARES: u64 = 2;
/// What the kernel's out-of-memory killer spares the most, but for itself.
const SANDBOX_OOM_SCORE: i32 = -998;

impl Cri {
    /// The pod's configuration; `netns` is its bound network namespace, where there is one already.
    pub(super) fn pod_spec(
        &self,
        pod: &Pod,
        handler: &RuntimeHandler,
        netns: Option<&Path>,
        pause: Option<&Pause>,
    ) -> Result<Spec> {
        let config = pod.config();
        let security = security_of(&config);
        let options = namespaces_of(&config);
        let capabilities = gantry_engine::spec::default_capabilities()?;
        let seccomp = seccomp_of(
            "config.linux.security_context.seccomp",
            security.seccomp.as_ref(),
            &security.seccomp_profile_path,
            &self.config.runtime.unset_seccomp_profile,
            &capabilities,
        )?;
        let parent = config.linux.as_ref().map(|linux| linux.cgroup_parent.as_str()).unwrap_or_default();
        let shares = if self.config.runtime.disable_cgroup { 0 } else { SANDBOX_SHARES };
        let mut builder = SpecBuilder::new(&self.scope.namespace, &pod.id)?
            .without_rlimits()
            .no_devices()
            .limits(&Limits { cpu_shares: shares, ..Limits::default() })
            .oom_score_adj(self.oom_score(SANDBOX_OOM_SCORE))
            .seccomp(if security.privileged { None } else { seccomp });
        if let Some(path) = cgroups_path(parent, &pod.id).filter(|_| !self.config.runtime.disable_cgroup) {
            builder = builder.cgroups_path(&path);
        }
        builder = namespaces(builder, &options, netns)?;
        if options.network() != NamespaceMode::Node {
            builder = builder.hostname(&hostname_of(&config)?);
        }
        builder = builder.sysctls(&self.sysctls(&config)).sysctls(&asked_sysctls(&config));
        let facts = pod.facts();
        if !facts.process_label.is_empty() {
            builder = builder.selinux(&facts.process_label, &facts.mount_label);
        }
        for (key, value) in annotations(&config, &pod.id) {
            builder = builder.annotation(key, &value);
        }
        for (key, value) in handlers::passed(&handler.pod_annotations, &config.annotations) {
            builder = builder.annotation(key, value);
        }
        match pause {
            Some(pause) => pause.build(builder),
            None => Ok(builder.build_sandbox()),
        }
    }

    /// What pods with a network of their own get without asking, as containerd has it.
    fn sysctls(&self, config: &PodSandboxConfig) -> std::collections::BTreeMap<String, String> {
        let options = namespaces_of(config);
        let own_network = options.network() != NamespaceMode::Node;
        let own_users = options.userns_options.as_ref().is_some_and(|users| users.mode() == NamespaceMode::Pod);
        let runtime = &self.config.runtime;
        let mut all = std::collections::BTreeMap::new();
        if own_network && runtime.enable_unprivileged_ports {
            all.insert("net.ipv4.ip_unprivileged_port_start".to_owned(), "0".to_owned());
        }
        // The range must lie within the ids of the user namespace.
        if own_network && runtime.enable_unprivileged_icmp && !own_users {
            all.insert("net.ipv4.ping_group_range".to_owned(), "0 2147483647".to_owned());
        }
        all
    }
}

fn asked_sysctls(config: &PodSandboxConfig) -> std::collections::BTreeMap<String, String> {
    // Kubernetes writes some with slashes, sysctl(8) reads both.
    let all = config.linux.as_ref().map(|linux| linux.sysctls.clone()).unwrap_or_default();
    all.into_iter().map(|(key, value)| (if key.contains('.') { key } else { key.replace('/', ".") }, value)).collect()
}

fn namespaces(
    mut builder: SpecBuilder,
    options: &gantry_api::pb::runtime::v1::NamespaceOption,
    netns: Option<&Path>,
) -> Result<SpecBuilder> {
    builder = match options.network() {
        NamespaceMode::Node => builder.without_namespace(Kind::Network).without_namespace(Kind::Uts),
        _ => builder.namespace(Kind::Network, netns)?,
    };
    if options.ipc() == NamespaceMode::Node {
        builder = builder.without_namespace(Kind::Ipc);
    }
    if options.pid() == NamespaceMode::Node {
        builder = builder.without_namespace(Kind::Pid);
    }
    if let Some((uids, gids)) = user_ranges("config.linux.security_context.namespace_options", options)? {
        builder = builder.namespace(Kind::User, None)?.id_mappings(&uids, &gids)?;
    }
    Ok(builder)
}

/// The user and group ids of a user namespace, where one is asked for.
///
/// # Errors
/// [`Error::Invalid`] for what containerd refuses, too: a mode other than POD and NODE, not exactly one range of users
/// and one of groups, an empty one, or two different ones.
pub(crate) fn user_ranges(
    field: &str,
    options: &gantry_api::pb::runtime::v1::NamespaceOption,
) -> Result<Option<(Vec<IdRange>, Vec<IdRange>)>> {
    let Some(users) = &options.userns_options else { return Ok(None) };
    let field = |name: &str| format!("{field}.userns_options.{name}");
    match NamespaceMode::try_from(users.mode) {
        Ok(NamespaceMode::Node) if users.uids.is_empty() && users.gids.is_empty() => return Ok(None),
        Ok(NamespaceMode::Node) => {
            return Err(Error::invalid(field("uids"), "cannot be mapped in the node's namespace"));
        }
        Ok(NamespaceMode::Pod) => {}
        _ => return Err(Error::invalid(field("mode"), "must be POD or NODE")),
    }
    let ranges = |name: &str, all: &[gantry_api::pb::runtime::v1::IdMapping]| match all {
        [one] if one.length > 0 => {
            Ok(vec![IdRange { container: one.container_id, host: one.host_id, size: one.length }])
        }
        _ => Err(Error::invalid(field(name), "must be exactly one range that is not empty")),
    };
    let (uids, gids) = (ranges("uids", &users.uids)?, ranges("gids", &users.gids)?);
    if uids != gids {
        return Err(Error::invalid(field("gids"), "must be the same range as `uids`"));
    }
    Ok(Some((uids, gids)))
}

/// The name that a pod's containers have as a host: the one asked for, or the node's.
pub(crate) fn hostname_of(config: &PodSandboxConfig) -> Result<String> {
    if !config.hostname.is_empty() {
        return Ok(config.hostname.clone());
    }
    let path = Path::new("/proc/sys/kernel/hostname");
    std::fs::read_to_string(path).map(|name| name.trim_end().to_owned()).map_err(Error::io("read", path))
}

fn annotations(config: &PodSandboxConfig, id: &str) -> Vec<(&'static str, String)> {
    let metadata = config.metadata.clone().unwrap_or_default();
    let resources = config.linux.as_ref().and_then(|linux| linux.resources.clone()).unwrap_or_default();
    let LinuxContainerResources { cpu_period, cpu_quota, cpu_shares, memory_limit_in_bytes, .. } = resources;
    vec![
        ("io.kubernetes.cri.container-type", "sandbox".to_owned()),
        ("io.kubernetes.cri.sandbox-id", id.to_owned()),
        ("io.kubernetes.cri.sandbox-name", metadata.name),
        ("io.kubernetes.cri.sandbox-namespace", metadata.namespace),
        ("io.kubernetes.cri.sandbox-uid", metadata.uid),
        ("io.kubernetes.cri.sandbox-log-directory", config.log_directory.clone()),
        ("io.kubernetes.cri.sandbox-cpu-period", cpu_period.to_string()),
        ("io.kubernetes.cri.sandbox-cpu-quota", cpu_quota.to_string()),
        ("io.kubernetes.cri.sandbox-cpu-shares", cpu_shares.to_string()),
        ("io.kubernetes.cri.sandbox-memory", memory_limit_in_bytes.to_string()),
    ]
}

/// A sandbox's configuration with the limits of its pod, for the sandbox that runs.
///
/// # Errors
/// A configuration that is damaged.
pub(super) fn with_pod_limits(spec: &[u8], config: &PodSandboxConfig, id: &str) -> Result<Vec<u8>> {
    let broken = |error: serde_json::Error| Error::State(format!("sandbox spec: {error}"));
    let spec: Spec = serde_json::from_slice(spec).map_err(broken)?;
    let mut limits = pod_limits(config)?;
    limits.cpu_shares = SANDBOX_SHARES;
    let args = spec.process().as_ref().and_then(|process| process.args().clone()).unwrap_or_default();
    let mut builder = SpecBuilder::from_spec(spec).limits(&limits).args(&args);
    for (key, value) in annotations(config, id) {
        builder = builder.annotation(key, &value);
    }
    // A program is that of a pause image.
    let spec = if args.is_empty() { builder.build_sandbox() } else { builder.build()? };
    serde_json::to_vec(&spec).map_err(broken)
}

/// The limits of a pod as a whole, for a runtime that wants them.
pub(super) fn pod_limits(config: &PodSandboxConfig) -> Result<Limits> {
    let resources = config.linux.as_ref().and_then(|linux| linux.resources.as_ref());
    resources.map_or_else(|| Ok(Limits::default()), |resources| limits_of("config.linux.resources", resources))
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_api::pb::runtime::v1::{IdMapping, NamespaceOption, UserNamespace};

    fn options(mode: NamespaceMode, uids: &[(u32, u32, u32)], gids: &[(u32, u32, u32)]) -> NamespaceOption {
        let all = |ranges: &[(u32, u32, u32)]| {
            let one = |&(container_id, host_id, length)| IdMapping { host_id, container_id, length };
            ranges.iter().map(one).collect()
        };
        let users = UserNamespace { mode: mode as i32, uids: all(uids), gids: all(gids) };
        NamespaceOption { userns_options: Some(users), ..Default::default() }
    }

    #[test]
    fn a_user_namespace_has_one_range_for_users_and_groups() {
        let range = [(0, 65536, 65536)];
        assert!(user_ranges("o", &options(NamespaceMode::Pod, &range, &range)).unwrap().is_some());
        assert!(user_ranges("o", &options(NamespaceMode::Node, &[], &[])).unwrap().is_none());
        for bad in [
            options(NamespaceMode::Pod, &range, &[]),
            options(NamespaceMode::Pod, &[(0, 1, 0)], &[(0, 1, 0)]),
            options(NamespaceMode::Pod, &range, &[(0, 7, 65536)]),
            options(NamespaceMode::Pod, &[(0, 1, 1), (1, 2, 1)], &range),
            options(NamespaceMode::Target, &range, &range),
            options(NamespaceMode::Node, &range, &range),
        ] {
            assert!(matches!(user_ranges("o", &bad), Err(Error::Invalid { .. })), "{bad:?}");
        }
    }
}
