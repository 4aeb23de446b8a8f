//! Layers as full copies of directories.

use std::path::Path;

use async_trait::async_trait;
use gantry_types::{Filter, Labels, Mount};

use crate::contract::{Info, Snapshotter, Usage};
use crate::error::Error;


/// Layers as full copies of directories.
pub struct Native {}

impl Native {
    /// Opens (or makes) a snapshotter in `root`: finishes or undoes what a crash
    /// left half done. A damaged record costs that snapshot and those above it, and is named in the log.
    ///
    /// # Errors
    /// [`Error::Unusable`] when it is no directory of ours; [`Error::Io`].
    pub fn open(_root: &Path) -> Result<Native, Error> {
        todo!()
    }
}

#[async_trait]
impl Snapshotter for Native {
    async fn stat(&self, _key: &str) -> Result<Info, Error> {
        todo!()
    }
    async fn update(&self, _info: Info, _fieldpaths: &[String]) -> Result<Info, Error> {
        todo!()
    }
    async fn usage(&self, _key: &str) -> Result<Usage, Error> {
        todo!()
    }
    async fn mounts(&self, _key: &str) -> Result<Vec<Mount>, Error> {
        todo!()
    }
    async fn prepare(&self, _key: &str, _parent: Option<&str>, _labels: Labels) -> Result<Vec<Mount>, Error> {
        todo!()
    }
    async fn view(&self, _key: &str, _parent: Option<&str>, _labels: Labels) -> Result<Vec<Mount>, Error> {
        todo!()
    }
    async fn commit(&self, _name: &str, _key: &str, _parent: Option<&str>, _labels: Labels) -> Result<(), Error> {
        todo!()
    }
    async fn remove(&self, _key: &str) -> Result<(), Error> {
        todo!()
    }
    async fn walk(&self, _filter: &Filter) -> Result<Vec<Info>, Error> {
        todo!()
    }
    async fn cleanup(&self) -> Result<(), Error> {
        todo!()
    }
    async fn sync(&self, _name: &str) -> Result<(), Error> {
        todo!()
    }
}
