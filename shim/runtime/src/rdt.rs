//! Intel RDT: the container's group in the resctrl file system (kernel: Documentation/filesystems/resctrl.rst;
//! runtime-spec, "Intel RDT").

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::plan::c_path;
use crate::spec::IntelRdt;
use crate::sys::{self, Fd};

const PLACE: &str = "/sys/fs/resctrl";
const RESCTRL_MAGIC: i64 = 0x0765_5821;

/// A container's group, as persisted before it is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Group {
    /// Where resctrl is mounted.
    root: PathBuf,
    /// The group's directory.
    path: PathBuf,
    /// Whether it is the container's alone, and goes with it.
    own: bool,
    /// The monitoring group that is the container's alone.
    monitoring: Option<PathBuf>,
}

impl Group {
    /// Works out where a container's group will be. Touches nothing.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where the system has no resctrl, or not what a schema is for.
    pub(crate) fn locate(config: &IntelRdt, id: &str) -> Result<Group> {
        Group::at(&root()?, config, id)
    }

    fn at(root: &Path, config: &IntelRdt, id: &str) -> Result<Group> {
        let class = config.clos_id.as_str();
        if matches!(class, "." | "..") || (class.len() > 1 && class.contains('/')) {
            return Err(Error::invalid("linux.intelRdt.closID", format!("{class:?} is no name of a group")));
        }
        for (schema, resource, what) in [
            (&config.l3_cache_schema, "L3", "intelRdt.l3CacheSchema is specified, but Intel RDT/CAT is not enabled"),
            (&config.mem_bw_schema, "MB", "intelRdt.memBwSchema is specified, but Intel RDT/MBA is not enabled"),
        ] {
            if !schema.is_empty() && !root.join("info").join(resource).exists() {
                return Err(Error::Unsupported { what: what.to_owned() });
            }
        }
        let path = match class {
            "" => root.join(id),
            "/" => root.to_owned(),
            class => root.join(class),
        };
        let named_only = !class.is_empty() && schemata(config).is_empty();
        if named_only && !path.exists() {
            let reason = format!("{class:?} must be there already where no schema is given");
            return Err(Error::invalid("linux.intelRdt.closID", reason));
        }
        let own = class.is_empty() && !path.exists();
        let monitoring = config.enable_monitoring.then(|| path.join("mon_groups").join(id));
        Ok(Group { root: root.to_owned(), path, own, monitoring })
    }

    /// Makes the group, sets its schemata and puts a process into it.
    pub(crate) fn make(&self, config: &IntelRdt, pid: i32) -> Result<()> {
        self.make_directory(&self.path)?;
        if let Some(monitoring) = &self.monitoring {
            self.make_directory(monitoring)?;
        }
        self.set(config)?;
        self.add(pid)
    }

    /// Writes the schemata that are given.
    pub(crate) fn set(&self, config: &IntelRdt) -> Result<()> {
        let lines = schemata(config);
        if lines.is_empty() { Ok(()) } else { self.write(&self.path.join("schemata"), &lines) }
    }

    /// Puts a process into the group; what it starts is born there.
    pub(crate) fn add(&self, pid: i32) -> Result<()> {
        let groups = [Some(&self.path), self.monitoring.as_ref()];
        groups.into_iter().flatten().try_for_each(|group| self.write(&group.join("tasks"), &pid.to_string()))
    }

    /// The files a process writes `0` into to join.
    pub(crate) fn join_files(&self) -> Result<Vec<Fd>> {
        let groups = [Some(&self.path), self.monitoring.as_ref()].into_iter().flatten();
        let open = |path: PathBuf| {
            let failed = |errno| Error::file("open", &path, std::io::Error::from_raw_os_error(errno));
            sys::openat(libc::AT_FDCWD, &c_path(&path)?, libc::O_WRONLY).map_err(failed)
        };
        groups.map(|group| open(group.join("tasks"))).collect()
    }

    /// Removes what is the container's alone; that it is gone is success.
    pub(crate) fn remove(&self) -> Result<()> {
        // A monitoring group goes with the group it is in.
        let gone = if self.own { Some(&self.path) } else { self.monitoring.as_ref() };
        match gone.map(std::fs::remove_dir) {
            Some(Err(source)) if source.kind() != ErrorKind::NotFound => {
                Err(Error::file("remove", gone.unwrap_or(&self.path), source))
            }
            _ => Ok(()),
        }
    }

