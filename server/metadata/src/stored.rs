//! Stored forms of the records, version 1. A change of form is a new version beside these, never a change of these.

use std::collections::BTreeMap;

use gantry_types::{Any, Descriptor, Digest, Labels, Platform};
use serde::{Deserialize, Serialize};

use crate::codec::{self, Packed, Time, Unreadable, pack, system_time, time, unpack};
use crate::edges::{Edge, Target, of_labels, seconds};
use crate::keys::{self, Kind};
use crate::table::{Record, clean, damaged};
use crate::{
    Blob, Container, Error, Image, Ingest, Lease, NamespaceRecord, Object, Runtime, Sandbox, Snapshot, SnapshotKind,
};

/// Largest stored record, in bytes.
pub(crate) const MAX_RECORD: usize = 16 << 20;

/// Encodes a record, or says why it cannot be.
fn encode<R: Record>(record: &R, edges: &[Edge], body: &impl Serialize) -> Result<Vec<u8>, Error> {
    let object = || Object::new(R::KIND.noun(), R::display(&record.name()));
    let bytes = codec::encode(edges, body)
        .map_err(|e| Error::Damaged { object: object(), reason: format!("cannot encode: {e}") })?;
    match bytes.len() {
        size if size > MAX_RECORD => Err(Error::TooLarge { object: object(), size, limit: MAX_RECORD }),
        _ => Ok(bytes),
    }
}

/// Decodes a body with `form`, naming the record in the error.
fn decode<'a, R: Record, B: Deserialize<'a>>(
    name: &[u8],
    bytes: &'a [u8],
    form: impl FnOnce(B, &str) -> Result<R, Unreadable>,
) -> Result<R, Error> {
    let text = std::str::from_utf8(name).map_err(|_| content("the name is not text"));
    let record = text.and_then(|text| form(codec::decode(bytes)?, text));
    record.map_err(|e| damaged::<R>(name, &e))
}

fn content(error: impl ToString) -> Unreadable {
    Unreadable::Content(error.to_string())
}

#[derive(Serialize, Deserialize)]
struct NamespaceV1 {
    labels: Labels,
}

impl Record for NamespaceRecord {
    const KIND: Kind = Kind::Namespace;

    fn name(&self) -> Vec<u8> {
        self.name.as_bytes().to_vec()
    }

    fn check(&mut self) -> Result<(), Error> {
        clean(&mut self.labels)
    }

    fn encode(&self) -> Result<Vec<u8>, Error> {
        encode(self, &[], &NamespaceV1 { labels: self.labels.clone() })
    }

    fn decode(name: &[u8], bytes: &[u8]) -> Result<NamespaceRecord, Error> {
        decode(name, bytes, |body: NamespaceV1, name| {
            Ok(NamespaceRecord { name: name.parse().map_err(content)?, labels: body.labels })
        })
    }
}

/// Operating system, architecture, variant, version, features.
type PlatformV1 = (String, String, String, String, Vec<String>);

#[derive(Serialize, Deserialize)]
struct DescriptorV1 {
    media_type: String,
    digest: Digest,
    size: u64,
    urls: Vec<String>,
    annotations: BTreeMap<String, String>,
    platform: Option<PlatformV1>,
    artifact_type: Option<String>,
}

impl From<Descriptor> for DescriptorV1 {
    fn from(d: Descriptor) -> DescriptorV1 {
        let platform = d.platform.map(|p| (p.os, p.architecture, p.variant, p.os_version, p.os_features));
        DescriptorV1 {
            media_type: d.media_type,
            digest: d.digest,
            size: d.size,
            urls: d.urls,
            annotations: d.annotations,
            platform,
            artifact_type: d.artifact_type,
        }
    }
}

impl From<DescriptorV1> for Descriptor {
    fn from(d: DescriptorV1) -> Descriptor {
        let platform = d.platform.map(|(os, architecture, variant, os_version, os_features)| Platform {
            os,
            architecture,
            variant,
            os_version,
            os_features,
        });
        Descriptor {
            urls: d.urls,
            annotations: d.annotations,
            platform,
            artifact_type: d.artifact_type,
            ..Descriptor::new(d.media_type, d.digest, d.size)
        }
    }
}

