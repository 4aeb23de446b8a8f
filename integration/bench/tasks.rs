//! Tasks through the API: one program (`integration/tools/load`) drives both daemons in turn. What a side costs is read
//! from a control group above its daemon, its shims, its runtimes and the tasks themselves.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use gantry_integration::daemon::{Daemon, Peer};
use gantry_integration::images::busybox_root;
use gantry_integration::lab::{our_binary, peer_binary};
use gantry_integration::{Lab, Outcome, census};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use serde_json::Value;

use crate::table::{Bar, Pairs};
use crate::{Row, memory};

/// Executions after which a shim is looked at; `GANTRY_EXECS` says another number.
const EXECS: usize = 2_000;
/// Executions that one run of the workload is given the time for.
const AT_A_TIME: usize = 5_000;

/// All rows, in the order they are measured.
pub const ALL: &[Row<Tasks>] = &[
    Row { name: "tasks: create, start, exit, delete, p50", bar: Bar::RatioAtMost(0.12), measure: life },
    Row {
        name: "tasks: create, start, exit, delete, CPU of daemon, shims, runtime",
        bar: Bar::RatioAtMost(0.08),
        measure: life_cost,
    },
    Row { name: "tasks: exec, p50", bar: Bar::None, measure: exec },
    Row { name: "tasks: exec, CPU of all", bar: Bar::RatioAtMost(0.08), measure: exec_cost },
    Row { name: "tasks: our exec beside clone3, setns, execve", bar: Bar::RatioAtMost(3.0), measure: exec_beside_bare },
    Row { name: "tasks: 200 started 16 at a time, a second", bar: Bar::RatioAtLeast(8.0), measure: sixteen },
    Row { name: "tasks: shim PSS, mean of 50", bar: Bar::OursAtMost(0.3), measure: shim_memory },
    Row { name: "tasks: growth of our shim by execs", bar: Bar::OursAtMost(64.0), measure: growth },
];

/// Both daemons, each with a control group of its own.
pub struct Tasks {
    theirs: Side,
    ours: Side,
    round: std::cell::Cell<u32>,
    lab: Lab,
}

struct Side {
    daemon: Daemon,
    group: String,
}

impl Tasks {
    /// Starts the daemons.
    pub fn new() -> Tasks {
        let lab = Lab::new();
        lab.on_fresh_disk(4);
        std::fs::rename(busybox_root(&lab), lab.path("rootfs")).expect("move the root");
        // The root is read-only: what is mounted in it needs its places.
        for place in ["rootfs-below", "rootfs/run", "rootfs/proc", "rootfs/sys", "rootfs/dev"] {
            std::fs::create_dir_all(lab.path(place)).expect("make a directory");
        }
        let side = |name: &str, peer| {
            lab.in_memory(&format!("{name}/state"));
            let side = Side { daemon: Daemon::start_named(&lab, name, peer, "", &[]), group: lab.id(name) };
            side.enter();
            side
        };
        let (theirs, ours) = (side("c", Peer::Containerd), side("g", Peer::Gantry));
        Tasks { theirs, ours, round: 0.into(), lab }
    }

    fn fresh(&self) -> String {
        self.round.set(self.round.get() + 1);
        format!("r{}", self.round.get())
    }

    /// Runs a workload on one side; its result, and the CPU time that it cost there, in milliseconds.
    fn load(&self, side: &Side, args: &[&str]) -> (Value, f64) {
        let (root, group) = (self.lab.path("rootfs"), format!("/{}", side.group));
        let mut command = side.daemon.command(peer_binary("load"));
        command
            .arg("-address")
            .arg(side.daemon.address())
            .arg("-rootfs")
            .arg(root)
            .arg("-cgroup")
            .arg(group)
            .args(args);
        let before = side.spent();
        let outcome = Outcome::of(command, Duration::from_secs(280));
        let result = serde_json::from_str(outcome.ok()).unwrap_or_else(|e| panic!("{e}: {outcome}"));
        (result, side.spent() - before)
    }

