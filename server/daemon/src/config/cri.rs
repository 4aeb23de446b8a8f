//! Which name of a file sets what: Kubernetes' part.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use gantry_cri::config::{
    CniConfig, ImagesConfig, NriConfig, OnFailure, RegistryAuth, RegistryConfig, RegistryTls, RuntimeConfig,
    RuntimeHandler, RuntimePlatform, ServerConfig,
};

use super::report::Report;
use super::schema::{Colons, form};
use super::setting::{Form, Setting, duration, number, section, text};
use super::tree::{self, Node, Table, Value};

section! {
    RuntimeConfig {
        ["containerd", "default_runtime_name"] => default_runtime_name,
        ["containerd", "runtimes"] => runtimes,
        ["containerd", "ignore_blockio_not_enabled_errors"] => ignore_blockio_not_enabled_errors,
        ["containerd", "ignore_rdt_not_enabled_errors"] => ignore_rdt_not_enabled_errors,
        ["cni"] => cni,
        ["enable_selinux"] => enable_selinux,
        ["selinux_category_range"] => selinux_category_range,
        ["max_container_log_line_size"] => max_container_log_line_size,
        ["disable_apparmor"] => disable_apparmor,
        ["restrict_oom_score_adj"] => restrict_oom_score_adj,
        ["disable_proc_mount"] => disable_proc_mount,
        ["unset_seccomp_profile"] => unset_seccomp_profile,
        ["tolerate_missing_hugetlb_controller"] => tolerate_missing_hugetlb_controller,
        ["disable_hugetlb_controller"] => disable_hugetlb_controller,
        ["disable_cgroup"] => disable_cgroup,
        ["device_ownership_from_security_context"] => device_ownership_from_security_context,
        ["ignore_image_defined_volumes"] => ignore_image_defined_volumes,
        ["netns_mounts_under_state_dir"] => netns_mounts_under_state_dir,
        ["enable_unprivileged_ports"] => enable_unprivileged_ports,
        ["enable_unprivileged_icmp"] => enable_unprivileged_icmp,
        ["enable_cdi"] => enable_cdi,
        ["cdi_spec_dirs"] => cdi_spec_dirs,
        ["drain_exec_sync_io_timeout"] => drain_exec_sync_io_timeout as OrZero,
        ["ignore_deprecation_warnings"] => ignore_deprecation_warnings,
        ["stats_collect_period"] => stats_collect_period,
        ["stats_retention_period"] => stats_retention_period,
        ["enable_criu"] => enable_criu,
    }
    ignored {
        ["containerd", "no_pivot"] => "it is an option of the runtime",
        ["containerd", "disable_snapshot_annotations"] => "it is said of images",
        ["systemd_cgroup"] => "it is an option of the runtime: SystemdCgroup",
        ["max_concurrent_downloads"] => "it is said of images",
    }
    check |config, node, report| check(config, node, report)
}

fn check_images(config: &ImagesConfig, node: &Node, report: &mut Report) {
    if !["", "node"].contains(&config.decryption_key_model.as_str()) {
        let found = node.table().and_then(|table| tree::get(table, &["image_decryption", "key_model"]));
        let text = "`image_decryption.key_model` is known as `node` alone: no encrypted image will be opened";
        report.notice(&found.unwrap_or(node).place, text);
    }
}

fn check(config: &RuntimeConfig, node: &Node, report: &mut Report) {
    let at = |path: &[&str]| node.table().and_then(|table| tree::get(table, path)).unwrap_or(node).place.clone();
    let name = &config.default_runtime_name;
    if !config.runtimes.contains_key(name) {
        let known: Vec<&str> = config.runtimes.keys().map(String::as_str).collect();
        let text = format!("there is no runtime `{name}`, which is the default; there are: {}", known.join(", "));
        report.mistake(&at(&["containerd", "default_runtime_name"]), text);
    }
    for (name, runtime) in &config.runtimes {
        let place = at(&["containerd", "runtimes", name]);
        if runtime.privileged_without_host_devices_all_devices_allowed && !runtime.privileged_without_host_devices {
            let text = "`privileged_without_host_devices_all_devices_allowed` needs `privileged_without_host_devices`";
            report.mistake(&place, text);
        }
        if !["", "fifo", "streaming"].contains(&runtime.io_type.as_str()) {
            report.mistake(&place, "`io_type` must be fifo or streaming");
        }
        if runtime.io_type == "streaming" {
            let text = "`io_type = 'streaming'` has no effect here: what a container writes goes from its shim into its \
                        log, and executions have pipes";
            report.notice(&place, text);
        }
    }
}

