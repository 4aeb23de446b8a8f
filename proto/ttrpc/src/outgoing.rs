//! A client that never blocks, for an epoll loop: the shim publishes its events with it.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use prost::Message;

use crate::frame::{self, Decoded, Decoder, Kind, TooLarge};
use crate::outbox::Outbox;
use crate::server::Flow;
use crate::status::answer_of;
use crate::wire::{KeyValue, Request};
use crate::{Address, Status};

/// An answer, and the stream whose call it answers.
pub type Answer = (u32, Result<Vec<u8>, Status>);

/// A non-blocking connection to a ttrpc server.
#[derive(Debug)]
pub struct Outgoing {
    stream: UnixStream,
    decoder: Decoder,
    outbox: Outbox,
    next: u32,
}

impl Outgoing {
    /// Connects at once or not at all.
    ///
    /// # Errors
    /// `WouldBlock` when the server's backlog is full; otherwise why nobody answers there.
    pub fn connect(address: &Address) -> io::Result<Outgoing> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd: OwnedFd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        let target = match address {
            Address::Path(path) => UnixAddr::new(path)?,
            Address::Abstract(name) => UnixAddr::new_abstract(name)?,
        };
        connect(fd.as_raw_fd(), &target)?;
        let (decoder, outbox) = (Decoder::new(), Outbox::default());
        Ok(Outgoing { stream: UnixStream::from(fd), decoder, outbox, next: 1 })
    }

    /// Queues a call, sends what the socket takes, and returns the stream its answer will carry.
    ///
    /// # Errors
    /// `InvalidInput` when the request is too long; otherwise drop the connection.
    pub fn call(
        &mut self,
        service: &str,
        method: &str,
        payload: Vec<u8>,
        timeout: Duration,
        metadata: &[(&str, &str)],
    ) -> io::Result<u32> {
        let request = Request {
            service: service.to_owned(),
            method: method.to_owned(),
            payload,
            timeout_nano: i64::try_from(timeout.as_nanos()).unwrap_or(i64::MAX),
            metadata: metadata.iter().map(|&(k, v)| KeyValue { key: k.to_owned(), value: v.to_owned() }).collect(),
        };
        let stream = self.next;
        let invalid = |error: TooLarge| io::Error::new(io::ErrorKind::InvalidInput, error);
        frame::encode(stream, Kind::Request, 0, &request.encode_to_vec(), self.outbox.buffer()).map_err(invalid)?;
        self.next = stream.checked_add(2).ok_or_else(|| io::Error::other("stream numbers are used up"))?;
        self.on_writable()?;
        Ok(stream)
    }

    /// Reads what is there and appends answers to `answers`.
    ///
    /// # Errors
    /// What `read` answers: drop the connection.
    pub fn on_readable(&mut self, answers: &mut Vec<Answer>) -> io::Result<Flow> {
        let mut chunk = [0; 1024];
        loop {
            let n = match self.stream.read(&mut chunk) {
                Ok(0) => return Ok(Flow::Closed),
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Flow::Open),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let mut input = &chunk[..n];
            while let Some(decoded) = self.decoder.feed(&mut input) {
                answers.extend(answer(decoded));
            }
            // That was all; more makes the socket readable again.
            if n < chunk.len() {
                return Ok(Flow::Open);
            }
        }
    }

    /// Sends what the socket takes.
    ///
    /// # Errors
    /// What `write` answers: drop the connection.
    pub fn on_writable(&mut self) -> io::Result<()> {
        self.outbox.send(|bytes| self.stream.write(bytes))
    }

    /// Whether to wait for the socket to become writable.
    pub fn wants_write(&self) -> bool {
        self.outbox.len() > 0
    }
}

impl AsFd for Outgoing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

fn answer(decoded: Decoded) -> Option<Answer> {
    match decoded {
        Decoded::Frame(frame) if frame.kind == Kind::Response => Some((frame.stream, answer_of(&frame.payload))),
        Decoded::Frame(_) => None,
        Decoded::Oversized(header) => {
            let text = TooLarge { length: header.length as usize }.to_string();
            Some((header.stream, Err(Status::new(gantry_types::ErrorKind::ResourceExhausted, text))))
        }
    }
}
