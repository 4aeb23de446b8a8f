//! The API under load: one program (`integration/tools/load`) against both daemons in turn, on one journaled disk: on
//! containerd's own gRPC stack and messages, and, where that stack is what limits, on bare frames of HTTP/2. Each row is a
//! workload; what it costs the daemon is read from the kernel.

use std::time::{Duration, Instant};

use gantry_integration::daemon::{Daemon, Peer};
use gantry_integration::lab::peer_binary;
use gantry_integration::{Lab, Outcome};
use serde_json::Value;

use crate::table::{Bar, Pairs};
use crate::{Row, memory};

/// Containers in the full stores; a tenth as many images.
const CONTAINERS: &str = "10000";

/// All rows, in the order they are measured.
pub const ALL: &[Row<Stores>] = &[
    Row { name: "daemon PSS, empty store", bar: Bar::OursAtMost(12.0), measure: empty_memory },
    Row { name: "daemon PSS, 10,000 containers", bar: Bar::OursAtMost(60.0), measure: full_memory },
    Row { name: "start-up with 10,000 containers", bar: Bar::OursAtMost(1000.0), measure: start_up },
    Row { name: "Version, p50", bar: Bar::RatioAtMost(0.6), measure: version },
    Row { name: "Containers.Get of 10,000, p50", bar: Bar::None, measure: get },
    Row { name: "ours alone: Get p50, store empty → full", bar: Bar::RatioAtMost(1.2), measure: get_empty_and_full },
    Row { name: "Containers.ListStream of 10,000, records/s", bar: Bar::RatioAtLeast(5.0), measure: list_stream },
    Row {
        name: "ListStream, client that costs nothing, records/s",
        bar: Bar::RatioAtLeast(5.0),
        measure: wire_list_stream,
    },
    Row { name: "ListStream, the daemon's CPU a record", bar: Bar::RatioAtMost(0.2), measure: list_stream_cost },
    Row { name: "Containers.List of 1,000 in 10,000, bytes/s", bar: Bar::RatioAtLeast(5.0), measure: list },
    Row { name: "Images.List of 1,000, bytes/s", bar: Bar::RatioAtLeast(5.0), measure: images },
    Row { name: "32 writers: Containers.Create", bar: Bar::RatioAtLeast(5.0), measure: |s| writers(s, "create") },
    Row { name: "32 writers: Containers.Update", bar: Bar::RatioAtLeast(5.0), measure: |s| writers(s, "update") },
    Row { name: "32 writers: Images.Create", bar: Bar::RatioAtLeast(5.0), measure: |s| writers(s, "images-create") },
    Row { name: "32 writers: Leases.Create", bar: Bar::RatioAtLeast(5.0), measure: |s| writers(s, "leases-create") },
    Row {
        name: "32 writers: Leases.AddResource",
        bar: Bar::RatioAtLeast(5.0),
        measure: |s| writers(s, "resources-add"),
    },
    Row {
        name: "32 writers: Content.Update (labels)",
        bar: Bar::RatioAtLeast(5.0),
        measure: |s| writers(s, "content-labels"),
    },
    Row { name: "content read over the socket, bytes/s", bar: Bar::RatioAtLeast(2.0), measure: |s| rate(s, READ) },
    Row { name: "content read, the daemon's CPU a GiB", bar: Bar::RatioAtMost(0.5), measure: |s| cost(s, READ) },
    Row { name: "content write over the socket, bytes/s", bar: Bar::RatioAtLeast(2.0), measure: |s| rate(s, WRITE) },
    Row { name: "content write, the daemon's CPU a GiB", bar: Bar::RatioAtMost(0.5), measure: |s| cost(s, WRITE) },
    Row { name: "four content writes at once, bytes/s", bar: Bar::RatioAtLeast(2.0), measure: |s| rate(s, WRITES) },
    Row {
        name: "content read, client that costs nothing, bytes/s",
        bar: Bar::RatioAtLeast(2.0),
        measure: |s| rate(s, WIRE_READ),
    },
    Row {
        name: "content read by it, the daemon's CPU a GiB",
        bar: Bar::RatioAtMost(0.5),
        measure: |s| cost(s, WIRE_READ),
    },
    Row {
        name: "content write, client that costs nothing, bytes/s",
        bar: Bar::RatioAtLeast(2.0),
        measure: |s| rate(s, WIRE_WRITE),
    },
    Row {
        name: "content write by it, the daemon's CPU a GiB",
        bar: Bar::RatioAtMost(0.5),
        measure: |s| cost(s, WIRE_WRITE),
    },
    Row { name: "events to 100 subscribers, none lost, deliveries/s", bar: Bar::None, measure: fan_out },
    Row {
        name: "ours alone: longest write, quiet → while 20,000 records expire and are collected",
        bar: Bar::None,
        measure: collection,
    },
    Row { name: "daemon PSS, a minute after all of this", bar: Bar::None, measure: memory_after },
];

