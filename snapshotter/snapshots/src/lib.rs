//! Layered directories: the [`Snapshotter`] contract and its implementations.
//!
//! - [`Overlay`]: layers are directories that the kernel's overlay file system stacks.
//! - [`Erofs`]: layers are read-only file systems in files, which the kernel's overlay file system stacks.
//! - [`Btrfs`]: layers are subvolumes, where the directory lies on btrfs.
//! - [`Native`]: layers are full copies; slow and simple, the oracle of the tests.
//! - [`suite`] (feature `suite`): the contract as tests, for any implementation.
//!
//! A snapshotter knows nothing of images, digests, tar archives or namespaces: keys are opaque strings. It performs
//! no mount; it says which mounts show a snapshot.
#![forbid(unsafe_code)]

mod btrfs;
mod contract;
mod copy;
mod erofs;
mod error;
pub mod graph;
mod mapping;
mod native;
mod overlay;
mod probe;
mod quota;
mod records;
mod store;
#[cfg(feature = "suite")]
pub mod suite;
mod trash;
mod tree;

pub use btrfs::Btrfs;
pub use contract::{Files, Info, Kind, MAX_KEY, MAX_SIZE_LABEL, Snapshotter, UPPERDIR_LABEL, Usage};
pub use erofs::{Config as ErofsConfig, Erofs, LAYER as EROFS_LAYER, MARK as EROFS_MARK};
pub use error::Error;
pub use native::Native;
pub use overlay::{Config as OverlayConfig, Overlay};
pub use probe::Features;
