//! The built-in network.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use gantry_cri::network::{
    Bandwidth, BridgeConfig, Error, Networks, PortMapping, Protocol, Stage, create_namespace, is_namespace,
    remove_namespace,
};

use crate::lab::{ask, ask_from_here, echo_datagram, links, on_a_host, program, send_datagram, serve, within};

fn port(host_port: u16, container_port: u16, protocol: Protocol, host_ip: Option<&str>) -> PortMapping {
    PortMapping { host_port, container_port, protocol, host_ip: host_ip.map(|ip| ip.parse().unwrap()) }
}

fn at(ip: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(ip, port)
}

#[test]
fn pods_reach_each_other_their_host_and_the_world_by_both_families() {
    on_a_host(|lab| async move {
        let networks = lab.networks().await;
        let (one, two) = (lab.attach(&networks, "one").await, lab.attach(&networks, "two").await);
        assert_eq!(one.ips.len(), 2);
        let neighbour = lab.neighbour().await;
        serve(&lab.netns("two"), "[::]:80");
        for (mine, theirs) in one.ips.iter().zip(&two.ips) {
            assert_eq!(ask(&lab.netns("one"), at(*theirs, 80)).unwrap(), *mine);
            assert!(ask_from_here(at(*theirs, 80)).is_ok(), "the host reaches its pods");
        }
        // The world knows no pods: it sees the host.
        serve(&neighbour, "[::]:80");
        for (world, host) in [("198.51.100.2", "198.51.100.1"), ("fd01::2", "fd01::1")] {
            let seen = ask(&lab.netns("one"), at(world.parse().unwrap(), 80)).unwrap();
            assert_eq!(seen.to_string(), host);
        }
        lab.finish(&networks).await;
    });
}

#[test]
fn a_pods_interface_and_its_result_agree() {
    on_a_host(|lab| async move {
        let networks = lab.networks().await;
        let attached = lab.attach(&networks, "one").await;
        let result = &attached.results[0];
        let shown = within(&lab.netns("one"), || program("ip", &["addr", "show", "dev", "eth0"]));
        assert!(shown.contains(result["interfaces"][2]["mac"].as_str().unwrap()), "{shown}");
        for ip in result["ips"].as_array().unwrap() {
            assert!(shown.contains(ip["address"].as_str().unwrap()), "{shown}");
        }
        assert!(!shown.contains("tentative") || shown.matches("tentative").count() == 1, "{shown}");
        assert!(links().contains(&result["interfaces"][1]["name"].as_str().unwrap().to_owned()));
        networks.check("one").await.unwrap();
        assert!(matches!(networks.check("two").await, Err(Error::NotFound { .. })));
        lab.finish(&networks).await;
    });
}

#[test]
fn host_ports_lead_into_the_pod_from_everywhere_until_it_goes() {
    on_a_host(|lab| async move {
        let networks = lab.networks().await;
        let neighbour = lab.neighbour().await;
        let other = lab.attach(&networks, "other").await;
        let mut pod = lab.pod("one").await;
        pod.port_mappings = vec![
            port(8080, 80, Protocol::Tcp, None),
            port(8080, 53, Protocol::Udp, None),
            port(9090, 80, Protocol::Tcp, Some("198.51.100.1")),
            port(0, 81, Protocol::Tcp, None),
        ];
        networks.attach(pod).await.unwrap();
        serve(&lab.netns("one"), "[::]:80");
        echo_datagram(&lab.netns("one"), "0.0.0.0:53");
        let host = |port| SocketAddr::new("198.51.100.1".parse().unwrap(), port);
        assert_eq!(ask(&neighbour, host(8080)).unwrap().to_string(), "198.51.100.2", "the client's address is kept");
        assert_eq!(ask(&neighbour, "[fd01::1]:8080".parse().unwrap()).unwrap().to_string(), "fd01::2");
        assert!(ask(&neighbour, host(9090)).is_ok());
        assert_eq!(send_datagram(&neighbour, "198.51.100.1:8080"), b"ping");
        // The host itself, another pod, and the pod by its own host port.
        assert!(ask_from_here(host(8080)).is_ok());
        assert!(ask_from_here("127.0.0.1:8080".parse().unwrap()).is_ok());
        assert!(ask(&lab.netns("other"), host(8080)).is_ok());
        assert!(ask(&lab.netns("one"), host(8080)).is_ok());
        // Not on another address of the host.
        assert!(ask(&lab.netns("other"), at(gateway(other.ips[0]), 9090)).is_err());
        let listed = program("nft", &["list", "table", "inet", "gantry0"]);
        assert!(listed.contains("tcp . 8080 : 10.87."), "{listed}");
        networks.detach("one").await.unwrap();
        assert!(ask(&neighbour, host(8080)).is_err());
        let listed = program("nft", &["list", "table", "inet", "gantry0"]);
        assert!(!listed.contains("8080"), "{listed}");
        lab.finish(&networks).await;
    });
}

