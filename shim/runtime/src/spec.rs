//! The bundle's `config.json` (OCI runtime-spec 1.3, Linux) and the rules a configuration must keep.
//!
//! Own structs instead of a general crate: the shim carries them, so they hold what the runtime acts on and no more.
//! Unknown members are ignored, as the specification demands of a runtime.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use gantry_types::{ErrorKind, HasKind};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The largest `config.json` that is read.
const MAX_CONFIG: u64 = 16 << 20;

/// A container's configuration.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Spec {
    /// Version of the specification the bundle complies with (`ociVersion`).
    pub oci_version: String,
    /// The container's process.
    pub process: Option<Process>,
    /// The container's root file system.
    pub root: Option<Root>,
    /// Host name in the container's UTS namespace.
    pub hostname: String,
    /// NIS domain name in the container's UTS namespace.
    pub domainname: String,
    /// Mounts beyond the root, in order.
    pub mounts: Vec<Mount>,
    /// Programs run at points of the life cycle.
    pub hooks: Hooks,
    /// Free metadata; copied into the state.
    pub annotations: BTreeMap<String, String>,
    /// What only Linux knows.
    pub linux: Linux,
}

/// A process: the container's init, or one that is executed in it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Process {
    /// Whether it gets a terminal.
    pub terminal: bool,
    /// The terminal's size.
    pub console_size: Option<ConsoleSize>,
    /// Who it runs as.
    pub user: User,
    /// Program and arguments.
    pub args: Vec<String>,
    /// Environment, `NAME=value` each.
    pub env: Vec<String>,
    /// Working directory, absolute in the container.
    pub cwd: String,
    /// Capability sets; absent means none.
    pub capabilities: Option<Capabilities>,
    /// Resource limits.
    pub rlimits: Vec<Rlimit>,
    /// Whether `PR_SET_NO_NEW_PRIVS` is set.
    pub no_new_privileges: bool,
    /// AppArmor profile to change to at exec.
    pub apparmor_profile: String,
    /// `oom_score_adj`; absent means inherited.
    pub oom_score_adj: Option<i32>,
    /// SELinux label to change to at exec.
    pub selinux_label: String,
    /// Scheduling policy, sched_setattr(2).
    pub scheduler: Option<Scheduler>,
    /// I/O priority, ioprio_set(2).
    #[serde(rename = "ioPriority")]
    pub io_priority: Option<IoPriority>,
    /// CPU affinity of executed processes.
    #[serde(rename = "execCPUAffinity")]
    pub exec_cpu_affinity: Option<CpuAffinity>,
}

/// A terminal's size in characters.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ConsoleSize {
    /// Rows.
    pub height: u16,
    /// Columns.
    pub width: u16,
}

/// Who a process runs as.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct User {
    /// User id in the container.
    pub uid: u32,
    /// Group id in the container.
    pub gid: u32,
    /// File mode creation mask.
    pub umask: Option<u32>,
    /// Supplementary groups.
    pub additional_gids: Vec<u32>,
}

/// The five capability sets, by name (`CAP_CHOWN`).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct Capabilities {
    pub bounding: Vec<String>,
    pub effective: Vec<String>,
    pub inheritable: Vec<String>,
    pub permitted: Vec<String>,
    pub ambient: Vec<String>,
}

/// One resource limit.
#[derive(Clone, Debug, Deserialize)]
pub struct Rlimit {
    /// `RLIMIT_NOFILE`, …
    #[serde(rename = "type")]
    pub kind: String,
    /// Hard limit; `u64::MAX` is unlimited.
    pub hard: u64,
    /// Soft limit.
    pub soft: u64,
}

/// Scheduling policy, sched_setattr(2).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct Scheduler {
    pub policy: String,
    pub nice: i32,
    pub priority: i32,
    pub flags: Vec<String>,
    pub runtime: u64,
    pub deadline: u64,
    pub period: u64,
}

/// I/O priority, ioprio_set(2).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct IoPriority {
    /// `IOPRIO_CLASS_RT`, `_BE` or `_IDLE`.
    pub class: String,
    /// 0 (highest) to 7.
    pub priority: i32,
}

/// CPU lists (`0-3,8`) of an executed process.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct CpuAffinity {
    /// Before it joins the container's cgroup.
    pub initial: String,
    /// After.
    #[serde(rename = "final")]
    pub last: String,
}

