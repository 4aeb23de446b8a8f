//! Renames and directory entries that survive a power cut; waiting callers share one fsync.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use rustix::fs::{CWD, RenameFlags, renameat_with};

/// Renames `from` to `to`, which must not exist.
pub(crate) fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // The file system does not know the flag.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
            std::fs::hard_link(from, to)?;
            std::fs::remove_file(from)
        }
        result => Ok(result?),
    }
}

/// A directory whose entries many threads want on the disk at once.
#[derive(Debug)]
pub(crate) struct SharedSync {
    directory: File,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Syncs that were started, and those that ended.
    started: u64,
    ended: u64,
    /// The last sync that failed, and how.
    failed: Option<(u64, io::ErrorKind)>,
}

impl SharedSync {
    pub(crate) fn open(directory: &Path) -> io::Result<SharedSync> {
        Ok(SharedSync { directory: File::open(directory)?, state: Mutex::default(), changed: Condvar::new() })
    }

    /// Returns when a sync that began after this call has ended. Those who wait while one runs share the next.
    pub(crate) fn sync(&self) -> io::Result<()> {
        let mut state = self.lock();
        let mine = state.started + 1;
        while state.ended < mine {
            if state.started == state.ended {
                state = self.run(state);
            } else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
        match state.failed {
            Some((number, kind)) if number >= mine => Err(kind.into()),
            _ => Ok(()),
        }
    }

    fn run<'s>(&'s self, mut state: MutexGuard<'s, State>) -> MutexGuard<'s, State> {
        state.started += 1;
        let number = state.started;
        drop(state);
        let result = self.directory.sync_all();
        let mut state = self.lock();
        state.ended = number;
        if let Err(error) = result {
            state.failed = Some((number, error.kind()));
        }
        self.changed.notify_all();
        state
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
