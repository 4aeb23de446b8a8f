//! Records seen as they are stored, with nothing copied: for listings, which look at every record and keep none.

use std::borrow::Cow;
use std::time::SystemTime;

use gantry_types::Fields;
use serde::Deserialize;

use crate::codec::{self, Time, system_time};
use crate::table::{Record, damaged};
use crate::{Container, Error, Image};

/// A kind of record that can be seen without a copy.
pub trait Viewed {
    /// How it looks.
    type View<'a>: Fields;

    /// The view of a stored record.
    ///
    /// # Errors
    /// [`Error::Damaged`].
    fn view<'a>(name: &'a [u8], stored: &'a [u8]) -> Result<Self::View<'a>, Error>;
}

/// Labels and annotations.
type Texts<'a> = Vec<(&'a str, &'a str)>;

/// A message of somebody else's type.
#[derive(Debug, Deserialize)]
pub struct AnyView<'a> {
    /// Its type.
    pub type_url: &'a str,
    unpacked: Option<u32>,
    bytes: &'a [u8],
}

impl AnyView<'_> {
    /// Length of the message in bytes.
    #[allow(clippy::len_without_is_empty, reason = "of the message, not of what is seen here")]
    pub fn len(&self) -> usize {
        self.unpacked.map_or(self.bytes.len(), |length| length as usize)
    }

    /// Appends the message, [`AnyView::len`] bytes.
    ///
    /// # Errors
    /// [`Error::Damaged`]; what was appended then is of no use.
    pub fn append_to(&self, out: &mut Vec<u8>) -> Result<(), Error> {
        codec::append_unpacked(self.bytes, self.unpacked, out).map_err(|e| self.damaged(&e))
    }

    fn damaged(&self, reason: &codec::Unreadable) -> Error {
        damaged::<Container>(self.type_url.as_bytes(), reason)
    }
}

/// A [`Container`].
#[derive(Debug)]
pub struct ContainerView<'a> {
    /// Its id.
    pub id: &'a str,
    stored: StoredContainer<'a>,
}

#[derive(Debug, Deserialize)]
struct StoredRuntime<'a> {
    name: &'a str,
    #[serde(borrow)]
    options: Option<AnyView<'a>>,
}

/// The form of `ContainerV1`.
#[derive(Debug, Deserialize)]
struct StoredContainer<'a> {
    #[serde(borrow)]
    labels: Texts<'a>,
    image: &'a str,
    runtime: StoredRuntime<'a>,
    spec: Option<AnyView<'a>>,
    snapshotter: &'a str,
    snapshot_key: &'a str,
    sandbox_id: &'a str,
    extensions: Vec<(&'a str, AnyView<'a>)>,
    created: Time,
    updated: Time,
}

impl<'a> ContainerView<'a> {
    /// Its labels.
    pub fn labels(&self) -> &[(&'a str, &'a str)] {
        &self.stored.labels
    }

    /// Name of its image.
    pub fn image(&self) -> &'a str {
        self.stored.image
    }

    /// Name of its runtime, and the options.
    pub fn runtime(&self) -> (&'a str, Option<&AnyView<'a>>) {
        (self.stored.runtime.name, self.stored.runtime.options.as_ref())
    }

    /// Its specification.
    pub fn spec(&self) -> Option<&AnyView<'a>> {
        self.stored.spec.as_ref()
    }

    /// Snapshotter and key of its root file system.
    pub fn snapshot(&self) -> (&'a str, &'a str) {
        (self.stored.snapshotter, self.stored.snapshot_key)
    }

    /// Its sandbox.
    pub fn sandbox_id(&self) -> &'a str {
        self.stored.sandbox_id
    }

    /// Its extensions.
    pub fn extensions(&self) -> &[(&'a str, AnyView<'a>)] {
        &self.stored.extensions
    }

    /// When it was created, and when changed.
    pub fn times(&self) -> [SystemTime; 2] {
        [system_time(self.stored.created), system_time(self.stored.updated)]
    }
}

impl Viewed for Container {
    type View<'a> = ContainerView<'a>;

    fn view<'a>(name: &'a [u8], stored: &'a [u8]) -> Result<ContainerView<'a>, Error> {
        let (id, stored) = parts::<Container, _>(name, stored)?;
        Ok(ContainerView { id, stored })
    }
}

