//! Pods and containers as plug-ins of the Node Resource Interface see them.

use gantry_api::pb::runtime::v1 as wire;
use gantry_nri::api;
use serde_json::Value;
use wire::ContainerState;

use crate::containers::Container;
use crate::pods::Pod;

/// A pod.
pub(super) fn pod(pod: &Pod) -> api::PodSandbox {
    let (config, facts) = (pod.config(), pod.facts());
    let metadata = config.metadata.clone().unwrap_or_default();
    let linux = config.linux.clone().unwrap_or_default();
    api::PodSandbox {
        id: pod.id.clone(),
        name: metadata.name,
        uid: metadata.uid,
        namespace: metadata.namespace,
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        runtime_handler: facts.handler,
        linux: Some(api::LinuxPodSandbox {
            pod_overhead: linux.overhead.as_ref().map(limits),
            pod_resources: linux.resources.as_ref().map(limits),
            cgroups_path: crate::spec::cgroups_path(&linux.cgroup_parent, &pod.id).unwrap_or_default(),
            cgroup_parent: linux.cgroup_parent,
            namespaces: Vec::new(),
            resources: linux.resources.as_ref().map(limits),
        }),
        pid: facts.pid,
        ips: facts.ips,
    }
}

/// A container, by its request and the configuration for its runtime.
pub(super) fn described(id: &str, pod: &str, config: &wire::ContainerConfig, spec: &Value) -> api::Container {
    let metadata = config.metadata.clone().unwrap_or_default();
    let mut annotations = config.annotations.clone();
    annotations.extend(pairs(&spec["annotations"]));
    let process = &spec["process"];
    api::Container {
        id: id.to_owned(),
        pod_sandbox_id: pod.to_owned(),
        name: metadata.name,
        state: api::ContainerState::ContainerCreated as i32,
        labels: config.labels.clone(),
        annotations,
        args: texts(&process["args"]),
        env: texts(&process["env"]),
        mounts: list(&spec["mounts"], mount),
        hooks: Some(hooks(&spec["hooks"])),
        linux: Some(linux(spec)),
        rlimits: list(&process["rlimits"], |limit| api::PosixRlimit {
            r#type: text(&limit["type"]),
            hard: limit["hard"].as_u64().unwrap_or_default(),
            soft: limit["soft"].as_u64().unwrap_or_default(),
        }),
        user: Some(api::User {
            uid: small(&process["user"]["uid"]),
            gid: small(&process["user"]["gid"]),
            additional_gids: list(&process["user"]["additionalGids"], small),
        }),
        cdi_devices: config.cdi_devices.iter().map(|d| api::CdiDevice { name: d.name.clone() }).collect(),
        ..api::Container::default()
    }
}

/// A container that there is.
pub(super) fn container(container: &Container, spec: &Value) -> api::Container {
    let (config, facts) = (container.config(), container.facts());
    let state = match container.state() {
        ContainerState::ContainerCreated => api::ContainerState::ContainerCreated,
        ContainerState::ContainerRunning => api::ContainerState::ContainerRunning,
        ContainerState::ContainerExited => api::ContainerState::ContainerStopped,
        ContainerState::ContainerUnknown => api::ContainerState::ContainerUnknown,
    };
    let name = config.image.as_ref().map(|image| image.image.clone()).unwrap_or_default();
    api::Container {
        state: state as i32,
        pid: facts.pid,
        created_at: container.created_at,
        started_at: facts.started_at,
        finished_at: facts.finished_at,
        exit_code: facts.exit_code,
        status_reason: facts.reason,
        status_message: facts.message,
        image: Some(api::Image { name, digest: facts.image_ref, config_digest: facts.image_id }),
        ..described(&container.id, &container.pod, &config, spec)
    }
}

