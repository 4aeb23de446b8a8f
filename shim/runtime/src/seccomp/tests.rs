//! The generated programs, run by a small interpreter against a naive reading of the configuration.

use proptest::prelude::*;

use super::*;

/// Runs a program on a call, as the kernel would.
fn run(code: &[Insn], arch: u32, number: u32, args: [u64; 6]) -> u32 {
    let mut data = [0u8; 64];
    data[0..4].copy_from_slice(&number.to_ne_bytes());
    data[4..8].copy_from_slice(&arch.to_ne_bytes());
    for (index, arg) in args.iter().enumerate() {
        data[16 + 8 * index..24 + 8 * index].copy_from_slice(&arg.to_ne_bytes());
    }
    let (mut pc, mut a) = (0usize, 0u32);
    loop {
        let insn = code[pc];
        pc += 1;
        let test = match insn.code {
            0x20 => {
                let at = insn.k as usize;
                a = u32::from_ne_bytes(data[at..at + 4].try_into().unwrap());
                continue;
            }
            0x54 => {
                a &= insn.k;
                continue;
            }
            0x05 => {
                pc += insn.k as usize;
                continue;
            }
            0x06 => return insn.k,
            0x15 => a == insn.k,
            0x25 => a > insn.k,
            0x35 => a >= insn.k,
            other => panic!("unknown instruction {other:#x}"),
        };
        pc += usize::from(if test { insn.jt } else { insn.jf });
    }
}

fn holds(arg: &SyscallArg, args: [u64; 6]) -> bool {
    let have = args[arg.index as usize];
    match arg.op.as_str() {
        "SCMP_CMP_NE" => have != arg.value,
        "SCMP_CMP_LT" => have < arg.value,
        "SCMP_CMP_LE" => have <= arg.value,
        "SCMP_CMP_EQ" => have == arg.value,
        "SCMP_CMP_GE" => have >= arg.value,
        "SCMP_CMP_GT" => have > arg.value,
        _ => have & arg.value == arg.value_two,
    }
}

fn naive(config: &Seccomp, name: &str, args: [u64; 6]) -> u32 {
    let of = |call: &crate::spec::Syscall| action(&call.action, call.errno_ret).unwrap();
    let named = |call: &&crate::spec::Syscall| call.names.iter().any(|n| n == name);
    let conditional = config.syscalls.iter().filter(named).find(|call| {
        let repeated = call.args.iter().enumerate().any(|(i, a)| call.args[..i].iter().any(|b| a.index == b.index));
        !call.args.is_empty()
            && if repeated {
                call.args.iter().any(|a| holds(a, args))
            } else {
                call.args.iter().all(|a| holds(a, args))
            }
    });
    let plain = || config.syscalls.iter().filter(named).find(|call| call.args.is_empty());
    conditional.or_else(plain).map_or_else(|| action(&config.default_action, None).unwrap(), of)
}

const NAMES: [&str; 8] = ["read", "write", "open", "close", "personality", "clone", "socket", "bpf"];

fn argument() -> impl Strategy<Value = SyscallArg> {
    let value = prop_oneof![Just(0u64), Just(1), Just(0xffff_ffff), Just(1 << 32), Just((1 << 32) + 1), any::<u64>()];
    let op = prop::sample::select(vec![
        "SCMP_CMP_NE",
        "SCMP_CMP_LT",
        "SCMP_CMP_LE",
        "SCMP_CMP_EQ",
        "SCMP_CMP_GE",
        "SCMP_CMP_GT",
        "SCMP_CMP_MASKED_EQ",
    ]);
    (0..3u32, value.clone(), value, op).prop_map(|(index, value, value_two, op)| SyscallArg {
        index,
        value,
        value_two,
        op: op.to_owned(),
    })
}

fn call() -> impl Strategy<Value = crate::spec::Syscall> {
    let names = prop::collection::vec(prop::sample::select(NAMES.to_vec()), 1..4);
    let action = prop::sample::select(vec!["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_LOG", "SCMP_ACT_TRAP"]);
    (names, action, prop::collection::vec(argument(), 0..3)).prop_map(|(names, action, args)| crate::spec::Syscall {
        names: names.into_iter().map(str::to_owned).collect(),
        action: action.to_owned(),
        errno_ret: None,
        args,
    })
}

