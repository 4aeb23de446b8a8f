//! Parser of `/proc/PID/mountinfo` (proc_pid_mountinfo(5)).

use std::path::PathBuf;

use crate::error::Error;

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Mount id.
    pub id: u64,
    /// Id of the mount it lies on.
    pub parent: u64,
    /// Major and minor number of the device.
    pub device: (u32, u32),
    /// Directory of the file system that is the mount's root.
    pub root: PathBuf,
    /// Where it is, relative to the process's root.
    pub target: PathBuf,
    /// Per-mount options.
    pub options: String,
    /// Optional fields: `shared:N`, `master:N`, …
    pub tags: Vec<String>,
    /// File system type.
    pub kind: String,
    /// Source.
    pub source: PathBuf,
    /// Per-superblock options.
    pub superblock_options: String,
}

/// Parses a table; lines that are not of the format are left out.
pub fn parse(_table: &[u8]) -> Vec<Entry> {
    todo!()
}

/// The calling thread's mount table.
///
/// # Errors
/// [`Error::Call`] with step `Table`; tables beyond 64 MiB are refused.
pub fn read() -> Result<Vec<Entry>, Error> {
    todo!()
}
