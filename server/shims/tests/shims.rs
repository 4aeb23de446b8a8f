//! The shim contract from the daemon's side, against binaries that behave in every way old and new shims do. The
//! binaries are shell scripts; the socket they name is served by the test.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail at any line")]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use gantry_shims::{BundleSpec, Config, Error, Forwarded, Found, Launch, Shim, Shims};
use gantry_ttrpc::intake::{Call, Handler, Limits, serve};
use gantry_ttrpc::pb::containerd::services::events::ttrpc::v1::ForwardRequest;
use gantry_ttrpc::pb::containerd::task::v3::{DeleteResponse, PidsRequest, StateRequest, StateResponse};
use gantry_ttrpc::pb::containerd::types::{Envelope, RuntimeInfo};
use gantry_ttrpc::{Address, Client, Status};
use gantry_types::{Any, ErrorKind, HasKind, Namespace};
use prost::Message;
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::sync::mpsc;

struct World {
    dir: TempDir,
    shims: Shims,
    events: mpsc::Receiver<Forwarded>,
    namespace: Namespace,
}

impl World {
    fn new() -> World {
        World::at(tempfile::tempdir().unwrap())
    }

    fn at(dir: TempDir) -> World {
        let mut config = Config::new(dir.path().join("root"), dir.path().join("state"), "/bin/true");
        config.deadlines.start = Duration::from_secs(2);
        config.deadlines.verb = Duration::from_secs(2);
        config.deadlines.connect = Duration::from_millis(500);
        config.deadlines.query = Duration::from_secs(2);
        config.deadlines.restore = Duration::from_millis(500);
        let (shims, events) = Shims::open(config, vec![dir.path().into()]).unwrap();
        World { dir, shims, events, namespace: "default".parse().unwrap() }
    }

    /// A binary that runs `script`; `$VERB` is its last argument, `$DIR` the test's directory.
    fn binary(&self, name: &str, script: &str) -> String {
        let path = self.dir.path().join(format!("containerd-shim-{name}-v1"));
        let dir = self.dir.path().display();
        let text = format!("#!/bin/sh\nfor VERB; do :; done\nDIR={dir}\n{script}\n");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        format!("io.containerd.{name}.v1")
    }

    async fn launch(&self, runtime: &str, id: &str) -> Result<Shim, Error> {
        let options = Any { type_url: "some.Options".into(), value: vec![1, 2, 3] };
        let bundle = BundleSpec { config: Some(b"{}"), gid: None };
        let launch = Launch { namespace: &self.namespace, id, runtime, options: Some(&options), bundle };
        self.shims.launch(launch).await
    }

    fn bundle(&self, id: &str) -> PathBuf {
        self.dir.path().join("state/io.containerd.runtime.v2.task/default").join(id)
    }

    fn socket(&self, name: &str) -> String {
        format!("unix://{}", self.dir.path().join(name).display())
    }

    /// A shim's socket that offers the given version of the task service.
    fn serve(&self, name: &str, service: &'static str, silent: bool) -> tokio::task::AbortHandle {
        let listener = UnixListener::bind(self.dir.path().join(name)).unwrap();
        let uid = nix::unistd::Uid::effective().as_raw();
        let limits = Limits { connections: 8, calls_per_connection: 8, uid, call_timeout: Duration::from_secs(60) };
        let handler = Arc::new(FakeShim { service, silent });
        tokio::spawn(serve(listener, handler, limits, std::future::pending())).abort_handle()
    }
}

struct FakeShim {
    service: &'static str,
    silent: bool,
}

impl Handler for FakeShim {
    async fn call(&self, call: Call) -> Result<Vec<u8>, Status> {
        if self.silent {
            std::future::pending::<()>().await;
        }
        if call.service != self.service {
            return Err(Status::new(ErrorKind::Unimplemented, format!("service {}", call.service)));
        }
        match call.method.as_str() {
            "State" => Ok(StateResponse { pid: 42, status: 2, ..StateResponse::default() }.encode_to_vec()),
            _ => Ok(Vec::new()),
        }
    }
}

fn answer(world: &World) -> String {
    format!("{{\"version\":3,\"address\":\"{}\",\"protocol\":\"ttrpc\"}}", world.socket("s"))
}

async fn pid_of(shim: &Shim) -> u32 {
    let request = StateRequest { id: shim.id().into(), exec_id: String::new() };
    shim.calls().state(request).await.unwrap().pid
}

