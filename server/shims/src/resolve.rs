//! From a runtime's name to the binary of its shim.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// The binary that holds what asks for containerd's default runtime, unless configured otherwise.
const DEFAULT_BINARY: &str = "containerd-shim-gantry-v1";
/// The name that clients send by default.
const DEFAULT_NAME: &str = "io.containerd.runc.v2";

/// Finds binaries.
#[derive(Debug)]
pub(crate) struct Resolver {
    /// Configured binaries by runtime name.
    pub(crate) runtimes: BTreeMap<String, PathBuf>,
    /// Directories searched, in order: beside the daemon, then `PATH`.
    pub(crate) search: Vec<PathBuf>,
}

impl Resolver {
    /// The binary for a runtime's name or absolute path.
    pub(crate) fn resolve(&self, name: &str) -> Result<PathBuf> {
        if let Some(path) = self.runtimes.get(name) {
            return self.configured(name, path);
        }
        if name.starts_with('/') {
            return executable(Path::new(name)).ok_or_else(|| self.missing(name, name));
        }
        let binary = binary_name(name)?;
        self.search(&binary).ok_or_else(|| self.missing(name, &binary))
    }

    fn configured(&self, name: &str, path: &Path) -> Result<PathBuf> {
        let found = if path.is_absolute() { executable(path) } else { self.search(&path.to_string_lossy()) };
        found.ok_or_else(|| self.missing(name, &path.to_string_lossy()))
    }

    fn search(&self, binary: &str) -> Option<PathBuf> {
        self.search.iter().find_map(|directory| executable(&directory.join(binary)))
    }

    fn missing(&self, name: &str, binary: &str) -> Error {
        let searched = self.search.iter().map(|d| d.display().to_string()).collect::<Vec<_>>().join(":");
        Error::NoBinary { name: name.into(), binary: binary.into(), searched }
    }
}

/// `io.containerd.runc.v1` → `containerd-shim-runc-v1`; containerd's default name means our own shim.
fn binary_name(name: &str) -> Result<String> {
    let invalid = |reason| Error::RuntimeName { name: name.chars().take(120).collect(), reason };
    if name == DEFAULT_NAME {
        return Ok(DEFAULT_BINARY.into());
    }
    if name.contains('/') {
        return Err(invalid("neither an absolute path nor a name"));
    }
    let parts: Vec<&str> = name.split('.').collect();
    match parts.as_slice() {
        [_, .., kind, version] if !kind.is_empty() && !version.is_empty() => {
            Ok(format!("containerd-shim-{kind}-{version}"))
        }
        _ => Err(invalid("not of the form io.containerd.NAME.VERSION")),
    }
}

fn executable(path: &Path) -> Option<PathBuf> {
    let metadata = std::fs::metadata(path).ok()?;
    (metadata.is_file() && metadata.permissions().mode() & 0o111 != 0).then(|| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_binaries_by_their_last_two_parts() {
        assert_eq!(binary_name("io.containerd.kata.v2").unwrap(), "containerd-shim-kata-v2");
        assert_eq!(binary_name("io.containerd.runc.v2").unwrap(), "containerd-shim-gantry-v1");
        assert_eq!(binary_name("a.runc.v1").unwrap(), "containerd-shim-runc-v1");
    }

    #[test]
    fn what_is_neither_name_nor_absolute_path_is_refused() {
        for name in ["", "runc", "runc.", "./shim", "a/b.c.d", "a..v1"] {
            assert!(binary_name(name).is_err(), "{name:?} should be refused");
        }
    }

    #[test]
    fn configured_binaries_win_and_paths_are_taken_as_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let binary = dir.path().join("containerd-shim-x-v1");
        std::fs::write(&binary, "#!/bin/sh\n").unwrap();
        let runtimes = BTreeMap::from([("io.containerd.runc.v2".to_owned(), binary.clone())]);
        let resolver = Resolver { runtimes, search: vec![dir.path().into()] };
        assert!(matches!(resolver.resolve("io.containerd.x.v1"), Err(Error::NoBinary { .. })), "not executable yet");
        std::fs::set_permissions(&binary, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(resolver.resolve("io.containerd.runc.v2").unwrap(), binary);
        assert_eq!(resolver.resolve("io.containerd.x.v1").unwrap(), binary);
        assert_eq!(resolver.resolve(binary.to_str().unwrap()).unwrap(), binary);
    }
}