#[derive(Serialize, Deserialize)]
struct ImageV1 {
    target: DescriptorV1,
    labels: Labels,
    created: Time,
    updated: Time,
}

impl Record for Image {
    const KIND: Kind = Kind::Image;

    fn name(&self) -> Vec<u8> {
        self.name.as_bytes().to_vec()
    }

    fn check(&mut self) -> Result<(), Error> {
        keys::check(Kind::Image, "name", &self.name)?;
        if self.target.size == 0 {
            return Err(Error::invalid("image", "target.size", "must be greater than zero"));
        }
        if self.target.media_type.is_empty() {
            return Err(Error::invalid("image", "target.mediatype", "must be set"));
        }
        clean(&mut self.labels)
    }

    fn encode(&self) -> Result<Vec<u8>, Error> {
        let mut edges = of_labels(&self.labels);
        edges.push(Edge::Refers(Target::Content(self.target.digest.to_string())));
        let body = ImageV1 {
            target: self.target.clone().into(),
            labels: self.labels.clone(),
            created: time(self.created),
            updated: time(self.updated),
        };
        encode(self, &edges, &body)
    }

    fn decode(name: &[u8], bytes: &[u8]) -> Result<Image, Error> {
        decode(name, bytes, |body: ImageV1, name| {
            Ok(Image {
                name: name.to_owned(),
                target: body.target.into(),
                labels: body.labels,
                created: system_time(body.created),
                updated: system_time(body.updated),
            })
        })
    }
}

#[derive(Serialize, Deserialize)]
struct RuntimeV1 {
    name: String,
    options: Option<Packed>,
}

fn runtime_v1(runtime: &Runtime) -> RuntimeV1 {
    RuntimeV1 { name: runtime.name.clone(), options: runtime.options.as_ref().map(pack) }
}

fn runtime(stored: RuntimeV1) -> Result<Runtime, Unreadable> {
    Ok(Runtime { name: stored.name, options: stored.options.map(unpack).transpose()? })
}

fn pack_all(messages: &BTreeMap<String, Any>) -> Vec<(String, Packed)> {
    messages.iter().map(|(name, any)| (name.clone(), pack(any))).collect()
}

fn unpack_all(messages: Vec<(String, Packed)>) -> Result<BTreeMap<String, Any>, Unreadable> {
    messages.into_iter().map(|(name, packed)| Ok((name, unpack(packed)?))).collect()
}

fn check_extensions(object: &'static str, extensions: &BTreeMap<String, Any>) -> Result<(), Error> {
    match extensions.contains_key("") {
        true => Err(Error::invalid(object, "extensions", "keys must not be empty")),
        false => Ok(()),
    }
}

#[derive(Serialize, Deserialize)]
struct ContainerV1 {
    labels: Labels,
    image: String,
    runtime: RuntimeV1,
    spec: Option<Packed>,
    snapshotter: String,
    snapshot_key: String,
    sandbox_id: String,
    extensions: Vec<(String, Packed)>,
    created: Time,
    updated: Time,
}

impl Record for Container {
    const KIND: Kind = Kind::Container;

    fn name(&self) -> Vec<u8> {
        self.id.as_bytes().to_vec()
    }

    fn check(&mut self) -> Result<(), Error> {
        check_extensions("container", &self.extensions)?;
        if self.runtime.name.is_empty() {
            return Err(Error::invalid("container", "runtime.name", "must be set"));
        }
        if !self.snapshot_key.is_empty() && self.snapshotter.is_empty() {
            return Err(Error::invalid("container", "snapshotter", "must be set where snapshot_key is set"));
        }
        clean(&mut self.labels)
    }

