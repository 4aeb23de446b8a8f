//! Docker's `config.json`: `auths`, `credHelpers`, `credsStore`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use serde::Deserialize;

use super::helper::Helper;
use super::matching::same_host;
use super::{Ask, Credential, Credentials, CredentialsError};
use crate::Secret;

/// Largest file that is read.
const MAX_FILE: u64 = 4 << 20;

/// Credentials of a `config.json`. The file is read anew at every question, so that a login counts at once.
#[derive(Clone, Debug)]
pub struct DockerConfig {
    path: PathBuf,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
    #[serde(default)]
    cred_helpers: BTreeMap<String, String>,
    #[serde(default)]
    creds_store: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    username: String,
    password: Secret,
    auth: Secret,
    identitytoken: Secret,
    registrytoken: Secret,
}

impl DockerConfig {
    /// Credentials of the file at `path`; a missing file knows none.
    pub fn new(path: impl Into<PathBuf>) -> DockerConfig {
        DockerConfig { path: path.into() }
    }

    fn read(&self) -> Result<File, CredentialsError> {
        let text = match read_bounded(&self.path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(File::default()),
            Err(source) => return Err(CredentialsError::Read { path: self.path.display().to_string(), source }),
            Ok(text) => text,
        };
        serde_json::from_str(&text).map_err(|e| {
            let what = format!("{}:{}: not a docker configuration", self.path.display(), e.line());
            CredentialsError::Malformed { what }
        })
    }
}

fn read_bounded(path: &Path) -> std::io::Result<String> {
    if std::fs::metadata(path)?.len() > MAX_FILE {
        return Err(std::io::ErrorKind::FileTooLarge.into());
    }
    std::fs::read_to_string(path)
}

impl File {
    /// The helper for a host, and the name it knows the host by.
    fn helper(&self, host: &str) -> Option<Helper> {
        let named = self.cred_helpers.iter().find(|(key, _)| same_host(key, host));
        if let Some((server, name)) = named {
            return Some(Helper::new(name, server));
        }
        let known = self.auths.keys().find(|key| same_host(key, host));
        let server = known.map_or(host, String::as_str);
        if self.creds_store.is_empty() { None } else { Some(Helper::new(&self.creds_store, server)) }
    }

    fn entry(&self, host: &str) -> Result<Option<Credential>, CredentialsError> {
        let Some((_, entry)) = self.auths.iter().find(|(key, _)| same_host(key, host)) else { return Ok(None) };
        Credential::from_parts(
            &entry.username,
            entry.password.reveal(),
            entry.auth.reveal(),
            entry.identitytoken.reveal(),
            entry.registrytoken.reveal(),
        )
    }
}

#[async_trait]
impl Credentials for DockerConfig {
    async fn get(&self, ask: Ask<'_>) -> Result<Option<Credential>, CredentialsError> {
        let file = self.read()?;
        if let Some(helper) = file.helper(ask.host)
            && let Some(credential) = helper.get(ask).await?
        {
            return Ok(Some(credential));
        }
        file.entry(ask.host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn get(text: &str, host: &str) -> Result<Option<Credential>, CredentialsError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, text).unwrap();
        DockerConfig::new(path).get(Ask { host, reference: "", challenges: &[] }).await
    }

    #[tokio::test]
    async fn entries_are_found_by_host_whatever_their_form() {
        let text = r#"{"auths": {"https://index.docker.io/v1/": {"auth": "dTpwOnc="}, "r.example:5000": {"identitytoken": "t"}}}"#;
        let hub = Credential::Basic { username: "u".into(), password: Secret::new("p:w") };
        assert_eq!(get(text, "registry-1.docker.io").await.unwrap(), Some(hub));
        assert_eq!(get(text, "r.example:5000").await.unwrap(), Some(Credential::Refresh(Secret::new("t"))));
        assert_eq!(get(text, "r.example").await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_broken_file_is_named_with_its_line_and_without_its_content() {
        let error = get("{\n\"auths\": {\"x\": {\"auth\": \"hunter22\"", "x").await.unwrap_err().to_string();
        assert!(error.contains("config.json:2") && !error.contains("hunter22"), "{error}");
        let error = get(r#"{"auths": {"x": {"auth": "hunter22!"}}}"#, "x").await.unwrap_err().to_string();
        assert!(!error.contains("hunter22"), "{error}");
    }

    #[tokio::test]
    async fn a_missing_file_knows_nobody() {
        let config = DockerConfig::new("/nonexistent/config.json");
        assert_eq!(config.get(Ask { host: "x", reference: "", challenges: &[] }).await.unwrap(), None);
    }
}
