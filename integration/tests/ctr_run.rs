//! Containers through the real `ctr`: run in the foreground and background, looked at, signalled, executed in, removed.

use std::time::Duration;

use gantry_integration::images::{Image, busybox_root};
use gantry_integration::registry::DockerRegistry;
use gantry_integration::{Daemon, Lab, Outcome};

struct World {
    lab: Lab,
    daemon: Daemon,
    image: String,
    _registry: DockerRegistry,
}

fn world() -> World {
    let lab = Lab::new();
    let registry = DockerRegistry::start(&lab);
    let daemon = Daemon::start(&lab);
    let image = Image::new(&lab, "busybox").layer(&busybox_root(&lab)).push(&registry.host(), "busybox");
    daemon.ctr(&["images", "pull", "--plain-http", &image]).ok();
    World { lab, daemon, image, _registry: registry }
}

impl World {
    fn run(&self, id: &str, flags: &[&str], command: &[&str]) -> Outcome {
        let mut args = vec!["run"];
        args.extend_from_slice(flags);
        args.extend_from_slice(&[&self.image, id]);
        args.extend_from_slice(command);
        self.daemon.ctr(&args)
    }

    /// Starts a container in the background that lives until it is signalled.
    fn background(&self, name: &str) -> String {
        let id = self.lab.id(name);
        self.run(&id, &["-d"], &["/bin/sh", "-c", "trap 'exit 7' TERM; while :; do sleep 0.05; done"]).ok();
        id
    }

    fn status(&self, id: &str) -> String {
        let list = self.daemon.ctr(&["tasks", "ls"]);
        let line = list.ok().lines().find(|l| l.starts_with(id)).unwrap_or_default().to_owned();
        line.split_whitespace().last().unwrap_or_default().to_owned()
    }

    #[track_caller]
    fn wait_for_status(&self, id: &str, wanted: &str) {
        for _ in 0..200 {
            if self.status(id) == wanted {
                return;
            }
            std::thread::sleep(Duration::from_millis(25));
        }
        panic!("{id} is {}, not {wanted}", self.status(id));
    }

    fn finish(self) {
        self.daemon.assert_nothing_leaked();
        self.daemon.stop_clean();
    }
}

#[test]
fn a_container_runs_in_the_foreground_with_its_output_and_exit_code() {
    let w = world();
    let out = w.run(&w.lab.id("fg"), &["--rm"], &["/bin/sh", "-c", "echo out; echo err >&2; exit 42"]);
    assert_eq!((out.code, out.stdout.as_str()), (42, "out\n"), "{out}");
    assert!(out.stderr.contains("err\n"), "{out}");
    let out = w.run(&w.lab.id("child"), &["--rm"], &["/bin/sh", "-c", "sh -c 'kill -9 $$'; exit $?"]);
    assert_eq!(out.code, 137, "{out}");
    w.finish();
}

#[test]
fn the_default_fences_stand() {
    let w = world();
    let script = "id -u; hostname >/dev/null; cat /proc/1/comm; grep -c . /proc/net/dev; \
                  grep NoNewPrivs /proc/self/status; grep CapEff /proc/self/status; \
                  (echo x > /proc/sys/kernel/hostname) 2>/dev/null || echo sys-readonly; \
                  head -c1 /proc/kcore 2>/dev/null | wc -c; ls /dev | sort | tr '\\n' ' '; mount | wc -l";
    let out = w.run(&w.lab.id("fences"), &["--rm"], &["/bin/sh", "-c", script]);
    let text = out.ok();
    assert!(text.contains("NoNewPrivs:\t1"), "{out}");
    assert!(text.contains("CapEff:\t00000000a80425fb"), "{out}");
    assert!(text.contains("sys-readonly"), "{out}");
    for device in ["null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "shm", "mqueue", "fd", "stdin"] {
        assert!(text.contains(device), "no /dev/{device}\n{out}");
    }
    w.finish();
}

