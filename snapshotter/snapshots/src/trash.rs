//! Deletes what was removed, in a thread of its own, so that removal costs one rename.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use crate::error::Error;
use crate::records::Records;
use crate::tree;

/// What is done with a directory before it is deleted.
pub(crate) type Empty = fn(&Path) -> io::Result<()>;

enum Order {
    Delete(PathBuf),
    /// Answered once all orders before it are done.
    Report(Sender<()>),
}

/// The directory in which removed things wait, and the thread that empties it. Dropping it stops the thread; what is left
/// then is found again at the next start.
#[derive(Debug)]
pub(crate) struct Trash {
    dir: PathBuf,
    next: AtomicU64,
    orders: Option<Sender<Order>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Trash {
    /// Starts the thread, with all that lies in `dir` as its first work. `empty` takes away what deleting files alone
    /// does not, or not fast.
    pub(crate) fn open(dir: PathBuf, records: Arc<Records>, empty: Empty) -> Result<Trash, Error> {
        fs::create_dir_all(&dir).map_err(Error::io("make", &dir))?;
        let (orders, inbox) = channel();
        let mut next = 0;
        for entry in fs::read_dir(&dir).map_err(Error::io("list", &dir))? {
            let path = entry.map_err(Error::io("list", &dir))?.path();
            next = next.max(number(&path));
            // The receiver lives in this function.
            let _ = orders.send(Order::Delete(path));
        }
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("snapshot-trash".into())
            .spawn(move || work(&inbox, &records, &stopped, empty))
            .map_err(Error::io("start a thread for", &dir))?;
        Ok(Trash { dir, next: AtomicU64::new(next + 1), orders: Some(orders), stop, thread: Some(thread) })
    }

    /// Moves `path` here; nothing there is no error.
    pub(crate) fn take(&self, path: &Path) -> Result<(), Error> {
        let place = self.dir.join(self.next.fetch_add(1, Ordering::Relaxed).to_string());
        match fs::rename(path, &place) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            result => result.map_err(Error::io("move to the trash", path))?,
        }
        self.order(Order::Delete(place));
        Ok(())
    }

    /// Blocks until all that was taken before is deleted.
    pub(crate) fn wait(&self) {
        let (done, wait) = channel();
        self.order(Order::Report(done));
        // An error means that the thread has stopped, and then there is nothing to wait for.
        let _ = wait.recv();
    }

    fn order(&self, order: Order) {
        if let Some(orders) = &self.orders {
            // The thread ends only after this sender; should it have panicked, the next start finds what is left.
            let _ = orders.send(order);
        }
    }
}

impl Drop for Trash {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been reported by its hook already.
            let _ = thread.join();
        }
    }
}

fn number(path: &Path) -> u64 {
    path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok()).unwrap_or(0)
}

fn work(inbox: &Receiver<Order>, records: &Records, stop: &AtomicBool, empty: Empty) {
    while let Ok(first) = inbox.recv() {
        let orders: Vec<Order> = std::iter::once(first).chain(inbox.try_iter()).collect();
        if stop.load(Ordering::Relaxed) {
            return;
        }
        // A record that a power cut brings back must find its directory whole; one sync does for all that wait.
        let synced = records.sync();
        for order in orders {
            match order {
                Order::Report(done) => drop(done),
                Order::Delete(path) => delete(&path, &synced, stop, empty),
            }
        }
    }
}

fn delete(path: &Path, synced: &io::Result<()>, stop: &AtomicBool, empty: Empty) {
    let result = match synced {
        Ok(()) => empty(path).and_then(|()| tree::delete(path, &|| !stop.load(Ordering::Relaxed))),
        Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
    };
    match result {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
        Err(error) => tracing::warn!(?path, %error, "a removed snapshot is not deleted; the next start tries again"),
        Ok(()) => {}
    }
}
