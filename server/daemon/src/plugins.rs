//! The parts of the daemon under the names that containerd's clients look for (`Introspection.Plugins`).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use gantry_api::convert::platform_to_wire;
use gantry_api::pb::containerd::services::introspection::v1::Plugin;
use gantry_engine::Engine;
use gantry_types::{Fields, Platform};

/// Type of the plugin that answers questions about runtimes.
pub(crate) const RUNTIME: &str = "io.containerd.runtime.v2";

const SNAPSHOTTER: &str = "io.containerd.snapshotter.v1";

/// Parts with nothing to say but that they are there.
const PLAIN: &[(&str, &[&str])] = &[
    ("io.containerd.differ.v1", &["walking"]),
    ("io.containerd.event.v1", &["exchange"]),
    ("io.containerd.gc.v1", &["scheduler"]),
    ("io.containerd.lease.v1", &["manager"]),
    ("io.containerd.metadata.v1", &["bolt"]),
    ("io.containerd.monitor.container.v1", &["restart"]),
    ("io.containerd.sandbox.store.v1", &["local"]),
    ("io.containerd.server.v1", &["grpc", "ttrpc"]),
    ("io.containerd.shim.v1", &["manager"]),
    ("io.containerd.streaming.v1", &["manager"]),
    ("io.containerd.transfer.v1", &["local"]),
    (
        "io.containerd.service.v1",
        &[
            "containers-service",
            "content-service",
            "diff-service",
            "images-service",
            "introspection-service",
            "namespaces-service",
            "snapshots-service",
            "tasks-service",
        ],
    ),
    (
        "io.containerd.grpc.v1",
        &[
            "containers",
            "content",
            "diff",
            "events",
            "healthcheck",
            "images",
            "introspection",
            "leases",
            "mounts",
            "namespaces",
            "sandbox-controllers",
            "sandboxes",
            "snapshots",
            "streaming",
            "tasks",
            "transfer",
            "version",
        ],
    ),
];

/// Types of which clients read the platforms.
const WITH_PLATFORM: &[&str] = &["io.containerd.differ.v1", SNAPSHOTTER, RUNTIME];

/// All parts, by type and id.
pub(crate) fn all(engine: &Engine) -> Vec<Plugin> {
    let plain = PLAIN.iter().flat_map(|(kind, ids)| ids.iter().map(|id| plugin(kind, id)));
    let mut plugins: Vec<Plugin> = plain.collect();
    plugins.extend(engine.snapshots.names().iter().map(|name| snapshotter(engine, name)));
    plugins.push(content(engine));
    plugins.push(runtime());
    plugins.sort_by(|a, b| (&a.r#type, &a.id).cmp(&(&b.r#type, &b.id)));
    plugins
}

fn plugin(kind: &str, id: &str) -> Plugin {
    let platforms = WITH_PLATFORM.contains(&kind).then(|| platform_to_wire(&Platform::host()));
    Plugin { r#type: kind.into(), id: id.into(), platforms: platforms.into_iter().collect(), ..Plugin::default() }
}

fn snapshotter(engine: &Engine, name: &str) -> Plugin {
    let Ok(parts) = engine.snapshots.snapshotter(name) else { return plugin(SNAPSHOTTER, name) };
    let capabilities = parts.capabilities().iter().map(|&word| word.to_owned()).collect();
    Plugin { exports: parts.root().map(root).unwrap_or_default(), capabilities, ..plugin(SNAPSHOTTER, name) }
}

fn content(engine: &Engine) -> Plugin {
    Plugin { exports: root(&engine.config().root.join("content")), ..plugin("io.containerd.content.v1", "content") }
}

/// Where a part keeps its files, as it tells clients.
fn root(path: &Path) -> BTreeMap<String, String> {
    BTreeMap::from([("root".into(), path.to_string_lossy().into_owned())])
}

fn runtime() -> Plugin {
    let exports = BTreeMap::from([("log-uri-schemes".into(), "fifo,binary,binary-v2,file".into())]);
    Plugin { exports, ..plugin(RUNTIME, "task") }
}

/// What filters see of a plugin.
pub(crate) struct View<'a>(pub(crate) &'a Plugin);

impl Fields for View<'_> {
    fn field(&self, path: &[&str]) -> Option<Cow<'_, str>> {
        match path {
            ["type", ..] => Some(Cow::Borrowed(&self.0.r#type)),
            ["id", ..] => Some(Cow::Borrowed(&self.0.id)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use gantry_types::Filter;

    use super::*;

    fn selected(filter: &str) -> bool {
        Filter::parse(&[filter]).unwrap().matches(&View(&plugin(SNAPSHOTTER, "overlayfs")))
    }

    #[test]
    fn clients_find_a_snapshotter_by_type_and_id() {
        assert!(selected("type==io.containerd.snapshotter.v1, id==overlayfs"));
        assert!(selected("type==\"io.containerd.snapshotter.v1\""));
        assert!(!selected("type==io.containerd.snapshotter.v1,id==native"));
    }

    #[test]
    fn snapshotters_and_runtimes_name_their_platform() {
        assert_eq!(plugin(SNAPSHOTTER, "overlayfs").platforms, [platform_to_wire(&Platform::host())]);
        assert_eq!(runtime().platforms.len(), 1);
        assert!(plugin("io.containerd.gc.v1", "scheduler").platforms.is_empty());
    }
}
