//! Which name of a file sets what: the daemon's part and the engine's. A name that is in no list is unknown.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use gantry_engine::{ProxyKind, StreamProcessor, UnpackPlatform};
use tracing::level_filters::LevelFilter;

use super::report::Report;
use super::setting::{Form, Setting, list, number, section, text, write_list};
use super::tree::{self, Node, Value};
use super::{Config, LogFormat, Proxy};

const GRPC: &str = "io.containerd.server.v1.grpc";
const TCP: &str = "io.containerd.server.v1.grpc-tcp";
const TTRPC: &str = "io.containerd.server.v1.ttrpc";
const DEBUG: &str = "io.containerd.server.v1.debug";
const METRICS: &str = "io.containerd.server.v1.metrics";
const PROMETHEUS: &str = "io.containerd.metrics.v1.grpc-prometheus";
const TRANSFER: &str = "io.containerd.transfer.v1.local";
const GC: &str = "io.containerd.gc.v1.scheduler";
const SHIMS: &str = "io.containerd.shim.v1.manager";
const TASKS: &str = "io.containerd.runtime.v2.task";
const RESTART: &str = "io.containerd.monitor.container.v1.restart";
const VERIFIER: &str = "io.containerd.image-verifier.v1.bindir";
const DIFF: &str = "io.containerd.service.v1.diff-service";
const OPT: &str = "io.containerd.internal.v1.opt";
const OVERLAY: &str = "io.containerd.snapshotter.v1.overlayfs";
const NATIVE: &str = "io.containerd.snapshotter.v1.native";
const BTRFS: &str = "io.containerd.snapshotter.v1.btrfs";
const EROFS: &str = "io.containerd.snapshotter.v1.erofs";
const EROFS_DIFFER: &str = "io.containerd.differ.v1.erofs";

