//! Control files: whole-value reads and writes with errors that name file and value.

use std::io::ErrorKind;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::plan::c_path;
use crate::sys::{self, Fd};

/// Reads a control file.
pub(super) fn read(path: &Path) -> Result<String> {
    sys::read_text(path).map_err(|source| Error::file("read", path, source))
}

/// Reads a number; `max` is `u64::MAX`.
pub(super) fn read_number(path: &Path) -> Result<u64> {
    let text = read(path)?;
    parse_number(text.trim()).ok_or_else(|| Error::file("read", path, std::io::Error::from(ErrorKind::InvalidData)))
}

fn parse_number(text: &str) -> Option<u64> {
    match text {
        "max" => Some(u64::MAX),
        text => text.parse::<u64>().ok().or_else(|| text.parse::<i64>().ok().map(|_| 0)),
    }
}

/// Reads a number, or 0 when the file is not there.
pub(super) fn number_or_zero(path: &Path) -> u64 {
    read_number(path).unwrap_or(0)
}

/// Reads `key value` lines; empty when the file is not there.
pub(super) fn pairs(path: &Path) -> Vec<(String, u64)> {
    let text = read(path).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(key, value)| parse_number(value.trim()).map(|value| (key.to_owned(), value)))
        .collect()
}

/// Writes a value in one write.
pub(super) fn write(path: &Path, value: &str) -> Result<()> {
    let failed = |errno| Error::Cgroup {
        path: path.to_owned(),
        value: value.to_owned(),
        source: std::io::Error::from_raw_os_error(errno),
    };
    let name = c_path(path)?;
    let file = sys::openat(libc::AT_FDCWD, &name, libc::O_WRONLY).map_err(failed)?;
    sys::write_once(file.0, value.as_bytes()).map_err(failed)
}

/// Opens a control file for later writes.
pub(super) fn open_write(path: &Path) -> Result<Fd> {
    let name = c_path(path)?;
    sys::openat(libc::AT_FDCWD, &name, libc::O_WRONLY)
        .map_err(|errno| Error::file("open", path, std::io::Error::from_raw_os_error(errno)))
}

/// Opens a cgroup's directory.
pub(super) fn open_directory(path: &Path) -> Result<Fd> {
    let name = c_path(path)?;
    sys::openat(libc::AT_FDCWD, &name, libc::O_RDONLY | libc::O_DIRECTORY)
        .map_err(|errno| Error::file("open", path, std::io::Error::from_raw_os_error(errno)))
}

/// The type of file system at a path, if it exists.
pub(super) fn fs_type(path: &Path) -> Option<i64> {
    sys::fs_type_at(&c_path(path).ok()?).ok()
}

/// Makes a directory and its missing ancestors.
pub(super) fn make_directory(path: &Path) -> Result<()> {
    let made = match std::fs::create_dir(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => std::fs::create_dir_all(path),
        other => other,
    };
    match made {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        other => other.map_err(|source| Error::file("make cgroup", path, source)),
    }
}

/// Adds every process of a cgroup and those below. A cgroup that is gone has none.
pub(super) fn collect_pids(directory: &Path, pids: &mut Vec<i32>) -> Result<()> {
    let text = match read(&directory.join("cgroup.procs")) {
        Err(Error::File { source, .. }) if is_gone(&source) => return Ok(()),
        // A threaded cgroup has no list of processes; its domain has.
        Err(Error::File { source, .. }) if source.raw_os_error() == Some(libc::EOPNOTSUPP) => String::new(),
        other => other?,
    };
    pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
    for child in children(directory) {
        collect_pids(&child, pids)?;
    }
    Ok(())
}

fn is_gone(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
}

/// The cgroups below one. A cgroup without any has two links, which saves reading the directory.
fn children(directory: &Path) -> Vec<std::path::PathBuf> {
    use std::os::unix::fs::MetadataExt;
    if std::fs::metadata(directory).is_ok_and(|metadata| metadata.nlink() == 2) {
        return Vec::new();
    }
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok())
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// Removes a cgroup that holds neither processes nor cgroups; whether it is gone.
pub(super) fn remove_empty(directory: &Path) -> bool {
    std::fs::remove_dir(directory).map_or_else(|error| is_gone(&error), |()| true)
}

/// Removes a cgroup and those below. The kernel may need a moment to let go of the last process.
pub(super) fn remove_tree(directory: &Path) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(2);
    let mut pause = Duration::from_micros(100);
    loop {
        match std::fs::remove_dir(directory) {
            Ok(()) => return Ok(()),
            Err(error) if is_gone(&error) => return Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {}
            Err(source) => return Err(Error::file("remove cgroup", directory, source)),
        }
        for child in children(directory) {
            remove_tree(&child)?;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}
