//! A pod's record: the request as it came, and the few facts that nothing else tells.

use std::collections::BTreeMap;

use gantry_api::pb::runtime::v1 as wire;
use gantry_engine::sandboxes::Sandbox;
use gantry_types::{Any, Labels};
use prost::Message as _;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Extension that holds the request's configuration.
pub(crate) const CONFIG: &str = "io.gantry.cri.config";
/// Extension that holds [`Facts`].
pub(crate) const FACTS: &str = "io.gantry.cri.facts";
/// Label that tells pods from containers, as containerd sets it.
pub(crate) const KIND: &str = "io.cri-containerd.kind";

/// What is known of a pod beside its request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Facts {
    /// Runtime handler as it was asked for.
    pub(crate) handler: String,
    /// Whether the pod was made to the end; one that was not is undone at the next start.
    pub(crate) complete: bool,
    /// Process that holds the namespaces.
    pub(crate) pid: u32,
    /// SELinux label of its processes; empty for none.
    pub(crate) process_label: String,
    /// SELinux label of its mounts.
    pub(crate) mount_label: String,
    /// Its addresses, the preferred one first; none once it is stopped.
    pub(crate) ips: Vec<String>,
    /// What the networks answered.
    pub(crate) results: Vec<serde_json::Value>,
}

/// The extensions of a pod's record.
pub(crate) fn extensions(config: &wire::PodSandboxConfig, facts: &Facts) -> Result<BTreeMap<String, Any>> {
    let config = Any { type_url: "runtime.v1.PodSandboxConfig".into(), value: config.encode_to_vec() };
    Ok(BTreeMap::from([(CONFIG.to_owned(), config), (FACTS.to_owned(), facts_any(facts)?)]))
}

/// Facts as an extension.
pub(crate) fn facts_any<T: Serialize>(facts: &T) -> Result<Any> {
    let value = serde_json::to_vec(facts).map_err(|error| Error::State(format!("record: {error}")))?;
    Ok(Any { type_url: FACTS.into(), value })
}

/// Configuration and facts of a record; none of one that Kubernetes did not make, or that is damaged.
pub(crate) fn read(record: &Sandbox) -> Option<(wire::PodSandboxConfig, Facts)> {
    let config = wire::PodSandboxConfig::decode(record.extensions.get(CONFIG)?.value.as_slice()).ok()?;
    let facts = serde_json::from_slice(&record.extensions.get(FACTS)?.value).ok()?;
    Some((config, facts))
}

/// Labels of a record: the user's, as far as the store takes them, and the kind.
pub(crate) fn labels(of: &BTreeMap<String, String>, kind: &str) -> Labels {
    let short = of.iter().filter(|(key, value)| gantry_types::labels::validate(key, value).is_ok());
    let mut all: Labels = short.map(|(key, value)| (key.clone(), value.clone())).collect();
    all.insert(KIND.to_owned(), kind.to_owned());
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_too_long_for_the_store_costs_that_label_alone() {
        let long = "x".repeat(5000);
        let all = labels(&[("a".to_owned(), "b".to_owned()), ("c".to_owned(), long)].into(), "sandbox");
        assert_eq!(all.len(), 2);
        assert_eq!(all[KIND], "sandbox");
    }

    #[test]
    fn facts_of_an_older_release_are_read() {
        assert_eq!(serde_json::from_str::<Facts>(r#"{"handler":"x","gone":1}"#).unwrap().handler, "x");
    }
}
