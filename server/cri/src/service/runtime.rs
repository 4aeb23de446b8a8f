//! `runtime.v1.RuntimeService`.

use async_trait::async_trait;
use gantry_api::pb::runtime::v1 as wire;
use gantry_api::timeout;
use tonic::{Request, Response};
use wire::runtime_service_server::RuntimeService;

use super::{Answers, Reply, chunks, reply};
use crate::Cri;

/// The service of pods and containers.
#[derive(Clone)]
pub struct Runtime(pub Cri);

#[async_trait]
impl RuntimeService for Runtime {
    async fn version(&self, _: Request<wire::VersionRequest>) -> Reply<wire::VersionResponse> {
        reply(Ok(self.0.version()))
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<wire::RunPodSandboxRequest>,
    ) -> Reply<wire::RunPodSandboxResponse> {
        let r = request.into_inner();
        reply(self.0.run_pod(r).await.map(|pod_sandbox_id| wire::RunPodSandboxResponse { pod_sandbox_id }))
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<wire::StopPodSandboxRequest>,
    ) -> Reply<wire::StopPodSandboxResponse> {
        let r = request.into_inner();
        reply(self.0.stop_pod(&r.pod_sandbox_id).await.map(|()| wire::StopPodSandboxResponse {}))
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<wire::RemovePodSandboxRequest>,
    ) -> Reply<wire::RemovePodSandboxResponse> {
        let r = request.into_inner();
        reply(self.0.remove_pod(&r.pod_sandbox_id).await.map(|()| wire::RemovePodSandboxResponse {}))
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<wire::PodSandboxStatusRequest>,
    ) -> Reply<wire::PodSandboxStatusResponse> {
        let r = request.into_inner();
        reply(self.0.pod_status(&r.pod_sandbox_id, r.verbose).await)
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<wire::ListPodSandboxRequest>,
    ) -> Reply<wire::ListPodSandboxResponse> {
        let r = request.into_inner();
        reply(Ok(wire::ListPodSandboxResponse { items: self.0.list_pods(r.filter.as_ref()) }))
    }

    async fn create_container(
        &self,
        request: Request<wire::CreateContainerRequest>,
    ) -> Reply<wire::CreateContainerResponse> {
        let r = request.into_inner();
        reply(self.0.create_container(r).await.map(|container_id| wire::CreateContainerResponse { container_id }))
    }

    async fn start_container(
        &self,
        request: Request<wire::StartContainerRequest>,
    ) -> Reply<wire::StartContainerResponse> {
        let r = request.into_inner();
        reply(self.0.start_container(&r.container_id).await.map(|()| wire::StartContainerResponse {}))
    }

    async fn stop_container(&self, request: Request<wire::StopContainerRequest>) -> Reply<wire::StopContainerResponse> {
        let r = request.into_inner();
        reply(self.0.stop_container(&r.container_id, r.timeout).await.map(|()| wire::StopContainerResponse {}))
    }

    async fn remove_container(
        &self,
        request: Request<wire::RemoveContainerRequest>,
    ) -> Reply<wire::RemoveContainerResponse> {
        let r = request.into_inner();
        reply(self.0.remove_container(&r.container_id).await.map(|()| wire::RemoveContainerResponse {}))
    }

    async fn list_containers(
        &self,
        request: Request<wire::ListContainersRequest>,
    ) -> Reply<wire::ListContainersResponse> {
        let r = request.into_inner();
        reply(Ok(wire::ListContainersResponse { containers: self.0.list_containers(r.filter.as_ref()) }))
    }

    async fn container_status(
        &self,
        request: Request<wire::ContainerStatusRequest>,
    ) -> Reply<wire::ContainerStatusResponse> {
        let r = request.into_inner();
        reply(self.0.container_status(&r.container_id, r.verbose).await)
    }

