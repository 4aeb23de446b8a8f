//! The nftables table of the built-in network: what it says, as requests.
//!
//! ```text
//! table inet NAME {
//!     map ports4 / ports6 { protocol . port : address . port }                    host ports on all addresses
//!     map bound4 / bound6 { address . protocol . port : address . port }          host ports on one address
//!     chain hostports   { ip6 daddr ::1 return                                     nothing could come back to it
//!                         dnat to … map @bound4, @bound6, @ports4, @ports6 }
//!     chain prerouting  { type nat hook prerouting priority -100; fib daddr type local jump hostports }
//!     chain output      { type nat hook output priority -100;     fib daddr type local jump hostports }
//!     chain postrouting { type nat hook postrouting priority 100;
//!                         saddr SUBNET daddr != SUBNET not multicast masquerade   out into the world
//!                         saddr SUBNET oifname BRIDGE ct status dnat masquerade   pod to pod by a host port
//!                         saddr 127.0.0.0/8 oifname BRIDGE masquerade }           the host itself by a host port
//!     chain guard       { type filter hook prerouting priority -300; iifname BRIDGE ip daddr 127.0.0.0/8 drop }
//! }
//! ```
//!
//! No other table is read or changed. A pod's ports are entries of the maps, so that they come and go by key.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::nft::{
    Attributes, Header, Hook, IPV4, IPV6, Map, Meta, OUTPUT, POSTROUTING, PREROUTING, REG, add_chain, add_entries,
    add_map, add_rule, add_table, address, come_back, compare, delete_entries, delete_table, drop_packet, interface,
    jump, load_bytes, load_meta, look_up, mask, masquerade, redirect, redirected, to_this_host,
};
use crate::network::netlink::Request;
use crate::network::{BridgeConfig, PortMapping, Protocol, Subnet};

const PORTS4: Map = map("ports4", 1, &[INET_PROTO, INET_SERVICE], 8, &[IPV4_ADDR, INET_SERVICE], 8);
const PORTS6: Map = map("ports6", 2, &[INET_PROTO, INET_SERVICE], 8, &[IPV6_ADDR, INET_SERVICE], 20);
const BOUND4: Map = map("bound4", 3, &[IPV4_ADDR, INET_PROTO, INET_SERVICE], 12, &[IPV4_ADDR, INET_SERVICE], 8);
const BOUND6: Map = map("bound6", 4, &[IPV6_ADDR, INET_PROTO, INET_SERVICE], 24, &[IPV6_ADDR, INET_SERVICE], 20);

// What `nft` calls the types of keys and values.
const IPV4_ADDR: u32 = 7;
const IPV6_ADDR: u32 = 8;
const INET_PROTO: u32 = 12;
const INET_SERVICE: u32 = 13;

const fn map(name: &'static str, id: u32, key: &[u32], key_bytes: u32, data: &[u32], data_bytes: u32) -> Map {
    Map { name, id, key_type: concatenated(key), key_bytes, data_type: concatenated(data), data_bytes }
}

/// `nft` writes the type of several fields together as six bits each.
const fn concatenated(types: &[u32]) -> u32 {
    let (mut all, mut i) = (0, 0);
    while i < types.len() {
        all = all << 6 | types[i];
        i += 1;
    }
    all
}

/// One way into a pod: an entry of one of the maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    map: &'static str,
    key: Vec<u8>,
    value: Vec<u8>,
}

/// The entries that lead a host port to those of the pod's addresses that it can reach.
pub(super) fn entries(mapping: &PortMapping, addresses: &[IpAddr]) -> Vec<Entry> {
    let bound = mapping.host_ip.filter(|ip| !ip.is_unspecified());
    let wanted = |pod: &&IpAddr| mapping.host_ip.is_none_or(|host| host.is_ipv4() == pod.is_ipv4());
    let entry = |pod: &IpAddr| {
        let map = match (bound.is_some(), pod.is_ipv4()) {
            (false, true) => PORTS4.name,
            (false, false) => PORTS6.name,
            (true, true) => BOUND4.name,
            (true, false) => BOUND6.name,
        };
        let mut key = bound.map(address).unwrap_or_default();
        key.extend([number(mapping.protocol), 0, 0, 0]);
        key.extend(port(mapping.host_port));
        let mut value = address(*pod);
        value.extend(port(mapping.container_port));
        Entry { map, key, value }
    };
    addresses.iter().filter(wanted).map(entry).collect()
}

/// A port fills a register of four bytes.
fn port(number: u16) -> [u8; 4] {
    let [high, low] = number.to_be_bytes();
    [high, low, 0, 0]
}

fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}

/// Requests that add entries to the table.
pub(super) fn add(config: &BridgeConfig, entries: &[Entry]) -> Vec<Request> {
    by_map(entries, |map, members| add_entries(&config.name, map, members))
}

