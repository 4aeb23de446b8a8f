//! `containerd-shim-gantry-v1`: see the library's page.
#![forbid(unsafe_code)]

use std::io::Write;
use std::process::ExitCode;

use gantry_task::args::{Args, Verb};
use gantry_task::serve::Server;
use gantry_task::{Error, delete, info, keep_log, serve, start};

/// Keeps what it has freed for the next: musl's own gives pages back to the kernel and asks for others all the time,
/// which was a tenth of what making a container costs.
#[global_allocator]
static MEMORY: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

fn main() -> ExitCode {
    match run() {
        Ok(output) => print(&output),
        Err(error) => {
            // The daemon shows this text to its client.
            let _ = writeln!(std::io::stderr(), "{error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<Vec<u8>, Error> {
    let args = Args::parse(std::env::args().skip(1))?;
    match args.verb {
        Verb::Start => start::run(&args),
        Verb::Stay => start::stay(&args)?.map_or(Ok(()), Server::run).map(|()| Vec::new()),
        Verb::Delete => delete::run(&args),
        Verb::Serve => serve::run(&args).map(|()| Vec::new()),
        Verb::Info => info::run(),
        Verb::Version => Ok(info::version().into_bytes()),
        Verb::Log => keep_log::run(&args).map(|()| Vec::new()),
    }
}

fn print(output: &[u8]) -> ExitCode {
    match std::io::stdout().write_all(output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
