//! The server that clients come to with the URLs that the CRI gave them.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request as HttpRequest, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::idle::{Activity, Watched};
use super::tokens::{Request, Tokens};
use super::upgrade::{ACCEPTED, Carrier, Chosen, Purpose, Refused, STREAM_PROTOCOL, choose};
use super::websocket::{self, Tunnel};
use super::{Attach, Backend, Error, Exec, PortForward, Result, Tls, forward, remote, spdy};

/// Connections at once.
const MAX_CONNECTIONS: usize = 4096;
/// How long a client may take for TLS and the request's head.
const HEAD: Duration = Duration::from_secs(30);
/// How long connections may take to end at shutdown.
const DRAIN: Duration = Duration::from_secs(5);

/// Settings of a [`Server`].
#[derive(Clone, Debug)]
pub struct Config {
    /// Where it listens; port 0 is any free one.
    pub address: SocketAddr,
    /// What URLs begin with, where clients come by another way; none: scheme, address and port.
    pub base_url: Option<String>,
    /// A connection on which nothing happens for this long is closed.
    pub idle_timeout: Duration,
    /// How long a client may take to open its streams.
    pub creation_timeout: Duration,
    /// How long a URL is good for.
    pub token_lifetime: Duration,
    /// With TLS.
    pub tls: Option<Tls>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            address: SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0),
            base_url: None,
            idle_timeout: Duration::from_secs(4 * 3600),
            creation_timeout: Duration::from_secs(30),
            token_lifetime: Duration::from_secs(60),
            tls: None,
        }
    }
}

/// The server. Clones are the same.
#[derive(Clone)]
pub struct Server(Arc<Inner>);

struct Inner {
    config: Config,
    base: String,
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    tokens: Tokens,
    backend: Arc<dyn Backend>,
    stop: CancellationToken,
    connections: TaskTracker,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("base", &self.0.base).finish_non_exhaustive()
    }
}

impl Server {
    /// Listens; nothing is answered before [`Server::serve`].
    ///
    /// # Errors
    /// The address cannot be had, or the certificate cannot be used.
    pub async fn bind(config: Config, backend: Arc<dyn Backend>) -> Result<Server> {
        let listen = |source| Error::Listen { address: config.address, source };
        let listener = TcpListener::bind(config.address).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let tls = config.tls.as_ref().map(|tls| tls.acceptor(address.ip())).transpose()?;
        let base = config.base_url.clone().unwrap_or_else(|| base(address, tls.is_some()));
        let tokens = Tokens::new(config.token_lifetime);
        let inner = Inner {
            config,
            base: base.trim_end_matches('/').to_owned(),
            listener,
            tls,
            tokens,
            backend,
            stop: CancellationToken::new(),
            connections: TaskTracker::new(),
        };
        Ok(Server(Arc::new(inner)))
    }

    /// What URLs begin with.
    pub fn base_url(&self) -> &str {
        &self.0.base
    }

    /// The URL for a command.
    ///
    /// # Errors
    /// The request makes no sense, or too many wait.
    pub fn exec(&self, exec: Exec) -> Result<String> {
        if exec.container.is_empty() {
            return Err(Error::Invalid { field: "container_id", reason: "missing" });
        }
        if exec.command.is_empty() {
            return Err(Error::Invalid { field: "cmd", reason: "missing" });
        }
        streams(exec.tty, exec.stdin, exec.stdout, exec.stderr)?;
        self.url("exec", Request::Exec(exec))
    }

    /// The URL for joining a container.
    ///
    /// # Errors
    /// The request makes no sense, or too many wait.
    pub fn attach(&self, attach: Attach) -> Result<String> {
        if attach.container.is_empty() {
            return Err(Error::Invalid { field: "container_id", reason: "missing" });
        }
        streams(attach.tty, attach.stdin, attach.stdout, attach.stderr)?;
        self.url("attach", Request::Attach(attach))
    }

    /// The URL for connections to a pod.
    ///
    /// # Errors
    /// The request makes no sense, or too many wait.
    pub fn port_forward(&self, request: PortForward) -> Result<String> {
        if request.pod.is_empty() {
            return Err(Error::Invalid { field: "pod_sandbox_id", reason: "missing" });
        }
        self.url("portforward", Request::PortForward(request))
    }

    fn url(&self, verb: &str, request: Request) -> Result<String> {
        Ok(format!("{}/{verb}/{}", self.0.base, self.0.tokens.issue(request)?))
    }

