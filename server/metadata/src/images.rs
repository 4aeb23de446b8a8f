//! Images: names for content.

use std::time::SystemTime;

use gantry_types::{Digest, Id, labels};

use crate::keys::Kind;
use crate::leases::hold;
use crate::scan::Scan;
use crate::{Db, Error, Image, Object, Resource, mask};

/// Images of one namespace.
pub struct Images<'d> {
    pub(crate) db: &'d Db,
    pub(crate) namespace: Id,
}

impl Images<'_> {
    /// The image of that name.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn get(&self, name: &str) -> Result<Image, Error> {
        self.db.find(&self.namespace, name.as_bytes())
    }

    /// All images, sorted by name.
    pub fn scan(&self) -> Scan<Image> {
        self.db.scan(&self.namespace, Vec::new())
    }

    /// Creates an image. Where it expires, `lease` keeps it.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`], [`Error::Invalid`], [`Error::Label`], [`Error::NotFound`] for the lease.
    pub async fn create(&self, mut image: Image, lease: Option<&str>) -> Result<Image, Error> {
        if image.created == SystemTime::UNIX_EPOCH {
            image.created = SystemTime::now();
        }
        image.updated = image.created;
        let lease = image_lease(&image, lease);
        let (namespace, resource) = (self.namespace.clone(), Resource::Image(image.name.clone()));
        self.db.create(&self.namespace, image, move |tx| hold(tx, &namespace, lease.as_deref(), &resource)).await
    }

    /// Changes an image; an empty mask replaces all of it.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::UnknownField`], [`Error::Invalid`], [`Error::Label`].
    pub async fn update(&self, image: Image, mask: Vec<String>, lease: Option<&str>) -> Result<Image, Error> {
        let (namespace, lease) = (self.namespace.clone(), lease.map(str::to_owned));
        let name = image.name.clone().into_bytes();
        self.db
            .modify(&self.namespace, name, move |tx, old: Image| {
                let image = Image { updated: SystemTime::now(), ..mask::image(old, image, &mask)? };
                let lease = image_lease(&image, lease.as_deref());
                hold(tx, &namespace, lease.as_deref(), &Resource::Image(image.name.clone()))?;
                Ok(image)
            })
            .await
    }

    /// Removes an image and returns it; its content goes with the next collection. `target` demands what it names.
    ///
    /// # Errors
    /// [`Error::NotFound`]; also where it names something else than `target`.
    pub async fn delete(&self, name: &str, target: Option<Digest>) -> Result<Image, Error> {
        self.db
            .remove(&self.namespace, name.as_bytes().to_vec(), move |_, image: &Image| match target {
                Some(target) if target != image.target.digest => Err(Error::NotFound(Object::new(
                    Kind::Image.noun(),
                    format!("{} with target {target}", image.name),
                ))),
                _ => Ok(()),
            })
            .await
    }
}

/// An image that never expires needs no lease.
fn image_lease(image: &Image, lease: Option<&str>) -> Option<String> {
    lease.filter(|_| image.labels.contains_key(labels::GC_EXPIRE)).map(str::to_owned)
}
