//! Pods with a network: the built-in one, the real CNI plug-ins, hostile ones, and a daemon killed amid an attachment.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use gantry_integration::Lab;
use gantry_integration::registry::DockerRegistry;
use serde_json::json;

use crate::cri_node::{Node, wait_for};

/// Answers every connection in a pod with a word, until the test ends.
fn serve(node: &Node, pod: &str) {
    let listener = node.within(pod, || TcpListener::bind("[::]:80").expect("listen in the pod"));
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.write_all(b"served");
        }
    });
}

fn ask(address: &str, port: u16) -> std::io::Result<String> {
    let address = SocketAddr::new(address.parse().expect("an address"), port);
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[test]
fn pods_of_a_fresh_machine_have_a_network_and_leave_nothing() {
    let lab = Lab::new();
    let node = Node::start(&lab);
    let mapped = json!({"port_mappings": [{"container_port": 80, "host_port": 8080}]});
    let (one, two) = (node.run_pod("one", &mapped), node.run_pod("two", &json!({})));
    let (ones, twos) = (node.addresses(&one), node.addresses(&two));
    assert_eq!((ones.len(), twos.len()), (2, 2), "{ones:?} {twos:?}");
    serve(&node, &one);
    for address in &ones {
        assert_eq!(node.within(&two, || ask(address, 80)).expect("the other pod answers"), "served");
    }
    assert_eq!(ask("127.0.0.1", 8080).expect("the host port answers"), "served");
    // The kernel cannot bring an answer back there.
    let refused = ask("::1", 8080).expect_err("nobody answers");
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    let status = node.ask("Status", &json!({}));
    let conditions = status["status"]["conditions"].as_array().expect("conditions");
    assert!(conditions.iter().any(|c| c["type"] == "NetworkReady" && c["status"] == true), "{status}");
    node.remove_pod(&one);
    assert!(ask("127.0.0.1", 8080).is_err(), "the host port is closed");
    node.remove_pod(&two);
    node.finish();
}

#[test]
fn pods_and_their_addresses_survive_the_daemon() {
    let lab = Lab::new();
    let mut node = Node::start(&lab);
    let one = node.run_pod("one", &json!({}));
    let before = node.addresses(&one);
    node.daemon.crash();
    node.daemon.launch();
    assert_eq!(node.addresses(&one), before);
    let two = node.run_pod("two", &json!({}));
    assert!(node.addresses(&two).iter().all(|address| !before.contains(address)));
    serve(&node, &one);
    assert_eq!(node.within(&two, || ask(&before[0], 80)).expect("the first pod answers"), "served");
    node.remove_pod(&one);
    node.remove_pod(&two);
    node.finish();
}

#[test]
fn the_real_plugins_are_used_where_there_is_a_configuration() {
    let lab = Lab::new();
    fs::create_dir_all(lab.path("net.d")).expect("make a directory");
    let conf = json!({"cniVersion": "1.0.0", "name": "pods", "plugins": [
        {"type": "bridge", "bridge": "cni0", "isGateway": true,
         "ipam": {"type": "host-local", "dataDir": lab.path("ipam"), "subnet": "10.99.0.0/24"}},
        {"type": "portmap", "backend": "nftables", "capabilities": {"portMappings": true}}]});
    fs::write(lab.path("net.d/10-pods.conflist"), conf.to_string()).expect("write the configuration");
    let node = Node::start(&lab);
    let one = node.run_pod("one", &json!({"port_mappings": [{"container_port": 80, "host_port": 8080}]}));
    let two = node.run_pod("two", &json!({}));
    let address = node.addresses(&one).remove(0);
    assert!(address.starts_with("10.99.0."), "{address}");
    serve(&node, &one);
    assert_eq!(node.within(&two, || ask(&address, 80)).expect("the other pod answers"), "served");
    assert_eq!(node.within(&two, || ask("10.99.0.1", 8080)).expect("the host port answers"), "served");
    node.remove_pod(&one);
    node.remove_pod(&two);
    let held = fs::read_dir(lab.path("ipam/pods")).expect("the plug-in's addresses").flatten();
    assert_eq!(held.filter(|f| f.file_name().to_string_lossy().starts_with("10.")).count(), 0);
    node.finish();
}

/// A plug-in in the shell: `$DIR` is the laboratory.
fn plugin(lab: &Lab, text: &str) {
    for dir in ["net.d", "cni-bin"] {
        fs::create_dir_all(lab.path(dir)).expect("make a directory");
    }
    let path = lab.path("cni-bin/odd");
    fs::write(&path, format!("#!/bin/sh\nDIR={}\n{text}\n", lab.dir().display())).expect("write the plug-in");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("make it a program");
    let conf = json!({"cniVersion": "1.0.0", "name": "odd", "plugins": [{"type": "odd"}]});
    fs::write(lab.path("net.d/10.conflist"), conf.to_string()).expect("write the configuration");
}

const ANSWER: &str =
    r#"[ $CNI_COMMAND = ADD ] && echo '{"cniVersion":"1.0.0","ips":[{"address":"192.0.2.7/24"}]}'; exit 0"#;

#[test]
fn a_plugin_that_fails_is_named_and_the_next_try_succeeds() {
    let lab = Lab::new();
    plugin(
        &lab,
        "echo $CNI_COMMAND >>$DIR/calls; [ $CNI_COMMAND = DEL ] || { echo '{\"code\":7,\"msg\":\"no cable\"}'; exit 1; }",
    );
    let node = Node::start(&lab);
    let request = json!({"config": node.pod_config("one", &json!({}))});
    node.call("RunPodSandbox", &request).fails_with("no cable");
    let calls = fs::read_to_string(lab.path("calls")).expect("the plug-in was called");
    assert!(calls.starts_with("ADD\nDEL\n"), "{calls}");
    plugin(&lab, ANSWER);
    let pod = node.ask("RunPodSandbox", &request)["podSandboxId"].as_str().expect("an id").to_owned();
    assert_eq!(node.addresses(&pod), ["192.0.2.7"]);
    node.remove_pod(&pod);
    node.finish();
}

#[test]
fn a_daemon_killed_amid_an_attachment_undoes_it_and_the_kubelets_retry_succeeds() {
    let lab = Lab::new();
    plugin(&lab, "[ $CNI_COMMAND = DEL ] && { rm -f $DIR/held; exit 0; }\ntouch $DIR/held; sleep 60");
    let mut node = Node::start(&lab);
    let request = json!({"config": node.pod_config("one", &json!({}))});
    std::thread::scope(|scope| {
        let calling = scope.spawn(|| node.call("RunPodSandbox", &request));
        wait_for("the plug-in is called", || lab.path("held").exists());
        // The call ends with its daemon.
        let pid = nix::unistd::Pid::from_raw(node.daemon.pid());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("kill the daemon");
        assert_ne!(calling.join().expect("the caller ends").code, 0);
    });
    node.daemon.crash();
    plugin(&lab, &format!("[ $CNI_COMMAND = DEL ] && rm -f $DIR/held\n{ANSWER}"));
    node.daemon.launch();
    let pod = node.ask("RunPodSandbox", &request)["podSandboxId"].as_str().expect("an id").to_owned();
    wait_for("the attachment is undone", || !lab.path("held").exists());
    node.remove_pod(&pod);
    for left in node.ask("ListPodSandbox", &json!({}))["items"].as_array().into_iter().flatten() {
        node.remove_pod(left["id"].as_str().expect("an id"));
    }
    node.finish();
}

#[test]
fn a_pod_with_users_of_its_own_may_be_on_the_nodes_network() {
    let lab = Lab::new();
    let registry = DockerRegistry::start(&lab);
    let node = Node::start(&lab);
    let image = node.busybox(&registry);
    let range = json!([{"host_id": 655_360, "container_id": 0, "length": 65536}]);
    let options = json!({"network": "NODE", "userns_options": {"mode": "POD", "uids": range, "gids": range}});
    let security = json!({"namespace_options": options});
    let pod = json!({"cgroup_parent": format!("/{}", lab.id("one")), "security_context": security});
    let pod = node.run_pod("one", &json!({"linux": pod}));
    let script = "cat /proc/self/uid_map; readlink /proc/self/ns/net; ls /sys/class; (echo >/sys/no); \
                  stat -c '%n of %u' /etc/hosts /dev/shm; echo x >/dev/shm/x && stat -c '%n of %g' /dev/shm/x; \
                  echo done; sleep 1000";
    let main = json!({"image": {"image": image}, "command": ["/bin/sh", "-c", script], "linux": {"security_context": security}});
    node.run_container(&pod, "main", &main);
    let log = lab.path("logs/main.log");
    let said = || fs::read_to_string(&log).unwrap_or_default();
    wait_for("the container has looked around", || said().contains("done"));
    let own = fs::read_link("/proc/thread-self/ns/net").expect("a network");
    let mapped = said().lines().any(|line| line.split_whitespace().skip(3).eq(["0", "655360", "65536"]));
    assert!(mapped && said().contains(&*own.to_string_lossy()) && said().contains("F net\n"), "{}", said());
    assert!(said().contains("/sys/no"), "it writes to the node's sysfs: {}", said());
    for own in ["/etc/hosts of 0", "/dev/shm of 0", "/dev/shm/x of 0"] {
        assert!(said().contains(own), "{own}: {}", said());
    }
    node.remove_pod(&pod);
    node.finish();
}
