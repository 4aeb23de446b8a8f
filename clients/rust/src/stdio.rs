//! Named pipes between a client and the shim that holds its container.

use std::path::{Path, PathBuf};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tokio::net::unix::pipe;

use crate::Error;

/// What a task is told of its standard streams: paths of named pipes or URIs; empty for none.
#[derive(Clone, Debug, Default)]
pub struct Paths {
    /// Standard input.
    pub stdin: String,
    /// Standard output.
    pub stdout: String,
    /// Standard error; empty with a terminal.
    pub stderr: String,
    /// Whether the process gets a terminal.
    pub terminal: bool,
}

/// A set of named pipes in a directory of their own, removed with it.
#[derive(Debug)]
pub struct Fifos {
    dir: tempfile::TempDir,
    terminal: bool,
}

impl Fifos {
    /// Makes the pipes below `/run`, or the usual temporary directory where that cannot be written.
    ///
    /// # Errors
    /// [`Error::Io`] when they cannot be made.
    pub fn new(terminal: bool) -> Result<Fifos, Error> {
        let builder = || tempfile::Builder::new().prefix("gantry-io-").to_owned();
        let dir = builder().tempdir_in("/run").or_else(|_| builder().tempdir());
        let dir = dir.map_err(|e| Error::io("make a directory for pipes", e))?;
        let fifos = Fifos { dir, terminal };
        let names: &[&str] = if terminal { &["stdin", "stdout"] } else { &["stdin", "stdout", "stderr"] };
        for name in names {
            mkfifo(&fifos.path(name), Mode::S_IRUSR | Mode::S_IWUSR)
                .map_err(|e| Error::io(format!("make pipe {name}"), e))?;
        }
        Ok(fifos)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What to tell the daemon. Without `stdin` the process reads end of file at once.
    pub fn paths(&self, stdin: bool) -> Paths {
        let text = |name: &str| self.path(name).to_string_lossy().into_owned();
        Paths {
            stdin: if stdin { text("stdin") } else { String::new() },
            stdout: text("stdout"),
            stderr: if self.terminal { String::new() } else { text("stderr") },
            terminal: self.terminal,
        }
    }

    /// Opens the reading ends. To be done before the task is created, so that nothing is lost.
    ///
    /// # Errors
    /// [`Error::Io`] when a pipe cannot be opened.
    pub fn readers(&self) -> Result<(pipe::Receiver, Option<pipe::Receiver>), Error> {
        let stdout = open_reader(&self.path("stdout"))?;
        let stderr = (!self.terminal).then(|| open_reader(&self.path("stderr"))).transpose()?;
        Ok((stdout, stderr))
    }

    /// Opens the writing end of standard input; the shim must have opened its end.
    ///
    /// # Errors
    /// [`Error::Io`] when nobody reads, or the pipe cannot be opened.
    pub fn stdin(&self) -> Result<pipe::Sender, Error> {
        pipe::OpenOptions::new().open_sender(self.path("stdin")).map_err(|e| Error::io("open standard input", e))
    }
}

fn open_reader(path: &Path) -> Result<pipe::Receiver, Error> {
    pipe::OpenOptions::new().open_receiver(path).map_err(|e| Error::io(format!("open {}", path.display()), e))
}