impl Fields for ContainerView<'_> {
    fn field(&self, path: &[&str]) -> Option<Cow<'_, str>> {
        match path {
            ["id"] => text(self.id),
            ["runtime", "name"] => text(self.stored.runtime.name),
            ["image"] => text(self.stored.image),
            ["sandbox", "id"] | ["sandbox_id"] => text(self.stored.sandbox_id),
            ["labels", key @ ..] => value(&self.stored.labels, key),
            _ => None,
        }
    }
}

/// An [`Image`].
#[derive(Debug)]
pub struct ImageView<'a> {
    /// Its name.
    pub name: &'a str,
    stored: StoredImage<'a>,
}

/// The form of `DescriptorV1`.
#[derive(Debug, Deserialize)]
pub struct DescriptorView<'a> {
    /// Media type.
    pub media_type: &'a str,
    /// Digest.
    pub digest: &'a str,
    /// Size in bytes.
    pub size: u64,
    #[serde(borrow)]
    _urls: Vec<&'a str>,
    /// Annotations.
    pub annotations: Texts<'a>,
    _platform: Option<(&'a str, &'a str, &'a str, &'a str, Vec<&'a str>)>,
    _artifact_type: Option<&'a str>,
}

/// The form of `ImageV1`.
#[derive(Debug, Deserialize)]
struct StoredImage<'a> {
    #[serde(borrow)]
    target: DescriptorView<'a>,
    labels: Texts<'a>,
    created: Time,
    updated: Time,
}

impl<'a> ImageView<'a> {
    /// What it names.
    pub fn target(&self) -> &DescriptorView<'a> {
        &self.stored.target
    }

    /// Its labels.
    pub fn labels(&self) -> &[(&'a str, &'a str)] {
        &self.stored.labels
    }

    /// When it was created, and when changed.
    pub fn times(&self) -> [SystemTime; 2] {
        [system_time(self.stored.created), system_time(self.stored.updated)]
    }
}

impl Viewed for Image {
    type View<'a> = ImageView<'a>;

    fn view<'a>(name: &'a [u8], stored: &'a [u8]) -> Result<ImageView<'a>, Error> {
        let (name, stored) = parts::<Image, _>(name, stored)?;
        Ok(ImageView { name, stored })
    }
}

impl Fields for ImageView<'_> {
    fn field(&self, path: &[&str]) -> Option<Cow<'_, str>> {
        match path {
            ["name"] => text(self.name),
            ["target", "digest"] => text(self.stored.target.digest),
            ["target", "mediatype"] => text(self.stored.target.media_type),
            ["labels", key @ ..] => value(&self.stored.labels, key),
            ["annotations", key @ ..] => value(&self.stored.target.annotations, key),
            _ => None,
        }
    }
}

/// Name and body of a stored record.
fn parts<'a, R: Record, B: Deserialize<'a>>(name: &'a [u8], stored: &'a [u8]) -> Result<(&'a str, B), Error> {
    let text = std::str::from_utf8(name).map_err(|_| damaged::<R>(name, &"the name is not text"))?;
    let body = codec::decode(stored).map_err(|e| damaged::<R>(name, &e))?;
    Ok((text, body))
}

/// The value of a field that is absent while empty.
fn text(value: &str) -> Option<Cow<'_, str>> {
    (!value.is_empty()).then_some(Cow::Borrowed(value))
}

