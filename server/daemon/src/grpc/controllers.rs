//! `containerd.services.sandbox.v1.Controller`. No sandbox controller is offered by name, so every call says that the
//! one it asks for is not there; pods are made through Kubernetes' interface.

use gantry_api::pb::containerd::services::sandbox::v1 as wire;
use gantry_api::pb::containerd::services::sandbox::v1::controller_server::Controller;
use tonic::{Request, Status, async_trait};

use super::{Reply, Services};
use crate::scope;

#[async_trait]
impl Controller for Services {
    async fn create(&self, request: Request<wire::ControllerCreateRequest>) -> Reply<wire::ControllerCreateResponse> {
        scope::of(&request)?;
        Err(missing(&request.get_ref().sandboxer))
    }

    async fn start(&self, request: Request<wire::ControllerStartRequest>) -> Reply<wire::ControllerStartResponse> {
        scope::of(&request)?;
        Err(missing(&request.get_ref().sandboxer))
    }

    /// Not asked of containerd's controllers either.
    async fn platform(
        &self,
        request: Request<wire::ControllerPlatformRequest>,
    ) -> Reply<wire::ControllerPlatformResponse> {
        scope::of(&request)?;
        Err(Status::unimplemented("method Platform not implemented"))
    }

    async fn stop(&self, request: Request<wire::ControllerStopRequest>) -> Reply<wire::ControllerStopResponse> {
        scope::of(&request)?;
        Err(missing(&request.get_ref().sandboxer))
    }

    async fn wait(&self, request: Request<wire::ControllerWaitRequest>) -> Reply<wire::ControllerWaitResponse> {
        scope::of(&request)?;
        Err(missing(&request.get_ref().sandboxer))
    }

    async fn status(&self, request: Request<wire::ControllerStatusRequest>) -> Reply<wire::ControllerStatusResponse> {
        scope::of(&request)?;
        Err(missing(&request.get_ref().sandboxer))
    }

    async fn shutdown(
        &self,
        request: Request<wire::ControllerShutdownRequest>,
    ) -> Reply<wire::ControllerShutdownResponse> {
        scope::of(&request)?;
        Err(missing(&request.get_ref().sandboxer))
    }

    async fn metrics(
        &self,
        request: Request<wire::ControllerMetricsRequest>,
    ) -> Reply<wire::ControllerMetricsResponse> {
        scope::of(&request)?;
        Err(missing(&request.get_ref().sandboxer))
    }

    async fn update(&self, request: Request<wire::ControllerUpdateRequest>) -> Reply<wire::ControllerUpdateResponse> {
        scope::of(&request)?;
        Err(missing(&request.get_ref().sandboxer))
    }
}

fn missing(controller: &str) -> Status {
    if controller.is_empty() {
        return Status::invalid_argument("sandbox controller name can not be empty");
    }
    let controller: String = controller.chars().take(200).collect();
    Status::not_found(format!("sandbox controller {controller:?}: not found"))
}
