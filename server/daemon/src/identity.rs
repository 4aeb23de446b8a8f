//! The daemon's identity: a UUID that stays with its root directory.

use std::path::Path;
use std::{fs, io};

/// The kernel makes random (version 4) UUIDs here.
const KERNEL: &str = "/proc/sys/kernel/random/uuid";

/// Where containerd keeps it too.
const FILE: &str = "io.containerd.grpc.v1.introspection/uuid";

/// Reads the identity of a root directory; makes one where there is none yet.
///
/// # Errors
/// When the file cannot be read or written.
pub(crate) fn load(root: &Path) -> io::Result<String> {
    let path = root.join(FILE);
    match fs::read_to_string(&path) {
        Ok(text) if is_uuid(text.trim()) => return Ok(text.trim().into()),
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let fresh = fs::read_to_string(KERNEL)?.trim().to_owned();
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(&path, &fresh)?;
    Ok(fresh)
}

fn is_uuid(text: &str) -> bool {
    let groups: Vec<&str> = text.split('-').collect();
    groups.iter().map(|group| group.len()).eq([8, 4, 4, 4, 12])
        && groups.iter().all(|group| group.bytes().all(|b| b.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_identity_stays_and_a_damaged_one_is_replaced() {
        let root = tempfile::tempdir().unwrap();
        let first = load(root.path()).unwrap();
        assert!(is_uuid(&first), "{first}");
        assert_eq!(load(root.path()).unwrap(), first);
        fs::write(root.path().join(FILE), "torn").unwrap();
        let second = load(root.path()).unwrap();
        assert!(is_uuid(&second) && second != first);
    }
}
