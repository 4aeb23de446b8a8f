//! Standard streams of a process: from the strings of a request to descriptors and copiers.
//!
//! Between container and world stands a pipe of ours, so that the container never holds a fifo or log file itself: it
//! could reopen or truncate it. Bytes go on by splice.

use std::fs::OpenOptions;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, fchown};
use std::path::Path;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;

use crate::copy::{Copiers, Sink};
use crate::lines::Stream;
use crate::log_file::LogFile;
use crate::logger::{self, Logger, Owner};
use crate::target::{Program, Target};
use crate::tee::Tees;
use crate::{Error, console};

/// The standard streams as a request names them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Streams {
    /// Empty for none.
    pub stdin: String,
    /// Empty for none.
    pub stdout: String,
    /// Empty for none; unused with a terminal.
    pub stderr: String,
    /// Whether the process gets a terminal.
    pub terminal: bool,
}

/// What moves bytes: straight from end to end, or into a log.
#[derive(Debug)]
pub struct Movers {
    /// From end to end.
    pub copiers: Copiers,
    /// Into logs.
    pub tees: Tees,
}

/// Who owns the pipes that a process gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PipeOwner {
    /// User id on the host.
    pub uid: u32,
    /// Group id on the host.
    pub gid: u32,
}

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

/// The streams of a process that runs.
#[derive(Debug, Default)]
pub struct Attached {
    inputs: Vec<u32>,
    outputs: Vec<u32>,
    console: Option<OwnedFd>,
    logger: Option<Logger>,
    log: Option<u32>,
    tees: Vec<u32>,
    /// Where those who attach write to.
    open_input: Option<OwnedFd>,
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
        let (theirs, ours) = pipe()?;
        own(&theirs, owner)?;
        no_block(&ours)?;
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
        let (theirs, ours) = pipe()?;
        own(&theirs, owner)?;
        no_block(&ours)?;
        self.child[0] = Some(theirs);
        self.held_input = Some(ours);
        Ok(())
    }

    fn open_log(&mut self, mut log: LogStreams, owner: PipeOwner) -> Result<(), Error> {
        if !self.terminal {
            for (number, stream) in [(1, Stream::Stdout), (2, Stream::Stderr)] {
                let (ours, theirs) = pipe()?;
                own(&theirs, owner)?;
                no_block(&ours)?;
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
        let (ours, theirs) = pipe()?;
        own(&theirs, owner)?;
        no_block(&ours)?;
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

impl Attached {
    /// The client sends nothing more: stdin ends once what is under way was delivered.
    pub fn close_stdin(&mut self, copiers: &mut Copiers) {
        self.open_input = None;
        for &number in &self.inputs {
            copiers.close_when_empty(number);
        }
    }

    /// Sets the terminal's size, where there is one.
    ///
    /// # Errors
    /// [`Error::System`].
    pub fn resize(&self, width: u32, height: u32) -> Result<(), Error> {
        self.console.as_ref().map_or(Ok(()), |terminal| console::resize(terminal, width, height))
    }

    /// The log that its outputs go to.
    pub fn log(&self) -> Option<u32> {
        self.log
    }

    /// Feeds its stdin from `source`, which does not block; gives the copier's number. None where its stdin is not for
    /// those who attach, or has ended.
    ///
    /// # Errors
    /// [`Error::System`] when descriptors run out.
    pub fn feed(&mut self, source: OwnedFd, copiers: &mut Copiers) -> Result<Option<u32>, Error> {
        let Some(input) = &self.open_input else { return Ok(None) };
        let input = input.try_clone().map_err(|error| Error::system("dup", error))?;
        let number = copiers.add(source, Some(input), Sink::Input);
        self.inputs.push(number);
        Ok(Some(number))
    }

    /// The process has ended: nobody reads its stdin. Outputs run on until all who hold them have closed them.
    pub fn process_ended(&mut self, copiers: &mut Copiers) {
        for number in self.inputs.drain(..) {
            copiers.drop(number);
        }
        self.open_input = None;
        self.console = None;
    }

    /// Delivers what is there and closes everything. The logger, if any, is returned: it has seen the end of its input.
    pub fn finish(&mut self, movers: &mut Movers) -> Option<Logger> {
        self.process_ended(&mut movers.copiers);
        self.outputs.drain(..).for_each(|number| movers.copiers.finish(number));
        self.tees.drain(..).for_each(|number| movers.tees.finish(number));
        if let Some(log) = self.log.take() {
            movers.tees.close(log);
        }
        self.logger.take()
    }

    /// The logger, if there is one.
    pub fn logger_pid(&self) -> Option<i32> {
        self.logger.as_ref().map(|logger| logger.pid)
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

fn own(fd: &OwnedFd, owner: PipeOwner) -> Result<(), Error> {
    if owner == PipeOwner::default() {
        return Ok(());
    }
    fchown(fd, Some(owner.uid), Some(owner.gid)).map_err(|error| Error::system("fchown", error))
}

/// Makes a descriptor's reads and writes return at once.
pub(crate) fn no_block(fd: &OwnedFd) -> Result<(), Error> {
    let failed = |error| Error::system("fcntl", error);
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL).map_err(failed)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map_err(failed)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::poll::{Poller, Token};
    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;
    use std::io::{Read, Write};
    use std::rc::Rc;
    use std::time::{Duration, Instant};

    fn run(poller: &Poller, movers: &mut Movers, until: impl Fn(&Copiers) -> bool) {
        let copiers = &mut movers.copiers;
        let deadline = Instant::now() + Duration::from_secs(5);
        let mut ready = Vec::new();
        while !until(copiers) {
            assert!(Instant::now() < deadline, "the copiers made no progress");
            poller.wait(Some(Instant::now() + Duration::from_millis(20)), &mut ready).unwrap();
            for event in ready.drain(..) {
                if let Token::CopySource(n) | Token::CopySink(n) = event.token {
                    copiers.turn(n);
                }
            }
        }
    }

    fn prepared(dir: &Path, streams: &Streams) -> (Rc<Poller>, Movers, Prepared) {
        for name in ["in", "out", "err"] {
            mkfifo(&dir.join(name), Mode::S_IRWXU).unwrap();
        }
        let poller = Rc::new(Poller::new().unwrap());
        let movers = Movers { copiers: Copiers::new(Rc::clone(&poller)), tees: Tees::new(Rc::clone(&poller)) };
        let owner = Owner { id: "c", namespace: "n" };
        (poller, movers, Prepared::open(streams, owner, PipeOwner::default()).unwrap())
    }

    #[test]
    fn output_of_any_length_reaches_a_slow_reader_of_the_fifo() {
        let dir = tempfile::tempdir().unwrap();
        let text = |name: &str| dir.path().join(name).display().to_string();
        let streams = Streams { stdout: text("out"), stderr: text("err"), ..Streams::default() };
        let (poller, mut movers, prepared) = prepared(dir.path(), &streams);
        let mut writer = std::fs::File::from(prepared.child()[1].unwrap().try_clone_to_owned().unwrap());
        let mut attached = prepared.attach(None, &mut movers).unwrap();
        let sent: Vec<u8> = (0..3_000_000u32).map(|n| n.to_le_bytes()[1]).collect();
        let expected = sent.clone();
        let writing = std::thread::spawn(move || writer.write_all(&sent).unwrap());
        let out = dir.path().join("out");
        let reading = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            let mut received = Vec::new();
            std::fs::File::open(out).unwrap().read_to_end(&mut received).unwrap();
            received
        });
        let outputs = attached.outputs.clone();
        run(&poller, &mut movers, |copiers| outputs.iter().all(|&n| !copiers.is_open(n)));
        writing.join().unwrap();
        assert!(attached.finish(&mut movers).is_none());
        assert!(reading.join().unwrap() == expected, "the bytes differ");
    }

    #[test]
    fn a_reader_that_comes_after_the_end_still_gets_everything() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let streams = Streams { stdout: out.display().to_string(), ..Streams::default() };
        let (poller, mut movers, prepared) = prepared(dir.path(), &streams);
        let writer = prepared.child()[1].unwrap().try_clone_to_owned().unwrap();
        let attached = prepared.attach(None, &mut movers).unwrap();
        std::fs::File::from(writer).write_all(b"early").unwrap();
        let output = attached.outputs[0];
        run(&poller, &mut movers, |copiers| !copiers.is_open(output));
        let reading = std::thread::spawn(move || std::fs::read_to_string(out).unwrap());
        let end = Instant::now() + Duration::from_secs(5);
        while !reading.is_finished() && Instant::now() < end {
            movers.copiers.tick(Instant::now());
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(movers.copiers.deadline(), None, "nothing is watched any more");
        assert_eq!(reading.join().unwrap(), "early");
    }

    #[test]
    fn closing_stdin_delivers_what_was_written_before() {
        let dir = tempfile::tempdir().unwrap();
        let stdin = dir.path().join("in");
        let streams = Streams { stdin: stdin.display().to_string(), ..Streams::default() };
        let (poller, mut movers, prepared) = prepared(dir.path(), &streams);
        let mut process = std::fs::File::from(prepared.child()[0].unwrap().try_clone_to_owned().unwrap());
        let mut attached = prepared.attach(None, &mut movers).unwrap();
        // Held open all the time, as an engine does whose user has closed his end.
        let mut client = OpenOptions::new().read(true).write(true).open(&stdin).unwrap();
        client.write_all(b"hello").unwrap();
        attached.close_stdin(&mut movers.copiers);
        let input = attached.inputs[0];
        run(&poller, &mut movers, |copiers| !copiers.is_open(input));
        let mut text = String::new();
        process.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
    }

    #[test]
    fn stdin_ends_when_its_last_writer_goes() {
        let dir = tempfile::tempdir().unwrap();
        let stdin = dir.path().join("in");
        let streams = Streams { stdin: stdin.display().to_string(), ..Streams::default() };
        let (poller, mut movers, prepared) = prepared(dir.path(), &streams);
        let mut process = std::fs::File::from(prepared.child()[0].unwrap().try_clone_to_owned().unwrap());
        let attached = prepared.attach(None, &mut movers).unwrap();
        let mut ready = Vec::new();
        poller.wait(Some(Instant::now() + Duration::from_millis(50)), &mut ready).unwrap();
        assert_eq!(ready, [], "a fifo nobody has opened yet is not at its end");
        std::fs::write(&stdin, "bye").unwrap();
        let input = attached.inputs[0];
        run(&poller, &mut movers, |copiers| !copiers.is_open(input));
        let mut text = String::new();
        process.read_to_string(&mut text).unwrap();
        assert_eq!(text, "bye");
    }

    #[test]
    fn a_file_is_made_with_its_directory_and_appended_to() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("deep/log");
        let uri = format!("file://{}", log.display());
        let streams = Streams { stdout: uri.clone(), stderr: uri, ..Streams::default() };
        let (_, mut movers, prepared) = prepared(dir.path(), &streams);
        for number in [1, 2] {
            let fd = prepared.child()[number].unwrap().try_clone_to_owned().unwrap();
            std::fs::File::from(fd).write_all(format!("line {number}\n").as_bytes()).unwrap();
        }
        prepared.attach(None, &mut movers).unwrap().finish(&mut movers);
        assert_eq!(std::fs::read_to_string(log).unwrap(), "line 1\nline 2\n");
    }

    #[test]
    fn a_logging_program_gets_both_outputs_and_its_arguments() {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("logger");
        let log = dir.path().join("log");
        let text =
            "#!/bin/sh\necho \"$CONTAINER_NAMESPACE/$CONTAINER_ID $1 $2\" >$2\nexec 5>&-\ncat <&3 >>$2\ncat <&4 >>$2\n";
        std::fs::write(&script, text).unwrap();
        std::process::Command::new("chmod").arg("+x").arg(&script).status().unwrap();
        let uri = format!("binary://{}?to={}", script.display(), log.display());
        let streams = Streams { stdout: uri.clone(), stderr: uri, ..Streams::default() };
        let (_, mut movers, prepared) = prepared(dir.path(), &streams);
        for (number, word) in [(1, "out"), (2, "err")] {
            let fd = prepared.child()[number].unwrap().try_clone_to_owned().unwrap();
            std::fs::File::from(fd).write_all(word.as_bytes()).unwrap();
        }
        let logger = prepared.attach(None, &mut movers).unwrap().finish(&mut movers).unwrap();
        nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(logger.pid), None).unwrap();
        let expected = format!("n/c to {}\nouterr", log.display());
        assert_eq!(std::fs::read_to_string(log).unwrap(), expected);
    }
}