#[tokio::test]
async fn a_shim_is_started_with_the_documented_arguments_and_reached_by_its_answer() {
    let world = World::new();
    let _socket = world.serve("s", "containerd.task.v3.Task", false);
    let script =
        format!("echo \"$@\" >$DIR/args; pwd >$DIR/cwd; env >$DIR/env; cat >$DIR/stdin\necho '{}'", answer(&world));
    let shim = world.launch(&world.binary("new", &script), "one").await.unwrap();
    assert_eq!((pid_of(&shim).await, shim.calls().version()), (42, 3));
    let read = |name: &str| std::fs::read_to_string(world.dir.path().join(name)).unwrap();
    assert_eq!(read("args").trim(), "-namespace default -address  -publish-binary /bin/true -id one start");
    assert_eq!(Path::new(read("cwd").trim()).canonicalize().unwrap(), world.bundle("one").canonicalize().unwrap());
    for line in ["NAMESPACE=default", "MAX_SHIM_VERSION=2", "GOMAXPROCS=2"] {
        assert!(read("env").lines().any(|l| l == line), "{line}");
    }
    assert!(world.bundle("one").join("bootstrap.json").exists());
    shim.retire().await.unwrap();
    assert!(!world.bundle("one").exists());
}

#[tokio::test]
async fn an_old_shim_that_chokes_on_the_parameters_gets_the_bare_options() {
    let world = World::new();
    let _socket = world.serve("s", "containerd.task.v2.Task", false);
    let script = format!(
        "[ \"$VERB\" = start ] || exit 0\necho try >>$DIR/tries\nif grep -q default -; then echo 'type with url one: not found'; exit 1; fi\nprintf '{}'",
        world.socket("s")
    );
    let runtime = world.binary("old", &script);
    for id in ["one", "two"] {
        let shim = world.launch(&runtime, id).await.unwrap();
        assert_eq!((pid_of(&shim).await, shim.calls().version()), (42, 2));
    }
    let tries = std::fs::read_to_string(world.dir.path().join("tries")).unwrap();
    assert_eq!(tries.lines().count(), 3, "the second time it is known");
}

#[tokio::test]
async fn a_shim_that_lacks_the_newer_service_is_asked_by_the_older() {
    let world = World::new();
    let _socket = world.serve("s", "containerd.task.v2.Task", false);
    let shim = world.launch(&world.binary("x", &format!("echo '{}'", answer(&world))), "one").await.unwrap();
    assert_eq!(shim.calls().version(), 3);
    assert_eq!((pid_of(&shim).await, shim.calls().version()), (42, 2));
}

#[tokio::test]
async fn a_start_that_fails_says_why_and_leaves_nothing() {
    let world = World::new();
    let runtime =
        world.binary("bad", "[ $VERB = delete ] && echo \"$@\" >$DIR/deleted && exit 0; echo 'no way' >&2; exit 3");
    let error = world.launch(&runtime, "one").await.unwrap_err();
    assert!(matches!(&error, Error::Verb { code: 3, output, .. } if output == "no way"), "{error}");
    assert!(!world.bundle("one").exists());
    let deleted = std::fs::read_to_string(world.dir.path().join("deleted")).unwrap();
    assert!(deleted.contains("-bundle") && deleted.trim().ends_with("delete"), "{deleted}");
}

#[tokio::test]
async fn a_start_that_hangs_is_killed_with_its_children() {
    let world = World::new();
    let runtime = world.binary("slow", "[ $VERB = delete ] && exit 0; sleep 71.25 & sleep 71.25");
    let began = Instant::now();
    let error = world.launch(&runtime, "one").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    assert!(began.elapsed() < Duration::from_secs(5));
    tokio::time::sleep(Duration::from_millis(100)).await;
    let lines = std::fs::read_dir("/proc").unwrap().flatten();
    let mut lines = lines.filter_map(|p| std::fs::read_to_string(p.path().join("cmdline")).ok());
    assert!(!lines.any(|line| line.contains("71.25")), "a child lives on");
}

