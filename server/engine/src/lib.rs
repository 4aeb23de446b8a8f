//! The product without RPC: joins content, records, snapshots, registries and shims into images, containers, tasks,
//! transfer, events and garbage collection. Embed it ([`Engine::open`]), or serve it (the daemon does).
//!
//! Every namespaced operation takes a [`Scope`]: namespace, lease and deadline of the call. Errors are one enum,
//! [`Error`], with a [`kind`](gantry_types::HasKind::kind).
//!
//! Deliberately knows nothing of gRPC, of Kubernetes, of the environment, of signals, and of loggers.

#![forbid(unsafe_code)]

pub mod check;
mod config;
pub mod containers;
pub mod content;
mod core;
mod decryption;
pub mod diff;
mod engine;
mod error;
pub mod events;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod gc;
pub mod images;
mod keyed;
pub mod leases;
mod live;
mod monitor;
pub mod mounts;
pub mod namespaces;
pub mod ops;
mod place;
mod plugins;
mod policy;
mod processors;
mod restore;
pub mod sandboxes;
pub mod snapshots;
mod stream;
pub mod tasks;
pub mod transfer;
pub mod usage;
mod verify;

pub use crate::core::Listing;
pub use config::{
    Config, ErofsSettings, GcConfig, ImageVerifier, OverlaySettings, ProxyKind, ProxyPlugin, SnapshotterConfigs,
    StreamProcessor, UnpackLimits, UnpackPlatform,
};
pub use engine::{Engine, OpenReport, Repair};
pub use error::{Error, Result};
pub use gantry_metadata::Viewed;
pub use gantry_registry::Config as RegistryConfig;
pub use gantry_registry::hosts::check as check_hosts;
pub use gantry_spec as spec;
pub use gantry_types::{
    Any, Descriptor, Digest, ErrorKind, Filter, HasKind, Id, Labels, Mount, Namespace, Platform, Scope,
};
pub use policy::Refused;
