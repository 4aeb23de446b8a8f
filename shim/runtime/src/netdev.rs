//! Network devices that move into the container (runtime-spec, "Network Devices"), by rtnetlink(7): down, renamed and
//! moved in one request, its global permanent addresses put back, up.
//!
//! As with runc nothing moves them back: with the container's network namespace the kernel destroys virtual devices, and
//! returns hardware to the first network namespace.

use std::collections::BTreeMap;
use std::path::Path;

use crate::error::{Error, Result};
use crate::plan::c_path;
use crate::spec::{NamespaceKind, NetDevice, Spec};
use crate::sys::{self, Fd, Sys, raw};

const NEW_LINK: u16 = 16;
const GET_LINK: u16 = 18;
const NEW_ADDRESS: u16 = 20;
const GET_ADDRESS: u16 = 22;
const LINK_NAME: u16 = 3;
const LINK_NAMESPACE: u16 = 28;
const ADDRESS_KINDS: [u16; 3] = [1, 2, 4];
const ADDRESS_FLAGS: u16 = 8;
const PERMANENT: u32 = 0x80;
const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const DUMP: u16 = 0x300;
const CREATE_NEW: u16 = 0x600;
/// `IFF_UP`.
const UP: u32 = 1;
/// Length of `nlmsghdr`.
const HEAD: usize = 16;
/// Longest name of a device, IFNAMSIZ without its NUL.
const LONGEST_NAME: usize = 15;
/// Milliseconds that the kernel may take to answer.
const PATIENCE: i32 = 10_000;

/// Checks names, and that there is a network namespace to move to.
pub(crate) fn check(spec: &Spec) -> Result<()> {
    if spec.linux.net_devices.is_empty() {
        return Ok(());
    }
    if spec.namespace(NamespaceKind::Network).is_none() {
        let reason = "cannot be moved without a network namespace of the container's own";
        return Err(Error::invalid("linux.netDevices", reason));
    }
    let names = spec.linux.net_devices.iter().flat_map(|(name, device)| [Some(name), Some(&device.name)]);
    let named = names.flatten().filter(|name| !name.is_empty());
    match named.into_iter().find(|name| !is_name(name)) {
        Some(bad) => Err(Error::invalid("linux.netDevices", format!("{bad:?} is no name of a network device"))),
        None if spec.linux.net_devices.contains_key("") => Err(Error::invalid("linux.netDevices", "a name is empty")),
        None => Ok(()),
    }
}

fn is_name(name: &str) -> bool {
    let fine = |c: char| !matches!(c, '/' | ':') && !c.is_whitespace() && !c.is_control();
    name.len() <= LONGEST_NAME && !matches!(name, "." | "..") && name.chars().all(fine)
}

/// Moves the devices from the caller's network namespace into that of a process.
pub(crate) fn hand_over(devices: &BTreeMap<String, NetDevice>, pid: i32) -> Result<()> {
    if devices.is_empty() {
        return Ok(());
    }
    let open = |path: String| {
        let failed = |errno| Error::file("open", &path, std::io::Error::from_raw_os_error(errno));
        sys::openat(libc::AT_FDCWD, &c_path(Path::new(&path))?, libc::O_RDONLY).map_err(failed)
    };
    let (own, theirs) = (open("/proc/thread-self/ns/net".to_owned())?, open(format!("/proc/{pid}/ns/net"))?);
    let here = Route::open().map_err(|errno| failed("reach the network", "", errno))?;
    let there = Route::open_in(&theirs, &own).map_err(|errno| failed("reach the container's network", "", errno))?;
    for (name, device) in devices {
        let new_name = if device.name.is_empty() { name } else { &device.name };
        hand_over_one((&here, &there), (name, new_name), &theirs)?;
    }
    Ok(())
}

fn hand_over_one((here, there): (&Route, &Route), (name, new_name): (&str, &str), target: &Fd) -> Result<()> {
    let index = here.index(name).map_err(|errno| failed("find network device", name, errno))?;
    // With the link goes what it has of IPv6.
    let addresses =
        here.addresses(index).map_err(|errno| failed("read the addresses of network device", name, errno))?;
    here.set_up(index, false).map_err(|errno| failed("set down network device", name, errno))?;
    here.send_away(index, new_name, target).map_err(|errno| failed("move network device", name, errno))?;
    let index = there.index(new_name).map_err(|errno| failed("find the moved network device", new_name, errno))?;
    for address in addresses {
        there.add(index, &address).map_err(|errno| failed("give an address to network device", new_name, errno))?;
    }
    there.set_up(index, true).map_err(|errno| failed("set up network device", new_name, errno))
}

