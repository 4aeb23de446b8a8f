//! A host of its own: the test's thread, and all that it starts, live in a fresh network namespace.

use std::future::Future;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use gantry_cri::network::{
    Attached, BridgeConfig, CniConfig, Config, IpPreference, Networks, PodNetwork, create_namespace, remove_namespace,
};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

/// How long a connection that must come may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a test may have its host: far more than any of them needs.
const LIMIT: Duration = Duration::from_secs(180);

pub struct Lab {
    path: PathBuf,
    _dir: Option<tempfile::TempDir>,
}

/// Runs a test on a host of its own.
pub fn on_a_host<F: Future<Output = ()>>(test: impl FnOnce(Lab) -> F + Send + 'static) {
    let run = move || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("private namespaces need root");
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        program("ip", &["link", "set", "lo", "up"]);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        runtime.block_on(test(Lab { path: dir.path().to_owned(), _dir: Some(dir) }));
    };
    let (running, until) = (std::thread::spawn(run), Instant::now() + LIMIT);
    while !running.is_finished() {
        assert!(Instant::now() < until, "the test on this host has not come to an end after {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
    if let Err(panic) = running.join() {
        std::panic::resume_unwind(panic);
    }
}

impl Lab {
    /// The lab of another process.
    pub fn at(path: &str) -> Lab {
        Lab { path: path.into(), _dir: None }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub fn config(&self) -> Config {
        Config {
            root: self.path("root"),
            cni: CniConfig {
                conf_dir: self.path("net.d"),
                max_conf_num: 1,
                bin_dirs: vec![self.path("bin"), plugins()],
                cache_dir: self.path("cache"),
                setup_serially: false,
                ip_pref: IpPreference::Ipv4,
            },
            bridge: Some(BridgeConfig::default()),
            deadline: Duration::from_secs(20),
        }
    }

    pub async fn networks(&self) -> Networks {
        Networks::open(self.config()).await.unwrap()
    }

    pub fn netns(&self, id: &str) -> PathBuf {
        self.path("netns").join(id)
    }

    pub async fn pod(&self, id: &str) -> PodNetwork {
        create_namespace(&self.netns(id)).await.unwrap();
        PodNetwork {
            id: id.into(),
            name: format!("pod-{id}"),
            namespace: "default".into(),
            uid: format!("uid-{id}"),
            netns: self.netns(id),
            ..PodNetwork::default()
        }
    }

    pub async fn attach(&self, networks: &Networks, id: &str) -> Attached {
        networks.attach(self.pod(id).await).await.unwrap()
    }

    /// Detaches and removes all pods, and makes sure that nothing is left.
    pub async fn finish(&self, networks: &Networks) {
        for attachment in networks.attachments() {
            networks.detach(&attachment.id).await.unwrap();
        }
        assert_eq!(std::fs::read_dir(self.path("root/attachments")).unwrap().count(), 0, "records are left");
        if let Ok(pods) = std::fs::read_dir(self.path("netns")) {
            for pod in pods.flatten() {
                remove_namespace(&pod.path()).await.unwrap();
            }
        }
        assert!(!links().iter().any(|name| name.starts_with("gnt")), "{:?}", links());
    }

    /// A machine beside this one: a namespace on a wire, 198.51.100.2 to our 198.51.100.1 (and fd01::2, fd01::1).
    pub async fn neighbour(&self) -> PathBuf {
        let path = self.path("neighbour");
        create_namespace(&path).await.unwrap();
        program("ip", &["link", "add", "wire0", "type", "veth", "peer", "name", "wire1"]);
        let moved = path.clone();
        // `ip` wants a process or a name below /run/netns: a link is moved by a file descriptor of a helper.
        let holder = holder(&moved);
        program("ip", &["link", "set", "wire1", "netns", &holder.0.id().to_string()]);
        drop(holder);
        address("wire0", "198.51.100.1/24", "fd01::1/64");
        within(&path, || {
            address("wire1", "198.51.100.2/24", "fd01::2/64");
        });
        path
    }
}

fn address(link: &str, v4: &str, v6: &str) {
    program("ip", &["addr", "add", v4, "dev", link]);
    program("ip", &["addr", "add", v6, "dev", link, "nodad"]);
    program("ip", &["link", "set", link, "up"]);
}

pub struct Holder(std::process::Child);

impl Drop for Holder {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// A process inside a namespace.
fn holder(netns: &Path) -> Holder {
    within(netns, || Holder(Command::new("sleep").arg("60").spawn().unwrap()))
}

/// Where the pinned plug-ins are.
pub fn plugins() -> PathBuf {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../integration/tools/bin/cni");
    assert!(tools.join("bridge").exists(), "CNI plug-ins are missing: run integration/tools/install (needs Go)");
    tools
}

/// Runs something in a namespace.
pub fn within<T: Send>(netns: &Path, work: impl FnOnce() -> T + Send) -> T {
    let file = std::fs::File::open(netns).unwrap();
    std::thread::scope(|scope| {
        let inside = scope.spawn(move || {
            setns(file.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
            work()
        });
        inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Runs a program, which must succeed; its output.
pub fn program(name: &str, args: &[&str]) -> String {
    let output = Command::new(name).args(args).output().unwrap_or_else(|e| panic!("cannot run {name}: {e}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{name} {args:?}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// Names of the links of this thread's namespace.
pub fn links() -> Vec<String> {
    let listed = program("ip", &["-o", "link"]);
    let name = |line: &str| line.split(": ").nth(1).map(|n| n.split('@').next().unwrap_or(n).to_owned());
    listed.lines().filter_map(name).collect()
}

/// A TCP server in a namespace that answers every connection with the client's address, until the lab ends.
pub fn serve(netns: &Path, at: &str) -> SocketAddr {
    let listener = within(netns, || TcpListener::bind(at).unwrap());
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let peer = stream.peer_addr().unwrap().ip().to_canonical();
            let _ = stream.write_all(peer.to_string().as_bytes());
        }
    });
    address
}

/// Asks such a server from a namespace.
pub fn ask(netns: &Path, address: SocketAddr) -> std::io::Result<IpAddr> {
    within(netns, || ask_from_here(address))
}

/// Asks such a server from the host itself.
pub fn ask_from_here(address: SocketAddr) -> std::io::Result<IpAddr> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    answer.parse().map_err(|_| std::io::Error::other(format!("answer {answer:?}")))
}

/// Answers one datagram in a namespace with its own bytes.
pub fn echo_datagram(netns: &Path, at: &str) {
    let socket = within(netns, || UdpSocket::bind(at).unwrap());
    std::thread::spawn(move || {
        let mut buffer = [0; 100];
        let (length, from) = socket.recv_from(&mut buffer).unwrap();
        socket.send_to(&buffer[..length], from).unwrap();
    });
}

/// Sends a datagram from a namespace and gives the answer.
pub fn send_datagram(netns: &Path, to: &str) -> Vec<u8> {
    within(netns, || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.connect(to).unwrap();
        socket.send(b"ping").unwrap();
        let mut buffer = [0; 100];
        let length = socket.recv(&mut buffer).unwrap();
        buffer[..length].to_vec()
    })
}
