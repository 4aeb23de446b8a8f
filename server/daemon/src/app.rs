//! The wiring: engine, services, socket, and how they stop.

use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt as _, Stream};
use gantry_api::pb::containerd::services::introspection::v1::Plugin;
use gantry_api::pb::runtime::v1::image_service_server::ImageServiceServer;
use gantry_api::pb::runtime::v1::runtime_service_server::RuntimeServiceServer;
use gantry_cri::Cri;
use gantry_engine::{Engine, OpenReport};
use gantry_types::{ErrorKind, HasKind};
use tokio_util::sync::CancellationToken;
use tonic::service::{Routes, RoutesBuilder};

use crate::config::Config;
use crate::grpc::Services;
use crate::limits::Gate;
use crate::listen::Certificates;
use crate::measure::Measurements;
use crate::observe::Pages;
use crate::plugins::Besides;
use crate::reflection::{Reflection, V1, V1Alpha};
use crate::reload::{Control, Reload};
use crate::socket::Owner;
use crate::streams::Streams;
use crate::{identity, listen, observe, oom, plugins, resident, serve, socket, tls};

/// The parts that Kubernetes needs; without one of them it is not served.
const CRI: [&str; 3] = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime", "io.containerd.cri.v1.images"];

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
    /// Kubernetes' side does not open.
    #[error("cri: {0}")]
    Cri(#[from] gantry_cri::Error),
    /// The certificates of the TCP port cannot be used.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Tls(Vec<tls::Error>),
    /// Parts that the configuration requires are not there.
    #[error("required parts are missing: {}", .0.join(", "))]
    Required(Vec<String>),
}

impl HasKind for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Error::Directory { source, .. } => ErrorKind::of_io(source),
            Error::Engine(error) => error.kind(),
            Error::Socket(error) => error.kind(),
            Error::Cri(error) => error.kind(),
            Error::Tls(_) => ErrorKind::InvalidArgument,
            Error::Required(_) => ErrorKind::FailedPrecondition,
        }
    }
}

/// The version shown by `--version` and told to clients.
pub const VERSION: &str = crate::grpc::API_VERSION;

/// Runs the daemon until `stopping`; calls `ready` once clients can connect. Containers run on after it.
///
/// # Errors
/// [`Error`].
pub async fn run(
    mut config: Config,
    control: Control,
    stopping: CancellationToken,
    ready: impl FnOnce(),
) -> Result<(), Error> {
    config.leave_out_servers();
    for path in [&config.root, &config.state].into_iter().chain(&config.temp) {
        directory(path).map_err(|source| Error::Directory { path: path.clone(), source })?;
    }
    set_oom_score(config.oom_score);
    let identity = identity::load(&config.root);
    let identity = identity.map_err(|source| Error::Directory { path: config.root.clone(), source })?;
    let certificates = tls::load(&config.tcp).map_err(Error::Tls)?;
    let (engine, report) = Engine::open(config.engine()).await?;
    log(&report);
    let besides = Besides { opt: config.opt_path.clone(), parts: parts(&config) };
    check_parts(&config, &plugins::all(&engine, &besides))?;
    let services = Services {
        engine: engine.clone(),
        streams: Streams::default(),
        stopping: stopping.clone(),
        identity: identity.into(),
        besides: Arc::new(besides),
    };
    let served = serve_all(&config, control, &services, certificates, ready).await;
    tracing::debug!("no call is running any more");
    engine.close().await;
    tracing::info!("stopped");
    served
}

/// Opens every socket that the configuration asks for, and serves them until the daemon stops.
async fn serve_all(
    config: &Config,
    control: Control,
    services: &Services,
    certificates: Option<Arc<rustls::ServerConfig>>,
    ready: impl FnOnce(),
) -> Result<(), Error> {
    let (engine, stopping) = (&services.engine, &services.stopping);
    let measurements = Arc::new(Measurements::default());
    let gate = Gate::new(config.limits, Arc::clone(&measurements));
    if config.ttrpc.owner != Owner::default() {
        socket::hand_over(&config.ttrpc_address(), config.ttrpc.owner)?;
    }
    let pages = Pages {
        engine: engine.clone(),
        measurements,
        histogram: config.metrics.histogram,
        config: Some(Arc::new(config.clone())),
    };
    observe::start(&pages, config, stopping).await?;
    let live = Certificates::default();
    live.set(certificates);
    let reload = Reload { control, config: config.clone(), engine: engine.clone(), certificates: live.clone() };
    tokio::spawn(reload.serve(stopping.clone()));
    let cri = match CRI.iter().all(|part| config.has(part)) {
        true => Some(Cri::open(engine.clone(), config.cri.clone(), stopping.clone()).await?),
        false => None,
    };
    let listener = socket::listen(&config.grpc.address, config.grpc.owner)?;
    let sizes = (config.grpc.max_recv, config.grpc.max_send);
    let routes = routes(services, cri.clone(), config, sizes).await;
    let unix = serve(listen::unix(listener), routes, gate.clone(), stopping, config.drain);
    let tcp = serve_tcp(config, services, cri, live, gate).await?;
    tracing::info!(address = %config.grpc.address.display(), version = VERSION, "serving");
    ready();
    tokio::spawn(resident::keep_small(stopping.clone()));
    tokio::join!(unix, tcp);
    Ok(())
}

