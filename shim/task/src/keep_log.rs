//! This program as another shim's logger (`binary://…?log=PATH&max-line=BYTES`): keeps a container's log in Kubernetes'
//! format. Nobody can ask it to open the file anew, so it looks by itself whether that was renamed.

use std::rc::Rc;
use std::time::Instant;

use crate::args::Args;
use crate::io::no_block;
use crate::lines::Stream;
use crate::log_file::LogFile;
use crate::poll::{Poller, Token};
use crate::reaper::Signals;
use crate::target::max_line;
use crate::tee::Tees;
use crate::{Error, sys};

/// Where a logging program finds stdout and stderr, and by what it says that it is ready.
const STDOUT: i32 = 3;
const STDERR: i32 = 4;
const READY: i32 = 5;

/// Logs until both streams have ended.
///
/// # Errors
/// When the log cannot be opened, or the streams were not inherited.
pub fn run(args: &Args) -> Result<(), Error> {
    let query = if args.max_line.is_empty() { String::new() } else { format!("max-line={}", args.max_line) };
    let reason = "it is no number of bytes";
    let max_line = max_line(&query).ok_or(Error::Invalid { what: "max-line", value: args.max_line.clone(), reason })?;
    let inherit = |fd| sys::inherited(fd).map_err(|error| Error::system("take over a stream", error));
    let (stdout, stderr, ready) = (inherit(STDOUT)?, inherit(STDERR)?, inherit(READY)?);
    let poller = Rc::new(Poller::new()?);
    // A shim that ends asks its logger to; what was written before is logged all the same.
    let signals = Signals::new()?;
    poller.add(&signals, Token::Signals, crate::poll::Interest::READ)?;
    let mut tees = Tees::new(Rc::clone(&poller));
    let log = tees.open(LogFile::open(Some(args.log.clone()))?.watching());
    let mut numbers = Vec::new();
    for (source, stream) in [(stdout, Stream::Stdout), (stderr, Stream::Stderr)] {
        no_block(&source)?;
        numbers.push(tees.add(source, stream, log, max_line));
    }
    drop(ready);
    let mut events = Vec::new();
    while tees.is_open(log) {
        poller.wait(None::<Instant>, &mut events)?;
        for event in events.drain(..) {
            match event.token {
                Token::Tee(number) => tees.turn(number),
                Token::Signals if signals.take().terminate => numbers.iter().for_each(|&number| tees.finish(number)),
                _ => {}
            }
        }
    }
    Ok(())
}
