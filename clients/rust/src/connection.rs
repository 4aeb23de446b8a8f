//! The connection: one HTTP/2 channel over the unix socket, and the headers that say under whose name a call runs.

use std::path::{Path, PathBuf};

use gantry_api::pb::containerd::services;
use gantry_api::pb::gantry;
use gantry_types::Namespace;
use hyper_util::rt::TokioIo;
use tonic::metadata::AsciiMetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::Error;

/// Largest message either way, in bytes: containerd's limit.
const MAX_MESSAGE: usize = 16 << 20;
/// HTTP/2 window of a stream, in bytes.
const WINDOW: u32 = 4 << 20;

/// A connection with a namespace and, where one was taken, a lease. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {
    channel: Channel,
    scope: Scope,
}

/// A channel that adds namespace and lease to every call.
pub type Scoped = InterceptedService<Channel, Scope>;

/// Adds the headers `containerd-namespace` and `containerd-lease`.
#[derive(Clone, Debug)]
pub struct Scope {
    namespace: Namespace,
    lease: Option<String>,
}

impl Interceptor for Scope {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status> {
        let ascii =
            |id: &str| AsciiMetadataValue::try_from(id).map_err(|e| tonic::Status::invalid_argument(e.to_string()));
        let metadata = request.metadata_mut();
        metadata.insert("containerd-namespace", ascii(&self.namespace)?);
        if let Some(lease) = &self.lease {
            metadata.insert("containerd-lease", ascii(lease)?);
        }
        Ok(request)
    }
}

macro_rules! stubs {
    ($($name:ident: $($path:ident)::+, $doc:literal;)*) => {
        impl Client {
            $(#[doc = $doc]
            pub fn $name(&self) -> $($path)::+<Scoped> {
                $($path)::+::with_interceptor(self.channel.clone(), self.scope.clone())
                    .max_decoding_message_size(MAX_MESSAGE)
                    .max_encoding_message_size(MAX_MESSAGE)
            })*
        }
    };
}

stubs! {
    admin: gantry::admin::v1::admin_client::AdminClient, "The stub of our own service: operations, garbage, disk usage.";
    containers: services::containers::v1::containers_client::ContainersClient, "The stub of the container records.";
    content: services::content::v1::content_client::ContentClient, "The stub of the blob store.";
    diff: services::diff::v1::diff_client::DiffClient, "The stub of applying and making layers.";
    events: services::events::v1::events_client::EventsClient, "The stub of the event stream.";
    images: services::images::v1::images_client::ImagesClient, "The stub of the image records.";
    introspection: services::introspection::v1::introspection_client::IntrospectionClient, "The stub of what the daemon says of itself.";
    leases: services::leases::v1::leases_client::LeasesClient, "The stub of the leases.";
    namespaces: services::namespaces::v1::namespaces_client::NamespacesClient, "The stub of the namespaces.";
    snapshots: services::snapshots::v1::snapshots_client::SnapshotsClient, "The stub of the snapshots.";
    streaming: services::streaming::v1::streaming_client::StreamingClient, "The stub of the named streams.";
    tasks: services::tasks::v1::tasks_client::TasksClient, "The stub of the running tasks.";
    transfer: services::transfer::v1::transfer_client::TransferClient, "The stub of pull, push, import, export and tag.";
    version: services::version::v1::version_client::VersionClient, "The stub of the daemon's version.";
}

impl Client {
    /// Connects to the daemon's socket.
    ///
    /// # Errors
    /// [`Error::Connect`] when nothing answers there.
    pub async fn connect(address: impl AsRef<Path>, namespace: Namespace) -> Result<Client, Error> {
        let address: PathBuf = address.as_ref().to_owned();
        let socket = address.clone();
        let connector = tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { tokio::net::UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        // The authority is not looked at on a unix socket, but HTTP/2 wants one.
        let channel = Endpoint::from_static("http://localhost")
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .connect_with_connector(connector)
            .await
            .map_err(|source| Error::Connect { address, source })?;
        Ok(Client { channel, scope: Scope { namespace, lease: None } })
    }

    /// The namespace that calls name.
    pub fn namespace(&self) -> &Namespace {
        &self.scope.namespace
    }

    /// The same connection, in another namespace and without a lease.
    #[must_use]
    pub fn in_namespace(&self, namespace: Namespace) -> Client {
        Client { channel: self.channel.clone(), scope: Scope { namespace, lease: None } }
    }

    /// The same connection, with all it makes kept alive by `lease`.
    #[must_use]
    pub fn under_lease(&self, lease: String) -> Client {
        let scope = Scope { namespace: self.scope.namespace.clone(), lease: Some(lease) };
        Client { channel: self.channel.clone(), scope }
    }
}
