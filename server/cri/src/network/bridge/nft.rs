//! Requests to nftables over netlink: `linux/netfilter/nf_tables.h`. Numbers are in network order there.

use std::net::IpAddr;

use crate::network::netlink::{APPEND, CREATE, Request};

const SUBSYSTEM: u16 = 10 << 8;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const FAMILY_INET: u8 = 1;
const NESTED: u16 = 1 << 15;
/// First of the registers of four bytes.
pub(super) const REG: u32 = 8;

/// What an address family is called in nftables.
pub(super) const IPV4: u8 = 2;
pub(super) const IPV6: u8 = 10;

/// Bytes of attributes, one after the other.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    pub(super) fn new() -> Attributes {
        Attributes::default()
    }

    /// Adds an attribute of raw bytes.
    pub(super) fn bytes(mut self, kind: u16, value: &[u8]) -> Attributes {
        self.0.extend(((value.len() + 4) as u16).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// Adds a number.
    pub(super) fn number(self, kind: u16, value: u32) -> Attributes {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// Adds a text, which ends in a zero.
    pub(super) fn text(self, kind: u16, value: &str) -> Attributes {
        self.bytes(kind, &[value.as_bytes(), &[0]].concat())
    }

    /// Adds attributes within an attribute.
    pub(super) fn nest(self, kind: u16, inner: Attributes) -> Attributes {
        self.bytes(kind | NESTED, &inner.0)
    }

    /// Adds a list, whose members all have the kind `NFTA_LIST_ELEM`.
    fn list(self, kind: u16, members: impl IntoIterator<Item = Attributes>) -> Attributes {
        let inner = members.into_iter().fold(Attributes::new(), |list, member| list.nest(1, member));
        self.nest(kind, inner)
    }
}

/// Opens a batch, of which all or nothing is done.
pub(super) fn begin() -> Request {
    frame(BATCH_BEGIN)
}

/// Closes a batch.
pub(super) fn end() -> Request {
    frame(BATCH_END)
}

fn frame(kind: u16) -> Request {
    // struct nfgenmsg: no family, version 0, the subsystem.
    let [high, low] = (SUBSYSTEM >> 8).to_be_bytes();
    Request { kind, flags: 0, payload: vec![0, 0, high, low] }
}

fn request(kind: u16, flags: u16, attributes: Attributes) -> Request {
    let mut payload = vec![FAMILY_INET, 0, 0, 0];
    payload.extend(attributes.0);
    Request { kind: SUBSYSTEM | kind, flags, payload }
}

/// Makes a table, or finds it.
pub(super) fn add_table(name: &str) -> Request {
    request(0, CREATE, Attributes::new().text(1, name))
}

/// Removes a table with all in it.
pub(super) fn delete_table(name: &str) -> Request {
    request(2, 0, Attributes::new().text(1, name))
}

/// Where packets meet a chain.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hook {
    pub(super) kind: &'static str,
    pub(super) number: u32,
    pub(super) priority: i32,
}

pub(super) const PREROUTING: u32 = 0;
pub(super) const OUTPUT: u32 = 3;
pub(super) const POSTROUTING: u32 = 4;

/// Makes a chain.
pub(super) fn add_chain(table: &str, name: &str, hook: Option<Hook>) -> Request {
    let mut attributes = Attributes::new().text(1, table).text(3, name);
    if let Some(hook) = hook {
        let place = Attributes::new().number(1, hook.number).number(2, hook.priority as u32);
        attributes = attributes.nest(4, place).text(7, hook.kind);
    }
    request(3, CREATE, attributes)
}

/// Adds a rule at a chain's end.
pub(super) fn add_rule(table: &str, chain: &str, expressions: Vec<Attributes>) -> Request {
    request(6, CREATE | APPEND, Attributes::new().text(1, table).text(2, chain).list(4, expressions))
}

/// A map from keys to values of fixed sizes. The types are for those who list it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Map {
    pub(super) name: &'static str,
    pub(super) id: u32,
    pub(super) key_type: u32,
    pub(super) key_bytes: u32,
    pub(super) data_type: u32,
    pub(super) data_bytes: u32,
}

/// Makes a map.
pub(super) fn add_map(table: &str, map: &Map) -> Request {
    const IS_MAP: u32 = 8;
    let attributes = Attributes::new().text(1, table).text(2, map.name).number(3, IS_MAP);
    let attributes = attributes.number(4, map.key_type).number(5, map.key_bytes);
    request(9, CREATE, attributes.number(6, map.data_type).number(7, map.data_bytes).number(10, map.id))
}

/// Puts entries into a map.
pub(super) fn add_entries(table: &str, map: &str, entries: &[(Vec<u8>, Vec<u8>)]) -> Request {
    let members = entries.iter().map(|(key, value)| {
        Attributes::new().nest(1, Attributes::new().bytes(1, key)).nest(2, Attributes::new().bytes(1, value))
    });
    request(12, CREATE, Attributes::new().text(1, table).text(2, map).list(3, members))
}

