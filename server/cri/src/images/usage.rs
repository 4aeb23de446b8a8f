//! What images and containers take up on the disk. A committed snapshot never changes, so it is measured once; the
//! writable layer of a container is measured anew when its figure is older than a sample period.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use gantry_api::pb::runtime::v1 as wire;
use gantry_engine::containers::Container as Record;
use gantry_engine::snapshots::{Snapshot, SnapshotKind, Usage};
use gantry_types::Filter;

use crate::{Cri, Result, nanoseconds};

/// Figures by internal key of a snapshot.
#[derive(Default)]
pub(crate) struct Usages(Mutex<HashMap<String, Figure>>);

/// The writable layer of a container, and what it took up last.
pub(crate) struct Layer {
    snapshotter: String,
    key: String,
    mountpoint: String,
    figure: Mutex<Option<Figure>>,
}

/// A figure and when it was taken.
#[derive(Clone, Copy)]
struct Figure {
    usage: Usage,
    taken: SystemTime,
    age: Instant,
}

impl Cri {
    /// The file systems of images and of containers' writable layers.
    pub(crate) async fn image_fs_info(&self) -> Result<wire::ImageFsInfoResponse> {
        let snapshotter = self.snapshotter_of("");
        let (mut images, mut containers) = (Usage::default(), Usage::default());
        let snapshots = self.engine.snapshots.list(&self.scope, &snapshotter, &Filter::default()).await?;
        for snapshot in &snapshots {
            let Ok(figure) = self.figure(snapshot).await else { continue };
            images += figure.usage;
            if snapshot.kind != SnapshotKind::Committed {
                containers += figure.usage;
            }
        }
        self.forget_all_but(&snapshots);
        for blob in self.engine.content.list(&self.scope, &Filter::default()).await? {
            images += Usage { size: blob.size, inodes: 1 };
        }
        let mountpoint = self.snapshots_at(&snapshotter).to_string_lossy().into_owned();
        let now = SystemTime::now();
        Ok(wire::ImageFsInfoResponse {
            image_filesystems: vec![filesystem(&mountpoint, images, now)],
            container_filesystems: vec![filesystem(&mountpoint, containers, now)],
        })
    }

    /// What the writable layer of a container takes up.
    pub(crate) async fn writable_layer(&self, layer: &Layer) -> Option<wire::FilesystemUsage> {
        let known = || layer.figure.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = |figure: &Figure| figure.age.elapsed() < self.sample();
        let last = *known();
        let figure = match last.filter(fresh) {
            Some(figure) => figure,
            None => {
                let usage = self.engine.snapshots.usage(&self.scope, &layer.snapshotter, &layer.key).await.ok()?;
                let figure = Figure { usage, taken: SystemTime::now(), age: Instant::now() };
                *known() = Some(figure);
                figure
            }
        };
        Some(filesystem(&layer.mountpoint, figure.usage, figure.taken))
    }

    /// The writable layer of a container with this record.
    pub(crate) fn layer_of(&self, record: &Record) -> Layer {
        Layer {
            mountpoint: self.snapshots_at(&record.snapshotter).to_string_lossy().into_owned(),
            snapshotter: record.snapshotter.clone(),
            key: record.snapshot_key.clone(),
            figure: Mutex::default(),
        }
    }

    async fn figure(&self, snapshot: &Snapshot) -> Result<Figure> {
        let figures = || self.usages.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = figures().get(&snapshot.internal).copied();
        let fresh = |figure: &Figure| snapshot.kind == SnapshotKind::Committed || figure.age.elapsed() < self.sample();
        if let Some(figure) = known.filter(fresh) {
            return Ok(figure);
        }
        let usage = self.engine.snapshots.usage(&self.scope, &snapshot.snapshotter, &snapshot.key).await?;
        let figure = Figure { usage, taken: SystemTime::now(), age: Instant::now() };
        figures().insert(snapshot.internal.clone(), figure);
        Ok(figure)
    }

    fn sample(&self) -> Duration {
        self.config.images.stats_collect_period
    }

    fn forget_all_but(&self, snapshots: &[Snapshot]) {
        let there: std::collections::HashSet<&str> = snapshots.iter().map(|s| s.internal.as_str()).collect();
        let mut figures = self.usages.0.lock().unwrap_or_else(PoisonError::into_inner);
        figures.retain(|key, _| there.contains(key.as_str()));
    }

    fn snapshots_at(&self, snapshotter: &str) -> PathBuf {
        let name = if snapshotter.is_empty() { self.engine.snapshots.default_name() } else { snapshotter };
        self.engine.config().root.join("snapshots").join(name)
    }
}

fn filesystem(mountpoint: &str, usage: Usage, taken: SystemTime) -> wire::FilesystemUsage {
    wire::FilesystemUsage {
        timestamp: nanoseconds(taken),
        fs_id: Some(wire::FilesystemIdentifier { mountpoint: mountpoint.to_owned() }),
        used_bytes: Some(wire::UInt64Value { value: usage.size }),
        inodes_used: Some(wire::UInt64Value { value: usage.inodes }),
    }
}
