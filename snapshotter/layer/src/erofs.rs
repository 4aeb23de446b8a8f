//! Layers as EROFS images: what a layer changes, as one read-only file system in a file.
//!
//! An image holds the same entries as the upper directory of an overlay would: whiteouts are character devices 0:0,
//! opaque directories carry `trusted.overlay.opaque`. It is written in one pass while the layer comes: contents first,
//! directories last. Nothing in it depends on when or where it was made.
//!
//! ```text
//! block 0: superblock, root inode │ data of a file │ inodes, each with the tail of its file │ data … │ directories
//! ```
//!
//! Only what every kernel that knows EROFS reads is used (Linux, Documentation/filesystems/erofs.rst): blocks of 4 KiB,
//! extended inodes, plain and inline data. Holes stay holes of the image's own file.

use std::fs::File;
use std::io::{BufRead, Read};

use crate::apply::{Applied, ApplyError, Options, applying};
use crate::archive::Reader;

mod directory;
mod entries;
mod format;
mod image;
mod names;
#[cfg(test)]
mod tests;

pub use directory::image_of_directory;

/// Most entries that an image is made of: their names are held in memory until all have come.
const MAX_ENTRIES: u64 = 4 << 20;

/// Writes the layer that the uncompressed `tar` holds as an image into the empty file `image`, open for reading and
/// writing. The stream is read to its end. Nothing is synced.
///
/// # Errors
/// As [`crate::apply`]; with [`Options::standalone`] also [`crate::Reason::NeedsLower`].
pub fn image_of_tar<R: Read>(tar: R, image: &File, options: &Options) -> Result<Applied, ApplyError> {
    image_buffered(std::io::BufReader::with_capacity(256 << 10, tar), image, options)
}

/// [`image_of_tar`] for a stream that has a buffer of its own.
pub(crate) fn image_buffered<R: BufRead>(tar: R, image: &File, options: &Options) -> Result<Applied, ApplyError> {
    let limits = crate::Limits { entries: options.limits.entries.min(MAX_ENTRIES), ..options.limits.clone() };
    let options = Options { limits, ..options.clone() };
    let mut entries = entries::Entries::new(image, &options).map_err(|reason| ApplyError::at(b"", reason))?;
    let mut reader = Reader::new(tar, options.limits.extended_header, std::sync::Arc::clone(&options.control));
    let mut applied = applying(&mut reader, &options, |entry, reader| entries.entry(entry, reader))?;
    reader.drain().map_err(|reason| ApplyError::at(b"", reason))?;
    entries.finish().map_err(|(path, reason)| ApplyError::at(&path, reason))?;
    applied.tar_bytes = reader.position();
    Ok(applied)
}
