//! The keys of a configuration file: what each sets, and which of containerd's mean nothing here.

use std::path::PathBuf;
use std::time::Duration;

use toml::de::DeValue;

use super::{Config, LogFormat};

/// Takes over a value, or says what was expected instead.
pub(super) type Set = fn(&mut Config, &str, &DeValue<'_>) -> Result<(), &'static str>;

/// A key by its path; a last part `*` stands for any name, which the setter is given.
pub(super) struct Key {
    pub(super) path: &'static [&'static str],
    pub(super) set: Set,
}

const fn key(path: &'static [&'static str], set: Set) -> Key {
    Key { path, set }
}

/// Every key that has an effect.
pub(super) const KEYS: &[Key] = &[
    key(&["version"], |_, _, v| version(v)),
    key(&["root"], |c, _, v| put(&mut c.root, path(v))),
    key(&["state"], |c, _, v| put(&mut c.state, path(v))),
    key(&["oom_score"], |c, _, v| put(&mut c.oom_score, oom_score(v))),
    key(&["grpc", "address"], |c, _, v| put(&mut c.address, path(v))),
    key(&["grpc", "uid"], |c, _, v| put(&mut c.owner.uid, number(v))),
    key(&["grpc", "gid"], |c, _, v| put(&mut c.owner.gid, number(v))),
    key(&["grpc", "max_recv_message_size"], |c, _, v| put(&mut c.max_message, number(v))),
    key(&["ttrpc", "address"], |c, _, v| put(&mut c.ttrpc_address, optional_path(v))),
    key(&["debug", "level"], |c, _, v| log_level(c, v)),
    key(&["debug", "format"], |c, _, v| put(&mut c.log_format, log_format(v))),
    key(&["timeouts", "io.containerd.timeout.shim.load"], |c, _, v| put(&mut c.restore_timeout, some(duration(v)))),
    key(&["plugins", SERVER_GRPC, "address"], |c, _, v| put(&mut c.address, path(v))),
    key(&["plugins", SERVER_GRPC, "uid"], |c, _, v| put(&mut c.owner.uid, number(v))),
    key(&["plugins", SERVER_GRPC, "gid"], |c, _, v| put(&mut c.owner.gid, number(v))),
    key(&["plugins", SERVER_GRPC, "max_recv_message_size"], |c, _, v| put(&mut c.max_message, number(v))),
    key(&["plugins", SERVER_TTRPC, "address"], |c, _, v| put(&mut c.ttrpc_address, optional_path(v))),
    key(&["plugins", TRANSFER, "config_path"], |c, _, v| put(&mut c.hosts_dirs, paths(v))),
    key(&["plugins", TRANSFER, "max_concurrent_downloads"], |c, _, v| {
        put(&mut c.concurrent_downloads, some(at_least_one(v)))
    }),
    key(&["plugins", TRANSFER, "max_concurrent_unpacks"], |c, _, v| {
        put(&mut c.concurrent_unpacks, some(at_least_one(v)))
    }),
    key(&["plugins", GC, "schedule_delay"], |c, _, v| put(&mut c.gc_delay, some(duration(v)))),
    key(&["plugins", SHIM_MANAGER, "env"], |c, _, v| put(&mut c.shim_environment, environment(v))),
    key(&["gantry", "drain"], |c, _, v| put(&mut c.drain, duration(v))),
    key(&["gantry", "default_snapshotter"], |c, _, v| put(&mut c.snapshotter, some(text(v)))),
    key(&["gantry", "default_runtime"], |c, _, v| put(&mut c.runtime, some(text(v)))),
    key(&["gantry", "registry", "connect_timeout"], |c, _, v| put(&mut c.registry.connect_timeout, duration(v))),
    key(&["gantry", "registry", "answer_timeout"], |c, _, v| put(&mut c.registry.answer_timeout, duration(v))),
    key(&["gantry", "registry", "mirror_timeout"], |c, _, v| put(&mut c.registry.mirror_timeout, duration(v))),
    key(&["gantry", "registry", "slow_window"], |c, _, v| put(&mut c.registry.slow_window, duration(v))),
    key(&["gantry", "registry", "min_bytes_per_second"], |c, _, v| {
        put(&mut c.registry.min_bytes_per_second, number(v))
    }),
    key(&["gantry", "registry", "max_bytes_per_second"], |c, _, v| {
        put(&mut c.registry.max_bytes_per_second, number(v))
    }),
    key(&["gantry", "registry", "max_failures"], |c, _, v| put(&mut c.registry.max_failures, number(v))),
    key(&["gantry", "registry", "backoff"], |c, _, v| put(&mut c.registry.backoff, duration(v))),
    key(&["gantry", "registry", "max_manifest_size"], |c, _, v| put(&mut c.registry.max_manifest_size, number(v))),
    key(&["gantry", "unpack", "max_bytes"], |c, _, v| put(&mut c.unpack.max_bytes, number(v))),
    key(&["gantry", "unpack", "max_entries"], |c, _, v| put(&mut c.unpack.max_entries, number(v))),
    key(&["gantry", "unpack", "max_ratio"], |c, _, v| put(&mut c.unpack.max_ratio, number(v))),
    key(&["gantry", "runtimes", "*"], |c, name, v| {
        c.runtimes.push((name.into(), path(v)?));
        Ok(())
    }),
];