    /// What the group has, and was seen to use.
    ///
    /// # Errors
    /// [`Error::File`] where a file of the group cannot be read.
    pub(crate) fn figures(&self) -> Result<RdtFigures> {
        let read = |path: PathBuf| std::fs::read_to_string(&path).map_err(|source| Error::file("read", &path, source));
        let line = |schemata: &str, resource: &str| {
            let found = schemata.lines().map(str::trim).rfind(|line| line.starts_with(resource));
            found.unwrap_or_default().to_owned()
        };
        let (everybody, own) = (read(self.root.join("schemata"))?, read(self.path.join("schemata"))?);
        let mut figures = RdtFigures { schemata: own.lines().map(str::to_owned).collect(), ..RdtFigures::default() };
        let info = |resource: &str| Some(self.root.join("info").join(resource)).filter(|path| path.exists());
        if let Some(info) = info("L3") {
            figures.l3_cache_info = Some(L3CacheInfo {
                cbm_mask: read(info.join("cbm_mask"))?.trim().to_owned(),
                min_cbm_bits: number(&info.join("min_cbm_bits"))?,
                num_closids: number(&info.join("num_closids"))?,
            });
            (figures.l3_cache_schema_root, figures.l3_cache_schema) = (line(&everybody, "L3"), line(&own, "L3"));
        }
        if let Some(info) = info("MB") {
            figures.mem_bw_info = Some(MemBwInfo {
                bandwidth_gran: number(&info.join("bandwidth_gran"))?,
                delay_linear: number(&info.join("delay_linear"))?,
                min_bandwidth: number(&info.join("min_bandwidth"))?,
                num_closids: number(&info.join("num_closids"))?,
            });
            (figures.mem_bw_schema_root, figures.mem_bw_schema) = (line(&everybody, "MB"), line(&own, "MB"));
        }
        if let Some(info) = info("L3_MON") {
            self.monitored(&read(info.join("mon_features"))?, &mut figures)?;
        }
        Ok(figures)
    }

    /// What was seen, one directory a cache domain.
    fn monitored(&self, features: &str, figures: &mut RdtFigures) -> Result<()> {
        let has = |name: &str| features.lines().any(|feature| feature.trim() == name);
        let data = self.monitoring.as_ref().unwrap_or(&self.path).join("mon_data");
        let listed = std::fs::read_dir(&data).map_err(|source| Error::file("list", &data, source))?;
        let mut domains: Vec<PathBuf> =
            listed.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
        domains.sort();
        let of = |domain: &Path, name: &str| if has(name) { number(&domain.join(name)) } else { Ok(0) };
        for domain in domains {
            if has("mbm_total_bytes") || has("mbm_local_bytes") {
                figures.mbm_stats.push(MbmStats {
                    mbm_total_bytes: of(&domain, "mbm_total_bytes")?,
                    mbm_local_bytes: of(&domain, "mbm_local_bytes")?,
                });
            }
            if has("llc_occupancy") {
                figures.cmt_stats.push(CmtStats { llc_occupancy: of(&domain, "llc_occupancy")? });
            }
        }
        Ok(())
    }

    fn make_directory(&self, path: &Path) -> Result<()> {
        match std::fs::create_dir(path) {
            Err(source) if source.kind() != ErrorKind::AlreadyExists => Err(self.explain("make", path, source)),
            _ => Ok(()),
        }
    }

    fn write(&self, path: &Path, value: &str) -> Result<()> {
        std::fs::write(path, value).map_err(|source| self.explain("write", path, source))
    }

    /// The kernel says in a file what was wrong.
    fn explain(&self, action: &'static str, path: &Path, source: std::io::Error) -> Error {
        let status = std::fs::read_to_string(self.root.join("info/last_cmd_status")).unwrap_or_default();
        match status.trim() {
            "" | "ok" => Error::file(action, path, source),
            status => {
                let said = std::io::Error::new(source.kind(), format!("{source} (last_cmd_status: {status})"));
                Error::file(action, path, said)
            }
        }
    }
}

