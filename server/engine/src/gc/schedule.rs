//! When to collect: after deletions, after changes, when something expires; and never for more than a part of the time.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use gantry_types::Digest;
use tokio::sync::Notify;

use super::Gc;
use crate::config::GcConfig;

/// The largest part of the time that collections may take, whatever is configured (as with containerd).
const LARGEST_PART: f64 = 0.5;

/// The shortest pause before something that has expired is looked for again: a clock that stands still must not make this
/// a busy loop.
const SHORTEST: Duration = Duration::from_millis(100);

/// What asks for a collection, and what deletions left for it.
#[derive(Default)]
pub(crate) struct Garbage {
    deletions: AtomicU64,
    /// Wakes who counts deletions.
    asked: Notify,
    /// Wakes who waits for something to expire.
    expiring: Notify,
    loose: Mutex<Loose>,
}

/// What has no record any more, and may have to be deleted.
#[derive(Default)]
struct Loose {
    digests: BTreeSet<Digest>,
    snapshots: Vec<(String, String)>,
}

impl Garbage {
    /// Something was deleted that may have kept something else.
    pub(crate) fn deleted(&self) {
        self.deletions.fetch_add(1, Ordering::SeqCst);
        self.asked.notify_one();
    }

    /// Asks for a collection, whatever the threshold.
    pub(crate) fn ask(&self) {
        self.deletions.store(u64::MAX / 2, Ordering::SeqCst);
        self.asked.notify_one();
    }

    /// Something was written that expires.
    pub(crate) fn expires(&self) {
        self.expiring.notify_one();
    }

    /// The record of a blob was deleted: its bytes go, where no other namespace has it.
    pub(crate) fn leave_blob(&self, digest: &Digest) {
        self.loose().digests.insert(digest.clone());
        self.deleted();
    }

    /// A snapshot without a record could not be removed.
    pub(crate) fn leave_snapshot(&self, snapshotter: &str, internal: &str) {
        self.loose().snapshots.push((snapshotter.to_owned(), internal.to_owned()));
    }

    /// What was left since the last time, children before their parents.
    pub(super) fn take_loose(&self) -> (Vec<Digest>, Vec<(String, String)>) {
        let Loose { digests, mut snapshots } = std::mem::take(&mut *self.loose());
        // Those that failed last were made last.
        snapshots.reverse();
        (digests.into_iter().collect(), snapshots)
    }

    fn loose(&self) -> std::sync::MutexGuard<'_, Loose> {
        self.loose.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns when there were as many deletions. 0 is as good as 1: the pause after the last collection is what bounds
    /// it then, as with containerd.
    async fn enough(&self, threshold: u64) {
        let threshold = threshold.max(1);
        while self.deletions.load(Ordering::SeqCst) < threshold {
            self.asked.notified().await;
        }
    }
}

impl Gc {
    /// Collects when asked to, and when something expires, until the engine closes.
    pub(crate) async fn serve(self) {
        let (core, settings) = (self.core.clone(), self.core.config.gc.clone());
        let mut rest = settings.startup_delay;
        let mut changes = core.db.commits();
        loop {
            tokio::select! {
                () = core.stop.cancelled() => return,
                () = self.after_deletions(&settings, rest) => {}
                () = self.after_time(&settings, changes) => {}
            }
            core.garbage.deletions.store(0, Ordering::SeqCst);
            let began = Instant::now();
            if let Err(error) = self.collect().await {
                tracing::warn!(%error, "garbage collection failed");
            }
            changes = core.db.commits();
            rest = pause(began.elapsed(), settings.pause_threshold);
        }
    }

    async fn after_deletions(&self, settings: &GcConfig, rest: Duration) {
        let until = Instant::now() + rest;
        self.core.garbage.enough(settings.deletion_threshold).await;
        let rest = until.saturating_duration_since(Instant::now());
        tokio::time::sleep(rest.max(settings.schedule_delay)).await;
    }

    /// Returns when something has expired, or when it is time and there were many changes since `before`.
    async fn after_time(&self, settings: &GcConfig, before: u64) {
        let mut look = tokio::time::Instant::now() + settings.interval;
        loop {
            let expiry = self.until_expiry().await.map(|left| tokio::time::Instant::now() + left.max(SHORTEST));
            tokio::select! {
                () = tokio::time::sleep_until(expiry.unwrap_or(look)), if expiry.is_some() => return,
                () = tokio::time::sleep_until(look) => {
                    let changes = self.core.db.commits().saturating_sub(before);
                    if settings.mutation_threshold > 0 && changes >= settings.mutation_threshold {
                        return;
                    }
                    look += settings.interval;
                }
                () = self.core.garbage.expiring.notified() => {}
            }
        }
    }

    async fn until_expiry(&self) -> Option<Duration> {
        let db = self.core.db.clone();
        let now = SystemTime::now();
        let next = tokio::task::spawn_blocking(move || db.next_expiry(now)).await.ok().flatten()?;
        Some(next.duration_since(now).unwrap_or_default())
    }
}

/// How long none is to follow a collection that took `took`.
fn pause(took: Duration, part: f64) -> Duration {
    if part <= 0.0 {
        return Duration::ZERO;
    }
    // Bounded, so that one slow collection does not put off the next for hours.
    took.div_f64(part.min(LARGEST_PART)).min(Duration::from_secs(60))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collection_is_followed_by_a_pause_in_proportion() {
        assert_eq!(pause(Duration::from_millis(20), 0.02), Duration::from_secs(1));
        assert_eq!(pause(Duration::from_millis(20), 0.0), Duration::ZERO);
        assert_eq!(pause(Duration::from_millis(20), 7.0), Duration::from_millis(40));
        assert_eq!(pause(Duration::from_secs(600), 0.02), Duration::from_secs(60));
    }

    #[tokio::test]
    async fn deletions_count_up_to_the_threshold_and_asking_counts_for_all() {
        let garbage = Garbage::default();
        let waits = |threshold| tokio::time::timeout(Duration::from_millis(1), garbage.enough(threshold));
        garbage.deleted();
        assert!(waits(1).await.is_ok());
        assert!(waits(2).await.is_err() && waits(0).await.is_ok());
        garbage.deleted();
        assert!(waits(2).await.is_ok());
        garbage.ask();
        assert!(waits(0).await.is_ok() && waits(1000).await.is_ok());
    }

    #[test]
    fn what_is_left_is_taken_once_last_first() {
        let garbage = Garbage::default();
        garbage.leave_blob(&Digest::of(b"x"));
        garbage.leave_snapshot("native", "parent");
        garbage.leave_snapshot("native", "child");
        let (digests, snapshots) = garbage.take_loose();
        assert_eq!(digests, [Digest::of(b"x")]);
        assert_eq!(snapshots.iter().map(|(_, key)| key.as_str()).collect::<Vec<_>>(), ["child", "parent"]);
        assert_eq!(garbage.take_loose(), (Vec::new(), Vec::new()));
    }
}
