//! Parts of the engine that another process serves over gRPC on a unix socket (containerd's "proxy plugins").
//!
//! - [`RemoteSnapshotter`] keeps the contract of `gantry_snapshots::Snapshotter`.
//! - [`RemoteStore`] keeps the contract of `gantry_content::Store`.
//! - [`RemoteDiffer`] applies and makes layers.
//! - [`RemoteSandboxer`] runs sandboxes.
//!
//! All of them speak through a [`Peer`]: it connects at the first call and again after a break, gives every call a
//! deadline, and names the plug-in and its socket in what goes wrong. Deliberately knows nothing of records: names of
//! namespaces, keys and digests are what the engine says they are.

#![forbid(unsafe_code)]

mod content;
mod diff;
mod peer;
mod sandbox;
mod snapshots;
mod upload;

pub use content::RemoteStore;
pub use diff::{DiffWishes, RemoteDiffer};
pub use gantry_api::convert;
pub use gantry_api::pb::containerd::services::sandbox::v1 as sandbox_wire;
pub use gantry_api::pb::containerd::types as wire_types;
pub use peer::{Failure, Peer};
pub use sandbox::RemoteSandboxer;
pub use snapshots::RemoteSnapshotter;
