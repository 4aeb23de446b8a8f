//! How registries are reached by what Kubernetes' configuration says: credentials by host, and the outdated `mirrors`
//! and `tls`, which are written out as the `hosts.toml` files that mean the same.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use gantry_engine::transfer::{Access, Ask, Credential, Credentials, CredentialsError, Provided};

use crate::config::{RegistryAuth, RegistryConfig, RegistryTls};
use crate::{Error, Result};

/// The mirror of all registries that have none of their own, as `mirrors` calls it, and as directories do.
const ALL: (&str, &str) = ("*", "_default");
/// Docker's registry goes by three names.
pub(super) const DOCKER: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];

/// The registries of a node.
pub(crate) struct Registries {
    hosts_dirs: Option<Vec<PathBuf>>,
    headers: Vec<(String, String)>,
    known: Arc<Known>,
}

impl Registries {
    /// Takes a configuration; what has to be written lies below `state`.
    ///
    /// # Errors
    /// A credential that makes no sense, a file that cannot be written.
    pub(crate) fn open(config: &RegistryConfig, state: &Path) -> Result<Registries> {
        let own = state.join("registries");
        let hosts_dirs = match (config.config_path.is_empty(), files(config)) {
            (false, _) => Some(config.config_path.clone()),
            (true, files) if files.is_empty() => None,
            (true, files) => {
                store(&own, &files)?;
                Some(vec![own])
            }
        };
        let headers = config.headers.iter();
        Ok(Registries {
            hosts_dirs,
            headers: headers.flat_map(|(name, all)| all.iter().map(|v| (name.clone(), v.clone()))).collect(),
            known: Arc::new(Known(credentials(&config.auths)?)),
        })
    }

    /// Access for one call, with the host and credential that it brings.
    pub(crate) fn access(&self, brought: Option<(String, Credential)>) -> Access {
        let mut access = match brought {
            Some((host, credential)) => {
                let first = Provided::new(&host, Some(credential));
                Access::new(Arc::new(Either(first, Arc::clone(&self.known))))
            }
            None => Access::new(Arc::clone(&self.known) as Arc<dyn Credentials>),
        };
        access.hosts_dirs.clone_from(&self.hosts_dirs);
        access.headers.clone_from(&self.headers);
        access
    }
}

/// Credentials of the configuration, by host.
struct Known(BTreeMap<String, Credential>);

#[async_trait]
impl Credentials for Known {
    async fn get(&self, ask: Ask<'_>) -> std::result::Result<Option<Credential>, CredentialsError> {
        let names = if DOCKER.contains(&ask.host) { &DOCKER[..] } else { &[ask.host][..] };
        Ok(names.iter().find_map(|name| self.0.get(*name)).cloned())
    }
}

/// What the call brings, else what is known.
struct Either(Provided, Arc<Known>);

#[async_trait]
impl Credentials for Either {
    async fn get(&self, ask: Ask<'_>) -> std::result::Result<Option<Credential>, CredentialsError> {
        match self.0.get(ask).await? {
            None => self.1.get(ask).await,
            found => Ok(found),
        }
    }
}

fn credentials(auths: &BTreeMap<String, RegistryAuth>) -> Result<BTreeMap<String, Credential>> {
    let mut all = BTreeMap::new();
    for (host, auth) in auths {
        let credential = Credential::from_parts(&auth.username, &auth.password, &auth.auth, &auth.identitytoken, "");
        let field = format!("registry.configs.{host:?}.auth");
        let credential = credential.map_err(|error| Error::invalid(field, error.to_string()))?;
        all.extend(credential.map(|credential| (host.clone(), credential)));
    }
    Ok(all)
}

/// Files by directory name that say what `mirrors` and `tls` do.
fn files(config: &RegistryConfig) -> BTreeMap<String, String> {
    let hosts: BTreeSet<&String> = config.mirrors.keys().chain(config.tls.keys()).collect();
    hosts.into_iter().map(|host| (directory(host), file(host, config))).collect()
}

fn directory(host: &str) -> String {
    if host == ALL.0 { ALL.1.to_owned() } else { host.to_owned() }
}

