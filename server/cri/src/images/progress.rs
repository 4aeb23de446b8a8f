//! Whether a pull gets on: `image_pull_progress_timeout`.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use gantry_engine::transfer::{Progress, ProgressSink};

use crate::{Error, Result};

/// What is being fetched, and when the last byte of any of it came.
struct Watch {
    fetching: HashMap<String, i64>,
    moved: Instant,
}

impl Watch {
    fn note(&mut self, progress: Progress, now: Instant) {
        if progress.event != "downloading" {
            self.fetching.remove(&progress.name);
            self.moved = now;
        } else if self.fetching.insert(progress.name, progress.progress) != Some(progress.progress) {
            self.moved = now;
        }
    }

    /// When it is to be given up; none while nothing is fetched: unpacking takes as long as it takes.
    fn deadline(&self, limit: Duration) -> Option<Instant> {
        if self.fetching.is_empty() { None } else { self.moved.checked_add(limit) }
    }
}

/// Does a pull, which is given up when none of what it fetches comes nearer for `limit`; zero: never.
///
/// # Errors
/// The pull's own, and [`Error::Deadline`].
pub(super) async fn watched<T, F>(limit: Duration, pull: impl FnOnce(ProgressSink) -> F) -> Result<T>
where
    F: Future<Output = gantry_engine::Result<T>>,
{
    if limit.is_zero() {
        return Ok(pull(ProgressSink::default()).await?);
    }
    let (sink, mut told) = ProgressSink::channel();
    let mut watch = Watch { fetching: HashMap::new(), moved: Instant::now() };
    let mut pulling = std::pin::pin!(pull(sink));
    loop {
        let late = async {
            match watch.deadline(limit) {
                Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            done = &mut pulling => return Ok(done?),
            Some(progress) = told.recv() => watch.note(progress, Instant::now()),
            () = late => return Err(Error::Deadline { what: "no byte came (image_pull_progress_timeout)".into(), limit }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(event: &str, progress: i64) -> Progress {
        Progress { event: event.into(), name: "layer-a".into(), progress, ..Progress::default() }
    }

    #[test]
    fn only_bytes_that_do_not_come_make_a_pull_late() {
        let (start, limit) = (Instant::now(), Duration::from_secs(300));
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut watch = Watch { fetching: HashMap::new(), moved: start };
        assert_eq!(watch.deadline(limit), None);
        watch.note(of("downloading", 7), after(1));
        assert_eq!(watch.deadline(limit), Some(after(301)));
        watch.note(of("downloading", 7), after(100));
        assert_eq!(watch.deadline(limit), Some(after(301)));
        watch.note(of("downloading", 8), after(200));
        assert_eq!(watch.deadline(limit), Some(after(500)));
        watch.note(of("complete", 10), after(210));
        assert_eq!(watch.deadline(limit), None);
    }

    #[tokio::test]
    async fn a_pull_without_progress_is_given_up_by_its_limit() {
        let stuck = watched(Duration::from_millis(10), |sink| async move {
            sink.tell(of("downloading", 7));
            std::future::pending::<gantry_engine::Result<()>>().await
        });
        assert!(matches!(stuck.await, Err(Error::Deadline { .. })));
        assert!(watched(Duration::ZERO, |_| async { Ok(()) }).await.is_ok());
    }
}
