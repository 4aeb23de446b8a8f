//! The files that a pod's containers share: host name, hosts, resolver.

use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

use gantry_api::pb::runtime::v1 as wire;

use gantry_types::Mount;

use crate::{Error, Result};

/// How much memory a pod's containers can share through files, as Docker and containerd have it.
const SHM_SIZE: &str = "size=67108864";

/// The directory of one pod's files.
#[derive(Clone, Debug)]
pub(crate) struct PodFiles(PathBuf);

impl PodFiles {
    /// The pod's directory below `state`.
    pub(crate) fn of(state: &Path, id: &str) -> PodFiles {
        PodFiles(state.join("sandboxes").join(id))
    }

    /// `/etc/hostname`.
    pub(crate) fn hostname(&self) -> PathBuf {
        self.0.join("hostname")
    }

    /// `/etc/hosts`.
    pub(crate) fn hosts(&self) -> PathBuf {
        self.0.join("hosts")
    }

    /// `/etc/resolv.conf`.
    pub(crate) fn resolv_conf(&self) -> PathBuf {
        self.0.join("resolv.conf")
    }

    /// Where the pod's `/dev/shm` is mounted.
    pub(crate) fn shm(&self) -> PathBuf {
        self.0.join("shm")
    }

    /// Writes all of them; `owner` is the user and the group that root is in the pod. To give them away works on every
    /// file system and kernel, to map their ids does not (tmpfs: Linux 6.3).
    ///
    /// # Errors
    /// When the disk or the node's own files fail.
    pub(crate) fn write(&self, hostname: &str, dns: Option<&wire::DnsConfig>, owner: u32) -> Result<()> {
        std::fs::create_dir_all(&self.0).map_err(Error::io("create", &self.0))?;
        let put = |path: PathBuf, bytes: Vec<u8>| {
            std::fs::write(&path, bytes).map_err(Error::io("write", &path))?;
            chown(&path, Some(owner), Some(owner)).map_err(Error::io("give away", &path))
        };
        put(self.hostname(), format!("{hostname}\n").into_bytes())?;
        put(self.hosts(), node_file("/etc/hosts"))?;
        put(self.resolv_conf(), dns.map_or_else(|| node_file("/etc/resolv.conf"), |dns| resolver(dns).into_bytes()))
    }

    /// Mounts the memory that the pod's containers share, `owner`'s.
    ///
    /// # Errors
    /// When it cannot be mounted.
    pub(crate) fn mount_shm(&self, owner: u32) -> Result<()> {
        let shm = self.shm();
        std::fs::create_dir_all(&shm).map_err(Error::io("create", &shm))?;
        let mut options = ["nosuid", "noexec", "nodev", "mode=1777", SHM_SIZE].map(str::to_owned).to_vec();
        options.extend([format!("uid={owner}"), format!("gid={owner}")]);
        let mount = Mount { kind: "tmpfs".into(), source: "shm".into(), target: String::new(), options };
        gantry_mount::mount_all(&[mount], &shm)
            .map_err(|error| Error::State(format!("mount {}: {error}", shm.display())))
    }

    /// Takes that memory back; where it is not mounted there is nothing to do.
    ///
    /// # Errors
    /// When it cannot be unmounted.
    pub(crate) fn unmount_shm(&self) -> Result<()> {
        unmount(&self.shm())
    }

    /// Removes them; what is gone already is no error.
    ///
    /// # Errors
    /// When the disk fails.
    pub(crate) fn remove(&self) -> Result<()> {
        match std::fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", &self.0)(error)),
            _ => Ok(()),
        }
    }
}

/// Unmounts whatever is at `path`, lazily: who still uses it keeps it until then.
///
/// # Errors
/// When it is mounted and stays so.
pub(crate) fn unmount(path: &Path) -> Result<()> {
    let done = gantry_mount::unmount_all(path, gantry_mount::Unmount::LAZY);
    done.map_err(|error| Error::State(format!("unmount {}: {error}", path.display())))
}

/// The node's own file; a node without it has an empty one.
fn node_file(path: &str) -> Vec<u8> {
    std::fs::read(path).unwrap_or_default()
}

/// The text of resolv.conf(5) for what a pod asks.
fn resolver(dns: &wire::DnsConfig) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    dns.servers.iter().for_each(|server| text.push_str(&format!("nameserver {server}\n")));
    if !dns.options.is_empty() {
        text.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    text
}

/// Checks what is written into resolv.conf line by line.
///
/// # Errors
/// [`Error::Invalid`] for what would be more than one word or line.
pub(crate) fn check_dns(dns: &wire::DnsConfig) -> Result<()> {
    let all = [("servers", &dns.servers), ("searches", &dns.searches), ("options", &dns.options)];
    for (field, values) in all {
        for (at, value) in values.iter().enumerate() {
            if value.is_empty() || value.chars().any(|c| c.is_whitespace() || c.is_control()) {
                let field = format!("config.dns_config.{field}[{at}]");
                return Err(Error::invalid(field, "must be one word without blanks"));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dns(servers: &[&str], searches: &[&str], options: &[&str]) -> wire::DnsConfig {
        let all = |values: &[&str]| values.iter().map(|v| (*v).to_owned()).collect();
        wire::DnsConfig { servers: all(servers), searches: all(searches), options: all(options) }
    }

    #[test]
    fn the_resolver_file_has_search_servers_and_options_in_this_order() {
        let text = resolver(&dns(&["10.10.10.10"], &["lab.local", "b"], &["ndots:3"]));
        assert_eq!(text, "search lab.local b\nnameserver 10.10.10.10\noptions ndots:3\n");
    }

    #[test]
    fn a_server_cannot_smuggle_a_second_line_in() {
        let error = check_dns(&dns(&["1.1.1.1\nnameserver 6.6.6.6"], &[], &[])).unwrap_err();
        assert!(matches!(error, Error::Invalid { field, .. } if field == "config.dns_config.servers[0]"));
    }
}
