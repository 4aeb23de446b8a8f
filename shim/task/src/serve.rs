//! The loop: waits once for everything, and hands each ready descriptor to whom it concerns. Nothing else waits.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use gantry_ttrpc::Address;
use gantry_ttrpc::server::{Connection, Flow, Incoming, Listener};

use crate::args::Args;
use crate::events::Publisher;
use crate::poll::{Interest, Poller, Ready, Token};
use crate::reaper::Signals;
use crate::service;
use crate::supervisor::{Caller, Supervisor, Waited};
use crate::{Error, log, sys};

/// The listening socket that `start` leaves open.
pub const LISTENER_FD: i32 = 3;
/// How long the last events and answers may take to go out once the shim is asked to end.
const FAREWELL: Duration = Duration::from_secs(3);
/// How often a shim that holds nothing looks whether its bundle is still there.
const LOOK: Duration = Duration::from_secs(5);

/// Serves on the inherited socket until asked to end.
///
/// # Errors
/// When the socket was not inherited, or the kernel refuses the means to wait.
pub fn run(args: &Args) -> Result<(), Error> {
    let socket = sys::inherited(LISTENER_FD).map_err(|error| Error::system("take over the socket", error))?;
    let address = std::env::var("TTRPC_ADDRESS").ok().filter(|address| !address.is_empty());
    Server::new(args, socket, PathBuf::from(&args.socket), address.as_deref())?.run()
}

struct Peer {
    connection: Connection,
    interest: Interest,
}

/// A shim that is ready to serve.
pub struct Server {
    /// Where it is reached; empty when nobody said.
    socket: PathBuf,
    poller: Rc<Poller>,
    listener: Listener,
    signals: Signals,
    peers: BTreeMap<u32, Peer>,
    next_peer: u32,
    supervisor: Supervisor,
    ending: Option<Instant>,
    /// When to look for the bundle, while nothing is held.
    look: Instant,
}

impl Server {
    /// A server on a listening socket. `address`: the daemon's socket for events.
    ///
    /// # Errors
    /// When the kernel refuses the means to wait.
    pub fn new(args: &Args, listener: OwnedFd, socket: PathBuf, address: Option<&str>) -> Result<Server, Error> {
        // The kernel names a process after the file that it was executed by, which was a descriptor's number.
        let _ = nix::sys::prctl::set_name(c"containerd-shim-gantry-v1");
        let listener = Listener::new(listener, nix::unistd::geteuid().as_raw());
        let listener = listener.map_err(|error| Error::system("listen", error))?;
        let poller = Rc::new(Poller::new()?);
        let signals = Signals::new()?;
        poller.add(&listener, Token::Listener, Interest::READ)?;
        poller.add(&signals, Token::Signals, Interest::READ)?;
        let address = address.map(Address::of_path);
        let publisher = Publisher::new(Rc::clone(&poller), args.namespace.clone(), address);
        let supervisor = Supervisor::new(Rc::clone(&poller), args.namespace.clone(), publisher);
        let look = Instant::now() + LOOK;
        let (peers, ending) = (BTreeMap::new(), None);
        Ok(Server { socket, poller, listener, signals, peers, next_peer: 0, supervisor, ending, look })
    }

    /// Serves until asked to end.
    ///
    /// # Errors
    /// When the kernel refuses to wait.
    pub fn run(mut self) -> Result<(), Error> {
        let mut ready = Vec::new();
        while !self.may_end() {
            let look = self.supervisor.holds_nothing().then_some(self.look);
            let deadline = [self.supervisor.deadline(), self.ending, look].into_iter().flatten().min();
            self.poller.wait(deadline, &mut ready)?;
            for event in ready.drain(..) {
                self.dispatch(event);
            }
            self.supervisor.tick(Instant::now());
            self.deliver_waited();
            self.look_for_bundle();
        }
        if !self.socket.as_os_str().is_empty() {
            // Nobody will answer there any more.
            let _ = std::fs::remove_file(&self.socket);
        }
        Ok(())
    }

    /// Whoever wanted this shim may have died, and its successor cleared away a start of which it knew nothing: then
    /// nobody will ever ask the shim to end.
    fn look_for_bundle(&mut self) {
        if !self.supervisor.holds_nothing() || Instant::now() < self.look {
            return;
        }
        self.look = Instant::now() + LOOK;
        // The shim works in its bundle; a directory that was removed has no names left.
        if std::fs::metadata(".").is_ok_and(|bundle| bundle.nlink() == 0) {
            self.supervisor.shutdown();
        }
    }

