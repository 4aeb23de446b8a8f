//! From what Kubernetes asks to what a runtime takes. Everything that a request can get wrong is found here, before
//! anything is made, and named by its field.

pub(crate) mod cdi;
mod container;
mod devices;
mod mounts;
mod user;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::OnceLock;

use gantry_api::pb::runtime::v1 as wire;
use gantry_engine::spec::oci_spec::runtime::LinuxSeccomp;
use gantry_engine::spec::{Limits, default_seccomp};
use wire::security_profile::ProfileType;

pub(crate) use container::{Plan, options_of, security_of};
pub(crate) use mounts::{ImageVolume, Volumes, check as mounts_check};
pub(crate) use user::{Accounts, Identity, identity};

use crate::config::RuntimeConfig;
use crate::creations::new_id;
use crate::{Cri, Error, Result};

/// Names of profiles as annotations and deprecated fields have them.
const RUNTIME_DEFAULT: &str = "runtime/default";
const DOCKER_DEFAULT: &str = "docker/default";
const UNCONFINED: &str = "unconfined";
const LOCALHOST: &str = "localhost/";
/// There on a node with SELinux.
const SELINUX: &str = "/sys/fs/selinux/enforce";
/// Number of `CAP_SYS_RESOURCE` (capability.h).
const SYS_RESOURCE: u32 = 24;

/// Where a container's cgroup is: below `parent`, or of systemd where the parent is a slice. None: the runtime's choice.
pub(crate) fn cgroups_path(parent: &str, id: &str) -> Option<String> {
    let slice = Path::new(parent).file_name().and_then(|name| name.to_str()).filter(|name| name.ends_with(".slice"));
    match (parent, slice) {
        ("", _) => None,
        (_, Some(slice)) => Some(format!("{slice}:cri-containerd:{id}")),
        _ => Some(Path::new("/").join(parent).join(id).to_string_lossy().into_owned()),
    }
}

/// Limits as a runtime takes them.
///
/// # Errors
/// [`Error::Invalid`] that names a field below `field`.
pub(crate) fn limits_of(field: &str, asked: &wire::LinuxContainerResources) -> Result<Limits> {
    let bad = |name: &str, reason: &str| Error::invalid(format!("{field}.{name}"), reason);
    let positive = |name: &str, value: i64| u64::try_from(value).map_err(|_| bad(name, "must not be negative"));
    if asked.cpu_quota < -1 {
        return Err(bad("cpu_quota", "must be -1 (no limit), 0 (unset) or more"));
    }
    if asked.memory_limit_in_bytes < -1 {
        return Err(bad("memory_limit_in_bytes", "must be -1 (no limit), 0 (unset) or more"));
    }
    let swap = match asked.memory_swap_limit_in_bytes {
        0 => asked.memory_limit_in_bytes,
        limit if limit > 0 && limit < asked.memory_limit_in_bytes => {
            return Err(bad("memory_swap_limit_in_bytes", "must not be less than memory_limit_in_bytes"));
        }
        limit => limit,
    };
    for (name, list) in [("cpuset_cpus", &asked.cpuset_cpus), ("cpuset_mems", &asked.cpuset_mems)] {
        if !list.bytes().all(|b| b.is_ascii_digit() || matches!(b, b',' | b'-')) {
            return Err(bad(name, "must be a list of numbers and ranges, such as 0-3,7"));
        }
    }
    if let Some(key) = asked.unified.keys().find(|key| key.contains('/') || key.is_empty()) {
        return Err(bad("unified", &format!("{key:?} is not the name of a cgroup's file")));
    }
    Ok(Limits {
        cpu_period: positive("cpu_period", asked.cpu_period)?,
        cpu_quota: asked.cpu_quota,
        cpu_shares: positive("cpu_shares", asked.cpu_shares)?,
        memory: asked.memory_limit_in_bytes,
        memory_swap: swap,
        cpuset_cpus: asked.cpuset_cpus.clone(),
        cpuset_mems: asked.cpuset_mems.clone(),
        hugepages: asked.hugepage_limits.iter().map(|page| (page.page_size.clone(), page.limit)).collect(),
        unified: asked.unified.clone(),
        pids: 0,
    })
}

/// The system call filter that a security context asks for; none for no filter.
///
/// # Errors
/// [`Error::Invalid`] that names `field`.
pub(crate) fn seccomp_of(
    field: &str,
    profile: Option<&wire::SecurityProfile>,
    deprecated: &str,
    unset: &str,
    capabilities: &BTreeSet<String>,
) -> Result<Option<LinuxSeccomp>> {
    let name = match profile {
        Some(profile) => match profile.profile_type() {
            ProfileType::RuntimeDefault => RUNTIME_DEFAULT.to_owned(),
            ProfileType::Unconfined => UNCONFINED.to_owned(),
            ProfileType::Localhost => format!("{LOCALHOST}{}", profile.localhost_ref),
        },
        None if deprecated.is_empty() => unset.to_owned(),
        None => deprecated.to_owned(),
    };
    match name.as_str() {
        "" | UNCONFINED => Ok(None),
        RUNTIME_DEFAULT | DOCKER_DEFAULT => Ok(Some(default_seccomp(capabilities)?)),
        other => match other.strip_prefix(LOCALHOST) {
            Some(path) => local_seccomp(field, path).map(Some),
            None => Err(Error::invalid(field, format!("there is no profile {other:?}"))),
        },
    }
}

