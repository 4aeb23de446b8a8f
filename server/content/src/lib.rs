//! Blobs by digest: resumable ingest by ref, verified commit, ranged read.
//!
//! [`Store`] is the contract, [`LocalStore`] keeps it in a directory; the contract's tests are in `suite` (feature
//! `suite`), for other implementations to run. Deliberately knows nothing of names, labels, namespaces or leases: refs are opaque strings, and who may
//! see which digest is a matter of `gantry-metadata` and the engine.

#![deny(unsafe_code)]

mod durable;
mod error;
mod helper;
mod ingest;
mod local;
mod lock;
mod mapped;
mod read;
mod store;
#[cfg(feature = "suite")]
pub mod suite;
mod write;

pub use error::Error;
pub use helper::{read_all, stream, write_all};
pub use local::LocalStore;
pub use mapped::{Origin, origin};
pub use store::{CHUNK, Commit, Info, ReaderAt, Status, Store, Writer, WriterOptions};
