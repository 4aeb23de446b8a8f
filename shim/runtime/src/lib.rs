//! The built-in OCI runtime for Linux: makes a container from a bundle, executes processes in it, signals, freezes,
//! limits and measures it, and clears it away. A library for the shim, and `gantry-runtime` with runc's command line.
//!
//! Synchronous and single-threaded: callers must not have other threads that allocate while [`Container::create`] or
//! [`Container::exec`] forks. Everything the new process needs is prepared before `clone3`; between that and `execve`
//! it makes only system calls on prepared memory.
//!
//! Deliberately knows nothing of images, snapshots, stdio copying, events or who waits: the caller owns the streams,
//! polls the pidfd and reaps.

mod capabilities;
mod cgroups;
mod container;
mod create;
mod criu;
mod error;
mod exec;
mod features;
mod hooks;
mod init;
mod namespaces;
mod netdev;
mod plan;
mod process;
mod rdt;
mod rlimits;
mod rootfs;
pub mod sealed;
mod seccomp;
pub mod spec;
mod state;
pub mod stats;
mod sys;

pub use container::{
    CgroupDriver, Child, Container, CreateOptions, ExecOptions, ExecPlace, Gate, OomWatch, Status, Stdio,
};
pub use criu::{CgroupMode, CriuOptions};
pub use error::{Error, Result};
pub use features::features;
pub use rdt::RdtFigures;
pub use spec::{Process, Resources, Spec, State};
pub use state::start_time;
pub use stats::Stats;
