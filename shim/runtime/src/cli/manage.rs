//! Commands on containers that exist.

use gantry_runtime::spec::{BlockIo, Cpu, IntelRdt, Memory, Pids};
use gantry_runtime::{Container, Error, Resources};
use serde_json::{Value, json};

use super::args::{Args, Flag, UsageError};
use super::{Failure, Global, log};

pub(super) const KILL: &[Flag] = &[Flag::switch("all").short('a')];
pub(super) const DELETE: &[Flag] = &[Flag::switch("force").short('f')];
pub(super) const PS: &[Flag] = &[Flag::value("format").short('f')];
pub(super) const LIST: &[Flag] = &[Flag::value("format").short('f'), Flag::switch("quiet").short('q')];
pub(super) const UPDATE: &[Flag] = &[
    Flag::value("resources").short('r'),
    Flag::value("blkio-weight"),
    Flag::value("cpu-period"),
    Flag::value("cpu-quota"),
    Flag::value("cpu-burst"),
    Flag::value("cpu-share"),
    Flag::value("cpu-rt-period"),
    Flag::value("cpu-rt-runtime"),
    Flag::value("cpu-idle"),
    Flag::value("cpuset-cpus"),
    Flag::value("cpuset-mems"),
    Flag::value("memory"),
    Flag::value("memory-reservation"),
    Flag::value("memory-swap"),
    Flag::value("pids-limit"),
    Flag::value("l3-cache-schema"),
    Flag::value("mem-bw-schema"),
];

pub(super) fn start(global: &Global, args: &Args) -> Result<u8, Failure> {
    let mut container = global.load(args.id()?)?;
    if !container.spec().hooks.start_container.is_empty() {
        gantry_runtime::sealed::restart();
    }
    container.start()?;
    Ok(0)
}

pub(super) fn state(global: &Global, args: &Args) -> Result<u8, Failure> {
    let container = global.load(args.id()?)?;
    println!("{:#}", document(&container));
    Ok(0)
}

/// The specification's state, and what runc adds to it.
fn document(container: &Container) -> Value {
    let state = container.state();
    let mut document = json!({
        "ociVersion": state.oci_version,
        "id": state.id,
        "pid": state.pid,
        "status": state.status,
        "bundle": state.bundle,
        "rootfs": container.spec().root.as_ref().map(|root| state.bundle.join(&root.path)),
        "created": log::rfc3339(container.created()),
        "owner": "",
    });
    if !state.annotations.is_empty() {
        document["annotations"] = json!(state.annotations);
    }
    document
}

pub(super) fn kill(global: &Global, args: &Args) -> Result<u8, Failure> {
    let container = global.load(args.id()?)?;
    let signal = signal(args.rest.get(1).map_or("SIGTERM", String::as_str))?;
    if args.has("all") {
        container.kill(signal, true)?;
        return Ok(0);
    }
    match container.kill(signal, false) {
        // In runc's words, which callers look for.
        Err(Error::Gone { .. }) => Err(UsageError { reason: "container not running".to_owned() }.into()),
        other => Ok(other.map(|()| 0)?),
    }
}

fn signal(text: &str) -> Result<i32, UsageError> {
    let bad = || UsageError { reason: format!("unknown signal {text:?}") };
    if let Ok(number) = text.parse::<i32>() {
        return if (0..=64).contains(&number) { Ok(number) } else { Err(bad()) };
    }
    let upper = text.to_ascii_uppercase();
    let name = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    if let Some(rest) = name.strip_prefix("SIGRTMIN") {
        let offset =
            if rest.is_empty() { 0 } else { rest.trim_start_matches('+').parse::<i32>().map_err(|_| bad())? };
        return Ok(34 + offset);
    }
    name.parse::<nix::sys::signal::Signal>().map(|signal| signal as i32).map_err(|_| bad())
}

pub(super) fn delete(global: &Global, args: &Args) -> Result<u8, Failure> {
    let force = args.has("force");
    match Container::load(&global.root, args.id()?) {
        Err(Error::NotFound { .. }) if force => Ok(0),
        other => {
            other?.delete(force)?;
            Ok(0)
        }
    }
}

pub(super) fn pause(global: &Global, args: &Args) -> Result<u8, Failure> {
    global.load(args.id()?)?.pause()?;
    Ok(0)
}

pub(super) fn resume(global: &Global, args: &Args) -> Result<u8, Failure> {
    global.load(args.id()?)?.resume()?;
    Ok(0)
}

pub(super) fn update(global: &Global, args: &Args) -> Result<u8, Failure> {
    let mut container = global.load(args.id()?)?;
    let resources = match args.get("resources") {
        Some(path) => read_resources(path)?,
        None => resources(args)?,
    };
    let schema = |name| args.get(name).unwrap_or_default().to_owned();
    let wanted = IntelRdt {
        l3_cache_schema: schema("l3-cache-schema"),
        mem_bw_schema: schema("mem-bw-schema"),
        ..IntelRdt::default()
    };
    if !wanted.l3_cache_schema.is_empty() || !wanted.mem_bw_schema.is_empty() {
        container.update_rdt(&wanted)?;
    }
    container.update(&resources)?;
    Ok(0)
}

