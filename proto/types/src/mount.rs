//! A mount as containerd's API describes it; `snapshotter/mount` performs it.

use serde::{Deserialize, Serialize};

/// One mount: `mount -t kind -o options source target`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// File system type: `overlay`, `bind`, `tmpfs`, …
    pub kind: String,
    /// Device, directory or name, as the file system type wants it.
    pub source: String,
    /// Path relative to the root of the tree being mounted; empty for the root itself.
    #[serde(default)]
    pub target: String,
    /// Options as fstab(5) spells them: `ro`, `rbind`, `lowerdir=…`.
    #[serde(default)]
    pub options: Vec<String>,
}