    fn encode(&self) -> Result<Vec<u8>, Error> {
        let mut edges = of_labels(&self.labels);
        if !self.snapshotter.is_empty() {
            let (snapshotter, key) = (self.snapshotter.clone(), self.snapshot_key.clone());
            edges.push(Edge::Refers(Target::Snapshot { snapshotter, key }));
        }
        let body = ContainerV1 {
            labels: self.labels.clone(),
            image: self.image.clone(),
            runtime: runtime_v1(&self.runtime),
            spec: self.spec.as_ref().map(pack),
            snapshotter: self.snapshotter.clone(),
            snapshot_key: self.snapshot_key.clone(),
            sandbox_id: self.sandbox_id.clone(),
            extensions: pack_all(&self.extensions),
            created: time(self.created),
            updated: time(self.updated),
        };
        encode(self, &edges, &body)
    }

    fn decode(name: &[u8], bytes: &[u8]) -> Result<Container, Error> {
        decode(name, bytes, |body: ContainerV1, name| {
            Ok(Container {
                id: name.parse().map_err(content)?,
                labels: body.labels,
                image: body.image,
                runtime: runtime(body.runtime)?,
                spec: body.spec.map(unpack).transpose()?,
                snapshotter: body.snapshotter,
                snapshot_key: body.snapshot_key,
                sandbox_id: body.sandbox_id,
                extensions: unpack_all(body.extensions)?,
                created: system_time(body.created),
                updated: system_time(body.updated),
            })
        })
    }
}

#[derive(Serialize, Deserialize)]
struct SandboxV1 {
    labels: Labels,
    runtime: RuntimeV1,
    spec: Option<Packed>,
    sandboxer: String,
    extensions: Vec<(String, Packed)>,
    created: Time,
    updated: Time,
}

impl Record for Sandbox {
    const KIND: Kind = Kind::Sandbox;

    fn name(&self) -> Vec<u8> {
        self.id.as_bytes().to_vec()
    }

    fn check(&mut self) -> Result<(), Error> {
        check_extensions("sandbox", &self.extensions)?;
        clean(&mut self.labels)
    }

    fn encode(&self) -> Result<Vec<u8>, Error> {
        let body = SandboxV1 {
            labels: self.labels.clone(),
            runtime: runtime_v1(&self.runtime),
            spec: self.spec.as_ref().map(pack),
            sandboxer: self.sandboxer.clone(),
            extensions: pack_all(&self.extensions),
            created: time(self.created),
            updated: time(self.updated),
        };
        encode(self, &of_labels(&self.labels), &body)
    }

    fn decode(name: &[u8], bytes: &[u8]) -> Result<Sandbox, Error> {
        decode(name, bytes, |body: SandboxV1, name| {
            Ok(Sandbox {
                id: name.parse().map_err(content)?,
                labels: body.labels,
                runtime: runtime(body.runtime)?,
                spec: body.spec.map(unpack).transpose()?,
                sandboxer: body.sandboxer,
                extensions: unpack_all(body.extensions)?,
                created: system_time(body.created),
                updated: system_time(body.updated),
            })
        })
    }
}

#[derive(Serialize, Deserialize)]
struct LeaseV1 {
    labels: Labels,
    created: Time,
}

impl Record for Lease {
    const KIND: Kind = Kind::Lease;

    fn name(&self) -> Vec<u8> {
        self.id.as_bytes().to_vec()
    }

    fn check(&mut self) -> Result<(), Error> {
        keys::check(Kind::Lease, "id", &self.id)?;
        clean(&mut self.labels)
    }

    fn encode(&self) -> Result<Vec<u8>, Error> {
        let body = LeaseV1 { labels: self.labels.clone(), created: time(self.created) };
        encode(self, &of_labels(&self.labels), &body)
    }

    fn decode(name: &[u8], bytes: &[u8]) -> Result<Lease, Error> {
        decode(name, bytes, |body: LeaseV1, name| {
            Ok(Lease { id: name.to_owned(), labels: body.labels, created: system_time(body.created) })
        })
    }
}

#[derive(Serialize, Deserialize)]
struct BlobV1 {
    size: u64,
    labels: Labels,
    created: Time,
    updated: Time,
}

