//! Pods through Kubernetes' interface, with the same CNI configuration for both daemons, and ours with its built-in
//! network besides. Times of one round are the client's medians.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use gantry_integration::daemon::{Daemon, Peer};
use gantry_integration::images::{Image, Packing, busybox_root};
use gantry_integration::lab::{peer_binary, run};
use gantry_integration::registry::DockerRegistry;
use gantry_integration::{Lab, census, cri};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use serde_json::json;

use crate::table::{Bar, Pairs};
use crate::{Row, memory};

/// All rows, in the order they are measured.
pub const ALL: &[Row<Pods>] = &[
    Row { name: "CRI: pod create (CNI)", bar: Bar::RatioAtMost(0.3), measure: pod_create },
    Row { name: "CRI: pod create (built-in network, theirs CNI)", bar: Bar::RatioAtMost(0.15), measure: pod_built_in },
    Row { name: "CRI: container create + start", bar: Bar::RatioAtMost(0.3), measure: container },
    Row { name: "CRI: stop + remove", bar: Bar::RatioAtMost(0.3), measure: remove },
    Row { name: "CRI: 50 pods at once", bar: Bar::RatioAtMost(0.3), measure: burst },
    Row { name: "CRI: 50 pods at once, p99 / p50", bar: Bar::OursAtMost(3.0), measure: burst_tail },
    Row { name: "CRI: memory of daemon + shims, 100 pods", bar: Bar::RatioAtMost(0.25), measure: memory_of_pods },
    Row { name: "CRI: ExecSync, CPU", bar: Bar::RatioAtMost(0.1), measure: exec_cpu },
    // The rest share one crowd of containers.
    Row { name: "CRI: 500: list and status, p99", bar: Bar::OursAtMost(10.0), measure: ask },
    Row { name: "CRI: 500: the same while a shim hangs", bar: Bar::OursAtMost(10.0), measure: ask_hanging },
    Row { name: "CRI: 500: the same in a storm of writes and a pull", bar: Bar::OursAtMost(10.0), measure: ask_stormy },
    Row { name: "CRI: 500: figures of all, CPU of the daemon", bar: Bar::OursAtMost(5.0), measure: stats_cpu },
    Row { name: "CRI: 500: figures of all, once in ten seconds", bar: Bar::None, measure: stats_seldom },
];

/// Pods of the crowd, and containers of each.
const CROWD: [&str; 2] = ["50", "10"];
/// Size of the image that is pulled in the storm, in bytes.
const BIG: u64 = 2 << 30;
/// How long the storm is watched.
const STORM: Duration = Duration::from_secs(20);

/// Three daemons with the same image.
pub struct Pods {
    ours: Daemon,
    theirs: Daemon,
    built_in: Daemon,
    image: String,
    registry: DockerRegistry,
    crowd: OnceCell<()>,
    lab: Lab,
}

impl Pods {
    pub fn new() -> Pods {
        let lab = Lab::new();
        lab.on_fresh_disk(8);
        let registry = DockerRegistry::start(&lab);
        // What containerd holds pods with.
        let pause = json!({"Cmd": ["sleep", "1000000"], "Env": ["PATH=/bin"]});
        let root = busybox_root(&lab);
        let image = Image::new(&lab, "busybox").layer(&root).config(pause).push(&registry.host(), "busybox");
        let config = |name: &str, subnet: &str| cri::config(&lab, name, subnet, &image);
        let ours = Daemon::start_named(&lab, "g", Peer::Gantry, &config("g", "10.101.0.0/16"), &[]);
        let theirs = Daemon::start_named(&lab, "c", Peer::Containerd, &config("c", "10.102.0.0/16"), &[]);
        let built_in = Daemon::start_named(&lab, "b", Peer::Gantry, &config("b", ""), &[]);
        for daemon in [&ours, &theirs, &built_in] {
            let pull = ["-n", "k8s.io", "images", "pull", "--plain-http", &image];
            daemon.ctr(&[&pull[..], &["--label", "io.cri-containerd.image=managed"]].concat()).ok();
        }
        Pods { ours, theirs, built_in, image, registry, crowd: OnceCell::new(), lab }
    }

    /// Runs the client; lists of milliseconds by name.
    fn client(&self, daemon: &Daemon, args: &[&str]) -> BTreeMap<String, Vec<f64>> {
        // Before others: what is measured is how long the daemon takes, not how long its client waits for a processor.
        let mut command = Command::new("nice");
        command.args(["-n", "-15"]).arg(peer_binary("pods")).arg("-socket").arg(daemon.address()).args([
            "-image",
            &self.image,
            "-id",
            &self.lab.id("pods"),
        ]);
        let out = command.args(args).env("TMPDIR", self.lab.dir()).output().expect("run the client");
        assert!(out.status.success(), "{}\n{}", String::from_utf8_lossy(&out.stderr), daemon.log_tail());
        serde_json::from_slice(&out.stdout).expect("the client prints JSON")
    }

