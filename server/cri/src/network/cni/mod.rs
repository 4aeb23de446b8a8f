//! Networks by CNI plug-ins: which there are, and each verb over a network's chain of plug-ins.

mod cache;
mod conf;
mod orphans;
mod plugin;
mod result;
mod template;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use conf::Version;
pub(super) use conf::{ConfList, is_valid_name};
pub(super) use orphans::kill as kill_orphans;
use plugin::{Call, Verb};
pub(super) use template::fill;

use super::namespace::is_namespace;
use super::{CniConfig, ConfDir, Error, PodNetwork, Result};

/// Networks are called after the interfaces they give to pods: `eth0`, `eth1`, …
const INTERFACE_PREFIX: &str = "eth";
/// Marks processes of plug-ins with the directory of records that they belong to.
const MARK: &str = "GANTRY_NETWORK";

/// A network that a pod is attached to, as it is recorded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Network {
    /// Its configuration at the time.
    pub(super) list: ConfList,
    /// The pod's interface.
    pub(super) interface: String,
    /// The last plug-in's answer to ADD.
    #[serde(default)]
    pub(super) result: Option<Map<String, Value>>,
}

impl Network {
    /// It, as containerd tells of it.
    pub(super) fn describe(&self) -> Value {
        let list = &self.list;
        network(&list.name, &list.version.to_string(), &list.plugins, &list.text, &self.interface)
    }
}

/// CNI as it is set up here.
#[derive(Clone, Debug)]
pub(super) struct Cni {
    pub(super) config: CniConfig,
    pub(super) root: PathBuf,
    pub(super) deadline: Duration,
}

impl Cni {
    /// The networks that a pod is attached to; none where there is no configuration.
    pub(super) fn networks(&self, own: Option<&ConfDir>) -> Result<Vec<Network>> {
        let (dir, max) = match own {
            Some(own) => (own.dir.as_path(), own.max_conf_num),
            None => (self.config.conf_dir.as_path(), self.config.max_conf_num),
        };
        let lists = conf::load(dir, max)?.into_iter().enumerate();
        Ok(lists.map(|(i, list)| Network { list, interface: format!("{INTERFACE_PREFIX}{i}"), result: None }).collect())
    }

    /// Calls ADD of each plug-in; the result in the form of version 1.0.0.
    pub(super) async fn add(&self, pod: &PodNetwork, network: &mut Network) -> Result<Map<String, Value>> {
        let mut previous: Option<Map<String, Value>> = None;
        for plugin in &network.list.plugins {
            let answer = self.call(Verb::Add, pod, network, plugin, previous.as_ref()).await?;
            let mut answer = result::parse(&answer).map_err(|e| bad(ConfList::kind(plugin), e))?;
            answer.entry("cniVersion").or_insert_with(|| network.list.version.to_string().into());
            previous = Some(answer);
            fail::fail_point!("cri::network-after-plugin");
        }
        let last = previous.unwrap_or_default();
        let normal = result::normalise(last.clone()).map_err(|e| bad(&network.list.name, e))?;
        let entry = cache::Entry::new(
            &network.list.name,
            &network.list.text,
            &pod.id,
            &network.interface,
            &pod.netns.to_string_lossy(),
        );
        entry.with(arguments(pod), capabilities(pod), last.clone().into()).store(&self.config.cache_dir)?;
        network.result = Some(last);
        Ok(normal)
    }

    /// Calls DEL of each plug-in, the last one first.
    pub(super) async fn delete(&self, pod: &PodNetwork, network: &Network) -> Result<()> {
        let told = network.result.as_ref().filter(|_| network.list.version >= Version::RESULT_ON_DEL);
        for plugin in network.list.plugins.iter().rev() {
            self.call(Verb::Delete, pod, network, plugin, told).await?;
        }
        cache::remove(&self.config.cache_dir, &network.list.name, &pod.id, &network.interface)
    }

    /// Calls CHECK of each plug-in, where the network's version has it.
    pub(super) async fn check(&self, pod: &PodNetwork, network: &Network) -> Result<()> {
        if network.list.version < Version::RESULT_ON_DEL || network.list.disable_check {
            return Ok(());
        }
        for plugin in &network.list.plugins {
            self.call(Verb::Check, pod, network, plugin, network.result.as_ref()).await?;
        }
        Ok(())
    }

