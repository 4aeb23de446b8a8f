//! The gRPC service over any snapshotter, for tests.

use std::sync::Arc;

use gantry_api::convert::{mounts_to_wire, time_to_wire};
use gantry_api::pb::containerd::services::snapshots::v1 as wire;
use gantry_snapshots::{Error, Info, Kind, Snapshotter};
use gantry_types::{ErrorKind, Filter, HasKind};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Code, Request, Response, Status};

/// Serves until it is dropped.
pub async fn serve(listener: UnixListener, snapshots: Arc<dyn Snapshotter>) -> Result<(), tonic::transport::Error> {
    let service = wire::snapshots_server::SnapshotsServer::new(Service(snapshots));
    tonic::transport::Server::builder()
        .add_service(service)
        .serve_with_incoming(UnixListenerStream::new(listener))
        .await
}

struct Service(Arc<dyn Snapshotter>);

fn status(error: Error) -> Status {
    let code = match error.kind() {
        ErrorKind::InvalidArgument => Code::InvalidArgument,
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::AlreadyExists => Code::AlreadyExists,
        ErrorKind::FailedPrecondition => Code::FailedPrecondition,
        ErrorKind::Unimplemented => Code::Unimplemented,
        ErrorKind::Unavailable => Code::Unavailable,
        ErrorKind::ResourceExhausted => Code::ResourceExhausted,
        _ => Code::Internal,
    };
    Status::new(code, error.to_string())
}

fn parent(parent: &str) -> Option<&str> {
    Some(parent).filter(|parent| !parent.is_empty())
}

fn info_to_wire(info: Info) -> wire::Info {
    wire::Info {
        kind: match info.kind {
            Kind::View => wire::Kind::View,
            Kind::Active => wire::Kind::Active,
            Kind::Committed => wire::Kind::Committed,
        }
        .into(),
        parent: info.parent.unwrap_or_default(),
        created_at: Some(time_to_wire(info.created)),
        updated_at: Some(time_to_wire(info.updated)),
        labels: info.labels.into_iter().collect(),
        name: info.name,
    }
}

#[tonic::async_trait]
impl wire::snapshots_server::Snapshots for Service {
    async fn prepare(
        &self,
        request: Request<wire::PrepareSnapshotRequest>,
    ) -> Result<Response<wire::PrepareSnapshotResponse>, Status> {
        let r = request.into_inner();
        let mounts = self.0.prepare(&r.key, parent(&r.parent), r.labels.into_iter().collect()).await.map_err(status)?;
        Ok(Response::new(wire::PrepareSnapshotResponse { mounts: mounts_to_wire(mounts) }))
    }

    async fn view(
        &self,
        request: Request<wire::ViewSnapshotRequest>,
    ) -> Result<Response<wire::ViewSnapshotResponse>, Status> {
        let r = request.into_inner();
        let mounts = self.0.view(&r.key, parent(&r.parent), r.labels.into_iter().collect()).await.map_err(status)?;
        Ok(Response::new(wire::ViewSnapshotResponse { mounts: mounts_to_wire(mounts) }))
    }

    async fn mounts(&self, request: Request<wire::MountsRequest>) -> Result<Response<wire::MountsResponse>, Status> {
        let mounts = self.0.mounts(&request.into_inner().key).await.map_err(status)?;
        Ok(Response::new(wire::MountsResponse { mounts: mounts_to_wire(mounts) }))
    }

    async fn commit(&self, request: Request<wire::CommitSnapshotRequest>) -> Result<Response<()>, Status> {
        let r = request.into_inner();
        let labels = r.labels.into_iter().collect();
        self.0.commit(&r.name, &r.key, parent(&r.parent), labels).await.map(Response::new).map_err(status)
    }

    async fn remove(&self, request: Request<wire::RemoveSnapshotRequest>) -> Result<Response<()>, Status> {
        self.0.remove(&request.into_inner().key).await.map(Response::new).map_err(status)
    }

    async fn stat(
        &self,
        request: Request<wire::StatSnapshotRequest>,
    ) -> Result<Response<wire::StatSnapshotResponse>, Status> {
        let info = self.0.stat(&request.into_inner().key).await.map_err(status)?;
        Ok(Response::new(wire::StatSnapshotResponse { info: Some(info_to_wire(info)) }))
    }

    async fn update(
        &self,
        request: Request<wire::UpdateSnapshotRequest>,
    ) -> Result<Response<wire::UpdateSnapshotResponse>, Status> {
        let r = request.into_inner();
        let sent = r.info.ok_or_else(|| Status::invalid_argument("no info"))?;
        let mut info = self.0.stat(&sent.name).await.map_err(status)?;
        info.labels = sent.labels.into_iter().collect();
        let paths = r.update_mask.map(|mask| mask.paths).unwrap_or_default();
        let info = self.0.update(info, &paths).await.map_err(status)?;
        Ok(Response::new(wire::UpdateSnapshotResponse { info: Some(info_to_wire(info)) }))
    }

    type ListStream = tokio_stream::Iter<std::vec::IntoIter<Result<wire::ListSnapshotsResponse, Status>>>;

    async fn list(&self, request: Request<wire::ListSnapshotsRequest>) -> Result<Response<Self::ListStream>, Status> {
        let filter = Filter::parse(&request.into_inner().filters);
        let filter = filter.map_err(|error| Status::invalid_argument(error.to_string()))?;
        let infos = self.0.walk(&filter).await.map_err(status)?;
        let info = infos.into_iter().map(info_to_wire).collect();
        Ok(Response::new(tokio_stream::iter(vec![Ok(wire::ListSnapshotsResponse { info })])))
    }

    async fn usage(&self, request: Request<wire::UsageRequest>) -> Result<Response<wire::UsageResponse>, Status> {
        let usage = self.0.usage(&request.into_inner().key).await.map_err(status)?;
        let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        Ok(Response::new(wire::UsageResponse { size: number(usage.size), inodes: number(usage.inodes) }))
    }

    async fn cleanup(&self, _: Request<wire::CleanupRequest>) -> Result<Response<()>, Status> {
        self.0.cleanup().await.map(Response::new).map_err(status)
    }
}
