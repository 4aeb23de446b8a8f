//! Which host to ask next, and when: hosts in order, those that are down last, with growing pauses between rounds.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use crate::hosts::Endpoint;
use crate::registry::Shared;
use crate::{Error, Reason, Stage};

/// The attempts of one request. Ask [`Attempts::next`] for a host, report how it went, until it gives none.
pub(crate) struct Attempts {
    shared: Arc<Shared>,
    endpoints: Vec<Arc<Endpoint>>,
    subject: String,
    stage: Stage,
    queue: VecDeque<Arc<Endpoint>>,
    /// Hosts of this round that are down: asked only where no other could tell.
    down: VecDeque<Arc<Endpoint>>,
    /// The registry itself, not a mirror, gave a final answer.
    settled: bool,
    current: Option<Arc<Endpoint>>,
    round: u32,
    errors: Vec<Error>,
}

impl Attempts {
    /// Attempts at `endpoints`, of which there must be at least one for anything to happen.
    pub(crate) fn new(shared: Arc<Shared>, endpoints: Vec<Arc<Endpoint>>, subject: String, stage: Stage) -> Attempts {
        let mut attempts = Attempts {
            shared,
            endpoints,
            subject,
            stage,
            queue: VecDeque::new(),
            down: VecDeque::new(),
            settled: false,
            current: None,
            round: 0,
            errors: Vec::new(),
        };
        attempts.start_round();
        attempts
    }

    /// The host to ask now, after the pause that is due; none when it is time to give up.
    pub(crate) async fn next(&mut self) -> Option<Arc<Endpoint>> {
        if self.queue.is_empty() && !self.settled {
            self.queue.append(&mut self.down);
        }
        if self.queue.is_empty() {
            let pause = self.pause_before_next_round()?;
            tracing::debug!(subject = self.subject, stage = %self.stage, ?pause, "waiting before another attempt");
            tokio::time::sleep(pause).await;
            self.round += 1;
            self.errors.clear();
            self.start_round();
        }
        self.current = self.queue.pop_front();
        self.current.clone()
    }

    /// How long this attempt may wait for the head of an answer.
    pub(crate) fn patience(&self) -> Duration {
        let config = &self.shared.config;
        let others_left = !(self.queue.is_empty() && self.down.is_empty());
        match self.stage {
            _ if !others_left => config.answer_timeout,
            Stage::FetchBlob => config.mirror_blob_timeout.min(config.answer_timeout),
            _ => config.mirror_timeout.min(config.answer_timeout),
        }
    }

    /// The attempt succeeded.
    pub(crate) fn worked(&mut self) {
        if let Some(endpoint) = &self.current {
            self.shared.breaker.worked(&endpoint.host);
        }
    }

    /// Bytes came: what failed before does not count any more.
    pub(crate) fn progressed(&mut self) {
        self.round = 0;
        self.errors.clear();
    }

    /// The attempt failed.
    pub(crate) fn failed(&mut self, reason: Reason) {
        let host = self.current.as_ref().map_or("", |e| e.host.as_str());
        if reason.is_host_down() {
            self.shared.breaker.failed(host);
        } else if matches!(reason, Reason::Status { .. }) {
            self.shared.breaker.worked(host);
        }
        let upstream = self.current.as_ref().is_some_and(|e| e.upstream);
        self.settled = self.settled || (upstream && !reason.is_transient());
        let error = Error::new(self.subject.as_str(), host, self.stage, reason);
        tracing::debug!(%error, "attempt failed");
        self.errors.push(error);
    }

    /// The error to give up with: the last host's, which names those before it. Of a reference, a host that answers
    /// says more than one that cannot be reached.
    pub(crate) fn give_up(&mut self) -> Error {
        let answered = self.errors.iter().rposition(|error| matches!(error.reason(), Reason::Status { .. }));
        let last = match answered.filter(|_| self.stage == Stage::Resolve) {
            Some(at) => Some(self.errors.remove(at)),
            None => self.errors.pop(),
        };
        let last = last
            .unwrap_or_else(|| Error::new(self.subject.as_str(), "", self.stage, Reason::NoHost("be asked for this")));
        last.after(&self.errors)
    }

    fn start_round(&mut self) {
        let is_down = |e: &Arc<Endpoint>| self.shared.breaker.is_open(&e.host);
        let (down, up): (VecDeque<_>, VecDeque<_>) = self.endpoints.iter().cloned().partition(is_down);
        (self.queue, self.down) = if up.is_empty() { (down, up) } else { (up, down) };
        self.settled = false;
    }

    fn pause_before_next_round(&self) -> Option<Duration> {
        let config = &self.shared.config;
        let reason = self.errors.last()?.reason();
        let rounds = if reason.is_host_down() { config.max_failures.min(2) } else { config.max_failures };
        if !reason.is_transient() || self.round + 1 >= rounds {
            return None;
        }
        match reason.retry_after() {
            Some(wait) if wait > config.max_retry_after => None,
            Some(wait) => Some(wait + jitter(wait / 10 + config.backoff)),
            None => {
                let pause = (config.backoff * 2u32.saturating_pow(self.round)).min(Duration::from_secs(30));
                Some(pause / 2 + jitter(pause))
            }
        }
    }
}

/// A random part of `most`, so that clients that failed together do not return together.
fn jitter(most: Duration) -> Duration {
    let random = RandomState::new().hash_one(0u8);
    most.mul_f64((random % 1024) as f64 / 1024.0)
}