section! {
    RuntimeHandler {
        ["runtime_type"] => runtime_type,
        ["runtime_path"] => runtime_path,
        ["options"] => options,
        ["pod_annotations"] => pod_annotations,
        ["container_annotations"] => container_annotations,
        ["privileged_without_host_devices"] => privileged_without_host_devices,
        ["privileged_without_host_devices_all_devices_allowed"] => privileged_without_host_devices_all_devices_allowed,
        ["cgroup_writable"] => cgroup_writable,
        ["base_runtime_spec"] => base_runtime_spec,
        ["cni_conf_dir"] => cni_conf_dir,
        ["cni_max_conf_num"] => cni_max_conf_num,
        ["snapshotter"] => snapshotter,
        ["sandboxer"] => sandboxer as Sandboxer,
        ["pause_image"] => pause_image,
        ["disable_pause_image_pull"] => disable_pause_image_pull,
        ["io_type"] => io_type,
    }
}

section! {
    CniConfig {
        ["bin_dirs"] => bin_dirs,
        ["conf_dir"] => conf_dir,
        ["max_conf_num"] => max_conf_num,
        ["setup_serially"] => setup_serially,
        ["conf_template"] => conf_template,
        ["ip_pref"] => ip_pref as Preference,
        ["use_internal_loopback"] => use_internal_loopback,
    }
}

section! {
    ImagesConfig {
        ["snapshotter"] => snapshotter,
        ["disable_snapshot_annotations"] => disable_snapshot_annotations,
        ["discard_unpacked_layers"] => discard_unpacked_layers,
        ["pinned_images"] => pinned_images,
        ["runtime_platforms"] => runtime_platforms,
        ["registry"] => registry,
        ["image_decryption", "key_model"] => decryption_key_model,
        ["max_concurrent_downloads"] => max_concurrent_downloads,
        ["image_pull_progress_timeout"] => image_pull_progress_timeout as OrZero,
        ["image_pull_with_sync_fs"] => image_pull_with_sync_fs,
        ["stats_collect_period"] => stats_collect_period as Seconds,
        ["use_local_image_pull"] => use_local_image_pull,
    }
    ignored {
        ["concurrent_layer_fetch_buffer"] => "big layers are fetched in parts anyway",
    }
    check |config, node, report| check_images(config, node, report)
}

section! {
    RuntimePlatform {
        ["platform"] => platform,
        ["snapshotter"] => snapshotter,
    }
}

section! {
    ServerConfig {
        ["disable_tcp_service"] => disable_tcp_service,
        ["stream_server_address"] => stream_server_address,
        ["stream_server_port"] => stream_server_port as Port,
        ["stream_idle_timeout"] => stream_idle_timeout,
        ["enable_tls_streaming"] => enable_tls_streaming,
        ["x509_key_pair_streaming", "tls_cert_file"] => tls_cert_file,
        ["x509_key_pair_streaming", "tls_key_file"] => tls_key_file,
    }
    ignored {}
    check |server, node, report| {
        let files = [&server.tls_cert_file, &server.tls_key_file];
        let place = node.table().and_then(|table| table.get("x509_key_pair_streaming")).unwrap_or(node).place.clone();
        if files.iter().filter(|file| file.is_some()).count() == 1 {
            report.mistake(&place, "`tls_cert_file` and `tls_key_file` go together; one of them is missing");
        } else if files[0].is_some() && !server.enable_tls_streaming {
            report.mistake(&place, "certificate files need `enable_tls_streaming = true`");
        }
    }
}