    /// Serves until cancelled; then clients are told, and connections are cut.
    pub async fn serve(&self, stop: CancellationToken) {
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            // Who comes when all are taken waits in the kernel's queue.
            let Ok(slot) = slots.clone().acquire_owned().await else { break };
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = self.0.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    // Interactive: each key is a packet.
                    let _ = stream.set_nodelay(true);
                    let inner = self.0.clone();
                    self.0.connections.spawn(async move {
                        inner.connection(stream).await;
                        drop(slot);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "streaming server cannot accept");
                    // Out of descriptors: there may be some in a moment.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        self.0.stop.cancel();
        self.0.connections.close();
        let _ = tokio::time::timeout(DRAIN, self.0.connections.wait()).await;
    }
}

fn base(address: SocketAddr, tls: bool) -> String {
    format!("{}://{address}", if tls { "https" } else { "http" })
}

fn streams(tty: bool, stdin: bool, stdout: bool, stderr: bool) -> Result<()> {
    if tty && stderr {
        return Err(Error::Invalid {
            field: "stderr",
            reason: "a terminal has one output only: tty and stderr cannot both be true",
        });
    }
    if !stdin && !stdout && !stderr {
        return Err(Error::Invalid { field: "stdin, stdout, stderr", reason: "one of them must be set" });
    }
    Ok(())
}

impl Inner {
    async fn connection(self: Arc<Self>, stream: tokio::net::TcpStream) {
        let stop = self.stop.clone();
        let serve = async {
            match &self.tls {
                None => self.clone().http(stream).await,
                Some(tls) => match tokio::time::timeout(HEAD, tls.accept(stream)).await {
                    Ok(Ok(stream)) => self.clone().http(stream).await,
                    Ok(Err(error)) => tracing::debug!(%error, "TLS with a streaming client failed"),
                    Err(_) => tracing::debug!("a streaming client took too long for TLS"),
                },
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = serve => {}
        }
    }

    async fn http<T: AsyncRead + AsyncWrite + Send + Unpin + 'static>(self: Arc<Self>, io: T) {
        let service = service_fn(move |request| {
            let inner = self.clone();
            async move { Ok::<_, Infallible>(inner.answer(request)) }
        });
        let mut http = hyper::server::conn::http1::Builder::new();
        let connection =
            http.timer(TokioTimer::new()).header_read_timeout(HEAD).serve_connection(TokioIo::new(io), service);
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "streaming connection ended");
        }
    }

    fn answer(self: Arc<Self>, request: HttpRequest<Incoming>) -> Response<Full<Bytes>> {
        let mut path = request.uri().path().trim_start_matches('/').splitn(2, '/');
        let (verb, token) = (path.next().unwrap_or_default(), path.next().unwrap_or_default());
        let wanted = self.tokens.redeem(token);
        let (wanted, purpose) = match (verb, wanted) {
            ("exec", Some(wanted @ Request::Exec(_))) => (wanted, Purpose::Command),
            ("attach", Some(wanted @ Request::Attach(_))) => (wanted, Purpose::Command),
            ("portforward", Some(wanted @ Request::PortForward(_))) => (wanted, Purpose::PortForward),
            _ => return text(StatusCode::NOT_FOUND, "no such request: the URL is good once, and not for long"),
        };
        match choose(request.headers(), purpose) {
            Ok(chosen) => self.upgrade(request, wanted, &chosen),
            Err(refused) => refuse(refused),
        }
    }

    fn upgrade(
        self: Arc<Self>,
        request: HttpRequest<Incoming>,
        wanted: Request,
        chosen: &Chosen,
    ) -> Response<Full<Bytes>> {
        let response = switching(&request, chosen);
        let carrier = chosen.carrier;
        let inner = self.clone();
        self.connections.spawn(async move {
            match hyper::upgrade::on(request).await {
                Ok(upgraded) => inner.run(TokioIo::new(upgraded), wanted, carrier).await,
                Err(error) => tracing::debug!(%error, "a streaming client left before the upgrade"),
            }
        });
        response
    }

    async fn run<T: AsyncRead + AsyncWrite + Send + Unpin + 'static>(&self, io: T, wanted: Request, carrier: Carrier) {
        let (io, activity) = Watched::new(io);
        let (gone, cut) = (CancellationToken::new(), self.stop.child_token());
        let tells = !matches!(wanted, Request::PortForward(_));
        let watch = tokio::spawn(watch(activity, self.config.idle_timeout, gone.clone(), cut.clone(), tells));
        self.streams(io, wanted, carrier, gone.clone(), cut).await;
        gone.cancel();
        let _ = watch.await;
    }

    async fn streams<T>(
        &self,
        io: T,
        wanted: Request,
        carrier: Carrier,
        gone: CancellationToken,
        cut: CancellationToken,
    ) where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let patience = self.config.creation_timeout;
        match (carrier, wanted) {
            (Carrier::Spdy(_), Request::PortForward(request)) => {
                let connection = spdy::Connection::serve(io, gone);
                forward::over_spdy(self.backend.clone(), request, connection, patience).await;
            }
            (Carrier::Spdy(version), request) => {
                let connection = spdy::Connection::serve(io, gone);
                remote::over_spdy(&*self.backend, request, version, connection, patience, cut).await;
            }
            (Carrier::Channels(form, _), Request::PortForward(request)) => {
                let connection = websocket::Connection::serve(io, form, gone).await;
                forward::over_websocket(self.backend.clone(), request, connection).await;
            }
            (Carrier::Channels(form, version), request) => {
                let connection = websocket::Connection::serve(io, form, gone).await;
                remote::over_websocket(&*self.backend, request, version, connection, cut).await;
            }
            (Carrier::Tunnel, Request::PortForward(request)) => {
                let connection = spdy::Connection::serve(Tunnel::new(websocket::accept(io).await), gone);
                forward::over_spdy(self.backend.clone(), request, connection, patience).await;
            }
            // Only port-forward is offered a tunnel.
            (Carrier::Tunnel, _) => {}
        }
    }
}

