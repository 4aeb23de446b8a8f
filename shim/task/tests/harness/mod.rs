//! A daemon in miniature: bundles with a static busybox, the shim's binary, an intake for its events.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gantry_ttrpc::intake::{Call, Handler, Limits, serve};
use gantry_ttrpc::pb::containerd::events as events_pb;
use gantry_ttrpc::pb::containerd::runc::v1::Options;
use gantry_ttrpc::pb::containerd::runtime::bootstrap::v1::{BootstrapParams, BootstrapResult};
use gantry_ttrpc::pb::containerd::services::events::ttrpc::v1::ForwardRequest;
use gantry_ttrpc::pb::containerd::task::v2::DeleteResponse;
use gantry_ttrpc::pb::containerd::task::v3 as pb;
use gantry_ttrpc::pb::containerd::types::Mount;
use gantry_ttrpc::{Address, Client, Status};
use prost::{Message, Name};
use prost_types::Any;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::time::{Instant, sleep};

/// The shim under test; `GANTRY_SHIM` names another build of it.
fn shim() -> PathBuf {
    std::env::var_os("GANTRY_SHIM")
        .map_or_else(|| env!("CARGO_BIN_EXE_containerd-shim-gantry-v1").into(), PathBuf::from)
}

pub const NAMESPACE: &str = "gantry-test";
pub const SOON: Duration = Duration::from_secs(10);
const TASK: &str = "containerd.task.v3.Task";

/// Which runtime holds the containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Builtin,
    /// The built-in one, in a shim that our own daemon started: without a process in between.
    Staying,
    Runc,
}

/// runc, where the tools were built or the system has it.
pub fn runc() -> Option<PathBuf> {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../integration/tools/bin/runc");
    [built, PathBuf::from("/usr/sbin/runc"), PathBuf::from("/usr/bin/runc")].into_iter().find(|path| path.exists())
}

/// Events as the daemon sees them: topic, execution and status where the event has them.
#[derive(Default)]
pub struct Events {
    seen: Mutex<Vec<String>>,
}

impl Events {
    pub fn all(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }

    /// Waits until as many events are there as are expected, and compares them.
    pub async fn expect(&self, expected: &[&str]) {
        let deadline = Instant::now() + SOON;
        while self.all().len() < expected.len() && Instant::now() < deadline {
            sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(self.all(), expected);
    }
}

impl Handler for Events {
    async fn call(&self, call: Call) -> Result<Vec<u8>, Status> {
        let envelope = ForwardRequest::decode(call.payload.as_slice()).unwrap().envelope.unwrap();
        assert_eq!(envelope.namespace, NAMESPACE);
        let event = envelope.event.unwrap();
        let detail = match event.type_url.as_str() {
            "containerd.events.TaskExit" => {
                let exit = events_pb::TaskExit::decode(event.value.as_slice()).unwrap();
                format!(" {} {}", if exit.id == exit.container_id { "init" } else { &exit.id }, exit.exit_status)
            }
            "containerd.events.TaskExecStarted" => {
                format!(" {}", events_pb::TaskExecStarted::decode(event.value.as_slice()).unwrap().exec_id)
            }
            _ => String::new(),
        };
        self.seen.lock().unwrap().push(format!("{}{detail}", envelope.topic.trim_start_matches("/tasks/")));
        Ok(Vec::new())
    }
}

/// Where one test lives.
pub struct World {
    pub dir: TempDir,
    pub kind: Kind,
}

pub struct Container {
    pub id: String,
    pub bundle: PathBuf,
    pub socket: String,
    pub client: Client,
    kind: Kind,
    ttrpc: PathBuf,
}

impl World {
    pub fn new(kind: Kind) -> World {
        World { dir: tempfile::Builder::new().prefix("gs").tempdir_in("/tmp").unwrap(), kind }
    }

    pub fn ttrpc(&self) -> PathBuf {
        self.dir.path().join("e.ttrpc")
    }

    pub fn events(&self) -> Arc<Events> {
        let events = Arc::new(Events::default());
        let limits = Limits {
            connections: 16,
            calls_per_connection: 1,
            uid: nix::unistd::geteuid().as_raw(),
            call_timeout: SOON,
        };
        let listener = UnixListener::bind(self.ttrpc()).unwrap();
        tokio::spawn(serve(listener, Arc::clone(&events), limits, std::future::pending()));
        events
    }

