//! Requests that make no sense, over the wire: the daemon answers each with the code that containerd answers with, side
//! by side; none makes it panic, stay busy or leave something behind.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use gantry_integration::images::busybox_root;
use gantry_integration::lab::peer_binary;
use gantry_integration::{Daemon, Lab, Peer};
use prost::Message as _;
use serde_json::{Value, json};

/// A request: what it is, `Service/Method` below `containerd.services`, and its messages.
pub(crate) struct Request {
    what: &'static str,
    method: &'static str,
    namespace: Option<String>,
    messages: Vec<Value>,
}

/// Where our code differs on purpose: request, containerd's code, ours, and why.
const DIFFERENCES: &[(&str, &str, &str, &str)] = &[
    ("a namespace to get", "OK", "InvalidArgument", "what no namespace can be called is refused, not shown as empty"),
    ("a namespace to delete", "NotFound", "InvalidArgument", "the same"),
    ("a stream of snapshots", "Unknown", "FailedPrecondition", "the code of all other calls without a namespace"),
    ("a stream of snapshots of no namespace", "Unknown", "InvalidArgument", "the code of all other calls"),
    ("an empty label", "OK", "InvalidArgument", "a label without a name says nothing"),
    ("removal after the empty label", "OK", "NotFound", "it was not made"),
    (
        "a broken pattern",
        "OK",
        "InvalidArgument",
        "a pattern that can be read by nobody is told, not taken for no match",
    ),
    ("events by a broken pattern", "DeadlineExceeded", "InvalidArgument", "the same"),
    ("a transfer from nowhere", "Unknown", "InvalidArgument", "the caller left it out"),
    ("a digest to expect", "OK", "InvalidArgument", "what is no digest can never be reached"),
    ("a layer to apply", "NotFound", "InvalidArgument", "what is no digest cannot be looked for"),
    ("an unknown action", "OK", "InvalidArgument", "what is not known is not done"),
    ("the same name for another size", "OK", "FailedPrecondition", "an ingest has one size"),
    ("a snapshot of no name", "Unknown", "InvalidArgument", "the caller left it out"),
    ("a commit without a name", "Unknown", "InvalidArgument", "the caller left it out"),
    ("a snapshot of a giant name", "OK", "InvalidArgument", "names are bounded"),
    ("removal of the giant", "OK", "NotFound", "it was not made"),
    ("a good mask", "InvalidArgument", "OK", "a container without a spec may be changed as it may be made"),
    ("an exec of nonsense", "Unknown", "InvalidArgument", "the caller gave it"),
    ("resources of nonsense", "Unknown", "InvalidArgument", "the caller gave it"),
    ("no such signal", "Unknown", "InvalidArgument", "the caller gave it"),
    ("a start of no sandbox", "Unknown", "NotFound", "the code of all other calls"),
    ("the platform of no sandbox", "Unimplemented", "NotFound", "containerd does not pass the call on, we do"),
    ("a sandbox without a record", "Unknown", "InvalidArgument", "the caller left its runtime out"),
    ("the task as an exec to delete", "Unknown", "FailedPrecondition", "the state is in the way"),
    ("a start of no sandbox", "Unknown", "NotFound", "it is not there"),
    ("the platform of no sandbox", "Unimplemented", "NotFound", "ours answers for those that are there"),
    ("a sandbox without a record", "Unknown", "InvalidArgument", "the caller named no runtime"),
    ("a stream of something else", "Unknown", "InvalidArgument", "the caller gave it"),
    ("a stream of nothing", "Unknown", "InvalidArgument", "the caller gave nothing"),
    (
        "a deletion while it runs",
        "Unknown",
        "FailedPrecondition",
        "the state is in the way, as the client library itself says",
    ),
];

/// Stands for the code where containerd itself does not survive the request: then ours must only be an error.
const DIES: &str = "containerd dies";

impl Request {
    /// `Service/Method` below `containerd.services`.
    pub(crate) fn method(&self) -> &'static str {
        self.method
    }
}

pub(crate) fn ask(what: &'static str, method: &'static str, message: Value) -> Request {
    Request { what, method, namespace: Some("default".into()), messages: vec![message] }
}

pub(crate) fn talk(what: &'static str, method: &'static str, messages: &[Value]) -> Request {
    Request { what, method, namespace: Some("default".into()), messages: messages.to_vec() }
}

fn from(what: &'static str, namespace: Option<&str>, method: &'static str) -> Request {
    let messages = vec![if method.contains("napshots") { json!({"snapshotter": "overlayfs"}) } else { json!({}) }];
    Request { what, method, namespace: namespace.map(str::to_owned), messages }
}

/// The real `grpcurl` against a daemon, told of the messages by our own `.proto` files.
pub(crate) struct Wire {
    socket: PathBuf,
    descriptors: PathBuf,
    /// The lease of all calls.
    pub(crate) lease: Option<&'static str>,
}

impl Wire {
    pub(crate) fn new(lab: &Lab, daemon: &Daemon) -> Wire {
        let descriptors = lab.path("descriptors");
        let defs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto/defs");
        let mut files = Vec::new();
        proto_files(&defs, &mut files);
        let set = protox::compile(files, [&defs]).expect("proto/defs compiles");
        std::fs::write(&descriptors, set.encode_to_vec()).expect("write the descriptors");
        Wire { socket: daemon.address(), descriptors, lease: None }
    }

    fn start(&self, method: &str, namespace: Option<&str>, seconds: &str) -> Child {
        self.start_with(method, namespace, seconds, None)
    }

