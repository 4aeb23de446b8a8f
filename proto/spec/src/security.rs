//! What a process may do: capabilities, filters, labels, and what it does not see.

use std::collections::{BTreeSet, HashSet};
use std::str::FromStr as _;

use oci_spec::runtime::{Capability, LinuxCapabilities, LinuxSeccomp};

use crate::{ALL_CAPABILITIES, SpecBuilder, SpecError};

impl SpecBuilder {
    /// Sets bounding, effective and permitted capabilities; `ambient` ones are inheritable, too.
    #[must_use]
    pub fn capabilities(mut self, held: &BTreeSet<String>, ambient: &BTreeSet<String>) -> SpecBuilder {
        let set = |names: &BTreeSet<String>| -> HashSet<Capability> {
            names.iter().filter_map(|name| Capability::from_str(name.trim_start_matches("CAP_")).ok()).collect()
        };
        let (held, ambient) = (set(held), set(ambient));
        let mut capabilities = LinuxCapabilities::default();
        capabilities.set_bounding(Some(held.clone())).set_effective(Some(held.clone())).set_permitted(Some(held));
        let ambient = (!ambient.is_empty()).then_some(ambient);
        capabilities.set_inheritable(ambient.clone()).set_ambient(ambient);
        self.process().set_capabilities(Some(capabilities));
        self
    }

    /// Whether the process may gain privileges by executing a file.
    #[must_use]
    pub fn no_new_privileges(mut self, forbidden: bool) -> SpecBuilder {
        self.process().set_no_new_privileges(Some(forbidden));
        self
    }

    /// Replaces the paths that are hidden, and those that cannot be written.
    #[must_use]
    pub fn hidden_paths(mut self, masked: &[String], readonly: &[String]) -> SpecBuilder {
        self.linux().set_masked_paths(Some(masked.to_vec())).set_readonly_paths(Some(readonly.to_vec()));
        self
    }

    /// Sets the system call filter; none for no filter.
    #[must_use]
    pub fn seccomp(mut self, filter: Option<LinuxSeccomp>) -> SpecBuilder {
        self.linux().set_seccomp(filter);
        self
    }

    /// Sets the AppArmor profile.
    #[must_use]
    pub fn apparmor(mut self, profile: &str) -> SpecBuilder {
        self.process().set_apparmor_profile(Some(profile.to_owned()));
        self
    }

    /// Sets the SELinux labels of the process and of its mounts.
    #[must_use]
    pub fn selinux(mut self, process: &str, mounts: &str) -> SpecBuilder {
        self.process().set_selinux_label(Some(process.to_owned()));
        self.linux().set_mount_label(Some(mounts.to_owned()));
        self
    }

    /// Sets the score with the out-of-memory killer, −1000 to 1000.
    #[must_use]
    pub fn oom_score_adj(mut self, score: i32) -> SpecBuilder {
        self.process().set_oom_score_adj(Some(score));
        self
    }

    /// Sets no limits of its own (getrlimit(2)): the process has those of its shim.
    #[must_use]
    pub fn without_rlimits(mut self) -> SpecBuilder {
        self.process().set_rlimits(None);
        self
    }
}

/// Names of all capabilities, `CAP_…`.
pub fn all_capabilities() -> BTreeSet<String> {
    ALL_CAPABILITIES.iter().map(|capability| format!("CAP_{capability}")).collect()
}

/// Names of the capabilities that containers have by default.
///
/// # Errors
/// Never in practice: the built-in defaults are tested.
pub fn default_capabilities() -> Result<BTreeSet<String>, SpecError> {
    let spec: oci_spec::runtime::Spec =
        serde_json::from_str(crate::DEFAULT).map_err(|source| SpecError::Defaults { source })?;
    let process = spec.process().as_ref().and_then(|process| process.capabilities().clone()).unwrap_or_default();
    Ok(process.bounding().iter().flatten().map(|capability| format!("CAP_{capability}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_capabilities_are_fourteen_and_all_are_known() {
        let default = default_capabilities().unwrap();
        assert_eq!(default.len(), 14);
        assert!(default.contains("CAP_NET_BIND_SERVICE"));
        assert!(default.is_subset(&all_capabilities()));
    }

    #[test]
    fn an_ambient_capability_is_inheritable_too() {
        let one = BTreeSet::from(["CAP_NET_ADMIN".to_owned()]);
        let builder = SpecBuilder::new(&"ns".parse().unwrap(), "c").unwrap().args(&["x".into()]);
        let spec = builder.capabilities(&one, &one).build().unwrap();
        let capabilities = spec.process().as_ref().unwrap().capabilities().clone().unwrap();
        assert!(capabilities.ambient().as_ref().unwrap().contains(&Capability::NetAdmin));
        assert_eq!(capabilities.ambient(), capabilities.inheritable());
    }
}
