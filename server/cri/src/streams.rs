//! Exec, attach and port-forward: the addresses that clients connect to, and what is done once they do.

use std::sync::Arc;

use async_trait::async_trait;
use futures::FutureExt as _;
use gantry_api::pb::runtime::v1 as wire;
use gantry_engine::tasks::{self, AttachEnd};
use gantry_types::HasKind;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;
use wire::NamespaceMode;

use crate::streaming::{self, Attach, Backend, Duplex, Exec, Failure, Io, PortForward, Server, Size};
use crate::{Cri, Error, Result};

/// Bytes copied at once.
const PIECE: usize = 32 << 10;
const SIGKILL: u32 = 9;

impl Cri {
    /// Opens the streaming server; it is served until the daemon stops.
    ///
    /// # Errors
    /// When its address cannot be used.
    pub(crate) async fn listen(&self) -> Result<()> {
        let server = &self.config.server;
        let address = if server.stream_server_address.is_empty() { "127.0.0.1" } else { &server.stream_server_address };
        let bad = |error: std::net::AddrParseError| Error::invalid("stream_server_address", error.to_string());
        let tls = match (&server.tls_cert_file, &server.tls_key_file) {
            _ if !server.enable_tls_streaming => None,
            (Some(cert), Some(key)) => Some(streaming::Tls::Files { cert: cert.clone(), key: key.clone() }),
            _ => Some(streaming::Tls::SelfSigned),
        };
        let config = streaming::Config {
            address: std::net::SocketAddr::new(address.parse().map_err(bad)?, server.stream_server_port),
            idle_timeout: server.stream_idle_timeout,
            tls,
            ..streaming::Config::default()
        };
        let server = Arc::new(Server::bind(config, Arc::new(self.clone())).await.map_err(failure)?);
        tokio::spawn({
            let (server, stopping) = (Arc::clone(&server), self.stopping.clone());
            async move { server.serve(stopping).await }
        });
        // A second opening has no effect: there is one server.
        let _ = self.streaming.set(server);
        Ok(())
    }

    fn server(&self) -> Result<&Arc<Server>> {
        self.streaming.get().ok_or(Error::Stopped { what: "the streaming server" })
    }

    /// Where a client can run a command in a container.
    pub(crate) async fn exec_url(&self, r: wire::ExecRequest) -> Result<String> {
        let container = self.running(&r.container_id)?;
        let (tty, stdin, stdout, stderr) = (r.tty, r.stdin, r.stdout, r.stderr);
        let exec = Exec { container: container.id.clone(), command: r.cmd, tty, stdin, stdout, stderr };
        self.server()?.exec(exec).map_err(failure)
    }

    /// Where a client can attach to a container.
    pub(crate) async fn attach_url(&self, r: wire::AttachRequest) -> Result<String> {
        let container = self.running(&r.container_id)?;
        let (tty, stdin, stdout, stderr) = (r.tty, r.stdin, r.stdout, r.stderr);
        let attach = Attach { container: container.id.clone(), tty, stdin, stdout, stderr };
        self.server()?.attach(attach).map_err(failure)
    }

    /// Where a client can reach ports of a pod.
    pub(crate) async fn port_forward_url(&self, r: wire::PortForwardRequest) -> Result<String> {
        let pod = self.pods.get(&r.pod_sandbox_id)?;
        if !pod.is_ready() {
            return Err(Error::State(format!("sandbox container {:?} is not running", pod.id)));
        }
        let port = |(at, port): (usize, &i32)| match u16::try_from(*port) {
            Ok(port) if port > 0 => Ok(port),
            _ => Err(Error::invalid(format!("port[{at}]"), format!("{port} is not a port"))),
        };
        let ports = r.port.iter().enumerate().map(port).collect::<Result<Vec<u16>>>()?;
        self.server()?.port_forward(PortForward { pod: pod.id.clone(), ports }).map_err(failure)
    }
}

fn failure(error: streaming::Error) -> Error {
    Error::Network { kind: error.kind(), message: error.to_string() }
}

fn failed(error: Error) -> Failure {
    match error.kind() {
        gantry_types::ErrorKind::NotFound => Failure::not_found(error.to_string()),
        _ => Failure::from(error.to_string()),
    }
}