/// Limits as Kubernetes has them, for plug-ins.
pub(super) fn limits(of: &wire::LinuxContainerResources) -> api::LinuxResources {
    let number = |value: i64| (value != 0).then_some(api::OptionalInt64 { value });
    let positive =
        |value: i64| u64::try_from(value).ok().filter(|v| *v != 0).map(|value| api::OptionalUInt64 { value });
    let pages = of.hugepage_limits.iter();
    api::LinuxResources {
        memory: Some(api::LinuxMemory {
            limit: number(of.memory_limit_in_bytes),
            swap: number(of.memory_swap_limit_in_bytes),
            ..api::LinuxMemory::default()
        }),
        cpu: Some(api::LinuxCpu {
            shares: positive(of.cpu_shares),
            quota: number(of.cpu_quota),
            period: positive(of.cpu_period),
            cpus: of.cpuset_cpus.clone(),
            mems: of.cpuset_mems.clone(),
            ..api::LinuxCpu::default()
        }),
        hugepage_limits: pages
            .map(|page| api::HugepageLimit { page_size: page.page_size.clone(), limit: page.limit })
            .collect(),
        unified: of.unified.clone(),
        ..api::LinuxResources::default()
    }
}

/// Limits that plug-ins want, as Kubernetes has them: as far as it has words for them.
pub(crate) fn asked(of: &api::LinuxResources, oom_score_adj: i64) -> wire::LinuxContainerResources {
    let (memory, cpu) = (of.memory.unwrap_or_default(), of.cpu.clone().unwrap_or_default());
    let signed = |value: Option<api::OptionalInt64>| value.map(|v| v.value).unwrap_or_default();
    let unsigned = |value: Option<api::OptionalUInt64>| {
        value.map(|v| i64::try_from(v.value).unwrap_or(i64::MAX)).unwrap_or_default()
    };
    let pages = of.hugepage_limits.iter();
    wire::LinuxContainerResources {
        cpu_period: unsigned(cpu.period),
        cpu_quota: signed(cpu.quota),
        cpu_shares: unsigned(cpu.shares),
        memory_limit_in_bytes: signed(memory.limit),
        oom_score_adj,
        cpuset_cpus: cpu.cpus,
        cpuset_mems: cpu.mems,
        hugepage_limits: pages
            .map(|page| wire::HugepageLimit { page_size: page.page_size.clone(), limit: page.limit })
            .collect(),
        unified: of.unified.clone(),
        memory_swap_limit_in_bytes: signed(memory.swap),
    }
}

fn linux(spec: &Value) -> api::LinuxContainer {
    let linux = &spec["linux"];
    let score = spec["process"]["oomScoreAdj"].as_i64();
    api::LinuxContainer {
        namespaces: list(&linux["namespaces"], |one| api::LinuxNamespace {
            r#type: text(&one["type"]),
            path: text(&one["path"]),
        }),
        devices: list(&linux["devices"], device),
        resources: Some(resources(&linux["resources"])),
        oom_score_adj: score.map(|value| api::OptionalInt { value }),
        cgroups_path: text(&linux["cgroupsPath"]),
        seccomp_policy: seccomp(&linux["seccomp"]),
        sysctl: pairs(&linux["sysctl"]),
        ..api::LinuxContainer::default()
    }
}

fn seccomp(of: &Value) -> Option<api::LinuxSeccomp> {
    of.as_object()?;
    Some(api::LinuxSeccomp {
        default_action: text(&of["defaultAction"]),
        default_errno: of["defaultErrnoRet"]
            .as_u64()
            .map(|_| api::OptionalUInt32 { value: small(&of["defaultErrnoRet"]) }),
        architectures: texts(&of["architectures"]),
        flags: texts(&of["flags"]),
        listener_path: text(&of["listenerPath"]),
        listener_metadata: text(&of["listenerMetadata"]),
        syscalls: list(&of["syscalls"], |call| api::LinuxSyscall {
            names: texts(&call["names"]),
            action: text(&call["action"]),
            errno_ret: call["errnoRet"].as_u64().map(|_| api::OptionalUInt32 { value: small(&call["errnoRet"]) }),
            args: list(&call["args"], |arg| api::LinuxSeccompArg {
                index: small(&arg["index"]),
                value: arg["value"].as_u64().unwrap_or_default(),
                value_two: arg["valueTwo"].as_u64().unwrap_or_default(),
                op: text(&arg["op"]),
            }),
        }),
    })
}