fn failed(what: &str, name: &str, errno: i32) -> Error {
    let what = format!("{what} {name}").trim().to_owned();
    Error::Init { what, source: std::io::Error::from_raw_os_error(errno) }
}

/// A permanent address of global scope.
#[derive(Debug, PartialEq, Eq)]
struct Address {
    family: u8,
    prefix: u8,
    /// Own, peer and broadcast address, as the kernel tells them.
    attributes: Vec<(u16, Vec<u8>)>,
}

/// A route socket in one network namespace.
struct Route(Fd);

impl Route {
    fn open() -> Sys<Route> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        raw!(libc::SYS_socket, libc::AF_NETLINK, kind, libc::NETLINK_ROUTE).map(|fd| Route(Fd(fd as i32)))
    }

    /// In another namespace; the caller is in `own` before and after.
    fn open_in(namespace: &Fd, own: &Fd) -> Sys<Route> {
        sys::setns(namespace.0, libc::CLONE_NEWNET)?;
        let opened = Route::open();
        sys::setns(own.0, libc::CLONE_NEWNET)?;
        opened
    }

    fn index(&self, name: &str) -> Sys<i32> {
        let answers = self.call(GET_LINK, ACK, &link(0, 0, 0), &[(LINK_NAME, &terminated(name))])?;
        let index = answers.iter().find_map(|body| number(body, 4));
        index.map(|index| index as i32).ok_or(libc::ENODEV)
    }

    fn set_up(&self, index: i32, up: bool) -> Sys<()> {
        self.call(NEW_LINK, ACK, &link(index, if up { UP } else { 0 }, UP), &[]).map(drop)
    }

    fn send_away(&self, index: i32, name: &str, target: &Fd) -> Sys<()> {
        let attributes: [(u16, &[u8]); 2] =
            [(LINK_NAME, &terminated(name)), (LINK_NAMESPACE, &(target.0 as u32).to_ne_bytes())];
        self.call(NEW_LINK, ACK, &link(index, 0, 0), &attributes).map(drop)
    }

    fn addresses(&self, index: i32) -> Sys<Vec<Address>> {
        let answers = self.call(GET_ADDRESS, DUMP, &[0; 8], &[])?;
        Ok(answers.iter().filter_map(|body| address(body, index)).collect())
    }

    fn add(&self, index: i32, address: &Address) -> Sys<()> {
        let mut head = vec![address.family, address.prefix, 0, 0];
        head.extend(index.to_ne_bytes());
        let attributes: Vec<(u16, &[u8])> =
            address.attributes.iter().map(|(kind, value)| (*kind, value.as_slice())).collect();
        self.call(NEW_ADDRESS, ACK | CREATE_NEW, &head, &attributes).map(drop)
    }

    /// Sends a request; gives the bodies of the answers.
    fn call(&self, kind: u16, flags: u16, body: &[u8], attributes: &[(u16, &[u8])]) -> Sys<Vec<Vec<u8>>> {
        let request = request(kind, REQUEST | flags, body, attributes);
        sys::write_once(self.0.0, &request)?;
        let (mut answers, mut buffer) = (Vec::new(), vec![0u8; 64 << 10]);
        loop {
            if !sys::readable(self.0.0, PATIENCE)? {
                return Err(libc::ETIMEDOUT);
            }
            let length = raw!(libc::SYS_recvfrom, self.0.0, buffer.as_mut_ptr(), buffer.len(), 0, 0usize, 0usize)?;
            for (kind, body) in messages(&buffer[..length as usize]) {
                match i32::from(kind) {
                    libc::NLMSG_DONE => return Ok(answers),
                    libc::NLMSG_ERROR => {
                        return match number(body, 0) {
                            Some(0) => Ok(answers),
                            error => Err(error.map_or(libc::EPROTO, |error| (error as i32).wrapping_neg())),
                        };
                    }
                    _ => answers.push(body.to_vec()),
                }
            }
        }
    }
}

