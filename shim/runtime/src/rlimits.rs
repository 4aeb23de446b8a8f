//! Resource limits: names, and setting them on a process (prlimit(2)).
#![allow(unsafe_code)]

use crate::error::{Error, Result};
use crate::spec::Rlimit;

/// `RLIMIT_*` by number (`asm-generic/resource.h`).
const NAMES: [&str; 16] = [
    "CPU",
    "FSIZE",
    "DATA",
    "STACK",
    "CORE",
    "RSS",
    "NPROC",
    "NOFILE",
    "MEMLOCK",
    "AS",
    "LOCKS",
    "SIGPENDING",
    "MSGQUEUE",
    "NICE",
    "RTPRIO",
    "RTTIME",
];

/// The limit's number, soft and hard value.
pub(crate) fn parse(limit: &Rlimit) -> Result<(u32, libc::rlimit64)> {
    let number = limit
        .kind
        .strip_prefix("RLIMIT_")
        .and_then(|bare| NAMES.iter().position(|known| *known == bare))
        .ok_or_else(|| Error::invalid("process.rlimits", format!("{:?} is no resource limit", limit.kind)))?;
    if limit.soft > limit.hard {
        return Err(Error::invalid("process.rlimits", format!("{}: soft limit exceeds the hard one", limit.kind)));
    }
    Ok((number as u32, libc::rlimit64 { rlim_cur: limit.soft, rlim_max: limit.hard }))
}

/// Sets limits on a process that waits for us.
pub(crate) fn set(pid: i32, limits: &[Rlimit]) -> Result<()> {
    for limit in limits {
        let (number, value) = parse(limit)?;
        // SAFETY: value outlives the call; no old value is asked for.
        let ret = unsafe { libc::syscall(libc::SYS_prlimit64, pid, number, &raw const value, 0usize) };
        if ret < 0 {
            return Err(Error::Init {
                what: format!("error setting rlimit type {number} ({} to {}:{})", limit.kind, limit.soft, limit.hard),
                source: std::io::Error::last_os_error(),
            });
        }
    }
    Ok(())
}