/// Takes entries out of a map. All must be there.
pub(super) fn delete_entries(table: &str, map: &str, entries: &[(Vec<u8>, Vec<u8>)]) -> Request {
    let members = entries.iter().map(|(key, _)| Attributes::new().nest(1, Attributes::new().bytes(1, key)));
    request(14, 0, Attributes::new().text(1, table).text(2, map).list(3, members))
}

fn expression(name: &str, attributes: Attributes) -> Attributes {
    Attributes::new().text(1, name).nest(2, attributes)
}

/// What is known of a packet besides its bytes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Meta {
    InInterface = 6,
    OutInterface = 7,
    Family = 15,
    Transport = 16,
}

/// Loads it into a register.
pub(super) fn load_meta(what: Meta, register: u32) -> Attributes {
    expression("meta", Attributes::new().number(1, register).number(2, what as u32))
}

/// Which header bytes are counted from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Header {
    Network = 1,
    Transport = 2,
}

/// Loads bytes of the packet into a register.
pub(super) fn load_bytes(header: Header, offset: u32, length: u32, register: u32) -> Attributes {
    let from = Attributes::new().number(1, register).number(2, header as u32);
    expression("payload", from.number(3, offset).number(4, length))
}

/// Goes on only where the register holds, or does not hold, a value.
pub(super) fn compare(register: u32, equal: bool, value: &[u8]) -> Attributes {
    let operation = u32::from(!equal);
    let data = Attributes::new().bytes(1, value);
    expression("cmp", Attributes::new().number(1, register).number(2, operation).nest(3, data))
}

/// Keeps only the bits of a mask.
pub(super) fn mask(register: u32, mask: &[u8]) -> Attributes {
    let zero = vec![0; mask.len()];
    let attributes = Attributes::new().number(1, register).number(2, register).number(3, mask.len() as u32);
    let attributes = attributes.nest(4, Attributes::new().bytes(1, mask));
    expression("bitwise", attributes.nest(5, Attributes::new().bytes(1, &zero)))
}

/// Goes on only for packets to an address of this host.
pub(super) fn to_this_host() -> [Attributes; 2] {
    const ADDRESS_TYPE: u32 = 3;
    const OF_DESTINATION: u32 = 2;
    const LOCAL: u32 = 2;
    let load = Attributes::new().number(1, REG).number(2, ADDRESS_TYPE).number(3, OF_DESTINATION);
    [expression("fib", load), compare(REG, true, &LOCAL.to_ne_bytes())]
}

/// Goes on only for connections whose destination was changed.
pub(super) fn redirected() -> [Attributes; 3] {
    const STATUS: u32 = 2;
    const DESTINATION_CHANGED: u32 = 1 << 5;
    let load = expression("ct", Attributes::new().number(1, REG).number(2, STATUS));
    [load, mask(REG, &DESTINATION_CHANGED.to_ne_bytes()), compare(REG, false, &[0; 4])]
}

/// Goes on only where the map has the key that begins in `key`, with its value in the registers from `REG` on.
pub(super) fn look_up(map: &Map, key: u32) -> Attributes {
    let attributes = Attributes::new().text(1, map.name).number(2, key).number(3, REG);
    expression("lookup", attributes.number(4, map.id))
}

/// Sends the connection to the address in `REG`, and the port in the register after it.
pub(super) fn redirect(family: u8, port: u32) -> Attributes {
    const DESTINATION: u32 = 1;
    let attributes = Attributes::new().number(1, DESTINATION).number(2, u32::from(family));
    expression("nat", attributes.number(3, REG).number(5, port))
}

/// Lets the connection seem to come from the interface's own address.
pub(super) fn masquerade() -> Attributes {
    expression("masq", Attributes::new())
}

/// Drops the packet.
pub(super) fn drop_packet() -> Attributes {
    verdict(Attributes::new().number(1, 0))
}

/// Goes back to the chain that this one was begun from.
pub(super) fn come_back() -> Attributes {
    verdict(Attributes::new().number(1, -5i32 as u32))
}

/// Goes on in another chain, and comes back.
pub(super) fn jump(chain: &str) -> Attributes {
    verdict(Attributes::new().number(1, -3i32 as u32).text(2, chain))
}

fn verdict(code: Attributes) -> Attributes {
    expression("immediate", Attributes::new().number(1, 0).nest(2, Attributes::new().nest(2, code)))
}

/// An interface's name as it is compared: 16 bytes.
pub(super) fn interface(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes.iter_mut().zip(name.as_bytes().iter().take(15)).for_each(|(to, from)| *to = *from);
    bytes
}

/// An address's bytes.
pub(super) fn address(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}