/// One `hosts.toml`: endpoints in their order, then the registry itself.
fn file(host: &str, config: &RegistryConfig) -> String {
    let mut text = String::new();
    if let Some(tls) = config.tls.get(host) {
        // Certificates mean that TLS is spoken, on the loopback interface as well.
        text.push_str(&format!("server = {}\n", quoted(&format!("https://{host}"))));
        text.push_str(&tls_keys(tls));
    }
    for endpoint in config.mirrors.get(host).into_iter().flatten() {
        let rest = endpoint.split_once("://").map_or(endpoint.as_str(), |(_, rest)| rest);
        let (name, path) = rest.split_once('/').unwrap_or((rest, ""));
        text.push_str(&format!("[host.{}]\n", quoted(endpoint)));
        text.push_str("capabilities = [\"pull\", \"resolve\"]\n");
        if !path.is_empty() {
            text.push_str("override_path = true\n");
        }
        text.push_str(&config.tls.get(name).map(tls_keys).unwrap_or_default());
    }
    text
}

fn tls_keys(tls: &RegistryTls) -> String {
    let mut text = String::new();
    if tls.insecure_skip_verify {
        text.push_str("skip_verify = true\n");
    }
    if let Some(ca) = &tls.ca_file {
        text.push_str(&format!("ca = {}\n", quoted(&ca.to_string_lossy())));
    }
    if let (Some(cert), Some(key)) = (&tls.cert_file, &tls.key_file) {
        let (cert, key) = (quoted(&cert.to_string_lossy()), quoted(&key.to_string_lossy()));
        text.push_str(&format!("client = [[{cert}, {key}]]\n"));
    }
    text
}

/// A basic string of TOML, which JSON's are, too.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn store(own: &Path, files: &BTreeMap<String, String>) -> Result<()> {
    // What an earlier configuration wrote must not count any more.
    match std::fs::remove_dir_all(own) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(Error::io("remove", own)(error)),
        _ => {}
    }
    for (name, text) in files {
        if name.contains('/') || name.starts_with('.') {
            return Err(Error::invalid(format!("registry.mirrors.{name:?}"), "is not a host"));
        }
        let path = own.join(name);
        std::fs::create_dir_all(&path).map_err(Error::io("create", &path))?;
        let path = path.join("hosts.toml");
        std::fs::write(&path, text).map_err(Error::io("write", &path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> RegistryConfig {
        let tls = RegistryTls { insecure_skip_verify: true, ca_file: Some("/ca.pem".into()), ..Default::default() };
        let auth = RegistryAuth { username: "u".into(), password: "p".into(), ..Default::default() };
        RegistryConfig {
            mirrors: [
                ("docker.io".to_owned(), vec!["https://one.test".to_owned(), "http://two.test/sub/v2".to_owned()]),
                ("*".to_owned(), vec!["https://all.test".to_owned()]),
            ]
            .into(),
            tls: [("one.test".to_owned(), tls)].into(),
            auths: [("docker.io".to_owned(), auth)].into(),
            ..Default::default()
        }
    }

    #[test]
    fn mirrors_and_certificates_become_the_files_that_mean_the_same() {
        let state = tempfile::tempdir().unwrap();
        let registries = Registries::open(&config(), state.path()).unwrap();
        let dir = &registries.access(None).hosts_dirs.unwrap()[0];
        let read = |name: &str| std::fs::read_to_string(dir.join(name).join("hosts.toml")).unwrap();
        let docker = read("docker.io");
        let one = docker.find("[host.\"https://one.test\"]").unwrap();
        let two = docker.find("[host.\"http://two.test/sub/v2\"]").unwrap();
        assert!(one < two && docker[two..].contains("override_path = true"));
        assert!(docker[one..two].contains("skip_verify = true") && docker[one..two].contains("ca = \"/ca.pem\""));
        assert!(read("_default").contains("all.test"));
        assert!(read("one.test").starts_with("server = \"https://one.test\"\nskip_verify = true\n"));
    }

    #[tokio::test]
    async fn a_credential_of_the_configuration_is_used_where_the_call_brings_none() {
        let state = tempfile::tempdir().unwrap();
        let registries = Registries::open(&config(), state.path()).unwrap();
        let ask = |host| Ask { host, reference: "", challenges: &[] };
        let access = registries.access(None);
        assert!(access.credentials.get(ask("registry-1.docker.io")).await.unwrap().is_some());
        assert!(access.credentials.get(ask("other.test")).await.unwrap().is_none());
        let own = Credential::from_parts("me", "mine", "", "", "").unwrap().unwrap();
        let access = registries.access(Some(("docker.io".to_owned(), own.clone())));
        assert_eq!(access.credentials.get(ask("docker.io")).await.unwrap(), Some(own));
    }

    #[test]
    fn a_name_that_leads_elsewhere_is_refused() {
        let state = tempfile::tempdir().unwrap();
        let config = RegistryConfig { mirrors: [("../x".to_owned(), Vec::new())].into(), ..Default::default() };
        assert!(Registries::open(&config, state.path()).is_err());
    }
}
