//! `containerd.services.version.v1`.

use gantry_api::pb::containerd::services::version::v1::VersionResponse;
use gantry_api::pb::containerd::services::version::v1::version_server::Version;
use tonic::{Request, Response, async_trait};

use super::{Reply, Services};

/// The release of containerd's API that is served, and ours as build metadata (semver.org, item 10).
pub(crate) const API_VERSION: &str = concat!("v2.4.2+gantry.", env!("CARGO_PKG_VERSION"));

#[async_trait]
impl Version for Services {
    async fn version(&self, _: Request<()>) -> Reply<VersionResponse> {
        Ok(Response::new(VersionResponse { version: API_VERSION.into(), revision: String::new() }))
    }
}
