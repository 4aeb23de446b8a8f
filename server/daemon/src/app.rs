//! The wiring: engine, services, socket, and how they stop.

use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gantry_engine::{Engine, OpenReport};
use gantry_types::{ErrorKind, HasKind};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::service::{Routes, RoutesBuilder};
use tonic::transport::Server;

use crate::config::Config;
use crate::grpc::Services;
use crate::streams::Streams;
use crate::{identity, oom, socket};

/// HTTP/2 windows: a chunk on its way never waits for an acknowledgement of the one before.
const WINDOW: u32 = 4 << 20;

/// HTTP/2 frames: one for a chunk of content.
const FRAME: u32 = 256 << 10;

/// Why the daemon cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A directory cannot be used.
    #[error("cannot use {path:?}: {source}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The engine does not open.
    #[error(transparent)]
    Engine(#[from] gantry_engine::Error),
    /// The socket cannot be served.
    #[error(transparent)]
    Socket(#[from] socket::Error),
    /// Serving ended by itself.
    #[error("the server failed: {0}")]
    Serve(#[from] tonic::transport::Error),
    /// The service descriptions do not decode.
    #[error("server reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

impl HasKind for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Error::Directory { source, .. } => ErrorKind::of_io(source),
            Error::Engine(error) => error.kind(),
            Error::Socket(error) => error.kind(),
            Error::Serve(_) | Error::Reflection(_) => ErrorKind::Internal,
        }
    }
}

/// The version shown by `--version` and told to clients.
pub const VERSION: &str = crate::grpc::API_VERSION;

/// Runs the daemon until `stopping`; calls `ready` once clients can connect. Containers run on after it.
///
/// # Errors
/// [`Error`].
pub async fn run(config: Config, stopping: CancellationToken, ready: impl FnOnce()) -> Result<(), Error> {
    for path in [&config.root, &config.state] {
        directory(path).map_err(|source| Error::Directory { path: path.clone(), source })?;
    }
    set_oom_score(config.oom_score);
    let identity = identity::load(&config.root);
    let identity = identity.map_err(|source| Error::Directory { path: config.root.clone(), source })?;
    let (engine, report) = Engine::open(config.engine()).await?;
    log(&report);
    let services = Services {
        engine: engine.clone(),
        streams: Streams::default(),
        stopping: stopping.clone(),
        identity: identity.into(),
    };
    let listener = socket::listen(&config.address, config.owner)?;
    let routes = routes(&services, config.max_message).await?;
    tracing::info!(address = %config.address.display(), version = VERSION, "serving");
    ready();
    let served = serve(listener, routes, stopping, config.drain).await;
    tracing::debug!("no call is running any more");
    engine.close().await;
    tracing::info!("stopped");
    served
}

/// Makes a directory that only root may list, and others may pass through.
fn directory(path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o711).create(path)
}

fn set_oom_score(wanted: i32) {
    match oom::set_score(wanted) {
        Ok(now) if now != wanted => tracing::warn!(wanted, now, "the kernel did not lower the oom score"),
        Ok(_) => {}
        Err(error) => tracing::warn!(wanted, %error, "cannot set the oom score"),
    }
}

fn log(report: &OpenReport) {
    for repair in &report.repairs {
        tracing::warn!(object = repair.object, action = repair.action, "repaired");
    }
    if !report.tasks.is_empty() {
        tracing::info!(count = report.tasks.len(), "running tasks found again");
    }
}

async fn routes(services: &Services, max_message: usize) -> Result<Routes, Error> {
    let mut routes = RoutesBuilder::default();
    services.add_to(&mut routes, max_message);
    let (health, health_server) = tonic_health::server::health_reporter();
    health.set_service_status("", tonic_health::ServingStatus::Serving).await;
    routes.add_service(health_server);
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(gantry_api::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    routes.add_service(reflection().build_v1()?);
    routes.add_service(reflection().build_v1alpha()?);
    let routes = routes.routes();
    #[cfg(feature = "failpoints")]
    let routes = crate::failpoints::wrap(routes);
    Ok(routes)
}

/// Serves until `stopping`, then lets running calls end for as long as `drain`.
async fn serve(
    listener: UnixListener,
    routes: Routes,
    stopping: CancellationToken,
    drain: Duration,
) -> Result<(), Error> {
    let server = Server::builder()
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_frame_size(FRAME)
        .add_routes(routes)
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stopping.clone().cancelled_owned());
    let overdue = async {
        stopping.cancelled().await;
        tokio::time::sleep(drain).await;
    };
    tokio::select! {
        served = server => Ok(served?),
        () = overdue => {
            tracing::warn!(?drain, "calls still running were cut off");
            Ok(())
        }
    }
}
