//! The verbs `start` and `stay`: the first makes the process that serves, away from the daemon, the second becomes it.
//! Both say where it is reached.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use gantry_ttrpc::pb::containerd::runc::v1::Options;
use nix::fcntl::{Flock, FlockArg};
use serde::Deserialize;

use crate::args::Args;
use crate::bootstrap::{Bootstrap, GROUP, group};
use crate::bundle::Bundle;
use crate::serve::Server;
use crate::{Error, cgroup, stale, sys};

/// Longest message on stdin.
const MAX_STDIN: u64 = 4 << 20;
/// Largest configuration whose annotations are read.
const MAX_CONFIG: u64 = 16 << 20;
/// The highest `oom_score_adj`.
const MAX_OOM_SCORE: i32 = 1000;
/// How long a killed shim may take to end.
const ENDING: Duration = Duration::from_secs(1);

/// Starts a serving shim for the bundle in the current directory, or finds the one of its group. Returns what to print.
///
/// # Errors
/// What stands in the way; nothing keeps running then.
pub fn run(args: &Args) -> Result<Vec<u8>, Error> {
    let start = Start::read(args)?;
    let _lock = start.lock()?;
    start.end_orphan();
    start.elsewhere()
}

/// The same without another process: returns the server, once its address is printed. None where another process serves
/// after all: the one of the group, or one that is made because this one's program could be written by a container.
///
/// # Errors
/// What stands in the way.
pub fn stay(args: &Args) -> Result<Option<Server>, Error> {
    sys::take_leave();
    let start = Start::read(args)?;
    let _lock = start.lock()?;
    start.end_orphan();
    if is_alive(&start.socket) || gantry_runtime::sealed::program().is_some() {
        return print(&start.elsewhere()?).map(|()| None);
    }
    let listener = listen(&start.socket)?;
    start.note(std::process::id()).and_then(|()| start.become_server(listener)).map(Some).inspect_err(|_| {
        let _ = fs::remove_file(&start.socket);
    })
}

/// What a start is about.
struct Start<'a> {
    args: &'a Args,
    bootstrap: Bootstrap,
    bundle: Bundle,
    /// The containers that share the shim.
    group: String,
    socket: PathBuf,
}

impl Start<'_> {
    fn read(args: &Args) -> Result<Start<'_>, Error> {
        let bootstrap = Bootstrap::read(&stdin()?, args)?;
        let directory = std::env::current_dir().map_err(|error| Error::system("getcwd", error))?;
        let group = group(&annotations(&directory)?, &args.id);
        let socket = bootstrap.socket(args, &group);
        make_directory(&socket)?;
        let bundle = Bundle::new(&directory);
        if let Some(options) = bootstrap.runc_options().filter(|options| *options != Options::default()) {
            bundle.write_options(&options)?;
        }
        Ok(Start { args, bootstrap, bundle, group, socket })
    }

    /// Two starts of one group must not both find nobody there. A container alone is started once.
    fn lock(&self) -> Result<Option<Flock<File>>, Error> {
        if self.group == self.args.id { Ok(None) } else { lock(&self.socket).map(Some) }
    }

    /// A container alone has its shim for itself: one that was there before its bundle is not to be used.
    fn end_orphan(&self) {
        if self.group == self.args.id && self.socket.exists() {
            stale::end_orphan(self.args, &self.bundle, &self.socket);
        }
    }

    /// Has another process serve, if none does. Returns what to print.
    fn elsewhere(&self) -> Result<Vec<u8>, Error> {
        if is_alive(&self.socket) {
            self.bundle.write_address(&self.socket)?;
        } else {
            self.serve_apart()?;
        }
        Ok(self.bootstrap.answer(&self.socket, false))
    }

    fn serve_apart(&self) -> Result<(), Error> {
        let listener = listen(&self.socket)?;
        let spawned = spawn(self.args, &self.bootstrap, &self.bundle, &self.socket, &listener);
        let noted = spawned.and_then(|pid| {
            let noted = self.note(pid);
            // The bundle may have been cleared away meanwhile: then nobody waits for this shim.
            if let (Some(shim), Err(_)) = (stale::Identity::of(pid), &noted) {
                shim.end(ENDING);
            }
            noted
        });
        noted.inspect_err(|_| {
            let _ = fs::remove_file(&self.socket);
        })
    }

    /// Says to whoever comes after it which process the shim is, and where.
    fn note(&self, pid: u32) -> Result<(), Error> {
        prefer_for_oom(pid);
        if let Some(shim) = stale::Identity::of(pid) {
            self.bundle.write_shim(shim)?;
            self.bundle.write_address(&self.socket)?;
        }
        if let Some(options) = self.bootstrap.runc_options().filter(|options| !options.shim_cgroup.is_empty()) {
            cgroup::join(&options.shim_cgroup, pid);
        }
        Ok(())
    }

    /// Prints the address and leaves the daemon's streams.
    fn become_server(&self, listener: OwnedFd) -> Result<Server, Error> {
        let answer = self.bootstrap.answer(&self.socket, true);
        // Ready before it is said.
        let address = Some(&self.bootstrap.ttrpc_address).filter(|address| !address.is_empty());
        let server = Server::new(self.args, listener, self.socket.clone(), address.map(String::as_str))?;
        print(&answer)?;
        sys::replace_streams(log_fifo(&self.bundle))
            .map_err(|error| Error::system("leave the daemon's streams", error))?;
        Ok(server)
    }
}

