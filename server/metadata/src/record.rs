//! The records, as callers see them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::SystemTime;

use gantry_types::{Any, Descriptor, Digest, Fields, Id, Labels};
use serde::{Deserialize, Serialize};

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceRecord {
    /// Its name.
    pub name: Id,
    /// Its labels.
    pub labels: Labels,
}

/// A name for content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The name, usually a reference.
    pub name: String,
    /// What it names.
    pub target: Descriptor,
    /// Its labels.
    pub labels: Labels,
    /// When it was created; set by the store where it is [`SystemTime::UNIX_EPOCH`], so that reproducible builds can give it.
    pub created: SystemTime,
    /// When it was last changed; set by the store.
    pub updated: SystemTime,
}

/// Which runtime, and its options.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Runtime {
    /// Name (`io.containerd.runc.v2`) or absolute path of the shim.
    pub name: String,
    /// Options for it, carried as they came.
    pub options: Option<Any>,
}

/// What a container shall be; no process yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Its id, unique in the namespace.
    pub id: Id,
    /// Its labels.
    pub labels: Labels,
    /// Name of the image it was made from; may be empty, and may no longer exist.
    pub image: String,
    /// What runs it.
    pub runtime: Runtime,
    /// OCI runtime specification, as it came.
    pub spec: Option<Any>,
    /// Which snapshotter holds its root file system; empty for none.
    pub snapshotter: String,
    /// Key of that snapshot; empty for none.
    pub snapshot_key: String,
    /// The sandbox it belongs to; empty for none.
    pub sandbox_id: String,
    /// Free extensions of clients.
    pub extensions: BTreeMap<String, Any>,
    /// When it was created; set by the store.
    pub created: SystemTime,
    /// When it was last changed; set by the store.
    pub updated: SystemTime,
}

/// What a sandbox (pod) shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    /// Its id, unique in the namespace.
    pub id: Id,
    /// Its labels.
    pub labels: Labels,
    /// What runs it.
    pub runtime: Runtime,
    /// Its specification, as it came.
    pub spec: Option<Any>,
    /// Name of the controller that runs it.
    pub sandboxer: String,
    /// Free extensions of clients.
    pub extensions: BTreeMap<String, Any>,
    /// When it was created; set by the store.
    pub created: SystemTime,
    /// When it was last changed; set by the store.
    pub updated: SystemTime,
}

/// Something that keeps resources alive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Its id, unique in the namespace. Free text: clients use layer names, too.
    pub id: String,
    /// Its labels; `containerd.io/gc.expire` and `containerd.io/gc.flat` mean something.
    pub labels: Labels,
    /// When it was created; set by the store.
    pub created: SystemTime,
}

/// Something that a lease keeps alive, whether it exists yet or not. The wire's type names are `content`, `ingests`,
/// `images` and `snapshots/SNAPSHOTTER`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Resource {
    /// A blob.
    Content(Digest),
    /// An image by name.
    Image(String),
    /// An ingest by ref.
    Ingest(String),
    /// A snapshot.
    Snapshot {
        /// Which snapshotter.
        snapshotter: String,
        /// Its key in the namespace.
        key: String,
    },
}

/// A blob that a namespace sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    /// Digest of the bytes.
    pub digest: Digest,
    /// Size in bytes.
    pub size: u64,
    /// Its labels in this namespace.
    pub labels: Labels,
    /// When the namespace came to see it; set by the store.
    pub created: SystemTime,
    /// When its labels were last changed; set by the store.
    pub updated: SystemTime,
}

/// Who may take up a blob by its digest alone, without bringing the bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sharing {
    /// Every namespace.
    #[default]
    Shared,
    /// Only from namespaces labelled `containerd.io/namespace.shareable=true`.
    Isolated,
}

/// What a snapshot is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SnapshotKind {
    /// Read-only, cannot be committed.
    View,
    /// Writable, can be committed.
    Active,
    /// Immutable, can be a parent.
    Committed,
}

/// A snapshot that a namespace sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Which snapshotter holds it.
    pub snapshotter: String,
    /// Its key in the namespace.
    pub key: String,
    /// Its key in the snapshotter: `NAMESPACE/SEQUENCE/KEY`.
    pub internal: String,
    /// What it is good for.
    pub kind: SnapshotKind,
    /// Key of its parent in the namespace.
    pub parent: Option<String>,
    /// Its labels.
    pub labels: Labels,
    /// When it was created; set by the store.
    pub created: SystemTime,
    /// When it was last changed; set by the store.
    pub updated: SystemTime,
}

/// An ingest that a namespace sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ingest {
    /// Its ref in the namespace.
    pub reference: String,
    /// Its ref in the content store.
    pub internal: String,
    /// Digest expected in the end, where known.
    pub expected: Option<Digest>,
    /// When garbage collection may take it, unless a lease keeps it.
    pub expires: Option<SystemTime>,
    /// When it was started; set by the store.
    pub created: SystemTime,
}

