//! `containerd.services.sandbox.v1.Store`: the records of sandboxes.

use std::time::UNIX_EPOCH;

use gantry_api::convert::{any_from_wire, any_to_wire, labels_from_wire, time_to_wire};
use gantry_api::pb::containerd::services::sandbox::v1 as wire;
use gantry_api::pb::containerd::services::sandbox::v1::store_server::Store;
use gantry_api::pb::containerd::types;
use gantry_engine::containers::Runtime;
use gantry_engine::sandboxes::Sandbox;
use tonic::{Request, Response, Status, async_trait};

use super::decode::{filter, required};
use super::{Reply, Services};
use crate::{scope, status};

#[async_trait]
impl Store for Services {
    async fn create(&self, request: Request<wire::StoreCreateRequest>) -> Reply<wire::StoreCreateResponse> {
        let scope = scope::of(&request)?;
        let wanted = from_wire(request.into_inner().sandbox)?;
        let made = self.engine.sandboxes.create(&scope, wanted).await.map_err(status::of)?;
        Ok(Response::new(wire::StoreCreateResponse { sandbox: Some(to_wire(made)) }))
    }

    async fn update(&self, request: Request<wire::StoreUpdateRequest>) -> Reply<wire::StoreUpdateResponse> {
        let scope = scope::of(&request)?;
        let r = request.into_inner();
        let wanted = from_wire(r.sandbox)?;
        let now = self.engine.sandboxes.update(&scope, wanted, &r.fields).await.map_err(status::of)?;
        Ok(Response::new(wire::StoreUpdateResponse { sandbox: Some(to_wire(now)) }))
    }

    async fn delete(&self, request: Request<wire::StoreDeleteRequest>) -> Reply<wire::StoreDeleteResponse> {
        let scope = scope::of(&request)?;
        self.engine.sandboxes.delete(&scope, &request.get_ref().sandbox_id).await.map_err(status::of)?;
        Ok(Response::new(wire::StoreDeleteResponse {}))
    }

    async fn list(&self, request: Request<wire::StoreListRequest>) -> Reply<wire::StoreListResponse> {
        let scope = scope::of(&request)?;
        let filter = filter(&request.get_ref().filters)?;
        let all = self.engine.sandboxes.list(&scope, &filter).await.map_err(status::of)?;
        Ok(Response::new(wire::StoreListResponse { list: all.into_iter().map(to_wire).collect() }))
    }

    async fn get(&self, request: Request<wire::StoreGetRequest>) -> Reply<wire::StoreGetResponse> {
        let scope = scope::of(&request)?;
        let sandbox = self.engine.sandboxes.get(&scope, &request.get_ref().sandbox_id).await.map_err(status::of)?;
        Ok(Response::new(wire::StoreGetResponse { sandbox: Some(to_wire(sandbox)) }))
    }
}

fn from_wire(sandbox: Option<types::Sandbox>) -> Result<Sandbox, Status> {
    record(required(sandbox, "sandbox")?)
}

/// A record as it came.
pub(super) fn record(sandbox: types::Sandbox) -> Result<Sandbox, Status> {
    let runtime = sandbox.runtime.unwrap_or_default();
    Ok(Sandbox {
        id: sandbox.sandbox_id.parse().map_err(status::of)?,
        labels: labels_from_wire(sandbox.labels).map_err(status::of)?,
        runtime: Runtime { name: runtime.name, options: runtime.options.map(any_from_wire) },
        spec: sandbox.spec.map(any_from_wire),
        sandboxer: sandbox.sandboxer,
        extensions: sandbox.extensions.into_iter().map(|(name, any)| (name, any_from_wire(any))).collect(),
        created: UNIX_EPOCH,
        updated: UNIX_EPOCH,
    })
}

fn to_wire(sandbox: Sandbox) -> types::Sandbox {
    let Runtime { name, options } = sandbox.runtime;
    types::Sandbox {
        sandbox_id: sandbox.id.into(),
        runtime: Some(types::sandbox::Runtime { name, options: options.map(any_to_wire) }),
        spec: sandbox.spec.map(any_to_wire),
        labels: sandbox.labels,
        created_at: Some(time_to_wire(sandbox.created)),
        updated_at: Some(time_to_wire(sandbox.updated)),
        extensions: sandbox.extensions.into_iter().map(|(name, any)| (name, any_to_wire(any))).collect(),
        sandboxer: sandbox.sandboxer,
    }
}
