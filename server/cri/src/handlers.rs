//! Runtime handlers: what a RuntimeClass names, from the configuration to the engine's runtime and its options.

use std::path::Path;

use gantry_api::pb::containerd::runc::v1::Options as RuncOptions;
use gantry_api::pb::runtimeoptions::v1::Options as FreeOptions;
use gantry_engine::containers::Runtime;
use gantry_types::Any;
use prost::Name;
use serde_json::Value;

use crate::config::RuntimeHandler;
use crate::{Cri, Error, Result};

/// Runtimes that take runc's options.
const RUNC: [&str; 2] = ["io.containerd.runc.v2", "io.containerd.runc.v1"];

impl Cri {
    /// The configured name of a handler: the default one for an empty name.
    pub(crate) fn handler_name<'a>(&'a self, name: &'a str) -> &'a str {
        if name.is_empty() { &self.config.runtime.default_runtime_name } else { name }
    }

    /// The handler of that name.
    ///
    /// # Errors
    /// [`Error::State`] where there is none, in containerd's words.
    pub(crate) fn handler(&self, name: &str) -> Result<&RuntimeHandler> {
        let found = self.config.runtime.runtimes.get(self.handler_name(name));
        found.ok_or_else(|| Error::State(format!("no runtime for {name:?} is configured")))
    }

    /// Whether cgroups are made by systemd.
    pub(crate) fn systemd_cgroups(&self, handler: &RuntimeHandler) -> bool {
        match handler.options.get("SystemdCgroup") {
            Some(Value::Bool(systemd)) => *systemd,
            _ => !takes_runc_options(handler) && Path::new("/run/systemd/system").is_dir(),
        }
    }
}

/// What the engine is to run by.
pub(crate) fn runtime_of(handler: &RuntimeHandler) -> Runtime {
    let path = handler.runtime_path.as_ref().map(|path| path.to_string_lossy().into_owned());
    Runtime { name: path.unwrap_or_else(|| handler.runtime_type.clone()), options: options_of(handler) }
}

/// Whether a handler's runtime takes runc's options.
pub(crate) fn takes_runc_options(handler: &RuntimeHandler) -> bool {
    RUNC.contains(&handler.runtime_type.as_str())
}

fn options_of(handler: &RuntimeHandler) -> Option<Any> {
    if handler.options.is_empty() {
        return None;
    }
    if takes_runc_options(handler) {
        return Some(any(&runc_options(handler)));
    }
    let text = |key: &str| handler.options.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    Some(any(&FreeOptions {
        type_url: text("TypeUrl"),
        config_path: text("ConfigPath"),
        config_body: text("ConfigBody").into_bytes(),
    }))
}

fn runc_options(handler: &RuntimeHandler) -> RuncOptions {
    let text = |key: &str| handler.options.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let flag = |key: &str| handler.options.get(key).and_then(Value::as_bool).unwrap_or_default();
    let number = |key: &str| {
        handler.options.get(key).and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok()).unwrap_or_default()
    };
    RuncOptions {
        no_pivot_root: flag("NoPivotRoot"),
        no_new_keyring: flag("NoNewKeyring"),
        shim_cgroup: text("ShimCgroup"),
        io_uid: number("IoUid"),
        io_gid: number("IoGid"),
        binary_name: text("BinaryName"),
        root: text("Root"),
        systemd_cgroup: flag("SystemdCgroup"),
        criu_image_path: text("CriuImagePath"),
        criu_work_path: text("CriuWorkPath"),
        ..RuncOptions::default()
    }
}

fn any<M: prost::Message + Name>(message: &M) -> Any {
    Any { type_url: M::full_name(), value: message.encode_to_vec() }
}

/// The annotations that `patterns` (a name, or the beginning of one and `*`) let through.
pub(crate) fn passed<'a>(
    patterns: &'a [String],
    annotations: &'a std::collections::BTreeMap<String, String>,
) -> impl Iterator<Item = (&'a String, &'a String)> {
    let fits = |pattern: &String, key: &str| match pattern.strip_suffix('*') {
        Some(beginning) => key.starts_with(beginning),
        None => pattern == key,
    };
    annotations.iter().filter(move |(key, _)| patterns.iter().any(|pattern| fits(pattern, key)))
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    #[test]
    fn options_reach_the_runtime_under_their_own_names() {
        let options = [("BinaryName", Value::from("/bin/crun")), ("SystemdCgroup", true.into()), ("IoUid", 7.into())];
        let handler = RuntimeHandler {
            options: options.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
            ..RuntimeHandler::default()
        };
        let any = runtime_of(&handler).options.unwrap();
        assert_eq!(any.type_url, "containerd.runc.v1.Options");
        let options = RuncOptions::decode(any.value.as_slice()).unwrap();
        assert_eq!((options.binary_name.as_str(), options.systemd_cgroup, options.io_uid), ("/bin/crun", true, 7));
    }

    #[test]
    fn only_named_annotations_are_handed_on() {
        let annotations = [("a.b/c", "1"), ("a.b/d", "2"), ("x", "3")];
        let annotations = annotations.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let kept: Vec<_> = passed(&["a.b/*".into(), "y".into()], &annotations).map(|(k, _)| k.clone()).collect();
        assert_eq!(kept, ["a.b/c", "a.b/d"]);
    }
}
