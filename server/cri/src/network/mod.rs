//! Networks of pods: CNI plug-ins, and the built-in bridge where there is no CNI configuration.
//!
//! [`Networks`] owns every attachment of a pod to a network. An attachment is recorded on disk before anything is done
//! for it, and the record goes when all of it is undone, so that a daemon that dies at any step leaves no address
//! behind: the next one finds the record in [`Networks::attachments`] and detaches. Addresses of the built-in network
//! are held by these records and by nothing else.
//!
//! It knows no pods of Kubernetes, only what a pod asks of its network ([`PodNetwork`]).

mod bridge;
mod cni;
mod config;
mod error;
mod keyed;
mod namespace;
mod netlink;
mod networks;
mod pod;
mod record;

pub use config::{BridgeConfig, CniConfig, Config, IpPreference, Subnet};
pub use error::{Error, Result};
pub(crate) use namespace::in_namespace;
pub use namespace::{adopt_namespace, create_namespace, is_namespace, remove_namespace};
pub use networks::{Attachment, Networks, Readiness, Stage};
pub use pod::{Attached, Bandwidth, ConfDir, Dns, PodNetwork, PortMapping, Protocol};
