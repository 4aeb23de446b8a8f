//! Small files are made in the archive's order by one thread, and given their content and metadata by another: of a
//! layer of small files each takes about half of the kernel's time. An open file stays what it is whatever happens to
//! its name meanwhile, so nothing but hard links has to wait ([`Filling::wait`]).

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::Scope;

use rustix::fd::OwnedFd;

use super::error::{Fault, Reason};
use super::extract::write_all;
use super::metadata::{self, Made, Process};
use crate::archive::Entry;

/// Files of at most so many bytes are filled by the other thread: they are copied on the way.
pub(super) const SMALL: u64 = 32 << 10;
/// What goes to the other thread at once: files, and bytes.
const FILES: usize = 16;
const BYTES: usize = 128 << 10;
/// How many batches may be on the way. With the one that is gathered they hold at most 48 files open.
const ON_THE_WAY: usize = 2;

/// A file that is open and empty.
struct Job {
    file: OwnedFd,
    entry: Entry,
    made: Made,
    /// Where in the bytes of its batch its content ends; it begins where that of the one before ends.
    end: usize,
}

#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    jobs: Vec<Job>,
}

/// The end that gathers.
pub(super) struct Filling {
    next: Batch,
    batches: Sender<Batch>,
    filled: Receiver<Result<Batch, Fault>>,
    on_the_way: usize,
}

impl Filling {
    /// Starts the other thread, which is as confined as the calling one and ends with the value.
    pub(super) fn start<'scope>(scope: &'scope Scope<'scope, '_>, process: Process) -> Filling {
        let (batches, incoming) = channel();
        let (tell, filled) = channel();
        scope.spawn(move || fill_all(&process, &incoming, &tell));
        Filling { next: Batch::default(), batches, filled, on_the_way: 0 }
    }

    /// Where the content of the next file goes, behind what is there.
    pub(super) fn content(&mut self) -> &mut Vec<u8> {
        &mut self.next.bytes
    }

    /// Has `file` filled with what was put into [`Filling::content`] since the last one.
    ///
    /// # Errors
    /// Of an earlier file, too.
    pub(super) fn add(&mut self, file: OwnedFd, entry: Entry, made: Made) -> Result<(), Fault> {
        let end = self.next.bytes.len();
        self.next.jobs.push(Job { file, entry, made, end });
        if self.next.jobs.len() >= FILES || end >= BYTES { self.hand_over() } else { Ok(()) }
    }

    /// Returns when all files are filled.
    pub(super) fn wait(&mut self) -> Result<(), Fault> {
        if !self.next.jobs.is_empty() {
            self.hand_over()?;
        }
        while self.on_the_way > 0 {
            self.take_back()?;
        }
        Ok(())
    }

    fn hand_over(&mut self) -> Result<(), Fault> {
        let empty = if self.on_the_way < ON_THE_WAY { Batch::default() } else { self.take_back()? };
        let batch = std::mem::replace(&mut self.next, empty);
        self.on_the_way += 1;
        self.batches.send(batch).map_err(|_| gone())
    }

    fn take_back(&mut self) -> Result<Batch, Fault> {
        self.on_the_way -= 1;
        self.filled.recv().map_err(|_| gone())?
    }
}

fn gone() -> Fault {
    Reason::Read(std::io::Error::other("the thread that fills files panicked")).into()
}

fn fill_all(process: &Process, batches: &Receiver<Batch>, tell: &Sender<Result<Batch, Fault>>) {
    for mut batch in batches {
        let filled = fill(process, &mut batch).map(|()| batch);
        // Who does not listen any more has failed for a reason of its own.
        if tell.send(filled).is_err() {
            return;
        }
    }
}

/// Fills the files of a batch, and empties it.
fn fill(process: &Process, batch: &mut Batch) -> Result<(), Fault> {
    let mut begin = 0;
    for Job { file, entry, made, end } in batch.jobs.drain(..) {
        let filled = write_all(&file, &batch.bytes[begin..end])
            .and_then(|()| metadata::finish_file(process, &file, &entry, made));
        filled.map_err(|reason| Fault::of(&entry.path, reason))?;
        begin = end;
    }
    batch.bytes.clear();
    Ok(())
}
