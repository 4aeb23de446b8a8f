//! Commands that go through CRIU: checkpoint, restore.

use std::path::PathBuf;

use gantry_runtime::{CgroupMode, Container, CriuOptions};

use super::args::{Args, Flag, UsageError};
use super::make::{self, Making};
use super::{Failure, Global};

pub(super) const CHECKPOINT: &[Flag] = &[
    Flag::value("image-path"),
    Flag::value("work-path"),
    Flag::value("parent-path"),
    Flag::switch("leave-running"),
    Flag::switch("tcp-established"),
    Flag::switch("tcp-skip-in-flight"),
    Flag::switch("link-remap"),
    Flag::switch("ext-unix-sk"),
    Flag::switch("shell-job"),
    Flag::switch("lazy-pages"),
    Flag::value("status-fd"),
    Flag::value("page-server"),
    Flag::switch("file-locks"),
    Flag::switch("pre-dump"),
    Flag::value("manage-cgroups-mode"),
    Flag::value("empty-ns"),
    Flag::switch("auto-dedup"),
];

pub(super) const RESTORE: &[Flag] = &[
    Flag::value("image-path"),
    Flag::value("work-path"),
    Flag::switch("tcp-established"),
    Flag::switch("ext-unix-sk"),
    Flag::switch("shell-job"),
    Flag::switch("file-locks"),
    Flag::value("manage-cgroups-mode"),
    Flag::value("empty-ns"),
    Flag::switch("auto-dedup"),
    Flag::switch("lazy-pages"),
    Flag::value("lsm-profile"),
    Flag::value("lsm-mount-context"),
    Flag::value("bundle").short('b'),
    Flag::value("console-socket"),
    Flag::value("pid-file"),
    Flag::switch("detach").short('d'),
    Flag::switch("no-subreaper"),
    Flag::switch("no-pivot"),
];

/// Writes a container into images, and deletes it unless it goes on.
pub(super) fn checkpoint(global: &Global, args: &Args) -> Result<u8, Failure> {
    let mut container = global.load(args.id()?)?;
    let options = options(global, args)?;
    container.checkpoint(&options)?;
    if !options.leave_running && !options.pre_dump {
        container.delete(true)?;
    }
    Ok(0)
}

/// Makes a container from images; its exit code is ours unless it is detached from.
pub(super) fn restore(global: &Global, args: &Args) -> Result<u8, Failure> {
    let options = options(global, args)?;
    let detach = args.has("detach");
    let made = make::made(global, args, Making { detach, make: &|wanted| Container::restore(wanted, &options) })?;
    make::attend(args, made, make::signals(args)?)
}

fn options(global: &Global, args: &Args) -> Result<CriuOptions, Failure> {
    if let Some(other) = args.all("empty-ns").iter().find(|name| *name != "network") {
        return Err(UsageError { reason: format!("namespace {other:?} is not supported") }.into());
    }
    let images = args.get("image-path").unwrap_or("checkpoint");
    let images = std::path::absolute(images).map_err(|source| Failure::io(format!("image path {images}"), source))?;
    let path = |name| args.get(name).filter(|path| !path.is_empty()).map(PathBuf::from);
    Ok(CriuOptions {
        program: global.criu.clone(),
        work: path("work-path"),
        parent: path("parent-path"),
        leave_running: args.has("leave-running"),
        tcp_established: args.has("tcp-established"),
        tcp_skip_in_flight: args.has("tcp-skip-in-flight"),
        link_remap: args.has("link-remap"),
        ext_unix_sk: args.has("ext-unix-sk"),
        shell_job: args.has("shell-job"),
        file_locks: args.has("file-locks"),
        pre_dump: args.has("pre-dump"),
        auto_dedup: args.has("auto-dedup"),
        lazy_pages: args.has("lazy-pages"),
        status_fd: args.number("status-fd")?.filter(|fd: &i32| *fd >= 0),
        page_server: args.get("page-server").map(page_server).transpose()?,
        manage_cgroups: CgroupMode::parse(args.get("manage-cgroups-mode").unwrap_or_default())?,
        lsm_profile: args.get("lsm-profile").map(str::to_owned),
        lsm_mount_context: args.get("lsm-mount-context").map(str::to_owned),
        ..CriuOptions::new(images)
    })
}

/// `ADDRESS:PORT`; an address with colons is in brackets.
fn page_server(text: &str) -> Result<(String, i32), UsageError> {
    let bad = || UsageError { reason: format!("invalid page server {text:?}: ADDRESS:PORT") };
    let (address, port) = text.rsplit_once(':').ok_or_else(bad)?;
    let address = address.trim_start_matches('[').trim_end_matches(']');
    let port = port.parse::<u16>().map_err(|_| bad())?;
    if address.is_empty() || port == 0 { Err(bad()) } else { Ok((address.to_owned(), port.into())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_servers_have_address_and_port() {
        assert_eq!(page_server("10.0.0.1:80").unwrap(), ("10.0.0.1".to_owned(), 80));
        assert_eq!(page_server("[::1]:80").unwrap(), ("::1".to_owned(), 80));
        for bad in ["", "x", ":80", "x:", "x:0", "x:99999"] {
            assert!(page_server(bad).is_err(), "{bad}");
        }
    }
}