section! {
    Config {
        ["root"] => root,
        ["state"] => state,
        ["temp"] => temp,
        ["oom_score"] => oom_score as OomScore,
        ["required_plugins"] => required as Parts,
        ["disabled_plugins"] => disabled as Parts,
        ["debug", "level"] => log_level as Level,
        ["debug", "format"] => log_format as Format,
        ["timeouts", "io.containerd.timeout.shim.load"] => restore_timeout,
        ["proxy_plugins"] => proxy_plugins,
        ["stream_processors"] => stream_processors,
        ["plugins", GRPC, "address"] => grpc.address,
        ["plugins", GRPC, "uid"] => grpc.owner.uid,
        ["plugins", GRPC, "gid"] => grpc.owner.gid,
        ["plugins", GRPC, "max_recv_message_size"] => grpc.max_recv as MessageSize,
        ["plugins", GRPC, "max_send_message_size"] => grpc.max_send as MessageSize,
        ["plugins", TCP, "address"] => tcp.address as Address,
        ["plugins", TCP, "tls_ca"] => tcp.ca,
        ["plugins", TCP, "tls_cert"] => tcp.cert,
        ["plugins", TCP, "tls_key"] => tcp.key,
        ["plugins", TCP, "max_recv_message_size"] => tcp.max_recv as MessageSize,
        ["plugins", TCP, "max_send_message_size"] => tcp.max_send as MessageSize,
        ["plugins", TTRPC, "address"] => ttrpc.address,
        ["plugins", TTRPC, "uid"] => ttrpc.owner.uid,
        ["plugins", TTRPC, "gid"] => ttrpc.owner.gid,
        ["plugins", DEBUG, "address"] => debug.address,
        ["plugins", DEBUG, "uid"] => debug.owner.uid,
        ["plugins", DEBUG, "gid"] => debug.owner.gid,
        ["plugins", METRICS, "address"] => metrics.address as Address,
        ["plugins", PROMETHEUS, "grpc_histogram"] => metrics.histogram,
        ["plugins", TRANSFER, "config_path"] => hosts_dirs as Colons,
        ["plugins", TRANSFER, "max_concurrent_downloads"] => concurrent_downloads as AtLeastOne,
        ["plugins", TRANSFER, "max_concurrent_unpacks"] => concurrent_unpacks as AtLeastOne,
        ["plugins", TRANSFER, "unpack_config"] => unpack_platforms,
        ["plugins", GC, "pause_threshold"] => gc.pause_threshold as Half,
        ["plugins", GC, "deletion_threshold"] => gc.deletion_threshold,
        ["plugins", GC, "mutation_threshold"] => gc.mutation_threshold,
        ["plugins", GC, "schedule_delay"] => gc.schedule_delay,
        ["plugins", GC, "startup_delay"] => gc.startup_delay,
        ["plugins", SHIMS, "env"] => shim_environment as Environment,
        ["plugins", RESTART, "interval"] => restart_interval,
        ["plugins", VERIFIER, "bin_dir"] => image_verifier.bin_dir,
        ["plugins", VERIFIER, "max_verifiers"] => image_verifier.max_verifiers,
        ["plugins", VERIFIER, "per_verifier_timeout"] => image_verifier.timeout,
        ["plugins", DIFF, "default"] => differs,
        ["plugins", OPT, "path"] => opt_path,
        ["plugins", OVERLAY, "root_path"] => snapshotters.overlay.root,
        ["plugins", OVERLAY, "upperdir_label"] => snapshotters.overlay.upperdir_label,
        ["plugins", OVERLAY, "mount_options"] => snapshotters.overlay.mount_options,
        ["plugins", NATIVE, "root_path"] => snapshotters.native_root,
        ["plugins", BTRFS, "root_path"] => snapshotters.btrfs_root,
        ["plugins", EROFS, "root_path"] => snapshotters.erofs.root,
        ["plugins", EROFS, "ovl_mount_options"] => snapshotters.erofs.overlay_options,
        ["plugins", EROFS, "enable_fsverity"] => snapshotters.erofs.enable_fsverity,
        ["plugins", EROFS, "set_immutable"] => snapshotters.erofs.set_immutable,
        ["plugins", EROFS, "default_size"] => snapshotters.erofs.default_size as Size,
        ["plugins", "io.containerd.cri.v1.runtime"] => cri.runtime,
        ["plugins", "io.containerd.cri.v1.images"] => cri.images,
        ["plugins", "io.containerd.grpc.v1.cri"] => cri.server,
        ["plugins", "io.containerd.nri.v1.nri"] => cri.nri,
        ["gantry", "drain"] => drain,
        ["gantry", "default_snapshotter"] => snapshotter,
        ["gantry", "default_runtime"] => runtime,
        ["gantry", "runtimes"] => runtimes,
        ["gantry", "allow_plain_tcp"] => tcp.allow_plain,
        ["gantry", "limits", "calls_per_connection"] => limits.calls_per_connection as AtLeastOne,
        ["gantry", "limits", "calls"] => limits.calls as AtLeastOne,
        ["gantry", "limits", "streams_per_connection"] => limits.streams_per_connection as AtLeastOne,
        ["gantry", "limits", "streams"] => limits.streams as AtLeastOne,
        ["gantry", "registry", "connect_timeout"] => registry.connect_timeout,
        ["gantry", "registry", "answer_timeout"] => registry.answer_timeout,
        ["gantry", "registry", "mirror_timeout"] => registry.mirror_timeout,
        ["gantry", "registry", "mirror_blob_timeout"] => registry.mirror_blob_timeout,
        ["gantry", "registry", "slow_window"] => registry.slow_window,
        ["gantry", "registry", "min_bytes_per_second"] => registry.min_bytes_per_second,
        ["gantry", "registry", "max_bytes_per_second"] => registry.max_bytes_per_second,
        ["gantry", "registry", "max_failures"] => registry.max_failures,
        ["gantry", "registry", "max_transfers"] => registry.max_transfers as AtLeastOne,
        ["gantry", "registry", "backoff"] => registry.backoff,
        ["gantry", "registry", "max_manifest_size"] => registry.max_manifest_size,
        ["gantry", "signature_policy"] => signature_policy,
        ["gantry", "discard_unpacked_layers"] => discard_unpacked_layers,
        ["gantry", "check_at_start"] => check_at_start,
        ["gantry", "unpack", "max_bytes"] => unpack.max_bytes,
        ["gantry", "unpack", "max_entries"] => unpack.max_entries,
        ["gantry", "unpack", "max_ratio"] => unpack.max_ratio,
    }
    ignored {
        // Read where the files are.
        ["version"] => "",
        ["imports"] => "",
        ["cgroup"] => "the daemon stays in the cgroup that its service manager gave it",
        ["plugin_dir"] => "plug-ins in the daemon's own process are not loaded; see proxy_plugins",
        ["debug", "log_trace_id"] => "calls are not traced",
        ["timeouts", "io.containerd.timeout.bolt.open"] => "the records are no bolt database",
        ["timeouts", "io.containerd.timeout.metrics.shimstats"] => "measurements do not ask shims",
        ["timeouts", "io.containerd.timeout.shim.cleanup"] => "shims have deadlines of their own here",
        ["timeouts", "io.containerd.timeout.shim.shutdown"] => "shims have deadlines of their own here",
        ["timeouts", "io.containerd.timeout.task.state"] => "the state of a task is known without asking",
        ["timeouts", "io.containerd.timeout.cri.defercleanup"] => "cleaning up has no time limit here",
        ["plugins", TCP, "tls_common_name"] => "there is no certificate store of Windows",
        ["plugins", TRANSFER, "concurrent_layer_fetch_buffer"] => "big layers are fetched in parts anyway",
        ["plugins", TRANSFER, "max_concurrent_uploaded_layers"] => "uploads are bounded by gantry.registry.max_transfers",
        ["plugins", TRANSFER, "check_platform_supported"] => "the platform of an image is always checked",
        ["plugins", DIFF, "sync_fs"] => "unpacked layers are always durable before they are named",
        ["plugins", TASKS, "platforms"] => "only the host's platform runs",
        ["plugins", TASKS, "no_shim"] => "each container has a shim",
        ["plugins", TASKS, "shim_debug"] => "debug.level tells shims too",
        ["plugins", TASKS, "runtime_root"] => "it is an option of the runtime: Root",
        ["plugins", TASKS, "runtime"] => "it is an option of the runtime: BinaryName",
        ["plugins", "io.containerd.runtime.v1.linux"] => "shims of version 1 are not supported",
        ["plugins", SHIMS, "socket_dir"] => "a shim chooses its socket itself",
        ["plugins", OVERLAY, "sync_remove"] => "what is removed is renamed at once and deleted beside all other work",
        ["plugins", OVERLAY, "slow_chown"] => "where the kernel cannot map ids, a mapped snapshot is refused",
        ["plugins", EROFS_DIFFER, "mkfs_options"] => "images are made without a program",
        ["plugins", EROFS_DIFFER, "enable_tar_index"] => "images hold the files themselves",
        ["plugins", EROFS, "dmverity_mode"] => "dm-verity is not supported",
        ["plugins", EROFS, "layer_content_caches"] => "layers are always kept in the snapshotter",
        ["plugins", EROFS_DIFFER, "enable_dmverity"] => "dm-verity is not supported",
        ["plugins", "io.containerd.metadata.v1.bolt", "content_sharing_policy"] =>
            "content is shared by all namespaces, each seeing what it has asked for",
        ["plugins", "io.containerd.metadata.v1.bolt", "no_sync"] => "what is acknowledged is always durable",
        ["plugins", "io.containerd.monitor.task.v1.cgroups"] => "measurements have no cgroups of containers",
        ["plugins", "io.containerd.mount-handler.v1.erofs"] => "it has no settings here",
        ["plugins", "io.containerd.mount-manager.v1.bolt"] => "it has no settings here",
        ["plugins", "io.containerd.service.v1.tasks-service"] => "classes of block I/O and cache are not set up",
        ["plugins", "io.containerd.internal.v1.tracing"] => "calls are not traced",
        ["plugins", "io.containerd.tracing.processor.v1.otlp"] => "calls are not traced",
        ["plugins", "io.containerd.snapshotter.v1.aufs"] => "there is no such snapshotter",
        ["plugins", "io.containerd.snapshotter.v1.blockfile"] => "there is no such snapshotter",
        ["plugins", "io.containerd.snapshotter.v1.devmapper"] => "there is no such snapshotter",
        ["plugins", "io.containerd.snapshotter.v1.zfs"] => "there is no such snapshotter",
        ["plugins", "io.containerd.snapshotter.v1.windows"] => "there is no such snapshotter",
        ["plugins", "io.containerd.snapshotter.v1.windows-lcow"] => "there is no such snapshotter",
    }
    check |config, node, report| check(config, node, report)
}

