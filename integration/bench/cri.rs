//! Pods through Kubernetes' interface, with the same CNI configuration for both daemons, and ours with its built-in
//! network besides. Times of one round are the client's medians.

use std::collections::BTreeMap;
use std::process::Command;

use gantry_integration::daemon::{Daemon, Peer};
use gantry_integration::images::{Image, busybox_root};
use gantry_integration::lab::peer_binary;
use gantry_integration::registry::DockerRegistry;
use gantry_integration::{Lab, census};
use nix::sys::signal::{Signal, kill};
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
    Row { name: "CRI: list and status, p99 with 100 containers", bar: Bar::OursAtMost(10.0), measure: ask },
    Row { name: "CRI: the same while a shim hangs", bar: Bar::OursAtMost(10.0), measure: ask_hanging },
    Row { name: "CRI: memory of daemon + shims, 50 pods", bar: Bar::RatioAtMost(0.25), measure: memory_of_pods },
    Row { name: "CRI: ExecSync, CPU of the daemon", bar: Bar::RatioAtMost(0.1), measure: exec_cpu },
    Row { name: "CRI: figures of 50 containers, CPU of the daemon", bar: Bar::OursAtMost(5.0), measure: stats_cpu },
];

/// Three daemons with the same image.
pub struct Pods {
    ours: Daemon,
    theirs: Daemon,
    built_in: Daemon,
    image: String,
    _registry: DockerRegistry,
    lab: Lab,
}

impl Pods {
    pub fn new() -> Pods {
        let lab = Lab::new();
        lab.on_fresh_disk(12);
        let registry = DockerRegistry::start(&lab);
        let pause = json!({"architecture": "amd64", "os": "linux", "config": {"Cmd": ["sleep", "1000000"]}});
        let root = busybox_root(&lab);
        let image = Image::new(&lab, "busybox").layer(&root).config(pause).push(&registry.host(), "busybox");
        let config = |name: &str, subnet: &str| config(&lab, name, subnet, &image);
        let ours = Daemon::start_named(&lab, "g", Peer::Gantry, &config("g", "10.101.0.0/16"), &[]);
        let theirs = Daemon::start_named(&lab, "c", Peer::Containerd, &config("c", "10.102.0.0/16"), &[]);
        let built_in = Daemon::start_named(&lab, "b", Peer::Gantry, &config("b", ""), &[]);
        for daemon in [&ours, &theirs, &built_in] {
            let pull = ["-n", "k8s.io", "images", "pull", "--plain-http", &image];
            daemon.ctr(&[&pull[..], &["--label", "io.cri-containerd.image=managed"]].concat()).ok();
        }
        Pods { ours, theirs, built_in, image, _registry: registry, lab }
    }

    /// Runs the client; lists of milliseconds by name.
    fn client(&self, daemon: &Daemon, args: &[&str]) -> BTreeMap<String, Vec<f64>> {
        let mut command = Command::new(peer_binary("pods"));
        command.arg("-socket").arg(daemon.address()).args(["-image", &self.image, "-id", &self.lab.id("pods")]);
        let out = command.args(args).env("TMPDIR", self.lab.dir()).output().expect("run the client");
        assert!(out.status.success(), "{}\n{}", String::from_utf8_lossy(&out.stderr), daemon.log_tail());
        serde_json::from_slice(&out.stdout).expect("the client prints JSON")
    }

    /// The client's list of that name, of both in turn.
    fn in_turn(&self, ours: &Daemon, args: &[&str], name: &str) -> Pairs {
        let theirs = self.client(&self.theirs, args).remove(name).unwrap_or_default();
        let ours = self.client(ours, args).remove(name).unwrap_or_default();
        Pairs { unit: "ms", values: theirs.into_iter().zip(ours).collect() }
    }
}

/// Containerd's keys serve both.
fn config(lab: &Lab, name: &str, subnet: &str, image: &str) -> String {
    let nets = lab.path(&format!("net-{name}"));
    std::fs::create_dir_all(&nets).expect("make a directory");
    if !subnet.is_empty() {
        let ipam = json!({"type": "host-local", "dataDir": lab.path(&format!("ipam-{name}")), "subnet": subnet});
        let conf = json!({"cniVersion": "1.0.0", "name": name, "plugins": [
            {"type": "bridge", "bridge": format!("cni-{name}"), "isGateway": true, "ipam": ipam}]});
        std::fs::write(nets.join("10.conflist"), conf.to_string()).expect("write the configuration");
    }
    let plugins = peer_binary("cni/bridge");
    format!(
        "version = 3\n[plugins.'io.containerd.cri.v1.images'.pinned_images]\nsandbox = {image:?}\n\
         [plugins.'io.containerd.nri.v1.nri']\ndisable = true\n\
         [plugins.'io.containerd.cri.v1.runtime']\nnetns_mounts_under_state_dir = true\n\
         [plugins.'io.containerd.cri.v1.runtime'.cni]\nconf_dir = {nets:?}\nbin_dirs = [{:?}]\n",
        plugins.parent().expect("plug-ins lie in a directory")
    )
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

fn answers(pods: &Pods, daemon: &Daemon) -> f64 {
    let took = pods.client(daemon, &["ask", "100"]);
    part(&took.into_values().flatten().collect::<Vec<f64>>(), 0.99)
}

fn ask(pods: &Pods) -> Pairs {
    Pairs { unit: "ms", values: vec![filled(pods, "100", |daemon| answers(pods, daemon))] }
}

fn ask_hanging(pods: &Pods) -> Pairs {
    let hanging = |daemon: &Daemon| {
        let shim = shims(pods, daemon).first().copied().expect("a shim");
        kill(Pid::from_raw(shim), Signal::SIGSTOP).expect("stop a shim");
        let took = answers(pods, daemon);
        kill(Pid::from_raw(shim), Signal::SIGCONT).expect("let it go on");
        took
    };
    Pairs { unit: "ms", values: vec![filled(pods, "50", hanging)] }
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
    Pairs { unit: "MiB", values: vec![filled(pods, "50", sum)] }
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
    Pairs { unit: "ms", values: vec![filled(pods, "50", |daemon| cpu_of(pods, daemon, "stats", 100))] }
}

/// The value at this fraction of a list.
fn part(values: &[f64], fraction: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * fraction).round() as usize).copied().unwrap_or(f64::NAN)
}
