//! What the fake holds.

use std::collections::BTreeMap;

use bytes::Bytes;
use gantry_types::{Descriptor, Digest};
use serde::Deserialize;

/// Repositories and unfinished uploads.
#[derive(Default)]
pub(crate) struct Store {
    repositories: BTreeMap<String, Repository>,
    uploads: BTreeMap<String, Vec<u8>>,
    count: u64,
}

#[derive(Default)]
struct Repository {
    blobs: BTreeMap<Digest, Bytes>,
    manifests: BTreeMap<Digest, (String, Bytes)>,
    tags: BTreeMap<String, Digest>,
}

/// The parts of a manifest that referrers are found by.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Referrer {
    subject: Option<Descriptor>,
    artifact_type: Option<String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

impl Store {
    pub(super) fn put_blob(&mut self, repository: &str, digest: Digest, bytes: Bytes) {
        self.repositories.entry(repository.to_owned()).or_default().blobs.insert(digest, bytes);
    }

    pub(super) fn blob(&self, repository: &str, digest: &Digest) -> Option<Bytes> {
        self.repositories.get(repository)?.blobs.get(digest).cloned()
    }

    pub(super) fn put_manifest(
        &mut self,
        repository: &str,
        tag: Option<&str>,
        media_type: &str,
        bytes: Bytes,
    ) -> Digest {
        let digest = Digest::of(&bytes);
        let repository = self.repositories.entry(repository.to_owned()).or_default();
        repository.manifests.insert(digest.clone(), (media_type.to_owned(), bytes));
        repository.tags.extend(tag.map(|tag| (tag.to_owned(), digest.clone())));
        digest
    }

    /// By tag or digest: media type and bytes.
    pub(super) fn manifest(&self, repository: &str, name: &str) -> Option<(String, Bytes)> {
        let repository = self.repositories.get(repository)?;
        let digest = name.parse().ok().or_else(|| repository.tags.get(name).cloned())?;
        repository.manifests.get(&digest).cloned()
    }

    pub(super) fn tags(&self, repository: &str) -> Option<Vec<String>> {
        Some(self.repositories.get(repository)?.tags.keys().cloned().collect())
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.repositories.keys().cloned().collect()
    }

    /// Whether the blob could be taken over from another repository.
    pub(super) fn mount(&mut self, repository: &str, digest: &Digest, from: &str) -> bool {
        let found = self.blob(from, digest);
        let mounted = found.is_some();
        found.into_iter().for_each(|bytes| self.put_blob(repository, digest.clone(), bytes));
        mounted
    }

    pub(super) fn referrers(&self, repository: &str, subject: &Digest) -> Vec<Descriptor> {
        let manifests = self.repositories.get(repository).into_iter().flat_map(|r| &r.manifests);
        let found = manifests.filter_map(|(digest, (media_type, bytes))| {
            let referrer: Referrer = serde_json::from_slice(bytes).ok()?;
            if referrer.subject?.digest != *subject {
                return None;
            }
            let mut descriptor = Descriptor::new(media_type.clone(), digest.clone(), bytes.len() as u64);
            descriptor.artifact_type = referrer.artifact_type;
            descriptor.annotations = referrer.annotations;
            Some(descriptor)
        });
        found.collect()
    }

    pub(super) fn begin_upload(&mut self) -> String {
        self.count += 1;
        let id = format!("upload-{}", self.count);
        self.uploads.insert(id.clone(), Vec::new());
        id
    }

    /// The bytes of an upload so far.
    pub(super) fn upload(&mut self, id: &str) -> Option<&mut Vec<u8>> {
        self.uploads.get_mut(id)
    }

    pub(super) fn end_upload(&mut self, id: &str) -> Option<Vec<u8>> {
        self.uploads.remove(id)
    }
}
