//! The parts of the daemon under the names that containerd's clients look for (`Introspection.Plugins`).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use gantry_api::convert::platform_to_wire;
use gantry_api::pb::containerd::services::introspection::v1::Plugin;
use gantry_engine::{Engine, ProxyKind, ProxyPlugin};
use gantry_types::{Fields, Platform};

/// Type of the plugin that answers questions about runtimes.
pub(crate) const RUNTIME: &str = "io.containerd.runtime.v2";

const CONTENT: &str = "io.containerd.content.v1";
const DIFFER: &str = "io.containerd.differ.v1";
const SANDBOXER: &str = "io.containerd.sandbox.controller.v1";
const SNAPSHOTTER: &str = "io.containerd.snapshotter.v1";

/// Parts with nothing to say but that they are there.
const PLAIN: &[(&str, &[&str])] = &[
    ("io.containerd.event.v1", &["exchange"]),
    ("io.containerd.image-verifier.v1", &["bindir"]),
    ("io.containerd.lease.v1", &["manager"]),
    ("io.containerd.monitor.task.v1", &["cgroups"]),
    ("io.containerd.mount-handler.v1", &["erofs"]),
    ("io.containerd.mount-manager.v1", &["bolt"]),
    ("io.containerd.sandbox.store.v1", &["local"]),
    ("io.containerd.server.v1", &["grpc", "ttrpc"]),
    ("io.containerd.shim.v1", &["manager"]),
    ("io.containerd.streaming.v1", &["manager"]),
    ("io.containerd.transfer.v1", &["local"]),
    ("io.containerd.warning.v1", &["deprecations"]),
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
const WITH_PLATFORM: &[&str] =
    &[DIFFER, SNAPSHOTTER, RUNTIME, "io.containerd.monitor.task.v1", "io.containerd.mount-handler.v1"];

/// Types of which any part can be left out, besides [`SPARE`].
const SPARE_TYPES: &[&str] = &["io.containerd.grpc.v1", "io.containerd.cri.v1", SNAPSHOTTER];

/// Parts that can be left out.
const SPARE: &[&str] = &[
    "io.containerd.image-verifier.v1.bindir",
    "io.containerd.monitor.container.v1.restart",
    "io.containerd.server.v1.debug",
    "io.containerd.server.v1.grpc-tcp",
    "io.containerd.server.v1.metrics",
];

/// Whether a part (`TYPE.ID`) is missed by nothing else here, so that it can be left out.
pub(crate) fn is_spare(part: &str) -> bool {
    let of_type = |kind: &&str| part.strip_prefix(*kind).is_some_and(|id| id.starts_with('.'));
    SPARE.contains(&part) || SPARE_TYPES.iter().any(of_type)
}

/// What the daemon has besides the engine.
#[derive(Clone, Debug, Default)]
pub(crate) struct Besides {
    /// Where `ctr install` puts what an image brings.
    pub(crate) opt: PathBuf,
    /// Parts (type, id) that the configuration asks for.
    pub(crate) parts: Vec<(&'static str, &'static str)>,
}

/// All parts, by type and id.
pub(crate) fn all(engine: &Engine, besides: &Besides) -> Vec<Plugin> {
    let plain = PLAIN.iter().flat_map(|(kind, ids)| ids.iter().map(|id| plugin(kind, id)));
    let mut plugins: Vec<Plugin> = plain.collect();
    plugins.extend(engine.snapshots.names().iter().map(|name| snapshotter(engine, name)));
    plugins.extend(engine.diff.names().iter().map(|name| plugin(DIFFER, name)));
    plugins.extend(engine.sandboxes.controllers().iter().map(|name| sandboxer(name)));
    plugins.extend(besides.parts.iter().map(|(kind, id)| plugin(kind, id)));
    plugins.push(opt(&besides.opt));
    plugins.extend([collector(engine), metadata(engine), restart(), runtime()]);
    if !engine.config().proxy_plugins.values().any(|proxy| proxy.kind == ProxyKind::Content) {
        plugins.push(content(engine));
    }
    for (name, proxy) in &engine.config().proxy_plugins {
        let elsewhere = proxied(name, proxy);
        plugins.retain(|plugin| (&plugin.r#type, &plugin.id) != (&elsewhere.r#type, &elsewhere.id));
        plugins.push(elsewhere);
    }
    plugins.retain(|plugin| !(is_spare(&uri(plugin)) && engine.config().disabled.contains(&uri(plugin))));
    plugins.sort_by(|a, b| (&a.r#type, &a.id).cmp(&(&b.r#type, &b.id)));
    plugins
}

/// The name by which an operator requires or disables a part: `TYPE.ID`.
pub(crate) fn uri(plugin: &Plugin) -> String {
    format!("{}.{}", plugin.r#type, plugin.id)
}

fn plugin(kind: &str, id: &str) -> Plugin {
    let of_platform = WITH_PLATFORM.contains(&kind) || (kind, id) == ("io.containerd.cri.v1", "runtime");
    let platforms = of_platform.then(|| platform_to_wire(&Platform::host()));
    Plugin { r#type: kind.into(), id: id.into(), platforms: platforms.into_iter().collect(), ..Plugin::default() }
}

fn snapshotter(engine: &Engine, name: &str) -> Plugin {
    let Ok(parts) = engine.snapshots.snapshotter(name) else { return plugin(SNAPSHOTTER, name) };
    let capabilities = parts.capabilities().iter().map(|&word| word.to_owned()).collect();
    Plugin { exports: parts.root().map(root).unwrap_or_default(), capabilities, ..plugin(SNAPSHOTTER, name) }
}

/// What the operator says of a part of another process.
fn proxied(name: &str, proxy: &ProxyPlugin) -> Plugin {
    let kind = match proxy.kind {
        ProxyKind::Snapshot => SNAPSHOTTER,
        ProxyKind::Content => CONTENT,
        ProxyKind::Diff => DIFFER,
        ProxyKind::Sandbox => SANDBOXER,
    };
    let mut exports = proxy.exports.clone();
    exports.insert("address".into(), proxy.address.to_string_lossy().into_owned());
    let platform = proxy.platform.parse::<Platform>().unwrap_or_else(|_| Platform::host());
    Plugin {
        platforms: vec![platform_to_wire(&platform)],
        exports,
        capabilities: proxy.capabilities.clone(),
        ..plugin(kind, name)
    }
}

/// Kubernetes' controller has a type of its own.
fn sandboxer(name: &str) -> Plugin {
    match name {
        "podsandbox" => plugin("io.containerd.podsandbox.controller.v1", name),
        name => plugin(SANDBOXER, name),
    }
}

fn content(engine: &Engine) -> Plugin {
    Plugin { exports: root(&engine.config().root.join("content")), ..plugin(CONTENT, "content") }
}

fn metadata(engine: &Engine) -> Plugin {
    let path = engine.config().root.join("metadata").to_string_lossy().into_owned();
    let exports = BTreeMap::from([("path".into(), path), ("policy".into(), "shared".into())]);
    Plugin { exports, ..plugin("io.containerd.metadata.v1", "bolt") }
}

fn collector(engine: &Engine) -> Plugin {
    let gc = &engine.config().gc;
    let exports = BTreeMap::from([
        ("PauseThreshold".into(), gc.pause_threshold.to_string()),
        ("DeletionThreshold".into(), gc.deletion_threshold.to_string()),
        ("MutationThreshold".into(), gc.mutation_threshold.to_string()),
        ("ScheduleDelay".into(), format!("{:?}", gc.schedule_delay)),
    ]);
    Plugin { exports, ..plugin("io.containerd.gc.v1", "scheduler") }
}

fn opt(path: &Path) -> Plugin {
    let exports = BTreeMap::from([("path".into(), path.to_string_lossy().into_owned())]);
    Plugin { exports, ..plugin("io.containerd.internal.v1", "opt") }
}

fn restart() -> Plugin {
    let capabilities = ["no", "always", "on-failure", "unless-stopped"].map(String::from).to_vec();
    Plugin { capabilities, ..plugin("io.containerd.monitor.container.v1", "restart") }
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
    fn what_others_need_cannot_be_left_out() {
        for part in ["io.containerd.snapshotter.v1.native", "io.containerd.grpc.v1.leases", SPARE[0]] {
            assert!(is_spare(part), "{part}");
        }
        for part in ["io.containerd.content.v1.content", "io.containerd.grpc.v10.x", "io.containerd.gc.v1.scheduler"] {
            assert!(!is_spare(part), "{part}");
        }
    }

    #[test]
    fn a_part_of_another_process_says_what_its_operator_says_and_where_it_is() {
        let proxy = ProxyPlugin {
            kind: ProxyKind::Snapshot,
            address: "/run/stargz.sock".into(),
            platform: "linux/arm64".into(),
            exports: root(Path::new("/stargz")),
            capabilities: vec!["remap-ids".into()],
        };
        let shown = proxied("stargz", &proxy);
        assert_eq!((shown.r#type.as_str(), shown.id.as_str()), (SNAPSHOTTER, "stargz"));
        assert_eq!(
            (shown.exports["root"].as_str(), shown.exports["address"].as_str()),
            ("/stargz", "/run/stargz.sock")
        );
        assert_eq!((shown.platforms[0].architecture.as_str(), shown.capabilities[0].as_str()), ("arm64", "remap-ids"));
    }

    #[test]
    fn snapshotters_and_runtimes_name_their_platform() {
        assert_eq!(plugin(SNAPSHOTTER, "overlayfs").platforms, [platform_to_wire(&Platform::host())]);
        assert_eq!(runtime().platforms.len(), 1);
        assert!(plugin("io.containerd.gc.v1", "scheduler").platforms.is_empty());
    }
}