    /// Sees to it that both have the crowd.
    fn crowded(&self) {
        self.crowd.get_or_init(|| {
            for daemon in [&self.theirs, &self.ours] {
                self.client(daemon, &[&["fill"], &CROWD[..]].concat());
            }
        });
    }

    /// Does something to both while they have the crowd.
    fn in_crowd(&self, unit: &'static str, work: impl Fn(&Daemon) -> f64) -> Pairs {
        self.crowded();
        Pairs { unit, values: vec![(work(&self.theirs), work(&self.ours))] }
    }

    /// The client's list of that name, of both in turn.
    fn in_turn(&self, ours: &Daemon, args: &[&str], name: &str) -> Pairs {
        let theirs = self.client(&self.theirs, args).remove(name).unwrap_or_default();
        let ours = self.client(ours, args).remove(name).unwrap_or_default();
        Pairs { unit: "ms", values: theirs.into_iter().zip(ours).collect() }
    }
}

fn pod_create(pods: &Pods) -> Pairs {
    pods.in_turn(&pods.ours, &["cycle", "15"], "pod")
}

fn pod_built_in(pods: &Pods) -> Pairs {
    pods.in_turn(&pods.built_in, &["cycle", "15"], "pod")
}

fn container(pods: &Pods) -> Pairs {
    pods.in_turn(&pods.ours, &["cycle", "15"], "container")
}

fn remove(pods: &Pods) -> Pairs {
    pods.in_turn(&pods.ours, &["cycle", "15"], "remove")
}

fn burst(pods: &Pods) -> Pairs {
    pods.in_turn(&pods.ours, &["burst", "50"], "all")
}

fn burst_tail(pods: &Pods) -> Pairs {
    let tail = |daemon| {
        let each = pods.client(daemon, &["burst", "50"]).remove("each").unwrap_or_default();
        part(&each, 0.99) / part(&each, 0.5)
    };
    Pairs { unit: "", values: vec![(tail(&pods.theirs), tail(&pods.ours))] }
}

/// Does something while both have pods.
fn filled<T>(pods: &Pods, count: &str, work: impl Fn(&Daemon) -> T) -> (T, T) {
    let one = |daemon: &Daemon| {
        pods.client(daemon, &["fill", count]);
        let done = work(daemon);
        pods.client(daemon, &["clear"]);
        done
    };
    (one(&pods.theirs), one(&pods.ours))
}

/// The slower of listing and status, at the 99th percentile.
fn answers(pods: &Pods, daemon: &Daemon) -> f64 {
    pods.client(daemon, &["ask", "100"]).values().map(|took| part(took, 0.99)).fold(0.0, f64::max)
}

fn ask(pods: &Pods) -> Pairs {
    pods.in_crowd("ms", |daemon| answers(pods, daemon))
}

fn ask_hanging(pods: &Pods) -> Pairs {
    pods.in_crowd("ms", |daemon| {
        let shim = shims(pods, daemon).first().copied().expect("a shim");
        kill(Pid::from_raw(shim), Signal::SIGSTOP).expect("stop a shim");
        let took = answers(pods, daemon);
        kill(Pid::from_raw(shim), Signal::SIGCONT).expect("let it go on");
        took
    })
}

/// An image of one large file of noise.
fn big_image(pods: &Pods) -> String {
    let root = pods.lab.path("big-root");
    std::fs::create_dir_all(&root).expect("make a directory");
    let noise = format!(
        "head -c {BIG} /dev/zero | openssl enc -aes-128-ctr -nosalt -K {} -iv {} >{}",
        "00".repeat(16),
        "11".repeat(16),
        root.join("noise").display()
    );
    run("sh", &["-c", &noise]);
    let image = Image::new(&pods.lab, "big").layer(&root).packing(Packing::Plain).push(&pods.registry.host(), "big");
    for used in [root, pods.lab.path("image-big")] {
        std::fs::remove_dir_all(used).expect("remove what was pushed");
    }
    image
}

