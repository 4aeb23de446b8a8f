//! Making an OCI runtime configuration (runtime-spec, config.md) from an image's configuration and what a caller asks.
//!
//! Pure: it reads no file and asks no kernel. Names of users are resolved by the caller, who can look into the image.
#![forbid(unsafe_code)]

mod error;
mod limits;
mod place;
mod seccomp;
mod security;

use std::path::{Path, PathBuf};

use gantry_types::Id;
use oci_spec::image::Config as ImageConfig;
use oci_spec::runtime::{
    Capability, LinuxCapabilities, LinuxCpuBuilder, LinuxDeviceCgroup, LinuxMemoryBuilder, LinuxNamespace,
    LinuxNamespaceBuilder, LinuxNamespaceType, LinuxPidsBuilder, LinuxResources, Mount, MountBuilder, Process, Spec,
    User, UserBuilder,
};

pub use error::SpecError;
pub use limits::Limits;
pub use oci_spec;
pub use place::{IdRange, MappedMount};
pub use seccomp::default_seccomp;
pub use security::{all_capabilities, default_capabilities};

/// What every container starts from: the same defaults that containerd's clients use.
const DEFAULT: &str = include_str!("default.json");
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where a container's network comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Network {
    /// A new, empty network namespace.
    #[default]
    None,
    /// The host's.
    Host,
    /// The namespace bound at this path.
    Path(PathBuf),
}

/// Builds one container's configuration.
#[derive(Clone, Debug)]
pub struct SpecBuilder {
    spec: Spec,
    args: Vec<String>,
}

impl SpecBuilder {
    /// The defaults, with the cgroup `/NAMESPACE/ID`.
    ///
    /// # Errors
    /// Never in practice: the built-in defaults are tested.
    pub fn new(namespace: &Id, id: &str) -> Result<SpecBuilder, SpecError> {
        let spec = serde_json::from_str(DEFAULT).map_err(|source| SpecError::Defaults { source })?;
        let mut builder = SpecBuilder { spec, args: Vec::new() };
        builder.linux().set_cgroups_path(Some(Path::new("/").join(namespace.as_str()).join(id)));
        builder.process().set_env(Some(vec![DEFAULT_PATH.to_owned()]));
        Ok(builder)
    }

    /// Takes environment, working directory and command from an image's configuration. `args` replace the image's
    /// `Cmd` and are appended to its `Entrypoint`; with none the image's own `Cmd` is used.
    #[must_use]
    pub fn image(mut self, config: &ImageConfig, args: &[String]) -> SpecBuilder {
        for pair in config.env().iter().flatten() {
            self = self.env(pair);
        }
        if let Some(cwd) = config.working_dir().as_ref().filter(|dir| !dir.is_empty()) {
            self = self.cwd(cwd);
        }
        let tail = if args.is_empty() { config.cmd().clone().unwrap_or_default() } else { args.to_vec() };
        self.args = config.entrypoint().clone().unwrap_or_default();
        self.args.extend(tail);
        self
    }

    /// Sets the whole command line.
    #[must_use]
    pub fn args(mut self, args: &[String]) -> SpecBuilder {
        self.args = args.to_vec();
        self
    }

    /// Sets one environment variable, `NAME=VALUE`; a later one replaces an earlier of the same name.
    #[must_use]
    pub fn env(mut self, pair: &str) -> SpecBuilder {
        let name = pair.split('=').next().unwrap_or(pair).to_owned();
        let mut env = self.process().env().clone().unwrap_or_default();
        match env.iter_mut().find(|have| have.split('=').next() == Some(&name)) {
            Some(have) => pair.clone_into(have),
            None => env.push(pair.to_owned()),
        }
        self.process().set_env(Some(env));
        self
    }

    /// Sets the working directory.
    #[must_use]
    pub fn cwd(mut self, dir: &str) -> SpecBuilder {
        self.process().set_cwd(PathBuf::from(dir));
        self
    }

    /// Gives the process a terminal, and `TERM`.
    #[must_use]
    pub fn terminal(mut self, terminal: bool) -> SpecBuilder {
        self.process().set_terminal(Some(terminal));
        if terminal { self.env("TERM=xterm") } else { self }
    }

    /// Gives the process a terminal and nothing else.
    #[must_use]
    pub fn process_terminal(mut self, terminal: bool) -> SpecBuilder {
        self.process().set_terminal(terminal.then_some(true));
        self
    }

    /// Runs the process as these numeric ids.
    #[must_use]
    pub fn user(mut self, uid: u32, gid: u32, additional: &[u32]) -> SpecBuilder {
        let user = UserBuilder::default().uid(uid).gid(gid).additional_gids(additional.to_vec()).build();
        self.process().set_user(user.unwrap_or_else(|_| User::default()));
        self
    }

    /// Sets the host name.
    #[must_use]
    pub fn hostname(mut self, name: &str) -> SpecBuilder {
        self.spec.set_hostname(Some(name.to_owned()));
        self
    }

