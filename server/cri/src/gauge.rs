//! A cgroup that is read again and again: its files stay open, as far as this process has descriptors to spare.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use nix::sys::resource::{Resource, getrlimit};

use crate::cgroup::Cgroups;

/// Descriptors that all gauges hold.
static HELD: AtomicUsize = AtomicUsize::new(0);

/// One cgroup, by its path in every hierarchy.
pub(crate) struct Gauge {
    path: String,
    open: Mutex<Vec<Opened>>,
}

/// A file that stays open, by its controller and name.
struct Opened {
    controller: String,
    name: String,
    file: File,
}

impl Gauge {
    /// Opens nothing yet.
    pub(crate) fn new(path: String) -> Gauge {
        Gauge { path, open: Mutex::default() }
    }

    /// The cgroup's path within its hierarchies.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// What a file says now; none where the controller, the cgroup or the file is missing.
    pub(crate) fn read(&self, cgroups: &Cgroups, controller: &str, name: &str) -> Option<String> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = open.iter().position(|known| known.controller == controller && known.name == name) {
            if let Some(text) = whole(&open[at].file) {
                return Some(text);
            }
            // The cgroup it was of is gone; another may have come.
            open.swap_remove(at);
            HELD.fetch_sub(1, Ordering::Relaxed);
        }
        let file = File::open(cgroups.directory(controller, &self.path)?.join(name)).ok()?;
        let text = whole(&file)?;
        if HELD.fetch_add(1, Ordering::Relaxed) < to_spare() {
            open.push(Opened { controller: controller.to_owned(), name: name.to_owned(), file });
        } else {
            HELD.fetch_sub(1, Ordering::Relaxed);
        }
        Some(text)
    }

    /// Closes what is open.
    pub(crate) fn close(&self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        HELD.fetch_sub(open.len(), Ordering::Relaxed);
        open.clear();
    }
}

impl Drop for Gauge {
    fn drop(&mut self) {
        self.close();
    }
}

/// How many descriptors gauges may hold: half of those this process may have.
fn to_spare() -> usize {
    static SPARE: OnceLock<usize> = OnceLock::new();
    *SPARE.get_or_init(|| {
        let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
        usize::try_from(soft / 2).unwrap_or(usize::MAX)
    })
}

/// The text of a file of the kernel's, from its beginning.
fn whole(file: &File) -> Option<String> {
    let (mut bytes, mut part) = (Vec::new(), [0; 4096]);
    loop {
        let length = file.read_at(&mut part, bytes.len() as u64).ok()?;
        bytes.extend_from_slice(&part[..length]);
        // The kernel fills the buffer as long as there is more.
        if length < part.len() {
            return String::from_utf8(bytes).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_anew_each_time_and_found_again_when_its_cgroup_was_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let cgroups = Cgroups::at(dir.path(), "memory");
        std::fs::create_dir(dir.path().join("pod")).unwrap();
        let file = dir.path().join("pod/memory.current");
        std::fs::write(&file, "1\n").unwrap();
        let gauge = Gauge::new("/pod".into());
        assert_eq!(gauge.read(&cgroups, "memory", "memory.current").unwrap(), "1\n");
        std::fs::write(&file, "22\n").unwrap();
        assert_eq!(gauge.read(&cgroups, "memory", "memory.current").unwrap(), "22\n");
        assert_eq!(gauge.open.lock().unwrap().len(), 1);
        assert!(gauge.read(&cgroups, "memory", "nothing").is_none());
        assert!(gauge.read(&cgroups, "pids", "memory.current").is_none());
        gauge.close();
        assert!(gauge.open.lock().unwrap().is_empty());
    }

    #[test]
    fn a_long_file_is_read_to_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        for length in [0, 4095, 4096, 4097, 20_000] {
            std::fs::write(&path, "x".repeat(length)).unwrap();
            assert_eq!(whole(&File::open(&path).unwrap()).unwrap().len(), length);
        }
    }
}