    fn dispatch(&mut self, event: Ready) {
        match event.token {
            Token::Listener => self.accept(),
            Token::Signals => self.signalled(),
            Token::Publisher => self.supervisor.publisher.ready(event.readable, event.writable),
            Token::Connection(number) => self.serve(number, event),
            Token::CopySource(number) | Token::CopySink(number) => self.supervisor.movers.copiers.turn(number),
            Token::Tee(number) => self.supervisor.movers.tees.turn(number),
            Token::Attacher(number) => self.supervisor.movers.tees.hung_up(number),
            Token::Oom(number) => self.supervisor.oom(number),
        }
    }

    fn accept(&mut self) {
        loop {
            match self.listener.accept() {
                Ok(Some(connection)) => self.add_peer(connection),
                Ok(None) => return,
                Err(error) => return log::warning("a connection cannot be accepted", &error),
            }
        }
    }

    fn add_peer(&mut self, connection: Connection) {
        let number = self.next_peer;
        self.next_peer = number.wrapping_add(1);
        if self.poller.add(&connection, Token::Connection(number), Interest::READ).is_ok() {
            self.peers.insert(number, Peer { connection, interest: Interest::READ });
        }
    }

    fn signalled(&mut self) {
        let noted = self.signals.take();
        if noted.child {
            self.supervisor.reap();
        }
        if noted.terminate {
            // While it holds a container a shim does not go: it would take its truth along.
            self.supervisor.shutdown();
        }
    }

    fn serve(&mut self, number: u32, event: Ready) {
        let Some(peer) = self.peers.get_mut(&number) else { return };
        let mut requests = Vec::new();
        let written = if event.writable { peer.connection.on_writable() } else { Ok(()) };
        let read = if event.readable { peer.connection.on_readable(&mut requests) } else { Ok(Flow::Open) };
        let alive = written.is_ok() && matches!(read, Ok(Flow::Open));
        // What came before the end is still done: a caller may hang up without waiting for the answer.
        for incoming in requests {
            self.answer(number, &incoming);
        }
        if alive { self.watch(number) } else { self.drop_peer(number) }
    }

    fn answer(&mut self, number: u32, incoming: &Incoming) {
        let caller = Caller { connection: number, stream: incoming.stream };
        if let Some(answer) = service::answer(&mut self.supervisor, caller, &incoming.request) {
            self.reply(caller, answer);
        }
        self.deliver_waited();
    }

    fn deliver_waited(&mut self) {
        for Waited { caller, answer } in std::mem::take(&mut self.supervisor.waited) {
            self.reply(caller, Ok(service::waited(answer)));
            self.watch(caller.connection);
        }
    }

    fn reply(&mut self, caller: Caller, answer: Result<Vec<u8>, gantry_ttrpc::Status>) {
        let Some(peer) = self.peers.get_mut(&caller.connection) else { return };
        if peer.connection.reply(caller.stream, answer).is_err() {
            self.drop_peer(caller.connection);
        }
    }

    fn watch(&mut self, number: u32) {
        let Some(peer) = self.peers.get_mut(&number) else { return };
        let interest = Interest { read: peer.connection.wants_read(), write: peer.connection.wants_write() };
        if interest == peer.interest {
            return;
        }
        peer.interest = interest;
        if self.poller.modify(&peer.connection, Token::Connection(number), interest).is_err() {
            self.drop_peer(number);
        }
    }

    fn drop_peer(&mut self, number: u32) {
        if let Some(peer) = self.peers.remove(&number) {
            self.poller.remove(peer.connection.as_fd());
            self.supervisor.disconnected(number);
        }
    }

    fn may_end(&mut self) -> bool {
        if !self.supervisor.is_shutting_down() {
            return false;
        }
        self.supervisor.publisher.settle();
        let deadline = *self.ending.get_or_insert_with(|| Instant::now() + FAREWELL);
        let answered = self.peers.values().all(|peer| !peer.connection.wants_write());
        (answered && self.supervisor.publisher.is_idle()) || Instant::now() >= deadline
    }
}
