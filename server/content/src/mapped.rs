//! Bytes of a blob that lie where the kernel keeps them. Whoever sends them can ask [`origin`] which file they are of, and
//! have the kernel send them from there: then nobody copies them.
//!
//! The one place of this crate with `unsafe` code: a file is mapped, and the kernel asked what of it is in memory.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use memmap2::{Mmap, MmapOptions};
use rustix::param::page_size;

/// Where bytes in memory come from.
#[derive(Clone, Debug)]
pub struct Origin {
    /// A blob's file, which never changes.
    pub file: Arc<File>,
    /// Of the first of the bytes in it.
    pub offset: u64,
}

/// All mappings there are, by their first address.
static MAPPINGS: RwLock<BTreeMap<usize, Mapping>> = RwLock::new(BTreeMap::new());

struct Mapping {
    len: usize,
    origin: Origin,
}

/// A part of a file in the address space; taken from [`MAPPINGS`] before its addresses can be another's.
struct Mapped(Mmap);

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        MAPPINGS.write().unwrap_or_else(PoisonError::into_inner).remove(&(self.0.as_ptr() as usize));
    }
}

/// The first `len` bytes of a file that has as many. Nothing is read.
///
/// Only the kernel should read them (a send, a write): it reports an error where the disk has one, whereas a program that
/// touches them is ended by `SIGBUS` then (mmap(2)).
///
/// # Errors
/// Those of mmap(2), where there is no room for a mapping say.
pub(crate) fn map(file: &Arc<File>, len: usize) -> io::Result<Bytes> {
    // SAFETY: the file is a committed blob of the daemon's own store: it is read-only, is never written again and never
    // cut short, so the bytes stay what they are as long as they are mapped.
    let mapped = unsafe { MmapOptions::new().len(len).map(&**file)? };
    let mapping = Mapping { len: mapped.len(), origin: Origin { file: Arc::clone(file), offset: 0 } };
    MAPPINGS.write().unwrap_or_else(PoisonError::into_inner).insert(mapped.as_ptr() as usize, mapping);
    Ok(Bytes::from_owner(Mapped(mapped)))
}

/// Whether all of these bytes, a part of a mapping, are in memory now; they may be thrown out afterwards.
pub(crate) fn is_resident(part: &Bytes) -> bool {
    let page = page_size();
    let into_page = part.as_ptr() as usize % page;
    let mut pages = vec![0_u8; (into_page + part.len()).div_ceil(page)];
    // SAFETY: the range begins with a page and ends within one of a mapping that `part` keeps; there is a byte for each
    // page of it (mincore(2)).
    let asked =
        unsafe { libc::mincore(part.as_ptr().sub(into_page) as *mut _, into_page + part.len(), pages.as_mut_ptr()) };
    asked == 0 && pages.iter().all(|page| page & 1 == 1)
}

/// The file that `bytes` are a mapped part of; none for all other bytes.
pub fn origin(bytes: &[u8]) -> Option<Origin> {
    let address = bytes.as_ptr() as usize;
    let mappings = MAPPINGS.read().unwrap_or_else(PoisonError::into_inner);
    let (start, mapping) = mappings.range(..=address).next_back()?;
    let into = address - start;
    let is_within = into < mapping.len && bytes.len() <= mapping.len - into;
    is_within.then(|| Origin { offset: mapping.origin.offset + into as u64, ..mapping.origin.clone() })
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::fs::FileExt as _;

    use super::*;

    fn file(len: usize) -> (Arc<File>, Vec<u8>) {
        let bytes: Vec<u8> = (0..len).map(|n| (n * 31 / 7) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        (Arc::new(file), bytes)
    }

    #[test]
    fn mapped_bytes_are_the_files_and_every_part_of_them_knows_where_it_lies() {
        let (file, bytes) = file(300_000);
        let mapped = map(&file, bytes.len()).unwrap();
        assert!(mapped == bytes);
        for part in [0..300_000, 0..1, 1..4096, 4096..8192, 5000..205_000, 299_999..300_000] {
            let origin = origin(&mapped[part.clone()]).expect("it is mapped");
            assert_eq!(origin.offset, part.start as u64);
            let mut again = vec![0; part.len()];
            origin.file.read_exact_at(&mut again, origin.offset).unwrap();
            assert!(again == mapped[part.clone()], "{part:?}");
            assert!(is_resident(&mapped.slice(part)), "it was just written");
        }
    }

    #[test]
    fn other_bytes_have_no_origin_nor_have_those_whose_mapping_is_gone() {
        let (file, bytes) = file(10_000);
        assert!(origin(&bytes).is_none());
        let mapped = map(&file, 10_000).unwrap();
        let part = mapped.slice(5000..6000);
        drop(mapped);
        assert!(origin(&part).is_some(), "a part keeps the mapping");
        assert_eq!(Arc::strong_count(&file), 2);
        drop(part);
        assert_eq!(Arc::strong_count(&file), 1, "the mapping is gone, and its record too");
        assert!(origin(&bytes).is_none());
    }

    #[test]
    fn what_was_thrown_out_of_memory_is_not_resident() {
        let (file, bytes) = file(1 << 20);
        file.sync_all().unwrap();
        let mapped = map(&file, bytes.len()).unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        assert!(is_tmpfs(&file) || !is_resident(&mapped.slice(300_000..700_000)));
    }

    /// Nothing is thrown out of a file system that is nowhere else.
    fn is_tmpfs(file: &File) -> bool {
        rustix::fs::fstatfs(file).unwrap().f_type == 0x0102_1994
    }
}