proptest! {
    #[test]
    fn a_compiled_filter_decides_as_its_rules_read(
        calls in prop::collection::vec(call(), 0..8),
        name in prop::sample::select(NAMES.to_vec()),
        args in prop::array::uniform6(prop_oneof![Just(0u64), Just(1), Just(1 << 32), Just(0xffff_ffff), any::<u64>()]),
    ) {
        let mut syscalls = calls;
        // A high number, so that "newer than the filter" does not come into it.
        syscalls.push(crate::spec::Syscall {
            names: vec!["file_setattr".into()], action: "SCMP_ACT_ALLOW".into(), ..Default::default()
        });
        let config = Seccomp { default_action: "SCMP_ACT_KILL_PROCESS".into(), syscalls, ..Default::default() };
        let program = compile(&config).unwrap();
        let number = NATIVE.number(name).unwrap();
        prop_assert_eq!(run(&program.code, NATIVE.audit(), number, args), naive(&config, name, args));
    }
}

fn allow(names: &[&str], architectures: &[&str]) -> Seccomp {
    Seccomp {
        default_action: "SCMP_ACT_ERRNO".into(),
        architectures: architectures.iter().map(|a| (*a).to_owned()).collect(),
        syscalls: vec![crate::spec::Syscall {
            names: names.iter().map(|n| (*n).to_owned()).collect(),
            action: "SCMP_ACT_ALLOW".into(),
            ..Default::default()
        }],
        ..Default::default()
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn each_architecture_has_its_own_numbers() {
    let config = allow(&["read", "socket", "file_setattr"], &["SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_MIPS"]);
    let code = compile(&config).unwrap().code;
    let none = [0; 6];
    assert_eq!(run(&code, Arch::X86_64.audit(), 0, none), RET_ALLOW);
    assert_eq!(run(&code, Arch::X86_64.audit(), 3, none), RET_ERRNO | 1);
    assert_eq!(run(&code, Arch::X86.audit(), 3, none), RET_ALLOW);
    assert_eq!(run(&code, Arch::X86.audit(), 102, [1, 0, 0, 0, 0, 0]), RET_ALLOW, "socketcall(SYS_SOCKET)");
    assert_eq!(run(&code, Arch::X86.audit(), 102, [2, 0, 0, 0, 0, 0]), RET_ERRNO | 1, "socketcall(SYS_BIND)");
    assert_eq!(run(&code, Arch::X86_64.audit(), X32_BIT, none), RET_ALLOW);
    assert_eq!(run(&code, Arch::Aarch64.audit(), 63, none), RET_KILL_THREAD);
}

#[test]
fn calls_newer_than_the_filter_do_not_exist() {
    let code = compile(&allow(&["read", "clone3"], &[])).unwrap().code;
    assert_eq!(run(&code, NATIVE.audit(), 460, [0; 6]), RET_ERRNO | libc::ENOSYS as u32);
}

#[test]
fn unknown_actions_operators_and_architectures_are_refused() {
    for config in [
        Seccomp { default_action: "SCMP_ACT_NOPE".into(), ..Default::default() },
        allow(&["read"], &["ARCH_NOPE"]),
        Seccomp { flags: vec!["NOPE".into()], ..allow(&["read"], &[]) },
    ] {
        assert!(matches!(compile(&config), Err(Error::Invalid { .. })));
    }
}

#[test]
fn the_table_is_sorted() {
    assert!(syscalls::TABLE.is_sorted_by(|a, b| a.0 < b.0));
    assert!(syscalls::X32.is_sorted_by(|a, b| a.0 < b.0));
}

/// A filter as libseccomp makes it; `None` where there is no compiler or no libseccomp to ask.
#[cfg(target_arch = "x86_64")]
fn libseccomp(config: &Seccomp) -> Option<Vec<Insn>> {
    use std::io::Write;
    use std::process::{Command, Stdio};
    let directory = tempfile::tempdir().unwrap();
    let helper = directory.path().join("oracle");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/src/seccomp/oracle.c");
    let built = Command::new("cc").args([source, "-lseccomp", "-o"]).arg(&helper).stderr(Stdio::null()).status();
    if !built.is_ok_and(|status| status.success()) {
        eprintln!("skipped: no cc, or no libseccomp to compare with");
        return None;
    }
    let mut input = String::new();
    for arch in &config.architectures {
        input += &format!("arch {}\n", arch.trim_start_matches("SCMP_ARCH_").to_lowercase());
    }
    let operator = |op: &str| {
        ["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"]
            .iter()
            .position(|o| op.ends_with(&format!("CMP_{o}")))
            .unwrap()
            + 1
    };
    for call in &config.syscalls {
        let result = action(&call.action, call.errno_ret).unwrap();
        for name in &call.names {
            input += &format!("rule {result} {name} {}", call.args.len());
            for arg in &call.args {
                input += &format!(" {} {} {} {}", arg.index, operator(&arg.op), arg.value, arg.value_two);
            }
            input.push('\n');
        }
    }
    let default = action(&config.default_action, None).unwrap();
    let mut child =
        Command::new(&helper).arg(default.to_string()).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let word = |bytes: &[u8]| u32::from_ne_bytes(bytes.try_into().unwrap());
    let insn = |bytes: &[u8]| Insn {
        code: u16::from_ne_bytes(bytes[..2].try_into().unwrap()),
        jt: bytes[2],
        jf: bytes[3],
        k: word(&bytes[4..]),
    };
    Some(output.stdout.chunks_exact(8).map(insn).collect())
}

/// Runs libseccomp's program, which uses a few more instructions than ours.
#[cfg(target_arch = "x86_64")]
#[test]
fn libseccomp_decides_the_same_on_every_call_of_every_architecture() {
    let call = |names: &[&str], action: &str, args: Vec<SyscallArg>| crate::spec::Syscall {
        names: names.iter().map(|n| (*n).to_owned()).collect(),
        action: action.to_owned(),
        errno_ret: None,
        args,
    };
    let arg = |index, op: &str, value, value_two| SyscallArg { index, value, value_two, op: format!("SCMP_CMP_{op}") };
    // Every known name but each seventh, as a profile that allows most things.
    let names = syscalls::TABLE.iter().map(|row| row.0).enumerate().filter(|(at, _)| at % 7 != 0).map(|(_, name)| name);
    // The last is one that an older libseccomp does not know.
    let special = ["personality", "clone", "ioctl", "socket", "semop", "fcntl", "prctl", "futex_waitv", "uretprobe"];
    let plain = names.filter(|name| !special.contains(name)).collect::<Vec<_>>();
    let config = Seccomp {
        default_action: "SCMP_ACT_ERRNO".into(),
        architectures: ["X86_64", "X86", "X32"].map(|a| format!("SCMP_ARCH_{a}")).to_vec(),
        syscalls: vec![
            call(&plain, "SCMP_ACT_ALLOW", vec![]),
            call(&["futex_waitv", "semop"], "SCMP_ACT_ALLOW", vec![]),
            call(&["personality"], "SCMP_ACT_ALLOW", vec![arg(0, "EQ", 8, 0)]),
            call(&["personality"], "SCMP_ACT_ALLOW", vec![arg(0, "EQ", 0xffff_ffff, 0)]),
            call(&["clone"], "SCMP_ACT_ALLOW", vec![arg(0, "MASKED_EQ", 2_114_060_288, 0)]),
            call(&["ioctl"], "SCMP_ACT_LOG", vec![arg(1, "NE", 0x5412, 0)]),
            call(&["fcntl"], "SCMP_ACT_TRAP", vec![arg(0, "GE", 5, 0), arg(1, "LT", 1 << 33, 0)]),
            call(&["prctl"], "SCMP_ACT_KILL_PROCESS", vec![arg(1, "GT", 7, 0), arg(2, "LE", 9, 0)]),
        ],
        ..Default::default()
    };
    let Some(theirs) = libseccomp(&config) else { return };
    let ours = compile(&config).unwrap().code;
    let values = [0u64, 1, 5, 8, 9, 10, 0x5412, 0x7e02_0000, 0xffff_ffff];
    for arch in [Arch::X86_64, Arch::X86, Arch::X32] {
        let bit = if arch == Arch::X32 { X32_BIT } else { 0 };
        for number in (0..450).chain(512..548) {
            if arch != Arch::X32 && number >= 450 {
                continue;
            }
            for a in values {
                for b in values {
                    let args = [a, b, a, b, a, b];
                    let (left, right) =
                        (run(&ours, arch.audit(), number | bit, args), run(&theirs, arch.audit(), number | bit, args));
                    assert_eq!(
                        left, right,
                        "{arch:?} call {number} {args:x?}: ours {left:#x}, libseccomp's {right:#x}"
                    );
                }
            }
        }
    }
    assert_eq!(run(&ours, Arch::Aarch64.audit(), 1, [0; 6]), run(&theirs, Arch::Aarch64.audit(), 1, [0; 6]));
    assert!(ours.len() < theirs.len(), "ours {} instructions, theirs {}", ours.len(), theirs.len());
}
