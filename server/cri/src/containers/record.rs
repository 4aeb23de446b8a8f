//! A container's record: the request as it came, and the facts that nothing else tells. While a task runs, the task is
//! the truth; its end is written here before the task goes.

use gantry_api::pb::runtime::v1 as wire;
use gantry_engine::containers::Container as Record;
use gantry_types::Any;
use prost::Message as _;
use serde::{Deserialize, Serialize};

use crate::spec::Identity;
use crate::{Error, Result};

/// Extension that holds the request's configuration.
pub(crate) const CONFIG: &str = "io.gantry.cri.config";
/// Extension that holds [`Facts`].
pub(crate) const FACTS: &str = "io.gantry.cri.facts";

/// What is known of a container beside its request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Facts {
    /// Id of the image.
    pub(crate) image_id: String,
    /// The image by digest.
    pub(crate) image_ref: String,
    /// Images of its mounts by digest, by the mount's destination.
    pub(crate) volume_refs: std::collections::BTreeMap<String, String>,
    /// Where its mounts come from on the host, links followed, by the mount's destination.
    pub(crate) sources: std::collections::BTreeMap<String, String>,
    /// File of its log; empty for none.
    pub(crate) log_path: String,
    /// Signal that asks it to end.
    pub(crate) stop_signal: i32,
    /// Who its process is.
    pub(crate) identity: Identity,
    /// Whether it is started from images of processes, which lie among its files until then.
    pub(crate) restores: bool,
    /// Whether it is frozen while its pod is checkpointed.
    pub(crate) held: bool,
    /// When it was started, nanoseconds since 1970; 0 before.
    pub(crate) started_at: i64,
    /// When it ended; 0 before.
    pub(crate) finished_at: i64,
    /// How it ended.
    pub(crate) exit_code: i32,
    /// Why, in one word.
    pub(crate) reason: String,
    /// Why, for people.
    pub(crate) message: String,
    /// Process on the host; 0 while there is none.
    #[serde(skip)]
    pub(crate) pid: u32,
    /// The shim does not answer: nobody knows what it does.
    #[serde(skip)]
    pub(crate) unknown: bool,
}

/// Configuration as an extension.
pub(crate) fn config_any(config: &wire::ContainerConfig) -> Any {
    Any { type_url: "runtime.v1.ContainerConfig".into(), value: config.encode_to_vec() }
}

/// Facts as an extension.
pub(crate) fn facts_any(facts: &Facts) -> Result<Any> {
    let value = serde_json::to_vec(facts).map_err(|error| Error::State(format!("record: {error}")))?;
    Ok(Any { type_url: FACTS.into(), value })
}

/// Whether Kubernetes asked for this container, and it was not made to the end.
pub(crate) fn is_half_made(record: &Record) -> bool {
    record.extensions.contains_key(CONFIG) && !record.extensions.contains_key(FACTS)
}

/// Configuration and facts of a record; none of one that Kubernetes did not make as a container, or that is damaged.
pub(crate) fn read(record: &Record) -> Option<(wire::ContainerConfig, Facts)> {
    let config = wire::ContainerConfig::decode(record.extensions.get(CONFIG)?.value.as_slice()).ok()?;
    let facts = serde_json::from_slice(&record.extensions.get(FACTS)?.value).ok()?;
    Some((config, facts))
}
