//! The pieces of an epoll server: a listener and connections that never block and hold bounded memory.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use gantry_types::ErrorKind;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use prost::Message;

use crate::frame::{Decoded, Decoder, Frame};
use crate::outbox::Outbox;
use crate::status::encode_response;
use crate::wire::Request;
use crate::{Status, StreamRule};

/// Unsent answers, in bytes, above which no further requests are read.
const MAX_UNSENT: usize = 8 << 20;
/// Calls in progress on one connection; waits stay open for long, so the bound is generous.
const MAX_IN_FLIGHT: usize = 4096;
/// Most that is read in one go, so that one busy peer cannot starve the loop.
const READ_BUDGET: usize = 64 << 10;

/// Whether a connection lives on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// The peer is there.
    Open,
    /// The peer hung up: drop the connection.
    Closed,
}

/// A listening socket that accepts peers of one user.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    uid: u32,
}

impl Listener {
    /// Takes over a listening socket; only processes of `uid` are let in.
    ///
    /// # Errors
    /// When the socket cannot be made non-blocking.
    pub fn new(socket: OwnedFd, uid: u32) -> io::Result<Listener> {
        let socket = UnixListener::from(socket);
        socket.set_nonblocking(true)?;
        Ok(Listener { socket, uid })
    }

    /// The next peer that waits; none when none does. Peers of another user are turned away silently.
    ///
    /// # Errors
    /// What `accept` answers, for example that descriptors ran out.
    pub fn accept(&self) -> io::Result<Option<Connection>> {
        loop {
            let stream = match self.socket.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => return Err(error),
            };
            if getsockopt(&stream, PeerCredentials).is_ok_and(|peer| peer.uid() == self.uid) {
                return Connection::new(stream).map(Some);
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A request that waits for [`Connection::reply`] with its stream.
#[derive(Debug)]
pub struct Incoming {
    /// The stream to answer on.
    pub stream: u32,
    /// The call.
    pub request: Request,
}

/// One peer.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    decoder: Decoder,
    rule: StreamRule,
    outbox: Outbox,
    in_flight: usize,
}

impl Connection {
    /// Serves a connected socket.
    ///
    /// # Errors
    /// When the socket cannot be made non-blocking.
    pub fn new(stream: UnixStream) -> io::Result<Connection> {
        stream.set_nonblocking(true)?;
        let (decoder, rule) = (Decoder::new(), StreamRule::default());
        Ok(Connection { stream, decoder, rule, outbox: Outbox::default(), in_flight: 0 })
    }

    /// Reads what is there, up to a budget, and appends whole requests to `requests`.
    ///
    /// # Errors
    /// What `read` answers: drop the connection.
    pub fn on_readable(&mut self, requests: &mut Vec<Incoming>) -> io::Result<Flow> {
        let mut chunk = [0; 4096];
        let mut budget = READ_BUDGET;
        while budget > 0 && self.wants_read() {
            let n = match self.stream.read(&mut chunk) {
                Ok(0) => return Ok(Flow::Closed),
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            budget = budget.saturating_sub(n);
            let mut input = &chunk[..n];
            while let Some(decoded) = self.decoder.feed(&mut input) {
                self.accept(decoded, requests);
            }
            // That was all; more makes the socket readable again.
            if n < chunk.len() {
                break;
            }
        }
        Ok(Flow::Open)
    }

    /// Queues the answer to a request and sends what the socket takes.
    ///
    /// # Errors
    /// What `write` answers: drop the connection.
    pub fn reply(&mut self, stream: u32, answer: Result<Vec<u8>, Status>) -> io::Result<()> {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.queue(stream, answer);
        self.on_writable()
    }

    /// Sends what the socket takes.
    ///
    /// # Errors
    /// What `write` answers: drop the connection.
    pub fn on_writable(&mut self) -> io::Result<()> {
        self.outbox.send(|bytes| self.stream.write(bytes))
    }

    /// Whether to wait for the socket to become readable: false while too much is unsent.
    pub fn wants_read(&self) -> bool {
        self.outbox.len() <= MAX_UNSENT
    }

    /// Whether to wait for the socket to become writable.
    pub fn wants_write(&self) -> bool {
        self.outbox.len() > 0
    }

    fn accept(&mut self, decoded: Decoded, requests: &mut Vec<Incoming>) {
        match self.rule.admit(decoded) {
            Ok(Some(frame)) => self.start(frame, requests),
            Ok(None) => {}
            Err((stream, status)) => self.queue(stream, Err(status)),
        }
    }

    fn start(&mut self, frame: Frame, requests: &mut Vec<Incoming>) {
        let stream = frame.stream;
        if self.in_flight >= MAX_IN_FLIGHT {
            let text = format!("more than {MAX_IN_FLIGHT} calls in progress on one connection");
            return self.queue(stream, Err(Status::new(ErrorKind::ResourceExhausted, text)));
        }
        match Request::decode(frame.payload.as_slice()) {
            Ok(request) => {
                self.in_flight += 1;
                requests.push(Incoming { stream, request });
            }
            Err(error) => {
                let status = Status::new(ErrorKind::InvalidArgument, format!("undecodable request: {error}"));
                self.queue(stream, Err(status));
            }
        }
    }

    fn queue(&mut self, stream: u32, answer: Result<Vec<u8>, Status>) {
        encode_response(stream, answer, self.outbox.buffer());
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
