//! Before the process: its own ends of everything, and what will move bytes.

use std::fs::OpenOptions;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, fchown};
use std::path::Path;

use nix::fcntl::OFlag;
use nix::unistd::pipe2;

use super::{Attached, Movers, PipeOwner, Streams, no_block};
use crate::Error;
use crate::copy::Sink;
use crate::lines::Stream;
use crate::log_file::LogFile;
use crate::logger::{self, Logger, Owner};
use crate::target::{Program, Target};

/// The streams of a process that is about to be made: its own ends, and what to copy once it runs.
#[derive(Debug, Default)]
pub struct Prepared {
    /// The process's stdin, stdout and stderr; none is its null device.
    child: [Option<OwnedFd>; 3],
    copies: Vec<Copy>,
    /// Where a terminal's output goes; kept apart, for the terminal comes later.
    terminal_output: Option<OwnedFd>,
    terminal_input: Option<OwnedFd>,
    terminal: bool,
    logger: Option<Logger>,
    log: Option<LogStreams>,
    /// The writing end of a stdin that nobody feeds yet.
    held_input: Option<OwnedFd>,
    /// A terminal's stdin is for those who attach.
    open_input: bool,
}

/// Streams on their way into a log.
#[derive(Debug)]
struct LogStreams {
    file: LogFile,
    max_line: usize,
    sources: Vec<(Stream, OwnedFd)>,
}

#[derive(Debug)]
struct Copy {
    source: OwnedFd,
    sink: OwnedFd,
    kind: Sink,
}

impl Prepared {
    /// Opens everything a process's streams need. Nothing here waits, but for a logging program to become ready.
    ///
    /// # Errors
    /// [`Error::Invalid`], [`Error::File`], [`Error::System`], or what the logging program's start answers.
    pub fn open(streams: &Streams, owner: Owner<'_>, pipes: PipeOwner) -> Result<Prepared, Error> {
        let input = Target::parse(&streams.stdin)?;
        let output = Target::parse(&streams.stdout)?;
        let mut prepared = Prepared { terminal: streams.terminal, ..Prepared::default() };
        prepared.open_input(input, pipes)?;
        match output {
            Target::Program(program) => prepared.open_program(&program, owner, pipes)?,
            Target::Log(log) => {
                let file = LogFile::open(log.path)?;
                prepared.open_log(LogStreams { file, max_line: log.max_line, sources: Vec::new() }, pipes)?;
            }
            output => {
                prepared.open_output(1, output, pipes)?;
                if !streams.terminal {
                    prepared.open_output(2, Target::parse(&streams.stderr)?, pipes)?;
                }
            }
        }
        Ok(prepared)
    }

    /// The process's own ends.
    pub fn child(&self) -> [Option<BorrowedFd<'_>>; 3] {
        self.child.each_ref().map(|fd| fd.as_ref().map(AsFd::as_fd))
    }

    /// Starts copying. Closes our copies of the process's ends, so that its end is seen.
    ///
    /// # Errors
    /// [`Error::System`] when descriptors run out.
    pub fn attach(self, terminal: Option<OwnedFd>, movers: &mut Movers) -> Result<Attached, Error> {
        let Movers { copiers, tees } = movers;
        let mut attached = Attached { logger: self.logger, open_input: self.held_input, ..Attached::default() };
        let mut log = self.log;
        for Copy { source, sink, kind } in self.copies {
            let number = copiers.add(source, Some(sink), kind);
            match kind {
                Sink::Input => attached.inputs.push(number),
                Sink::Output => attached.outputs.push(number),
            }
        }
        if let Some(terminal) = terminal {
            no_block(&terminal)?;
            let duplicate = || terminal.try_clone().map_err(|error| Error::system("dup", error));
            if let Some(input) = self.terminal_input {
                attached.inputs.push(copiers.add(input, Some(duplicate()?), Sink::Input));
            }
            if self.open_input {
                attached.open_input = Some(duplicate()?);
            }
            match &mut log {
                Some(log) => log.sources.push((Stream::Stdout, duplicate()?)),
                None => attached.outputs.push(copiers.add(duplicate()?, self.terminal_output, Sink::Output)),
            }
            attached.console = Some(terminal);
        }
        if let Some(LogStreams { file, max_line, sources }) = log {
            let log = tees.open(file);
            let add = |(stream, source)| tees.add(source, stream, log, max_line);
            attached.tees = sources.into_iter().map(add).collect();
            attached.log = Some(log);
        }
        Ok(attached)
    }

    /// Gives everything up: the process could not be made.
    pub fn abandon(self) -> Option<Logger> {
        self.logger
    }