#[test]
fn environment_mounts_user_and_working_directory_are_as_asked() {
    let w = world();
    let shared = w.lab.path("shared");
    std::fs::create_dir_all(&shared).expect("make a directory");
    let mount = format!("type=bind,src={},dst=/shared,options=rbind:rw", shared.display());
    let script = "echo $COLOUR; pwd; id -u; id -g; echo written > /shared/file";
    let flags = ["--rm", "--env", "COLOUR=red", "--cwd", "/tmp", "--mount", &mount];
    let out = w.run(&w.lab.id("asked"), &flags, &["/bin/sh", "-c", script]);
    assert_eq!(out.ok(), "red\n/tmp\n0\n0\n");
    assert_eq!(std::fs::read_to_string(shared.join("file")).expect("written"), "written\n");
    let out = w.run(&w.lab.id("user"), &["--rm", "--user", "33:34"], &["/bin/id"]);
    assert!(out.ok().contains("uid=33(web) gid=34(web)"), "{out}");
    let out = w.run(&w.lab.id("ro"), &["--rm", "--read-only"], &["/bin/sh", "-c", "echo x > /file || echo refused"]);
    assert_eq!(out.ok(), "refused\n");
    w.finish();
}

#[test]
fn a_program_that_is_not_there_is_named_and_nothing_is_left() {
    let w = world();
    let out = w.run(&w.lab.id("none"), &["--rm"], &["/no/such/program"]);
    out.fails_with("/no/such/program");
    assert!(out.stderr.contains("no such file or directory"), "{out}");
    let out = w.run(&w.lab.id("none2"), &["--rm"], &["nosuchprogram"]);
    out.fails_with("executable file not found in $PATH");
    w.finish();
}

#[test]
fn a_background_container_is_listed_executed_in_signalled_and_removed() {
    let w = world();
    let id = w.background("bg");
    assert_eq!(w.status(&id), "RUNNING");
    let out = w.daemon.ctr(&["tasks", "exec", "--exec-id", "e1", &id, "/bin/sh", "-c", "echo in exec; exit 3"]);
    assert_eq!((out.code, out.stdout.as_str()), (3, "in exec\n"), "{out}");
    let ps = w.daemon.ctr(&["tasks", "ps", &id]);
    assert!(ps.ok().lines().count() >= 2, "{ps}");
    let metrics = w.daemon.ctr(&["tasks", "metrics", &id]);
    assert!(metrics.ok().contains("memory.usage_in_bytes") || metrics.ok().contains("memory.usage"), "{metrics}");
    let info = w.daemon.ctr(&["containers", "info", &id]);
    assert!(info.ok().contains("\"io.containerd.runc.v2\"") && info.ok().contains("ociVersion"), "{info}");
    assert!(w.daemon.ctr(&["containers", "ls", "-q"]).ok().contains(&id));
    w.daemon.ctr(&["containers", "rm", &id]).fails_with("");
    w.daemon.ctr(&["tasks", "rm", &id]).fails_with("");
    w.daemon.ctr(&["tasks", "kill", "--signal", "SIGTERM", &id]).ok();
    w.wait_for_status(&id, "STOPPED");
    let removed = w.daemon.ctr(&["tasks", "rm", &id]);
    assert!(removed.stderr.contains("non-zero exit code 7"), "{removed}");
    w.daemon.ctr(&["containers", "rm", &id]).ok();
    assert!(!w.daemon.ctr(&["containers", "ls", "-q"]).ok().contains(&id));
    w.daemon.ctr(&["tasks", "kill", &id]).fails_with("not found");
    w.finish();
}

#[test]
fn a_paused_container_stands_still_and_goes_on_when_resumed() {
    let w = world();
    let id = w.background("pause");
    w.daemon.ctr(&["tasks", "pause", &id]).ok();
    assert_eq!(w.status(&id), "PAUSED");
    w.daemon.ctr(&["tasks", "resume", &id]).ok();
    assert_eq!(w.status(&id), "RUNNING");
    w.daemon.ctr(&["tasks", "rm", "--force", &id]);
    w.daemon.ctr(&["containers", "rm", &id]).ok();
    w.finish();
}

