//! The streaming server against the client libraries that kubectl and the kubelet use, and against hostile clients.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod commands;
mod forward;
mod hostile;
mod lab;
