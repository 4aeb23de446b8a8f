//! `containerd.services.introspection.v1`.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use gantry_api::convert::{any_from_wire, any_to_wire, pack, unpack};
use gantry_api::pb::containerd::services::introspection::v1 as wire;
use gantry_api::pb::containerd::services::introspection::v1::introspection_server::Introspection;
use gantry_api::pb::containerd::types::RuntimeRequest;
use tonic::{Request, Response, Status, async_trait};

use super::decode::filter;
use super::{Reply, Services};
use crate::{plugins, status};

#[async_trait]
impl Introspection for Services {
    async fn plugins(&self, request: Request<wire::PluginsRequest>) -> Reply<wire::PluginsResponse> {
        let filter = filter(&request.get_ref().filters)?;
        let mut plugins = plugins::all(&self.engine, &self.besides);
        plugins.retain(|plugin| filter.matches(&plugins::View(plugin)));
        Ok(Response::new(wire::PluginsResponse { plugins }))
    }

    async fn server(&self, _: Request<()>) -> Reply<wire::ServerResponse> {
        let pidns = fs::metadata("/proc/self/ns/pid").map(|file| file.ino());
        let pidns = pidns.map_err(|error| Status::internal(format!("cannot read /proc/self/ns/pid: {error}")))?;
        let uuid = self.identity.to_string();
        Ok(Response::new(wire::ServerResponse {
            uuid,
            pid: std::process::id().into(),
            pidns,
            deprecations: Vec::new(),
        }))
    }

    async fn plugin_info(&self, request: Request<wire::PluginInfoRequest>) -> Reply<wire::PluginInfoResponse> {
        let r = request.into_inner();
        let mut all = plugins::all(&self.engine, &self.besides).into_iter();
        let plugin = all.find(|plugin| plugin.r#type == r.r#type && plugin.id == r.id);
        let plugin = plugin.ok_or_else(|| Status::not_found(format!("plugin {}.{} not found", r.r#type, r.id)))?;
        let Some(options) = r.options else {
            return Ok(Response::new(wire::PluginInfoResponse { plugin: Some(plugin), extra: None }));
        };
        if plugin.r#type != plugins::RUNTIME {
            return Err(Status::unimplemented("plugin does not provided extra information"));
        }
        let asked: RuntimeRequest = unpack(&any_from_wire(options)).map_err(status::of)?;
        let options = asked.options.map(any_from_wire);
        let info = self.engine.runtime_info(&asked.runtime_path, options.as_ref()).await.map_err(status::of)?;
        Ok(Response::new(wire::PluginInfoResponse { plugin: Some(plugin), extra: Some(any_to_wire(pack(&info))) }))
    }
}
