//! Pre-installed plug-ins: programs in a directory, started with a socket as descriptor 3.

use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use command_fds::{CommandFdExt as _, FdMapping};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

use crate::plugin::Given;
use crate::{Error, Result, names};

/// The descriptor of a plug-in's socket.
const SOCKET: i32 = 3;
/// Largest configuration that is read, in bytes.
const MAX_CONFIG: u64 = 4 << 20;

/// A plug-in that is there to be started.
#[derive(Debug)]
pub(crate) struct Installed {
    pub(crate) path: PathBuf,
    pub(crate) given: Given,
}

/// The plug-ins of a directory, by their names; those with a wrong name or configuration are named in the log.
pub(crate) fn installed(directory: &Path, configurations: &Path) -> Vec<Installed> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| is_program(path)).collect();
    paths.sort();
    let one = |path: PathBuf| {
        let file = path.file_name()?.to_str()?.to_owned();
        let Some((index, name)) = names::parse(&file) else {
            tracing::warn!(file, "not an NRI plugin: it must be called like 10-name");
            return None;
        };
        let config = match configuration(configurations, &file, name) {
            Ok(config) => config,
            Err(error) => {
                tracing::warn!(file, %error, "an NRI plugin is not started");
                return None;
            }
        };
        let given = Given { index: index.to_owned(), name: name.to_owned(), config };
        Some(Installed { path, given })
    };
    paths.into_iter().filter_map(one).collect()
}

fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|known| known.is_file() && known.permissions().mode() & 0o111 != 0)
}

/// A plug-in's configuration: `INDEX-NAME.conf`, else `NAME.conf`, else none.
fn configuration(directory: &Path, file: &str, name: &str) -> Result<String> {
    for name in [format!("{file}.conf"), format!("{name}.conf")] {
        let path = directory.join(name);
        let failed = |source| Error::Io { what: "read", path: path.clone(), source };
        match path.metadata() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
            Ok(known) if known.len() > MAX_CONFIG => return Err(failed(std::io::ErrorKind::FileTooLarge.into())),
            Ok(_) => return std::fs::read_to_string(&path).map_err(failed),
        }
    }
    Ok(String::new())
}

/// Starts a plug-in; its socket.
///
/// # Errors
/// When it cannot be started.
pub(crate) fn start(plugin: &Installed) -> Result<(UnixStream, Child)> {
    let failed = |source| Error::Io { what: "start", path: plugin.path.clone(), source };
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(failed)?;
    ours.set_nonblocking(true).map_err(failed)?;
    let mut command = std::process::Command::new(&plugin.path);
    command.env_clear();
    command.env("NRI_PLUGIN_NAME", &plugin.given.name).env("NRI_PLUGIN_IDX", &plugin.given.index);
    command.env("NRI_PLUGIN_SOCKET", SOCKET.to_string());
    let mapping = FdMapping { parent_fd: OwnedFd::from(theirs), child_fd: SOCKET };
    let collision = |error| failed(std::io::Error::other(error));
    command.fd_mappings(vec![mapping]).map_err(collision)?;
    let child = Command::from(command).kill_on_drop(true).spawn().map_err(failed)?;
    Ok((UnixStream::from_std(ours).map_err(failed)?, child))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_in_order_with_their_configurations() {
        let (programs, configs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for (name, mode) in [("20-b", 0o755), ("10-a", 0o755), ("30-text", 0o644), ("nonsense", 0o755)] {
            let path = programs.path().join(name);
            std::fs::write(&path, "").unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        std::fs::write(configs.path().join("a.conf"), "of a").unwrap();
        std::fs::write(configs.path().join("b.conf"), "of b").unwrap();
        std::fs::write(configs.path().join("20-b.conf"), "of 20-b").unwrap();
        let found = installed(programs.path(), configs.path());
        let told: Vec<_> = found.iter().map(|one| (one.given.index.as_str(), one.given.config.as_str())).collect();
        assert_eq!(told, [("10", "of a"), ("20", "of 20-b")]);
    }
}
