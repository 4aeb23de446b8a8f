//! What an operator can set for Kubernetes: containerd's sections `io.containerd.cri.v1.runtime`,
//! `io.containerd.cri.v1.images` and `io.containerd.grpc.v1.cri`, typed. The daemon reads them from its file; every
//! field bears containerd's name for it unless said otherwise. Defaults are containerd's.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

pub use gantry_nri::{Config as NriConfig, OnFailure};
use serde_json::Value;

/// All of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config {
    /// How pods and containers are made.
    pub runtime: RuntimeConfig,
    /// How images are pulled and kept.
    pub images: ImagesConfig,
    /// The server of exec, attach and port-forward streams.
    pub server: ServerConfig,
    /// Plug-ins of the Node Resource Interface: section `io.containerd.nri.v1.nri`.
    pub nri: NriConfig,
}

/// Section `io.containerd.cri.v1.runtime`.
#[derive(Clone, Debug, PartialEq)]
pub struct RuntimeConfig {
    /// `containerd.default_runtime_name`: the handler of pods that name none.
    pub default_runtime_name: String,
    /// `containerd.runtimes`: handlers by name.
    pub runtimes: BTreeMap<String, RuntimeHandler>,
    /// `containerd.ignore_blockio_not_enabled_errors`.
    pub ignore_blockio_not_enabled_errors: bool,
    /// `containerd.ignore_rdt_not_enabled_errors`.
    pub ignore_rdt_not_enabled_errors: bool,
    /// The network of pods.
    pub cni: CniConfig,
    /// Whether SELinux labels are set.
    pub enable_selinux: bool,
    /// Upper bound of the categories in a generated label.
    pub selinux_category_range: u32,
    /// Longest line of a container's log in bytes; a longer one is split. 0 or less: no limit.
    pub max_container_log_line_size: i64,
    /// Never set an AppArmor profile.
    pub disable_apparmor: bool,
    /// Never ask for a lower `oom_score_adj` than the daemon's own.
    pub restrict_oom_score_adj: bool,
    /// Mount `/proc` without masked and read-only paths.
    pub disable_proc_mount: bool,
    /// Seccomp profile of containers that ask for none; empty: unconfined.
    pub unset_seccomp_profile: String,
    /// Ignore limits of huge pages where the cgroup controller is missing.
    pub tolerate_missing_hugetlb_controller: bool,
    /// Set no limits of huge pages at all.
    pub disable_hugetlb_controller: bool,
    /// Make no cgroups and set no limits (rootless use).
    pub disable_cgroup: bool,
    /// Devices belong to the container's user and group.
    pub device_ownership_from_security_context: bool,
    /// Make no volumes that only the image asks for.
    pub ignore_image_defined_volumes: bool,
    /// Keep network namespaces below the state directory instead of `/var/run/netns`.
    pub netns_mounts_under_state_dir: bool,
    /// `net.ipv4.ip_unprivileged_port_start=0` in pods with a network of their own.
    pub enable_unprivileged_ports: bool,
    /// `net.ipv4.ping_group_range=0 2147483647` in pods with a network of their own.
    pub enable_unprivileged_icmp: bool,
    /// Whether devices by CDI name are given.
    pub enable_cdi: bool,
    /// Where CDI specifications are.
    pub cdi_spec_dirs: Vec<PathBuf>,
    /// How long ExecSync waits for the output after the process has ended; zero: until it is closed.
    pub drain_exec_sync_io_timeout: Duration,
    /// Warnings about outdated keys that are not to be shown.
    pub ignore_deprecation_warnings: Vec<String>,
    /// How often statistics are sampled; none: when asked.
    pub stats_collect_period: Option<Duration>,
    /// How long samples are kept; none: as long as one period needs.
    pub stats_retention_period: Option<Duration>,
    /// Whether containers can be checkpointed and restored.
    pub enable_criu: bool,
}