    /// Does `work` on both sides, `count` times in turn, after one round that does not count.
    fn in_turn(&self, unit: &'static str, count: usize, work: impl Fn(&Side) -> f64) -> Pairs {
        let round = |_| (work(&self.theirs), work(&self.ours));
        round(0);
        Pairs { unit, values: (0..count).map(round).collect() }
    }

    /// CPU time of the tasks' program, executed plainly, in milliseconds.
    fn program(&self) -> f64 {
        const TIMES: u32 = 100;
        let spent = || {
            let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("the kernel tells");
            let milliseconds = |time: TimeVal| time.tv_sec() as f64 * 1e3 + time.tv_usec() as f64 / 1e3;
            milliseconds(usage.user_time()) + milliseconds(usage.system_time())
        };
        let before = spent();
        for _ in 0..TIMES {
            let ended = Command::new(self.lab.path("rootfs/bin/true")).status().expect("it can be executed");
            assert!(ended.success());
        }
        (spent() - before) / f64::from(TIMES)
    }

    /// Starts tasks that stay, does `work`, and ends them.
    fn beside_tasks<T>(&self, side: &Side, count: &str, work: impl FnOnce(&str) -> T) -> T {
        let prefix = self.fresh();
        self.load(side, &["-count", count, "-prefix", &prefix, "-keep", "task-start"]);
        let done = work(&prefix);
        self.load(side, &["-count", count, "-prefix", &prefix, "task-end"]);
        done
    }
}

impl Side {
    /// Where CPU time is accounted, of the only tree or of cgroup v1's.
    fn directory(&self) -> PathBuf {
        let old = PathBuf::from("/sys/fs/cgroup/cpuacct");
        let root = if old.exists() { old } else { PathBuf::from("/sys/fs/cgroup") };
        root.join(&self.group)
    }

    /// Puts the daemon below its group: what it starts stays there.
    fn enter(&self) {
        let below = self.directory().join("daemon");
        std::fs::create_dir_all(&below).expect("make a control group");
        std::fs::write(below.join("cgroup.procs"), self.daemon.pid().to_string()).expect("enter a control group");
    }

    /// CPU time of all that is or was below the group, in milliseconds.
    fn spent(&self) -> f64 {
        let number = |text: &str| text.trim().parse::<f64>().unwrap_or(f64::NAN);
        if let Ok(nanoseconds) = std::fs::read_to_string(self.directory().join("cpuacct.usage")) {
            return number(&nanoseconds) / 1e6;
        }
        let text = std::fs::read_to_string(self.directory().join("cpu.stat")).unwrap_or_default();
        text.lines().find_map(|line| line.strip_prefix("usage_usec ")).map_or(f64::NAN, number) / 1e3
    }

    fn shims(&self, lab: &Lab) -> Vec<i32> {
        let state = self.daemon.state().to_string_lossy().into_owned();
        let ours = |pid: i32, command: &str| {
            let here = std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(&state));
            command.contains("containerd-shim") && (command.contains(&state) || here)
        };
        let all = census::processes(lab.dir(), lab.tag());
        all.into_iter().filter(|(pid, command)| ours(*pid, command)).map(|(pid, _)| pid).collect()
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        // The daemon and its shims must be out of it, or it stays.
        self.daemon.crash();
        census::end_processes_of(&self.daemon.root(), &self.group);
        std::thread::sleep(Duration::from_millis(200));
        let _ = std::fs::remove_dir(self.directory().join("daemon"));
        let _ = std::fs::remove_dir(self.directory());
    }
}

fn number(result: &Value, field: &str) -> f64 {
    result[field].as_f64().unwrap_or(f64::NAN)
}

fn life(tasks: &Tasks) -> Pairs {
    tasks.in_turn("ms", 5, |side| {
        let (result, _) = tasks.load(side, &["-count", "20", "-prefix", &tasks.fresh(), "task-life"]);
        number(&result, "p50_us") / 1e3
    })
}

/// CPU of daemon, shims and runtimes: what the program costs wherever it is executed is none of theirs.
fn life_cost(tasks: &Tasks) -> Pairs {
    tasks.in_turn("ms", 5, |side| {
        let (result, spent) = tasks.load(side, &["-count", "20", "-prefix", &tasks.fresh(), "task-life"]);
        spent / number(&result, "operations") - tasks.program()
    })
}

