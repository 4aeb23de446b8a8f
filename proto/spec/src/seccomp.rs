//! The default system call filter: what containers may call, with more for each capability they hold, as containerd's
//! and Docker's default profile has it.

use std::collections::BTreeSet;

use oci_spec::runtime::LinuxSeccomp;
use serde_json::{Value, json};

use crate::SpecError;

/// Calls that every container may make, separated by blanks.
const ALWAYS: &str = include_str!("seccomp.txt");

/// Calls that need a capability beside.
const BY_CAPABILITY: &[(&str, &str)] = &[
    ("CAP_DAC_READ_SEARCH", "open_by_handle_at"),
    (
        "CAP_SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr move_mount \
         open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare",
    ),
    ("CAP_SYS_BOOT", "reboot"),
    ("CAP_SYS_CHROOT", "chroot"),
    ("CAP_SYS_MODULE", "delete_module init_module finit_module"),
    ("CAP_SYS_PACCT", "acct"),
    ("CAP_SYS_PTRACE", "pidfd_getfd kcmp process_madvise process_vm_readv process_vm_writev ptrace"),
    ("CAP_SYS_RAWIO", "iopl ioperm"),
    ("CAP_SYS_TIME", "settimeofday stime clock_settime clock_settime64"),
    ("CAP_SYS_TTY_CONFIG", "vhangup"),
    ("CAP_SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    ("CAP_SYSLOG", "syslog"),
    ("CAP_BPF", "bpf"),
    ("CAP_PERFMON", "perf_event_open"),
];

/// Personalities that change nothing dangerous: none, Linux 32, without randomisation of 32, and asking.
const PERSONALITIES: [u64; 5] = [0x0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];
/// Address families that are left out: `AF_ALG` and `AF_VSOCK` reach further than a network namespace.
const AF_ALG: u64 = 38;
const AF_VSOCK: u64 = 40;
/// The flags of clone(2) that make namespaces.
const NEW_NAMESPACES: u64 = 0x7e02_0000;
const ENOSYS: u32 = 38;

/// The default filter for a process with these capabilities (`CAP_…`) on this machine's architecture.
///
/// # Errors
/// Never in practice: what it is made from is tested.
pub fn default_seccomp(capabilities: &BTreeSet<String>) -> Result<LinuxSeccomp, SpecError> {
    let mut calls = vec![allow(words(ALWAYS))];
    calls.extend(
        [("SCMP_CMP_LT", AF_ALG), ("SCMP_CMP_EQ", AF_ALG + 1), ("SCMP_CMP_GT", AF_VSOCK)].map(
            |(op, family)| json!({ "names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": [arg(op, family, 0)] }),
        ),
    );
    calls.extend(PERSONALITIES.map(
        |kind| json!({ "names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [arg("SCMP_CMP_EQ", kind, 0)] }),
    ));
    // Since Linux 4.8 these check for themselves whether the caller may.
    calls.push(allow(words("process_vm_readv process_vm_writev ptrace")));
    calls.push(allow(words(of_architecture())));
    let held = BY_CAPABILITY.iter().filter(|(capability, _)| capabilities.contains(*capability));
    calls.extend(held.map(|(_, names)| allow(words(names))));
    if !capabilities.contains("CAP_SYS_ADMIN") {
        let flags = arg("SCMP_CMP_MASKED_EQ", NEW_NAMESPACES, 0);
        calls.push(json!({ "names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [flags] }));
        calls.push(json!({ "names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS }));
    }
    let filter = json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": architectures(),
        "syscalls": calls,
    });
    serde_json::from_value(filter).map_err(|source| SpecError::Defaults { source })
}

fn words(text: &str) -> Vec<&str> {
    text.split_ascii_whitespace().collect()
}

fn allow(names: Vec<&str>) -> Value {
    json!({ "names": names, "action": "SCMP_ACT_ALLOW" })
}

fn arg(op: &str, value: u64, second: u64) -> Value {
    json!({ "index": 0, "op": op, "value": value, "valueTwo": second })
}

fn of_architecture() -> &'static str {
    if cfg!(target_arch = "x86_64") {
        "arch_prctl modify_ldt"
    } else if cfg!(target_arch = "aarch64") {
        "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls"
    } else {
        "sync_file_range2"
    }
}

fn architectures() -> &'static [&'static str] {
    if cfg!(target_arch = "x86_64") {
        &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]
    } else if cfg!(target_arch = "aarch64") {
        &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]
    } else {
        &[]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(filter: &LinuxSeccomp) -> BTreeSet<String> {
        filter.syscalls().iter().flatten().flat_map(|call| call.names().clone()).collect()
    }

    #[test]
    fn a_capability_opens_the_calls_that_need_it() {
        let none = names(&default_seccomp(&BTreeSet::new()).unwrap());
        assert!(none.contains("openat") && none.contains("clone3") && !none.contains("mount"));
        let admin = default_seccomp(&BTreeSet::from(["CAP_SYS_ADMIN".to_owned()])).unwrap();
        assert!(names(&admin).contains("mount"));
        let refused = admin.syscalls().iter().flatten().any(|call| call.errno_ret() == Some(ENOSYS));
        assert!(!refused, "who may make namespaces may call clone3");
    }

    #[test]
    fn no_call_stands_twice_in_the_table() {
        let all = words(ALWAYS);
        let once: BTreeSet<_> = all.iter().collect();
        assert_eq!(all.len(), once.len());
    }
}