/// One of `containerd.runtimes`.
#[derive(Clone, Debug, PartialEq)]
pub struct RuntimeHandler {
    /// Name of the runtime, such as `io.containerd.runc.v2`.
    pub runtime_type: String,
    /// Absolute path of the shim, instead of one found by the name.
    pub runtime_path: Option<PathBuf>,
    /// Options handed to the runtime, under the names that the runtime's own options have (`BinaryName`, …).
    pub options: BTreeMap<String, Value>,
    /// Pod annotations handed on to the runtime; a name may end in `*`.
    pub pod_annotations: Vec<String>,
    /// Container annotations handed on to the runtime; a name may end in `*`.
    pub container_annotations: Vec<String>,
    /// Privileged containers do not get the host's devices.
    pub privileged_without_host_devices: bool,
    /// … but may make any device.
    pub privileged_without_host_devices_all_devices_allowed: bool,
    /// The cgroup file system is writable (cgroup v2 only).
    pub cgroup_writable: bool,
    /// JSON file with the OCI specification that containers start from.
    pub base_runtime_spec: Option<PathBuf>,
    /// Directory of network configurations for this handler; none: [`CniConfig::conf_dir`].
    pub cni_conf_dir: Option<PathBuf>,
    /// How many network configurations are used from `cni_conf_dir`; 0: all.
    pub cni_max_conf_num: usize,
    /// Snapshotter; empty: [`ImagesConfig::snapshotter`].
    pub snapshotter: String,
    /// `podsandbox` (the daemon holds the pod), `shim`, or the name of a proxy plug-in.
    pub sandboxer: String,
    /// A pod's namespaces are held by the program of the pause image (`pinned_images.sandbox`) instead of the shim. Not a
    /// key of containerd's, where it is always so.
    pub pause_image: bool,
    /// No pause image is pulled for this handler: it must be there.
    pub disable_pause_image_pull: bool,
    /// `fifo` or `streaming`; empty: `fifo`. Both mean the same here: the shim writes the log.
    pub io_type: String,
}

/// Subsection `cni`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CniConfig {
    /// Where plugins are; the older key `bin_dir` names one.
    pub bin_dirs: Vec<PathBuf>,
    /// Where network configurations are.
    pub conf_dir: PathBuf,
    /// How many configurations are used, by name; 0: all.
    pub max_conf_num: usize,
    /// One plugin after another instead of side by side.
    pub setup_serially: bool,
    /// Template of a network configuration that is filled in with the node's pod range.
    pub conf_template: Option<PathBuf>,
    /// Which of a pod's addresses is told first: `ipv4`, `ipv6` or `cni` (as the plugin gave them); empty: `ipv4`.
    pub ip_pref: String,
    /// The loopback interface is set up without the plugin.
    pub use_internal_loopback: bool,
}

/// Section `io.containerd.cri.v1.images`.
#[derive(Clone, Debug, PartialEq)]
pub struct ImagesConfig {
    /// Snapshotter of images and containers.
    pub snapshotter: String,
    /// Whether snapshotters are told nothing of the image a layer belongs to, unless they are plug-ins that want it.
    pub disable_snapshot_annotations: bool,
    /// Layers are deleted once they are unpacked.
    pub discard_unpacked_layers: bool,
    /// Images never collected, by role; `sandbox` is the pause image.
    pub pinned_images: BTreeMap<String, String>,
    /// Platform and snapshotter by runtime handler.
    pub runtime_platforms: BTreeMap<String, RuntimePlatform>,
    /// How registries are reached.
    pub registry: RegistryConfig,
    /// `image_decryption.key_model`: where keys of encrypted images are: `node`, or nowhere.
    pub decryption_key_model: String,
    /// Layers fetched at once for one pull.
    pub max_concurrent_downloads: usize,
    /// A pull without progress for this long is given up; zero: never.
    pub image_pull_progress_timeout: Duration,
    /// Each layer is synced to the disk. It always is here, before the image is named.
    pub image_pull_with_sync_fs: bool,
    /// How often the disk usage of snapshots is looked at.
    pub stats_collect_period: Duration,
    /// Pull without the transfer service. Both ways are one here.
    pub use_local_image_pull: bool,
}

/// One of `runtime_platforms`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuntimePlatform {
    /// Such as `linux/amd64`; empty: the host's.
    pub platform: String,
    /// Empty: [`ImagesConfig::snapshotter`].
    pub snapshotter: String,
}

/// Subsection `registry`. All but `config_path` is outdated, and still honoured.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RegistryConfig {
    /// Directories of `HOST/hosts.toml`, in order (`config_path`, separated by colons). Empty: the daemon's.
    pub config_path: Vec<PathBuf>,
    /// `mirrors."HOST".endpoint`: who is asked in front of the host.
    pub mirrors: BTreeMap<String, Vec<String>>,
    /// `configs."HOST".auth`, and `auths."URL"` under its host.
    pub auths: BTreeMap<String, RegistryAuth>,
    /// `configs."HOST".tls`.
    pub tls: BTreeMap<String, RegistryTls>,
    /// Headers sent to every registry.
    pub headers: BTreeMap<String, Vec<String>>,
}

/// Who we are to a registry.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct RegistryAuth {
    /// User.
    pub username: String,
    /// Password.
    pub password: String,
    /// User and password as base64 of `USER:PASSWORD`.
    pub auth: String,
    /// A refresh token.
    pub identitytoken: String,
}

impl std::fmt::Debug for RegistryAuth {
    /// Shows who, and no secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistryAuth").field("username", &self.username).finish_non_exhaustive()
    }
}

