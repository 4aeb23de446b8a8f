//! `gctr`: a debug tool for people at a terminal; `--json` makes it one for programs.
#![forbid(unsafe_code)]

mod admin;
mod args;
mod attach;
mod commands;
mod commit;
mod error;
mod output;
mod pull;
mod run;
mod show;
mod terminal;
mod user;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let args = args::Args::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return error::report(&error::Error::io("start")(error)),
    };
    let code = runtime.block_on(commands::dispatch(args)).unwrap_or_else(|error| error::report(&error));
    // A thread that reads a terminal ends only with the next key: nobody waits for that.
    runtime.shutdown_background();
    code
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn no_two_flags_of_a_command_are_the_same() {
        crate::args::Args::command().debug_assert();
    }
}
