//! A container's cgroup: where it is, its limits, who is in it, what it has used, its end. v1 (with the v2 tree of a
//! hybrid system beside it) and v2; made in the file system or asked of systemd.

mod dbus;
pub(crate) mod devices;
mod file;
mod holder;
mod marshal;
mod systemd;
mod v1;
mod v2;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

pub(crate) use holder::Holder;

use crate::container::{CgroupDriver, OomWatch};
use crate::error::{Error, Result};
use crate::spec::Resources;
use crate::stats::Stats;
use crate::sys::{self, Fd};

/// Where cgroups are mounted.
const ROOT: &str = "/sys/fs/cgroup";
const CGROUP_V1_MAGIC: i64 = 0x0027_e0eb;
const CGROUP_V2_MAGIC: i64 = 0x6367_7270;

/// One v1 hierarchy the container has a directory in.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Hierarchy {
    /// As in /proc/self/cgroup: `cpu,cpuacct`, `name=systemd`.
    pub(crate) controllers: String,
    /// The container's directory.
    pub(crate) path: PathBuf,
}

impl Hierarchy {
    pub(crate) fn has(&self, controller: &str) -> bool {
        self.controllers.split(',').any(|name| name == controller)
    }

    /// The directory's name below `/sys/fs/cgroup`.
    pub(crate) fn mount_name(&self) -> &str {
        self.controllers.strip_prefix("name=").unwrap_or(&self.controllers)
    }
}

/// What the file of [`Cgroup::freezer_file`] says.
pub(crate) fn says_frozen(state: &[u8], v2: bool) -> bool {
    if v2 { v2::says_frozen(state) } else { v1::says_frozen(state) }
}

/// A container's cgroup, as persisted before it is made.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Cgroup {
    /// Directories in v1 hierarchies; empty on a v2 system.
    #[serde(default)]
    pub(crate) hierarchies: Vec<Hierarchy>,
    /// The directory in the v2 tree, if there is one.
    #[serde(default)]
    pub(crate) unified: Option<PathBuf>,
    /// systemd's name for it.
    #[serde(default)]
    pub(crate) unit: Option<systemd::Unit>,
}

impl Cgroup {
    /// Works out where a container's cgroup will be. Touches nothing.
    pub(crate) fn locate(driver: CgroupDriver, cgroups_path: &str, id: &str) -> Result<Cgroup> {
        match driver {
            CgroupDriver::Cgroupfs => {
                let path = if cgroups_path.is_empty() { id } else { cgroups_path };
                Cgroup::at(&|own| Ok(join(own, path)))
            }
            CgroupDriver::Systemd => {
                let unit = systemd::Unit::parse(cgroups_path, id)?;
                let path = unit.path();
                let mut cgroup = Cgroup::at(&|_| Ok(path.clone()))?;
                cgroup.unit = Some(unit);
                Ok(cgroup)
            }
        }
    }

    /// The cgroup a process is in.
    pub(crate) fn of_process(pid: i32) -> Result<Cgroup> {
        Cgroup::from_membership(Path::new(&format!("/proc/{pid}/cgroup")), &|path| Ok(clean(path)))
    }

    fn at(place: &dyn Fn(&str) -> Result<PathBuf>) -> Result<Cgroup> {
        // A v2 cgroup with processes, such as ours, gives no controllers to those below it: beside it, as with runc.
        let unified = file::fs_type(Path::new(ROOT)) == Some(CGROUP_V2_MAGIC);
        let parent = |own: &str| own.rfind('/').map_or("/", |end| &own[..end.max(1)]).to_owned();
        let place = |own: &str| if unified { place(&parent(own)) } else { place(own) };
        Cgroup::from_membership(Path::new("/proc/self/cgroup"), &place)
    }

