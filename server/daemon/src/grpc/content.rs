//! `containerd.services.content.v1`, except the bytes of blobs.

use futures::{StreamExt as _, stream};
use gantry_api::convert::{labels_from_wire, time_to_wire};
use gantry_api::pb::containerd::services::content::v1 as wire;
use gantry_api::pb::containerd::services::content::v1::content_server::Content;
use gantry_engine::content::{Blob, Status};
use tonic::{Request, Response, Streaming, async_trait};

use super::decode::{digest, filter, paths, required, signed};
use super::{Answers, Reply, Services};
use crate::{scope, status};

/// How many blobs one message of a listing describes.
const LIST_BATCH: usize = 100;

#[async_trait]
impl Content for Services {
    async fn info(&self, request: Request<wire::InfoRequest>) -> Reply<wire::InfoResponse> {
        let scope = scope::of(&request)?;
        let digest = digest(&request.get_ref().digest)?;
        let info = self.engine.content.info(&scope, &digest).await.map_err(status::of)?;
        Ok(Response::new(wire::InfoResponse { info: Some(blob_to_wire(info)) }))
    }

    async fn update(&self, request: Request<wire::UpdateRequest>) -> Reply<wire::UpdateResponse> {
        let scope = scope::of(&request)?;
        let request = request.into_inner();
        let wanted = required(request.info, "info")?;
        let digest = digest(&wanted.digest)?;
        let labels = labels_from_wire(wanted.labels).map_err(status::of)?;
        let fields = paths(request.update_mask);
        let info = self.engine.content.update(&scope, &digest, labels, &fields).await.map_err(status::of)?;
        Ok(Response::new(wire::UpdateResponse { info: Some(blob_to_wire(info)) }))
    }

    type ListStream = Answers<wire::ListContentResponse>;

    async fn list(&self, request: Request<wire::ListContentRequest>) -> Reply<Self::ListStream> {
        let scope = scope::of(&request)?;
        let filter = filter(&request.get_ref().filters)?;
        let infos = self.engine.content.list(&scope, &filter).await.map_err(status::of)?;
        let batches = stream::iter(infos).map(blob_to_wire).chunks(LIST_BATCH);
        Ok(Response::new(batches.map(|info| Ok(wire::ListContentResponse { info })).boxed()))
    }

    async fn delete(&self, request: Request<wire::DeleteContentRequest>) -> Reply<()> {
        let scope = scope::of(&request)?;
        let digest = digest(&request.get_ref().digest)?;
        self.engine.content.delete(&scope, &digest).await.map_err(status::of)?;
        Ok(Response::new(()))
    }

    type ReadStream = Answers<wire::ReadContentResponse>;

    async fn read(&self, _: Request<wire::ReadContentRequest>) -> Reply<Self::ReadStream> {
        Err(super::stands_before())
    }

    async fn status(&self, request: Request<wire::StatusRequest>) -> Reply<wire::StatusResponse> {
        let scope = scope::of(&request)?;
        let found = self.engine.content.status(&scope, &request.get_ref().r#ref).await.map_err(status::of)?;
        Ok(Response::new(wire::StatusResponse { status: Some(status_to_wire(found)) }))
    }

    async fn list_statuses(&self, request: Request<wire::ListStatusesRequest>) -> Reply<wire::ListStatusesResponse> {
        let scope = scope::of(&request)?;
        let filter = filter(&request.get_ref().filters)?;
        let all = self.engine.content.statuses(&scope, &filter).await.map_err(status::of)?;
        Ok(Response::new(wire::ListStatusesResponse { statuses: all.into_iter().map(status_to_wire).collect() }))
    }

    type WriteStream = Answers<wire::WriteContentResponse>;

    async fn write(&self, _: Request<Streaming<wire::WriteContentRequest>>) -> Reply<Self::WriteStream> {
        Err(super::stands_before())
    }

    async fn abort(&self, request: Request<wire::AbortRequest>) -> Reply<()> {
        let scope = scope::of(&request)?;
        self.engine.content.abort(&scope, &request.get_ref().r#ref).await.map_err(status::of)?;
        Ok(Response::new(()))
    }
}

fn blob_to_wire(blob: Blob) -> wire::Info {
    wire::Info {
        digest: blob.digest.to_string(),
        size: signed(blob.size),
        created_at: Some(time_to_wire(blob.created)),
        updated_at: Some(time_to_wire(blob.updated)),
        labels: blob.labels,
    }
}

fn status_to_wire(status: Status) -> wire::Status {
    wire::Status {
        started_at: Some(time_to_wire(status.started)),
        updated_at: Some(time_to_wire(status.updated)),
        r#ref: status.reference,
        offset: signed(status.offset),
        total: status.total.map(signed).unwrap_or_default(),
        expected: status.expected.map(|digest| digest.to_string()).unwrap_or_default(),
    }
}