/// Requests that take entries, which must be there, out of the table.
pub(super) fn delete(config: &BridgeConfig, entries: &[Entry]) -> Vec<Request> {
    by_map(entries, |map, members| delete_entries(&config.name, map, members))
}

/// An attribute's length has 16 bits: entries are sent a few at a time.
const AT_ONCE: usize = 256;

fn by_map(entries: &[Entry], make: impl Fn(&str, &[(Vec<u8>, Vec<u8>)]) -> Request) -> Vec<Request> {
    let mut requests = Vec::new();
    for map in [PORTS4.name, PORTS6.name, BOUND4.name, BOUND6.name] {
        let of_map = entries.iter().filter(|e| e.map == map);
        let members: Vec<_> = of_map.map(|e| (e.key.clone(), e.value.clone())).collect();
        requests.extend(members.chunks(AT_ONCE).map(|some| make(map, some)));
    }
    requests
}

/// Requests that make the whole table anew, with these entries, whatever there was of it.
pub(super) fn install(config: &BridgeConfig, all: &[Entry]) -> Vec<Request> {
    let table = &config.name;
    let nat = |number, priority| Some(Hook { kind: "nat", number, priority });
    let guard = Some(Hook { kind: "filter", number: PREROUTING, priority: -300 });
    let mut requests = vec![add_table(table), delete_table(table), add_table(table)];
    requests.extend([PORTS4, PORTS6, BOUND4, BOUND6].iter().map(|map| add_map(table, map)));
    requests.extend([
        add_chain(table, "hostports", None),
        add_chain(table, "prerouting", nat(PREROUTING, -100)),
        add_chain(table, "output", nat(OUTPUT, -100)),
        add_chain(table, "postrouting", nat(POSTROUTING, 100)),
        add_chain(table, "guard", guard),
    ]);
    requests.push(add_rule(table, "hostports", not_to_loopback6()));
    requests.extend([BOUND4, BOUND6, PORTS4, PORTS6].iter().map(|map| add_rule(table, "hostports", look_in(map))));
    let local = || to_this_host().into_iter().chain([jump("hostports")]).collect();
    requests.extend([add_rule(table, "prerouting", local()), add_rule(table, "output", local())]);
    for subnet in &config.subnets {
        requests.push(add_rule(table, "postrouting", out_into_the_world(subnet)));
        requests.push(add_rule(table, "postrouting", pod_to_pod(config, subnet)));
    }
    let loopback = (Ipv4Addr::new(127, 0, 0, 0).into(), 8);
    requests.push(add_rule(table, "postrouting", from_loopback(config, loopback)));
    requests.push(add_rule(table, "guard", to_loopback(config, loopback)));
    requests.extend(add(config, all));
    requests
}

/// What a pod answers to ::1 is dropped: the kernel has that address on the loopback interface alone, and no
/// `route_localnet` for IPv6. Whoever asks there is refused at once instead.
fn not_to_loopback6() -> Vec<Attributes> {
    let mut rule = of_family(false).to_vec();
    rule.extend(in_range(End::Destination, (Ipv6Addr::LOCALHOST.into(), 128), true));
    rule.push(come_back());
    rule
}

/// Sends what a map knows into the pod.
fn look_in(map: &Map) -> Vec<Attributes> {
    let v4 = map.data_bytes == 8;
    let family = if v4 { IPV4 } else { IPV6 };
    let words = if v4 { 1 } else { 4 };
    let mut rule = vec![load_meta(Meta::Family, REG), compare(REG, true, &[family])];
    let mut next = REG;
    if map.key_bytes > 8 {
        rule.push(load_address(End::Destination, v4, next));
        next += words;
    }
    rule.push(load_meta(Meta::Transport, next));
    rule.push(load_bytes(Header::Transport, 2, 2, next + 1));
    rule.push(look_up(map, REG));
    rule.push(redirect(family, REG + words));
    rule
}

#[derive(Clone, Copy)]
enum End {
    Source,
    Destination,
}

fn load_address(end: End, v4: bool, register: u32) -> Attributes {
    let (offset, length) = match (end, v4) {
        (End::Source, true) => (12, 4),
        (End::Destination, true) => (16, 4),
        (End::Source, false) => (8, 16),
        (End::Destination, false) => (24, 16),
    };
    load_bytes(Header::Network, offset, length, register)
}

fn of_family(v4: bool) -> [Attributes; 2] {
    [load_meta(Meta::Family, REG), compare(REG, true, &[if v4 { IPV4 } else { IPV6 }])]
}

