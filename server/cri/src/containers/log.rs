//! ReopenContainerLog.

use gantry_api::pb::runtime::v1::ContainerState;

use crate::{Cri, Error, Result};

impl Cri {
    /// Opens a container's log anew, after its file was renamed.
    pub(crate) async fn reopen_log(&self, id: &str) -> Result<()> {
        let container = self.containers.get(id)?;
        if container.state() != ContainerState::ContainerRunning {
            return Err(Error::State("container is not running".to_owned()));
        }
        Ok(self.engine.tasks.reopen_log(&self.scope, &container.id).await?)
    }
}