    pub(crate) fn start_with(
        &self,
        method: &str,
        namespace: Option<&str>,
        seconds: &str,
        header: Option<&str>,
    ) -> Child {
        let mut command = Command::new(peer_binary("grpcurl"));
        command.args([
            "-plaintext",
            "-unix",
            "-authority",
            "localhost",
            "-max-time",
            seconds,
            "-connect-timeout",
            "2",
            "-protoset",
        ]);
        command.arg(&self.descriptors).args(["-d", "@"]);
        if let Some(namespace) = namespace {
            command.args(["-rpc-header", &format!("containerd-namespace: {namespace}")]);
        }
        if let Some(lease) = self.lease {
            command.args(["-rpc-header", &format!("containerd-lease: {lease}")]);
        }
        if let Some(header) = header {
            command.args(["-rpc-header", header]);
        }
        command.arg(&self.socket).arg(format!("containerd.services.{method}"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("start grpcurl: run integration/tools/install")
    }

    /// The code of the answer, `OK` or as gRPC names it, and its text.
    pub(crate) fn send(&self, request: &Request) -> (String, String) {
        self.send_with(request, None)
    }

    /// As [`Wire::send`], with one more header.
    pub(crate) fn send_with(&self, request: &Request, header: Option<&str>) -> (String, String) {
        let mut child = self.start_with(request.method, request.namespace.as_deref(), "10", header);
        let mut stdin = child.stdin.take().expect("a pipe");
        for message in &request.messages {
            // One that was answered already does not listen any more.
            let _ = stdin.write_all(message.to_string().as_bytes());
        }
        drop(stdin);
        let output = child.wait_with_output().expect("grpcurl ends");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let code = text.lines().find_map(|line| line.trim().strip_prefix("Code: ")).map(str::to_owned);
        let code =
            code.unwrap_or_else(|| if output.status.success() { "OK".into() } else { format!("no code: {text}") });
        let text = if code == "OK" { String::from_utf8_lossy(&output.stdout).into_owned() } else { text };
        (code, text.chars().take(3000).collect())
    }

    /// Insists that a request is answered well.
    #[track_caller]
    pub(crate) fn ok(&self, method: &'static str, message: Value) {
        let (code, text) = self.send(&ask("", method, message));
        assert_eq!(code, "OK", "{method}: {text}");
    }
}

fn proto_files(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("proto/defs is readable").flatten() {
        let path = entry.path();
        match path.extension() {
            Some(extension) if extension == "proto" => files.push(path),
            _ if path.is_dir() => proto_files(&path, files),
            _ => {}
        }
    }
}

/// Sends the same to both and compares the codes.
#[track_caller]
fn same_codes(requests: &[Request], ours: &Wire, theirs: &Wire, containerd: &mut Daemon) {
    let (got, wanted) = std::thread::scope(|scope| {
        let got = scope.spawn(|| requests.iter().map(|request| ours.send(request)).collect::<Vec<_>>());
        let wanted = scope.spawn(|| {
            let mut answer = |request| {
                let answer = theirs.send(request);
                if answer.0 == "Unavailable" {
                    // It takes a moment to be gone.
                    std::thread::sleep(Duration::from_millis(300));
                }
                if std::os::unix::net::UnixStream::connect(&theirs.socket).is_ok() {
                    return answer;
                }
                containerd.crash();
                containerd.launch();
                (DIES.to_owned(), String::new())
            };
            requests.iter().map(&mut answer).collect::<Vec<_>>()
        });
        (got.join().expect("our answers"), wanted.join().expect("their answers"))
    });
    let mut wrong = Vec::new();
    for ((request, got), wanted) in requests.iter().zip(got).zip(wanted) {
        assert!(!got.0.starts_with("no code"), "{} was not sent: {}", request.what, got.1);
        let listed = DIFFERENCES.iter().find(|(what, ..)| *what == request.what);
        let expected = match listed {
            Some((_, theirs, ours, _)) if *theirs == wanted.0 => (*ours).to_owned(),
            _ => wanted.0.clone(),
        };
        let dies = expected == DIES && got.0 != "OK";
        if got.0 != expected && got.0 != wanted.0 && !dies {
            let Request { what, method, .. } = request;
            wrong.push(format!(
                "{what} ({method})\n  containerd: {}\n  ours:       {}",
                oneline(&wanted),
                oneline(&got)
            ));
        }
    }
    assert!(wrong.is_empty(), "{} of {} answers differ:\n{}", wrong.len(), requests.len(), wrong.join("\n"));
}

fn oneline((code, text): &(String, String)) -> String {
    let message = text.lines().find_map(|line| line.trim().strip_prefix("Message: ")).unwrap_or("");
    format!("{code} {message}")
}

struct World {
    ours: Daemon,
    theirs: Daemon,
    lab: Lab,
}

fn world() -> (World, Wire, Wire) {
    let lab = Lab::new();
    let ours = Daemon::start(&lab);
    let theirs = Daemon::start_with(&lab, Peer::Containerd, "", &[]);
    let (us, them) = (Wire::new(&lab, &ours), Wire::new(&lab, &theirs));
    (World { ours, theirs, lab }, us, them)
}

impl World {
    fn finish(self) {
        let log = std::fs::read_to_string(self.ours.log()).unwrap_or_default();
        assert!(!log.contains("panicked"), "the daemon panicked:\n{log}");
        self.ours.assert_nothing_leaked();
        self.ours.stop_clean();
        drop(self.theirs);
    }
}

const NOWHERE: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";

fn long(length: usize) -> String {
    "x".repeat(length)
}

#[test]
fn names_and_scopes_that_make_no_sense_are_answered_as_containerd_does() {
    let (mut world, us, them) = world();
    let mut requests = Vec::new();
    let list = "snapshots.v1.Snapshots/List";
    requests.push(from("a stream of snapshots", None, list));
    requests.push(from("a stream of snapshots", Some(""), list));
    requests.push(from("a stream of snapshots of no namespace", Some("../x"), list));
    for method in [
        "containers.v1.Containers/Get",
        "containers.v1.Containers/List",
        "images.v1.Images/List",
        "content.v1.Content/List",
        "leases.v1.Leases/List",
        "tasks.v1.Tasks/List",
        "tasks.v1.Tasks/Get",
        "containers.v1.Containers/ListStream",
        "mounts.v1.Mounts/List",
        "mounts.v1.Mounts/Info",
        "sandbox.v1.Store/List",
    ] {
        requests.push(from("no namespace", None, method));
        requests.push(from("an empty namespace", Some(""), method));
        requests.push(from("a namespace that climbs", Some("../x"), method));
        requests.push(from("a namespace too long", Some(&long(200)), method));
    }
    for id in
        ["", "../x", "a/b", ".", "..", "-x", "a b", "a\u{0}b", "ä", "A.b_c-d", "a..b", "a-", &long(77), &long(5000)]
    {
        let container = json!({"container": {"id": id, "runtime": {"name": "io.containerd.runc.v2"}}});
        requests.push(ask("a container's id", "containers.v1.Containers/Create", container));
        requests.push(ask("a container to get", "containers.v1.Containers/Get", json!({"id": id})));
        requests.push(ask("a container to delete", "containers.v1.Containers/Delete", json!({"id": id})));
        requests.push(ask("a namespace's name", "namespaces.v1.Namespaces/Create", json!({"namespace": {"name": id}})));
        requests.push(ask("a namespace to get", "namespaces.v1.Namespaces/Get", json!({"name": id})));
        requests.push(ask("a namespace to delete", "namespaces.v1.Namespaces/Delete", json!({"name": id})));
        requests.push(ask("a task", "tasks.v1.Tasks/Get", json!({"containerId": id})));
        requests.push(ask("a task to make", "tasks.v1.Tasks/Create", json!({"containerId": id})));
        requests.push(ask("a lease to delete", "leases.v1.Leases/Delete", json!({"id": id})));
    }
    same_codes(&requests, &us, &them, &mut world.theirs);
    world.finish();
}

#[test]
fn records_that_make_no_sense_are_answered_as_containerd_does() {
    let (mut world, us, them) = world();
    let image = |name: &str, digest: &str| json!({"image": {"name": name, "target": {"mediaType": "a/b", "digest": digest, "size": "3"}}});
    let c1 = json!({"id": "c1", "runtime": {"name": "io.containerd.runc.v2"}});
    let labelled = |key: String, value: String| json!({"container": {"id": "cl", "runtime": {"name": "r.r.r"}, "labels": {key: value}}});
    let updated =
        |paths: &str| json!({"container": {"id": "c1", "labels": {"a": "b"}}, "updateMask": {"paths": [paths]}});
    let requests = vec![
        ask("no container", "containers.v1.Containers/Create", json!({})),
        ask("no runtime", "containers.v1.Containers/Create", json!({"container": {"id": "c0"}})),
        ask("a label too long", "containers.v1.Containers/Create", labelled("k".into(), long(5000))),
        ask("an empty label", "containers.v1.Containers/Create", labelled(String::new(), String::new())),
        ask("removal after the empty label", "containers.v1.Containers/Delete", json!({"id": "cl"})),
        ask("a good container", "containers.v1.Containers/Create", json!({"container": c1})),
        ask("the same again", "containers.v1.Containers/Create", json!({"container": c1})),
        ask("an update of nothing", "containers.v1.Containers/Update", json!({})),
        ask(
            "an update of what is not there",
            "containers.v1.Containers/Update",
            json!({"container": {"id": "none"}, "updateMask": {"paths": ["labels"]}}),
        ),
        ask("a mask of nonsense", "containers.v1.Containers/Update", updated("nonsense")),
        ask("a mask of what cannot change", "containers.v1.Containers/Update", updated("id")),
        ask("another cannot change", "containers.v1.Containers/Update", updated("runtime")),
        ask(
            "an update of a runtime",
            "containers.v1.Containers/Update",
            json!({"container": {"id": "c1", "runtime": {"name": "x.y.z"}}}),
        ),
        ask("a good mask", "containers.v1.Containers/Update", updated("labels")),
        ask("a half filter", "containers.v1.Containers/List", json!({"filters": ["id=="]})),
        ask("a filter of nonsense", "containers.v1.Containers/List", json!({"filters": ["id===x"]})),
        ask("a broken pattern", "containers.v1.Containers/List", json!({"filters": ["id~=("]})),
        ask("an open quote", "containers.v1.Containers/List", json!({"filters": ["id==\"x"]})),
        ask("an unknown field", "containers.v1.Containers/List", json!({"filters": ["nonsense==x"]})),
        ask("an empty filter", "containers.v1.Containers/List", json!({"filters": [""]})),
        ask("a giant filter", "containers.v1.Containers/List", json!({"filters": [format!("id=={}", long(100_000))]})),
        ask("no image", "images.v1.Images/Create", json!({})),
        ask("an image without a name", "images.v1.Images/Create", image("", NOWHERE)),
        ask("an image without a digest", "images.v1.Images/Create", image("i", "")),
        ask("an image of half a digest", "images.v1.Images/Create", image("i", "sha256:abc")),
        ask("an image of a digest that climbs", "images.v1.Images/Create", image("i", "sha256:../../../etc/passwd")),
        ask(
            "an image of an unknown digest",
            "images.v1.Images/Create",
            image("i", "md5:d41d8cd98f00b204e9800998ecf8427e"),
        ),
        ask(
            "an image without a size",
            "images.v1.Images/Create",
            json!({"image": {"name": "i", "target": {"mediaType": "a/b", "digest": NOWHERE}}}),
        ),
        ask(
            "an image of a negative size",
            "images.v1.Images/Create",
            json!({"image": {"name": "i", "target": {"mediaType": "a/b", "digest": NOWHERE, "size": "-1"}}}),
        ),
        ask(
            "an image without a type",
            "images.v1.Images/Create",
            json!({"image": {"name": "i", "target": {"digest": NOWHERE, "size": "3"}}}),
        ),
        ask("an update of no image", "images.v1.Images/Update", json!({})),
        ask(
            "an update of an image that is not there",
            "images.v1.Images/Update",
            json!({"image": image("none", NOWHERE)["image"]}),
        ),
        ask("an image that is not there", "images.v1.Images/Get", json!({"name": "none"})),
        ask("an image of no name", "images.v1.Images/Get", json!({"name": ""})),
        ask("removal of an image that is not there", "images.v1.Images/Delete", json!({"name": "none"})),
        ask("a broken pattern", "images.v1.Images/List", json!({"filters": ["name~=["]})),
        ask("a good lease", "leases.v1.Leases/Create", json!({"id": "l1"})),
        ask("the same lease", "leases.v1.Leases/Create", json!({"id": "l1"})),
        ask(
            "a lease that expires at nonsense",
            "leases.v1.Leases/Create",
            json!({"id": "l2", "labels": {"containerd.io/gc.expire": "soon"}}),
        ),
        ask(
            "no lease",
            "leases.v1.Leases/AddResource",
            json!({"id": "none", "resource": {"id": NOWHERE, "type": "content"}}),
        ),
        ask("no resource", "leases.v1.Leases/AddResource", json!({"id": "l1"})),
        ask(
            "a resource of an unknown type",
            "leases.v1.Leases/AddResource",
            json!({"id": "l1", "resource": {"id": "x", "type": "nonsense"}}),
        ),
        ask(
            "a snapshot without its snapshotter",
            "leases.v1.Leases/AddResource",
            json!({"id": "l1", "resource": {"id": "x", "type": "snapshots"}}),
        ),
        ask(
            "content of no digest",
            "leases.v1.Leases/AddResource",
            json!({"id": "l1", "resource": {"id": "x", "type": "content"}}),
        ),
        ask("resources of no lease", "leases.v1.Leases/ListResources", json!({"id": "none"})),
        ask(
            "a resource that is not in it",
            "leases.v1.Leases/DeleteResource",
            json!({"id": "l1", "resource": {"id": NOWHERE, "type": "content"}}),
        ),
        ask("a broken pattern", "leases.v1.Leases/List", json!({"filters": ["id~=*"]})),
        ask("a namespace that holds something", "namespaces.v1.Namespaces/Delete", json!({"name": "default"})),
        ask("an update of no namespace", "namespaces.v1.Namespaces/Update", json!({})),
        ask(
            "a mask of nonsense of namespaces",
            "namespaces.v1.Namespaces/Update",
            json!({"namespace": {"name": "default"}, "updateMask": {"paths": ["nonsense"]}}),
        ),
        ask("no sandbox", "sandbox.v1.Store/Get", json!({"sandboxId": "none"})),
        ask("removal of no sandbox", "sandbox.v1.Store/Delete", json!({"sandboxId": "none"})),
        ask("an update of no sandbox", "sandbox.v1.Store/Update", json!({})),
        ask("a broken pattern", "introspection.v1.Introspection/Plugins", json!({"filters": ["id~=("]})),
        ask("no plugin", "introspection.v1.Introspection/PluginInfo", json!({"type": "x", "id": "y"})),
        ask(
            "an event of no topic",
            "events.v1.Events/Publish",
            json!({"topic": "", "event": {"@type": "type.googleapis.com/google.protobuf.Duration", "value": "1s"}}),
        ),
        ask(
            "an event of a bad topic",
            "events.v1.Events/Publish",
            json!({"topic": "nonsense", "event": {"@type": "type.googleapis.com/google.protobuf.Duration", "value": "1s"}}),
        ),
        ask(
            "a topic that ends in a slash",
            "events.v1.Events/Publish",
            json!({"topic": "/a/", "event": {"@type": "type.googleapis.com/google.protobuf.Duration", "value": "1s"}}),
        ),
        ask("events by a broken pattern", "events.v1.Events/Subscribe", json!({"filters": ["topic~=("]})),
        ask("a transfer from nowhere", "transfer.v1.Transfer/Transfer", json!({})),
        ask(
            "a transfer of something else",
            "transfer.v1.Transfer/Transfer",
            json!({"source": {"@type": "type.googleapis.com/google.protobuf.Duration", "value": "1s"}, "destination": {"@type": "type.googleapis.com/google.protobuf.Duration", "value": "1s"}}),
        ),
        ask("the container's removal", "containers.v1.Containers/Delete", json!({"id": "c1"})),
        ask("the lease's removal", "leases.v1.Leases/Delete", json!({"id": "l1"})),
        ask("the other lease's removal", "leases.v1.Leases/Delete", json!({"id": "l2"})),
    ];
    same_codes(&requests, &us, &them, &mut world.theirs);
    world.finish();
}

#[test]
fn content_and_snapshots_that_make_no_sense_are_answered_as_containerd_does() {
    let (mut world, us, them) = world();
    // `hello\n` and its digest.
    let (data, hello) = ("aGVsbG8K", "sha256:5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03");
    let write = "content.v1.Content/Write";
    let stat = |key: &str| json!({"snapshotter": "overlayfs", "key": key});
    let layer = |kind: &str, digest: &str| json!({"diff": {"mediaType": kind, "digest": digest, "size": "6"}});
    let mut requests = Vec::new();
    for digest in [
        "",
        "x",
        "sha256:abc",
        "sha256:",
        "sha256:../../../../etc/passwd",
        "md5:d41d8cd98f00b204e9800998ecf8427e",
        NOWHERE,
    ] {
        requests.push(ask("a digest of content", "content.v1.Content/Info", json!({"digest": digest})));
        requests.push(ask("a digest to read", "content.v1.Content/Read", json!({"digest": digest})));
        requests.push(ask("a digest to delete", "content.v1.Content/Delete", json!({"digest": digest})));
        requests.push(ask("a digest to update", "content.v1.Content/Update", json!({"info": {"digest": digest}})));
        requests.push(ask(
            "a digest to expect",
            write,
            json!({"action": "WRITE", "ref": "expecting", "expected": digest, "total": "6"}),
        ));
        requests.push(ask(
            "a layer to apply",
            "diff.v1.Diff/Apply",
            layer("application/vnd.oci.image.layer.v1.tar", digest),
        ));
    }
    requests.push(ask("what the expecting left", "content.v1.Content/Abort", json!({"ref": "expecting"})));
    requests.extend([
        ask("a write of no name", write, json!({"action": "WRITE", "data": data})),
        ask("a write behind its end", write, json!({"action": "WRITE", "ref": "gap", "offset": "5", "data": data})),
        ask("a write at a negative offset", write, json!({"action": "WRITE", "ref": "negative", "offset": "-5", "data": data})),
        ask("a commit of another digest", write, json!({"action": "COMMIT", "ref": "wrong", "data": data, "expected": NOWHERE})),
        ask("a commit of another size", write, json!({"action": "COMMIT", "ref": "size", "data": data, "total": "7"})),
        ask("an unknown action", write, json!({"action": 77, "ref": "action"})),
        ask("a write that ends early", write, json!({"action": "WRITE", "ref": "early", "data": data, "total": "100"})),
        ask("its status", "content.v1.Content/Status", json!({"ref": "early"})),
        ask("the same name for another size", write, json!({"action": "STAT", "ref": "early", "total": "50"})),
        ask("its end", "content.v1.Content/Abort", json!({"ref": "early"})),
        ask("its end again", "content.v1.Content/Abort", json!({"ref": "early"})),
        ask("the status of nothing", "content.v1.Content/Status", json!({"ref": "none"})),
        ask("an empty status", "content.v1.Content/Status", json!({"ref": ""})),
        ask("a name that climbs", write, json!({"action": "WRITE", "ref": "../../climbs", "data": data})),
        ask("the end of what climbs", "content.v1.Content/Abort", json!({"ref": "../../climbs"})),
        ask("a broken pattern", "content.v1.Content/ListStatuses", json!({"filters": ["ref~=("]})),
        ask("a broken pattern", "content.v1.Content/List", json!({"filters": ["digest~=("]})),
        talk("a good blob", write, &[
            json!({"action": "WRITE", "ref": "good", "data": data}),
            json!({"action": "COMMIT", "ref": "good", "offset": "6", "total": "6", "expected": hello, "labels": {"containerd.io/gc.root": "x"}}),
        ]),
        ask("the same again", write, json!({"action": "COMMIT", "ref": "again", "data": data, "expected": hello})),
        ask("a read behind its end", "content.v1.Content/Read", json!({"digest": hello, "offset": "100"})),
        ask("a read before its beginning", "content.v1.Content/Read", json!({"digest": hello, "offset": "-1"})),
        ask("a read of too much", "content.v1.Content/Read", json!({"digest": hello, "offset": "3", "size": "100"})),
        ask("a read of a negative size", "content.v1.Content/Read", json!({"digest": hello, "size": "-1"})),
        ask("a mask of content", "content.v1.Content/Update", json!({"info": {"digest": hello}, "updateMask": {"paths": ["nonsense"]}})),
        ask("a label of content too long", "content.v1.Content/Update", json!({"info": {"digest": hello, "labels": {"k": long(5000)}}, "updateMask": {"paths": ["labels"]}})),
        ask("an unknown layer", "diff.v1.Diff/Apply", layer("text/plain", hello)),
        ask("no layer", "diff.v1.Diff/Apply", json!({})),
        ask("a difference of an unknown type", "diff.v1.Diff/Diff", json!({"mediaType": "text/plain"})),
        ask("its removal", "content.v1.Content/Delete", json!({"digest": hello})),
    ]);
    for reference in ["gap", "negative", "wrong", "size", "action", "again"] {
        requests.push(ask("what it left", "content.v1.Content/Abort", json!({"ref": reference})));
    }
    for method in ["Stat", "Mounts", "Remove", "Usage"] {
        let method: &'static str = match method {
            "Stat" => "snapshots.v1.Snapshots/Stat",
            "Mounts" => "snapshots.v1.Snapshots/Mounts",
            "Remove" => "snapshots.v1.Snapshots/Remove",
            _ => "snapshots.v1.Snapshots/Usage",
        };
        for key in ["", "none", "../../../etc", "a\u{0}b"] {
            requests.push(ask("a snapshot that is not there", method, stat(key)));
        }
        for snapshotter in ["", "nonsense", "../overlayfs"] {
            requests.push(ask("no such snapshotter", method, json!({"snapshotter": snapshotter, "key": "k"})));
        }
    }
    let (prepare, commit) = ("snapshots.v1.Snapshots/Prepare", "snapshots.v1.Snapshots/Commit");
    requests.extend([
        ask("a snapshot of no name", prepare, stat("")),
        ask("a snapshot of no parent", prepare, json!({"snapshotter": "overlayfs", "key": "a", "parent": "none"})),
        ask(
            "a view of no parent",
            "snapshots.v1.Snapshots/View",
            json!({"snapshotter": "overlayfs", "key": "a", "parent": "none"}),
        ),
        ask("a good snapshot", prepare, json!({"snapshotter": "overlayfs", "key": "a", "labels": {"containerd.io/gc.root": "x"}})),
        ask("the same snapshot", prepare, stat("a")),
        ask("a snapshot upon an active one", prepare, json!({"snapshotter": "overlayfs", "key": "b", "parent": "a"})),
        ask("a commit of nothing", commit, json!({"snapshotter": "overlayfs", "name": "n", "key": "none"})),
        ask("a commit without a name", commit, json!({"snapshotter": "overlayfs", "name": "", "key": "a"})),
        ask(
            "a good commit",
            commit,
            json!({"snapshotter": "overlayfs", "name": "base", "key": "a", "labels": {"containerd.io/gc.root": "x"}}),
        ),
        ask("a commit of a committed one", commit, json!({"snapshotter": "overlayfs", "name": "other", "key": "base"})),
        ask("mounts of a committed one", "snapshots.v1.Snapshots/Mounts", stat("base")),
        ask("a child", prepare, json!({"snapshotter": "overlayfs", "key": "child", "parent": "base", "labels": {"containerd.io/gc.root": "x"}})),
        ask("removal of a parent", "snapshots.v1.Snapshots/Remove", stat("base")),
        ask(
            "a commit of a name that is there",
            commit,
            json!({"snapshotter": "overlayfs", "name": "base", "key": "child"}),
        ),
        ask("an update of no snapshot", "snapshots.v1.Snapshots/Update", json!({"snapshotter": "overlayfs"})),
        ask(
            "a mask of snapshots",
            "snapshots.v1.Snapshots/Update",
            json!({"snapshotter": "overlayfs", "info": {"name": "child"}, "updateMask": {"paths": ["parent"]}}),
        ),
        ask(
            "a broken pattern",
            "snapshots.v1.Snapshots/List",
            json!({"snapshotter": "overlayfs", "filters": ["name~=("]}),
        ),
        ask("a snapshot of a giant name", prepare, stat(&long(70_000))),
        ask("removal of the giant", "snapshots.v1.Snapshots/Remove", stat(&long(70_000))),
        ask("removal of the child", "snapshots.v1.Snapshots/Remove", stat("child")),
        ask("removal of the parent", "snapshots.v1.Snapshots/Remove", stat("base")),
    ]);
    same_codes(&requests, &us, &them, &mut world.theirs);
    world.finish();
}

#[test]
fn tasks_in_the_wrong_state_are_answered_as_containerd_does() {
    let (mut world, us, them) = world();
    let root = busybox_root(&world.lab).to_string_lossy().into_owned();
    let id = world.lab.id("task");
    for (daemon, side) in [(&world.ours, "g"), (&world.theirs, "c")] {
        let (script, cgroup) = ("trap 'exit 0' TERM; while :; do sleep 0.05; done", format!("/{side}-{id}"));
        daemon.ctr(&["run", "-d", "--cgroup", &cgroup, "--rootfs", &root, &id, "/bin/sh", "-c", script]).ok();
    }
    let task = |more: Value| {
        let mut message = json!({"containerId": id});
        message.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
        message
    };
    let none = json!({"containerId": "none"});
    let mut requests = Vec::new();
    for method in [
        "tasks.v1.Tasks/Start",
        "tasks.v1.Tasks/Delete",
        "tasks.v1.Tasks/Kill",
        "tasks.v1.Tasks/Pause",
        "tasks.v1.Tasks/Resume",
        "tasks.v1.Tasks/ListPids",
        "tasks.v1.Tasks/Wait",
        "tasks.v1.Tasks/Update",
        "tasks.v1.Tasks/Checkpoint",
        "tasks.v1.Tasks/ResizePty",
        "tasks.v1.Tasks/CloseIO",
        "tasks.v1.Tasks/Create",
    ] {
        requests.push(ask("a task that is not there", method, none.clone()));
    }
    requests.extend([
        ask("a process of no task", "tasks.v1.Tasks/DeleteProcess", json!({"containerId": "none", "execId": "e"})),
        ask("an exec in no task", "tasks.v1.Tasks/Exec", json!({"containerId": "none", "execId": "e"})),
        ask("a second create", "tasks.v1.Tasks/Create", task(json!({}))),
        ask("a second start", "tasks.v1.Tasks/Start", task(json!({}))),
        ask("a start of no exec", "tasks.v1.Tasks/Start", task(json!({"execId": "none"}))),
        ask("a deletion while it runs", "tasks.v1.Tasks/Delete", task(json!({}))),
        ask("a resume of what runs", "tasks.v1.Tasks/Resume", task(json!({}))),
        ask("an exec without a name", "tasks.v1.Tasks/Exec", task(json!({"execId": ""}))),
        ask("an exec of a name that climbs", "tasks.v1.Tasks/Exec", task(json!({"execId": "../x"}))),
        ask("an exec of nonsense", "tasks.v1.Tasks/Exec", task(json!({"execId": "f", "spec": {"@type": "type.googleapis.com/google.protobuf.Duration", "value": "1s"}}))),
        ask("no exec to delete", "tasks.v1.Tasks/DeleteProcess", task(json!({"execId": "none"}))),
        ask("the task as an exec to delete", "tasks.v1.Tasks/DeleteProcess", task(json!({"execId": ""}))),
        ask("no exec to wait for", "tasks.v1.Tasks/Wait", task(json!({"execId": "none"}))),
        ask("no exec to kill", "tasks.v1.Tasks/Kill", task(json!({"execId": "none", "signal": 9}))),
        ask("no such signal", "tasks.v1.Tasks/Kill", task(json!({"signal": 9999}))),
        ask("a size of no terminal", "tasks.v1.Tasks/ResizePty", task(json!({"width": 1, "height": 1}))),
        ask("no exec to resize", "tasks.v1.Tasks/ResizePty", task(json!({"execId": "none", "width": 1, "height": 1}))),
        ask("no exec to close", "tasks.v1.Tasks/CloseIO", task(json!({"execId": "none", "stdin": true}))),
        ask("no exec to get", "tasks.v1.Tasks/Get", task(json!({"execId": "none"}))),
        ask("resources of nonsense", "tasks.v1.Tasks/Update", task(json!({"resources": {"@type": "type.googleapis.com/google.protobuf.Duration", "value": "1s"}}))),
        ask("a broken pattern", "tasks.v1.Tasks/Metrics", json!({"filters": ["id~=("]})),
    ]);
    same_codes(&requests, &us, &them, &mut world.theirs);
    // containerd's shim does not survive this one.
    let unspecified = us.send(&ask("", "tasks.v1.Tasks/Exec", task(json!({"execId": "e"}))));
    assert_eq!(unspecified.0, "InvalidArgument", "{}", unspecified.1);
    let requests = [
        ask("its end", "tasks.v1.Tasks/Kill", task(json!({"signal": 9}))),
        ask("the wait for it", "tasks.v1.Tasks/Wait", task(json!({}))),
        ask("a signal after its end", "tasks.v1.Tasks/Kill", task(json!({"signal": 9}))),
        ask("a start after its end", "tasks.v1.Tasks/Start", task(json!({}))),
        ask("a pause after its end", "tasks.v1.Tasks/Pause", task(json!({}))),
        ask("an exec after its end", "tasks.v1.Tasks/Exec", task(json!({"execId": "late"}))),
        ask("its deletion", "tasks.v1.Tasks/Delete", task(json!({}))),
        ask("its second deletion", "tasks.v1.Tasks/Delete", task(json!({}))),
        ask("its record's removal", "containers.v1.Containers/Delete", json!({"id": id})),
    ];
    same_codes(&requests, &us, &them, &mut world.theirs);
    world.finish();
}

#[test]
fn calls_that_are_broken_off_leave_nothing_locked_or_busy() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let wire = Wire::new(&lab, &daemon);
    // A writer that is killed in the middle gives its ingest free, with what it had.
    let mut writer = wire.start("content.v1.Content/Write", Some("default"), "60");
    let mut stdin = writer.stdin.take().expect("a pipe");
    let piece = json!({"action": "WRITE", "ref": "broken", "data": "aGVsbG8K", "total": "100"});
    stdin.write_all(piece.to_string().as_bytes()).expect("write to grpcurl");
    stdin.flush().expect("flush");
    let status = ask("", "content.v1.Content/Status", json!({"ref": "broken"}));
    let start = Instant::now();
    while wire.send(&status).0 != "OK" {
        assert!(start.elapsed() < Duration::from_secs(10), "the ingest never begins");
    }
    let locked = wire.send(&ask("", "content.v1.Content/Write", json!({"action": "STAT", "ref": "broken"})));
    assert_eq!(locked.0, "Unavailable", "{}", locked.1);
    writer.kill().expect("kill grpcurl");
    writer.wait().expect("wait for grpcurl");
    let start = Instant::now();
    while wire.send(&ask("", "content.v1.Content/Write", json!({"action": "STAT", "ref": "broken"}))).0 != "OK" {
        assert!(start.elapsed() < Duration::from_secs(5), "the ingest stays locked");
    }
    wire.ok("content.v1.Content/Abort", json!({"ref": "broken"}));
    // Waits that nobody waits for any more end: else the daemon would not stop in time.
    for _ in 0..5 {
        let mut subscriber = wire.start("events.v1.Events/Subscribe", Some("default"), "60");
        let mut late = wire.start("events.v1.Events/Subscribe", Some("default"), "0.2");
        drop(late.stdin.take());
        drop(subscriber.stdin.take());
        assert!(!late.wait().expect("wait for grpcurl").success());
        subscriber.kill().expect("kill grpcurl");
        subscriber.wait().expect("wait for grpcurl");
    }
    // A message that is too big is refused before it is read.
    let big = json!({"container": {"id": "big", "image": long(17 << 20)}});
    let (code, text) = wire.send(&ask("", "containers.v1.Containers/Create", big));
    assert!(["ResourceExhausted", "OutOfRange"].contains(&code.as_str()), "{code} {text}");
    // Bytes that are no HTTP/2 at all.
    let mut socket = std::os::unix::net::UnixStream::connect(daemon.address()).expect("connect");
    let _ = socket.write_all(&b"GET / HTTP/1.1\r\n\r\n".repeat(1000));
    let idle: Vec<_> = (0..50).map(|_| std::os::unix::net::UnixStream::connect(daemon.address())).collect();
    wire.ok("version.v1.Version/Version", json!({}));
    drop(idle);
    let log = std::fs::read_to_string(daemon.log()).unwrap_or_default();
    assert!(!log.contains("panicked"), "the daemon panicked:\n{log}");
    daemon.assert_nothing_leaked();
    daemon.stop_clean();
}

