//! From a process's output to its log and to those who are attached: none of them holds up another, or the process.
//!
//! ```text
//! stdout ─▶ Tee ─▶ Lines ─┐
//!             └──────┐    ├─▶ LogFile
//! stderr ─▶ Tee ─▶ Lines ─┘
//!             └──────┴─▶ Attacher …   (a named pipe each: one that is full is cut off)
//! ```

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::unistd::{read, write};

use crate::copy::Copiers;
use crate::lines::{Lines, Stream, stamp};
use crate::log;
use crate::log_file::LogFile;
use crate::poll::{Interest, Poller, Token};
use crate::supervisor::Caller;
use crate::task::Moment;
use crate::{Error, io::no_block};

/// Bytes read at a time.
const CHUNK: usize = 16 << 10;
/// Most that one stream moves before others have their turn.
const BUDGET: usize = 64 << 10;
/// Room that an attacher's pipe is given: how far it may fall behind.
const PIPE: i32 = 1 << 20;

/// How an attachment ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// All output was copied.
    Exited,
    /// The other side closed its pipes.
    Closed,
    /// The other side did not read fast enough.
    Lagged,
}

/// What an attacher brings.
#[derive(Debug, Default)]
pub struct Pipes {
    /// Where the process's stdout and stderr go to.
    pub outputs: [Option<OwnedFd>; 2],
    /// The copier that feeds its stdin.
    pub input: Option<u32>,
}

#[derive(Debug)]
struct Tee {
    source: OwnedFd,
    stream: Stream,
    lines: Lines,
    log: u32,
}

#[derive(Debug)]
struct Attacher {
    caller: Caller,
    log: u32,
    pipes: Pipes,
}

/// All logged streams of the shim.
#[derive(Debug)]
pub struct Tees {
    poller: Rc<Poller>,
    tees: BTreeMap<u32, Tee>,
    logs: BTreeMap<u32, LogFile>,
    attachers: BTreeMap<u32, Attacher>,
    next: u32,
    /// Attachments that have ended, to be told to those who asked for them.
    pub ended: Vec<(Caller, End)>,
}

impl Tees {
    /// None yet.
    pub fn new(poller: Rc<Poller>) -> Tees {
        let (tees, logs, attachers) = Default::default();
        Tees { poller, tees, logs, attachers, next: 0, ended: Vec::new() }
    }

    /// Takes a log in; its number.
    pub fn open(&mut self, file: LogFile) -> u32 {
        let number = self.number();
        self.logs.insert(number, file);
        number
    }

    /// Starts to log a stream whose source does not block.
    pub fn add(&mut self, source: OwnedFd, stream: Stream, log: u32, max_line: usize) -> u32 {
        let number = self.number();
        match self.poller.add(&source, Token::Tee(number), Interest::READ) {
            Ok(()) => drop(self.tees.insert(number, Tee { source, stream, lines: Lines::new(stream, max_line), log })),
            Err(error) => log::warning("a stream cannot be waited for", &error),
        }
        number
    }

    /// Attaches to what a log gets from now on.
    ///
    /// # Errors
    /// [`Error::System`].
    pub fn attach(&mut self, log: u32, pipes: Pipes, caller: Caller) -> Result<(), Error> {
        let number = self.number() & (u32::MAX >> 1);
        for (index, pipe) in (0..).zip(&pipes.outputs) {
            let Some(pipe) = pipe else { continue };
            no_block(pipe)?;
            // A smaller pipe than wanted only means less patience.
            let _ = fcntl(pipe, FcntlArg::F_SETPIPE_SZ(PIPE));
            let nothing = Interest { read: false, write: false };
            self.poller.add(pipe, Token::Attacher(number << 1 | index), nothing)?;
        }
        self.attachers.insert(number, Attacher { caller, log, pipes });
        if !self.tees.values().any(|tee| tee.log == log) {
            self.end_attachers(log, End::Exited);
        }
        Ok(())
    }

    /// Whether any stream goes to this log still.
    pub fn is_open(&self, log: u32) -> bool {
        self.tees.values().any(|tee| tee.log == log)
    }

