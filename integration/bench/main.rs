//! Side by side: the pinned containerd with its Go shim and runc, and ours, in the same run, interleaved, driven by the
//! same client. Prints a table of medians and of the ratio's spread. What counts is the ratio: machines differ.
//!
//! `integration/bench/run [ROW…]`

#![allow(missing_docs)]

mod memory;
mod rows;
mod table;

use gantry_integration::Lab;
use gantry_integration::daemon::{Daemon, Peer};
use gantry_integration::images::{DEBIAN, Image, busybox_root, debian_root};
use gantry_integration::registry::DockerRegistry;

/// Both daemons, with the same images in both.
pub struct Pair {
    lab: Lab,
    ours: Daemon,
    theirs: Daemon,
    busybox: String,
    debian: String,
    archive: String,
}

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let lab = Lab::new();
    lab.on_fresh_disk(12);
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
    let pair = Pair { lab, ours, theirs, busybox, debian, archive };
    let mut table = table::Table::default();
    for (name, row) in rows::ALL {
        if wanted.is_empty() || wanted.iter().any(|w| name.contains(w.as_str())) {
            eprintln!("measuring {name}");
            table.add(name, row(&pair));
        }
    }
    println!("{table}");
}