/// The root file system.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Root {
    /// Absolute, or relative to the bundle.
    pub path: PathBuf,
    /// Whether it is mounted read-only.
    pub readonly: bool,
}

/// A mount beyond the root.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Mount {
    /// Path in the container.
    pub destination: String,
    /// File system type.
    #[serde(rename = "type")]
    pub kind: String,
    /// Device, directory or name.
    pub source: String,
    /// Options as mount(8) spells them, and the specification's own.
    pub options: Vec<String>,
    /// Id map of user ids for an idmapped mount.
    pub uid_mappings: Vec<IdMapping>,
    /// Id map of group ids.
    pub gid_mappings: Vec<IdMapping>,
}

/// One range of a user namespace's id map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct IdMapping {
    /// First id in the container.
    #[serde(rename = "containerID")]
    pub container_id: u32,
    /// First id on the host.
    #[serde(rename = "hostID")]
    pub host_id: u32,
    /// Length of the range.
    pub size: u32,
}

/// Programs run at points of the life cycle (runtime-spec, "POSIX-platform Hooks").
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs)]
pub struct Hooks {
    pub prestart: Vec<Hook>,
    pub create_runtime: Vec<Hook>,
    pub create_container: Vec<Hook>,
    pub start_container: Vec<Hook>,
    pub poststart: Vec<Hook>,
    pub poststop: Vec<Hook>,
}

/// One hook.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Hook {
    /// Absolute path of the program.
    pub path: PathBuf,
    /// Its argv, the zeroth included.
    pub args: Vec<String>,
    /// Its whole environment.
    pub env: Vec<String>,
    /// Seconds after which it is killed and counts as failed.
    pub timeout: Option<u32>,
}

/// What only Linux knows.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs)]
pub struct Linux {
    pub uid_mappings: Vec<IdMapping>,
    pub gid_mappings: Vec<IdMapping>,
    pub sysctl: BTreeMap<String, String>,
    pub resources: Option<Resources>,
    pub cgroups_path: String,
    pub namespaces: Vec<Namespace>,
    pub devices: Vec<Device>,
    pub net_devices: BTreeMap<String, NetDevice>,
    pub seccomp: Option<Seccomp>,
    pub rootfs_propagation: String,
    pub masked_paths: Vec<String>,
    pub readonly_paths: Vec<String>,
    pub mount_label: String,
    pub intel_rdt: Option<IntelRdt>,
    pub personality: Option<Personality>,
    pub time_offsets: BTreeMap<String, TimeOffset>,
    pub memory_policy: Option<MemoryPolicy>,
}

/// A network device that moves into the container.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NetDevice {
    /// Its name there; empty keeps it.
    pub name: String,
}

/// One namespace.
#[derive(Clone, Debug, Deserialize)]
pub struct Namespace {
    /// `pid`, `network`, `mount`, `ipc`, `uts`, `user`, `cgroup` or `time`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The namespace to join; absent or empty makes a new one.
    #[serde(default)]
    pub path: PathBuf,
}

/// A device node to make in the container.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs)]
pub struct Device {
    pub path: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub major: i64,
    pub minor: i64,
    pub file_mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
}

/// Offset of one clock of a time namespace.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct TimeOffset {
    pub secs: i64,
    pub nanosecs: u32,
}

/// NUMA memory policy, set_mempolicy(2).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct MemoryPolicy {
    pub mode: String,
    pub nodes: String,
    pub flags: Vec<String>,
}

/// Intel Resource Director Technology.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs)]
pub struct IntelRdt {
    #[serde(rename = "closID")]
    pub clos_id: String,
    pub l3_cache_schema: String,
    pub mem_bw_schema: String,
    pub schemata: Vec<String>,
    pub enable_monitoring: bool,
}

/// Execution domain, personality(2).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct Personality {
    pub domain: String,
    pub flags: Vec<String>,
}

/// Limits of the container's cgroup; also what an update carries.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs)]
pub struct Resources {
    pub devices: Vec<DeviceRule>,
    pub memory: Option<Memory>,
    pub cpu: Option<Cpu>,
    pub pids: Option<Pids>,
    #[serde(rename = "blockIO")]
    pub block_io: Option<BlockIo>,
    pub hugepage_limits: Vec<HugepageLimit>,
    pub network: Option<Network>,
    pub rdma: BTreeMap<String, Rdma>,
    pub unified: BTreeMap<String, String>,
}

