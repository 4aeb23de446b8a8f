//! The tar format itself: reading entries and writing headers (POSIX pax, `ustar`, GNU extensions).

mod header;
mod pax;
mod reader;
mod sparse;
mod writer;

pub(crate) use reader::{Entry, EntryType, Reader};
pub(crate) use sparse::Segment;
pub(crate) use writer::{Header, Writer};

/// Size of a header, and what file content is padded to.
pub(crate) const BLOCK: usize = 512;

/// How many bytes of padding follow `size` bytes of content.
pub(crate) fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}
