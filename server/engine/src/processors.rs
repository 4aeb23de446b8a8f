//! Programs that turn a layer of a media type of their own into one that can be unpacked (containerd's stream
//! processors): bytes in at standard input, out at standard output, one program after the other.
//!
//! A program is told the media type it gets in `STREAM_PROCESSOR_MEDIATYPE`, and reads what the client has sent for
//! it, an encoded `google.protobuf.Any`, from descriptor 3. It lives no longer than the work it is for: it and all of its
//! process group are killed when that ends, for whatever reason.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use command_fds::{CommandFdExt as _, FdMapping};
use gantry_layer::Compression;
use gantry_types::{Any, media_type};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use prost::Message as _;

use crate::diff::compression_of;
use crate::{Config, Error, Result, StreamProcessor};

/// More programs one after the other are a circle.
const MAX_STEPS: usize = 16;

/// How much of what a program says is told.
const MAX_WORDS: usize = 4 << 10;

/// How long a program may live on after it has closed its output.
const PATIENCE: Duration = Duration::from_secs(10);

/// How a layer's bytes become a tar.
#[derive(Clone, Debug)]
pub(crate) struct Recipe {
    steps: Vec<Step>,
    compression: Compression,
}

/// One program.
#[derive(Clone, Debug)]
struct Step {
    id: String,
    processor: StreamProcessor,
    accepted: String,
    payload: Option<Any>,
}

/// What is to be done with a layer of that media type. Configured programs come before what is built in.
///
/// # Errors
/// [`Error::MediaType`] where nobody knows it; `InvalidArgument` where programs lead nowhere.
pub(crate) fn recipe(config: &Config, media_type: &str, payloads: &BTreeMap<String, Any>) -> Result<Recipe> {
    let (mut steps, mut current) = (Vec::new(), media_type.to_owned());
    while let Some((id, processor)) = config.stream_processors.iter().find(|(_, p)| p.accepts.contains(&current)) {
        if steps.len() == MAX_STEPS {
            let reason = format!("more than {MAX_STEPS} one after the other for {media_type:?}: they lead in a circle");
            return Err(Error::invalid("stream processors", reason));
        }
        let payload = payloads.get(id).cloned();
        let (id, processor) = (id.clone(), processor.clone());
        let returned = processor.returns.clone();
        steps.push(Step { id, processor, accepted: std::mem::replace(&mut current, returned), payload });
        if current == media_type::OCI_LAYER {
            break;
        }
    }
    let compression = compression_of(&current).map_err(|error| match error {
        Error::MediaType { wanted, .. } => {
            Error::MediaType { media_type: media_type.chars().take(200).collect(), wanted }
        }
        error => error,
    })?;
    Ok(Recipe { steps, compression })
}

impl Recipe {
    /// The compression of what [`Recipe::open`] gives.
    pub(crate) fn compression(&self) -> Compression {
        self.compression
    }

    /// The bytes after the last program. `programs` can end them from elsewhere.
    ///
    /// # Errors
    /// When a program cannot be started.
    pub(crate) fn open(
        &self,
        layer: impl Read + Send + 'static,
        programs: &Arc<Programs>,
    ) -> Result<Box<dyn Read + Send>> {
        let Some((first, others)) = self.steps.split_first() else { return Ok(Box::new(layer)) };
        let started = programs.start(first, Stdio::piped())?;
        let feeder = feed(layer, started.stdin);
        let mut output = started.stdout;
        for step in others {
            output = programs.start(step, output.map_or_else(Stdio::null, Stdio::from))?.stdout;
        }
        Ok(Box::new(Output { programs: Arc::clone(programs), stdout: output, feeder: Some(feeder) }))
    }
}

/// Writes the layer into the first program. Only a failure to read counts: a program may need no more of it.
fn feed(mut layer: impl Read + Send + 'static, stdin: Option<ChildStdin>) -> JoinHandle<io::Result<()>> {
    std::thread::spawn(move || {
        let Some(mut stdin) = stdin else { return Ok(()) };
        let mut buffer = vec![0; gantry_content::CHUNK];
        loop {
            let length = layer.read(&mut buffer)?;
            if length == 0 || stdin.write_all(&buffer[..length]).is_err() {
                return Ok(());
            }
        }
    })
}

/// The programs of one layer.
#[derive(Default)]
pub(crate) struct Programs(Mutex<State>);

#[derive(Default)]
struct State {
    running: Vec<Program>,
    /// Why they were killed.
    killed: Option<&'static str>,
}

struct Program {
    name: String,
    child: Child,
    words: Option<JoinHandle<String>>,
    ended: Option<ExitStatus>,
}

