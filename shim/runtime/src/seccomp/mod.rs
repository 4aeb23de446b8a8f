//! Seccomp filters: from the specification's terms (libseccomp's) to the kernel's BPF.
//!
//! Per architecture the system calls become ranges of numbers with one outcome each, found by binary search: the
//! kernel walks a dozen instructions at most, and computes its always-allow bitmap quickly.

mod bpf;
mod syscalls;

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::spec::{Seccomp, SyscallArg};
pub(crate) use bpf::Insn;
use bpf::{Condition, Operator, Outcome, Rule};

const RET_KILL_PROCESS: u32 = 0x8000_0000;
const RET_KILL_THREAD: u32 = 0;
const RET_TRAP: u32 = 0x0003_0000;
const RET_ERRNO: u32 = 0x0005_0000;
const RET_NOTIFY: u32 = 0x7fc0_0000;
const RET_TRACE: u32 = 0x7ff0_0000;
const RET_LOG: u32 = 0x7ffc_0000;
const RET_ALLOW: u32 = 0x7fff_0000;

const FLAG_LOG: u64 = 2;
const FLAG_SPEC_ALLOW: u64 = 4;
const FLAG_NEW_LISTENER: u64 = 8;
const FLAG_WAIT_KILLABLE: u64 = 32;

/// Marks x32 system calls in their number.
const X32_BIT: u32 = 0x4000_0000;

/// A filter ready to be given to seccomp(2).
#[derive(Clone, Debug)]
pub(crate) struct Program {
    /// The instructions.
    pub(crate) code: Vec<Insn>,
    /// `SECCOMP_FILTER_FLAG_*`.
    pub(crate) flags: u64,
    /// Whether seccomp(2) returns a listener.
    pub(crate) notifies: bool,
}

/// An architecture that has a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Arch {
    X86_64,
    X32,
    X86,
    Aarch64,
}

#[cfg(target_arch = "x86_64")]
const NATIVE: Arch = Arch::X86_64;
#[cfg(target_arch = "aarch64")]
const NATIVE: Arch = Arch::Aarch64;

impl Arch {
    /// `None`: a known architecture that cannot run on this machine, and so needs no rules.
    fn parse(name: &str) -> Result<Option<Arch>> {
        Ok(match name {
            "SCMP_ARCH_X86_64" => Some(Arch::X86_64),
            "SCMP_ARCH_X32" => Some(Arch::X32),
            "SCMP_ARCH_X86" => Some(Arch::X86),
            "SCMP_ARCH_AARCH64" => Some(Arch::Aarch64),
            _ if name.starts_with("SCMP_ARCH_") => None,
            _ => return Err(Error::invalid("linux.seccomp.architectures", format!("{name:?} is no architecture"))),
        })
    }

    /// `AUDIT_ARCH_*`.
    fn audit(self) -> u32 {
        match self {
            Arch::X86_64 | Arch::X32 => 0xc000_003e,
            Arch::X86 => 0x4000_0003,
            Arch::Aarch64 => 0xc000_00b7,
        }
    }

    fn number(self, name: &str) -> Option<u32> {
        let row = syscalls::TABLE.binary_search_by(|row| row.0.cmp(name)).ok().map(|at| &syscalls::TABLE[at])?;
        let number = match self {
            Arch::X86_64 => row.1,
            Arch::X86 => row.2,
            Arch::Aarch64 => row.3,
            Arch::X32 => match syscalls::X32.binary_search_by(|row| row.0.cmp(name)) {
                Ok(at) => syscalls::X32[at].1,
                Err(_) => row.1,
            },
        };
        u32::try_from(number).ok().map(|number| if self == Arch::X32 { number | X32_BIT } else { number })
    }
}

/// Compiles a filter.
pub(crate) fn compile(config: &Seccomp) -> Result<Program> {
    let default = action(&config.default_action, config.default_errno_ret)?;
    if default == RET_NOTIFY {
        return Err(Error::invalid("linux.seccomp.defaultAction", "SCMP_ACT_NOTIFY cannot be the default"));
    }
    let mut code = Vec::new();
    for arch in architectures(config)? {
        let rules = rules(config, arch, default)?;
        code.push((arch, bpf::section(&rules, default, beyond(default))));
    }
    let notifies = config.syscalls.iter().any(|call| call.action == "SCMP_ACT_NOTIFY");
    if notifies && config.syscalls.iter().any(|c| c.action == "SCMP_ACT_NOTIFY" && c.names.iter().any(|n| n == "write"))
    {
        return Err(Error::invalid("linux.seccomp.syscalls", "SCMP_ACT_NOTIFY cannot be used for write"));
    }
    let code = assemble(code);
    if code.len() > 4096 {
        return Err(Error::invalid("linux.seccomp", "the filter is larger than the kernel takes"));
    }
    Ok(Program { code, flags: flags(config)? | if notifies { FLAG_NEW_LISTENER } else { 0 }, notifies })
}

