//! Networks of pods in private network namespaces, with real connections. Needs root.

#![allow(missing_docs)]

mod bridge;
mod cni;
mod faults;
mod lab;
