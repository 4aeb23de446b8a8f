//! Performs the mounts a snapshotter (or a container's specification) describes: [`mount_all`] at a path, or
//! [`detached`] as a file descriptor that appears in no mount table until it is attached.
//!
//! Knows nothing of snapshots, containers or namespaces' owners. Synchronous and small: the shim links it.
//! [`sys`] holds the bare system calls, which neither allocate nor lock, for code between `clone3` and `execve`.

pub mod btrfs;
mod chain;
mod detach;
mod error;
pub mod idmap;
mod loopdev;
pub mod mountinfo;
mod options;
mod overlay;
pub mod priority;
pub mod quota;
mod sealed;
mod superblock;
pub mod sys;
mod unmount;
pub mod verity;

pub use detach::{Tree, attach, attach_at, clone_tree, detached, detached_one, mount_all, set_attributes};
pub use error::{Error, Step};
pub use options::{Attributes, Bind, InvalidOption, Options, Propagation};
pub use sealed::sealed;
pub use unmount::{Unmount, unmount, unmount_all, unmount_recursive};