    /// Calls STATUS of each plug-in, where the network's version has it.
    pub(super) async fn status(&self, list: &ConfList) -> Result<()> {
        if list.version < Version::STATUS_AND_GC {
            return Ok(());
        }
        for plugin in &list.plugins {
            self.run(Verb::Status, plugin, with(list, plugin, &[]), Vec::new()).await?;
        }
        Ok(())
    }

    /// Calls GC of each plug-in, where the network's version has it: whatever belongs to none of our attachments
    /// (container id, interface), nor to one that another user of CNI has cached, may go.
    pub(super) async fn collect(
        &self,
        list: &ConfList,
        ours: &[(String, String)],
        gone: impl Fn(&str) -> bool,
    ) -> Result<()> {
        if list.version < Version::STATUS_AND_GC || list.disable_gc {
            return Ok(());
        }
        let others = cache::list(&self.config.cache_dir, &list.name).into_iter();
        let others = others.map(|e| (e.container_id, e.if_name)).filter(|(id, _)| !gone(id));
        let valid: Vec<Value> = ours
            .iter()
            .cloned()
            .chain(others)
            .map(|(id, interface)| json!({"containerID": id, "ifname": interface}))
            .collect();
        // The specification's first text had the second name.
        let keys = [("cni.dev/valid-attachments", json!(valid)), ("cni.dev/attachments", json!(valid))];
        for plugin in &list.plugins {
            self.run(Verb::Collect, plugin, with(list, plugin, &keys), Vec::new()).await?;
        }
        Ok(())
    }

    /// Calls a verb that is about one attachment.
    async fn call(
        &self,
        verb: Verb,
        pod: &PodNetwork,
        network: &Network,
        plugin: &Map<String, Value>,
        previous: Option<&Map<String, Value>>,
    ) -> Result<Vec<u8>> {
        let mut extra = Vec::new();
        extra.extend(previous.map(|result| ("prevResult", json!(result))));
        let wanted = runtime_config(plugin, capabilities(pod));
        extra.extend((!wanted.is_empty()).then(|| ("runtimeConfig", json!(wanted))));
        // After a reboot the namespace is gone; plug-ins are told so by an empty path.
        let netns = if verb != Verb::Delete || is_namespace(&pod.netns) { pod.netns.as_os_str() } else { "".as_ref() };
        let args: Vec<String> = arguments(pod).iter().map(|[name, value]| format!("{name}={value}")).collect();
        let environment = vec![
            ("CNI_CONTAINERID", pod.id.clone().into()),
            ("CNI_NETNS", netns.to_owned()),
            ("CNI_IFNAME", network.interface.clone().into()),
            ("CNI_ARGS", args.join(";").into()),
        ];
        self.run(verb, plugin, with(&network.list, plugin, &extra), environment).await
    }

