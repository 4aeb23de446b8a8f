//! Podman with our runtime: what Debian ships drives `gantry-runtime` by runc's command line, through conmon.

use std::process::Command;
use std::time::Duration;

use gantry_integration::images::{Image, busybox_root};
use gantry_integration::lab::our_binary;
use gantry_integration::registry::DockerRegistry;
use gantry_integration::{Lab, Outcome};

struct Podman {
    lab: Lab,
    image: String,
    _registry: DockerRegistry,
}

impl Podman {
    fn new() -> Podman {
        let lab = Lab::new();
        let registry = DockerRegistry::start(&lab);
        let image = Image::new(&lab, "busybox").layer(&busybox_root(&lab)).push(&registry.host(), "busybox");
        let podman = Podman { lab, image, _registry: registry };
        podman.run(&["pull", "--quiet", "--tls-verify=false", &podman.image]).ok();
        podman
    }

    /// Podman with storage of its own, and nothing of the machine's settings.
    fn run(&self, args: &[&str]) -> Outcome {
        let mut command = Command::new("podman");
        for (flag, name) in [("--root", "p-root"), ("--runroot", "p-run"), ("--tmpdir", "p-tmp")] {
            command.arg(flag).arg(self.lab.path(name));
        }
        command.args(["--storage-driver", "vfs", "--events-backend", "none", "--cgroup-manager", "cgroupfs"]);
        command.arg("--runtime").arg(our_binary("gantry-runtime")).args(args);
        command.env("CONTAINERS_CONF", "/dev/null").env("HOME", self.lab.dir()).current_dir(self.lab.dir());
        Outcome::of(command, Duration::from_secs(60))
    }

    /// `podman run` without a network; limits that any machine grants.
    fn start(&self, flags: &[&str], command: &[&str]) -> Outcome {
        let mut args = vec!["run", "--network", "none", "--ulimit", "nofile=512:512", "--ulimit", "nproc=512:512"];
        args.extend_from_slice(flags);
        args.push(&self.image);
        args.extend_from_slice(command);
        self.run(&args)
    }

    #[track_caller]
    fn status(&self, name: &str) -> String {
        self.run(&["inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", name]).ok().trim().to_owned()
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let _ = self.run(&["rm", "--all", "--force", "--time", "0"]);
        // Podman's own parent of all its cgroups, if nobody else uses it.
        for hierarchy in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            let _ = std::fs::remove_dir(hierarchy.path().join("libpod_parent"));
        }
        let _ = std::fs::remove_dir("/sys/fs/cgroup/libpod_parent");
    }
}

#[test]
fn containers_live_by_podmans_commands() {
    let podman = Podman::new();
    let out =
        podman.start(&["--rm", "--read-only", "--user", "7:8", "-m", "64m"], &["sh", "-c", "id -u; id -g; exit 3"]);
    assert_eq!((out.code, out.stdout.as_str()), (3, "7\n8\n"), "{out}");
    let out = podman.start(&["--rm"], &["/no/such"]);
    assert_eq!(out.code, 127, "podman knows our words for a missing program: {out}");
    let script = "echo out; trap 'exit 5' TERM; while :; do sleep 0.05; done";
    podman.start(&["--detach", "--name", "x"], &["sh", "-c", script]).ok();
    let out = podman.run(&["exec", "x", "sh", "-c", "echo in; exit 4"]);
    assert_eq!((out.code, out.stdout.as_str()), (4, "in\n"), "{out}");
    podman.run(&["pause", "x"]).ok();
    assert_eq!(podman.status("x"), "paused 0");
    podman.run(&["unpause", "x"]).ok();
    let stats = podman.run(&["stats", "--no-stream", "--format", "{{.PIDs}} {{.MemUsage}}", "x"]);
    let stats = stats.ok().to_owned();
    assert!(stats.starts_with(['1', '2']), "{stats}");
    assert_eq!(podman.run(&["logs", "x"]).ok(), "out\n");
    podman.run(&["stop", "--time", "20", "x"]).ok();
    assert_eq!(podman.status("x"), "exited 5");
    podman.run(&["start", "x"]).ok();
    assert_eq!(podman.status("x"), "running 0");
    podman.run(&["rm", "--force", "--time", "0", "x"]).ok();
    podman.run(&["pod", "create", "--name", "p", "--infra=false"]).ok();
    podman.start(&["--detach", "--pod", "p", "--name", "y"], &["sleep", "1000"]).ok();
    assert_eq!(
        podman.run(&["pod", "ps", "--format", "{{.Name}} {{.NumberOfContainers}} {{.Status}}"]).ok(),
        "p 1 Running\n"
    );
    podman.run(&["pod", "rm", "--force", "--time", "0", "p"]).ok();
    assert_eq!(podman.run(&["ps", "--all", "--quiet"]).ok(), "");
}