    /// The hierarchies as a process's `cgroup` file lists them, each with the directory that `place` makes of the
    /// process's own.
    fn from_membership(list: &Path, place: &dyn Fn(&str) -> Result<PathBuf>) -> Result<Cgroup> {
        let own = file::read(list)?;
        let root = Path::new(ROOT);
        if file::fs_type(root) == Some(CGROUP_V2_MAGIC) {
            return Ok(Cgroup { unified: Some(below(root, &place(own_path(&own, ""))?)), ..Cgroup::default() });
        }
        let mut cgroup = Cgroup::default();
        for line in own.lines() {
            let mut fields = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
            let name = if controllers.is_empty() { "unified" } else { controllers };
            let mount = root.join(name.strip_prefix("name=").unwrap_or(name));
            match file::fs_type(&mount) {
                Some(CGROUP_V2_MAGIC) if controllers.is_empty() => {
                    cgroup.unified = Some(below(&mount, &place(path)?));
                }
                Some(CGROUP_V1_MAGIC) => cgroup
                    .hierarchies
                    .push(Hierarchy { controllers: controllers.to_owned(), path: below(&mount, &place(path)?) }),
                _ => {}
            }
        }
        if cgroup.hierarchies.is_empty() && cgroup.unified.is_none() {
            return Err(Error::Unsupported { what: format!("no cgroup file system is mounted below {ROOT}") });
        }
        Ok(cgroup)
    }

    /// Whether limits go to the v2 tree.
    pub(crate) fn is_v2(&self) -> bool {
        self.hierarchies.is_empty()
    }

    /// Has systemd make the unit, and makes the directory of the v2 tree, in which a process is made. What comes back
    /// keeps the unit alive until the container's process is in it.
    pub(crate) fn create_unified(&self, resources: &Resources) -> Result<Option<Holder>> {
        let holder = match &self.unit {
            Some(unit) => {
                let holder = Holder::new()?;
                unit.start(holder.pid(), self.is_v2(), resources)?;
                Some(holder)
            }
            None => None,
        };
        match &self.unified {
            Some(path) if self.is_v2() => v2::make(path)?,
            Some(path) => file::make_directory(path)?,
            None => {}
        }
        Ok(holder)
    }

    /// Makes the directories of v1 hierarchies and sets the limits. What was made by a failure stays for
    /// [`Cgroup::remove`].
    pub(crate) fn create(&self, resources: &Resources) -> Result<()> {
        self.hierarchies.iter().try_for_each(v1::make)?;
        self.limit(resources, true)
    }

    fn limit(&self, resources: &Resources, new: bool) -> Result<()> {
        match &self.unified {
            Some(path) if self.is_v2() => v2::limit(path, resources, new),
            _ => v1::limit(&self.hierarchies, resources, new),
        }
    }

    /// Changes limits.
    pub(crate) fn update(&self, resources: &Resources) -> Result<()> {
        if let Some(unit) = &self.unit {
            unit.update(self.is_v2(), resources)?;
        }
        self.limit(resources, false)
    }

    /// A cgroup below this one that holds one executed process and what it starts: in the v2 tree if that is all there
    /// is, else in one v1 hierarchy.
    pub(crate) fn own_child(&self, name: &str) -> Result<Cgroup> {
        if self.is_v2() {
            return Ok(Cgroup { unified: self.unified.as_ref().map(|path| path.join(name)), ..Cgroup::default() });
        }
        let found = ["pids", "freezer", "cpuacct", "name=systemd"]
            .iter()
            .find_map(|controller| self.hierarchies.iter().find(|hierarchy| hierarchy.has(controller)));
        let hierarchy = found.ok_or(Error::NoController { controller: "pids" })?;
        let child = Hierarchy { path: hierarchy.path.join(name), ..hierarchy.clone() };
        Ok(Cgroup { hierarchies: vec![child], ..Cgroup::default() })
    }

    /// Makes [`Cgroup::own_child`]: this cgroup with that child in place of the directory above it.
    pub(crate) fn make_child(&self, name: &str) -> Result<Cgroup> {
        let child = self.own_child(name)?;
        child.every_directory().try_for_each(file::make_directory)?;
        let mut whole = self.clone();
        if self.is_v2() {
            return Ok(child);
        }
        for made in child.hierarchies {
            whole.hierarchies.retain(|hierarchy| hierarchy.controllers != made.controllers);
            whole.hierarchies.push(made);
        }
        Ok(whole)
    }

    /// This cgroup with the directories of some controllers (all, where none is named) further below.
    pub(crate) fn below(&self, places: &[(String, String)]) -> Result<Cgroup> {
        let mut whole = self.clone();
        for (controllers, path) in places {
            let path = clean(path);
            let named = |hierarchy: &Hierarchy| {
                controllers.is_empty() || controllers.split(',').any(|name| hierarchy.has(name))
            };
            let mut found = false;
            for hierarchy in whole.hierarchies.iter_mut().filter(|hierarchy| named(hierarchy)) {
                hierarchy.path.push(&path);
                found = true;
            }
            if self.is_v2() && controllers.is_empty() {
                whole.unified = self.unified.as_ref().map(|directory| directory.join(&path));
                found = true;
            }
            if !found {
                return Err(Error::invalid("cgroup", format!("there is no controller {controllers:?}")));
            }
        }
        Ok(whole)
    }