fn gateway(pod: IpAddr) -> IpAddr {
    match pod {
        IpAddr::V4(_) => "10.87.0.1".parse().unwrap(),
        IpAddr::V6(_) => "fd6a:4e67:7279::1".parse().unwrap(),
    }
}

#[test]
fn a_pod_cannot_reach_what_listens_on_the_hosts_loopback() {
    on_a_host(|lab| async move {
        let networks = lab.networks().await;
        lab.attach(&networks, "one").await;
        let listener = std::net::TcpListener::bind("127.0.0.1:7777").unwrap();
        within(&lab.netns("one"), || {
            program("ip", &["link", "set", "lo", "down"]);
            program("ip", &["route", "add", "127.0.0.0/8", "via", "10.87.0.1", "table", "5"]);
            program("ip", &["rule", "add", "pref", "0", "to", "127.0.0.0/8", "lookup", "5"]);
        });
        let asked = within(&lab.netns("one"), || {
            let address = "127.0.0.1:7777".parse().unwrap();
            std::net::TcpStream::connect_timeout(&address, std::time::Duration::from_millis(500))
        });
        assert!(asked.is_err());
        drop(listener);
        lab.finish(&networks).await;
    });
}

#[test]
fn host_ports_that_another_pod_has_are_refused_with_its_name() {
    on_a_host(|lab| async move {
        let networks = lab.networks().await;
        for id in ["one", "two"] {
            let mut pod = lab.pod(id).await;
            pod.port_mappings = vec![port(8080, 80, Protocol::Sctp, None)];
            match (id, networks.attach(pod).await) {
                ("one", Ok(_)) => {}
                ("two", Err(error)) => {
                    assert!(error.to_string().contains("8080/sctp is taken by pod \"one\""), "{error}")
                }
                (_, other) => panic!("{other:?}"),
            }
        }
        assert_eq!(networks.attachments().len(), 1);
        lab.finish(&networks).await;
    });
}

#[test]
fn fifty_pods_at_once_have_fifty_addresses_and_leave_nothing() {
    on_a_host(|lab| async move {
        let networks = lab.networks().await;
        let pods = (0..50).map(|i| format!("p{i}"));
        let attach = pods.map(|id| {
            let (lab, networks) = (&lab, &networks);
            async move { lab.attach(networks, &id).await }
        });
        let all = futures::future::join_all(attach).await;
        let distinct: BTreeSet<IpAddr> = all.iter().flat_map(|a| a.ips.clone()).collect();
        assert_eq!(distinct.len(), 100);
        lab.finish(&networks).await;
    });
}

#[test]
fn a_restarted_daemon_knows_its_pods_and_gives_no_address_twice() {
    on_a_host(|lab| async move {
        let networks = lab.networks().await;
        let mut pod = lab.pod("one").await;
        pod.port_mappings = vec![port(8080, 80, Protocol::Tcp, None)];
        let before = networks.attach(pod.clone()).await.unwrap();
        drop(networks);
        program("ip", &["link", "add", "gntdeadbeef", "type", "veth", "peer", "name", "stray"]);
        program("ip", &["link", "set", "gntdeadbeef", "master", "gantry0"]);
        let networks = lab.networks().await;
        assert!(!links().contains(&"gntdeadbeef".to_owned()), "a link that no pod has is removed");
        let listed = networks.attachments();
        assert_eq!(listed.len(), 1);
        assert_eq!(listed[0].stage, Stage::Attached(before.clone()));
        assert_eq!(networks.attach(pod).await.unwrap(), before, "asked again, the same");
        let other = lab.attach(&networks, "two").await;
        assert!(other.ips.iter().all(|ip| !before.ips.contains(ip)));
        serve(&lab.netns("one"), "0.0.0.0:80");
        assert!(ask(&lab.netns("two"), at(gateway(before.ips[0]), 8080)).is_ok(), "host ports are there again");
        lab.finish(&networks).await;
    });
}

