//! `kill -9` at every place where it could hurt, in every method that changes something: after the restart what was
//! acknowledged is there, what was not is either whole or not there at all, a retry succeeds, and nothing is left over.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use gantry_integration::images::{Image, busybox_root};
use gantry_integration::lab::peer_binary;
use gantry_integration::registry::DockerRegistry;
use gantry_integration::{Daemon, Lab, Outcome, Peer};
use serde_json::{Value, json};

use crate::bad_requests::{Request, Wire, ask, methods, talk};

/// What an object must be after the restart.
#[derive(Clone, Copy, Debug, PartialEq)]
enum After {
    /// As if the call had never been made.
    Before,
    /// As if it had been answered.
    Done,
    /// Either.
    Whole,
}

/// A record is durable, or is not there.
const RECORD: &[(&str, After)] =
    &[("metadata::before-apply", After::Before), ("metadata::before-acknowledge", After::Done)];

/// A method that changes something, and how to see whether it did.
struct Case {
    before: Vec<Request>,
    call: Request,
    points: Vec<(String, After)>,
    /// Answered with success before the call was made, and after it.
    probe: Request,
    /// What must be in the probe's answer, besides, for the object to count as shown.
    text: &'static str,
    shown: [bool; 2],
    /// Codes that a retry may be answered with.
    retry: &'static [&'static str],
    clean: Vec<Request>,
}

impl Case {
    /// A call that makes what `probe` finds.
    fn makes(call: Request, probe: Request) -> Case {
        Case {
            before: Vec::new(),
            call,
            points: RECORD.iter().map(|(point, after)| ((*point).to_owned(), *after)).collect(),
            probe,
            text: "",
            shown: [false, true],
            retry: &["OK", "AlreadyExists"],
            clean: Vec::new(),
        }
    }

    /// A call that takes away what `probe` finds.
    fn removes(call: Request, probe: Request) -> Case {
        Case { shown: [true, false], retry: &["OK", "NotFound"], ..Case::makes(call, probe) }
    }

    /// A call that changes an object that is there: `text` is in the probe's answer afterwards only.
    fn updates(call: Request, probe: Request, text: &'static str) -> Case {
        Case { retry: &["OK"], text, ..Case::makes(call, probe) }
    }

    /// A call after which `probe` finds what it did before.
    fn changes(call: Request, probe: Request) -> Case {
        Case { shown: [true, true], retry: &["OK"], ..Case::makes(call, probe) }
    }

    fn text(self, text: &'static str) -> Case {
        Case { text, ..self }
    }

    fn before(self, before: Vec<Request>) -> Case {
        Case { before, ..self }
    }

    fn clean(self, clean: Vec<Request>) -> Case {
        Case { clean, ..self }
    }

    fn at(self, points: &[(&str, After)]) -> Case {
        Case { points: points.iter().map(|(point, after)| ((*point).to_owned(), *after)).collect(), ..self }
    }

    fn retry(self, retry: &'static [&'static str]) -> Case {
        Case { retry, ..self }
    }
}

struct World {
    daemon: Daemon,
    wire: Wire,
    lab: Lab,
}

impl World {
    fn new() -> World {
        let lab = Lab::new();
        let daemon = Daemon::start_with(&lab, Peer::Gantry, "", &[("FAILPOINTS", "")]);
        let wire = Wire::new(&lab, &daemon);
        World { daemon, wire, lab }
    }

    /// Kills the daemon at each of a case's points.
    fn run(&mut self, case: &Case) {
        for (point, after) in &case.points {
            self.run_at(case, point, *after);
        }
    }

    fn run_at(&mut self, case: &Case, point: &str, after: After) {
        let what = format!("{} killed at {point}", case.call.method());
        for request in &case.before {
            let (code, text) = self.wire.send(request);
            assert_eq!(code, "OK", "{what}: preparing by {}: {text}", request.method());
        }
        let (code, text) = self.wire.send_with(&case.call, Some(&format!("gantry-failpoint: {point}")));
        assert!(self.daemon.has_ended(), "{what}: it was answered with {code} and lives: {text}");
        self.daemon.crash();
        self.daemon.launch();
        let shown = self.shows(case);
        let expected = match after {
            After::Before => Some(case.shown[0]),
            After::Done => Some(case.shown[1]),
            After::Whole => None,
        };
        assert!(expected.is_none_or(|expected| expected == shown), "{what}: found afterwards: {shown}");
        let (code, text) = self.wire.send(&case.call);
        assert!(case.retry.contains(&code.as_str()), "{what}: tried again: {code} {text}");
        assert_eq!(self.shows(case), case.shown[1], "{what}: after the second try");
        for request in &case.clean {
            let (code, text) = self.wire.send(request);
            assert!(["OK", "NotFound"].contains(&code.as_str()), "{what}: cleaning by {}: {text}", request.method());
        }
        self.census(&what);
    }

