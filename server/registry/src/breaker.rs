//! Hosts that are down, passed over for a while so that a dead mirror is paid for once.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Remembers which hosts failed lately.
pub(crate) struct Breaker {
    pause: Duration,
    open: Mutex<HashMap<String, Instant>>,
}

impl Breaker {
    pub(crate) fn new(pause: Duration) -> Breaker {
        Breaker { pause, open: Mutex::default() }
    }

    /// The host could not be reached or answered too late.
    pub(crate) fn failed(&self, host: &str) {
        let until = Instant::now() + self.pause;
        let mut open = self.lock();
        if open.len() > 1024 {
            open.retain(|_, until| *until > Instant::now());
        }
        open.insert(host.to_owned(), until);
    }

    /// The host answered.
    pub(crate) fn worked(&self, host: &str) {
        self.lock().remove(host);
    }

    /// Whether the host should be passed over now.
    pub(crate) fn is_open(&self, host: &str) -> bool {
        self.lock().get(host).is_some_and(|until| *until > Instant::now())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_host_is_passed_over_until_it_works_or_the_pause_ends() {
        let breaker = Breaker::new(Duration::from_millis(40));
        breaker.failed("a");
        breaker.failed("b");
        assert!(breaker.is_open("a") && breaker.is_open("b") && !breaker.is_open("c"));
        breaker.worked("a");
        assert!(!breaker.is_open("a"));
        std::thread::sleep(Duration::from_millis(60));
        assert!(!breaker.is_open("b"));
    }
}