#[test]
fn a_pod_whose_namespace_is_gone_is_detached_all_the_same() {
    on_a_host(|lab| async move {
        let networks = lab.networks().await;
        lab.attach(&networks, "one").await;
        remove_namespace(&lab.netns("one")).await.unwrap();
        networks.detach("one").await.unwrap();
        networks.detach("one").await.unwrap();
        networks.detach("never").await.unwrap();
        lab.finish(&networks).await;
    });
}

#[test]
fn what_somebody_removed_is_made_again() {
    on_a_host(|lab| async move {
        let networks = lab.networks().await;
        lab.attach(&networks, "one").await;
        program("ip", &["link", "del", "gantry0"]);
        let mut pod = lab.pod("two").await;
        pod.port_mappings = vec![port(8080, 80, Protocol::Tcp, None)];
        networks.attach(pod).await.unwrap();
        program("nft", &["delete", "table", "inet", "gantry0"]);
        let mut pod = lab.pod("three").await;
        pod.port_mappings = vec![port(8081, 80, Protocol::Tcp, None)];
        networks.attach(pod).await.unwrap();
        let listed = program("nft", &["list", "table", "inet", "gantry0"]);
        assert!(listed.contains("8080") && listed.contains("8081"), "{listed}");
        lab.finish(&networks).await;
    });
}

#[test]
fn a_range_that_the_host_has_already_is_refused_with_its_interface() {
    on_a_host(|lab| async move {
        program("ip", &["link", "add", "lan0", "type", "bridge"]);
        program("ip", &["addr", "add", "10.87.5.1/24", "dev", "lan0"]);
        let networks = lab.networks().await;
        let error = networks.attach(lab.pod("one").await).await.unwrap_err();
        assert!(error.to_string().contains("overlaps 10.87.5.0/24 of interface \"lan0\""), "{error}");
        assert!(networks.attachments().is_empty());
        lab.finish(&networks).await;
    });
}

#[test]
fn an_exhausted_range_is_an_error_and_recovers_when_a_pod_goes() {
    on_a_host(|lab| async move {
        let mut config = lab.config();
        config.bridge =
            Some(BridgeConfig { subnets: vec!["10.87.0.0/30".parse().unwrap()], ..BridgeConfig::default() });
        let networks = Networks::open(config).await.unwrap();
        let first = lab.attach(&networks, "one").await;
        let error = networks.attach(lab.pod("two").await).await.unwrap_err();
        assert!(matches!(error, Error::Exhausted { capacity: 1, .. }), "{error}");
        networks.detach("one").await.unwrap();
        remove_namespace(&lab.netns("one")).await.unwrap();
        let again = lab.attach(&networks, "three").await;
        assert_eq!(again.ips, first.ips);
        lab.finish(&networks).await;
    });
}

#[test]
fn traffic_limits_are_set_at_both_ends() {
    on_a_host(|lab| async move {
        let networks = lab.networks().await;
        let mut pod = lab.pod("one").await;
        pod.bandwidth = Some(Bandwidth {
            ingress_rate: 8_000_000,
            ingress_burst: 80_000,
            egress_rate: 16_000_000,
            egress_burst: 160_000,
        });
        let attached = networks.attach(pod).await.unwrap();
        let port = attached.results[0]["interfaces"][1]["name"].as_str().unwrap().to_owned();
        let host = program("tc", &["qdisc", "show", "dev", &port]);
        assert!(host.contains("tbf") && host.contains("rate 8Mbit"), "{host}");
        let inside = within(&lab.netns("one"), || program("tc", &["qdisc", "show", "dev", "eth0"]));
        assert!(inside.contains("tbf") && inside.contains("rate 16Mbit"), "{inside}");
        serve(&lab.netns("one"), "0.0.0.0:80");
        assert!(ask_from_here(at(attached.ips[0], 80)).is_ok());
        lab.finish(&networks).await;
    });
}

#[test]
fn a_namespace_survives_its_maker_and_is_known_for_one() {
    on_a_host(|lab| async move {
        let path = lab.netns("one");
        assert!(!is_namespace(&path));
        create_namespace(&path).await.unwrap();
        assert!(is_namespace(&path));
        assert!(create_namespace(&path).await.unwrap_err().to_string().contains("exists"));
        assert!(is_namespace(&path));
        let up = within(&path, || program("ip", &["-o", "addr", "show", "lo"]));
        assert!(up.contains("127.0.0.1"), "{up}");
        remove_namespace(&path).await.unwrap();
        remove_namespace(&path).await.unwrap();
        assert!(!Path::exists(&path));
        std::fs::write(&path, "").unwrap();
        assert!(!is_namespace(&path), "after a reboot the file is an ordinary one");
    });
}
