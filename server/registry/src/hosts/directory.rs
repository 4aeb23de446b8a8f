//! Finding what describes a registry: `hosts.toml`, or certificates as docker keeps them.

use std::io::ErrorKind as Io;
use std::path::{Path, PathBuf};

use super::endpoint::{ClientCertificate, Endpoint, check_host, split_port};
use super::{Hosts, HostsError, parse};
use crate::Scheme;

/// Largest `hosts.toml` that is read.
const MAX_FILE: u64 = 1 << 20;

/// The hosts for `registry`, by the first of `dirs` that has a directory for it, or one named `_default`; without any,
/// the registry itself. Reads the disk each time, so that changes count at once.
///
/// # Errors
/// [`HostsError`] when `registry` is not a host name or a file is unreadable or wrong.
pub fn load(dirs: &[PathBuf], registry: &str, scheme: Option<Scheme>) -> Result<Hosts, HostsError> {
    check_host(registry)?;
    let itself = Endpoint::of_registry(registry, scheme);
    for dir in dirs.iter().flat_map(|root| candidates(root, registry)) {
        if !dir.is_dir() {
            continue;
        }
        let file = dir.join("hosts.toml");
        return match read(&file)? {
            Some(text) => parse::parse(&text, &file, &itself),
            None => Ok(Hosts { endpoints: vec![docker_style(&dir, itself, scheme)?] }),
        };
    }
    Ok(Hosts { endpoints: vec![itself] })
}

/// Everything wrong with what `dirs` hold: files and certificates of all registries. A directory that is not there
/// means no mistake, for it may come.
pub fn check(dirs: &[PathBuf]) -> Vec<HostsError> {
    let mut found = Vec::new();
    for root in dirs {
        let Ok(entries) = std::fs::read_dir(root) else { continue };
        let mut folders: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        folders.sort();
        for folder in folders.iter().filter(|path| path.is_dir()) {
            found.extend(check_one(folder));
        }
    }
    found
}

fn check_one(folder: &Path) -> Vec<HostsError> {
    let file = folder.join("hosts.toml");
    let itself = Endpoint::of_registry("localhost", None);
    let hosts = match read(&file) {
        Ok(Some(text)) => parse::parse(&text, &file, &itself),
        Ok(None) => docker_style(folder, itself, None).map(|endpoint| Hosts { endpoints: vec![endpoint] }),
        Err(error) => Err(error),
    };
    match hosts {
        Ok(hosts) => hosts.endpoints.iter().filter_map(|e| crate::tls::config(e, false, false).err()).collect(),
        Err(error) => vec![error],
    }
}

/// Directory names of a registry, best first: `HOST_PORT_`, `HOST:PORT` or `HOST`, `_default`.
fn candidates(root: &Path, registry: &str) -> Vec<PathBuf> {
    let mut names = Vec::new();
    if let (name, Some(port)) = split_port(registry) {
        names.push(root.join(format!("{name}_{port}_")));
    }
    names.push(root.join(registry));
    names.push(root.join("_default"));
    names
}

fn read(file: &Path) -> Result<Option<String>, HostsError> {
    let failed = |source| HostsError::Read { path: file.display().to_string(), source };
    match std::fs::metadata(file) {
        Err(e) if e.kind() == Io::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
        Ok(meta) if meta.len() > MAX_FILE => return Err(failed(Io::FileTooLarge.into())),
        Ok(_) => (),
    }
    std::fs::read_to_string(file).map(Some).map_err(failed)
}

/// A directory without `hosts.toml`: each `*.crt` is an authority, each `*.cert` beside a `*.key` a client certificate.
fn docker_style(dir: &Path, mut itself: Endpoint, scheme: Option<Scheme>) -> Result<Endpoint, HostsError> {
    let failed = |source| HostsError::Read { path: dir.display().to_string(), source };
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        match path.extension().and_then(|e| e.to_str()) {
            Some("crt") => itself.ca.push(path),
            Some("cert") => {
                let key = path.with_extension("key");
                itself.client.push(ClientCertificate { certificate: path, key: Some(key) });
            }
            _ => (),
        }
    }
    itself.ca.sort();
    itself.client.sort();
    if scheme.is_none() && !(itself.ca.is_empty() && itself.client.is_empty()) {
        itself.scheme = Scheme::Https;
    }
    Ok(itself)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first_host(root: &Path, registry: &str) -> String {
        load(&[root.to_owned()], registry, None).unwrap().endpoints[0].origin()
    }

    fn write(root: &Path, name: &str, text: &str) {
        let file = root.join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, text).unwrap();
    }

    #[test]
    fn the_most_precise_directory_counts_and_changes_count_at_once() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        assert_eq!(first_host(root, "r.example:5000"), "https://r.example:5000");
        write(root, "_default/hosts.toml", "[host.'http://default.example']");
        assert_eq!(first_host(root, "r.example:5000"), "http://default.example");
        write(root, "r.example:5000/hosts.toml", "[host.'http://colon.example']");
        assert_eq!(first_host(root, "r.example:5000"), "http://colon.example");
        write(root, "r.example_5000_/hosts.toml", "[host.'http://underscore.example']");
        assert_eq!(first_host(root, "r.example:5000"), "http://underscore.example");
        assert_eq!(first_host(root, "other.example"), "http://default.example");
    }

    #[test]
    fn a_directory_of_certificates_means_tls_even_on_loopback() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "localhost_5000_/ca.crt", "");
        write(root.path(), "localhost_5000_/me.cert", "");
        let hosts = load(&[root.path().to_owned()], "localhost:5000", None).unwrap();
        let [endpoint] = hosts.endpoints.as_slice() else { panic!() };
        assert_eq!(endpoint.origin(), "https://localhost:5000");
        assert_eq!((endpoint.ca.len(), endpoint.client.len()), (1, 1));
    }

    #[test]
    fn every_wrong_file_of_a_directory_is_named() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        write(root, "a.example/hosts.toml", "server = 3");
        write(root, "b.example/hosts.toml", "[host.'https://m.example']\nca = 'none.pem'");
        write(root, "c.example/hosts.toml", "[host.'https://m.example']");
        write(root, "README", "");
        let found = check(&[root.to_owned(), root.join("missing")]);
        let text: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert!(text.len() == 2 && text[0].contains("hosts.toml:1") && text[1].contains("none.pem"), "{text:?}");
    }

    #[test]
    fn a_host_cannot_climb_out_of_the_directory() {
        assert!(load(&[PathBuf::from("/etc")], "../x", None).is_err());
        assert!(load(&[PathBuf::from("/etc")], "..", None).is_err());
    }
}
