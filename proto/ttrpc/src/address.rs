//! Where a ttrpc peer listens: a unix socket with a path, or one in the abstract name space.

use std::fmt;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::SocketAddr;
use std::path::{Path, PathBuf};

/// A unix socket's address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// In the file system.
    Path(PathBuf),
    /// In the abstract name space (unix(7)), without the leading NUL.
    Abstract(Vec<u8>),
}

impl Address {
    /// Reads an address as shims print it: `unix://PATH` is a path, anything without that scheme is an abstract name.
    pub fn of_shim(text: &str) -> Address {
        match text.strip_prefix("unix://") {
            Some(path) => Address::Path(path.into()),
            None => Address::Abstract(text.trim_start_matches(['\0', '@']).as_bytes().to_vec()),
        }
    }

    /// Reads an address as `TTRPC_ADDRESS` and configuration spell it: a path, with or without `unix://`; `@NAME` is abstract.
    pub fn of_path(text: &str) -> Address {
        match text.strip_prefix('@') {
            Some(name) => Address::Abstract(name.as_bytes().to_vec()),
            None => Address::Path(text.strip_prefix("unix://").unwrap_or(text).into()),
        }
    }

    /// The path, where it has one.
    pub fn as_path(&self) -> Option<&Path> {
        match self {
            Address::Path(path) => Some(path),
            Address::Abstract(_) => None,
        }
    }

    /// The address as the standard library's sockets take it.
    ///
    /// # Errors
    /// When the path or name does not fit into the kernel's 108 bytes.
    pub fn to_socket_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Address::Path(path) => SocketAddr::from_pathname(path),
            Address::Abstract(name) => SocketAddr::from_abstract_name(name),
        }
    }

    /// The bytes of the name, without scheme or marker.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Address::Path(path) => path.as_os_str().as_bytes(),
            Address::Abstract(name) => name,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Path(path) => write!(f, "unix://{}", path.display()),
            Address::Abstract(name) => write!(f, "@{}", String::from_utf8_lossy(name)),
        }
    }
}
