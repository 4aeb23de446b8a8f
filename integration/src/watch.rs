//! A deadline over a whole test: whatever it waits for, the run goes on or ends, and says which test it was.

use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use crate::census;

/// How long a test may have its laboratory; `GANTRY_LAB_LIMIT` sets another number of seconds.
const LIMIT: Duration = Duration::from_secs(900);
/// How long it may take to end once all its processes are killed.
const GRACE: Duration = Duration::from_secs(60);

/// Dropping it is the end of the watch.
pub(crate) struct Watch(#[expect(dead_code, reason = "its end is what counts")] Sender<()>);

impl Watch {
    /// Watches over the test that has this laboratory.
    pub(crate) fn over(dir: &Path, tag: &str) -> Watch {
        let (sender, receiver) = channel();
        let (dir, tag) = (dir.to_owned(), tag.to_owned());
        let test = std::thread::current().name().unwrap_or("a test").to_owned();
        std::thread::spawn(move || {
            if is_over(&receiver, limit()) {
                return;
            }
            eprintln!("{test} in {} still runs after {:?}: its processes are killed", dir.display(), limit());
            census::end_processes_of(&dir, &tag);
            if !is_over(&receiver, GRACE) {
                eprintln!("{test} in {} does not end: the run is broken off", dir.display());
                std::process::abort();
            }
        });
        Watch(sender)
    }
}

fn is_over(receiver: &Receiver<()>, limit: Duration) -> bool {
    receiver.recv_timeout(limit) != Err(RecvTimeoutError::Timeout)
}

fn limit() -> Duration {
    let asked = std::env::var("GANTRY_LAB_LIMIT").ok().and_then(|text| text.parse().ok());
    asked.map_or(LIMIT, Duration::from_secs)
}
