//! ttrpc: the protocol of shim sockets, and the messages that travel on them.
//!
//! [`frame`] cuts bytes into frames without doing I/O; two thin faces stand on it: feature `client` is for the daemon
//! (a tokio client and the intake of events), feature `server` for the shim (an epoll server, no tokio).
//! Deliberately knows nothing of tasks: callers name service, method and message.
#![forbid(unsafe_code)]
// Without a face only the messages are used.
#![cfg_attr(not(any(feature = "client", feature = "server")), allow(dead_code))]

mod address;
#[cfg(feature = "client")]
pub mod client;
pub mod frame;
#[cfg(feature = "client")]
pub mod intake;
#[cfg(feature = "server")]
mod outbox;
#[cfg(feature = "server")]
pub mod outgoing;
pub mod pb;
mod rule;
#[cfg(feature = "server")]
pub mod server;
mod status;
pub mod wire;

pub use address::Address;
#[cfg(feature = "client")]
pub use client::Client;
pub use rule::StreamRule;
pub use status::{Status, code_of, kind_of};
