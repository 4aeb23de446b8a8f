//! The unix socket clients connect to: bound under another name, given to its group, then moved into place, so that
//! nobody connects before the permissions hold and a stale socket is replaced in one step.

use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::{fs, io};

use gantry_types::{ErrorKind, HasKind};
use tokio::net::{TcpListener, UnixListener};

/// Who may connect: mode 0660 for this user and group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// A socket that cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The path is relative; clients cannot dial it.
    #[error("socket address {0:?} is not an absolute path")]
    Relative(PathBuf),
    /// Somebody answers there.
    #[error("another daemon is listening on {0:?}")]
    InUse(PathBuf),
    /// The kernel refused a port.
    #[error("cannot listen on {address}: {source}")]
    Tcp {
        /// The address and port.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The kernel refused.
    #[error("cannot listen on {path:?}: {source}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl HasKind for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Error::Relative(_) => ErrorKind::InvalidArgument,
            Error::InUse(_) => ErrorKind::FailedPrecondition,
            Error::Tcp { source, .. } | Error::Io { source, .. } => ErrorKind::of_io(source),
        }
    }
}

/// Listens on `path`, making its directory where there is none.
///
/// # Errors
/// [`Error`]; in particular when another daemon answers there.
pub(crate) fn listen(path: &Path, owner: Owner) -> Result<UnixListener, Error> {
    if !path.is_absolute() {
        return Err(Error::Relative(path.into()));
    }
    if StdStream::connect(path).is_ok() {
        return Err(Error::InUse(path.into()));
    }
    bind(path, owner).map_err(|source| Error::Io { path: path.into(), source })
}

/// Listens on a TCP port.
///
/// # Errors
/// [`Error::Tcp`].
pub(crate) async fn listen_tcp(address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|source| Error::Tcp { address, source })
}

/// Lets a user and a group connect to a socket that is there, besides root.
///
/// # Errors
/// [`Error::Io`].
pub(crate) fn hand_over(path: &Path, owner: Owner) -> Result<(), Error> {
    let given = chown(path, Some(owner.uid), Some(owner.gid))
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o660)));
    given.map_err(|source| Error::Io { path: path.into(), source })
}

fn bind(path: &Path, owner: Owner) -> io::Result<UnixListener> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    remove(Path::new(&fresh))?;
    let listener = UnixListener::bind(&fresh)?;
    chown(&fresh, Some(owner.uid), Some(owner.gid))?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o660))?;
    fs::rename(&fresh, path)?;
    Ok(listener)
}

/// Removes a socket; one that is not there is no error.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/gantry.sock");
        let first = listen(&path, Owner::default()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o660);
        assert!(matches!(listen(&path, Owner::default()), Err(Error::InUse(_))));
        drop(first);
        assert!(path.exists());
        let _second = listen(&path, Owner::default()).unwrap();
        assert!(!folder.path().join("deep/gantry.sock.new").exists());
    }

    #[tokio::test]
    async fn a_relative_address_is_refused() {
        assert!(matches!(listen(Path::new("gantry.sock"), Owner::default()), Err(Error::Relative(_))));
    }
}
