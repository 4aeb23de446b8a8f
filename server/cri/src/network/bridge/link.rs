//! Requests about links, addresses and routes.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{DefaultNla, Emitable, NetlinkSerializable, Parseable};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::RouteNetlinkMessage as Route;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{
    InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo,
    LinkMessage,
};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType};
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage, TcOption};
use nix::net::if_::if_nametoindex;

use crate::network::Subnet;
use crate::network::netlink::{CREATE, EXCLUSIVE, REPLACE, Request, Socket};

/// Six bytes of an Ethernet address.
pub(super) type Mac = [u8; 6];

/// A pair of virtual Ethernet devices: one end here as a port of a bridge, the other in a namespace.
pub(super) struct Veth<'a> {
    pub(super) name: &'a str,
    pub(super) bridge: u32,
    pub(super) peer: &'a str,
    pub(super) peer_mac: Mac,
    pub(super) namespace: BorrowedFd<'a>,
    pub(super) mtu: Option<u32>,
}

/// Sets a link up.
pub(in crate::network) fn up(name: &str) -> io::Result<Request> {
    let mut message = LinkMessage::default();
    message.header.index = index(name)?;
    set_up(&mut message);
    Ok(request(Route::SetLink(message), 0))
}

/// Makes a bridge that is up.
pub(super) fn add_bridge(name: &str, mac: Mac, mtu: Option<u32>) -> Request {
    let mut message = LinkMessage::default();
    set_up(&mut message);
    message.attributes = vec![
        LinkAttribute::IfName(name.into()),
        LinkAttribute::Address(mac.to_vec()),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
    ];
    message.attributes.extend(mtu.map(LinkAttribute::Mtu));
    request(Route::NewLink(message), CREATE | EXCLUSIVE)
}

/// Makes a pair of devices. This end is up; the kernel cannot set the other up before they are a pair.
pub(super) fn add_veth(veth: &Veth) -> Request {
    let mut peer = LinkMessage::default();
    peer.attributes = vec![
        LinkAttribute::IfName(veth.peer.into()),
        LinkAttribute::Address(veth.peer_mac.to_vec()),
        LinkAttribute::NetNsFd(veth.namespace.as_raw_fd()),
    ];
    peer.attributes.extend(veth.mtu.map(LinkAttribute::Mtu));
    let mut message = LinkMessage::default();
    set_up(&mut message);
    message.attributes = vec![
        LinkAttribute::IfName(veth.name.into()),
        LinkAttribute::Controller(veth.bridge),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]),
    ];
    message.attributes.extend(veth.mtu.map(LinkAttribute::Mtu));
    request(Route::NewLink(message), CREATE | EXCLUSIVE)
}

/// Lets a bridge send a packet back by the port that it came from: a pod reaches itself by its host port.
pub(super) fn reflect(port: &str) -> Request {
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(port.into()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(true)])),
        ]),
    ];
    request(Route::NewLink(message), 0)
}

/// Removes a link by name.
pub(super) fn remove(name: &str) -> Request {
    let mut message = LinkMessage::default();
    message.attributes = vec![LinkAttribute::IfName(name.into())];
    request(Route::DelLink(message), 0)
}