/// The architectures to filter, the native one first and always.
fn architectures(config: &Seccomp) -> Result<Vec<Arch>> {
    let mut all = vec![NATIVE];
    for name in &config.architectures {
        if let Some(arch) = Arch::parse(name)?
            && !all.contains(&arch)
            && (arch == Arch::Aarch64) == (NATIVE == Arch::Aarch64)
        {
            all.push(arch);
        }
    }
    Ok(all)
}

/// What calls newer than the newest the filter names get: `ENOSYS`, so that programs fall back, where they would
/// otherwise be refused.
fn beyond(default: u32) -> u32 {
    match default {
        RET_ALLOW | RET_LOG => default,
        _ if default & 0xffff_0000 == RET_TRACE => default,
        _ => RET_ERRNO | libc::ENOSYS as u32,
    }
}

fn action(name: &str, errno: Option<u32>) -> Result<u32> {
    let data = errno.unwrap_or(libc::EPERM as u32);
    if errno.is_some() && !matches!(name, "SCMP_ACT_ERRNO" | "SCMP_ACT_TRACE") {
        return Err(Error::invalid("linux.seccomp", format!("errnoRet is not for {name}")));
    }
    if data > 4095 {
        return Err(Error::invalid("linux.seccomp", format!("errnoRet {data} is out of range")));
    }
    Ok(match name {
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => RET_KILL_THREAD,
        "SCMP_ACT_KILL_PROCESS" => RET_KILL_PROCESS,
        "SCMP_ACT_TRAP" => RET_TRAP,
        "SCMP_ACT_ERRNO" => RET_ERRNO | data,
        "SCMP_ACT_TRACE" => RET_TRACE | data,
        "SCMP_ACT_ALLOW" => RET_ALLOW,
        "SCMP_ACT_LOG" => RET_LOG,
        "SCMP_ACT_NOTIFY" => RET_NOTIFY,
        _ => return Err(Error::invalid("linux.seccomp", format!("{name:?} is no action"))),
    })
}

fn flags(config: &Seccomp) -> Result<u64> {
    if config.flags.is_empty() {
        return Ok(FLAG_SPEC_ALLOW);
    }
    let mut bits = 0;
    for flag in &config.flags {
        bits |= match flag.as_str() {
            // There is one thread to synchronise.
            "SECCOMP_FILTER_FLAG_TSYNC" => 0,
            "SECCOMP_FILTER_FLAG_LOG" => FLAG_LOG,
            "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => FLAG_SPEC_ALLOW,
            "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" => FLAG_WAIT_KILLABLE,
            _ => return Err(Error::invalid("linux.seccomp.flags", format!("{flag:?} is no flag"))),
        };
    }
    Ok(bits)
}

/// Numbers of one architecture and what happens to them. Unknown names are left out, as a profile may be newer.
fn rules(config: &Seccomp, arch: Arch, default: u32) -> Result<BTreeMap<u32, Outcome>> {
    let mut calls: BTreeMap<u32, Outcome> = BTreeMap::new();
    for call in &config.syscalls {
        let result = action(&call.action, call.errno_ret)?;
        let alternatives = alternatives(&call.args, arch)?;
        for name in &call.names {
            let number = arch.number(name);
            for conditions in &alternatives {
                if let Some(number) = number {
                    add(&mut calls, number, Rule { conditions: conditions.clone(), result }, default);
                }
                if arch == Arch::X86
                    && conditions.is_empty()
                    && let Some((multiplexer, operation)) = multiplexed(name)
                {
                    let is = Condition { index: 0, operator: Operator::Equal, value: operation, mask: 0, wide: false };
                    add(&mut calls, multiplexer, Rule { conditions: vec![is], result }, default);
                }
            }
        }
    }
    Ok(calls)
}