    fn shows(&self, case: &Case) -> bool {
        let (code, text) = self.wire.send(&case.probe);
        code == "OK" && text.contains(case.text)
    }

    /// Nothing of containers is left, no byte without an owner, no operation, no record.
    fn census(&self, what: &str) {
        self.daemon.assert_nothing_leaked();
        let start = Instant::now();
        loop {
            self.daemon.gctr(&["gc"]).ok();
            let unowned = self.daemon.gctr(&["--json", "du", "--unowned"]);
            let ops = self.daemon.gctr(&["--json", "ops"]);
            if unowned.ok().is_empty() && ops.ok().is_empty() {
                return;
            }
            assert!(start.elapsed() < Duration::from_secs(5), "{what}: left behind:\n{unowned}\n{ops}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn finish(self) {
        let log = std::fs::read_to_string(self.daemon.log()).unwrap_or_default();
        assert!(!log.contains("panicked"), "the daemon panicked:\n{log}");
        self.daemon.stop_clean();
    }
}

fn snapshot(key: &str) -> Value {
    json!({"snapshotter": "overlayfs", "key": key, "labels": {"containerd.io/gc.root": "x"}})
}

#[test]
fn records_are_whole_or_not_there_wherever_the_daemon_is_killed() {
    let mut world = World::new();
    let image =
        |name: &str| json!({"image": {"name": name, "target": {"mediaType": "a/b", "digest": HELLO, "size": "6"}}});
    let get_image = || ask("", "images.v1.Images/Get", json!({"name": "i"}));
    let make_image = || ask("", "images.v1.Images/Create", image("i"));
    let drop_image = || ask("", "images.v1.Images/Delete", json!({"name": "i", "sync": true}));
    let container = json!({"container": {"id": "c", "runtime": {"name": "r.r.r"}, "spec": {"@type": "type.googleapis.com/google.protobuf.Duration", "value": "1s"}}});
    let get_container = || ask("", "containers.v1.Containers/Get", json!({"id": "c"}));
    let make_container = || ask("", "containers.v1.Containers/Create", container.clone());
    let drop_container = || ask("", "containers.v1.Containers/Delete", json!({"id": "c"}));
    let lease = || ask("", "leases.v1.Leases/Create", json!({"id": "l"}));
    let leased = || ask("", "leases.v1.Leases/ListResources", json!({"id": "l"}));
    let drop_lease = || ask("", "leases.v1.Leases/Delete", json!({"id": "l", "sync": true}));
    let resource = json!({"id": "l", "resource": {"id": HELLO, "type": "content"}});
    let namespace = || ask("", "namespaces.v1.Namespaces/Create", json!({"namespace": {"name": "nnn"}}));
    // What is not there is shown as empty by Get.
    let get_namespace = || ask("", "namespaces.v1.Namespaces/List", json!({}));
    let drop_namespace = || ask("", "namespaces.v1.Namespaces/Delete", json!({"name": "nnn"}));
    let sandbox = json!({"sandbox": {"sandboxId": "s", "runtime": {"name": "r.r.r"}, "sandboxer": "shim"}});
    let get_sandbox = || ask("", "sandbox.v1.Store/Get", json!({"sandboxId": "s"}));
    let make_sandbox = || ask("", "sandbox.v1.Store/Create", sandbox.clone());
    let drop_sandbox = || ask("", "sandbox.v1.Store/Delete", json!({"sandboxId": "s"}));
    let labelled = |key: &str, value: Value| json!({key: value, "updateMask": {"paths": ["labels.a"]}});
    let mut relabelled = image("i")["image"].take();
    relabelled["labels"] = json!({"a": "b"});
    let cases = [
        Case::makes(make_image(), get_image()).clean(vec![drop_image()]),
        Case::removes(drop_image(), get_image()).before(vec![make_image()]),
        Case::updates(ask("", "images.v1.Images/Update", labelled("image", relabelled)), get_image(), LABEL)
            .before(vec![make_image()])
            .clean(vec![drop_image()]),
        Case::makes(make_container(), get_container()).clean(vec![drop_container()]),
        Case::removes(drop_container(), get_container()).before(vec![make_container()]),
        Case::updates(
            ask("", "containers.v1.Containers/Update", labelled("container", json!({"id": "c", "labels": {"a": "b"}}))),
            get_container(),
            LABEL,
        )
        .before(vec![make_container()])
        .clean(vec![drop_container()]),
        Case::makes(lease(), leased()).clean(vec![drop_lease()]),
        Case::removes(drop_lease(), leased()).before(vec![lease()]),
        Case::updates(ask("", "leases.v1.Leases/AddResource", resource.clone()), leased(), HELLO)
            .before(vec![lease()])
            .clean(vec![drop_lease()]),
        Case::removes(ask("", "leases.v1.Leases/DeleteResource", resource.clone()), leased())
            .text(HELLO)
            .before(vec![lease(), ask("", "leases.v1.Leases/AddResource", resource)])
            .clean(vec![drop_lease()]),
        Case::makes(namespace(), get_namespace()).text("nnn").clean(vec![drop_namespace()]),
        Case::removes(drop_namespace(), get_namespace()).text("nnn").before(vec![namespace()]),
        Case::updates(
            ask(
                "",
                "namespaces.v1.Namespaces/Update",
                labelled("namespace", json!({"name": "nnn", "labels": {"a": "b"}})),
            ),
            get_namespace(),
            LABEL,
        )
        .before(vec![namespace()])
        .clean(vec![drop_namespace()]),
        Case::makes(make_sandbox(), get_sandbox()).clean(vec![drop_sandbox()]),
        Case::removes(drop_sandbox(), get_sandbox()).before(vec![make_sandbox()]),
        Case::updates(
            ask(
                "",
                "sandbox.v1.Store/Update",
                json!({"sandbox": {"sandboxId": "s", "labels": {"a": "b"}}, "fields": ["labels"]}),
            ),
            get_sandbox(),
            LABEL,
        )
        .before(vec![make_sandbox()])
        .clean(vec![drop_sandbox()]),
    ];
    // What the first record of a namespace needs besides.
    world.wire.ok("containers.v1.Containers/Create", container.clone());
    world.wire.ok("containers.v1.Containers/Delete", json!({"id": "c"}));
    cases.iter().for_each(|case| world.run(case));
    world.finish();
}

/// A label as grpcurl shows it.
const LABEL: &str = "\"a\": \"b\"";
/// `hello\n` and its digest.
const DATA: &str = "aGVsbG8K";
const HELLO: &str = "sha256:5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";

#[test]
fn blobs_are_whole_or_not_there_wherever_the_daemon_is_killed() {
    let mut world = World::new();
    let write = "content.v1.Content/Write";
    let commit = || {
        let labels = json!({"containerd.io/gc.root": "x"});
        let all =
            json!({"action": "COMMIT", "ref": "r", "total": "6", "data": DATA, "expected": HELLO, "labels": labels});
        ask("", write, all)
    };
    let begun = || talk("", write, &[json!({"action": "WRITE", "ref": "r", "total": "6", "data": DATA})]);
    let info = || ask("", "content.v1.Content/Info", json!({"digest": HELLO}));
    let status = || ask("", "content.v1.Content/Status", json!({"ref": "r"}));
    let delete = || ask("", "content.v1.Content/Delete", json!({"digest": HELLO}));
    let abort = || ask("", "content.v1.Content/Abort", json!({"ref": "r"}));
    let update = json!({"info": {"digest": HELLO, "labels": {"containerd.io/gc.root": "y"}}, "updateMask": {"paths": ["labels"]}});
    let cases = [
        Case::makes(commit(), info()).clean(vec![delete()]).at(&[
            // The first record is the ingest's.
            ("metadata::before-apply", After::Before),
            ("metadata::before-acknowledge", After::Before),
            ("content::before-sync", After::Before),
            ("content::before-rename", After::Before),
            ("content::before-directory-sync", After::Before),
            ("content::before-cleanup", After::Before),
            ("metadata::before-apply*2", After::Before),
            ("metadata::before-acknowledge*2", After::Done),
        ]),
        Case::makes(commit(), info()).before(vec![begun()]).clean(vec![delete()]).at(&[
            ("content::before-rename", After::Before),
            ("metadata::before-apply*2", After::Before),
            ("metadata::before-acknowledge*2", After::Done),
        ]),
        // An ingest without its file is none yet.
        Case::makes(begun(), status())
            .clean(vec![abort()])
            .at(&[("metadata::before-apply", After::Before), ("metadata::before-acknowledge", After::Before)]),
        Case::removes(abort(), status()).before(vec![begun()]),
        Case::removes(delete(), info()).before(vec![commit()]),
        Case::updates(ask("", "content.v1.Content/Update", update), info(), "\"y\"")
            .before(vec![commit()])
            .clean(vec![delete()]),
    ];
    for case in &cases {
        for (point, after) in &case.points {
            // A store that was just opened reserves numbers first: that is no part of the call.
            reserve(&world);
            world.run_at(case, point, *after);
        }
    }
    world.finish();
}

/// Lets the daemon reserve its block of numbers.
fn reserve(world: &World) {
    let write = "content.v1.Content/Write";
    world.wire.ok(write, json!({"action": "WRITE", "ref": "first", "total": "6", "data": DATA}));
    world.wire.ok("content.v1.Content/Abort", json!({"ref": "first"}));
    world.daemon.gctr(&["gc"]).ok();
}

#[test]
fn snapshots_are_whole_or_not_there_wherever_the_daemon_is_killed() {
    let mut world = World::new();
    let stat = |key: &str| ask("", "snapshots.v1.Snapshots/Stat", json!({"snapshotter": "overlayfs", "key": key}));
    let remove = |key: &str| ask("", "snapshots.v1.Snapshots/Remove", json!({"snapshotter": "overlayfs", "key": key}));
    let prepare = |key: &str| ask("", "snapshots.v1.Snapshots/Prepare", snapshot(key));
    let view = ask("", "snapshots.v1.Snapshots/View", snapshot("v"));
    let commit = || {
        let labels = json!({"containerd.io/gc.root": "x"});
        ask(
            "",
            "snapshots.v1.Snapshots/Commit",
            json!({"snapshotter": "overlayfs", "name": "n", "key": "k", "labels": labels}),
        )
    };
    let update = json!({"snapshotter": "overlayfs", "info": {"name": "k", "labels": {"containerd.io/gc.root": "y"}}, "updateMask": {"paths": ["labels"]}});
    let made = [
        ("snapshots::before-record", After::Before),
        ("snapshots::after-record", After::Before),
        ("metadata::before-apply", After::Before),
        ("metadata::before-acknowledge", After::Done),
    ];
    let cases = [
        Case::makes(prepare("k"), stat("k")).clean(vec![remove("k")]).at(&made),
        Case::makes(view, stat("v")).clean(vec![remove("v")]).at(&made),
        Case::makes(commit(), stat("n"))
            .before(vec![prepare("k")])
            .retry(&["OK", "AlreadyExists"])
            .clean(vec![remove("n"), remove("k")])
            .at(&[("snapshots::before-record", After::Before), ("metadata::before-acknowledge", After::Done)]),
        Case::removes(remove("k"), stat("k")).before(vec![prepare("k")]).at(&[
            ("metadata::before-apply", After::Before),
            ("metadata::before-acknowledge", After::Done),
            ("snapshots::before-record", After::Done),
            ("snapshots::after-record", After::Done),
            ("snapshots::before-trash", After::Done),
        ]),
        Case::updates(ask("", "snapshots.v1.Snapshots/Update", update), stat("k"), "\"y\"")
            .before(vec![prepare("k")])
            .clean(vec![remove("k")]),
        Case::changes(ask("", "snapshots.v1.Snapshots/Cleanup", json!({"snapshotter": "overlayfs"})), stat("k"))
            .before(vec![prepare("k")])
            .clean(vec![remove("k")])
            .at(&[("daemon::before-call", After::Before), ("daemon::before-answer", After::Done)]),
    ];
    for case in &cases {
        for (point, after) in &case.points {
            reserve(&world);
            world.run_at(case, point, *after);
        }
    }
    // The commit was done and its record was not: neither of the two is left, and the name is free.
    reserve(&world);
    world.wire.send(&prepare("k"));
    world.wire.send_with(&commit(), Some("gantry-failpoint: snapshots::after-record"));
    assert!(world.daemon.has_ended());
    world.daemon.crash();
    world.daemon.launch();
    assert_eq!((world.wire.send(&stat("n")).0, world.wire.send(&stat("k")).0), ("NotFound".into(), "NotFound".into()));
    for request in [prepare("k"), commit(), remove("n")] {
        assert_eq!(world.wire.send(&request).0, "OK", "{}", request.method());
    }
    world.census("a commit without its record");
    world.finish();
}

/// A laboratory with an image and a container of it whose process sleeps.
fn with_container() -> (World, DockerRegistry, String, String) {
    let world = World::new();
    let registry = DockerRegistry::start(&world.lab);
    let image = Image::new(&world.lab, "busybox").layer(&busybox_root(&world.lab)).push(&registry.host(), "busybox");
    world.daemon.ctr(&["images", "pull", "--plain-http", &image]).ok();
    let id = world.lab.id("k");
    world.daemon.ctr(&["containers", "create", &image, &id, "/bin/sleep", "1000"]).ok();
    (world, registry, image, id)
}

#[test]
fn tasks_can_be_gone_on_with_or_cleared_wherever_the_daemon_is_killed() {
    let (mut world, _registry, _image, id) = with_container();
    let of = |method: &'static str| ask("", method, json!({"containerId": id}));
    let (create, start, get) = ("tasks.v1.Tasks/Create", "tasks.v1.Tasks/Start", "tasks.v1.Tasks/Get");
    let kill = || ask("", "tasks.v1.Tasks/Kill", json!({"containerId": id, "signal": 9, "all": true}));
    let (wait, delete) = ("tasks.v1.Tasks/Wait", "tasks.v1.Tasks/Delete");
    let away = || vec![kill(), of(wait), of(delete)];
    let running = || vec![of(create), of(start)];
    let ended = || vec![of(create), of(start), kill(), of(wait)];
    let call = |method: &'static str, more: Value| {
        let mut message = json!({"containerId": id});
        message.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
        ask("", method, message)
    };
    let around = [("daemon::before-call", After::Before), ("daemon::before-answer", After::Done)];
    let any = &["OK", "AlreadyExists", "FailedPrecondition", "NotFound", "InvalidArgument", "Unimplemented", "Unknown"];
    let cases = [
        Case::makes(of(create), of(get)).clean(vec![of(delete)]).at(&[
            ("task::before-shim", After::Before),
            ("task::after-shim", After::Before),
            ("task::after-create", After::Whole),
            ("daemon::before-answer", After::Whole),
        ]),
        Case::changes(of(start), of(get))
            .before(vec![of(create)])
            .clean(away())
            .at(&[("daemon::before-call", After::Before), ("task::after-start", After::Done), around[1]])
            .retry(any),
        Case::removes(of(delete), of(get)).before(ended()).at(&[
            ("daemon::before-call", After::Before),
            ("task::after-delete", After::Whole),
            ("task::after-bundle", After::Done),
            ("daemon::before-answer", After::Done),
        ]),
        Case::changes(call("tasks.v1.Tasks/Pause", json!({})), of(get))
            .before(running())
            .clean([vec![of("tasks.v1.Tasks/Resume")], away()].concat_all())
            .at(&around)
            .retry(any),
        Case::changes(call("tasks.v1.Tasks/Resume", json!({})), of(get))
            .before(vec![of(create), of(start), of("tasks.v1.Tasks/Pause")])
            .clean(away())
            .at(&around)
            .retry(any),
        Case::changes(kill(), of(get))
            .before(running())
            .clean(vec![of(wait), of(delete)])
            .at(&around)
            .retry(&["OK", "NotFound"]),
        Case::changes(call("tasks.v1.Tasks/Update", json!({})), of(get))
            .before(running())
            .clean(away())
            .at(&around)
            .retry(any),
        Case::changes(call("tasks.v1.Tasks/ResizePty", json!({"width": 80, "height": 25})), of(get))
            .before(running())
            .clean(away())
            .at(&around)
            .retry(any),
        Case::changes(call("tasks.v1.Tasks/CloseIO", json!({"stdin": true})), of(get))
            .before(running())
            .clean(away())
            .at(&around)
            .retry(any),
        Case::changes(call("tasks.v1.Tasks/Checkpoint", json!({})), of(get))
            .before(running())
            .clean(away())
            .at(&around)
            .retry(any),
    ];
    for case in &cases {
        world.run(case);
    }
    world.daemon.ctr(&["containers", "rm", &id]).ok();
    world.census("tasks");
    world.finish();
}

/// Joins lists of requests.
trait ConcatAll {
    fn concat_all(self) -> Vec<Request>;
}

impl<const N: usize> ConcatAll for [Vec<Request>; N] {
    fn concat_all(self) -> Vec<Request> {
        self.into_iter().flatten().collect()
    }
}

#[test]
fn additional_processes_can_be_gone_on_with_or_cleared_wherever_the_daemon_is_killed() {
    let (mut world, _registry, _image, id) = with_container();
    let ids = json!({"containerId": id});
    // The client's calls, one after the other; among them "tasks.v1.Tasks/Exec", "tasks.v1.Tasks/Start" of the process and
    // "tasks.v1.Tasks/DeleteProcess".
    for call in 2..8 {
        for method in ["tasks.v1.Tasks/Create", "tasks.v1.Tasks/Start"] {
            assert_eq!(world.wire.send(&ask("", method, ids.clone())).0, "OK", "{method}");
        }
        let point = format!("daemon::before-answer*{call}");
        world.arm(&point);
        let out = world.client(&["tasks", "exec", "--exec-id", "e", &id, "/bin/true"]);
        assert!(world.daemon.has_ended(), "{point}: {out}");
        world.revive();
        let after = world.daemon.ctr(&["tasks", "exec", "--exec-id", "again", &id, "/bin/echo", "fine"]);
        assert_eq!(after.ok(), "fine\n", "{point}");
        world.daemon.ctr(&["tasks", "rm", "--force", &id]).ok();
        world.census(&point);
    }
    world.daemon.ctr(&["containers", "rm", &id]).ok();
    world.finish();
}

impl World {
    /// Runs the real `ctr`, whose daemon dies meanwhile.
    fn client(&self, args: &[&str]) -> Outcome {
        let mut command = self.daemon.command(peer_binary("ctr"));
        command.arg("--address").arg(self.daemon.address()).args(args);
        Outcome::of(command, Duration::from_secs(5))
    }

