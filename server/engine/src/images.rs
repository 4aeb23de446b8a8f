//! Images: names for descriptors.

use gantry_types::{Digest, Filter, Scope};

use crate::Result;

pub use gantry_metadata::Image;

/// The images of all namespaces.
#[derive(Clone)]
pub struct Images {}

impl Images {
    /// One image.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn get(&self, scope: &Scope, name: &str) -> Result<Image> {
        todo!()
    }

    /// The images that `filter` selects (`name`, `target.digest`, `target.mediatype`, `labels`, `annotations`), by name.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub async fn list(&self, scope: &Scope, filter: &Filter) -> Result<Vec<Image>> {
        todo!()
    }

    /// Enters an image; its times are set here (`created` only where it is the epoch).
    ///
    /// # Errors
    /// `AlreadyExists`, `InvalidArgument`.
    pub async fn create(&self, scope: &Scope, image: Image) -> Result<Image> {
        todo!()
    }

    /// Changes what `fields` name (`target`, `labels`, `labels.KEY`, `annotations`, `annotations.KEY`), all where there
    /// are none.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` for another field.
    pub async fn update(&self, scope: &Scope, image: Image, fields: &[String]) -> Result<Image> {
        todo!()
    }

    /// Removes an image; with `target` only where it still stands for that digest; with `sync` what it alone kept is
    /// gone when this returns.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn delete(&self, scope: &Scope, name: &str, target: Option<&Digest>, sync: bool) -> Result<()> {
        todo!()
    }
}
