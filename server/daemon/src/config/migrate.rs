//! From older versions of containerd's configuration to the newest, as pure rules over the tree. What a file of any
//! version says under an old name counts, unless it says it under the new one too.

use super::load::version;
use super::report::Report;
use super::tree::{self, Node, Table, Value};

/// The newest version.
pub(super) const NEWEST: i64 = 4;

const CRI: &str = "io.containerd.grpc.v1.cri";
const CRI_IMAGES: &str = "io.containerd.cri.v1.images";
const CRI_RUNTIME: &str = "io.containerd.cri.v1.runtime";
const GRPC: &str = "io.containerd.server.v1.grpc";
const TCP: &str = "io.containerd.server.v1.grpc-tcp";
const TTRPC: &str = "io.containerd.server.v1.ttrpc";
const DEBUG: &str = "io.containerd.server.v1.debug";
const METRICS: &str = "io.containerd.server.v1.metrics";
const PROMETHEUS: &str = "io.containerd.metrics.v1.grpc-prometheus";
const RESTART: &str = "io.containerd.monitor.container.v1.restart";

/// Old places of values and their new ones: version 4 has servers, monitors and metrics as plug-ins.
const MOVES: &[(&[&str], &[&str])] = &[
    (&["grpc", "address"], &["plugins", GRPC, "address"]),
    (&["grpc", "uid"], &["plugins", GRPC, "uid"]),
    (&["grpc", "gid"], &["plugins", GRPC, "gid"]),
    (&["grpc", "tcp_address"], &["plugins", TCP, "address"]),
    (&["grpc", "tcp_tls_ca"], &["plugins", TCP, "tls_ca"]),
    (&["grpc", "tcp_tls_cert"], &["plugins", TCP, "tls_cert"]),
    (&["grpc", "tcp_tls_key"], &["plugins", TCP, "tls_key"]),
    (&["grpc", "tcp_tls_common_name"], &["plugins", TCP, "tls_common_name"]),
    (&["ttrpc", "address"], &["plugins", TTRPC, "address"]),
    (&["ttrpc", "uid"], &["plugins", TTRPC, "uid"]),
    (&["ttrpc", "gid"], &["plugins", TTRPC, "gid"]),
    (&["debug", "address"], &["plugins", DEBUG, "address"]),
    (&["debug", "uid"], &["plugins", DEBUG, "uid"]),
    (&["debug", "gid"], &["plugins", DEBUG, "gid"]),
    (&["metrics", "address"], &["plugins", METRICS, "address"]),
    (&["metrics", "grpc_histogram"], &["plugins", PROMETHEUS, "grpc_histogram"]),
    (&["plugins", "io.containerd.internal.v1.restart"], &["plugins", RESTART]),
    (&["plugins", "io.containerd.monitor.v1.cgroups"], &["plugins", "io.containerd.monitor.task.v1.cgroups"]),
];

/// What of the one old section of Kubernetes is now said of images.
const OF_IMAGES: &[&str] = &[
    "registry",
    "image_decryption",
    "max_concurrent_downloads",
    "image_pull_progress_timeout",
    "image_pull_with_sync_fs",
    "stats_collect_period",
];

/// What stays there: the streaming server.
const OF_SERVER: &[&str] = &[
    "disable_tcp_service",
    "stream_server_address",
    "stream_server_port",
    "stream_idle_timeout",
    "enable_tls_streaming",
    "x509_key_pair_streaming",
];

/// Names of version 1 that are not in `io.containerd.grpc.v1`.
const SHORT: &[(&str, &str)] = &[
    ("cgroups", "io.containerd.monitor.v1.cgroups"),
    ("linux", "io.containerd.runtime.v1.linux"),
    ("scheduler", "io.containerd.gc.v1.scheduler"),
    ("bolt", "io.containerd.metadata.v1.bolt"),
    ("task", "io.containerd.runtime.v2.task"),
    ("opt", "io.containerd.internal.v1.opt"),
    ("restart", "io.containerd.internal.v1.restart"),
    ("tracing", "io.containerd.internal.v1.tracing"),
    ("otlp", "io.containerd.tracing.processor.v1.otlp"),
    ("aufs", "io.containerd.snapshotter.v1.aufs"),
    ("btrfs", "io.containerd.snapshotter.v1.btrfs"),
    ("devmapper", "io.containerd.snapshotter.v1.devmapper"),
    ("native", "io.containerd.snapshotter.v1.native"),
    ("overlayfs", "io.containerd.snapshotter.v1.overlayfs"),
    ("zfs", "io.containerd.snapshotter.v1.zfs"),
];

/// Brings one file's tree to the newest version.
pub(super) fn migrate(mut table: Table, report: &mut Report) -> Table {
    let version = version(&table, report);
    if version == 1 {
        long_names(&mut table);
    }
    old_names(&mut table, "disabled_plugins");
    old_names(&mut table, "required_plugins");
    message_sizes(&mut table);
    for (from, to) in MOVES {
        relocate(&mut table, from, to);
    }
    // What is left is unknown, and told with what was perhaps meant.
    for (section, plugin) in [("grpc", GRPC), ("ttrpc", TTRPC), ("metrics", METRICS)] {
        relocate(&mut table, &[section], &["plugins", plugin]);
    }
    scheduling(&mut table);
    cri(&mut table);
    table.insert("version".into(), Value::Integer(NEWEST).into());
    table
}

fn relocate(table: &mut Table, from: &[&str], to: &[&str]) {
    if let Some(node) = tree::take(table, from) {
        join(table, to, node);
    }
}

