//! The runtime as a command, beside the pinned runc, Debian's crun and a pinned youki: one bundle, one command line, in
//! turn.

use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use gantry_integration::Lab;
use gantry_integration::images::busybox_root;
use gantry_integration::lab::{our_binary, peer_binary};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use crate::Row;
use crate::table::{Bar, Pairs};

/// Rounds of each pair.
const ROUNDS: usize = 40;

/// Between two lives.
const SETTLE: Duration = Duration::from_millis(30);

/// All rows, in the order they are measured.
pub const ALL: &[Row<Bundle>] = &[
    Row { name: "runtime: a container's life, beside runc", bar: Bar::RatioAtMost(0.15), measure: beside_runc },
    Row { name: "runtime: a container's life, beside Debian's crun", bar: Bar::RatioAtMost(0.3), measure: beside_crun },
    Row { name: "runtime: a container's life, beside youki", bar: Bar::None, measure: beside_youki },
    Row { name: "shim binary, beside containerd's", bar: Bar::OursAtMost(1.5), measure: shim_size },
];

/// A bundle of `/bin/true` with runc's default configuration.
pub struct Bundle {
    lab: Lab,
}

impl Bundle {
    /// Made by runc itself.
    pub fn new() -> Bundle {
        let lab = Lab::new();
        let root = lab.path("rootfs");
        std::fs::rename(busybox_root(&lab), &root).expect("move the root");
        let bundle = Bundle { lab };
        bundle.call(&peer_binary("runc"), &["spec"]);
        let path = bundle.lab.path("config.json");
        let text = std::fs::read_to_string(&path).expect("a configuration");
        let mut config: serde_json::Value = serde_json::from_str(&text).expect("is JSON");
        config["process"]["args"] = serde_json::json!(["/bin/true"]);
        // The newest that Debian's crun knows.
        config["ociVersion"] = serde_json::json!("1.0.2");
        config["process"]["terminal"] = serde_json::json!(false);
        config["linux"]["cgroupsPath"] = serde_json::json!(format!("/{}", bundle.lab.id("bench")));
        std::fs::write(&path, config.to_string()).expect("write the configuration");
        bundle
    }

    fn call(&self, program: &Path, args: &[&str]) {
        let status = self.status(program, args);
        assert!(status.success(), "{} {args:?}: {status}", program.display());
    }

    fn status(&self, program: &Path, args: &[&str]) -> ExitStatus {
        let mut command = Command::new(program);
        command.arg("--root").arg(self.lab.path("state")).args(args).current_dir(self.lab.dir());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().expect("the runtime can be executed")
    }

    /// create, start, the end, delete; milliseconds.
    fn life(&self, program: &Path) -> f64 {
        // What one leaves to the kernel's workers (namespaces, control groups) shall not slow down the next.
        std::thread::sleep(SETTLE);
        let (begin, pid_file) = (Instant::now(), self.lab.path("pid"));
        self.call(program, &["create", "--bundle", ".", "--pid-file", "pid", "box"]);
        let pid = std::fs::read_to_string(&pid_file).expect("the runtime wrote the process's id");
        self.call(program, &["start", "box"]);
        // Its parent is gone, so its end is seen by its entry. A zombie of init's is an end, too.
        let stat = format!("/proc/{}/stat", pid.trim());
        while std::fs::read_to_string(&stat).is_ok_and(|text| !text.contains(") Z ")) {
            std::thread::yield_now();
        }
        self.call(program, &["delete", "box"]);
        begin.elapsed().as_secs_f64() * 1000.0
    }

    fn beside(&self, peer: &Path) -> Pairs {
        let ours = our_binary("gantry-runtime");
        let round = |_| (self.life(peer), self.life(&ours));
        round(0);
        Pairs { unit: "ms", values: (0..ROUNDS).map(round).collect() }
    }
}

fn beside_runc(bundle: &Bundle) -> Pairs {
    bundle.beside(&peer_binary("runc"))
}

fn beside_youki(bundle: &Bundle) -> Pairs {
    bundle.beside(&peer_binary("youki/bin/youki"))
}

fn beside_crun(bundle: &Bundle) -> Pairs {
    let crun = Path::new("/usr/bin/crun");
    std::thread::scope(|scope| {
        let measured = scope.spawn(|| {
            without_hybrid();
            bundle.beside(crun)
        });
        measured.join().expect("a thread of ours")
    })
}

/// crun refuses hybrid control groups: what this thread starts sees those of v1 alone.
fn without_hybrid() {
    let unified = "/sys/fs/cgroup/unified";
    if !Path::new(unified).exists() {
        return;
    }
    unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace of this thread's own");
    let nothing = None::<&str>;
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing).expect("nobody else sees it");
    umount2(unified, MntFlags::MNT_DETACH).expect("the v2 tree goes");
}

fn shim_size(_: &Bundle) -> Pairs {
    let mebibytes = |path: &Path| std::fs::metadata(path).map_or(f64::NAN, |file| file.len() as f64 / (1 << 20) as f64);
    let theirs = mebibytes(&peer_binary("containerd-shim-runc-v2"));
    Pairs { unit: "MiB", values: vec![(theirs, mebibytes(&our_binary("containerd-shim-gantry-v1")))] }
}
