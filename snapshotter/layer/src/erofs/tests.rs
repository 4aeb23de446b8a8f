use super::format::{BLOCK, Dirent, directory, directory_size};
use proptest::prelude::*;

/// Sorted names of these lengths.
fn names(lengths: &[usize]) -> Vec<String> {
    lengths.iter().enumerate().map(|(number, length)| format!("{number:04}{}", "n".repeat(*length))).collect()
}

proptest! {
    #[test]
    fn the_size_of_a_directory_is_known_before_its_entries(lengths in proptest::collection::vec(0..251_usize, 0..200)) {
        let names = names(&lengths);
        let entries: Vec<_> =
            names.iter().map(|name| Dirent { name: name.as_bytes(), inode: 1, mode: 0o100_000 }).collect();
        let size = directory_size(names.iter().map(|name| name.as_bytes()));
        prop_assert_eq!(directory(&entries).len() as u64, size);
    }

    #[test]
    fn no_name_lies_across_two_blocks(lengths in proptest::collection::vec(0..251_usize, 1..200)) {
        let names = names(&lengths);
        let entries: Vec<_> =
            names.iter().map(|name| Dirent { name: name.as_bytes(), inode: 7, mode: 0o100_000 }).collect();
        let bytes = directory(&entries);
        let mut read = Vec::new();
        for block in bytes.chunks(BLOCK as usize) {
            let count = usize::from(u16::from_le_bytes([block[8], block[9]])) / 12;
            for entry in 0..count {
                let offset = |entry: usize| usize::from(u16::from_le_bytes([block[entry * 12 + 8], block[entry * 12 + 9]]));
                let end = if entry + 1 < count { offset(entry + 1) } else { block.len() };
                let name: Vec<u8> = block[offset(entry)..end].iter().copied().take_while(|byte| *byte != 0).collect();
                read.push(String::from_utf8(name).unwrap());
            }
        }
        prop_assert_eq!(read, names);
    }
}
