//! Parser of `/proc/PID/mountinfo` (proc_pid_mountinfo(5)).

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Step, c_path};
use crate::sys;

/// A table larger than this is refused.
const MAX_TABLE: u64 = 64 << 20;

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Mount id.
    pub id: u64,
    /// Id of the mount it lies on.
    pub parent: u64,
    /// Major and minor number of the device.
    pub device: (u32, u32),
    /// Directory of the file system that is the mount's root.
    pub root: PathBuf,
    /// Where it is, relative to the process's root.
    pub target: PathBuf,
    /// Per-mount options.
    pub options: String,
    /// Optional fields: `shared:N`, `master:N`, …
    pub tags: Vec<String>,
    /// File system type.
    pub kind: String,
    /// Source.
    pub source: PathBuf,
    /// Per-superblock options.
    pub superblock_options: String,
}

/// Parses a table; lines that are not of the format are left out.
pub fn parse(table: &[u8]) -> Vec<Entry> {
    table.split(|byte| *byte == b'\n').filter_map(entry).collect()
}

/// The calling thread's mount table.
///
/// # Errors
/// [`Error::Call`] with step `Table`; tables beyond 64 MiB are refused.
pub fn read() -> Result<Vec<Entry>, Error> {
    let path = Path::new("/proc/thread-self/mountinfo");
    let read = || {
        let mut table = Vec::with_capacity(16 << 10);
        File::open(path)?.take(MAX_TABLE + 1).read_to_end(&mut table)?;
        if table.len() as u64 > MAX_TABLE {
            return Err(io::Error::from_raw_os_error(libc::EFBIG));
        }
        Ok(parse(&table))
    };
    read().map_err(|error| Error::call(Step::Table, error).at(path))
}

/// Whether something is mounted at `path` itself. A final symbolic link is not followed; a missing path is `false`.
///
/// # Errors
/// [`Error::Call`] with step `Resolve`.
pub fn is_mount_point(path: &Path) -> Result<bool, Error> {
    match sys::is_mount_root(&c_path(path)?) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => Ok(false),
        result => result.map_err(|error| Error::call(Step::Resolve, error).at(path)),
    }
}

fn entry(line: &[u8]) -> Option<Entry> {
    let mut fields = line.split(|byte| *byte == b' ');
    let id = number(fields.next()?)?;
    let parent = number(fields.next()?)?;
    let device = device(fields.next()?)?;
    let root = path(fields.next()?);
    let target = path(fields.next()?);
    let options = text(fields.next()?);
    let tags = fields.by_ref().take_while(|field| *field != b"-").map(text).collect();
    let kind = text(fields.next()?);
    let source = path(fields.next()?);
    let superblock_options = text(fields.next()?);
    Some(Entry { id, parent, device, root, target, options, tags, kind, source, superblock_options })
}

fn number(field: &[u8]) -> Option<u64> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

fn device(field: &[u8]) -> Option<(u32, u32)> {
    let (major, minor) = std::str::from_utf8(field).ok()?.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn path(field: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(unescape(field)))
}

fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(&unescape(field)).into_owned()
}

/// The kernel writes space, tab, newline, `\` and `#` as `\` and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        match octal(rest) {
            Some(byte) => {
                bytes.push(byte);
                rest = &rest[4..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    bytes
}

fn octal(escape: &[u8]) -> Option<u8> {
    match escape {
        [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..] => {
            Some(((a - b'0') << 6) | ((b - b'0') << 3) | (c - b'0'))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_line_of_the_manual_is_read() {
        let line = b"36 35 98:0 /mnt1 /mnt\\0402 rw,noatime shared:1 master:7 - ext3 /dev/root rw,errors=continue\n";
        let entries = parse(line);
        assert_eq!(entries.len(), 1);
        assert_eq!(entries[0].target, Path::new("/mnt 2"));
        assert_eq!(entries[0].device, (98, 0));
        assert_eq!(entries[0].tags, ["shared:1", "master:7"]);
        assert_eq!(entries[0].kind, "ext3");
        assert_eq!(entries[0].superblock_options, "rw,errors=continue");
    }

    #[test]
    fn the_own_table_holds_the_root_and_proc() {
        let entries = read().unwrap();
        assert!(entries.iter().any(|entry| entry.target == Path::new("/")));
        assert!(is_mount_point(Path::new("/proc")).unwrap());
        assert!(!is_mount_point(Path::new("/proc/self")).unwrap());
        assert!(!is_mount_point(Path::new("/nowhere/at/all")).unwrap());
    }

    fn escape(bytes: &[u8]) -> Vec<u8> {
        let special = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\\' | b'#');
        bytes
            .iter()
            .flat_map(|byte| if special(byte) { format!("\\{byte:03o}").into_bytes() } else { vec![*byte] })
            .collect()
    }

    proptest! {
        #[test]
        fn paths_of_any_bytes_survive_the_kernels_escapes(path in proptest::collection::vec(1u8.., 1..40)) {
            prop_assert_eq!(unescape(&escape(&path)), path);
        }

        #[test]
        fn any_bytes_are_parsed_without_panic_into_at_most_a_line_each(
            table in proptest::collection::vec(prop_oneof![Just(b' '), Just(b'\n'), Just(b'\\'), Just(b'-'), any::<u8>()], 0..400)
        ) {
            let lines = table.split(|byte| *byte == b'\n').count();
            prop_assert!(parse(&table).len() <= lines);
        }
    }
}
