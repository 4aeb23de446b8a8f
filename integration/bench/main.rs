//! Side by side: the pinned containerd with its Go shim and runc, and ours, in the same run, interleaved, driven by the
//! same client. Prints a table of medians and of the ratio's spread, with what we ask of it. What counts is the ratio:
//! machines differ.
//!
//! `integration/bench/run [ROW…]`
//!
//! A section is a file: what its rows need ([`Pair`] for those that run containers), and a list of [`Row`]s.

#![allow(missing_docs, clippy::expect_used)]

mod api;
mod cri;
mod layers;
mod memory;
mod pull;
mod rows;
mod runtime;
mod table;
mod tasks;

use std::path::Path;

use gantry_integration::Lab;
use gantry_integration::daemon::{Daemon, Peer};
use gantry_integration::images::{DEBIAN, Image, busybox_root, debian_root};
use gantry_integration::registry::DockerRegistry;

use crate::table::{Bar, Pairs, Table};

/// One thing that is measured with what the section has made ready.
pub struct Row<S> {
    /// What is measured.
    pub name: &'static str,
    /// What we ask of it.
    pub bar: Bar,
    /// Does the same to both daemons, in turn.
    pub measure: fn(&S) -> Pairs,
}

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let mut table = Table::default();
    section(&wanted, &mut table, rows::ALL, Pair::new);
    section(&wanted, &mut table, api::ALL, api::Stores::new);
    section(&wanted, &mut table, runtime::ALL, runtime::Bundle::new);
    section(&wanted, &mut table, tasks::ALL, tasks::Tasks::new);
    section(&wanted, &mut table, pull::ALL, pull::Pulls::new);
    section(&wanted, &mut table, cri::ALL, cri::Pods::new);
    println!("{table}");
    println!("load average at the end: {}", load());
}

/// Measures the wanted rows of a section; it is made ready only where there is one.
fn section<S>(wanted: &[String], table: &mut Table, rows: &[Row<S>], ready: impl FnOnce() -> S) {
    let chosen = |row: &&Row<S>| wanted.is_empty() || wanted.iter().any(|w| row.name.contains(w.as_str()));
    let rows: Vec<&Row<S>> = rows.iter().filter(chosen).collect();
    if rows.is_empty() {
        return;
    }
    let state = ready();
    for row in rows {
        eprintln!("measuring {} (load {})", row.name, load());
        table.add(row.name, row.bar, (row.measure)(&state));
        eprintln!("{table}");
    }
}

fn load() -> String {
    let text = std::fs::read_to_string(Path::new("/proc/loadavg")).unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

/// Both daemons, with the same images in both.
pub struct Pair {
    ours: Daemon,
    theirs: Daemon,
    busybox: String,
    debian: String,
    archive: String,
    _registry: DockerRegistry,
    lab: Lab,
}

impl Pair {
    fn new() -> Pair {
        let lab = Lab::new();
        lab.on_fresh_disk(6);
        let registry = DockerRegistry::start(&lab);
        let ours = Daemon::start_with(&lab, Peer::Gantry, "", &[]);
        let theirs = Daemon::start_with(&lab, Peer::Containerd, "", &[]);
        let busybox = Image::new(&lab, "busybox").layer(&busybox_root(&lab)).push(&registry.host(), "busybox");
        let debian = Image::new(&lab, "debian").layer(&debian_root(&lab, DEBIAN)).push(&registry.host(), "debian");
        let archive = lab.path("debian.tar").to_string_lossy().into_owned();
        for daemon in [&ours, &theirs] {
            daemon.ctr(&["images", "pull", "--plain-http", &busybox]).ok();
        }
        theirs.ctr(&["images", "pull", "--plain-http", &debian]).ok();
        theirs.ctr(&["images", "export", &archive, &debian]).ok();
        theirs.ctr(&["images", "rm", "--sync", &debian]).ok();
        Pair { ours, theirs, busybox, debian, archive, _registry: registry, lab }
    }
}