/// One rule of the device controller; later rules win.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct DeviceRule {
    pub allow: bool,
    #[serde(rename = "type")]
    pub kind: String,
    pub major: Option<i64>,
    pub minor: Option<i64>,
    pub access: String,
}

/// Memory limits in bytes; −1 lifts a limit.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs)]
pub struct Memory {
    pub limit: Option<i64>,
    pub reservation: Option<i64>,
    /// Memory and swap together.
    pub swap: Option<i64>,
    pub kernel: Option<i64>,
    #[serde(rename = "kernelTCP")]
    pub kernel_tcp: Option<i64>,
    pub swappiness: Option<u64>,
    #[serde(rename = "disableOOMKiller")]
    pub disable_oom_killer: Option<bool>,
    pub use_hierarchy: Option<bool>,
    pub check_before_update: Option<bool>,
}

/// Processor limits; times in microseconds.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs)]
pub struct Cpu {
    pub shares: Option<u64>,
    pub quota: Option<i64>,
    pub burst: Option<u64>,
    pub period: Option<u64>,
    pub realtime_runtime: Option<i64>,
    pub realtime_period: Option<u64>,
    pub cpus: String,
    pub mems: String,
    pub idle: Option<i64>,
}

/// Number of tasks; −1 lifts the limit.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct Pids {
    pub limit: Option<i64>,
}

/// Block I/O limits.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs)]
pub struct BlockIo {
    pub weight: Option<u16>,
    pub leaf_weight: Option<u16>,
    pub weight_device: Vec<WeightDevice>,
    pub throttle_read_bps_device: Vec<ThrottleDevice>,
    pub throttle_write_bps_device: Vec<ThrottleDevice>,
    #[serde(rename = "throttleReadIOPSDevice")]
    pub throttle_read_iops_device: Vec<ThrottleDevice>,
    #[serde(rename = "throttleWriteIOPSDevice")]
    pub throttle_write_iops_device: Vec<ThrottleDevice>,
}

/// Block I/O weight of one device.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs)]
pub struct WeightDevice {
    pub major: i64,
    pub minor: i64,
    pub weight: Option<u16>,
    pub leaf_weight: Option<u16>,
}

/// Block I/O rate of one device.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct ThrottleDevice {
    pub major: i64,
    pub minor: i64,
    pub rate: u64,
}

/// Limit of one huge page size (`2MB`), bytes.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs)]
pub struct HugepageLimit {
    pub page_size: String,
    pub limit: u64,
}

/// net_cls and net_prio.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct Network {
    #[serde(rename = "classID")]
    pub class_id: Option<u32>,
    pub priorities: Vec<InterfacePriority>,
}

/// Priority of one interface.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct InterfacePriority {
    pub name: String,
    pub priority: u32,
}

/// RDMA limits of one device.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs)]
pub struct Rdma {
    pub hca_handles: Option<u32>,
    pub hca_objects: Option<u32>,
}

/// A seccomp filter, in libseccomp's terms.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs)]
pub struct Seccomp {
    pub default_action: String,
    pub default_errno_ret: Option<u32>,
    pub architectures: Vec<String>,
    pub flags: Vec<String>,
    pub listener_path: String,
    pub listener_metadata: String,
    pub syscalls: Vec<Syscall>,
}

/// What happens to some system calls.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs)]
pub struct Syscall {
    pub names: Vec<String>,
    pub action: String,
    pub errno_ret: Option<u32>,
    pub args: Vec<SyscallArg>,
}

/// A condition on one argument.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs)]
pub struct SyscallArg {
    pub index: u32,
    pub value: u64,
    pub value_two: u64,
    pub op: String,
}

/// A container's state as the specification's `state` operation prints it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// Version of the specification.
    pub oci_version: String,
    /// The container's id.
    pub id: String,
    /// `creating`, `created`, `running`, `paused` or `stopped`.
    pub status: String,
    /// The init's process id on the host; 0 when it is gone.
    pub pid: i32,
    /// Absolute path of the bundle.
    pub bundle: PathBuf,
    /// The configuration's annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// The kinds of namespace, in the order in which they are joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum NamespaceKind {
    Ipc,
    Uts,
    Network,
    Pid,
    Cgroup,
    Time,
    Mount,
    User,
}

