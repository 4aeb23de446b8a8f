//! DEFLATE (RFC 1951) decoded as it comes, made for layers: input and output are slices of any sizes, any bytes end in an
//! answer, memory is bounded whatever they say, and what zlib refuses is refused.
//!
//! [`Inflate`] decodes by the calling thread alone; [`Reader`] with helpers besides, if there are processors for them.
//!
//! It knows neither gzip nor zlib frames, no checksums and no dictionaries, and does not compress.
//!
//! ```
//! let packed = [0x4b, 0x04, 0x00];
//! let (mut inflate, mut plain) = (gantry_inflate::Inflate::new(), [0; 8]);
//! let step = inflate.inflate(&packed, &mut plain)?;
//! assert_eq!((&plain[..step.made], step.ended), (&b"a"[..], true));
//! # Ok::<(), gantry_inflate::Error>(())
//! ```
#![deny(unsafe_code)]

pub use error::Error;
pub use inflate::{Inflate, Step};
pub use reader::Reader;

mod decoder;
mod error;
mod fast;
mod find;
mod flat;
mod inflate;
mod input;
mod piece;
mod reader;
mod table;
mod team;

/// The usual size of what a helper of [`Reader::help`] decodes at a time, in bytes: blocks are some tens of kilobytes, so
/// little of it is lost to finding one.
pub const CHUNK: usize = 256 << 10;
