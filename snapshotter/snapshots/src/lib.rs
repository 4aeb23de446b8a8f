//! Layered directories: the [`Snapshotter`] contract and its implementations.
//!
//! - [`Overlay`]: layers are directories that the kernel's overlay file system stacks.
//! - [`Native`]: layers are full copies; slow and simple, the oracle of the tests.
//! - `Remote` (feature `remote`): a snapshotter in another process, over containerd's gRPC service.
//! - [`suite`] (feature `suite`): the contract as tests, for any implementation.
//!
//! A snapshotter knows nothing of images, digests, tar archives or namespaces: keys are opaque strings. It performs
//! no mount; it says which mounts show a snapshot.
#![forbid(unsafe_code)]

mod contract;
mod copy;
mod error;
pub mod graph;
mod mapping;
mod native;
mod overlay;
mod probe;
mod records;
#[cfg(feature = "remote")]
mod remote;
mod store;
#[cfg(feature = "suite")]
pub mod suite;
mod trash;
mod tree;

pub use contract::{Info, Kind, MAX_KEY, Snapshotter, UPPERDIR_LABEL, Usage};
pub use error::Error;
pub use native::Native;
pub use overlay::{Config as OverlayConfig, Overlay};
pub use probe::Features;
#[cfg(feature = "remote")]
pub use remote::{Config as RemoteConfig, Remote};
