//! Events as a numbered log: publishers append, subscribers read at their own pace, and one who falls behind further
//! than the log reaches is told how many it missed.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use gantry_types::{Any, ErrorKind, Fields, Filter, HasKind, Namespace};
use tokio::sync::watch;

/// An event and where it came from.
#[derive(Clone, Debug, PartialEq)]
pub struct Envelope {
    /// Its number: rises by one from event to event, starts anew with the engine.
    pub sequence: u64,
    /// When it happened.
    pub timestamp: SystemTime,
    /// The namespace it happened in.
    pub namespace: Namespace,
    /// `/images/create`, `/tasks/exit`, …
    pub topic: String,
    /// The message, `containerd.events.*` for all that containerd has.
    pub event: Any,
}

impl Fields for Envelope {
    fn field(&self, path: &[&str]) -> Option<Cow<'_, str>> {
        match path {
            ["namespace"] => Some(Cow::Borrowed(self.namespace.as_str())),
            ["topic"] => Some(Cow::Borrowed(&self.topic)),
            _ => None,
        }
    }
}

/// The log. Clones share it.
#[derive(Clone)]
pub struct Events(Arc<Shared>);

struct Shared {
    log: Mutex<Log>,
    next: watch::Sender<u64>,
    keep: usize,
}

struct Log {
    next: u64,
    kept: VecDeque<Arc<Envelope>>,
}

impl Events {
    /// An empty log that keeps the last `keep` events.
    pub fn new(keep: usize) -> Events {
        let log = Mutex::new(Log { next: 1, kept: VecDeque::new() });
        Events(Arc::new(Shared { log, next: watch::Sender::new(1), keep: keep.max(1) }))
    }

    /// Appends an event that happens now; gives its number.
    ///
    /// # Errors
    /// [`InvalidTopic`].
    pub fn publish(&self, namespace: &Namespace, topic: &str, event: Any) -> Result<u64, InvalidTopic> {
        self.forward(namespace, topic, event, SystemTime::now())
    }

    /// Appends an event that happened at `timestamp`, as shims report them.
    ///
    /// # Errors
    /// [`InvalidTopic`].
    pub fn forward(
        &self,
        namespace: &Namespace,
        topic: &str,
        event: Any,
        timestamp: SystemTime,
    ) -> Result<u64, InvalidTopic> {
        validate_topic(topic)?;
        let (namespace, topic) = (namespace.clone(), topic.to_owned());
        let mut log = self.0.log.lock().unwrap_or_else(PoisonError::into_inner);
        let sequence = log.next;
        log.next += 1;
        log.kept.push_back(Arc::new(Envelope { sequence, timestamp, namespace, topic, event }));
        if log.kept.len() > self.0.keep {
            log.kept.pop_front();
        }
        // Told under the lock, so that numbers rise for every watcher.
        self.0.next.send_replace(log.next);
        Ok(sequence)
    }

    /// Everything selected by `filter` from now on, in every namespace.
    pub fn subscribe(&self, filter: Filter) -> Subscription {
        let next = self.0.log.lock().unwrap_or_else(PoisonError::into_inner).next;
        Subscription { events: Arc::clone(&self.0), told: self.0.next.subscribe(), next, filter }
    }

    /// Everything selected by `filter` from event number `first` on; what the log has forgotten comes as a [`Gap`].
    pub fn subscribe_from(&self, filter: Filter, first: u64) -> Subscription {
        Subscription { next: first.max(1), ..self.subscribe(filter) }
    }
}

/// A reader of the log.
pub struct Subscription {
    events: Arc<Shared>,
    told: watch::Receiver<u64>,
    next: u64,
    filter: Filter,
}

impl Subscription {
    /// The next selected event. May be dropped while waiting; nothing is lost then.
    ///
    /// # Errors
    /// [`Gap`], once, where events were forgotten before they were read; the call after that goes on behind it.
    pub async fn next(&mut self) -> Result<Arc<Envelope>, Gap> {
        loop {
            self.told.borrow_and_update();
            while let Some(envelope) = self.take()? {
                if self.filter.matches(&*envelope) {
                    return Ok(envelope);
                }
            }
            // The sender lives in what this subscription holds, so waiting cannot fail.
            let _ = self.told.changed().await;
        }
    }

    fn take(&mut self) -> Result<Option<Arc<Envelope>>, Gap> {
        let log = self.events.log.lock().unwrap_or_else(PoisonError::into_inner);
        let oldest = log.next - log.kept.len() as u64;
        if self.next < oldest {
            let gap = Gap { missed: oldest - self.next, next: oldest };
            self.next = oldest;
            return Err(gap);
        }
        let envelope = log.kept.get((self.next - oldest) as usize).cloned();
        if envelope.is_some() {
            self.next += 1;
        }
        Ok(envelope)
    }
}

/// A subscriber was slower than the log is long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{missed} events were missed: the subscriber fell behind; the next one is number {next}")]
pub struct Gap {
    /// How many events were forgotten unread (selected or not).
    pub missed: u64,
    /// Number of the first event after them.
    pub next: u64,
}

impl HasKind for Gap {
    fn kind(&self) -> ErrorKind {
        ErrorKind::DataLoss
    }
}

/// Not a topic: topics are `/`-separated identifiers, starting with `/`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid topic {topic:?}: {reason}")]
pub struct InvalidTopic {
    topic: String,
    reason: &'static str,
}

impl HasKind for InvalidTopic {
    fn kind(&self) -> ErrorKind {
        ErrorKind::InvalidArgument
    }
}

fn validate_topic(topic: &str) -> Result<(), InvalidTopic> {
    let invalid = |reason| InvalidTopic { topic: topic.chars().take(120).collect(), reason };
    let parts = topic.strip_prefix('/').ok_or_else(|| invalid("must start with `/`"))?;
    if parts.split('/').all(|part| part.parse::<gantry_types::Id>().is_ok()) {
        Ok(())
    } else {
        Err(invalid("the parts between `/` must be identifiers"))
    }
}