    /// Whether it is one of the v2 tree that gives controllers to those below, and so takes no processes.
    pub(crate) fn has_moved_on(&self) -> bool {
        let control = self.unified.as_ref().filter(|_| self.is_v2()).map(|path| path.join("cgroup.subtree_control"));
        control.is_some_and(|control| file::read(&control).is_ok_and(|text| !text.trim().is_empty()))
    }

    /// The files a process writes `0` into to join every v1 hierarchy.
    pub(crate) fn join_files(&self) -> Result<Vec<Fd>> {
        self.hierarchies.iter().map(|hierarchy| file::open_write(&hierarchy.path.join("tasks"))).collect()
    }

    /// The paths of [`Cgroup::join_files`].
    pub(crate) fn join_paths(&self) -> Result<Vec<std::ffi::CString>> {
        self.hierarchies.iter().map(|hierarchy| crate::plan::c_path(&hierarchy.path.join("tasks"))).collect()
    }

    /// Moves a process of one thread into it.
    pub(crate) fn add(&self, pid: i32) -> Result<()> {
        self.every_directory().try_for_each(|path| file::write(&path.join("cgroup.procs"), &pid.to_string()))
    }

    /// The directory whose processes can be frozen.
    pub(crate) fn freezer(&self) -> Option<&Path> {
        match self.hierarchies.iter().find(|hierarchy| hierarchy.has("freezer")) {
            Some(hierarchy) => Some(&hierarchy.path),
            None => self.unified.as_deref().filter(|_| self.is_v2()),
        }
    }

    /// The directory to clone into.
    pub(crate) fn unified_directory(&self) -> Result<Option<Fd>> {
        self.unified.as_deref().map(file::open_directory).transpose()
    }

    fn every_directory(&self) -> impl Iterator<Item = &Path> {
        self.unified.as_deref().into_iter().chain(self.hierarchies.iter().map(|hierarchy| hierarchy.path.as_path()))
    }