    fn open_input(&mut self, target: Target, owner: PipeOwner) -> Result<(), Error> {
        if target == Target::Attach {
            return self.hold_input(owner);
        }
        let (Target::Path(path) | Target::File(path)) = target else { return Ok(()) };
        let source = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path);
        let source = source.map_err(|error| Error::file("open", &path, error))?;
        let fifo = source.metadata().is_ok_and(|meta| meta.file_type().is_fifo());
        let source = OwnedFd::from(source);
        if !fifo && !self.terminal {
            // A file or device is always ready: the process reads it itself.
            self.child[0] = Some(source);
            return Ok(());
        }
        if self.terminal {
            self.terminal_input = Some(source);
            return Ok(());
        }
        let (theirs, ours) = input_pipe(owner)?;
        self.child[0] = Some(theirs);
        self.copies.push(Copy { source, sink: ours, kind: Sink::Input });
        Ok(())
    }

    /// A stdin that nobody feeds yet, and that does not end.
    fn hold_input(&mut self, owner: PipeOwner) -> Result<(), Error> {
        self.open_input = self.terminal;
        if self.terminal {
            return Ok(());
        }
        let (theirs, ours) = input_pipe(owner)?;
        self.child[0] = Some(theirs);
        self.held_input = Some(ours);
        Ok(())
    }

    fn open_log(&mut self, mut log: LogStreams, owner: PipeOwner) -> Result<(), Error> {
        if !self.terminal {
            for (number, stream) in [(1, Stream::Stdout), (2, Stream::Stderr)] {
                let (theirs, ours) = output_pipe(owner)?;
                self.child[number] = Some(theirs);
                log.sources.push((stream, ours));
            }
        }
        self.log = Some(log);
        Ok(())
    }

    fn open_output(&mut self, number: usize, target: Target, owner: PipeOwner) -> Result<(), Error> {
        let sink = match target {
            Target::Null => return Ok(()),
            Target::Path(path) => open_path(&path)?,
            Target::File(path) => open_file(&path)?,
            Target::Program(_) | Target::Log(_) | Target::Attach => {
                return Err(Error::Unimplemented("a logging program, a log or whoever attaches for stderr alone"));
            }
        };
        if self.terminal {
            self.terminal_output = Some(sink);
            return Ok(());
        }
        let (theirs, ours) = output_pipe(owner)?;
        self.child[number] = Some(theirs);
        self.copies.push(Copy { source: ours, sink, kind: Sink::Output });
        Ok(())
    }

    fn open_program(&mut self, program: &Program, owner: Owner<'_>, pipes: PipeOwner) -> Result<(), Error> {
        let (its_stdout, stdout) = pipe()?;
        let (its_stderr, stderr) = pipe()?;
        self.logger = Some(logger::start(program, owner, &its_stdout, &its_stderr)?);
        if self.terminal {
            no_block(&stdout)?;
            self.terminal_output = Some(stdout);
            return Ok(());
        }
        for (number, end) in [(1, stdout), (2, stderr)] {
            own(&end, pipes)?;
            self.child[number] = Some(end);
        }
        Ok(())
    }
}

fn open_path(path: &Path) -> Result<OwnedFd, Error> {
    let failed = |error| Error::file("open", path, error);
    let fifo = std::fs::metadata(path).map_err(failed)?.file_type().is_fifo();
    let mut options = OpenOptions::new();
    // A fifo is held by both ends: opening does not wait for a reader, and readers may come and go.
    let options = if fifo { options.read(true).write(true) } else { options.append(true) };
    options.custom_flags(libc::O_NONBLOCK).open(path).map(OwnedFd::from).map_err(failed)
}

fn open_file(path: &Path) -> Result<OwnedFd, Error> {
    let failed = |error| Error::file("open", path, error);
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(failed)?;
    }
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o644).custom_flags(libc::O_NONBLOCK);
    options.open(path).map(OwnedFd::from).map_err(failed)
}

fn pipe() -> Result<(OwnedFd, OwnedFd), Error> {
    pipe2(OFlag::O_CLOEXEC).map_err(|error| Error::system("pipe", error))
}

/// The process's end and ours, which never waits, of a pipe that it reads.
fn input_pipe(owner: PipeOwner) -> Result<(OwnedFd, OwnedFd), Error> {
    let (theirs, ours) = pipe()?;
    ends(theirs, ours, owner)
}

/// The same of a pipe that it writes.
fn output_pipe(owner: PipeOwner) -> Result<(OwnedFd, OwnedFd), Error> {
    let (ours, theirs) = pipe()?;
    ends(theirs, ours, owner)
}

fn ends(theirs: OwnedFd, ours: OwnedFd, owner: PipeOwner) -> Result<(OwnedFd, OwnedFd), Error> {
    own(&theirs, owner)?;
    no_block(&ours)?;
    Ok((theirs, ours))
}

fn own(fd: &OwnedFd, owner: PipeOwner) -> Result<(), Error> {
    if owner == PipeOwner::default() {
        return Ok(());
    }
    fchown(fd, Some(owner.uid), Some(owner.gid)).map_err(|error| Error::system("fchown", error))
}
