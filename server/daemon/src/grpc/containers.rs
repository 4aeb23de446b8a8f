//! `containerd.services.containers.v1`.

use std::collections::BTreeMap;
use std::time::UNIX_EPOCH;

use gantry_api::convert::{any_from_wire, any_to_wire, labels_from_wire, time_to_wire};
use gantry_api::pb::containerd::services::containers::v1 as wire;
use gantry_api::pb::containerd::services::containers::v1::containers_server::Containers;
use gantry_engine::containers::{Container, Runtime};
use tonic::{Request, Response, Status, async_trait};

use super::decode::{paths, required};
use super::{Answers, Reply, Services};
use crate::{scope, status};

#[async_trait]
impl Containers for Services {
    async fn get(&self, request: Request<wire::GetContainerRequest>) -> Reply<wire::GetContainerResponse> {
        let scope = scope::of(&request)?;
        let container = self.engine.containers.get(&scope, &request.get_ref().id).await.map_err(status::of)?;
        Ok(Response::new(wire::GetContainerResponse { container: Some(to_wire(container)) }))
    }

    async fn list(&self, _: Request<wire::ListContainersRequest>) -> Reply<wire::ListContainersResponse> {
        Err(super::stands_before())
    }

    type ListStreamStream = Answers<wire::ListContainerMessage>;

    async fn list_stream(&self, _: Request<wire::ListContainersRequest>) -> Reply<Self::ListStreamStream> {
        Err(super::stands_before())
    }

    async fn create(&self, request: Request<wire::CreateContainerRequest>) -> Reply<wire::CreateContainerResponse> {
        let scope = scope::of(&request)?;
        let wanted = from_wire(required(request.into_inner().container, "container")?)?;
        let made = self.engine.containers.create(&scope, wanted).await.map_err(status::of)?;
        Ok(Response::new(wire::CreateContainerResponse { container: Some(to_wire(made)) }))
    }

    async fn update(&self, request: Request<wire::UpdateContainerRequest>) -> Reply<wire::UpdateContainerResponse> {
        let scope = scope::of(&request)?;
        let request = request.into_inner();
        let wanted = from_wire(required(request.container, "container")?)?;
        let fields = paths(request.update_mask);
        let now = self.engine.containers.update(&scope, wanted, &fields).await.map_err(status::of)?;
        Ok(Response::new(wire::UpdateContainerResponse { container: Some(to_wire(now)) }))
    }

    async fn delete(&self, request: Request<wire::DeleteContainerRequest>) -> Reply<()> {
        let scope = scope::of(&request)?;
        self.engine.containers.delete(&scope, &request.get_ref().id).await.map_err(status::of)?;
        Ok(Response::new(()))
    }
}

fn from_wire(container: wire::Container) -> Result<Container, Status> {
    let runtime = container.runtime.unwrap_or_default();
    let extensions: BTreeMap<_, _> = container.extensions.into_iter().map(|(k, v)| (k, any_from_wire(v))).collect();
    Ok(Container {
        id: container.id.parse().map_err(status::of)?,
        labels: labels_from_wire(container.labels).map_err(status::of)?,
        image: container.image,
        runtime: Runtime { name: runtime.name, options: runtime.options.map(any_from_wire) },
        spec: container.spec.map(any_from_wire),
        snapshotter: container.snapshotter,
        snapshot_key: container.snapshot_key,
        extensions,
        sandbox_id: container.sandbox,
        created: UNIX_EPOCH,
        updated: UNIX_EPOCH,
    })
}

fn to_wire(container: Container) -> wire::Container {
    let Runtime { name, options } = container.runtime;
    wire::Container {
        id: container.id.into(),
        labels: container.labels,
        image: container.image,
        runtime: Some(wire::container::Runtime { name, options: options.map(any_to_wire) }),
        spec: container.spec.map(any_to_wire),
        snapshotter: container.snapshotter,
        snapshot_key: container.snapshot_key,
        created_at: Some(time_to_wire(container.created)),
        updated_at: Some(time_to_wire(container.updated)),
        extensions: container.extensions.into_iter().map(|(k, v)| (k, any_to_wire(v))).collect(),
        sandbox: container.sandbox_id,
    }
}