    /// Adds a mount; one at the same destination is replaced.
    ///
    /// # Errors
    /// [`SpecError::Destination`] when the destination is not absolute.
    pub fn mount(mut self, mount: &gantry_types::Mount) -> Result<SpecBuilder, SpecError> {
        let destination = PathBuf::from(&mount.target);
        if !destination.is_absolute() {
            return Err(SpecError::Destination { destination });
        }
        let added = MountBuilder::default()
            .destination(destination.clone())
            .typ(mount.kind.clone())
            .source(PathBuf::from(&mount.source))
            .options(mount.options.clone())
            .build()
            .map_err(|source| SpecError::Build { what: "mount", source })?;
        let mut mounts: Vec<Mount> = self.spec.mounts().clone().unwrap_or_default();
        mounts.retain(|have| have.destination() != &destination);
        mounts.push(added);
        self.spec.set_mounts(Some(mounts));
        Ok(self)
    }

    /// Chooses the network.
    ///
    /// # Errors
    /// [`SpecError::Build`] when the namespace cannot be described.
    pub fn network(mut self, network: &Network) -> Result<SpecBuilder, SpecError> {
        let mut namespaces: Vec<LinuxNamespace> = self.linux().namespaces().clone().unwrap_or_default();
        namespaces.retain(|ns| ns.typ() != LinuxNamespaceType::Network);
        let base = LinuxNamespaceBuilder::default().typ(LinuxNamespaceType::Network);
        let added = match network {
            Network::None => Some(base.build()),
            Network::Host => None,
            Network::Path(path) => Some(base.path(path.clone()).build()),
        };
        if let Some(namespace) = added {
            namespaces.push(namespace.map_err(|source| SpecError::Build { what: "network namespace", source })?);
        }
        self.linux().set_namespaces(Some(namespaces));
        Ok(self)
    }

    /// Limits memory, in bytes.
    ///
    /// # Errors
    /// [`SpecError::Build`] when the limit cannot be described.
    pub fn memory_limit(mut self, bytes: i64) -> Result<SpecBuilder, SpecError> {
        let memory = LinuxMemoryBuilder::default().limit(bytes).build();
        let memory = memory.map_err(|source| SpecError::Build { what: "memory limit", source })?;
        self.resources(|resources| {
            resources.set_memory(Some(memory));
        });
        Ok(self)
    }

    /// Limits CPU time to `quota` microseconds in each `period` of microseconds.
    ///
    /// # Errors
    /// [`SpecError::Build`] when the limit cannot be described.
    pub fn cpu_quota(mut self, quota: i64, period: u64) -> Result<SpecBuilder, SpecError> {
        let cpu = LinuxCpuBuilder::default().quota(quota).period(period).build();
        let cpu = cpu.map_err(|source| SpecError::Build { what: "CPU limit", source })?;
        self.resources(|resources| {
            resources.set_cpu(Some(cpu));
        });
        Ok(self)
    }

    /// Limits the number of processes.
    ///
    /// # Errors
    /// [`SpecError::Build`] when the limit cannot be described.
    pub fn pids_limit(mut self, count: i64) -> Result<SpecBuilder, SpecError> {
        let pids = LinuxPidsBuilder::default().limit(count).build();
        let pids = pids.map_err(|source| SpecError::Build { what: "process limit", source })?;
        self.resources(|resources| {
            resources.set_pids(Some(pids));
        });
        Ok(self)
    }

    /// Makes the root file system read-only.
    #[must_use]
    pub fn readonly_root(mut self) -> SpecBuilder {
        if let Some(root) = self.spec.root_mut() {
            root.set_readonly(Some(true));
        }
        self
    }

    /// Takes the usual fences down: every capability this host's kernel may know, all devices, nothing masked,
    /// new privileges allowed.
    #[must_use]
    pub fn privileged(mut self) -> SpecBuilder {
        let all: std::collections::HashSet<Capability> = ALL_CAPABILITIES.iter().copied().collect();
        let mut capabilities = LinuxCapabilities::default();
        capabilities.set_bounding(Some(all.clone())).set_effective(Some(all.clone())).set_permitted(Some(all));
        capabilities.set_inheritable(None).set_ambient(None);
        self.process().set_capabilities(Some(capabilities));
        self.process().set_no_new_privileges(Some(false));
        self.linux().set_masked_paths(Some(Vec::new())).set_readonly_paths(Some(Vec::new()));
        let mut rule = LinuxDeviceCgroup::default();
        rule.set_allow(true).set_access(Some("rwm".to_owned()));
        self.resources(|resources| {
            resources.set_devices(Some(vec![rule]));
        });
        self
    }

    /// The configuration.
    ///
    /// # Errors
    /// [`SpecError::NoCommand`] when neither image nor caller names a program.
    pub fn build(mut self) -> Result<Spec, SpecError> {
        if self.args.is_empty() {
            return Err(SpecError::NoCommand);
        }
        let args = std::mem::take(&mut self.args);
        self.process().set_args(Some(args));
        Ok(self.spec)
    }