/// The result of executions in a task of their own, and their cost.
fn execs(tasks: &Tasks, side: &Side, count: &str) -> (Value, f64) {
    tasks.beside_tasks(side, "1", |prefix| tasks.load(side, &["-count", count, "-prefix", prefix, "task-exec"]))
}

fn exec(tasks: &Tasks) -> Pairs {
    tasks.in_turn("ms", 5, |side| number(&execs(tasks, side, "40").0, "p50_us") / 1e3)
}

fn exec_cost(tasks: &Tasks) -> Pairs {
    tasks.in_turn("ms", 5, |side| {
        let (result, spent) = execs(tasks, side, "40");
        spent / number(&result, "operations")
    })
}

/// The other side is a process that does nothing but these calls (`shim/runtime/examples/bare_exec.rs`).
fn exec_beside_bare(tasks: &Tasks) -> Pairs {
    let round = |_| {
        tasks.beside_tasks(&tasks.ours, "1", |prefix| {
            let list = tasks.ours.daemon.ctr(&["--namespace", "load", "tasks", "ls"]);
            let line = list.ok().lines().find(|line| line.starts_with(prefix)).unwrap_or_default();
            let pid = line.split_whitespace().nth(1).unwrap_or_default();
            let mut bare = Command::new(our_binary("bare_exec"));
            bare.args([pid, "400"]);
            let bare = Outcome::of(bare, Duration::from_secs(60));
            let (ours, _) = tasks.load(&tasks.ours, &["-count", "400", "-prefix", prefix, "task-exec"]);
            (bare.ok().trim().parse().unwrap_or(f64::NAN), number(&ours, "p50_us") / 1e3)
        })
    };
    Pairs { unit: "ms", values: (0..5).map(round).collect() }
}

fn sixteen(tasks: &Tasks) -> Pairs {
    let args = ["-workers", "16", "-connections", "4", "-count", "13"];
    tasks.in_turn("/s", 3, |side| {
        let prefix = tasks.fresh();
        let (started, _) = tasks.load(side, &[&args[..], &["-prefix", &prefix, "-keep", "task-start"]].concat());
        tasks.load(side, &[&args[..], &["-prefix", &prefix, "task-end"]].concat());
        number(&started, "operations") / number(&started, "seconds")
    })
}

fn shim_memory(tasks: &Tasks) -> Pairs {
    let mean = |side: &Side| {
        tasks.beside_tasks(side, "50", |_| {
            std::thread::sleep(Duration::from_secs(1));
            let sizes: Vec<f64> = side.shims(&tasks.lab).into_iter().map(memory::pss).collect();
            assert!(sizes.len() >= 50, "{} shims", sizes.len());
            sizes.iter().sum::<f64>() / sizes.len() as f64
        })
    };
    Pairs { unit: "MiB", values: vec![(mean(&tasks.theirs), mean(&tasks.ours))] }
}

/// How much a shim has more after many executions, once it has done some; its descriptors must be as many.
fn growth(tasks: &Tasks) -> Pairs {
    let count = std::env::var("GANTRY_EXECS").ok().and_then(|text| text.parse().ok()).unwrap_or(EXECS);
    let side = &tasks.ours;
    let grown = tasks.beside_tasks(side, "1", |prefix| {
        let shim = *side.shims(&tasks.lab).first().expect("a shim");
        let files = || std::fs::read_dir(format!("/proc/{shim}/fd")).map_or(0, Iterator::count);
        tasks.load(side, &["-count", "200", "-prefix", prefix, "task-exec"]);
        let (before, held) = (memory::pss(shim), files());
        for done in (0..count).step_by(AT_A_TIME) {
            let next = AT_A_TIME.min(count - done).to_string();
            tasks.load(side, &["-count", &next, "-prefix", prefix, "task-exec"]);
        }
        assert_eq!(files(), held, "descriptors of the shim");
        (memory::pss(shim) - before) * 1024.0
    });
    Pairs { unit: "KiB", values: vec![(f64::NAN, grown)] }
}
