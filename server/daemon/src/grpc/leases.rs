//! `containerd.services.leases.v1`.

use gantry_api::convert::{labels_from_wire, time_to_wire};
use gantry_api::pb::containerd::services::leases::v1 as wire;
use gantry_api::pb::containerd::services::leases::v1::leases_server::Leases;
use gantry_engine::leases::{Lease, Resource};
use tonic::{Request, Response, Status, async_trait};

use super::decode::{filter, required};
use super::{Reply, Services};
use crate::{scope, status};

#[async_trait]
impl Leases for Services {
    async fn create(&self, request: Request<wire::CreateRequest>) -> Reply<wire::CreateResponse> {
        let scope = scope::of(&request)?;
        let r = request.into_inner();
        let labels = labels_from_wire(r.labels).map_err(status::of)?;
        let id = Some(r.id.as_str()).filter(|id| !id.is_empty());
        let lease = self.engine.leases.create(&scope, id, labels).await.map_err(status::of)?;
        Ok(Response::new(wire::CreateResponse { lease: Some(to_wire(lease)) }))
    }

    async fn delete(&self, request: Request<wire::DeleteRequest>) -> Reply<()> {
        let scope = scope::of(&request)?;
        let r = request.into_inner();
        self.engine.leases.delete(&scope, &r.id, r.sync).await.map_err(status::of)?;
        Ok(Response::new(()))
    }

    async fn list(&self, request: Request<wire::ListRequest>) -> Reply<wire::ListResponse> {
        let scope = scope::of(&request)?;
        let filter = filter(&request.get_ref().filters)?;
        let leases = self.engine.leases.list(&scope, &filter).await.map_err(status::of)?;
        Ok(Response::new(wire::ListResponse { leases: leases.into_iter().map(to_wire).collect() }))
    }

    async fn add_resource(&self, request: Request<wire::AddResourceRequest>) -> Reply<()> {
        let scope = scope::of(&request)?;
        let r = request.into_inner();
        let resource = resource(r.resource)?;
        self.engine.leases.add(&scope, &r.id, resource).await.map_err(status::of)?;
        Ok(Response::new(()))
    }

    async fn delete_resource(&self, request: Request<wire::DeleteResourceRequest>) -> Reply<()> {
        let scope = scope::of(&request)?;
        let r = request.into_inner();
        let resource = resource(r.resource)?;
        self.engine.leases.remove(&scope, &r.id, resource).await.map_err(status::of)?;
        Ok(Response::new(()))
    }

    async fn list_resources(&self, request: Request<wire::ListResourcesRequest>) -> Reply<wire::ListResourcesResponse> {
        let scope = scope::of(&request)?;
        let kept = self.engine.leases.resources(&scope, &request.get_ref().id).await.map_err(status::of)?;
        let resources = kept.into_iter().map(resource_to_wire).collect();
        Ok(Response::new(wire::ListResourcesResponse { resources }))
    }
}

fn resource(resource: Option<wire::Resource>) -> Result<Resource, Status> {
    let resource = required(resource, "resource")?;
    Resource::parse(&resource.r#type, &resource.id).map_err(status::of)
}

fn resource_to_wire(resource: Resource) -> wire::Resource {
    wire::Resource { id: resource.id().into(), r#type: resource.type_name().into() }
}

fn to_wire(lease: Lease) -> wire::Lease {
    wire::Lease { id: lease.id, created_at: Some(time_to_wire(lease.created)), labels: lease.labels }
}
