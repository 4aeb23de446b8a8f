//! `gctr`: a debug tool for people at a terminal; `--json` makes it one for programs.
#![forbid(unsafe_code)]

mod admin;
mod args;
mod attach;
mod commands;
mod error;
mod output;
mod pull;
mod run;
mod terminal;
mod user;

use std::process::ExitCode;

use clap::Parser;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let args = args::Args::parse();
    match commands::dispatch(args).await {
        Ok(code) => code,
        Err(error) => error::report(&error),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn no_two_flags_of_a_command_are_the_same() {
        crate::args::Args::command().debug_assert();
    }
}