fn local_seccomp(field: &str, path: &str) -> Result<LinuxSeccomp> {
    /// Largest profile that is read, in bytes.
    const MAX: u64 = 4 << 20;
    let bad = |reason: String| Error::invalid(format!("{field}.localhost_ref"), reason);
    if !path.starts_with('/') {
        return Err(bad(format!("{path:?} is not an absolute path")));
    }
    let known =
        std::fs::metadata(path).map_err(|error| bad(format!("cannot load seccomp profile {path:?}: {error}")))?;
    if !known.is_file() || known.len() > MAX {
        return Err(bad(format!("{path:?} is not a file of at most {MAX} bytes")));
    }
    let text = std::fs::read(path).map_err(|error| bad(format!("cannot load seccomp profile {path:?}: {error}")))?;
    serde_json::from_slice(&text).map_err(|error| bad(format!("decoding seccomp profile {path:?} failed: {error}")))
}

impl Cri {
    /// Limits, as far as this node has them and the configuration wants them.
    ///
    /// # Errors
    /// [`Error::Invalid`] that names a field below `field`; limits of huge pages where the node has none and the
    /// configuration does not tolerate that (`tolerate_missing_hugetlb_controller`).
    pub(crate) fn limits_here(&self, field: &str, asked: &wire::LinuxContainerResources) -> Result<Limits> {
        let mut limits = limits_of(field, asked)?;
        let runtime = &self.config.runtime;
        if runtime.disable_cgroup {
            return Ok(Limits::default());
        }
        if !limits.hugepages.is_empty() && !huge_pages_count(field, runtime, self.cgroups.has("hugetlb"))? {
            tracing::debug!("limits of huge pages are ignored");
            limits.hugepages.clear();
        }
        Ok(limits)
    }

    /// The score that can be had: a node may withhold the right to lower it, or the configuration may say not to.
    pub(crate) fn oom_score(&self, wanted: i32) -> i32 {
        let (own, may_lower) = own_score();
        let clamped = if may_lower && !self.config.runtime.restrict_oom_score_adj { wanted } else { wanted.max(own) };
        if clamped != wanted {
            static SAID: std::sync::Once = std::sync::Once::new();
            SAID.call_once(|| tracing::warn!(wanted, clamped, "oom scores cannot be lower than the daemon's own here"));
        }
        clamped
    }

