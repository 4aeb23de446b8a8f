//! What is told when somebody asks verbosely, in containerd's forms: tools read it by its keys.

use std::path::Path;
use std::sync::OnceLock;

use gantry_types::Any;
use prost::{Message, Name};
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};
use serde_json::{Map, Value, json};

/// A message as Go's `encoding/json` writes it: fields by their names in the definition, numbers as numbers, enums too,
/// and nothing that is not set. Null where its type is not known.
pub(crate) fn message<M: Message + Name>(of: &M) -> Value {
    decoded(&M::full_name(), &of.encode_to_vec()).unwrap_or_default()
}

/// The options of a runtime; null without any.
pub(crate) fn options(any: Option<&Any>) -> Value {
    let Some(any) = any else { return Value::Null };
    let name = any.type_url.rsplit('/').next().unwrap_or_default();
    decoded(name, &any.value).unwrap_or_default()
}

fn decoded(name: &str, bytes: &[u8]) -> Option<Value> {
    static POOL: OnceLock<Option<DescriptorPool>> = OnceLock::new();
    let pool = POOL.get_or_init(|| DescriptorPool::decode(gantry_api::FILE_DESCRIPTOR_SET).ok()).as_ref()?;
    let message = DynamicMessage::decode(pool.get_message_by_name(name)?, bytes).ok()?;
    let options = SerializeOptions::new()
        .use_proto_field_name(true)
        .use_enum_numbers(true)
        .stringify_64_bit_integers(false)
        .skip_default_fields(true);
    message.serialize_with_options(serde_json::value::Serializer, &options).ok()
}

/// Variables whose values, which are bytes in the definition, are told as text.
pub(crate) fn container_config(config: &gantry_api::pb::runtime::v1::ContainerConfig) -> Value {
    let mut told = message(config);
    let told_envs = told.get_mut("envs").and_then(Value::as_array_mut);
    for (told, env) in told_envs.into_iter().flatten().zip(&config.envs) {
        if !env.value.is_empty() {
            told["value"] = String::from_utf8_lossy(&env.value).into();
        }
    }
    told
}

/// The results of a pod's networks, one form of all, as containerd keeps them; null where there are none.
pub(crate) fn cni_result(results: &[Value], netns: &Path) -> Value {
    if results.is_empty() {
        return Value::Null;
    }
    let mut interfaces = Map::from_iter([("lo".to_owned(), loopback(netns))]);
    // The loopback interface counts as a network.
    let (mut dns, mut routes) = (vec![json!({})], Vec::new());
    for (at, result) in results.iter().enumerate() {
        add_interfaces(&mut interfaces, at, result, netns);
        dns.push(result.get("dns").filter(|dns| dns.is_object()).cloned().unwrap_or_else(|| json!({})));
        routes.extend(list(result, "routes").iter().cloned());
    }
    let routes = if routes.is_empty() { Value::Null } else { routes.into() };
    json!({"Interfaces": interfaces, "DNS": dns, "Routes": routes})
}

/// The interfaces of the network of that number, with their addresses.
fn add_interfaces(interfaces: &mut Map<String, Value>, network: usize, result: &Value, netns: &Path) {
    let named = list(result, "interfaces");
    let own = format!("eth{network}");
    if named.is_empty() {
        interfaces.insert(own.clone(), interface("", &netns.to_string_lossy()));
    }
    for one in named {
        interfaces.insert(text(one, "name").to_owned(), interface(text(one, "mac"), text(one, "sandbox")));
    }
    for ip in list(result, "ips") {
        let index = ip.get("interface").and_then(Value::as_u64).and_then(|index| usize::try_from(index).ok());
        let name = index.and_then(|index| named.get(index)).map_or(own.as_str(), |one| text(one, "name"));
        let address = text(ip, "address").split('/').next().unwrap_or_default();
        let Some(of) = interfaces.get_mut(name).and_then(|of| of.get_mut("IPConfigs")) else { continue };
        let config = json!({"IP": address, "Gateway": text(ip, "gateway")});
        match of {
            Value::Array(all) => all.push(config),
            none => *none = json!([config]),
        }
    }
}

