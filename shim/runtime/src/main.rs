//! `gantry-runtime`: the built-in runtime behind runc's command line, for podman, Docker or a containerd.
#![forbid(unsafe_code)]

mod cli;

fn main() -> std::process::ExitCode {
    cli::main(std::env::args().skip(1).collect())
}