    async fn run(
        &self,
        verb: Verb,
        plugin: &Map<String, Value>,
        config: Value,
        mut environment: Vec<(&'static str, OsString)>,
    ) -> Result<Vec<u8>> {
        environment.push((MARK, self.root.clone().into()));
        let (plugin, input) = (ConfList::kind(plugin), config.to_string().into_bytes());
        Call { plugin, verb, bin_dirs: &self.config.bin_dirs, environment, input, limit: self.deadline }.run().await
    }
}

/// A plug-in's configuration as it is sent: the network's name and version, and what the verb adds.
fn with(list: &ConfList, plugin: &Map<String, Value>, extra: &[(&str, Value)]) -> Value {
    let mut config = plugin.clone();
    config.insert("name".into(), list.name.clone().into());
    config.insert("cniVersion".into(), list.version.to_string().into());
    config.extend(extra.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
    config.into()
}

/// Of all arguments, those by capabilities that the plug-in says it has.
fn runtime_config(plugin: &Map<String, Value>, all: Map<String, Value>) -> Map<String, Value> {
    let has = plugin.get("capabilities").and_then(Value::as_object);
    let wants = |name: &String| has.and_then(|has| has.get(name)).and_then(Value::as_bool).unwrap_or(false);
    all.into_iter().filter(|(name, _)| wants(name)).collect()
}

/// `CNI_ARGS`, as containerd sends them.
fn arguments(pod: &PodNetwork) -> Vec<[String; 2]> {
    let pair = |name: &str, value: &str| [name.to_owned(), value.to_owned()];
    vec![
        pair("IgnoreUnknown", "1"),
        pair("K8S_POD_NAMESPACE", &pod.namespace),
        pair("K8S_POD_NAME", &pod.name),
        pair("K8S_POD_INFRA_CONTAINER_ID", &pod.id),
        pair("K8S_POD_UID", &pod.uid),
    ]
}

/// Arguments by capability: <https://www.cni.dev/docs/conventions/>.
fn capabilities(pod: &PodNetwork) -> Map<String, Value> {
    let mut all = Map::new();
    let ports: Vec<_> = pod.port_mappings.iter().filter(|p| p.host_port != 0).collect();
    if !ports.is_empty() {
        all.insert("portMappings".into(), json!(ports));
    }
    if let Some(bandwidth) = &pod.bandwidth {
        all.insert("bandwidth".into(), bandwidth_argument(bandwidth));
    }
    if let Some(dns) = &pod.dns {
        all.insert("dns".into(), json!(dns));
    }
    if !pod.cgroup_parent.is_empty() {
        all.insert("cgroupPath".into(), json!(pod.cgroup_parent));
    }
    if !pod.annotations.is_empty() {
        all.insert("io.kubernetes.cri.pod-annotations".into(), json!(pod.annotations));
    }
    all.extend(pod.capabilities.clone());
    all
}

/// Directions without a limit are left out: plug-ins take a rate and a burst, or neither.
fn bandwidth_argument(bandwidth: &super::Bandwidth) -> Value {
    let mut argument = Map::new();
    if bandwidth.ingress_rate > 0 {
        argument.insert("ingressRate".into(), bandwidth.ingress_rate.into());
        argument.insert("ingressBurst".into(), bandwidth.ingress_burst.into());
    }
    if bandwidth.egress_rate > 0 {
        argument.insert("egressRate".into(), bandwidth.egress_rate.into());
        argument.insert("egressBurst".into(), bandwidth.egress_burst.into());
    }
    argument.into()
}

/// The addresses of a result on an interface.
pub(super) fn addresses(name: &str, result: &Map<String, Value>, interface: &str) -> Result<Vec<std::net::IpAddr>> {
    result::addresses(result, interface).map_err(|e| bad(name, e))
}

fn bad(network: &str, reason: String) -> Error {
    Error::BadResult { network: network.into(), reason }
}

/// What is set, and the networks that come of it; each as [`network`] has it. The loopback interface counts as one.
pub(super) fn describe(config: &CniConfig, networks: Vec<Value>) -> Value {
    let source = json!({"cniVersion": "0.3.1", "name": "cni-loopback", "plugins": [{"type": "loopback"}]});
    let loopback = network("cni-loopback", "0.3.1", &[plugin("loopback")], &source.to_string(), "lo");
    let networks: Vec<Value> = std::iter::once(loopback).chain(networks).collect();
    json!({
        "PluginDirs": config.bin_dirs,
        "PluginConfDir": config.conf_dir,
        "PluginMaxConfNum": config.max_conf_num,
        "Prefix": INTERFACE_PREFIX,
        "Networks": networks,
    })
}

/// A plug-in of that name, with nothing set.
pub(super) fn plugin(kind: &str) -> Map<String, Value> {
    Map::from_iter([("type".to_owned(), kind.into())])
}

/// A network as go-cni tells of it.
pub(super) fn network(
    name: &str,
    version: &str,
    plugins: &[Map<String, Value>],
    source: &str,
    interface: &str,
) -> Value {
    let plugins: Vec<Value> = plugins.iter().map(of_plugin).collect();
    json!({
        "Config": {"Name": name, "CNIVersion": version, "Plugins": plugins, "Source": source},
        "IFName": interface,
    })
}

/// What every plug-in has, and all that it is told.
fn of_plugin(plugin: &Map<String, Value>) -> Value {
    let mut known = json!({"type": ConfList::kind(plugin), "ipam": {}});
    if let Some(kind) = plugin.get("ipam").and_then(|ipam| ipam.get("type")) {
        known["ipam"]["type"] = kind.clone();
    }
    if let Some(capabilities) = plugin.get("capabilities") {
        known["capabilities"] = capabilities.clone();
    }
    json!({"Network": known, "Source": json!(plugin).to_string()})
}
