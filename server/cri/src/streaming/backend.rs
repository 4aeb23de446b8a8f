//! What the streams lead to.

use std::fmt;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Who runs commands in containers and connects to pods.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// Runs a command; its exit code. All output must be written when this returns. Dropped some seconds after the
    /// client went away.
    ///
    /// # Errors
    /// It cannot be run, or its output is not complete. The client sees the failure.
    async fn exec(&self, request: Exec, io: Io) -> Result<i32, Failure>;

    /// Joins the streams of a container until it ends or the client leaves.
    ///
    /// # Errors
    /// It cannot be joined, or output was lost.
    async fn attach(&self, request: Attach, io: Io) -> Result<(), Failure>;

    /// Connects a stream to a port of a pod until both directions have ended; [`forward`](super::forward) does it.
    ///
    /// # Errors
    /// Nothing listens there, or bytes were lost.
    async fn port_forward(&self, pod: &str, port: u16, stream: Duplex) -> Result<(), Failure>;
}

/// A command to run in a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exec {
    /// The container's id.
    pub container: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// On a terminal.
    pub tty: bool,
    /// The client sends input.
    pub stdin: bool,
    /// The client wants output.
    pub stdout: bool,
    /// The client wants error output. Not with `tty`.
    pub stderr: bool,
}

/// A container to join.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attach {
    /// The container's id.
    pub container: String,
    /// It has a terminal.
    pub tty: bool,
    /// The client sends input.
    pub stdin: bool,
    /// The client wants output.
    pub stdout: bool,
    /// The client wants error output. Not with `tty`.
    pub stderr: bool,
}

/// A pod to connect to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortForward {
    /// The sandbox's id.
    pub pod: String,
    /// Ports that a client of the old WebSocket form gets; others name a port with each stream.
    pub ports: Vec<u16>,
}

/// Bytes from the client. End of file is the client's half-close; an error says that it went away.
pub type Reader = Box<dyn AsyncRead + Send + Unpin>;
/// Bytes to the client. An error says that it went away.
pub type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// Both directions.
pub trait ReadWrite: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> ReadWrite for T {}
/// Both directions of one connection.
pub type Duplex = Box<dyn ReadWrite>;

/// The streams of a command.
pub struct Io {
    /// Input, where the client sends some.
    pub stdin: Option<Reader>,
    /// Output, where the client wants it.
    pub stdout: Option<Writer>,
    /// Error output, where the client wants it.
    pub stderr: Option<Writer>,
    /// New sizes of the client's terminal; ends with the client.
    pub resize: mpsc::Receiver<Size>,
    /// Cancelled when the client is gone.
    pub gone: CancellationToken,
}

impl fmt::Debug for Io {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let has = (self.stdin.is_some(), self.stdout.is_some(), self.stderr.is_some());
        f.debug_struct("Io").field("stdin, stdout, stderr", &has).finish_non_exhaustive()
    }
}

/// Size of a terminal in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Columns.
    pub width: u16,
    /// Lines.
    pub height: u16,
}

/// Why a request failed, for the client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// HTTP's code for it.
    pub code: u16,
    /// A sentence.
    pub message: String,
}

impl Failure {
    /// Something is not there.
    pub fn not_found(message: impl Into<String>) -> Failure {
        Failure { code: 404, message: message.into() }
    }

    /// In the words of Kubernetes' own servers, which clients show and some look for.
    #[must_use]
    pub(super) fn while_doing(self, what: &str) -> Failure {
        match self.code {
            500 => format!("Internal error occurred: error {what}: {}", self.message).into(),
            _ => self,
        }
    }
}

impl<S: Into<String>> From<S> for Failure {
    fn from(message: S) -> Failure {
        Failure { code: 500, message: message.into() }
    }
}