fn mount(of: &Value) -> api::Mount {
    api::Mount {
        destination: text(&of["destination"]),
        r#type: text(&of["type"]),
        source: text(&of["source"]),
        options: texts(&of["options"]),
    }
}

fn hooks(of: &Value) -> api::Hooks {
    let all = |name: &str| {
        list(&of[name], |hook| api::Hook {
            path: text(&hook["path"]),
            args: texts(&hook["args"]),
            env: texts(&hook["env"]),
            timeout: hook["timeout"].as_i64().map(|value| api::OptionalInt { value }),
        })
    };
    api::Hooks {
        prestart: all("prestart"),
        create_runtime: all("createRuntime"),
        create_container: all("createContainer"),
        start_container: all("startContainer"),
        poststart: all("poststart"),
        poststop: all("poststop"),
    }
}

fn device(of: &Value) -> api::LinuxDevice {
    let id = |key: &str| of[key].as_u64().map(|_| api::OptionalUInt32 { value: small(&of[key]) });
    api::LinuxDevice {
        path: text(&of["path"]),
        r#type: text(&of["type"]),
        major: of["major"].as_i64().unwrap_or_default(),
        minor: of["minor"].as_i64().unwrap_or_default(),
        file_mode: of["fileMode"].as_u64().map(|_| api::OptionalFileMode { value: small(&of["fileMode"]) }),
        uid: id("uid"),
        gid: id("gid"),
    }
}

fn resources(of: &Value) -> api::LinuxResources {
    let (memory, cpu) = (&of["memory"], &of["cpu"]);
    let signed = |value: &Value| value.as_i64().map(|value| api::OptionalInt64 { value });
    let unsigned = |value: &Value| value.as_u64().map(|value| api::OptionalUInt64 { value });
    api::LinuxResources {
        memory: Some(api::LinuxMemory {
            limit: signed(&memory["limit"]),
            reservation: signed(&memory["reservation"]),
            swap: signed(&memory["swap"]),
            kernel: signed(&memory["kernel"]),
            kernel_tcp: signed(&memory["kernelTCP"]),
            swappiness: unsigned(&memory["swappiness"]),
            disable_oom_killer: memory["disableOOMKiller"].as_bool().map(|value| api::OptionalBool { value }),
            use_hierarchy: memory["useHierarchy"].as_bool().map(|value| api::OptionalBool { value }),
        }),
        cpu: Some(api::LinuxCpu {
            shares: unsigned(&cpu["shares"]),
            quota: signed(&cpu["quota"]),
            period: unsigned(&cpu["period"]),
            realtime_runtime: signed(&cpu["realtimeRuntime"]),
            realtime_period: unsigned(&cpu["realtimePeriod"]),
            cpus: text(&cpu["cpus"]),
            mems: text(&cpu["mems"]),
        }),
        hugepage_limits: list(&of["hugepageLimits"], |page| api::HugepageLimit {
            page_size: text(&page["pageSize"]),
            limit: page["limit"].as_u64().unwrap_or_default(),
        }),
        unified: pairs(&of["unified"]),
        devices: list(&of["devices"], |rule| api::LinuxDeviceCgroup {
            allow: rule["allow"].as_bool().unwrap_or_default(),
            r#type: text(&rule["type"]),
            major: signed(&rule["major"]),
            minor: signed(&rule["minor"]),
            access: text(&rule["access"]),
        }),
        pids: of["pids"]["limit"].as_i64().map(|limit| api::LinuxPids { limit }),
        ..api::LinuxResources::default()
    }
}

fn text(of: &Value) -> String {
    of.as_str().unwrap_or_default().to_owned()
}

fn texts(of: &Value) -> Vec<String> {
    list(of, text)
}

fn small(of: &Value) -> u32 {
    of.as_u64().and_then(|number| u32::try_from(number).ok()).unwrap_or_default()
}

fn list<T>(of: &Value, one: impl Fn(&Value) -> T) -> Vec<T> {
    of.as_array().into_iter().flatten().map(one).collect()
}

fn pairs(of: &Value) -> std::collections::BTreeMap<String, String> {
    of.as_object().into_iter().flatten().map(|(key, value)| (key.clone(), text(value))).collect()
}