    /// A root file system with busybox in it.
    pub fn rootfs(&self) -> PathBuf {
        let root = self.dir.path().join("root");
        if !root.exists() {
            for name in ["bin", "proc", "sys", "dev", "tmp", "etc"] {
                fs::create_dir_all(root.join(name)).unwrap();
            }
            fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static is installed");
            for name in
                ["sh", "cat", "sleep", "echo", "true", "stty", "tty", "id", "kill", "head", "yes", "ls", "trap", "test"]
            {
                symlink("busybox", root.join("bin").join(name)).unwrap();
            }
        }
        root
    }

    /// A bundle whose first process is `args`; `change` may change the configuration.
    pub fn bundle(&self, id: &str, args: &[&str], change: impl FnOnce(&mut Value)) -> PathBuf {
        let bundle = self.dir.path().join(id);
        fs::create_dir_all(bundle.join("rootfs")).unwrap();
        let mut config = json!({
            "ociVersion": "1.2.0",
            "process": process(args),
            "root": {"path": "rootfs"},
            "hostname": "c",
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=64k"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                 "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]},
            ],
            "linux": {
                "cgroupsPath": format!("/{}/{id}", self.group()),
                "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"}],
                "resources": {"pids": {"limit": 64}},
            },
        });
        change(&mut config);
        fs::write(bundle.join("config.json"), config.to_string()).unwrap();
        bundle
    }

    /// Starts a shim for a bundle.
    pub async fn shim(&self, id: &str, bundle: PathBuf) -> Container {
        let params = BootstrapParams {
            instance_id: id.into(),
            namespace: NAMESPACE.into(),
            containerd_ttrpc_address: self.ttrpc().display().to_string(),
            socket_dir: Some(self.dir.path().join("s").display().to_string()),
            ..BootstrapParams::default()
        };
        let start = if self.kind == Kind::Staying { run_staying } else { run_start };
        let answer = start(id, &bundle, &params.encode_to_vec());
        let result = BootstrapResult::decode(answer.as_slice()).unwrap();
        assert_eq!((result.version, result.protocol.as_str()), (3, "ttrpc"));
        let address = Address::of_shim(&result.address);
        let client = Client::connect(&address, Instant::now() + SOON).await.unwrap();
        let socket = address.as_path().unwrap().display().to_string();
        Container { id: id.into(), bundle, socket, client, kind: self.kind, ttrpc: self.ttrpc() }
    }

    /// A shim and a created container with null streams.
    pub async fn created(&self, id: &str, args: &[&str]) -> Container {
        let container = self.shim(id, self.bundle(id, args, |_| {})).await;
        container.create(self, |_| {}).await.unwrap();
        container
    }

    pub fn fifo(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        path
    }

    /// What must not be left: processes below the shim, mounts, control groups, sockets.
    pub fn census(&self) {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let own = self.dir.path().display().to_string();
        assert!(!mounts.contains(&own), "mounts are left:\n{mounts}");
        let sockets = fs::read_dir(self.dir.path().join("s")).map_or(0, Iterator::count);
        assert_eq!(sockets, 0, "sockets are left");
        for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            let group = hierarchy.path().join(self.group());
            let left: Vec<_> = fs::read_dir(&group).into_iter().flatten().flatten().map(|e| e.path()).collect();
            let left: Vec<_> = left.into_iter().filter(|path| path.is_dir()).collect();
            assert!(left.is_empty(), "control groups are left: {left:?}");
        }
    }

    /// After a failed test: ends its shims and what they hold.
    fn clear_up(&self) {
        for bundle in fs::read_dir(self.dir.path()).into_iter().flatten().flatten() {
            let Ok(identity) = fs::read_to_string(bundle.path().join("shim.pid")) else { continue };
            if let Some(pid) = identity.split(' ').next().and_then(|pid| pid.parse().ok()) {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
            }
            let id = bundle.file_name().display().to_string();
            let mut delete = Command::new(shim());
            delete.args(["-namespace", NAMESPACE, "-id", &id, "-bundle"]).arg(bundle.path()).arg("delete");
            let _ = delete.stdin(Stdio::null()).output();
        }
    }

    /// No process may have this test's busybox for its program.
    pub async fn no_processes(&self) {
        let busybox = fs::metadata(self.rootfs().join("bin/busybox")).unwrap();
        let deadline = Instant::now() + SOON;
        loop {
            let left: Vec<_> = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path()).collect();
            let same = |path: &PathBuf| {
                fs::metadata(path.join("exe")).is_ok_and(|exe| (exe.dev(), exe.ino()) == (busybox.dev(), busybox.ino()))
            };
            let left: Vec<_> = left.into_iter().filter(same).collect();
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "processes are left: {left:?}");
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Parent of this test's control groups.
    fn group(&self) -> String {
        format!("gantry-test-{}", self.dir.path().file_name().unwrap().display())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.clear_up();
        }
        let group = self.group();
        for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            let _ = fs::remove_dir(hierarchy.path().join(&group));
        }
    }
}