fn interface(mac: &str, sandbox: &str) -> Value {
    json!({"IPConfigs": null, "Mac": mac, "Sandbox": sandbox, "PciID": "", "SocketPath": ""})
}

fn loopback(netns: &Path) -> Value {
    let mut lo = interface("00:00:00:00:00:00", &netns.to_string_lossy());
    lo["IPConfigs"] = json!([{"IP": "127.0.0.1", "Gateway": ""}, {"IP": "::1", "Gateway": ""}]);
    lo
}

fn list<'v>(of: &'v Value, key: &str) -> &'v [Value] {
    of.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn text<'v>(of: &'v Value, key: &str) -> &'v str {
    of.get(key).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use gantry_api::pb::containerd::runc::v1::Options;
    use gantry_api::pb::runtime::v1 as wire;

    use super::*;

    #[test]
    fn a_request_is_told_by_the_names_of_its_definition_without_what_is_not_set() {
        let linux = wire::LinuxContainerConfig {
            resources: Some(wire::LinuxContainerResources { cpu_quota: 1 << 40, ..Default::default() }),
            security_context: Some(wire::LinuxContainerSecurityContext {
                seccomp: Some(wire::SecurityProfile::default()),
                namespace_options: Some(wire::NamespaceOption { pid: 1, ..Default::default() }),
                ..Default::default()
            }),
        };
        let env = |key: &str, value: &str| wire::KeyValue { key: key.into(), value: value.as_bytes().to_vec() };
        let config = wire::ContainerConfig {
            envs: vec![env("FOO", "bar"), env("EMPTY", "")],
            linux: Some(linux),
            ..Default::default()
        };
        let expected = json!({
            "envs": [{"key": "FOO", "value": "bar"}, {"key": "EMPTY"}],
            "linux": {"resources": {"cpu_quota": 1u64 << 40},
                      "security_context": {"seccomp": {}, "namespace_options": {"pid": 1}}},
        });
        assert_eq!(container_config(&config), expected);
    }

    #[test]
    fn options_are_told_by_their_type() {
        let value = Options { binary_name: "/bin/crun".into(), ..Options::default() }.encode_to_vec();
        let any = Any { type_url: "containerd.runc.v1.Options".into(), value };
        assert_eq!(options(Some(&any)), json!({"binary_name": "/bin/crun"}));
        assert_eq!(options(None), Value::Null);
    }

    #[test]
    fn results_of_networks_become_interfaces_by_name() {
        let one = json!({"interfaces": [{"name": "br", "mac": "0a"}, {"name": "eth0", "sandbox": "/n"}],
            "ips": [{"address": "192.0.2.5/24", "gateway": "192.0.2.1", "interface": 1}, {"address": "fd00::5/64"}],
            "routes": [{"dst": "0.0.0.0/0"}], "dns": {"nameservers": ["192.0.2.9"]}});
        let told = cni_result(&[one, json!({"ips": [{"address": "198.51.100.1/24"}]})], Path::new("/n"));
        let addresses = json!([{"IP": "192.0.2.5", "Gateway": "192.0.2.1"}, {"IP": "fd00::5", "Gateway": ""}]);
        assert_eq!(told["Interfaces"]["eth0"]["IPConfigs"], addresses);
        assert_eq!(told["Interfaces"]["br"]["IPConfigs"], Value::Null);
        assert_eq!(told["Interfaces"]["eth1"]["IPConfigs"][0]["IP"], "198.51.100.1");
        assert_eq!(told["Interfaces"]["lo"]["Sandbox"], "/n");
        assert_eq!(told["DNS"], json!([{}, {"nameservers": ["192.0.2.9"]}, {}]));
        assert_eq!(cni_result(&[], Path::new("/n")), Value::Null);
    }
}