impl Resource {
    /// The wire's name for this type of resource.
    pub fn type_name(&self) -> Cow<'static, str> {
        match self {
            Resource::Content(_) => "content".into(),
            Resource::Image(_) => "images".into(),
            Resource::Ingest(_) => "ingests".into(),
            Resource::Snapshot { snapshotter, .. } => format!("snapshots/{snapshotter}").into(),
        }
    }

    /// The wire's id of this resource.
    pub fn id(&self) -> &str {
        match self {
            Resource::Content(digest) => digest.as_str(),
            Resource::Image(name) => name,
            Resource::Ingest(reference) => reference,
            Resource::Snapshot { key, .. } => key,
        }
    }

    /// The resource of that type name and id.
    ///
    /// # Errors
    /// [`crate::Error::UnknownResource`] for a type that cannot be leased, [`crate::Error::Invalid`] for a bad id.
    pub fn parse(type_name: &str, id: &str) -> Result<Resource, crate::Error> {
        let invalid = |reason| crate::Error::invalid("lease resource", type_name, reason);
        match (type_name, type_name.strip_prefix("snapshots/")) {
            ("content", _) => id.parse().map(Resource::Content).map_err(|_| invalid("the id is not a digest")),
            ("images", _) => Ok(Resource::Image(id.to_owned())),
            ("ingests", _) => Ok(Resource::Ingest(id.to_owned())),
            ("snapshots", _) | (_, Some("")) => Err(invalid("no snapshotter is named")),
            (_, Some(name)) if name.contains('/') => Err(invalid("a snapshotter's name has no `/`")),
            (_, Some(name)) => Ok(Resource::Snapshot { snapshotter: name.to_owned(), key: id.to_owned() }),
            _ => Err(crate::Error::UnknownResource { type_name: type_name.to_owned() }),
        }
    }
}

/// The value of a field that is absent while empty.
fn text(value: &str) -> Option<Cow<'_, str>> {
    (!value.is_empty()).then_some(Cow::Borrowed(value))
}

fn label<'a>(labels: &'a Labels, path: &[&str]) -> Option<Cow<'a, str>> {
    let key = path.join(".");
    labels.get(&key).map(|value| value.as_str().into())
}

impl Fields for NamespaceRecord {
    fn field(&self, path: &[&str]) -> Option<Cow<'_, str>> {
        match path {
            ["name"] => text(&self.name),
            ["labels", key @ ..] => label(&self.labels, key),
            _ => None,
        }
    }
}

impl Fields for Image {
    fn field(&self, path: &[&str]) -> Option<Cow<'_, str>> {
        match path {
            ["name"] => text(&self.name),
            ["target", "digest"] => text(self.target.digest.as_str()),
            ["target", "mediatype"] => text(&self.target.media_type),
            ["labels", key @ ..] => label(&self.labels, key),
            ["annotations", key @ ..] => label(&self.target.annotations, key),
            _ => None,
        }
    }
}

impl Fields for Container {
    fn field(&self, path: &[&str]) -> Option<Cow<'_, str>> {
        match path {
            ["id"] => text(&self.id),
            ["runtime", "name"] => text(&self.runtime.name),
            ["image"] => text(&self.image),
            ["sandbox", "id"] | ["sandbox_id"] => text(&self.sandbox_id),
            ["labels", key @ ..] => label(&self.labels, key),
            _ => None,
        }
    }
}

impl Fields for Sandbox {
    fn field(&self, path: &[&str]) -> Option<Cow<'_, str>> {
        match path {
            ["id"] => text(&self.id),
            ["runtime", "name"] => text(&self.runtime.name),
            ["sandboxer"] => text(&self.sandboxer),
            ["labels", key @ ..] => label(&self.labels, key),
            _ => None,
        }
    }
}

impl Fields for Lease {
    fn field(&self, path: &[&str]) -> Option<Cow<'_, str>> {
        match path {
            ["id"] => text(&self.id),
            ["labels", key @ ..] => label(&self.labels, key),
            _ => None,
        }
    }
}

impl Fields for Blob {
    fn field(&self, path: &[&str]) -> Option<Cow<'_, str>> {
        match path {
            ["digest"] => text(self.digest.as_str()),
            ["size"] => Some(self.size.to_string().into()),
            ["labels", key @ ..] => label(&self.labels, key),
            _ => None,
        }
    }
}

impl Fields for Snapshot {
    fn field(&self, path: &[&str]) -> Option<Cow<'_, str>> {
        match path {
            ["kind"] => Some(
                match self.kind {
                    SnapshotKind::View => "view",
                    SnapshotKind::Active => "active",
                    SnapshotKind::Committed => "committed",
                }
                .into(),
            ),
            ["name"] => text(&self.key),
            ["parent"] => Some(self.parent.as_deref().unwrap_or_default().into()),
            ["labels", key @ ..] => label(&self.labels, key),
            _ => None,
        }
    }
}
