//! Blobs that a namespace sees.

use std::time::SystemTime;

use gantry_types::{Digest, Id, Labels};

use crate::keys::Kind;
use crate::leases::{hold, release};
use crate::scan::Scan;
use crate::{Blob, Db, Error, Resource, Sharing, mask};

/// A namespace with this label set to `true` lets others take up its blobs, whatever the policy.
const SHAREABLE: &str = "containerd.io/namespace.shareable";

/// Blobs of one namespace.
pub struct Blobs<'d> {
    pub(crate) db: &'d Db,
    pub(crate) namespace: Id,
}

impl Blobs<'_> {
    /// What the namespace knows about a blob.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn get(&self, digest: &Digest) -> Result<Blob, Error> {
        self.db.find(&self.namespace, digest.as_str().as_bytes())
    }

    /// All blobs the namespace sees, sorted by digest.
    pub fn scan(&self) -> Scan<Blob> {
        self.db.scan(&self.namespace, Vec::new())
    }

    /// The blob as another namespace sees it that shares it with this one, if any does.
    pub fn shared(&self, digest: &Digest, sharing: Sharing) -> Option<Blob> {
        let others = self.db.namespaces().scan().filter_map(Result::ok).filter(|other| other.name != self.namespace);
        let mut sharers = others.filter(|other| {
            sharing == Sharing::Shared || other.labels.get(SHAREABLE).is_some_and(|value| value == "true")
        });
        sharers.find_map(|other| self.db.blobs(&other.name).get(digest).ok())
    }

    /// Lets the namespace see a blob whose bytes are durable. `lease` keeps it; the ingest `reference`, where given, is
    /// done and forgotten. With [`Error::AlreadyExists`] the lease keeps the blob and the ingest is forgotten all the same.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`], [`Error::Label`], [`Error::NotFound`] for the lease.
    pub async fn create(
        &self,
        digest: Digest,
        size: u64,
        labels: Labels,
        lease: Option<&str>,
        reference: Option<&str>,
    ) -> Result<Blob, Error> {
        use crate::table::Record;
        let now = SystemTime::now();
        let mut blob = Blob { digest, size, labels, created: now, updated: now };
        blob.check()?;
        let (name, value, resource) = (blob.name(), blob.encode()?, Resource::Content(blob.digest.clone()));
        let (namespace, lease, reference) =
            (self.namespace.clone(), lease.map(str::to_owned), reference.map(str::to_owned));
        let inserted = self.db.transact(move |tx| {
            if let Some(reference) = reference {
                tx.delete(Kind::Ingest, &namespace, reference.as_bytes());
                release(tx, &namespace, lease.as_deref(), &Resource::Ingest(reference));
            }
            hold(tx, &namespace, lease.as_deref(), &resource)?;
            Ok(tx.insert::<Blob>(&namespace, &name, value))
        });
        inserted.await??;
        Ok(blob)
    }

    /// Changes labels; an empty mask replaces all.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::UnknownField`], [`Error::Label`].
    pub async fn update(&self, digest: &Digest, labels: Labels, mask: Vec<String>) -> Result<Blob, Error> {
        let name = digest.as_str().as_bytes().to_vec();
        self.db
            .modify(&self.namespace, name, move |_, mut blob: Blob| {
                mask::labels("content", blob.digest.as_str(), &mut blob.labels, &labels, &mask)?;
                Ok(Blob { updated: SystemTime::now(), ..blob })
            })
            .await
    }

    /// Lets the namespace no longer see a blob. Its bytes go with the next collection, where no other namespace sees it.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn delete(&self, digest: &Digest, lease: Option<&str>) -> Result<Blob, Error> {
        let (namespace, lease) = (self.namespace.clone(), lease.map(str::to_owned));
        self.db
            .remove(&self.namespace, digest.as_str().as_bytes().to_vec(), move |tx, blob: &Blob| {
                release(tx, &namespace, lease.as_deref(), &Resource::Content(blob.digest.clone()));
                Ok(())
            })
            .await
    }
}
