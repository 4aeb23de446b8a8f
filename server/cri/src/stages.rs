//! The stages of a creation: each has a name in the list of what runs, and a deadline; one that is overdue is named in
//! the error, with what it waits for. And work that only a thread can do, which no deadline can end.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use gantry_engine::ops::Entry;

use crate::{Cri, Error, Result};

/// What a look at records and files of this node may take.
pub(crate) const SHORT: Duration = Duration::from_secs(60);
/// What a kubelet waits for an answer, but for the time that the answer takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(110);
/// What unpacking, or fetching, an image may take.
pub(crate) const LONG: Duration = Duration::from_secs(30 * 60);

/// The stages of one creation. Clones are the same.
#[derive(Clone)]
pub(crate) struct Stages(Arc<Inner>);

struct Inner {
    what: &'static str,
    entry: Entry,
    now: Mutex<String>,
}

impl Stages {
    /// Enters a creation into the list of what runs, until the last clone is dropped.
    pub(crate) fn begin(cri: &Cri, what: &'static str, id: &str) -> Stages {
        let entry = cri.engine.ops.begin(what, id, Some(&cri.scope.namespace), None);
        Stages(Arc::new(Inner { what, entry, now: Mutex::default() }))
    }

    /// Does one stage.
    ///
    /// # Errors
    /// What the work says; [`Error::Overdue`] when it takes longer than `limit`. It is dropped then.
    pub(crate) async fn run<T>(
        &self,
        stage: &'static str,
        limit: Duration,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        self.note(stage.to_owned());
        match tokio::time::timeout(limit, work).await {
            Ok(done) => done,
            Err(_) => {
                let stage = self.0.now.lock().unwrap_or_else(PoisonError::into_inner).clone();
                Err(Error::Overdue { what: self.0.what, stage, limit })
            }
        }
    }

    /// Says what is being done, or waited for, right now.
    pub(crate) fn note(&self, stage: String) {
        self.0.entry.stage(stage.clone());
        *self.0.now.lock().unwrap_or_else(PoisonError::into_inner) = stage;
    }
}

/// Work in threads, by name. A dead file system holds its thread for ever; the same work is not begun again meanwhile.
#[derive(Clone, Default)]
pub(crate) struct Threads(Arc<Mutex<HashMap<String, Instant>>>);

impl Threads {
    /// Does `work` in a thread.
    ///
    /// # Errors
    /// What the work says; [`Error::Hangs`] while a thread still does work of this name.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let busy = Busy { threads: self.clone(), name: name.to_owned() };
        let now = Instant::now();
        let since = *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(name.to_owned()).or_insert(now);
        if since != now {
            // It is not ours to end.
            std::mem::forget(busy);
            return Err(Error::Hangs { what: name.to_owned(), since: since.elapsed() });
        }
        let working = tokio::task::spawn_blocking(move || {
            let _busy = busy;
            work()
        });
        working.await.map_err(|_| Error::Stopped { what: "work in a thread" })?
    }
}

/// Marks work as under way until it is dropped.
struct Busy {
    threads: Threads,
    name: String,
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.threads.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_that_hangs_is_not_begun_a_second_time_and_can_be_once_it_is_over() {
        let threads = Threads::default();
        let (go_on, wait) = std::sync::mpsc::channel::<()>();
        let hanging = threads.run("a mount", move || Ok(wait.recv().is_ok()));
        assert!(tokio::time::timeout(Duration::from_millis(50), hanging).await.is_err());
        let again = threads.run("a mount", || Ok(true)).await;
        assert!(matches!(again, Err(Error::Hangs { what, .. }) if what == "a mount"));
        assert!(threads.run("another mount", || Ok(true)).await.unwrap());
        go_on.send(()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(5);
        while threads.run("a mount", || Ok(true)).await.is_err() {
            assert!(Instant::now() < deadline, "the name stays taken");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
