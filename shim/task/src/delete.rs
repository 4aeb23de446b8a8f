//! The verb `delete`: clears away what a container left whose shim is gone, and tells how it ended.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use gantry_ttrpc::pb::containerd::task::v2::DeleteResponse;
use prost::Message;

use crate::args::Args;
use crate::bundle::Bundle;
use crate::events::timestamp;
use crate::task::{Exit, Moment};
use crate::{Error, log, runtime, stale};

/// Status of a process that was killed because nobody held it any more.
const KILLED: u32 = 128 + 9;

/// Kills and removes whatever is left of the container; repeating it is harmless. Returns what to print.
///
/// # Errors
/// What could not be removed; the daemon may try again.
pub fn run(args: &Args) -> Result<Vec<u8>, Error> {
    let bundle = Bundle::new(directory(args)?);
    match bundle.socket() {
        Some(socket) => {
            stale::end_if_silent(&bundle, &socket);
            stale::ask_to_end(&socket);
        }
        // Its start did not come to an end, so nobody was told where it listens.
        None => stale::end(&bundle),
    }
    let stored = bundle.exit();
    match bundle.record() {
        Ok(_) => runtime::purge(&bundle)?,
        Err(error) => log::warning("how the container was made is unreadable", &error),
    }
    remove_socket(&bundle);
    let exit = stored.unwrap_or_else(|| Exit { status: KILLED, at: Moment::now() });
    let pid = bundle.pid().unwrap_or(0);
    let response = DeleteResponse { pid, exit_status: exit.status, exited_at: Some(timestamp(exit.at)) };
    Ok(response.encode_to_vec())
}

fn directory(args: &Args) -> Result<PathBuf, Error> {
    match &args.bundle {
        Some(bundle) => Ok(bundle.clone()),
        None => std::env::current_dir().map_err(|error| Error::system("getcwd", error)),
    }
}

/// A socket on which somebody answers serves other containers of the group.
fn remove_socket(bundle: &Bundle) {
    if let Some(socket) = bundle.socket()
        && UnixStream::connect(&socket).is_err()
    {
        let _ = std::fs::remove_file(socket);
    }
}
