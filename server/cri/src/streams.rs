//! Exec, attach and port-forward: the addresses that clients connect to, and what is done once they do.

use gantry_api::pb::runtime::v1 as wire;

use crate::{Cri, Error, Result};

impl Cri {
    pub(crate) async fn listen(&self) -> Result<()> {
        Ok(())
    }

    pub(crate) async fn exec_url(&self, request: wire::ExecRequest) -> Result<String> {
        self.running(&request.container_id)?;
        Err(Error::Unimplemented("streams are not offered yet".into()))
    }

    pub(crate) async fn attach_url(&self, request: wire::AttachRequest) -> Result<String> {
        self.running(&request.container_id)?;
        Err(Error::Unimplemented("streams are not offered yet".into()))
    }

    pub(crate) async fn port_forward_url(&self, request: wire::PortForwardRequest) -> Result<String> {
        self.pods.get(&request.pod_sandbox_id)?;
        Err(Error::Unimplemented("streams are not offered yet".into()))
    }

    pub(crate) async fn checkpoint_container(&self, request: wire::CheckpointContainerRequest) -> Result<()> {
        self.containers.get(&request.container_id)?;
        Err(Error::Unimplemented("checkpoint of a container is not offered".into()))
    }
}
