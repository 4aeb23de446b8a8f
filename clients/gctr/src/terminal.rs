//! This side's terminal: raw mode while a container has it, and its size.

use std::io::{IsTerminal, stdin};
use std::os::fd::AsFd;

use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

use crate::error::Error;

/// Raw mode; the former mode comes back when it is dropped.
pub struct Raw {
    former: Option<Termios>,
}

impl Raw {
    /// Switches standard input to raw mode, where it is a terminal.
    pub fn enter() -> Result<Raw, Error> {
        if !stdin().is_terminal() {
            return Ok(Raw { former: None });
        }
        let failed = |e: nix::Error| Error::Io { what: "switch the terminal to raw mode", source: e.into() };
        let former = tcgetattr(stdin().as_fd()).map_err(failed)?;
        let mut raw = former.clone();
        cfmakeraw(&mut raw);
        tcsetattr(stdin().as_fd(), SetArg::TCSANOW, &raw).map_err(failed)?;
        Ok(Raw { former: Some(former) })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(former) = &self.former {
            let _ = tcsetattr(stdin().as_fd(), SetArg::TCSANOW, former);
        }
    }
}

/// Width and height in characters; none where there is no terminal.
pub fn size() -> Option<(u32, u32)> {
    // The `stty` of every system knows; asking the kernel ourselves would need unsafe code.
    let output = std::process::Command::new("stty").arg("size").stdin(std::process::Stdio::inherit()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let mut numbers = text.split_whitespace().map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(rows)), Some(Ok(columns))) => Some((columns, rows)),
        _ => None,
    }
}
