//! A shim that lives but does not answer (stopped, or stuck in the kernel): whoever deletes its container ends it.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use gantry_ttrpc::Address;
use gantry_ttrpc::outgoing::Outgoing;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::args::Args;
use crate::bundle::Bundle;

/// How long a shim may take to answer the simplest call; one that delivers its last events answers at once.
const PATIENCE: Duration = Duration::from_secs(1);

/// A process, told apart from a later one of the same number by when it started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its id.
    pub pid: u32,
    /// When it started, in clock ticks since boot (proc(5), `stat`, field 22).
    pub started: u64,
}

impl Identity {
    /// Who has this process id now; a dead one that was not reaped yet is nobody.
    pub fn of(pid: u32) -> Option<Identity> {
        let (started, dead) = gantry_runtime::start_time(i32::try_from(pid).ok()?)?;
        (!dead).then_some(Identity { pid, started })
    }

    /// Whether it still lives.
    pub fn is_alive(self) -> bool {
        Identity::of(self.pid) == Some(self)
    }

    /// Kills it and waits for its end, at most so long.
    pub fn end(self, patience: Duration) {
        let Ok(pid) = i32::try_from(self.pid) else { return };
        // It may end by itself meanwhile; then there is nothing to do.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        let deadline = Instant::now() + patience;
        while self.is_alive() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Ends the shim that serves the container on `socket` and works in another directory than `bundle`: of an earlier start of
/// which nobody was told, since its bundle is gone. Nobody would find it again.
pub fn end_orphan(args: &Args, bundle: &Bundle, socket: &Path) {
    let Ok(here) = fs::metadata(bundle.dir()) else { return };
    let works_here = |directory: fs::Metadata| (directory.dev(), directory.ino()) == (here.dev(), here.ino());
    let numbers = fs::read_dir("/proc").into_iter().flatten().flatten();
    for pid in numbers.filter_map(|entry| entry.file_name().to_str()?.parse().ok()) {
        let serves = fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| is_command_of(&line, args, socket));
        if serves && fs::metadata(format!("/proc/{pid}/cwd")).is_ok_and(|directory| !works_here(directory)) {
            Identity::of(pid).into_iter().for_each(|shim| shim.end(PATIENCE));
        }
    }
}

/// Whether this is the command line of a process that serves the container on `socket`.
fn is_command_of(line: &[u8], args: &Args, socket: &Path) -> bool {
    let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
    let says = |name: &str, value: &[u8]| words.windows(2).any(|pair| pair[0] == name.as_bytes() && pair[1] == value);
    let of_container = says("-namespace", args.namespace.as_bytes()) && says("-id", args.id.as_bytes());
    of_container && (says("-socket", socket.as_os_str().as_bytes()) || words.contains(&b"stay".as_slice()))
}

/// Kills the bundle's shim if it lives.
pub fn end(bundle: &Bundle) {
    if let Some(shim) = bundle.shim().filter(|shim| shim.is_alive()) {
        shim.end(PATIENCE);
    }
}

/// Kills the bundle's shim if it lives and is silent. One that answers, or serves another container too, is left alone.
pub fn end_if_silent(bundle: &Bundle, socket: &Path) {
    let Some(shim) = bundle.shim().filter(|shim| shim.is_alive()) else { return };
    if answers(socket) {
        return;
    }
    shim.end(PATIENCE);
}

/// Asks the shim to end, which it does if it holds nothing: whoever started it may have died before there was anything.
pub fn ask_to_end(socket: &Path) {
    if let Ok(mut connection) = Outgoing::connect(&Address::Path(socket.into())) {
        // Its answer, or whether it has one, does not matter here.
        let _ = connection.call("containerd.task.v3.Task", "Shutdown", Vec::new(), PATIENCE, &[]);
    }
}

fn answers(socket: &Path) -> bool {
    let Ok(mut connection) = Outgoing::connect(&Address::Path(socket.into())) else { return false };
    if connection.call("containerd.task.v3.Task", "Connect", Vec::new(), PATIENCE, &[]).is_err() {
        return false;
    }
    let mut fds = [PollFd::new(std::os::fd::AsFd::as_fd(&connection), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::try_from(PATIENCE).unwrap_or(PollTimeout::MAX)).is_ok_and(|ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_is_known_by_namespace_id_and_socket() {
        let words = |id: &str| ["-namespace", "n", "-id", id, "stay"].map(str::to_owned);
        let args = Args::parse(words("one")).unwrap();
        let serves = |line: &str| is_command_of(line.replace(' ', "\0").as_bytes(), &args, Path::new("/s/1"));
        assert!(serves("shim -namespace n -id one -address /a -socket /s/1"));
        assert!(serves("shim -namespace n -address /a -id one stay"));
        assert!(!serves("shim -namespace n -id one -address /a -socket /s/2"));
        assert!(!serves("shim -namespace n -id two stay") && !serves("shim -namespace m -id one stay"));
        assert!(!serves("shim -namespace n -id one start") && !serves("vi one"));
    }

    #[test]
    fn a_process_is_known_by_number_and_start() {
        let me = Identity::of(std::process::id()).unwrap();
        assert!(me.is_alive());
        assert!(!Identity { started: me.started + 1, ..me }.is_alive());
        assert_eq!(Identity::of(u32::MAX), None);
    }
}
