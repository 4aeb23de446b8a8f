//! Networks of pods in private network namespaces, with real connections. Needs root.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod bridge;
mod cni;
mod faults;
mod lab;
