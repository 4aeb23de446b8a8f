//! The vocabulary every part of Gantry shares: digests, references, descriptors, platforms, mounts, validated ids,
//! labels, the filter language, and the scope of a call.
//!
//! Deliberately knows nothing of I/O, async or protobuf; `proto/api` converts these to and from the wire.
#![forbid(unsafe_code)]

mod any;
mod descriptor;
mod digest;
mod error;
pub mod filter;
mod id;
pub mod labels;
pub mod media_type;
mod mount;
mod platform;
mod reference;
mod scope;

pub use any::Any;
pub use descriptor::Descriptor;
pub use digest::{Algorithm, Digest, Hasher, InvalidDigest};
pub use error::{ErrorKind, HasKind};
pub use filter::{Fields, Filter, InvalidFilter};
pub use id::{Id, InvalidId, Namespace};
pub use labels::{InvalidLabel, Labels};
pub use mount::Mount;
pub use platform::{InvalidPlatform, Platform};
pub use reference::{InvalidReference, Reference};
pub use scope::Scope;