    /// SELinux labels of processes and mounts; empty where none are set: by the configuration, for what is privileged,
    /// and on a node without SELinux. Without a level it gets one that no pod has.
    ///
    /// # Errors
    /// [`Error::Invalid`] for half a label.
    pub(crate) fn selinux_labels(
        &self,
        options: Option<&wire::SeLinuxOption>,
        privileged: bool,
    ) -> Result<(String, String)> {
        let on = self.config.runtime.enable_selinux && !privileged && Path::new(SELINUX).exists();
        let Some(options) = options.filter(|_| on) else { return Ok(Default::default()) };
        let parts = [&options.user, &options.role, &options.r#type, &options.level];
        if parts.iter().any(|part| part.chars().any(|c| c.is_whitespace() || c.is_control())) {
            return Err(Error::invalid("security_context.selinux_options", "must not contain blanks"));
        }
        let or = |part: &str, default: &str| if part.is_empty() { default.to_owned() } else { part.to_owned() };
        let (user, role) = (or(&options.user, "system_u"), or(&options.role, "system_r"));
        let kind = or(&options.r#type, "container_t");
        let level = if options.level.is_empty() { self.free_level()? } else { options.level.clone() };
        Ok((format!("{user}:{role}:{kind}:{level}"), format!("{user}:object_r:container_file_t:{level}")))
    }
}

impl Cri {
    /// A level with two categories that no pod has.
    fn free_level(&self) -> Result<String> {
        let taken: BTreeSet<String> = self.pods.all().iter().map(|pod| pod.facts().process_label).collect();
        loop {
            let level = level(&new_id()?, self.config.runtime.selinux_category_range);
            if !taken.iter().any(|label| label.ends_with(&format!(":{level}"))) {
                return Ok(level);
            }
        }
    }
}

/// Two different categories below `range`, the lesser first, by the digits of a random id.
fn level(id: &str, range: u32) -> String {
    let range = range.max(2);
    let number = |at: usize| id.get(at..at + 7).and_then(|digits| u32::from_str_radix(digits, 16).ok()).unwrap_or(0);
    let one = number(0) % range;
    let other = (one + 1 + number(7) % (range - 1)) % range;
    format!("s0:c{},c{}", one.min(other), one.max(other))
}

/// Whether limits of huge pages are set, on a node that has the controller for them or not.
fn huge_pages_count(field: &str, runtime: &RuntimeConfig, there: bool) -> Result<bool> {
    if runtime.disable_hugetlb_controller || there {
        return Ok(!runtime.disable_hugetlb_controller);
    }
    if runtime.tolerate_missing_hugetlb_controller {
        return Ok(false);
    }
    let reason = "this node has no cgroup controller `hugetlb`; `tolerate_missing_hugetlb_controller = true` ignores \
                  such limits";
    Err(Error::invalid(format!("{field}.hugepage_limits"), reason))
}

/// Our own score, and whether a lower one can be had.
fn own_score() -> (i32, bool) {
    static OWN: OnceLock<(i32, bool)> = OnceLock::new();
    *OWN.get_or_init(|| {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let score = read("/proc/self/oom_score_adj").trim().parse().unwrap_or_default();
        let status = read("/proc/self/status");
        let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
        let mask = effective.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).unwrap_or_default();
        (score, mask & (1 << SYS_RESOURCE) != 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_as_parent_means_systemd() {
        assert_eq!(cgroups_path("/kubepods/pod1", "c").unwrap(), "/kubepods/pod1/c");
        assert_eq!(cgroups_path("kubepods", "c").unwrap(), "/kubepods/c");
        assert_eq!(
            cgroups_path("/kubepods.slice/kubepods-pod1.slice", "c").unwrap(),
            "kubepods-pod1.slice:cri-containerd:c"
        );
        assert_eq!(cgroups_path("", "c"), None);
    }

    #[test]
    fn a_level_has_two_different_categories_of_the_range() {
        assert_eq!(level("000000a0000004", 1024), "s0:c10,c15");
        assert_eq!(level("00003ff0000000", 1024), "s0:c0,c1023");
        for id in ["fffffffffffffff", "0", "1234567890abcdef"] {
            for range in [0, 2, 3, 1024] {
                let level = level(id, range);
                let (one, other) = level.strip_prefix("s0:c").unwrap().split_once(",c").unwrap();
                let (one, other): (u32, u32) = (one.parse().unwrap(), other.parse().unwrap());
                assert!(one < other && other < range.max(2), "{level} of {range}");
            }
        }
    }

    #[test]
    fn limits_of_huge_pages_count_where_the_node_has_them_and_are_refused_where_a_lack_is_not_tolerated() {
        let counts = |disabled, tolerant, there| {
            let runtime = RuntimeConfig {
                disable_hugetlb_controller: disabled,
                tolerate_missing_hugetlb_controller: tolerant,
                ..RuntimeConfig::default()
            };
            huge_pages_count("r", &runtime, there).map_err(|error| error.to_string())
        };
        assert_eq!(counts(false, false, true), Ok(true));
        assert_eq!(counts(false, true, false), Ok(false));
        assert_eq!(counts(true, false, true), Ok(false));
        assert_eq!(counts(true, false, false), Ok(false));
        let refused = counts(false, false, false).unwrap_err();
        assert!(refused.contains("r.hugepage_limits") && refused.contains("tolerate_missing"), "{refused}");
    }

    #[test]
    fn memory_and_swap_together_default_to_the_memory_limit() {
        let asked = wire::LinuxContainerResources { memory_limit_in_bytes: 64, ..Default::default() };
        assert_eq!(limits_of("r", &asked).unwrap().memory_swap, 64);
    }

    #[test]
    fn hostile_limits_are_refused_by_field() {
        let refused = |asked: wire::LinuxContainerResources| match limits_of("r", &asked) {
            Err(Error::Invalid { field, .. }) => field,
            other => panic!("{other:?}"),
        };
        let base = wire::LinuxContainerResources::default;
        assert_eq!(refused(wire::LinuxContainerResources { cpu_period: -1, ..base() }), "r.cpu_period");
        assert_eq!(refused(wire::LinuxContainerResources { cpu_quota: -2, ..base() }), "r.cpu_quota");
        assert_eq!(refused(wire::LinuxContainerResources { cpuset_cpus: "../x".into(), ..base() }), "r.cpuset_cpus");
        let unified = [("../../x".to_owned(), "1".to_owned())].into();
        assert_eq!(refused(wire::LinuxContainerResources { unified, ..base() }), "r.unified");
    }

    #[test]
    fn a_profile_must_be_one_there_is() {
        let none = BTreeSet::new();
        let of = |profile, deprecated: &str| seccomp_of("s", profile, deprecated, "", &none);
        assert!(of(None, "").unwrap().is_none());
        assert!(of(None, "runtime/default").unwrap().is_some());
        assert!(of(None, "nonsense").is_err());
        let local = wire::SecurityProfile {
            profile_type: ProfileType::Localhost as i32,
            localhost_ref: "/no/such/file".into(),
        };
        assert!(matches!(of(Some(&local), ""), Err(Error::Invalid { field, .. }) if field == "s.localhost_ref"));
    }
}