const SERVER_GRPC: &str = "io.containerd.server.v1.grpc";
const SERVER_TTRPC: &str = "io.containerd.server.v1.ttrpc";
const TRANSFER: &str = "io.containerd.transfer.v1.local";
const GC: &str = "io.containerd.gc.v1.scheduler";
const SHIM_MANAGER: &str = "io.containerd.shim.v1.manager";

/// Keys and sections of containerd that mean nothing here.
pub(super) const WITHOUT_EFFECT: &[&[&str]] = &[
    &["cgroup"],
    &["debug"],
    &["disabled_plugins"],
    &["grpc"],
    &["imports"],
    &["metrics"],
    &["plugin_dir"],
    &["plugins"],
    &["proxy_plugins"],
    &["required_plugins"],
    &["stream_processors"],
    &["temp"],
    &["timeouts"],
    &["ttrpc"],
];

fn put<T>(place: &mut T, value: Result<T, &'static str>) -> Result<(), &'static str> {
    *place = value?;
    Ok(())
}

fn some<T>(value: Result<T, &'static str>) -> Result<Option<T>, &'static str> {
    value.map(Some)
}

fn version(value: &DeValue<'_>) -> Result<(), &'static str> {
    match number::<u32>(value) {
        Ok(1..=4) => Ok(()),
        _ => Err("a version from 1 to 4"),
    }
}

fn text(value: &DeValue<'_>) -> Result<String, &'static str> {
    value.as_str().map(Into::into).ok_or("a text")
}

fn path(value: &DeValue<'_>) -> Result<PathBuf, &'static str> {
    value.as_str().map(PathBuf::from).filter(|path| path.is_absolute()).ok_or("an absolute path")
}

fn optional_path(value: &DeValue<'_>) -> Result<Option<PathBuf>, &'static str> {
    if value.as_str() == Some("") { Ok(None) } else { path(value).map(Some) }
}

/// Directories, separated by colons.
fn paths(value: &DeValue<'_>) -> Result<Vec<PathBuf>, &'static str> {
    let text = value.as_str().ok_or("directories, separated by colons")?;
    Ok(text.split(':').filter(|path| !path.is_empty()).map(PathBuf::from).collect())
}

fn number<T: TryFrom<i64>>(value: &DeValue<'_>) -> Result<T, &'static str> {
    let integer = value.as_integer().ok_or("a whole number")?;
    let digits = integer.as_str().replace('_', "");
    let digits = digits.trim_start_matches("0x").trim_start_matches("0o").trim_start_matches("0b");
    let number = i64::from_str_radix(digits, integer.radix()).map_err(|_| "a smaller number")?;
    T::try_from(number).map_err(|_| "a number within its limits")
}

fn at_least_one(value: &DeValue<'_>) -> Result<usize, &'static str> {
    number(value).ok().filter(|&n: &usize| n > 0).ok_or("a number above zero")
}

fn oom_score(value: &DeValue<'_>) -> Result<i32, &'static str> {
    number(value).ok().filter(|score| (-1000..=1000).contains(score)).ok_or("a number from -1000 to 1000")
}

fn log_level(config: &mut Config, value: &DeValue<'_>) -> Result<(), &'static str> {
    let name = value.as_str().ok_or(LEVELS)?;
    if !name.is_empty() {
        config.log_level = super::level(name).ok_or(LEVELS)?;
    }
    Ok(())
}

const LEVELS: &str = "one of trace, debug, info, warn, error, fatal, panic";

fn log_format(value: &DeValue<'_>) -> Result<LogFormat, &'static str> {
    match value.as_str() {
        Some("" | "text") => Ok(LogFormat::Text),
        Some("json") => Ok(LogFormat::Json),
        _ => Err("text or json"),
    }
}

/// A duration as Go writes it: `1m30s`, `100ms`.
fn duration(value: &DeValue<'_>) -> Result<Duration, &'static str> {
    value.as_str().and_then(go_duration).ok_or("a duration like 10s, 1m30s or 100ms")
}

fn go_duration(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let amount: f64 = rest[..number].parse().ok()?;
        let after = &rest[number..];
        let unit = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let seconds = match &after[..unit] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        total = total.checked_add(Duration::try_from_secs_f64(amount * seconds).ok()?)?;
        rest = &after[unit..];
    }
    (!text.is_empty()).then_some(total)
}

fn environment(value: &DeValue<'_>) -> Result<Vec<(String, String)>, &'static str> {
    const EXPECTED: &str = "a list of NAME=VALUE";
    let entry = |v: &toml::Spanned<DeValue<'_>>| {
        let (name, value) = v.get_ref().as_str()?.split_once('=')?;
        Some((name.to_owned(), value.to_owned()))
    };
    value.as_array().ok_or(EXPECTED)?.iter().map(|v| entry(v).ok_or(EXPECTED)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_writes_them() {
        let cases = [("0s", 0), ("100ms", 100), ("1m30s", 90_000), ("1h", 3_600_000), ("1.5s", 1500)];
        for (text, milliseconds) in cases {
            assert_eq!(go_duration(text), Some(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in ["", "s", "10", "10x", "-1s", "1..5s"] {
            assert_eq!(go_duration(text), None, "{text}");
        }
    }
}