/// What a group has and was seen to use, under the names of runc's documents.
#[derive(Clone, Debug, Default, Serialize)]
#[allow(missing_docs)]
pub struct RdtFigures {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub l3_cache_info: Option<L3CacheInfo>,
    /// The schemata of the system, and those of the group.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub l3_cache_schema_root: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub l3_cache_schema: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mem_bw_info: Option<MemBwInfo>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mem_bw_schema_root: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mem_bw_schema: String,
    /// All lines of the group.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub schemata: Vec<String>,
    /// A cache domain each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mbm_stats: Vec<MbmStats>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cmt_stats: Vec<CmtStats>,
}

/// `info/L3`.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct L3CacheInfo {
    pub cbm_mask: String,
    pub min_cbm_bits: u64,
    pub num_closids: u64,
}

/// `info/MB`.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct MemBwInfo {
    pub bandwidth_gran: u64,
    pub delay_linear: u64,
    pub min_bandwidth: u64,
    pub num_closids: u64,
}

/// Memory bandwidth that was seen, bytes.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct MbmStats {
    pub mbm_total_bytes: u64,
    pub mbm_local_bytes: u64,
}

/// Cache that was seen occupied, bytes.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct CmtStats {
    pub llc_occupancy: u64,
}

/// The number in a file; 0 where the hardware has none to tell (`Unavailable`).
fn number(path: &Path) -> Result<u64> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::file("read", path, source))?;
    Ok(text.trim().parse().unwrap_or(0))
}

/// The lines to be written.
fn schemata(config: &IntelRdt) -> String {
    let all = [&config.l3_cache_schema, &config.mem_bw_schema].into_iter().chain(&config.schemata);
    all.filter(|line| !line.is_empty()).map(|line| format!("{line}\n")).collect()
}

/// Where resctrl is mounted: where it should be, else where the table of mounts says.
fn root() -> Result<PathBuf> {
    let disabled = || Error::Unsupported {
        what: "intelRdt is specified in the configuration, but Intel RDT is not enabled".to_owned(),
    };
    let place = sys::openat(libc::AT_FDCWD, &c_path(Path::new(PLACE))?, libc::O_PATH).map_err(|_| disabled())?;
    if sys::fs_type(place.0) == Ok(RESCTRL_MAGIC) {
        return Ok(PathBuf::from(PLACE));
    }
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table.lines().find_map(mount_point).ok_or_else(disabled)
}

