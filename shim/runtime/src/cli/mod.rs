//! The command line: global options, the commands by name, failures on stderr and in the log.

mod args;
mod checkpoint;
mod documents;
mod events;
mod foreground;
mod log;
mod make;
mod manage;

use std::path::PathBuf;
use std::process::ExitCode;

use args::{Args, Flag, UsageError};
use gantry_runtime::{CgroupDriver, Container, Error};

/// What a command can fail with.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The runtime failed.
    #[error(transparent)]
    Runtime(#[from] Error),
    /// The command line is wrong.
    #[error(transparent)]
    Usage(#[from] UsageError),
    /// A file or stream failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried, with the path.
        what: String,
        /// What the kernel said.
        source: std::io::Error,
    },
}

impl Failure {
    fn io(what: impl Into<String>, source: impl Into<std::io::Error>) -> Failure {
        Failure::Io { what: what.into(), source: source.into() }
    }
}

/// What holds for every command.
pub(crate) struct Global {
    pub(crate) root: PathBuf,
    pub(crate) driver: CgroupDriver,
    pub(crate) criu: PathBuf,
}

impl Global {
    fn load(&self, id: &str) -> Result<Container, Failure> {
        Ok(Container::load(&self.root, id)?)
    }
}

const GLOBAL: &[Flag] = &[
    Flag::switch("debug"),
    Flag::value("log"),
    Flag::value("log-format"),
    Flag::value("root"),
    Flag::value("criu"),
    Flag::switch("systemd-cgroup"),
    Flag::optional("rootless"),
    Flag::switch("help").short('h'),
    Flag::switch("version").short('v'),
];

type Command = fn(&Global, &Args) -> Result<u8, Failure>;

const COMMANDS: &[(&str, &[Flag], Command)] = &[
    ("create", make::CREATE, make::create),
    ("run", make::RUN, make::run),
    ("exec", make::EXEC, make::exec),
    ("start", &[], manage::start),
    ("state", &[], manage::state),
    ("kill", manage::KILL, manage::kill),
    ("delete", manage::DELETE, manage::delete),
    ("pause", &[], manage::pause),
    ("resume", &[], manage::resume),
    ("update", manage::UPDATE, manage::update),
    ("ps", manage::PS, manage::ps),
    ("list", manage::LIST, manage::list),
    ("events", events::FLAGS, events::events),
    ("spec", documents::SPEC, documents::spec),
    ("features", &[], documents::features),
    ("checkpoint", checkpoint::CHECKPOINT, checkpoint::checkpoint),
    ("restore", checkpoint::RESTORE, checkpoint::restore),
];

/// Commands that make processes in containers. `start` does where there are hooks to run there.
const MAKERS: [&str; 4] = ["create", "run", "exec", "restore"];

/// Runs a command line.
pub(crate) fn main(words: Vec<String>) -> ExitCode {
    let global = match Args::parse(&words, GLOBAL) {
        Ok(global) => global,
        Err(error) => return fail(None, &error.into()),
    };
    if global.has("version") {
        println!("gantry-runtime version {}\nspec: 1.3.0", env!("CARGO_PKG_VERSION"));
        return ExitCode::SUCCESS;
    }
    let Some(name) = global.rest.first().filter(|_| !global.has("help")) else {
        usage();
        return ExitCode::SUCCESS;
    };
    let log = log::Log::open(global.get("log"), global.get("log-format"));
    match dispatch(name, &global) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => fail(Some(&log), &failure),
    }
}

fn dispatch(name: &str, global: &Args) -> Result<u8, Failure> {
    let Some((_, flags, command)) = COMMANDS.iter().find(|(known, ..)| *known == name) else {
        return Err(UsageError { reason: format!("there is no command {name:?}") }.into());
    };
    if MAKERS.contains(&name) {
        gantry_runtime::sealed::restart();
        // The kernel names a process after the file that it was executed by, which was a descriptor's number.
        let _ = nix::sys::prctl::set_name(c"gantry-runtime");
    }
    let settings = Global {
        root: PathBuf::from(global.get("root").unwrap_or("/run/gantry-runtime")),
        criu: PathBuf::from(global.get("criu").unwrap_or("criu")),
        driver: if global.has("systemd-cgroup") { CgroupDriver::Systemd } else { CgroupDriver::Cgroupfs },
    };
    command(&settings, &Args::parse(&global.rest[1..], flags)?)
}

fn usage() {
    let names = COMMANDS.iter().map(|(name, ..)| *name).collect::<Vec<_>>();
    println!("usage: gantry-runtime [global options] COMMAND [options] [ID] …\ncommands: {}", names.join(" "));
}

fn fail(log: Option<&log::Log>, failure: &Failure) -> ExitCode {
    eprintln!("gantry-runtime: {failure}");
    if let Some(log) = log {
        log.error(&failure.to_string());
    }
    ExitCode::FAILURE
}
