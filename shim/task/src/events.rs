//! Tells the daemon what happened: in order, without ever waiting, again after the daemon was away.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::{Duration, Instant};

use gantry_ttrpc::outgoing::Outgoing;
use gantry_ttrpc::pb::containerd::events as pb;
use gantry_ttrpc::pb::containerd::services::events::ttrpc::v1::ForwardRequest;
use gantry_ttrpc::pb::containerd::types::Envelope;
use gantry_ttrpc::server::Flow;
use gantry_ttrpc::{Address, Status};
use gantry_types::ErrorKind;
use prost::{Message, Name};
use prost_types::Any;

use crate::log;
use crate::poll::{Interest, Poller, Token};
use crate::task::{Exit, Moment, Notice};

const SERVICE: &str = "containerd.services.events.ttrpc.v1.Events";
/// Events kept while the daemon is away; beyond it the oldest go.
const MAX_QUEUE: usize = 4096;
/// What the daemon is told about how long we wait for its answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// First pause before another attempt; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How long an answer for which no further event waits may lie unread: as a rule the next event comes first, and the shim
/// does not wake up for it.
const UNREAD: Duration = Duration::from_millis(20);
/// How often a daemon that answers, but with a passing failure, is asked again.
const MAX_REFUSALS: u32 = 5;

/// The queue of events and the connection it drains into.
#[derive(Debug)]
pub struct Publisher {
    poller: Rc<Poller>,
    namespace: String,
    address: Option<Address>,
    queue: VecDeque<Vec<u8>>,
    connection: Option<Outgoing>,
    /// The stream on which the front of the queue is under way.
    under_way: Option<u32>,
    waits_for: Interest,
    failures: u32,
    refusals: u32,
    retry_at: Option<Instant>,
    /// When the answer to what is under way is waited for.
    look_at: Option<Instant>,
}

impl Publisher {
    /// Publishes to `address`; nowhere, if there is none.
    pub fn new(poller: Rc<Poller>, namespace: String, address: Option<Address>) -> Publisher {
        Publisher {
            poller,
            namespace,
            address,
            queue: VecDeque::new(),
            connection: None,
            under_way: None,
            waits_for: NOTHING,
            failures: 0,
            refusals: 0,
            retry_at: None,
            look_at: None,
        }
    }

    /// Publishes a message under `/tasks/…`.
    pub fn publish<M: Message + Name>(&mut self, topic: &str, message: &M) {
        if self.address.is_none() {
            return;
        }
        self.take_answer();
        let envelope = Envelope {
            timestamp: Some(timestamp(Moment::now())),
            namespace: self.namespace.clone(),
            topic: topic.to_owned(),
            event: Some(Any { type_url: M::full_name(), value: message.encode_to_vec() }),
        };
        if self.queue.len() >= MAX_QUEUE {
            let dropped = usize::from(self.under_way.is_some());
            self.queue.remove(dropped);
            log::warning("an event was dropped", &"the daemon takes none");
        }
        self.queue.push_back(ForwardRequest { envelope: Some(envelope) }.encode_to_vec());
        self.advance();
    }

    /// Publishes what follows from a step of a task.
    pub fn announce(&mut self, id: &str, notice: &Notice) {
        let container_id = id.to_owned();
        match notice {
            Notice::Started { pid } => {
                self.publish("/tasks/start", &pb::TaskStart { container_id, pid: pid.cast_unsigned() });
            }
            Notice::ExecAdded { exec } => {
                self.publish("/tasks/exec-added", &pb::TaskExecAdded { container_id, exec_id: exec.clone() });
            }
            Notice::ExecStarted { exec, pid } => {
                let (exec_id, pid) = (exec.clone(), pid.cast_unsigned());
                self.publish("/tasks/exec-started", &pb::TaskExecStarted { container_id, exec_id, pid });
            }
            Notice::Paused => self.publish("/tasks/paused", &pb::TaskPaused { container_id }),
            Notice::Resumed => self.publish("/tasks/resumed", &pb::TaskResumed { container_id }),
            Notice::Exited { exec, pid, exit } => {
                let process = if exec.is_empty() { id } else { exec };
                self.publish("/tasks/exit", &exited(container_id, process, *pid, *exit));
            }
            Notice::Deleted { pid, exit } => {
                let exited_at = Some(timestamp(exit.at));
                let (pid, exit_status) = (pid.cast_unsigned(), exit.status);
                let id = String::new();
                self.publish("/tasks/delete", &pb::TaskDelete { container_id, pid, exit_status, exited_at, id });
            }
            Notice::ExecDeleted => {}
        }
    }

