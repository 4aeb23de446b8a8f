//! What plug-ins want to be different in a container, done to the configuration for its runtime: a pure rule over the
//! configuration's JSON, so that whatever the OCI has a word for can be said.

use gantry_nri::{api, removed};
use serde_json::{Map, Value, json};

/// Does what `adjust` says to `spec`. Devices by CDI name are the caller's.
///
/// # Errors
/// What is asked for and cannot be done, in a sentence.
pub(super) fn apply(spec: &mut Value, adjust: &api::ContainerAdjustment) -> Result<(), String> {
    strings(object(spec, &["annotations"]), &adjust.annotations);
    for mount in &adjust.mounts {
        entry(array(spec, &["mounts"]), "destination", &mount.destination, || mount_json(mount));
    }
    sort_mounts(array(spec, &["mounts"]));
    environment(array(spec, &["process", "env"]), &adjust.env);
    if !adjust.args.is_empty() {
        spec["process"]["args"] = json!(adjust.args);
    }
    if let Some(hooks) = &adjust.hooks {
        add_hooks(spec, hooks);
    }
    for limit in &adjust.rlimits {
        let value = || json!({"type": limit.r#type, "hard": limit.hard, "soft": limit.soft});
        entry(array(spec, &["process", "rlimits"]), "type", &limit.r#type, value);
    }
    adjust.linux.as_ref().map_or(Ok(()), |linux| apply_linux(spec, linux))
}

fn apply_linux(spec: &mut Value, linux: &api::LinuxContainerAdjustment) -> Result<(), String> {
    for device in &linux.devices {
        entry(array(spec, &["linux", "devices"]), "path", &device.path, || device_json(device));
        if removed(&device.path).is_none() {
            let rule = json!({"allow": true, "type": device.r#type, "major": device.major, "minor": device.minor,
                "access": "rwm"});
            array(spec, &["linux", "resources", "devices"]).push(rule);
        }
    }
    if let Some(resources) = &linux.resources {
        limits(spec, resources)?;
    }
    if !linux.cgroups_path.is_empty() {
        spec["linux"]["cgroupsPath"] = json!(linux.cgroups_path);
    }
    if let Some(score) = &linux.oom_score_adj {
        spec["process"]["oomScoreAdj"] = json!(score.value);
    }
    if let Some(priority) = &linux.io_priority {
        let class = api::IoPrioClass::try_from(priority.class).map_err(|_| "io priority: no such class")?;
        match class {
            api::IoPrioClass::IoprioClassNone => drop(object(spec, &["process"]).remove("ioPriority")),
            class => {
                spec["process"]["ioPriority"] = json!({"class": class.as_str_name(), "priority": priority.priority})
            }
        }
    }
    if let Some(policy) = &linux.seccomp_policy {
        spec["linux"]["seccomp"] = seccomp(policy);
    }
    for namespace in &linux.namespaces {
        let mut value = json!({"type": namespace.r#type});
        if !namespace.path.is_empty() {
            value["path"] = json!(namespace.path);
        }
        entry(array(spec, &["linux", "namespaces"]), "type", &namespace.r#type, || value);
    }
    strings(object(spec, &["linux", "sysctl"]), &linux.sysctl);
    for (host, device) in &linux.net_devices {
        let devices = object(spec, &["linux", "netDevices"]);
        match removed(host) {
            Some(host) => drop(devices.remove(host)),
            None => drop(devices.insert(host.clone(), json!({"name": device.name}))),
        }
    }
    if let Some(scheduler) = &linux.scheduler {
        apply_scheduler(spec, scheduler)?;
    }
    if let Some(rdt) = &linux.rdt {
        apply_rdt(spec, rdt);
    }
    if let Some(policy) = &linux.memory_policy {
        let mode = api::MpolMode::try_from(policy.mode).map_err(|_| "memory policy: no such mode")?;
        let flags = policy.flags.iter().filter_map(|flag| api::MpolFlag::try_from(*flag).ok());
        let flags: Vec<&str> = flags.map(|flag| flag.as_str_name()).collect();
        spec["linux"]["memoryPolicy"] = json!({"mode": mode.as_str_name(), "nodes": policy.nodes, "flags": flags});
    }
    Ok(())
}

/// Puts limits over those of a configuration.
///
/// # Errors
/// A class of block I/O: this daemon has no configuration of classes.
pub(super) fn limits(spec: &mut Value, of: &api::LinuxResources) -> Result<(), String> {
    if let Some(class) = of.blockio_class.as_ref().filter(|class| !class.value.is_empty()) {
        return Err(format!("block I/O class {:?}: no classes are configured", class.value));
    }
    if let Some(class) = of.rdt_class.as_ref().filter(|class| !class.value.is_empty()) {
        object(spec, &["linux", "intelRdt"]).insert("closID".into(), json!(class.value));
    }
    if let Some(memory) = &of.memory {
        let to = object(spec, &["linux", "resources", "memory"]);
        set(to, "limit", memory.limit.as_ref().map(|v| json!(v.value)));
        set(to, "reservation", memory.reservation.as_ref().map(|v| json!(v.value)));
        set(to, "swap", memory.swap.as_ref().map(|v| json!(v.value)));
        set(to, "kernel", memory.kernel.as_ref().map(|v| json!(v.value)));
        set(to, "kernelTCP", memory.kernel_tcp.as_ref().map(|v| json!(v.value)));
        set(to, "swappiness", memory.swappiness.as_ref().map(|v| json!(v.value)));
        set(to, "disableOOMKiller", memory.disable_oom_killer.as_ref().map(|v| json!(v.value)));
        set(to, "useHierarchy", memory.use_hierarchy.as_ref().map(|v| json!(v.value)));
    }
    if let Some(cpu) = &of.cpu {
        let to = object(spec, &["linux", "resources", "cpu"]);
        set(to, "shares", cpu.shares.as_ref().map(|v| json!(v.value)));
        set(to, "quota", cpu.quota.as_ref().map(|v| json!(v.value)));
        set(to, "period", cpu.period.as_ref().map(|v| json!(v.value)));
        set(to, "realtimeRuntime", cpu.realtime_runtime.as_ref().map(|v| json!(v.value)));
        set(to, "realtimePeriod", cpu.realtime_period.as_ref().map(|v| json!(v.value)));
        set(to, "cpus", (!cpu.cpus.is_empty()).then(|| json!(cpu.cpus)));
        set(to, "mems", (!cpu.mems.is_empty()).then(|| json!(cpu.mems)));
    }
    for page in &of.hugepage_limits {
        let value = || json!({"pageSize": page.page_size, "limit": page.limit});
        entry(array(spec, &["linux", "resources", "hugepageLimits"]), "pageSize", &page.page_size, value);
    }
    strings(object(spec, &["linux", "resources", "unified"]), &of.unified);
    if let Some(pids) = &of.pids {
        object(spec, &["linux", "resources", "pids"]).insert("limit".into(), json!(pids.limit));
    }
    for rule in &of.devices {
        let mut value = json!({"allow": rule.allow, "access": rule.access});
        let to = object(&mut value, &[]);
        set(to, "type", (!rule.r#type.is_empty()).then(|| json!(rule.r#type)));
        set(to, "major", rule.major.as_ref().map(|v| json!(v.value)));
        set(to, "minor", rule.minor.as_ref().map(|v| json!(v.value)));
        array(spec, &["linux", "resources", "devices"]).push(value);
    }
    Ok(())
}

fn apply_scheduler(spec: &mut Value, of: &api::LinuxScheduler) -> Result<(), String> {
    let policy = api::LinuxSchedulerPolicy::try_from(of.policy).map_err(|_| "scheduler: no such policy")?;
    if policy == api::LinuxSchedulerPolicy::SchedNone {
        object(spec, &["process"]).remove("scheduler");
        return Ok(());
    }
    let flags = of.flags.iter().filter_map(|flag| api::LinuxSchedulerFlag::try_from(*flag).ok());
    let flags: Vec<&str> = flags.map(|flag| flag.as_str_name()).collect();
    spec["process"]["scheduler"] = json!({
        "policy": policy.as_str_name(), "nice": of.nice, "priority": of.priority, "flags": flags,
        "runtime": of.runtime, "deadline": of.deadline, "period": of.period,
    });
    Ok(())
}

fn apply_rdt(spec: &mut Value, of: &api::LinuxRdt) {
    if of.remove {
        object(spec, &["linux"]).remove("intelRdt");
        return;
    }
    let to = object(spec, &["linux", "intelRdt"]);
    set(to, "closID", of.clos_id.as_ref().map(|v| json!(v.value)));
    set(to, "schemata", of.schemata.as_ref().map(|v| json!(v.value)));
    set(to, "enableMonitoring", of.enable_monitoring.as_ref().map(|v| json!(v.value)));
}

fn seccomp(of: &api::LinuxSeccomp) -> Value {
    let mut value = json!({"defaultAction": of.default_action});
    let to = object(&mut value, &[]);
    set(to, "defaultErrnoRet", of.default_errno.as_ref().map(|v| json!(v.value)));
    set(to, "architectures", (!of.architectures.is_empty()).then(|| json!(of.architectures)));
    set(to, "flags", (!of.flags.is_empty()).then(|| json!(of.flags)));
    set(to, "listenerPath", (!of.listener_path.is_empty()).then(|| json!(of.listener_path)));
    set(to, "listenerMetadata", (!of.listener_metadata.is_empty()).then(|| json!(of.listener_metadata)));
    let call = |call: &api::LinuxSyscall| {
        let arg =
            |a: &api::LinuxSeccompArg| json!({"index": a.index, "value": a.value, "valueTwo": a.value_two, "op": a.op});
        let mut value = json!({"names": call.names, "action": call.action});
        let to = object(&mut value, &[]);
        set(to, "errnoRet", call.errno_ret.as_ref().map(|v| json!(v.value)));
        set(to, "args", (!call.args.is_empty()).then(|| call.args.iter().map(arg).collect()));
        value
    };
    set(to, "syscalls", (!of.syscalls.is_empty()).then(|| of.syscalls.iter().map(call).collect()));
    value
}

fn add_hooks(spec: &mut Value, hooks: &api::Hooks) {
    for (name, more) in [
        ("prestart", &hooks.prestart),
        ("createRuntime", &hooks.create_runtime),
        ("createContainer", &hooks.create_container),
        ("startContainer", &hooks.start_container),
        ("poststart", &hooks.poststart),
        ("poststop", &hooks.poststop),
    ] {
        for hook in more {
            let mut value = json!({"path": hook.path, "args": hook.args, "env": hook.env});
            set(object(&mut value, &[]), "timeout", hook.timeout.as_ref().map(|v| json!(v.value)));
            array(spec, &["hooks", name]).push(value);
        }
    }
}

fn mount_json(of: &api::Mount) -> Value {
    json!({"destination": of.destination, "type": of.r#type, "source": of.source, "options": of.options})
}

fn device_json(of: &api::LinuxDevice) -> Value {
    let mut value = json!({"path": of.path, "type": of.r#type, "major": of.major, "minor": of.minor});
    let to = object(&mut value, &[]);
    set(to, "fileMode", of.file_mode.as_ref().map(|v| json!(v.value)));
    set(to, "uid", of.uid.as_ref().map(|v| json!(v.value)));
    set(to, "gid", of.gid.as_ref().map(|v| json!(v.value)));
    value
}

/// What lies above is mounted first, or it would hide what lies below; the order is kept otherwise.
fn sort_mounts(mounts: &mut [Value]) {
    let depth = |mount: &Value| {
        let path = mount["destination"].as_str().unwrap_or_default();
        std::path::Path::new(path).components().count()
    };
    mounts.sort_by_key(depth);
}

fn environment(env: &mut Vec<Value>, wanted: &[api::KeyValue]) {
    for pair in wanted {
        let key = removed(&pair.key).unwrap_or(&pair.key);
        env.retain(|known| known.as_str().and_then(|known| known.split('=').next()) != Some(key));
        if removed(&pair.key).is_none() {
            env.push(json!(format!("{}={}", pair.key, pair.value)));
        }
    }
}

/// Removes, replaces or adds the entry of a list that has this name.
fn entry(list: &mut Vec<Value>, key: &str, name: &str, value: impl FnOnce() -> Value) {
    let plain = removed(name).unwrap_or(name);
    list.retain(|known| known[key] != plain);
    if removed(name).is_none() {
        list.push(value());
    }
}

/// The same for texts by name.
fn strings(to: &mut Map<String, Value>, wanted: &std::collections::BTreeMap<String, String>) {
    for key in wanted.keys().filter_map(|key| removed(key)) {
        to.remove(key);
    }
    for (key, value) in wanted.iter().filter(|(key, _)| removed(key).is_none()) {
        to.insert(key.clone(), json!(value));
    }
}

fn set(to: &mut Map<String, Value>, key: &str, value: Option<Value>) {
    if let Some(value) = value {
        to.insert(key.to_owned(), value);
    }
}

/// The object at a path; made where there is none.
fn object<'a>(value: &'a mut Value, path: &[&str]) -> &'a mut Map<String, Value> {
    let mut at = value;
    for name in path {
        if !at.is_object() {
            *at = json!({});
        }
        at = &mut at[*name];
    }
    if !at.is_object() {
        *at = json!({});
    }
    match at {
        Value::Object(map) => map,
        _ => unreachable!("it was just made an object"),
    }
}

/// The list at a path; made where there is none.
fn array<'a>(value: &'a mut Value, path: &[&str]) -> &'a mut Vec<Value> {
    let (last, rest) = path.split_last().unwrap_or((&"", &[]));
    let at = object(value, rest).entry(*last).or_insert_with(|| json!([]));
    if !at.is_array() {
        *at = json!([]);
    }
    match at {
        Value::Array(list) => list,
        _ => unreachable!("it was just made a list"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> Value {
        json!({"process": {"args": ["a"], "env": ["A=1", "B=2"]}, "mounts": [{"destination": "/proc"}, {"destination": "/a"}],
            "annotations": {"x": "1"}, "linux": {"resources": {"memory": {"limit": 5}}, "namespaces": [{"type": "pid"}]}})
    }

    #[test]
    fn what_is_marked_goes_and_the_rest_is_replaced_or_added() {
        let mut spec = spec();
        let pair = |key: &str, value: &str| api::KeyValue { key: key.into(), value: value.into() };
        let mount = |destination: &str| api::Mount { destination: destination.into(), ..Default::default() };
        let adjust = api::ContainerAdjustment {
            annotations: [("-x".to_owned(), String::new()), ("y".to_owned(), "2".to_owned())].into(),
            env: vec![pair("-A", ""), pair("B", "3"), pair("C", "4")],
            mounts: vec![mount("/a/b"), mount("-/a")],
            args: vec!["b".into(), "c".into()],
            ..Default::default()
        };
        apply(&mut spec, &adjust).unwrap();
        assert_eq!(spec["annotations"], json!({"y": "2"}));
        assert_eq!(spec["process"]["env"], json!(["B=3", "C=4"]));
        assert_eq!(spec["process"]["args"], json!(["b", "c"]));
        let places: Vec<&str> =
            spec["mounts"].as_array().unwrap().iter().filter_map(|m| m["destination"].as_str()).collect();
        assert_eq!(places, ["/proc", "/a/b"]);
    }

    #[test]
    fn linux_has_its_words() {
        let mut spec = spec();
        let value = |value| Some(api::OptionalInt64 { value });
        let linux = api::LinuxContainerAdjustment {
            devices: vec![api::LinuxDevice {
                path: "/dev/x".into(),
                r#type: "c".into(),
                major: 1,
                minor: 3,
                ..Default::default()
            }],
            resources: Some(api::LinuxResources {
                memory: Some(api::LinuxMemory { swap: value(9), ..Default::default() }),
                pids: Some(api::LinuxPids { limit: 7 }),
                ..Default::default()
            }),
            namespaces: vec![api::LinuxNamespace { r#type: "-pid".into(), ..Default::default() }],
            io_priority: Some(api::LinuxIoPriority { class: api::IoPrioClass::IoprioClassIdle as i32, priority: 2 }),
            scheduler: Some(api::LinuxScheduler { policy: 4, nice: 5, ..Default::default() }),
            ..Default::default()
        };
        apply(&mut spec, &api::ContainerAdjustment { linux: Some(linux), ..Default::default() }).unwrap();
        assert_eq!(spec["linux"]["resources"]["memory"], json!({"limit": 5, "swap": 9}));
        assert_eq!(spec["linux"]["resources"]["pids"]["limit"], 7);
        assert_eq!(spec["linux"]["resources"]["devices"][0]["access"], "rwm");
        assert_eq!(spec["linux"]["namespaces"], json!([]));
        assert_eq!(spec["process"]["ioPriority"]["class"], "IOPRIO_CLASS_IDLE");
        assert_eq!(spec["process"]["scheduler"]["policy"], "SCHED_BATCH");
    }

    #[test]
    fn what_cannot_be_done_is_refused() {
        let class = Some(api::OptionalString { value: "gold".into() });
        let resources = api::LinuxResources { blockio_class: class, ..Default::default() };
        assert!(limits(&mut spec(), &resources).unwrap_err().contains("gold"));
    }
}
