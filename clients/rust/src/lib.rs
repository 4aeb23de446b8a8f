//! A typed, asynchronous client of the daemon (or of containerd: the wire is the same).
//!
//! [`Client`] holds a connection and a namespace; its methods speak in the vocabulary of `gantry-types`. Whatever has
//! no method of its own is reached through the generated stubs, [`Client::images`] and its siblings.
//!
//! Deliberately knows nothing of terminals, tables or exit codes: that is `gctr`'s.
#![forbid(unsafe_code)]

mod commit;
mod connection;
mod container;
mod error;
mod event;
mod image;
mod pull;
mod stdio;
mod task;

pub use commit::Commit;
pub use connection::{Client, Scoped};
pub use container::{NewContainer, RUNTIME};
pub use error::Error;
pub use event::event_json;
pub use gantry_api::{convert, pb};
pub use gantry_spec as spec;
pub use gantry_types as types;
pub use image::Image;
pub use prost_types::Duration;
pub use pull::{Progress, Pull};
pub use stdio::{Fifos, Paths};
pub use task::{Exit, Task};
