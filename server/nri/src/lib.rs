//! The runtime's side of the Node Resource Interface (NRI): plug-ins, pre-installed ones and those that connect, are
//! registered, configured and told of all pods and containers; they are asked in the order of their indices, and what
//! several of them want of one container is merged, or refused where they contradict each other.
//!
//! It deliberately knows no pods and no runtime: a [`Host`] tells what there is, and does what plug-ins ask.
#![forbid(unsafe_code)]

mod error;
mod launch;
mod merge;
mod mux;
mod names;
mod pb;
mod plugin;
mod plugins;

pub use error::{Error, Result};
pub use merge::{Merge, removed};
pub use pb::nri::pkg::api::v1alpha1 as api;
pub use plugins::{Config, Created, Host, Nri, OnFailure, Snapshot};