/// Goes on only where an end of the packet is, or is not, in a range.
fn in_range(end: End, (network, prefix): (IpAddr, u8), inside: bool) -> [Attributes; 3] {
    let network = address(network);
    let bits: Vec<u8> = (0..network.len()).map(|i| byte_of_mask(prefix, i)).collect();
    [load_address(end, network.len() == 4, REG), mask(REG, &bits), compare(REG, inside, &network)]
}

fn byte_of_mask(prefix: u8, index: usize) -> u8 {
    let ones = usize::from(prefix).saturating_sub(index * 8).min(8) as u32;
    0xffu8.checked_shl(8 - ones).unwrap_or(0)
}

fn over_bridge(config: &BridgeConfig, direction: Meta) -> [Attributes; 2] {
    [load_meta(direction, REG), compare(REG, true, &interface(&config.name))]
}

fn out_into_the_world(subnet: &Subnet) -> Vec<Attributes> {
    let range = (subnet.network(), subnet.prefix());
    let v4 = subnet.network().is_ipv4();
    let multicast: (IpAddr, u8) =
        if v4 { ([224, 0, 0, 0].into(), 4) } else { ([0xff00, 0, 0, 0, 0, 0, 0, 0].into(), 8) };
    let mut rule = of_family(v4).to_vec();
    rule.extend(in_range(End::Source, range, true));
    rule.extend(in_range(End::Destination, range, false));
    rule.extend(in_range(End::Destination, multicast, false));
    rule.push(masquerade());
    rule
}

/// The answer must come back by the host, which changed the destination, and not over the bridge alone.
fn pod_to_pod(config: &BridgeConfig, subnet: &Subnet) -> Vec<Attributes> {
    let mut rule = of_family(subnet.network().is_ipv4()).to_vec();
    rule.extend(in_range(End::Source, (subnet.network(), subnet.prefix()), true));
    rule.extend(over_bridge(config, Meta::OutInterface));
    rule.extend(redirected());
    rule.push(masquerade());
    rule
}

fn from_loopback(config: &BridgeConfig, loopback: (IpAddr, u8)) -> Vec<Attributes> {
    let mut rule = of_family(true).to_vec();
    rule.extend(in_range(End::Source, loopback, true));
    rule.extend(over_bridge(config, Meta::OutInterface));
    rule.push(masquerade());
    rule
}

/// `route_localnet`, which host ports on 127.0.0.1 need, would else let pods reach what listens there.
fn to_loopback(config: &BridgeConfig, loopback: (IpAddr, u8)) -> Vec<Attributes> {
    let mut rule = of_family(true).to_vec();
    rule.extend(over_bridge(config, Meta::InInterface));
    rule.extend(in_range(End::Destination, loopback, true));
    rule.push(drop_packet());
    rule
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(host_ip: Option<&str>) -> PortMapping {
        let host_ip = host_ip.map(|ip| ip.parse().unwrap());
        PortMapping { host_port: 8080, container_port: 80, protocol: Protocol::Tcp, host_ip }
    }

    fn maps(host_ip: Option<&str>) -> Vec<&'static str> {
        let pod = ["10.87.0.2".parse().unwrap(), "fd00::2".parse().unwrap()];
        entries(&mapping(host_ip), &pod).iter().map(|e| e.map).collect()
    }

    #[test]
    fn a_host_port_leads_to_the_addresses_of_the_families_it_listens_on() {
        assert_eq!(maps(None), ["ports4", "ports6"]);
        assert_eq!(maps(Some("0.0.0.0")), ["ports4"]);
        assert_eq!(maps(Some("::")), ["ports6"]);
        assert_eq!(maps(Some("192.0.2.1")), ["bound4"]);
        assert_eq!(maps(Some("2001:db8::1")), ["bound6"]);
    }

    #[test]
    fn an_entry_has_each_field_in_registers_of_its_own() {
        let entry = &entries(&mapping(Some("192.0.2.1")), &["10.87.0.2".parse().unwrap()])[0];
        assert_eq!(entry.key, [192, 0, 2, 1, 6, 0, 0, 0, 0x1f, 0x90, 0, 0]);
        assert_eq!(entry.value, [10, 87, 0, 2, 0, 80, 0, 0]);
        assert_eq!(entry.key.len() as u32, BOUND4.key_bytes);
        assert_eq!(entry.value.len() as u32, BOUND4.data_bytes);
    }

    #[test]
    fn a_mask_has_as_many_ones_as_the_prefix_says() {
        let mask = |prefix| (0..4).map(|i| byte_of_mask(prefix, i)).collect::<Vec<u8>>();
        assert_eq!(mask(0), [0, 0, 0, 0]);
        assert_eq!(mask(8), [255, 0, 0, 0]);
        assert_eq!(mask(12), [255, 240, 0, 0]);
        assert_eq!(mask(32), [255, 255, 255, 255]);
    }
}