fn read_resources(path: &str) -> Result<Resources, Failure> {
    let bytes = match path {
        "-" => std::io::read_to_string(std::io::stdin()).map(String::into_bytes),
        path => std::fs::read(path),
    };
    Ok(Resources::parse(&bytes.map_err(|source| Failure::io(format!("resources {path}"), source))?)?)
}

fn resources(args: &Args) -> Result<Resources, UsageError> {
    let text = |name| args.get(name).unwrap_or_default().to_owned();
    let bytes = |name: &str| args.get(name).map(|text| size(name, text)).transpose();
    Ok(Resources {
        memory: Some(Memory {
            limit: bytes("memory")?,
            reservation: bytes("memory-reservation")?,
            swap: bytes("memory-swap")?,
            ..Memory::default()
        }),
        cpu: Some(Cpu {
            shares: args.number("cpu-share")?,
            quota: args.number("cpu-quota")?,
            burst: args.number("cpu-burst")?,
            period: args.number("cpu-period")?,
            realtime_runtime: args.number("cpu-rt-runtime")?,
            realtime_period: args.number("cpu-rt-period")?,
            idle: args.number("cpu-idle")?,
            cpus: text("cpuset-cpus"),
            mems: text("cpuset-mems"),
        }),
        pids: Some(Pids { limit: args.number("pids-limit")? }),
        block_io: args.number("blkio-weight")?.map(|weight| BlockIo { weight: Some(weight), ..BlockIo::default() }),
        ..Resources::default()
    })
}

/// A size in bytes, with `k`, `m`, `g` or `t`.
fn size(name: &str, text: &str) -> Result<i64, UsageError> {
    let bad = || UsageError { reason: format!("invalid value {text:?} for flag -{name}") };
    let lower = text.to_ascii_lowercase();
    let bare = lower.trim_end_matches('b');
    let shift = match bare.chars().last() {
        Some('k') => 10,
        Some('m') => 20,
        Some('g') => 30,
        Some('t') => 40,
        _ => 0,
    };
    let digits = if shift > 0 { &bare[..bare.len() - 1] } else { bare };
    digits.parse::<i64>().ok().and_then(|number| number.checked_mul(1 << shift)).ok_or_else(bad)
}

pub(super) fn ps(global: &Global, args: &Args) -> Result<u8, Failure> {
    let pids = global.load(args.id()?)?.pids()?;
    if args.get("format") == Some("json") {
        println!("{}", json!(pids));
        return Ok(0);
    }
    let options = if args.rest.len() > 1 { args.rest[1..].to_vec() } else { vec!["-ef".to_owned()] };
    let output = std::process::Command::new("ps").args(options).output().map_err(|source| Failure::io("ps", source))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines = text.lines();
    let header = lines.next().unwrap_or_default();
    let column = header.split_whitespace().position(|name| name == "PID");
    let Some(column) = column else {
        return Err(UsageError { reason: "couldn't find PID field in ps output".to_owned() }.into());
    };
    println!("{header}");
    let ours = |line: &&str| {
        let pid = line.split_whitespace().nth(column).and_then(|word| word.parse::<i32>().ok());
        pid.is_some_and(|pid| pids.contains(&pid))
    };
    lines.filter(ours).for_each(|line| println!("{line}"));
    Ok(0)
}

pub(super) fn list(global: &Global, args: &Args) -> Result<u8, Failure> {
    let mut ids = match std::fs::read_dir(&global.root) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        other => {
            let entries = other.map_err(|source| Failure::io(format!("{}", global.root.display()), source))?;
            entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect::<Vec<_>>()
        }
    };
    ids.sort();
    // A container that vanishes meanwhile, or is damaged, is left out.
    let documents = ids.iter().filter_map(|id| Container::load(&global.root, id).ok()).map(|c| document(&c));
    let documents = documents.collect::<Vec<_>>();
    let text = |document: &Value, key: &str| document[key].as_str().unwrap_or_default().to_owned();
    if args.get("format") == Some("json") {
        println!("{}", Value::from(documents));
        return Ok(0);
    }
    if args.has("quiet") {
        documents.iter().for_each(|document| println!("{}", text(document, "id")));
        return Ok(0);
    }
    println!("{:<20} {:<10} {:<10} {:<40} {:<20} OWNER", "ID", "PID", "STATUS", "BUNDLE", "CREATED");
    for d in &documents {
        let pid = d["pid"].as_i64().unwrap_or(0);
        let line = (text(d, "id"), text(d, "status"), text(d, "bundle"), text(d, "created"));
        println!("{:<20} {pid:<10} {:<10} {:<40} {:<20} root", line.0, line.1, line.2, line.3);
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_known_by_name_and_number() {
        for text in ["9", "KILL", "SIGKILL", "kill"] {
            assert_eq!(signal(text).unwrap(), 9);
        }
        assert_eq!(signal("SIGRTMIN+3").unwrap(), 37);
        assert!(signal("NOPE").is_err() && signal("99").is_err());
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(size("m", "64m").unwrap(), 64 << 20);
        assert_eq!(size("m", "1GB").unwrap(), 1 << 30);
        assert_eq!(size("m", "-1").unwrap(), -1);
        assert!(size("m", "x").is_err());
    }
}