fn print(answer: &[u8]) -> Result<(), Error> {
    let mut stdout = io::stdout();
    stdout.write_all(answer).and_then(|()| stdout.flush()).map_err(|error| Error::system("print the address", error))
}

/// Its own session, and orphaned as soon as this process ends: nothing ties it to the daemon.
fn spawn(args: &Args, bootstrap: &Bootstrap, bundle: &Bundle, socket: &Path, listener: &OwnedFd) -> Result<u32, Error> {
    let program = std::env::current_exe().map_err(|error| Error::system("find this program", error))?;
    // What containers can reach of it must not be writable.
    let sealed = gantry_runtime::sealed::program();
    let path = sealed.as_ref().map(|fd| PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd())));
    let mut command = Command::new(path.as_ref().unwrap_or(&program));
    command.arg0(&program);
    command.args(["-namespace", &args.namespace, "-id", &args.id, "-address", &args.address]);
    command.arg("-socket").arg(socket);
    if args.debug {
        command.arg("-debug");
    }
    if !bootstrap.ttrpc_address.is_empty() {
        command.env("TTRPC_ADDRESS", &bootstrap.ttrpc_address);
    }
    command.current_dir(bundle.dir()).stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(log_fifo(bundle).map_or_else(Stdio::null, Stdio::from));
    sys::detach(&mut command, &[listener.as_fd()]);
    let child = command.spawn().map_err(|error| Error::file("execute", &program, error))?;
    Ok(child.id())
}

fn stdin() -> Result<Vec<u8>, Error> {
    let stdin = io::stdin();
    let mut bytes = Vec::new();
    if !stdin.is_terminal() {
        stdin.lock().take(MAX_STDIN).read_to_end(&mut bytes).map_err(|error| Error::system("read stdin", error))?;
    }
    Ok(bytes)
}

fn annotations(bundle: &Path) -> Result<BTreeMap<String, String>, Error> {
    #[derive(Deserialize)]
    struct Config {
        #[serde(default)]
        annotations: Option<BTreeMap<String, String>>,
    }
    let path = bundle.join("config.json");
    let file = match File::open(&path) {
        Ok(file) => file,
        // A sandbox's bundle has none.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(Error::file("open", &path, error)),
    };
    // More than it has: so its end is seen without another buffer.
    let size = file.metadata().map_or(0, |metadata| metadata.len().min(MAX_CONFIG));
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0) + 64);
    file.take(MAX_CONFIG).read_to_end(&mut bytes).map_err(|error| Error::file("read", &path, error))?;
    // Few have the one annotation that counts here, and what is wrong with a configuration is told when it is used.
    if !bytes.windows(GROUP.len()).any(|window| window == GROUP.as_bytes()) {
        return Ok(BTreeMap::new());
    }
    let config: Config = serde_json::from_slice(&bytes).map_err(|error| Error::file("decode", &path, error))?;
    Ok(config.annotations.unwrap_or_default())
}

fn make_directory(socket: &Path) -> Result<(), Error> {
    let Some(directory) = socket.parent() else { return Ok(()) };
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.map_err(|error| Error::file("create", directory, error))
}

fn lock(socket: &Path) -> Result<Flock<File>, Error> {
    let directory = socket.parent().unwrap_or(Path::new("/"));
    let file = File::open(directory).map_err(|error| Error::file("open", directory, error))?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| Error::file("lock", directory, error))
}

fn is_alive(socket: &Path) -> bool {
    socket.exists() && UnixStream::connect(socket).is_ok()
}

fn listen(socket: &Path) -> Result<OwnedFd, Error> {
    let failed = |error| Error::file("listen", socket, error);
    match fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = UnixListener::bind(socket).map_err(failed)?;
    fs::set_permissions(socket, fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(listener.into())
}

/// The fifo that the daemon reads warnings from. It is held by both ends, so that no write fails when the daemon goes.
fn log_fifo(bundle: &Bundle) -> Option<File> {
    let path = bundle.dir().join("log");
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path).ok()
}

/// The kernel shall take the shim before the daemon, by one point. Refusals are no failure: scores only rise unprivileged.
fn prefer_for_oom(pid: u32) {
    let daemon = nix::unistd::getppid();
    let score = fs::read_to_string(format!("/proc/{daemon}/oom_score_adj"));
    let Some(score) = score.ok().and_then(|text| text.trim().parse::<i32>().ok()) else { return };
    let _ = fs::write(format!("/proc/{pid}/oom_score_adj"), (score + 1).min(MAX_OOM_SCORE).to_string());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_nobody_serves_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let first = listen(&socket).unwrap();
        assert!(is_alive(&socket));
        drop(first);
        assert!(!is_alive(&socket));
        let second = listen(&socket).unwrap();
        assert!(is_alive(&socket));
        drop(second);
        assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn annotations_are_optional_but_broken_configurations_are_told() {
        let dir = tempfile::tempdir().unwrap();
        assert!(annotations(dir.path()).unwrap().is_empty());
        fs::write(dir.path().join("config.json"), r#"{"annotations":null}"#).unwrap();
        assert!(annotations(dir.path()).unwrap().is_empty());
        let asks = format!(r#"{{"annotations":{{"a":"b","{GROUP}":"g"}}}}"#);
        fs::write(dir.path().join("config.json"), &asks).unwrap();
        assert_eq!(annotations(dir.path()).unwrap()[GROUP], "g");
        fs::write(dir.path().join("config.json"), &asks[1..]).unwrap();
        assert!(annotations(dir.path()).is_err());
    }
}
