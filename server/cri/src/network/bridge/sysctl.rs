//! Kernel settings that the built-in network needs, in the calling thread's network namespace.

use std::fs;
use std::path::{Path, PathBuf};

use crate::network::{BridgeConfig, Error, Result};

const ROOT: &str = "/proc/sys/net";

/// Whether the host has IPv6 and has not turned it off.
pub(super) fn has_ipv6() -> bool {
    read(&at("ipv6/conf/all/disable_ipv6")).is_some_and(|value| value == "0")
}

/// Lets packets pass between pods and the world.
pub(super) fn forward(config: &BridgeConfig) -> Result<()> {
    let name = &config.name;
    if config.subnets.iter().any(|s| s.network().is_ipv4()) {
        set(&at("ipv4/ip_forward"), "1")?;
        set(&at(&format!("ipv4/conf/{name}/route_localnet")), "1")?;
    }
    let all = at("ipv6/conf/all/forwarding");
    if config.subnets.iter().any(|s| s.network().is_ipv6()) && read(&all).is_some_and(|v| v == "0") {
        keep_listening_to_routers()?;
        set(&all, "1")?;
    }
    Ok(())
}

/// A host that forwards ignores router advertisements (1), unless told to accept them all the same (2).
fn keep_listening_to_routers() -> Result<()> {
    let conf = at("ipv6/conf");
    let interfaces = fs::read_dir(&conf).map_err(Error::io("list", &conf))?;
    for interface in interfaces.flatten().filter(|entry| entry.file_name() != "all") {
        let accept = interface.path().join("accept_ra");
        // An interface may vanish meanwhile.
        if read(&accept).is_some_and(|value| value == "1") && interface.path().exists() {
            set(&accept, "2")?;
        }
    }
    Ok(())
}

fn at(name: &str) -> PathBuf {
    Path::new(ROOT).join(name)
}

fn read(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// Writes only what differs, so that a read-only `/proc/sys` that is right already does no harm.
fn set(path: &Path, value: &str) -> Result<()> {
    if read(path).as_deref() == Some(value) {
        return Ok(());
    }
    fs::write(path, value).map_err(Error::io("set", path))
}
