//! Starting a shim of ours without a process in between: the one that is executed serves, as a child of this daemon. It
//! leads a process group of its own and outlives the daemon as any other shim does.

use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::time::Duration;

use tokio::net::unix::pipe;

use crate::command::{Run, read_combined};
use crate::{Answer, Config, Error, Result};

/// The verb.
pub(crate) const VERB: &str = "stay";
/// Most that goes through stdin, which is filled before anybody reads it.
const MAX_STDIN: usize = 32 << 10;
/// Between two looks whether a shim that hung up has ended: the first, and the longest.
const LOOK: Duration = Duration::from_millis(1);
const LONGEST_LOOK: Duration = Duration::from_secs(10);

/// Executes it, and returns its answer and, where it stays, the shim.
pub(crate) async fn run(run: Run<'_>, config: &Config, namespace: &str) -> Result<(Answer, Option<Starting>)> {
    let failed = || Error::io("pipe for", run.binary);
    let (read, write) = std::io::pipe().map_err(failed())?;
    let both = write.try_clone().map_err(failed())?;
    let (stdin, mut feed) = std::io::pipe().map_err(failed())?;
    feed.write_all(&run.stdin).map_err(failed())?;
    drop(feed);
    // A container reaches the program of its shim as that is about to become its own.
    let sealed = std::ffi::CString::new(run.binary.as_os_str().as_bytes());
    let sealed = sealed.ok().and_then(|path| gantry_mount::sealed(&path).ok());
    let program = sealed.as_ref().map(|fd| PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd())));
    let mut command = run.plain(program.as_deref().unwrap_or(run.binary), config, namespace);
    let child = command.stdin(stdin).stdout(write).stderr(both).spawn().map_err(Error::io("run", run.binary))?;
    drop((command, sealed));
    let mut starting = Starting(Some(child));
    let mut output = pipe::Receiver::from_owned_fd(read.into()).map_err(failed())?;
    let answered = async {
        let mut printed = Vec::new();
        read_combined(&mut output, &mut printed).await;
        if let Ok(answer) = Answer::parse(&printed)
            && answer.stays()
        {
            return Ok((answer, true));
        }
        let status = starting.end().await.map_err(Error::io("wait for", run.binary))?;
        let printed = run.judge(status, printed.clone(), &printed)?;
        let answer =
            Answer::parse(&printed).map_err(|reason| Error::Answer { binary: run.binary.to_owned(), reason })?;
        Ok((answer, false))
    };
    let (answer, stays) = tokio::time::timeout(run.limit, answered).await.unwrap_or_else(|_| Err(run.too_long()))?;
    Ok((answer, stays.then_some(starting)))
}

/// A shim that is being started; it does not outlive this.
#[derive(Debug)]
pub(crate) struct Starting(Option<Child>);

impl Starting {
    async fn end(&mut self) -> std::io::Result<ExitStatus> {
        match &mut self.0 {
            Some(child) => ended(child).await,
            None => Err(std::io::ErrorKind::NotFound.into()),
        }
    }

    /// It is started: from here on it lives for itself, and is seen off when it has hung up.
    pub(crate) fn settle(mut self, closed: impl Future<Output = ()> + Send + 'static) {
        if let Some(mut child) = self.0.take() {
            tokio::spawn(async move {
                closed.await;
                ended(&mut child).await
            });
        }
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        let Some(mut child) = self.0.take() else { return };
        // It may have ended just now.
        let _ = child.kill();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { ended(&mut child).await });
        }
    }
}

/// Waits for a child's end and takes it off the kernel's list. A descriptor for each of ten thousand shims would be
/// dearer than to look some times, as a shim that hangs up is about to end.
async fn ended(child: &mut Child) -> std::io::Result<ExitStatus> {
    let mut pause = LOOK;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        tokio::time::sleep(pause).await;
        pause = LONGEST_LOOK.min(pause * 2);
    }
}

/// Whether a shim can be asked to stay with this on its stdin.
pub(crate) fn fits(stdin: &[u8]) -> bool {
    stdin.len() <= MAX_STDIN
}

/// What tells one version of a binary from the next: device, inode, time of its last change.
pub(crate) type Version = (u64, u64, i64, i64);

/// The version of a binary; none where there is no such file.
pub(crate) fn version(binary: &Path) -> Option<Version> {
    let metadata = std::fs::metadata(binary).ok()?;
    Some((metadata.dev(), metadata.ino(), metadata.mtime(), metadata.mtime_nsec()))
}