/// Serves the TCP port, where there is one.
async fn serve_tcp(
    config: &Config,
    services: &Services,
    cri: Option<Cri>,
    certificates: Certificates,
    gate: Gate,
) -> Result<impl Future<Output = ()>, Error> {
    let Some(address) = config.tcp.address else { return Ok(futures::future::ready(()).left_future()) };
    let listener = socket::listen_tcp(address).await?;
    // As with containerd, Kubernetes' services are not on the port, unless asked for.
    let cri = cri.filter(|_| !config.cri.server.disable_tcp_service);
    let routes = routes(services, cri, config, (config.tcp.max_recv, config.tcp.max_send)).await;
    let (tls, clients) = (config.tcp.cert.is_some(), config.tcp.ca.is_some());
    tracing::info!(%address, tls, client_certificates = clients, "serving");
    let connections = listen::tcp(listener, certificates);
    Ok(serve(connections, routes, gate, &services.stopping, config.drain).right_future())
}

/// The parts (type, id) that are there because the configuration asks for them.
fn parts(config: &Config) -> Vec<(&'static str, &'static str)> {
    const SERVER: &str = "io.containerd.server.v1";
    let cri = CRI.iter().all(|part| config.has(part));
    let asked = [
        (SERVER, "grpc-tcp", config.tcp.address.is_some()),
        (SERVER, "metrics", config.metrics.address.is_some()),
        (SERVER, "debug", config.debug.address.is_some()),
        ("io.containerd.grpc.v1", "cri", cri),
        ("io.containerd.cri.v1", "runtime", cri),
        ("io.containerd.cri.v1", "images", cri),
    ];
    asked.into_iter().filter(|(.., asked)| *asked).map(|(kind, id, _)| (kind, id)).collect()
}

/// Sees that what is required is there, and says what cannot be left out.
fn check_parts(config: &Config, all: &[Plugin]) -> Result<(), Error> {
    let there: Vec<String> = all.iter().map(plugins::uri).collect();
    let missing: Vec<String> = config.required.iter().filter(|part| !there.contains(part)).cloned().collect();
    for part in config.disabled.iter().filter(|part| there.contains(part)) {
        tracing::warn!("`{part}` cannot be left out: other parts need it");
    }
    if missing.is_empty() { Ok(()) } else { Err(Error::Required(missing)) }
}

/// Makes a directory that only root may list, and others may pass through.
fn directory(path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o711).create(path)
}

fn set_oom_score(wanted: i64) {
    let wanted = i32::try_from(wanted).unwrap_or_default();
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

/// All services; messages may have as many bytes from and to clients.
async fn routes(services: &Services, cri: Option<Cri>, config: &Config, (recv, send): (usize, usize)) -> Routes {
    let mut routes = RoutesBuilder::default();
    services.add_to(&mut routes, recv, send, |part| config.has(part));
    if let Some(cri) = cri {
        let images = ImageServiceServer::new(gantry_cri::Images(cri.clone()));
        routes.add_service(images.max_decoding_message_size(recv).max_encoding_message_size(send));
        let runtime = RuntimeServiceServer::new(gantry_cri::Runtime(cri));
        routes.add_service(runtime.max_decoding_message_size(recv).max_encoding_message_size(send));
    }
    let (health, health_server) = tonic_health::server::health_reporter();
    health.set_service_status("", tonic_health::ServingStatus::Serving).await;
    routes.add_service(health_server);
    routes.add_service(Reflection::<V1>::default());
    routes.add_service(Reflection::<V1Alpha>::default());
    let routes = routes.routes();
    #[cfg(feature = "failpoints")]
    let routes = crate::failpoints::wrap(routes);
    routes
}

/// Serves until `stopping`, then lets running calls end for as long as `drain`.
fn serve<S, T>(
    connections: S,
    routes: Routes,
    gate: Gate,
    stopping: &CancellationToken,
    drain: Duration,
) -> impl Future<Output = ()> + use<S, T>
where
    S: Stream<Item = io::Result<T>> + Send + 'static,
    T: listen::Io + 'static,
{
    let stopping = stopping.clone();
    async move {
        let overdue = async {
            stopping.cancelled().await;
            tokio::time::sleep(drain).await;
        };
        tokio::select! {
            () = serve::serve(connections, routes, gate, stopping.clone()) => {}
            () = overdue => tracing::warn!(?drain, "calls still running were cut off"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plugin(kind: &str, id: &str) -> Plugin {
        Plugin { r#type: kind.into(), id: id.into(), ..Plugin::default() }
    }

    #[test]
    fn every_required_part_that_is_missing_is_named() {
        let there = [plugin("a.v1", "x"), plugin("b.v1", "y")];
        let config = Config { required: vec!["a.v1.x".into(), "c.v1.z".into(), "d.v1.w".into()], ..Config::default() };
        let error = check_parts(&config, &there).unwrap_err();
        assert_eq!(error.to_string(), "required parts are missing: c.v1.z, d.v1.w");
        let config = Config { required: vec!["b.v1.y".into()], ..Config::default() };
        assert!(check_parts(&config, &there).is_ok());
    }
}
