//! Commands that make processes: create, run, exec.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use gantry_runtime::{Container, CreateOptions, ExecOptions, ExecPlace, Gate, Process, Spec, Stdio};

use super::args::{Args, Flag, UsageError};
use super::foreground;
use super::{Failure, Global};

pub(super) const CREATE: &[Flag] = &[
    Flag::value("bundle").short('b'),
    Flag::value("console-socket"),
    Flag::value("pidfd-socket"),
    Flag::value("pid-file"),
    Flag::switch("no-pivot"),
    Flag::switch("no-new-keyring"),
    Flag::value("preserve-fds"),
];

pub(super) const RUN: &[Flag] = &[
    CREATE[0],
    CREATE[1],
    CREATE[2],
    CREATE[3],
    CREATE[4],
    CREATE[5],
    CREATE[6],
    Flag::switch("detach").short('d'),
    Flag::switch("keep"),
    Flag::switch("no-subreaper"),
];

pub(super) const EXEC: &[Flag] = &[
    Flag::value("console-socket"),
    Flag::value("pidfd-socket"),
    Flag::value("cwd"),
    Flag::value("env").short('e'),
    Flag::switch("tty").short('t'),
    Flag::value("user").short('u'),
    Flag::value("additional-gids").short('g'),
    Flag::value("process").short('p'),
    Flag::switch("detach").short('d'),
    Flag::value("pid-file"),
    Flag::value("process-label"),
    Flag::value("apparmor"),
    Flag::switch("no-new-privs"),
    Flag::value("cap").short('c'),
    Flag::value("preserve-fds"),
    Flag::value("cgroup"),
    Flag::switch("ignore-paused"),
];

pub(super) fn create(global: &Global, args: &Args) -> Result<u8, Failure> {
    let make = |wanted: CreateOptions<'_>| Container::create(CreateOptions { gate: Gate::Fifo, ..wanted });
    made(global, args, Making { detach: true, make: &make }).map(|_| 0)
}

pub(super) fn run(global: &Global, args: &Args) -> Result<u8, Failure> {
    let (mut container, console) = made(global, args, Making { detach: args.has("detach"), make: &Container::create })?;
    let signals = signals(args)?;
    if let Err(error) = container.start() {
        let _ = container.delete(true);
        return Err(error.into());
    }
    attend(args, (container, console), signals)
}

/// The signals to be passed on, unless nobody stays to do so.
pub(super) fn signals(args: &Args) -> Result<Option<foreground::Signals>, Failure> {
    (!args.has("detach")).then(foreground::Signals::block).transpose()
}

/// Waits for the end of a container that runs, and deletes it then, unless it is detached from.
pub(super) fn attend(
    args: &Args,
    (mut container, console): (Container, Option<OwnedFd>),
    signals: Option<foreground::Signals>,
) -> Result<u8, Failure> {
    let Some(signals) = signals else { return Ok(0) };
    let code = foreground::attend(signals, container.pid(), console)?;
    if !args.has("keep") {
        container.delete(true)?;
    }
    Ok(code)
}

/// How a container is made.
pub(super) struct Making<'a> {
    /// Whether its maker does not stay.
    pub(super) detach: bool,
    pub(super) make: &'a dyn Fn(CreateOptions<'_>) -> gantry_runtime::Result<Container>,
}

/// Makes a container of the bundle, and tells of it whom the options name.
pub(super) fn made(global: &Global, args: &Args, making: Making<'_>) -> Result<(Container, Option<OwnedFd>), Failure> {
    let bundle = bundle(args)?;
    let spec = Spec::load(&bundle)?;
    let terminal = spec.process.as_ref().is_some_and(|process| process.terminal);
    check_console(args, terminal, making.detach)?;
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let stdio = if terminal {
        Stdio::Console(foreground::size())
    } else {
        Stdio::Fds([Some(stdin.as_fd()), Some(stdout.as_fd()), Some(stderr.as_fd())])
    };
    let mut container = (making.make)(CreateOptions {
        id: args.id()?,
        bundle: &bundle,
        state_dir: &global.root,
        spec: &spec,
        rootfs_mounts: &[],
        stdio,
        cgroup_driver: global.driver,
        no_pivot: args.has("no-pivot"),
        no_new_keyring: args.has("no-new-keyring"),
        preserve_fds: args.number("preserve-fds")?.unwrap_or(0),
        gate: Gate::Socket,
    })?;
    let console = container.take_console();
    match announce(args, container.pid(), container.pidfd().map(|fd| fd.as_raw_fd()), console) {
        Ok(console) => Ok((container, console)),
        Err(failure) => {
            let _ = container.delete(true);
            Err(failure)
        }
    }
}

