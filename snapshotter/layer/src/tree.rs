//! Canonical listings of directories, for tests that compare trees (feature `testing`).

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use gantry_types::Digest;

/// Lists everything below `root`, one line a file, sorted by path: type, mode, owner, size, modification time, device
/// number, link target, extended attributes (`trusted.*` left out), the first path of its group of hard links, and
/// the SHA-256 of its content.
pub fn listing(root: &Path) -> io::Result<Vec<String>> {
    let mut listing = Listing { root, links: HashMap::new(), lines: Vec::new() };
    listing.directory(Path::new(""))?;
    Ok(listing.lines)
}

/// The lines in which the listings of `left` and `right` differ, prefixed by `-` and `+`; empty if the trees are equal.
pub fn difference(left: &Path, right: &Path) -> io::Result<Vec<String>> {
    let left: BTreeSet<String> = listing(left)?.into_iter().collect();
    let right: BTreeSet<String> = listing(right)?.into_iter().collect();
    let gone = left.difference(&right).map(|line| format!("- {line}"));
    let mut lines: Vec<String> = gone.chain(right.difference(&left).map(|line| format!("+ {line}"))).collect();
    lines.sort_by(|one, other| one[2..].cmp(&other[2..]));
    Ok(lines)
}

struct Listing<'a> {
    root: &'a Path,
    links: HashMap<(u64, u64), PathBuf>,
    lines: Vec<String>,
}

impl Listing<'_> {
    fn directory(&mut self, dir: &Path) -> io::Result<()> {
        let names = fs::read_dir(self.root.join(dir))?.map(|entry| Ok(entry?.file_name()));
        let names: BTreeSet<_> = names.collect::<io::Result<_>>()?;
        for name in names {
            let path = dir.join(name);
            let metadata = fs::symlink_metadata(self.root.join(&path))?;
            let line = self.line(&path, &metadata)?;
            self.lines.push(line);
            if metadata.is_dir() {
                self.directory(&path)?;
            }
        }
        Ok(())
    }

    fn line(&mut self, path: &Path, metadata: &Metadata) -> io::Result<String> {
        let full = self.root.join(path);
        let mut line = format!(
            "{path:?} {} {:04o} {}:{} {}.{:09}",
            type_name(metadata),
            metadata.mode() & 0o7777,
            metadata.uid(),
            metadata.gid(),
            metadata.mtime(),
            metadata.mtime_nsec(),
        );
        if metadata.is_file() {
            line += &format!(" {} bytes {}", metadata.size(), Digest::of(&fs::read(&full)?));
        } else if metadata.is_symlink() {
            line += &format!(" to {:?}", fs::read_link(&full)?);
        } else if !metadata.is_dir() {
            line += &format!(" device {:#x}", metadata.rdev());
        }
        for (name, value) in crate::apply::xattrs_at(full.as_os_str().as_bytes())? {
            line += &format!(" {}={}", String::from_utf8_lossy(&name), value.escape_ascii());
        }
        if metadata.nlink() > 1 && !metadata.is_dir() {
            let first = self.links.entry((metadata.dev(), metadata.ino())).or_insert_with(|| path.to_owned());
            if *first != path {
                line += &format!(" same as {first:?}");
            }
        }
        Ok(line)
    }
}

fn type_name(metadata: &Metadata) -> &'static str {
    let kind = metadata.file_type();
    match () {
        () if kind.is_dir() => "directory",
        () if kind.is_symlink() => "symlink",
        () if kind.is_fifo() => "fifo",
        () if kind.is_char_device() => "character device",
        () if kind.is_block_device() => "block device",
        () if kind.is_socket() => "socket",
        () => "file",
    }
}
