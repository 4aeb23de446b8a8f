//! Networks by the real plug-ins, and by hostile ones.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use gantry_cri::network::{Error, Networks, PortMapping, Protocol, Stage, remove_namespace};
use serde_json::{Value, json};

use crate::lab::{Lab, ask, ask_from_here, links, on_a_host, plugins, program, serve, within};

/// What most nodes have: a bridge with addresses of both families and host ports.
fn usual(lab: &Lab, version: &str) -> Value {
    json!({
        "cniVersion": version, "name": "usual",
        "plugins": [
            {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "ipMasqBackend": "nftables",
             "ipam": {"type": "host-local", "dataDir": lab.path("ipam"),
                      "ranges": [[{"subnet": "10.88.0.0/24"}], [{"subnet": "fd02::/64"}]],
                      "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}},
            {"type": "portmap", "backend": "nftables", "capabilities": {"portMappings": true}},
        ]
    })
}

fn configure(lab: &Lab, file: &str, conf: &Value) {
    fs::create_dir_all(lab.path("net.d")).unwrap();
    fs::write(lab.path("net.d").join(file), conf.to_string()).unwrap();
}

/// Makes a plug-in of a shell script. It finds its input on standard input and `$DIR` to write to.
fn script(lab: &Lab, name: &str, text: &str) {
    fs::create_dir_all(lab.path("bin")).unwrap();
    let path = lab.path("bin").join(name);
    fs::write(&path, format!("#!/bin/sh\nDIR={}\n{text}", lab.path("").display())).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn one_plugin(lab: &Lab, kind: &str, version: &str) {
    configure(lab, "10.conflist", &json!({"cniVersion": version, "name": "net", "plugins": [{"type": kind}]}));
}

const ANSWER: &str = r#"echo '{"cniVersion":"1.0.0","ips":[{"address":"192.0.2.7/24"}]}'"#;

fn held_addresses(lab: &Lab) -> usize {
    let Ok(files) = fs::read_dir(lab.path("ipam/usual")) else { return 0 };
    files.flatten().filter(|f| f.file_name().to_string_lossy().starts_with(['1', 'f'])).count()
}

#[test]
fn the_real_plugins_connect_pods_of_every_version() {
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        on_a_host(move |lab| async move {
            configure(&lab, "10-usual.conflist", &usual(&lab, version));
            let networks = lab.networks().await;
            assert!(networks.readiness().await.ready, "{:?}", networks.readiness().await);
            let mut pod = lab.pod("one").await;
            pod.port_mappings =
                vec![PortMapping { host_port: 8080, container_port: 80, protocol: Protocol::Tcp, host_ip: None }];
            let one = networks.attach(pod).await.unwrap();
            let two = lab.attach(&networks, "two").await;
            assert_eq!(one.ips.len(), 2, "{one:?}");
            serve(&lab.netns("one"), "[::]:80");
            for (mine, theirs) in two.ips.iter().zip(&one.ips) {
                assert_eq!(ask(&lab.netns("two"), (*theirs, 80).into()).unwrap(), *mine);
            }
            assert!(ask(&lab.netns("two"), "10.88.0.1:8080".parse().unwrap()).is_ok(), "host port");
            networks.check("one").await.unwrap();
            networks.collect().await.unwrap();
            assert_eq!(held_addresses(&lab), 4);
            networks.detach("one").await.unwrap();
            assert!(ask_from_here("10.88.0.1:8080".parse().unwrap()).is_err());
            lab.finish(&networks).await;
            assert_eq!(held_addresses(&lab), 0);
            assert_eq!(fs::read_dir(lab.path("cache/results")).unwrap().count(), 0);
        });
    }
}

#[test]
fn check_sees_what_somebody_changed() {
    on_a_host(|lab| async move {
        configure(&lab, "10-usual.conflist", &usual(&lab, "1.0.0"));
        let networks = lab.networks().await;
        lab.attach(&networks, "one").await;
        within(&lab.netns("one"), || program("ip", &["addr", "flush", "dev", "eth0"]));
        let error = networks.check("one").await.unwrap_err().to_string();
        assert!(error.contains("plugin type=\"bridge\" failed (check)"), "{error}");
        lab.finish(&networks).await;
    });
}

#[test]
fn gc_names_our_attachments_and_those_that_others_have_cached() {
    on_a_host(|lab| async move {
        script(&lab, "tell", &format!("cat >$DIR/$CNI_COMMAND.json; {ANSWER}"));
        one_plugin(&lab, "tell", "1.1.0");
        let networks = lab.networks().await;
        lab.attach(&networks, "one").await;
        let cached = fs::read_to_string(lab.path("cache/results/net-one-eth0")).unwrap();
        let other = cached.replace(r#""containerId":"one""#, r#""containerId":"other""#);
        fs::write(lab.path("cache/results/net-other-eth0"), other).unwrap();
        networks.collect().await.unwrap();
        let told: Value = serde_json::from_str(&fs::read_to_string(lab.path("GC.json")).unwrap()).unwrap();
        let valid = json!([{"containerID": "one", "ifname": "eth0"}, {"containerID": "other", "ifname": "eth0"}]);
        assert_eq!(told["cni.dev/valid-attachments"], valid);
        lab.finish(&networks).await;
    });
}

#[test]
fn a_change_of_the_configuration_counts_from_the_next_pod_on() {
    on_a_host(|lab| async move {
        let mut config = lab.config();
        config.bridge = None;
        let networks = Networks::open(config).await.unwrap();
        let none = networks.readiness().await;
        assert_eq!(none.reason, "NetworkPluginNotReady");
        assert!(none.message.starts_with("Network plugin returns error: cni plugin not initialized"), "{none:?}");
        assert!(matches!(networks.attach(lab.pod("early").await).await, Err(Error::NotInitialized { .. })));
        configure(&lab, "10-usual.conflist", &usual(&lab, "1.0.0"));
        assert!(networks.readiness().await.ready);
        lab.attach(&networks, "one").await;
        configure(&lab, "05-bad.conf", &json!({"cniVersion": "1.0.0", "type": "ptp"}));
        let bad = networks.readiness().await;
        assert!(bad.message.contains("05-bad.conf: no name"), "{bad:?}");
        fs::remove_dir_all(lab.path("net.d")).unwrap();
        networks.detach("one").await.unwrap();
        assert_eq!(held_addresses(&lab), 0, "DEL is run by the configuration of the time");
        lab.finish(&networks).await;
    });
}

#[test]
fn the_built_in_network_gives_way_to_a_configuration() {
    on_a_host(|lab| async move {
        let networks = lab.networks().await;
        let built_in = lab.attach(&networks, "one").await;
        assert!(built_in.ips[0].to_string().starts_with("10.87."));
        configure(&lab, "10-usual.conflist", &usual(&lab, "1.0.0"));
        let by_plugin = lab.attach(&networks, "two").await;
        assert!(by_plugin.ips[0].to_string().starts_with("10.88."));
        lab.finish(&networks).await;
    });
}

#[test]
fn status_of_a_plugin_decides_whether_the_network_is_ready() {
    on_a_host(|lab| async move {
        script(&lab, "sick", r#"[ "$CNI_COMMAND" = STATUS ] && { echo '{"code":50,"msg":"no daemon"}'; exit 1; }"#);
        one_plugin(&lab, "sick", "1.1.0");
        let networks = lab.networks().await;
        let readiness = networks.readiness().await;
        assert!(!readiness.ready);
        assert!(readiness.message.ends_with("plugin type=\"sick\" failed (status): no daemon"), "{readiness:?}");
        one_plugin(&lab, "sick", "1.0.0");
        assert!(networks.readiness().await.ready, "before 1.1.0 there is no STATUS");
    });
}

#[test]
fn plugins_are_told_what_the_specification_and_containerd_tell_them() {
    on_a_host(|lab| async move {
        let tell = format!("cat >$DIR/$CNI_COMMAND.json; env | grep ^CNI_ | sort >$DIR/$CNI_COMMAND.env; {ANSWER}");
        script(&lab, "tell", &tell);
        let capabilities =
            json!({"portMappings": true, "bandwidth": true, "dns": true, "cgroupPath": false, "aliases": true});
        let plugin = json!({"type": "tell", "capabilities": capabilities, "own": 7});
        configure(&lab, "10.conflist", &json!({"cniVersion": "1.0.0", "name": "net", "plugins": [plugin]}));
        let networks = lab.networks().await;
        let mut pod = lab.pod("one").await;
        pod.port_mappings =
            vec![PortMapping { host_port: 53, container_port: 5353, protocol: Protocol::Udp, host_ip: None }];
        pod.cgroup_parent = "/kubepods".into();
        pod.capabilities.insert("aliases".into(), json!(["web"]));
        networks.attach(pod).await.unwrap();
        let read = |name: &str| fs::read_to_string(lab.path(name)).unwrap();
        let told: Value = serde_json::from_str(&read("ADD.json")).unwrap();
        let ports = json!([{"hostPort": 53, "containerPort": 5353, "protocol": "udp", "hostIP": ""}]);
        assert_eq!(told["runtimeConfig"], json!({"portMappings": ports, "aliases": ["web"]}));
        assert_eq!((&told["name"], &told["cniVersion"], &told["own"]), (&json!("net"), &json!("1.0.0"), &json!(7)));
        assert!(told.get("prevResult").is_none());
        let environment = read("ADD.env");
        for line in [
            "CNI_COMMAND=ADD",
            "CNI_CONTAINERID=one",
            "CNI_IFNAME=eth0",
            &format!("CNI_NETNS={}", lab.netns("one").display()),
            "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=pod-one;K8S_POD_INFRA_CONTAINER_ID=one;K8S_POD_UID=uid-one",
        ] {
            assert!(environment.lines().any(|l| l == line), "{line} is not in {environment}");
        }
        let cached: Value = serde_json::from_str(&read("cache/results/net-one-eth0")).unwrap();
        assert_eq!(cached["kind"], "cniCacheV1");
        assert_eq!(cached["result"]["ips"][0]["address"], "192.0.2.7/24");
        // After a reboot the namespace is gone.
        remove_namespace(&lab.netns("one")).await.unwrap();
        networks.detach("one").await.unwrap();
        let told: Value = serde_json::from_str(&read("DEL.json")).unwrap();
        assert_eq!(told["prevResult"]["ips"][0]["address"], "192.0.2.7/24");
        assert!(read("DEL.env").lines().any(|l| l == "CNI_NETNS="));
        lab.finish(&networks).await;
    });
}

#[test]
fn the_specifications_own_library_can_delete_our_attachment_by_its_cache() {
    on_a_host(|lab| async move {
        // libcni looks in /var/lib/cni: a directory of ours is mounted there, in this test's own mount namespace.
        fs::create_dir_all("/var/lib/cni").unwrap();
        fs::create_dir_all(lab.path("cache")).unwrap();
        let bind = nix::mount::MsFlags::MS_BIND;
        nix::mount::mount(Some(&lab.path("cache")), "/var/lib/cni", None::<&str>, bind, None::<&str>).unwrap();
        configure(&lab, "10-usual.conflist", &usual(&lab, "1.0.0"));
        let networks = lab.networks().await;
        // What the tool calls a container is made of its namespace's path.
        let netns = lab.netns("one");
        let sum = program("sh", &["-c", &format!("printf %s {} | sha512sum", netns.display())]);
        let mut pod = lab.pod("one").await;
        pod.id = format!("cnitool-{}", &sum[..20]);
        networks.attach(pod).await.unwrap();
        for verb in ["check", "del"] {
            let mut command = std::process::Command::new(plugins().join("cnitool"));
            command.env("CNI_PATH", plugins()).env("NETCONFPATH", lab.path("net.d")).args([verb, "usual"]);
            let done = command.arg(&netns).output().unwrap();
            assert!(done.status.success(), "{verb}: {done:?}");
        }
        assert_eq!(held_addresses(&lab), 0);
        lab.finish(&networks).await;
    });
}

#[test]
fn hostile_plugins_cost_an_error_that_names_them_and_leave_nothing() {
    for (text, verb, why) in [
        ("exit 3", "add", "exit status: 3"),
        ("echo oops >&2; exit 1", "add", "oops"),
        ("kill -SEGV $$", "add", "signal: 11"),
        ("echo '{\"code\":11,\"msg\":\"try later\",\"details\":\"busy\"}'; exit 1", "add", "try later; busy"),
        ("head -c 3000000 /dev/zero", "add", "longer than 1048576 bytes"),
        ("head -c 3000000 /dev/zero >&2; exit 1", "add", "exit status: 1"),
        ("echo rubbish", "network", "\"rubbish\\n\""),
        ("echo '[]'", "network", "no JSON object"),
        ("echo '{}'", "network", "no address for interface eth0"),
        ("echo '{\"ips\":[{\"address\":\"192.0.2.7\"}]}'", "network", "has no address like"),
        ("exit 0", "network", "not JSON"),
    ] {
        on_a_host(move |lab| async move {
            script(&lab, "evil", &format!("[ $CNI_COMMAND = DEL ] && {{ touch $DIR/deleted; exit 0; }}\n{text}"));
            one_plugin(&lab, "evil", "1.0.0");
            let networks = lab.networks().await;
            let error = networks.attach(lab.pod("one").await).await.unwrap_err().to_string();
            assert!(error.contains(verb) && error.contains(why), "{text}: {error}");
            assert!(lab.path("deleted").exists(), "DEL was run after {text}");
            lab.finish(&networks).await;
        });
    }
}

#[test]
fn a_plugin_that_hangs_is_killed_with_all_it_started() {
    on_a_host(|lab| async move {
        let text = "[ $CNI_COMMAND = DEL ] && exit 0\nsleep 1000 & echo $! >$DIR/child\nwait";
        script(&lab, "hang", text);
        one_plugin(&lab, "hang", "1.0.0");
        let mut config = lab.config();
        config.deadline = Duration::from_millis(500);
        let networks = Networks::open(config).await.unwrap();
        let error = networks.attach(lab.pod("one").await).await.unwrap_err();
        assert!(matches!(error, Error::Timeout { .. }), "{error}");
        let child = fs::read_to_string(lab.path("child")).unwrap();
        gone(child.trim());
        lab.finish(&networks).await;
    });
}

/// Waits until a process is gone, or only its parent's to bury.
fn gone(pid: &str) {
    let until = Instant::now() + Duration::from_secs(5);
    while fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z")) {
        assert!(Instant::now() < until, "process {pid} is there still");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_failed_del_keeps_the_attachment_until_it_succeeds() {
    on_a_host(|lab| async move {
        script(&lab, "stubborn", &format!("[ $CNI_COMMAND = DEL ] && exec test -e $DIR/may-go\n{ANSWER}"));
        one_plugin(&lab, "stubborn", "1.0.0");
        let networks = lab.networks().await;
        lab.attach(&networks, "one").await;
        let error = networks.detach("one").await.unwrap_err().to_string();
        assert!(error.contains("plugin type=\"stubborn\" failed (delete)"), "{error}");
        drop(networks);
        let networks = lab.networks().await;
        assert_eq!(networks.attachments()[0].stage, Stage::Removing);
        fs::write(lab.path("may-go"), "").unwrap();
        networks.detach("one").await.unwrap();
        lab.finish(&networks).await;
    });
}

#[test]
fn a_chain_passes_results_on_and_is_undone_from_its_end_when_a_link_breaks() {
    on_a_host(|lab| async move {
        script(&lab, "first", &format!("echo first $CNI_COMMAND >>$DIR/log; {ANSWER}"));
        script(
            &lab,
            "second",
            "echo second $CNI_COMMAND >>$DIR/log; cat >$DIR/$CNI_COMMAND.json; [ $CNI_COMMAND = DEL ]",
        );
        let plugins = json!([{"type": "first"}, {"type": "second"}]);
        configure(&lab, "10.conflist", &json!({"cniVersion": "1.0.0", "name": "net", "plugins": plugins}));
        let networks = lab.networks().await;
        networks.attach(lab.pod("one").await).await.unwrap_err();
        let log = fs::read_to_string(lab.path("log")).unwrap();
        assert_eq!(log, "first ADD\nsecond ADD\nsecond DEL\nfirst DEL\n");
        let told: Value = serde_json::from_str(&fs::read_to_string(lab.path("ADD.json")).unwrap()).unwrap();
        assert_eq!(told["prevResult"]["ips"][0]["address"], "192.0.2.7/24");
        lab.finish(&networks).await;
    });
}

#[test]
fn a_pod_can_have_several_networks() {
    on_a_host(|lab| async move {
        configure(&lab, "10-usual.conflist", &usual(&lab, "1.0.0"));
        let second = json!({"cniVersion": "1.0.0", "name": "second", "type": "ptp",
            "ipam": {"type": "host-local", "dataDir": lab.path("ipam"), "subnet": "10.99.0.0/24"}});
        configure(&lab, "20-second.conf", &second);
        let mut config = lab.config();
        config.cni.max_conf_num = 2;
        let networks = Networks::open(config).await.unwrap();
        let attached = lab.attach(&networks, "one").await;
        assert!(attached.ips[0].to_string().starts_with("10.88."));
        assert_eq!(attached.results.len(), 2);
        let inside = within(&lab.netns("one"), links);
        assert!(inside.contains(&"eth0".into()) && inside.contains(&"eth1".into()), "{inside:?}");
        lab.finish(&networks).await;
    });
}

#[test]
fn a_missing_plugin_is_named_with_the_places_that_were_searched() {
    on_a_host(|lab| async move {
        one_plugin(&lab, "nowhere", "1.0.0");
        let networks = lab.networks().await;
        let error = networks.attach(lab.pod("one").await).await.unwrap_err().to_string();
        assert!(error.starts_with("failed to find plugin \"nowhere\" in path ["), "{error}");
        one_plugin(&lab, "host-local", "1.0.0");
        for attachment in networks.attachments() {
            assert_eq!(attachment.stage, Stage::Removing, "what cannot be undone stays recorded");
        }
    });
}

#[test]
fn what_a_pod_asks_for_is_checked_before_anything_is_done() {
    on_a_host(|lab| async move {
        let networks = lab.networks().await;
        let good = lab.pod("one").await;
        let with = |change: &dyn Fn(&mut gantry_cri::network::PodNetwork)| {
            let mut pod = good.clone();
            change(&mut pod);
            pod
        };
        for (pod, field) in [
            (with(&|p| p.id = "../x".into()), "id"),
            (with(&|p| p.id = String::new()), "id"),
            (with(&|p| p.name = "a;K8S_POD_UID=b".into()), "name"),
            (with(&|p| p.netns = "".into()), "netns"),
            (with(&|p| p.netns = lab.path("nothing")), "nothing"),
        ] {
            let error = networks.attach(pod).await.unwrap_err().to_string();
            assert!(error.contains(field), "{error}");
        }
        lab.finish(&networks).await;
    });
}
