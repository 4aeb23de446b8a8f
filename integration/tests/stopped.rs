//! The daemon is stopped (`SIGSTOP`) where it could hurt, what it started goes on and ends meanwhile, and the daemon goes on:
//! clients get what they asked for, and each end is told once, with its code.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Child;
use std::time::Duration;

use gantry_integration::images::{Image, busybox_root};
use gantry_integration::lab::peer_binary;
use gantry_integration::registry::DockerRegistry;
use gantry_integration::{Daemon, Lab, Outcome, Peer};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::bad_requests::{Wire, ask};
use crate::sandbox::{pod, until};

/// How long a client may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A daemon that stops where it is told to, and who listens to its events.
struct World {
    daemon: Daemon,
    wire: Wire,
    listener: Child,
    events: PathBuf,
    lab: Lab,
}

impl World {
    fn new() -> World {
        let lab = Lab::new();
        let daemon = Daemon::start_with(&lab, Peer::Gantry, "", &[("FAILPOINTS", "")]);
        let (wire, events) = (Wire::new(&lab, &daemon), lab.path("events"));
        let listener = listen(&daemon, &events);
        World { daemon, wire, listener, events, lab }
    }

    /// An image with busybox, pulled; its name.
    fn image(&self) -> String {
        let registry = DockerRegistry::start(&self.lab);
        let image = Image::new(&self.lab, "busybox").layer(&busybox_root(&self.lab)).push(&registry.host(), "busybox");
        self.daemon.ctr(&["images", "pull", "--plain-http", &image]).ok();
        image
    }

    /// What the client says whose daemon is stopped at that point and goes on some time later.
    fn stopped_at(&self, point: &str, args: &[&str]) -> Outcome {
        let version = ask("", "version.v1.Version/Version", json!({}));
        self.wire.send_with(&version, Some(&format!("gantry-failpoint: {point} stop")));
        std::thread::scope(|scope| {
            let client = scope.spawn(|| {
                let mut command = self.daemon.command(peer_binary("ctr"));
                command.arg("--address").arg(self.daemon.address()).args(args);
                Outcome::of(command, PATIENCE)
            });
            let stat = format!("/proc/{}/stat", self.daemon.pid());
            until(point, || fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") T ")));
            // What runs ends now, with nobody to tell.
            std::thread::sleep(Duration::from_millis(300));
            kill(Pid::from_raw(self.daemon.pid()), Signal::SIGCONT).expect("let it go on");
            client.join().expect("the client's thread")
        })
    }

    /// The events of a topic in which a field has this value, once one is there and others had time to come.
    fn told(&self, topic: &str, field: &str, value: &str) -> Vec<Value> {
        let all = || -> Vec<Value> {
            let text = fs::read_to_string(&self.events).unwrap_or_default();
            let of_topic = text.lines().filter_map(|line| line.split_once(&format!(" {topic} ")));
            let events = of_topic.filter_map(|(_, event)| serde_json::from_str::<Value>(event).ok());
            events.filter(|event| event[field] == value).collect()
        };
        until(&format!("{topic} of {value}"), || !all().is_empty());
        std::thread::sleep(Duration::from_millis(200));
        all()
    }

    fn finish(mut self) {
        self.listener.kill().expect("end ctr");
        self.listener.wait().expect("end ctr");
        self.daemon.assert_nothing_leaked();
        self.daemon.stop_clean();
    }
}

/// Writes events into a file.
fn listen(daemon: &Daemon, into: &PathBuf) -> Child {
    let mut command = daemon.command(peer_binary("ctr"));
    command.arg("--address").arg(daemon.address()).arg("events").stdout(File::create(into).expect("make a file"));
    let listener = command.spawn().expect("start ctr");
    std::thread::sleep(Duration::from_millis(500));
    listener
}

#[test]
fn the_end_of_a_task_is_told_once_and_with_its_code_wherever_the_daemon_was_stopped() {
    let world = World::new();
    let image = world.image();
    for point in ["before-shim", "after-shim", "after-create", "after-start", "after-delete", "after-bundle"] {
        let id = world.lab.id(point);
        let run = ["run", "--rm", &image, &id, "/bin/sh", "-c", "exit 7"];
        world.stopped_at(&format!("task::{point}"), &run).code(7);
        let told = world.told("/tasks/exit", "container_id", &id);
        assert_eq!(told.len(), 1, "{point}: {told:?}");
        assert_eq!((&told[0]["id"], &told[0]["exit_status"]), (&json!(id), &json!(7)), "{point}");
        let left = world.daemon.ctr(&["containers", "ls", "-q"]);
        assert_eq!(left.ok(), "", "{point}");
    }
    world.finish();
}

#[test]
fn the_end_of_an_additional_process_is_told_once_wherever_the_daemon_was_stopped() {
    let world = World::new();
    let image = world.image();
    let id = world.lab.id("main");
    world.daemon.ctr(&["run", "-d", &image, &id, "/bin/sleep", "1000"]).ok();
    // The client's calls, one after the other, behind the one that arms: among them "tasks.v1.Tasks/Exec", "Start" and
    // "DeleteProcess".
    for call in 3..9 {
        let exec = format!("e{call}");
        let args = ["tasks", "exec", "--exec-id", &exec, &id, "/bin/sh", "-c", "exit 9"];
        world.stopped_at(&format!("daemon::before-answer*{call}"), &args).code(9);
        let told = world.told("/tasks/exit", "id", &exec);
        assert_eq!(told.len(), 1, "answer {call}: {told:?}");
        assert_eq!((&told[0]["container_id"], &told[0]["exit_status"]), (&json!(id), &json!(9)), "answer {call}");
    }
    world.daemon.ctr(&["tasks", "rm", "--force", &id]).ok();
    world.daemon.ctr(&["containers", "rm", &id]).ok();
    world.finish();
}

#[test]
fn the_end_of_a_sandbox_is_told_once_though_the_daemon_was_stopped_or_killed() {
    let mut world = World::new();
    for point in ["before-shim", "after-shim", "after-create", "after-start"] {
        let id = world.lab.id(point);
        let file = pod(&world.lab, &id);
        world.stopped_at(&format!("sandbox::{point}"), &["sandboxes", "run", &file, &id]).ok();
        world.daemon.ctr(&["sandboxes", "rm", &id]).ok();
        let told = world.told("/sandboxes/exit", "sandbox_id", &id);
        assert_eq!(told.len(), 1, "{point}: {told:?}");
    }
    for point in ["after-stop", "after-shutdown"] {
        let id = world.lab.id(point);
        world.daemon.ctr(&["sandboxes", "run", &pod(&world.lab, &id), &id]).ok();
        world.stopped_at(&format!("sandbox::{point}"), &["sandboxes", "rm", &id]).ok();
        let told = world.told("/sandboxes/exit", "sandbox_id", &id);
        assert_eq!(told.len(), 1, "{point}: {told:?}");
    }
    // Who listened goes with the daemon.
    let id = world.lab.id("killed");
    world.daemon.ctr(&["sandboxes", "run", &pod(&world.lab, &id), &id]).ok();
    world.daemon.crash();
    world.daemon.launch();
    world.listener.kill().expect("end ctr");
    world.listener.wait().expect("end ctr");
    world.listener = listen(&world.daemon, &world.events);
    world.daemon.ctr(&["sandboxes", "rm", &id]).ok();
    let told = world.told("/sandboxes/exit", "sandbox_id", &id);
    assert_eq!(told.len(), 1, "killed: {told:?}");
    world.finish();
}
