//! What a layer itself brought, so that its whiteouts spare it (OCI image-spec, layer.md, "Whiteouts": they apply to
//! lower layers only).

use std::collections::BTreeMap;

use rustix::fd::OwnedFd;
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::extract::remove_below;
use crate::dirs::{self, joined};

/// Paths that entries of this layer have made or changed, and the directories above them.
#[derive(Default)]
pub(super) struct Own(BTreeMap<Box<[u8]>, ()>);

impl Own {
    pub(super) fn add(&mut self, path: &[u8]) {
        let mut path = path;
        // Where a path is known, so is what is above it.
        while !path.is_empty() && self.0.insert(path.into(), ()).is_none() {
            path = dirs::split(path).0;
        }
    }

    pub(super) fn has(&self, path: &[u8]) -> bool {
        self.0.contains_key(path)
    }

    /// Forgets `path` and all below it.
    pub(super) fn remove(&mut self, path: &[u8]) {
        remove_below(&mut self.0, path);
    }

    /// Removes from `directory`, which is at `path`, all that this layer did not bring.
    pub(super) fn purge(&self, directory: &OwnedFd, path: &[u8]) -> Result<(), Errno> {
        for name in dirs::names(directory)? {
            let inner_path = joined(path, &name);
            if !self.has(&inner_path) {
                dirs::remove_tree(directory, &name)?;
                continue;
            }
            match dirs::child(directory, &name, OFlags::RDONLY | OFlags::DIRECTORY) {
                Ok(inner) => self.purge(&inner, &inner_path)?,
                Err(Errno::NOTDIR | Errno::LOOP) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