struct Started {
    stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
}

impl Programs {
    /// Kills all of them, and those that would be started later.
    pub(crate) fn kill(&self, reason: &'static str) {
        let mut state = self.state();
        state.killed.get_or_insert(reason);
        state.running.iter().for_each(Program::kill);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(&self, step: &Step, stdin: Stdio) -> Result<Started> {
        let name = format!("stream processor {:?} ({})", step.id, step.processor.path.display());
        let mut state = self.state();
        if state.killed.is_some() {
            return Err(Error::Stopped { what: "stream processor" });
        }
        let failed = |source| Error::Processor { name: name.clone(), reason: format!("cannot be started: {source}") };
        let mut command = Command::new(&step.processor.path);
        command.args(&step.processor.args).stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.envs(step.processor.env.iter().filter_map(|variable| variable.split_once('=')));
        command.env("STREAM_PROCESSOR_MEDIATYPE", &step.accepted).process_group(0);
        if let Some(payload) = &step.payload {
            let descriptor = payload_pipe(payload).map_err(failed)?;
            let mapped = command.fd_mappings(vec![FdMapping { parent_fd: descriptor, child_fd: 3 }]);
            mapped.map_err(|error| failed(io::Error::other(error)))?;
        }
        let mut child = command.spawn().map_err(failed)?;
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let words = stderr.map(|stderr| std::thread::spawn(move || last_words(stderr)));
        state.running.push(Program { name, child, words, ended: None });
        Ok(Started { stdin, stdout })
    }

    /// Waits for the ends of all; tells of one that failed, rather of one that says so itself than of one that was
    /// killed by the other's end.
    fn finish(&self) -> io::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !self.state().running.iter_mut().map(Program::has_ended).fold(true, |all, ended| all & ended) {
            if Instant::now() > deadline {
                self.kill("it has closed its output, but does not end");
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let (mut running, killed) = {
            let mut state = self.state();
            (std::mem::take(&mut state.running), state.killed)
        };
        let mut failures: Vec<(bool, String)> =
            running.iter_mut().filter_map(|program| program.failure(killed)).collect();
        failures.sort_by_key(|(by_itself, _)| !by_itself);
        failures.into_iter().next().map_or(Ok(()), |(_, text)| Err(io::Error::other(text)))
    }
}

impl Program {
    fn group(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Until it is waited for, its number belongs to nobody else.
    fn kill(&self) {
        if self.ended.is_none() {
            // It may have ended by itself.
            let _ = killpg(self.group(), Signal::SIGKILL);
        }
    }

    /// Whether it has ended; if so, what it has started is ended too.
    fn has_ended(&mut self) -> bool {
        if self.ended.is_some() {
            return true;
        }
        let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        if matches!(waitid(Id::Pid(self.group()), look), Ok(WaitStatus::StillAlive)) {
            return false;
        }
        self.kill();
        self.ended = self.child.wait().ok();
        true
    }

    fn failure(&mut self, killed: Option<&'static str>) -> Option<(bool, String)> {
        let status = self.ended.filter(|status| !status.success())?;
        let words = self.words.take().and_then(|words| words.join().ok()).unwrap_or_default();
        let reason = killed.map_or_else(|| status.to_string(), |reason| format!("{status}: {reason}"));
        let said = if words.is_empty() { String::new() } else { format!(": {words}") };
        Some((status.code().is_some(), format!("{}: {reason}{said}", self.name)))
    }
}

/// A pipe that the payload comes out of.
fn payload_pipe(payload: &Any) -> io::Result<OwnedFd> {
    let any = prost_types::Any { type_url: payload.type_url.clone(), value: payload.value.clone() };
    let (reader, mut writer) = io::pipe()?;
    // A program that does not read it closes it in the end.
    std::thread::spawn(move || drop(writer.write_all(&any.encode_to_vec())));
    Ok(reader.into())
}

/// The end of what a program says.
fn last_words(mut stderr: impl Read) -> String {
    let (mut words, mut buffer) = (Vec::new(), [0; 1024]);
    while let Ok(length @ 1..) = stderr.read(&mut buffer) {
        words.extend_from_slice(&buffer[..length]);
        words.drain(..words.len().saturating_sub(MAX_WORDS));
    }
    String::from_utf8_lossy(&words).trim().to_owned()
}

/// The last program's output. Its end comes only after the ends of all programs.
struct Output {
    programs: Arc<Programs>,
    stdout: Option<ChildStdout>,
    feeder: Option<JoinHandle<io::Result<()>>>,
}

impl Read for Output {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(stdout) = &mut self.stdout else { return Ok(0) };
        let length = stdout.read(buffer)?;
        if length > 0 || buffer.is_empty() {
            return Ok(length);
        }
        self.stdout = None;
        let finished = self.programs.finish();
        // What was not read is a better reason than what came of it.
        self.feeder.take().and_then(|feeder| feeder.join().ok()).unwrap_or(Ok(()))?;
        finished.map(|()| 0)
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.stdout = None;
        self.programs.kill("its work is not wanted any more");
        let _ = self.programs.finish();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "application/vnd.test.secret";

    fn config(processors: &[(&str, &str, &str, &str)]) -> Config {
        let mut config = Config::new("/r", "/s");
        for (id, accepts, returns, script) in processors {
            let args = vec!["-c".to_owned(), (*script).to_owned()];
            let accepts = vec![(*accepts).to_owned()];
            let env = vec!["GREETING=hello".to_owned()];
            let processor = StreamProcessor { accepts, returns: (*returns).into(), path: "sh".into(), args, env };
            config.stream_processors.insert((*id).to_owned(), processor);
        }
        config
    }

    fn run(config: &Config, input: &'static [u8], payloads: &BTreeMap<String, Any>) -> io::Result<String> {
        let programs = Arc::default();
        let mut output = recipe(config, SECRET, payloads).unwrap().open(input, &programs).unwrap();
        let mut text = String::new();
        output.read_to_string(&mut text).map(|_| text)
    }

    #[test]
    fn programs_are_chained_until_a_type_that_is_known() {
        let config = config(&[
            ("a", SECRET, "application/vnd.test.half", "tr a-z b-za"),
            (
                "b",
                "application/vnd.test.half",
                media_type::OCI_LAYER,
                "cat; echo $STREAM_PROCESSOR_MEDIATYPE $GREETING",
            ),
        ]);
        let text = run(&config, b"abc", &BTreeMap::new()).unwrap();
        assert_eq!(text, "bcdapplication/vnd.test.half hello\n");
        let gzip = Config::new("/r", "/s");
        assert_eq!(
            recipe(&gzip, media_type::OCI_LAYER_GZIP, &BTreeMap::new()).unwrap().compression(),
            Compression::Gzip
        );
    }

    #[test]
    fn types_that_lead_nowhere_are_refused() {
        let circle = config(&[("a", SECRET, SECRET, "cat")]);
        assert!(recipe(&circle, SECRET, &BTreeMap::new()).unwrap_err().to_string().contains("circle"));
        let open = config(&[("a", SECRET, "application/vnd.test.other", "cat")]);
        assert!(matches!(recipe(&open, SECRET, &BTreeMap::new()), Err(Error::MediaType { .. })));
    }

    #[test]
    fn the_payload_is_on_descriptor_three() {
        let config = config(&[("a", SECRET, media_type::OCI_LAYER, "cat <&3")]);
        let any = Any { type_url: "type".into(), value: b"key".to_vec() };
        let text = run(&config, b"", &BTreeMap::from([("a".to_owned(), any)])).unwrap();
        assert_eq!(text, "\n\u{4}type\u{12}\u{3}key");
    }

    #[test]
    fn a_program_that_fails_says_why() {
        let config = config(&[("a", SECRET, media_type::OCI_LAYER, "cat; echo no key >&2; exit 3")]);
        let text = run(&config, b"abc", &BTreeMap::new()).unwrap_err().to_string();
        assert!(text.contains("\"a\"") && text.contains("no key") && text.contains('3'), "{text}");
    }

    #[test]
    fn killed_programs_end_with_all_that_they_started() {
        let config = config(&[("a", SECRET, media_type::OCI_LAYER, "sleep 1000 & sleep 1000")]);
        let programs = Arc::<Programs>::default();
        let mut output = recipe(&config, SECRET, &BTreeMap::new()).unwrap().open(&b""[..], &programs).unwrap();
        let killer = Arc::clone(&programs);
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            killer.kill("time is over");
        });
        let error = output.read_to_end(&mut Vec::new()).unwrap_err().to_string();
        assert!(error.contains("time is over"), "{error}");
        assert!(
            programs
                .start(
                    &Step {
                        id: "b".into(),
                        processor: StreamProcessor::default(),
                        accepted: String::new(),
                        payload: None
                    },
                    Stdio::null()
                )
                .is_err()
        );
    }

    #[test]
    fn a_layer_that_breaks_off_is_no_layer() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the layer stopped coming"))
            }
        }
        let config = config(&[("a", SECRET, media_type::OCI_LAYER, "cat")]);
        let mut output = recipe(&config, SECRET, &BTreeMap::new()).unwrap().open(Broken, &Arc::default()).unwrap();
        let error = output.read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
