//! Named pipes between this process and a shim: made, opened on both sides, and taken away again.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::stat::Mode;
use tokio::net::unix::pipe;

use super::Streams;
use crate::{Error, Result};

/// Below the state directory.
const DIRECTORY: &str = "fifo";

static LAST: AtomicU64 = AtomicU64::new(0);

/// The pipes of one process. Their names go with this; who has opened them does not need them any more.
#[derive(Debug)]
pub(super) struct Pipes {
    directory: PathBuf,
    streams: Streams,
    wants: [bool; 3],
}

impl Pipes {
    /// Makes those of stdin, stdout and stderr that are wanted, and opens our ends of them.
    pub(super) fn make(state: &Path, wants: [bool; 3]) -> Result<Pipes> {
        let directory = state.join(DIRECTORY).join(LAST.fetch_add(1, Ordering::Relaxed).to_string());
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&directory);
        made.map_err(Error::io("create", &directory))?;
        let mut pipes = Pipes { directory, streams: Streams::default(), wants };
        let [stdin, stdout, stderr] = wants;
        // Held by both ends until the shim has opened it: it must not look closed before that.
        let sender = |path: &Path| pipe::OpenOptions::new().read_write(true).open_sender(path);
        let receiver = |path: &Path| pipe::OpenOptions::new().open_receiver(path);
        pipes.streams.stdin = stdin.then(|| pipes.open("0", sender)).transpose()?;
        pipes.streams.stdout = stdout.then(|| pipes.open("1", receiver)).transpose()?;
        pipes.streams.stderr = stderr.then(|| pipes.open("2", receiver)).transpose()?;
        Ok(pipes)
    }

    /// The pipe's path where it is wanted, for the shim: 0, 1 or 2.
    pub(super) fn path(&self, number: usize) -> String {
        let path = self.directory.join(number.to_string());
        if self.wants[number] { path.to_string_lossy().into_owned() } else { String::new() }
    }

    /// Our ends, once the shim has opened its own: each now sees the other's end go.
    pub(super) fn opened(mut self) -> Streams {
        let path = self.directory.join("0");
        if self.streams.stdin.is_some() {
            // Nobody reads any more: the process has ended already.
            self.streams.stdin = pipe::OpenOptions::new().open_sender(path).ok();
        }
        std::mem::take(&mut self.streams)
    }

    fn open<T>(&self, name: &str, open: impl FnOnce(&Path) -> std::io::Result<T>) -> Result<T> {
        let path = self.directory.join(name);
        let made = nix::unistd::mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).map_err(std::io::Error::from);
        made.and_then(|()| open(&path)).map_err(Error::io("make pipe", &path))
    }
}

impl Drop for Pipes {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.directory) {
            tracing::warn!(%error, directory = %self.directory.display(), "pipes stay until the next start");
        }
    }
}

/// Takes away what an earlier engine left: its ends are gone.
pub(crate) fn clear(state: &Path) {
    // Not there is as good.
    let _ = std::fs::remove_dir_all(state.join(DIRECTORY));
}