/// No collection begins by itself.
const COLLECTED_BY_HAND: &str =
    "version = 3\n[plugins.'io.containerd.gc.v1.scheduler']\nmutation_threshold = 0\ndeletion_threshold = 0\n";

const READ: &[&str] = &["-size", "512", "-count", "4", "content-read"];
const WRITE: &[&str] = &["-size", "256", "-count", "2", "content-write"];
const WIRE_READ: &[&str] = &["-size", "512", "-count", "4", "wire-content-read"];
const WIRE_WRITE: &[&str] = &["-size", "256", "-count", "2", "wire-content-write"];
const WRITES: &[&str] = &["-size", "64", "-count", "2", "-workers", "4", "-connections", "4", "content-write"];

/// Four daemons on one disk: of each peer one with an empty store, and one with a full one.
pub struct Stores {
    empty: Peers,
    full: std::cell::RefCell<Peers>,
    round: std::cell::Cell<u32>,
    lab: Lab,
}

struct Peers {
    theirs: Daemon,
    ours: Daemon,
}

impl Stores {
    /// Starts the daemons and fills the stores.
    pub fn new() -> Stores {
        let lab = Lab::new();
        lab.on_fresh_disk(8);
        let start = |name, peer| Daemon::start_named(&lab, name, peer, "", &[]);
        let peers = |ours, theirs| Peers { theirs: start(theirs, Peer::Containerd), ours: start(ours, Peer::Gantry) };
        let (empty, full) = (peers("g0", "c0"), peers("g", "c"));
        let stores = Stores { empty, full: full.into(), round: 0.into(), lab };
        let full = stores.full.borrow();
        for daemon in [&full.theirs, &full.ours] {
            load(daemon, &["-workers", "10", "-connections", "4", "-containers", CONTAINERS, "fill"]);
        }
        drop(full);
        stores
    }

    /// Does `work` with both full stores, `count` times in turn, after one round that does not count.
    fn in_turn(&self, unit: &'static str, count: usize, work: impl Fn(&Daemon) -> f64) -> Pairs {
        let full = self.full.borrow();
        let round = |_| (work(&full.theirs), work(&full.ours));
        round(0);
        Pairs { unit, values: (0..count).map(round).collect() }
    }

    /// A prefix of names that no other workload has.
    fn fresh(&self) -> String {
        self.round.set(self.round.get() + 1);
        format!("r{}", self.round.get())
    }
}

/// Runs a workload against a daemon.
fn load(daemon: &Daemon, args: &[&str]) -> Value {
    let mut command = daemon.command(peer_binary("load"));
    command.arg("-address").arg(daemon.address()).arg("-pid").arg(daemon.pid().to_string()).args(args);
    let outcome = Outcome::of(command, Duration::from_secs(300));
    serde_json::from_str(outcome.ok()).unwrap_or_else(|e| panic!("{e}: {outcome}"))
}

fn number(result: &Value, field: &str) -> f64 {
    result[field].as_f64().unwrap_or(f64::NAN)
}

fn per_second(result: &Value, field: &str) -> f64 {
    number(result, field) / number(result, "seconds")
}

fn empty_memory(stores: &Stores) -> Pairs {
    Pairs { unit: "MiB", values: vec![(memory::pss(stores.empty.theirs.pid()), memory::pss(stores.empty.ours.pid()))] }
}

/// Of daemons that were just started: what writing the store took is another matter.
fn full_memory(stores: &Stores) -> Pairs {
    let mut full = stores.full.borrow_mut();
    let started = |daemon: &mut Daemon| {
        daemon.restart();
        load(daemon, &["-count", "1", "list-stream"]);
        std::thread::sleep(Duration::from_secs(1));
        memory::pss(daemon.pid())
    };
    let Peers { theirs, ours } = &mut *full;
    Pairs { unit: "MiB", values: (0..3).map(|_| (started(theirs), started(ours))).collect() }
}

/// From the start of the process to the first answer.
fn start_up(stores: &Stores) -> Pairs {
    let mut full = stores.full.borrow_mut();
    let started = |daemon: &mut Daemon| {
        daemon.stop();
        let start = std::time::Instant::now();
        daemon.launch();
        load(daemon, &["-count", "1", "get"]);
        start.elapsed().as_secs_f64() * 1000.0
    };
    let Peers { theirs, ours } = &mut *full;
    Pairs { unit: "ms", values: (0..5).map(|_| (started(theirs), started(ours))).collect() }
}

fn p50(daemon: &Daemon, workload: &str) -> f64 {
    number(&load(daemon, &["-duration", "1s", workload]), "p50_us")
}

fn version(stores: &Stores) -> Pairs {
    stores.in_turn("µs", 7, |daemon| p50(daemon, "version"))
}

fn get(stores: &Stores) -> Pairs {
    stores.in_turn("µs", 7, |daemon| p50(daemon, "get"))
}

