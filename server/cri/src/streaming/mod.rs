//! Exec, attach and port-forward over SPDY/3.1 and WebSocket.
//!
//! The CRI answers such a request with a URL; the client then comes to the [`Server`] with it. The URL has a token that
//! nobody can guess, is good for one connection, and expires. The connection is upgraded, and its streams are handed to
//! a [`Backend`], which knows containers; this module knows only streams.
//!
//! What a client gets is byte-exact, or it is told of a failure: the result is sent after all output, in the same queue.
//! What is buffered for a stream is bounded; a client or a process that does not read makes the other side wait.

mod backend;
mod dial;
mod error;
mod forward;
mod idle;
mod inbox;
mod remote;
mod server;
mod spdy;
mod status;
mod tls;
mod tokens;
mod upgrade;
mod websocket;

use std::time::Duration;

/// How long a client may take to end its side after ours has ended.
const LINGER: Duration = Duration::from_secs(10);

pub use backend::{Attach, Backend, Duplex, Exec, Failure, Io, PortForward, Reader, Size, Writer};
pub use dial::forward;
pub use error::{Error, Result};
pub use server::{Config, Server, own_address};
pub use tls::Tls;