/// The mount point of a line of `/proc/self/mountinfo` that shows resctrl.
fn mount_point(line: &str) -> Option<PathBuf> {
    let (before, after) = line.split_once(" - ")?;
    (after.split(' ').next() == Some("resctrl")).then(|| before.split(' ').nth(4).map(PathBuf::from)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory that looks like resctrl with cache allocation, and without bandwidth allocation.
    fn faked() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("info/L3")).unwrap();
        std::fs::write(root.path().join("info/last_cmd_status"), "ok\n").unwrap();
        root
    }

    fn wanted(class: &str, l3: &str) -> IntelRdt {
        IntelRdt { clos_id: class.into(), l3_cache_schema: l3.into(), ..IntelRdt::default() }
    }

    fn read(path: PathBuf) -> String {
        std::fs::read_to_string(path).unwrap()
    }

    #[test]
    fn a_group_of_the_containers_own_is_made_limited_joined_and_removed() {
        let root = faked();
        let config = IntelRdt { schemata: vec!["L2:0=f".into()], ..wanted("", "L3:0=7f0;1=1f") };
        let group = Group::at(root.path(), &config, "box").unwrap();
        assert!(!root.path().join("box").exists(), "only located");
        group.make(&config, 42).unwrap();
        assert_eq!(read(root.path().join("box/schemata")), "L3:0=7f0;1=1f\nL2:0=f\n");
        assert_eq!(read(root.path().join("box/tasks")), "42");
        // The kernel's directory goes with its files; ours does not.
        for file in ["schemata", "tasks"] {
            std::fs::remove_file(root.path().join("box").join(file)).unwrap();
        }
        group.remove().unwrap();
        assert!(!root.path().join("box").exists());
        group.remove().unwrap();
    }

    #[test]
    fn a_shared_group_stays_and_only_the_monitoring_in_it_goes() {
        let root = faked();
        std::fs::create_dir_all(root.path().join("gold/mon_groups")).unwrap();
        let config = IntelRdt { enable_monitoring: true, ..wanted("gold", "") };
        let group = Group::at(root.path(), &config, "box").unwrap();
        group.make(&config, 7).unwrap();
        let monitoring = root.path().join("gold/mon_groups/box");
        assert_eq!((read(root.path().join("gold/tasks")), read(monitoring.join("tasks"))), ("7".into(), "7".into()));
        assert!(!root.path().join("gold/schemata").exists(), "nothing is asked");
        std::fs::remove_file(monitoring.join("tasks")).unwrap();
        group.remove().unwrap();
        assert!(root.path().join("gold").exists() && !monitoring.exists());
    }

    #[test]
    fn what_a_group_has_and_uses_is_told_under_runcs_names() {
        let root = faked();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let info = [("cbm_mask", "7ff\n"), ("min_cbm_bits", "2\n"), ("num_closids", "16\n")];
        info.iter().for_each(|(name, text)| write(&format!("info/L3/{name}"), text));
        write("info/L3_MON/mon_features", "llc_occupancy\nmbm_local_bytes\n");
        write("schemata", "    MB:0=100\n    L3:0=7ff;1=7ff\n");
        for (domain, occupied) in [("mon_L3_00", "4096\n"), ("mon_L3_01", "Unavailable\n")] {
            write(&format!("box/mon_groups/box/mon_data/{domain}/llc_occupancy"), occupied);
            write(&format!("box/mon_groups/box/mon_data/{domain}/mbm_local_bytes"), "77\n");
        }
        let config = IntelRdt { enable_monitoring: true, ..wanted("", "L3:0=7f0;1=1f") };
        let group = Group::at(root.path(), &config, "box").unwrap();
        group.make(&config, 42).unwrap();
        let told = serde_json::to_value(group.figures().unwrap()).unwrap();
        let wanted = serde_json::json!({
            "l3_cache_info": {"cbm_mask": "7ff", "min_cbm_bits": 2, "num_closids": 16},
            "l3_cache_schema_root": "L3:0=7ff;1=7ff",
            "l3_cache_schema": "L3:0=7f0;1=1f",
            "schemata": ["L3:0=7f0;1=1f"],
            "mbm_stats": [{"mbm_total_bytes": 0, "mbm_local_bytes": 77}, {"mbm_total_bytes": 0, "mbm_local_bytes": 77}],
            "cmt_stats": [{"llc_occupancy": 4096}, {"llc_occupancy": 0}],
        });
        assert_eq!(told, wanted);
    }

    #[test]
    fn what_the_system_lacks_or_leads_elsewhere_is_refused_before_anything_is_made() {
        let root = faked();
        let refused = |config: &IntelRdt| Group::at(root.path(), config, "box").unwrap_err().to_string();
        assert!(refused(&wanted("absent", "")).contains("must be there already"));
        for class in [".", "..", "a/b", "../x"] {
            assert!(refused(&wanted(class, "L3:0=f")).contains("no name of a group"), "{class}");
        }
        let bandwidth = IntelRdt { mem_bw_schema: "MB:0=20".into(), ..IntelRdt::default() };
        assert!(refused(&bandwidth).contains("RDT/MBA is not enabled"));
        assert_eq!(Group::at(root.path(), &wanted("/", "L3:0=f"), "box").unwrap().path, root.path());
    }

    #[test]
    fn an_error_has_the_kernels_words() {
        let root = faked();
        std::fs::write(root.path().join("info/last_cmd_status"), "Mask out of range\n").unwrap();
        let config = wanted("", "L3:0=fffff");
        let group = Group::at(&root.path().join("gone"), &IntelRdt::default(), "box").unwrap();
        assert!(group.make(&config, 1).is_err());
        let group = Group { path: root.path().join("no/such"), ..Group::at(root.path(), &config, "box").unwrap() };
        assert!(group.make(&config, 1).unwrap_err().to_string().contains("Mask out of range"));
    }

    #[test]
    fn resctrl_is_found_where_it_is_mounted() {
        let line = "50 23 0:30 / /mnt/resctrl rw,relatime shared:9 - resctrl resctrl rw";
        assert_eq!(mount_point(line), Some(PathBuf::from("/mnt/resctrl")));
        assert_eq!(mount_point("50 23 0:30 / /proc rw - proc proc rw"), None);
    }
}
