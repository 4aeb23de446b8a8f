//! A real kubelet on the daemon, without an API server: it takes its pods from files.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use gantry_integration::images::{Image, busybox_root};
use gantry_integration::lab::peer_binary;
use gantry_integration::registry::DockerRegistry;
use gantry_integration::{Daemon, Lab, Outcome, census};
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::cri_node::{self, Node};

/// How long the kubelet may take for what it does by and by: it collects what has ended once a minute.
const PATIENCE: Duration = Duration::from_secs(150);

/// A kubelet of its own directory.
struct Kubelet {
    dir: PathBuf,
    child: Child,
}

impl Kubelet {
    /// Writes its configuration, and starts it.
    fn start(lab: &Lab, daemon: &Daemon) -> Kubelet {
        // Links to logs, and sockets of device plug-ins, at places that cannot be configured.
        for fixed in ["/var/log", "/var/lib"] {
            mount(Some("tmpfs"), fixed, Some("tmpfs"), MsFlags::empty(), None::<&str>).expect("mount a tmpfs");
        }
        let group = lab.id("kubelet");
        hierarchies().for_each(|hierarchy| std::fs::create_dir(hierarchy.join(&group)).expect("make a control group"));
        let dir = lab.path("kubelet");
        std::fs::create_dir_all(dir.join("pods")).expect("make a directory");
        std::fs::write(dir.join("resolv.conf"), "nameserver 127.0.0.1\n").expect("write a file");
        let nothing = json!({"memory.available": "1%", "nodefs.available": "1%", "imagefs.available": "1%"});
        let config = json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {"anonymous": {"enabled": true}, "webhook": {"enabled": false}},
            "authorization": {"mode": "AlwaysAllow"},
            "containerRuntimeEndpoint": format!("unix://{}", daemon.address().display()),
            "staticPodPath": dir.join("pods"),
            "podLogsDir": dir.join("logs"),
            "volumePluginDir": dir.join("volumes"),
            "resolvConf": dir.join("resolv.conf"),
            "fileCheckFrequency": "1s",
            "syncFrequency": "2s",
            "readOnlyPort": 10255,
            "evictionHard": nothing,
            "failSwapOn": false,
            "failCgroupV1": false,
            "cgroupRoot": format!("/{group}"),
            "enforceNodeAllocatable": [],
        });
        std::fs::write(dir.join("config.json"), config.to_string()).expect("write the configuration");
        Kubelet { child: Kubelet::spawn(&dir), dir }
    }

    fn spawn(dir: &Path) -> Child {
        let log = File::options().create(true).append(true).open(dir.join("log")).expect("a log");
        let mut command = Command::new(peer_binary("kubelet"));
        command.arg("--config").arg(dir.join("config.json")).arg("--root-dir").arg(dir.join("root"));
        command.args(["--hostname-override", "node"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        command.spawn().expect("start the kubelet")
    }

    /// Ends it, and starts it again.
    fn restart(&mut self) {
        self.end();
        self.child = Kubelet::spawn(&self.dir);
    }

    fn end(&mut self) {
        let _ = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM);
        let until = Instant::now() + Duration::from_secs(10);
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Has it run a pod with these fields of its `spec`; it appends its own name to the pod's.
    fn run(&self, name: &str, spec: &Value) {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec});
        std::fs::write(self.dir.join("pods").join(format!("{name}.json")), pod.to_string()).expect("write a pod");
    }

    fn forget(&self, name: &str) {
        std::fs::remove_file(self.dir.join("pods").join(format!("{name}.json"))).expect("remove a pod");
    }

    /// What its server answers, nothing where it does not.
    fn get(&self, arguments: &[&str]) -> Option<String> {
        let mut command = Command::new("curl");
        let out = Outcome::of(
            {
                command.args(["-sfk", "-m", "10"]).args(arguments);
                command
            },
            PATIENCE,
        );
        (out.code == 0).then_some(out.stdout)
    }

    /// Status of a pod; null where it is not known.
    fn status(&self, name: &str) -> Value {
        let pods = self.get(&["http://127.0.0.1:10255/pods"]).unwrap_or_default();
        let pods: Value = serde_json::from_str(&pods).unwrap_or_default();
        let name = format!("{name}-node");
        let pod = pods["items"].as_array().into_iter().flatten().find(|pod| pod["metadata"]["name"] == name.as_str());
        pod.map_or(Value::Null, |pod| pod["status"].clone())
    }

    /// Status of a container.
    fn container(&self, pod: &str, name: &str) -> Value {
        let status = self.status(pod);
        let all = ["initContainerStatuses", "containerStatuses"].map(|kind| status[kind].as_array().cloned());
        let found = all.into_iter().flatten().flatten().find(|container| container["name"] == name);
        found.unwrap_or_default()
    }

    /// Runs a command in the pod's first container.
    fn exec(&self, pod: &str, command: &str) -> Option<String> {
        let command = command.replace(' ', "%20");
        self.get(&["-XPOST", &format!("https://127.0.0.1:10250/run/default/{pod}-node/main?cmd={command}")])
    }

    /// Runs one with the client library that kubectl uses, through the kubelet.
    fn attach(&self, protocol: &str, pod: &str, command: &[&str]) -> Outcome {
        let command: String = command.iter().map(|word| format!("&command={word}")).collect();
        let url = format!("https://127.0.0.1:10250/exec/default/{pod}-node/main?output=1{command}");
        let mut streams = Command::new(peer_binary("streams"));
        streams.args(["exec", protocol, &url]);
        Outcome::of(streams, Duration::from_secs(30))
    }

    #[track_caller]
    fn wait(&self, what: &str, daemon: &Daemon, mut is: impl FnMut() -> bool) {
        let until = Instant::now() + PATIENCE;
        while !is() {
            let log = || std::fs::read_to_string(self.dir.join("log")).unwrap_or_default();
            assert!(Instant::now() < until, "never: {what}\n{}\n{}", log(), daemon.log_tail());
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

/// Where control groups are mounted: one place, or one for each controller.
fn hierarchies() -> impl Iterator<Item = PathBuf> {
    let table = std::fs::read_to_string("/proc/thread-self/mountinfo").expect("a mount table");
    let mounts = table.lines().filter(|line| line.contains(" - cgroup"));
    let points: Vec<PathBuf> = mounts.filter_map(|line| Some(line.split(' ').nth(4)?.into())).collect();
    points.into_iter()
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.end();
    }
}

#[test]
fn a_kubelet_runs_pods_on_the_daemon_through_both_their_restarts_and_leaves_nothing() {
    let lab = Lab::new();
    let group = lab.id("kubelet");
    let registry = DockerRegistry::start(&lab);
    let mut node = Node::start_with(&lab, &cri_node::config(&lab));
    let image = Image::new(&lab, "busybox").layer(&busybox_root(&lab)).push(&registry.host(), "busybox");
    let mut kubelet = Kubelet::start(&lab, &node.daemon);
    let shell = |name: &str, script: &str, more: Value| {
        let mut container = json!({"name": name, "image": image, "command": ["/bin/sh", "-c", script]});
        for (key, value) in more.as_object().into_iter().flatten() {
            container[key] = value.clone();
        }
        container
    };
    let shared = json!({"volumeMounts": [{"name": "shared", "mountPath": "/shared"}]});
    let with = |more: Value| {
        let mut all = shared.clone();
        all.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
        all
    };
    let forever = "while true; do sleep 0.2; done";
    kubelet.run(
        "web",
        &json!({
            "terminationGracePeriodSeconds": 5,
            "volumes": [{"name": "shared", "emptyDir": {}}],
            "initContainers": [
                shell("first", "echo made >/shared/made", shared.clone()),
                shell("side", forever, json!({"restartPolicy": "Always"})),
            ],
            "containers": [shell("main", &format!("cat /shared/made; trap 'echo down; exit 0' TERM; {forever}"), with(json!({
                "resources": {"limits": {"memory": "64Mi", "cpu": "500m"}},
                "readinessProbe": {"exec": {"command": ["cat", "/shared/hook"]}, "periodSeconds": 1},
                "lifecycle": {"postStart": {"exec": {"command": ["/bin/sh", "-c", "echo hook >/shared/hook"]}}},
            })))],
        }),
    );
    // One ends by itself, and one is found sick.
    kubelet.run("crash", &json!({"hostNetwork": true, "containers": [shell("main", "exit 3", json!({}))]}));
    let probe = json!({"exec": {"command": ["test", "-e", "/well"]}, "periodSeconds": 1, "failureThreshold": 1});
    let sick = shell("main", &format!("touch /well; sleep 2; rm /well; {forever}"), json!({"livenessProbe": probe}));
    kubelet.run("sick", &json!({"terminationGracePeriodSeconds": 1, "containers": [sick]}));

    kubelet.wait("the pod is ready", &node.daemon, || kubelet.container("web", "main")["ready"] == true);
    assert_eq!(kubelet.container("web", "first")["state"]["terminated"]["exitCode"], 0);
    assert_eq!(kubelet.container("web", "side")["ready"], true);
    let status = kubelet.status("web");
    assert!(status["podIP"].as_str().is_some_and(|ip| ip.starts_with("10.87.")), "{status}");
    let log = kubelet.get(&["https://127.0.0.1:10250/containerLogs/default/web-node/main"]);
    assert_eq!(log.as_deref(), Some("made\n"));
    assert_eq!(kubelet.exec("web", "cat /shared/hook").as_deref(), Some("hook\n"));
    for protocol in ["spdy", "websocket"] {
        let out = kubelet.attach(protocol, "web", &["cat", "/shared/made"]);
        assert_eq!((out.code, out.stdout.as_str()), (0, "made\n"), "{protocol}: {out}");
        assert_eq!(kubelet.attach(protocol, "web", &["test", "-e", "/nothing"]).code, 1, "{protocol}");
    }
    let restarted = |pod: &str, code: i64| {
        let container = kubelet.container(pod, "main");
        container["restartCount"].as_i64() >= Some(1) && container["lastState"]["terminated"]["exitCode"] == code
    };
    kubelet.wait("what failed is started again", &node.daemon, || restarted("crash", 3));
    kubelet.wait("what is sick is started again", &node.daemon, || restarted("sick", 137));

    // Neither's end is the pods'.
    let id = kubelet.container("web", "main")["containerID"].clone();
    node.daemon.crash();
    node.daemon.launch();
    kubelet
        .wait("it works again", &node.daemon, || kubelet.exec("web", "cat /shared/made").as_deref() == Some("made\n"));
    kubelet.restart();
    kubelet.wait("it is known again", &node.daemon, || kubelet.container("web", "main")["ready"] == true);
    assert_eq!(kubelet.container("web", "main")["containerID"], id);
    assert_eq!(kubelet.container("web", "main")["restartCount"], 0);

    ["web", "crash", "sick"].into_iter().for_each(|pod| kubelet.forget(pod));
    let pods = || node.ask("ListPodSandbox", &json!({}))["items"].as_array().map_or(0, Vec::len);
    kubelet.wait("all are removed", &node.daemon, || pods() == 0);
    assert_eq!(node.ask("ListContainers", &json!({}))["containers"].as_array().map_or(0, Vec::len), 0);
    // The groups of the node itself and of its classes are the kubelet's, and stay.
    let is_of_pod = |path: &PathBuf| path.to_string_lossy().contains("/pod");
    kubelet.wait("the groups of pods are removed", &node.daemon, || !census::cgroups(&group).iter().any(is_of_pod));
    drop(kubelet);
    census::remove_cgroups_of(&group);
    node.finish();
}