#[tokio::test]
async fn a_daemonised_child_that_keeps_stdout_open_does_not_hold_up_the_start() {
    let world = World::new();
    let _socket = world.serve("s", "containerd.task.v3.Task", false);
    let script = format!("[ $VERB = delete ] && exit 0; sleep 3 & echo '{}'", answer(&world));
    let runtime = world.binary("x", &script);
    let began = Instant::now();
    world.launch(&runtime, "one").await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_lost_shim_is_noticed_and_cleaned_up_by_its_binary() {
    let world = World::new();
    let listener = UnixListener::bind(world.dir.path().join("s")).unwrap();
    let response = DeleteResponse { pid: 7, exit_status: 137, exited_at: None };
    std::fs::write(world.dir.path().join("response"), response.encode_to_vec()).unwrap();
    let script = format!("[ $VERB = delete ] && exec cat $DIR/response; echo '{}'", answer(&world));
    let shim = world.launch(&world.binary("x", &script), "one").await.unwrap();
    let (connection, _) = listener.accept().await.unwrap();
    drop((connection, listener));
    tokio::time::timeout(Duration::from_secs(1), shim.closed()).await.unwrap();
    let cleanup = shim.cleanup().await;
    assert_eq!((cleanup.pid, cleanup.status), (7, 137));
    assert!(!world.bundle("one").exists());
}

#[tokio::test]
async fn a_start_that_was_stopped_when_the_daemon_died_is_ended_with_its_socket() {
    let world = World::new();
    let bundle = world.bundle("one");
    std::fs::create_dir_all(&bundle).unwrap();
    let mut start = std::process::Command::new("sleep").arg("100").current_dir(&bundle).spawn().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(start.id() as i32), nix::sys::signal::Signal::SIGSTOP).unwrap();
    let sockets = world.dir.path().join("state/s");
    std::fs::create_dir_all(&sockets).unwrap();
    let listen = |name: &str| std::os::unix::net::UnixListener::bind(sockets.join(name)).unwrap();
    let _other = listen("served");
    drop(listen("dead"));
    assert!(matches!(world.shims.restore().await[0].found, Found::Leaked));
    assert!(start.try_wait().unwrap().is_some(), "the start lives on");
    assert!(!bundle.exists() && !sockets.join("dead").exists() && sockets.join("served").exists());
}

#[tokio::test]
async fn events_come_in_their_order_and_nonsense_is_refused() {
    let mut world = World::new();
    let path = world.dir.path().join("state/gantry.sock.ttrpc");
    let deadline = tokio::time::Instant::now() + Duration::from_secs(1);
    let client = Client::connect(&Address::Path(path), deadline).await.unwrap();
    let service = "containerd.services.events.ttrpc.v1.Events";
    let second = Duration::from_secs(1);
    for n in 0..20 {
        let envelope = Envelope { namespace: "default".into(), topic: format!("/t/{n}"), ..Envelope::default() };
        let () = client.call(service, "Forward", &ForwardRequest { envelope: Some(envelope) }, second).await.unwrap();
    }
    for n in 0..20 {
        assert_eq!(world.events.recv().await.unwrap().topic, format!("/t/{n}"));
    }
    let refused =
        client.call::<_, ()>(service, "Forward", &ForwardRequest { envelope: None }, second).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::InvalidArgument);
    let other = client.call::<_, ()>(service, "Else", &PidsRequest::default(), second).await.unwrap_err();
    assert_eq!(other.kind, ErrorKind::Unimplemented);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_finds_what_answers_buries_what_is_gone_and_waits_for_nobody() {
    let world = World::new();
    let _answers = world.serve("s", "containerd.task.v3.Task", false);
    let _silent = world.serve("silent", "containerd.task.v3.Task", true);
    let gone = world.serve("gone", "containerd.task.v3.Task", false);
    for (id, socket) in [("alive", "s"), ("mute", "silent"), ("lost", "gone")] {
        let json = answer(&world).replace("/s\"", &format!("/{socket}\""));
        let script = format!("[ $VERB = delete ] && exit 0; echo '{json}'");
        world.launch(&world.binary(id, &script), id).await.unwrap();
    }
    gone.abort();
    std::fs::create_dir_all(world.bundle("empty")).unwrap();
    std::fs::create_dir_all(world.bundle(".half-removed")).unwrap();
    let World { dir, shims, events, .. } = world;
    drop((shims, events));
    let world = World::at(dir);
    let began = Instant::now();
    let restored = world.shims.restore().await;
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    let found: Vec<_> = restored
        .iter()
        .map(|r| {
            let what = match &r.found {
                Found::Running { state, .. } => format!("running {}", state.pid),
                Found::Silent { .. } => "silent".into(),
                Found::Gone { cleanup } => format!("gone {}", cleanup.status),
                Found::Leaked => "leaked".into(),
            };
            (r.id.as_str(), what)
        })
        .collect();
    let expected = [("alive", "running 42"), ("empty", "leaked"), ("lost", "gone 0"), ("mute", "silent")];
    assert_eq!(found, expected.map(|(id, what)| (id, what.to_owned())));
    assert!(
        !world.bundle("empty").exists() && !world.bundle("lost").exists() && !world.bundle(".half-removed").exists()
    );
}

#[tokio::test]
async fn a_binary_tells_about_itself() {
    let world = World::new();
    let info = RuntimeInfo { name: "x".into(), ..RuntimeInfo::default() };
    std::fs::write(world.dir.path().join("info"), info.encode_to_vec()).unwrap();
    let runtime = world.binary("x", "[ $VERB = -info ] && exec cat $DIR/info");
    assert_eq!(world.shims.info(&runtime, None).await.unwrap(), info);
    let missing = world.shims.info("io.containerd.absent.v1", None).await.unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
}
