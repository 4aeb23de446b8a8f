//! Keys of records: kind, namespace and name.

use std::fmt;
use std::sync::Arc;

use crate::Error;

/// Longest name of a record, in bytes.
const MAX_NAME: usize = 4096;

/// The kinds of records. The numbers are on the disk: never reuse one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub(crate) enum Kind {
    Namespace = 1,
    Image = 2,
    Container = 3,
    Sandbox = 4,
    Lease = 5,
    /// `LEASE NUL TYPE NUL ID`: one resource of a lease.
    Resource = 6,
    Blob = 7,
    /// `SNAPSHOTTER NUL KEY`.
    Snapshot = 8,
    /// `SNAPSHOTTER NUL PARENT NUL KEY`: finds the children of a snapshot.
    Child = 9,
    Ingest = 10,
    /// `COLLECTION NUL NAME`.
    Document = 11,
    /// The store's own counters.
    Meta = 12,
}

impl Kind {
    pub(crate) const ALL: [Kind; 12] = [
        Kind::Namespace,
        Kind::Image,
        Kind::Container,
        Kind::Sandbox,
        Kind::Lease,
        Kind::Resource,
        Kind::Blob,
        Kind::Snapshot,
        Kind::Child,
        Kind::Ingest,
        Kind::Document,
        Kind::Meta,
    ];

    /// What a message calls a record of this kind.
    pub(crate) fn noun(self) -> &'static str {
        match self {
            Kind::Namespace => "namespace",
            Kind::Image => "image",
            Kind::Container => "container",
            Kind::Sandbox => "sandbox",
            Kind::Lease => "lease",
            Kind::Resource => "lease resource",
            Kind::Blob => "content",
            Kind::Snapshot => "snapshot",
            Kind::Child => "snapshot child",
            Kind::Ingest => "ingest",
            Kind::Document => "document",
            Kind::Meta => "counter",
        }
    }

    /// Position in [`Kind::ALL`].
    pub(crate) fn index(self) -> usize {
        usize::from(self as u8) - 1
    }
}

/// Where a record is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) kind: Kind,
    /// Empty for what belongs to no namespace.
    pub(crate) namespace: Arc<str>,
    pub(crate) name: Box<[u8]>,
}

impl Key {
    pub(crate) fn new(kind: Kind, namespace: &str, name: impl Into<Box<[u8]>>) -> Key {
        Key { kind, namespace: namespace.into(), name: name.into() }
    }

    /// The key on the disk: kind, namespace, NUL, name.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.namespace.len() + self.name.len() + 2);
        bytes.push(self.kind as u8);
        bytes.extend_from_slice(self.namespace.as_bytes());
        bytes.push(0);
        bytes.extend_from_slice(&self.name);
        bytes
    }

    /// None for bytes that [`Key::encode`] never makes.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Key> {
        let (kind, rest) = bytes.split_first()?;
        let kind = *Kind::ALL.get(usize::from(*kind).checked_sub(1)?)?;
        let end = rest.iter().position(|b| *b == 0)?;
        let namespace = std::str::from_utf8(&rest[..end]).ok()?;
        Some(Key::new(kind, namespace, &rest[end + 1..]))
    }
}

impl Key {
    /// Whether users know the record by name, in contrast to the store's own entries.
    pub(crate) fn is_named(&self) -> bool {
        !matches!(self.kind, Kind::Meta | Kind::Child)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = String::from_utf8_lossy(&self.name).replace('\0', "/");
        match &*self.namespace {
            "" => write!(f, "{} {name:?}", self.kind.noun()),
            namespace => write!(f, "{} {name:?} in namespace {namespace:?}", self.kind.noun()),
        }
    }
}

/// Refuses names that cannot be part of a key.
pub(crate) fn check(kind: Kind, field: &'static str, name: &str) -> Result<(), Error> {
    let invalid = |reason| Err(Error::invalid(kind.noun(), field, reason));
    match name {
        "" => invalid("must not be empty"),
        _ if name.len() > MAX_NAME => invalid("longer than 4096 bytes"),
        _ if name.contains('\0') => invalid("must not contain NUL"),
        _ => Ok(()),
    }
}

/// A name of several parts, each checked before.
pub(crate) fn join(parts: &[&str]) -> Vec<u8> {
    parts.join("\0").into_bytes()
}

/// What [`join`] and a final NUL make: the prefix of all names that begin with `parts`.
pub(crate) fn prefix(parts: &[&str]) -> Vec<u8> {
    let mut bytes = join(parts);
    bytes.push(0);
    bytes
}

/// The parts of a joined name; none where it has not exactly `N`, or is not text.
pub(crate) fn split<const N: usize>(name: &[u8]) -> Option<[&str; N]> {
    let mut parts = std::str::from_utf8(name).ok()?.splitn(N, '\0');
    let mut split = [""; N];
    for part in &mut split {
        *part = parts.next()?;
    }
    Some(split)
}
