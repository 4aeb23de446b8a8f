//! The gRPC services, one file a noun: decode, call the engine, encode.

mod admin;
mod containers;
mod content;
mod controllers;
mod decode;
mod diff;
mod events;
mod images;
mod introspection;
mod leases;
mod mounts;
mod namespaces;
mod sandboxes;
mod snapshots;
mod streaming;
mod tasks;
mod transfer;
mod version;
mod write;

use std::sync::Arc;

use gantry_api::pb::containerd::services;
use gantry_api::pb::gantry;
use gantry_engine::Engine;
use tokio_util::sync::CancellationToken;
use tonic::service::RoutesBuilder;
use tonic::{Response, Status};

pub(crate) use self::version::API_VERSION;
use crate::streams::Streams;

/// An answer, or why there is none.
type Reply<T> = Result<Response<T>, Status>;

/// A stream of answers.
type Answers<T> = futures::stream::BoxStream<'static, Result<T, Status>>;

/// What the services share. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Services {
    /// Does the work.
    pub(crate) engine: Engine,
    /// Streams that calls refer to by id.
    pub(crate) streams: Streams,
    /// Ends calls that wait for something to happen, when the daemon stops.
    pub(crate) stopping: CancellationToken,
    /// UUID of this daemon.
    pub(crate) identity: Arc<str>,
}

impl Services {
    /// Adds every service of the API, and our own; clients may send messages of `max_message` bytes.
    pub(crate) fn add_to(&self, routes: &mut RoutesBuilder, max_message: usize) {
        macro_rules! add {
            ($($($path:ident)::+),* $(,)?) => {$({
                let server = $($path)::+::new(self.clone());
                routes.add_service(server.max_decoding_message_size(max_message));
            })*};
        }
        add!(
            gantry::admin::v1::admin_server::AdminServer,
            services::containers::v1::containers_server::ContainersServer,
            services::content::v1::content_server::ContentServer,
            services::diff::v1::diff_server::DiffServer,
            services::events::v1::events_server::EventsServer,
            services::images::v1::images_server::ImagesServer,
            services::introspection::v1::introspection_server::IntrospectionServer,
            services::leases::v1::leases_server::LeasesServer,
            services::mounts::v1::mounts_server::MountsServer,
            services::namespaces::v1::namespaces_server::NamespacesServer,
            services::sandbox::v1::controller_server::ControllerServer,
            services::sandbox::v1::store_server::StoreServer,
            services::snapshots::v1::snapshots_server::SnapshotsServer,
            services::streaming::v1::streaming_server::StreamingServer,
            services::tasks::v1::tasks_server::TasksServer,
            services::transfer::v1::transfer_server::TransferServer,
            services::version::v1::version_server::VersionServer,
        );
    }

    /// The result of `wait`, unless the daemon stops before.
    async fn unless_stopping<T>(&self, wait: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
        tokio::select! {
            result = wait => result,
            () = self.stopping.cancelled() => Err(Status::unavailable("the daemon is stopping")),
        }
    }
}