    /// Every process in it and in cgroups below it.
    pub(crate) fn pids(&self) -> Result<Vec<i32>> {
        let mut pids = Vec::new();
        if let Some(directory) = self.every_directory().next() {
            file::collect_pids(directory, &mut pids)?;
        }
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// Signals every process in it.
    pub(crate) fn signal(&self, signal: i32) -> Result<()> {
        if signal == libc::SIGKILL && self.kill_at_once() {
            return Ok(());
        }
        for pid in self.pids()? {
            let Ok(pidfd) = sys::pidfd_open(pid) else { continue };
            let _ = sys::pidfd_send_signal(pidfd.0, signal);
        }
        Ok(())
    }

    fn kill_at_once(&self) -> bool {
        self.unified.as_ref().is_some_and(|path| file::write(&path.join("cgroup.kill"), "1").is_ok())
    }

    /// Kills every process until there is none, then removes the directories.
    pub(crate) fn destroy(&self) -> Result<()> {
        // As a rule nobody is left, which the kernel knows best: it removes no cgroup that holds a process or another.
        if self.unit.is_none() && self.every_directory().all(file::remove_empty) {
            return Ok(());
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut pause = Duration::from_micros(200);
        loop {
            let left = self.all_pids();
            if left.is_empty() {
                self.unit.as_ref().map_or(Ok(()), systemd::Unit::stop)?;
                return self.remove();
            }
            self.signal(libc::SIGKILL)?;
            for pid in left {
                if let Ok(pidfd) = sys::pidfd_open(pid) {
                    let _ = sys::pidfd_send_signal(pidfd.0, libc::SIGKILL);
                }
            }
            let _ = self.freeze(false);
            if Instant::now() > deadline {
                return Err(Error::Timeout { what: "the container's processes to die" });
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// Processes of every hierarchy: one may have been moved about in some.
    fn all_pids(&self) -> Vec<i32> {
        let mut pids = Vec::new();
        for directory in self.every_directory() {
            // A directory that is gone holds nobody.
            let _ = file::collect_pids(directory, &mut pids);
        }
        pids.retain(|pid| *pid > 0);
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// Removes the directories; those that are gone are fine.
    pub(crate) fn remove(&self) -> Result<()> {
        let results = self.every_directory().map(file::remove_tree).collect::<Vec<_>>();
        results.into_iter().collect()
    }

    /// The same, unless a process is left.
    pub(crate) fn remove_if_empty(&self) -> Result<()> {
        if self.all_pids().is_empty() { self.remove() } else { Ok(()) }
    }

    /// Freezes or thaws; returns when done.
    pub(crate) fn freeze(&self, frozen: bool) -> Result<()> {
        match self.hierarchies.iter().find(|hierarchy| hierarchy.has("freezer")) {
            Some(hierarchy) => v1::freeze(&hierarchy.path, frozen),
            None => match &self.unified {
                Some(path) => v2::freeze(path, frozen),
                None => Err(Error::NoController { controller: "freezer" }),
            },
        }
    }

    /// Whether it is frozen.
    pub(crate) fn is_frozen(&self) -> bool {
        match self.hierarchies.iter().find(|hierarchy| hierarchy.has("freezer")) {
            Some(hierarchy) => v1::is_frozen(&hierarchy.path),
            None => self.unified.as_deref().is_some_and(v2::is_frozen),
        }
    }

    /// The file that says whether it is frozen, open for [`says_frozen`].
    pub(crate) fn freezer_file(&self) -> Option<Fd> {
        let name = if self.is_v2() { v2::FREEZE } else { v1::STATE };
        let path = crate::plan::c_path(&self.freezer()?.join(name)).ok()?;
        sys::openat(libc::AT_FDCWD, &path, libc::O_RDONLY).ok()
    }

    /// What it has used.
    pub(crate) fn stats(&self) -> Result<Stats> {
        Ok(match &self.unified {
            Some(path) if self.is_v2() => Stats::V2(Box::new(v2::stats(path)?)),
            _ => Stats::V1(Box::new(v1::stats(&self.hierarchies)?)),
        })
    }

    /// Watches for kills for lack of memory.
    pub(crate) fn oom_watch(&self) -> Result<OomWatch> {
        match &self.unified {
            Some(path) if self.is_v2() => v2::oom_watch(path),
            _ => match self.hierarchies.iter().find(|hierarchy| hierarchy.has("memory")) {
                Some(hierarchy) => v1::oom_watch(&hierarchy.path),
                None => Err(Error::NoController { controller: "memory" }),
            },
        }
    }

    /// What makes up the container's view of `/sys/fs/cgroup`: each v1 hierarchy's mount name and controllers.
    pub(crate) fn views(&self) -> &[Hierarchy] {
        &self.hierarchies
    }
}

/// Takes the notice of an [`OomWatch`].
pub(crate) fn take_oom(fd: &OwnedFd, source: &OomSource, seen: &mut u64) -> Result<u64> {
    match source {
        OomSource::V1(directory) => v1::take_oom(fd, directory),
        OomSource::V2(directory) => v2::take_oom(fd, directory, seen),
    }
}

/// Which cgroup an [`OomWatch`] watches.
#[derive(Debug)]
pub(crate) enum OomSource {
    V1(PathBuf),
    V2(PathBuf),
}

fn own_path<'a>(own: &'a str, controllers: &str) -> &'a str {
    own.lines()
        .filter_map(|line| line.split_once(':').and_then(|(_, rest)| rest.split_once(':')))
        .find(|(names, _)| *names == controllers)
        .map_or("/", |(_, path)| path)
}

/// `cgroupsPath`: absolute from the hierarchy's root, otherwise from where this process is.
fn join(own: &str, path: &str) -> PathBuf {
    if path.starts_with('/') { clean(path) } else { clean(&format!("{own}/{path}")) }
}

/// Resolves `.` and `..` as text, against the root: a path cannot climb out of the hierarchy.
fn clean(path: &str) -> PathBuf {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.iter().collect()
}

fn below(mount: &Path, path: &Path) -> PathBuf {
    mount.join(path.strip_prefix("/").unwrap_or(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_path_cannot_climb_out_of_its_hierarchy() {
        assert_eq!(join("/own", "/../../etc"), PathBuf::from("etc"));
        assert_eq!(join("/own/x", "../../../../y"), PathBuf::from("y"));
        assert_eq!(join("/own/x", "a/./b"), PathBuf::from("own/x/a/b"));
    }
}
