//! Telling of progress in the form clients draw: titles without a name, and a tree of blobs by their parents' names.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use gantry_types::{Descriptor, Digest, media_type};

use super::{Progress, ProgressSink};

/// Where one transfer's progress goes, and which blob belongs to which.
pub(super) struct Report {
    sink: ProgressSink,
    parents: Mutex<HashMap<Digest, String>>,
}

impl Report {
    pub(super) fn new(sink: ProgressSink) -> Report {
        Report { sink, parents: Mutex::default() }
    }

    /// A line by itself.
    pub(super) fn title(&self, event: impl Into<String>) {
        self.sink.tell(Progress { event: event.into(), ..Progress::default() });
    }

    /// A line on the image as a whole, or one of its names.
    pub(super) fn named(&self, event: &str, name: &str, descriptor: &Descriptor) {
        let (event, name, descriptor) = (event.to_owned(), name.to_owned(), Some(descriptor.clone()));
        self.sink.tell(Progress { event, name, descriptor, ..Progress::default() });
    }

    /// From now on `child` belongs to `parent`, unless it belongs to another.
    pub(super) fn belongs(&self, child: &Descriptor, parent: String) {
        let mut parents = self.parents.lock().unwrap_or_else(PoisonError::into_inner);
        parents.entry(child.digest.clone()).or_insert(parent);
    }

    /// A line on a blob.
    pub(super) fn blob(&self, event: &str, descriptor: &Descriptor, progress: u64) {
        let parents = self.parents.lock().unwrap_or_else(PoisonError::into_inner);
        let parent = parents.get(&descriptor.digest).cloned();
        drop(parents);
        self.sink.tell(Progress {
            event: event.to_owned(),
            name: name_of(descriptor),
            parents: parent.into_iter().collect(),
            progress: signed(progress),
            total: signed(descriptor.size),
            descriptor: Some(descriptor.clone()),
        });
    }
}

/// `index-sha256:…`, `manifest-…`, `config-…`, `layer-…`, `attestation-…`: the name of a blob in progress and of its
/// ingest.
pub(super) fn name_of(descriptor: &Descriptor) -> String {
    let media_type = descriptor.media_type.as_str();
    let attests = descriptor.annotations.get("vnd.docker.reference.type").is_some_and(|t| t == "attestation-manifest");
    let kind = match media_type {
        _ if attests => "attestation",
        _ if media_type::is_index(media_type) => "index",
        _ if media_type::is_manifest(media_type) => "manifest",
        _ if media_type::is_config(media_type) => "config",
        _ => "layer",
    };
    format!("{kind}-{}", descriptor.digest)
}

/// A size as progress carries it.
fn signed(size: u64) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}
