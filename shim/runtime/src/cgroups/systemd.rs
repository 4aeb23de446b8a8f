//! Cgroups as systemd units: `cgroupsPath` is `slice:prefix:name`. The unit's place in the tree is known from its name.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A scope (or slice) that holds a container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Unit {
    /// `prefix-name.scope`.
    pub(crate) name: String,
    /// The slice it is in.
    pub(crate) slice: String,
}

impl Unit {
    /// Reads `slice:prefix:name`; empty is `system.slice:gantry:ID`.
    pub(crate) fn parse(cgroups_path: &str, id: &str) -> Result<Unit> {
        let text = if cgroups_path.is_empty() { format!(":gantry:{id}") } else { cgroups_path.to_owned() };
        let parts = text.split(':').collect::<Vec<_>>();
        let [slice, prefix, name] = parts[..] else {
            return Err(Error::invalid("linux.cgroupsPath", format!("{text:?} is not slice:prefix:name")));
        };
        let slice = if slice.is_empty() { "system.slice" } else { slice };
        let bad = |text: &str| text.contains('/') || text.contains('\0');
        if bad(slice) || bad(prefix) || bad(name) || !slice.ends_with(".slice") {
            return Err(Error::invalid("linux.cgroupsPath", format!("{text:?} names no unit")));
        }
        let name = match (name.ends_with(".slice"), prefix) {
            (true, _) => name.to_owned(),
            (false, "") => format!("{name}.scope"),
            (false, prefix) => format!("{prefix}-{name}.scope"),
        };
        Ok(Unit { name, slice: slice.to_owned() })
    }

    /// Its directory below the hierarchy's root: `a-b.slice` lies in `a.slice`.
    pub(crate) fn path(&self) -> PathBuf {
        let mut path = PathBuf::new();
        let stem = self.slice.trim_end_matches(".slice");
        if stem != "-" {
            let mut prefix = String::new();
            for part in stem.split('-') {
                if !prefix.is_empty() {
                    prefix.push('-');
                }
                prefix.push_str(part);
                path.push(format!("{prefix}.slice"));
            }
        }
        path.join(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_lies_below_the_slices_of_its_name() {
        let unit = Unit::parse("kubepods-burstable-pod1.slice:cri:abc", "x").unwrap();
        assert_eq!(
            unit.path(),
            PathBuf::from("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-abc.scope")
        );
        assert_eq!(Unit::parse("", "x").unwrap().path(), PathBuf::from("system.slice/gantry-x.scope"));
        assert!(Unit::parse("/default/x", "x").is_err());
    }
}