fn ask_stormy(pods: &Pods) -> Pairs {
    let image = big_image(pods);
    pods.in_crowd("ms", |daemon| {
        let storm = pods.lab.path("storm");
        std::fs::create_dir_all(&storm).expect("make a directory");
        let endless = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]).current_dir(&storm).stderr(Stdio::null());
            command.process_group(0).spawn().expect("begin the storm")
        };
        let storms = [
            endless("while :; do dd if=/dev/zero of=large bs=1M count=256 conv=fsync; done"),
            endless("while :; do for i in 1 2 3 4 5 6 7 8; do echo x >small$i; sync -d small$i; done; done"),
        ];
        let mut pull = daemon.command(peer_binary("ctr"));
        pull.arg("-a").arg(daemon.address()).args(["-n", "k8s.io", "images", "pull", "--plain-http", &image]);
        let mut pull = pull.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("begin the pull");
        let (began, mut worst) = (Instant::now(), Vec::new());
        while pull.try_wait().expect("ask for the pull").is_none() && began.elapsed() < STORM {
            worst.push(answers(pods, daemon));
        }
        eprintln!("the pull and the storm were watched for {:?}: {worst:.2?}", began.elapsed());
        let _ = pull.kill();
        let _ = pull.wait();
        for mut storm in storms {
            let _ = killpg(Pid::from_raw(storm.id().cast_signed()), Signal::SIGKILL);
            let _ = storm.wait();
        }
        // It may have been broken off.
        let mut remove = daemon.command(peer_binary("ctr"));
        remove.arg("-a").arg(daemon.address()).args(["-n", "k8s.io", "images", "rm", "--sync", &image]);
        let _ = remove.output();
        part(&worst, 0.5)
    })
}

fn shims(pods: &Pods, daemon: &Daemon) -> Vec<i32> {
    let address = daemon.address().to_string_lossy().into_owned();
    let state = daemon.state().to_string_lossy().into_owned();
    let of = |pid: &i32, command: &str| {
        let cwd = std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|path| path.starts_with(&state));
        command.contains("containerd-shim") && (command.contains(&address) || command.contains(&state) || cwd)
    };
    let all = census::processes(pods.lab.dir(), pods.lab.tag());
    all.into_iter().filter(|(pid, command)| of(pid, command)).map(|(pid, _)| pid).collect()
}

fn memory_of_pods(pods: &Pods) -> Pairs {
    let sum =
        |daemon: &Daemon| memory::pss(daemon.pid()) + shims(pods, daemon).into_iter().map(memory::pss).sum::<f64>();
    Pairs { unit: "MiB", values: vec![filled(pods, "100", sum)] }
}

/// CPU time of a process and of the children that it waited for, in milliseconds.
fn cpu(pid: i32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<f64> = stat
        .rsplit_once(") ")
        .map(|(_, rest)| rest.split(' ').filter_map(|field| field.parse().ok()).collect())
        .unwrap_or_default();
    // Behind the state and nine other numbers: utime, stime, cutime, cstime, in ticks of ten milliseconds.
    fields.get(10..14).map_or(f64::NAN, |times| times.iter().sum::<f64>() * 10.0)
}

/// CPU of the daemon and its shims for one of `count` calls.
fn cpu_of(pods: &Pods, daemon: &Daemon, verb: &str, count: u32) -> f64 {
    let all = || cpu(daemon.pid()) + shims(pods, daemon).into_iter().map(cpu).sum::<f64>();
    let before = all();
    pods.client(daemon, &[verb, &count.to_string()]);
    (all() - before) / f64::from(count)
}

fn exec_cpu(pods: &Pods) -> Pairs {
    Pairs { unit: "ms", values: vec![filled(pods, "1", |daemon| cpu_of(pods, daemon, "exec", 100))] }
}

fn stats_cpu(pods: &Pods) -> Pairs {
    pods.in_crowd("ms", |daemon| cpu_of_daemon(daemon, || drop(pods.client(daemon, &["stats", "100"]))) / 100.0)
}

/// As seldom as a kubelet asks.
fn stats_seldom(pods: &Pods) -> Pairs {
    pods.in_crowd("ms", |daemon| {
        let rounds = 5;
        let all = (0..rounds).map(|_| {
            std::thread::sleep(Duration::from_secs(10));
            cpu_of_daemon(daemon, || drop(pods.client(daemon, &["stats", "1"])))
        });
        all.sum::<f64>() / f64::from(rounds)
    })
}

/// CPU that a daemon used meanwhile, in milliseconds.
fn cpu_of_daemon(daemon: &Daemon, work: impl FnOnce()) -> f64 {
    let before = cpu_exact(daemon.pid());
    work();
    cpu_exact(daemon.pid()) - before
}

/// CPU time of a process without its children, in milliseconds: of all its threads, by the scheduler's own account.
fn cpu_exact(pid: i32) -> f64 {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let of = |path: std::path::PathBuf| {
        let text = std::fs::read_to_string(path.join("schedstat")).unwrap_or_default();
        text.split(' ').next().and_then(|number| number.parse::<f64>().ok()).unwrap_or_default()
    };
    threads.map(|thread| of(thread.path())).sum::<f64>() / 1e6
}

/// The value at this fraction of a list.
fn part(values: &[f64], fraction: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * fraction).round() as usize).copied().unwrap_or(f64::NAN)
}
