//! The streaming server against the client libraries that kubectl and the kubelet use, and against hostile clients.

#![allow(missing_docs)]

mod commands;
mod forward;
mod hostile;
mod lab;
