//! What is known of a container on disk, so that whoever comes after a crash can finish or undo:
//! `STATE_DIR/ID/state.json`, written before anything is done, and `init` beside it, written when the process exists.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::cgroups::Cgroup;
use crate::error::{Error, Result};
use crate::rdt::Group;
use crate::spec::read_bounded;

/// The persisted record of a container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The container's id.
    pub(crate) id: String,
    /// Version of the specification of its configuration.
    pub(crate) oci_version: String,
    /// The bundle.
    pub(crate) bundle: PathBuf,
    /// The init on the host; 0 until it exists.
    #[serde(skip)]
    pub(crate) pid: i32,
    /// When the init started, in the kernel's clock ticks since boot: tells it from a later process of that number.
    #[serde(skip)]
    pub(crate) start_time: u64,
    /// When the container was made, seconds since 1970.
    pub(crate) created: u64,
    /// Whether a session keyring is joined.
    pub(crate) no_new_keyring: bool,
    /// Where its cgroup is.
    pub(crate) cgroup: Cgroup,
    /// Its group in resctrl, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) rdt: Option<Group>,
    /// The configuration's annotations.
    pub(crate) annotations: BTreeMap<String, String>,
    /// What the first process's streams were when it was made (`pipe:[1234]`), for a checkpoint.
    #[serde(default)]
    pub(crate) descriptors: Vec<String>,
    /// Made from a checkpoint: CRIU has put it into a time namespace, which the configuration does not tell.
    #[serde(default)]
    pub(crate) restored: bool,
}

impl Record {
    /// Seconds since 1970, now.
    pub(crate) fn now() -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
    }

    /// Writes the record. A reader finds all of it or nothing.
    pub(crate) fn write(&self, directory: &Path) -> Result<()> {
        let (path, new) = (directory.join("state.json"), directory.join("state.json.new"));
        let bytes = serde_json::to_vec(self).map_err(|error| Error::invalid("state", error.to_string()))?;
        std::fs::write(&new, bytes).map_err(|source| Error::file("write", &new, source))?;
        std::fs::rename(&new, &path).map_err(|source| Error::file("write", &path, source))
    }

    /// Writes which process the init is. Half of it would name another start time, and so no process.
    pub(crate) fn write_init(&self, directory: &Path) -> Result<()> {
        let path = directory.join("init");
        let text = format!("{} {}\n", self.pid, self.start_time);
        std::fs::write(&path, text).map_err(|source| Error::file("write", &path, source))
    }

    fn read_init(&mut self, directory: &Path) {
        let text = std::fs::read_to_string(directory.join("init")).unwrap_or_default();
        let fields = text.strip_suffix('\n').and_then(|line| line.split_once(' '));
        if let Some((pid, start)) = fields.and_then(|(pid, start)| Some((pid.parse().ok()?, start.parse().ok()?))) {
            (self.pid, self.start_time) = (pid, start);
        }
    }

    /// Reads the record of a container.
    pub(crate) fn read(state_dir: &Path, id: &str) -> Result<Record> {
        check_id(id)?;
        let path = state_dir.join(id).join("state.json");
        let bytes = match read_bounded(&path) {
            Err(Error::File { source, .. }) if source.kind() == ErrorKind::NotFound => {
                return Err(Error::NotFound { id: id.to_owned() });
            }
            other => other?,
        };
        let mut record: Record = serde_json::from_slice(&bytes).map_err(|error| Error::Json {
            what: "state",
            path,
            reason: error.to_string(),
        })?;
        record.read_init(&state_dir.join(id));
        Ok(record)
    }
}

/// An id becomes a file name and part of a cgroup's: letters, digits and `_ + - .`, not `.` or `..`.
pub(crate) fn check_id(id: &str) -> Result<()> {
    let good = |c: char| c.is_ascii_alphanumeric() || "_+-.".contains(c);
    if id.is_empty() || id == "." || id == ".." || id.len() > 1024 || !id.chars().all(good) {
        return Err(Error::InvalidId { id: id.to_owned() });
    }
    Ok(())
}

/// When a process started, in clock ticks since boot (proc(5), `stat`, field 22), and whether it has ended, and waits to be reaped.
/// `None`: there is no such process.
pub fn start_time(pid: i32) -> Option<(u64, bool)> {
    let text = crate::sys::read_text(Path::new(&format!("/proc/{pid}/stat"))).ok()?;
    // The name in field 2 may hold anything; fields are counted behind its closing bracket.
    let mut fields = text.get(text.rfind(')')? + 2..)?.split(' ');
    let zombie = matches!(fields.next()?, "Z" | "X");
    Some((fields.nth(18)?.parse().ok()?, zombie))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_are_no_file_names_are_refused() {
        for bad in ["", ".", "..", "a/b", "a b", "ä", "a\0"] {
            assert!(check_id(bad).is_err(), "{bad:?}");
        }
        for good in ["a", "a.b_c+d-e", "..a", "0"] {
            assert!(check_id(good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn our_own_start_time_is_read() {
        let (ticks, zombie) = start_time(std::process::id() as i32).unwrap();
        assert!(ticks > 0 && !zombie);
    }
}
