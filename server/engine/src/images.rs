//! Images: names for descriptors.

use std::collections::BTreeMap;
use std::sync::Arc;

use gantry_types::{Digest, Filter, Scope};

use crate::Result;
use crate::core::{Core, Listing, lease, select};
use crate::gc::Gc;

pub use gantry_metadata::{Image, ImageView};

/// The images of all namespaces.
#[derive(Clone)]
pub struct Images {
    pub(crate) core: Arc<Core>,
    pub(crate) gc: Gc,
}

impl Images {
    /// One image.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn get(&self, scope: &Scope, name: &str) -> Result<Image> {
        Ok(self.core.db.images(&scope.namespace).get(name)?)
    }

    /// The images that `filter` selects (`name`, `target.digest`, `target.mediatype`, `labels`, `annotations`), by name.
    ///
    /// # Errors
    /// None at present: damaged records are passed over.
    pub async fn list(&self, scope: &Scope, filter: &Filter) -> Result<Vec<Image>> {
        Ok(select(self.core.db.images(&scope.namespace).scan(), filter))
    }

    /// The same images, each shown as it is stored: for long listings.
    pub fn listing(&self, scope: &Scope, filter: Filter) -> Listing<Image> {
        Listing::new(self.core.db.images(&scope.namespace).scan(), filter)
    }

    /// Enters an image; its times are set here (`created` only where it is the epoch).
    ///
    /// # Errors
    /// `AlreadyExists`, `InvalidArgument`.
    pub async fn create(&self, scope: &Scope, image: Image) -> Result<Image> {
        let image = self.core.db.images(&scope.namespace).create(image, lease(scope)).await?;
        self.look_at_expiry(&image);
        let event = ImageCreate { name: image.name.clone(), labels: image.labels.clone() };
        self.core.emit(&scope.namespace, "/images/create", &event);
        Ok(image)
    }

    /// Changes what `fields` name (`target`, `labels`, `labels.KEY`, `annotations`, `annotations.KEY`), all where there
    /// are none.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` for another field.
    pub async fn update(&self, scope: &Scope, image: Image, fields: &[String]) -> Result<Image> {
        let image = self.core.db.images(&scope.namespace).update(image, fields.to_vec(), lease(scope)).await?;
        self.look_at_expiry(&image);
        let event = ImageUpdate { name: image.name.clone(), labels: image.labels.clone() };
        self.core.emit(&scope.namespace, "/images/update", &event);
        Ok(image)
    }

    fn look_at_expiry(&self, image: &Image) {
        if image.labels.contains_key(gantry_types::labels::GC_EXPIRE) {
            self.core.garbage.expires();
        }
    }

    /// Removes an image; with `target` only where it still stands for that digest; with `sync` what it alone kept is
    /// gone when this returns.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn delete(&self, scope: &Scope, name: &str, target: Option<&Digest>, sync: bool) -> Result<()> {
        self.core.db.images(&scope.namespace).delete(name, target.cloned()).await?;
        self.core.emit(&scope.namespace, "/images/delete", &ImageDelete { name: name.to_owned() });
        self.gc.after_deletion(sync).await
    }
}

/// Payload of `/images/create`. The images' own messages live in the package of their service.
#[derive(Clone, PartialEq, prost::Message)]
struct ImageCreate {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(btree_map = "string, string", tag = "2")]
    labels: BTreeMap<String, String>,
}

/// Payload of `/images/update`.
#[derive(Clone, PartialEq, prost::Message)]
struct ImageUpdate {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(btree_map = "string, string", tag = "2")]
    labels: BTreeMap<String, String>,
}

/// Payload of `/images/delete`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ImageDelete {
    /// Name of the image.
    #[prost(string, tag = "1")]
    pub(crate) name: String,
}

/// Names the payloads as on the wire.
macro_rules! named {
    ($($message:ident),*) => {$(
        impl prost::Name for $message {
            const NAME: &'static str = stringify!($message);
            const PACKAGE: &'static str = "containerd.services.images.v1";
        }
    )*};
}

named!(ImageCreate, ImageUpdate, ImageDelete);
