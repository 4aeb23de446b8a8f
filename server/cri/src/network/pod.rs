//! What a pod asks of its network, and what it gets.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What a pod asks of its network. All of it is recorded, so that it can be undone by a later daemon.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PodNetwork {
    /// The sandbox's id: the CNI container id, and the name of the attachment. `[A-Za-z0-9][A-Za-z0-9_.-]*`, ≤ 128 bytes.
    pub id: String,
    /// The pod's name (`K8S_POD_NAME`).
    pub name: String,
    /// The pod's namespace (`K8S_POD_NAMESPACE`).
    pub namespace: String,
    /// The pod's unique id (`K8S_POD_UID`).
    pub uid: String,
    /// Path of its network namespace, which must exist.
    pub netns: PathBuf,
    /// Ports of the host that lead into the pod. Those with host port 0 are left out.
    #[serde(default)]
    pub port_mappings: Vec<PortMapping>,
    /// Limits of its traffic.
    #[serde(default)]
    pub bandwidth: Option<Bandwidth>,
    /// Its DNS settings, for plug-ins that ask.
    #[serde(default)]
    pub dns: Option<Dns>,
    /// Parent of its cgroups, for plug-ins that ask.
    #[serde(default)]
    pub cgroup_parent: String,
    /// Its annotations, for plug-ins that ask.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// Other arguments by capability (`ipRanges`, `aliases`, `ips`, `mac`, …).
    #[serde(default)]
    pub capabilities: BTreeMap<String, serde_json::Value>,
    /// CNI configurations of the pod's runtime handler; none: the ones that all pods use.
    #[serde(default)]
    pub conf: Option<ConfDir>,
}

/// A directory of CNI configurations that one runtime handler has for itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfDir {
    /// The directory.
    pub dir: PathBuf,
    /// How many configurations of it are used; 0: all.
    pub max_conf_num: usize,
}

/// A port of the host that leads into the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    /// Port on the host; 0: none.
    pub host_port: u16,
    /// Port in the pod.
    pub container_port: u16,
    /// Transport.
    pub protocol: Protocol,
    /// Address of the host; none: all.
    #[serde(rename = "hostIP", default, with = "host_ip")]
    pub host_ip: Option<IpAddr>,
}

/// CNI writes "any address" as an empty string.
mod host_ip {
    use super::IpAddr;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(value: &Option<IpAddr>, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&value.map(|ip| ip.to_string()).unwrap_or_default())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<IpAddr>, D::Error> {
        let text = String::deserialize(from)?;
        if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(D::Error::custom) }
    }
}

/// Transports of a mapped port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// Limits of a pod's traffic, in bits a second and bits; 0: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Bandwidth {
    /// Into the pod: annotation `kubernetes.io/ingress-bandwidth`.
    pub ingress_rate: u64,
    /// Bits above the rate that are let through at once.
    pub ingress_burst: u64,
    /// Out of the pod: annotation `kubernetes.io/egress-bandwidth`.
    pub egress_rate: u64,
    /// Bits above the rate that are let through at once.
    pub egress_burst: u64,
}

/// DNS settings as plug-ins want them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dns {
    /// Name servers.
    pub servers: Vec<String>,
    /// Search domains.
    pub searches: Vec<String>,
    /// Resolver options.
    pub options: Vec<String>,
}

/// What a pod got.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Attached {
    /// Its addresses, the preferred one first. Never empty.
    pub ips: Vec<IpAddr>,
    /// The networks' answers: CNI results (1.0.0 form), the default network's first.
    pub results: Vec<serde_json::Value>,
}
