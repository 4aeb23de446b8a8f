//! `containerd.services.snapshots.v1`.

use futures::{StreamExt as _, stream};
use gantry_api::convert::{labels_from_wire, mounts_to_wire, time_to_wire};
use gantry_api::pb::containerd::services::snapshots::v1 as wire;
use gantry_api::pb::containerd::services::snapshots::v1::snapshots_server::Snapshots;
use gantry_engine::snapshots::{Snapshot, SnapshotKind};
use tonic::{Request, Response, Status, async_trait};

use super::decode::{filter, paths, required, signed};
use super::{Answers, Reply, Services};
use crate::{scope, status};

/// How many snapshots one message of a listing describes.
const LIST_BATCH: usize = 100;

#[async_trait]
impl Snapshots for Services {
    async fn prepare(&self, request: Request<wire::PrepareSnapshotRequest>) -> Reply<wire::PrepareSnapshotResponse> {
        let scope = scope::of(&request)?;
        let r = request.into_inner();
        let labels = labels_from_wire(r.labels).map_err(status::of)?;
        let made = self.engine.snapshots.prepare(&scope, named(&r.snapshotter)?, &r.key, &r.parent, labels).await;
        let mounts = mounts_to_wire(made.map_err(status::of)?);
        Ok(Response::new(wire::PrepareSnapshotResponse { mounts }))
    }

    async fn view(&self, request: Request<wire::ViewSnapshotRequest>) -> Reply<wire::ViewSnapshotResponse> {
        let scope = scope::of(&request)?;
        let r = request.into_inner();
        let labels = labels_from_wire(r.labels).map_err(status::of)?;
        let made = self.engine.snapshots.view(&scope, named(&r.snapshotter)?, &r.key, &r.parent, labels).await;
        Ok(Response::new(wire::ViewSnapshotResponse { mounts: mounts_to_wire(made.map_err(status::of)?) }))
    }

    async fn mounts(&self, request: Request<wire::MountsRequest>) -> Reply<wire::MountsResponse> {
        let scope = scope::of(&request)?;
        let r = request.into_inner();
        let mounts = self.engine.snapshots.mounts(&scope, named(&r.snapshotter)?, &r.key).await.map_err(status::of)?;
        Ok(Response::new(wire::MountsResponse { mounts: mounts_to_wire(mounts) }))
    }

    async fn commit(&self, request: Request<wire::CommitSnapshotRequest>) -> Reply<()> {
        let scope = scope::of(&request)?;
        let r = request.into_inner();
        let labels = labels_from_wire(r.labels).map_err(status::of)?;
        let snapshots = &self.engine.snapshots;
        let done = snapshots.commit(&scope, named(&r.snapshotter)?, &r.name, &r.key, &r.parent, labels).await;
        done.map_err(status::of)?;
        Ok(Response::new(()))
    }

    async fn remove(&self, request: Request<wire::RemoveSnapshotRequest>) -> Reply<()> {
        let scope = scope::of(&request)?;
        let r = request.into_inner();
        self.engine.snapshots.remove(&scope, named(&r.snapshotter)?, &r.key).await.map_err(status::of)?;
        Ok(Response::new(()))
    }

    async fn stat(&self, request: Request<wire::StatSnapshotRequest>) -> Reply<wire::StatSnapshotResponse> {
        let scope = scope::of(&request)?;
        let r = request.into_inner();
        let info = self.engine.snapshots.stat(&scope, named(&r.snapshotter)?, &r.key).await.map_err(status::of)?;
        Ok(Response::new(wire::StatSnapshotResponse { info: Some(to_wire(info)) }))
    }

    async fn update(&self, request: Request<wire::UpdateSnapshotRequest>) -> Reply<wire::UpdateSnapshotResponse> {
        let scope = scope::of(&request)?;
        let r = request.into_inner();
        let wanted = required(r.info, "info")?;
        let labels = labels_from_wire(wanted.labels).map_err(status::of)?;
        let fields = paths(r.update_mask);
        let now = self.engine.snapshots.update(&scope, named(&r.snapshotter)?, &wanted.name, labels, &fields).await;
        Ok(Response::new(wire::UpdateSnapshotResponse { info: Some(to_wire(now.map_err(status::of)?)) }))
    }

    type ListStream = Answers<wire::ListSnapshotsResponse>;

    async fn list(&self, request: Request<wire::ListSnapshotsRequest>) -> Reply<Self::ListStream> {
        let scope = scope::of(&request)?;
        let r = request.into_inner();
        let filter = filter(&r.filters)?;
        let all = self.engine.snapshots.list(&scope, named(&r.snapshotter)?, &filter).await.map_err(status::of)?;
        let batches = stream::iter(all).map(to_wire).chunks(LIST_BATCH);
        Ok(Response::new(batches.map(|info| Ok(wire::ListSnapshotsResponse { info })).boxed()))
    }

    async fn usage(&self, request: Request<wire::UsageRequest>) -> Reply<wire::UsageResponse> {
        let scope = scope::of(&request)?;
        let r = request.into_inner();
        let usage = self.engine.snapshots.usage(&scope, named(&r.snapshotter)?, &r.key).await.map_err(status::of)?;
        Ok(Response::new(wire::UsageResponse { size: signed(usage.size), inodes: signed(usage.inodes) }))
    }

    async fn cleanup(&self, request: Request<wire::CleanupRequest>) -> Reply<()> {
        let scope = scope::of(&request)?;
        self.engine.snapshots.cleanup(&scope, named(&request.get_ref().snapshotter)?).await.map_err(status::of)?;
        Ok(Response::new(()))
    }
}

/// The snapshotter must be named: a client that forgot it would get somebody else's default.
fn named(snapshotter: &str) -> Result<&str, Status> {
    if snapshotter.is_empty() { Err(Status::invalid_argument("snapshotter argument missing")) } else { Ok(snapshotter) }
}

fn to_wire(snapshot: Snapshot) -> wire::Info {
    let kind = match snapshot.kind {
        SnapshotKind::View => wire::Kind::View,
        SnapshotKind::Active => wire::Kind::Active,
        SnapshotKind::Committed => wire::Kind::Committed,
    };
    wire::Info {
        name: snapshot.key,
        parent: snapshot.parent.unwrap_or_default(),
        kind: kind.into(),
        created_at: Some(time_to_wire(snapshot.created)),
        updated_at: Some(time_to_wire(snapshot.updated)),
        labels: snapshot.labels,
    }
}
