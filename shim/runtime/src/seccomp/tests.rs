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