/// Gives a link an address, at once usable.
pub(super) fn add_address(link: u32, address: IpAddr, prefix: u8) -> Request {
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    message.header.prefix_len = prefix;
    message.header.index = link;
    message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
    if address.is_ipv6() {
        // Whose address it is we know: looking for duplicates would cost a second.
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    request(Route::NewAddress(message), CREATE | REPLACE)
}

/// Sends what has no other route by a gateway.
pub(super) fn add_default_route(link: u32, gateway: IpAddr) -> Request {
    let mut message = RouteMessage::default();
    message.header.address_family = family(gateway);
    message.header.table = netlink_packet_route::route::RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Boot;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![RouteAttribute::Gateway(gateway.into()), RouteAttribute::Oif(link)];
    request(Route::NewRoute(message), CREATE | REPLACE)
}

/// Lets at most `rate` bytes a second leave a link (a token bucket filter, `man tc-tbf`), `burst` bytes at once.
pub(super) fn limit_rate(link: u32, rate: u64, burst: u64) -> Request {
    let mut message = TcMessage::default();
    message.header.index = link as i32;
    message.header.handle = TcHandle { major: 1, minor: 0 };
    message.header.parent = TcHandle::ROOT;
    let options = token_bucket(rate, burst).into_iter().map(TcOption::Other).collect();
    message.attributes = vec![TcAttribute::Kind("tbf".into()), TcAttribute::Options(options)];
    request(Route::NewQueueDiscipline(message), CREATE | REPLACE)
}

/// `TCA_TBF_PARMS`, `TCA_TBF_RATE64`, `TCA_TBF_BURST` of `linux/pkt_sched.h`.
fn token_bucket(rate: u64, burst: u64) -> Vec<DefaultNla> {
    const LATENCY_SECONDS: f64 = 0.025;
    const TICKS_PER_NANOSECOND: f64 = 1.0 / 64.0;
    const LINKLAYER_ETHERNET: u8 = 1;
    let burst = burst.clamp(2048, u64::from(u32::MAX / 2)) as u32;
    let limit = (rate as f64 * LATENCY_SECONDS) as u64 + u64::from(burst);
    let ticks = f64::from(burst) / rate as f64 * 1e9 * TICKS_PER_NANOSECOND;
    let mut parameters = Vec::new();
    // struct tc_ratespec of the rate: cell_log, linklayer, overhead, cell_align, mpu, rate.
    parameters.extend([0, LINKLAYER_ETHERNET, 0, 0, 0, 0, 0, 0]);
    parameters.extend(u32::try_from(rate).unwrap_or(u32::MAX).to_ne_bytes());
    // No peak rate; then limit, buffer in ticks, mtu in ticks.
    parameters.extend([0; 12]);
    parameters.extend(u32::try_from(limit).unwrap_or(u32::MAX).to_ne_bytes());
    parameters.extend((ticks.min(f64::from(u32::MAX)) as u32).to_ne_bytes());
    parameters.extend(0u32.to_ne_bytes());
    vec![
        DefaultNla::new(1, parameters),
        DefaultNla::new(4, rate.to_ne_bytes().to_vec()),
        DefaultNla::new(6, burst.to_ne_bytes().to_vec()),
    ]
}

/// Index of a link in the calling thread's namespace.
pub(super) fn index(name: &str) -> io::Result<u32> {
    Ok(if_nametoindex(name)?)
}

/// An address of an interface.
#[derive(Clone, Debug)]
pub(super) struct Assigned {
    pub(super) link: u32,
    pub(super) subnet: Subnet,
}

/// The ranges that the addresses of all interfaces lie in.
pub(super) fn addresses(socket: &mut Socket) -> io::Result<Vec<Assigned>> {
    let listed = socket.dump(request(Route::GetAddress(AddressMessage::default()), 0))?;
    let messages = listed.iter().filter_map(|(_, payload)| AddressMessage::parse(payload.as_slice()).ok());
    Ok(messages.filter_map(assigned).collect())
}

fn assigned(message: AddressMessage) -> Option<Assigned> {
    let address = message.attributes.iter().find_map(|a| match a {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    })?;
    let subnet = Subnet::around(address, message.header.prefix_len)?;
    Some(Assigned { link: message.header.index, subnet })
}

/// A link as the kernel lists it.
#[derive(Clone, Debug)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) controller: Option<u32>,
    pub(super) bridge: bool,
}

/// All links.
pub(super) fn links(socket: &mut Socket) -> io::Result<Vec<Link>> {
    let listed = socket.dump(request(Route::GetLink(LinkMessage::default()), 0))?;
    let messages = listed.iter().filter_map(|(_, payload)| LinkMessage::parse(payload.as_slice()).ok());
    Ok(messages.map(described).collect())
}

fn described(message: LinkMessage) -> Link {
    let mut link = Link { index: message.header.index, name: String::new(), controller: None, bridge: false };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Controller(index) => link.controller = Some(index),
            LinkAttribute::LinkInfo(infos) => link.bridge = infos.contains(&LinkInfo::Kind(InfoKind::Bridge)),
            _ => {}
        }
    }
    link
}

fn set_up(message: &mut LinkMessage) {
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn request(message: Route, flags: u16) -> Request {
    let mut payload = vec![0; Emitable::buffer_len(&message)];
    message.emit(&mut payload);
    Request { kind: NetlinkSerializable::message_type(&message), flags, payload }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_bucket_has_the_rate_in_full_and_a_bounded_burst() {
        let options = token_bucket(1 << 40, u64::MAX);
        let values: Vec<&[u8]> = options.iter().map(value).collect();
        assert_eq!(values[0].len(), 36);
        assert_eq!(values[1], (1u64 << 40).to_ne_bytes());
        assert_eq!(values[2], (u32::MAX / 2).to_ne_bytes());
    }

    fn value(nla: &DefaultNla) -> &[u8] {
        use netlink_packet_core::Nla;
        let mut bytes = vec![0; nla.value_len()];
        nla.emit_value(&mut bytes);
        Box::leak(bytes.into_boxed_slice())
    }
}