/// One container in the store that is called empty, ten thousand in the other.
fn get_empty_and_full(stores: &Stores) -> Pairs {
    let (empty, full) = (&stores.empty.ours, stores.full.borrow());
    load(empty, &["-containers", "1", "fill"]);
    let one = || number(&load(empty, &["-containers", "1", "-duration", "1s", "get"]), "p50_us");
    let values = (0..7).map(|_| (one(), p50(&full.ours, "get"))).collect();
    Pairs { unit: "µs", values }
}

fn list_stream(stores: &Stores) -> Pairs {
    stores
        .in_turn("k/s", 5, |daemon| per_second(&load(daemon, &["-duration", "2s", "list-stream"]), "operations") / 1e3)
}

fn wire_list_stream(stores: &Stores) -> Pairs {
    let args = ["-duration", "2s", "wire-list-stream"];
    stores.in_turn("k/s", 5, |daemon| per_second(&load(daemon, &args), "operations") / 1e3)
}

/// CPU time of the daemon for the records, the client's not counted.
fn list_stream_cost(stores: &Stores) -> Pairs {
    stores.in_turn("µs", 5, |daemon| {
        let result = load(daemon, &["-duration", "2s", "list-stream"]);
        number(&result, "daemon_cpu_s") / number(&result, "operations") * 1e6
    })
}

fn list(stores: &Stores) -> Pairs {
    let args = ["-duration", "2s", "-filter", "labels.group==3", "list"];
    stores.in_turn("MB/s", 5, |daemon| per_second(&load(daemon, &args), "bytes") / 1e6)
}

fn images(stores: &Stores) -> Pairs {
    stores.in_turn("MB/s", 5, |daemon| per_second(&load(daemon, &["-duration", "2s", "images-list"]), "bytes") / 1e6)
}

fn writers(stores: &Stores, workload: &str) -> Pairs {
    stores.in_turn("/s", 5, |daemon| {
        let namespace = if workload == "update" { "load" } else { "writers" };
        let prefix = stores.fresh();
        let args =
            ["-workers", "32", "-connections", "8", "-duration", "2s", "-namespace", namespace, "-prefix", &prefix];
        per_second(&load(daemon, &[&args[..], &[workload]].concat()), "operations")
    })
}

fn rate(stores: &Stores, workload: &[&str]) -> Pairs {
    stores.in_turn("MB/s", 5, |daemon| per_second(&bytes(stores, daemon, workload), "bytes") / 1e6)
}

/// CPU time of the daemon for the bytes, the client's not counted.
fn cost(stores: &Stores, workload: &[&str]) -> Pairs {
    stores.in_turn("s", 5, |daemon| {
        let result = bytes(stores, daemon, workload);
        number(&result, "daemon_cpu_s") / (number(&result, "bytes") / f64::from(1 << 30))
    })
}

fn bytes(stores: &Stores, daemon: &Daemon, workload: &[&str]) -> Value {
    load(daemon, &[&["-prefix", &stores.fresh()], workload].concat())
}

/// When the images of [`collection`] are garbage, after the first was made; making them takes less.
const EXPIRES: Duration = Duration::from_secs(40);

/// One writer, before and while all images of a store expire and are collected.
fn collection(stores: &Stores) -> Pairs {
    let daemon = Daemon::start_named(&stores.lab, "gc", Peer::Gantry, COLLECTED_BY_HAND, &[]);
    let longest = |duration: &str| {
        let args = ["-duration", duration, "-prefix", &stores.fresh(), "leases-create"];
        number(&load(&daemon, &args), "longest_us") / 1000.0
    };
    let images = || daemon.ctr(&["--namespace", "load", "images", "ls", "--quiet"]).ok().lines().count();
    let values = (0..3).map(|_| {
        let (start, expires) = (Instant::now(), format!("{}s", EXPIRES.as_secs()));
        let prefix = stores.fresh();
        let many = ["-workers", "32", "-connections", "8", "-count", "625", "-prefix", &prefix, "-expires", &expires];
        load(&daemon, &[&many[..], &["images-expiring"]].concat());
        let quiet = longest("3s");
        assert_eq!(images(), 20_000, "none has expired yet");
        std::thread::sleep((EXPIRES - Duration::from_secs(1)).saturating_sub(start.elapsed()));
        let collecting = longest("8s");
        while images() > 0 {
            assert!(start.elapsed() < 3 * EXPIRES, "all have expired");
            std::thread::sleep(Duration::from_secs(1));
        }
        (quiet, collecting)
    });
    let values = values.collect();
    daemon.stop_clean();
    Pairs { unit: "ms", values }
}

/// What was free is given back from time to time.
fn memory_after(stores: &Stores) -> Pairs {
    std::thread::sleep(Duration::from_secs(65));
    let full = stores.full.borrow();
    Pairs { unit: "MiB", values: vec![(memory::pss(full.theirs.pid()), memory::pss(full.ours.pid()))] }
}

fn fan_out(stores: &Stores) -> Pairs {
    stores.in_turn("k/s", 5, |daemon| {
        let prefix = stores.fresh();
        let args = ["-workers", "4", "-connections", "20", "-count", "500", "-prefix", &prefix, "events"];
        per_second(&load(daemon, &args), "operations") / 1e3
    })
}
