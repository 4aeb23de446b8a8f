//! The device rules of cgroup v2: an eBPF program of type `BPF_PROG_TYPE_CGROUP_DEVICE`, attached to the directory.
#![allow(unsafe_code)]

use std::path::Path;

use super::super::devices::{Kind, Rule};
use super::file;
use crate::error::{Error, Result};
use crate::sys::{self, Fd, Sys};

const BPF_PROG_LOAD: u32 = 5;
const BPF_PROG_ATTACH: u32 = 8;
const BPF_PROG_DETACH: u32 = 9;
const BPF_PROG_GET_FD_BY_ID: u32 = 13;
const BPF_PROG_QUERY: u32 = 16;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
const ALLOW_MULTI: u32 = 2;

/// `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Insn {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

const LOAD_WORD: u8 = 0x61;
const AND_IMM: u8 = 0x54;
const RSH_IMM: u8 = 0x74;
const MOV_IMM: u8 = 0xb4;
const MOV_REG: u8 = 0xbc;
const JNE_IMM: u8 = 0x55;
const JNE_REG: u8 = 0x5d;
const JEQ_IMM: u8 = 0x15;
const EXIT: u8 = 0x95;

/// r2: type; r3: access; r4: major; r5: minor; r1: scratch after the loads.
const fn insn(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Insn {
    Insn { code, registers: from << 4 | to, offset, immediate }
}

/// The program: the last rule that applies decides; without one, no.
fn program(rules: &[Rule]) -> Vec<Insn> {
    let mut code = vec![
        insn(LOAD_WORD, 2, 1, 0, 0),
        insn(AND_IMM, 2, 0, 0, 0xffff),
        insn(LOAD_WORD, 3, 1, 0, 0),
        insn(RSH_IMM, 3, 0, 0, 16),
        insn(LOAD_WORD, 4, 1, 4, 0),
        insn(LOAD_WORD, 5, 1, 8, 0),
    ];
    for rule in rules.iter().rev() {
        code.extend(block(rule));
        if rule.is_total() {
            return code;
        }
    }
    code.extend([insn(MOV_IMM, 0, 0, 0, 0), insn(EXIT, 0, 0, 0, 0)]);
    code
}

fn block(rule: &Rule) -> Vec<Insn> {
    let mut code = Vec::new();
    match rule.kind {
        Kind::All => {}
        Kind::Block => code.push(insn(JNE_IMM, 2, 0, 0, 1)),
        Kind::Char => code.push(insn(JNE_IMM, 2, 0, 0, 2)),
    }
    let access = i32::from(rule.access.make) | i32::from(rule.access.read) << 1 | i32::from(rule.access.write) << 2;
    if access != 7 {
        code.extend([insn(MOV_REG, 1, 3, 0, 0), insn(AND_IMM, 1, 0, 0, access)]);
        // Allowed only if all that is asked is; denied if any of it is.
        code.push(if rule.allow { insn(JNE_REG, 1, 3, 0, 0) } else { insn(JEQ_IMM, 1, 0, 0, 0) });
    }
    for (register, number) in [(4, rule.major), (5, rule.minor)] {
        if let Some(number) = number {
            code.push(insn(JNE_IMM, register, 0, 0, number as i32));
        }
    }
    code.extend([insn(MOV_IMM, 0, 0, 0, i32::from(rule.allow)), insn(EXIT, 0, 0, 0, 0)]);
    let end = code.len();
    for (at, insn) in code.iter_mut().enumerate() {
        if matches!(insn.code, JNE_IMM | JNE_REG | JEQ_IMM) {
            insn.offset = (end - at - 1) as i16;
        }
    }
    code
}

/// `union bpf_attr`, as far as it is used: words.
#[repr(C, align(8))]
struct Attr([u64; 16]);

fn bpf(command: u32, attr: &mut Attr) -> Sys<i64> {
    sys::raw!(libc::SYS_bpf, command, attr.0.as_mut_ptr(), size_of::<Attr>())
}

/// Attaches the rules' program, then takes away those that were there before.
pub(super) fn attach(path: &Path, rules: &[Rule]) -> Result<()> {
    let failed = |errno| Error::file("attach device rules to", path, std::io::Error::from_raw_os_error(errno));
    let directory = file::open_directory(path)?;
    let old = attached(&directory).unwrap_or_default();
    let program = load(&program(rules)).map_err(failed)?;
    change(BPF_PROG_ATTACH, &directory, &program, ALLOW_MULTI).map_err(failed)?;
    for id in old {
        let mut attr = Attr([0; 16]);
        attr.0[0] = u64::from(id);
        let old = Fd(bpf(BPF_PROG_GET_FD_BY_ID, &mut attr).map_err(failed)? as i32);
        change(BPF_PROG_DETACH, &directory, &old, 0).map_err(failed)?;
    }
    Ok(())
}

fn load(code: &[Insn]) -> Sys<Fd> {
    let mut attr = Attr([0; 16]);
    attr.0[0] = u64::from(PROG_TYPE_CGROUP_DEVICE) | (code.len() as u64) << 32;
    attr.0[1] = code.as_ptr() as u64;
    attr.0[2] = c"Apache-2.0".as_ptr() as u64;
    bpf(BPF_PROG_LOAD, &mut attr).map(|fd| Fd(fd as i32))
}

fn change(command: u32, directory: &Fd, program: &Fd, flags: u32) -> Sys<()> {
    let mut attr = Attr([0; 16]);
    attr.0[0] = directory.0 as u64 | (program.0 as u64) << 32;
    attr.0[1] = u64::from(ATTACH_CGROUP_DEVICE) | u64::from(flags) << 32;
    bpf(command, &mut attr).map(drop)
}

/// Ids of the programs attached to the directory.
fn attached(directory: &Fd) -> Sys<Vec<u32>> {
    let mut ids = vec![0u32; 64];
    let mut attr = Attr([0; 16]);
    attr.0[0] = directory.0 as u64 | u64::from(ATTACH_CGROUP_DEVICE) << 32;
    attr.0[2] = ids.as_mut_ptr() as u64;
    attr.0[3] = ids.len() as u64;
    bpf(BPF_PROG_QUERY, &mut attr)?;
    ids.truncate((attr.0[3] as u32) as usize);
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cgroups::devices::Access;

    /// Runs a program on (type, access, major, minor), as the kernel would.
    fn run(code: &[Insn], kind: u32, access: u32, major: u32, minor: u32) -> bool {
        let context = [kind | access << 16, major, minor];
        let mut r = [0u32; 10];
        let mut pc = 0usize;
        loop {
            let i = code[pc];
            pc += 1;
            let (to, from) = (usize::from(i.registers & 15), usize::from(i.registers >> 4));
            let taken = match i.code {
                LOAD_WORD => {
                    r[to] = context[i.offset as usize / 4];
                    false
                }
                AND_IMM => {
                    r[to] &= i.immediate as u32;
                    false
                }
                RSH_IMM => {
                    r[to] >>= i.immediate;
                    false
                }
                MOV_IMM => {
                    r[to] = i.immediate as u32;
                    false
                }
                MOV_REG => {
                    r[to] = r[from];
                    false
                }
                JNE_IMM => r[to] != i.immediate as u32,
                JNE_REG => r[to] != r[from],
                JEQ_IMM => r[to] == i.immediate as u32,
                EXIT => return r[0] == 1,
                other => panic!("unknown instruction {other:#x}"),
            };
            if taken {
                pc += i.offset as usize;
            }
        }
    }

    fn naive(rules: &[Rule], kind: u32, access: u32, major: u32, minor: u32) -> bool {
        for rule in rules.iter().rev() {
            let mask =
                u32::from(rule.access.make) | u32::from(rule.access.read) << 1 | u32::from(rule.access.write) << 2;
            let touches = if rule.allow { access & mask == access } else { access & mask != 0 };
            let is = match rule.kind {
                Kind::All => true,
                Kind::Block => kind == 1,
                Kind::Char => kind == 2,
            };
            if is && touches && rule.major.is_none_or(|m| m == major) && rule.minor.is_none_or(|m| m == minor) {
                return rule.allow;
            }
        }
        false
    }

    fn rule() -> impl Strategy<Value = Rule> {
        let kind = prop_oneof![Just(Kind::All), Just(Kind::Char), Just(Kind::Block)];
        let number = prop_oneof![Just(None), (0..3u32).prop_map(Some)];
        (any::<bool>(), kind, number.clone(), number, 1..8u8).prop_map(|(allow, kind, major, minor, bits)| Rule {
            allow,
            kind,
            major,
            minor,
            access: Access { read: bits & 1 != 0, write: bits & 2 != 0, make: bits & 4 != 0 },
        })
    }

    proptest! {
        #[test]
        fn the_last_rule_that_applies_decides(
            rules in prop::collection::vec(rule(), 0..8), kind in 1..3u32, access in 1..8u32, major in 0..3u32, minor in 0..3u32,
        ) {
            prop_assert_eq!(run(&program(&rules), kind, access, major, minor), naive(&rules, kind, access, major, minor));
        }
    }

    #[test]
    fn the_kernel_accepts_the_program() {
        let rules = crate::cgroups::devices::rules(&[]).unwrap();
        match load(&program(&rules)) {
            Ok(_) | Err(libc::EPERM) => {}
            Err(errno) => panic!("BPF_PROG_LOAD: {}", std::io::Error::from_raw_os_error(errno)),
        }
    }
}
