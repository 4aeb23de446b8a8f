//! Kubernetes' view over the engine: the Container Runtime Interface, `runtime.v1`.
//!
//! Services decode, call and encode. Pods and containers are the engine's sandboxes and containers in namespace
//! `k8s.io`; their state is derived from records and tasks, and stored nowhere twice. It knows no sockets of the daemon.

pub mod config;
pub mod network;
pub mod streaming;
