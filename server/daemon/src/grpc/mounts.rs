//! `containerd.services.mounts.v1`. A mount manager is of use for mounts that the kernel does not know by themselves;
//! all that our snapshotters give are plain ones, which clients perform themselves. So nothing is ever active here.

use futures::{StreamExt as _, stream};
use gantry_api::pb::containerd::services::mounts::v1 as wire;
use gantry_api::pb::containerd::services::mounts::v1::mounts_server::Mounts;
use tonic::{Request, Response, Status, async_trait};

use super::decode::filter;
use super::{Answers, Reply, Services};
use crate::scope;

#[async_trait]
impl Mounts for Services {
    /// `Unimplemented` tells clients to perform the mounts themselves.
    async fn activate(&self, request: Request<wire::ActivateRequest>) -> Reply<wire::ActivateResponse> {
        scope::of(&request)?;
        Err(Status::unimplemented("not implemented"))
    }

    async fn deactivate(&self, request: Request<wire::DeactivateRequest>) -> Reply<()> {
        scope::of(&request)?;
        Err(not_found(&request.get_ref().name))
    }

    async fn info(&self, request: Request<wire::InfoRequest>) -> Reply<wire::InfoResponse> {
        scope::of(&request)?;
        Err(not_found(&request.get_ref().name))
    }

    async fn update(&self, request: Request<wire::UpdateRequest>) -> Reply<wire::UpdateResponse> {
        scope::of(&request)?;
        Err(Status::unimplemented("not implemented"))
    }

    type ListStream = Answers<wire::ListMessage>;

    async fn list(&self, request: Request<wire::ListRequest>) -> Reply<Self::ListStream> {
        scope::of(&request)?;
        filter(&request.get_ref().filters)?;
        Ok(Response::new(stream::empty().boxed()))
    }
}

fn not_found(name: &str) -> Status {
    let name: String = name.chars().take(200).collect();
    Status::not_found(format!("mount {name:?}: not found"))
}
