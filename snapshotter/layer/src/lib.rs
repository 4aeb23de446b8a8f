//! Layer tar from and to a directory: apply, diff, whiteouts, path safety, compression.
//!
//! A layer is a tar stream that describes a change to a file system (OCI image-spec, layer.md). This crate turns such
//! a stream into files ([`apply`], [`unpack`]) and the difference of two directories into such a stream ([`diff`],
//! [`diff_overlay`]).
//!
//! It deliberately knows nothing of mounts, digests to expect, snapshots or images: it is given directories and byte
//! streams. It is synchronous. Whatever a stream says, nothing outside the given root is created, changed or removed:
//! every path is resolved below a directory descriptor, and names are never handed to the kernel as whole paths that
//! could leave it.
#![forbid(unsafe_code)]

mod apply;
mod archive;
mod compress;
mod confine;
mod decompress;
mod diff;
mod dirs;
mod erofs;
mod estargz;
mod gunzip;
mod spare;
mod sums;
#[cfg(any(test, feature = "testing"))]
pub mod tree;
mod unpack;

pub use apply::{Applied, ApplyError, Control, Limit, Limits, Options, Reason, Whiteouts, apply, dress};
pub use compress::Compressor;
pub use decompress::{Decompressor, Helpers, compression_of};
pub use diff::{DiffError, DiffOptions, Times, Written, diff, diff_overlay};
pub use erofs::{image_of_directory, image_of_tar};
pub use estargz::{Estargz, EstargzError, estargz};
pub use gantry_types::media_type::Compression;
pub use sums::{CheckError, Checked, Difference, check, list_file};
pub use unpack::{Unpacked, unpack, unpack_to_image};