    /// Lets the daemon die when a later call passes `NAME*N` the N-th time.
    fn arm(&self, point: &str) {
        let (name, count) = point.split_once('*').unwrap_or((point, "1"));
        let count: u32 = count.parse().expect("a number");
        // The call that says so passes those of every call.
        let count = count + u32::from(name.starts_with("daemon::"));
        let version = ask("", "version.v1.Version/Version", json!({}));
        self.wire.send_with(&version, Some(&format!("gantry-failpoint: {name}*{count}")));
    }

    /// What worked for a client when the daemon died has kept a lease, until that expires.
    fn drop_leases(&self) {
        self.daemon.ctr(&["leases", "ls", "-q"]).ok().lines().for_each(|lease| {
            self.daemon.ctr(&["leases", "rm", "--sync", lease]).ok();
        });
    }

    fn revive(&mut self) {
        self.daemon.crash();
        self.daemon.launch();
    }
}

#[test]
fn transfers_begin_anew_wherever_the_daemon_is_killed() {
    let mut world = World::new();
    let registry = DockerRegistry::start(&world.lab);
    let image = Image::new(&world.lab, "busybox").layer(&busybox_root(&world.lab)).push(&registry.host(), "busybox");
    let archive = world.lab.path("image.tar").to_string_lossy().into_owned();
    let copy = image.replace("/busybox", "/copy");
    let pull = ["images", "pull", "--plain-http", &image];
    let push = ["images", "push", "--plain-http", &copy, &image];
    let export = ["images", "export", &archive, &image];
    let import = ["images", "import", &archive];
    let tag = ["images", "tag", "--force", &image, "other:1"];
    world.daemon.ctr(&pull).ok();
    // ctr leaves when the answer comes, with the last bytes of the stream still on their way to the file.
    let whole = (0..5).any(|_| {
        world.daemon.ctr(&export).ok();
        std::process::Command::new("tar").args(["tf", &archive]).output().is_ok_and(|tar| tar.status.success())
    });
    assert!(whole, "{archive} has no end");
    let records = ["metadata::before-apply*3", "metadata::before-acknowledge*5", "metadata::before-acknowledge*9"];
    let bytes =
        ["content::before-rename", "content::before-cleanup*2", "snapshots::after-record", "snapshots::after-record*2"];
    let whole = [&records[..], &bytes[..]].concat();
    let kinds: [(&[&str], &[&str], bool); 5] = [
        (&pull, &whole, true),
        (&import, &whole, true),
        (&tag, &["metadata::before-apply", "metadata::before-acknowledge"], false),
        (&export, &["daemon::before-call*2"], false),
        (&push, &["daemon::before-call*2"], false),
    ];
    for (args, points, empty) in kinds {
        for point in points {
            world.drop_leases();
            if empty {
                for name in [&image, "other:1"] {
                    world.daemon.ctr(&["images", "rm", "--sync", name]);
                }
            }
            world.arm(point);
            let out = world.client(args);
            assert!(world.daemon.has_ended(), "{point} is not passed by {args:?}: {out}");
            world.revive();
            world.daemon.ctr(args).ok();
            let check = world.daemon.ctr(&["images", "check"]);
            assert!(!check.ok().contains("incomplete"), "{args:?} killed at {point}: {check}");
            world.drop_leases();
            world.census(&format!("{args:?} killed at {point}"));
        }
    }
    world.finish();
}

#[test]
fn what_is_killed_and_done_again_leaves_no_ingest_though_the_lease_of_the_first_time_lives_on() {
    let mut world = World::new();
    let registry = DockerRegistry::start(&world.lab);
    let image = Image::new(&world.lab, "busybox").layer(&busybox_root(&world.lab)).push(&registry.host(), "busybox");
    let archive = world.lab.path("image.tar").to_string_lossy().into_owned();
    let pull = ["images", "pull", "--plain-http", &image];
    world.daemon.ctr(&pull).ok();
    world.daemon.ctr(&["images", "export", &archive, &image]).ok();
    for args in [&pull[..], &["images", "import", &archive], &["images", "import", "--local", &archive]] {
        for point in ["content::before-rename", "content::before-rename*2", "content::before-rename*3"] {
            world.drop_leases();
            world.daemon.ctr(&["images", "rm", "--sync", &image]).ok();
            world.arm(point);
            let out = world.client(args);
            assert!(world.daemon.has_ended(), "{point} is not passed by {args:?}: {out}");
            world.revive();
            world.daemon.ctr(args).ok();
            let left = fs::read_dir(world.daemon.root().join("content/ingest")).expect("the directory").count();
            let active = world.daemon.ctr(&["content", "active"]);
            assert_eq!(left, 0, "{args:?} killed at {point}: {active}");
        }
    }
    world.drop_leases();
    world.finish();
}

#[test]
fn layers_are_applied_and_made_anew_wherever_the_daemon_is_killed() {
    let (mut world, _registry, image, id) = with_container();
    world.daemon.ctr(&["containers", "rm", &id]).ok();
    let commit = ["snapshots", "diff", "--keep", "changes"];
    for point in
        ["daemon::before-call", "content::before-rename", "metadata::before-acknowledge*2", "daemon::before-answer*3"]
    {
        world.daemon.ctr(&["snapshots", "prepare", "changes", &top(&world)]).ok();
        world.arm(point);
        // Here the daemon dies in "diff.v1.Diff/Diff" or right before it.
        world.client(&commit);
        world.revive();
        world.daemon.ctr(&commit).ok();
        world.daemon.ctr(&["snapshots", "rm", "changes"]).ok();
        world.drop_leases();
        world.daemon.ctr(&["content", "ls", "-q"]).ok();
        world.census(point);
    }
    // Applying, "diff.v1.Diff/Apply", is what a local unpacking does.
    for point in [
        "snapshots::before-record",
        "snapshots::after-record*2",
        "metadata::before-acknowledge*3",
        "daemon::before-answer*6",
    ] {
        world.daemon.ctr(&["images", "rm", "--sync", &image]).ok();
        let pull = ["images", "pull", "--local", "--plain-http", &image];
        world.arm(point);
        let out = world.client(&pull);
        assert!(world.daemon.has_ended(), "{point} is not passed: {out}");
        world.revive();
        world.daemon.ctr(&pull).ok();
        // The client that was killed with its daemon cannot give its lease back: it expires.
        world.drop_leases();
        world.census(point);
    }
    world.finish();
}

/// Name of the topmost committed snapshot.
fn top(world: &World) -> String {
    let list = world.daemon.ctr(&["snapshots", "ls"]);
    let committed = list.ok().lines().find(|line| line.contains("Committed")).map(str::to_owned);
    committed.and_then(|line| line.split_whitespace().next().map(str::to_owned)).expect("an unpacked image")
}

#[test]
fn events_and_mounts_are_asked_for_again_after_a_kill() {
    let mut world = World::new();
    let event = json!({"@type": "type.googleapis.com/google.protobuf.Duration", "value": "1s"});
    let publish = ask("", "events.v1.Events/Publish", json!({"topic": "/a/b", "event": event}));
    let envelope = json!({"envelope": {"namespace": "default", "topic": "/a/b", "timestamp": "2026-01-01T00:00:00Z", "event": event}});
    let forward = ask("", "events.v1.Events/Forward", envelope);
    let version = || ask("", "version.v1.Version/Version", json!({}));
    let around = [("daemon::before-call", After::Before), ("daemon::before-answer", After::Done)];
    for call in [publish, forward] {
        world.run(&Case::changes(call, version()).at(&around));
    }
    let source = world.lab.path("source");
    std::fs::create_dir_all(&source).expect("make a directory");
    let info = || ask("", "mounts.v1.Mounts/Info", json!({"name": "m"}));
    let bind = json!({"type": "bind", "source": source, "options": ["rbind", "rw"]});
    let activate = || ask("", "mounts.v1.Mounts/Activate", json!({"name": "m", "mounts": [bind], "temporary": true}));
    let deactivate = || ask("", "mounts.v1.Mounts/Deactivate", json!({"name": "m"}));
    let label = json!({"info": {"name": "m", "labels": {"a": "b"}}, "updateMask": {"paths": ["labels"]}});
    // No collection may end them between two calls.
    world.wire.ok("leases.v1.Leases/Create", json!({"id": "keeper"}));
    world.wire.lease = Some("keeper");
    // Temporary mounts are the daemon's own: with it they go, and what it knew of them.
    let made = [
        ("metadata::before-apply", After::Before),
        ("metadata::before-acknowledge", After::Before),
        ("metadata::before-apply*2", After::Before),
        ("metadata::before-acknowledge*2", After::Whole),
    ];
    let gone = [("metadata::before-apply", After::Whole), ("metadata::before-acknowledge", After::Done)];
    let cases = [
        Case::makes(activate(), info()).clean(vec![deactivate()]).at(&made),
        Case::removes(deactivate(), info()).before(vec![activate()]).at(&gone),
    ];
    for case in &cases {
        for (point, after) in &case.points {
            reserve(&world);
            world.run_at(case, point, *after);
        }
    }
    world.wire.lease = None;
    world.wire.ok("leases.v1.Leases/Delete", json!({"id": "keeper", "sync": true}));
    // What containerd does not do either.
    let update = Case::changes(ask("", "mounts.v1.Mounts/Update", label), version());
    world.run(&update.at(&around).retry(&["Unimplemented"]));
    // What a sandbox's controller is asked for of a sandbox that is not there.
    for method in [
        "sandbox.v1.Controller/Create",
        "sandbox.v1.Controller/Start",
        "sandbox.v1.Controller/Stop",
        "sandbox.v1.Controller/Shutdown",
        "sandbox.v1.Controller/Update",
    ] {
        let mut body = json!({"sandboxId": "none", "sandboxer": "shim"});
        if method.ends_with("Update") {
            body["sandbox"] = json!({"sandboxId": "none"});
        }
        let call = ask("", method, body);
        let refused = &["OK", "NotFound", "Unimplemented", "InvalidArgument", "FailedPrecondition"];
        world.run(&Case::changes(call, version()).at(&around).retry(refused));
    }
    world.finish();
}

/// Methods that change nothing that a kill could break, or whose change is another call's.
const HARMLESS: &[&str] = &[
    "containers.v1.Containers/Get",
    "containers.v1.Containers/List",
    "containers.v1.Containers/ListStream",
    "content.v1.Content/Info",
    "content.v1.Content/List",
    "content.v1.Content/ListStatuses",
    "content.v1.Content/Read",
    "content.v1.Content/Status",
    "events.v1.Events/Subscribe",
    "images.v1.Images/Get",
    "images.v1.Images/List",
    "introspection.v1.Introspection/PluginInfo",
    "introspection.v1.Introspection/Plugins",
    "introspection.v1.Introspection/Server",
    "leases.v1.Leases/List",
    "leases.v1.Leases/ListResources",
    "mounts.v1.Mounts/Info",
    "mounts.v1.Mounts/List",
    "namespaces.v1.Namespaces/Get",
    "namespaces.v1.Namespaces/List",
    "sandbox.v1.Controller/Metrics",
    "sandbox.v1.Controller/Platform",
    "sandbox.v1.Controller/Status",
    "sandbox.v1.Controller/Wait",
    "sandbox.v1.Store/Get",
    "sandbox.v1.Store/List",
    "snapshots.v1.Snapshots/List",
    "snapshots.v1.Snapshots/Mounts",
    "snapshots.v1.Snapshots/Stat",
    "snapshots.v1.Snapshots/Usage",
    // What flows in a stream is the other call's.
    "streaming.v1.Streaming/Stream",
    "tasks.v1.Tasks/Get",
    "tasks.v1.Tasks/List",
    "tasks.v1.Tasks/ListPids",
    "tasks.v1.Tasks/Metrics",
    "tasks.v1.Tasks/Wait",
    "version.v1.Version/Version",
];

/// Called by name of a client's command here.
const BY_CLIENTS: &[&str] = &["transfer.v1.Transfer/Transfer", "tasks.v1.Tasks/DeleteProcess"];

#[test]
fn every_method_that_changes_something_is_killed_somewhere() {
    let here = include_str!("killed.rs");
    let named = |method: &String| here.contains(&format!("\"{method}\""));
    let missing: Vec<String> = methods().into_iter().filter(|method| !named(method)).collect();
    assert!(missing.is_empty(), "no kill in {missing:?}");
    let all: BTreeSet<String> = methods().into_iter().collect();
    let stale: Vec<_> = HARMLESS.iter().chain(BY_CLIENTS).filter(|method| !all.contains(**method)).collect();
    assert!(stale.is_empty(), "no such methods: {stale:?}");
}
