//! What Status tells when it is asked verbosely: the configuration that is in effect, under containerd's keys.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::Cri;
use crate::config::{CniConfig, RuntimeHandler};
use crate::handlers::takes_runc_options;
use crate::network::Readiness;

impl Cri {
    /// All of it, with how the network is.
    pub(super) fn info(&self, network: &Readiness) -> BTreeMap<String, String> {
        let loaded = if network.ready { "OK" } else { &network.message };
        let told = |value: Value| value.to_string();
        BTreeMap::from([
            ("config".to_owned(), told(self.config_in_effect())),
            ("cniconfig".to_owned(), told(self.networks.describe())),
            ("lastCNILoadStatus".to_owned(), told(loaded.into())),
            ("lastCNILoadStatus.default".to_owned(), told(loaded.into())),
        ])
    }

    fn config_in_effect(&self) -> Value {
        let runtime = &self.config.runtime;
        let runtimes: Map<String, Value> =
            runtime.runtimes.iter().map(|(name, handler)| (name.clone(), of_handler(handler))).collect();
        json!({
            "containerd": {
                "defaultRuntimeName": runtime.default_runtime_name,
                "runtimes": runtimes,
                "ignoreBlockIONotEnabledErrors": runtime.ignore_blockio_not_enabled_errors,
                "ignoreRdtNotEnabledErrors": runtime.ignore_rdt_not_enabled_errors,
            },
            "cni": of_cni(&runtime.cni),
            "enableSelinux": runtime.enable_selinux,
            "selinuxCategoryRange": runtime.selinux_category_range,
            "maxContainerLogLineSize": runtime.max_container_log_line_size,
            "disableApparmor": runtime.disable_apparmor,
            "restrictOOMScoreAdj": runtime.restrict_oom_score_adj,
            "disableProcMount": runtime.disable_proc_mount,
            "unsetSeccompProfile": runtime.unset_seccomp_profile,
            "tolerateMissingHugetlbController": runtime.tolerate_missing_hugetlb_controller,
            "disableHugetlbController": runtime.disable_hugetlb_controller,
            "device_ownership_from_security_context": runtime.device_ownership_from_security_context,
            "ignoreImageDefinedVolumes": runtime.ignore_image_defined_volumes,
            "netnsMountsUnderStateDir": runtime.netns_mounts_under_state_dir,
            "enableUnprivilegedPorts": runtime.enable_unprivileged_ports,
            "enableUnprivilegedICMP": runtime.enable_unprivileged_icmp,
            "enableCDI": runtime.enable_cdi,
            "cdiSpecDirs": runtime.cdi_spec_dirs,
            "drainExecSyncIOTimeout": seconds(runtime.drain_exec_sync_io_timeout),
            "ignoreDeprecationWarnings": or_null(&runtime.ignore_deprecation_warnings),
            "statsCollectPeriod": runtime.stats_collect_period.map(seconds).unwrap_or_default(),
            "statsRetentionPeriod": runtime.stats_retention_period.map(seconds).unwrap_or_default(),
            "enableCRIU": runtime.enable_criu,
            "containerdRootDir": self.engine.config().root,
            "rootDir": self.root,
            "stateDir": self.state,
        })
    }
}

fn of_handler(handler: &RuntimeHandler) -> Value {
    let path = handler.runtime_path.as_deref().unwrap_or("".as_ref());
    json!({
        "runtimeType": handler.runtime_type,
        "runtimePath": path,
        "options": options(handler),
        "PodAnnotations": or_null(&handler.pod_annotations),
        "ContainerAnnotations": or_null(&handler.container_annotations),
        "privileged_without_host_devices": handler.privileged_without_host_devices,
        "privileged_without_host_devices_all_devices_allowed":
            handler.privileged_without_host_devices_all_devices_allowed,
        "cgroupWritable": handler.cgroup_writable,
        "baseRuntimeSpec": handler.base_runtime_spec.as_deref().unwrap_or("".as_ref()),
        "cniConfDir": handler.cni_conf_dir.as_deref().unwrap_or("".as_ref()),
        "cniMaxConfNum": handler.cni_max_conf_num,
        "snapshotter": handler.snapshotter,
        "sandboxer": handler.sandboxer,
        "disablePauseImagePull": handler.disable_pause_image_pull,
        "io_type": handler.io_type,
    })
}

/// All options that a runtime takes, set or not.
fn options(handler: &RuntimeHandler) -> Value {
    let mut all = match takes_runc_options(handler) {
        true => json!({
            "BinaryName": "", "CriuImagePath": "", "CriuWorkPath": "", "IoGid": 0, "IoUid": 0, "NoNewKeyring": false,
            "Root": "", "ShimCgroup": "", "SystemdCgroup": false,
        }),
        false => json!({}),
    };
    for (key, value) in &handler.options {
        all[key.as_str()] = value.clone();
    }
    all
}

fn of_cni(cni: &CniConfig) -> Value {
    json!({
        "binDir": "",
        "binDirs": cni.bin_dirs,
        "confDir": cni.conf_dir,
        "confTemplate": cni.conf_template.as_deref().unwrap_or("".as_ref()),
        "ipPref": cni.ip_pref,
        "maxConfNum": cni.max_conf_num,
        "setupSerially": cni.setup_serially,
        "useInternalLoopback": cni.use_internal_loopback,
    })
}

fn or_null(list: &[String]) -> Value {
    if list.is_empty() { Value::Null } else { list.into() }
}

/// A duration as Go reads it.
fn seconds(duration: Duration) -> String {
    format!("{}s", duration.as_secs_f64())
}
