//! Where cgroups are on this node, and what their files say.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use gantry_engine::containers::Container as Record;
use gantry_engine::spec::oci_spec::runtime::Spec;

use crate::{Cri, Error, Result};

/// The mounted hierarchies.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cgroups {
    /// Directory of each controller of cgroup v1.
    v1: BTreeMap<String, PathBuf>,
    /// The tree of cgroup v2, where it holds controllers.
    v2: Option<PathBuf>,
    /// Names of the controllers of v2.
    unified: Vec<String>,
}

impl Cgroups {
    /// Looks at this process' mounts. A tree of v2 without controllers does not count: it stands beside v1's.
    pub(crate) fn detect() -> Cgroups {
        let mut found = Cgroups::default();
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for line in table.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let (Some(place), mut right) = (left.split(' ').nth(4), right.split(' ')) else { continue };
            match (right.next(), right.nth(1)) {
                (Some("cgroup"), Some(options)) => {
                    let names = options.split(',').filter(|name| !matches!(*name, "rw" | "ro"));
                    found.v1.extend(names.map(|name| (name.to_owned(), PathBuf::from(place))));
                }
                (Some("cgroup2"), _) => {
                    let text = std::fs::read_to_string(Path::new(place).join("cgroup.controllers")).unwrap_or_default();
                    found.unified = text.split_ascii_whitespace().map(str::to_owned).collect();
                    found.v2 = Some(PathBuf::from(place));
                }
                _ => {}
            }
        }
        if !found.unified.iter().any(|name| name == "memory") {
            found.v2 = None;
        }
        found
    }

    /// Whether limits of that kind can be set.
    pub(crate) fn has(&self, controller: &str) -> bool {
        self.v1.contains_key(controller) || self.unified.iter().any(|name| name == controller)
    }

    /// Whether cgroup v2 is what counts here.
    pub(crate) fn is_v2(&self) -> bool {
        self.v2.is_some()
    }

    /// A file of a cgroup; none where the controller or the cgroup is missing. `path` is a cgroup of [`path_of`].
    pub(crate) fn read(&self, controller: &str, path: &str, file: &str) -> Option<String> {
        std::fs::read_to_string(self.directory(controller, path)?.join(file)).ok()
    }

    /// Where a cgroup of [`path_of`] is; none where the controller is missing.
    pub(crate) fn directory(&self, controller: &str, path: &str) -> Option<PathBuf> {
        let root = self.v2.as_ref().or_else(|| self.v1.get(controller))?;
        Some(root.join(path.trim_start_matches('/')))
    }

    /// A hierarchy of one controller of v1 at a directory.
    #[cfg(test)]
    pub(crate) fn at(place: &Path, controller: &str) -> Cgroups {
        Cgroups { v1: [(controller.to_owned(), place.to_owned())].into(), ..Cgroups::default() }
    }

    /// Whether the kernel killed a process of a container for want of memory.
    pub(crate) async fn was_starved(&self, cri: &Cri, id: &str) -> bool {
        let Some(path) = cri.cgroup_of(id).await else { return false };
        let file = if self.is_v2() { "memory.events" } else { "memory.oom_control" };
        let text = self.read("memory", &path, file).unwrap_or_default();
        value(&text, "oom_kill").is_some_and(|count| count > 0)
    }

    /// Kills all processes of a container without its shim.
    ///
    /// # Errors
    /// When its cgroup is not known.
    pub(crate) async fn kill(&self, cri: &Cri, id: &str) -> Result<()> {
        let path = cri.cgroup_of(id).await.ok_or_else(|| Error::State(format!("container {id:?} has no cgroup")))?;
        let controller = if self.has("pids") { "pids" } else { "memory" };
        let directory = self.directory(controller, &path);
        let directory = directory.ok_or_else(|| Error::State(format!("container {id:?} has no cgroup")))?;
        if std::fs::write(directory.join("cgroup.kill"), "1").is_ok() {
            return Ok(());
        }
        let text = std::fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
        for pid in text.lines().filter_map(|line| line.parse::<i32>().ok()) {
            // One that has gone meanwhile needs no signal.
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
        Ok(())
    }
}

impl Cri {
    /// The cgroup of a container or pod by its record.
    pub(crate) async fn cgroup_of(&self, id: &str) -> Option<String> {
        of_record(&self.engine.containers.get(&self.scope, id).await.ok()?)
    }
}

/// The cgroup that a record's configuration names.
pub(crate) fn of_record(record: &Record) -> Option<String> {
    let spec: Spec = serde_json::from_slice(&record.spec.as_ref()?.value).ok()?;
    let path = spec.linux().as_ref()?.cgroups_path().clone()?;
    Some(path_of(&path.to_string_lossy()))
}

/// The path of a cgroup within its hierarchy: as it stands, or for `SLICE:PREFIX:NAME` where systemd puts it.
pub(crate) fn path_of(cgroups_path: &str) -> String {
    let mut parts = cgroups_path.splitn(3, ':');
    let (Some(slice), Some(prefix), Some(name)) = (parts.next(), parts.next(), parts.next()) else {
        return cgroups_path.to_owned();
    };
    let mut path = String::new();
    let mut so_far = String::new();
    // `a-b.slice` lies in `a.slice`.
    for part in slice.trim_end_matches(".slice").split('-').filter(|part| !part.is_empty()) {
        so_far = if so_far.is_empty() { part.to_owned() } else { format!("{so_far}-{part}") };
        path.push_str(&format!("/{so_far}.slice"));
    }
    format!("{path}/{prefix}-{name}.scope")
}

/// The number behind a key in a file of `KEY NUMBER` lines.
pub(crate) fn value(text: &str, key: &str) -> Option<u64> {
    let mut pairs = text.lines().filter_map(|line| line.split_once(' '));
    pairs.find(|(name, _)| *name == key).and_then(|(_, value)| value.trim().parse().ok())
}

/// The numbers behind these keys in such a file, in one pass; 0 for a key that is missing.
pub(crate) fn values<const N: usize>(text: &str, keys: [&str; N]) -> [u64; N] {
    let mut found = [0; N];
    for (name, number) in text.lines().filter_map(|line| line.split_once(' ')) {
        if let Some(at) = keys.iter().position(|key| *key == name) {
            found[at] = number.trim().parse().unwrap_or_default();
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systemds_slices_are_nested_by_their_names() {
        assert_eq!(
            path_of("kubepods-burstable-pod1.slice:cri-containerd:abc"),
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-abc.scope"
        );
        assert_eq!(path_of("/kubepods/pod1/abc"), "/kubepods/pod1/abc");
    }

    #[test]
    fn a_value_is_found_by_its_whole_key() {
        assert_eq!(value("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n", "oom_kill"), Some(3));
        assert_eq!(value("a 1\n", "b"), None);
        assert_eq!(values("a 1\nbb 2\nc x\n", ["bb", "a", "d", "c"]), [2, 1, 0, 0]);
    }
}