/// Hands console and pidfd to their sockets and writes the pid file. The console comes back if nobody asked for it.
fn announce(args: &Args, pid: i32, pidfd: Option<i32>, console: Option<OwnedFd>) -> Result<Option<OwnedFd>, Failure> {
    if let (Some(path), Some(pidfd)) = (args.get("pidfd-socket"), pidfd) {
        foreground::send_fd(path, pidfd)?;
    }
    let console = match (args.get("console-socket"), console) {
        (Some(path), Some(console)) => {
            foreground::send_fd(path, console.as_raw_fd())?;
            None
        }
        (_, console) => console,
    };
    if let Some(path) = args.get("pid-file") {
        write_pid(Path::new(path), pid)?;
    }
    Ok(console)
}

fn check_console(args: &Args, terminal: bool, detach: bool) -> Result<(), UsageError> {
    let socket = args.get("console-socket").is_some();
    let reason = match (terminal, detach, socket) {
        (true, true, false) => "cannot allocate tty if runc will detach without setting console socket",
        (false, _, true) => "cannot use console socket if runc will not detach or allocate tty",
        _ => return Ok(()),
    };
    Err(UsageError { reason: reason.to_owned() })
}

fn bundle(args: &Args) -> Result<PathBuf, Failure> {
    let path = args.get("bundle").unwrap_or(".");
    std::fs::canonicalize(path).map_err(|source| Failure::io(format!("bundle {path}"), source))
}

/// Renamed into place, so that whoever waits for the file never reads half a number.
fn write_pid(path: &Path, pid: i32) -> Result<(), Failure> {
    let failed = |source| Failure::io(format!("pid file {}", path.display()), source);
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    std::fs::write(&new, pid.to_string()).map_err(failed)?;
    std::fs::rename(&new, path).map_err(failed)
}

pub(super) fn exec(global: &Global, args: &Args) -> Result<u8, Failure> {
    let container = global.load(args.id()?)?;
    let process = exec_process(&container, args)?;
    let detach = args.has("detach");
    check_console(args, process.terminal, detach)?;
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let stdio = if process.terminal {
        Stdio::Console(foreground::size())
    } else {
        Stdio::Fds([Some(stdin.as_fd()), Some(stdout.as_fd()), Some(stderr.as_fd())])
    };
    let preserve_fds = args.number("preserve-fds")?.unwrap_or(0);
    let signals = (!detach).then(foreground::Signals::block).transpose()?;
    let existing = args.all("cgroup").iter().map(|text| place(text)).collect::<Vec<_>>();
    let place = ExecPlace { own: None, existing: &existing, ignore_paused: args.has("ignore-paused") };
    let child = container.exec_in(ExecOptions { process: &process, stdio, preserve_fds }, place)?;
    let console = announce(args, child.pid, Some(child.pidfd.as_raw_fd()), child.console)?;
    match signals {
        Some(signals) => foreground::attend(signals, child.pid, console),
        None => Ok(0),
    }
}

/// `[CONTROLLERS:]PATH`.
fn place(text: &str) -> (String, String) {
    let (controllers, path) = text.split_once(':').unwrap_or(("", text));
    (controllers.to_owned(), path.to_owned())
}

/// The process: a document, or the init's with what the options change.
fn exec_process(container: &Container, args: &Args) -> Result<Process, Failure> {
    if let Some(path) = args.get("process") {
        let bytes = std::fs::read(path).map_err(|source| Failure::io(format!("process {path}"), source))?;
        return Ok(Process::parse(&bytes)?);
    }
    let mut process = container.spec().process.clone().unwrap_or_default();
    process.args = args.rest[1..].to_vec();
    process.terminal = args.has("tty");
    process.env.extend(args.all("env").iter().cloned());
    if let Some(cwd) = args.get("cwd") {
        cwd.clone_into(&mut process.cwd);
    }
    if let Some(user) = args.get("user") {
        let bad = || UsageError { reason: format!("invalid user {user:?}: UID[:GID]") };
        let (uid, gid) = user.split_once(':').unwrap_or((user, ""));
        process.user.uid = uid.parse().map_err(|_| bad())?;
        if !gid.is_empty() {
            process.user.gid = gid.parse().map_err(|_| bad())?;
        }
    }
    for gid in args.all("additional-gids") {
        let bad = || UsageError { reason: format!("invalid group {gid:?}") };
        process.user.additional_gids.push(gid.parse().map_err(|_| bad())?);
    }
    for name in args.all("cap") {
        let sets = process.capabilities.get_or_insert_with(Default::default);
        for set in [&mut sets.bounding, &mut sets.effective, &mut sets.permitted] {
            set.push(name.clone());
        }
    }
    if let Some(label) = args.get("process-label") {
        label.clone_into(&mut process.selinux_label);
    }
    if let Some(profile) = args.get("apparmor") {
        profile.clone_into(&mut process.apparmor_profile);
    }
    process.no_new_privileges |= args.has("no-new-privs");
    Ok(process)
}
