//! The HTTP pages for those who watch the daemon: measurements on a TCP port, and on the debug socket also what runs
//! and what is configured. Only GET; what containerd's Go runtime shows under `/debug/pprof` is not there, and says so.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use gantry_engine::Engine;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::config::{self, Config};
use crate::measure::Measurements;
use crate::socket;

/// Connections at once, of each listener.
const CONNECTIONS: usize = 32;

/// How long a connection may be open: a scrape takes milliseconds.
const LONGEST: Duration = Duration::from_secs(30);

/// What the pages show.
#[derive(Clone)]
pub(crate) struct Pages {
    pub(crate) engine: Engine,
    pub(crate) measurements: Arc<Measurements>,
    pub(crate) histogram: bool,
    /// The configuration that holds; none on a port that only measures.
    pub(crate) config: Option<Arc<Config>>,
}

/// Listens where the configuration says so, and serves until `stopping`.
///
/// # Errors
/// When a socket cannot be made.
pub(crate) async fn start(pages: &Pages, config: &Config, stopping: &CancellationToken) -> Result<(), socket::Error> {
    if let Some(address) = config.metrics.address {
        let listener = socket::listen_tcp(address).await?;
        tracing::info!(%address, "serving measurements");
        let pages = Pages { config: None, ..pages.clone() };
        tokio::spawn(stopping.clone().run_until_cancelled_owned(async move {
            let room = Arc::new(Semaphore::new(CONNECTIONS));
            loop {
                let Ok(place) = Arc::clone(&room).acquire_owned().await else { return };
                match listener.accept().await {
                    Ok((stream, _)) => drop(tokio::spawn(serve(stream, pages.clone(), place))),
                    Err(error) => relieve(&error).await,
                }
            }
        }));
    }
    if let Some(path) = &config.debug.address {
        let listener = socket::listen(path, config.debug.owner)?;
        tracing::info!(address = %path.display(), "serving what goes on inside");
        let pages = pages.clone();
        tokio::spawn(stopping.clone().run_until_cancelled_owned(async move {
            let room = Arc::new(Semaphore::new(CONNECTIONS));
            loop {
                let Ok(place) = Arc::clone(&room).acquire_owned().await else { return };
                match listener.accept().await {
                    Ok((stream, _)) => drop(tokio::spawn(serve(stream, pages.clone(), place))),
                    Err(error) => relieve(&error).await,
                }
            }
        }));
    }
    Ok(())
}

async fn relieve(error: &io::Error) {
    tracing::warn!(%error, "a connection was not accepted");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

/// One connection, which holds its place until it ends.
async fn serve<T>(stream: T, pages: Pages, place: OwnedSemaphorePermit)
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let answer = service_fn(move |request: Request<Incoming>| {
        let response = pages.answer(request.method(), request.uri().path());
        async move { Ok::<_, Infallible>(response) }
    });
    let mut server = hyper::server::conn::http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(5));
    let served = tokio::time::timeout(LONGEST, server.serve_connection(TokioIo::new(stream), answer)).await;
    if let Ok(Err(error)) = served {
        tracing::debug!(%error, "a page was not served");
    }
    drop(place);
}

impl Pages {
    fn answer(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        if method != Method::GET {
            return page(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".into());
        }
        match (path, &self.config) {
            ("/metrics" | "/v1/metrics", _) => {
                page(StatusCode::OK, self.measurements.text(&self.engine, self.histogram))
            }
            ("/debug/operations", Some(_)) => page(StatusCode::OK, self.operations()),
            ("/debug/config", Some(config)) => page(StatusCode::OK, config::dump(config)),
            (path, Some(_)) if path.starts_with("/debug/pprof") || path == "/debug/vars" => {
                let text = "profiles of the Go runtime do not exist here; see /debug/operations and /metrics\n";
                page(StatusCode::NOT_IMPLEMENTED, text.into())
            }
            (_, Some(_)) => page(StatusCode::NOT_FOUND, "there is /metrics, /debug/operations, /debug/config\n".into()),
            (_, None) => page(StatusCode::NOT_FOUND, "there is /v1/metrics\n".into()),
        }
    }

    /// What runs: one line an operation, the oldest first.
    fn operations(&self) -> String {
        let now = SystemTime::now();
        let line = |operation: &gantry_engine::ops::Operation| {
            let namespace = operation.namespace.as_ref().map_or("-", |namespace| namespace.as_str());
            let age = now.duration_since(operation.started).unwrap_or_default().as_secs_f64();
            let stage = operation.stage_since.elapsed().as_secs_f64();
            let (what, object) = (operation.what, &operation.object);
            format!("{what}\t{namespace}\t{object}\t{age:.1}s\t{} for {stage:.1}s\n", operation.stage)
        };
        self.engine.ops.list().iter().map(line).collect()
    }
}

fn page(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    let kind = hyper::header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, kind);
    response
}