section! {
    NriConfig {
        ["disable"] => disable,
        ["socket_path"] => socket_path,
        ["plugin_path"] => plugin_path,
        ["plugin_config_path"] => plugin_config_path,
        ["plugin_registration_timeout"] => registration_timeout,
        ["plugin_request_timeout"] => request_timeout,
        ["disable_connections"] => disable_connections,
        ["on_failure"] => on_failure as Failing,
    }
    ignored {
        ["default_validator"] => "there is no validator but those that are plug-ins",
    }
}

section! {
    RegistryAuth {
        ["username"] => username,
        ["password"] => password,
        ["auth"] => auth,
        ["identitytoken"] => identitytoken,
    }
}

section! {
    RegistryTls {
        ["insecure_skip_verify"] => insecure_skip_verify,
        ["ca_file"] => ca_file,
        ["cert_file"] => cert_file,
        ["key_file"] => key_file,
    }
}

/// A mirror as written.
#[derive(Default)]
struct Mirror {
    endpoint: Vec<String>,
}

section! {
    Mirror {
        ["endpoint"] => endpoint,
    }
}

/// `configs."HOST"` as written.
#[derive(Default)]
struct Host {
    auth: Option<RegistryAuth>,
    tls: Option<RegistryTls>,
}

section! {
    Host {
        ["auth"] => auth,
        ["tls"] => tls,
    }
}

impl<T: Setting + Default> Setting for Option<T>
where
    T: super::setting::Section,
{
    fn read(&mut self, node: &Node, report: &mut Report) {
        self.get_or_insert_default().read(node, report);
    }

    fn write(&self) -> Option<Value> {
        self.as_ref().and_then(Setting::write)
    }
}

/// The section `registry` as written: outdated forms beside `config_path`.
#[derive(Default)]
struct Written {
    config_path: Vec<PathBuf>,
    mirrors: BTreeMap<String, Mirror>,
    configs: BTreeMap<String, Host>,
    auths: BTreeMap<String, RegistryAuth>,
    headers: BTreeMap<String, Vec<String>>,
}

section! {
    Written {
        ["config_path"] => config_path as Colons,
        ["mirrors"] => mirrors,
        ["configs"] => configs,
        ["auths"] => auths,
        ["headers"] => headers,
    }
}

impl Setting for RegistryConfig {
    fn read(&mut self, node: &Node, report: &mut Report) {
        let mut written = Written::default();
        written.read(node, report);
        outdated(node, report);
        *self = RegistryConfig {
            config_path: written.config_path,
            mirrors: written.mirrors.into_iter().map(|(host, mirror)| (host, mirror.endpoint)).collect(),
            headers: written.headers,
            ..RegistryConfig::default()
        };
        for (host, config) in written.configs {
            self.auths.extend(config.auth.map(|auth| (host.clone(), auth)));
            self.tls.extend(config.tls.map(|tls| (host, tls)));
        }
        self.auths.extend(written.auths.into_iter().map(|(url, auth)| (host_of(&url).to_owned(), auth)));
        if !self.config_path.is_empty() && !self.mirrors.is_empty() {
            report.mistake(&node.place, "`mirrors` cannot be set where `config_path` is; move them to hosts.toml");
        }
    }

    fn write(&self) -> Option<Value> {
        let hosts: std::collections::BTreeSet<&String> = self.auths.keys().chain(self.tls.keys()).collect();
        let host = |host: &String| Host { auth: self.auths.get(host).cloned(), tls: self.tls.get(host).cloned() };
        let mirror = |(host, endpoint): (&String, &Vec<String>)| (host.clone(), Mirror { endpoint: endpoint.clone() });
        let written = Written {
            config_path: self.config_path.clone(),
            mirrors: self.mirrors.iter().map(mirror).collect(),
            configs: hosts.into_iter().map(|name| (name.clone(), host(name))).collect(),
            auths: BTreeMap::new(),
            headers: self.headers.clone(),
        };
        written.write()
    }
}

