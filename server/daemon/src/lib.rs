//! The daemon `gantryd`: its configuration, the wiring of the engine to its sockets, and the gRPC services.
//!
//! A service decodes, calls the engine and encodes; what a call does is decided there. Deliberately reads neither argv
//! nor the environment, and installs neither signal handlers nor a logger: `main.rs` does.
#![deny(unsafe_code)]

use gantry_api::status;

pub mod app;
pub mod config;
#[cfg(feature = "failpoints")]
pub mod failpoints;
mod greeting;
mod grpc;
mod identity;
mod limits;
mod line;
mod listen;
mod measure;
pub mod notify;
mod observe;
pub mod oom;
mod plugins;
mod reflection;
pub mod reload;
pub mod resident;
mod scope;
mod serve;
mod socket;
mod streams;
mod tls;