    async fn update_container_resources(
        &self,
        request: Request<wire::UpdateContainerResourcesRequest>,
    ) -> Reply<wire::UpdateContainerResourcesResponse> {
        let r = request.into_inner();
        reply(self.0.update_container(r).await.map(|()| wire::UpdateContainerResourcesResponse {}))
    }

    async fn reopen_container_log(
        &self,
        request: Request<wire::ReopenContainerLogRequest>,
    ) -> Reply<wire::ReopenContainerLogResponse> {
        let r = request.into_inner();
        reply(self.0.reopen_log(&r.container_id).await.map(|()| wire::ReopenContainerLogResponse {}))
    }

    async fn exec_sync(&self, request: Request<wire::ExecSyncRequest>) -> Reply<wire::ExecSyncResponse> {
        let r = request.into_inner();
        reply(self.0.exec_sync(r).await)
    }

    async fn exec(&self, request: Request<wire::ExecRequest>) -> Reply<wire::ExecResponse> {
        let r = request.into_inner();
        reply(self.0.exec_url(r).await.map(|url| wire::ExecResponse { url }))
    }

    async fn attach(&self, request: Request<wire::AttachRequest>) -> Reply<wire::AttachResponse> {
        let r = request.into_inner();
        reply(self.0.attach_url(r).await.map(|url| wire::AttachResponse { url }))
    }

    async fn port_forward(&self, request: Request<wire::PortForwardRequest>) -> Reply<wire::PortForwardResponse> {
        let r = request.into_inner();
        reply(self.0.port_forward_url(r).await.map(|url| wire::PortForwardResponse { url }))
    }

    async fn container_stats(
        &self,
        request: Request<wire::ContainerStatsRequest>,
    ) -> Reply<wire::ContainerStatsResponse> {
        let r = request.into_inner();
        reply(
            self.0
                .container_stats(&r.container_id)
                .await
                .map(|stats| wire::ContainerStatsResponse { stats: Some(stats) }),
        )
    }

    async fn list_container_stats(
        &self,
        request: Request<wire::ListContainerStatsRequest>,
    ) -> Reply<wire::ListContainerStatsResponse> {
        let r = request.into_inner();
        reply(Ok(wire::ListContainerStatsResponse { stats: self.0.list_container_stats(r.filter.as_ref()).await }))
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<wire::PodSandboxStatsRequest>,
    ) -> Reply<wire::PodSandboxStatsResponse> {
        let r = request.into_inner();
        reply(
            self.0.pod_stats(&r.pod_sandbox_id).await.map(|stats| wire::PodSandboxStatsResponse { stats: Some(stats) }),
        )
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<wire::ListPodSandboxStatsRequest>,
    ) -> Reply<wire::ListPodSandboxStatsResponse> {
        let r = request.into_inner();
        reply(Ok(wire::ListPodSandboxStatsResponse { stats: self.0.list_pod_stats(r.filter.as_ref()).await }))
    }

    async fn update_runtime_config(
        &self,
        request: Request<wire::UpdateRuntimeConfigRequest>,
    ) -> Reply<wire::UpdateRuntimeConfigResponse> {
        let r = request.into_inner();
        reply(self.0.update_runtime_config(r).await.map(|()| wire::UpdateRuntimeConfigResponse {}))
    }

    async fn status(&self, request: Request<wire::StatusRequest>) -> Reply<wire::StatusResponse> {
        let r = request.into_inner();
        reply(self.0.status(r.verbose).await)
    }

    async fn checkpoint_container(
        &self,
        request: Request<wire::CheckpointContainerRequest>,
    ) -> Reply<wire::CheckpointContainerResponse> {
        let r = request.into_inner();
        reply(self.0.checkpoint_container(r).await.map(|()| wire::CheckpointContainerResponse {}))
    }

    async fn checkpoint_pod(&self, request: Request<wire::CheckpointPodRequest>) -> Reply<wire::CheckpointPodResponse> {
        let limit = timeout::of(request.metadata());
        let r = request.into_inner();
        reply(self.0.checkpoint_pod(r, limit).await.map(|()| wire::CheckpointPodResponse {}))
    }