/// One pair of limits for both servers became one pair each.
fn message_sizes(table: &mut Table) {
    for key in ["max_recv_message_size", "max_send_message_size"] {
        if let Some(node) = tree::take(table, &["grpc", key]) {
            tree::put(table, &["plugins", TCP, key], node.clone());
            tree::put(table, &["plugins", GRPC, key], node);
        }
    }
}

/// Core scheduling is asked for by a variable of the shims.
fn scheduling(table: &mut Table) {
    let Some(node) = tree::take(table, &["plugins", "io.containerd.runtime.v2.task", "sched_core"]) else { return };
    if node.value == Value::Bool(true) {
        let place = node.place;
        let entry = Node { value: Value::Text("SCHED_CORE=1".into()), place: place.clone() };
        let list = Node { value: Value::List(vec![entry]), place };
        tree::put(table, &["plugins", "io.containerd.shim.v1.manager", "env"], list);
    }
}

/// Version 1 names plug-ins without their type.
fn long_names(table: &mut Table) {
    if let Some(plugins) = table.get_mut("plugins").and_then(Node::table_mut) {
        *plugins = std::mem::take(plugins).into_iter().map(|(name, node)| (long_name(&name), node)).collect();
    }
    rename(table, "disabled_plugins", long_name);
    rename(table, "required_plugins", long_name);
}

fn long_name(name: &str) -> String {
    if name.contains('.') {
        return name.to_owned();
    }
    match SHORT.iter().find(|(short, _)| *short == name) {
        Some((_, long)) => (*long).to_owned(),
        None if name.ends_with("-service") => format!("io.containerd.service.v1.{name}"),
        None => format!("io.containerd.grpc.v1.{name}"),
    }
}

/// Plug-ins that were renamed are still found in the lists.
fn old_names(table: &mut Table, key: &str) {
    rename(table, key, |name| match name {
        "io.containerd.internal.v1.restart" => RESTART.to_owned(),
        "io.containerd.monitor.v1.cgroups" => "io.containerd.monitor.task.v1.cgroups".to_owned(),
        name => name.to_owned(),
    });
}

fn rename(table: &mut Table, key: &str, to: impl Fn(&str) -> String) {
    let Some(Node { value: Value::List(list), .. }) = table.get_mut(key) else { return };
    for node in list {
        if let Value::Text(name) = &mut node.value {
            *name = to(name);
        }
    }
}

/// The one section of Kubernetes became three: how containers run, images, and the streaming server.
fn cri(table: &mut Table) {
    let Some(mut old) = tree::take(table, &["plugins", CRI]) else { return };
    let Some(section) = old.table_mut() else { return tree::put(table, &["plugins", CRI], old) };
    relocate(section, &["cni", "bin_dir"], &["cni", "bin_dirs"]);
    if let Some(dirs) = section.get_mut("cni").and_then(Node::table_mut).and_then(|cni| cni.get_mut("bin_dirs"))
        && dirs.text().is_some()
    {
        let dir = dirs.clone();
        dirs.value = Value::List(vec![dir]);
    }
    let images = |name| ["plugins", CRI_IMAGES, name];
    if let Some(image) = section.remove("sandbox_image") {
        tree::put(table, &["plugins", CRI_IMAGES, "pinned_images", "sandbox"], image);
    }
    for name in OF_IMAGES {
        if let Some(node) = section.remove(*name) {
            tree::put(table, &images(name), node);
        }
    }
    for name in ["snapshotter", "disable_snapshot_annotations", "discard_unpacked_layers"] {
        if let Some(node) = tree::take(section, &["containerd", name]) {
            tree::put(table, &images(name), node);
        }
    }
    named_runtimes(section);
    for (name, node) in std::mem::take(section) {
        let plugin = if OF_SERVER.contains(&name.as_str()) { CRI } else { CRI_RUNTIME };
        join(table, &["plugins", plugin, &name], node);
    }
}

/// Puts a value or, of a section, each of its values.
fn join(table: &mut Table, path: &[&str], node: Node) {
    match node.value {
        Value::Table(inner) if !inner.is_empty() => {
            for (name, node) in inner {
                let path: Vec<&str> = path.iter().copied().chain([name.as_str()]).collect();
                join(table, &path, node);
            }
        }
        value => tree::put(table, path, Node { value, place: node.place }),
    }
}

/// `default_runtime` and `untrusted_workload_runtime` of version 1 are runtimes like others, and `runtime_engine` and
/// `runtime_root` options of theirs.
fn named_runtimes(section: &mut Table) {
    for (old, name) in [("default_runtime", "default"), ("untrusted_workload_runtime", "untrusted")] {
        if let Some(node) = tree::take(section, &["containerd", old])
            && !node.is_empty()
        {
            join(section, &["containerd", "runtimes", name], node);
        }
    }
    let has_default = tree::get(section, &["containerd", "runtimes", "default"]).is_some();
    if has_default {
        tree::put(section, &["containerd", "default_runtime_name"], Value::Text("default".into()).into());
    }
    let runtimes = section.get_mut("containerd").and_then(Node::table_mut).and_then(|c| c.get_mut("runtimes"));
    for runtime in runtimes.and_then(Node::table_mut).into_iter().flat_map(|runtimes| runtimes.values_mut()) {
        let Some(runtime) = runtime.table_mut() else { continue };
        relocate(runtime, &["sandbox_mode"], &["sandboxer"]);
        for (old, option) in [("runtime_engine", "BinaryName"), ("runtime_root", "Root")] {
            if let Some(node) = runtime.remove(old)
                && !node.is_empty()
            {
                tree::put(runtime, &["options", option], node);
            }
        }
    }
}