    fn process(&mut self) -> &mut Process {
        if self.spec.process().is_none() {
            self.spec.set_process(Some(Process::default()));
        }
        match self.spec.process_mut() {
            Some(process) => process,
            None => unreachable!("the process was set just above"),
        }
    }

    fn linux(&mut self) -> &mut oci_spec::runtime::Linux {
        if self.spec.linux().is_none() {
            self.spec.set_linux(Some(oci_spec::runtime::Linux::default()));
        }
        match self.spec.linux_mut() {
            Some(linux) => linux,
            None => unreachable!("the Linux part was set just above"),
        }
    }

    fn resources(&mut self, change: impl FnOnce(&mut LinuxResources)) {
        let mut resources = self.linux().resources().clone().unwrap_or_default();
        change(&mut resources);
        self.linux().set_resources(Some(resources));
    }
}

const ALL_CAPABILITIES: [Capability; 41] = [
    Capability::AuditControl,
    Capability::AuditRead,
    Capability::AuditWrite,
    Capability::BlockSuspend,
    Capability::Bpf,
    Capability::CheckpointRestore,
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::IpcLock,
    Capability::IpcOwner,
    Capability::Kill,
    Capability::Lease,
    Capability::LinuxImmutable,
    Capability::MacAdmin,
    Capability::MacOverride,
    Capability::Mknod,
    Capability::NetAdmin,
    Capability::NetBindService,
    Capability::NetBroadcast,
    Capability::NetRaw,
    Capability::Perfmon,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysChroot,
    Capability::SysModule,
    Capability::SysNice,
    Capability::SysPacct,
    Capability::SysPtrace,
    Capability::SysRawio,
    Capability::SysResource,
    Capability::SysTime,
    Capability::SysTtyConfig,
    Capability::Syslog,
    Capability::WakeAlarm,
];

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn builder() -> SpecBuilder {
        SpecBuilder::new(&"default".parse().unwrap(), "c1").unwrap()
    }

    fn config(json: &str) -> ImageConfig {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn an_image_gives_its_command_and_the_callers_arguments_replace_only_its_cmd() {
        let image = config(r#"{"Entrypoint":["/init"],"Cmd":["a","b"],"Env":["PATH=/bin","X=1"],"WorkingDir":"/w"}"#);
        let spec = builder().image(&image, &[]).build().unwrap();
        assert_eq!(spec.process().as_ref().unwrap().args().as_deref().unwrap(), ["/init", "a", "b"]);
        let spec = builder().image(&image, &["z".into()]).build().unwrap();
        let process = spec.process().as_ref().unwrap();
        assert_eq!(process.args().as_deref().unwrap(), ["/init", "z"]);
        assert_eq!(process.env().as_deref().unwrap(), ["PATH=/bin", "X=1"]);
        assert_eq!(process.cwd(), Path::new("/w"));
    }

    #[test]
    fn a_container_without_a_command_is_refused() {
        assert!(matches!(builder().image(&ImageConfig::default(), &[]).build(), Err(SpecError::NoCommand)));
    }

    #[test]
    fn the_host_network_means_no_network_namespace() {
        let spec = builder().args(&["x".into()]).network(&Network::Host).unwrap().build().unwrap();
        let namespaces = spec.linux().as_ref().unwrap().namespaces().clone().unwrap();
        assert!(namespaces.iter().all(|ns| ns.typ() != LinuxNamespaceType::Network));
        assert_eq!(namespaces.len(), 4);
    }

    #[test]
    fn a_relative_mount_destination_is_refused_and_the_same_destination_is_replaced() {
        let mount = |target: &str| gantry_types::Mount {
            kind: "bind".into(),
            source: "/src".into(),
            target: target.into(),
            options: vec!["rbind".into()],
        };
        assert!(matches!(builder().mount(&mount("run")), Err(SpecError::Destination { .. })));
        let before = builder().spec.mounts().as_ref().unwrap().len();
        let after = builder().mount(&mount("/run")).unwrap();
        let mounts = after.spec.mounts().as_ref().unwrap();
        assert_eq!(mounts.len(), before);
        assert_eq!(mounts.last().unwrap().source().as_deref().unwrap(), Path::new("/src"));
    }

    proptest! {
        #[test]
        fn the_last_value_of_each_variable_wins(pairs in proptest::collection::vec(("[A-C]", "[a-z]{0,3}"), 0..12)) {
            let mut built = builder();
            let mut model = std::collections::BTreeMap::new();
            for (name, value) in &pairs {
                built = built.env(&format!("{name}={value}"));
                model.insert(name.clone(), format!("{name}={value}"));
            }
            let spec = built.args(&["x".into()]).build().unwrap();
            let env = spec.process().as_ref().unwrap().env().clone().unwrap();
            let mut env: Vec<_> = env.into_iter().filter(|p| !p.starts_with("PATH=")).collect();
            env.sort();
            prop_assert_eq!(env, model.into_values().collect::<Vec<_>>());
        }
    }
}