/// How a registry is told apart from an impostor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegistryTls {
    /// Accept any certificate.
    pub insecure_skip_verify: bool,
    /// PEM file of authorities.
    pub ca_file: Option<PathBuf>,
    /// PEM file of our certificate.
    pub cert_file: Option<PathBuf>,
    /// PEM file of its key.
    pub key_file: Option<PathBuf>,
}

/// Section `io.containerd.grpc.v1.cri`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerConfig {
    /// The CRI is not served over TCP.
    pub disable_tcp_service: bool,
    /// Address of the streaming server; empty: that of the host's default route.
    pub stream_server_address: String,
    /// Its port; 0: any free one.
    pub stream_server_port: u16,
    /// A stream without traffic for this long is closed.
    pub stream_idle_timeout: Duration,
    /// Whether it speaks TLS; without certificate files it makes a certificate of its own.
    pub enable_tls_streaming: bool,
    /// `x509_key_pair_streaming.tls_cert_file`.
    pub tls_cert_file: Option<PathBuf>,
    /// `x509_key_pair_streaming.tls_key_file`.
    pub tls_key_file: Option<PathBuf>,
}

impl Default for RuntimeConfig {
    fn default() -> RuntimeConfig {
        RuntimeConfig {
            default_runtime_name: "runc".into(),
            runtimes: BTreeMap::from([("runc".into(), RuntimeHandler::default())]),
            ignore_blockio_not_enabled_errors: false,
            ignore_rdt_not_enabled_errors: false,
            cni: CniConfig::default(),
            enable_selinux: false,
            selinux_category_range: 1024,
            max_container_log_line_size: 16 << 10,
            disable_apparmor: false,
            restrict_oom_score_adj: false,
            disable_proc_mount: false,
            unset_seccomp_profile: String::new(),
            tolerate_missing_hugetlb_controller: true,
            disable_hugetlb_controller: true,
            disable_cgroup: false,
            device_ownership_from_security_context: false,
            ignore_image_defined_volumes: false,
            netns_mounts_under_state_dir: false,
            enable_unprivileged_ports: true,
            enable_unprivileged_icmp: true,
            enable_cdi: true,
            cdi_spec_dirs: vec!["/etc/cdi".into(), "/var/run/cdi".into()],
            drain_exec_sync_io_timeout: Duration::ZERO,
            ignore_deprecation_warnings: Vec::new(),
            stats_collect_period: None,
            stats_retention_period: None,
            enable_criu: true,
        }
    }
}

impl Default for RuntimeHandler {
    fn default() -> RuntimeHandler {
        RuntimeHandler {
            runtime_type: "io.containerd.runc.v2".into(),
            runtime_path: None,
            options: BTreeMap::new(),
            pod_annotations: Vec::new(),
            container_annotations: Vec::new(),
            privileged_without_host_devices: false,
            privileged_without_host_devices_all_devices_allowed: false,
            cgroup_writable: false,
            base_runtime_spec: None,
            cni_conf_dir: None,
            cni_max_conf_num: 0,
            snapshotter: String::new(),
            sandboxer: "podsandbox".into(),
            pause_image: false,
            disable_pause_image_pull: false,
            io_type: String::new(),
        }
    }
}

impl Default for CniConfig {
    fn default() -> CniConfig {
        CniConfig {
            bin_dirs: vec!["/opt/cni/bin".into()],
            conf_dir: "/etc/cni/net.d".into(),
            max_conf_num: 1,
            setup_serially: false,
            conf_template: None,
            ip_pref: String::new(),
            use_internal_loopback: false,
        }
    }
}

impl Default for ImagesConfig {
    fn default() -> ImagesConfig {
        ImagesConfig {
            snapshotter: "overlayfs".into(),
            disable_snapshot_annotations: true,
            discard_unpacked_layers: false,
            pinned_images: BTreeMap::from([("sandbox".into(), "registry.k8s.io/pause:3.10.2".into())]),
            runtime_platforms: BTreeMap::new(),
            registry: RegistryConfig::default(),
            decryption_key_model: "node".into(),
            max_concurrent_downloads: 3,
            image_pull_progress_timeout: Duration::from_secs(300),
            image_pull_with_sync_fs: false,
            stats_collect_period: Duration::from_secs(10),
            use_local_image_pull: false,
        }
    }
}

impl Default for ServerConfig {
    fn default() -> ServerConfig {
        ServerConfig {
            disable_tcp_service: true,
            stream_server_address: "127.0.0.1".into(),
            stream_server_port: 0,
            stream_idle_timeout: Duration::from_secs(4 * 3600),
            enable_tls_streaming: false,
            tls_cert_file: None,
            tls_key_file: None,
        }
    }
}
