//! Daemons under test: ours, and containerd as the peer. Both are driven in the same way.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::lab::{Lab, our_binary, peer_binary, source_root};
use crate::{Outcome, census};

/// How long a daemon may take to answer after its start, and to end after SIGTERM.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long one client command may take.
const COMMAND: Duration = Duration::from_secs(120);

/// Which daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// `gantryd` with its own shim.
    Gantry,
    /// The pinned containerd with its Go shim and runc.
    Containerd,
}

/// A running daemon.
pub struct Daemon {
    peer: Peer,
    dir: PathBuf,
    tag: String,
    child: Option<Child>,
    path: std::ffi::OsString,
    config: Option<PathBuf>,
    env: Vec<(String, String)>,
}

impl Daemon {
    /// Starts our daemon in the laboratory and waits until it answers.
    pub fn start(lab: &Lab) -> Daemon {
        Daemon::start_with(lab, Peer::Gantry, "", &[])
    }

    /// Starts either daemon with a configuration file of this text (none when empty) and extra environment.
    pub fn start_with(lab: &Lab, peer: Peer, config: &str, env: &[(&str, &str)]) -> Daemon {
        let name = match peer {
            Peer::Gantry => "g",
            Peer::Containerd => "c",
        };
        Daemon::start_named(lab, name, peer, config, env)
    }

    /// The same in the laboratory's directory `name`: one daemon among several of its kind.
    pub fn start_named(lab: &Lab, name: &str, peer: Peer, config: &str, env: &[(&str, &str)]) -> Daemon {
        let dir = lab.path(name);
        let bin = dir.join("bin");
        std::fs::create_dir_all(&bin).expect("make the daemon's directory");
        let link = |from: PathBuf| {
            let from = from.canonicalize().expect("a binary that was just found");
            let to = bin.join(from.file_name().expect("a file name"));
            // No symbolic link: a daemon looks for shims beside its own executable first.
            if !to.exists() && std::fs::hard_link(&from, &to).is_err() {
                std::fs::copy(&from, &to).expect("copy a binary");
            }
        };
        match peer {
            Peer::Gantry => ["gantryd", "containerd-shim-gantry-v1"].map(our_binary).into_iter().for_each(link),
            Peer::Containerd => {
                ["containerd", "containerd-shim-runc-v2", "runc"].map(peer_binary).into_iter().for_each(link);
            }
        }
        // The Go shim finds runc there.
        let mut path = bin.into_os_string();
        path.push(":");
        path.push(source_root().join("integration/tools/bin"));
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        let config = (!config.is_empty()).then(|| {
            let file = dir.join("config.toml");
            std::fs::write(&file, config).expect("write the configuration");
            file
        });
        let env = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let mut daemon = Daemon { peer, dir, tag: lab.tag().to_owned(), child: None, path, config, env };
        daemon.launch();
        daemon
    }

    /// The socket.
    pub fn address(&self) -> PathBuf {
        self.dir.join("s.sock")
    }

    /// `--root`.
    pub fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    /// `--state`.
    pub fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// Where the daemon's log goes.
    pub fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// The daemon's process.
    pub fn pid(&self) -> i32 {
        self.child.as_ref().map_or(0, |c| i32::try_from(c.id()).unwrap_or(0))
    }

    /// A command with the daemon's binaries first in its PATH.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env("PATH", &self.path);
        command
    }

    /// Runs the real `ctr` against this daemon, in namespace `default`.
    pub fn ctr(&self, args: &[&str]) -> Outcome {
        let mut command = self.command(peer_binary("ctr"));
        command.arg("--address").arg(self.address()).args(args);
        Outcome::of(command, COMMAND)
    }

    /// Runs our `gctr` against this daemon.
    pub fn gctr(&self, args: &[&str]) -> Outcome {
        let mut command = self.command(our_binary("gctr"));
        command.env("GANTRY_ADDRESS", self.address()).args(args);
        Outcome::of(command, COMMAND)
    }

    /// Whether the daemon's process has ended; one that is about to gets a moment.
    pub fn has_ended(&mut self) -> bool {
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(2) {
            if self.child.as_mut().is_none_or(|child| child.try_wait().is_ok_and(|status| status.is_some())) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        false
    }

    /// Kills the daemon with SIGKILL, as a crash would.
    pub fn crash(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts it again on the same directories.
    pub fn restart(&mut self) {
        self.stop();
        self.launch();
    }

    /// Starts it again after [`Daemon::crash`].
    pub fn launch(&mut self) {
        let program = match self.peer {
            Peer::Gantry => "gantryd",
            Peer::Containerd => "containerd",
        };
        let mut command = self.command(self.dir.join("bin").join(program));
        command.arg("--root").arg(self.root()).arg("--state").arg(self.state()).arg("--address").arg(self.address());
        if let Some(config) = &self.config {
            command.arg("--config").arg(config);
        } else if self.peer == Peer::Containerd {
            command.arg("--config").arg("/dev/null");
        }
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log()).expect("open the log");
        command.arg("--log-level").arg(std::env::var("GANTRY_TEST_LOG").unwrap_or_else(|_| "info".into()));
        command.envs(self.env.iter().map(|(k, v)| (k, v))).current_dir(&self.dir);
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a descriptor")).stderr(log);
        self.child = Some(command.spawn().expect("start the daemon"));
        self.wait_until_it_answers();
    }

    fn wait_until_it_answers(&mut self) {
        let start = Instant::now();
        loop {
            if std::os::unix::net::UnixStream::connect(self.address()).is_ok() {
                return;
            }
            let ended = self.child.as_mut().and_then(|c| c.try_wait().ok().flatten());
            assert!(ended.is_none(), "the daemon ended with {ended:?}:\n{}", self.log_tail());
            assert!(start.elapsed() < PATIENCE, "the daemon does not answer:\n{}", self.log_tail());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The end of the daemon's log.
    pub fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }

    /// Ends the daemon by SIGTERM and insists that it ends in time.
    pub fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let _ = kill(Pid::from_raw(i32::try_from(child.id()).unwrap_or(0)), Signal::SIGTERM);
        let start = Instant::now();
        loop {
            if let Ok(Some(status)) = child.try_wait() {
                assert!(status.success(), "the daemon ended with {status} after SIGTERM:\n{}", self.log_tail());
                return;
            }
            if start.elapsed() > PATIENCE {
                let _ = child.kill();
                let _ = child.wait();
                panic!("the daemon does not end after SIGTERM:\n{}", self.log_tail());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends the daemon by SIGTERM, insisting that it ends well: the last line of a test.
    pub fn stop_clean(mut self) {
        self.stop();
    }

    /// Insists that nothing of any container is left: processes, mounts, cgroups, bundles, ingests, sockets.
    #[track_caller]
    pub fn assert_nothing_leaked(&self) {
        let mut found = Vec::new();
        // A shim that was told to go may need a moment to be gone.
        for _ in 0..200 {
            found = census::leaks(&self.dir, &self.tag, self.pid());
            if found.is_empty() {
                return;
            }
            std::thread::sleep(Duration::from_millis(25));
        }
        panic!("left behind:\n  {}\nthe daemon's log:\n{}", found.join("\n  "), self.log_tail());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.crash();
        census::end_processes_of(&self.dir, &self.tag);
        census::remove_cgroups_of(&self.tag);
        if std::thread::panicking() {
            let keep = Path::new("/tmp").join(format!("gantry-failed-{}.log", self.tag));
            let _ = std::fs::copy(self.log(), &keep);
            eprintln!("the daemon's log is kept at {}", keep.display());
        }
    }
}