#[test]
fn sandboxes_mounts_and_streams_that_make_no_sense_are_answered_as_containerd_does() {
    let (mut world, us, them) = world();
    let nonsense = json!({"@type": "type.googleapis.com/google.protobuf.Duration", "value": "1s"});
    let mut requests = Vec::new();
    for id in ["", "../x", "none", "a b", &long(200)] {
        let sandbox = json!({"sandbox": {"sandboxId": id, "runtime": {"name": "io.containerd.runc.v2"}}});
        // What containerd lets in by its name goes again.
        requests.push(ask("a sandbox of this name", "sandbox.v1.Store/Create", sandbox));
        requests.push(ask("its removal", "sandbox.v1.Store/Delete", json!({"sandboxId": id})));
        for (what, method) in [
            ("a start of no sandbox", "sandbox.v1.Controller/Start"),
            ("the platform of no sandbox", "sandbox.v1.Controller/Platform"),
            ("a stop of no sandbox", "sandbox.v1.Controller/Stop"),
            ("a wait for no sandbox", "sandbox.v1.Controller/Wait"),
            ("the status of no sandbox", "sandbox.v1.Controller/Status"),
            ("the end of no sandbox", "sandbox.v1.Controller/Shutdown"),
            ("metrics of no sandbox", "sandbox.v1.Controller/Metrics"),
        ] {
            requests.push(ask(what, method, json!({"sandboxId": id, "sandboxer": "shim"})));
        }
    }
    requests.extend([
        ask("no sandbox to make", "sandbox.v1.Store/Create", json!({})),
        ask("a sandbox of no runtime", "sandbox.v1.Store/Create", json!({"sandbox": {"sandboxId": "s0"}})),
        ask("a broken pattern", "sandbox.v1.Store/List", json!({"filters": ["id~=("]})),
        ask(
            "a sandbox without a record",
            "sandbox.v1.Controller/Create",
            json!({"sandboxId": "none", "sandboxer": "shim"}),
        ),
        ask(
            "a controller of nonsense",
            "sandbox.v1.Controller/Create",
            json!({"sandboxId": "none", "sandboxer": "nonsense"}),
        ),
        ask("no controller", "sandbox.v1.Controller/Status", json!({"sandboxId": "none", "sandboxer": ""})),
        ask(
            "an update of no sandbox's run",
            "sandbox.v1.Controller/Update",
            json!({"sandboxId": "none", "sandboxer": "shim"}),
        ),
        ask("mounts of no name", "mounts.v1.Mounts/Info", json!({})),
        ask("mounts that are not there", "mounts.v1.Mounts/Info", json!({"name": "none"})),
        ask("the end of what is not there", "mounts.v1.Mounts/Deactivate", json!({"name": "none"})),
        ask("the end of no name", "mounts.v1.Mounts/Deactivate", json!({})),
        ask("an update of no mounts", "mounts.v1.Mounts/Update", json!({})),
        ask("an update of mounts that are not there", "mounts.v1.Mounts/Update", json!({"info": {"name": "none"}})),
        ask("no mounts", "mounts.v1.Mounts/Activate", json!({"name": "m"})),
        ask(
            "mounts without a name",
            "mounts.v1.Mounts/Activate",
            json!({"mounts": [{"type": "bind", "source": "/tmp"}]}),
        ),
        ask("a broken pattern", "mounts.v1.Mounts/List", json!({"filters": ["name~=("]})),
        ask("a cleanup by no snapshotter", "snapshots.v1.Snapshots/Cleanup", json!({"snapshotter": "nonsense"})),
        ask("a half filter", "containers.v1.Containers/ListStream", json!({"filters": ["id=="]})),
        ask("a forwarded nothing", "events.v1.Events/Forward", json!({})),
        ask(
            "a forwarded event of no topic",
            "events.v1.Events/Forward",
            json!({"envelope": {"namespace": "default", "event": nonsense}}),
        ),
        ask(
            "a forwarded event of no namespace",
            "events.v1.Events/Forward",
            json!({"envelope": {"topic": "/a/b", "event": nonsense}}),
        ),
        ask(
            "a forwarded event without a time",
            "events.v1.Events/Forward",
            json!({"envelope": {"namespace": "default", "topic": "/a/b", "event": nonsense}}),
        ),
        ask("a stream of something else", "streaming.v1.Streaming/Stream", nonsense.clone()),
        talk("a stream of nothing", "streaming.v1.Streaming/Stream", &[]),
        // These two have no wrong requests: they are answered.
        ask("a request too many", "introspection.v1.Introspection/Server", json!({})),
        ask("a request too many", "namespaces.v1.Namespaces/List", json!({})),
    ]);
    same_codes(&requests, &us, &them, &mut world.theirs);
    world.finish();
}

/// A method that is added to the API needs its wrong requests here.
#[test]
fn every_method_of_the_api_is_asked_something_wrong() {
    let here = include_str!("bad_requests.rs");
    let missing: Vec<String> =
        methods().into_iter().filter(|method| !here.contains(&format!("\"{method}\""))).collect();
    assert!(missing.is_empty(), "no wrong request for {missing:?}");
}

/// All methods of containerd's API, as `Service/Method` below `containerd.services`.
pub(crate) fn methods() -> Vec<String> {
    let defs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto/defs");
    let mut files = Vec::new();
    proto_files(&defs.join("containerd/services"), &mut files);
    let set = protox::compile(files, [&defs]).expect("proto/defs compiles");
    let mut methods = Vec::new();
    for file in set.file.iter().filter(|file| file.package().starts_with("containerd.services.")) {
        let package = file.package().trim_start_matches("containerd.services.");
        // The shims' own way to tell events is not gRPC.
        for service in file.service.iter().filter(|_| !package.contains("ttrpc")) {
            let names = service.method.iter().map(|method| format!("{package}.{}/{}", service.name(), method.name()));
            methods.extend(names);
        }
    }
    methods
}