section! {
    Proxy {
        ["type"] => kind as Kind,
        ["address"] => address as SocketPath,
        ["platform"] => platform,
        ["exports"] => exports,
        ["capabilities"] => capabilities,
    }
    ignored {}
    check |proxy, node, report| {
        for (unset, name) in [(proxy.kind.is_none(), "type"), (proxy.address.as_os_str().is_empty(), "address")] {
            if unset && node.table().is_some_and(|table| !table.contains_key(name)) {
                let section = report.name();
                report.mistake(&node.place, format!("`{section}` lacks `{name}`"));
            }
        }
    }
}

section! {
    StreamProcessor {
        ["accepts"] => accepts,
        ["returns"] => returns,
        ["path"] => path as Program,
        ["args"] => args,
        ["env"] => env as Environment,
    }
    ignored {}
    check |processor, node, report| {
        if processor.accepts.is_empty() || processor.returns.is_empty() || processor.path.as_os_str().is_empty() {
            let section = report.name();
            report.mistake(&node.place, format!("`{section}` needs `accepts`, `returns` and `path`"));
        }
    }
}

section! {
    UnpackPlatform {
        ["platform"] => platform,
        ["snapshotter"] => snapshotter,
        ["differ"] => differ,
    }
    ignored {
        ["config_type"] => "what can be unpacked is told by the layers",
        ["layer_types"] => "what can be unpacked is told by the layers",
        ["optional"] => "a snapshotter that is not there is passed over",
    }
}

