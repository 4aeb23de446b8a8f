//! The gRPC services, one file a noun: decode, call the engine, encode.

mod admin;
mod arriving;
mod containers;
mod content;
mod controllers;
mod decode;
mod diff;
mod events;
mod front;
mod images;
mod introspection;
mod leases;
mod listing;
mod mounts;
mod namespaces;
mod plain;
mod reading;
mod sandboxes;
mod snapshots;
mod streaming;
mod tasks;
mod transfer;
mod version;
mod write;

use std::sync::Arc;

use gantry_api::pb::containerd::services;
use gantry_api::pb::containerd::services::containers::v1::containers_server::ContainersServer;
use gantry_api::pb::containerd::services::content::v1::content_server::ContentServer;
use gantry_api::pb::containerd::services::images::v1::images_server::ImagesServer;
use gantry_api::pb::gantry;
use gantry_engine::Engine;
use gantry_engine::containers::Container;
use gantry_engine::images::Image;
use tokio_util::sync::CancellationToken;
use tonic::service::RoutesBuilder;
use tonic::{Response, Status};

use self::front::Front;
use self::listing::Listings;
use self::reading::Reading;
pub(crate) use self::version::API_VERSION;
use self::write::Writing;
use crate::plugins::Besides;
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
    /// Parts besides those of the engine.
    pub(crate) besides: Arc<Besides>,
}

/// What a generated method says that is never reached, as another answers in its place.
fn stands_before() -> Status {
    Status::internal("a call has gone past who answers it")
}

impl Services {
    /// Adds every service of the API that `has` says is there, by the name of its plug-in, and our own. Clients may
    /// send messages of `recv` bytes, and are sent ones of `send` bytes at most.
    pub(crate) fn add_to(&self, routes: &mut RoutesBuilder, recv: usize, send: usize, has: impl Fn(&str) -> bool) {
        macro_rules! add {
            ($($name:literal: $($path:ident)::+),* $(,)?) => {$({
                if has(concat!("io.containerd.grpc.v1.", $name)) {
                    let server = $($path)::+::new(self.clone());
                    routes.add_service(server.max_decoding_message_size(recv).max_encoding_message_size(send));
                }
            })*};
        }
        add!(
            "admin": gantry::admin::v1::admin_server::AdminServer,
            "diff": services::diff::v1::diff_server::DiffServer,
            "events": services::events::v1::events_server::EventsServer,
            "introspection": services::introspection::v1::introspection_server::IntrospectionServer,
            "leases": services::leases::v1::leases_server::LeasesServer,
            "mounts": services::mounts::v1::mounts_server::MountsServer,
            "namespaces": services::namespaces::v1::namespaces_server::NamespacesServer,
            "sandbox-controllers": services::sandbox::v1::controller_server::ControllerServer,
            "sandboxes": services::sandbox::v1::store_server::StoreServer,
            "snapshots": services::snapshots::v1::snapshots_server::SnapshotsServer,
            "streaming": services::streaming::v1::streaming_server::StreamingServer,
            "tasks": services::tasks::v1::tasks_server::TasksServer,
            "transfer": services::transfer::v1::transfer_server::TransferServer,
            "version": services::version::v1::version_server::VersionServer,
        );
        if has("io.containerd.grpc.v1.content") {
            let content = ContentServer::new(self.clone()).max_decoding_message_size(recv);
            let content = content.max_encoding_message_size(send);
            let content = Front::new(Reading::new(self.clone(), recv), content);
            routes.add_service(Front::new(Writing::new(self.clone(), recv), content));
        }
        if has("io.containerd.grpc.v1.containers") {
            let containers = ContainersServer::new(self.clone()).max_decoding_message_size(recv);
            let containers = containers.max_encoding_message_size(send);
            routes.add_service(Front::new(Listings::<Container>::new(self.clone(), recv, send), containers));
        }
        if has("io.containerd.grpc.v1.images") {
            let images = ImagesServer::new(self.clone()).max_decoding_message_size(recv);
            let images = images.max_encoding_message_size(send);
            routes.add_service(Front::new(Listings::<Image>::new(self.clone(), recv, send), images));
        }
    }

    /// The result of `wait`, unless the daemon stops before.
    async fn unless_stopping<T>(&self, wait: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
        tokio::select! {
            result = wait => result,
            () = self.stopping.cancelled() => Err(Status::unavailable("the daemon is stopping")),
        }
    }
}
