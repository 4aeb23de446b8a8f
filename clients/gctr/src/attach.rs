//! Connecting this process's standard streams with a task's pipes until the task ends.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use gantry_client::{Exit, Fifos, Task};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;

use crate::error::Error;
use crate::terminal;

/// Output readers that run from before the task is created, so that nothing is lost.
pub struct Output {
    copies: Vec<JoinHandle<io::Result<()>>>,
    exited: Arc<AtomicBool>,
}

impl Output {
    /// Opens the pipes and starts copying.
    pub fn start(fifos: &Fifos) -> Result<Output, Error> {
        let (stdout, stderr) = fifos.readers()?;
        let exited = Arc::new(AtomicBool::new(false));
        let mut copies = vec![tokio::spawn(copy(stdout, tokio::io::stdout(), Arc::clone(&exited)))];
        copies.extend(stderr.map(|stderr| tokio::spawn(copy(stderr, tokio::io::stderr(), Arc::clone(&exited)))));
        Ok(Output { copies, exited })
    }

    /// Waits until all that the task wrote has been passed on.
    pub async fn finish(self) {
        self.exited.store(true, Ordering::Release);
        for copy in self.copies {
            // The pipe ends when the shim closes it; should a stray child keep it open, the exit code still counts.
            let _ = tokio::time::timeout(std::time::Duration::from_secs(2), copy).await;
        }
    }
}

/// Copies until the end. A pipe that no writer has opened yet reads as ended, too; it is the end once something came or
/// the task has exited.
async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    exited: Arc<AtomicBool>,
) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    let mut begun = false;
    loop {
        match from.read(&mut buffer).await? {
            0 if begun || exited.load(Ordering::Acquire) => return Ok(()),
            0 => tokio::time::sleep(std::time::Duration::from_millis(2)).await,
            n => {
                begun = true;
                to.write_all(&buffer[..n]).await?;
                to.flush().await?;
            }
        }
    }
}

/// Passes input, signals and window sizes on until the task has ended.
pub async fn until_exit(task: &Task, fifos: &Fifos, stdin: bool, tty: bool) -> Result<Exit, Error> {
    let _raw = if tty { Some(terminal::Raw::enter()?) } else { None };
    let input = stdin.then(|| tokio::spawn(feed(task.clone(), fifos.stdin())));
    let failed = Error::io("watch signals");
    let watch = |kind| signal(kind);
    let (mut window, mut interrupt, mut terminate) =
        match (watch(SignalKind::window_change()), watch(SignalKind::interrupt()), watch(SignalKind::terminate())) {
            (Ok(w), Ok(i), Ok(t)) => (w, i, t),
            (Err(e), ..) | (_, Err(e), _) | (.., Err(e)) => return Err(failed(e)),
        };
    if tty {
        // An additional process gets its terminal only with its start.
        resize(task).await;
    }
    let wait = task.wait();
    tokio::pin!(wait);
    let exit = loop {
        tokio::select! {
            exit = &mut wait => break exit?,
            _ = window.recv(), if tty => resize(task).await,
            _ = interrupt.recv() => task.kill(nix::libc::SIGINT.unsigned_abs(), false).await?,
            _ = terminate.recv() => task.kill(nix::libc::SIGTERM.unsigned_abs(), false).await?,
        }
    };
    if let Some(input) = input {
        input.abort();
    }
    Ok(exit)
}

/// Tells the task how big this terminal is. A size that cannot be passed on is no reason to end: the task may just be
/// ending itself.
pub async fn resize(task: &Task) {
    if let Some((width, height)) = terminal::size() {
        let _ = task.resize(width, height).await;
    }
}

async fn feed(task: Task, pipe: Result<tokio::net::unix::pipe::Sender, gantry_client::Error>) {
    let Ok(mut pipe) = pipe else { return };
    let _ = tokio::io::copy(&mut tokio::io::stdin(), &mut pipe).await;
    drop(pipe);
    let _ = task.close_stdin().await;
}