fn value<'a>(texts: &Texts<'a>, path: &[&str]) -> Option<Cow<'a, str>> {
    let key: Cow<'_, str> = match path {
        [key] => Cow::Borrowed(key),
        _ => Cow::Owned(path.join(".")),
    };
    texts.iter().find(|(name, _)| *name == key).map(|(_, value)| Cow::Borrowed(*value))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use gantry_types::{Any, Descriptor, Digest, Labels, Platform};
    use proptest::prelude::*;

    use super::*;
    use crate::Runtime;

    fn texts() -> impl Strategy<Value = Labels> {
        proptest::collection::btree_map("[a-z./]{1,12}", "[ -~]{1,20}", 0..4)
    }

    fn any() -> impl Strategy<Value = Any> {
        (".{0,20}", proptest::collection::vec(0u8..4, 0..600)).prop_map(|(type_url, value)| Any { type_url, value })
    }

    fn owned(texts: &[(&str, &str)]) -> Labels {
        texts.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn message(view: &AnyView<'_>) -> Any {
        let mut value = b"before".to_vec();
        view.append_to(&mut value).unwrap();
        let value = value.split_off(b"before".len());
        assert_eq!(value.len(), view.len());
        Any { type_url: view.type_url.to_owned(), value }
    }

    fn back(view: &ContainerView<'_>) -> Container {
        let ((runtime, options), (snapshotter, snapshot_key), [created, updated]) =
            (view.runtime(), view.snapshot(), view.times());
        Container {
            id: view.id.parse().unwrap(),
            labels: owned(view.labels()),
            image: view.image().to_owned(),
            runtime: Runtime { name: runtime.to_owned(), options: options.map(message) },
            spec: view.spec().map(message),
            snapshotter: snapshotter.to_owned(),
            snapshot_key: snapshot_key.to_owned(),
            sandbox_id: view.sandbox_id().to_owned(),
            extensions: view.extensions().iter().map(|(k, v)| ((*k).to_owned(), message(v))).collect(),
            created,
            updated,
        }
    }

    proptest! {
        #[test]
        fn a_container_looks_as_it_was_stored(
            labels in texts(), image in ".{0,20}", options in proptest::option::of(any()), spec in proptest::option::of(any()),
            extensions in proptest::collection::btree_map("[a-z]{1,9}", any(), 0..3), seconds in 0u64..1 << 33, flags: [bool; 2],
        ) {
            let text = |there: bool, text: &str| if there { text.to_owned() } else { String::new() };
            let mut container = Container {
                id: "c1".parse().unwrap(), labels, image, runtime: Runtime { name: "r".into(), options }, spec, extensions,
                snapshotter: text(flags[0], "overlayfs"), snapshot_key: text(flags[0], "key"), sandbox_id: text(flags[1], "pod"),
                created: SystemTime::UNIX_EPOCH + Duration::from_secs(seconds), updated: SystemTime::UNIX_EPOCH,
            };
            // Edges stand before the body.
            container.labels.insert("containerd.io/gc.ref.content.l.0".into(), "sha256:0".into());
            container.labels.insert("containerd.io/gc.bref.image".into(), "i".into());
            container.labels.insert("containerd.io/gc.expire".into(), "2020-01-01T00:00:00Z".into());
            let stored = container.encode().unwrap();
            let view = Container::view(b"c1", &stored).unwrap();
            prop_assert_eq!(&back(&view), &container);
            for path in [&["id"][..], &["image"], &["runtime", "name"], &["sandbox_id"], &["labels", "containerd", "io/gc", "expire"], &["x"]] {
                prop_assert_eq!(view.field(path), container.field(path));
            }
        }

        #[test]
        fn an_image_looks_as_it_was_stored(labels in texts(), annotations in texts(), size in 1u64.., seconds in 0u64..1 << 33, with: bool) {
            let mut image = Image {
                name: "example.test/i:1".into(), target: Descriptor::new("m", Digest::of(b"x"), size), labels,
                created: SystemTime::UNIX_EPOCH, updated: SystemTime::UNIX_EPOCH + Duration::from_secs(seconds),
            };
            image.target.annotations = annotations;
            if with {
                image.target.urls = vec!["u".into(), "v".into()];
                image.target.artifact_type = Some("a".into());
                image.target.platform = Some(Platform { os: "linux".into(), architecture: "amd64".into(), os_features: vec!["f".into()], ..Platform::default() });
            }
            let stored = image.encode().unwrap();
            let view = Image::view(image.name.as_bytes(), &stored).unwrap();
            let target = view.target();
            prop_assert_eq!((view.name, target.media_type, target.digest, target.size), (&*image.name, "m", image.target.digest.as_str(), size));
            prop_assert_eq!((owned(view.labels()), owned(&target.annotations), view.times()), (image.labels.clone(), image.target.annotations.clone(), [image.created, image.updated]));
            for path in [&["name"][..], &["target", "digest"], &["target", "mediatype"], &["labels", "a"], &["annotations", "a"]] {
                prop_assert_eq!(view.field(path), image.field(path));
            }
        }

        #[test]
        fn garbage_is_an_error_and_never_a_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let versioned = [&[1u8][..], &bytes].concat();
            let _ = Container::view(b"c", &versioned).map(|view| view.spec().map(|spec| spec.append_to(&mut Vec::new()).is_ok()));
            let _ = Image::view(b"i", &versioned).map(|view| view.times());
        }
    }
}