/// What takes more than one value to see.
fn check(config: &Config, node: &Node, report: &mut Report) {
    let at = |path: &[&str]| {
        node.table().and_then(|table| tree::get(table, path)).map_or(node.place.clone(), |n| n.place.clone())
    };
    let tcp = &config.tcp;
    if let Some(address) = tcp.address {
        let place = at(&["plugins", TCP, "address"]);
        if tcp.cert.is_none() && !tcp.allow_plain && !is_loopback(address.ip()) {
            let hint = "set `tls_cert`, `tls_key` and `tls_ca`, or listen on 127.0.0.1; `gantry.allow_plain_tcp = true` \
                        lets everybody who reaches the port be root";
            report.mistake(&place, format!("{address} can be reached by others and has no TLS; {hint}"));
        }
        if tcp.cert.is_some() && tcp.ca.is_none() && !is_loopback(address.ip()) {
            let text = format!("{address} takes every client: without `tls_ca` none has to show a certificate");
            report.unknown(&place, text);
        }
    }
    if tcp.cert.is_some() != tcp.key.is_some() {
        report.mistake(&at(&["plugins", TCP]), "`tls_cert` and `tls_key` go together; one of them is missing");
    }
    if tcp.ca.is_some() && tcp.cert.is_none() {
        report.mistake(&at(&["plugins", TCP, "tls_ca"]), "`tls_ca` needs `tls_cert` and `tls_key`");
    }
    for part in &config.required {
        if config.disabled.contains(part) {
            report.mistake(&at(&["required_plugins"]), format!("`{part}` is both required and disabled"));
        }
    }
}

fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