#[test]
fn the_events_of_a_life_come_in_order() {
    let w = world();
    let out = w.lab.path("events");
    let mut command = w.daemon.command(gantry_integration::lab::peer_binary("ctr"));
    let file = std::fs::File::create(&out).expect("make a file");
    let mut watcher =
        command.arg("--address").arg(w.daemon.address()).arg("events").stdout(file).spawn().expect("start ctr");
    std::thread::sleep(Duration::from_millis(500));
    w.run(&w.lab.id("ev"), &["--rm"], &["/bin/true"]).ok();
    std::thread::sleep(Duration::from_millis(500));
    watcher.kill().expect("end ctr");
    watcher.wait().expect("end ctr");
    let text = std::fs::read_to_string(&out).expect("read the events");
    let wanted = [
        "/snapshot/prepare",
        "/containers/create",
        "/tasks/create",
        "/tasks/start",
        "/tasks/exit",
        "/tasks/delete",
        "/containers/delete",
    ];
    let mut rest = text.as_str();
    for topic in wanted {
        let at = rest.find(topic).unwrap_or_else(|| panic!("no {topic} (in this order) in:\n{text}"));
        rest = &rest[at + topic.len()..];
    }
    for topic in ["/tasks/exit", "/tasks/delete", "/tasks/create"] {
        assert_eq!(text.matches(topic).count(), 1, "{topic} exactly once in:\n{text}");
    }
    w.finish();
}

#[test]
fn limits_reach_the_cgroup() {
    let w = world();
    let id = w.lab.id("limit");
    let flags = ["-d", "--memory-limit", "33554432", "--cpus", "0.5"];
    w.run(&id, &flags, &["/bin/sleep", "1000"]).ok();
    let read = |controller: &str, file: &str| {
        let path = format!("/sys/fs/cgroup/{controller}/default/{id}/{file}");
        std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}")).trim().to_owned()
    };
    assert_eq!(read("memory", "memory.limit_in_bytes"), "33554432");
    assert_eq!(read("cpu", "cpu.cfs_quota_us"), "50000");
    assert_eq!(read("pids", "cgroup.procs").lines().count(), 1);
    w.daemon.ctr(&["tasks", "rm", "--force", &id]);
    w.daemon.ctr(&["containers", "rm", &id]).ok();
    w.finish();
}

#[test]
fn a_terminal_is_given_where_asked() {
    let w = world();
    let ctr = gantry_integration::lab::peer_binary("ctr");
    let line = format!(
        "{} --address {} run --rm -t {} {} /bin/sh -c 'tty; stty size >/dev/null && echo sized'",
        ctr.display(),
        w.daemon.address().display(),
        w.image,
        w.lab.id("tty")
    );
    let mut command = w.daemon.command("script");
    command.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
    let out = Outcome::of(command, Duration::from_secs(30));
    assert!(out.ok().contains("/dev/pts/0") && out.stdout.contains("sized"), "{out}");
    w.finish();
}

#[test]
fn runc_runs_the_container_where_it_is_named() {
    let w = world();
    let runc = gantry_integration::lab::peer_binary("runc");
    let flags = ["--rm", "--runc-binary", &runc.to_string_lossy()];
    let out = w.run(&w.lab.id("runc"), &flags, &["/bin/sh", "-c", "echo by runc; exit 5"]);
    assert_eq!((out.code, out.stdout.as_str()), (5, "by runc\n"), "{out}");
    w.finish();
}

#[test]
fn containerds_own_shim_works_under_our_daemon() {
    let w = world();
    let shim = gantry_integration::lab::peer_binary("containerd-shim-runc-v2");
    let flags = ["--rm", "--runtime", &shim.to_string_lossy()];
    let out = w.run(&w.lab.id("goshim"), &flags, &["/bin/sh", "-c", "echo by the Go shim; exit 6"]);
    assert_eq!((out.code, out.stdout.as_str()), (6, "by the Go shim\n"), "{out}");
    w.finish();
}
