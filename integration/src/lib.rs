//! The harness of the end-to-end tests: a laboratory in private mount and network namespaces, with the daemon under
//! test, real clients and registries in it, and a census of what they leave behind.
//!
//! Deliberately knows nothing of the daemon's inside: it starts binaries and looks at the kernel and the disk.
#![forbid(unsafe_code)]
// A test that cannot go on says so by panicking.
#![allow(clippy::expect_used, clippy::missing_panics_doc)]

pub mod census;
pub mod client;
pub mod cri;
pub mod daemon;
pub mod fake;
pub mod images;
pub mod lab;
pub mod registry;
mod watch;

pub use client::Outcome;
pub use daemon::{Daemon, Peer};
pub use lab::Lab;
