//! A netlink socket: several requests in one packet, and the kernel's answer to each.
//!
//! A socket belongs to the network namespace of the thread that opened it, for good.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, connect, recv, send, setsockopt, socket,
    sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

/// `struct nlmsghdr`.
const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
/// Make what is not there.
pub(super) const CREATE: u16 = 0x400;
/// Fail where it is there.
pub(super) const EXCLUSIVE: u16 = 0x200;
/// Replace what is there.
pub(super) const REPLACE: u16 = 0x100;
/// At the end.
pub(super) const APPEND: u16 = 0x800;
/// The kernel answers at once; one that does not is broken.
const PATIENCE_SECONDS: i64 = 10;
/// Largest answer of the kernel to a dump is 32 KiB a packet.
const BUFFER: usize = 64 << 10;

/// One request: its type, flags, and what follows the header.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Request {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) payload: Vec<u8>,
}

/// An open socket.
#[derive(Debug)]
pub(super) struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

impl Socket {
    /// A socket for links, addresses and routes in the calling thread's network namespace.
    pub(super) fn route() -> io::Result<Socket> {
        Socket::open(SockProtocol::NetlinkRoute)
    }

    /// A socket for packet filters in the calling thread's network namespace.
    pub(super) fn netfilter() -> io::Result<Socket> {
        Socket::open(SockProtocol::NetlinkNetFilter)
    }

    fn open(protocol: SockProtocol) -> io::Result<Socket> {
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::seconds(PATIENCE_SECONDS))?;
        connect(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(Socket { fd, sequence: 0 })
    }

    /// Sends all requests at once and waits for the answer to each. The kernel carries out each one, also after one
    /// failed: the result has the outcomes in the order of the requests.
    pub(super) fn each(&mut self, requests: &[Request]) -> io::Result<Vec<io::Result<()>>> {
        let first = self.send(requests, NLM_F_ACK)?;
        let mut outcomes: Vec<Option<io::Result<()>>> = requests.iter().map(|_| None).collect();
        let mut missing = requests.len();
        let mut buffer = vec![0; BUFFER];
        while missing > 0 {
            let packet = self.receive(&mut buffer)?;
            for answer in messages(packet) {
                let index = answer.sequence.wrapping_sub(first) as usize;
                let (NLMSG_ERROR, Some(outcome)) = (answer.kind, outcomes.get_mut(index)) else { continue };
                missing -= usize::from(outcome.is_none());
                *outcome = Some(errno(answer.payload));
            }
        }
        Ok(outcomes.into_iter().flatten().collect())
    }

    /// Sends all requests and wants all of them to succeed; else the first failure.
    pub(super) fn all(&mut self, requests: &[Request]) -> io::Result<()> {
        self.each(requests)?.into_iter().collect()
    }

    /// What the kernel lists for a request: type and contents of each message.
    pub(super) fn dump(&mut self, request: Request) -> io::Result<Vec<(u16, Vec<u8>)>> {
        let sequence = self.send(&[request], NLM_F_DUMP)?;
        let mut listed = Vec::new();
        let mut buffer = vec![0; BUFFER];
        loop {
            let packet = self.receive(&mut buffer)?;
            for answer in messages(packet).filter(|m| m.sequence == sequence) {
                match answer.kind {
                    NLMSG_DONE => return Ok(listed),
                    NLMSG_ERROR => errno(answer.payload)?,
                    kind => listed.push((kind, answer.payload.to_vec())),
                }
            }
        }
    }

    /// Sends a batch of which the kernel carries out all or nothing, as nftables takes it: between `begin` and `end`.
    pub(super) fn batch(&mut self, begin: Request, requests: &[Request], end: Request) -> io::Result<()> {
        let mut packet = Vec::new();
        let first = self.sequence.wrapping_add(1);
        self.append(&mut packet, &begin, 0);
        for request in requests {
            self.append(&mut packet, request, NLM_F_ACK);
        }
        self.append(&mut packet, &end, 0);
        self.write(&packet)?;
        let mut missing = requests.len();
        let mut outcome = Ok(());
        let mut buffer = vec![0; BUFFER];
        while missing > 0 {
            let packet = self.receive(&mut buffer)?;
            for answer in messages(packet).filter(|m| m.kind == NLMSG_ERROR) {
                let result = errno(answer.payload);
                // The batch as a whole was refused: nothing else comes.
                if answer.sequence == first {
                    return result;
                }
                missing = missing.saturating_sub(1);
                outcome = outcome.and(result);
            }
        }
        outcome
    }

    fn send(&mut self, requests: &[Request], flags: u16) -> io::Result<u32> {
        let first = self.sequence.wrapping_add(1);
        let mut packet = Vec::new();
        for request in requests {
            self.append(&mut packet, request, flags);
        }
        self.write(&packet)?;
        Ok(first)
    }

    fn append(&mut self, packet: &mut Vec<u8>, request: &Request, flags: u16) {
        self.sequence = self.sequence.wrapping_add(1);
        let length = (HEADER + request.payload.len()) as u32;
        packet.extend(length.to_ne_bytes());
        packet.extend(request.kind.to_ne_bytes());
        packet.extend((request.flags | flags | NLM_F_REQUEST).to_ne_bytes());
        packet.extend(self.sequence.to_ne_bytes());
        packet.extend(0u32.to_ne_bytes());
        packet.extend(&request.payload);
        packet.resize(packet.len().next_multiple_of(4), 0);
    }

    fn write(&self, packet: &[u8]) -> io::Result<()> {
        let sent = send(self.fd.as_raw_fd(), packet, MsgFlags::empty())?;
        if sent == packet.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    fn receive<'b>(&self, buffer: &'b mut [u8]) -> io::Result<&'b [u8]> {
        loop {
            match recv(self.fd.as_raw_fd(), buffer, MsgFlags::empty()) {
                Ok(length) => return Ok(&buffer[..length]),
                Err(nix::Error::EINTR) => {}
                Err(nix::Error::EAGAIN) => {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "the kernel gave no answer over netlink"));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

struct Answer<'p> {
    kind: u16,
    sequence: u32,
    payload: &'p [u8],
}

/// The messages in a packet; what is cut off is left out.
fn messages(mut packet: &[u8]) -> impl Iterator<Item = Answer<'_>> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(packet.get(..4)?.try_into().ok()?) as usize;
        let message = packet.get(..length)?;
        let kind = u16::from_ne_bytes(message.get(4..6)?.try_into().ok()?);
        let sequence = u32::from_ne_bytes(message.get(8..12)?.try_into().ok()?);
        let payload = message.get(HEADER..)?;
        packet = packet.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Answer { kind, sequence, payload })
    })
}

/// An error message begins with the negated error number; 0 is success.
fn errno(payload: &[u8]) -> io::Result<()> {
    let bytes: [u8; 4] = payload.get(..4).and_then(|b| b.try_into().ok()).ok_or(io::ErrorKind::InvalidData)?;
    match i32::from_ne_bytes(bytes) {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code.wrapping_neg())),
    }
}