impl Container {
    pub async fn call<Req: Message, Resp: Message + Default>(
        &self,
        method: &str,
        request: Req,
    ) -> Result<Resp, Status> {
        self.client.call(TASK, method, &request, SOON).await
    }

    pub async fn create(
        &self,
        world: &World,
        change: impl FnOnce(&mut pb::CreateTaskRequest),
    ) -> Result<pb::CreateTaskResponse, Status> {
        let mut request = pb::CreateTaskRequest {
            id: self.id.clone(),
            bundle: self.bundle.display().to_string(),
            rootfs: vec![Mount {
                r#type: "bind".into(),
                source: world.rootfs().display().to_string(),
                options: vec!["rbind".into(), "rw".into()],
                ..Mount::default()
            }],
            options: self.options(),
            ..pb::CreateTaskRequest::default()
        };
        change(&mut request);
        self.call("Create", request).await
    }

    /// The same shim, for a container of another name.
    pub fn another(&self, id: &str, bundle: PathBuf) -> Container {
        let (socket, client, ttrpc) = (self.socket.clone(), self.client.clone(), self.ttrpc.clone());
        Container { id: id.into(), bundle, socket, client, kind: self.kind, ttrpc }
    }

    fn options(&self) -> Option<Any> {
        let runc = match self.kind {
            Kind::Builtin | Kind::Staying => return None,
            Kind::Runc => runc().unwrap().display().to_string(),
        };
        let root = self.bundle.join("runc").display().to_string();
        let options = Options { binary_name: runc, root, ..Options::default() };
        Some(Any { type_url: Options::full_name(), value: options.encode_to_vec() })
    }

    pub async fn start(&self, exec: &str) -> Result<u32, Status> {
        let request = pb::StartRequest { id: self.id.clone(), exec_id: exec.into() };
        self.call("Start", request).await.map(|response: pb::StartResponse| response.pid)
    }

    pub async fn wait(&self, exec: &str) -> u32 {
        let request = pb::WaitRequest { id: self.id.clone(), exec_id: exec.into() };
        self.call::<_, pb::WaitResponse>("Wait", request).await.unwrap().exit_status
    }

    pub async fn kill(&self, exec: &str, signal: u32) -> Result<(), Status> {
        let request = pb::KillRequest { id: self.id.clone(), exec_id: exec.into(), signal, all: false };
        self.call("Kill", request).await
    }

    pub async fn delete(&self, exec: &str) -> Result<pb::DeleteResponse, Status> {
        self.call("Delete", pb::DeleteRequest { id: self.id.clone(), exec_id: exec.into() }).await
    }

    pub async fn state(&self, exec: &str) -> Result<pb::StateResponse, Status> {
        self.call("State", pb::StateRequest { id: self.id.clone(), exec_id: exec.into() }).await
    }

    pub async fn exec(
        &self,
        exec: &str,
        args: &[&str],
        change: impl FnOnce(&mut pb::ExecProcessRequest),
    ) -> Result<(), Status> {
        let mut request = pb::ExecProcessRequest {
            id: self.id.clone(),
            exec_id: exec.into(),
            spec: Some(Any {
                type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".into(),
                value: process(args).to_string().into_bytes(),
            }),
            ..pb::ExecProcessRequest::default()
        };
        change(&mut request);
        if request.terminal {
            let mut process = process(args);
            process["terminal"] = json!(true);
            request.spec.as_mut().unwrap().value = process.to_string().into_bytes();
        }
        self.call("Exec", request).await
    }

    pub async fn shim_pid(&self) -> i32 {
        use gantry_ttrpc::pb::containerd::task::v3::{ConnectRequest, ConnectResponse};
        let response: ConnectResponse = self.call("Connect", ConnectRequest { id: self.id.clone() }).await.unwrap();
        i32::try_from(response.shim_pid).unwrap()
    }