impl NamespaceKind {
    /// Reads the specification's name.
    pub fn parse(name: &str) -> Option<NamespaceKind> {
        Some(match name {
            "ipc" => NamespaceKind::Ipc,
            "uts" => NamespaceKind::Uts,
            "network" => NamespaceKind::Network,
            "pid" => NamespaceKind::Pid,
            "cgroup" => NamespaceKind::Cgroup,
            "time" => NamespaceKind::Time,
            "mount" => NamespaceKind::Mount,
            "user" => NamespaceKind::User,
            _ => return None,
        })
    }

    /// The clone(2) flag.
    pub fn flag(self) -> libc::c_int {
        match self {
            NamespaceKind::Ipc => libc::CLONE_NEWIPC,
            NamespaceKind::Uts => libc::CLONE_NEWUTS,
            NamespaceKind::Network => libc::CLONE_NEWNET,
            NamespaceKind::Pid => libc::CLONE_NEWPID,
            NamespaceKind::Cgroup => libc::CLONE_NEWCGROUP,
            NamespaceKind::Time => 0x80,
            NamespaceKind::Mount => libc::CLONE_NEWNS,
            NamespaceKind::User => libc::CLONE_NEWUSER,
        }
    }
}

impl Spec {
    /// Reads and validates `config.json` of a bundle.
    pub fn load(bundle: &Path) -> Result<Spec> {
        let path = bundle.join("config.json");
        let bytes = read_bounded(&path)?;
        Spec::parse(&bytes).map_err(|error| match error {
            Error::Json { what, reason, .. } => Error::Json { what, path, reason },
            other => other,
        })
    }

    /// Parses and validates a configuration.
    pub fn parse(bytes: &[u8]) -> Result<Spec> {
        let spec: Spec = serde_json::from_slice(bytes).map_err(|error| Error::Json {
            what: "configuration",
            path: PathBuf::from("config.json"),
            reason: error.to_string(),
        })?;
        spec.validate()?;
        Ok(spec)
    }

