//! Options as fstab(5), containerd and the OCI runtime specification spell them, sorted into what the kernel's calls take.

use gantry_types::{ErrorKind, HasKind};

use crate::idmap::IdMap;

/// Whether a mount is a bind mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bind {
    /// Only the mount that holds the source (`bind`).
    One,
    /// It and all mounts below (`rbind`).
    Recursive,
}

/// Where mount events travel (mount_namespaces(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Propagation {
    /// `libc::MS_SHARED`, `MS_SLAVE`, `MS_PRIVATE` or `MS_UNBINDABLE`.
    pub kind: u64,
    /// Also for all mounts below (`rshared` …).
    pub recursive: bool,
}

/// `MOUNT_ATTR_*` bits to set and to clear; last spelling wins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Bits to set.
    pub set: u64,
    /// Bits to clear. Holds `MOUNT_ATTR__ATIME` whenever an access time mode is set.
    pub clear: u64,
}

/// What a list of options asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// `bind` or `rbind`.
    pub bind: Option<Bind>,
    /// `remount`: change an existing mount.
    pub remount: bool,
    /// Of this mount: `ro`, `nosuid`, `nodev`, `noexec`, `noatime`, …
    pub attributes: Attributes,
    /// Of this mount and all below: `rro`, `rnosuid`, …
    pub recursive: Attributes,
    /// In the order given.
    pub propagation: Vec<Propagation>,
    /// Superblock flags by name for `FSCONFIG_SET_FLAG`: `sync`, `dirsync`, `lazytime`, `mand`, …
    pub superblock: Vec<&'static str>,
    /// `tmpcopyup`: a tmpfs is to start with the content it covers (the caller's work).
    pub copy_up: bool,
    /// `idmap` (false) or `ridmap` (true).
    pub idmap: Option<bool>,
    /// `uidmap=`.
    pub uid_map: Option<IdMap>,
    /// `gidmap=`.
    pub gid_map: Option<IdMap>,
    /// `loop`: the source is a file to be put behind a loop device.
    pub loop_device: bool,
    /// Everything else, for the file system: key and value.
    pub data: Vec<(String, Option<String>)>,
}

impl Options {
    /// Sorts `options`. An unknown word is data for the file system.
    ///
    /// # Errors
    /// [`InvalidOption`] for NUL bytes, malformed id maps, and words no kernel can take (`X-containerd.…`).
    pub fn parse<S: AsRef<str>>(_options: &[S]) -> Result<Options, InvalidOption> {
        todo!()
    }
}

/// An option that means nothing here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid mount option {option:?}: {reason}")]
pub struct InvalidOption {
    /// The option.
    pub option: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl HasKind for InvalidOption {
    fn kind(&self) -> ErrorKind {
        ErrorKind::InvalidArgument
    }
}
