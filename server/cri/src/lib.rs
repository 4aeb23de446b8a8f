//! Kubernetes' view over the engine: the Container Runtime Interface, `runtime.v1`.
//!
//! Services decode, call and encode. Pods and containers are the engine's sandboxes and containers in namespace
//! `k8s.io`; their state is derived from records and tasks, and stored nowhere twice. It knows no sockets of the daemon.
#![forbid(unsafe_code)]

mod cgroup;
mod checkpoints;
pub mod config;
mod containers;
mod creations;
mod error;
mod events;
mod exec;
mod files;
mod gauge;
mod handlers;
mod images;
mod metrics;
pub mod network;
mod node;
mod nri;
mod pods;
mod service;
mod spec;
mod stages;
mod stats;
pub mod streaming;
mod streams;
mod verbose;

pub use config::Config;
pub use error::{Error, Result};
pub use node::Cri;
pub use service::{Images, Runtime};

use std::time::{SystemTime, UNIX_EPOCH};

/// A time as the interface counts it: nanoseconds since 1970.
pub(crate) fn nanoseconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// Now, as the interface counts it.
pub(crate) fn now() -> i64 {
    nanoseconds(SystemTime::now())
}