    /// Opens a log's file anew; gives the number of records that were lost so far.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn reopen(&mut self, log: u32) -> Result<u64, Error> {
        let Some(log) = self.logs.get_mut(&log) else { return Ok(0) };
        log.reopen()?;
        Ok(log.dropped())
    }

    /// Moves what a stream has.
    pub fn turn(&mut self, number: u32) {
        self.drain(number, BUDGET);
    }

    /// Moves all that a stream has, and ends it.
    pub fn finish(&mut self, number: u32) {
        // A pipe holds that much at most by default; who writes on and on is not waited for.
        let mut left = 16;
        while left > 0 && self.tees.contains_key(&number) && self.drain(number, BUDGET) >= BUDGET {
            left -= 1;
        }
        self.end(number);
    }

    /// Closes a log: its streams have ended.
    pub fn close(&mut self, log: u32) {
        self.end_attachers(log, End::Exited);
        self.logs.remove(&log);
    }

    /// The other side of an attacher's pipe was closed.
    pub fn hung_up(&mut self, token: u32) {
        let (number, index) = (token >> 1, (token & 1) as usize);
        if let Some(attacher) = self.attachers.get_mut(&number) {
            self.poller.close(attacher.pipes.outputs[index].take());
            self.end_if_closed(number);
        }
    }

    /// Ends attachments of which nothing is open any more.
    pub fn tick(&mut self, copiers: &Copiers) {
        let feeding = self.attachers.iter_mut().filter(|(_, attacher)| attacher.pipes.input.is_some());
        let ended = feeding.filter(|(_, attacher)| attacher.pipes.input.is_some_and(|number| !copiers.is_open(number)));
        for number in ended.map(|(&number, attacher)| (number, attacher.pipes.input.take()).0).collect::<Vec<_>>() {
            self.end_if_closed(number);
        }
    }

    /// A connection is gone: nobody is told of the end of what it asked for, and the pipes are closed.
    pub fn disconnected(&mut self, connection: u32) {
        let theirs = |attacher: &&mut Attacher| attacher.caller.connection == connection;
        for attacher in self.attachers.values_mut().filter(theirs) {
            attacher.pipes.outputs.iter_mut().for_each(|pipe| self.poller.close(pipe.take()));
        }
        self.attachers.retain(|_, attacher| attacher.caller.connection != connection);
    }

    /// How many bytes were moved; an ended stream is done away with.
    fn drain(&mut self, number: u32, budget: usize) -> usize {
        let (mut buffer, mut records, mut moved) = ([0; CHUNK], Vec::new(), 0);
        let Some(tee) = self.tees.get_mut(&number) else { return 0 };
        let (log, stream, now) = (tee.log, tee.stream, stamp(Moment::now()));
        let mut ended = false;
        while moved < budget {
            match read(&tee.source, &mut buffer) {
                Ok(count @ 1..) => {
                    moved += count;
                    tee.lines.feed(&buffer[..count], &now, &mut records);
                    copy_to(&mut self.attachers, log, stream, &buffer[..count], &mut self.ended, &self.poller);
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                // A terminal whose last user has gone answers EIO.
                Ok(_) | Err(_) => {
                    ended = true;
                    break;
                }
            }
        }
        if !records.is_empty()
            && let Some(file) = self.logs.get_mut(&log)
        {
            file.append(&records);
        }
        if ended {
            self.end(number);
        }
        moved
    }

    fn end(&mut self, number: u32) {
        let Some(mut tee) = self.tees.remove(&number) else { return };
        self.poller.remove(std::os::fd::AsFd::as_fd(&tee.source));
        let mut records = Vec::new();
        tee.lines.end(&stamp(Moment::now()), &mut records);
        if !records.is_empty()
            && let Some(file) = self.logs.get_mut(&tee.log)
        {
            file.append(&records);
        }
        if !self.is_open(tee.log) {
            self.end_attachers(tee.log, End::Exited);
        }
    }

    fn end_attachers(&mut self, log: u32, end: End) {
        for attacher in self.attachers.values_mut().filter(|attacher| attacher.log == log) {
            attacher.pipes.outputs.iter_mut().for_each(|pipe| self.poller.close(pipe.take()));
            self.ended.push((attacher.caller, end));
        }
        self.attachers.retain(|_, attacher| attacher.log != log);
    }

    fn end_if_closed(&mut self, number: u32) {
        let open = |pipes: &Pipes| pipes.input.is_some() || pipes.outputs.iter().any(Option::is_some);
        if self.attachers.get(&number).is_some_and(|attacher| !open(&attacher.pipes))
            && let Some(attacher) = self.attachers.remove(&number)
        {
            self.ended.push((attacher.caller, End::Closed));
        }
    }

    fn number(&mut self) -> u32 {
        self.next = self.next.wrapping_add(1);
        self.next
    }
}

/// Gives bytes to all who are attached to a log. Who has no room for them is cut off.
fn copy_to(
    attachers: &mut BTreeMap<u32, Attacher>,
    log: u32,
    stream: Stream,
    bytes: &[u8],
    ended: &mut Vec<(Caller, End)>,
    poller: &Poller,
) {
    let index = stream as usize;
    let lagging = |attacher: &mut Attacher| {
        let pipe = attacher.pipes.outputs[index].as_ref().filter(|_| attacher.log == log);
        // Other failures are the reader's going, of which epoll tells.
        pipe.is_some_and(|pipe| match write(pipe, bytes) {
            Ok(count) => count < bytes.len(),
            Err(error) => error == Errno::EAGAIN,
        })
    };
    attachers.retain(|_, attacher| {
        let lags = lagging(attacher);
        if lags {
            attacher.pipes.outputs.iter_mut().for_each(|pipe| poller.close(pipe.take()));
            ended.push((attacher.caller, End::Lagged));
        }
        !lags
    });
}