    /// A call of the sandbox service.
    pub async fn sandbox<Req: Message, Resp: Message + Default>(
        &self,
        method: &str,
        request: Req,
    ) -> Result<Resp, Status> {
        self.client.call("containerd.runtime.sandbox.v1.Sandbox", method, &request, SOON).await
    }

    /// A call of what our shim alone offers.
    pub async fn extra<Req: Message, Resp: Message + Default>(
        &self,
        method: &str,
        request: Req,
    ) -> Result<Resp, Status> {
        self.client.call("gantry.shim.v1.Extras", method, &request, SOON).await
    }

    /// Ends the shim and waits until it has gone.
    pub async fn shutdown(&self) {
        let request = pb::ShutdownRequest { id: self.id.clone(), now: false };
        self.call::<_, ()>("Shutdown", request).await.unwrap();
        tokio::time::timeout(SOON, self.client.closed()).await.expect("the shim ends");
    }

    /// A shim that holds a container does not go.
    pub async fn shutdown_refused(&self) {
        let request = pb::ShutdownRequest { id: self.id.clone(), now: false };
        self.call::<_, ()>("Shutdown", request).await.unwrap();
        sleep(Duration::from_millis(50)).await;
        assert!(!self.client.is_closed(), "the shim went although it holds a container");
    }

    /// The binary's `delete`, as the daemon runs it after every end.
    pub fn delete_verb(&self) -> DeleteResponse {
        let bundle = self.bundle.display().to_string();
        DeleteResponse::decode(run_shim(&self.id, &self.bundle, &["-bundle", &bundle, "delete"], b"").as_slice())
            .unwrap()
    }

    pub fn ttrpc(&self) -> &Path {
        &self.ttrpc
    }
}

/// An OCI process.
pub fn process(args: &[&str]) -> Value {
    let all = ["CAP_KILL", "CAP_CHOWN", "CAP_SETUID", "CAP_SETGID", "CAP_SYS_ADMIN"];
    json!({
        "args": args,
        "cwd": "/",
        "env": ["PATH=/bin", "TERM=xterm"],
        "user": {"uid": 0, "gid": 0},
        "capabilities": {"bounding": all, "effective": all, "permitted": all},
    })
}

fn command(program: &Path, id: &str, bundle: &Path, verb: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(["-namespace", NAMESPACE, "-address", "/run/none.sock", "-publish-binary", "/bin/true", "-id", id]);
    command.args(verb).current_dir(bundle).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run_start(id: &str, bundle: &Path, stdin: &[u8]) -> Vec<u8> {
    run_shim(id, bundle, &["start"], stdin)
}

/// The verb `stay`, of a program that no container can write: the process goes on when it has answered.
fn run_staying(id: &str, bundle: &Path, stdin: &[u8]) -> Vec<u8> {
    let path = std::ffi::CString::new(shim().into_os_string().into_encoded_bytes()).unwrap();
    let sealed = gantry_mount::sealed(&path).unwrap();
    let program = PathBuf::from(format!("/proc/self/fd/{}", sealed.as_raw_fd()));
    let mut child = command(&program, id, bundle, &["stay"]).spawn().unwrap();
    child.stdin.take().unwrap().write_all(stdin).unwrap();
    let mut answer = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut answer).unwrap();
    // As the daemon does, or it would stay in the process table.
    std::thread::spawn(move || child.wait());
    answer
}

/// Runs the shim's binary as a daemon does, and returns what it printed.
pub fn run_shim(id: &str, bundle: &Path, verb: &[&str], stdin: &[u8]) -> Vec<u8> {
    let mut command = command(&shim(), id, bundle, verb);
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(stdin).unwrap();
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{verb:?}: {errors} {}", String::from_utf8_lossy(&output.stdout));
    output.stdout
}

/// Reads a fifo to its end in a thread.
pub fn reader(path: PathBuf) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut text = Vec::new();
        fs::File::open(path).unwrap().read_to_end(&mut text).unwrap();
        String::from_utf8_lossy(&text).into_owned()
    })
}

/// The end of a stdin fifo that a client writes into.
pub fn writer(path: &Path) -> fs::File {
    fs::OpenOptions::new().write(true).read(true).custom_flags(libc::O_NONBLOCK).open(path).unwrap()
}

pub fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}