impl Record for Blob {
    const KIND: Kind = Kind::Blob;

    fn name(&self) -> Vec<u8> {
        self.digest.as_str().as_bytes().to_vec()
    }

    fn check(&mut self) -> Result<(), Error> {
        clean(&mut self.labels)
    }

    fn encode(&self) -> Result<Vec<u8>, Error> {
        let body = BlobV1 {
            size: self.size,
            labels: self.labels.clone(),
            created: time(self.created),
            updated: time(self.updated),
        };
        encode(self, &of_labels(&self.labels), &body)
    }

    fn decode(name: &[u8], bytes: &[u8]) -> Result<Blob, Error> {
        decode(name, bytes, |body: BlobV1, name| {
            Ok(Blob {
                digest: name.parse().map_err(content)?,
                size: body.size,
                labels: body.labels,
                created: system_time(body.created),
                updated: system_time(body.updated),
            })
        })
    }
}

#[derive(Serialize, Deserialize)]
struct SnapshotV1 {
    internal: String,
    kind: SnapshotKind,
    parent: Option<String>,
    labels: Labels,
    created: Time,
    updated: Time,
}

impl Record for Snapshot {
    const KIND: Kind = Kind::Snapshot;

    fn name(&self) -> Vec<u8> {
        keys::join(&[&self.snapshotter, &self.key])
    }

    fn check(&mut self) -> Result<(), Error> {
        keys::check(Kind::Snapshot, "snapshotter", &self.snapshotter)?;
        keys::check(Kind::Snapshot, "key", &self.key)?;
        clean(&mut self.labels)
    }

    fn encode(&self) -> Result<Vec<u8>, Error> {
        let mut edges = of_labels(&self.labels);
        edges.extend(self.parent.clone().map(Edge::Parent));
        let body = SnapshotV1 {
            internal: self.internal.clone(),
            kind: self.kind,
            parent: self.parent.clone(),
            labels: self.labels.clone(),
            created: time(self.created),
            updated: time(self.updated),
        };
        encode(self, &edges, &body)
    }

    fn decode(name: &[u8], bytes: &[u8]) -> Result<Snapshot, Error> {
        decode(name, bytes, |body: SnapshotV1, name| {
            let (snapshotter, key) = name.split_once('\0').ok_or_else(|| content("no key in the name"))?;
            Ok(Snapshot {
                snapshotter: snapshotter.to_owned(),
                key: key.to_owned(),
                internal: body.internal,
                kind: body.kind,
                parent: body.parent,
                labels: body.labels,
                created: system_time(body.created),
                updated: system_time(body.updated),
            })
        })
    }
}

#[derive(Serialize, Deserialize)]
struct IngestV1 {
    internal: String,
    expected: Option<Digest>,
    expires: Option<Time>,
    created: Time,
}

impl Record for Ingest {
    const KIND: Kind = Kind::Ingest;

    fn name(&self) -> Vec<u8> {
        self.reference.as_bytes().to_vec()
    }

    fn check(&mut self) -> Result<(), Error> {
        keys::check(Kind::Ingest, "ref", &self.reference)
    }

    fn encode(&self) -> Result<Vec<u8>, Error> {
        let expected = self.expected.iter().map(|digest| Edge::Refers(Target::Content(digest.to_string())));
        let expires = self.expires.map(|time| Edge::Expires(seconds(time)));
        let edges: Vec<Edge> = expected.chain(expires).collect();
        let body = IngestV1 {
            internal: self.internal.clone(),
            expected: self.expected.clone(),
            expires: self.expires.map(time),
            created: time(self.created),
        };
        encode(self, &edges, &body)
    }

    fn decode(name: &[u8], bytes: &[u8]) -> Result<Ingest, Error> {
        decode(name, bytes, |body: IngestV1, name| {
            Ok(Ingest {
                reference: name.to_owned(),
                internal: body.internal,
                expected: body.expected,
                expires: body.expires.map(system_time),
                created: system_time(body.created),
            })
        })
    }
}
