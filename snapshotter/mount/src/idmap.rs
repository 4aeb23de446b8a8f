//! Id maps and the user namespaces that carry them into `mount_setattr(2)`.

use std::os::fd::OwnedFd;

use gantry_types::{ErrorKind, HasKind};

use crate::error::Error;

/// `length` ids from `container` on (as seen inside) are those from `host` on outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First id inside.
    pub container: u32,
    /// First id outside.
    pub host: u32,
    /// How many; not 0.
    pub length: u32,
}

/// A map of user or group ids: 1 to 340 ranges that do not overlap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdMap(Vec<Range>);

impl IdMap {
    /// Checks the ranges.
    ///
    /// # Errors
    /// [`InvalidIdMap`] when there is none or too many, one is empty, runs over, or overlaps another.
    pub fn new(_ranges: Vec<Range>) -> Result<IdMap, InvalidIdMap> {
        todo!()
    }

    /// Parses `CONTAINER:HOST:LENGTH[,…]`, as containerd's labels and mount options have it.
    ///
    /// # Errors
    /// As [`IdMap::new`].
    pub fn parse(_text: &str) -> Result<IdMap, InvalidIdMap> {
        todo!()
    }

    /// The ranges.
    pub fn ranges(&self) -> &[Range] {
        &self.0
    }

    /// The id outside of `container`, if mapped.
    pub fn to_host(&self, _container: u32) -> Option<u32> {
        todo!()
    }
}

/// A new user namespace with these maps, held by nothing but the descriptor. Made by a child that lives for
/// some hundred microseconds and sends no `SIGCHLD`.
///
/// # Errors
/// [`Error::Call`] with step `UserNamespace`.
pub fn user_namespace(_uids: &IdMap, _gids: &IdMap) -> Result<OwnedFd, Error> {
    todo!()
}

/// Not an id map.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid id map {text:?}: {reason}")]
pub struct InvalidIdMap {
    /// The map.
    pub text: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl HasKind for InvalidIdMap {
    fn kind(&self) -> ErrorKind {
        ErrorKind::InvalidArgument
    }
}
