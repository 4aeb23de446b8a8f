//! Layers as directories that the kernel's overlay file system stacks.

use std::path::Path;

use async_trait::async_trait;
use gantry_types::{Filter, Labels, Mount};

use crate::contract::{Info, Snapshotter, Usage};
use crate::error::Error;

/// How an overlay snapshotter behaves.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Report where a snapshot's changes lie in the label [`crate::UPPERDIR_LABEL`].
    pub upperdir_label: bool,
    /// Options added to every overlay mount (`volatile`, `index=on`, …).
    pub mount_options: Vec<String>,
    /// `commit` returns only when the layer's files are durable (as if followed by `sync`).
    pub sync_commit: bool,
}

/// Layers as directories that the kernel's overlay file system stacks.
pub struct Overlay {}

impl Overlay {
    /// Opens (or makes) a snapshotter in `root`: probes the kernel and the file system, finishes or undoes what a crash
    /// left half done. A damaged record costs that snapshot and those above it, and is named in the log.
    ///
    /// # Errors
    /// [`Error::Unusable`] when overlays cannot lie there; [`Error::Io`].
    pub fn open(_root: &Path, _config: Config) -> Result<Overlay, Error> {
        todo!()
    }
}

#[async_trait]
impl Snapshotter for Overlay {
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