fn add(calls: &mut BTreeMap<u32, Outcome>, number: u32, rule: Rule, default: u32) {
    let outcome =
        calls.entry(number).or_insert_with(|| Outcome { rules: Vec::new(), otherwise: default, settled: false });
    if !rule.conditions.is_empty() {
        outcome.rules.push(rule);
    } else if !outcome.settled {
        outcome.otherwise = rule.result;
        outcome.settled = true;
    }
}

/// The sets of conditions under which a rule holds: conditions on different arguments must all hold; several on the
/// same argument make one rule each, as libseccomp cannot hold two for one argument.
fn alternatives(args: &[SyscallArg], arch: Arch) -> Result<Vec<Vec<Condition>>> {
    let conditions = args.iter().map(|arg| condition(arg, arch)).collect::<Result<Vec<_>>>()?;
    let repeated = conditions.iter().enumerate().any(|(at, c)| conditions[..at].iter().any(|o| o.index == c.index));
    Ok(if repeated { conditions.into_iter().map(|c| vec![c]).collect() } else { vec![conditions] })
}

fn condition(arg: &SyscallArg, arch: Arch) -> Result<Condition> {
    if arg.index > 5 {
        return Err(Error::invalid("linux.seccomp.syscalls.args", format!("index {} is above 5", arg.index)));
    }
    let operator = match arg.op.as_str() {
        "SCMP_CMP_NE" => Operator::NotEqual,
        "SCMP_CMP_LT" => Operator::Less,
        "SCMP_CMP_LE" => Operator::LessOrEqual,
        "SCMP_CMP_EQ" => Operator::Equal,
        "SCMP_CMP_GE" => Operator::GreaterOrEqual,
        "SCMP_CMP_GT" => Operator::Greater,
        "SCMP_CMP_MASKED_EQ" => Operator::Masked,
        other => return Err(Error::invalid("linux.seccomp.syscalls.args", format!("{other:?} is no operator"))),
    };
    let (value, mask) = if operator == Operator::Masked { (arg.value_two, arg.value) } else { (arg.value, 0) };
    // i386 and x32 have arguments of 32 bits.
    Ok(Condition { index: arg.index, operator, value, mask, wide: !matches!(arch, Arch::X86 | Arch::X32) })
}

/// The i386 multiplexer and operation that stand for a call beside its own number.
fn multiplexed(name: &str) -> Option<(u32, u64)> {
    const SOCKETCALL: [&str; 20] = [
        "socket",
        "bind",
        "connect",
        "listen",
        "accept",
        "getsockname",
        "getpeername",
        "socketpair",
        "send",
        "recv",
        "sendto",
        "recvfrom",
        "shutdown",
        "setsockopt",
        "getsockopt",
        "sendmsg",
        "recvmsg",
        "accept4",
        "recvmmsg",
        "sendmmsg",
    ];
    const IPC: [(&str, u64); 12] = [
        ("semop", 1),
        ("semget", 2),
        ("semctl", 3),
        ("semtimedop", 4),
        ("msgsnd", 11),
        ("msgrcv", 12),
        ("msgget", 13),
        ("msgctl", 14),
        ("shmat", 21),
        ("shmdt", 22),
        ("shmget", 23),
        ("shmctl", 24),
    ];
    if let Some(at) = SOCKETCALL.iter().position(|call| *call == name) {
        return Some((102, at as u64 + 1));
    }
    IPC.iter().find(|(call, _)| *call == name).map(|(_, operation)| (117, *operation))
}

/// Puts the architectures' sections behind a choice by architecture.
fn assemble(mut sections: Vec<(Arch, Vec<Insn>)>) -> Vec<Insn> {
    let x32 = sections.iter().position(|(arch, _)| *arch == Arch::X32).map(|at| sections.remove(at).1);
    let mut code = vec![bpf::load(bpf::ARCH)];
    for (arch, section) in sections {
        let mut body = vec![bpf::load(bpf::NUMBER)];
        if arch == Arch::X86_64 {
            let foreign = x32.clone().unwrap_or_else(|| vec![bpf::ret(RET_KILL_THREAD)]);
            body.extend(bpf::branch_at_least(X32_BIT, section, foreign));
        } else {
            body.extend(section);
        }
        code.extend(bpf::unless_equal_skip(arch.audit(), body));
    }
    code.push(bpf::ret(RET_KILL_THREAD));
    code
}

#[cfg(test)]
mod tests;