    /// Reads and validates the configuration of a pod's bundle, which needs neither root nor program: without a program
    /// the namespaces are all there is to it ([`Container::hold`](crate::Container::hold)). A bundle without a
    /// `config.json` is one without namespaces.
    pub fn load_pod(bundle: &Path) -> Result<Spec> {
        let path = bundle.join("config.json");
        let mut spec: Spec = match read_bounded(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| Error::Json {
                what: "configuration",
                path,
                reason: error.to_string(),
            })?,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                Spec { oci_version: "1.0.0".to_owned(), ..Spec::default() }
            }
            Err(error) => return Err(error),
        };
        if spec.namespace(NamespaceKind::Mount).is_none() {
            spec.linux.namespaces.push(Namespace { kind: "mount".to_owned(), path: PathBuf::new() });
        }
        if spec.has_program() {
            spec.validate()?
        } else {
            spec.validate_isolation()?
        }
        Ok(spec)
    }

    /// Whether there is a program to run.
    pub fn has_program(&self) -> bool {
        self.process.as_ref().is_some_and(|process| !process.args.is_empty())
    }

    /// Checks what can be checked without touching the system.
    pub fn validate(&self) -> Result<()> {
        self.check_version()?;
        let root = self.root.as_ref().ok_or(Error::invalid("root", "is missing"))?;
        if root.path.as_os_str().is_empty() {
            return Err(Error::invalid("root.path", "is empty"));
        }
        if let Some(process) = &self.process {
            process.validate()?;
        }
        self.validate_isolation()
    }

    /// The same of all but root and process.
    fn validate_isolation(&self) -> Result<()> {
        self.check_version()?;
        self.check_namespaces()?;
        self.check_names()?;
        self.check_mounts()?;
        self.check_sysctls()?;
        crate::netdev::check(self)
    }

    /// The namespace entry of a kind.
    pub fn namespace(&self, kind: NamespaceKind) -> Option<&Namespace> {
        self.linux.namespaces.iter().find(|ns| NamespaceKind::parse(&ns.kind) == Some(kind))
    }

    /// Whether the container gets a new namespace of a kind.
    pub fn has_new(&self, kind: NamespaceKind) -> bool {
        self.namespace(kind).is_some_and(|ns| ns.path.as_os_str().is_empty())
    }

    /// No version is any version, as runc has it.
    fn check_version(&self) -> Result<()> {
        match self.oci_version.split('.').next() {
            Some("1" | "") => Ok(()),
            _ => Err(Error::invalid("ociVersion", format!("{:?} is not a supported version (1.x)", self.oci_version))),
        }
    }

    fn check_namespaces(&self) -> Result<()> {
        let mut seen = Vec::new();
        for ns in &self.linux.namespaces {
            let kind = NamespaceKind::parse(&ns.kind)
                .ok_or_else(|| Error::invalid("linux.namespaces", format!("{:?} is no kind of namespace", ns.kind)))?;
            if seen.contains(&kind) {
                return Err(Error::invalid("linux.namespaces", format!("{:?} is listed twice", ns.kind)));
            }
            if !ns.path.as_os_str().is_empty() && !ns.path.is_absolute() {
                return Err(Error::invalid("linux.namespaces", format!("path {} is not absolute", ns.path.display())));
            }
            seen.push(kind);
        }
        if !seen.contains(&NamespaceKind::Mount) {
            return Err(Error::invalid("linux.namespaces", "a container needs a mount namespace"));
        }
        let mapped = !self.linux.uid_mappings.is_empty() || !self.linux.gid_mappings.is_empty();
        if mapped && !seen.contains(&NamespaceKind::User) {
            return Err(Error::invalid("linux.uidMappings", "id maps need a user namespace"));
        }
        if self.has_new(NamespaceKind::User)
            && (self.linux.uid_mappings.is_empty() || self.linux.gid_mappings.is_empty())
        {
            return Err(Error::invalid("linux.uidMappings", "a new user namespace needs id maps"));
        }
        if !self.linux.time_offsets.is_empty() && !self.has_new(NamespaceKind::Time) {
            return Err(Error::invalid("linux.timeOffsets", "need a new time namespace"));
        }
        Ok(())
    }

    fn check_names(&self) -> Result<()> {
        let private = self.namespace(NamespaceKind::Uts).is_some();
        if !private && !self.hostname.is_empty() {
            return Err(Error::invalid("hostname", "cannot be set without a private UTS namespace"));
        }
        if !private && !self.domainname.is_empty() {
            return Err(Error::invalid("domainname", "cannot be set without a private UTS namespace"));
        }
        Ok(())
    }

    fn check_mounts(&self) -> Result<()> {
        for mount in &self.mounts {
            if mount.destination.is_empty() {
                return Err(Error::invalid("mounts", "a destination is empty"));
            }
            if [&mount.destination, &mount.source, &mount.kind].iter().any(|text| text.contains('\0')) {
                return Err(Error::invalid("mounts", format!("{:?} contains NUL", mount.destination)));
            }
        }
        for path in self.linux.masked_paths.iter().chain(&self.linux.readonly_paths) {
            if !path.starts_with('/') {
                return Err(Error::invalid("linux.maskedPaths", format!("{path:?} is not absolute")));
            }
        }
        Ok(())
    }

    fn check_sysctls(&self) -> Result<()> {
        self.linux.sysctl.keys().try_for_each(|key| self.check_sysctl(key))
    }

    fn check_sysctl(&self, key: &str) -> Result<()> {
        let name = key.replace('/', ".");
        let namespaced = |kind| self.namespace(kind).is_some();
        let allowed = match name.as_str() {
            "kernel.domainname" => namespaced(NamespaceKind::Uts),
            "kernel.hostname" => {
                return Err(Error::invalid("linux.sysctl", "kernel.hostname conflicts with hostname; use that"));
            }
            "kernel.msgmax"
            | "kernel.msgmnb"
            | "kernel.msgmni"
            | "kernel.sem"
            | "kernel.shmall"
            | "kernel.shmmax"
            | "kernel.shmmni"
            | "kernel.shm_rmid_forced" => namespaced(NamespaceKind::Ipc),
            _ if name.starts_with("fs.mqueue.") => namespaced(NamespaceKind::Ipc),
            _ if name.starts_with("net.") => namespaced(NamespaceKind::Network),
            _ if name.starts_with("user.") => namespaced(NamespaceKind::User),
            _ => false,
        };
        if name.split('.').any(|part| part.is_empty()) || key.contains("..") {
            return Err(Error::invalid("linux.sysctl", format!("{key:?} is malformed")));
        }
        if !allowed {
            return Err(Error::invalid("linux.sysctl", format!("{key:?} is not in a separate kernel namespace")));
        }
        Ok(())
    }
}

