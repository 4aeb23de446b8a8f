//! How fast bytes may come at most, and must come at least.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::Reason;

/// A limit on received bytes a second, shared by all transfers.
pub(crate) struct Throttle {
    per_second: u64,
    next: Mutex<Instant>,
}

impl Throttle {
    /// 0: no limit.
    pub(crate) fn new(per_second: u64) -> Throttle {
        Throttle { per_second, next: Mutex::new(Instant::now()) }
    }

    /// Accounts for `bytes` and waits until they were allowed to come.
    pub(crate) async fn take(&self, bytes: usize) {
        if self.per_second > 0 {
            let due = self.book(bytes);
            tokio::time::sleep_until(due.into()).await;
        }
    }

    fn book(&self, bytes: usize) -> Instant {
        let cost = Duration::from_secs_f64(bytes as f64 / self.per_second as f64);
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        *next = (*next).max(Instant::now()) + cost;
        *next
    }
}

/// Judges whether a body comes fast enough, by the time spent waiting for it: a reader that is slow itself is not
/// held against the sender.
pub(crate) struct Pace {
    minimum: u64,
    window: Duration,
    waited: Duration,
    received: u64,
}

impl Pace {
    /// At least `minimum` bytes a second over each `window`; 0 asks only that something comes within the window.
    pub(crate) fn new(minimum: u64, window: Duration) -> Pace {
        Pace { minimum, window, waited: Duration::ZERO, received: 0 }
    }

    /// The longest the next wait may take.
    pub(crate) fn left(&self) -> Duration {
        self.window.saturating_sub(self.waited).max(Duration::from_millis(1))
    }

    /// Notes that `bytes` came after `waited`; 0 bytes for a wait that ended without any.
    pub(crate) fn note(&mut self, bytes: usize, waited: Duration) -> Result<(), Reason> {
        self.waited += waited;
        self.received += bytes as u64;
        if self.waited < self.window {
            return Ok(());
        }
        let (received, wanted) = (self.received, self.wanted());
        (self.waited, self.received) = (Duration::ZERO, 0);
        if received >= wanted {
            return Ok(());
        }
        Err(Reason::TooSlow { received, window: self.window, minimum: self.minimum })
    }

    fn wanted(&self) -> u64 {
        ((self.minimum as f64 * self.window.as_secs_f64()) as u64).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trickle_is_found_out_at_the_end_of_the_window_and_not_before() {
        let mut pace = Pace::new(100, Duration::from_secs(2));
        assert!(pace.note(10, Duration::from_secs(1)).is_ok());
        assert!(matches!(pace.note(10, Duration::from_secs(1)), Err(Reason::TooSlow { received: 20, .. })));
        assert!(pace.note(500, Duration::from_secs(3)).is_ok());
    }

    #[tokio::test]
    async fn the_limit_spreads_bytes_over_time() {
        let throttle = Throttle::new(1000);
        let start = Instant::now();
        let due = throttle.book(500);
        assert!(due >= start + Duration::from_millis(499));
        assert!(throttle.book(500) >= due + Duration::from_millis(499));
    }
}