fn outdated(node: &Node, report: &mut Report) {
    for (name, instead) in [
        ("mirrors", "config_path with a hosts.toml for each host"),
        ("configs", "config_path with a hosts.toml for each host"),
        ("auths", "image pull secrets"),
    ] {
        if let Some(node) = node.table().and_then(|table| table.get(name)).filter(|node| !node.is_empty()) {
            report.within(&[name], |report| {
                report.notice(&node.place, format!("`{}` is outdated, use {instead}", report.name()));
            });
        }
    }
}

/// The host of an URL, or what is one already.
fn host_of(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split('/').next().unwrap_or(rest)
}

impl Setting for serde_json::Value {
    fn read(&mut self, node: &Node, _report: &mut Report) {
        *self = json(&node.value);
    }

    fn write(&self) -> Option<Value> {
        of_json(self)
    }
}

fn json(value: &Value) -> serde_json::Value {
    match value {
        Value::Text(text) | Value::Other(text) => text.clone().into(),
        Value::Integer(number) => (*number).into(),
        Value::Float(number) => (*number).into(),
        Value::Bool(set) => (*set).into(),
        Value::List(list) => list.iter().map(|node| json(&node.value)).collect(),
        Value::Table(table) => table.iter().map(|(name, node)| (name.clone(), json(&node.value))).collect(),
    }
}

fn of_json(value: &serde_json::Value) -> Option<Value> {
    Some(match value {
        serde_json::Value::Null => return None,
        serde_json::Value::Bool(set) => Value::Bool(*set),
        serde_json::Value::Number(number) => match number.as_i64() {
            Some(number) => Value::Integer(number),
            None => Value::Float(number.as_f64().unwrap_or_default()),
        },
        serde_json::Value::String(text) => Value::Text(text.clone()),
        serde_json::Value::Array(list) => Value::List(list.iter().filter_map(of_json).map(Node::from).collect()),
        serde_json::Value::Object(table) => {
            let entry = |(name, value): (&String, &serde_json::Value)| Some((name.clone(), of_json(value)?.into()));
            Value::Table(table.iter().filter_map(entry).collect::<Table>())
        }
    })
}

form! {
    /// A duration; empty means zero.
    OrZero: Duration, |v| if text(v).is_ok_and(|text| text.is_empty()) { Ok(Duration::ZERO) } else { duration(v) },
        Setting::write;
    /// Whole seconds, or a duration.
    Seconds: Duration, |v| match v {
        Value::Integer(_) => number(v).map(Duration::from_secs),
        v => duration(v).map_err(|_| "a number of seconds, or a duration like 10s"),
    }, |duration| match duration.subsec_nanos() {
        0 => Some(Value::Integer(i64::try_from(duration.as_secs()).unwrap_or(i64::MAX))),
        _ => duration.write(),
    };
    /// A port, written as a text.
    Port: u16, |v| match v {
        Value::Text(text) => text.parse().map_err(|_| PORT),
        v => number(v).map_err(|_| PORT),
    }, |port| Some(Value::Text(port.to_string()));
    /// Which of a pod's addresses comes first.
    Preference: String, |v| {
        text(v).ok().filter(|text| ["", "ipv4", "ipv6", "cni"].contains(&text.as_str())).ok_or("ipv4, ipv6 or cni")
    }, Setting::write;
    /// Who holds a pod; empty for the daemon itself.
    Sandboxer: String, |v| text(v).map(|text| if text.is_empty() { "podsandbox".into() } else { text }),
        Setting::write;
}

form! {
    /// What a plug-in that does not answer means.
    Failing: OnFailure, |v| match text(v)?.as_str() {
        "ignore" => Ok(OnFailure::Ignore),
        "fail" => Ok(OnFailure::Fail),
        _ => Err("ignore or fail"),
    }, |v| Some(Value::Text(match v { OnFailure::Ignore => "ignore", OnFailure::Fail => "fail" }.into()));
}

const PORT: &str = "a port from \"0\" to \"65535\"";
