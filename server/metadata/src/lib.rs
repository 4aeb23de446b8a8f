//! Names and records: what exists, in which namespace, and what keeps it alive.
//!
//! [`Db`] holds every record in memory for readers and on disk (sled) for the next start. An acknowledged write is durable;
//! a read never waits for a disk or for a writer. Deliberately knows no bytes and no mounts: digests and internal
//! snapshot keys are names here, and the engine joins them with the content store and the snapshotters.

#![forbid(unsafe_code)]

mod blobs;
mod codec;
mod collect;
mod committer;
mod containers;
mod db;
mod documents;
mod edges;
mod error;
mod export;
pub mod gc;
mod images;
mod ingests;
mod journal;
mod keys;
mod leases;
mod mask;
mod memory;
mod namespaces;
mod record;
mod records;
mod recover;
mod sandboxes;
mod scan;
mod snapshots;
mod store;
mod stored;
mod table;
mod tx;
mod view;

pub use blobs::Blobs;
pub use collect::{CollectOptions, Collected, Plan};
pub use containers::Containers;
pub use db::{Config, Db};
pub use documents::Documents;
pub use edges::{Edge, Target, of_labels as edges_of_labels};
pub use error::{Error, Object};
pub use images::Images;
pub use ingests::Ingests;
pub use leases::Leases;
pub use namespaces::Namespaces;
pub use record::{
    Blob, Container, Image, Ingest, Lease, NamespaceRecord, Resource, Runtime, Sandbox, Sharing, Snapshot, SnapshotKind,
};
pub use recover::Report;
pub use sandboxes::Sandboxes;
pub use scan::Scan;
pub use snapshots::{Committed, Snapshots};
pub use view::{AnyView, ContainerView, DescriptorView, ImageView, Viewed};
