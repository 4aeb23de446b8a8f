//! `gantry-runtime`: the built-in runtime behind runc's command line, for podman, Docker or a containerd.
#![forbid(unsafe_code)]

mod cli;

/// Keeps what it has freed for the next: musl's own gives pages back to the kernel and asks for others all the time,
/// which was a tenth of what making a container costs.
#[global_allocator]
static MEMORY: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

fn main() -> std::process::ExitCode {
    cli::main(std::env::args().skip(1).collect())
}
