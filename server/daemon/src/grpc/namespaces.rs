//! `containerd.services.namespaces.v1`. The only service about names that needs no namespace itself.

use gantry_api::convert::labels_from_wire;
use gantry_api::pb::containerd::services::namespaces::v1 as wire;
use gantry_api::pb::containerd::services::namespaces::v1::namespaces_server::Namespaces;
use gantry_engine::namespaces::NamespaceRecord;
use gantry_types::{ErrorKind, HasKind as _, Labels, Namespace};
use tonic::{Request, Response, Status, async_trait};

use super::decode::{paths, required};
use super::{Reply, Services};
use crate::status;

#[async_trait]
impl Namespaces for Services {
    /// A namespace that nobody has made yet is an empty one: clients ask for its labels before they use it.
    async fn get(&self, request: Request<wire::GetNamespaceRequest>) -> Reply<wire::GetNamespaceResponse> {
        let name = name(&request.get_ref().name)?;
        let found = match self.engine.namespaces.get(&name).await {
            Err(error) if error.kind() == ErrorKind::NotFound => NamespaceRecord { name, labels: Labels::new() },
            found => found.map_err(status::of)?,
        };
        Ok(Response::new(wire::GetNamespaceResponse { namespace: Some(to_wire(found)) }))
    }

    async fn list(&self, _: Request<wire::ListNamespacesRequest>) -> Reply<wire::ListNamespacesResponse> {
        let all = self.engine.namespaces.list().await.map_err(status::of)?;
        Ok(Response::new(wire::ListNamespacesResponse { namespaces: all.into_iter().map(to_wire).collect() }))
    }

    async fn create(&self, request: Request<wire::CreateNamespaceRequest>) -> Reply<wire::CreateNamespaceResponse> {
        let wanted = required(request.into_inner().namespace, "namespace")?;
        let labels = labels_from_wire(wanted.labels).map_err(status::of)?;
        let made = self.engine.namespaces.create(&name(&wanted.name)?, labels).await.map_err(status::of)?;
        Ok(Response::new(wire::CreateNamespaceResponse { namespace: Some(to_wire(made)) }))
    }

    async fn update(&self, request: Request<wire::UpdateNamespaceRequest>) -> Reply<wire::UpdateNamespaceResponse> {
        let request = request.into_inner();
        let wanted = required(request.namespace, "namespace")?;
        let labels = labels_from_wire(wanted.labels).map_err(status::of)?;
        let fields = paths(request.update_mask);
        let now = self.engine.namespaces.update(&name(&wanted.name)?, labels, &fields).await.map_err(status::of)?;
        Ok(Response::new(wire::UpdateNamespaceResponse { namespace: Some(to_wire(now)) }))
    }

    async fn delete(&self, request: Request<wire::DeleteNamespaceRequest>) -> Reply<()> {
        self.engine.namespaces.delete(&name(&request.get_ref().name)?).await.map_err(status::of)?;
        Ok(Response::new(()))
    }
}

fn name(text: &str) -> Result<Namespace, Status> {
    text.parse().map_err(status::of)
}

fn to_wire(namespace: NamespaceRecord) -> wire::Namespace {
    wire::Namespace { name: namespace.name.into(), labels: namespace.labels }
}