    /// Whether all has been delivered, or nobody wants it.
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty()
    }

    /// Takes what has been answered, without waiting, and waits for the rest from now on.
    pub fn settle(&mut self) {
        self.take_answer();
        self.look_at = None;
        self.watch();
    }

    /// When to call [`Publisher::tick`].
    pub fn deadline(&self) -> Option<Instant> {
        [self.retry_at, self.look_at].into_iter().flatten().min()
    }

    /// Tries again, if it is time to.
    pub fn tick(&mut self, now: Instant) {
        if self.retry_at.is_some_and(|at| at <= now) {
            self.retry_at = None;
            self.advance();
        }
        if self.look_at.is_some_and(|at| at <= now) {
            self.look_at = None;
            self.watch();
        }
    }

    fn take_answer(&mut self) {
        if self.under_way.is_some() {
            self.ready(true, false);
        }
    }

    /// The connection became ready.
    pub fn ready(&mut self, readable: bool, writable: bool) {
        let Some(connection) = &mut self.connection else { return };
        let mut answers = Vec::new();
        let written = if writable { connection.on_writable() } else { Ok(()) };
        let read = if readable { connection.on_readable(&mut answers) } else { Ok(Flow::Open) };
        for (stream, answer) in answers {
            self.answered(stream, answer.map(drop));
        }
        match (written, read) {
            (Ok(()), Ok(Flow::Open)) => self.advance(),
            _ => self.lost(),
        }
    }

    fn answered(&mut self, stream: u32, answer: Result<(), Status>) {
        if self.under_way != Some(stream) {
            return;
        }
        self.under_way = None;
        self.look_at = None;
        self.failures = 0;
        match answer {
            Err(status) if passing(status.kind) && self.refusals < MAX_REFUSALS => {
                self.refusals += 1;
                self.retry_later(self.refusals);
                return;
            }
            Err(status) => log::warning("the daemon refused an event", &status),
            Ok(()) => {}
        }
        self.refusals = 0;
        self.queue.pop_front();
    }

    /// Sends the front of the queue, unless it is under way or a pause is due.
    fn advance(&mut self) {
        if self.under_way.is_none() && self.retry_at.is_none() && !self.queue.is_empty() {
            self.send();
        }
        self.watch();
    }

    fn send(&mut self) {
        if self.connection.is_none() && !self.connect() {
            return;
        }
        let (Some(connection), Some(event)) = (&mut self.connection, self.queue.front()) else { return };
        match connection.call(SERVICE, "Forward", event.clone(), TIMEOUT, &[]) {
            Ok(stream) => {
                self.under_way = Some(stream);
                self.look_at = Some(Instant::now() + UNREAD);
            }
            Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => {
                log::warning("an event is too long", &error);
                self.queue.pop_front();
            }
            Err(_) => self.lost(),
        }
    }

    fn connect(&mut self) -> bool {
        let Some(address) = &self.address else { return false };
        let connection = Outgoing::connect(address);
        match connection {
            // Its end is reported whatever is waited for.
            Ok(connection) if self.poller.add(&connection, Token::Publisher, NOTHING).is_ok() => {
                self.connection = Some(connection);
                self.waits_for = NOTHING;
                true
            }
            _ => {
                self.lost();
                false
            }
        }
    }

    /// What was under way is sent again: the daemon may see it twice, but never not at all.
    fn lost(&mut self) {
        self.connection = None;
        self.under_way = None;
        self.look_at = None;
        if !self.queue.is_empty() {
            self.failures = self.failures.saturating_add(1);
            self.retry_later(self.failures);
        }
    }

    fn retry_later(&mut self, attempt: u32) {
        let pause = FIRST_PAUSE.saturating_mul(1 << attempt.saturating_sub(1).min(10)).min(LONGEST_PAUSE);
        self.retry_at = Some(Instant::now() + pause);
    }

    fn watch(&mut self) {
        let Some(connection) = &self.connection else { return };
        // An answer is worth waking up for when another event waits for it, or when it has been long in coming.
        let read = self.queue.len() > 1 || (self.under_way.is_some() && self.look_at.is_none());
        let wanted = Interest { read, write: connection.wants_write() };
        if wanted != self.waits_for && self.poller.modify(connection, Token::Publisher, wanted).is_ok() {
            self.waits_for = wanted;
        }
    }
}

/// Nothing but the end of the connection.
const NOTHING: Interest = Interest { read: false, write: false };

/// The event of a process's end.
pub fn exited(container_id: String, process: &str, pid: i32, exit: Exit) -> pb::TaskExit {
    let exited_at = Some(timestamp(exit.at));
    pb::TaskExit { container_id, id: process.to_owned(), pid: pid.cast_unsigned(), exit_status: exit.status, exited_at }
}

/// A moment on the wire.
pub fn timestamp(at: Moment) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: at.seconds, nanos: at.nanos }
}

fn passing(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Unavailable | ErrorKind::DeadlineExceeded | ErrorKind::ResourceExhausted)
}