impl Setting for Vec<UnpackPlatform> {
    fn read(&mut self, node: &Node, report: &mut Report) {
        let Value::List(list) = &node.value else { return report.must(&node.place, "a list of sections") };
        *self = Vec::new();
        for node in list {
            let mut platform = UnpackPlatform::default();
            platform.read(node, report);
            self.push(platform);
        }
    }

    fn write(&self) -> Option<Value> {
        let platforms = self.iter().filter_map(Setting::write).map(Node::from).collect::<Vec<_>>();
        (!platforms.is_empty()).then_some(Value::List(platforms))
    }
}

/// Declares a [`Form`] by two functions.
macro_rules! form {
    ($($(#[$doc:meta])* $name:ident: $type:ty, $read:expr, $write:expr;)*) => {$(
        $(#[$doc])*
        pub(super) struct $name;

        impl Form<$type> for $name {
            fn read(value: &Value) -> Result<$type, &'static str> {
                let read: fn(&Value) -> Result<$type, &'static str> = $read;
                read(value)
            }

            fn write(setting: &$type) -> Option<Value> {
                let write: fn(&$type) -> Option<Value> = $write;
                write(setting)
            }
        }
    )*};
}
pub(super) use form;

form! {
    OomScore: i64,
        |v| number(v).ok().filter(|score: &i64| (-1000..=1000).contains(score)).ok_or("a number from -1000 to 1000"),
        |score| Some(Value::Integer(*score));
    /// Names of parts: `TYPE.ID`.
    Parts: Vec<String>, |v| list(v, part, "a list of names like io.containerd.snapshotter.v1.native"),
        |parts| Some(write_list(parts, |part| Value::Text(part.clone())));
    Level: LevelFilter, level, |level| Some(Value::Text(level.to_string()));
    Format: LogFormat, log_format, |format| Some(Value::Text(
        match format {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        }.into(),
    ));
    /// A size of messages; 0 is the default's, as containerd has it.
    MessageSize: usize, |v| match number(v)? {
        0 => Ok(super::MESSAGE),
        size => Ok(size),
    }, |size| Some(Value::Integer(i64::try_from(*size).unwrap_or(i64::MAX)));
    Address: Option<SocketAddr>, address,
        |address| Some(Value::Text(address.map(|address| address.to_string()).unwrap_or_default()));
    /// Directories, separated by colons.
    Colons: Vec<PathBuf>, |v| {
        let all = text(v).map_err(|_| COLONS)?;
        let paths = all.split(':').filter(|path| !path.is_empty()).map(PathBuf::from);
        paths.map(|path| if path.is_absolute() { Ok(path) } else { Err(COLONS) }).collect()
    }, |paths| {
        let texts: Vec<_> = paths.iter().map(|path| path.to_string_lossy().into_owned()).collect();
        Some(Value::Text(texts.join(":")))
    };
    AtLeastOne: usize, |v| number(v).ok().filter(|n: &usize| *n > 0).ok_or("a number above zero"),
        |n| Some(Value::Integer(i64::try_from(*n).unwrap_or(i64::MAX)));
    /// A part of the time, from 0 to 0.5.
    Half: f64, |v| {
        let part = match v {
            Value::Float(part) => Some(*part),
            Value::Integer(0) => Some(0.0),
            _ => None,
        };
        part.filter(|part| (0.0..=0.5).contains(part)).ok_or("a number from 0 to 0.5")
    }, |part| Some(Value::Float(*part));
    /// `NAME=VALUE`.
    Environment: Vec<String>, |v| list(v, |v| text(v).ok().filter(|text| text.contains('=')).ok_or(""), "a list of NAME=VALUE"),
        |entries| Some(write_list(entries, |entry| Value::Text(entry.clone())));
    /// A number of bytes with or without a unit: `10GiB`, `512m`.
    Size: u64, |v| size(v).ok_or("a size like 512MiB or 10GiB"),
        |size| Some(Value::Text(if *size == 0 { String::new() } else { size.to_string() }));
    Kind: Option<ProxyKind>, |v| kind(v).map(Some), |kind| kind.map(|kind| Value::Text(
        match kind {
            ProxyKind::Snapshot => "snapshot",
            ProxyKind::Content => "content",
            ProxyKind::Diff => "diff",
            ProxyKind::Sandbox => "sandbox",
        }.into(),
    ));
    /// A unix socket: a path, with or without `unix://`.
    SocketPath: PathBuf, |v| {
        let text = text(v).map_err(|_| SOCKET)?;
        let path = PathBuf::from(text.strip_prefix("unix://").unwrap_or(&text));
        if path.is_absolute() { Ok(path) } else { Err(SOCKET) }
    }, |path| Some(Value::Text(path.to_string_lossy().into_owned()));
    /// A program: a path, or a name to be looked for.
    Program: PathBuf, |v| {
        let path = PathBuf::from(text(v).map_err(|_| PROGRAM)?);
        if path.is_absolute() || path.components().count() == 1 { Ok(path) } else { Err(PROGRAM) }
    }, |path| Some(Value::Text(path.to_string_lossy().into_owned()));
}

const COLONS: &str = "absolute paths of directories, separated by colons";
const SOCKET: &str = "the absolute path of a unix socket";
const PROGRAM: &str = "a program's name or absolute path";

fn part(value: &Value) -> Result<String, &'static str> {
    text(value).ok().filter(|name| name.contains('.')).ok_or("")
}