#[async_trait]
impl Backend for Cri {
    async fn exec(&self, request: Exec, io: Io) -> std::result::Result<i32, Failure> {
        let container = self.running(&request.container).map_err(failed)?;
        let started = self.execute(&container, &request.command, request.tty, request.stdin, None).await;
        let (exec_id, running) = started.map_err(failed)?;
        let sizes = tokio::spawn(self.clone().follow_sizes(container.id.clone(), exec_id.clone(), io.resize));
        let input = tokio::spawn(pump(io.stdin, running.streams.stdin));
        let output =
            async { tokio::join!(pump(running.streams.stdout, io.stdout), pump(running.streams.stderr, io.stderr)) };
        let whole = async {
            let ((), exit) = tokio::join!(
                async {
                    let ((), ()) = output.await;
                },
                self.engine.tasks.wait(&self.scope, &container.id, &exec_id)
            );
            exit
        };
        let exit = tokio::select! {
            exit = whole => exit.map_err(|error| failed(error.into())),
            () = io.gone.cancelled() => {
                // Nobody is left to see it end.
                let _ = self.engine.tasks.kill(&self.scope, &container.id, &exec_id, SIGKILL, false).await;
                Err(Failure::from("the client went away".to_owned()))
            }
        };
        input.abort();
        sizes.abort();
        self.delete_exec(&container.id, &exec_id).await;
        exit.map(|exit| i32::try_from(exit.status).unwrap_or(i32::MAX))
    }

    async fn attach(&self, request: Attach, io: Io) -> std::result::Result<(), Failure> {
        let container = self.running(&request.container).map_err(failed)?;
        let stdin_once = container.config().stdin_once;
        let attach = tasks::Attach {
            container_id: container.id.clone(),
            exec_id: String::new(),
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr && !request.tty,
            stdin_once,
        };
        let attached = self.engine.tasks.attach(&self.scope, attach).await.map_err(|error| failed(error.into()))?;
        let sizes = tokio::spawn(self.clone().follow_sizes(container.id.clone(), String::new(), io.resize));
        let streams = attached.streams;
        let has_input = io.stdin.is_some();
        let input = async {
            pump(io.stdin, streams.stdin).await;
            // What is left to come is the answer to the last line.
            if !has_input || stdin_once {
                std::future::pending::<()>().await;
            }
        };
        let output = async { tokio::join!(pump(streams.stdout, io.stdout), pump(streams.stderr, io.stderr)) };
        let ended = tokio::select! {
            _ = output => Ok(()),
            () = input => Ok(()),
            () = io.gone.cancelled() => Ok(()),
        };
        sizes.abort();
        match attached.end.now_or_never() {
            Some(Ok(Ok(AttachEnd::Lagged))) => {
                Err(Failure::from("the client read too slowly and was cut off".to_owned()))
            }
            _ => ended,
        }
    }

    async fn port_forward(&self, pod: &str, port: u16, stream: Duplex) -> std::result::Result<(), Failure> {
        let pod = self.pods.get(pod).map_err(failed)?;
        let own = pod.namespaces().network() != NamespaceMode::Node;
        let netns = self.netns_of(&pod.id);
        streaming::forward(own.then_some(netns.as_path()), port, stream).await
    }
}

impl Cri {
    /// Passes the size of the client's terminal on.
    async fn follow_sizes(self, container: String, exec_id: String, mut sizes: mpsc::Receiver<Size>) {
        while let Some(Size { width, height }) = sizes.recv().await {
            let resized =
                self.engine.tasks.resize_pty(&self.scope, &container, &exec_id, width.into(), height.into()).await;
            if let Err(error) = resized {
                tracing::debug!(container, exec_id, %error, "terminal not resized");
            }
        }
    }
}

/// Copies all of a stream, then closes the other end.
async fn pump(from: Option<impl AsyncRead + Unpin>, to: Option<impl AsyncWrite + Unpin>) {
    let Some(mut from) = from else { return };
    let Some(mut to) = to else { return };
    let mut piece = vec![0; PIECE];
    while let Ok(length) = from.read(&mut piece).await {
        if length == 0 || to.write_all(&piece[..length]).await.is_err() || to.flush().await.is_err() {
            break;
        }
    }
    // The other side may have closed it already.
    let _ = to.shutdown().await;
}

impl Cri {
    /// Checkpoints a container into an archive.
    ///
    /// # Errors
    /// [`Error::Unimplemented`]: no runtime here offers it yet.
    pub(crate) async fn checkpoint_container(&self, request: wire::CheckpointContainerRequest) -> Result<()> {
        self.running(&request.container_id)?;
        Err(Error::Unimplemented("checkpoint of a container is not offered".into()))
    }
}
