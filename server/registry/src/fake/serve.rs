//! Connections of the fake: accept, shake hands, record, route.

use std::sync::Arc;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::reply::Body;
use super::{Recorded, State, lock, routes};

/// Serves until it is dropped; its connections end with it.
pub(super) async fn run(listener: TcpListener, state: Arc<State>) {
    let (mut connections, mut number) = (JoinSet::new(), 0);
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((stream, _)) = accepted {
                    number += 1;
                    connections.spawn(connection(stream, number, state.clone()));
                }
            }
            Some(_) = connections.join_next() => (),
        }
    }
}

async fn connection(stream: TcpStream, number: usize, state: Arc<State>) {
    let _ = stream.set_nodelay(true);
    match &state.tls {
        None => talk(stream, number, state).await,
        Some(tls) => {
            if let Ok(stream) = tls.acceptor.accept(stream).await {
                talk(stream, number, state.clone()).await;
            }
        }
    }
}

async fn talk<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S, number: usize, state: Arc<State>) {
    let service = service_fn(move |request| answer(request, number, state.clone()));
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http2().max_header_list_size(1 << 20);
    // How a connection ends is the caller's business.
    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
}

async fn answer(
    request: Request<Incoming>,
    number: usize,
    state: Arc<State>,
) -> Result<Response<Body>, std::convert::Infallible> {
    let at = record(&request, number, &state);
    let response = routes::answer(request, &state).await;
    if let Some(recorded) = lock(&state.requests).get_mut(at) {
        recorded.status = response.status().as_u16();
    }
    Ok(response)
}

fn record(request: &Request<Incoming>, connection: usize, state: &State) -> usize {
    let text = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
        (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned())
    };
    let recorded = Recorded {
        connection,
        version: request.version(),
        method: request.method().to_string(),
        path: request.uri().path_and_query().map(ToString::to_string).unwrap_or_default(),
        headers: request.headers().iter().map(text).collect(),
        status: 0,
    };
    let mut requests = lock(&state.requests);
    requests.push(recorded);
    requests.len() - 1
}