fn level(value: &Value) -> Result<LevelFilter, &'static str> {
    const LEVELS: &str = "one of trace, debug, info, warn, error, fatal, panic";
    match text(value).map_err(|_| LEVELS)?.as_str() {
        "" => Ok(LevelFilter::INFO),
        name => super::level(name).ok_or(LEVELS),
    }
}

fn log_format(value: &Value) -> Result<LogFormat, &'static str> {
    match text(value).as_deref() {
        Ok("" | "text") => Ok(LogFormat::Text),
        Ok("json") => Ok(LogFormat::Json),
        _ => Err("text or json"),
    }
}

/// `HOST:PORT` with an IP address; without a host all addresses, as Go has it.
fn address(value: &Value) -> Result<Option<SocketAddr>, &'static str> {
    const EXPECTED: &str = "an address like 127.0.0.1:2376";
    let text = text(value).map_err(|_| EXPECTED)?;
    let text = text.strip_prefix("tcp://").unwrap_or(&text);
    match text.strip_prefix(':') {
        _ if text.is_empty() => Ok(None),
        Some(port) => port.parse().map(|port| Some((IpAddr::from([0u16; 8]), port).into())).map_err(|_| EXPECTED),
        None => text.replace("localhost:", "127.0.0.1:").parse().map(Some).map_err(|_| EXPECTED),
    }
}

fn kind(value: &Value) -> Result<ProxyKind, &'static str> {
    match text(value).as_deref() {
        Ok("snapshot" | "io.containerd.snapshotter.v1") => Ok(ProxyKind::Snapshot),
        Ok("content" | "io.containerd.content.v1") => Ok(ProxyKind::Content),
        Ok("diff" | "io.containerd.differ.v1") => Ok(ProxyKind::Diff),
        Ok("sandbox" | "io.containerd.sandbox.controller.v1") => Ok(ProxyKind::Sandbox),
        _ => Err("one of snapshot, content, diff, sandbox"),
    }
}

fn size(value: &Value) -> Option<u64> {
    let text = match value {
        Value::Integer(bytes) => return u64::try_from(*bytes).ok(),
        Value::Text(text) if text.is_empty() => return Some(0),
        Value::Text(text) => text.to_ascii_lowercase(),
        _ => return None,
    };
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let unit = text[digits..].trim().trim_end_matches("ib").trim_end_matches('b');
    let shift = ["", "k", "m", "g", "t", "p"].iter().position(|known| *known == unit)?;
    text[..digits].parse::<u64>().ok()?.checked_mul(1 << (10 * shift))
}
