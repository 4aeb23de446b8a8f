//! Mounts.

use gantry_types::Mount;

use crate::pb::containerd::types as wire;

/// Takes a mount from the wire; whether it can be performed is for the one who performs it to say.
pub fn mount_from_wire(mount: wire::Mount) -> Mount {
    Mount { kind: mount.r#type, source: mount.source, target: mount.target, options: mount.options }
}

/// Encodes a mount.
pub fn mount_to_wire(mount: Mount) -> wire::Mount {
    wire::Mount { r#type: mount.kind, source: mount.source, target: mount.target, options: mount.options }
}

/// All of a list.
pub fn mounts_from_wire(mounts: Vec<wire::Mount>) -> Vec<Mount> {
    mounts.into_iter().map(mount_from_wire).collect()
}

/// All of a list.
pub fn mounts_to_wire(mounts: Vec<Mount>) -> Vec<wire::Mount> {
    mounts.into_iter().map(mount_to_wire).collect()
}
