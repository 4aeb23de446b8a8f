//! The daemon's half of the shim contract: which binary a runtime's name means, the bundle directory, starting and
//! cleaning up by the binary's verbs, the ttrpc connection, the intake of events, and finding shims again after a
//! restart. Works with any shim of the protocol's versions 2 and 3.
//!
//! Deliberately knows nothing of containers' records, snapshots or what a task's state means: it carries.

#![forbid(unsafe_code)]

mod answer;
mod bundle;
mod calls;
mod command;
mod config;
mod error;
mod intake;
mod log;
mod params;
mod resolve;
mod restore;
mod sandbox;
mod shim;
mod shims;
mod stay;

pub use answer::Answer;
pub use bundle::{Bundle, BundleSpec};
pub use calls::Calls;
pub use config::{Config, Deadlines};
pub use error::{Error, Result};
pub use intake::Forwarded;
pub use restore::{Found, Restored};
pub use sandbox::{FoundSandbox, RestoredSandbox, SandboxCalls};
pub use shim::{Cleanup, Shim};
pub use shims::{Launch, Shims};