/// `struct ifinfomsg`.
fn link(index: i32, flags: u32, change: u32) -> Vec<u8> {
    [&[0; 4][..], &index.to_ne_bytes(), &flags.to_ne_bytes(), &change.to_ne_bytes()].concat()
}

fn terminated(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}

fn request(kind: u16, flags: u16, body: &[u8], attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0; HEAD];
    bytes.extend(body);
    for (kind, value) in attributes {
        bytes.extend(((4 + value.len()) as u16).to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(*value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    let length = bytes.len() as u32;
    bytes[..4].copy_from_slice(&length.to_ne_bytes());
    bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
    bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
    bytes
}

/// The messages of a packet: type and body.
fn messages(packet: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = packet;
    std::iter::from_fn(move || {
        let length = number(rest, 0)? as usize;
        let kind = u16::from_ne_bytes(rest.get(4..6)?.try_into().ok()?);
        let body = rest.get(HEAD..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, body))
    })
}

fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let word = |at: usize| Some(u16::from_ne_bytes(rest.get(at..at + 2)?.try_into().ok()?));
        let (length, kind) = (word(0)? as usize, word(2)?);
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// An address of that device from the body of an answer, if it is one to keep: of global scope, which holds elsewhere
/// too, and given by somebody, not learned there.
fn address(body: &[u8], index: i32) -> Option<Address> {
    let (head, rest) = (body.get(..8)?, body.get(8..)?);
    let flags = attributes(rest).find(|(kind, _)| *kind == ADDRESS_FLAGS).and_then(|(_, value)| number(value, 0));
    let flags = flags.unwrap_or_else(|| u32::from(head[2]));
    let kept = number(head, 4)? as i32 == index && head[3] == 0 && flags & PERMANENT != 0;
    let attributes = attributes(rest).filter(|(kind, _)| ADDRESS_KINDS.contains(kind));
    let attributes = attributes.map(|(kind, value)| (kind, value.to_vec())).collect();
    kept.then_some(Address { family: head[0], prefix: head[1], attributes })
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_the_kernel_takes() {
        for good in ["eth0", "a", "enp0s31f6", "fifteen-letters"] {
            assert!(is_name(good), "{good}");
        }
        for bad in [".", "..", "a/b", "a:b", "a b", "sixteen-letters-", "a\tb", "a\0b"] {
            assert!(!is_name(bad), "{bad:?}");
        }
    }

    #[test]
    fn a_request_is_read_back_as_it_was_written() {
        let bytes =
            request(NEW_LINK, ACK, &link(7, UP, UP), &[(LINK_NAME, b"eth0\0"), (LINK_NAMESPACE, &[1, 0, 0, 0])]);
        let all: Vec<_> = messages(&bytes).collect();
        assert_eq!((all.len(), all[0].0, all[0].1.len()), (1, NEW_LINK, bytes.len() - HEAD));
        assert_eq!(number(all[0].1, 4), Some(7));
        let found: Vec<_> = attributes(&all[0].1[16..]).collect();
        assert_eq!(found, [(LINK_NAME, &b"eth0\0"[..]), (LINK_NAMESPACE, &[1, 0, 0, 0])]);
    }

    #[test]
    fn only_permanent_addresses_of_global_scope_move() {
        let body = |scope: u8, flags: u32, index: i32| {
            let head = [&[2, 24, 0, scope][..], &index.to_ne_bytes()].concat();
            let whole = request(NEW_ADDRESS, 0, &head, &[(2, &[10, 0, 0, 1]), (ADDRESS_FLAGS, &flags.to_ne_bytes())]);
            whole[HEAD..].to_vec()
        };
        let kept = address(&body(0, PERMANENT, 3), 3).unwrap();
        assert_eq!(kept, Address { family: 2, prefix: 24, attributes: vec![(2, vec![10, 0, 0, 1])] });
        for other in [body(253, PERMANENT, 3), body(0, 0, 3), body(0, PERMANENT, 4), vec![2, 24]] {
            assert_eq!(address(&other, 3), None);
        }
    }

    #[test]
    fn cut_off_packets_end() {
        let bytes = request(NEW_LINK, 0, &[0; 16], &[]);
        for length in 0..bytes.len() {
            assert_eq!(messages(&bytes[..length]).count(), 0, "{length}");
        }
        assert_eq!(attributes(&[0, 0, 0, 0, 0]).count(), 0);
    }
}
