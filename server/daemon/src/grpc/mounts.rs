//! `containerd.services.mounts.v1`.

use futures::{StreamExt as _, stream};
use gantry_api::convert::{labels_from_wire, mounts_from_wire, mounts_to_wire, time_to_wire};
use gantry_api::pb::containerd::services::mounts::v1 as wire;
use gantry_api::pb::containerd::services::mounts::v1::mounts_server::Mounts;
use gantry_api::pb::containerd::types;
use gantry_engine::mounts::{Activate, Activation, ActiveMount, Claims};
use tonic::{Request, Response, Status, async_trait};

use super::{Answers, Reply, Services};
use crate::{scope, status};

#[async_trait]
impl Mounts for Services {
    /// `Unimplemented` tells clients to perform the mounts themselves.
    async fn activate(&self, request: Request<wire::ActivateRequest>) -> Reply<wire::ActivateResponse> {
        let scope = scope::of(&request)?;
        let r = request.into_inner();
        let wanted = Activate {
            name: r.name,
            mounts: mounts_from_wire(r.mounts),
            labels: labels_from_wire(r.labels).map_err(status::of)?,
            temporary: r.temporary,
            claims: Claims::default(),
        };
        let activation = self.engine.mounts.activate(&scope, wanted).await.map_err(status::of)?;
        Ok(Response::new(wire::ActivateResponse { info: Some(to_wire(activation)) }))
    }

    async fn deactivate(&self, request: Request<wire::DeactivateRequest>) -> Reply<()> {
        let scope = scope::of(&request)?;
        self.engine.mounts.deactivate(&scope, &request.get_ref().name).await.map_err(status::of)?;
        Ok(Response::new(()))
    }

    async fn info(&self, request: Request<wire::InfoRequest>) -> Reply<wire::InfoResponse> {
        let scope = scope::of(&request)?;
        let activation = self.engine.mounts.info(&scope, &request.get_ref().name).map_err(status::of)?;
        Ok(Response::new(wire::InfoResponse { info: Some(to_wire(activation)) }))
    }

    /// Not offered by containerd either.
    async fn update(&self, request: Request<wire::UpdateRequest>) -> Reply<wire::UpdateResponse> {
        scope::of(&request)?;
        Err(Status::unimplemented("not implemented"))
    }

    type ListStream = Answers<wire::ListMessage>;

    /// As with containerd, filters select nothing: all is listed.
    async fn list(&self, request: Request<wire::ListRequest>) -> Reply<Self::ListStream> {
        let scope = scope::of(&request)?;
        let all = self.engine.mounts.list(&scope).into_iter();
        let messages = all.map(|activation| Ok(wire::ListMessage { info: Some(to_wire(activation)) }));
        Ok(Response::new(stream::iter(messages).boxed()))
    }
}

fn to_wire(activation: Activation) -> types::ActivationInfo {
    types::ActivationInfo {
        name: activation.name,
        active: activation.active.into_iter().map(active_to_wire).collect(),
        system: mounts_to_wire(activation.system),
        labels: activation.labels,
    }
}

fn active_to_wire(active: ActiveMount) -> types::ActiveMount {
    types::ActiveMount {
        mount: mounts_to_wire(vec![active.mount]).pop(),
        mounted_at: Some(time_to_wire(active.mounted_at)),
        mount_point: active.mount_point.to_string_lossy().into_owned(),
        data: active.data,
    }
}
