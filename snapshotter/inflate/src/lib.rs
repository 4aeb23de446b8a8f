//! DEFLATE (RFC 1951) decoded as it comes, made for layers: input and output are slices of any sizes, any bytes end in an
//! answer, memory is bounded whatever they say, and what zlib refuses is refused.
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

mod decoder;
mod error;
mod fast;
mod inflate;
mod input;
mod table;
