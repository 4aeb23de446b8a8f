//! Exec, attach and port-forward: the addresses that clients connect to, and what is done once they do.

use std::sync::Arc;

use async_trait::async_trait;
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
/// How long after the last byte a shim may take to say how the output ended.
const SAYS_END: std::time::Duration = std::time::Duration::from_secs(5);

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
        let input = tokio::spawn(feed(io.stdin, running.streams.stdin));
        let (stdout, stderr) = (running.streams.stdout, running.streams.stderr);
        let whole = async {
            tokio::try_join!(pump(stdout, io.stdout), pump(stderr, io.stderr)).map_err(lost)?;
            self.engine.tasks.wait(&self.scope, &container.id, &exec_id).await.map_err(|error| failed(error.into()))
        };
        let exit = tokio::select! {
            exit = whole => exit,
            () = io.gone.cancelled() => Err(Failure::from("the client went away")),
        };
        if exit.is_err() {
            // Nobody is left to see it end.
            let _ = self.engine.tasks.kill(&self.scope, &container.id, &exec_id, SIGKILL, false).await;
        }
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
            feed(io.stdin, streams.stdin).await;
            // What is left to come is the answer to the last line.
            if !has_input || stdin_once {
                std::future::pending::<()>().await;
            }
        };
        let (stdout, stderr) = (streams.stdout, streams.stderr);
        let silent = stdout.is_none() && stderr.is_none();
        let output = async {
            tokio::try_join!(pump(stdout, io.stdout), pump(stderr, io.stderr)).map_err(lost)?;
            match silent {
                // There is nothing to see but the end.
                true => seen(Some(attached.end.await)),
                false => seen(tokio::time::timeout(SAYS_END, attached.end).await.ok()),
            }
        };
        let ended = tokio::select! {
            ended = output => ended,
            () = input => Ok(()),
            () = io.gone.cancelled() => Ok(()),
        };
        sizes.abort();
        ended
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

/// Copies all output to the client, then closes its end. What the client did not ask for is read all the same: the
/// process must not wait for a reader.
async fn pump(
    from: Option<impl AsyncRead + Unpin>,
    to: Option<impl AsyncWrite + Unpin>,
) -> std::result::Result<(), Lost> {
    let (Some(mut from), mut to) = (from, to) else { return Ok(()) };
    let mut piece = vec![0; PIECE];
    loop {
        let length = from.read(&mut piece).await.map_err(Lost::Read)?;
        if length == 0 {
            break;
        }
        if let Some(to) = to.as_mut() {
            to.write_all(&piece[..length]).await.map_err(Lost::Write)?;
            to.flush().await.map_err(Lost::Write)?;
        }
    }
    if let Some(mut to) = to {
        // The other side may have closed it already.
        let _ = to.shutdown().await;
    }
    Ok(())
}

/// Copies the client's input to the process for as long as both want it, then closes it.
async fn feed(from: Option<impl AsyncRead + Unpin>, to: Option<impl AsyncWrite + Unpin>) {
    let (Some(mut from), Some(mut to)) = (from, to) else { return };
    let mut piece = vec![0; PIECE];
    while let Ok(length @ 1..) = from.read(&mut piece).await {
        // A process need not read all that it is given.
        if to.write_all(&piece[..length]).await.is_err() || to.flush().await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
}

/// Output that did not arrive.
#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error("output is not complete: reading it failed: {0}")]
    Read(std::io::Error),
    #[error("output is not complete: the client does not take it: {0}")]
    Write(std::io::Error),
}

fn lost(error: Lost) -> Failure {
    Failure::from(error.to_string())
}

/// Whether all output of a container was seen, by what the shim says of the end; none: it says nothing.
fn seen(
    end: Option<std::result::Result<gantry_engine::Result<AttachEnd>, tokio::task::JoinError>>,
) -> std::result::Result<(), Failure> {
    match end {
        Some(Ok(Ok(AttachEnd::Exited | AttachEnd::Closed))) => Ok(()),
        Some(Ok(Ok(AttachEnd::Lagged))) => Err(Failure::from("the client read too slowly and was cut off")),
        Some(Ok(Err(error))) => Err(Failure::from(format!("output may not be complete: {error}"))),
        Some(Err(_)) | None => Err(Failure::from("output may not be complete: the shim does not say how it ended")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn output_that_the_client_does_not_take_is_a_loss() {
        let (client, gone) = tokio::io::duplex(8);
        drop(gone);
        assert!(matches!(pump(Some(&b"text"[..]), Some(client)).await, Err(Lost::Write(_))));
    }

    #[tokio::test]
    async fn output_that_breaks_off_is_a_loss() {
        let broken = breaking();
        assert!(matches!(pump(Some(broken), Some(tokio::io::sink())).await, Err(Lost::Read(_))));
    }

    #[tokio::test]
    async fn output_that_nobody_asked_for_is_read_to_its_end() {
        let (mut process, output) = tokio::io::duplex(8);
        let writing = tokio::spawn(async move { process.write_all(&[7; 1000]).await.is_ok() });
        pump(Some(output), None::<tokio::io::Sink>).await.unwrap();
        assert!(writing.await.unwrap());
    }

    /// Gives some bytes and then an error.
    fn breaking() -> impl AsyncRead + Unpin {
        let broken = std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        let parts = [Ok(bytes::Bytes::from_static(b"some")), Err(broken)];
        tokio_util::io::StreamReader::new(futures::stream::iter(parts))
    }
}