impl Process {
    /// Parses and validates a process document, as `exec --process` and the Exec call carry it.
    pub fn parse(bytes: &[u8]) -> Result<Process> {
        let process: Process = serde_json::from_slice(bytes).map_err(|error| Error::Json {
            what: "process",
            path: PathBuf::from("process.json"),
            reason: error.to_string(),
        })?;
        process.validate()?;
        Ok(process)
    }

    /// Checks what can be checked without touching the system.
    pub fn validate(&self) -> Result<()> {
        if self.args.is_empty() || self.args[0].is_empty() {
            return Err(Error::invalid("process.args", "must not be empty"));
        }
        if !self.cwd.starts_with('/') {
            return Err(Error::invalid("process.cwd", format!("{:?} is not an absolute path", self.cwd)));
        }
        if self.args.iter().chain(&self.env).any(|text| text.contains('\0')) {
            return Err(Error::invalid("process", "an argument or variable contains NUL"));
        }
        for (index, limit) in self.rlimits.iter().enumerate() {
            if self.rlimits[..index].iter().any(|other| other.kind == limit.kind) {
                return Err(Error::invalid("process.rlimits", format!("{} is listed twice", limit.kind)));
            }
        }
        Ok(())
    }
}

impl Resources {
    /// Parses an update document.
    pub fn parse(bytes: &[u8]) -> Result<Resources> {
        serde_json::from_slice(bytes).map_err(|error| Error::Json {
            what: "resources",
            path: PathBuf::from("resources.json"),
            reason: error.to_string(),
        })
    }
}

/// Reads a file of bounded size.
pub(crate) fn read_bounded(path: &Path) -> Result<Vec<u8>> {
    use std::io::Read;
    let file = std::fs::File::open(path).map_err(|source| Error::file("open", path, source))?;
    // One byte more than it has: so its end is seen without another buffer.
    let size = file.metadata().map_or(0, |metadata| metadata.len().min(MAX_CONFIG));
    let mut bytes = Vec::with_capacity(size as usize + 64);
    file.take(MAX_CONFIG + 1).read_to_end(&mut bytes).map_err(|source| Error::file("read", path, source))?;
    if bytes.len() as u64 > MAX_CONFIG {
        return Err(Error::file("read", path, std::io::Error::from_raw_os_error(libc::EFBIG)));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(json: &str) -> String {
        Spec::parse(json.as_bytes()).expect_err("it is refused").to_string()
    }

    #[test]
    fn configurations_that_cannot_be_are_refused_with_the_member_that_is_wrong() {
        for (json, words) in [
            ("{", "EOF"),
            // As runc has it, no version is any version.
            ("{}", "root"),
            (r#"{"ociVersion": "2.0.0"}"#, "ociVersion"),
            (r#"{"ociVersion": "1.0.2"}"#, "root"),
            (r#"{"ociVersion": "1.0.2", "root": {"path": "r"}}"#, "mount namespace"),
            (r#"{"ociVersion": "1.0.2", "root": {"path": "r"}, "linux": {"namespaces": [{"type": "x"}]}}"#, "\"x\""),
            (
                r#"{"ociVersion": "1.0.2", "root": {"path": "r"}, "linux": {"namespaces": [{"type": "mount"}, {"type": "mount"}]}}"#,
                "twice",
            ),
            (
                r#"{"ociVersion": "1.0.2", "root": {"path": "r"}, "hostname": "h", "linux": {"namespaces": [{"type": "mount"}]}}"#,
                "UTS",
            ),
            (r#"{"ociVersion": "1.0.2", "root": {"path": "r"}, "process": {"args": [], "cwd": "/"}}"#, "process.args"),
            (
                r#"{"ociVersion": "1.0.2", "root": {"path": "r"}, "process": {"args": ["x"], "cwd": "rel"}}"#,
                "process.cwd",
            ),
            (
                r#"{"ociVersion": "1.0.2", "root": {"path": "r"}, "linux": {"namespaces": [{"type": "mount"}], "sysctl": {"net.x": "1"}}}"#,
                "net.x",
            ),
        ] {
            let text = refusal(json);
            assert!(text.contains(words), "{words:?} in {text:?}");
        }
    }

    #[test]
    fn unknown_members_are_passed_over() {
        let json = r#"{"ociVersion": "1.9.0", "root": {"path": "r"}, "new": 1,
            "linux": {"namespaces": [{"type": "mount", "novel": []}]}}"#;
        assert!(Spec::parse(json.as_bytes()).is_ok());
    }
}
