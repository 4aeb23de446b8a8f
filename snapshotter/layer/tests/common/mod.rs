//! Archives made by hand, also such as no program would make.
#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use gantry_layer::{Applied, ApplyError, Options, Reason, Whiteouts, apply};

/// A tar under construction.
#[derive(Default, Clone)]
pub struct Tar(pub Vec<u8>);

impl Tar {
    pub fn new() -> Tar {
        Tar::default()
    }

    /// Adds a header as it is, and content padded to whole blocks.
    pub fn raw(mut self, header: &tar::Header, content: &[u8]) -> Tar {
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub fn entry(self, flag: u8, path: &str, link: &str, content: &[u8]) -> Tar {
        self.raw(&header(flag, path, link, content.len() as u64), content)
    }

    pub fn file(self, path: &str, content: &str) -> Tar {
        self.entry(b'0', path, "", content.as_bytes())
    }

    pub fn dir(self, path: &str) -> Tar {
        self.entry(b'5', path, "", b"")
    }

    pub fn symlink(self, path: &str, target: &str) -> Tar {
        self.entry(b'2', path, target, b"")
    }

    pub fn link(self, path: &str, target: &str) -> Tar {
        self.entry(b'1', path, target, b"")
    }

    /// Adds PAX records for the next entry.
    pub fn pax(self, records: &[(&str, &[u8])]) -> Tar {
        let mut bytes = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let length = (1..).map(|digits| rest + digits).find(|n| n.to_string().len() + rest == *n).unwrap();
            bytes.extend_from_slice(format!("{length} {key}=").as_bytes());
            bytes.extend_from_slice(value);
            bytes.push(b'\n');
        }
        self.entry(b'x', "pax", "", &bytes)
    }

    pub fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

/// A header with any name, and modification time 1000.
pub fn header(flag: u8, path: &str, link: &str, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    let bytes = header.as_mut_bytes();
    bytes[..path.len()].copy_from_slice(path.as_bytes());
    bytes[157..157 + link.len()].copy_from_slice(link.as_bytes());
    bytes[156] = flag;
    header.set_mode(if flag == b'5' { 0o755 } else { 0o644 });
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(size);
    header.set_mtime(1000);
    header.set_cksum();
    header
}

pub fn remove() -> Options {
    Options::default()
}

pub fn overlay(parents: &[&Path]) -> Options {
    let parents = parents.iter().map(|path| path.to_path_buf()).collect();
    Options { whiteouts: Whiteouts::Overlay, parents, ..Options::default() }
}

/// A root inside a directory that must stay as it is.
pub struct Sandbox {
    outer: tempfile::TempDir,
}

impl Sandbox {
    pub fn new() -> Sandbox {
        Self::within(tempfile::tempdir().unwrap())
    }

    /// On a file system whose own speed does not matter.
    pub fn in_memory() -> Sandbox {
        Self::within(tempfile::tempdir_in("/dev/shm").unwrap())
    }

    fn within(outer: tempfile::TempDir) -> Sandbox {
        fs::create_dir(outer.path().join("root")).unwrap();
        fs::write(outer.path().join("secret"), "untouched").unwrap();
        fs::set_permissions(outer.path().join("secret"), fs::Permissions::from_mode(0o600)).unwrap();
        Sandbox { outer }
    }

    pub fn root(&self) -> PathBuf {
        self.outer.path().join("root")
    }

    pub fn outer(&self) -> &Path {
        self.outer.path()
    }

    pub fn apply(&self, tar: &[u8]) -> Result<Applied, ApplyError> {
        apply(tar, &self.root(), &remove())
    }

    pub fn read(&self, path: &str) -> String {
        fs::read_to_string(self.root().join(path)).unwrap()
    }

    pub fn exists(&self, path: &str) -> bool {
        fs::symlink_metadata(self.root().join(path)).is_ok()
    }

    /// Panics if anything beside the root changed.
    pub fn assert_untouched(&self) {
        let mut names: Vec<_> = fs::read_dir(self.outer()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["root", "secret"]);
        assert_eq!(fs::read_to_string(self.outer().join("secret")).unwrap(), "untouched");
        let metadata = fs::metadata(self.outer().join("secret")).unwrap();
        assert_eq!((metadata.mode() & 0o7777, metadata.nlink()), (0o600, 1));
    }
}

pub fn reason(result: Result<Applied, ApplyError>) -> Reason {
    result.expect_err("the layer was accepted").reason
}

pub fn metadata(path: &Path) -> fs::Metadata {
    fs::symlink_metadata(path).unwrap()
}
