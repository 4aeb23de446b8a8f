//! Capability names, and the sets a process gets (capabilities(7)).

use std::sync::OnceLock;

use crate::spec::Capabilities;

/// Names by number, without the `CAP_` prefix (`linux/capability.h`).
pub(crate) const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// The sets as bit masks by capability number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sets {
    pub(crate) bounding: u64,
    pub(crate) effective: u64,
    pub(crate) permitted: u64,
    pub(crate) inheritable: u64,
    pub(crate) ambient: u64,
}

impl Sets {
    /// Reads the names. Unknown ones, and those that `held` (what the caller itself could hand on) lacks, are left
    /// out, as runc does: an old runtime must be able to run a new configuration.
    pub(crate) fn new(names: &Capabilities, held: u64) -> Sets {
        let mask = |names: &[String]| names.iter().filter_map(|name| number(name)).fold(0, |m, n| m | 1 << n) & held;
        let permitted = mask(&names.permitted);
        let inheritable = mask(&names.inheritable);
        Sets {
            bounding: mask(&names.bounding),
            effective: mask(&names.effective) & permitted,
            permitted,
            inheritable,
            ambient: mask(&names.ambient) & permitted & inheritable,
        }
    }
}

/// The number of a capability's name, with or without `CAP_`, in any case.
pub(crate) fn number(name: &str) -> Option<u32> {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    NAMES.iter().position(|known| *known == bare).map(|index| index as u32)
}

/// What this process can hand on, its bounding set, which nothing here ever reduces; and all that the kernel knows, which
/// is what a process has in a new user namespace.
pub(crate) fn held() -> (u64, u64) {
    static HELD: OnceLock<(u64, u64)> = OnceLock::new();
    let has = |number: u64| crate::sys::prctl(libc::PR_CAPBSET_READ, number, 0).ok();
    // The first number that the kernel does not know is an error.
    let seen = || (0..64).map_while(|number| has(number).map(|held| (u64::from(held != 0) << number, 1 << number)));
    *HELD.get_or_init(|| seen().fold((0, 0), |(held, known), (this, bit)| (held | this, known | bit)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_with_and_without_prefix() {
        assert_eq!(number("CAP_CHOWN"), Some(0));
        assert_eq!(number("sys_admin"), Some(21));
        assert_eq!(number("CAP_CHECKPOINT_RESTORE"), Some(40));
        assert_eq!(number("CAP_NOPE"), None);
    }

    #[test]
    fn ambient_capabilities_need_to_be_permitted_and_inheritable() {
        let list = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let sets = Sets::new(
            &Capabilities {
                permitted: list(&["CAP_KILL", "CAP_CHOWN"]),
                inheritable: list(&["CAP_KILL"]),
                ambient: list(&["CAP_KILL", "CAP_CHOWN", "CAP_FUTURE"]),
                ..Default::default()
            },
            u64::MAX,
        );
        assert_eq!(sets.ambient, 1 << 5);
        assert_eq!(sets.effective, 0);
    }
}