    async fn restore_pod(&self, request: Request<wire::RestorePodRequest>) -> Reply<wire::RestorePodResponse> {
        let limit = timeout::of(request.metadata());
        reply(self.0.revive_pod(request.into_inner(), limit).await)
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<wire::ListMetricDescriptorsRequest>,
    ) -> Reply<wire::ListMetricDescriptorsResponse> {
        reply(Ok(wire::ListMetricDescriptorsResponse { descriptors: self.0.metric_descriptors() }))
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<wire::ListPodSandboxMetricsRequest>,
    ) -> Reply<wire::ListPodSandboxMetricsResponse> {
        reply(Ok(wire::ListPodSandboxMetricsResponse { pod_metrics: self.0.pod_metrics().await }))
    }

    async fn runtime_config(&self, _: Request<wire::RuntimeConfigRequest>) -> Reply<wire::RuntimeConfigResponse> {
        reply(self.0.runtime_config())
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<wire::UpdatePodSandboxResourcesRequest>,
    ) -> Reply<wire::UpdatePodSandboxResourcesResponse> {
        let r = request.into_inner();
        reply(self.0.update_pod(r).await.map(|()| wire::UpdatePodSandboxResourcesResponse {}))
    }

    type StreamPodSandboxesStream = Answers<wire::StreamPodSandboxesResponse>;

    async fn stream_pod_sandboxes(
        &self,
        request: Request<wire::StreamPodSandboxesRequest>,
    ) -> Reply<Answers<wire::StreamPodSandboxesResponse>> {
        let r = request.into_inner();
        chunks(self.0.list_pods(r.filter.as_ref()), |pod_sandboxes| wire::StreamPodSandboxesResponse { pod_sandboxes })
    }

    type StreamContainersStream = Answers<wire::StreamContainersResponse>;

    async fn stream_containers(
        &self,
        request: Request<wire::StreamContainersRequest>,
    ) -> Reply<Answers<wire::StreamContainersResponse>> {
        let r = request.into_inner();
        chunks(self.0.list_containers(r.filter.as_ref()), |containers| wire::StreamContainersResponse { containers })
    }

    type StreamContainerStatsStream = Answers<wire::StreamContainerStatsResponse>;

    async fn stream_container_stats(
        &self,
        request: Request<wire::StreamContainerStatsRequest>,
    ) -> Reply<Answers<wire::StreamContainerStatsResponse>> {
        let r = request.into_inner();
        chunks(self.0.list_container_stats(r.filter.as_ref()).await, |container_stats| {
            wire::StreamContainerStatsResponse { container_stats }
        })
    }

    type StreamPodSandboxStatsStream = Answers<wire::StreamPodSandboxStatsResponse>;

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<wire::StreamPodSandboxStatsRequest>,
    ) -> Reply<Answers<wire::StreamPodSandboxStatsResponse>> {
        let r = request.into_inner();
        chunks(self.0.list_pod_stats(r.filter.as_ref()).await, |pod_sandbox_stats| {
            wire::StreamPodSandboxStatsResponse { pod_sandbox_stats }
        })
    }

    type StreamPodSandboxMetricsStream = Answers<wire::StreamPodSandboxMetricsResponse>;

    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<wire::StreamPodSandboxMetricsRequest>,
    ) -> Reply<Answers<wire::StreamPodSandboxMetricsResponse>> {
        chunks(self.0.pod_metrics().await, |pod_sandbox_metrics| wire::StreamPodSandboxMetricsResponse {
            pod_sandbox_metrics,
        })
    }

    type GetContainerEventsStream = Answers<wire::ContainerEventResponse>;

    async fn get_container_events(
        &self,
        _: Request<wire::GetEventsRequest>,
    ) -> Reply<Answers<wire::ContainerEventResponse>> {
        Ok(Response::new(Box::pin(self.0.events.subscribe())))
    }
}
