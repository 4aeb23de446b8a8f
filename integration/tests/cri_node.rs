//! A node of Kubernetes as its tests see it: the CRI's methods by `grpcurl`, and what is inside of pods.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use gantry_integration::images::{Image, busybox_root};
use gantry_integration::lab::peer_binary;
use gantry_integration::registry::DockerRegistry;
use gantry_integration::{Daemon, Lab, Outcome};
use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};

/// How long a method may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A daemon with a configuration of its own for networks, and the pods on it.
pub(crate) struct Node<'l> {
    pub(crate) lab: &'l Lab,
    pub(crate) daemon: Daemon,
}

/// Configuration: CNI from the laboratory's own directories, network namespaces below the state directory.
pub(crate) fn config(lab: &Lab) -> String {
    let plugins = peer_binary("cni/bridge");
    let plugins = plugins.parent().expect("plug-ins lie in a directory");
    format!(
        "version = 3\n[plugins.'io.containerd.cri.v1.runtime']\nnetns_mounts_under_state_dir = true\n\
         [plugins.'io.containerd.cri.v1.runtime'.cni]\nconf_dir = {:?}\nbin_dirs = [{:?}, {:?}]\n",
        lab.path("net.d"),
        lab.path("cni-bin"),
        plugins
    )
}

impl<'l> Node<'l> {
    pub(crate) fn start(lab: &'l Lab) -> Node<'l> {
        Node::start_with(lab, &config(lab))
    }

    pub(crate) fn start_with(lab: &'l Lab, config: &str) -> Node<'l> {
        let daemon = Daemon::start_with(lab, gantry_integration::daemon::Peer::Gantry, config, &[]);
        Node { lab, daemon }
    }

    /// Calls a method of the RuntimeService.
    pub(crate) fn call(&self, method: &str, request: &Value) -> Outcome {
        Outcome::of(self.command("RuntimeService", method, request), PATIENCE)
    }

    /// Calls a method of the ImageService.
    pub(crate) fn call_images(&self, method: &str, request: &Value) -> Outcome {
        Outcome::of(self.command("ImageService", method, request), PATIENCE)
    }

    /// The command that calls a method.
    pub(crate) fn command(&self, service: &str, method: &str, request: &Value) -> Command {
        let mut command = Command::new(peer_binary("grpcurl"));
        command.args(["-plaintext", "-unix", "-authority", "localhost", "-emit-defaults", "-max-time", "60", "-d"]);
        command.arg(request.to_string()).arg(self.daemon.address());
        command.arg(format!("runtime.v1.{service}/{method}"));
        command
    }

    /// Calls a method that must succeed; its answer.
    #[track_caller]
    pub(crate) fn ask(&self, method: &str, request: &Value) -> Value {
        self.answer(&self.call(method, request))
    }

    /// Calls a method of the ImageService that must succeed; its answer.
    #[track_caller]
    pub(crate) fn ask_images(&self, method: &str, request: &Value) -> Value {
        self.answer(&self.call_images(method, request))
    }

    #[track_caller]
    fn answer(&self, out: &Outcome) -> Value {
        assert!(out.code == 0, "{out}\nthe daemon's log:\n{}", self.daemon.log_tail());
        serde_json::from_str(&out.stdout).expect("grpcurl prints JSON")
    }

    pub(crate) fn pod_config(&self, name: &str, extra: &Value) -> Value {
        let mut config = json!({
            "metadata": {"name": name, "uid": self.lab.id(name), "namespace": "default"},
            "hostname": name,
            "log_directory": self.lab.path("logs"),
            "linux": {"cgroup_parent": format!("/{}", self.lab.id(name))},
        });
        for (key, value) in extra.as_object().into_iter().flatten() {
            config[key] = value.clone();
        }
        config
    }

    /// Runs a pod; its id.
    #[track_caller]
    pub(crate) fn run_pod(&self, name: &str, extra: &Value) -> String {
        let answer = self.ask("RunPodSandbox", &json!({"config": self.pod_config(name, extra)}));
        answer["podSandboxId"].as_str().expect("an id").to_owned()
    }

    /// A pod's addresses, the first one first.
    pub(crate) fn addresses(&self, pod: &str) -> Vec<String> {
        let status = self.ask("PodSandboxStatus", &json!({"pod_sandbox_id": pod}));
        let network = &status["status"]["network"];
        let more = network["additionalIps"].as_array().into_iter().flatten().map(|ip| &ip["ip"]);
        let all = std::iter::once(&network["ip"]).chain(more);
        all.filter_map(Value::as_str).filter(|ip| !ip.is_empty()).map(str::to_owned).collect()
    }

    /// Stops and removes a pod, twice, as a kubelet does.
    #[track_caller]
    pub(crate) fn remove_pod(&self, pod: &str) {
        for method in ["StopPodSandbox", "StopPodSandbox", "RemovePodSandbox", "RemovePodSandbox"] {
            self.ask(method, &json!({"pod_sandbox_id": pod}));
        }
    }

    /// Where a pod's network namespace is bound.
    pub(crate) fn netns(&self, pod: &str) -> PathBuf {
        self.daemon.state().join("cri/netns").join(pod)
    }

    /// Runs something in a pod's network.
    pub(crate) fn within<T: Send>(&self, pod: &str, work: impl FnOnce() -> T + Send) -> T {
        let namespace = std::fs::File::open(self.netns(pod)).expect("the pod's network namespace");
        std::thread::scope(|scope| {
            let inside = scope.spawn(move || {
                setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).expect("enter the pod's network");
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Pulls an image with busybox in it; its reference.
    pub(crate) fn busybox(&self, registry: &DockerRegistry) -> String {
        let image = Image::new(self.lab, "busybox").layer(&busybox_root(self.lab)).push(&registry.host(), "busybox");
        self.daemon.ctr(&["-n", "k8s.io", "images", "pull", "--plain-http", &image]).ok();
        image
    }

    /// Starts a container in a pod; its id.
    #[track_caller]
    pub(crate) fn run_container(&self, pod: &str, name: &str, extra: &Value) -> String {
        let mut config = json!({"metadata": {"name": name}, "log_path": format!("{name}.log"), "linux": {}});
        for (key, value) in extra.as_object().into_iter().flatten() {
            config[key] = value.clone();
        }
        let sandbox = self.pod_config(name, &json!({}));
        let create = json!({"pod_sandbox_id": pod, "config": config, "sandbox_config": sandbox});
        let answer = self.ask("CreateContainer", &create);
        let id = answer["containerId"].as_str().expect("an id").to_owned();
        self.ask("StartContainer", &json!({"container_id": id}));
        id
    }

    /// Links of the node that belong to pods' networks.
    pub(crate) fn links_of_pods(&self) -> Vec<String> {
        let listed = gantry_integration::lab::run("ip", &["-o", "link"]);
        let names = listed.lines().filter_map(|line| line.split(": ").nth(1)).map(str::to_owned);
        names.filter(|name| name.starts_with("gnt") || name.starts_with("veth")).collect()
    }

    /// Removes the cgroups that pods were put below, as a kubelet does: those that are empty by now.
    fn remove_parents(&self) {
        for hierarchy in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            for parent in std::fs::read_dir(hierarchy.path()).into_iter().flatten().flatten() {
                if parent.file_name().to_string_lossy().ends_with(self.lab.tag()) {
                    // What still has something below it is found by the census.
                    let _ = std::fs::remove_dir(parent.path());
                }
            }
        }
    }

    /// Makes sure that no network of a pod is left, and stops the daemon.
    pub(crate) fn finish(self) {
        assert!(self.links_of_pods().is_empty(), "links are left: {:?}", self.links_of_pods());
        let left = |dir: PathBuf| std::fs::read_dir(dir).map(Iterator::count).unwrap_or_default();
        assert_eq!(left(self.daemon.state().join("cri/netns")), 0, "network namespaces are left");
        assert_eq!(left(self.daemon.root().join("cri/network/attachments")), 0, "records of networks are left");
        self.remove_parents();
        self.daemon.assert_nothing_leaked();
        self.daemon.stop_clean();
    }
}

/// Waits until something is so.
#[track_caller]
pub(crate) fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < until, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
