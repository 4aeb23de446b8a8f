//! Containers and images by command lines. Each row does the same to both daemons, in turn.

use std::time::{Duration, Instant};

use gantry_integration::daemon::Daemon;

use crate::table::{Bar, Pairs};
use crate::{Pair, Row, memory};

/// All rows, in the order they are measured.
pub const ALL: &[Row<Pair>] = &[
    Row { name: "run --rm /bin/true (gctr)", bar: Bar::None, measure: run_true_gctr },
    Row { name: "run --rm /bin/true (ctr)", bar: Bar::None, measure: run_true_ctr },
    Row { name: "exec /bin/true (gctr)", bar: Bar::None, measure: exec_true },
    Row { name: "pull + unpack, Debian layer", bar: Bar::None, measure: pull_debian },
    Row { name: "import + unpack, Debian layer", bar: Bar::None, measure: import_debian },
    Row { name: "shim PSS, mean of 10", bar: Bar::None, measure: shim_memory },
    Row { name: "daemon PSS", bar: Bar::None, measure: daemon_memory },
];

fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

/// Does `work` to both, `count` times in turn, after one round that does not count; milliseconds.
fn in_turn(pair: &Pair, count: usize, work: impl Fn(&Daemon, usize)) -> Pairs {
    let round = |n: usize| {
        let milliseconds = |daemon| timed(|| work(daemon, n)).as_secs_f64() * 1000.0;
        (milliseconds(&pair.theirs), milliseconds(&pair.ours))
    };
    round(usize::MAX);
    Pairs { unit: "ms", values: (0..count).map(round).collect() }
}

fn run_true_gctr(pair: &Pair) -> Pairs {
    in_turn(pair, 25, |daemon, n| {
        daemon.gctr(&["run", "--rm", &pair.busybox, &id(pair, daemon, n), "/bin/true"]).ok();
    })
}

fn run_true_ctr(pair: &Pair) -> Pairs {
    in_turn(pair, 25, |daemon, n| {
        daemon.ctr(&["run", "--rm", &pair.busybox, &id(pair, daemon, n), "/bin/true"]).ok();
    })
}

fn exec_true(pair: &Pair) -> Pairs {
    start(pair, 0);
    let pairs = in_turn(pair, 25, |daemon, _| {
        daemon.gctr(&["exec", &id(pair, daemon, 0), "/bin/true"]).ok();
    });
    remove(pair, 0);
    pairs
}

fn pull_debian(pair: &Pair) -> Pairs {
    fetch_debian(pair, |daemon| {
        daemon.gctr(&["pull", "--plain-http", &pair.debian]).ok();
    })
}

fn import_debian(pair: &Pair) -> Pairs {
    fetch_debian(pair, |daemon| {
        daemon.ctr(&["images", "import", &pair.archive]).ok();
    })
}

/// Removing the image between rounds does not count.
fn fetch_debian(pair: &Pair, fetch: impl Fn(&Daemon)) -> Pairs {
    let mut values = Vec::new();
    for n in 0..6 {
        let once = |daemon: &Daemon| {
            let took = timed(|| fetch(daemon)).as_secs_f64() * 1000.0;
            daemon.ctr(&["images", "rm", "--sync", &pair.debian]).ok();
            took
        };
        let both = (once(&pair.theirs), once(&pair.ours));
        if n > 0 {
            values.push(both);
        }
    }
    Pairs { unit: "ms", values }
}

fn shim_memory(pair: &Pair) -> Pairs {
    (0..10).for_each(|n| start(pair, n));
    std::thread::sleep(Duration::from_secs(1));
    let mean = |daemon: &Daemon| memory::mean_of_shims(daemon, pair.lab.dir(), pair.lab.tag());
    let values = vec![(mean(&pair.theirs), mean(&pair.ours))];
    (0..10).for_each(|n| remove(pair, n));
    Pairs { unit: "MiB", values }
}

fn daemon_memory(pair: &Pair) -> Pairs {
    Pairs { unit: "MiB", values: vec![(memory::pss(pair.theirs.pid()), memory::pss(pair.ours.pid()))] }
}

/// An id that the other daemon does not use: both would name the same cgroup by it.
fn id(pair: &Pair, daemon: &Daemon, n: usize) -> String {
    let peer = if std::ptr::eq(daemon, &raw const pair.ours) { "g" } else { "c" };
    pair.lab.id(&format!("{peer}{n}"))
}

fn start(pair: &Pair, n: usize) {
    for daemon in [&pair.theirs, &pair.ours] {
        daemon.gctr(&["run", "-d", &pair.busybox, &id(pair, daemon, n), "/bin/sleep", "100000"]).ok();
    }
}

fn remove(pair: &Pair, n: usize) {
    for daemon in [&pair.theirs, &pair.ours] {
        daemon.gctr(&["rm", "--force", &id(pair, daemon, n)]).ok();
    }
}
