//! `containerd-shim-gantry-v1`: the process that holds a container, and is the truth about it.
//!
//! One thread around epoll: [`serve`] waits, [`service`] decodes, [`supervisor`] decides and acts, [`task`] knows which
//! step is legal. Started by [`start`] (verb `start`), cleared up after by [`delete`] (verb `delete`).
//! Deliberately knows nothing of images, snapshots, networks or the daemon's records: it is given a bundle.
#![deny(unsafe_code)]

pub mod args;
pub mod bootstrap;
pub mod bundle;
pub mod cgroup;
mod checkpoint;
pub mod console;
pub mod copy;
pub mod delete;
pub mod error;
pub mod events;
pub mod extras;
pub mod info;
pub mod io;
pub mod keep_log;
pub mod lines;
pub mod log;
pub mod log_file;
pub mod logger;
mod making;
pub mod oci;
pub mod poll;
pub mod reaper;
pub mod runtime;
pub mod sandbox;
pub mod serve;
pub mod service;
pub mod stale;
pub mod start;
pub mod stats;
pub mod supervisor;
#[allow(unsafe_code)]
pub mod sys;
pub mod target;
pub mod task;
pub mod tee;

pub use error::Error;
