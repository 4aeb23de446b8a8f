//! A pod's network: from its configuration to what the networks are asked, and back.

use std::path::PathBuf;
use std::time::Duration;

use gantry_api::pb::runtime::v1 as wire;
use gantry_types::HasKind;

use super::Pod;
use crate::config::{Config, RuntimeHandler};
use crate::network::{
    self, Attached, Bandwidth, BridgeConfig, CniConfig, ConfDir, Dns, Networks, PodNetwork, PortMapping, Protocol,
};
use crate::{Cri, Error, Result};

/// Longest that one plug-in may take.
const DEADLINE: Duration = Duration::from_secs(60);
/// Where libcni and others look for cached results.
const CNI_CACHE: &str = "/var/lib/cni";

/// Opens the networks that the configuration describes.
pub(crate) async fn open_networks(config: &Config, root: &std::path::Path) -> Result<Networks> {
    let cni = &config.runtime.cni;
    let ip_pref = cni.ip_pref.parse().map_err(|reason: String| Error::invalid("cni.ip_pref", reason))?;
    let settings = network::Config {
        root: root.join("network"),
        cni: CniConfig {
            conf_dir: cni.conf_dir.clone(),
            max_conf_num: cni.max_conf_num,
            bin_dirs: cni.bin_dirs.clone(),
            cache_dir: CNI_CACHE.into(),
            setup_serially: cni.setup_serially,
            ip_pref,
        },
        bridge: Some(BridgeConfig::default()),
        deadline: DEADLINE,
    };
    Networks::open(settings).await.map_err(failure)
}

/// A failure of the networks as one of ours.
pub(crate) fn failure(error: network::Error) -> Error {
    Error::Network { kind: error.kind(), message: error.to_string() }
}

impl Cri {
    /// Where a pod's network namespace is bound.
    pub(crate) fn netns_of(&self, id: &str) -> PathBuf {
        if self.config.runtime.netns_mounts_under_state_dir {
            self.state.join("netns").join(id)
        } else {
            PathBuf::from("/var/run/netns").join(format!("cni-{id}"))
        }
    }

    /// Connects a pod whose network namespace is bound already.
    pub(super) async fn connect(&self, pod: &Pod, handler: &RuntimeHandler) -> Result<Attached> {
        let asked = asked_of(&pod.config(), &pod.id, self.netns_of(&pod.id), handler)?;
        let attached = self.networks.attach(asked).await.map_err(failure);
        attached.map_err(Error::at(format!("failed to setup network for sandbox {:?}", pod.id)))
    }

    /// Disconnects a pod and removes its network namespace; repeating it does no harm.
    pub(super) async fn disconnect(&self, id: &str) -> Result<()> {
        let detached = self.networks.detach(id).await.map_err(failure);
        detached.map_err(Error::at(format!("failed to destroy network for sandbox {id:?}")))?;
        network::remove_namespace(&self.netns_of(id)).await.map_err(failure)
    }
}

fn asked_of(config: &wire::PodSandboxConfig, id: &str, netns: PathBuf, handler: &RuntimeHandler) -> Result<PodNetwork> {
    let metadata = config.metadata.clone().unwrap_or_default();
    let dns = config.dns_config.clone();
    Ok(PodNetwork {
        id: id.to_owned(),
        name: metadata.name,
        namespace: metadata.namespace,
        uid: metadata.uid,
        netns,
        port_mappings: ports_of(config)?,
        bandwidth: bandwidth_of(config)?,
        dns: dns.map(|dns| Dns { servers: dns.servers, searches: dns.searches, options: dns.options }),
        cgroup_parent: config.linux.as_ref().map(|linux| linux.cgroup_parent.clone()).unwrap_or_default(),
        annotations: config.annotations.clone(),
        conf: handler.cni_conf_dir.clone().map(|dir| ConfDir { dir, max_conf_num: handler.cni_max_conf_num }),
        ..PodNetwork::default()
    })
}

/// The ports that a pod wants of the host.
pub(super) fn ports_of(config: &wire::PodSandboxConfig) -> Result<Vec<PortMapping>> {
    let one = |(at, mapping): (usize, &wire::PortMapping)| {
        let field = |name: &str| format!("config.port_mappings[{at}].{name}");
        let port = |name: &str, value: i32| {
            u16::try_from(value).map_err(|_| Error::invalid(field(name), format!("{value} is not a port")))
        };
        let protocol = match wire::Protocol::try_from(mapping.protocol) {
            Ok(wire::Protocol::Tcp) => Protocol::Tcp,
            Ok(wire::Protocol::Udp) => Protocol::Udp,
            Ok(wire::Protocol::Sctp) => Protocol::Sctp,
            Err(_) => return Err(Error::invalid(field("protocol"), "is not one of TCP, UDP and SCTP")),
        };
        let host_ip = match mapping.host_ip.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|_| Error::invalid(field("host_ip"), "is not an address"))?),
        };
        let host_port = port("host_port", mapping.host_port)?;
        let container_port = port("container_port", mapping.container_port)?;
        Ok(PortMapping { host_port, container_port, protocol, host_ip })
    };
    let all: Result<Vec<PortMapping>> = config.port_mappings.iter().enumerate().map(one).collect();
    Ok(all?.into_iter().filter(|mapping| mapping.host_port != 0).collect())
}

/// Limits of a pod's traffic, from the annotations that Kubernetes has for them.
fn bandwidth_of(config: &wire::PodSandboxConfig) -> Result<Option<Bandwidth>> {
    /// Bits let through at once, as containerd has it: the most that the plug-in takes.
    const BURST: u64 = i32::MAX as u64;
    let rate = |key: &str| match config.annotations.get(key) {
        None => Ok(0),
        Some(text) => quantity(text)
            .ok_or_else(|| Error::invalid(format!("config.annotations[{key:?}]"), format!("{text:?} is not a rate"))),
    };
    let ingress_rate = rate("kubernetes.io/ingress-bandwidth")?;
    let egress_rate = rate("kubernetes.io/egress-bandwidth")?;
    let burst = |rate: u64| if rate == 0 { 0 } else { BURST };
    let limits =
        Bandwidth { ingress_rate, ingress_burst: burst(ingress_rate), egress_rate, egress_burst: burst(egress_rate) };
    Ok((limits != Bandwidth::default()).then_some(limits))
}

/// A whole quantity with a decimal (`k`, `M`, …) or binary (`Ki`, `Mi`, …) suffix.
fn quantity(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor: u64 = match &text[digits.len()..] {
        "" => 1,
        "k" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_have_the_suffixes_of_quantities() {
        assert_eq!(quantity("10M"), Some(10_000_000));
        assert_eq!(quantity("1Ki"), Some(1024));
        assert_eq!(quantity("7"), Some(7));
        assert_eq!((quantity("x"), quantity("1Q"), quantity("-1"), quantity("99999999T")), (None, None, None, None));
    }

    #[test]
    fn a_bad_port_is_refused_with_its_field_and_one_without_host_port_is_left_out() {
        let mapping = |host_port| wire::PortMapping { host_port, container_port: 80, ..Default::default() };
        let config =
            |host_port| wire::PodSandboxConfig { port_mappings: vec![mapping(host_port)], ..Default::default() };
        let error = ports_of(&config(70_000)).unwrap_err();
        assert!(matches!(error, Error::Invalid { field, .. } if field == "config.port_mappings[0].host_port"));
        assert!(ports_of(&config(0)).unwrap().is_empty());
        assert_eq!(ports_of(&config(8080)).unwrap()[0].host_port, 8080);
    }
}
