//! Devices by CDI name (`VENDOR/CLASS=NAME`): specifications of the Container Device Interface, in
//! JSON or YAML, tell what each stands for: devices, mounts, variables, hooks and groups.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use gantry_api::pb::runtime::v1 as wire;
use gantry_engine::spec::oci_spec::runtime::{Hook, Hooks};
use gantry_engine::spec::{MappedMount, SpecBuilder};
use gantry_types::Mount;
use serde::Deserialize;

use super::devices::device;
use crate::{Error, Result};

/// Largest specification that is read, in bytes.
const MAX_SPEC: u64 = 4 << 20;
/// Which files of a directory are specifications.
const EXTENSIONS: [&str; 3] = ["json", "yaml", "yml"];
/// Annotations that name devices, too: those whose key begins so.
const ANNOTATION: &str = "cdi.k8s.io/";

/// One file.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    kind: String,
    #[serde(default)]
    devices: Vec<Device>,
    #[serde(default)]
    container_edits: Edits,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Device {
    name: String,
    #[serde(default)]
    container_edits: Edits,
}

/// What is added to a container.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Edits {
    env: Vec<String>,
    device_nodes: Vec<Node>,
    mounts: Vec<Bind>,
    hooks: Vec<NamedHook>,
    #[serde(rename = "additionalGids")]
    additional_gids: Vec<u32>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Node {
    path: PathBuf,
    host_path: Option<PathBuf>,
    permissions: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bind {
    host_path: String,
    container_path: String,
    #[serde(default)]
    options: Vec<String>,
    #[serde(default, rename = "type")]
    kind: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NamedHook {
    hook_name: String,
    #[serde(flatten)]
    hook: Hook,
}

/// The names of devices that a request asks for, by field and by annotation, each once.
pub(super) fn names(config: &wire::ContainerConfig) -> Vec<String> {
    let annotated = config.annotations.iter().filter(|(key, _)| key.starts_with(ANNOTATION));
    let annotated = annotated.flat_map(|(_, value)| value.split(',').map(|name| name.trim().to_owned()));
    let mut names: Vec<String> = config.cdi_devices.iter().map(|device| device.name.clone()).collect();
    for name in annotated {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// Adds what the named devices stand for; gives the groups that they add.
///
/// # Errors
/// [`Error::Invalid`] that names the field, for a device that no specification has.
pub(crate) fn add(
    mut builder: SpecBuilder,
    names: &[String],
    directories: &[PathBuf],
) -> Result<(SpecBuilder, Vec<u32>)> {
    if names.is_empty() {
        return Ok((builder, Vec::new()));
    }
    let files = load(directories);
    let (mut hooks, mut groups, mut kinds) = (Hooks::default(), Vec::new(), Vec::new());
    for (at, name) in names.iter().enumerate() {
        let missing =
            || Error::invalid(format!("config.CDI_devices[{at}].name"), format!("unresolvable CDI device {name}"));
        let (kind, device) = name.split_once('=').ok_or_else(missing)?;
        let found = files.iter().rev().filter(|file| file.kind == kind);
        let (file, device) = found
            .filter_map(|file| Some((file, file.devices.iter().find(|d| d.name == device)?)))
            .next()
            .ok_or_else(missing)?;
        let common = (!kinds.contains(&kind)).then_some(&file.container_edits);
        kinds.push(kind);
        for edits in common.into_iter().chain([&device.container_edits]) {
            builder = apply(builder, edits)?;
            edits.hooks.iter().for_each(|hook| hooked(&mut hooks, hook));
            groups.extend(&edits.additional_gids);
        }
    }
    if hooks != Hooks::default() {
        builder = builder.hooks(hooks);
    }
    Ok((builder, groups))
}

fn apply(mut builder: SpecBuilder, edits: &Edits) -> Result<SpecBuilder> {
    for pair in &edits.env {
        builder = builder.env(pair);
    }
    for node in &edits.device_nodes {
        let host = node.host_path.as_deref().unwrap_or(&node.path);
        let made = device(host, &node.path)
            .ok_or_else(|| Error::State(format!("CDI device node {}: is not a device", host.display())))?;
        builder = builder.device(made, node.permissions.as_deref().unwrap_or("rwm"));
    }
    for bind in &edits.mounts {
        let kind = if bind.kind.is_empty() { "bind".to_owned() } else { bind.kind.clone() };
        let (source, target) = (bind.host_path.clone(), bind.container_path.clone());
        let mount = Mount { kind, source, target, options: bind.options.clone() };
        builder = builder.mapped_mount(&MappedMount { mount, ..MappedMount::default() })?;
    }
    Ok(builder)
}

fn hooked(hooks: &mut Hooks, named: &NamedHook) {
    macro_rules! push {
        ($get:ident, $set:ident) => {{
            let mut all = hooks.$get().clone().unwrap_or_default();
            all.push(named.hook.clone());
            hooks.$set(Some(all));
        }};
    }
    match named.hook_name.as_str() {
        "createRuntime" => push!(create_runtime, set_create_runtime),
        "createContainer" => push!(create_container, set_create_container),
        "startContainer" => push!(start_container, set_start_container),
        "poststart" => push!(poststart, set_poststart),
        "poststop" => push!(poststop, set_poststop),
        other => tracing::warn!(other, "a CDI hook of unknown name is left out"),
    }
}

/// All specifications, later directories last: they win.
fn load(directories: &[PathBuf]) -> Vec<File> {
    let mut paths: BTreeMap<(usize, PathBuf), PathBuf> = BTreeMap::new();
    for (at, directory) in directories.iter().enumerate() {
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
        let ours = |path: &PathBuf| path.extension().is_some_and(|e| EXTENSIONS.iter().any(|known| e == *known));
        paths.extend(entries.filter(ours).map(|path| ((at, path.clone()), path)));
    }
    paths.values().filter_map(|path| read(path).inspect_err(|e| tracing::warn!(%e, "CDI file left out")).ok()).collect()
}

fn read(path: &Path) -> Result<File> {
    let known = std::fs::metadata(path).map_err(Error::io("read", path))?;
    if !known.is_file() || known.len() > MAX_SPEC {
        return Err(Error::State(format!("{}: not a file of at most {MAX_SPEC} bytes", path.display())));
    }
    let text = std::fs::read(path).map_err(Error::io("read", path))?;
    let bad = |error: &dyn std::fmt::Display| Error::State(format!("{}: {error}", path.display()));
    if path.extension().is_some_and(|extension| extension == "json") {
        return serde_json::from_slice(&text).map_err(|error| bad(&error));
    }
    serde_yaml_ng::from_slice(&text).map_err(|error| bad(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: &str = r#"{"cdiVersion":"0.6.0","kind":"vendor.test/dev","containerEdits":{"env":["ALL=1"]},
        "devices":[{"name":"one","containerEdits":{"env":["ONE=1"],"additionalGids":[7],
            "deviceNodes":[{"path":"/dev/one","hostPath":"/dev/null"}],
            "mounts":[{"hostPath":"/tmp","containerPath":"/mnt/one","options":["ro","bind"]}],
            "hooks":[{"hookName":"createContainer","path":"/bin/true","args":["true"]}]}}]}"#;

    #[test]
    fn a_named_device_brings_all_its_edits() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("a.json"), SPEC).unwrap();
        std::fs::write(directory.path().join("bad.json"), "{").unwrap();
        let builder = SpecBuilder::new(&"ns".parse().unwrap(), "c").unwrap().args(&["x".into()]);
        let directories = [directory.path().to_owned()];
        let (builder, groups) = add(builder, &["vendor.test/dev=one".to_owned()], &directories).unwrap();
        let spec = builder.build().unwrap();
        let env = spec.process().as_ref().unwrap().env().clone().unwrap();
        assert!(env.contains(&"ALL=1".to_owned()) && env.contains(&"ONE=1".to_owned()));
        assert_eq!(groups, [7]);
        assert_eq!(spec.linux().as_ref().unwrap().devices().as_ref().unwrap().len(), 1);
        assert!(spec.hooks().as_ref().unwrap().create_container().is_some());
    }

    #[test]
    fn a_specification_may_be_in_yaml() {
        let directory = tempfile::tempdir().unwrap();
        let text = "cdiVersion: 0.6.0\nkind: vendor.test/dev\ndevices:\n- name: one\n  containerEdits:\n    env: [ONE=1]\n    \
                    hooks:\n    - {hookName: createContainer, path: /bin/true, timeout: 5}\n";
        std::fs::write(directory.path().join("a.yaml"), text).unwrap();
        let builder = SpecBuilder::new(&"ns".parse().unwrap(), "c").unwrap().args(&["x".into()]);
        let directories = [directory.path().to_owned()];
        let (builder, _) = add(builder, &["vendor.test/dev=one".to_owned()], &directories).unwrap();
        let spec = builder.build().unwrap();
        assert!(spec.process().as_ref().unwrap().env().clone().unwrap().contains(&"ONE=1".to_owned()));
        assert!(spec.hooks().as_ref().unwrap().create_container().is_some());
    }

    #[test]
    fn a_device_that_nobody_describes_is_refused() {
        let builder = SpecBuilder::new(&"ns".parse().unwrap(), "c").unwrap();
        let error = add(builder, &["a/b=c".to_owned()], &[]).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("unresolvable CDI device a/b=c"));
    }
}