/// Cuts a connection that is idle. A command's client is told the reason first, if it listens.
async fn watch(activity: Activity, limit: Duration, gone: CancellationToken, cut: CancellationToken, tells: bool) {
    tokio::select! {
        () = gone.cancelled() => return,
        () = activity.idle(limit) => cut.cancel(),
        () = cut.cancelled() => {}
    }
    if tells {
        let _ = tokio::time::timeout(DRAIN, gone.cancelled()).await;
    }
    gone.cancel();
}

/// The answer after which the connection speaks another protocol.
fn switching(request: &HttpRequest<Incoming>, chosen: &Chosen) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    let name = chosen.name.as_ref().and_then(|name| HeaderValue::from_str(name).ok());
    if let Carrier::Spdy(_) = chosen.carrier {
        headers.insert(header::UPGRADE, HeaderValue::from_static("SPDY/3.1"));
        name.map(|name| headers.insert(STREAM_PROTOCOL, name));
        return response;
    }
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    let key = request.headers().get(header::SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes).unwrap_or_default();
    if let Ok(accept) = HeaderValue::from_str(&derive_accept_key(key)) {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    name.map(|name| headers.insert(header::SEC_WEBSOCKET_PROTOCOL, name));
    response
}

fn refuse(refused: Refused) -> Response<Full<Bytes>> {
    match refused {
        Refused::NoUpgrade => text(StatusCode::BAD_REQUEST, "an upgrade to SPDY/3.1 or websocket is required"),
        Refused::BadWebSocket(reason) => text(StatusCode::BAD_REQUEST, reason),
        Refused::NoProtocol(spoken) => {
            let mut response = text(
                StatusCode::FORBIDDEN,
                &format!("none of the protocols is spoken here; these are: {}", spoken.join(", ")),
            );
            for name in spoken.iter().filter_map(|name| HeaderValue::from_str(name).ok()) {
                response.headers_mut().append(ACCEPTED, name);
            }
            response
        }
    }
}

fn text(status: StatusCode, message: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(format!("{message}\n")));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// The address that clients on other machines reach this one by: that of the default route. None where there is none.
pub fn own_address() -> Option<IpAddr> {
    // A datagram socket that is connected sends nothing; the kernel only chooses the way.
    let chosen = |bind: &str, to: &str| -> std::io::Result<IpAddr> {
        let socket = std::net::UdpSocket::bind(bind)?;
        socket.connect(to)?;
        Ok(socket.local_addr()?.ip())
    };
    chosen("0.0.0.0:0", "192.0.2.1:9").or_else(|_| chosen("[::]:0", "[2001:db8::1]:9")).ok()
}
