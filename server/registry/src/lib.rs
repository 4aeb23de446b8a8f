//! OCI distribution client: which hosts serve a reference, how to be let in, and how bytes come and go.
//!
//! A [`Registry`] holds what outlives one call: connections, tokens and which hosts are down. What differs from call
//! to call (whose credentials, which `hosts.toml` directory) is an [`Access`]. Every future may be dropped at any
//! moment and stops its work; every wait is bounded and named by the error it ends in.
//!
//! Deliberately knows nothing of content stores, images or namespaces, and keeps nothing on the disk: whoever calls
//! [`Registry::fetch`] writes the bytes, checks their digest and remembers the offset to go on from.

#![forbid(unsafe_code)]

mod access;
mod auth;
mod breaker;
mod challenge;
mod config;
pub mod credentials;
mod error;
mod fetch;
pub mod hosts;
mod http_date;
mod list;
mod manifest;
mod pace;
mod parts;
mod push;
mod referrers;
mod registry;
mod repository;
mod retry;
mod secret;
mod segment;
mod tls;
mod transport;

#[cfg(feature = "fake")]
pub mod fake;
#[cfg(feature = "fake")]
pub mod image;

pub use access::{Access, Scheme};
pub use config::{Config, Ranged};
pub use credentials::{
    Anonymous, Ask, Credential, Credentials, CredentialsError, DockerConfig, KubeletCredentials, Provided,
};
pub use error::{Error, Reason, Stage};
pub use fetch::Blob;
pub use hosts::{Endpoint, Hosts, HostsError};
pub use manifest::Resolved;
pub use push::{BlobSource, Pushed};
pub use registry::Registry;
pub use secret::Secret;
