//! `containerd.services.sandbox.v1.Controller`: sandboxes at work, each by the controller that the caller names.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use gantry_api::convert::{any_from_wire, any_to_wire, mounts_from_wire, time_to_wire};
use gantry_api::pb::containerd::services::sandbox::v1 as wire;
use gantry_api::pb::containerd::services::sandbox::v1::controller_server::Controller;
use gantry_api::pb::containerd::types;
use gantry_engine::containers::Runtime;
use gantry_engine::sandboxes::{CreateSandbox, Sandbox};
use prost_types::Timestamp;
use tonic::{Request, Response, Status, async_trait};

use super::sandboxes::record;
use super::tasks::{NEVER, metric_to_wire};
use super::{Reply, Services};
use crate::{scope, status};

#[async_trait]
impl Controller for Services {
    async fn create(&self, request: Request<wire::ControllerCreateRequest>) -> Reply<wire::ControllerCreateResponse> {
        let scope = scope::of(&request)?;
        let r = request.into_inner();
        let controller = self.engine.sandboxes.controller(&r.sandboxer).map_err(status::of)?;
        let sandbox = match r.sandbox {
            Some(sandbox) => record(sandbox)?,
            None => unrecorded(&r.sandbox_id)?,
        };
        let create = CreateSandbox {
            rootfs: mounts_from_wire(r.rootfs),
            options: r.options.map(any_from_wire),
            netns_path: r.netns_path,
            annotations: r.annotations,
        };
        controller.create(&scope, &sandbox, create).await.map_err(status::of)?;
        Ok(Response::new(wire::ControllerCreateResponse { sandbox_id: r.sandbox_id }))
    }

    async fn start(&self, request: Request<wire::ControllerStartRequest>) -> Reply<wire::ControllerStartResponse> {
        let scope = scope::of(&request)?;
        let r = request.into_inner();
        let controller = self.engine.sandboxes.controller(&r.sandboxer).map_err(status::of)?;
        let started = controller.start(&scope, &r.sandbox_id).await.map_err(status::of)?;
        Ok(Response::new(wire::ControllerStartResponse {
            sandbox_id: r.sandbox_id,
            pid: started.pid,
            created_at: time(started.created_at),
            labels: started.labels,
            address: started.address,
            version: started.version,
            spec: started.spec.map(any_to_wire),
        }))
    }

    async fn platform(
        &self,
        request: Request<wire::ControllerPlatformRequest>,
    ) -> Reply<wire::ControllerPlatformResponse> {
        let scope = scope::of(&request)?;
        let r = request.into_inner();
        let controller = self.engine.sandboxes.controller(&r.sandboxer).map_err(status::of)?;
        let platform = controller.platform(&scope, &r.sandbox_id).await.map_err(status::of)?;
        let platform = Some(gantry_api::convert::platform_to_wire(&platform));
        Ok(Response::new(wire::ControllerPlatformResponse { platform }))
    }

    async fn stop(&self, request: Request<wire::ControllerStopRequest>) -> Reply<wire::ControllerStopResponse> {
        let scope = scope::of(&request)?;
        let r = request.into_inner();
        let controller = self.engine.sandboxes.controller(&r.sandboxer).map_err(status::of)?;
        let timeout = (r.timeout_secs != 0).then(|| Duration::from_secs(r.timeout_secs.into()));
        controller.stop(&scope, &r.sandbox_id, timeout).await.map_err(status::of)?;
        Ok(Response::new(wire::ControllerStopResponse {}))
    }

    async fn wait(&self, request: Request<wire::ControllerWaitRequest>) -> Reply<wire::ControllerWaitResponse> {
        let scope = scope::of(&request)?;
        let r = request.into_inner();
        let controller = self.engine.sandboxes.controller(&r.sandboxer).map_err(status::of)?;
        let exit = async { controller.wait(&scope, &r.sandbox_id).await.map_err(status::of) };
        let exit = self.unless_stopping(exit).await?;
        let exited_at = Some(time_to_wire(exit.exited_at));
        Ok(Response::new(wire::ControllerWaitResponse { exit_status: exit.status, exited_at }))
    }

    async fn status(&self, request: Request<wire::ControllerStatusRequest>) -> Reply<wire::ControllerStatusResponse> {
        let scope = scope::of(&request)?;
        let r = request.into_inner();
        let controller = self.engine.sandboxes.controller(&r.sandboxer).map_err(status::of)?;
        let now = controller.status(&scope, &r.sandbox_id, r.verbose).await.map_err(status::of)?;
        Ok(Response::new(wire::ControllerStatusResponse {
            sandbox_id: r.sandbox_id,
            pid: now.pid,
            state: now.state,
            info: now.info,
            created_at: time(now.created_at),
            exited_at: time(now.exited_at),
            // Clients of containerd always find one.
            extra: Some(now.extra.map(any_to_wire).unwrap_or_default()),
            address: now.address,
            version: now.version,
        }))
    }

    async fn shutdown(
        &self,
        request: Request<wire::ControllerShutdownRequest>,
    ) -> Reply<wire::ControllerShutdownResponse> {
        let scope = scope::of(&request)?;
        let r = request.into_inner();
        let controller = self.engine.sandboxes.controller(&r.sandboxer).map_err(status::of)?;
        controller.shutdown(&scope, &r.sandbox_id).await.map_err(status::of)?;
        Ok(Response::new(wire::ControllerShutdownResponse {}))
    }

    async fn metrics(
        &self,
        request: Request<wire::ControllerMetricsRequest>,
    ) -> Reply<wire::ControllerMetricsResponse> {
        let scope = scope::of(&request)?;
        let r = request.into_inner();
        let controller = self.engine.sandboxes.controller(&r.sandboxer).map_err(status::of)?;
        let metrics = controller.metrics(&scope, &r.sandbox_id).await.map_err(status::of)?;
        Ok(Response::new(wire::ControllerMetricsResponse { metrics: metrics.map(metric_to_wire) }))
    }

    async fn update(&self, request: Request<wire::ControllerUpdateRequest>) -> Reply<wire::ControllerUpdateResponse> {
        let scope = scope::of(&request)?;
        let r = request.into_inner();
        let controller = self.engine.sandboxes.controller(&r.sandboxer).map_err(status::of)?;
        let sandbox: types::Sandbox = r.sandbox.ok_or_else(|| Status::unknown("sandbox can not be nil"))?;
        // The call names the sandbox; what came with it says how it shall be.
        let sandbox = Sandbox { id: r.sandbox_id.parse().map_err(status::of)?, ..record(sandbox)? };
        controller.update(&scope, &sandbox, &r.fields).await.map_err(status::of)?;
        Ok(Response::new(wire::ControllerUpdateResponse {}))
    }
}

/// A sandbox of which the caller says nothing but the id.
fn unrecorded(id: &str) -> Result<Sandbox, Status> {
    Ok(Sandbox {
        id: id.parse().map_err(status::of)?,
        labels: Default::default(),
        runtime: Runtime { name: String::new(), options: None },
        spec: None,
        sandboxer: String::new(),
        extensions: Default::default(),
        created: UNIX_EPOCH,
        updated: UNIX_EPOCH,
    })
}

fn time(at: Option<SystemTime>) -> Option<Timestamp> {
    Some(at.map_or(NEVER, time_to_wire))
}
