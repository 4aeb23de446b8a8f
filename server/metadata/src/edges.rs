//! What keeps what alive, parsed once from a record and its labels when it is written.

use std::time::SystemTime;

use gantry_types::{Labels, labels};
use serde::{Deserialize, Serialize};

/// One end of an edge, in the namespace of the record that has the edge. Need not exist.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Target {
    /// A blob by digest. Text, because a label may say anything.
    Content(String),
    /// A snapshot.
    Snapshot {
        /// Which snapshotter.
        snapshotter: String,
        /// Its key in the namespace.
        key: String,
    },
    /// An image by name.
    Image(String),
    /// A container by id.
    Container(String),
    /// A sandbox by id.
    Sandbox(String),
    /// A lease by id.
    Lease(String),
    /// An ingest by ref.
    Ingest(String),
    /// Mounts that are active under a name. No record of this store: the engine's.
    Mount(String),
}

impl Target {
    /// Digest, key, name, id or ref.
    pub fn name(&self) -> &str {
        match self {
            Target::Content(name)
            | Target::Snapshot { key: name, .. }
            | Target::Image(name)
            | Target::Container(name)
            | Target::Sandbox(name)
            | Target::Lease(name)
            | Target::Ingest(name)
            | Target::Mount(name) => name,
        }
    }
}

/// What a record says about who stays alive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Edge {
    /// The record stays by itself (`gc.root`).
    Root,
    /// The record keeps the target.
    Refers(Target),
    /// The target keeps the record (`gc.bref.*`).
    BackRefers(Target),
    /// The record is a snapshot, and keeps this one of the same snapshotter, even for a flat lease.
    Parent(String),
    /// From this second since 1970 on, the record no longer stays by itself.
    Expires(i64),
    /// The record is a lease that keeps only what it names (`gc.flat`).
    Flat,
}

/// The edges that labels express.
pub fn of_labels(labels: &Labels) -> Vec<Edge> {
    labels.iter().filter(|(key, _)| key.starts_with("containerd.io/gc.")).filter_map(|(k, v)| of_label(k, v)).collect()
}

fn of_label(key: &str, value: &str) -> Option<Edge> {
    if key.starts_with(labels::GC_ROOT) {
        return Some(Edge::Root);
    }
    match key {
        labels::GC_EXPIRE => expiry(value).map(Edge::Expires),
        labels::GC_FLAT => Some(Edge::Flat),
        _ => reference(key, value),
    }
}

fn reference(key: &str, value: &str) -> Option<Edge> {
    if let Some(snapshotter) = key.strip_prefix(labels::GC_REF_SNAPSHOT) {
        return Some(Edge::Refers(snapshot(snapshotter, value)));
    }
    if named(key, labels::GC_REF_CONTENT) {
        return Some(Edge::Refers(Target::Content(value.to_owned())));
    }
    if named(key, labels::GC_REF_IMAGE) {
        return Some(Edge::Refers(Target::Image(value.to_owned())));
    }
    back_reference(key.strip_prefix(labels::GC_BREF)?, value)
}

/// `rest` is the label's key behind `gc.bref.`.
fn back_reference(rest: &str, value: &str) -> Option<Edge> {
    if let Some(snapshotter) = rest.strip_prefix("snapshot.") {
        return Some(Edge::BackRefers(snapshot(snapshotter, value)));
    }
    let target = match rest {
        _ if named(rest, "content") => Target::Content(value.to_owned()),
        _ if named(rest, "image") => Target::Image(value.to_owned()),
        _ if named(rest, "container") => Target::Container(value.to_owned()),
        _ => return None,
    };
    Some(Edge::BackRefers(target))
}

/// `SNAPSHOTTER` or `SNAPSHOTTER/ANYTHING`.
fn snapshot(rest: &str, key: &str) -> Target {
    let snapshotter = rest.split('/').next().unwrap_or_default();
    Target::Snapshot { snapshotter: snapshotter.to_owned(), key: key.to_owned() }
}

/// Whether `key` is `label`, `label.ANYTHING` or `label/ANYTHING`.
fn named(key: &str, label: &str) -> bool {
    key.strip_prefix(label).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '/']))
}

/// Seconds since 1970 of an RFC 3339 time. A time that cannot be read is no expiry, as with containerd.
fn expiry(value: &str) -> Option<i64> {
    match value.parse::<jiff::Timestamp>() {
        Ok(time) => Some(time.as_nanosecond().div_euclid(1_000_000_000) as i64),
        Err(error) => {
            tracing::info!(value, %error, "ignoring an expiry that is not a time");
            None
        }
    }
}

/// Whole seconds since 1970, rounded down.
pub(crate) fn seconds(time: SystemTime) -> i64 {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
        Err(before) => -i64::try_from(before.duration().as_secs_f64().ceil() as u64).unwrap_or(i64::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edge(key: &str, value: &str) -> Option<Edge> {
        of_labels(&Labels::from([(key.to_owned(), value.to_owned())])).pop()
    }

    fn overlay(key: &str) -> Target {
        Target::Snapshot { snapshotter: "overlayfs".into(), key: key.into() }
    }

    #[test]
    fn reference_labels_may_carry_a_name_behind_a_dot_or_slash_only() {
        let content = Some(Edge::Refers(Target::Content("sha256:1".into())));
        assert_eq!(edge("containerd.io/gc.ref.content", "sha256:1"), content);
        assert_eq!(edge("containerd.io/gc.ref.content.l.0", "sha256:1"), content);
        assert_eq!(edge("containerd.io/gc.ref.content/config", "sha256:1"), content);
        assert_eq!(edge("containerd.io/gc.ref.contents", "sha256:1"), None);
        assert_eq!(edge("containerd.io/gc.ref.image.base", "a"), Some(Edge::Refers(Target::Image("a".into()))));
    }

    #[test]
    fn snapshot_labels_name_the_snapshotter_up_to_a_slash() {
        assert_eq!(edge("containerd.io/gc.ref.snapshot.overlayfs", "k"), Some(Edge::Refers(overlay("k"))));
        assert_eq!(edge("containerd.io/gc.ref.snapshot.overlayfs/b", "k/1"), Some(Edge::Refers(overlay("k/1"))));
        assert_eq!(edge("containerd.io/gc.bref.snapshot.overlayfs", "k"), Some(Edge::BackRefers(overlay("k"))));
    }

    #[test]
    fn back_references_name_content_images_containers_and_snapshots() {
        let back = |target| Some(Edge::BackRefers(target));
        assert_eq!(edge("containerd.io/gc.bref.content.x", "d"), back(Target::Content("d".into())));
        assert_eq!(edge("containerd.io/gc.bref.image", "i"), back(Target::Image("i".into())));
        assert_eq!(edge("containerd.io/gc.bref.container/x", "c"), back(Target::Container("c".into())));
        assert_eq!(edge("containerd.io/gc.bref.lease", "l"), None);
    }

    #[test]
    fn an_expiry_is_rounded_down_and_rubbish_is_no_expiry() {
        assert_eq!(edge(labels::GC_EXPIRE, "1970-01-01T00:00:10.9Z"), Some(Edge::Expires(10)));
        assert_eq!(edge(labels::GC_EXPIRE, "1970-01-01T01:00:10+01:00"), Some(Edge::Expires(10)));
        assert_eq!(edge(labels::GC_EXPIRE, "soon"), None);
        assert_eq!(edge(labels::GC_FLAT, "x"), Some(Edge::Flat));
    }
}
