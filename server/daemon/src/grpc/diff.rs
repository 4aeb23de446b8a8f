//! `containerd.services.diff.v1`.

use gantry_api::convert::{
    any_from_wire, descriptor_from_wire, descriptor_to_wire, labels_from_wire, mounts_from_wire, time_from_wire,
};
use gantry_api::pb::containerd::services::diff::v1 as wire;
use gantry_api::pb::containerd::services::diff::v1::diff_server::Diff;
use gantry_engine::diff::DiffOptions;
use tonic::{Request, Response, async_trait};

use super::decode::required;
use super::{Reply, Services};
use crate::{scope, status};

#[async_trait]
impl Diff for Services {
    async fn apply(&self, request: Request<wire::ApplyRequest>) -> Reply<wire::ApplyResponse> {
        let scope = scope::of(&request)?;
        let r = request.into_inner();
        let layer = descriptor_from_wire(required(r.diff, "diff")?).map_err(status::of)?;
        let mounts = mounts_from_wire(r.mounts);
        let payloads = r.payloads.into_iter().map(|(name, any)| (name, any_from_wire(any))).collect();
        let applied = self.engine.diff.apply(&scope, &layer, &mounts, &payloads, r.sync_fs).await;
        let applied = descriptor_to_wire(&applied.map_err(status::of)?);
        Ok(Response::new(wire::ApplyResponse { applied: Some(applied) }))
    }

    async fn diff(&self, request: Request<wire::DiffRequest>) -> Reply<wire::DiffResponse> {
        let scope = scope::of(&request)?;
        let r = request.into_inner();
        let options = DiffOptions {
            media_type: r.media_type,
            reference: r.r#ref,
            labels: labels_from_wire(r.labels).map_err(status::of)?,
            source_date_epoch: r.source_date_epoch.map(time_from_wire).transpose().map_err(status::of)?,
        };
        let (left, right) = (mounts_from_wire(r.left), mounts_from_wire(r.right));
        let layer = self.engine.diff.diff(&scope, &left, &right, options).await.map_err(status::of)?;
        Ok(Response::new(wire::DiffResponse { diff: Some(descriptor_to_wire(&layer)) }))
    }
}
