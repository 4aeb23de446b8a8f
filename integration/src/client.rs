//! Running a command-line client against a daemon and looking at how it ended.

use std::fmt;
use std::io::{Read, Seek};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How a client's command ended.
pub struct Outcome {
    /// The command line, for messages.
    pub command: String,
    /// Exit code; 128 + signal when it was killed.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// Wall time.
    pub took: Duration,
}

impl Outcome {
    /// Runs `command` to its end, killing it after `limit`.
    ///
    /// Output goes through files, because a background child that keeps a pipe open must not hold the test up.
    pub fn of(mut command: Command, limit: Duration) -> Outcome {
        let text = format!("{command:?}");
        let (mut out, mut err) = (tempfile::tempfile().expect("a file"), tempfile::tempfile().expect("a file"));
        command
            .stdin(Stdio::null())
            .stdout(out.try_clone().expect("a descriptor"))
            .stderr(err.try_clone().expect("a descriptor"));
        let start = Instant::now();
        let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot run {text}: {e}"));
        let mut late = false;
        let status = loop {
            if let Some(status) = child.try_wait().expect("wait for a child of ours") {
                break status;
            }
            if start.elapsed() > limit && !late {
                late = true;
                let _ = child.kill();
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        let took = start.elapsed();
        let read = |file: &mut std::fs::File| {
            let mut bytes = Vec::new();
            file.rewind().and_then(|()| file.read_to_end(&mut bytes)).expect("read what the client wrote");
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let (stdout, mut stderr) = (read(&mut out), read(&mut err));
        if late {
            stderr.push_str(&format!("\n[killed by the harness after {limit:?}]"));
        }
        use std::os::unix::process::ExitStatusExt;
        let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
        Outcome { command: text, code, stdout, stderr, took }
    }

    /// Insists on exit code 0; standard output.
    #[track_caller]
    pub fn ok(&self) -> &str {
        assert!(self.code == 0, "expected exit code 0\n{self}");
        &self.stdout
    }

    /// Insists on exit code `code`.
    #[track_caller]
    pub fn code(&self, code: i32) -> &Outcome {
        assert!(self.code == code, "expected exit code {code}\n{self}");
        self
    }

    /// Insists on failure whose message has `text` in it.
    #[track_caller]
    pub fn fails_with(&self, text: &str) -> &Outcome {
        assert!(self.code != 0, "expected a failure\n{self}");
        assert!(self.stderr.contains(text) || self.stdout.contains(text), "expected {text:?} in the message\n{self}");
        self
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "$ {}\n{}{}\n[exit code {}, {:?}]", self.command, self.stdout, self.stderr, self.code, self.took)
    }
}
